"""What a search chooses from: ranges of strides, and values of other axes."""

import dataclasses
import itertools
import math
import re
from collections.abc import Sequence
from typing import Any

from diffstride.errors import UserError
from diffstride.settings import (
    BUDGET,
    LEARNED,
    METHODS,
    STRIDES,
    has_effect,
)
from diffstride.sweep import grid

_RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")

Range = tuple[int, int]  # The smallest and the largest stride.


@dataclasses.dataclass(frozen=True)
class Space:
    """Candidates: a stride for each stage, and a value of each other axis.

    Attributes:
        ranges: of each stage, one range for all axes, or one for each.
        axes: values of the other axes; one with a single value does not vary.
        gin_config: the config that the TOML file names, if one is given.
        bindings: those of the TOML file.
    """

    ranges: tuple[tuple[Range, ...], ...]
    axes: dict[str, list[grid.Value]]
    gin_config: str | None = None
    bindings: Sequence[str] = ()

    @property
    def choices(self) -> dict[str, list[grid.Value]]:
        """What is to be chosen, and from which values."""
        stages = {
            name: list(range(low, high + 1))
            for names, ranges in zip(self._names, self.ranges, strict=True)
            for name, (low, high) in zip(names, ranges, strict=True)
        }
        varied = {axis: v for axis, v in self.axes.items() if len(v) > 1}
        return {**stages, **varied}

    @property
    def _names(self) -> list[list[str]]:
        """What each stage has to choose: `stage_1`, or `stage_1_1`, ..."""
        return [
            [f"stage_{number}"]
            if len(ranges) == 1
            else [f"stage_{number}_{axis}" for axis in (1, 2)]
            for number, ranges in enumerate(self.ranges, 1)
        ]

    @property
    def size(self) -> int:
        """Number of choices."""
        return math.prod(map(len, self.choices.values()))

    def run(self, chosen: dict[str, Any]) -> grid.Run:
        """Returns the run that a choice of each parameter means."""
        strides = [
            "x".join(str(chosen[name]) for name in names)
            for names in self._names
        ]
        settings = {STRIDES: ",".join(strides)} | {
            axis: chosen.get(axis, values[0])
            for axis, values in self.axes.items()
        }
        (run,) = grid.plan([{axis: [v] for axis, v in settings.items()}])
        return run

    def runs(self) -> list[grid.Run]:
        """Lists the runs that all choices mean."""
        names = list(self.choices)
        return [
            self.run(dict(zip(names, values, strict=True)))
            for values in itertools.product(*self.choices.values())
        ]


def load(texts: Sequence[str]) -> Space:
    """Reads one TOML file, or axes such as `"strides=1-2,1-3,1-3"`."""
    try:
        asked = grid.load(texts, unchecked=[STRIDES])
    except UserError as error:
        raise UserError(str(error).replace("--grid", "--space")) from error
    if len(asked.products) > 1:
        raise UserError(
            "The file of a --space must have one table [[grid]]. Received: "
            f"{len(asked.products)}"
        )
    axes = dict(asked.products[0])
    ranges = _ranges(axes.pop(STRIDES, []))
    axes.setdefault("method", ["strided"])
    if wrong := [each for each in axes["method"] if each in LEARNED]:
        fixed = ", ".join(each for each in METHODS if each not in LEARNED)
        raise UserError(
            f"`method` of a search must be one whose strides stay: {fixed}. "
            f"Received: {wrong[0]}"
        )
    for axis, values in axes.items():
        if not any(has_effect({"method": m}, axis) for m in axes["method"]):
            hint = f"; give --{BUDGET}" if axis.endswith(BUDGET) else ""
            raise UserError(
                "An axis of a --space must have an effect on one of its "
                f"methods ({', '.join(axes['method'])}){hint}. Received: "
                f"{axis}={'|'.join(map(str, values))}"
            )
    if len(axes.get("seed", [])) > 1:
        raise UserError(
            "A trial trains once: `seed` must have one value. Received: "
            f"{'|'.join(map(str, axes['seed']))}"
        )
    return Space(ranges, axes, asked.gin_config, asked.bindings)


def _ranges(values: Sequence[Any]) -> tuple[tuple[Range, ...], ...]:
    if len(values) == 1:
        stages = str(values[0]).split(",")
        ranges = tuple(tuple(map(_range, s.split("x"))) for s in stages)
        if all(None not in stage and len(stage) <= 2 for stage in ranges):
            return ranges
    raise UserError(
        "--space needs the axis `strides`: a range of whole numbers from 1 for "
        "each stage, such as 'strides=1-2,1-3,1-3,1-3', or a pair of them, "
        "such as 1-4x1-2. Received: "
        f"{'|'.join(map(str, values)) or 'none'}"
    )


def _range(text: str) -> Range | None:
    if not (found := _RANGE.fullmatch(text)):
        return None
    low, high = int(found[1]), int(found[2] or found[1])
    return (low, high) if 1 <= low <= high else None
