"""Runs as records, out of workdirs or JSON lines. Imports no framework.

A record holds `name`, `settings` (what a sweep varied: axis -> text or number),
`gin_config`, `bindings`, `jobs` (runs at once), `error` (text, if it failed),
`summary` (of `summary.json`, or `None`) and `epochs` (rows of `metrics.jsonl`).
"""

import math
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from diffstride.errors import UserError
from diffstride.files import read_json, read_lines

_COST = {"macs?": float, "activation_bytes?": float, "stride_cost?": float}
_ROW = {"epoch": int, "seconds?": float, **_COST}
_PAIRS = ("initial", "strides", "input_size", "output_size")
_LAYER = {
    **{"name": str, "learned": bool, **dict.fromkeys(_PAIRS, [float])},
    **{"kind?": str, "ramp?": str, "smoothness_factor?": float},
    "expected?": [[float]],
}
_TRIAL = {"strides": [[float]], "macs": float, "epochs": int}
_SUMMARY = {
    **{"test_accuracy": float, "seconds": float, "epochs?": float},
    **{"validation_accuracy?": float, "images_per_epoch?": float},
    "cost?": _COST,
    "tasks?": {},
    "environment?": {"devices?": [str]},
    **{"axes?": [str], "steps?": [float]},
    "pooling?": [_LAYER],
    "hardened?": {"trials?": [_TRIAL], "pooling?": [{"strides": [float]}]},
}
_RUN = {
    **{"name": str, "settings": {"method?": str}, "gin_config?": str},
    **{"bindings?": [str], "jobs?": float, "error?": str},
}
_RECORD = {**_RUN, "summary?": _SUMMARY, "epochs?": [_ROW]}
_PARTS = ("run.json", "summary.json", "metrics.jsonl")
# Of a training step: a backward pass multiplies twice, for inputs and weights.
PASSES = 3


def read_run(workdir: str | os.PathLike) -> dict[str, Any]:
    """Packs a workdir, finished or not, into a record."""
    root = pathlib.Path(workdir)
    remedy = "The command that made this run writes it anew; or remove it"
    run = read_json(root / "run.json", _RUN, remedy)
    return {
        "name": root.resolve().name,
        "settings": {},
        "gin_config": None,
        "bindings": [],
        "jobs": None,
        "error": None,
        **(run or {}),
        "summary": read_json(root / "summary.json", _SUMMARY, remedy),
        "epochs": read_rows(root / "metrics.jsonl"),
    }


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a `metrics.jsonl`, without a last line that was cut short."""
    remedy = "Delete this line, which is lost, and start the same command again"
    return read_lines(pathlib.Path(path), _ROW, remedy, may_be_cut=True)


def read_records(path: pathlib.Path) -> list[dict[str, Any]]:
    """Reads a `.jsonl` file of records."""
    remedy = (
        "If this file is of a sweep, delete the line, or let the sweep write "
        "its --output anew"
    )
    return read_lines(path, _RECORD, remedy)


def read_runs(paths: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Reads workdirs, folders of workdirs, and `.jsonl` files of records."""
    return [record for path in paths for record in _read(pathlib.Path(path))]


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if path.is_file():
        records = read_records(path)
    elif _is_workdir(path):
        records = [read_run(path)]
    else:
        records = [
            read_run(p) for p in sorted(path.glob("*")) if _is_workdir(p)
        ]
    if not records:
        raise UserError(
            "Expected the workdir of a run, a folder of workdirs, or a .jsonl "
            f"file that `diffstride.sweep` wrote. Received: {path}"
        )
    return records


def _is_workdir(path: pathlib.Path) -> bool:
    return any((path / part).exists() for part in _PARTS)


def training_macs(
    record: dict[str, Any], images: int | None = None
) -> float | None:
    """Counts the multiply-accumulates that training spent, of any run.

    Strides that are learned move: each epoch counts at the multiply-accumulates
    of its end. Short trainings by which integer strides were chosen count, too.
    `images` are those of an epoch, where the record does not tell.
    """
    summary = record.get("summary") or {}
    images = summary.get("images_per_epoch") or images
    macs = [row.get("macs") for row in record.get("epochs") or []]
    for trial in (summary.get("hardened") or {}).get("trials") or ():
        macs += [trial["macs"]] * trial["epochs"]
    if not images or not macs or None in macs:
        return None
    return PASSES * images * sum(macs)


def expected_of_best(ranked: Sequence[float], count: int) -> float:
    """Returns what the best of `count` runs has, on average over all choices.

    Args:
        ranked: what the runs have, in the order that the best is chosen by.
        count: how many are chosen from, at most all.
    """
    last = len(ranked) - 1
    # Of all choices of so many, the share of those that this one is best of.
    return sum(
        math.comb(last - rank, count - 1) / math.comb(last + 1, count) * value
        for rank, value in enumerate(ranked)
    )
