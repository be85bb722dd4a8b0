"""The figures of a report: which there are, and those that compare methods."""

import pathlib
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd

from diffstride.report import masks, strides
from diffstride.report.study import (
    LAMBDA,
    MISSING,
    STRIDES,
    Shown,
    Study,
    axis_label,
    global_factor,
    grouped,
    method_label,
)
from diffstride.report.style import (
    SERIES,
    START,
    headline,
    key,
    log_ticks,
    method_color,
    number,
    save,
)

_MOST_PANELS = 6


class Figure(NamedTuple):
    """A figure in the Markdown.

    Attributes:
        heading: over it.
        caption: under it, or why there is none.
        file: name of the PNG, or `None`.
    """

    heading: str
    caption: str
    file: str | None


def draw_all(study: Study, shown: Shown, folder: pathlib.Path) -> list[Figure]:
    """Draws all figures for which there are data.

    Args:
        study: the runs.
        shown: those of which the strides are shown.
        folder: where to write the PNGs.

    Returns:
        What to say of each in the Markdown, also of those that were left out.
    """
    figures = []
    for stem, heading, draw, caption in _figures(study, shown):
        path = folder / f"{stem}.png"
        drawn = draw()
        if isinstance(drawn, str):
            path.unlink(missing_ok=True)  # Of an earlier report.
            figures.append(Figure(heading, f"No figure: {drawn}.", None))
        else:
            save(drawn, path)
            figures.append(Figure(heading, caption, path.name))
    return figures


def _figures(
    study: Study, shown: Shown
) -> list[tuple[str, str, Callable[[], plt.Figure | str], str]]:
    name = "a run" if shown.single is None else f"`{shown.single['name']}`"
    only = f" Runs with {shown.what} only." if shown.what else ""
    figures = [
        (
            "accuracy_cost",
            "Accuracy against cost",
            lambda: accuracy_against_cost(study),
            "Colours are methods, markers are initial strides. Each point is a "
            "mean over seeds; bars are sample standard deviations. A curve "
            "joins the points of a method from mild to strong initial strides. "
            "A method that does not know a setting stands in all of its "
            "panels.",
        ),
        (
            "global_factor",
            "Global striding factor",
            lambda: global_factors(study.methods, shown.runs),
            "Product of the strides of all layers, height times width, before "
            "and after training; each point is a run, the lines join the "
            "means (methods that start alike are drawn beside each other). On "
            "a level line all starts would end alike; on the dashed one no "
            f"stride has moved.{only}",
        ),
        (
            "learned_strides",
            "Learned strides",
            lambda: strides.distribution(shown.runs),
            "Strides at the end of every run, height and width; grey bars are "
            "the initial strides, yellow ones the range of those that are "
            f"expected, if they are known.{only}",
        ),
        (
            "cutoffs",
            "Learned strides as cut-off frequencies",
            lambda: strides.cutoffs(study.methods, shown.runs),
            "A stride S keeps nominally what is below 0.5 / S cycles per pixel "
            "of its layer's input (and no less than one cycle over the map); "
            "on the right this is in pixels of the image, for the narrowest "
            "layer so far, at the sizes that maps have. Each point is a run "
            f"and an axis, the bars are the initial strides.{only}",
        ),
        (
            "trajectories",
            f"Strides of {name} during training",
            lambda: strides.trajectories(shown.single),
            "Epoch 0 are the initial strides. Layers that do not appear have "
            "fixed strides.",
        ),
        (
            "masks",
            f"Masks of {name}, start and end",
            lambda: masks.masks(shown.single),
            "Weights along the width. The dotted lines are at 0.5 / stride, "
            "with the strides in force, which are raised where a mask would be "
            "flat.",
        ),
    ]
    if LAMBDA in study.axes:
        frontier = (
            "lambda",
            "Accuracy against cost along lambda",
            lambda: _curves(study, LAMBDA),
            "Colours are methods, markers are values of lambda. Each point is "
            "a mean over seeds; bars are sample standard deviations.",
        )
        figures.insert(1, frontier)
    return figures


def accuracy_against_cost(study: Study) -> plt.Figure | str:
    """Accuracy against multiply-accumulates, a curve for each method."""
    if LAMBDA in study.axes and study.cells[STRIDES].nunique() == 1:
        return "all runs start with the same strides; see the one along lambda"
    return _curves(study, STRIDES)


def global_factors(methods: list[str], runs: pd.DataFrame) -> plt.Figure | str:
    """Product of all strides, before and after training.

    Args:
        methods: of all runs, which decide the colours.
        runs: those to show, as in `Shown`.

    Returns:
        The figure, or why there is none.
    """
    if not len(runs):
        return "no run has learned strides"
    if len(runs) == 1:
        return "there is only one run with learned strides"
    layers = runs["layers"]
    starts = layers.map(lambda each: global_factor(each, "initial"))
    ends = layers.map(lambda each: global_factor(each, "strides"))
    low, high = starts.min() / 1.5, starts.max() * 1.5
    figure, axes = plt.subplots(figsize=(8, 5.2))
    axes.set_xlim(low, high)
    axes.set_ylim(min(low, ends.min() / 1.5), max(high, ends.max() * 1.5))
    log_ticks(axes, "x")
    log_ticks(axes, "y")
    axes.plot([low, high], [low, high], ls="--", lw=1, color=START)
    entries = [("unchanged", START, "", "--")]
    present = list(runs["method"].unique())
    for i, method in enumerate(present):
        color = method_color(method, methods)
        # Methods stand beside each other where they start alike.
        step = 0.012 if starts.nunique() > 1 else 0.1
        shift = (high / low) ** (step * (i - (len(present) - 1) / 2))
        own = runs["method"] == method
        x, y = starts[own] * shift, ends[own]
        axes.plot(x, y, "o", color=color, alpha=0.6)
        means = y.groupby(x).mean()
        axes.plot(means.index, means, "_-", color=color, lw=1.3, ms=12)
        entries.append((method_label(method), color, "o", "-"))
    axes.set(
        xlabel="product of all strides at the start (height x width)",
        ylabel="product of all strides at the end",
    )
    headline(
        figure,
        f"From {'a start' if starts.nunique() == 1 else 'starts'} of "
        f"{_between(starts)}, learned strides end at a global factor of "
        f"{_between(ends)}",
    )
    key(figure, entries)
    return figure


