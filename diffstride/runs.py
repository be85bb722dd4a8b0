"""Runs as records: what a workdir or a results file tells of them."""

import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

from diffstride.errors import DataError

_FILES = ("run.json", "summary.json", "metrics.jsonl")


def read_run(workdir: str | os.PathLike) -> dict[str, Any]:
    """Reads a workdir.

    Args:
        workdir: of a sweep, or of `diffstride.main`.

    Returns:
        A record with `name`, `settings`, `gin_config`, `bindings`, `jobs`,
        `error`, `summary` and `epochs`.
    """
    root = pathlib.Path(workdir)
    record = {
        "name": root.name,
        "settings": {},
        "gin_config": None,
        "bindings": [],
        "jobs": 1,
        "error": None,
    }
    record.update(_json(root / "run.json") or {})
    metrics = root / "metrics.jsonl"
    record["summary"] = _json(root / "summary.json")
    record["epochs"] = _lines(metrics) if metrics.exists() else []
    return record


def read_runs(paths: Iterable[str | os.PathLike]) -> list[dict[str, Any]]:
    """Reads many runs.

    Args:
        paths: each a workdir, a folder of workdirs, or a `.jsonl` of records.

    Returns:
        Records as of `read_run`, those of a folder in the order of their names.

    Raises:
        DataError: if there is no such path, or no run in it.
    """
    records: list[dict[str, Any]] = []
    for path in map(pathlib.Path, paths):
        if not path.exists():
            raise DataError(
                f"There is no {path}; give workdirs or .jsonl files"
            )
        if path.is_file():
            found = _lines(path)
        elif _is_workdir(path):
            found = [read_run(path)]
        else:
            found = [
                read_run(p) for p in sorted(path.iterdir()) if _is_workdir(p)
            ]
        if not found:
            raise DataError(f"{path} holds no runs; give the folder above them")
        records += found
    return records


def _is_workdir(path: pathlib.Path) -> bool:
    return any((path / name).exists() for name in _FILES)


def _json(path: pathlib.Path) -> Any:
    return json.loads(path.read_text()) if path.exists() else None


def _lines(path: pathlib.Path) -> list[dict[str, Any]]:
    # A last line that was cut short is left out.
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]
