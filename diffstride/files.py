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


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a JSON-lines file, without a last line that was cut short."""
    path = pathlib.Path(path)
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


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
