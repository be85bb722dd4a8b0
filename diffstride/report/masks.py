"""The figure of a report that shows masks, and sizes that follow from them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from diffstride.report import style
from diffstride.report.study import run_label, short_names

# Of the frequencies of a spectrogram, along time and along mel channels.
UNITS = ("Hz", "cycles per mel channel")


class _Mask(NamedTuple):
    """Weights at frequencies; the stride, and in force; 0.5 / stride."""

    frequencies: np.ndarray
    weights: np.ndarray
    stride: float
    used: float
    cutoff: float

    def __str__(self):
        text = f"stride {self.stride:.2f}"
        raised = f"{self.used:.2f}" != f"{self.stride:.2f}"
        return f"{text}, in force {self.used:.2f}" if raised else text


def masks(run: Any, axis: int = -1) -> plt.Figure | str:
    """Masks of one run along an axis, at the start and at the end."""
    if any(layer.get("kind") == "DynOPool" for layer in run.learned):
        return "DynOPool has no masks"
    if not all(map(_is_soft, run.learned)):
        return f"the summary of {run['name']} lacks ramp and smoothness"
    names = short_names(layer["name"] for layer in run.layers)
    starts = sizes_of_inputs(run.layers, "initial")
    # A frequency of an image is told by the pixels of the layer's input, that
    # of a sound by the spectrogram, for what it is worth to the ear.
    first = run.layers[0]["input_size"] if run.steps else None
    span = first and list(np.multiply(first, run.steps))
    unit = UNITS[axis] if run.steps else "cycles per pixel of the layer's input"
    found = [
        (
            layer,
            _mask(layer, "initial", sizes, axis, span),
            _mask(layer, "strides", None, axis, span),
        )
        for layer, sizes in zip(run.layers, starts, strict=True)
        if layer["learned"]
    ]
    most = 0.5 / run.steps[axis] if run.steps else 0.5
    columns = min(len(found), 4)
    width = max(2.75, 6.5 / columns)
    figure, grid = style.panels(len(found), columns, width, 3, sharey=True)
    for axes, (layer, start, end) in zip(grid, found, strict=True):
        _draw(
            axes, start, "start", style.START, "s--", ms=6.5, fillstyle="none"
        )
        _draw(axes, end, "end", style.SERIES[0][0], "o-", ms=4)
        axes.set_title(names[layer["name"]], fontweight="bold", y=1.0, pad=36)
        axes.legend(
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            fontsize=9,
            labelspacing=0.2,
            handlelength=1.8,
        )
        axes.set(xlim=(-0.03 * most, 1.03 * most), ylim=(-0.03, 1.08))
        axes.set_xticks([most * tick / 5 for tick in range(6)])
        axes.tick_params(labelbottom=True)
    figure.supxlabel(unit, fontsize=10)
    figure.supylabel("weight in the mask", fontsize=10)
    along = run.axis_names[axis]
    style.title(figure, f"{_what_changed(found)} ({along}; {run_label(run)})")
    return figure


def sizes_of_inputs(
    layers: list[dict[str, Any]], strides: str
) -> list[tuple[int, ...]]:
    """Sizes of the maps that pooling layers receive, at a set of strides.

    At the `"initial"` strides as far as it can be told: where a layer's input
    is as large as the output of the one before, it is taken to have been so
    from the start.
    """
    ends = [tuple(layer["input_size"]) for layer in layers]
    if strides == "strides":
        return ends
    sizes = ends[:1]
    for before, size in zip(layers, ends[1:], strict=False):
        if tuple(before["output_size"]) == size and _is_soft(before):
            low_pass, values = _low_pass(before, "initial")
            size = tuple(low_pass.output_sizes(sizes[-1], values))
        sizes.append(size)
    return sizes


def _draw(
    axes: plt.Axes, mask: _Mask, what: str, color: str, line: str, **look: Any
) -> None:
    axes.plot(
        *(mask.frequencies, mask.weights, line),
        color=color,
        lw=1.3,
        label=f"{what}: {mask}",
        **look,
    )
    axes.plot([mask.cutoff] * 2, [0, 1.08], ":", color=color, lw=1.4)


def _what_changed(found: list[tuple[Any, _Mask, _Mask]]) -> str:
    changes = [
        round(end.used, 2) - round(start.used, 2) for _, start, end in found
    ]
    counts = {
        "widened {}": sum(change < 0 for change in changes),
        "narrowed {}": sum(change > 0 for change in changes),
        "left {} alone": sum(change == 0 for change in changes),
    }
    words = [text.format(number) for text, number in counts.items() if number]
    bands = f"{len(found)} pass band{'s' if len(found) > 1 else ''}"
    return f"Of {bands} training {', '.join(words)}"


def _is_soft(layer: dict[str, Any]) -> bool:
    """Whether ramp and smoothness of a layer are known."""
    return None not in (layer.get("ramp"), layer.get("smoothness_factor"))


def _is_cosine(layer: dict[str, Any]) -> bool:
    return layer.get("kind") == "DCTDiffStride"


def _low_pass(layer: dict[str, Any], strides: str) -> tuple[Any, np.ndarray]:
    """The filter of a layer, at the start or now, and its stride variable."""
    # Imports keras, which takes seconds.
    from diffstride.masks import CosineLowPass, LowPass

    mask_cls = CosineLowPass if _is_cosine(layer) else LowPass
    values = np.asarray(layer[strides], "float32")
    values = values[:1] if layer.get("shared_stride") else values
    # Summaries of earlier versions do not have these.
    options = {
        name: layer[name]
        for name in ("keep_parity", "smallest_size")
        if layer.get(name) is not None
    }
    smoothness = layer["smoothness_factor"]
    if strides == "strides":
        smoothness = layer.get("current_smoothness", smoothness)
    low_pass = mask_cls(smoothness, layer["ramp"], **options)
    return low_pass, values


def _mask(
    layer: dict[str, Any],
    strides: str,
    sizes: tuple[int, ...] | None = None,
    axis: int = -1,
    span: Sequence[float] | None = None,
) -> _Mask:
    """The mask along an axis, on maps of the size at the end or given.

    `span` is what a map is long, by default the number of its pixels.
    """
    sizes = tuple(sizes or layer["input_size"])
    axis = range(len(sizes))[axis]
    low_pass, values = _low_pass(layer, strides)
    used = low_pass.used(sizes, values)
    band = low_pass.bands(sizes, values)[axis]
    one_sided = axis == len(sizes) - 1
    weights = np.asarray(band.negative if one_sided else band.positive)
    # A coefficient of the DCT is half a cycle over the map.
    length = span[axis] if span else sizes[axis]
    period = length * (2 if _is_cosine(layer) else 1)
    frequencies = np.arange(len(weights)) / period
    # A shared stride is that of all axes.
    stride, in_force = (
        float(np.broadcast_to(each, len(sizes))[axis])
        for each in (values, used)
    )
    cutoff = 0.5 / in_force * sizes[axis] / length
    return _Mask(frequencies, weights, stride, in_force, cutoff)
