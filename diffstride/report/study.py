"""What a report is about: runs, what varies among them, what belongs together.

A run has a method (how it downsamples), a seed, and settings. Settings that
differ among the runs are the axes; one value an axis makes a row of a table,
and the runs of a row and a method, which differ by their seeds alone, a cell.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import pandas as pd

from diffstride.errors import UserError
from diffstride.runs import training_macs
from diffstride.settings import (
    BUDGET,
    LEARNED,
    METHODS,
    RIVALS,
    STRIDES,
    TASK,
    bindings,
)

MISSING = "-"
IMAGE_AXES = ("height", "width")
# Of methods that have a name of their own.
_LABELS = {
    "fractional_max": "fractional max",
    "blur": "BlurPool",
    "max_blur": "MaxBlurPool",
    "flc": "FLC pooling",
    "dynopool": "DynOPool",
    "dct": "DCT-DiffStride",
}
# What share of a budget a network of fixed strides may need to be compared with
# those that were led to it.
SPENT = (0.85, 1.05)
_NUMBERS = (
    *("accuracy", "validation", "macs", "memory", "stride_cost"),
    *("initial_factor", "factor"),
)


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report.

    Attributes:
        ended: records of the runs that ended well.
        failed: records of those that ended in an error.
        unfinished: records of those that have not ended.
        runs: a row for each of `ended`: its settings, and what `_facts` tells.
        settings: columns of `runs` that are settings.
        axes: settings that vary, and the initial strides as the last.
        cells: `runs`, sorted by axes and methods, with a value of each axis. A
            run stands in as many rows as it has places in the tables.
    """

    ended: list[dict[str, Any]]
    failed: list[dict[str, Any]]
    unfinished: list[dict[str, Any]]
    runs: pd.DataFrame
    settings: list[str]
    axes: list[str]
    cells: pd.DataFrame

    @property
    def methods(self) -> list[str]:
        """Methods in the order of columns."""
        return _in_order(self.runs["method"])

    def others(self, axis: str) -> list[str]:
        """The axes but for one."""
        return [name for name in self.axes if name != axis]

    def text(self, values: tuple, without: str) -> str:
        """Names values of all axes but one."""
        return ", ".join(
            f"{axis_label(axis)} {value}"
            for axis, value in zip(self.others(without), values, strict=True)
            if value != MISSING
        )

    def given(self, axis: str) -> list[str]:
        """The methods that have a value of a setting in any run."""
        return _in_order(self.runs.loc[self.runs[axis].notna(), "method"])


class Shown(NamedTuple):
    """What the figures of learned strides show.

    Attributes:
        single: the run that is shown by itself, or `None`.
        runs: rows of `Study.cells` that differ in method, strides and seed.
        what: their other settings, if other runs have others.
    """

    single: Any
    runs: pd.DataFrame
    what: str


def study(records: Iterable[dict[str, Any]]) -> Study:
    """Sorts records of `runs.read_runs`; what is given twice counts once."""
    ended, failed, unfinished = [], [], []
    for record in records:
        record = {**record, "name": " ".join(record["name"].split())}
        kind = ended if record.get("summary") else unfinished
        kind = failed if record.get("error") else kind
        if record not in kind:
            kind.append(record)
    if not ended:
        raise UserError(_nothing(failed, unfinished))
    settings = _settings(ended)
    runs = pd.DataFrame(map(_facts, ended), dtype=object).join(settings)
    runs = runs.astype({**dict.fromkeys(_NUMBERS, float), "moved": bool})
    if BUDGET in settings:
        _enter_budgets(runs)
    axes = _axes(runs, list(settings))
    cells = _cells(runs, axes)
    return Study(ended, failed, unfinished, runs, list(settings), axes, cells)


def method_label(method: str) -> str:
    """How a method is called in tables and figures."""
    return _LABELS.get(method, method.replace("_", "-"))


def axis_label(axis: str) -> str:
    """How a setting is called in tables and figures."""
    return "initial strides" if axis == STRIDES else axis.replace("_", " ")


def of_sounds(runs: pd.DataFrame) -> bool:
    """Whether strides are along time and mel channels in all runs."""
    return bool(len(runs)) and bool(runs["steps"].notna().all())


def example(runs: pd.DataFrame) -> str:
    """What costs are counted of."""
    return "window" if of_sounds(runs) else "image"


