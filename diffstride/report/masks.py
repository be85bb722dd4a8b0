"""The figure of a report that shows masks, and sizes that follow from them."""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from diffstride.report.study import run_label, short_names
from diffstride.report.style import SERIES, START, headline


class _Mask(NamedTuple):
    """A mask along one axis.

    Attributes:
        frequencies: in cycles per pixel.
        weights: at these.
        stride: of the variable.
        used: stride in force.
    """

    frequencies: np.ndarray
    weights: np.ndarray
    stride: float
    used: float

    def __str__(self):
        text = f"stride {self.stride:.2f}"
        raised = f"{self.used:.2f}" != f"{self.stride:.2f}"
        return f"{text}, in force {self.used:.2f}" if raised else text


def masks(run: Any) -> plt.Figure | str:
    """Masks of one run along the width, at the start and at the end."""
    if run is None:
        return "no run has learned strides"
    if any(
        layer.get(name) is None
        for layer in run.learned
        for name in ("ramp", "smoothness_factor")
    ):
        return f"the summary of {run['name']} lacks ramp and smoothness"
    names = short_names([layer["name"] for layer in run.layers])
    starts = sizes_of_inputs(run.layers, "initial")
    panels = [
        (name, _mask(layer, "initial", sizes), _mask(layer, "strides"))
        for name, layer, sizes in zip(names, run.layers, starts, strict=True)
        if layer["learned"]
    ]
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=(max(2.75 * columns, 6.5), 3 * rows + 0.6),
        sharex=True,
        sharey=True,
        squeeze=False,
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        _draw(axes, *panel)
    figure.supxlabel("cycles per pixel of the layer's input", fontsize=10)
    figure.supylabel("weight in the mask", fontsize=10)
    headline(figure, f"{_what_changed(panels)} (width; {run_label(run)})")
    return figure


def sizes_of_inputs(
    layers: list[dict[str, Any]], strides: str
) -> list[tuple[int, ...]]:
    """Sizes of the maps that the pooling layers of a run receive.

    Args:
        layers: pooling layers of the run.
        strides: `"strides"`, at the end, or `"initial"`, as far as it can be
            told: where a layer's input is as large as the output of the one
            before, it is taken to have been so from the start.

    Returns:
        Sizes, layer by layer.
    """
    if strides == "strides":
        return [tuple(layer["input_size"]) for layer in layers]
    sizes: list[tuple[int, ...]] = []
    for before, layer in zip([None, *layers], layers, strict=False):
        size = tuple(layer["input_size"])
        if before and tuple(before["output_size"]) == size and _is_soft(before):
            values = _values(before, "initial")
            size = tuple(_low_pass(before).output_sizes(sizes[-1], values))
        sizes.append(size)
    return sizes


def _draw(axes: plt.Axes, name: str, start: _Mask, end: _Mask) -> None:
    color = SERIES[0][0]
    for mask, what, ink, style, size in (
        (start, "start", START, "s--", 6.5),
        (end, "end", color, "o-", 4),
    ):
        axes.plot(
            *(mask.frequencies, mask.weights, style),
            color=ink,
            lw=1.3,
            ms=size,
            fillstyle="full" if mask is end else "none",
            label=f"{what}: {mask}",
        )
        axes.plot([0.5 / mask.used] * 2, [0, 1.08], ":", color=ink, lw=1.4)
    axes.set_title(name, fontweight="bold", y=1.0, pad=36)
    axes.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        frameon=False,
        fontsize=9,
        labelspacing=0.2,
        handlelength=1.8,
    )
    axes.set(xlim=(-0.015, 0.515), ylim=(-0.03, 1.08))
    axes.set_xticks([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    axes.tick_params(labelbottom=True)


def _what_changed(panels: list[tuple[str, _Mask, _Mask]]) -> str:
    changes = [
        round(end.used, 2) - round(start.used, 2) for _, start, end in panels
    ]
    counts = (
        ("widened {}", sum(change < 0 for change in changes)),
        ("narrowed {}", sum(change > 0 for change in changes)),
        ("left {} alone", sum(change == 0 for change in changes)),
    )
    words = [text.format(number) for text, number in counts if number]
    bands = f"{len(panels)} pass band{'s' if len(panels) > 1 else ''}"
    return f"Of {bands} training {', '.join(words)}"


def _is_soft(layer: dict[str, Any]) -> bool:
    """Whether ramp and smoothness of a layer are known."""
    return None not in (layer.get("ramp"), layer.get("smoothness_factor"))


def _low_pass(layer: dict[str, Any]) -> Any:
    from diffstride.masks import LowPass  # Imports keras, which takes seconds.

    return LowPass(layer["smoothness_factor"], layer["ramp"])


def _values(layer: dict[str, Any], strides: str) -> np.ndarray:
    """What the stride variable held."""
    values = np.asarray(layer[strides], "float32")
    return values[:1] if layer.get("shared_stride") else values


def _mask(
    layer: dict[str, Any], strides: str, sizes: tuple[int, ...] | None = None
) -> _Mask:
    """The mask along the last axis, on maps of the size at the end or given."""
    sizes = tuple(sizes or layer["input_size"])
    values = _values(layer, strides)
    low_pass = _low_pass(layer)
    used = low_pass.used(sizes, values)
    band = low_pass.bands(sizes, values)[-1]
    frequencies = np.arange(sizes[-1] // 2 + 1) / sizes[-1]
    weights = np.asarray(band.negative)
    return _Mask(frequencies, weights, float(values[-1]), float(used[-1]))
