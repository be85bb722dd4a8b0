"""The figures of a report that show strides layer by layer."""

import itertools
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from diffstride.report.masks import sizes_of_inputs
from diffstride.report.study import (
    STRIDES,
    grouped,
    method_label,
    run_label,
    short_names,
)
from diffstride.report.style import (
    BAR,
    EXPECTED,
    SERIES,
    headline,
    key,
    log_ticks,
    method_color,
)

_AXES = ("height", "width")
_NO_STRIDES = "no run has learned strides"
_FILLS = {"height": "full", "width": "none"}
_FILL_KEY = ("filled: height, open: width", "white", "", "")
_INITIAL_KEY = ("initial", BAR, "", "-")


def trajectories(run: Any) -> plt.Figure | str:
    """Strides of one run, epoch by epoch."""
    if run is None:
        return _NO_STRIDES
    if not run.rows:
        return f"there is no metrics.jsonl of {run['name']}"
    figure, axes = plt.subplots(figsize=(9, 5))
    names = short_names([layer["name"] for layer in run.layers])
    for i, layer in enumerate(run.layers):
        color, marker = SERIES[i % len(SERIES)]
        curves = _curves(run.rows, layer) if layer["learned"] else {}
        if len(curves) > 1 and curves["height"] == curves["width"]:
            curves = {"": curves["height"]}
        for axis, values in curves.items():
            axes.plot(
                *(range(len(values)), values),
                color=color,
                marker=marker,
                markevery=max(len(values) // 10, 1),
                ls="--" if axis == "width" else "-",
                fillstyle=_FILLS.get(axis, "full"),
                clip_on=False,
                label=f"{names[i]} {axis}".strip() + f", {values[-1]:.2f}",
            )
    lines = sorted(axes.lines, key=lambda line: -line.get_ydata()[-1])
    if not lines:
        plt.close(figure)
        return f"the epochs of {run['name']} have no strides"
    axes.set(xlabel="epoch", ylabel="stride (input size / nominal output size)")
    axes.set_xlim(0, len(run.rows))
    axes.xaxis.get_major_locator().set_params(integer=True)
    # In the order in which the lines end, with where they end.
    figure.legend(
        handles=lines,
        loc="outside right center",
        title="stride at the end",
        frameon=False,
        handlelength=3,
    )
    headline(figure, f"{_moved_most(run)} ({run_label(run)})")
    return figure


def distribution(runs: pd.DataFrame) -> plt.Figure | str:
    """Learned strides: by method, layer and initial strides.

    Args:
        runs: those to show, as in `Shown`.

    Returns:
        The figure, or why there is none.
    """
    if not len(runs):
        return _NO_STRIDES
    groups = list(grouped(runs, ["method"]))
    figure, grid = plt.subplots(
        *(len(groups), 1),
        figsize=(9.5, 2.7 * len(groups) + 1.2),
        sharey=True,
        squeeze=False,
    )
    positions = _positions(runs)
    starts = list(runs[STRIDES].cat.remove_unused_categories().cat.categories)
    strides = _learned(runs)
    for axes, ((method,), _) in zip(grid[:, 0], groups, strict=True):
        own = strides[strides["method"] == method]
        _draw_distribution(axes, own, starts, positions)
        axes.set_title(method_label(method), loc="left", fontweight="bold")
        axes.set_ylabel("stride")
    for axes in grid[:, 0]:
        axes.use_sticky_edges = False
        axes.autoscale_view()
        log_ticks(axes, "y")
    entries = [
        (f"from {start}", *SERIES[i % len(SERIES)], "")
        for i, start in enumerate(starts)
    ]
    entries += [_INITIAL_KEY, _FILL_KEY]
    if strides["low"].notna().any():
        entries.append(("expected", EXPECTED, "s", ""))
    key(figure, entries)
    headline(figure, _how_they_moved(strides))
    return figure


def cutoffs(methods: list[str], runs: pd.DataFrame) -> plt.Figure | str:
    """Learned strides as frequencies, by layer.

    Args:
        methods: of all runs, which decide the colours.
        runs: those to show, as in `Shown`.

    Returns:
        The figure, or why there is none.
    """
    if not len(runs):
        return _NO_STRIDES
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4))
    positions = _positions(runs)
    groups = list(grouped(runs, ["method"]))
    entries = []
    last = []
    for i, ((method,), own) in enumerate(groups):
        width = 0.8 / len(groups)
        middle = width * (i - (len(groups) - 1) / 2)
        color = method_color(method, methods)
        entries.append((method_label(method), color, "o", ""))
        for layers in own["layers"]:
            for j in range(len(_AXES)):
                ends = frequencies(layers, j, "strides")
                starts = frequencies(layers, j, "initial")
                x = np.array([positions[layer["name"]] for layer in layers])
                last.append(ends[1][-1])
                for axes, end, start in zip(
                    (left, right), ends, starts, strict=True
                ):
                    _bars(axes, x + middle, start, 0.92 * width)
                    axes.plot(
                        *(x + middle + width * (0.44 * j - 0.22), end, "o"),
                        color=color,
                        fillstyle=_FILLS[_AXES[j]],
                        alpha=0.75,
                    )
    for axes, title, of_what in (
        (left, "each layer by itself", "the layer's input"),
        (right, "the narrowest layer from the image on", "the image"),
    ):
        _layer_axis(axes, positions)
        axes.set_ylabel(f"cut-off, cycles per pixel of {of_what}")
        axes.set_title(title)
        log_ticks(axes, "y")
    key(figure, [*entries, _INITIAL_KEY, _FILL_KEY])
    headline(
        figure,
        "What passes all layers ends between "
        f"{min(last):.2g} and {max(last):.2g} cycles per pixel of the image",
    )
    return figure


