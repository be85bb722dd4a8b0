"""The figures of a report: which there are, and those that compare methods."""

from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from diffstride.formatting import harmless
from diffstride.report import masks, strides, style, tasks
from diffstride.report.study import (
    MISSING,
    Shown,
    Study,
    axis_label,
    example,
    grouped,
    method_label,
    of_sounds,
    present,
)
from diffstride.settings import LAMBDA, STRIDES

_MOST_PANELS = 6
# Stem of the file, heading, what draws it, of what, and caption.
_Figure = tuple[str, str, Callable[[Any], plt.Figure | str], Any, str]


def draw_all(
    study: Study, shown: Shown
) -> tuple[list[str], dict[str, plt.Figure]]:
    """Draws the figures for which there are data: Markdown, and by file."""
    parts, drawings = [], {}
    for stem, heading, draw, subject, caption in [
        *_of_accuracy(study),
        *_of_strides(shown),
        *_of_tasks(study),
    ]:
        if subject is not study and shown.single is None:
            drawn = "no run has learned strides"
        else:
            drawn = draw(subject)
        heading = harmless(heading)
        parts.append(f"### {heading}")
        if isinstance(drawn, str):
            parts.append(harmless(f"No figure: {drawn}."))
        else:
            plt.close(drawn)
            drawings[f"{stem}.png"] = drawn
            parts += [f"![{heading}]({stem}.png)", harmless(caption)]
    return parts, drawings


def _of_accuracy(study: Study) -> list[_Figure]:
    figures = [
        (
            "accuracy_cost",
            "Accuracy against cost",
            accuracy_against_cost,
            study,
            "Colours are methods, markers are initial strides. Each point is a "
            "mean over seeds; bars are sample standard deviations. A curve "
            "joins the points of a method from mild to strong initial strides; "
            "where these are too many to tell apart, points are alike. "
            "A method that does not know a setting stands in all of its "
            "panels.",
        ),
        (
            "lambda",
            "Accuracy against cost along lambda",
            lambda study: _curves(study, LAMBDA),
            study,
            "Colours are methods, markers are values of lambda. Each point is "
            "a mean over seeds; bars are sample standard deviations.",
        ),
    ]
    return figures if LAMBDA in study.axes else figures[:1]


def _of_strides(shown: Shown) -> list[_Figure]:
    return [*_of_all_strides(shown), *_of_one_run(shown)]


def _of_all_strides(shown: Shown) -> list[_Figure]:
    only = f" Runs with {shown.what} only." if shown.what else ""
    sounds = of_sounds(shown.runs)
    return [
        (
            "global_factor",
            "Global striding factor",
            global_factors,
            shown.runs,
            f"Product of the strides of all layers, {_axes(shown, ' times ')}, "
            "before and after training; each point is a run, the lines join "
            "the means (methods that start alike are drawn beside each other). "
            "On a level line all starts would end alike; on the dashed one no "
            f"stride has moved.{only}",
        ),
        (
            "learned_strides",
            "Learned strides",
            strides.distribution,
            shown.runs,
            f"Strides at the end of every run, {_axes(shown, ' and ')}; grey "
            "bars are the initial strides, yellow ones the range of those that "
            f"are expected, if they are known.{only}",
        ),
        (
            "cutoffs",
            "Learned strides as cut-off frequencies",
            strides.cutoffs,
            shown.runs,
            "A stride S keeps nominally what is below 0.5 / S cycles per "
            f"{'place' if sounds else 'pixel'} of its layer's input (and no "
            "less than one cycle over the map); "
            + (
                "here this is in Hz and in cycles per mel channel of the "
                "spectrogram, for the narrowest layer so far"
                if sounds
                else "on the right this is in pixels of the image, for the "
                "narrowest layer so far"
            )
            + ", at the sizes that maps have. Each point is a run"
            f"{'' if sounds else ' and an axis'}, the bars are the initial "
            f"strides.{only}",
        ),
    ]


def _of_one_run(shown: Shown) -> list[_Figure]:
    name = "a run" if shown.single is None else f"`{shown.single['name']}`"
    sounds = of_sounds(shown.runs)
    figures = [
        (
            "trajectories",
            f"Strides of {name} during training",
            strides.trajectories,
            shown.single,
            "Epoch 0 are the initial strides. Layers that do not appear have "
            "fixed strides.",
        ),
        (
            "masks",
            f"Masks of {name}, start and end",
            masks.masks,
            shown.single,
            f"Weights along the {'frequency' if sounds else 'width'}. The "
            "dotted lines are at 0.5 / stride, with the strides in force, "
            "which are raised where a mask would be flat.",
        ),
    ]
    if sounds:
        figures.append(
            (
                "masks_time",
                f"Masks of {name} along time",
                lambda run: masks.masks(run, axis=0),
                shown.single,
                "The same along time.",
            )
        )
    return figures


def _of_tasks(study: Study) -> list[_Figure]:
    learned = tasks.learned(study)
    if learned["trained on"].nunique() < 2:
        return []
    figure = (
        "task_strides",
        "Learned strides of each task",
        tasks.strides_of_tasks,
        learned,
        "Each small point is a run, each large one a mean over seeds. Crosses "
        "are where training began.",
    )
    return [figure]


def _axes(shown: Shown, between: str) -> str:
    return (
        between.join(shown.runs["axis_names"].iloc[0])
        if len(shown.runs)
        else ""
    )


def accuracy_against_cost(study: Study) -> plt.Figure | str:
    """Accuracy against multiply-accumulates, a curve for each method."""
    if LAMBDA in study.axes and study.cells[STRIDES].nunique() == 1:
        return "all runs start with the same strides; see the one along lambda"
    return _curves(study, STRIDES)


