#!/usr/bin/env python3
"""Measures what downsampling costs, beside what it is compared with.

    python scripts/benchmarks/benchmark.py            # tables, on TensorFlow
    KERAS_BACKEND=jax python scripts/benchmarks/benchmark.py --output=jax.json
    python scripts/benchmarks/benchmark.py --table results/benchmark.json
    python scripts/benchmarks/benchmark.py --plot results/benchmark.json

Needs diffstride, keras and one of tensorflow, jax and torch. Contenders take
turns, call by call, so that whatever else the machine does hits all of them;
compare only ratios within one run. Times are medians; each contender is called
twice before it counts.

The memory of a contender is the most that the process, or the device, held in
one call beyond what it held before; of layers on JAX, what the compiler allots
for temporary values and outputs. TensorFlow on a CPU gives no memory back, so
there each contender has a process of its own, which calls it on one image, then
on all; this is done for one case.
"""

import argparse
import concurrent.futures
import functools
import json
import multiprocessing
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import benchmark_report  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from calls import LayerCall, network, network_calls  # noqa: E402
from contenders import (  # noqa: E402
    Case,
    has_convolutions,
    layer_contenders,
    network_contenders,
)
from keras import ops  # noqa: E402
from timing import (  # noqa: E402
    interleave,
    keeps_memory,
    measured_on,
    peak_memory,
)

from diffstride import model_cost  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import (  # noqa: E402
    make_folder,
    read_json,
    read_ours,
    replace_text,
)

FORMATS = ("channels_last", "channels_first")
# Of about the same number of bytes; then other channels, and no stride.
BATCHES = {8: 64, 16: 64, 32: 64, 64: 49, 112: 16, 224: 4}
CASES = [
    *(
        Case(batch, size, 64, data_format, 2.0)
        for data_format in FORMATS
        for size, batch in BATCHES.items()
    ),
    *(Case(64, 32, channels, FORMATS[0], 2.0) for channels in (4, 16, 256)),
    *(Case(BATCHES[size], size, 64, FORMATS[0], 1.0) for size in (32, 224)),
]
MEMORY_CASE = Case(64, 32, 64, "channels_last", 2.0)


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes the results."""
    arguments = _arguments(argv)
    if given := arguments.plot or arguments.table:
        results = json.loads(pathlib.Path(given).read_text())
        if arguments.plot:
            root = pathlib.Path(__file__).resolve().parents[2]
            benchmark_report.plot(results, root / "docs" / "benchmark.png")
        else:
            print(benchmark_report.tables(results))
        return 0
    path = arguments.output
    if path:
        read_ours(path, "--output", "results of this script", _read_results)
        make_folder(path.parent, "--output")
    results = measure(arguments)
    if path:
        replace_text(path, json.dumps(results, indent=1) + "\n")
    print(benchmark_report.tables(results))
    return 0


def _read_results(path: pathlib.Path) -> Any:
    shape = {"environment": dict, "layer": [dict], "network": [dict]}
    return read_json(path, shape, "Move it away")


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures layers and networks; returns the content of a results file."""
    begin = time.perf_counter()
    _set_policy(arguments.dtype)
    layers, networks = [], []
    if arguments.part != "network":
        for case in CASES:
            print(case, file=sys.stderr, flush=True)
            layers += layer_rows(case, arguments)
    if arguments.part != "layer":
        for data_format in filter(has_convolutions, FORMATS):
            networks += network_rows(data_format, arguments)
    return {
        "environment": measured_on(),
        "dtype": arguments.dtype,
        "layer": layers,
        "network": networks,
        "seconds": round(time.perf_counter() - begin),
    }