def frequencies(
    layers: list[dict[str, Any]], axis: int, strides: str
) -> tuple[list[float], list[float]]:
    """Cut-offs of each layer.

    Args:
        layers: pooling layers of a run.
        axis: 0 for the height, 1 for the width.
        strides: `"strides"`, at the end, or `"initial"`.

    Returns:
        In cycles per pixel of the layer's input, and of the image: there the
        narrowest layer so far counts.
    """
    sizes = [size[axis] for size in sizes_of_inputs(layers, strides)]
    # A map shows the whole image: cycles over it are cycles over the image.
    cycles = [
        max(size / layer[strides][axis], 2) / 2
        for size, layer in zip(sizes, layers, strict=True)
    ]
    narrowest = itertools.accumulate(cycles, min)
    return (
        [c / size for c, size in zip(cycles, sizes, strict=True)],
        [c / sizes[0] for c in narrowest],
    )


def _curves(
    rows: list[dict[str, Any]], layer: dict[str, Any]
) -> dict[str, list[float]]:
    """The strides of a layer by axis, from before training on."""
    return {
        axis: [initial, *(row[name] for row in rows)]
        for axis, initial in zip(_AXES, layer["initial"], strict=False)
        if all(
            (name := f"stride/{layer['name']}/{axis}") in row for row in rows
        )
    }


def _moved_most(run: Any) -> str:
    names = short_names([layer["name"] for layer in run.layers])
    _, name, start, end = max(
        (abs(end - start), f"{name} {axis}", start, end)
        for name, layer in zip(names, run.layers, strict=True)
        if layer["learned"]
        for axis, start, end in zip(
            _AXES, layer["initial"], layer["strides"], strict=False
        )
    )
    return f"The most moved stride: {name}, from {start:.2f} to {end:.2f}"


def _learned(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each learned stride of each run."""
    return pd.DataFrame(
        [
            {
                "method": run["method"],
                "start": run[STRIDES],
                "layer": layer["name"],
                "axis": axis,
                "initial": layer["initial"][axis],
                "end": layer["strides"][axis],
                "low": low,
                "high": high,
            }
            for _, run in runs.iterrows()
            for layer in run["learned"]
            for axis, (low, high) in enumerate(
                layer.get("expected") or [(math.nan, math.nan)] * len(_AXES)
            )
        ]
    )


def _how_they_moved(strides: pd.DataFrame) -> str:
    """The headline of the learned strides."""
    known = strides.dropna(subset="low").round(2)
    if len(known):
        return "; ".join(
            _as_expected(_AXES[axis], own)
            for (axis,), own in grouped(known, ["axis"])
        )
    change = strides["end"] / strides["initial"]
    raised, lowered = (change > 1.005).sum(), (change < 0.995).sum()
    before, after = strides["initial"].mean(), strides["end"].mean()
    return (
        f"Training raised {raised} of {len(strides)} learned strides and "
        f"lowered {lowered} by more than 0.5 %; their mean went from "
        f"{before:.2f} to {after:.2f}"
    )


def _as_expected(axis: str, strides: pd.DataFrame) -> str:
    low, high = strides["low"].iloc[0], strides["high"].iloc[0]
    if low == high:
        ends = strides["end"]
        return (
            f"{axis.capitalize()}: expected at {low:g}, learned "
            f"{ends.min():.2f} to {ends.max():.2f}"
        )
    hits = strides["end"].between(strides["low"], strides["high"]).sum()
    return (
        f"{axis.capitalize()}: {hits} of {len(strides)} ended in the range "
        "expected"
    )


def _positions(runs: pd.DataFrame) -> dict[str, int]:
    """Layers of all networks by name, the deepest network's first."""
    networks = sorted(runs["layers"], key=len, reverse=True)
    names = dict.fromkeys(layer["name"] for each in networks for layer in each)
    return {name: i for i, name in enumerate(names)}


def _layer_axis(axes: plt.Axes, positions: dict[str, int]) -> None:
    axes.set_xticks(list(positions.values()), short_names(list(positions)))
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.grid(axis="x", visible=False)
    for boundary in range(1, len(positions)):
        axes.axvline(boundary - 0.5, color="#dddddd", lw=0.8)


def _draw_distribution(
    axes: plt.Axes,
    strides: pd.DataFrame,
    starts: list[Any],
    positions: dict[str, int],
) -> None:
    """Dots in columns: layers, in them initial strides, in them axes."""
    step = 0.8 / len(starts)
    for (layer, start, axis), own in grouped(
        strides, ["layer", "start", "axis"]
    ):
        i = starts.index(start)
        color, marker = SERIES[i % len(SERIES)]
        middle = positions[layer] + step * (i - (len(starts) - 1) / 2)
        x = middle + step * (0.36 * axis - 0.18)
        _bars(axes, [middle], own["initial"].iloc[:1], 0.84 * step)
        low, high = own["low"].iloc[0], own["high"].iloc[0]
        if not math.isnan(low):
            axes.bar(
                *(x, high - low, 0.3 * step, low),
                color=EXPECTED,
                edgecolor=EXPECTED,
                linewidth=3,
                zorder=0.9,
            )
        axes.plot(
            *([x] * len(own), own["end"], marker),
            color=color,
            fillstyle=_FILLS[_AXES[axis]],
            alpha=0.85,
        )
    _layer_axis(axes, positions)


def _bars(axes: plt.Axes, x: Any, y: Any, width: float) -> None:
    """Initial values, behind the dots."""
    half = np.full(len(x), width / 2)
    axes.hlines(y, x - half, x + half, color=BAR, lw=2.5, zorder=1)
