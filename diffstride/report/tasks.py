"""The figure of a report that compares what tasks make of their strides."""

import math

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from diffstride.report import style
from diffstride.report.masks import UNITS
from diffstride.report.study import Study, grouped, method_label, of_sounds


def learned(study: Study) -> pd.DataFrame:
    """Runs whose strides learn, with the tasks that each was trained on."""
    found = study.runs["learned"].map(bool) & study.runs["tasks"].map(bool)
    runs = study.runs[found.astype(bool)]
    # Networks of one task first.
    runs = runs.sort_values("tasks", key=lambda x: x.map(len), kind="stable")
    return runs.assign(
        **{"trained on": runs["tasks"].map(" and ".join)},
        method=pd.Categorical(runs["method"], study.methods),
    )


def strides_of_tasks(runs: pd.DataFrame) -> plt.Figure | str:
    """Strides along both axes, of the first layer and of all together."""
    if any(len(layers[0]["strides"]) != 2 for layers in runs["learned"]):
        return "strides are not along two axes"
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.6))
    names = runs["axis_names"].iloc[0]
    looks = style.series(runs["trained on"].unique())
    fills = dict(zip(runs["method"].unique(), style.FILLS * 9, strict=False))
    ends: dict[str, list] = {}
    for axes, what, of in (
        (left, "first layer", slice(0, 1)),
        (right, "all layers, product", slice(None)),
    ):
        labels: dict[str, tuple] = {}
        for (task, method), own in grouped(runs, ["trained on", "method"]):
            color, marker = looks[task]
            starts, points = (
                np.array([_product(each[of], key) for each in own["learned"]])
                for key in ("initial", "strides")
            )
            look = {"color": color, "marker": marker, "ls": ""}
            fill = fills[method]
            axes.plot(*points.T, **look, fillstyle=fill, ms=4, alpha=0.6)
            axes.plot(*starts.T, "x", color=style.START, zorder=1)
            mean = points.mean(axis=0)
            axes.plot(*mean, **look, fillstyle=fill, ms=9)
            text = f"{task}, {method_label(method)}"
            labels[text if len(fills) > 1 else task] = (mean, color)
            labels["start"] = (starts[0], style.START)
            if axes is left:
                ends.setdefault(task, []).append(mean)
        axes.set(xlabel=f"{names[0]} stride", ylabel=f"{names[1]} stride")
        axes.margins(0.15)
        _label(axes, labels)
        axes.set_title(what)
    if of_sounds(runs):
        _frequencies(left, runs["steps"].iloc[0])
    found = (
        f"{task} {' x '.join(f'{s:.2f}' for s in np.mean(means, axis=0))}"
        for task, means in ends.items()
    )
    style.title(
        figure,
        f"First layer, {' x '.join(names)}: {', '.join(found)}",
    )
    return figure


def _product(layers: list[dict], key: str) -> list[float]:
    return [math.prod(layer[key][axis] for layer in layers) for axis in (0, 1)]


def _label(axes: plt.Axes, labels: dict[str, tuple]) -> None:
    """Writes names beside points, from the lowest up, none over another."""
    axes.figure.canvas.draw()  # Lays out; offsets are in points on the page.
    to_points = 72 / axes.figure.dpi
    taken: list[tuple[float, float, float]] = []
    for text, (mean, color) in sorted(
        labels.items(), key=lambda each: each[1][0][1]
    ):
        x, y = axes.transData.transform(mean) * to_points
        left = mean[0] > np.mean(axes.get_xlim())
        length, height = 5.5 * len(text) + 9, y
        begin = x - length if left else x
        while any(
            begin < end and start < begin + length and abs(height - other) < 12
            for start, end, other in taken
        ):
            height += 3
        taken.append((begin, begin + length, height))
        axes.annotate(
            text,
            mean,
            (-9 if left else 9, height - y),
            textcoords="offset points",
            ha="right" if left else "left",
            va="center",
            color=color,
            fontsize=9,
        )


def _frequencies(axes: plt.Axes, steps: list[float]) -> None:
    """Puts cut-offs beside strides: that of stride s is 0.5 / s."""
    for step, unit, beside, ticks in zip(
        steps,
        UNITS,
        (axes.secondary_xaxis, axes.secondary_yaxis),
        ("top", "right"),
        strict=True,
    ):

        def convert(value: np.ndarray, step: float = step) -> np.ndarray:
            return 0.5 / (np.maximum(value, 1e-9) * step)

        other = beside(ticks, functions=(convert, convert))
        label = f"cut-off, {unit}"
        (other.set_xlabel if ticks == "top" else other.set_ylabel)(label)
