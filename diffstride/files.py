"""Files that are whole at any moment. Imports no framework."""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

from diffstride.errors import UserError

try:
    import fcntl
except ImportError:  # Windows.
    fcntl = None

# What JSON must hold: a type, a list of one shape, or shapes by key. A key that
# ends in ? may be missing or null, and further keys may be there.
Shape = type | list | dict


def read_text(path: pathlib.Path) -> str:
    """Reads a file of text; says in one line why that fails."""
    try:
        return path.read_text()
    except (OSError, ValueError) as error:  # Not UTF-8 is a ValueError.
        raise UserError(
            f"{path} cannot be read: {error}. Move it away, or put it right"
        ) from error


def read_json(path: pathlib.Path, shape: Shape, remedy: str) -> Any:
    """Reads a JSON file; `None` if there is none."""
    if not path.exists():
        return None
    return _parsed(read_text(path), shape, str(path), remedy)


def read_lines(
    path: pathlib.Path, shape: Shape, remedy: str, may_be_cut: bool = False
) -> list[Any]:
    """Reads a JSON-lines file, if there is one, without empty lines.

    A last line without its end is left out if lines `may_be_cut`.
    """
    text = read_text(path) if path.exists() else ""
    # NUL is what power cuts leave.
    lines = [line.strip("\0 \t\r") for line in text.split("\n")]
    return [
        _parsed(line, shape, f"{path}, line {number}", remedy)
        for number, line in enumerate(lines[:-1] if may_be_cut else lines, 1)
        if line
    ]


def read_ours(
    path: pathlib.Path,
    setting: str,
    what: str,
    read: Callable[[pathlib.Path], Any],
) -> Any:
    """Reads a file that is to be replaced, if it is there, and holds `what`.

    `read` raises a `UserError` if it does not; `setting` is what named it.
    """
    if not path.exists():
        return None
    try:
        if not path.is_file():
            raise UserError("it is no file")
        return read(path)
    except UserError as error:
        raise UserError(
            f"{setting} must be a new file, or {what}. Received: {path}, which "
            f"holds something else ({error})"
        ) from error


def make_folder(path: str | os.PathLike, setting: str) -> pathlib.Path:
    """Makes a folder, if it is not there; `setting` is what named it."""
    try:
        if not str(path).strip():
            raise ValueError("no name")
        folder = pathlib.Path(path).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"{setting} must be a folder that can be made. Received: "
            f"{str(path)!r} ({error})"
        ) from error
    return folder


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Makes a failure to write, inside the block, one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror or error}. What was "
            "saved before is kept. Make space or give access, then start the "
            "same command again"
        ) from error


def try_to_lock(descriptor: int) -> bool:
    """Locks a file or folder until the descriptor is closed.

    The system closes it when the process ends, however it does.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # Not all file systems have locks.
        pass
    return True


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Keeps other runs out of a workdir, inside the block."""
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not try_to_lock(descriptor):
            raise UserError(
                f"Another run is at work in {folder}; wait until it ends, or "
                "choose another --workdir"
            )
        yield
    finally:
        os.close(descriptor)


def replace_file(
    path: pathlib.Path, write: Callable[[pathlib.Path], Any]
) -> None:
    """Writes a file beside its place, then puts it there in one step.

    `write` gets a path with the same suffixes. If it fails, what was there
    stays, and nothing is left beside it.
    """
    beside = path.with_name(f"unfinished.{path.name}")
    with writing(path):
        try:
            write(beside)
            with beside.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def replace_text(path: pathlib.Path, text: str) -> None:
    """Writes a file of text in one step, as `replace_file` does."""
    replace_file(path, lambda beside: beside.write_text(text))


def replace_lines(path: pathlib.Path, rows: list[Any]) -> None:
    """Writes a JSON-lines file in one step, as `replace_file` does."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def _parsed(text: str, shape: Shape, place: str, remedy: str) -> Any:
    try:
        value = json.loads(text)
        wrong = _misfit(value, shape)
    except (ValueError, RecursionError):
        wrong = "it must be JSON"
    if wrong:
        start = text[:40] + "..." * (len(text) > 40)
        raise UserError(f"{place}: {wrong}. Received: {start!r}. {remedy}")
    return value


def _misfit(value: Any, shape: Shape, name: str = "") -> str | None:
    """Says what in a value is not of its shape."""
    kind = shape if isinstance(shape, type) else type(shape)
    good = type(value) is kind
    if kind is float:  # Any number that is finite.
        good = type(value) in (int, float) and abs(value) < 1e300
    if not good:
        return f"{name or 'it'} must be {kind.__name__}"
    parts = []
    if isinstance(shape, list):
        parts = [(f"{name}[{i}]", v, shape[0]) for i, v in enumerate(value)]
    elif isinstance(shape, dict):
        for key, each in shape.items():
            part = value.get(key.removesuffix("?"))
            if part is not None or not key.endswith("?"):
                path = f"{name}.{key.removesuffix('?')}".strip(".")
                parts.append((path, part, each))
    found = (_misfit(part, each, path) for path, part, each in parts)
    return next(filter(None, found), None)