def global_factors(runs: pd.DataFrame) -> plt.Figure | str:
    """Product of all strides, before and after training."""
    if len(runs) == 1:
        return "there is only one run with learned strides"
    starts, ends = runs["initial_factor"], runs["factor"]
    low, high = starts.min() / 1.5, starts.max() * 1.5
    figure, axes = plt.subplots(figsize=(8, 5.2))
    axes.set(
        xlim=(low, high),
        ylim=(min(low, ends.min() / 1.5), max(high, ends.max() * 1.5)),
        xlabel="product of all strides at the start "
        f"({' x '.join(runs['axis_names'].iloc[0])})",
        ylabel="product of all strides at the end",
    )
    style.log_ticks(axes, "x")
    style.log_ticks(axes, "y")
    axes.plot([low, high], [low, high], ls="--", lw=1, color=style.START)
    entries = [("unchanged", style.START, "", "--")]
    colors = style.method_colors(runs["method"])
    methods = list(grouped(runs, ["method"]))
    for i, ((method,), own) in enumerate(methods):
        # Methods stand beside each other where they start alike.
        step = 0.012 if starts.nunique() > 1 else 0.1
        shift = (high / low) ** (step * (i - (len(methods) - 1) / 2))
        x, y = starts[own.index] * shift, ends[own.index]
        axes.plot(x, y, "o", color=colors[method], alpha=0.6)
        means = y.groupby(x).mean()
        axes.plot(
            *(means.index, means, "_-"), color=colors[method], lw=1.3, ms=12
        )
        entries.append((method_label(method), colors[method], "o", "-"))
    style.title(
        figure,
        f"From {'a start' if starts.nunique() == 1 else 'starts'} of "
        f"{style.between(starts)}, learned strides end at a global factor of "
        f"{style.between(ends)}",
        entries,
    )
    return figure


def _curves(study: Study, along: str) -> plt.Figure | str:
    """Accuracy against cost, a panel for each of the other settings."""
    points = _points(study, along)
    others = study.others(along)
    points = points.sort_values([*others, "method", along])
    parts = list(grouped(points, others))
    if not len(points):
        return "the runs do not tell their multiply-accumulates"
    if len(points) == 1:
        return "there is only one point to show"
    if len(parts) > _MOST_PANELS:
        return (
            f"there are {len(parts)} combinations of further settings, more "
            f"than the {_MOST_PANELS} that are legible; report fewer at a time"
        )
    columns = min(len(parts), 3 if len(parts) > 4 else 2)
    size = (8.5, 5.2) if columns == 1 else (5, 4)
    own_scales = _differ_too_much([part for _, part in parts])
    scale = " (a scale of its own)" if own_scales else ""
    figure, grid = style.panels(
        len(parts), columns, *size, sharey=not own_scales
    )
    looks = style.series(present(points[along]))
    markers = {value: marker for value, (_, marker) in looks.items()}
    alike = len(markers) > len(style.SERIES)
    if alike:
        markers = dict.fromkeys(markers, "o")
    colors = style.method_colors(study.cells["method"])
    for axes, (context, part) in zip(grid, parts, strict=True):
        for (method,), curve in grouped(part, ["method"]):
            line = "" if alike else style.method_line(method)
            marked = curve[along].map(markers)
            _draw_curve(axes, curve, colors[method], marked, line)
        if len(parts) > 1:
            axes.set_title(study.text(context, along))
        axes.set_xlabel(
            f"multiply-accumulates for one {example(study.runs)}, millions"
        )
        axes.set_ylabel(f"test accuracy, %{scale}")
        axes.tick_params(labelbottom=True, labelleft=True)
    style.log_ticks(grid[0], "x")
    of = "from" if along == STRIDES else axis_label(along)
    entries = [
        (
            method_label(method),
            colors[method],
            *(("o", "") if alike else ("", style.method_line(method))),
        )
        for method in present(points["method"])
    ]
    entries += [
        (f"{of} {value}", style.START, marker, "")
        for value, marker in markers.items()
        if value != MISSING and not alike
    ]
    style.title(figure, _best_and_cheapest(points), entries)
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


def _draw_curve(
    axes: plt.Axes,
    curve: pd.DataFrame,
    color: str,
    markers: pd.Series,
    line: str,
) -> None:
    method = curve["method"].iloc[0]
    axes.errorbar(
        *(curve["macs"], curve["accuracy"]),
        xerr=curve["macs_deviation"],
        yerr=curve["accuracy_deviation"],
        color=color,
        ls=line,
        lw=1.1,
        elinewidth=0.8,
        capsize=2,
    )
    points = zip(curve["macs"], curve["accuracy"], markers, strict=True)
    for point in points:
        axes.plot(
            *point, color=color, ms=6.5, fillstyle=style.method_fill(method)
        )


def _differ_too_much(parts: list[pd.DataFrame]) -> bool:
    """Whether on a common scale the accuracies of a panel would look alike."""
    ranges = [np.ptp(part["accuracy"]) for part in parts if len(part) > 1]
    every = np.ptp(pd.concat(parts)["accuracy"])
    return bool(ranges) and 4 * min(ranges) < every


def _best_and_cheapest(points: pd.DataFrame) -> str:
    best = points.loc[points["accuracy"].idxmax()]
    cheapest = points.loc[points["macs"].idxmin()]
    texts = [
        f"{method_label(point.method)}, {point.accuracy:.1f} % at "
        f"{style.number(point.macs)} M MACs"
        for point in (best, cheapest)
    ]
    if texts[0] == texts[1]:
        return f"Most accurate and cheapest: {texts[0]}"
    return f"Most accurate: {texts[0]}; cheapest: {texts[1]}"
