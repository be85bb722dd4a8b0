"""The figures of a report: which there are, and those that compare methods."""

import itertools
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import matplotlib.pyplot as plt
from diffstride.report import masks as report_masks
from diffstride.report import strides as report_strides
from diffstride.report.data import (
    LAMBDA,
    STRIDES,
    Row,
    Run,
    Shown,
    Study,
    deviation,
    global_factor,
    mean,
    method_label,
    order,
)
from diffstride.report.style import (
    START,
    Label,
    headline,
    log_ticks,
    method_style,
    number,
    place_labels,
    remove,
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


class _Point(NamedTuple):
    """A cell, as a point in accuracy against cost."""

    macs: float
    accuracy: float
    macs_deviation: float
    accuracy_deviation: float
    row: Row


def draw_all(study: Study, shown: Shown, folder: pathlib.Path) -> list[Figure]:
    """Draws all figures for which there are data.

    Args:
        study: the runs.
        shown: those of which the strides are shown.
        folder: where to write PNG and SVG.

    Returns:
        What to say of each in the Markdown, also of those that were left out.
    """
    figures = []
    for stem, heading, draw, caption in _figures(study, shown):
        drawn = draw()
        if isinstance(drawn, str):
            remove(folder, stem)
            figures.append(Figure(heading, f"No figure: {drawn}.", None))
        else:
            save(drawn, folder, stem)
            figures.append(Figure(heading, caption, f"{stem}.png"))
    return figures


def _figures(
    study: Study, shown: Shown
) -> list[tuple[str, str, Callable[[], plt.Figure | str], str]]:
    name = f"`{shown.single.name}`" if shown.single else "a run"
    only = f" Runs with {shown.what} only." if shown.what else ""
    figures = [
        (
            "accuracy_cost",
            "Accuracy against cost",
            lambda: accuracy_against_cost(study),
            "Each point is a choice of initial strides, mean over seeds; bars "
            "are sample standard deviations. A curve joins the points of a "
            "method from mild to strong initial strides. A method that does "
            "not know a setting stands in all of its panels.",
        ),
        (
            "global_factor",
            "Global striding factor",
            lambda: global_factors(study.methods, shown.groups),
            "Product of the strides of all layers, height times width, before "
            "and after training; each point is a run, the lines join the "
            "means (methods that start alike are drawn beside each other). On "
            "a level line all starts would end alike; on the dashed one no "
            f"stride has moved.{only}",
        ),
        (
            "learned_strides",
            "Learned strides",
            lambda: report_strides.distribution(shown.groups),
            "Strides at the end of every run, height and width; the bars are "
            f"the initial strides.{only}",
        ),
        (
            "cutoffs",
            "Learned strides as cut-off frequencies",
            lambda: report_strides.cutoffs(study.methods, shown.groups),
            "A stride S keeps nominally what is below 0.5 / S cycles per pixel "
            "of its layer's input (and no less than one cycle over the map); "
            "on the right this is in pixels of the image, for the narrowest "
            "layer so far, at the sizes that maps have. Each point is a run "
            f"and an axis, the bars are the initial strides.{only}",
        ),
        (
            "trajectories",
            f"Strides of {name} during training",
            lambda: report_strides.trajectories(shown.single),
            "Epoch 0 are the initial strides. Layers that do not appear have "
            "fixed strides.",
        ),
        (
            "masks",
            f"Masks of {name}, start and end",
            lambda: report_masks.masks(shown.single),
            "Weights along the width, with the strides in force. The dotted "
            "lines are at 0.5 / stride.",
        ),
    ]
    if LAMBDA in study.axes:
        figures.insert(
            1,
            (
                "lambda",
                "Accuracy against cost along lambda",
                lambda: frontier(study),
                "Each point is a value of lambda, mean over seeds; bars are "
                "sample standard deviations.",
            ),
        )
    return figures


def accuracy_against_cost(study: Study) -> plt.Figure | str:
    """Accuracy against multiply-accumulates, a curve for each method."""
    starts = {study.value(row, STRIDES) for row in study.rows}
    if LAMBDA in study.axes and len(starts) == 1:
        return "all runs start with the same strides; see the one along lambda"
    return _curves(study, STRIDES)


def frontier(study: Study) -> plt.Figure | str:
    """Accuracy against multiply-accumulates, each curve along lambda."""
    return _curves(study, LAMBDA)


def global_factors(
    methods: list[str], groups: dict[str, list[Run]]
) -> plt.Figure | str:
    """Product of all strides, before and after training.

    Args:
        methods: of all runs, which decide the colours.
        groups: the runs to show, by method.

    Returns:
        The figure, or why there is none.
    """
    pairs = {
        method: [
            (
                global_factor(run.layers, "initial"),
                global_factor(run.layers, "strides"),
            )
            for run in runs
        ]
        for method, runs in groups.items()
    }
    if not pairs:
        return "no run has learned strides"
    if sum(map(len, pairs.values())) == 1:
        return "there is only one run with learned strides"
    figure, axes = plt.subplots(figsize=(8, 5.2))
    starts, ends = zip(*itertools.chain(*pairs.values()), strict=True)
    low, high = min(starts) / 1.5, max(starts) * 1.5
    axes.set_xlim(low, high)
    axes.set_ylim(min(starts + ends) / 1.5, max(starts + ends) * 1.5)
    log_ticks(axes, "x")
    log_ticks(axes, "y")
    axes.plot([low, high], [low, high], ls="--", lw=1, color=START)
    labels = []
    for i, (method, points) in enumerate(pairs.items()):
        color, marker = method_style(method, methods)
        # Methods stand beside each other where they start alike.
        step = 0.012 if len(set(starts)) > 1 else 0.1
        shift = (high / low) ** (step * (i - (len(pairs) - 1) / 2))
        groups: dict[float, list[float]] = {}
        for start, end in sorted(points):
            groups.setdefault(start * shift, []).append(end)
        for x, values in groups.items():
            axes.plot([x] * len(values), values, marker, color=color, alpha=0.6)
        line = [(x, mean(values)) for x, values in groups.items()]
        axes.plot(*zip(*line, strict=True), "_-", color=color, lw=1.3, ms=12)
        ends_at = line[::-1] if len(line) > 1 else [(x, max(values))]
        labels.append(Label(method_label(method), color, ends_at))
    side = low * (high / low) ** 0.06
    labels.append(Label("unchanged", START, [(side, side)], 9))
    axes.set(
        xlabel="product of all strides at the start (height x width)",
        ylabel="product of all strides at the end",
    )
    begin = _between(starts)
    headline(
        figure,
        f"From {'a start' if len(set(starts)) == 1 else 'starts'} of {begin}, "
        f"learned strides end at a global factor of {_between(ends)}",
    )
    place_labels(axes, labels)
    return figure


def _curves(study: Study, along: str) -> plt.Figure | str:
    """Accuracy against cost in panels, one for each of the other settings."""
    panels = _panels(study, along)
    points = [
        (point, method)
        for curves in panels.values()
        for method, curve in curves.items()
        for point in curve
    ]
    if not points:
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
    size = (8.5, 5.4) if columns == 1 else (5.6 * columns, 4.6 * rows + 0.3)
    own_scales = _differ_too_much(panels)
    figure, grid = plt.subplots(
        *(rows, columns),
        figsize=size,
        sharex=True,
        sharey=not own_scales,
        squeeze=False,
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    pairs = list(zip(grid.flat, panels.items(), strict=False))
    for axes, (context, curves) in pairs:
        _draw_curves(axes, curves, study)
        if len(panels) > 1:
            axes.set_title(study.text(context, along))
    every = [point for point, _ in points]
    _frame_costs(grid[0, 0], every)
    for axes, (_, curves) in pairs:
        own = [point for curve in curves.values() for point in curve]
        _frame_accuracies(axes, own if own_scales else every)
        axes.set_xlabel("multiply-accumulates for one image, millions")
        scale = " (a scale of its own)" if own_scales else ""
        axes.set_ylabel(f"test accuracy, %{scale}")
        axes.tick_params(labelbottom=True, labelleft=True)
    headline(figure, _best_and_cheapest(points))
    figure.canvas.draw()
    for axes, (_, curves) in pairs:
        place_labels(axes, _curve_labels(study, curves, along))
    return figure


def _panels(study: Study, along: str) -> dict[Row, dict[str, list[_Point]]]:
    """Points by the other settings and by method, in the order of `along`."""
    panels: dict[Row, dict[str, list[_Point]]] = {}
    for row in sorted(
        study.rows, key=lambda row: order(along, study.value(row, along))
    ):
        for method in study.methods:
            point = _point(study.cell(method, row), row)
            if point is None:
                continue
            panel = panels.setdefault(study.context(row, along), {})
            curve = panel.setdefault(method, [])
            # A method that knows no lambda has one point for all of them.
            if all(point[:2] != other[:2] for other in curve):
                curve.append(point)
    keys = [axis for axis in study.axes if axis != along]
    return dict(
        sorted(panels.items(), key=lambda item: [*map(order, keys, item[0])])
    )


def _point(runs: list[Run], row: Row) -> _Point | None:
    known = [run for run in runs if run.macs]
    if not known:
        return None
    macs = [run.macs for run in known]
    accuracies = [run.accuracy for run in known]
    return _Point(
        mean(macs),
        mean(accuracies),
        deviation(macs) or 0.0,
        deviation(accuracies) or 0.0,
        row,
    )


def _draw_curves(
    axes: plt.Axes, curves: dict[str, list[_Point]], study: Study
) -> None:
    for method, curve in curves.items():
        color, marker = method_style(method, study.methods)
        x, y, x_error, y_error, _ = zip(*curve, strict=True)
        axes.errorbar(
            *(x, y),
            xerr=x_error,
            yerr=y_error,
            color=color,
            marker=marker,
            lw=1.3,
            elinewidth=1,
            capsize=2.5,
        )


def _differ_too_much(panels: dict[Row, dict[str, list[_Point]]]) -> bool:
    """Whether on a common scale the accuracies of a panel would look alike."""
    accuracies = [
        [point.accuracy for curve in curves.values() for point in curve]
        for curves in panels.values()
    ]
    ranges = [max(each) - min(each) for each in accuracies if len(each) > 1]
    every = list(itertools.chain(*accuracies))
    return bool(ranges) and 4 * min(ranges) < max(every) - min(every)


def _frame_costs(axes: plt.Axes, points: list[_Point]) -> None:
    """Limits with room for labels, and a logarithmic axis."""
    left = min(max(p.macs - p.macs_deviation, p.macs / 2) for p in points)
    right = max(p.macs + p.macs_deviation for p in points)
    room = max(right / left, 1.6) ** 0.13
    axes.set_xlim(left / room, right * room)
    log_ticks(axes, "x")


def _frame_accuracies(axes: plt.Axes, points: list[_Point]) -> None:
    """Limits with room for labels."""
    bottom = min(p.accuracy - p.accuracy_deviation for p in points)
    top = max(p.accuracy + p.accuracy_deviation for p in points)
    room = 0.12 * max(top - bottom, 0.5)
    axes.set_ylim(bottom - room, top + room)


def _curve_labels(
    study: Study, curves: dict[str, list[_Point]], along: str
) -> list[Label]:
    labels = []
    for method, curve in curves.items():
        color, _ = method_style(method, study.methods)
        anchors = [point[:2] for point in (curve[0], curve[-1], *curve[1:-1])]
        labels.append(Label(method_label(method), color, anchors))
    if along != LAMBDA:
        return labels
    for method, curve in curves.items():
        if method in study.given(LAMBDA):
            color, _ = method_style(method, study.methods)
            labels += [
                Label(_weight(study, point), color, [point[:2]], 8)
                for point in curve
            ]
    return labels


def _weight(study: Study, point: _Point) -> str:
    value = study.value(point.row, LAMBDA)
    return f"λ = {value:g}" if isinstance(value, (int, float)) else f"λ {value}"


def _best_and_cheapest(points: list[tuple[_Point, str]]) -> str:
    best = max(points, key=lambda p: p[0].accuracy)
    cheapest = min(points, key=lambda p: p[0].macs)

    def text(pair: tuple[_Point, str]) -> str:
        point, method = pair
        return (
            f"{method_label(method)}, {point.accuracy:.1f} % at "
            f"{number(point.macs)} M"
        )

    if best == cheapest:
        return f"Most accurate and cheapest: {text(best)} MACs"
    return f"Most accurate: {text(best)} MACs; cheapest: {text(cheapest)} MACs"


def _between(values: tuple[float, ...]) -> str:
    low, high = number(min(values)), number(max(values))
    return low if low == high else f"{low} to {high}"
