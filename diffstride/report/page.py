"""The Markdown of a report."""

import pathlib
import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from diffstride import files
from diffstride.errors import UserError
from diffstride.formatting import harmless
from diffstride.report import ranks, tables
from diffstride.report.study import (
    Study,
    axis_label,
    example,
    shown,
    study,
)
from diffstride.settings import LAMBDA, STRIDES, bindings

_PACKAGES = {
    "python": "Python",
    "tensorflow": "TensorFlow",
    "jax": "JAX",
    "torch": "torch",
    "keras": "Keras",
}


def write(
    records: Iterable[dict[str, Any]],
    folder: pathlib.Path,
    title: str = "Runs compared",
    trajectory: str | None = None,
) -> pathlib.Path:
    """Writes a report of records of `runs.read_runs`, and returns its path.

    Of what is in the folder, it replaces only an earlier report and its
    figures.
    """
    from diffstride.report import figures

    runs = study(records)
    chosen = shown(runs, trajectory)
    path = files.make_folder(folder, "--output") / "report.md"
    pictures, drawings = figures.draw_all(runs, chosen)
    before = _earlier_figures(path, drawings)
    parts = [*map(harmless, head(runs, title)), "## Figures", *pictures]
    if runs.failed:
        failed = harmless(tables.failed_table(runs.failed))
        parts += ["## Runs that failed", failed]
    if runs.unfinished:
        names = ", ".join(record["name"] for record in runs.unfinished)
        parts += ["## Runs that did not end", harmless(f"{names}.")]
    for name in before - drawings.keys():
        (folder / name).unlink(missing_ok=True)
    # The text first, which tells a later report that the figures are ours.
    files.replace_text(path, "\n\n".join(parts) + "\n")
    for name, figure in drawings.items():
        files.replace_file(folder / name, figure.savefig)
    return path


def _earlier_figures(path: pathlib.Path, names: Iterable[str]) -> set[str]:
    """The figures of a report that is there; refuses what no report wrote."""

    def read(path: pathlib.Path) -> set[str]:
        text = files.read_text(path)
        if text.strip() and "\n\n## Test accuracy, %\n\n|" not in text:
            raise UserError("without a table of test accuracy")
        return set(re.findall(r"^!\[.*\]\((\w+\.png)\)$", text, re.MULTILINE))

    found = (
        files.read_ours(
            path, "report.md in --output", "an earlier report", read
        )
        or set()
    )
    for name in names:
        if name not in found and (path.parent / name).exists():
            raise UserError(
                f"--output={path.parent} holds {name}, which is not of an "
                "earlier report and would be lost. Choose another folder"
            )
    return found


def head(runs: Study, title: str) -> list[str]:
    """Paragraphs before the figures: on the runs, and all tables."""
    return [f"# {title}", *_overview(runs), *_tables(runs)]


def _overview(runs: Study) -> list[str]:
    """How many runs, on what, and what they have in common."""
    kinds = {
        "ended well": runs.ended,
        "failed": runs.failed,
        "did not end": runs.unfinished,
    }
    counts = [f"{len(each)} {kind}" for kind, each in kinds.items() if each]
    seconds = sum(record["summary"].get("seconds", 0) for record in runs.ended)
    parts = [
        f"{_count(sum(map(len, kinds.values())))}: {', '.join(counts)}; "
        f"{seconds:,.0f} s of training in all. {_machines(runs.ended)}"
    ]
    if common := _common(runs):
        parts.append(f"Common to all: {common}.")
    jobs = max(record.get("jobs") or 1 for record in runs.ended)
    if jobs > 1:
        parts.append(
            f"Up to {jobs} runs shared the machine at a time: durations are no "
            "benchmark."
        )
    if names := tables.repeated_seeds(runs):
        parts.append(
            "**Mind:** these runs have the settings and the seed of another, "
            "and are counted like further seeds; if they differ in what is "
            f"not recorded, give them apart: {', '.join(names)}."
        )
    for axis in runs.others(STRIDES):
        given = runs.given(axis)
        free = [method for method in runs.methods if method not in given]
        if free:
            parts.append(
                f"{', '.join(free)} {'was' if len(free) == 1 else 'were'}"
                f" not given {axis_label(axis)}: the same runs stand in each "
                "of its rows."
            )
    return parts


def _machines(records: list[dict[str, Any]]) -> str:
    texts: Counter[str] = Counter()
    for record in records:
        environment = record["summary"].get("environment") or {}
        devices = ", ".join(environment.get("devices") or ["a machine unknown"])
        versions = [
            f"{name} {environment[key]}"
            for key, name in _PACKAGES.items()
            if key in environment
        ]
        texts[", ".join([f"On {devices}", *versions])] += 1
    if len(texts) == 1:
        return f"{next(iter(texts))}."
    return " ".join(f"{text} ({_count(n)})." for text, n in texts.items())


def _common(runs: Study) -> str:
    """Settings, and bindings beside these, that all runs have."""
    words = []
    for key in runs.settings:
        having = runs.runs[key].dropna()
        if key in runs.axes or not len(having):
            continue
        word = f"{axis_label(key)} {having.iloc[0]}"
        if len(having) < len(runs.runs):
            word += f" ({', '.join(runs.given(key))} only)"
        words.append(word)
    first = runs.ended[0]
    config = first.get("gin_config")
    if config and all(each.get("gin_config") == config for each in runs.ended):
        words.append(f"config `{config}`")
    meant = bindings(first["settings"])
    for binding in first.get("bindings") or []:
        if binding not in meant and all(
            binding in (record.get("bindings") or []) for record in runs.ended
        ):
            words.append(f"`{binding}`")
    return ", ".join(words)


def _tables(runs: Study) -> list[str]:
    axes = " x ".join(runs.runs["axis_names"].iloc[0])
    parts = ["## Test accuracy, %", tables.accuracy_table(runs)]
    if of_tasks := tables.task_table(runs):
        parts += ["## Test accuracy in each task", of_tasks]
    parts += [
        "## Accuracy beside cost",
        tables.cost_table(runs),
        "Multiply-accumulates (MACs) and memory of the activations are of one "
        f"{example(runs.runs)} in one forward pass, at the strides in the end; "
        "seconds are the median over epochs; strides and sizes are of each "
        f"pooling layer in depth order ({axes}, one number where they agree), "
        "means over seeds.",
    ]
    for title, made in (
        ("Within a budget", tables.budget_table),
        ("Learned, or the best of a search", ranks.searches_table),
        ("How early the best strides show", ranks.ranks_table),
        (
            "Short trainings in the place of whole ones",
            ranks.short_trainings_table,
        ),
        ("Whether methods agree on strides", ranks.agreement_table),
        ("Hardened", tables.hardening_table),
        ("What learned strides became", tables.hardened_strides_table),
        ("Strides that were expected", tables.expected_table),
        ("Strides as cut-off frequencies", tables.cutoff_table),
        ("What lambda buys", tables.frontier_table),
    ):
        if table := made(runs):
            parts += [f"## {title}", table]
    ablations = []
    for axis in runs.others(STRIDES):
        table = None if axis == LAMBDA else tables.ablation_table(runs, axis)
        if table:
            ablations += [f"## {axis_label(axis).capitalize()} alone", table]
    if ablations:
        ablations.append(
            "In a column all other settings are the same in each row, and the "
            "best is bold; where there are several of them the mean is over "
            "them, and ± is the standard deviation over seeds within a setting "
            "(number of runs). Between columns the other settings may differ."
        )
    return parts + ablations


def _count(number: int) -> str:
    return f"{number} run" + ("" if number == 1 else "s")
