r"""Searches for fixed strides by trial and error, with Optuna.

    python -m diffstride.search --gin_config=fashion_mnist.gin --data_dir=data \
        --space='strides=1-2,1-3,1-3,1-3' --space='method=strided' \
        --budget=700000 --at_least=600000 --trials=20 --workdir=exp/search \
        --gin_bindings="data.load_datasets.train_split = 'train[:90%]'" \
        --gin_bindings="data.load_datasets.validation_split = 'train[90%:]'"

A trial trains with one stride for each stage, in a workdir of its own, and is
selected by its validation accuracy. Stopped or killed at any moment and started
again, the search goes on. --table answers trials from runs made before.
"""

import argparse
import contextlib
import math
import pathlib
import sys
from collections.abc import Callable, Iterator

from diffstride.errors import UserError, run_reporting_errors
from diffstride.runs import read_runs
from diffstride.search import outcome, space
from diffstride.search.costs import Counter
from diffstride.search.journal import Journal
from diffstride.search.runner import SELECT, Answers, Search, read_table
from diffstride.search.study import (
    PRUNERS,
    SAMPLERS,
    Options,
    Study,
    Trial,
    import_optuna,
)
from diffstride.sweep.processes import (
    Local,
    Stopped,
    locked,
    noting_signals,
)
from diffstride.sweep.runner import Sweep, add_flags


def main(argv: list[str]) -> int:
    """Makes the trials that the flags ask for, and tells what was found."""
    args = _arguments(argv[1:])
    asked = space.load(args.space)
    sweep = _sweep(args, asked)
    options = _options(args)
    import_optuna()
    compared = read_runs(args.compare)
    table = read_table(args.table, sweep)
    answers = Answers(sweep, args.select, table, args.images)
    if args.select == "test":
        print("Trials are selected by test accuracy, which flatters the best.")
    search = _replay if args.table_only else _train
    try:
        with noting_signals() as check:
            failed = search(args, asked, options, answers, check)
    except Stopped as stop:
        print("Stopped. The same command goes on from here.", file=sys.stderr)
        return 128 + stop.args[0]
    if compared:
        print(f"\n{outcome.compared(compared, args.images)}")
    return sweep.tell_failed(failed)


def _train(
    args: argparse.Namespace,
    asked: space.Space,
    options: Options,
    answers: Answers,
    check: Callable[[], None],
) -> dict[str, str]:
    """Makes what is not in the table; returns name and error of failures."""
    with answers.sweep.machines(check) as machines, _counting(answers):
        path = answers.sweep.folder / "search.jsonl"
        journal = Journal(path, _identity(args, asked, options, answers.sweep))
        study = Study(asked, options, answers.cost, answers.can_make, journal)
        search = Search(study, answers, args.trials, args.output)
        failed = search.make(machines, check)
    _tell(study, options)
    return failed


def _replay(
    args: argparse.Namespace,
    asked: space.Space,
    options: Options,
    answers: Answers,
    check: Callable[[], None],
) -> dict[str, str]:
    """Searches in the table alone, with as many seeds as are asked for."""
    answers.trains = False
    is_single = args.repeats == 1
    searches: list[list[Trial]] = []
    with contextlib.ExitStack() as stack:
        if math.isfinite(options.budget) or options.at_least:
            # What is out of the bounds need not be in the table.
            stack.enter_context(locked(answers.sweep.folder))
            stack.enter_context(_counting(answers))
        for number in range(args.repeats):
            each = options._replace(seed=options.seed + number)
            journal = Journal(None, {})
            study = Study(asked, each, answers.cost, answers.can_make, journal)
            search = Search(study, answers, args.trials)
            if is_single:
                search.output = args.output
            else:
                search.tell = lambda line: None
            search.make(Local(None, answers.sweep.jobs or 1), check)
            searches.append(study.trials)
    if is_single:
        _tell(study, options)
    else:
        print(outcome.over_searches(searches))
    if study.left_out:
        print(f"{study.left_out} candidates are not in the table")
    return {}


@contextlib.contextmanager
def _counting(answers: Answers) -> Iterator[None]:
    folder = answers.sweep.folder
    answers.counter = Counter(
        answers.sweep.command, folder / "costs.jsonl", folder / "costs.log"
    )
    try:
        yield
    finally:
        answers.counter.close()