def grouped(
    frame: pd.DataFrame, columns: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Splits a frame in the order of rows; without columns, into one part."""
    if not columns:
        yield (), frame
    elif len(frame):
        yield from frame.groupby(columns, sort=False, observed=True)


def budget_axes(study: Study) -> list[str]:
    """The axes beside strides and budget."""
    return [axis for axis in study.others(STRIDES) if axis != BUDGET]


def within_budgets(
    study: Study, runs: pd.DataFrame
) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Runs of each budget, of each value of `budget_axes`, of each method."""
    others = budget_axes(study)
    within = runs[runs[BUDGET].notna()]
    within = within.fillna(dict.fromkeys(others, MISSING))
    within = within.sort_values([BUDGET, *others], kind="stable")
    return grouped(within, [BUDGET, *others, "method"])


def present(column: pd.Series) -> list[Any]:
    """The categories that a column of `Study.cells` has, in order."""
    return list(column.cat.remove_unused_categories().cat.categories)


def pooled_deviation(accuracies: Any) -> float:
    """The standard deviation within the groups of a grouped column.

    Root of (sum of squares about the groups' means / degrees of freedom), or
    NaN if no group has two values.
    """
    freedom = accuracies.count() - 1
    squares = (accuracies.var() * freedom).sum()
    return math.sqrt(squares / freedom.sum()) if any(freedom) else math.nan


def shown(study: Study, name: str | None = None) -> Shown:
    """Chooses what the figures of learned strides show.

    They show the group of the named run, or else that with the most starts,
    then the most runs whose strides have moved, then the first. By itself is
    shown the named run, or else the first whose strides have moved.
    """
    others = study.others(STRIDES)
    learned = study.cells[study.cells["learned"].map(bool)]
    learned = learned.sort_values([*others, "method", *study.axes, "place"])
    if name is not None and name not in set(learned["name"]):
        names = list(learned["name"].unique())
        raise UserError(
            "--trajectory must be the name of a run with learned strides. "
            f"Received: {name}. There are: {', '.join(names[:4]) or 'none'}"
            f"{', ...' if len(names) > 4 else ''}"
        )
    if not len(learned):
        return Shown(None, learned, "")
    groups = dict(grouped(learned, others))
    interest = {
        values: (
            name in set(runs["name"]),
            runs[STRIDES].nunique(),
            runs["moved"].sum(),
        )
        for values, runs in groups.items()
    }
    values = max(groups, key=interest.get)
    runs = groups[values]
    wanted = runs["moved"] if name is None else runs["name"] == name
    what = study.text(values, STRIDES) if len(groups) > 1 else ""
    return Shown(runs.loc[wanted.idxmax()], runs, what)


def run_label(run: Any) -> str:
    """A short name, which fits over a figure."""
    return f"{method_label(run.method)} from {run[STRIDES]}, seed {run.seed}"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Names such as `block 2` for those of layers, if these differ."""
    short = {
        name: name.removesuffix("/pooling")
        .removesuffix("/layer_1")
        .replace("_", " ")
        for name in names
    }
    if "pooling" in short:
        short["pooling"] = "stem"
    distinct = len(set(short.values())) == len(short)
    return short if distinct else {name: name for name in short}


def _nothing(failed: list[Any], unfinished: list[Any]) -> str:
    """Why there is nothing to report."""
    if not failed and not unfinished:
        return "RUNS hold no runs; train some, or name other folders"
    example = (failed or unfinished)[0]
    error = str(example.get("error") or "").strip().splitlines()
    return (
        f"RUNS hold no run that ended well: {len(failed)} failed, "
        f"{len(unfinished)} did not end. The first is {example['name']}"
        + (f": {error[0]}" if error else "")
    )


def _order(axis: str, value: Any) -> tuple:
    """A key that sorts the values of an axis: mild strides first."""
    if value == MISSING:
        return (2, 0.0, "")
    try:
        if axis == STRIDES:
            numbers = str(value).replace("x", ",").split(",")
            return (0, math.prod(map(float, numbers)), str(value))
        if isinstance(value, (int, float)):
            return (0, float(value), "")
    except ValueError:
        pass
    return (1, 0.0, str(value))


def _settings(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row of settings for each record, method and seed left out."""
    rows = []
    for record in records:
        row = {}
        for key, value in record["settings"].items():
            key = STRIDES if key.endswith(f".{STRIDES}") else key
            row[key] = _plain(key, value)
        if STRIDES not in row:
            layers = _source(record["summary"]).get("pooling") or []
            starts = [dict.fromkeys(layer["initial"]) for layer in layers]
            texts = ["x".join(f"{s:g}" for s in start) for start in starts]
            row[STRIDES] = ",".join(texts) or None
        rows.append(row)
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame.drop(columns=["method", "seed"], errors="ignore")
    # Where nothing else tells runs apart, what a sweep does not vary does.
    methods = pd.Series(map(_method, records), dtype=object)
    tasks = [record["summary"].get("tasks") or {} for record in records]
    for key, values in (
        (TASK, [",".join(names) or None for names in tasks]),
        ("config", [record.get("gin_config") for record in records]),
        ("epochs", [record["summary"].get("epochs") for record in records]),
        ("bindings", _distinct_bindings(records)),
    ):
        column = pd.Series(values, dtype=object)
        same = [frame[name] for name in frame]
        groups = column.groupby([methods, *same], dropna=False)
        differ = (groups.nunique(dropna=False) > 1).any()
        if differ and key not in frame:
            frame[key] = column
    return frame


def _plain(key: str, value: Any) -> Any:
    """A value that can be compared, hashed and shown."""
    if isinstance(value, (list, tuple)):
        value = ",".join(map(str, value))
    if key == STRIDES:
        return "".join(str(value).strip("[]()").split())
    if isinstance(value, (int, float)):
        return value
    return "none" if value is None else " ".join(str(value).split())


def _distinct_bindings(records: list[dict[str, Any]]) -> list[str]:
    """Bindings of each that its settings do not mean, and not all have."""
    sets = [
        set(record.get("bindings") or []) - set(bindings(record["settings"]))
        for record in records
    ]
    common = set.intersection(*sets)
    return ["; ".join(sorted(each - common)) or "none" for each in sets]


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a run is and found, accuracy in % and costs in millions.

    The factors are products of all strides, at the start and at the end.
    """
    summary = record["summary"]
    hardened = summary.get("hardened") or {}
    layers = _source(summary).get("pooling") or []
    rows = record.get("epochs") or []
    learned = [layer for layer in layers if layer["learned"]]
    cost = {**(rows[-1] if rows else {}), **(summary.get("cost") or {})}
    return {
        "name": record["name"],
        "method": _method(record),
        "seed": str(record["settings"].get("seed", summary.get("seed"))),
        "accuracy": 100 * summary["test_accuracy"],
        "validation": 100 * summary.get("validation_accuracy", math.nan),
        "macs": cost.get("macs", math.nan) / 1e6,
        "memory": cost.get("activation_bytes", math.nan) / 1e6,
        "training_macs": training_macs(record) or math.nan,
        "stride_cost": cost.get("stride_cost", math.nan),
        "initial_factor": _product(layers, "initial"),
        "factor": _product(layers, "strides"),
        "layers": layers,
        "learned": learned,
        "axis_names": tuple(summary.get("axes") or IMAGE_AXES),
        "steps": summary.get("steps"),
        **_hardened(hardened),
        "tasks": _tasks(record),
        "moved": any(each["strides"] != each["initial"] for each in learned),
        "rows": rows,
    }


def _source(summary: dict[str, Any]) -> dict[str, Any]:
    """What has the poolings of a run: what a plain network was made of."""
    hardened = summary.get("hardened") or {}
    return hardened.get("learned") or summary


def _hardened(change: dict[str, Any]) -> dict[str, Any]:
    """What hardening made of a network that had learned, before training."""
    learned = change.get("learned") or {}
    plain = change.get("before_finetuning") or {}
    return {
        "hardened": change.get("to"),
        "learned_accuracy": 100 * learned.get("test_accuracy", math.nan),
        "learned_macs": learned.get("cost", {}).get("macs", math.nan) / 1e6,
        "hardened_accuracy": 100 * plain.get("test_accuracy", math.nan),
        "hardened_strides": [
            layer["strides"] for layer in change.get("pooling", ())
        ],
    }


def _tasks(record: dict[str, Any]) -> dict[str, float]:
    """Accuracy in each task by its name, if tasks have names."""
    summary = record["summary"]
    named = record["settings"].get(TASK)
    found = summary.get("tasks") or ({named: summary} if named else {})
    return {task: 100 * own["test_accuracy"] for task, own in found.items()}


def _enter_budgets(runs: pd.DataFrame) -> None:
    """Gives methods without a budget the largest that their runs spend."""
    budgets = sorted(runs[BUDGET].dropna().unique())
    knowing = set(runs.loc[runs[BUDGET].notna(), "method"])
    for i, run in runs[~runs["method"].isin(knowing)].iterrows():
        for budget in budgets:
            if SPENT[0] <= run["macs"] * 1e6 / budget <= SPENT[1]:
                runs.at[i, BUDGET] = budget


def _product(layers: list[dict[str, Any]], key: str) -> float:
    products = [math.prod(layer[key]) for layer in layers]
    return math.prod(products) if layers else math.nan


def _method(record: dict[str, Any]) -> str:
    """The method of a run, guessed if it was started by hand."""
    if record["settings"].get("method"):
        return record["settings"]["method"]
    layers = _source(record["summary"]).get("pooling")
    if not layers:
        return "run" if layers is None else "strided"
    kinds = {layer.get("kind") for layer in layers}
    for method, kind in RIVALS.items():
        if kinds == {kind}:
            learns = any(layer["learned"] for layer in layers)
            fixed = method in LEARNED and not learns
            return f"{method}, fixed" if fixed else method
    for layer in layers:
        if layer["learned"]:
            return layer.get("ramp") or "learned"
    if layers[0].get("ramp"):
        return f"{layers[0]['ramp']}, fixed"
    spatial = "Spatial" in (layers[0].get("kind") or "")
    return "average" if spatial else "spectral"


def _axes(runs: pd.DataFrame, settings: list[str]) -> list[str]:
    """Settings that have two values, or none in some runs of a method."""
    axes = []
    for name in settings:
        known = runs[name].notna().groupby(runs["method"])
        partly = (known.nunique() > 1).any()
        if name != STRIDES and (runs[name].nunique() > 1 or partly):
            axes.append(name)
    return [*axes, STRIDES]


def _cells(runs: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    """The runs in all the rows of the tables in which they stand.

    What a method has no value of, in any run, does not matter to it, as a
    smoothness to strided convolutions: its runs stand in every row of such an
    axis that others have. Strides matter to all, and are those of the others if
    these have but one value.
    """
    free = {
        method: [
            axis
            for axis in axes
            if own[axis].isna().all()
            and (axis != STRIDES or runs[axis].nunique() == 1)
        ]
        for method, own in runs.groupby("method", sort=False)
    }
    runs = runs.assign(place=runs.index)
    cells = pd.DataFrame(columns=axes, dtype=object)
    # Methods that know most of the axes first: the others fit into their rows.
    for method in sorted(free, key=lambda method: len(free[method])):
        known = [axis for axis in axes if axis not in free[method]]
        own = runs[runs["method"] == method].drop(columns=free[method])
        own[known] = own[known].fillna(MISSING)
        if not len(cells):
            own[free[method]] = MISSING
        elif free[method]:
            own = _in_all_places(own, cells[axes], known)
        cells = pd.concat([cells, own]) if len(cells) else own
    for axis in axes:
        values = sorted(cells[axis].unique(), key=lambda v: _order(axis, v))
        cells[axis] = _categorical(cells[axis], values)
    cells["method"] = _categorical(cells["method"], _in_order(cells["method"]))
    return cells.sort_values([*axes, "method", "place"], ignore_index=True)


def _in_all_places(
    runs: pd.DataFrame, places: pd.DataFrame, known: list[str]
) -> pd.DataFrame:
    """Runs of a method, once for each value of what does not matter to it."""
    matched = runs.iloc[:0]
    if known:
        matched = runs.merge(places.drop_duplicates(), on=known)
    alone = runs[~runs["place"].isin(matched["place"])]
    free = places.drop(columns=known).drop_duplicates()
    return pd.concat([matched, alone.merge(free, how="cross")])


def _categorical(column: pd.Series, values: list[Any]) -> pd.Categorical:
    index = pd.Index(values, dtype=object)
    return pd.Categorical(column, index, ordered=True)


def _in_order(methods: Iterable[str]) -> list[str]:
    present = set(methods)
    ours = [method for method in METHODS if method in present]
    return ours + sorted(present - set(METHODS))
