"""The tables of a report, in Markdown."""

import collections
import statistics
from typing import Any

from diffstride.report.data import (
    LAMBDA,
    MISSING,
    STRIDES,
    Row,
    Run,
    Study,
    axis_label,
    deviation,
    epoch_seconds,
    global_factor,
    mean,
    method_label,
    order,
    pooled_deviation,
)

from diffstride.formatting import markdown


def accuracy_table(study: Study) -> str:
    """Test accuracy by setting and method, and what the start matters.

    Args:
        study: the runs.

    Returns:
        A table with mean, sample standard deviation and number of runs; under
        each group of strides, the mean and the spread over the group.
    """
    header = [*map(axis_label, study.axes), *map(method_label, study.methods)]
    table = []
    uneven = False
    for context, rows in study.starts().items():
        for row in rows:
            cells = [study.cell(method, row) for method in study.methods]
            table.append([*map(str, row), *_accuracies(cells)])
        present = [
            m for m in study.methods if any(study.cell(m, r) for r in rows)
        ]
        shared = [r for r in rows if all(study.cell(m, r) for m in present)]
        uneven |= 1 < len(shared) < len(rows)
        # Methods that lack a row get no mean where too few are shared.
        table += _over_strides(
            study, context, shared if len(shared) > 1 else rows
        )
    parts = [markdown(header or [""], table)]
    if not study.axes:
        parts = [markdown(["", *header], [["all runs", *row] for row in table])]
    if uneven:
        parts.append(
            "Mean and spread over strides are over those initial strides that "
            "all methods of the group were run with."
        )
    if noise := _noise(study):
        parts.append(
            "Mean ± sample standard deviation over seeds (number of runs); the "
            f"best mean of a row is bold. {noise}"
        )
    else:
        parts.append(
            "Mean (number of runs); the best of a row is bold. Nothing was run "
            "with more than one seed, so that nothing is known of the noise."
        )
    return "\n\n".join(parts)


def cost_table(study: Study) -> str:
    """Accuracy beside cost, one row for each setting and method."""
    header = [
        *map(axis_label, study.axes),
        *("method", "accuracy, %", "MACs, M", "activations, MB"),
        *("s / epoch", "strides at the end", "output sizes at the end"),
    ]
    table = []
    for row in study.rows:
        for method in study.methods:
            if runs := study.cell(method, row):
                table.append(
                    [
                        *map(str, row),
                        method_label(method),
                        accuracy_text(runs),
                        *_costs(runs),
                        _at_the_end(runs, "strides", "{:.2f}"),
                        _at_the_end(runs, "output_size", "{:.3g}"),
                    ]
                )
    return markdown(header, table)


def frontier_table(study: Study) -> str | None:
    """What the regulariser's weight buys, or `None` if it does not vary."""
    if LAMBDA not in study.axes:
        return None
    others = [axis for axis in study.axes if axis != LAMBDA]
    header = ["method", *map(axis_label, others), LAMBDA]
    header += ["accuracy, %", "MACs, M", "activations, MB", "s / epoch"]
    header += ["stride cost J", "product of strides"]
    table = []
    for method in study.methods:
        knows = method in study.given(LAMBDA)
        rows: dict[Row, Row] = {}
        for row in study.rows:
            weight = study.value(row, LAMBDA) if knows else MISSING
            rows.setdefault((*study.context(row, LAMBDA), weight), row)
        for values in sorted(
            rows, key=lambda v: [*map(order, [*others, LAMBDA], v)]
        ):
            if runs := study.cell(method, rows[values]):
                table.append(
                    [
                        method_label(method),
                        *map(str, values),
                        accuracy_text(runs),
                        *_costs(runs),
                        _number(mean(map(_stride_cost, runs)), 3),
                        _number(mean(map(_factor, runs)), 1),
                    ]
                )
    return markdown(header, table)


def ablation_table(study: Study, axis: str) -> str | None:
    """One axis alone: the other settings are the same in all of its rows.

    Args:
        study: the runs.
        axis: one of its axes.

    Returns:
        A table, values of the axis by methods with more than one; the best of
        each column is marked. `None` if no method has two.
    """
    columns = {m: _matched(study, axis, m) for m in study.given(axis)}
    columns = {m: cells for m, cells in columns.items() if len(cells) > 1}
    if not columns:
        return None
    values = sorted(
        {value for cells in columns.values() for value in cells},
        key=lambda value: order(axis, value),
    )
    texts = [
        _pooled_accuracies([cells.get(value, []) for value in values])
        for cells in columns.values()
    ]
    rows = zip(map(str, values), *texts, strict=True)
    return markdown([axis_label(axis), *map(method_label, columns)], rows)


def expected_table(study: Study) -> str | None:
    """Learned strides beside expected ones, or `None` if none are expected."""
    header = [*map(axis_label, study.axes), "method"]
    for axis in ("height", "width"):
        header += [f"{axis}: expected", "learned"]
    table = []
    for row in study.rows:
        for method in study.methods:
            runs = study.cell(method, row)
            layers = [layer for run in runs for layer in run.learned]
            if not layers or any("expected" not in each for each in layers):
                continue
            cells = []
            for axis, (low, high) in enumerate(layers[0]["expected"]):
                learned = [layer["strides"][axis] for layer in layers]
                cells.append(f"{low:.2f}" + f" to {high:.2f}" * (high > low))
                cells.append(
                    _averaged(mean(learned), deviation(learned), len(learned))
                )
            table.append([*map(str, row), method_label(method), *cells])
    return markdown(header, table) if table else None


