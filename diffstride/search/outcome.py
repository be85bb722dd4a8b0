"""What a search has found, and what it has spent on training."""

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diffstride.formatting import aligned, human
from diffstride.runs import expected_of_best, training_macs
from diffstride.search.study import Trial

COUNTS = (1, 5, 10, 20)
_NONE = "-"


class Best(NamedTuple):
    """The best of some trials, by their validation accuracy.

    Attributes:
        count: of how many trials.
        validation: its validation accuracy.
        test: its test accuracy.
        training_macs: multiply-accumulates of the training of all of them.
    """

    count: int
    validation: float
    test: float
    training_macs: float


def in_order(trials: Sequence[Trial]) -> list[Best]:
    """Returns the best of the first 1, 5, 10, 20 and of all trials."""
    found = []
    for count in _counts(len(trials)):
        some = trials[:count]
        finished = [trial for trial in some if trial.state == "finished"]
        if finished:
            best = max(finished, key=lambda trial: trial.validation)
            spent = sum(map(_spent, some))
            found.append(Best(count, best.validation, best.test, spent))
    return found


def expected(trials: Sequence[Trial]) -> list[Best]:
    """Returns what the best of so many trials is on average over all orders.

    That is what a search at random may expect. It holds for whole runs, none of
    which depended on another.
    """
    ranked = sorted(trials, key=lambda trial: -trial.validation)
    mean = statistics.fmean(map(_spent, ranked)) if ranked else 0.0
    found = []
    for count in _counts(len(ranked)):
        validation, test = (
            expected_of_best([getattr(each, name) for each in ranked], count)
            for name in ("validation", "test")
        )
        found.append(Best(count, validation, test, count * mean))
    return found


def table(trials: Sequence[Trial]) -> str:
    """Lays out all trials, a line each."""
    header = ("trial", "run", "MACs", "validation", "test", "state", "epochs")
    rows = [(*header, "training MACs")]
    for trial in trials:
        rows.append(
            (
                str(trial.number + 1),
                trial.run.name,
                human(trial.cost.macs),
                _percent(trial.validation),
                _percent(trial.test),
                trial.state,
                str(len(trial.accuracies)),
                _macs(trial.training_macs),
            )
        )
    return "\n".join(aligned(rows, right=(0, 2, 3, 4, 6, 7)))


def bests(title: str, found: Sequence[Best]) -> str:
    """Lays out the best of so many trials."""
    rows = [(title, "validation", "test", "training MACs")]
    for best in found:
        rows.append(
            (
                str(best.count),
                _percent(best.validation),
                _percent(best.test),
                _macs(best.training_macs),
            )
        )
    return "\n".join(aligned(rows, right=(0, 1, 2, 3)))


def over_searches(searches: Iterable[Sequence[Trial]]) -> str:
    """Lays out the best of so many trials, mean and deviation over searches."""
    groups: dict[int, list[Best]] = {}
    for trials in searches:
        for best in in_order(trials):
            groups.setdefault(best.count, []).append(best)
    header = ("best of", "searches", "validation", "test", "training MACs")
    rows = [header]
    for count, group in sorted(groups.items()):
        rows.append(
            (
                str(count),
                str(len(group)),
                _spread([best.validation for best in group]),
                _spread([best.test for best in group]),
                _macs(statistics.fmean(best.training_macs for best in group)),
            )
        )
    return "\n".join(aligned(rows, right=(0, 1, 2, 3, 4)))


def compared(
    records: Sequence[dict[str, Any]], images: int | None = None
) -> str:
    """Lays out runs that were not searched for, seeds together.

    Those whose strides are learned, to compare a search with.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        if record.get("summary"):
            groups.setdefault(_without_seed(record), []).append(record)
    header = ("run", "runs", "MACs", "validation", "test", "training MACs")
    rows = [header]
    for name, group in groups.items():
        summaries = [record["summary"] for record in group]
        macs = [(each.get("cost") or {}).get("macs") for each in summaries]
        validation = [each.get("validation_accuracy") for each in summaries]
        spent = [training_macs(record, images) for record in group]
        rows.append(
            (
                name,
                str(len(group)),
                _NONE if None in macs else human(statistics.fmean(macs)),
                _NONE if None in validation else _spread(validation),
                _spread([each["test_accuracy"] for each in summaries]),
                _NONE if None in spent else _macs(statistics.fmean(spent)),
            )
        )
    return "\n".join(aligned(rows, right=(1, 2, 3, 4, 5)))


def _counts(most: int) -> list[int]:
    return sorted({count for count in (*COUNTS, most) if 1 <= count <= most})


def _spent(trial: Trial) -> float:
    spent = trial.training_macs
    return math.nan if spent is None else spent


def _without_seed(record: dict[str, Any]) -> str:
    settings = {k: v for k, v in record["settings"].items() if k != "seed"}
    named = [f"{axis} {value}" for axis, value in settings.items()]
    return ", ".join(named) or record["name"]


def _percent(share: float | None) -> str:
    return _NONE if share is None else f"{100 * share:.2f} %"


def _spread(shares: Sequence[float]) -> str:
    mean = f"{100 * statistics.fmean(shares):.2f}"
    if len(shares) == 1:
        return f"{mean} %"
    return f"{mean} ± {100 * statistics.stdev(shares):.2f} %"


def _macs(number: float | None) -> str:
    if number is None or math.isnan(number):
        return _NONE
    return f"{number / 1e12:.3g} T" if number >= 1e12 else human(number)
