"""How long functions take in turn, and how much memory a call holds."""

import argparse
import contextlib
import ctypes
import functools
import gc
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import keras

from diffstride.environment import accelerators, environment
from diffstride.files import make_folder, read_ours, replace_text

BACKEND = keras.backend.backend()
_MEBIBYTE = 2**20


def interleave(
    runs: dict[str, Callable[[], float]], seconds: float = 0.0
) -> dict[str, dict[str, float]]:
    """Calls functions in turn, at least five times and for some seconds.

    They return the seconds they took. For each name this gives the median and
    the quartiles in milliseconds.
    """
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < 5 or time.perf_counter() < end:
        for name, run in runs.items():
            times[name].append(1e3 * run())
        rounds += 1
    found = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4)
        found[name] = {"median": median, "low": low, "high": high}
    return found


def results_parser(description: str) -> argparse.ArgumentParser:
    """Returns the parser of a script that writes results, or shows old ones."""
    parser = argparse.ArgumentParser(
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--output", type=pathlib.Path, help="results file, JSON"
    )
    parser.add_argument(
        "--table", help="print what this results file has to show instead"
    )
    return parser


def timed_parser(description: str) -> argparse.ArgumentParser:
    """Returns the like for a script whose contenders take turns."""
    parser = results_parser(description)
    parser.add_argument(
        "--seconds", type=float, default=0.0, help="least time for a clock"
    )
    return parser


def measured_or_shown(
    arguments: argparse.Namespace,
    measure: Callable[[argparse.Namespace, dict | None], dict],
    table: Callable[[dict], str],
    read: Callable[[pathlib.Path], Any],
) -> int:
    """Measures, prints the table and writes the results, or prints old ones.

    `measure` is given the arguments and what the results file has before.
    """
    if arguments.table:
        print(table(json.loads(pathlib.Path(arguments.table).read_text())))
        return 0
    path, before = arguments.output, None
    if path:
        before = read_ours(path, "--output", "results of this script", read)
        make_folder(path.parent, "--output")
    results = measure(arguments, before)
    if path:
        replace_text(path, json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


def peak_memory(run: Callable) -> float | None:
    """Most memory in MB that a call adds, or `None` where nothing tells.

    On JAX the method `allotted` of a run, if it has one, tells without a call.
    """
    if BACKEND == "jax" and hasattr(run, "allotted"):
        return round(run.allotted() / _MEBIBYTE, 2)
    if BACKEND == "torch" and on_gpu():
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        peak = torch.cuda.max_memory_allocated()
        return round((peak - before) / _MEBIBYTE, 2)
    if on_gpu() or not os.path.exists("/proc/self/clear_refs"):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return round((_status("VmHWM") - before) / _MEBIBYTE, 2)


def keeps_memory() -> bool:
    """Whether memory, once used, stays with the process."""
    return BACKEND == "tensorflow" and not on_gpu()


@functools.cache
def on_gpu() -> bool:
    """Whether the backend computes on an accelerator."""
    return bool(accelerators())


def measured_on() -> dict[str, str]:
    """Names versions and the device, in the words of the results."""
    found = environment()
    return {
        "backend": BACKEND,
        "version": found[BACKEND],
        "keras": found["keras"],
        "python": found["python"],
        "device": accelerators()[0] if on_gpu() else _processor(),
    }


def _processor() -> str:
    cores = f"{len(os.sched_getaffinity(0))} CPU cores"
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        if model := re.search(r"model name\s*:\s*(.*)", text):
            return f"{cores} ({model.group(1)})"
    return cores


def _status(name: str) -> int:
    """Returns a memory figure of this process, in bytes."""
    text = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(re.search(rf"{name}:\s+(\d+) kB", text).group(1))
