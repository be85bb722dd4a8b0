#!/usr/bin/env python3
"""Trains with every combination of settings, one workdir a run.

    python scripts/sweep.py --gin_config=fashion_mnist.gin \
        --grid='method=strided|outer' --grid='strides=1,1,2,2|1,3,2,3' \
        --grid='seed=0|1|2' --workdir=exp/strides --output=exp/strides.jsonl

Stopped or killed at any moment and started again, it skips the runs that are
finished and goes on with those that are not. --dry_run only lists them.
"""

import argparse
import collections
import importlib.util
import json
import pathlib
import re
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TextIO

if __name__ == "__main__" and (spec := importlib.util.find_spec("diffstride")):
    # An empty package in its place: the real one imports keras, which takes
    # seconds and memory, and nothing here needs it.
    sys.modules["diffstride"] = importlib.util.module_from_spec(spec)

from diffstride.sweep import grid
from diffstride.sweep.processes import Process, Stopped, locked, noting_signals

from diffstride.errors import UserError, run_reporting_errors
from diffstride.files import read_rows, replace_text
from diffstride.runs import read_json, read_run

_POLL_SECONDS = 0.1


class Sweep(NamedTuple):
    """What to run, and where.

    Attributes:
        runs: the plan.
        folder: holds the workdirs.
        gin_config: config of all runs.
        bindings: gin bindings of all runs.
        data_dir: where TFDS data lies, or `None`.
        jobs: number of runs at once.
        output: file of records, or `None`.
    """

    runs: list[grid.Run]
    folder: pathlib.Path
    gin_config: str
    bindings: list[str]
    data_dir: str | None = None
    jobs: int = 1
    output: pathlib.Path | None = None

    def workdir(self, run: grid.Run) -> pathlib.Path:
        """Returns the folder of a run."""
        return self.folder / run.name

    def identity(self, run: grid.Run) -> dict[str, Any]:
        """Returns what makes a run this one and no other."""
        return {
            "name": run.name,
            "settings": run.settings,
            "gin_config": self.gin_config,
            "bindings": [*self.bindings, *run.bindings],
        }


def main(argv: list[str]) -> int:
    """Makes the runs that the flags ask for."""
    sweep, dry_run = _parse(argv[1:])
    states = {run.name: state(sweep, run) for run in sweep.runs}
    counts = collections.Counter(states.values())
    if dry_run:
        for number, run in enumerate(sweep.runs, 1):
            print(f"{number:4}  {states[run.name]:8}  {run.name}")
    print(
        f"{len(states)} runs in {sweep.folder}: "
        + ", ".join(f"{count} {what}" for what, count in counts.items()),
        flush=True,
    )
    if dry_run:
        return 0
    try:
        with noting_signals() as check, locked(sweep.folder) as lock:
            failed = make_runs(sweep, lock, check)
    except Stopped as stop:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 128 + stop.args[0]
    if failed:
        print(f"{len(failed)} runs failed; the same command tries them again:")
    for name, error in failed.items():
        print(f"  {name}: {error} ({sweep.folder / name / 'log.txt'})")
    return 1 if failed else 0


def state(sweep: Sweep, run: grid.Run) -> str:
    """Tells how far a run is.

    Args:
        sweep: the sweep.
        run: one of its runs.

    Returns:
        `"finished"`, `"failed"`, `"started"` or `"to do"`.

    Raises:
        UserError: if the run's folder holds another run.
    """
    workdir = sweep.workdir(run)
    found = read_json(workdir / "run.json")
    finished = (workdir / "summary.json").exists()
    identity = sweep.identity(run)
    if finished if found is None else not identity.items() <= found.items():
        raise UserError(
            f"{workdir} holds a run with other settings; choose another "
            f"--workdir, or remove it. Expected {json.dumps(identity)}. Found "
            f"{json.dumps(found)}"
        )
    if found is None:
        return "to do"
    if found["error"]:
        return "failed"
    return "finished" if finished else "started"


def make_runs(
    sweep: Sweep, lock: TextIO, check: Callable[[], None]
) -> dict[str, str]:
    """Makes the runs that are not finished, several at once.

    Args:
        sweep: the sweep.
        lock: a file that stays locked while one of the runs is alive.
        check: called again and again, may raise to end the sweep and its runs.

    Returns:
        Name and error of each run that failed.

    Raises:
        UserError: if the output holds what is not of these runs.
    """
    waiting = collections.deque(
        run for run in sweep.runs if state(sweep, run) != "finished"
    )
    running: list[tuple[grid.Run, Process]] = []
    failed: dict[str, str] = {}
    _check_output(sweep)
    _write_output(sweep)
    try:
        while waiting or running:
            check()
            while waiting and len(running) < sweep.jobs:
                run = waiting.popleft()
                running.append((run, _start(sweep, run, lock)))
            time.sleep(_POLL_SECONDS)
            for run, process in list(running):
                error = _without_effect(run, process.output())
                if error:
                    process.kill()  # Rather than train for nothing.
                elif not process.has_ended():
                    continue
                running.remove((run, process))
                error = error or process.error() or _missing(sweep, run)
                if error:
                    failed[run.name] = error
                    _record(sweep, run, error)
                _write_output(sweep)
                left = [each for each, _ in running] + list(waiting)
                _report(sweep, run, error, left)
    finally:
        for _, process in running:
            process.kill()
    return failed


def command(sweep: Sweep, run: grid.Run) -> list[str]:
    """Returns the command that makes a run, or goes on with it."""
    parts = [
        *(sys.executable, "-m", "diffstride.main"),
        f"--gin_config={sweep.gin_config}",
        f"--workdir={sweep.workdir(run)}",
    ]
    for binding in sweep.identity(run)["bindings"]:
        parts.append(f"--gin_bindings={binding}")
    if "seed" in run.settings:
        parts.append(f"--seed={run.settings['seed']}")
    if sweep.data_dir is not None:
        parts.append(f"--data_dir={sweep.data_dir}")
    return parts


