#!/usr/bin/env python3
"""Measures 1-D layers on long signals, beside FFTs and beside matrices.

    python scripts/benchmarks/long_signals.py --output=results/long_signals.json
    python scripts/benchmarks/long_signals.py --table results/long_signals.json

The tables are those of `docs/layers.md`, and `diffstride.fourier.FFT_SIZE` is
chosen by them. It takes a minute or two. Contenders take turns, as in
`benchmark.py`: compare only ratios within one run. Peak memory is that of one
call in a process of its own.
"""

import argparse
import concurrent.futures
import functools
import multiprocessing
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from calls import LayerCall  # noqa: E402
from contenders import Contender  # noqa: E402
from keras import ops  # noqa: E402
from timing import (  # noqa: E402
    BACKEND,
    interleave,
    measured_on,
    measured_or_shown,
    peak_memory,
)

from diffstride import (  # noqa: E402
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    FixedSpectralPooling1D,
)
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import read_json  # noqa: E402
from diffstride.formatting import markdown  # noqa: E402
from diffstride.masks import RAMPS  # noqa: E402

PAIR = "FFT pair"
# The last one is a prime number.
LENGTHS = (4_000, 16_000, 160_000, 160_001)
# Lengths around the switch; batch and channels of signals, and batch, width and
# channels of planes, which are that high.
SHORT_LENGTHS = (256, 512, 1024, 2048)
OTHER_SIZES = ((1, 1), (8, 16), (32, 64), (1, 64, 8))
MEMORY_CASES = (("matrix", 4_000), ("FFT", 4_000), ("FFT", 160_000))


