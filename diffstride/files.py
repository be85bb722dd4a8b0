"""Files that are whole at any moment. Imports no framework."""

import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

from diffstride.errors import UserError


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a JSON-lines file, without a last line that was cut short."""
    path = pathlib.Path(path)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def make_folder(path: str | os.PathLike, setting: str) -> pathlib.Path:
    """Makes a folder, if it is not there; `setting` is what named it."""
    folder = pathlib.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{setting} must be a folder that can be made. Received: {path} "
            f"({error})"
        ) from error
    return folder


def replace_file(
    path: pathlib.Path, write: Callable[[pathlib.Path], Any]
) -> None:
    """Writes a file beside its place, then puts it there in one step.

    `write` gets a path with the same suffixes.
    """
    beside = path.with_name(f"unfinished.{path.name}")
    write(beside)
    with beside.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(beside, path)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of text in one step, as `replace_file` does."""
    replace_file(path, lambda beside: beside.write_text(text))
