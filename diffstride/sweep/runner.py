"""Makes the runs of a sweep, each in a process and a workdir of its own."""

import collections
import contextlib
import dataclasses
import json
import pathlib
import re
import statistics
import sys
from collections.abc import Callable, Iterator
from typing import Any

from diffstride import settings
from diffstride.errors import UserError
from diffstride.files import (
    make_folder,
    read_ours,
    replace_lines,
    replace_text,
    writing,
)
from diffstride.runs import read_records, read_run
from diffstride.sweep import cluster, processes
from diffstride.sweep.grid import Run

# Where runs are made, and what is then known of one of them.
Machines = processes.Local | cluster.Cluster
Process = processes.Process | cluster.Task

POLL_SECONDS = 0.1
_ENDED = ("finished", "failed")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to run, and where: `folder` holds the workdirs.

    `jobs` are the most runs at once; `None` is one, or with a `scheduler`, the
    address of one of Dask, as many as its workers make.
    """

    runs: list[Run]
    folder: pathlib.Path
    gin_config: str
    bindings: list[str]
    data_dir: str | None = None
    jobs: int | None = None
    output: pathlib.Path | None = None
    allow_imports: bool = False
    scheduler: str | None = None

    @contextlib.contextmanager
    def machines(self, check: Callable[[], None]) -> Iterator[Machines]:
        """Gives where runs are made, and keeps others out of the folder.

        `check` may raise while it waits.
        """
        with processes.locked(self.folder, check=check) as lock:
            if self.scheduler is None:
                yield processes.Local(lock, self.jobs or 1)
                return
            with cluster.connected(self.scheduler, check) as client:
                yield cluster.Cluster(client, self.folder, self.jobs)

    def workdir(self, run: Run) -> pathlib.Path:
        """Returns the folder of a run."""
        return self.folder / run.name

    def tell_failed(self, failed: dict[str, str]) -> int:
        """Prints the errors of runs by their names; returns an exit status."""
        if failed:
            print(
                f"{len(failed)} runs failed; the same command tries them again:"
            )
        for name, error in failed.items():
            print(f"  {name}: {error} ({self.folder / name / 'log.txt'})")
        return 1 if failed else 0

    def state(self, run: Run) -> str:
        """Tells how far a run is; refuses a folder that holds another run.

        One that is damaged is made again: `diffstride.main` goes on with what
        is whole, or says what is not.
        """
        return self.look(run)[0]

    def command(self, run: Run) -> list[str]:
        """Returns the command that makes a run, or goes on with it."""
        parts = [
            *(sys.executable, "-m", "diffstride.main"),
            f"--gin_config={self.gin_config}",
            f"--workdir={self.workdir(run)}",
        ]
        for binding in self.identity(run)["bindings"]:
            parts.append(f"--gin_bindings={binding}")
        if "seed" in run.settings:
            parts.append(f"--seed={run.settings['seed']}")
        if self.data_dir is not None:
            parts.append(f"--data_dir={self.data_dir}")
        if self.allow_imports:
            parts.append("--allow_imports")
        return parts

    def make(
        self, machines: Machines, check: Callable[[], None]
    ) -> dict[str, str]:
        """Makes the runs that are not finished, several at once.

        `check` may raise, to end the sweep and its runs. Returns name and error
        of each run that failed.
        """
        waiting = collections.deque(
            run for run in self.runs if self.state(run) != "finished"
        )
        running: list[tuple[Run, Process]] = []
        failed: dict[str, str] = {}
        self._check_output()
        self._write_output()
        try:
            while waiting or running:
                check()
                while waiting and len(running) < machines.jobs:
                    run = waiting.popleft()
                    running.append((run, self.start(run, machines)))
                machines.wait(POLL_SECONDS)
                for run, process in list(running):
                    ended, error = self.outcome(run, process)
                    if not ended:
                        continue
                    running.remove((run, process))
                    if error:
                        failed[run.name] = error
                    self._write_output()
                    left = [each for each, _ in running] + list(waiting)
                    self._tell(run, error, left, machines.jobs)
        finally:
            for _, process in running:
                process.kill()
        return failed

    def start(self, run: Run, machines: Machines) -> Process:
        """Starts the process that makes a run, or goes on with it."""
        workdir = make_folder(self.workdir(run), "--workdir")
        self.record(run)
        log = workdir / "log.txt"
        with writing(log):
            return machines.start(self.command(run), log)

    def outcome(self, run: Run, process: Process) -> tuple[bool, str | None]:
        """Tells whether a run has ended, and records why it failed."""
        error = without_effect(run, process.output())
        if error:
            process.kill()  # Rather than train for nothing.
        elif not process.has_ended():
            return False, None
        error = error or process.error()
        if not error and self.state(run) != "finished":
            error = "It left no summary.json"
        if error:
            self.record(run, error)
        return True, error

    def record(self, run: Run, error: str | None = None, **more: Any) -> None:
        """Writes into the workdir of a run what it is."""
        jobs = 1 if self.scheduler else self.jobs or 1
        record = {**self.identity(run), "jobs": jobs, "error": error}
        text = json.dumps({**record, **more}, indent=1) + "\n"
        replace_text(self.workdir(run) / "run.json", text)

    def identity(self, run: Run) -> dict[str, Any]:
        """What makes a run this one and no other."""
        return {
            "name": run.name,
            "settings": run.settings,
            "gin_config": self.gin_config,
            "bindings": [*self.bindings, *run.bindings],
        }

    def look(self, run: Run) -> tuple[str, dict[str, Any] | None]:
        """Returns the state of a run, and its record unless it is damaged."""
        workdir = self.workdir(run)
        try:
            found = read_run(workdir)
        except UserError:
            if (workdir / "config.gin").exists():  # Which is checked there.
                return "damaged", None
            raise
        expected = self.identity(run)
        started = (workdir / "run.json").exists()
        finished = found["summary"] is not None
        if not expected.items() <= found.items() if started else finished:
            found = {key: found[key] for key in expected}
            raise UserError(
                f"{workdir} holds a run with other settings; choose another "
                f"--workdir, or remove it. Expected {json.dumps(expected)}. "
                f"Found {json.dumps(found)}"
            )
        if found["error"]:
            return "failed", found
        state = "started" if started else "to do"
        return "finished" if finished else state, found

    def _check_output(self) -> None:
        """Refuses to write over what is not in the workdirs."""
        if self.output is None:
            return
        records = read_ours(
            self.output, "--output", "the records of this sweep", read_records
        )
        lost = [r["name"] for r in records or [] if not self._has(r)]
        if lost:
            raise UserError(
                f"--output={self.output} holds {len(lost)} runs that are not "
                f"in {self.folder}, such as {lost[0]}, and would lose them. "
                "Choose another --output, or the --workdir that has them"
            )

    def _has(self, record: dict[str, Any]) -> bool:
        """Whether the workdirs hold the run of a record, damaged or not."""
        folder = self.folder / record["name"]
        try:
            found = read_run(folder)
        except UserError:
            return True
        keys = ("settings", "gin_config", "bindings")
        return all(found[key] == record.get(key) for key in keys)

    def _write_output(self) -> None:
        """Writes the records of all ended runs, in the order of the plan."""
        if self.output is None:
            return
        looks = map(self.look, self.runs)
        ended = [found for state, found in looks if state in _ENDED]
        make_folder(self.output.parent, "--output")
        replace_lines(self.output, ended)

    def _tell(
        self, run: Run, error: str | None, left: list[Run], jobs: int
    ) -> None:
        """Prints a line on a run that has ended."""
        result = f"failed: {error}"
        if error is None:
            summary = read_run(self.workdir(run))["summary"]
            accuracy = 100 * summary["test_accuracy"]
            result = f"{accuracy:.2f} %, {_duration(summary['seconds'])}"
        if left and (seconds := self._seconds_left(left, jobs)) is not None:
            result += f"; about {_duration(seconds)} left"
        total = len(self.runs)
        number = f"{total - len(left):{len(str(total))}}"
        print(f"[{number}/{total}] {run.name}: {result}", flush=True)

    def _seconds_left(self, left: list[Run], jobs: int) -> float | None:
        """What the runs that are left take, by those of the same method."""
        seconds = collections.defaultdict(list)
        for run in self.runs:
            state, found = self.look(run)
            if state == "finished":
                method = run.settings.get("method")
                seconds[method].append(found["summary"]["seconds"])
        if not seconds:
            return None
        means = {
            method: statistics.mean(each) for method, each in seconds.items()
        }
        of_others = statistics.mean(means.values())
        total = sum(
            means.get(run.settings.get("method"), of_others) for run in left
        )
        return total / min(jobs, len(left))


def add_flags(add: Callable[..., Any]) -> None:
    """Adds the flags that say where and how many runs are made."""
    add(
        "--jobs",
        type=int,
        help="most runs at once; default 1, or all that the workers of "
        "--scheduler make",
    )
    add(
        "--scheduler",
        help="address of a Dask scheduler, whose workers make the runs, such "
        "as tcp://HOST:8786",
    )


def without_effect(run: Run, log: str) -> str | None:
    """Finds the settings that `diffstride.main` says nothing uses."""
    unused = set(re.findall(r"`([\w.]+)` is set in .* nothing in", log))
    axes = [
        axis
        for axis in run.settings
        if (names := settings.parameters(run.settings, axis))
        and unused.issuperset(names)
    ]
    if not axes:
        return None
    return (
        f"{', '.join(axes)} has no effect with this config; name the parameter "
        "in full, such as resnet.resnet18.strides"
    )


def _duration(seconds: float) -> str:
    for unit, name in ((1, "s"), (60, "min")):
        if seconds < 120 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"
