"""How soon it shows which strides are best, and whether methods agree on it."""

import itertools
import math

import pandas as pd

from diffstride.formatting import markdown
from diffstride.report.study import (
    MISSING,
    Study,
    axis_label,
    budget_axes,
    method_label,
    within_budgets,
)
from diffstride.runs import expected_of_best
from diffstride.settings import BUDGET, STRIDES

_LEAST_SETS = 10  # Of fewer a correlation of ranks says little.
_MEASURES = {"loss": "training loss", "val_accuracy": "validation accuracy"}
_COUNTS = (5, 10, 20)
_SEARCHED = (1, 2, 3, 5, 10, 20)
_SPEARMAN = "Spearman's correlation of ranks, 1 where they agree"


def ranks_table(study: Study) -> str | None:
    """How well early epochs rank the sets of strides within a budget.

    Of each epoch the correlation of what is measured there with the test
    accuracy in the end. `None` where no method has enough sets of fixed strides
    within a budget.
    """
    found = []
    epochs: set[int] = set()
    for names, runs in _fixed_within(study):
        accuracies = _means(runs, "accuracy").rank()
        for key, measure in _MEASURES.items():
            measured = _by_epoch(runs, key)
            ranks = (measured * (-1 if key == "loss" else 1)).rank()
            cells = ranks.corrwith(accuracies).dropna().map("{:.2f}".format)
            if len(cells):
                found.append(([*names, measure], cells))
                epochs.update(cells.index)
    if not found:
        return None
    columns = sorted(epochs)
    table = [
        [*names, *(cells.get(epoch, MISSING) for epoch in columns)]
        for names, cells in found
    ]
    header = [*_header(study), "ranked by", *(f"epoch {n}" for n in columns)]
    return markdown(header, table) + (
        f"\n\n{_SPEARMAN}, over sets of strides within a budget: of what an "
        "epoch of training shows with the test accuracy in the end, means over "
        "seeds. Of losses the lower is the better one."
    )


def short_trainings_table(study: Study) -> str | None:
    """What a search at random reaches that trains most sets for some epochs.

    Those with the least training loss there are trained to the end. `None`
    where there are no such sets as `ranks_table` needs, or they tell no loss.
    """
    table = []
    for names, runs in _fixed_within(study):
        accuracies, losses = _means(runs, "accuracy"), _by_epoch(runs, "loss")
        for epoch, loss in losses.items():
            ranked = accuracies[loss.sort_values(kind="stable").index]
            share = epoch / losses.columns[-1]
            cells = [
                _of_best(ranked, count, f" ({count * share + 1 - share:.1f})")
                for count in _COUNTS
            ]
            table.append([*names, str(epoch), *cells])
    if not table:
        return None
    header = [*_header(study), "epochs of each"]
    header += [f"of {count} sets, %" for count in _COUNTS]
    return markdown(header, table) + (
        "\n\nTest accuracy that is expected of the set with the least training "
        "loss after so many epochs, which alone is trained to the end, over "
        "all orders of the sets; in parentheses what that costs, in whole "
        "trainings."
    )


def searches_table(study: Study) -> str | None:
    """What the best of so many sets at random has, and what a hardened run.

    `None` where there are no such sets as `ranks_table` needs, or they were not
    validated.
    """
    table, budgets = [], set()
    for names, runs in _fixed_within(study):
        validated = _means(runs, "validation")
        if validated.notna().all():
            order = validated.sort_values(ascending=False, kind="stable").index
            ranked = _means(runs, "accuracy")[order]
            cells = [_of_best(ranked, count) for count in _SEARCHED]
            table.append([*names, len(runs), _tera(runs, len(ranked)), *cells])
            budgets.add(names[0])
    if not table:
        return None
    hardened = study.runs[study.runs["hardened"].notna()]
    for (budget, *values, method), some in within_budgets(study, hardened):
        name = f"{budget / 1e6:g}"
        for start, runs in some.groupby(STRIDES, sort=False, observed=True):
            cells = [f"{runs['accuracy'].mean():.2f}"]
            cells += [MISSING] * (len(_SEARCHED) - 1)
            names = [name, *map(str, values), method_label(method), start]
            if name in budgets:
                cost = _tera(runs, len(runs))
                table.append([*names, len(runs), cost, *cells])
    table.sort(key=lambda row: float(row[0]))
    header = [*_header(study)[:-1], "sets, or start", "runs"]
    header += ["training of one, T MACs", "of 1, %"]
    header += [f"of {count}" for count in _SEARCHED[1:]]
    return markdown(header, [list(map(str, row)) for row in table]) + (
        "\n\nTest accuracy of the best in validation of so many sets, mean "
        "over all orders of them: what a search at random reaches, for as many "
        "times the multiply-accumulates that training one set took, in all its "
        "runs. Beside them hardened runs that learned, by their start, with "
        "the training before and after and in trials."
    )


