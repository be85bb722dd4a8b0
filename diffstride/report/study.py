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
from diffstride.settings import LAMBDA, METHODS, STRIDES, bindings

__all__ = ["LAMBDA", "MISSING", "STRIDES", "Shown", "Study", "study"]

MISSING = "-"
_ALL = ""  # The axis of runs of which no setting is known.


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report.

    Attributes:
        records: all records, each once.
        failed: records of those that ended in an error.
        unfinished: records of those that have not ended.
        runs: a row for each run that ended well: `name`, `method`, `seed`,
            `accuracy` in %, `macs` in millions and `memory` in MB of an image
            (or NaN), `layers` in depth order as in `summary.json`, `learned`
            (those with learned strides), `moved` (whether any of these is no
            longer where it began), `rows` of `metrics.jsonl`, and the settings.
        settings: columns of `runs` that are settings.
        axes: settings that vary, that of the strides last.
        cells: `runs`, sorted by axes and methods, with a value of each axis. A
            run stands in as many rows as it has places in the tables.
    """

    records: list[dict[str, Any]]
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

    def others(self, *axes: str) -> list[str]:
        """The axes but for those given."""
        return [axis for axis in self.axes if axis not in axes]

    def text(self, values: tuple, *without: str) -> str:
        """Names values of the axes, but for those that they are without."""
        return ", ".join(
            f"{axis_label(axis)} {value}"
            for axis, value in zip(self.others(*without), values, strict=True)
            if value != MISSING and axis != _ALL
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
    """Sorts records into a `Study`.

    Args:
        records: as of `diffstride.runs.read_runs`. What is given twice counts
            once.

    Returns:
        The study; it may lack runs that ended well.
    """
    distinct: list[dict[str, Any]] = []
    for record in records:
        if record not in distinct:
            distinct.append(record)
    failed = [record for record in distinct if record.get("error")]
    others = [record for record in distinct if not record.get("error")]
    ended = [record for record in others if record.get("summary")]
    settings, facts = _settings(ended), list(map(_facts, ended))
    runs = pd.DataFrame(facts, dtype=object).join(settings)
    if ended:
        columns = ["accuracy", "macs", "memory"]
        runs = runs.astype(dict.fromkeys(columns, float))
    axes = _axes(runs, list(settings)) if ended else []
    if ended and not axes:
        runs[_ALL] = "all runs"
        axes = [_ALL]
    return Study(
        distinct,
        failed,
        [record for record in others if not record.get("summary")],
        runs,
        list(settings),
        axes,
        _cells(runs, axes) if ended else runs,
    )


def method_label(method: str) -> str:
    """How a method is called in tables and figures."""
    return method.replace("_", "-")


def axis_label(axis: str) -> str:
    """How a setting is called in tables and figures."""
    return "initial strides" if axis == STRIDES else axis.replace("_", " ")


def grouped(
    frame: pd.DataFrame, columns: list[str]
) -> Iterator[tuple[tuple, pd.DataFrame]]:
    """Splits a frame by columns, in the order of rows.

    Args:
        frame: the frame.
        columns: the columns; if there are none, all rows belong together.

    Yields:
        Values of the columns, and the rows with these.
    """
    if not columns:
        yield (), frame
    elif len(frame):
        yield from frame.groupby(columns, sort=False, observed=True)


def pooled_deviation(accuracies: Iterable[pd.Series]) -> float:
    """The standard deviation within groups that have means of their own.

    Args:
        accuracies: values of each group.

    Returns:
        Root of (sum of squares about the groups' means / degrees of freedom),
        or NaN if no group has two values.
    """
    frame = pd.DataFrame(
        [(each.var(), len(each) - 1) for each in accuracies],
        columns=["variance", "freedom"],
    )
    squares = (frame["variance"] * frame["freedom"]).sum()
    freedom = frame["freedom"].sum()
    return math.sqrt(squares / freedom) if freedom else math.nan


def shown(study: Study, name: str | None = None) -> Shown:
    """Chooses what the figures of learned strides show.

    Args:
        study: the runs.
        name: of the run that is shown by itself. By default it is the first of
            those shown together, of those whose strides have moved if any have.

    Returns:
        The group of the named run, or else that with the most starts, then the
        most runs whose strides have moved, then the first. It is empty if no
        run has learned strides.

    Raises:
        UserError: if there is no such run, or its strides were not learned.
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
    groups = list(grouped(learned, others))
    if not len(learned):
        return Shown(None, learned, "")

    def interest(group: tuple[tuple, pd.DataFrame]) -> tuple:
        frame = group[1]
        starts = frame[STRIDES].nunique() if STRIDES in frame else 1
        return name in set(frame["name"]), starts, frame["moved"].sum()

    values, runs = max(groups, key=interest)
    candidates = runs[runs["name"] == name]
    if name is None:
        candidates = runs[runs["moved"].astype(bool)]
    single = (candidates if len(candidates) else runs).iloc[0]
    what = study.text(values, STRIDES) if len(groups) > 1 else ""
    return Shown(single, runs, what)


def run_label(run: Any) -> str:
    """A short name, which fits over a figure."""
    return f"{method_label(run.method)} from {run[STRIDES]}, seed {run.seed}"


def global_factor(layers: Iterable[dict[str, Any]], key: str) -> float:
    """How much smaller the last map nominally is than the image.

    Args:
        layers: pooling layers of a run.
        key: `"initial"` or `"strides"`.

    Returns:
        Product of the strides of all layers and axes.
    """
    return math.prod(math.prod(layer[key]) for layer in layers)


def short_names(names: list[str]) -> list[str]:
    """Names of layers without what all of a network's share.

    Args:
        names: paths, such as `block_2/layer_1/pooling`.

    Returns:
        Short names, such as `block 2`, or `names` if these would not differ.
    """
    short = [
        name.removesuffix("/layer_1/pooling").replace("_", " ")
        for name in names
    ]
    short = ["stem" if name == "pooling" else name for name in short]
    return short if len(set(short)) == len(names) else list(names)


def order(axis: str, value: Any) -> tuple:
    """A key that sorts the values of an axis: mild strides first."""
    if value == MISSING:
        return (2, 0.0, "")
    if axis == STRIDES:
        numbers = str(value).replace("x", ",").split(",")
        try:
            return (0, math.prod(map(float, numbers)), str(value))
        except ValueError:
            return (1, 0.0, str(value))
    if isinstance(value, (int, float)):
        return (0, float(value), "")
    return (1, 0.0, str(value))


def _settings(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row of settings for each record, method and seed left out."""
    rows = []
    for record in records:
        layers = record["summary"].get("pooling") or []
        row = {}
        for key, value in record["settings"].items():
            key = STRIDES if key.endswith(f".{STRIDES}") else key
            row[key] = _plain(key, value)
        if STRIDES not in row and layers:
            row[STRIDES] = ",".join(
                "x".join(f"{s:g}" for s in dict.fromkeys(layer["initial"]))
                for layer in layers
            )
        rows.append(row)
    frame = pd.DataFrame(rows, dtype=object)
    frame = frame.drop(columns=["method", "seed"], errors="ignore")
    # Where nothing else tells runs apart, what a sweep does not vary does.
    methods = pd.Series([_method(record) for record in records], dtype=object)
    for key, values in (
        ("config", [record.get("gin_config") for record in records]),
        ("epochs", [record["summary"].get("epochs") for record in records]),
        ("bindings", _distinct_bindings(records)),
    ):
        column = pd.Series(values, dtype=object)
        same = [frame[name] for name in frame]
        groups = column.groupby([methods, *same], dropna=False)
        if len(column) and (groups.nunique(dropna=False) > 1).any():
            frame[key] = column.where(column.notna(), None)
    return frame


def _plain(key: str, value: Any) -> Any:
    """A value that can be compared, hashed and shown."""
    if isinstance(value, (list, tuple)):
        value = ",".join(str(part) for part in value)
    if key == STRIDES:
        return "".join(str(value).strip("[]()").split())
    return "none" if value is None else value


def _distinct_bindings(records: list[dict[str, Any]]) -> list[str]:
    """Bindings of each that its settings do not mean, and not all have."""
    sets = [
        set(record.get("bindings") or []) - set(bindings(record["settings"]))
        for record in records
    ]
    common = set.intersection(*sets) if sets else set()
    return ["; ".join(sorted(each - common)) or "none" for each in sets]


def _facts(record: dict[str, Any]) -> dict[str, Any]:
    """What a run is and found, as in `Study.runs`."""
    summary = record["summary"]
    layers = summary.get("pooling") or []
    rows = record.get("epochs") or []
    learned = [layer for layer in layers if layer["learned"]]
    cost = {**(rows[-1] if rows else {}), **(summary.get("cost") or {})}
    return {
        "name": record["name"],
        "method": _method(record),
        "seed": record["settings"].get("seed", summary.get("seed")),
        "accuracy": 100 * summary["test_accuracy"],
        "macs": cost.get("macs", math.nan) / 1e6,
        "memory": cost.get("activation_bytes", math.nan) / 1e6,
        "layers": layers,
        "learned": learned,
        "moved": any(each["strides"] != each["initial"] for each in learned),
        "rows": rows,
    }


def _method(record: dict[str, Any]) -> str:
    """The method of a run, guessed if it was started by hand."""
    if record["settings"].get("method"):
        return record["settings"]["method"]
    layers = record["summary"].get("pooling")
    if layers is None:
        return "run"
    if not layers:
        return "strided"
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
    return axes + [STRIDES] * (STRIDES in settings)


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
            if frame[axis].isna().all()
            and (axis != STRIDES or runs[axis].nunique() == 1)
        ]
        for method, frame in runs.groupby("method", sort=False)
    }
    places = pd.DataFrame(columns=axes, dtype=object)
    parts = []
    # Methods that know most of the axes first: the others fit into their rows.
    for method in sorted(free, key=lambda method: len(free[method])):
        known = [axis for axis in axes if axis not in free[method]]
        own = runs[runs["method"] == method].drop(columns=free[method])
        own[known] = own[known].fillna(MISSING)
        if not len(places):
            own[free[method]] = MISSING
        elif free[method]:
            own = _in_all_places(own, places, known, free[method])
        parts.append(own)
        places = pd.concat([places, own[axes]]).drop_duplicates()
    cells = pd.concat(parts)
    for axis in axes:
        values = sorted(cells[axis].unique(), key=lambda v: order(axis, v))
        cells[axis] = pd.Categorical(
            cells[axis], pd.Index(values, dtype=object), ordered=True
        )
    methods = pd.Index(_in_order(cells["method"]), dtype=object)
    cells["method"] = pd.Categorical(cells["method"], methods, ordered=True)
    cells["place"] = cells.index
    return cells.sort_values([*axes, "method", "place"], ignore_index=True)


def _in_all_places(
    runs: pd.DataFrame, places: pd.DataFrame, known: list[str], free: list[str]
) -> pd.DataFrame:
    """Runs of a method, once for each value of what does not matter to it."""
    index = runs.index.name or "index"
    runs = runs.reset_index()
    if not known:
        matched = runs.merge(places[free].drop_duplicates(), how="cross")
        return matched.set_index(index)
    matched = runs.merge(places, on=known)
    alone = runs[~runs[index].isin(matched[index])]
    spread = alone.merge(places[free].drop_duplicates(), how="cross")
    return pd.concat([matched, spread]).set_index(index)


def _in_order(methods: Iterable[str]) -> list[str]:
    present = set(methods)
    ours = [method for method in METHODS if method in present]
    return ours + sorted(present - set(METHODS))