def _curves(study: Study, along: str) -> plt.Figure | str:
    """Accuracy against cost in panels, one for each of the other settings."""
    points = _points(study, along)
    others = study.others(along)
    panels = list(
        grouped(points.sort_values([*others, "method", along]), others)
    )
    if not len(points):
        return "the runs do not tell their multiply-accumulates"
    if len(points) == 1:
        return "there is only one point to show"
    if len(panels) > _MOST_PANELS:
        return (
            f"there are {len(panels)} combinations of further settings, more "
            f"than the {_MOST_PANELS} that are legible; report fewer at a time"
        )
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    rows = -(-len(panels) // columns)
    own_scales = _differ_too_much([panel for _, panel in panels])
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=(8.5, 5.8) if columns == 1 else (5 * columns, 4 * rows + 0.6),
        sharex=True,
        sharey=not own_scales,
        squeeze=False,
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    markers = _markers(points[along])
    for axes, (context, panel) in zip(grid.flat, panels, strict=False):
        _draw_curves(axes, panel, study.methods, along, markers)
        if len(panels) > 1:
            axes.set_title(study.text(context, along))
        axes.set_xlabel("multiply-accumulates for one image, millions")
        scale = " (a scale of its own)" if own_scales else ""
        axes.set_ylabel(f"test accuracy, %{scale}")
        axes.tick_params(labelbottom=True, labelleft=True)
    log_ticks(grid[0, 0], "x")
    headline(figure, _best_and_cheapest(points))
    present = [m for m in study.methods if m in set(points["method"])]
    of = "from" if along == STRIDES else axis_label(along)
    key(
        figure,
        [
            (method_label(m), method_color(m, study.methods), "", "-")
            for m in present
        ]
        + [
            (f"{of} {value}", START, marker, "")
            for value, marker in markers.items()
            if value != MISSING
        ],
    )
    return figure


def _points(study: Study, along: str) -> pd.DataFrame:
    """Cells as points: `macs` and `accuracy`, and deviations of both."""
    known = study.cells[study.cells["macs"] > 0]
    cells = known.groupby([*study.axes, "method"], observed=True)
    points = cells[["macs", "accuracy"]].mean()
    deviations = cells[["macs", "accuracy"]].std().fillna(0.0)
    points = points.join(deviations, rsuffix="_deviation").reset_index()
    # A method that knows no lambda has one point for all of them.
    same = [*study.others(along), "method", "macs", "accuracy"]
    return points.drop_duplicates(same)


def _markers(values: pd.Series) -> dict[object, str]:
    present = values.cat.remove_unused_categories().cat.categories
    return {v: SERIES[i % len(SERIES)][1] for i, v in enumerate(present)}


def _draw_curves(
    axes: plt.Axes,
    panel: pd.DataFrame,
    methods: list[str],
    along: str,
    markers: dict[object, str],
) -> None:
    for (method,), curve in grouped(panel, ["method"]):
        color = method_color(method, methods)
        axes.errorbar(
            *(curve["macs"], curve["accuracy"]),
            xerr=curve["macs_deviation"],
            yerr=curve["accuracy_deviation"],
            color=color,
            lw=1.1,
            elinewidth=0.8,
            capsize=2,
        )
        for x, y, value in zip(
            curve["macs"], curve["accuracy"], curve[along], strict=True
        ):
            axes.plot(x, y, markers[value], color=color, ms=6.5)


def _differ_too_much(panels: list[pd.DataFrame]) -> bool:
    """Whether on a common scale the accuracies of a panel would look alike."""
    ranges = [
        panel["accuracy"].max() - panel["accuracy"].min()
        for panel in panels
        if len(panel) > 1
    ]
    every = pd.concat(panels)["accuracy"]
    return bool(ranges) and 4 * min(ranges) < every.max() - every.min()


def _best_and_cheapest(points: pd.DataFrame) -> str:
    best = points.loc[points["accuracy"].idxmax()]
    cheapest = points.loc[points["macs"].idxmin()]
    texts = [
        f"{method_label(point.method)}, {point.accuracy:.1f} % at "
        f"{number(point.macs)} M MACs"
        for point in (best, cheapest)
    ]
    if texts[0] == texts[1]:
        return f"Most accurate and cheapest: {texts[0]}"
    return f"Most accurate: {texts[0]}; cheapest: {texts[1]}"


def _between(values: pd.Series) -> str:
    low, high = number(values.min()), number(values.max())
    return low if low == high else f"{low} to {high}"