def agreement_table(study: Study) -> str | None:
    """Whether methods agree on which strides are best.

    Settings that both have are the same. `None` if no two methods were run with
    enough sets of the same fixed strides.
    """
    others = budget_axes(study)
    runs = _fixed(study)
    table = []
    for pair in itertools.combinations(study.methods, 2):
        both = [axis for axis in others if {*pair} <= {*study.given(axis)}]
        one, other = (
            runs[runs["method"] == method]
            .groupby([*both, STRIDES])["accuracy"]
            .mean()
            for method in pair
        )
        together = pd.concat([one, other], axis=1, join="inner")
        parts = together.groupby(both) if both else [((), together)]
        for values, part in parts:
            if len(part) >= _LEAST_SETS:
                given = dict(zip(both, map(str, values), strict=True))
                correlation = part.rank().corr().iloc[0, 1]
                table.append(
                    [
                        *(given.get(axis, MISSING) for axis in others),
                        *map(method_label, pair),
                        *(str(len(part)), f"{correlation:.2f}"),
                    ]
                )
    if not table:
        return None
    header = [*map(axis_label, others), "method", "and", "sets", "correlation"]
    return markdown(header, table) + (
        f"\n\n{_SPEARMAN}, over sets of the same fixed strides: of the two "
        "methods' test accuracies, means over seeds, whatever they cost."
    )


def _header(study: Study) -> list[str]:
    return ["budget, M", *map(axis_label, budget_axes(study)), "method", "sets"]


def _fixed(study: Study) -> pd.DataFrame:
    """The runs of networks whose strides stayed as they were given."""
    learned = study.runs["learned"].map(bool) | study.runs["hardened"].notna()
    return study.runs[~learned]


def _fixed_within(study: Study) -> list[tuple[list[str], pd.DataFrame]]:
    """Runs of each budget, method and all else, where their sets are enough.

    And what they are called, as `_header` says.
    """
    if BUDGET not in study.settings:
        return []
    found = []
    for (budget, *values, method), some in within_budgets(study, _fixed(study)):
        sets = some[STRIDES].nunique()
        if sets >= _LEAST_SETS:
            names = [f"{budget / 1e6:g}", *map(str, values)]
            found.append(([*names, method_label(method), str(sets)], some))
    return found


def _of_best(ranked: pd.Series, count: int, more: str = "") -> str:
    if count > len(ranked):
        return MISSING
    return f"{expected_of_best(ranked, count):.2f}{more}"


def _tera(runs: pd.DataFrame, count: int) -> str:
    """What training takes, for each of so many."""
    spent = runs["training_macs"].sum(skipna=False) / count / 1e12
    return MISSING if math.isnan(spent) else f"{spent:.2f}"


def _means(runs: pd.DataFrame, key: str) -> pd.Series:
    return runs.groupby(STRIDES, sort=False)[key].mean()


def _by_epoch(runs: pd.DataFrame, key: str) -> pd.DataFrame:
    """Of each set what the epochs show, those that all of its runs have."""
    rows = [
        {row["epoch"]: row.get(key) for row in rows} for rows in runs["rows"]
    ]
    table = pd.DataFrame(rows, runs[STRIDES], dtype=float)
    table = table.dropna(how="all").dropna(axis=1).sort_index(axis=1)
    return table.groupby(level=0, sort=False).mean()
