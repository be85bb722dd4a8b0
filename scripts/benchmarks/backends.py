#!/usr/bin/env python3
"""The quickstart on each backend, undisturbed and killed.

    python scripts/benchmarks/backends.py --data_dir=data
    python scripts/benchmarks/backends.py --table results/backends.json

Each backend trains a config twice: once as it is, and once killed by SIGKILL in
an epoch in the middle and started again. The weights of both, and the state of
their optimizers, are compared. What JAX compiles in the first run is there for
the second. Times are of processors, to the end of the first epoch and of the
run, as the machine may have other work. With `--backends` only some are done,
and those of the output that are not stay. An undisturbed run that `--folder`
has is not made again. It takes a quarter of an hour.
"""

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

from diffstride.formatting import markdown

BACKENDS = ("tensorflow", "jax", "torch")
# Says whether what two workdirs hold is the same.
COMPARE = """
import pathlib, sys, keras, numpy as np
import diffstride

def values(folder):
    found = {}
    for path in pathlib.Path(folder).glob("*.keras"):
        model = keras.models.load_model(path)
        for v in [*model.variables, *model.optimizer.variables]:
            found[path.name, v.path] = keras.ops.convert_to_numpy(v)
    return found

one, two = map(values, sys.argv[1:])
assert one.keys() == two.keys() and one
sys.exit(not all(np.array_equal(one[path], two[path]) for path in one))
"""


def rows(workdir: pathlib.Path) -> int:
    """Epochs that a run has done."""
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def cpu_seconds(process: subprocess.Popen) -> float:
    """Processor time of a process and its threads until now, on Linux."""
    stat = pathlib.Path(f"/proc/{process.pid}/stat").read_text()
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def run(
    command: list[str],
    environment: dict[str, str],
    workdir: pathlib.Path,
    die_after: int | None = None,
) -> dict[str, float]:
    """Trains, and kills the process once it has done some epochs."""
    found: dict[str, float] = {}
    with workdir.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=log,
        )
        begun = rows(workdir)
        while process.poll() is None:
            used = cpu_seconds(process)
            if rows(workdir) > begun:
                found.setdefault("first_epoch", used)
            found["cpu_seconds"] = used
            if die_after and rows(workdir) >= die_after:
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.1)
    expected = -signal.SIGKILL if die_after else 0
    if process.wait() != expected:
        raise SystemExit(f"error: see {workdir.with_suffix('.log')}")
    return found


def measure(backend: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Trains twice on a backend."""
    folder = pathlib.Path(arguments.folder).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    environment = {
        "KERAS_BACKEND": backend,
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
    }
    command = [
        *(sys.executable, "-m", "diffstride.main"),
        f"--gin_config={arguments.gin_config}",
        *(f"--gin_bindings={each}" for each in arguments.gin_bindings),
    ]
    if arguments.data_dir:
        command.append(f"--data_dir={arguments.data_dir}")
    whole, again = folder / backend, folder / f"{backend}_killed"
    found: dict[str, Any] = {}
    if not (whole / "summary.json").exists():
        found["whole"] = run(command, environment, whole)
    epochs = rows(whole)
    found["killed"] = run(command, environment, again, (epochs + 1) // 2)
    found["killed"]["epochs"] = rows(again)
    found["resumed"] = run(command, environment, again)
    compared = subprocess.run(
        [sys.executable, "-c", COMPARE, str(whole), str(again)],
        env={**os.environ, **environment},
    )
    summary = json.loads((whole / "summary.json").read_text())
    return {
        "backend": backend,
        "same_weights": compared.returncode == 0,
        **found,
        "summary": summary,
    }


def table(measured: list[dict]) -> str:
    """Markdown of what was measured."""
    header = [
        *("backend", "accuracy", "killed after", "resumed to"),
        *("CPU s, first epoch", "second start", "whole run", "compilations"),
    ]
    lines = []
    for each in measured:
        summary = each["summary"]

        def seconds(run: str, name: str, each: dict = each) -> str:
            value = each.get(run, {}).get(name)
            return "-" if value is None else f"{value:.0f}"

        row = [
            f"{each['backend']} {summary['environment'][each['backend']]}",
            f"{100 * summary['test_accuracy']:.2f} %",
            f"{each['killed']['epochs']} of {summary['epochs']} epochs",
            "the same weights" if each["same_weights"] else "other weights",
            seconds("whole", "first_epoch"),
            seconds("killed", "first_epoch"),
            seconds("whole", "cpu_seconds"),
            str(summary.get("compilations", "-")),
        ]
        lines.append(row)
    return markdown(header, lines)


def main() -> None:
    """Measures, or prints the table of what was."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--backends", default=",".join(BACKENDS))
    add("--gin_config", default="digits.gin")
    add("--gin_bindings", action="append", default=[])
    add("--data_dir")
    add("--folder", default="exp/backends")
    add("--output", default="results/backends.json", type=pathlib.Path)
    add("--table", type=pathlib.Path)
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    found = {}
    if arguments.output.exists():
        for each in json.loads(arguments.output.read_text()):
            found[each["backend"]] = each
    for backend in arguments.backends.split(","):
        found[backend] = measure(backend, arguments)
        measured = [found[name] for name in BACKENDS if name in found]
        text = json.dumps(measured, indent=1)
        arguments.output.write_text(f"{text}\n")
    print(table(measured))


if __name__ == "__main__":
    main()
