"""The figures of a report that show strides layer by layer."""

import itertools
import math
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from diffstride.report import style
from diffstride.report.masks import UNITS, sizes_of_inputs
from diffstride.report.study import (
    IMAGE_AXES,
    grouped,
    method_label,
    of_sounds,
    present,
    run_label,
    short_names,
)
from diffstride.settings import STRIDES


def trajectories(run: Any) -> plt.Figure | str:
    """Strides of one run, epoch by epoch."""
    if not run.rows:
        return f"there is no metrics.jsonl of {run['name']}"
    figure, axes = plt.subplots(figsize=(9, 5))
    names = short_names(layer["name"] for layer in run.layers)
    rows = pd.DataFrame(run.rows).dropna(axis="columns")
    looks = style.series(names)
    for layer in run.layers:
        name = layer["name"]
        curves = {
            axis: [initial, *rows[column]]
            for axis, initial in zip(
                run["axis_names"], layer["initial"], strict=False
            )
            if (column := f"stride/{name}/{axis}") in rows
        }
        if layer["learned"] and curves:
            _draw_curves(axes, names[name], curves, *looks[name])
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
        handlelength=3,
    )
    style.title(figure, f"{_moved_most(run, names)} ({run_label(run)})")
    return figure


def distribution(runs: pd.DataFrame) -> plt.Figure | str:
    """Learned strides: by method, layer and initial strides."""
    strides = _learned(runs)
    methods = list(grouped(strides, ["method"]))
    figure, grid = plt.subplots(
        len(methods),
        figsize=(9.5, 2.7 * len(methods) + 1.2),
        sharey=True,
        squeeze=False,
    )
    positions = _positions(runs)
    looks = style.series(present(runs[STRIDES]))
    for axes, ((method,), own) in zip(grid.flat, methods, strict=True):
        _draw_distribution(axes, own, looks, positions)
        axes.set_title(method_label(method), loc="left", fontweight="bold")
        axes.set_ylabel("stride")
    for axes in grid.flat:
        axes.use_sticky_edges = False
        axes.autoscale_view()
        style.log_ticks(axes, "y")
    entries = [
        *((f"from {start}", *look, "") for start, look in looks.items()),
        *_key(runs),
    ]
    if strides["low"].notna().any():
        entries.append(("expected", style.EXPECTED, "s", ""))
    style.title(figure, _how_they_moved(strides), entries)
    return figure


def cutoffs(runs: pd.DataFrame) -> plt.Figure | str:
    """Learned strides as frequencies, by layer."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.4))
    sounds = of_sounds(runs)
    positions = _positions(runs)
    colors = style.method_colors(runs["method"])
    methods = list(grouped(runs, ["method"]))
    width = 0.8 / len(methods)
    last: dict[int, list[float]] = {0: [], 1: []}
    for i, ((method,), own) in enumerate(methods):
        middle = width * (i - (len(methods) - 1) / 2)
        for (_, run), axis in itertools.product(own.iterrows(), (0, 1)):
            layers = run["layers"]
            x = np.array([positions[layer["name"]] for layer in layers])
            ends = frequencies(layers, axis, "strides")
            starts = frequencies(layers, axis, "initial")
            drawn = list(zip((left, right), ends, starts, strict=True))
            if sounds:  # Axes have units of their own.
                step = run["steps"][axis]
                end, start = (np.divide(y[1], step) for y in (ends, starts))
                drawn = [((left, right)[axis], end, start)]
            last[axis].append(drawn[-1][1][-1])
            for axes, end, start in drawn:
                _bars(axes, x + middle, start, 0.92 * width)
                shift = 0.0 if sounds else width * (0.44 * axis - 0.22)
                axes.plot(
                    *(x + middle + shift, end, "o"),
                    color=colors[method],
                    fillstyle=style.FILLS[0 if sounds else axis],
                    alpha=0.75,
                )
    narrowest = "the narrowest layer from the {} on"
    titles = ["each layer by itself", narrowest.format("image")]
    units = [f"cycles per pixel of the {x}" for x in ("layer's input", "image")]
    if sounds:
        names = runs["axis_names"].iloc[0]
        narrowest = narrowest.format("spectrogram")
        titles, units = [f"{name}: {narrowest}" for name in names], [*UNITS]
    for axes, title, unit in zip((left, right), titles, units, strict=True):
        _layer_axis(axes, positions)
        axes.set_ylabel(f"cut-off, {unit}")
        axes.set_title(title)
        style.log_ticks(axes, "y")
    entries = [
        (method_label(method), colors[method], "o", "")
        for (method,), _ in methods
    ]
    every = [last[0], last[1]] if sounds else [last[0] + last[1]]
    ends = [
        f"between {min(values):.2g} and {max(values):.2g} {unit}"
        for values, unit in zip(every, units[-len(every) :], strict=True)
    ]
    style.title(
        figure,
        f"What passes all layers ends {' and '.join(ends)}",
        [*entries, *(_key(runs)[:1] if sounds else _key(runs))],
    )
    return figure


def frequencies(
    layers: list[dict[str, Any]], axis: int, strides: str
) -> tuple[list[float], list[float]]:
    """Cut-offs of each layer, per pixel of its input and of the image.

    Of the image the narrowest layer so far counts. `strides` are the
    `"initial"` ones, or the `"strides"` at the end. Layers that lack the axis
    are taken at their last one.
    """
    sizes, cycles = [], []
    for size, layer in zip(
        sizes_of_inputs(layers, strides), layers, strict=True
    ):
        own = min(axis, len(size) - 1)
        sizes.append(size[own])
        # A map shows the whole image: cycles over it are cycles over the image.
        least = layer.get("smallest_size") or 2
        cycles.append(max(size[own] / layer[strides][own], least) / 2)
    narrowest = itertools.accumulate(cycles, min)
    return (
        [c / size for c, size in zip(cycles, sizes, strict=True)],
        [c / sizes[0] for c in narrowest],
    )


def _draw_curves(
    axes: plt.Axes,
    name: str,
    curves: dict[str, list[float]],
    color: str,
    marker: str,
) -> None:
    first, *others = curves.values()
    if others == [first]:
        curves = {"": first}
    for place, (axis, values) in enumerate(curves.items()):
        axes.plot(
            *(range(len(values)), values),
            color=color,
            marker=marker,
            markevery=max(len(values) // 10, 1),
            ls="--" if place else "-",
            fillstyle=style.FILLS[place],
            clip_on=False,
            label=f"{name} {axis}".strip() + f", {values[-1]:.2f}",
        )


def _key(runs: pd.DataFrame) -> list[tuple]:
    """What all dots and bars are, in a legend."""
    first, second = runs["axis_names"].iloc[0]
    return [
        ("initial", style.BAR, "", "-"),
        (f"filled: {first}, open: {second}", "white", "", ""),
    ]


def _moved_most(run: Any, names: dict[str, str]) -> str:
    strides = _learned(run.to_frame().T)
    changes = (strides["end"] - strides["initial"]).abs()
    most = strides.loc[changes.sort_values(kind="stable").index[-1]]
    axis = run["axis_names"][most.axis]
    return (
        f"The most moved stride: {names[most.layer]} {axis}, from "
        f"{most.initial:.2f} to {most.end:.2f}"
    )


def _learned(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each learned stride of each run."""
    unknown = [(math.nan, math.nan)] * len(IMAGE_AXES)
    return pd.DataFrame(
        [
            {
                "method": run["method"],
                "start": run[STRIDES],
                "layer": layer["name"],
                "axis": axis,
                "initial": initial,
                "end": end,
                "low": low,
                "high": high,
            }
            for _, run in runs.iterrows()
            for layer in run["learned"]
            # Of one axis there is one, of three the first two are shown.
            for axis, (initial, end, (low, high)) in enumerate(
                zip(
                    layer["initial"],
                    layer["strides"],
                    layer.get("expected") or unknown,
                    strict=False,
                )
            )
        ]
    )


