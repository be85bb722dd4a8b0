"""The tables of a report, in Markdown."""

import math
import statistics
from typing import Any

import pandas as pd

from diffstride.formatting import cutoffs, markdown
from diffstride.report.study import (
    MISSING,
    SPENT,
    Study,
    axis_label,
    budget_axes,
    grouped,
    method_label,
    pooled_deviation,
    within_budgets,
)
from diffstride.settings import BUDGET, LAMBDA, STRIDES, TASK


def accuracy_table(study: Study) -> str:
    """Test accuracy by setting and method, and what the start matters."""
    header = [*map(axis_label, study.axes), *map(method_label, study.methods)]
    table, noise = [], []
    uneven = False
    for context, cells in grouped(study.cells, study.others(STRIDES)):
        accuracies = _accuracies(cells, [*study.axes, "method"])
        means, texts = (
            each.unstack().reindex(columns=study.methods)
            for each in (accuracies.mean(), accuracies.apply(_accuracy))
        )
        texts = _bold_best(texts.fillna(MISSING), means)
        table += texts.reset_index().astype(str).values.tolist()
        shared = means.dropna(axis="columns", how="all").dropna()
        uneven |= 1 < len(shared) < len(means)
        # Methods that lack a row get no mean where too few are shared.
        compared = means.loc[shared.index] if len(shared) > 1 else means
        table += _over_strides(context, compared)
        noise += _noise(accuracies, study.text(context, STRIDES))
    parts = [markdown(header, table)]
    if uneven:
        parts.append(
            "Mean and spread over strides are over those initial strides that "
            "all methods of the group were run with."
        )
    if noise:
        parts.append(
            "Mean ± sample standard deviation over seeds (number of runs); the "
            "best mean of a row is bold. The standard deviation of a run, "
            f"pooled over cells, is {'; '.join(noise)}."
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
    columns = [*study.axes, "method"]
    table = [
        [
            *map(str, values),
            method_label(method),
            _accuracy(runs["accuracy"]),
            *_costs(runs),
            _at_the_end(runs, "strides", "{:.2f}"),
            _at_the_end(runs, "output_size", "{:.3g}"),
        ]
        for (*values, method), runs in grouped(study.cells, columns)
    ]
    return markdown(header, table)


def frontier_table(study: Study) -> str | None:
    """What the regulariser's weight buys, or `None` if it does not vary."""
    if LAMBDA not in study.axes:
        return None
    others = study.others(LAMBDA)
    header = [
        *("method", *map(axis_label, others), LAMBDA, "accuracy, %", "MACs, M"),
        *("activations, MB", "s / epoch", "stride cost J"),
        "product of strides",
    ]
    columns = ["method", *others, LAMBDA]
    # A method that knows no lambda has one row for all of them.
    known = study.cells["method"].isin(study.given(LAMBDA))
    free = study.cells[~known].drop_duplicates(["method", *others, "place"])
    cells = pd.concat([study.cells[known], free])
    table = []
    for (method, *values), runs in grouped(
        cells.sort_values([*columns, "place"]), columns
    ):
        if method not in study.given(LAMBDA):
            values[-1] = MISSING
        table.append(
            [
                method_label(method),
                *map(str, values),
                _accuracy(runs["accuracy"]),
                *_costs(runs),
                _mean(runs["stride_cost"], 3),
                _mean(runs["factor"], 1),
            ]
        )
    return markdown(header, table)


def budget_table(study: Study) -> str | None:
    """What sets of strides within a budget reach, or `None` without budgets.

    The best method of a budget comes first.
    """
    if BUDGET not in study.settings:
        return None
    others = budget_axes(study)
    header = [
        *("budget, M", *map(axis_label, others), "method", "sets (runs)"),
        *("MACs, M", "mean accuracy, %", "lowest", "highest"),
        "best in validation",
    ]
    found = []
    for (budget, *values, method), runs in within_budgets(study, study.runs):
        sets = runs.groupby(STRIDES)
        means, validated = sets["accuracy"].mean(), sets["validation"].mean()
        chosen = [means.idxmin(), means.idxmax()]
        chosen += [validated.idxmax()] if validated.notna().any() else []
        cells = [f"{means[strides]:.2f} ({strides})" for strides in chosen]
        row = [
            f"{budget / 1e6:g}",
            *map(str, values),
            method_label(method),
            f"{len(means)} ({len(runs)})",
            f"{runs['macs'].min():.2f} to {runs['macs'].max():.2f}",
            f"{means.mean():.2f}",
            *(*cells, MISSING)[:3],
        ]
        found.append(((budget, *values), -means.mean(), row))
    parts = [place for place, *_ in found]
    found.sort(key=lambda each: (parts.index(each[0]), each[1]))
    table = [row for *_, row in found]
    low, high = SPENT
    return markdown(header, table) + (
        "\n\nSets of initial strides, and runs with them; their mean, and the "
        "sets with the lowest and the highest. The highest of many is "
        "flattered by the test images that it is found by; the best in "
        f"validation is not. Fixed strides stand where they cost {low:.0%} to "
        f"{high:.0%} of a budget."
    )


def hardening_table(study: Study) -> str | None:
    """Networks that were hardened: before, just after, and trained on."""
    others = study.others(STRIDES)
    header = [
        *map(axis_label, others),
        *("method", "learned, %", "MACs, M", "hardened", "as it is, %"),
        *("in the end, %", "MACs, M"),
    ]
    hardened = study.cells[study.cells["hardened_accuracy"].notna()]
    table = [
        [
            *map(str, values),
            method_label(method),
            _accuracy(runs["learned_accuracy"]),
            _mean(runs["learned_macs"], 2),
            " and ".join(sorted(set(runs["hardened"]))),
            _accuracy(runs["hardened_accuracy"]),
            _accuracy(runs["accuracy"]),
            _mean(runs["macs"], 2),
        ]
        for (*values, method), runs in grouped(hardened, [*others, "method"])
    ]
    if not table:
        return None
    return markdown(header, table) + (
        "\n\nMeans over initial strides and seeds. Of the learned network, of "
        "the plain one that was made of it, and of that one in the end."
    )


def hardened_strides_table(study: Study) -> str | None:
    """What hardening has made of learned strides, run by run."""
    cells = study.cells[study.cells["hardened_strides"].map(bool)]
    table = [
        [
            *map(str, values),
            method_label(method),
            str(run["seed"]),
            ", ".join(
                "x".join(map("{:.4g}".format, strides))
                for strides in run["hardened_strides"]
            ),
            f"{run['accuracy']:.2f}",
            _number(run["macs"], 2),
        ]
        for (*values, method), runs in grouped(cells, [*study.axes, "method"])
        for _, run in runs.iterrows()
    ]
    if not table:
        return None
    header = [*map(axis_label, study.axes), "method", "seed", "strides"]
    return markdown([*header, "accuracy, %", "MACs, M"], table) + (
        "\n\nOf each run the strides of the hardened network, in depth order."
    )


def ablation_table(study: Study, axis: str) -> str | None:
    """One axis alone: the other settings are the same in all of its rows.

    A method has a column if it was run with two values; the best is bold.
    """
    others = study.others(axis)
    texts, means = {}, {}
    for method in study.given(axis):
        for (value,), runs in grouped(_matched(study, axis, method), [axis]):
            accuracies = _accuracies(runs, others)
            mean = accuracies.mean().mean()
            text = _averaged(mean, pooled_deviation(accuracies), len(runs))
            means.setdefault(method_label(method), {})[value] = mean
            texts.setdefault(method_label(method), {})[value] = text
    if not texts:
        return None
    present = set().union(*texts.values())
    values = study.cells[axis].cat.categories
    values = values[values.isin(present)]
    means = pd.DataFrame(means).reindex(values)
    texts = pd.DataFrame(texts).reindex(values).fillna(MISSING)
    texts = _bold_best(texts.T, means.T).T
    texts.insert(0, axis_label(axis), [str(value) for value in values])
    return markdown(texts.columns, texts.values)


def expected_table(study: Study) -> str | None:
    """Learned strides beside expected ones, or `None` if none are expected."""
    header = [*map(axis_label, study.axes), "method"]
    for axis in ("height", "width"):
        header += [f"{axis}: expected", "learned"]
    table = []
    columns = [*study.axes, "method"]
    for (*values, method), runs in grouped(study.cells, columns):
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


def cutoff_table(study: Study) -> str | None:
    """Cut-offs of the strides of sounds, or `None` where there are none."""
    header = [*map(axis_label, study.axes), "method", "layer"]
    header += ["time x frequency", "cut-off (mean of seeds)"]
    table = []
    columns = [*study.axes, "method"]
    for (*values, method), runs in grouped(study.cells, columns):
        runs = runs[runs["steps"].notna() & runs["layers"].map(bool)]
        if not len(runs):
            continue
        # Networks of a cell are alike but for the seed.
        means = [
            {
                "name": layers[0]["name"],
                **{
                    key: pd.DataFrame([each[key] for each in layers]).mean()
                    for key in ("strides", "input_size")
                },
            }
            for layers in zip(*runs["layers"], strict=True)
        ]
        for layer, text in zip(
            means, cutoffs(means, runs["steps"].iloc[0]), strict=True
        ):
            strides = " x ".join(f"{s:.2f}" for s in layer["strides"])
            row = [*map(str, values), method_label(method)]
            table.append([*row, layer["name"], strides, text])
    return markdown(header, table) if table else None


def task_table(study: Study) -> str | None:
    """Accuracy in each task and their mean, or `None` if there is one task.

    Networks of one task come first, then those of several at once.
    """
    contexts = [
        axis
        for axis in study.axes
        if axis != TASK and study.cells[axis].nunique() > 1
    ]
    frame = pd.DataFrame(
        [
            {
                **run[[*contexts, "method", "seed", "macs"]],
                "trained": ", ".join(run["tasks"]) if several else "one a run",
                "several": several,
                "task": task,
                "accuracy": accuracy,
            }
            for _, run in study.cells.iterrows()
            for several in [len(run["tasks"]) > 1]
            for task, accuracy in run["tasks"].items()
        ]
    )
    if not len(frame) or frame["task"].nunique() < 2:
        return None
    header = [*map(axis_label, contexts), "tasks of a network", "accuracy in"]
    for method in study.methods:
        header += [f"{method_label(method)}, %", "MACs, M"]
    frame = frame.sort_values("several", kind="stable")
    table = []
    for values, group in grouped(frame, [*contexts, "trained"]):
        tasks = group["task"].unique()
        for task in [*tasks, None]:
            row = [*map(str, values), task or "*mean of tasks*"]
            for method in study.methods:
                own = group[group["method"] == method]
                found = own.pivot_table("accuracy", "seed", "task")
                found = found.reindex(columns=tasks)
                found = found[task] if task else found.mean(1, skipna=False)
                spent = own[own["task"] == task] if task else own
                known = len(found.dropna()) > 0
                row.append(_accuracy(found.dropna()) if known else MISSING)
                row.append(_mean(spent["macs"], 2) if known else MISSING)
            table.append(row)
    return markdown(header, table) + (
        "\n\nMean ± sample standard deviation over seeds (number of seeds); "
        "those of the mean are of the mean in each seed."
    )


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


def _accuracies(cells: pd.DataFrame, columns: list[str]) -> Any:
    return cells.groupby(columns, observed=True)["accuracy"]


def _accuracy(values: pd.Series) -> str:
    """Mean ± standard deviation (number)."""
    return _averaged(values.mean(), values.std(), len(values))


def _averaged(average: float, spread: float, number: int) -> str:
    plus_minus = "" if math.isnan(spread) else f" ± {spread:.2f}"
    return f"{average:.2f}{plus_minus} ({number})"


def _bold_best(
    texts: pd.DataFrame, values: pd.DataFrame, best: str = "max"
) -> pd.DataFrame:
    """Marks the best of each row, and what equals it as it is printed."""
    printed = values.map("{:.2f}".format).astype(float)
    best = printed.agg(best, axis=1).where(printed.count(axis=1) > 1)
    return texts.mask(printed.eq(best, axis=0), "**" + texts + "**")


def _noise(accuracies: Any, what: str) -> list[str]:
    """What a seed can do in a group of rows, if that is known."""
    noise = pooled_deviation(accuracies)
    if math.isnan(noise):
        return []
    number = statistics.mode(accuracies.count())
    error = noise * (2 / number) ** 0.5
    return [
        f"{noise:.2f} points{f' with {what}' if what else ''} (standard "
        f"error of the difference of two means of {number}: {error:.2f})"
    ]


def _over_strides(context: tuple, means: pd.DataFrame) -> list[list[str]]:
    """Mean over initial strides, and largest less smallest mean."""
    averages = means.mean(skipna=False)
    if len(means) < 2 or averages.isna().all():
        return []
    spreads = means.max(skipna=False) - means.min(skipna=False)
    rows = []
    for title, values, best in (
        (f"mean of {len(means)}", averages, "max"),
        ("spread: largest - smallest", spreads, "min"),
    ):
        values = values.to_frame().T
        texts = _bold_best(values.map(_number, digits=2), values, best)
        rows.append([*map(str, context), f"*{title}*", *texts.iloc[0]])
    return rows


def _matched(study: Study, axis: str, method: str) -> pd.DataFrame:
    """Runs with the most values of an axis, the other settings same at each."""
    cells = study.cells
    cells = cells[(cells["method"] == method) & (cells[axis] != MISSING)]
    contexts = [context for _, context in grouped(cells, study.others(axis))]
    sets = [frozenset(context[axis]) for context in contexts]
    widest = max(sets, key=lambda each: (len(each), sets.count(each)))
    if len(widest) < 2:
        return cells.iloc[:0]
    pairs = zip(contexts, sets, strict=True)
    cells = pd.concat([context for context, own in pairs if widest <= own])
    return cells[cells[axis].isin(widest)]


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


def _mean(values: pd.Series, digits: int) -> str:
    """The mean, if there is one of each."""
    return _number(values.mean(skipna=False), digits)


def _number(value: float, digits: int) -> str:
    return MISSING if math.isnan(value) else f"{value:.{digits}f}"
