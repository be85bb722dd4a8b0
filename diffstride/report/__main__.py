#!/usr/bin/env python3
"""Writes tables and figures of runs.

    python scripts/report.py exp/sweep --output=exp/report

A run is a workdir, of a sweep or of `diffstride.main`. Given are workdirs,
folders of workdirs, or .jsonl files of records. DIR receives report.md, and the
figures as PNG and SVG.
"""

import argparse
import os
import pathlib
import sys
from collections.abc import Iterable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

from diffstride.sweep.grid import bindings  # noqa: E402
from diffstride.report.data import (
    LAMBDA,
    STRIDES,
    Study,
    axis_label,
    shown,
    study,
)  # noqa: E402
from diffstride.report.tables import (  # noqa: E402
    ablation_table,
    accuracy_table,
    cost_table,
    expected_table,
    failed_table,
    frontier_table,
    repeated_seeds,
)

from diffstride.errors import UserError, run_reporting_errors  # noqa: E402
from diffstride.files import make_folder  # noqa: E402
from diffstride.runs import read_runs  # noqa: E402


def main(argv: list[str]) -> int:
    """Reads the runs, writes the report, prints where it is."""
    arguments = _arguments(argv[1:])
    for path in arguments.runs:
        if not pathlib.Path(path).exists():
            raise UserError(
                f"RUNS must be workdirs, folders of them or .jsonl files. "
                f"Received: {path}, which does not exist"
            )
    print(
        write(
            read_runs(arguments.runs),
            pathlib.Path(arguments.output),
            arguments.title,
            arguments.trajectory,
        )
    )
    return 0


def write(
    records: Iterable[dict[str, Any]],
    folder: pathlib.Path,
    title: str = "Runs compared",
    trajectory: str | None = None,
) -> pathlib.Path:
    """Writes a report.

    Args:
        records: as of `diffstride.runs.read_runs`.
        folder: where to; it is made.
        title: heading of the report.
        trajectory: name of the run that is shown by itself, see
            `report_data.shown`.

    Returns:
        Path of the Markdown.

    Raises:
        UserError: if there is nothing to report, no run of that name, or no
            matplotlib.
    """
    try:
        from diffstride.report import figures as report_figures
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        raise UserError(
            "Figures need matplotlib; pip install '.[plot]' brings it"
        ) from error
    runs = study(records)
    _check(runs)
    chosen = shown(runs, trajectory)
    make_folder(folder, "--output")
    parts = [*head(runs, title), "## Figures"]
    for figure in report_figures.draw_all(runs, chosen, folder):
        parts.append(f"### {figure.heading}")
        if figure.file:
            parts.append(f"![{figure.heading}]({figure.file})")
        parts.append(figure.caption)
    parts += _not_ended(runs)
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n")
    return path


def head(runs: Study, title: str) -> list[str]:
    """Writes what comes before the figures.

    Args:
        runs: the runs.
        title: heading of the report.

    Returns:
        Paragraphs of Markdown: on the runs, and all tables.
    """
    return [f"# {title}", *_overview(runs), *_tables(runs)]


def _check(runs: Study) -> None:
    if not runs.records:
        raise UserError("RUNS hold no runs; train some, or name other folders")
    if runs.runs:
        return
    example = (runs.failed or runs.unfinished)[0]
    error = str(example.get("error") or "").strip().splitlines()
    raise UserError(
        f"RUNS hold no run that ended well: {len(runs.failed)} failed, "
        f"{len(runs.unfinished)} did not end. The first is {example['name']}"
        + (f": {error[0]}" if error else "")
    )


