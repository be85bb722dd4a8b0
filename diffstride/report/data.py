"""What a report is about: runs, what varies among them, what belongs together.

A run has a method (how it downsamples), a seed, and settings. Settings that
differ among the runs are the axes; one value an axis makes a row, and the runs
of a row and a method, which differ by their seeds alone, a cell.
"""

import dataclasses
import math
import statistics
from collections.abc import Iterable
from typing import Any, NamedTuple

from diffstride.sweep.grid import METHODS, bindings

from diffstride.errors import UserError

MISSING = "-"
STRIDES = "strides"
LAMBDA = "lambda"

Row = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that has ended well.

    Attributes:
        name: its name.
        method: one of `METHODS`, or another word.
        seed: its seed.
        setting: all other settings that are known.
        accuracy: test accuracy in %.
        macs: multiply-accumulates for an image, in millions, or `None`.
        memory: memory of the activations of an image, in MB, or `None`.
        layers: the pooling layers in depth order, as in `summary.json`.
        epochs: the rows of `metrics.jsonl`.
    """

    name: str
    method: str
    seed: int | None
    setting: dict[str, Any]
    accuracy: float
    macs: float | None
    memory: float | None
    layers: list[dict[str, Any]]
    epochs: list[dict[str, Any]]

    @property
    def label(self) -> str:
        """A short name, which fits over a figure."""
        start = self.setting.get(STRIDES)
        return f"{method_label(self.method)} from {start}, seed {self.seed}"

    @property
    def learned(self) -> list[dict[str, Any]]:
        """The layers whose strides were learned."""
        return [layer for layer in self.layers if layer["learned"]]

    @property
    def moved(self) -> bool:
        """Whether any of its strides is no longer where it began."""
        return any(each["strides"] != each["initial"] for each in self.learned)


@dataclasses.dataclass(frozen=True)
class Study:
    """All runs of a report.

    Attributes:
        records: all records, each once.
        runs: those that ended well.
        failed: records of those that ended in an error.
        unfinished: records of those that have not ended.
        methods: methods in the order of columns.
        axes: settings that vary, that of the strides last.
        rows: values of the axes, in order.
        cells: runs by (method, row).
    """

    records: list[dict[str, Any]]
    runs: list[Run]
    failed: list[dict[str, Any]]
    unfinished: list[dict[str, Any]]
    methods: list[str]
    axes: list[str]
    rows: list[Row]
    cells: dict[tuple[str, Row], list[Run]]

    def cell(self, method: str, row: Row) -> list[Run]:
        """The runs of a cell, which may be none."""
        return self.cells.get((method, row), [])

    def groups(self) -> list[list[Run]]:
        """The cells, each once: some stand in several rows."""
        return list(
            {tuple(map(id, c)): c for c in self.cells.values()}.values()
        )

    def context(self, row: Row, *axes: str) -> Row:
        """A row without the given axes."""
        pairs = zip(self.axes, row, strict=True)
        return tuple(value for axis, value in pairs if axis not in axes)

    def text(self, context: Row, *axes: str) -> str:
        """Names the values of a context, made without the given axes."""
        names = [axis for axis in self.axes if axis not in axes]
        return ", ".join(
            f"{axis_label(axis)} {value}"
            for axis, value in zip(names, context, strict=True)
            if value != MISSING
        )

    def starts(self) -> dict[Row, list[Row]]:
        """Rows that differ in their initial strides alone, by the rest."""
        rows: dict[Row, list[Row]] = {}
        for row in self.rows:
            rows.setdefault(self.context(row, STRIDES), []).append(row)
        return rows

    def value(self, row: Row, axis: str) -> Any:
        """The value of one axis in a row."""
        return row[self.axes.index(axis)] if axis in self.axes else MISSING

    def given(self, axis: str) -> list[str]:
        """The methods that have a value of an axis in any run."""
        having = {run.method for run in self.runs if axis in run.setting}
        return [method for method in self.methods if method in having]


class Shown(NamedTuple):
    """What the figures of learned strides show.

    Attributes:
        single: the run that is shown by itself, or `None`.
        groups: by method, runs that differ in strides and seeds alone.
        what: their other settings, if other runs have others.
    """

    single: Run | None
    groups: dict[str, list[Run]]
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
    runs = _told_apart([(record, _run(record)) for record in ended])
    present = dict.fromkeys(run.method for run in runs)
    methods = [method for method in METHODS if method in present]
    methods += sorted(set(present) - set(METHODS))
    axes = _axes(runs, methods)
    rows = _rows(runs, axes)
    cells: dict[tuple[str, Row], list[Run]] = {}
    for row in rows:
        for run in runs:
            if _belongs(_values(run, axes), row, _unknown(runs, run, axes)):
                cells.setdefault((run.method, row), []).append(run)
    return Study(
        distinct,
        runs,
        failed,
        [record for record in others if not record.get("summary")],
        methods,
        axes,
        rows,
        cells,
    )


def method_label(method: str) -> str:
    """How a method is called in tables and figures."""
    return method.replace("_", "-")


def axis_label(axis: str) -> str:
    """How a setting is called in tables and figures."""
    return "initial strides" if axis == STRIDES else axis.replace("_", " ")


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
    groups = {
        context: [
            run
            for method in study.methods
            for row in rows
            for run in study.cell(method, row)
            if run.learned
        ]
        for context, rows in study.starts().items()
    }
    groups = {context: runs for context, runs in groups.items() if runs}
    if name is not None:
        context, single = _named(groups, name)
    elif groups:
        context = max(
            groups,
            key=lambda c: (
                len(_known(groups[c], STRIDES)),
                sum(run.moved for run in groups[c]),
            ),
        )
        moved = [run for run in groups[context] if run.moved]
        (single, *_) = moved or groups[context]
    else:
        return Shown(None, {}, "")
    methods: dict[str, list[Run]] = {}
    for run in groups[context]:
        methods.setdefault(run.method, []).append(run)
    what = study.text(context, STRIDES) if len(groups) > 1 else ""
    return Shown(single, methods, what)


def mean(values: Iterable[float | None]) -> float | None:
    """The mean, or `None` where a value is missing or there is none."""
    values = list(values)
    if not values or None in values:
        return None
    return statistics.fmean(values)


def deviation(values: Iterable[float]) -> float | None:
    """The sample standard deviation, or `None` for less than two values."""
    values = list(values)
    return statistics.stdev(values) if len(values) > 1 else None


def pooled_deviation(groups: Iterable[list[float]]) -> float | None:
    """The standard deviation within groups that have means of their own.

    Args:
        groups: values of each group.

    Returns:
        Root of (sum of squares about the groups' means / degrees of freedom),
        or `None` if no group has two values.
    """
    squares, freedom = 0.0, 0
    for values in groups:
        if len(values) > 1:
            squares += statistics.variance(values) * (len(values) - 1)
            freedom += len(values) - 1
    return math.sqrt(squares / freedom) if freedom else None


def epoch_seconds(runs: Iterable[Run]) -> float | None:
    """The median duration of an epoch, or `None` if none is known."""
    seconds = [
        row["seconds"] for run in runs for row in run.epochs if "seconds" in row
    ]
    return statistics.median(seconds) if seconds else None


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


def _named(groups: dict[Row, list[Run]], name: str) -> tuple[Row, Run]:
    for context, runs in groups.items():
        for run in runs:
            if run.name == name:
                return context, run
    names = list(
        dict.fromkeys(r.name for runs in groups.values() for r in runs)
    )
    known = ", ".join(names[:4]) or "none"
    more = ", ..." if len(names) > 4 else ""
    raise UserError(
        "--trajectory must be the name of a run with learned strides. "
        f"Received: {name}. There are: {known}{more}"
    )


def _run(record: dict[str, Any]) -> Run:
    summary = record["summary"]
    layers = summary.get("pooling") or []
    epochs = record.get("epochs") or []
    setting = {}
    for key, value in record["settings"].items():
        key = STRIDES if key.endswith(f".{STRIDES}") else key
        setting[key] = _plain(key, value)
    method = setting.pop("method", None) or _guess_method(summary)
    if STRIDES not in setting and layers:
        pairs = [layer["initial"] for layer in layers]
        setting[STRIDES] = ",".join(
            "x".join(f"{s:g}" for s in dict.fromkeys(pair)) for pair in pairs
        )
    last = epochs[-1] if epochs else {}
    cost = {**last, **(summary.get("cost") or {})}
    return Run(
        name=record["name"],
        method=method,
        seed=setting.pop("seed", summary.get("seed")),
        setting=setting,
        accuracy=100 * summary["test_accuracy"],
        macs=_millions(cost.get("macs")),
        memory=_millions(cost.get("activation_bytes")),
        layers=layers,
        epochs=epochs,
    )


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6


def _plain(key: str, value: Any) -> Any:
    """A value that can be compared, hashed and shown."""
    if isinstance(value, (list, tuple)):
        value = ",".join(str(part) for part in value)
    if key == STRIDES:
        return "".join(str(value).strip("[]()").split())
    return "none" if value is None else value


def _guess_method(summary: dict[str, Any]) -> str:
    """The method of a run that was started by hand."""
    layers = summary.get("pooling")
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


def _told_apart(pairs: list[tuple[dict[str, Any], Run]]) -> list[Run]:
    """Adds config, epochs, bindings where nothing else tells runs apart."""
    for key, values in (
        ("config", [record.get("gin_config") for record, _ in pairs]),
        ("epochs", [record["summary"].get("epochs") for record, _ in pairs]),
        ("bindings", _distinct_bindings([record for record, _ in pairs])),
    ):
        seen: dict[tuple, Any] = {}
        runs = [run for _, run in pairs]
        for run, value in zip(runs, values, strict=True):
            setting = tuple(sorted(run.setting.items(), key=lambda i: i[0]))
            if seen.setdefault((run.method, setting), value) != value:
                break
        else:
            continue
        for run, value in zip(runs, values, strict=True):
            if value is not None:
                run.setting.setdefault(key, value)
    return [run for _, run in pairs]


def _distinct_bindings(records: list[dict[str, Any]]) -> list[str]:
    """Bindings of each that its settings do not mean, and not all have."""
    sets = [
        set(record.get("bindings") or []) - set(bindings(record["settings"]))
        for record in records
    ]
    common = set.intersection(*sets) if sets else set()
    return ["; ".join(sorted(each - common)) or "none" for each in sets]


def _axes(runs: list[Run], methods: list[str]) -> list[str]:
    axes = []
    for name in dict.fromkeys(key for run in runs for key in run.setting):
        values = _known(runs, name)
        partly = any(
            len({name in run.setting for run in runs if run.method == method})
            > 1
            for method in methods
        )
        if name != STRIDES and (len(values) > 1 or partly):
            axes.append(name)
    if any(STRIDES in run.setting for run in runs):
        axes.append(STRIDES)
    return axes


def _values(run: Run, axes: list[str]) -> Row:
    return tuple(run.setting.get(axis, MISSING) for axis in axes)


def _unknown(runs: list[Run], run: Run, axes: list[str]) -> tuple[bool, ...]:
    """Which axes a run's method has no value of, in any run.

    They do not matter to it, as a smoothness to strided convolutions: its runs
    stand in every row of such an axis. Strides matter to all, and are those of
    the others if these have but one value.
    """
    return tuple(
        (axis != STRIDES or len(_known(runs, axis)) == 1)
        and not _known([r for r in runs if r.method == run.method], axis)
        for axis in axes
    )


def _known(runs: list[Run], axis: str) -> set[Any]:
    return {run.setting[axis] for run in runs if axis in run.setting}


def _belongs(values: Row, row: Row, unknown: tuple[bool, ...]) -> bool:
    return all(
        free or value == wanted
        for value, wanted, free in zip(values, row, unknown, strict=True)
    )


def _rows(runs: list[Run], axes: list[str]) -> list[Row]:
    known = {run.method: _unknown(runs, run, axes) for run in runs}
    rows: dict[Row, None] = {}
    # Methods that know most of the axes first: the others fit into their rows.
    for run in sorted(runs, key=lambda run: sum(known[run.method])):
        values, unknown = _values(run, axes), known[run.method]
        if not any(_belongs(values, row, unknown) for row in rows):
            # Beside each of the others' values of what does not matter to it.
            filled = [
                tuple(
                    other if free else value
                    for value, other, free in zip(
                        values, row, unknown, strict=True
                    )
                )
                for row in rows or [values]
            ]
            rows.update(dict.fromkeys(filled))
    return sorted(rows, key=lambda row: [*map(order, axes, row)])
