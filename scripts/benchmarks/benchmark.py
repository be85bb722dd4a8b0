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
import json
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
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

MEMORY_CASE = Case(64, 32, 64, "channels_last", 2.0)


def main(argv: list[str]) -> None:
    """Measures, prints the tables, writes the results."""
    arguments = _arguments(argv)
    if given := arguments.table or arguments.plot:
        results = json.loads(pathlib.Path(given).read_text())
        if arguments.plot:
            benchmark_report.plot(results, arguments.picture)
        else:
            print(benchmark_report.tables(results))
        return
    keras.config.set_dtype_policy(
        arguments.dtype if arguments.dtype == "float32" else "mixed_bfloat16"
    )
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.memory_of, arguments)))
        return
    results = measure(arguments)
    if arguments.output:
        path = pathlib.Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(benchmark_report.tables(results))


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measures layers and networks.

    Args:
        arguments: those of the command line.

    Returns:
        The content of a results file.
    """
    begin = time.perf_counter()
    results: dict[str, Any] = {
        "environment": measured_on(),
        "dtype": arguments.dtype,
        "layer": [],
        "network": [],
    }
    if arguments.part in ("layer", "all"):
        for case in _cases(arguments):
            rows = layer_rows(case, arguments)
            results["layer"] += rows
            print(_progress(case, rows), file=sys.stderr, flush=True)
    if arguments.part in ("network", "all"):
        for data_format in filter(has_convolutions, arguments.data_formats):
            results["network"] += network_rows(data_format, arguments)
    results["seconds"] = round(time.perf_counter() - begin)
    return results


def layer_rows(case: Case, arguments: argparse.Namespace) -> list[dict]:
    """Measures all layers on one input.

    Args:
        case: the input.
        arguments: those of the command line.

    Returns:
        One row for each contender.
    """
    x = _layer_input(case)
    contenders = layer_contenders(case)
    rows = {name: {"contender": name, **case._asdict()} for name in contenders}
    for measure, backward in (("forward", False), ("backward", True)):
        runs = {
            name: LayerCall(contender, x, backward)
            for name, contender in contenders.items()
        }
        timings = interleave(runs, seconds=arguments.seconds)
        _add(rows, f"{measure}_ms", timings)
        _add_memory(rows, f"{measure}_mb", runs)
    if keeps_memory() and case == MEMORY_CASE:
        _add_memory_of_processes(rows, "backward_mb", "layer", arguments)
    return list(rows.values())


def network_rows(data_format: str, arguments: argparse.Namespace) -> list[dict]:
    """Measures ResNet-18 on images of 32 x 32 with each kind of pooling.

    Args:
        data_format: `"channels_last"` or `"channels_first"`.
        arguments: those of the command line.

    Returns:
        One row for each contender.
    """
    batch, burst = arguments.batch, arguments.burst
    random = np.random.default_rng(0)
    x = random.normal(size=(batch * burst, 32, 32, 3)).astype("float32")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1).copy()
    y = random.integers(10, size=batch * burst)
    calls = {
        name: network_calls(network(pooling, data_format), x, y, burst)
        for name, pooling in network_contenders().items()
    }
    rows = {
        name: {"contender": name, "batch": batch, "data_format": data_format}
        for name in calls
    }
    for measure in ("forward", "step"):
        runs = {name: call[measure] for name, call in calls.items()}
        timings = interleave(runs, rounds=arguments.rounds)
        for timing in timings.values():
            timing.update({key: ms / burst for key, ms in timing.items()})
        _add(rows, f"{measure}_ms", timings)
        _add_memory(rows, f"{measure}_mb", runs)
    if keeps_memory():
        _add_memory_of_processes(rows, "step_mb", "network", arguments)
    return list(rows.values())


def memory_of(name: str, arguments: argparse.Namespace) -> float | None:
    """Peak memory of one contender, in a process that has done nothing else.

    Args:
        name: the contender.
        arguments: those of the command line; `part` says what the name is of.

    Returns:
        Most memory in MB that the call on all images has added.
    """
    if arguments.part == "layer":
        contender = layer_contenders(MEMORY_CASE)[name]
        x = _layer_input(MEMORY_CASE)
        one, run = (LayerCall(contender, x, True) for x in (x[:1], x))
    else:
        model = network(network_contenders()[name], "channels_last")
        x = np.zeros((arguments.batch, 32, 32, 3), "float32")
        y = np.zeros(arguments.batch, "int32")
        one, run = (
            network_calls(model, x[:n], y[:n])["step"] for n in (1, len(x))
        )
    one()
    return peak_memory(run)


def _add(rows: dict[str, dict], key: str, values: dict[str, Any]) -> None:
    for name, value in values.items():
        rows[name][key] = value


def _add_memory(
    rows: dict[str, dict], key: str, runs: dict[str, Callable]
) -> None:
    if not keeps_memory():
        _add(rows, key, {name: peak_memory(runs[name]) for name in runs})


def _add_memory_of_processes(
    rows: dict[str, dict], key: str, part: str, arguments: argparse.Namespace
) -> None:
    """Adds what processes find that do nothing else; nothing is timed."""

    def measure(name: str) -> float | None:
        done = subprocess.run(
            [
                *(sys.executable, __file__, f"--memory_of={name}"),
                *(f"--part={part}", f"--batch={arguments.batch}"),
                f"--dtype={arguments.dtype}",
            ],
            capture_output=True,
            text=True,
        )
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    names = [name for name in rows if "imaginary" not in name]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        found = pool.map(measure, names)
        _add(rows, key, dict(zip(names, found, strict=True)))


def _layer_input(case: Case) -> Any:
    x = np.random.default_rng(0).normal(size=case.shape).astype("float32")
    dtype = keras.config.dtype_policy().compute_dtype
    return ops.cast(ops.convert_to_tensor(x), dtype)


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Inputs of about the same number of bytes, over sizes and channels."""
    first, *_ = arguments.data_formats
    for data_format in arguments.data_formats:
        for size in arguments.sizes:
            yield Case(_batch(size), size, 64, data_format, 2.0)
    for channels in arguments.channels:
        yield Case(64, 32, channels, first, 2.0)
    for size in arguments.unit_stride_sizes:
        yield Case(_batch(size), size, 64, first, 1.0)


def _batch(size: int) -> int:
    return max(1, min(64, round(64 * (56 / size) ** 2)))


def _progress(case: Case, rows: list[dict]) -> str:
    times = ", ".join(
        f"{row['contender']} {row['backward_ms']['median']:.1f}" for row in rows
    )
    return f"{case.data_format} {case.shape} stride {case.stride:g}: {times}"


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    both = ["channels_last", "channels_first"]
    add = parser.add_argument
    add("--part", choices=["layer", "network", "all"], default="all")
    add("--sizes", type=int, nargs="+", default=[8, 16, 32, 64, 112, 224])
    add("--data_formats", nargs="+", choices=both, default=both)
    add("--channels", type=int, nargs="*", default=[4, 16, 256])
    add("--unit_stride_sizes", type=int, nargs="*", default=[32, 224])
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    add("--seconds", type=float, default=1.0, help="of each layer measurement")
    add("--rounds", type=int, default=5, help="of the network measurement")
    add("--batch", type=int, default=32, help="images in a training step")
    add("--burst", type=int, default=1, help="training steps in a turn")
    add("--memory_of", metavar="CONTENDER", help="print its peak memory, in MB")
    add("--output", help="where to write the results as JSON")
    add("--table", metavar="JSON", help="print the tables of these results")
    add("--plot", metavar="JSON", help="draw these results")
    add("--picture", default="docs/benchmark.png", help="where to draw them")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv[1:])