def _overview(runs: Study) -> list[str]:
    """How many runs, on what, and what they have in common."""
    counts = [f"{len(runs.runs)} ended well"]
    counts += [f"{len(runs.failed)} failed"] if runs.failed else []
    counts += [f"{len(runs.unfinished)} did not end"] if runs.unfinished else []
    ended = [record for record in runs.records if record.get("summary")]
    seconds = sum(record["summary"].get("seconds", 0) for record in ended)
    parts = [
        f"{_count(len(runs.records), 'run')}: {', '.join(counts)}; "
        f"{seconds:,.0f} s of training in all. {_machines(ended)}"
    ]
    if common := _common(runs):
        parts.append(f"Common to all: {common}.")
    jobs = sorted({record.get("jobs") or 1 for record in ended})
    if jobs[-1] > 1:
        parts.append(
            f"Up to {jobs[-1]} runs shared the machine at a time: durations "
            "are no benchmark."
        )
    if names := repeated_seeds(runs):
        parts.append(
            "**Mind:** these runs have the settings and the seed of another, "
            "and are counted like further seeds; if they differ in what is "
            f"not recorded, give them apart: {', '.join(names)}."
        )
    free = {
        axis: [m for m in runs.methods if m not in runs.given(axis)]
        for axis in runs.axes
        if axis != STRIDES
    }
    for axis, methods in free.items():
        if methods:
            parts.append(
                f"{', '.join(methods)} {'was' if len(methods) == 1 else 'were'}"
                f" not given {axis_label(axis)}: the same runs stand in each "
                "of its rows."
            )
    return parts


def _machines(records: list[dict[str, Any]]) -> str:
    texts: dict[str, int] = {}
    for record in records:
        environment = record["summary"].get("environment") or {}
        words = [
            f"{name} {environment[key]}"
            for key, name in (
                ("python", "Python"),
                ("tensorflow", "TensorFlow"),
                ("jax", "JAX"),
                ("torch", "torch"),
                ("keras", "Keras"),
            )
            if key in environment
        ]
        devices = ", ".join(environment.get("devices") or ["a machine unknown"])
        text = ", ".join([f"On {devices}", *words])
        texts[text] = texts.get(text, 0) + 1
    if len(texts) == 1:
        return f"{next(iter(texts))}."
    return " ".join(
        f"{text} ({_count(number, 'run')})." for text, number in texts.items()
    )


def _common(runs: Study) -> str:
    """Settings, and bindings beside these, that all runs have."""
    words = []
    for key in dict.fromkeys(k for run in runs.runs for k in run.setting):
        if key not in runs.axes:
            having = [run for run in runs.runs if key in run.setting]
            word = f"{axis_label(key)} {having[0].setting[key]}"
            if len(having) < len(runs.runs):
                word += f" ({', '.join(runs.given(key))} only)"
            words.append(word)
    ended = [record for record in runs.records if record.get("summary")]
    configs = {record.get("gin_config") for record in ended}
    if len(configs) == 1 and None not in configs:
        words.append(f"config `{configs.pop()}`")
    meant = bindings(ended[0]["settings"])
    for binding in ended[0].get("bindings") or []:
        if binding not in meant and all(
            binding in (record.get("bindings") or []) for record in ended
        ):
            words.append(f"`{binding}`")
    return ", ".join(words)


def _tables(runs: Study) -> list[str]:
    parts = ["## Test accuracy, %", accuracy_table(runs)]
    parts += [
        "## Accuracy beside cost",
        cost_table(runs),
        "Multiply-accumulates (MACs) and memory of the activations are of one "
        "image in one forward pass, at the strides in the end; seconds are the "
        "median over epochs; strides and sizes are of each pooling layer in "
        "depth order (height x width, one number where they agree), means over "
        "seeds.",
    ]
    if expected := expected_table(runs):
        parts += ["## Strides that were expected", expected]
    if frontier := frontier_table(runs):
        parts += ["## What lambda buys", frontier]
    ablations = [axis for axis in runs.axes if axis not in (LAMBDA, STRIDES)]
    tables = {axis: ablation_table(runs, axis) for axis in ablations}
    for axis, table in tables.items():
        if table:
            parts += [f"## {axis_label(axis).capitalize()} alone", table]
    if any(tables.values()):
        parts.append(
            "In a column all other settings are the same in each row, and the "
            "best is bold; where there are several of them the mean is over "
            "them, and ± is the standard deviation over seeds within a setting "
            "(number of runs). Between columns the other settings may differ."
        )
    return parts


def _not_ended(runs: Study) -> list[str]:
    parts = []
    if runs.failed:
        parts += ["## Runs that failed", failed_table(runs.failed)]
    if runs.unfinished:
        names = ", ".join(record["name"] for record in runs.unfinished)
        parts += ["## Runs that did not end", f"{names}."]
    return parts


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
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
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
