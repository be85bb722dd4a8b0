"""Runs on the workers of a Dask cluster, rather than in processes here.

A worker starts the process that would have run here, and holds a lock on its
workdir for as long as it lives. A run of a lost worker is thus taken up by
another one as if its command had been started again.
"""

import asyncio
import contextlib
import functools
import importlib.metadata
import logging
import math
import os
import pathlib
import sys
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from diffstride.errors import UserError, one_line
from diffstride.files import try_to_lock
from diffstride.sweep.processes import Log, Process, locked, share_of_cores

_CONNECT_SECONDS = 30.0
_WORKERS_SECONDS = 60.0
# A worker that was believed lost may need this long to see it and to stop, and
# a file server to take back the locks of a machine that died.
_LOCK_SECONDS = 300.0
_POLL_SECONDS = 0.2


class RunFailed(Exception):
    """A run ended with an error, told in one line."""


class Task:
    """A run under way on a worker, to be used like a `Process`."""

    def __init__(self, future: Any, log: pathlib.Path):
        self.future = future
        self._folder = log.parent
        self._log = Log(log)

    def has_ended(self) -> bool:
        """Tells whether it has ended."""
        status = self.future.status
        if status == "cancelled":
            raise UserError(
                "The connection to the scheduler is lost, and with it the runs "
                "under way. What they have saved is kept: the same command "
                "goes on from there, with this scheduler or another"
            )
        if status not in ("finished", "error"):
            return False
        # A network file system may remember that a file was not there. To list
        # its folder is to ask again.
        os.listdir(self._folder)
        return True

    def stop(self) -> None:
        """Has its worker ask it to end, and end it if it does not.

        Where the scheduler is lost, the worker does so by itself.
        """
        with contextlib.suppress(Exception):
            self.future.cancel()

    kill = stop

    def output(self) -> str:
        """Returns what it has written until now."""
        return self._log.read()

    def error(self) -> str | None:
        """Returns in one line why it failed, or `None`, once it has ended."""
        if self.future.status == "finished":
            return None
        error = self.future.exception()
        if isinstance(error, UserError):  # Of the worker, not of the run.
            raise error
        if isinstance(error, RunFailed):
            return str(error)
        return one_line(f"{type(error).__name__}: {error}")


class Cluster:
    """Starts commands on the workers of a scheduler.

    Args:
        client: connection to the scheduler, as `connected` gives it.
        folder: holds the workdirs; this process has it `locked`.
        jobs: most runs at once; `None` for as many as workers have threads.

    Raises:
        UserError: if a worker has another version of this package, or does not
            share the folder.
    """

    def __init__(self, client: Any, folder: pathlib.Path, jobs: int | None):
        self._client = client
        self._most = jobs or math.inf
        self._threads = 1
        self._looked = -math.inf
        self._futures: list[Any] = []
        self._here = (str(folder.absolute()), _versions())
        answers = client.run(objection, *self._here, on_error="return")
        for worker, answer in answers.items():
            if isinstance(answer, Exception):
                answer = (
                    f"does not know {__name__}; install {self._here[1]} there "
                    f"({type(answer).__name__}: {answer})"
                )
            if answer:
                raise UserError(f"The worker at {worker} {answer}")
        print(f"Runs at once on workers: {self.jobs}", flush=True)

    @property
    def jobs(self) -> int:
        """The most runs at once, which changes as workers come and go."""
        now = time.monotonic()
        if now > self._looked + 1:
            self._looked = now
            before = self._threads
            with contextlib.suppress(Exception):  # Which its tasks will tell.
                self._threads = sum(self._client.nthreads().values())
            if before and not self._threads:
                print("No workers are left; waiting for others", flush=True)
        return min(self._most, max(1, self._threads))

    def start(self, command: Sequence[str], log: pathlib.Path) -> Task:
        """Hands a command to the scheduler."""
        variables = {
            name: os.environ[name]
            for name in ("KERAS_BACKEND",)
            if name in os.environ
        }
        future = self._client.submit(
            make_run,
            *(list(command), str(log.absolute()), os.getcwd(), variables),
            *self._here,
            key=f"{log.parent.name}-{uuid.uuid4().hex}",
            pure=False,
        )
        self._futures.append(future)
        return Task(future, log)

    def wait(self, seconds: float) -> None:
        """Waits for a run to end, and to read on in the logs of others."""
        import distributed

        self._futures = [f for f in self._futures if f.status == "pending"]
        if not self._futures:
            return time.sleep(seconds)
        with contextlib.suppress(Exception):  # Which its tasks will tell.
            distributed.wait(self._futures, 10 * seconds, "FIRST_COMPLETED")


