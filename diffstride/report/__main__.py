"""Writes tables and figures of runs.

    python -m diffstride.report exp/sweep --output=exp/report

A run is a workdir, of a sweep or of `diffstride.main`. Given are workdirs,
folders of workdirs, or .jsonl files of records. DIR receives report.md, and the
figures as PNG.
"""

import argparse
import os
import pathlib
import sys

from diffstride.errors import UserError, run_reporting_errors
from diffstride.runs import read_runs


def main(argv: list[str]) -> int:
    """Reads the runs, writes the report, prints where it is."""
    args = _arguments(argv[1:])
    runs = [pathlib.Path(run).expanduser() for run in args.runs]
    for path in runs:
        if not path.exists():
            raise UserError(
                f"RUNS must be workdirs, folders of them or .jsonl files. "
                f"Received: {path}, which does not exist"
            )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    try:
        import matplotlib  # noqa: F401

        from diffstride.report import page
    except ModuleNotFoundError as error:
        if error.name not in ("matplotlib", "pandas"):
            raise
        raise UserError(
            f"A report needs {error.name}; pip install 'diffstride[report]' "
            "brings it"
        ) from error
    records = read_runs(runs)
    folder = pathlib.Path(args.output).expanduser()
    print(page.write(records, folder, args.title, args.trajectory))
    return 0


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffstride.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUNS")
    parser.add_argument("--output", metavar="DIR", default="exp/report")
    parser.add_argument("--title", default="Runs compared")
    parser.add_argument(
        "--trajectory",
        metavar="NAME",
        help="Run that is shown by itself; other figures of learned strides "
        "show runs of its settings. Default: one with moved strides.",
    )
    parser.add_argument(
        "--debug", action="store_true", help="Tell where errors come from."
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
