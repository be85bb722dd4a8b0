r"""Trains with every combination of settings, one workdir a run.

    python -m diffstride.sweep --gin_config=fashion_mnist.gin \
        --grid='method=strided|outer' --grid='strides=1,1,2,2|1,3,2,3' \
        --grid='seed=0|1|2' --workdir=exp/strides --output=exp/strides.jsonl

Stopped or killed at any moment and started again, it skips the runs that are
finished and goes on with those that are not. --dry_run only lists them.
"""

import argparse
import collections
import pathlib
import sys

from diffstride.errors import UserError, run_reporting_errors
from diffstride.settings import AXES
from diffstride.sweep import grid
from diffstride.sweep.processes import Stopped, noting_signals
from diffstride.sweep.runner import Sweep, add_flags


def main(argv: list[str]) -> int:
    """Makes the runs that the flags ask for."""
    args = _arguments(argv[1:])
    sweep = _sweep(args)
    states = {run.name: sweep.state(run) for run in sweep.runs}
    counts = collections.Counter(states.values())
    if args.dry_run:
        for number, (name, state) in enumerate(states.items(), 1):
            print(f"{number:4}  {state:8}  {name}")
    print(
        f"{len(states)} runs in {sweep.folder}: "
        + ", ".join(f"{count} {what}" for what, count in counts.items()),
        flush=True,
    )
    if args.dry_run:
        return 0
    try:
        with noting_signals() as check, sweep.machines(check) as machines:
            failed = sweep.make(machines, check)
    except Stopped as stop:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 128 + stop.args[0]
    return sweep.tell_failed(failed)


def _sweep(args: argparse.Namespace) -> Sweep:
    asked = grid.load(args.grid)
    gin_config = args.gin_config or asked.gin_config
    if not gin_config:
        raise UserError("--gin_config is required, such as fashion_mnist.gin")
    if args.jobs is not None and args.jobs < 1:
        raise UserError(f"--jobs must be at least 1. Received: {args.jobs}")
    is_file = args.grid[0].endswith(".toml")
    name = pathlib.Path(args.grid[0]).stem if is_file else "sweep"
    return Sweep(
        runs=grid.plan(asked.products),
        folder=pathlib.Path(args.workdir or f"exp/{name}").expanduser(),
        gin_config=gin_config,
        bindings=[*asked.bindings, *args.gin_bindings],
        data_dir=args.data_dir,
        jobs=args.jobs,
        output=args.output and args.output.expanduser(),
        allow_imports=args.allow_imports,
        scheduler=args.scheduler,
    )


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffstride.sweep",
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
        f"several times. Axes: {', '.join(AXES)}, or a gin parameter",
    )
    add("--gin_bindings", action="append", default=[], help="for all runs")
    add(
        "--workdir", help="holds the workdirs; default exp/ and the grid's name"
    )
    add("--data_dir", help="where TFDS data lies")
    add("--output", type=pathlib.Path, help="records of all runs, JSON lines")
    add_flags(add)
    add("--dry_run", action="store_true", help="only list the runs")
    add(
        "--allow_imports",
        action="store_true",
        help="configs may import, with which they can run any program",
    )
    add("--debug", action="store_true", help="tell where errors come from")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