@contextlib.contextmanager
def connected(address: str, check: Callable[[], None]) -> Iterator[Any]:
    """Connects to a scheduler that has workers; `check` may raise meanwhile."""
    try:
        import distributed
    except ModuleNotFoundError as error:
        if error.name not in ("dask", "distributed"):
            raise
        raise UserError(
            "--scheduler needs distributed; pip install 'diffstride[cluster]' "
            "brings it"
        ) from error
    for name in ("distributed", "distributed.client"):
        # Errors are told in one line.
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # A client that finds nobody is half open, and when it is collected at
        # last it may hold up another one for good.
        asyncio.run(_reach(address))
        client = distributed.Client(address, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise UserError(
            "--scheduler must be the address of a Dask scheduler that can be "
            "reached, such as the one `dask scheduler` prints. Received: "
            f"{address} ({error})"
        ) from error
    try:
        deadline = time.monotonic() + _WORKERS_SECONDS
        while not client.nthreads():
            check()
            if time.monotonic() > deadline:
                raise UserError(
                    f"The scheduler at {address} has had no workers for "
                    f"{_WORKERS_SECONDS:.0f} s; start some, such as with "
                    f"`dask worker {address} --nthreads=1`"
                )
            time.sleep(_POLL_SECONDS)
        yield client
    finally:
        with contextlib.suppress(Exception):
            client.close(timeout=_CONNECT_SECONDS)


async def _reach(address: str) -> None:
    """Connects to a scheduler once; raises what keeps from it."""
    from distributed import comm

    connection = await comm.connect(address, timeout=_CONNECT_SECONDS)
    await connection.close()


def make_run(
    command: list[str],
    log: str,
    cwd: str,
    variables: dict[str, str],
    folder: str,
    versions: str,
) -> None:
    """Makes a run, on a worker.

    Raises:
        RunFailed: if the run did.
        UserError: if this worker should make no runs.
        Reschedule: if the scheduler has given up this worker, or this task.
    """
    import distributed
    from dask.system import CPU_COUNT

    worker = distributed.get_worker()
    if reason := objection(folder, versions):
        raise UserError(f"The worker at {worker.address} {reason}")
    key = worker.get_current_task()

    def check() -> None:
        task = worker.state.tasks.get(key)
        is_leaving = worker.status.name in ("closing", "closed", "failed")
        if is_leaving or task is None or task.state != "executing":
            raise distributed.Reschedule

    share = share_of_cores(CPU_COUNT, worker.state.nthreads)
    path = pathlib.Path(log)
    try:
        with locked(path.parent, _LOCK_SECONDS, check) as lock:
            process = Process(
                [sys.executable, *command[1:]],
                *(path, lock),
                variables={**variables, **share},
                cwd=cwd,
            )
            try:
                while not process.has_ended():
                    check()
                    time.sleep(_POLL_SECONDS)
            finally:
                process.stop()
            error = process.error()
    except UserError as refused:
        error = str(refused)
    if error:
        raise RunFailed(error)


def objection(folder: str, versions: str) -> str | None:
    """Says why a worker, which calls this, should make no runs.

    Args:
        folder: holds the workdirs, and a lock that is held elsewhere.
        versions: what is installed there.
    """
    if (found := _versions()) != versions:
        return (
            f"has {found}; install what is here, {versions}, and start it again"
        )
    try:
        with (pathlib.Path(folder) / "sweep.lock").open("r+") as lock:
            if not try_to_lock(lock.fileno()):
                return None
    except OSError:
        pass
    return (
        f"does not see that {folder} is locked here; choose a --workdir that "
        "all machines share, with locks that they share (NFS 4; Lustre that is "
        "mounted with flock)"
    )


@functools.cache  # A worker is what it was when it started.
def _versions() -> str:
    """Names what makes runs alike, this package by its sources."""
    package = pathlib.Path(__file__).parent.parent
    sources = 0
    for path in sorted(package.rglob("*.py")):
        sources = zlib.crc32(path.read_bytes(), sources)
    found = {}
    for name in ("diffstride", "keras"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return (
        f"diffstride {found.get('diffstride', '')} (sources {sources:08x}) and "
        f"keras {found.get('keras')}"
    )