def _start(sweep: Sweep, run: grid.Run, lock: TextIO) -> Process:
    workdir = sweep.workdir(run)
    workdir.mkdir(exist_ok=True)
    _record(sweep, run, None)
    log = workdir / "log.txt"
    return Process(command(sweep, run), log, lock, sweep.jobs)


def _record(sweep: Sweep, run: grid.Run, error: str | None) -> None:
    record = {**sweep.identity(run), "jobs": sweep.jobs, "error": error}
    text = json.dumps(record, indent=1) + "\n"
    replace_text(sweep.workdir(run) / "run.json", text)


def _missing(sweep: Sweep, run: grid.Run) -> str | None:
    summary = sweep.workdir(run) / "summary.json"
    return None if summary.exists() else f"It left no {summary.name}"


def _without_effect(run: grid.Run, log: str) -> str | None:
    """Finds the settings that diffstride.main warns of: nothing uses them."""
    unused = set(re.findall(r"`([\w.]+)` is set in .* nothing in", log))
    axes = [
        axis
        for axis in run.settings
        if (names := grid.parameters(run.settings, axis))
        and unused.issuperset(names)
    ]
    if not axes:
        return None
    return (
        f"{', '.join(axes)} has no effect with this config; name the parameter "
        "in full, such as resnet.resnet18.strides"
    )


def _parse(arguments: Sequence[str]) -> tuple[Sweep, bool]:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gin_config", help="config of all runs")
    add(
        "--grid",
        action="append",
        required=True,
        help="a TOML file, or an axis and its values, such as 'seed=0|1|2'; "
        f"several times. Axes: {', '.join(grid.AXES)}, or a gin parameter",
    )
    add("--gin_bindings", action="append", default=[], help="for all runs")
    add(
        "--workdir", help="holds the workdirs; default exp/ and the grid's name"
    )
    add("--data_dir", help="where TFDS data lies")
    add("--output", type=pathlib.Path, help="records of all runs, JSON lines")
    add("--jobs", type=int, default=1, help="runs at once")
    add("--dry_run", action="store_true", help="only list the runs")
    args = parser.parse_args(arguments)
    asked = grid.load(args.grid)
    gin_config = args.gin_config or asked.gin_config
    if not gin_config:
        raise UserError("--gin_config is required, such as fashion_mnist.gin")
    if args.jobs < 1:
        raise UserError(f"--jobs must be at least 1. Received: {args.jobs}")
    is_file = args.grid[0].endswith(".toml")
    name = pathlib.Path(args.grid[0]).stem if is_file else "sweep"
    sweep = Sweep(
        grid.plan(asked.products),
        pathlib.Path(args.workdir or f"exp/{name}"),
        gin_config,
        [*asked.bindings, *args.gin_bindings],
        args.data_dir,
        args.jobs,
        args.output,
    )
    return sweep, args.dry_run


def _check_output(sweep: Sweep) -> None:
    """Refuses to write over what is not in the workdirs."""
    if sweep.output is None or not sweep.output.exists():
        return
    try:
        names = [record["name"] for record in read_rows(sweep.output)]
    except (ValueError, KeyError, TypeError):
        raise UserError(
            "--output must be a new file, or the records of this sweep. "
            f"Received: {sweep.output}, which holds something else"
        ) from None
    lost = [n for n in names if not (sweep.folder / n / "run.json").exists()]
    if lost:
        raise UserError(
            f"--output={sweep.output} holds {len(lost)} runs that are not in "
            f"{sweep.folder}, such as {lost[0]}, and would lose them. Choose "
            "another --output, or the --workdir that has them"
        )


def _write_output(sweep: Sweep) -> None:
    """Writes the records of the runs that have ended, in order of the plan."""
    if sweep.output is None:
        return
    lines = [
        json.dumps(read_run(sweep.workdir(run))) + "\n"
        for run in sweep.runs
        if state(sweep, run) in ("finished", "failed")
    ]
    sweep.output.parent.mkdir(parents=True, exist_ok=True)
    replace_text(sweep.output, "".join(lines))


def _report(
    sweep: Sweep, run: grid.Run, error: str | None, left: list[grid.Run]
) -> None:
    """Prints a line on a run that has ended."""
    total = len(sweep.runs)
    result = f"failed: {error}"
    if error is None:
        summary = read_run(sweep.workdir(run))["summary"]
        accuracy = 100 * summary["test_accuracy"]
        result = f"{accuracy:.2f} %, {_duration(summary['seconds'])}"
    if left and (seconds := _seconds_left(sweep, left)) is not None:
        result += f"; about {_duration(seconds)} left"
    number = f"{total - len(left):{len(str(total))}}"
    print(f"[{number}/{total}] {run.name}: {result}", flush=True)


def _seconds_left(sweep: Sweep, left: list[grid.Run]) -> float | None:
    """What the runs that are left take, going by those of the same method."""
    seconds = collections.defaultdict(list)
    for run in sweep.runs:
        if state(sweep, run) == "finished":
            summary = read_json(sweep.workdir(run) / "summary.json")
            seconds[run.settings.get("method")].append(summary["seconds"])
    if not seconds:
        return None
    means = {method: statistics.mean(each) for method, each in seconds.items()}
    of_others = statistics.mean(means.values())
    each = [means.get(run.settings.get("method"), of_others) for run in left]
    return sum(each) / min(sweep.jobs, len(left))


def _duration(seconds: float) -> str:
    for unit, name in ((1, "s"), (60, "min")):
        if seconds < 120 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
