"""Processes that end with the one that started them, and what they said."""

import contextlib
import ctypes
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from diffstride.errors import UserError
from diffstride.files import make_folder, try_to_lock

_LOCK_SECONDS = 3.0
_STOP_SECONDS = 20.0
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl.


class Stopped(Exception):
    """A signal, of the number in `args`, asked this process to end."""


class Process:
    """A command under way, with its output in `log`, holding `lock`."""

    def __init__(
        self,
        command: Sequence[str],
        log: pathlib.Path,
        lock: TextIO,
        jobs: int = 1,
    ):
        self._log = log
        with log.open("ab") as file:
            self._log_start = file.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    "PYTHONUNBUFFERED": "1",  # So that the log can be followed.
                    **_share_of_cores(jobs),
                    **os.environ,
                },
                # Control-C is for the parent to deal with.
                process_group=0,
                pass_fds=[lock.fileno()],
                preexec_fn=_die_with_parent(),
            )

    def has_ended(self) -> bool:
        """Tells whether it has ended."""
        return self._process.poll() is not None

    def stop(self) -> None:
        """Asks it to end, and ends it if it does not."""
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()
        self._process.wait()

    def output(self) -> str:
        """Returns what it has written until now."""
        with self._log.open("rb") as file:
            file.seek(self._log_start)
            return file.read().decode(errors="replace")

    def error(self) -> str | None:
        """Returns in one line why it failed, or `None`, once it has ended."""
        status = self._process.returncode
        if status == 0:
            return None
        if status < 0:
            return f"Killed by {signal.Signals(-status).name}"
        lines = [line for line in self.output().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        # What follows an exception's first line says less, as TensorFlow's do.
        raised = [line for line in lines if _EXCEPTION.match(line)]
        last = (errors or raised or lines or [f"Exit status {status}"])[-1]
        return last.removeprefix("error: ").strip()


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[TextIO]:
    """Makes a folder, and keeps others out of it.

    The lock holds until this process and those that were given it have ended.
    """
    with (make_folder(folder, "--workdir") / "sweep.lock").open("a") as lock:
        deadline = time.monotonic() + _LOCK_SECONDS
        while not try_to_lock(lock.fileno()):
            # The children of a process just killed take a moment to die.
            if time.monotonic() > deadline:
                raise UserError(
                    f"Another sweep, or a run it started, is at work in "
                    f"{folder}; wait until it ends, or choose another --workdir"
                )
            time.sleep(0.1)
        yield lock


@contextlib.contextmanager
def noting_signals() -> Iterator[Callable[[], None]]:
    """Notes SIGINT and SIGTERM; what it yields raises `Stopped` after one."""
    noted: list[int] = []

    def note(number: int, frame: Any) -> None:
        noted.append(number)

    def check() -> None:
        if noted:
            raise Stopped(noted[0])

    before = {
        number: signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield check
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _share_of_cores(jobs: int) -> dict[str, str]:
    """Variables that TensorFlow goes by."""
    if jobs == 1:
        return {}
    share = str(max(1, (os.cpu_count() or 1) // jobs))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS")
    return dict.fromkeys((*names, "OMP_NUM_THREADS"), share)


def _die_with_parent() -> Callable[[], None] | None:
    """For a child to call at its start: it dies if its parent is killed.

    Elsewhere than on Linux it lives on, and its lock keeps others out.
    """
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    parent = os.getpid()

    def die_with_parent() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != parent:  # It died before that call.
            os._exit(1)

    return die_with_parent
