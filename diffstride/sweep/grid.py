"""What a sweep is to run: grids of settings, and the gin bindings they mean.

An axis is one of `settings.AXES`, or a gin parameter by its full name.
"""

import itertools
import json
import math
import pathlib
import re
import tomllib
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from diffstride.errors import UserError
from diffstride.settings import (
    AXES,
    METHODS,
    NETWORK,
    NETWORKS,
    PARAMETERS,
    STRIDES,
    bindings,
    has_effect,
)

Value = str | int | float | bool
Settings = dict[str, Value]


_PARAMETER = re.compile(r"([\w.]+/)*(\w+\.)+\w+")
_EXPECTED = {
    "method": f"one of {', '.join(METHODS)}",
    NETWORK: f"one of {', '.join(NETWORKS)}",
    "seed": "a whole number from 0 to 2**31 - 1",
    STRIDES: "positive numbers or pairs, such as '1,1,2,2' or '4x1,2,2,2'",
}


class Grid(NamedTuple):
    """What is asked for: all combinations within each of the products."""

    products: list[dict[str, list[Value]]]
    gin_config: str | None = None
    bindings: Sequence[str] = ()


class Run(NamedTuple):
    """One run of a sweep; its name, a folder, tells its settings."""

    name: str
    settings: Settings
    bindings: list[str]


def load(texts: Sequence[str], unchecked: Sequence[str] = ()) -> Grid:
    """Reads one TOML file, or axes such as `"seed=0|1"` of one product.

    Values of axes that are `unchecked` are the caller's to check.
    """
    if len(texts) == 1 and texts[0].endswith(".toml"):
        return _load_file(pathlib.Path(texts[0]), unchecked)
    product = {}
    for text in texts:
        axis, equals, values = text.partition("=")
        axis = axis.strip()
        if not equals or axis in product:
            raise UserError(
                "--grid must be one TOML file, or axes such as 'seed=0|1', "
                f"each given once. Received: --grid={text}"
            )
        product[axis] = [_number(value.strip()) for value in values.split("|")]
    return Grid([_checked(product, unchecked)])


def plan(products: Iterable[dict[str, list[Value]]]) -> list[Run]:
    """Lists the runs of a sweep.

    Settings that do not reach the method of a run are taken out, and of runs
    that are then alike one is kept. Seeds vary slowest, so that a sweep that is
    stopped half-way has covered all settings.
    """
    settings: dict[str, Settings] = {}
    for product in products:
        for values in itertools.product(*product.values()):
            each = _effective(dict(zip(product, values, strict=True)))
            settings.setdefault(json.dumps(each), each)
    seeds = list(dict.fromkeys(each.get("seed") for each in settings.values()))
    ordered = sorted(
        settings.values(), key=lambda each: seeds.index(each.get("seed"))
    )
    runs: dict[str, Run] = {}
    for each in ordered:
        run = Run(_name(each), each, bindings(each))
        if run.name in runs:
            raise UserError(
                f"The folder {run.name} would hold two runs, with settings "
                f"{runs[run.name].settings} and {each}. Write them differently"
            )
        runs[run.name] = run
    return list(runs.values())


def _load_file(path: pathlib.Path, unchecked: Sequence[str]) -> Grid:
    try:
        content = tomllib.loads(path.expanduser().read_text())
    except (OSError, ValueError) as error:  # Of TOML, or not UTF-8.
        raise UserError(f"--grid={path} cannot be read: {error}") from error
    gin_config = content.pop("gin_config", None)
    bindings = content.pop("bindings", [])
    tables = content.pop("grid", [])
    if (
        content
        or not isinstance(gin_config, str | None)
        or not _all_of(bindings, str)
        or not _all_of(tables, dict)
        or not tables
    ):
        raise UserError(
            f"{path} must hold `gin_config` (text), `bindings` (list of texts) "
            "and tables [[grid]] of lists, and nothing else"
            + (f". Received: {', '.join(content)}" if content else "")
        )
    products = [_checked(table, unchecked) for table in tables]
    return Grid(products, gin_config, bindings)


def _all_of(items: Any, kind: type) -> bool:
    return isinstance(items, list) and all(isinstance(i, kind) for i in items)


def _checked(
    product: dict[str, Any], unchecked: Sequence[str]
) -> dict[str, list[Value]]:
    """The product, its values in the form that settings have."""
    checked = {}
    for axis, values in product.items():
        if axis not in AXES and not _PARAMETER.fullmatch(axis):
            raise UserError(
                f"An axis of --grid must be one of {', '.join(AXES)}, or a gin "
                "parameter such as keras.optimizers.SGD.learning_rate. "
                f"Received: {axis}"
            )
        if not isinstance(values, list) or not values or "" in values:
            raise UserError(f"The axis {axis} needs a list of values")
        checked[axis] = [_value(axis, value) for value in values]
        for value, given in zip(checked[axis], values, strict=True):
            if axis not in unchecked and not _is_good(axis, value):
                expected = _EXPECTED.get(axis, "finite, or a text")
                raise UserError(
                    f"`{axis}` must be {expected}. Received: {given!r}"
                )
    return checked


def _number(text: str) -> Value:
    """What a text on the command line stands for."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _is_good(axis: str, value: Value) -> bool:
    """Whether an axis may have a value."""
    if axis == "method":
        return value in METHODS
    if axis == NETWORK:
        return value in NETWORKS
    if axis == "seed":
        return type(value) is int and 0 <= value < 2**31
    if axis == STRIDES and value[:1] not in ("@", "%"):
        texts = value.split(",")
        if value[:1] in ("[", "("):
            texts = [text.strip("[]() ") for text in texts]
        numbers = [number for text in texts for number in text.split("x")]
        try:
            return all(0 < float(number) < math.inf for number in numbers)
        except ValueError:
            return False
    if isinstance(value, str):
        return bool(value.strip())
    return math.isfinite(value)


def _value(axis: str, value: Any) -> Value:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if axis == STRIDES:
        items = value if isinstance(value, list) else str(value).split(",")
        return ",".join(str(_value("", item)).strip() for item in items)
    return value if isinstance(value, Value) else str(value)


def _effective(settings: Settings) -> Settings:
    """Settings that reach the method, in an order of their own."""
    first = ("method", *PARAMETERS)
    dotted = sorted(axis for axis in settings if axis not in AXES)
    return {
        axis: settings[axis]
        for axis in (*first, *dotted, "seed")
        if axis in settings and has_effect(settings, axis)
    }


def _name(settings: Settings) -> str:
    # All axes, those with one value too: a grid that grows keeps its folders.
    parts = [
        str(value) if axis == "method" else f"{axis.split('.')[-1]}-{value}"
        for axis, value in settings.items()
    ]
    return "_".join(re.sub(r"[^\w.]+", "-", part).strip("-") for part in parts)
