"""Runs as records, out of workdirs or JSON lines. Imports no framework.

A record holds `name`, `settings` (what a sweep varied: axis -> text or number),
`gin_config`, `bindings`, `jobs` (runs at once), `error` (text, if it failed),
`summary` (of `summary.json`, or `None`) and `epochs` (rows of `metrics.jsonl`).
"""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from diffstride.errors import UserError
from diffstride.files import read_rows

_PARTS = ("run.json", "summary.json", "metrics.jsonl")


def read_run(workdir: str | os.PathLike) -> dict[str, Any]:
    """Packs a workdir, finished or not, into a record."""
    root = pathlib.Path(workdir)
    return {
        "name": root.resolve().name,
        "settings": {},
        "gin_config": None,
        "bindings": [],
        "jobs": None,
        "error": None,
        **(read_json(root / "run.json") or {}),
        "summary": read_json(root / "summary.json"),
        "epochs": read_rows(root / "metrics.jsonl"),
    }


def read_runs(paths: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Reads workdirs, folders of workdirs, and `.jsonl` files of records."""
    return [record for path in paths for record in _read(pathlib.Path(path))]


def read_json(path: pathlib.Path) -> dict[str, Any] | None:
    """Reads a JSON file; `None` if there is none."""
    return json.loads(path.read_text()) if path.exists() else None


def _read(path: pathlib.Path) -> list[dict[str, Any]]:
    if path.is_file():
        records = _read_lines(path)
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


def _read_lines(path: pathlib.Path) -> list[dict[str, Any]]:
    try:
        records = read_rows(path)
    except ValueError:
        return []
    return records if all("settings" in each for each in records) else []


def _is_workdir(path: pathlib.Path) -> bool:
    return any((path / part).exists() for part in _PARTS)
