#!/usr/bin/env python3
"""Trains strided, spectral and learned downsampling alike, and compares them.

    python scripts/compare.py --gin_config=fashion_mnist.gin \
        --strides=1,1,2,2 --strides=1,3,2,3 --output=results/fashion_mnist.jsonl

Every run is a process of its own with a workdir of its own. Started again, the
command goes on with the run it was stopped in. With --table_only it prints the
Markdown table of a results file, and trains nothing.
"""

import collections
import json
import pathlib
import statistics
import subprocess
import sys

from absl import app, flags

from diffstride.errors import UserError, run_reporting_errors
from diffstride.files import read_rows

_METHODS = {
    "strided": "None",
    "spectral": "@pooling.FixedSpectralPooling",
    "DiffStride": "@pooling.DiffStride",
}
_CONFIG = flags.DEFINE_string("gin_config", None, "Config of all runs.")
_STRIDES = flags.DEFINE_multi_string(
    "strides", [], "Initial strides, such as 1,1,2,2. Several times."
)
_PARAMETER = flags.DEFINE_string(
    "strides_parameter", "resnet.Resnet.strides", "What --strides sets."
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.")
_DATA_DIR = flags.DEFINE_string("data_dir", None, "Where TFDS data lies.")
_WORKDIR = flags.DEFINE_string("workdir", "exp/compare", "Where runs are kept.")
_OUTPUT = flags.DEFINE_string("output", None, "Results file, JSON lines.")
_TABLE_ONLY = flags.DEFINE_bool("table_only", False, "Only print the table.")


def main(argv: list[str]) -> int:
    """Runs what the flags ask for, then prints the table."""
    if len(argv) > 1 or not _OUTPUT.value:
        raise UserError("--output is required, and nothing but flags")
    output = pathlib.Path(_OUTPUT.value)
    if not _TABLE_ONLY.value:
        if not _CONFIG.value or not _STRIDES.value:
            raise UserError("--gin_config and --strides are required")
        rows = []
        for seed in range(_SEEDS.value):
            for strides in _STRIDES.value:
                for method in _METHODS:
                    rows.append(_run(method, strides, seed))
                    _write(output, rows)
    if not output.exists():
        raise UserError(f"{output} does not exist; run without --table_only")
    print(table(read_rows(output)))
    return 0


def table(rows: list[dict]) -> str:
    """Lays out results as a Markdown table.

    Args:
        rows: one dictionary for each run.

    Returns:
        The table: a row for each setting of strides, a column for each method.
    """
    cells = collections.defaultdict(list)
    for row in rows:
        accuracy = 100 * row["test_accuracy"]
        cells[row["strides"], row["method"]].append(accuracy)
    lines = [
        "| initial strides | " + " | ".join(_METHODS) + " |",
        "|---" * (len(_METHODS) + 1) + "|",
    ]
    for strides in dict.fromkeys(row["strides"] for row in rows):
        texts = [_text(cells[strides, method]) for method in _METHODS]
        lines.append(f"| {strides} | {' | '.join(texts)} |")
    return "\n".join(lines)


def _text(accuracies: list[float]) -> str:
    if not accuracies:
        return "-"
    mean = f"{statistics.mean(accuracies):.2f}"
    if len(accuracies) == 1:
        return mean
    deviation = statistics.stdev(accuracies)
    return f"{mean} ± {deviation:.2f} ({len(accuracies)} seeds)"


def _run(method: str, strides: str, seed: int) -> dict:
    stem = pathlib.Path(_CONFIG.value).stem
    name = f"{stem}_{method}_{strides.replace(',', '-')}_{seed}"
    workdir = pathlib.Path(_WORKDIR.value) / name
    # A finished run is only summed up again, and checked to be this one.
    command = [
        sys.executable,
        *("-m", "diffstride.main"),
        f"--gin_config={_CONFIG.value}",
        f"--gin_bindings=resnet.Resnet.pooling_cls = {_METHODS[method]}",
        f"--gin_bindings={_PARAMETER.value} = '{strides}'",
        f"--workdir={workdir}",
        f"--seed={seed}",
    ]
    if _DATA_DIR.value:
        command.append(f"--data_dir={_DATA_DIR.value}")
    if subprocess.run(command).returncode:
        raise UserError(f"The run {name} failed; see above")
    if f"strides = '{strides}'" not in (workdir / "config.gin").read_text():
        raise UserError(
            f"{_PARAMETER.value} has no effect with {_CONFIG.value}; name "
            "another with --strides_parameter, such as resnet.resnet18.strides"
        )
    result = json.loads((workdir / "summary.json").read_text())
    config = pathlib.Path(_CONFIG.value).name
    return {"method": method, "strides": strides, "config": config, **result}


def _write(output: pathlib.Path, rows: list[dict]) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    app.run(run_reporting_errors(main))