class FFTPair(keras.layers.Layer):
    """A transform and its inverse, of the backend itself."""

    def call(self, inputs: Any) -> Any:
        """Returns the signal again."""
        x = ops.reshape(inputs, inputs.shape[:2])
        size = x.shape[1]
        if BACKEND == "tensorflow":
            from tensorflow import signal

            return signal.irfft(signal.rfft(x), [size])
        if BACKEND == "jax":
            from jax.numpy import fft
        else:
            from torch import fft
        return fft.irfft(fft.rfft(x), size)


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes the results."""
    return measured_or_shown(
        _arguments(argv),
        lambda arguments, _: measure(arguments.seconds),
        tables,
        _read_results,
    )


def measure(seconds: float) -> dict[str, Any]:
    """Returns the content of a results file; `seconds` for each table cell."""
    begin = time.perf_counter()
    long = [row for n in LENGTHS for row in _beside_pair(n, seconds)]
    short = [
        row
        for others in OTHER_SIZES
        for n in SHORT_LENGTHS
        for row in _beside_matrix(n, others, seconds)
    ]
    memory = [
        {"form": form, "size": n, "backward_mb": _memory_of_process(form, n)}
        for form, n in MEMORY_CASES
    ]
    return {
        "environment": measured_on(),
        "long": long,
        "short": short,
        "memory": memory,
        "seconds": round(time.perf_counter() - begin),
    }


def tables(results: dict[str, Any]) -> str:
    """Lays out the content of a results file as Markdown."""
    names = dict.fromkeys(row["layer"] for row in results["long"])
    long = {(row["layer"], row["size"]): row for row in results["long"]}
    sizes = dict.fromkeys(row["size"] for row in results["long"])
    beside_pair = [
        [name, *(_beside(long[name, n], long[PAIR, n]) for n in sizes)]
        for name in names
    ]
    short: dict[str, dict] = {}
    for row in results["short"]:
        title = f"{row['layer']}, {' x '.join(map(str, row['others']))}"
        short.setdefault(title, {})[row["form"], row["size"]] = row
    sizes_of_short = dict.fromkeys(row["size"] for row in results["short"])
    beside_matrix = [
        [
            title,
            *(
                f"{ratio(rows['FFT', n], rows['matrix', n]):.2f}"
                for n in sizes_of_short
            ),
        ]
        for title, rows in short.items()
    ]
    environment = results["environment"]
    return "\n\n".join(
        [
            f"{environment['backend']} {environment['version']}, Keras "
            f"{environment['keras']}, {environment['device']}; "
            f"{results['seconds']} s in all.",
            "Forward + backward in ms (and relative to the FFT pair), by "
            "length; one signal, one channel, stride 2",
            markdown(["layer", *(f"{n:,}" for n in sizes)], beside_pair),
            "FFTs relative to matrices, forward + backward, by length or "
            "height, and batch x (width x) channels",
            markdown(
                ["layer, other sizes", *map(str, sizes_of_short)],
                beside_matrix,
            ),
            "Peak memory of forward + backward, outer ramp",
            markdown(
                ["form", "length", "MB"],
                [
                    [
                        row["form"],
                        f"{row['size']:,}",
                        _megabytes(row["backward_mb"]),
                    ]
                    for row in results["memory"]
                ],
            ),
        ]
    )


def ratio(row: dict, other: dict) -> float:
    """Returns how many times longer a measurement took than another."""
    return _ms(row) / _ms(other)


def _beside_pair(size: int, seconds: float) -> list[dict]:
    x = _maps(1, size, 1)
    made = {PAIR: Contender(FFTPair)}
    for ramp in RAMPS:
        made[ramp.replace("_", "-")] = _layer(DiffStride1D, ramp=ramp)
    made["outer, frozen"] = _layer(DiffStride1D, frozen=True)
    made["FixedSpectralPooling1D"] = _layer(FixedSpectralPooling1D)
    runs = {name: LayerCall(each, x, True) for name, each in made.items()}
    return [
        {"layer": name, "size": size, "backward_ms": times}
        for name, times in interleave(runs, seconds).items()
    ]


def _beside_matrix(
    size: int, others: tuple[int, ...], seconds: float
) -> list[dict]:
    x = _maps(others[0], size, *others[1:])
    classes = (DiffStride1D, FixedSpectralPooling1D)
    sizes = {"matrix": 10**9, "FFT": size}
    if len(others) == 3:
        classes = (DiffStride, FixedSpectralPooling)
        # Planes wait for twice as many; their width is no long axis.
        sizes["FFT"] = size // 2
    runs = {
        (cls.__name__, form): LayerCall(_layer(cls, fft_size), x, True)
        for cls in classes
        for form, fft_size in sizes.items()
    }
    return [
        {
            "layer": name,
            "form": form,
            "size": size,
            "others": others,
            "backward_ms": times,
        }
        for (name, form), times in interleave(runs, seconds).items()
    ]


def memory_of(form: str, size: int) -> float | None:
    """Peak memory in MB of a call, in a process that has done nothing else."""
    contender = _layer(DiffStride1D, 10**9 if form == "matrix" else 0)
    LayerCall(contender, _maps(1, 64, 1), True)()
    return peak_memory(LayerCall(contender, _maps(1, size, 1), True))


def _memory_of_process(form: str, size: int) -> float | None:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(memory_of, form, size).result()


def _layer(cls: type, fft_size: int = 0, **settings: Any) -> Contender:
    make = functools.partial(cls, 2.0, data_format="channels_last", **settings)
    static = BACKEND == "jax" and cls in (DiffStride, DiffStride1D)
    return Contender(make, static=static, fft_size=fft_size)


def _maps(*shape: int) -> Any:
    x = np.random.default_rng(0).normal(size=shape)
    return ops.convert_to_tensor(x.astype("float32"))


def _beside(row: dict, pair: dict) -> str:
    return f"{_ms(row):.1f} ({ratio(row, pair):.2f})"


def _ms(row: dict) -> float:
    return row["backward_ms"]["median"]


def _megabytes(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _read_results(path: pathlib.Path) -> Any:
    shape = {"long": [dict], "short": [dict], "memory": [dict]}
    return read_json(path, shape, "Move it away")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=1.0, help="of each measurement")
    add("--output", type=pathlib.Path, help="receives the results, as JSON")
    add("--table", metavar="JSON", help="print the tables of these results")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