def _tell(study: Study, options: Options) -> None:
    """Prints all trials, and the best of so many."""
    trials = study.trials
    print(f"\n{outcome.table(trials)}")
    if study.rejected:
        count = len(study.rejected)
        print(f"{count} candidates out of the bounds were not trained")
    print(f"\n{outcome.bests('best of the first', outcome.in_order(trials))}")
    whole = all(trial.state == "finished" for trial in trials)
    if options.sampler == "random" and options.pruner == "none" and whole:
        found = outcome.expected(trials)
        print(f"\n{outcome.bests('best of, mean over all orders', found)}")


def _sweep(args: argparse.Namespace, asked: space.Space) -> Sweep:
    gin_config = args.gin_config or asked.gin_config
    if not gin_config:
        raise UserError("--gin_config is required, such as fashion_mnist.gin")
    for name in ("jobs", "trials", "repeats", "short_epochs"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1. Received: {value}")
    if args.table_only and not args.table:
        raise UserError("--table_only needs a --table")
    if args.repeats > 1 and not args.table_only:
        raise UserError("--repeats needs --table_only: it trains nothing")
    return Sweep(
        runs=[],
        folder=pathlib.Path(args.workdir).expanduser(),
        gin_config=gin_config,
        bindings=[*asked.bindings, *args.gin_bindings],
        data_dir=args.data_dir,
        jobs=args.jobs,
        allow_imports=args.allow_imports,
        scheduler=args.scheduler,
    )


def _options(args: argparse.Namespace) -> Options:
    if not 0 <= args.at_least <= args.budget or not args.budget > 0:
        raise UserError(
            "--at_least and --budget must be multiply-accumulates of an image, "
            "at_least <= budget. Received: "
            f"--at_least={args.at_least:g}, --budget={args.budget:g}"
        )
    if not 0 <= args.search_seed < 2**31:
        raise UserError(
            "--search_seed must be from 0 to 2**31 - 1. Received: "
            f"{args.search_seed}"
        )
    if args.short_epochs and args.pruner != "none":
        raise UserError(
            "--pruner must be none with --short_epochs, which gives up all "
            f"trials but one. Received: --pruner={args.pruner}"
        )
    return Options(
        *(args.sampler, args.pruner, args.search_seed),
        *(args.budget, args.at_least, args.short_epochs),
    )


def _identity(
    args: argparse.Namespace,
    asked: space.Space,
    options: Options,
    sweep: Sweep,
) -> dict:
    """What a search cannot change half-way."""
    return {
        "choices": asked.choices,
        "axes": asked.axes,
        "select": args.select,
        "table": [str(path) for path in args.table],
        "gin_config": sweep.gin_config,
        "bindings": sweep.bindings,
        "optuna": import_optuna().__version__,
        **options._asdict(),
        # No number of JSON.
        "budget": options.budget if math.isfinite(options.budget) else None,
    }


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffstride.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gin_config", help="config of all runs")
    add(
        "--space",
        action="append",
        required=True,
        help="a TOML file like those of sweeps, or an axis: 'strides=1-2,1-3' "
        "is a range for each stage, 'placement=after|before' values to choose "
        "from; several times",
    )
    add("--gin_bindings", action="append", default=[], help="for all runs")
    add("--budget", type=float, default=math.inf, help="most MACs of an image")
    add("--at_least", type=float, default=0.0, help="fewest MACs of an image")
    add("--trials", type=int, default=20, help="runs that train; default 20")
    add("--sampler", choices=SAMPLERS, default="tpe")
    add("--pruner", choices=PRUNERS, default="none", help="gives up bad runs")
    add(
        "--short_epochs",
        type=int,
        help="epochs that each trial trains for; the one with the least "
        "training loss alone goes on to the end",
    )
    add("--search_seed", type=int, default=0, help="seed of the sampler")
    add("--select", choices=SELECT, default="validation", help="by what")
    add(
        "--table",
        action="append",
        type=_path,
        default=[],
        help="records (.jsonl) that answer for runs of the same settings",
    )
    add("--table_only", action="store_true", help="train nothing")
    add("--repeats", type=int, default=1, help="searches, with --table_only")
    add(
        "--compare",
        action="append",
        type=_path,
        default=[],
        help="other runs to print beside, such as with learned strides",
    )
    add("--images", type=int, help="of an epoch, where records do not tell")
    add("--workdir", default="exp/search", help="holds the workdirs")
    add("--data_dir", help="where TFDS data lies")
    add("--output", type=_path, help="records of all trials, JSON lines")
    add_flags(add)
    add(
        "--allow_imports",
        action="store_true",
        help="configs may import, with which they can run any program",
    )
    add("--debug", action="store_true", help="tell where errors come from")
    return parser.parse_args(argv)


def _path(text: str) -> pathlib.Path:
    return pathlib.Path(text).expanduser()


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
