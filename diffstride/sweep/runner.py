"""Makes the runs of a sweep, each in a process and a workdir of its own."""

import collections
import dataclasses
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TextIO

from diffstride import settings
from diffstride.errors import UserError
from diffstride.files import read_rows, replace_text
from diffstride.runs import read_json, read_run
from diffstride.sweep.grid import Run
from diffstride.sweep.processes import Process

_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What to run, and where: `folder` holds the workdirs."""

    runs: list[Run]
    folder: pathlib.Path
    gin_config: str
    bindings: list[str]
    data_dir: str | None = None
    jobs: int = 1
    output: pathlib.Path | None = None
    allow_imports: bool = False

    def workdir(self, run: Run) -> pathlib.Path:
        """Returns the folder of a run."""
        return self.folder / run.name

    def state(self, run: Run) -> str:
        """Tells how far a run is; refuses a folder that holds another run."""
        workdir = self.workdir(run)
        found = read_json(workdir / "run.json")
        finished = (workdir / "summary.json").exists()
        expected = self._identity(run)
        if finished if found is None else not expected.items() <= found.items():
            raise UserError(
                f"{workdir} holds a run with other settings; choose another "
                f"--workdir, or remove it. Expected {json.dumps(expected)}. "
                f"Found {json.dumps(found)}"
            )
        if found is None:
            return "to do"
        if found["error"]:
            return "failed"
        return "finished" if finished else "started"

    def command(self, run: Run) -> list[str]:
        """Returns the command that makes a run, or goes on with it."""
        parts = [
            *(sys.executable, "-m", "diffstride.main"),
            f"--gin_config={self.gin_config}",
            f"--workdir={self.workdir(run)}",
        ]
        for binding in self._identity(run)["bindings"]:
            parts.append(f"--gin_bindings={binding}")
        if "seed" in run.settings:
            parts.append(f"--seed={run.settings['seed']}")
        if self.data_dir is not None:
            parts.append(f"--data_dir={self.data_dir}")
        if self.allow_imports:
            parts.append("--allow_imports")
        return parts

    def make(self, lock: TextIO, check: Callable[[], None]) -> dict[str, str]:
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
                while waiting and len(running) < self.jobs:
                    run = waiting.popleft()
                    running.append((run, self._start(run, lock)))
                time.sleep(_POLL_SECONDS)
                for run, process in list(running):
                    error = without_effect(run, process.output())
                    if error:
                        process.kill()  # Rather than train for nothing.
                    elif not process.has_ended():
                        continue
                    running.remove((run, process))
                    error = error or process.error()
                    summary = self.workdir(run) / "summary.json"
                    if not error and not summary.exists():
                        error = f"It left no {summary.name}"
                    if error:
                        failed[run.name] = error
                        self._record(run, error)
                    self._write_output()
                    left = [each for each, _ in running] + list(waiting)
                    self._tell(run, error, left)
        finally:
            for _, process in running:
                process.kill()
        return failed

    def _identity(self, run: Run) -> dict[str, Any]:
        """What makes a run this one and no other."""
        return {
            "name": run.name,
            "settings": run.settings,
            "gin_config": self.gin_config,
            "bindings": [*self.bindings, *run.bindings],
        }

    def _start(self, run: Run, lock: TextIO) -> Process:
        workdir = self.workdir(run)
        workdir.mkdir(exist_ok=True)
        self._record(run, None)
        return Process(self.command(run), workdir / "log.txt", lock, self.jobs)

    def _record(self, run: Run, error: str | None) -> None:
        record = {**self._identity(run), "jobs": self.jobs, "error": error}
        text = json.dumps(record, indent=1) + "\n"
        replace_text(self.workdir(run) / "run.json", text)

    def _check_output(self) -> None:
        """Refuses to write over what is not in the workdirs."""
        if self.output is None or not self.output.exists():
            return
        try:
            # No sweep leaves a last line cut short, which `read_rows` skips.
            if not f"\n{self.output.read_text()}".endswith("\n"):
                raise ValueError
            names = [record["name"] for record in read_rows(self.output)]
        except (ValueError, KeyError, TypeError):
            raise UserError(
                "--output must be a new file, or the records of this sweep. "
                f"Received: {self.output}, which holds something else"
            ) from None
        lost = [n for n in names if not (self.folder / n / "run.json").exists()]
        if lost:
            raise UserError(
                f"--output={self.output} holds {len(lost)} runs that are not "
                f"in {self.folder}, such as {lost[0]}, and would lose them. "
                "Choose another --output, or the --workdir that has them"
            )

    def _write_output(self) -> None:
        """Writes the records of all ended runs, in the order of the plan."""
        if self.output is None:
            return
        lines = [
            json.dumps(read_run(self.workdir(run))) + "\n"
            for run in self.runs
            if self.state(run) in ("finished", "failed")
        ]
        self.output.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.output, "".join(lines))

    def _tell(self, run: Run, error: str | None, left: list[Run]) -> None:
        """Prints a line on a run that has ended."""
        result = f"failed: {error}"
        if error is None:
            summary = read_json(self.workdir(run) / "summary.json")
            accuracy = 100 * summary["test_accuracy"]
            result = f"{accuracy:.2f} %, {_duration(summary['seconds'])}"
        if left and (seconds := self._seconds_left(left)) is not None:
            result += f"; about {_duration(seconds)} left"
        total = len(self.runs)
        number = f"{total - len(left):{len(str(total))}}"
        print(f"[{number}/{total}] {run.name}: {result}", flush=True)

    def _seconds_left(self, left: list[Run]) -> float | None:
        """What the runs that are left take, by those of the same method."""
        seconds = collections.defaultdict(list)
        for run in self.runs:
            if self.state(run) == "finished":
                summary = read_json(self.workdir(run) / "summary.json")
                seconds[run.settings.get("method")].append(summary["seconds"])
        if not seconds:
            return None
        means = {
            method: statistics.mean(each) for method, each in seconds.items()
        }
        of_others = statistics.mean(means.values())
        total = sum(
            means.get(run.settings.get("method"), of_others) for run in left
        )
        return total / min(self.jobs, len(left))


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
