"""The figures of a report that show strides layer by layer."""

import itertools
import statistics
from collections.abc import Iterator
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from diffstride.report.data import (
    MISSING,
    STRIDES,
    Run,
    method_label,
    order,
    short_names,
)
from diffstride.report.masks import sizes_of_inputs
from diffstride.report.style import (
    BAR,
    SERIES,
    headline,
    key,
    label_ends,
    log_ticks,
    method_style,
)

_AXES = ("height", "width")
_NO_STRIDES = "no run has learned strides"
_FILLS = {"height": "full", "width": "none"}
_FILL_KEY = ("filled: height, open: width", "white", "")


def trajectories(run: Run | None) -> plt.Figure | str:
    """Strides of one run, epoch by epoch."""
    if run is None:
        return _NO_STRIDES
    if not run.epochs:
        return f"there is no metrics.jsonl of {run.name}"
    figure, axes = plt.subplots(figsize=(9, 5))
    ends = []
    names = short_names([layer["name"] for layer in run.layers])
    for i, layer in enumerate(run.layers):
        if not layer["learned"]:
            continue
        color, marker = SERIES[i % len(SERIES)]
        curves = dict(_curves(run, layer))
        if len(set(curves.values())) == 1 < len(curves):
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
            )
            text = f"{names[i]} {axis}".strip()
            ends.append((f"{text}, {values[-1]:.2f}", color, values[-1]))
    if not ends:
        plt.close(figure)
        return f"the epochs of {run.name} have no strides"
    axes.set(xlabel="epoch", ylabel="stride (input size / nominal output size)")
    axes.set_xlim(0, len(run.epochs))
    axes.xaxis.get_major_locator().set_params(integer=True)
    label_ends(axes, ends)
    headline(figure, f"{_moved_most(run)} ({run.label})")
    return figure


def distribution(groups: dict[str, list[Run]]) -> plt.Figure | str:
    """Learned strides: by method, layer and initial strides.

    Args:
        groups: the runs to show, by method.

    Returns:
        The figure, or why there is none.
    """
    if not groups:
        return _NO_STRIDES
    figure, grid = plt.subplots(
        *(len(groups), 1),
        figsize=(9.5, 2.7 * len(groups) + 1.2),
        sharey=True,
        squeeze=False,
    )
    positions = _positions(groups)
    starts = sorted(
        {
            run.setting.get(STRIDES, MISSING)
            for run in itertools.chain(*groups.values())
        },
        key=lambda value: order(STRIDES, value),
    )
    for axes, (method, runs) in zip(grid[:, 0], groups.items(), strict=True):
        _draw_distribution(axes, runs, starts, positions)
        axes.set_title(method_label(method), loc="left", fontweight="bold")
        axes.set_ylabel("stride")
    for axes in grid[:, 0]:
        log_ticks(axes, "y")
    key(
        figure,
        [
            (f"from {start}", *SERIES[i % len(SERIES)])
            for i, start in enumerate(starts)
        ]
        + [("initial", BAR, "_"), _FILL_KEY],
    )
    change = statistics.median(
        abs(end / start - 1)
        for run in itertools.chain(*groups.values())
        for layer in run.learned
        for start, end in zip(layer["initial"], layer["strides"], strict=True)
    )
    headline(
        figure,
        f"Half of the learned strides ended within {100 * change:.2g} % of "
        "where they began",
    )
    return figure


def cutoffs(
    methods: list[str], groups: dict[str, list[Run]]
) -> plt.Figure | str:
    """Learned strides as frequencies, by layer.

    Args:
        methods: of all runs, which decide the colours.
        groups: the runs to show, by method.

    Returns:
        The figure, or why there is none.
    """
    if not groups:
        return _NO_STRIDES
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4))
    positions = _positions(groups)
    for i, (method, runs) in enumerate(groups.items()):
        width = 0.8 / len(groups)
        middle = width * (i - (len(groups) - 1) / 2)
        style = method_style(method, methods)
        _draw_cutoffs((left, right), runs, positions, middle, width, style)
    for axes, title, of_what in (
        (left, "each layer by itself", "the layer's input"),
        (right, "the narrowest layer from the image on", "the image"),
    ):
        _layer_axis(axes, positions)
        axes.set_ylabel(f"cut-off, cycles per pixel of {of_what}")
        axes.set_title(title)
        log_ticks(axes, "y")
    key(
        figure,
        [(method_label(m), *method_style(m, methods)) for m in groups]
        + [("initial", BAR, "_"), _FILL_KEY],
    )
    last = [
        _frequencies(run, axis, "strides")[1][-1]
        for run in itertools.chain(*groups.values())
        for axis in range(len(_AXES))
    ]
    headline(
        figure,
        "What passes all layers ends between "
        f"{min(last):.2g} and {max(last):.2g} cycles per pixel of the image",
    )
    return figure


