"""How soon it shows which strides are best, and whether methods agree on it."""

import itertools
import math

import pandas as pd

from diffstride.formatting import markdown
from diffstride.report.study import Study, grouped, method_label
from diffstride.settings import BUDGET, STRIDES

_LEAST_SETS = 10  # Of fewer a correlation of ranks says little.
_MEASURES = {"loss": "training loss", "val_accuracy": "validation accuracy"}
_COUNTS = (5, 10, 20)
_SPEARMAN = "Spearman's correlation of ranks, 1 where they agree"


def ranks_table(study: Study) -> str | None:
    """How well early epochs rank the sets of strides within a budget.

    Of each epoch the correlation of what is measured there with the test
    accuracy in the end. `None` where no method has enough runs of one network
    within a budget.
    """
    found = []
    for name, accuracies, epochs in _fixed_within(study):
        for key, measure in _MEASURES.items():
            by_epoch = _by_epoch(epochs, key).dropna(axis=1)
            if not by_epoch.empty:
                ranks = (by_epoch * (-1 if key == "loss" else 1)).rank()
                correlations = ranks.corrwith(accuracies.rank())
                cells = map("{:.2f}".format, correlations)
                found.append([*name, measure, *cells])
    if not found:
        return None
    header = ["budget, M", "method", "runs", "ranked by"]
    most = max(map(len, found)) - len(header)
    header += [f"epoch {epoch + 1}" for epoch in range(most)]
    table = [row + [""] * (len(header) - len(row)) for row in found]
    return markdown(header, table) + (
        f"\n\n{_SPEARMAN}, over sets of strides within a budget: of what an "
        "epoch of training shows with the test accuracy in the end. Of losses "
        "the lower is the better one."
    )


def short_trainings_table(study: Study) -> str | None:
    """What a search at random reaches that trains most sets for some epochs.

    Those with the least training loss there are trained to the end. `None`
    where `ranks_table` is.
    """
    table = []
    for name, accuracies, epochs in _fixed_within(study):
        losses = _by_epoch(epochs, "loss").dropna(axis=1)
        last = len(losses.columns)
        for epoch in range(last):
            ranked = accuracies[losses[epoch].sort_values(kind="stable").index]
            share = (epoch + 1) / last
            cells = [
                f"{_expected(ranked, count):.2f} "
                f"({count * share + 1 - share:.1f})"
                if count <= len(ranked)
                else ""
                for count in _COUNTS
            ]
            table.append([*name, str(epoch + 1), *cells])
    if not table:
        return None
    header = ["budget, M", "method", "runs", "epochs of each"]
    header += [f"of {count} sets, %" for count in _COUNTS]
    return markdown(header, table) + (
        "\n\nTest accuracy that is expected of the set with the least training "
        "loss after so many epochs, which alone is trained to the end, over "
        "all orders of the runs; in parentheses what that costs, in whole "
        "trainings."
    )


def agreement_table(study: Study) -> str | None:
    """Whether methods agree on which strides are best.

    `None` if no two were run with enough sets of the same strides.
    """
    runs = study.runs[_fixed(study)]
    table = []
    for one, other in itertools.combinations(study.methods, 2):
        means = [
            runs[runs["method"] == method].groupby(STRIDES)["accuracy"].mean()
            for method in (one, other)
        ]
        both = pd.concat(means, axis=1, join="inner")
        if len(both) >= _LEAST_SETS:
            correlation = both.rank().corr().iloc[0, 1]
            names = method_label(one), method_label(other)
            table.append([*names, str(len(both)), f"{correlation:.2f}"])
    if not table:
        return None
    header = ["method", "and", "sets", "correlation"]
    return markdown(header, table) + (
        f"\n\n{_SPEARMAN}, over sets of the same fixed strides: of the two "
        "methods' test accuracies, whatever they cost."
    )


def _fixed(study: Study) -> list[bool]:
    return [not each["summary"].get("hardened") for each in study.ended]


def _fixed_within(study: Study) -> list[tuple]:
    """Of each budget and method the names, accuracies and epochs of its runs.

    Of runs of one network, where they are enough.
    """
    if BUDGET not in study.settings:
        return []
    within = study.runs[_fixed(study)]
    within = within[within[BUDGET].notna()].sort_values(BUDGET, kind="stable")
    return [
        (
            (f"{budget / 1e6:g}", method_label(method), str(len(runs))),
            runs["accuracy"],
            {run: study.ended[run]["epochs"] for run in runs.index},
        )
        for (budget, method), runs in grouped(within, [BUDGET, "method"])
        if len(runs) >= _LEAST_SETS
    ]


def _by_epoch(epochs: dict[int, list], key: str) -> pd.DataFrame:
    rows = [[row.get(key) for row in rows] for rows in epochs.values()]
    return pd.DataFrame(rows, list(epochs), dtype=float)


def _expected(ranked: pd.Series, count: int) -> float:
    """The mean, over all choices of `count`, of the first that is chosen."""
    last = len(ranked) - 1
    return sum(
        math.comb(last - rank, count - 1) / math.comb(last + 1, count) * value
        for rank, value in enumerate(ranked)
    )