def layer_rows(case: Case, arguments: argparse.Namespace) -> list[dict]:
    """Measures all layers on one input."""
    x = _layer_input(case)
    contenders = layer_contenders(case)
    rows = {name: {"contender": name, **case._asdict()} for name in contenders}
    for measure, backward in (("forward", False), ("backward", True)):
        runs = {
            name: LayerCall(contender, x, backward)
            for name, contender in contenders.items()
        }
        for name, times in interleave(runs, arguments.seconds).items():
            rows[name][f"{measure}_ms"] = times
    if case == MEMORY_CASE or not keeps_memory():
        for name, megabytes in _memory(runs, "layer", arguments).items():
            rows[name]["backward_mb"] = megabytes
    return list(rows.values())


def network_rows(data_format: str, arguments: argparse.Namespace) -> list[dict]:
    """Measures ResNet-18 on images of 32 x 32 with each kind of pooling."""
    batch, burst = arguments.batch, arguments.burst
    random = np.random.default_rng(0)
    x = random.normal(size=(batch * burst, 32, 32, 3)).astype("float32")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1).copy()
    y = random.integers(10, size=batch * burst)
    models = {
        name: network(each, data_format)
        for name, each in network_contenders().items()
    }
    calls = {
        name: network_calls(model, x, y, burst)
        for name, model in models.items()
    }
    rows = {
        name: {
            "contender": name,
            "batch": batch,
            "data_format": data_format,
            "macs": model_cost(model).macs,
        }
        for name, model in models.items()
    }
    for measure in ("forward", "step"):
        runs = {name: call[measure] for name, call in calls.items()}
        for name, times in interleave(runs).items():
            each = {key: ms / burst for key, ms in times.items()}
            rows[name][f"{measure}_ms"] = each
    for name, megabytes in _memory(runs, "network", arguments).items():
        rows[name]["step_mb"] = megabytes
    return list(rows.values())


def _memory(
    runs: dict[str, Any], part: str, arguments: argparse.Namespace
) -> dict[str, float | None]:
    """Peak memory of each run in MB, in processes where it has to be."""
    if not keeps_memory():
        return {name: peak_memory(run) for name, run in runs.items()}
    names = [name for name in runs if "imaginary" not in name]
    find = functools.partial(_memory_of_process, part, arguments)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(find, names), strict=True))


def _memory_of_process(
    part: str, arguments: argparse.Namespace, name: str
) -> float | None:
    """Calls `memory_of` in a process that has done nothing else."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        try:
            return pool.submit(memory_of, part, arguments, name).result()
        except concurrent.futures.process.BrokenProcessPool:
            return None  # The system has ended it, for want of memory.


def memory_of(
    part: str, arguments: argparse.Namespace, name: str
) -> float | None:
    """Peak memory in MB of a layer, or of a training step of a network."""
    _set_policy(arguments.dtype)
    if part == "layer":
        contender = layer_contenders(MEMORY_CASE)[name]
        x = _layer_input(MEMORY_CASE)
        one, run = (LayerCall(contender, x, True) for x in (x[:1], x))
    else:
        model = network(network_contenders()[name], "channels_last")
        x = np.zeros((arguments.batch, 32, 32, 3), "float32")
        y = np.zeros(arguments.batch, "int32")
        one = network_calls(model, x[:1], y[:1])["step"]
        run = network_calls(model, x, y)["step"]
    one()
    return peak_memory(run)


def _set_policy(dtype: str) -> None:
    keras.config.set_dtype_policy(
        "mixed_bfloat16" if dtype == "bfloat16" else dtype
    )


def _layer_input(case: Case) -> Any:
    x = np.random.default_rng(0).normal(size=case.shape).astype("float32")
    dtype = keras.config.dtype_policy().compute_dtype
    return ops.cast(ops.convert_to_tensor(x), dtype)


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--part", choices=["layer", "network", "all"], default="all")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--seconds", type=float, default=1.0, help="of each layer measurement")
    add("--batch", type=int, default=32, help="images in a training step")
    add("--burst", type=int, default=1, help="training steps in a turn")
    add("--output", type=pathlib.Path, help="receives the results, as JSON")
    add("--table", metavar="JSON", help="print the tables of these results")
    add("--plot", metavar="JSON", help="draw them as docs/benchmark.png")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