def _how_they_moved(strides: pd.DataFrame) -> str:
    """The headline of the learned strides."""
    known = strides.dropna(subset="low").round(2)
    if len(known):
        axes = grouped(known, ["axis"])
        return "; ".join(
            _as_expected(IMAGE_AXES[axis], own) for (axis,), own in axes
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
    ends, low, high = strides["end"], strides["low"], strides["high"]
    if low.iloc[0] == high.iloc[0]:
        return (
            f"{axis.capitalize()}: expected at {low.iloc[0]:g}, learned "
            f"{ends.min():.2f} to {ends.max():.2f}"
        )
    hits = ends.between(low, high).sum()
    return (
        f"{axis.capitalize()}: {hits} of {len(ends)} ended in the range "
        "expected"
    )


def _positions(runs: pd.DataFrame) -> dict[str, int]:
    """Layers of all networks by name, the deepest network's first."""
    networks = sorted(runs["layers"], key=len, reverse=True)
    names = dict.fromkeys(layer["name"] for each in networks for layer in each)
    return {name: i for i, name in enumerate(names)}


def _layer_axis(axes: plt.Axes, positions: dict[str, int]) -> None:
    names = short_names(positions)
    axes.set_xticks(list(positions.values()), list(names.values()))
    axes.set_xlim(-0.5, len(positions) - 0.5)
    axes.grid(axis="x", visible=False)
    for boundary in range(1, len(positions)):
        axes.axvline(boundary - 0.5, color="#dddddd", lw=0.8)


def _draw_distribution(
    axes: plt.Axes,
    strides: pd.DataFrame,
    looks: dict[Any, tuple[str, str]],
    positions: dict[str, int],
) -> None:
    """Dots in columns: layers, in them initial strides, in them axes."""
    starts = list(looks)
    step = 0.8 / len(starts)
    columns = ["layer", "start", "axis"]
    for (layer, start, axis), own in grouped(strides, columns):
        i = starts.index(start)
        color, marker = looks[start]
        middle = positions[layer] + step * (i - (len(starts) - 1) / 2)
        x = middle + step * (0.36 * axis - 0.18)
        first = own.iloc[0]
        _bars(axes, [middle], [first["initial"]], 0.84 * step)
        if not math.isnan(first["low"]):
            axes.bar(
                *(x, first["high"] - first["low"], 0.3 * step, first["low"]),
                color=style.EXPECTED,
                edgecolor=style.EXPECTED,
                linewidth=3,
                zorder=0.9,
            )
        axes.plot(
            *([x] * len(own), own["end"], marker),
            color=color,
            fillstyle=style.FILLS[axis],
            alpha=0.85,
        )
    _layer_axis(axes, positions)


def _bars(axes: plt.Axes, x: Any, y: Any, width: float) -> None:
    """Initial values, behind the dots."""
    half = np.full(len(x), width / 2)
    axes.hlines(y, x - half, x + half, color=style.BAR, lw=2.5, zorder=1)
