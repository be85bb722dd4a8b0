"""The tables of a report, in Markdown."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import pandas as pd

from diffstride.formatting import markdown
from diffstride.report.study import (
    LAMBDA,
    MISSING,
    STRIDES,
    Study,
    axis_label,
    global_factor,
    grouped,
    method_label,
    order,
    pooled_deviation,
)


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
    for context, cells in grouped(study.cells, study.others(STRIDES)):
        accuracies = cells.groupby([*study.axes, "method"], observed=True)
        means = accuracies["accuracy"].mean().unstack()
        means = means.reindex(columns=study.methods)
        texts = accuracies["accuracy"].apply(_accuracy).unstack()
        texts = texts.reindex(columns=study.methods).fillna(MISSING)
        for row in means.index:
            values = row if isinstance(row, tuple) else (row,)
            best = _bold_best(texts.loc[row], means.loc[row])
            table.append([*map(str, values), *best])
        shared = means.dropna(axis="columns", how="all").dropna().index
        uneven |= 1 < len(shared) < len(means)
        # Methods that lack a row get no mean where too few are shared.
        compared = means.loc[shared] if len(shared) > 1 else means
        table += _over_strides(context, compared)
    parts = [markdown(header, table)]
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
    table = [
        [
            *map(str, values),
            method_label(method),
            _accuracy(runs["accuracy"]),
            *_costs(runs),
            _at_the_end(runs, "strides", "{:.2f}"),
            _at_the_end(runs, "output_size", "{:.3g}"),
        ]
        for (*values, method), runs in grouped(
            study.cells, [*study.axes, "method"]
        )
    ]
    return markdown(header, table)


def frontier_table(study: Study) -> str | None:
    """What the regulariser's weight buys, or `None` if it does not vary."""
    if LAMBDA not in study.axes:
        return None
    others = study.others(LAMBDA)
    header = ["method", *map(axis_label, others), LAMBDA]
    header += ["accuracy, %", "MACs, M", "activations, MB", "s / epoch"]
    header += ["stride cost J", "product of strides"]
    cells = study.cells.copy()
    weights = cells[LAMBDA]
    if MISSING not in weights.cat.categories:
        weights = weights.cat.add_categories([MISSING])
    # A method that knows no lambda has one row for all of them.
    cells[LAMBDA] = weights.where(
        cells["method"].isin(study.given(LAMBDA)), MISSING
    )
    columns = ["method", *others, LAMBDA]
    cells = cells.drop_duplicates([*columns, "place"]).sort_values(
        [*columns, "place"]
    )
    table = []
    for (method, *values), runs in grouped(cells, columns):
        costs = [_last(rows).get("stride_cost") for rows in runs["rows"]]
        factors = [
            global_factor(layers, "strides") if layers else None
            for layers in runs["layers"]
        ]
        table.append(
            [
                method_label(method),
                *map(str, values),
                _accuracy(runs["accuracy"]),
                *_costs(runs),
                _mean(costs, 3),
                _mean(factors, 1),
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
    texts = []
    for cells in columns.values():
        pooled = [_pooled(cells.get(value, [])) for value in values]
        texts.append(_bold_best(*zip(*pooled, strict=True)))
    rows = zip(map(str, values), *texts, strict=True)
    return markdown([axis_label(axis), *map(method_label, columns)], rows)


def expected_table(study: Study) -> str | None:
    """Learned strides beside expected ones, or `None` if none are expected."""
    header = [*map(axis_label, study.axes), "method"]
    for axis in ("height", "width"):
        header += [f"{axis}: expected", "learned"]
    table = []
    for (*values, method), runs in grouped(
        study.cells, [*study.axes, "method"]
    ):
        layers = [layer for layers in runs["learned"] for layer in layers]
        if not layers or any("expected" not in each for each in layers):
            continue
        cells = []
        for axis, (low, high) in enumerate(layers[0]["expected"]):
            learned = pd.Series([layer["strides"][axis] for layer in layers])
            cells.append(f"{low:.2f}" + f" to {high:.2f}" * (high > low))
            cells.append(_accuracy(learned))
        table.append([*map(str, values), method_label(method), *cells])
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
    cells = study.cells
    again = cells.duplicated([*study.axes, "method", "seed"], keep=False)
    return list(cells.loc[again, "name"].unique())


def _accuracy(values: pd.Series) -> str:
    """Mean ± standard deviation (number)."""
    return _averaged(values.mean(), values.std(), len(values))


def _averaged(average: float, spread: float, number: int) -> str:
    if math.isnan(average):
        return MISSING
    plus_minus = "" if math.isnan(spread) else f" ± {spread:.2f}"
    return f"{average:.2f}{plus_minus} ({number})"


def _bold_best(
    texts: Sequence[str], values: Sequence[float], best: Any = max
) -> list[str]:
    """Marks the best of several, and what equals it as it is printed."""
    printed = [round(value, 2) for value in values]
    known = [value for value in printed if not math.isnan(value)]
    return [
        f"**{text}**" if len(known) > 1 and value == best(known) else text
        for text, value in zip(texts, printed, strict=True)
    ]


def _noise(study: Study) -> str:
    """What a seed can do, in each group of rows."""
    texts = []
    for context, rows in grouped(study.cells, study.others(STRIDES)):
        cells = [
            cell["accuracy"]
            for _, cell in grouped(rows, [*study.axes, "method"])
        ]
        noise = pooled_deviation(cells)
        if math.isnan(noise):
            continue
        number = statistics.mode(map(len, cells))
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


def _over_strides(context: tuple, means: pd.DataFrame) -> list[list[str]]:
    """Mean over initial strides, and largest less smallest mean."""
    averages = means.mean(skipna=False)
    if len(means) < 2 or averages.isna().all():
        return []
    spreads = means.max(skipna=False) - means.min(skipna=False)
    return [
        [
            *map(str, context),
            f"*{title}*",
            *_bold_best([_number(value, 2) for value in values], values, best),
        ]
        for title, values, best in (
            (f"mean of {len(means)}", averages, max),
            ("spread: largest - smallest", spreads, min),
        )
    ]


def _matched(
    study: Study, axis: str, method: str
) -> dict[Any, list[pd.Series]]:
    """Accuracies by the value of an axis, the other settings same at each."""
    cells = study.cells
    cells = cells[(cells["method"] == method) & (cells[axis] != MISSING)]
    contexts = [
        {value: each["accuracy"] for (value,), each in grouped(group, [axis])}
        for _, group in grouped(cells, study.others(axis))
    ]
    sets = [frozenset(context) for context in contexts]
    widest = max(sets, key=lambda s: (len(s), sets.count(s)), default=())
    return {
        value: [each[value] for each in contexts if set(widest) <= set(each)]
        for value in widest
    }


def _pooled(cells: list[pd.Series]) -> tuple[str, float]:
    """Mean of the cells' means, ± the standard deviation within cells."""
    average = pd.Series([each.mean() for each in cells], dtype=float).mean()
    number = sum(map(len, cells))
    return _averaged(average, pooled_deviation(cells), number), average


def _costs(runs: pd.DataFrame) -> list[str]:
    seconds = [row.get("seconds") for rows in runs["rows"] for row in rows]
    return [
        _mean(runs["macs"], 2),
        _mean(runs["memory"], 3),
        _number(pd.Series(seconds, dtype=float).median(), 1),
    ]


def _at_the_end(runs: pd.DataFrame, key: str, form: str) -> str:
    """Means over the runs, for each layer; one number where axes agree."""
    if runs["layers"].map(len).nunique() > 1 or not runs["layers"].iloc[0]:
        return MISSING
    texts = []
    for layers in zip(*runs["layers"], strict=True):
        means = pd.DataFrame([layer[key] for layer in layers]).mean()
        texts.append(" x ".join(dict.fromkeys(map(form.format, means))))
    return ", ".join(texts)


def _last(rows: list[dict[str, Any]]) -> dict[str, Any]:
    return rows[-1] if rows else {}


def _mean(values: Sequence[float | None], digits: int) -> str:
    """The mean, if there is one of each."""
    mean = pd.Series(values, dtype=float).mean(skipna=False)
    return _number(mean, digits)


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"
