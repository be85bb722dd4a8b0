"""The figure of a report that shows masks."""

from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from diffstride.report.data import Run, short_names
from diffstride.report.style import SERIES, START, headline

from diffstride import DiffStride
from diffstride import resampling as spectral


class _Mask(NamedTuple):
    """A mask along one axis.

    Attributes:
        frequencies: in cycles per pixel.
        weights: at these.
        stride: in force.
    """

    frequencies: np.ndarray
    weights: np.ndarray
    stride: float


def masks(run: Run | None) -> plt.Figure | str:
    """Masks of one run along the width, at the start and at the end."""
    if run is None:
        return "no run has learned strides"
    if any(
        layer.get(name) is None
        for layer in run.learned
        for name in ("ramp", "smoothness_factor")
    ):
        return f"the summary of {run.name} lacks ramp and smoothness"
    names = short_names([layer["name"] for layer in run.layers])
    panels = [
        (name, _mask(layer, "initial", size), _mask(layer, "strides"))
        for name, layer, size in zip(
            names, run.layers, sizes_of_inputs(run, "initial"), strict=True
        )
        if layer["learned"]
    ]
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=(max(2.75 * columns, 5.5), 3 * rows + 0.6),
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
    headline(figure, f"{_what_changed(panels)} (width; {run.label})")
    return figure


def _draw(axes: plt.Axes, name: str, start: _Mask, end: _Mask) -> None:
    color = SERIES[0][0]
    for mask, ink, style, size in (
        (start, START, "s--", 6.5),
        (end, color, "o-", 4),
    ):
        axes.plot(
            *(mask.frequencies, mask.weights, style),
            color=ink,
            lw=1.3,
            ms=size,
            fillstyle="full" if mask is end else "none",
        )
        axes.plot([0.5 / mask.stride] * 2, [0, 1.08], ":", color=ink, lw=1.4)
    axes.set_title(f"{name}\n\n", fontweight="bold")
    for height, text, ink in (
        (1.10, f"start: stride {start.stride:.2f}", "#555555"),
        (1.02, f"end: stride {end.stride:.2f}", color),
    ):
        axes.text(
            *(0.5, height, text),
            transform=axes.transAxes,
            ha="center",
            color=ink,
        )
    axes.set(xlim=(-0.015, 0.515), ylim=(-0.03, 1.08))
    axes.set_xticks([0, 0.1, 0.2, 0.3, 0.4, 0.5])
    axes.tick_params(labelbottom=True)


def _what_changed(panels: list[tuple[str, _Mask, _Mask]]) -> str:
    changes = [
        round(end.stride, 2) - round(start.stride, 2)
        for _, start, end in panels
    ]
    counts = (
        ("widened {}", sum(change < 0 for change in changes)),
        ("narrowed {}", sum(change > 0 for change in changes)),
        ("left {} alone", sum(change == 0 for change in changes)),
    )
    words = [text.format(number) for text, number in counts if number]
    bands = f"{len(panels)} pass band{'s' if len(panels) > 1 else ''}"
    return f"Of {bands} training {', '.join(words)}"


def sizes_of_inputs(run: Run, strides: str) -> list[tuple[int, ...]]:
    """Sizes of the maps that the pooling layers of a run receive.

    Args:
        run: the run.
        strides: `"strides"`, at the end, or `"initial"`, as far as it can be
            told: where a layer's input is as large as the output of the one
            before, it is taken to have been so from the start.

    Returns:
        Sizes, layer by layer.
    """
    if strides == "strides":
        return [tuple(layer["input_size"]) for layer in run.layers]
    sizes: list[tuple[int, ...]] = []
    for before, layer in zip([None, *run.layers], run.layers, strict=False):
        size = tuple(layer["input_size"])
        if before and tuple(before["output_size"]) == size:
            size = _output_size(before, "initial", sizes[-1]) or size
        sizes.append(size)
    return sizes


def _output_size(
    layer: dict[str, Any], strides: str, sizes: tuple[int, ...]
) -> tuple[int, ...] | None:
    if layer.get("ramp") is None or layer.get("smoothness_factor") is None:
        return None
    pooling = DiffStride(
        smoothness_factor=layer["smoothness_factor"], ramp=layer["ramp"]
    )
    return pooling.output_sizes(sizes, _values(layer, strides))


def _values(layer: dict[str, Any], strides: str) -> np.ndarray:
    """What the stride variable held."""
    values = np.asarray(layer[strides], "float32")
    return values[:1] if layer.get("shared_stride") else values


def _mask(
    layer: dict[str, Any], strides: str, sizes: tuple[int, ...] | None = None
) -> _Mask:
    """The mask along the last axis, on maps of the size at the end or given."""
    sizes = tuple(sizes or layer["input_size"])
    smoothness, ramp = layer["smoothness_factor"], layer["ramp"]
    values = _values(layer, strides)
    *_, stride = spectral.used_strides(
        values, sizes, smoothness, lower_limit=1.0, ramp=ramp
    )
    output = _output_size(layer, strides, sizes)[-1]
    band = spectral.learned_band(sizes[-1], output, stride, smoothness, ramp)
    frequencies = np.arange(sizes[-1] // 2 + 1) / sizes[-1]
    return _Mask(frequencies, np.asarray(band.outer), float(stride))