def _curves(
    run: Run, layer: dict[str, Any]
) -> Iterator[tuple[str, tuple[float, ...]]]:
    """The strides of a layer by axis, from before training on."""
    for axis, initial in zip(_AXES, layer["initial"], strict=False):
        name = f"stride/{layer['name']}/{axis}"
        if all(name in row for row in run.epochs):
            yield axis, (initial, *(row[name] for row in run.epochs))


def _moved_most(run: Run) -> str:
    names = short_names([layer["name"] for layer in run.layers])
    moves = [
        (abs(end - start), f"{name} {axis}", start, end)
        for name, layer in zip(names, run.layers, strict=True)
        if layer["learned"]
        for axis, start, end in zip(
            _AXES, layer["initial"], layer["strides"], strict=False
        )
    ]
    _, name, start, end = max(moves, key=lambda move: move[0])
    return f"The most moved stride: {name}, from {start:.2f} to {end:.2f}"


def _positions(groups: dict[str, list[Run]]) -> dict[str, int]:
    """Layers of all networks by name, the deepest network's first."""
    runs = sorted(
        itertools.chain(*groups.values()), key=lambda run: -len(run.layers)
    )
    names = dict.fromkeys(layer["name"] for run in runs for layer in run.layers)
    return {name: i for i, name in enumerate(names)}


def _layer_axis(axes: plt.Axes, positions: dict[str, int]) -> None:
    axes.set_xticks(list(positions.values()), short_names(list(positions)))
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.grid(axis="x", visible=False)
    for boundary in range(1, len(positions)):
        axes.axvline(boundary - 0.5, color="#dddddd", lw=0.8)


def _draw_distribution(
    axes: plt.Axes,
    runs: list[Run],
    starts: list[Any],
    positions: dict[str, int],
) -> None:
    """Dots in columns: layers, in them initial strides, in them axes."""
    step = 0.8 / len(starts)
    bars: set[tuple[float, float]] = set()
    for run in runs:
        i = starts.index(run.setting.get(STRIDES, MISSING))
        color, marker = SERIES[i % len(SERIES)]
        for layer in run.learned:
            x = positions[layer["name"]] + step * (i - (len(starts) - 1) / 2)
            for j, (axis, initial, end) in enumerate(
                zip(_AXES, layer["initial"], layer["strides"], strict=False)
            ):
                bars.add((x, initial))
                axes.plot(
                    *(x + step * (0.36 * j - 0.18), end),
                    marker=marker,
                    color=color,
                    fillstyle=_FILLS[axis],
                    alpha=0.85,
                )
    _draw_bars(axes, bars, 0.84 * step)
    _layer_axis(axes, positions)


def _draw_cutoffs(
    pair: tuple[plt.Axes, plt.Axes],
    runs: list[Run],
    positions: dict[str, int],
    middle: float,
    width: float,
    style: tuple[str, str],
) -> None:
    """Dots of one method, in a column for each layer and axis."""
    color, marker = style
    bars: dict[plt.Axes, set] = {axes: set() for axes in pair}
    for run, (j, axis) in itertools.product(runs, enumerate(_AXES)):
        ends = _frequencies(run, j, "strides")
        starts = _frequencies(run, j, "initial")
        for axes, end, start in zip(pair, ends, starts, strict=True):
            for layer, y, initial in zip(run.layers, end, start, strict=True):
                x = positions[layer["name"]] + middle
                bars[axes].add((x, initial))
                axes.plot(
                    *(x + width * (0.44 * j - 0.22), y),
                    marker=marker,
                    color=color,
                    fillstyle=_FILLS[axis],
                    alpha=0.75,
                )
    for axes, places in bars.items():
        _draw_bars(axes, places, 0.92 * width)


def _draw_bars(
    axes: plt.Axes, places: set[tuple[float, float]], width: float
) -> None:
    """Initial values, behind the dots."""
    x, y = np.array(sorted(places)).T
    axes.hlines(y, x - width / 2, x + width / 2, color=BAR, lw=2.5, zorder=1)


def _frequencies(
    run: Run, axis: int, strides: str
) -> tuple[list[float], list[float]]:
    """Cut-offs of each layer, in its own pixels and in those of the image."""
    values = [
        layer[strides][min(axis, len(layer[strides]) - 1)]
        for layer in run.layers
    ]
    sizes = [
        size[min(axis, len(size) - 1)] for size in sizes_of_inputs(run, strides)
    ]
    # A map shows the whole image: cycles over it are cycles over the image.
    cycles = [
        max(size / value, 2) / 2
        for size, value in zip(sizes, values, strict=True)
    ]
    narrowest = itertools.accumulate(cycles, min)
    return (
        [c / size for c, size in zip(cycles, sizes, strict=True)],
        [c / sizes[0] for c in narrowest],
    )
