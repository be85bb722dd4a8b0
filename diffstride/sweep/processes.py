"""Processes that end with the one that started them, and what they said."""

import contextlib
import ctypes
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO

from diffstride.errors import UserError
from diffstride.files import make_folder, try_to_lock

_LOCK_SECONDS = 3.0
_STOP_SECONDS = 20.0
_EXCEPTION = re.compile(r"[\w.]*(Error|Exception)\b")
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of Linux's prctl.


class Stopped(Exception):
    """A signal, of the number in `args`, asked this process to end."""


class Log:
    """What is written into a file from now on."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._start = path.stat().st_size if path.exists() else 0

    def read(self) -> str:
        """Returns what has been written until now."""
        if not self._path.exists():
            return ""
        with self._path.open("rb") as file:
            file.seek(self._start)
            return file.read().decode(errors="replace")


class Process:
    """A command under way, with its output in `log`, holding `locks`.

    `variables` of its environment take the place of those of this process.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: pathlib.Path,
        *locks: TextIO,
        variables: Mapping[str, str] | None = None,
        cwd: str | None = None,
    ):
        self._log = Log(log)
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={
                    "PYTHONUNBUFFERED": "1",  # So that the log can be followed.
                    **os.environ,
                    **(variables or {}),
                },
                cwd=cwd,
                # Control-C is for the parent to deal with.
                process_group=0,
                pass_fds=[lock.fileno() for lock in locks],
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
        return self._log.read()

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


@dataclasses.dataclass(frozen=True)
class Local:
    """Starts processes on this machine, which `lock` keeps others out of.

    Attributes:
        lock: file that `locked` gave.
        jobs: most processes at once; they share the cores.
    """

    lock: TextIO | None
    jobs: int = 1

    def start(self, command: Sequence[str], log: pathlib.Path) -> Process:
        """Starts a command, unless a worker elsewhere is still at it."""
        share = {}
        if self.jobs > 1:
            share = share_of_cores(os.cpu_count() or 1, self.jobs)
            share = {k: os.environ.get(k, v) for k, v in share.items()}
        with locked(log.parent) as lock:
            return Process(command, log, self.lock, lock, variables=share)

    def wait(self, seconds: float) -> None:
        """Waits for something to happen."""
        time.sleep(seconds)


@contextlib.contextmanager
def locked(
    folder: pathlib.Path,
    seconds: float | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[TextIO]:
    """Makes a folder, and keeps others out of it.

    The lock holds until this process and those that were given it have ended.
    It is on a file that is open for writing, or network file systems would not
    tell other machines. Before it is given up, `check` may raise.
    """
    with (make_folder(folder, "--workdir") / "sweep.lock").open("a") as lock:
        seconds = _LOCK_SECONDS if seconds is None else seconds
        deadline = time.monotonic() + seconds
        while not try_to_lock(lock.fileno()):
            check()
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


def share_of_cores(cores: int, jobs: int) -> dict[str, str]:
    """Returns variables by which TensorFlow takes its share of the cores."""
    share = str(max(1, cores // jobs))
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