def failed_table(records: list[dict[str, Any]]) -> str:
    """Runs that ended in an error, and the error's first line."""
    rows = []
    for record in records:
        lines = str(record["error"]).strip().splitlines() or [""]
        rows.append([record["name"], lines[0][:300]])
    return markdown(["run", "error"], rows)


def repeated_seeds(study: Study) -> list[str]:
    """Names of runs that share all settings, the seed too, with another."""
    names: dict[str, None] = {}
    for runs in study.groups():
        count = collections.Counter(run.seed for run in runs)
        names.update((run.name, None) for run in runs if count[run.seed] > 1)
    return list(names)


def accuracy_text(runs: list[Run]) -> str:
    """Mean ± standard deviation (number) of the accuracy, or `-`."""
    accuracies = [run.accuracy for run in runs]
    return _averaged(mean(accuracies), deviation(accuracies), len(runs))


def _averaged(average: float | None, spread: float | None, number: int) -> str:
    if average is None:
        return MISSING
    plus_minus = "" if spread is None else f" ± {spread:.2f}"
    return f"{average:.2f}{plus_minus} ({number})"


def _accuracies(cells: list[list[Run]]) -> list[str]:
    means = [mean(run.accuracy for run in runs) for runs in cells]
    return _bold_best([accuracy_text(runs) for runs in cells], means)


def _bold_best(
    texts: list[str], values: list[float | None], best: Any = max
) -> list[str]:
    """Marks the best of several, and what equals it as it is printed."""
    known = [round(value, 2) for value in values if value is not None]
    if len(known) < 2:
        return texts
    return [
        f"**{text}**"
        if value is not None and round(value, 2) == best(known)
        else text
        for text, value in zip(texts, values, strict=True)
    ]


def _noise(study: Study) -> str:
    """What a seed can do, in each group of rows."""
    texts = []
    for context, rows in study.starts().items():
        cells = [
            [run.accuracy for run in study.cell(method, row)]
            for row in rows
            for method in study.methods
        ]
        noise = pooled_deviation(cells)
        if noise is None:
            continue
        number = statistics.mode(map(len, filter(None, cells)))
        error = noise * (2 / number) ** 0.5
        what = study.text(context, STRIDES)
        texts.append(
            f"{noise:.2f} points{f' with {what}' if what else ''} (standard "
            f"error of the difference of two means of {number}: {error:.2f})"
        )
    if not texts:
        return ""
    return (
        "The standard deviation of a run, pooled over cells, is "
        f"{'; '.join(texts)}."
    )


def _over_strides(study: Study, context: Row, rows: list[Row]) -> list:
    """Mean over initial strides, and largest less smallest mean."""
    if len(rows) < 2:
        return []
    averages: list[float | None] = []
    spreads: list[float | None] = []
    for method in study.methods:
        means = [
            mean(run.accuracy for run in study.cell(method, row))
            for row in rows
        ]
        averages.append(mean(means))
        spreads.append(None if None in means else max(means) - min(means))
    if averages == [None] * len(averages):
        return []
    return [
        [*map(str, context), f"*{title}*", *_bold_best(texts, values, best)]
        for title, values, best in (
            (f"mean of {len(rows)}", averages, max),
            ("spread: largest - smallest", spreads, min),
        )
        for texts in [[_number(value, 2) for value in values]]
    ]


def _matched(
    study: Study, axis: str, method: str
) -> dict[Any, list[list[Run]]]:
    """Cells by the value of an axis, with the same other settings at each."""
    contexts: dict[Row, dict[Any, list[Run]]] = {}
    for row in study.rows:
        value = study.value(row, axis)
        if value != MISSING and (runs := study.cell(method, row)):
            contexts.setdefault(study.context(row, axis), {})[value] = runs
    if not contexts:
        return {}
    sets = [frozenset(cells) for cells in contexts.values()]
    widest = max(sets, key=lambda s: (len(s), sets.count(s)))
    matched: dict[Any, list[list[Run]]] = {}
    for cells in contexts.values():
        if widest <= set(cells):
            for value in widest:
                matched.setdefault(value, []).append(cells[value])
    return matched


def _pooled_accuracies(column: list[list[list[Run]]]) -> list[str]:
    """Means of the cells' means, ± the standard deviation within cells."""
    texts, means = [], []
    for cells in column:
        groups = [[run.accuracy for run in runs] for runs in cells]
        average = mean(map(statistics.fmean, groups))
        number = sum(map(len, groups))
        means.append(average)
        texts.append(_averaged(average, pooled_deviation(groups), number))
    return _bold_best(texts, means)


def _costs(runs: list[Run]) -> list[str]:
    return [
        _number(mean(run.macs for run in runs), 2),
        _number(mean(run.memory for run in runs), 3),
        _number(epoch_seconds(runs), 1),
    ]


def _at_the_end(runs: list[Run], key: str, form: str) -> str:
    """Means over the runs, for each layer; one number where axes agree."""
    if len({len(run.layers) for run in runs}) > 1 or not runs[0].layers:
        return MISSING
    texts = []
    for layers in zip(*(run.layers for run in runs), strict=True):
        sizes = zip(*(layer[key] for layer in layers), strict=True)
        pair = [form.format(statistics.fmean(values)) for values in sizes]
        texts.append(" x ".join(dict.fromkeys(pair)))
    return ", ".join(texts)


def _stride_cost(run: Run) -> float | None:
    return run.epochs[-1].get("stride_cost") if run.epochs else None


def _factor(run: Run) -> float | None:
    return global_factor(run.layers, "strides") if run.layers else None


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:.{digits}f}"
