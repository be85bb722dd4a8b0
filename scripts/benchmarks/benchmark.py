#!/usr/bin/env python3
"""Measures what downsampling costs, beside what it is compared with.

    python scripts/benchmark.py                     # tables, on TensorFlow
    KERAS_BACKEND=jax python scripts/benchmark.py --output=results/jax.json
    python scripts/benchmark.py --table results/benchmark.json
    python scripts/benchmark.py --plot results/benchmark.json --picture=a.png

Needs keras and one of tensorflow, jax and torch. Contenders take turns, call by
call, so that whatever else the machine does hits all of them; only ratios
within one run are to be compared. Times are medians; each contender is called
twice before it counts.

The memory of a contender is the most that the process, or the device, held in
one call beyond what it held before; of layers on JAX, what the compiler allots
for temporary values and outputs. TensorFlow on a CPU gives no memory back, so
there each contender has a process of its own, which calls it on one image, then
on all; this is done for one case.
"""

import argparse
import concurrent.futures
import contextlib
import ctypes
import functools
import gc
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import benchmark_report  # noqa: E402
import keras  # noqa: E402
import numpy as np  # noqa: E402
from benchmark_section import section  # noqa: E402
from fft_form import FFTForm  # noqa: E402
from keras import ops  # noqa: E402

from diffstride import (  # noqa: E402
    DiffStride,
    FixedSpectralPooling,
    spectral,
)
from diffstride.environment import (  # noqa: E402
    accelerators,
    environment,
)
from diffstride.resnet import resnet18  # noqa: E402
from diffstride.static import Retracer  # noqa: E402

BACKEND = keras.backend.backend()
RAMPS = {
    "outer": "outer",
    "inner": "inner",
    "straight-through": "straight_through",
}


class Case(NamedTuple):
    """An input of the layers, and their stride."""

    batch: int
    size: int
    channels: int
    data_format: str
    stride: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        sizes = (self.size, self.size)
        if self.data_format == "channels_last":
            return (self.batch, *sizes, self.channels)
        return (self.batch, self.channels, *sizes)


MEMORY_CASE = Case(64, 32, 64, "channels_last", 2.0)


class Slice(keras.layers.Layer):
    """The least that a pooling to the sizes of a DiffStride layer can cost."""

    commutes_with_pointwise = True

    def __init__(self, strides: Any, data_format: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.model = DiffStride(strides, data_format=data_format, frozen=True)

    def call(self, inputs: Any) -> Any:
        """Returns the upper left corner."""
        shape = self.model.compute_output_shape(inputs.shape)
        height, width = (shape[axis] for axis in self.model.spatial_axes)
        if self.model.data_format == "channels_last":
            return inputs[:, :height, :width, :]
        return inputs[:, :, :height, :width]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the corner."""
        return self.model.compute_output_shape(input_shape)


def main() -> None:
    """Measures, prints the tables, writes the results."""
    arguments = _arguments()
    if given := arguments.table or arguments.section or arguments.plot:
        results = json.loads(pathlib.Path(given).read_text())
        if arguments.plot:
            benchmark_report.plot(results, arguments.picture)
        else:
            write = benchmark_report.tables if arguments.table else section
            print(write(results))
        return
    keras.config.set_dtype_policy(
        arguments.dtype if arguments.dtype == "float32" else "mixed_bfloat16"
    )
    if arguments.memory_of:
        print(json.dumps(memory_of(arguments.part, arguments.memory_of)))
        return
    begin = time.perf_counter()
    results: dict[str, Any] = {
        "environment": measured_on(),
        "dtype": arguments.dtype,
        "layer": [],
        "network": [],
    }
    if arguments.part in ("layer", "all"):
        for case in _cases(arguments):
            rows = layer_rows(case, arguments.seconds)
            results["layer"] += rows
            print(_progress(case, rows), file=sys.stderr, flush=True)
    if arguments.part in ("network", "all"):
        for data_format in _formats(arguments, convolutions=True):
            results["network"] += network_rows(
                data_format, arguments.batch, arguments.rounds, arguments.burst
            )
    results["seconds"] = round(time.perf_counter() - begin)
    if arguments.output:
        path = pathlib.Path(arguments.output)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
    print(benchmark_report.tables(results))


def layer_rows(case: Case, seconds: float) -> list[dict]:
    """Measures all layers on one input.

    Args:
        case: the input.
        seconds: how long to take turns in each of the two measurements.

    Returns:
        One row for each contender.
    """
    x = np.random.default_rng(0).normal(size=case.shape).astype("float32")
    x = ops.cast(
        ops.convert_to_tensor(x), keras.config.dtype_policy().compute_dtype
    )
    rows = {
        name: {"contender": name, **case._asdict()}
        for name in layer_contenders(case)
    }
    for measure, backward in (("forward", False), ("backward", True)):
        runs = {
            name: make(x, backward)
            for name, make in layer_contenders(case).items()
        }
        for name, timing in interleave(runs, seconds=seconds).items():
            rows[name][f"{measure}_ms"] = timing
        if not _keeps_memory():
            for name, run in runs.items():
                rows[name][f"{measure}_mb"] = peak_memory(run)
    if _keeps_memory() and case == MEMORY_CASE:
        _add_memory("layer", "backward_mb", rows)
    return list(rows.values())


def layer_contenders(case: Case) -> dict[str, Callable]:
    """What is compared: names, and functions that make a call to be timed."""
    kwargs = {"data_format": case.data_format}
    fixed = {
        "FFT form": lambda: FFTForm(case.stride, **kwargs),
        "FixedSpectralPooling": lambda: FixedSpectralPooling(
            case.stride, **kwargs
        ),
    }
    if case.stride == int(case.stride) and _has_convolutions(case.data_format):
        stride = int(case.stride)
        fixed["strided convolution"] = lambda: keras.layers.Conv2D(
            case.channels, 3, stride, "same", use_bias=False, **kwargs
        )
        fixed["average pooling"] = lambda: keras.layers.AveragePooling2D(
            stride, padding="same", **kwargs
        )
    contenders = {
        name: functools.partial(_layer_call, layer)
        for name, layer in fixed.items()
    }
    for name, ramp in RAMPS.items():
        layer = functools.partial(DiffStride, case.stride, ramp=ramp, **kwargs)
        if BACKEND != "jax":
            contenders[f"{name}, dynamic"] = functools.partial(
                _layer_call, layer
            )
        if BACKEND != "torch":
            contenders[f"{name}, static"] = functools.partial(
                _static_call, layer, jit=BACKEND == "jax"
            )
        if BACKEND == "tensorflow" and ramp == "outer":
            contenders[f"{name}, static, XLA"] = functools.partial(
                _static_call, layer, jit=True
            )
    # The two forms of the imaginary part, of which the layer chooses one.
    layer = functools.partial(DiffStride, case.stride, **kwargs)
    call = (
        _layer_call
        if BACKEND == "torch"
        else functools.partial(_static_call, jit=BACKEND == "jax")
    )
    for name, threshold in (("whole", 10**9), ("low rank", 0)):
        contenders[f"outer, imaginary part {name}"] = functools.partial(
            _with_threshold, threshold, call, layer
        )
    return contenders


def network_rows(
    data_format: str, batch: int, rounds: int, burst: int
) -> list[dict]:
    """Measures ResNet-18 on images of 32 x 32 with each kind of pooling.

    Args:
        data_format: `"channels_last"` or `"channels_first"`.
        batch: number of images in a step.
        rounds: how often the contenders take turns.
        burst: number of steps in a turn. With more than one, time passes
            without waiting for each, as in real training.

    Returns:
        One row for each contender.
    """
    random = np.random.default_rng(0)
    x = random.normal(size=(batch * burst, 32, 32, 3)).astype("float32")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1).copy()
    y = random.integers(10, size=batch * burst)
    models = {
        name: _compiled(pooling, data_format)
        for name, pooling in network_contenders().items()
    }
    rows = {
        name: {"contender": name, "batch": batch, "data_format": data_format}
        for name in models
    }
    for measure, step in (("forward", _predict), ("step", _train)):
        runs = {
            name: functools.partial(step, model, x, y, burst)
            for name, model in models.items()
        }
        for name, timing in interleave(runs, rounds=rounds).items():
            rows[name][f"{measure}_ms"] = {
                key: value / burst for key, value in timing.items()
            }
        if not _keeps_memory():
            for name, run in runs.items():
                rows[name][f"{measure}_mb"] = peak_memory(run)
    if _keeps_memory():
        _add_memory("network", "step_mb", rows)
    return list(rows.values())


def network_contenders() -> dict[str, Any]:
    """What is compared: names and pooling classes."""
    return {
        "strided": None,
        "spectral": FixedSpectralPooling,
        "outer": DiffStride,
        "outer, strides fixed": functools.partial(DiffStride, trainable=False),
        "outer's floor: slices": Slice,
        "inner": functools.partial(DiffStride, ramp="inner"),
        "straight-through": functools.partial(
            DiffStride, ramp="straight_through"
        ),
    }


def interleave(
    runs: dict[str, Callable], seconds: float = 0.0, rounds: int = 5
) -> dict[str, dict]:
    """Times functions in turn.

    Args:
        runs: functions without arguments that return once all is computed;
            either nothing, or how many seconds they took by their own clock.
        seconds: how long to go on.
        rounds: how many rounds to make at least.

    Returns:
        For each name the median, and the quartiles, in milliseconds.
    """
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times[next(iter(runs))]) < rounds:
        for name, run in runs.items():
            begin = time.perf_counter()
            own = run()
            taken = time.perf_counter() - begin if own is None else own
            times[name].append(1e3 * taken)
    return {name: _quartiles(values) for name, values in times.items()}


def memory_of(part: str, name: str) -> float | None:
    """Peak memory of one contender, in a process that has done nothing else.

    Args:
        part: `"layer"` or `"network"`.
        name: the contender.

    Returns:
        Most memory in MB that the call on all images has added.
    """
    if part == "layer":
        make = layer_contenders(MEMORY_CASE)[name]
        x = np.random.default_rng(0).normal(size=MEMORY_CASE.shape)
        x = ops.convert_to_tensor(x.astype("float32"))
        one, run = make(x[:1], True), make(x, True)
    else:
        model = _compiled(network_contenders()[name], "channels_last")
        x = np.zeros((32, 32, 32, 3), "float32")
        y = np.zeros(32, "int32")
        one = functools.partial(_train, model, x[:1], y[:1], 1)
        run = functools.partial(_train, model, x, y, 1)
    one()
    return peak_memory(run)


def peak_memory(run: Callable) -> float | None:
    """Most memory that a call holds, in MB, beyond what was held before."""
    if hasattr(run, "allotted"):
        return round(run.allotted() / 2**20, 2)
    if BACKEND == "torch" and _on_gpu():
        import torch

        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)
    if _on_gpu() or not os.path.exists("/proc/self/clear_refs"):
        return None
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    run()
    return round((_status("VmHWM") - before) / 2**10, 2)


def _keeps_memory() -> bool:
    return BACKEND == "tensorflow" and not _on_gpu()


def _add_memory(part: str, key: str, rows: dict[str, dict]) -> None:
    """Adds to each row what a process of its own finds; nothing is timed."""

    def measure(name: str) -> float | None:
        command = [sys.executable, __file__, f"--memory_of={name}"]
        done = subprocess.run(
            [*command, f"--part={part}"], capture_output=True, text=True
        )
        return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None

    names = [name for name in rows if "imaginary" not in name]
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for name, value in zip(names, pool.map(measure, names), strict=True):
            rows[name][key] = value


def measured_on() -> dict[str, Any]:
    """What was measured on, in the words of the results."""
    found = environment()
    return {
        "backend": BACKEND,
        "version": found[BACKEND],
        "keras": found["keras"],
        "python": found["python"],
        "device": _device(),
    }


def _layer_call(make: Callable, x: Any, backward: bool) -> Callable:
    """A call of a layer, with dynamic sizes unless it has others."""
    layer = make()
    layer.build(x.shape)
    if BACKEND == "jax":
        return _jax_call(layer, x, backward)
    if BACKEND == "tensorflow":
        return _tensorflow_call(layer, x, backward, jit=None)
    return _torch_call(layer, x, backward)


def _static_call(make: Callable, x: Any, backward: bool, jit: bool) -> Callable:
    """A call of a DiffStride layer with sizes that are held."""
    layer = make()
    layer.build(x.shape)
    if BACKEND == "jax":
        return _jax_call(layer, x, backward)
    return _tensorflow_call(layer, x, backward, jit)


def _with_threshold(
    threshold: int, call: Callable, make: Callable, x: Any, backward: bool
) -> Callable:
    """A call, with another choice of the imaginary part's form."""
    run = call(make, x, backward)

    def forced() -> Any:
        kept = spectral.LOW_RANK_SIZE
        spectral.LOW_RANK_SIZE = threshold
        try:
            return run()
        finally:
            spectral.LOW_RANK_SIZE = kept

    if hasattr(run, "allotted"):
        forced.allotted = run.allotted
    return forced


def _tensorflow_call(
    layer: Any, x: Any, backward: bool, jit: bool | None
) -> Callable:
    import tensorflow as tf

    variables = [v.value for v in layer.trainable_variables]

    def compute(x: Any) -> Any:
        if not backward:
            return layer(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = _loss(layer(x))
        return tape.gradient(loss, [x, *variables])

    def wait() -> None:
        if _on_gpu():
            tf.test.experimental.sync_devices()

    # A new function each time: TensorFlow keeps traces by function.
    make = functools.partial(
        tf.function, lambda x: compute(x), jit_compile=bool(jit)
    )
    if jit is None:
        function = make()

        def run() -> None:
            function(x)
            wait()

        return run
    retracer = Retracer([layer], make)

    def run_static() -> None:
        retracer([layer.stride_weights.numpy()], x)
        wait()

    return run_static


def _jax_call(layer: Any, x: Any, backward: bool) -> Callable:
    import jax

    def loss(trainable: list, fixed: list, x: Any) -> Any:
        return _loss(layer.stateless_call(trainable, fixed, x)[0])

    def forward(trainable: list, fixed: list, x: Any) -> Any:
        return layer.stateless_call(trainable, fixed, x)[0]

    function = jax.grad(loss, argnums=(0, 2)) if backward else forward
    trainable = [v.value for v in layer.trainable_variables]
    fixed = [v.value for v in layer.non_trainable_variables]
    learned = [layer] if isinstance(layer, DiffStride) else []
    jitted = []

    def make() -> Callable:
        jitted.append(jax.jit(lambda *args: function(*args)))
        return jitted[-1]

    retracer = Retracer(learned, make)

    def run() -> None:
        strides = [np.asarray(each.stride_weights.value) for each in learned]
        jax.block_until_ready(retracer(strides, trainable, fixed, x))

    def allotted() -> int:
        strides = [np.asarray(each.stride_weights.value) for each in learned]
        size = 0

        def lower() -> Callable:
            def analyse(*args: Any) -> None:
                nonlocal size
                compiled = jax.jit(lambda *a: function(*a)).lower(*args)
                memory = compiled.compile().memory_analysis()
                size = memory.temp_size_in_bytes + memory.output_size_in_bytes

            return analyse

        Retracer(learned, lower)(strides, trainable, fixed, x)
        return size

    run.allotted = allotted
    return run


def _torch_call(layer: Any, x: Any, backward: bool) -> Callable:
    import torch

    variables = [v.value for v in layer.trainable_variables]

    def run() -> None:
        if backward:
            inputs = x.detach().requires_grad_(True)
            torch.autograd.grad(_loss(layer(inputs)), [inputs, *variables])
        else:
            with torch.no_grad():
                layer(x)
        if _on_gpu():
            torch.cuda.synchronize()

    return run


def _loss(y: Any) -> Any:
    y = ops.cast(y, "float32")
    return ops.sum(y * y)


def _compiled(pooling: Any, data_format: str) -> keras.Model:
    first = data_format == "channels_first"
    model = resnet18(pooling_cls=pooling, channels_first=first)
    model.build((None, 3, 32, 32) if first else (None, 32, 32, 3))
    model.compile(
        # At stride 2 sizes lie on an edge, where the least move of a stride
        # changes them by 2. Rate 0 costs as much and keeps all networks at the
        # sizes they are compared at.
        keras.optimizers.SGD(0.0, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


class _Clock(keras.callbacks.Callback):
    """Times what Keras does between its first step and its last one."""

    def __init__(self):
        super().__init__()
        self.seconds = 0.0

    def _start(self, logs: dict | None = None) -> None:
        self._begin = time.perf_counter()

    def _stop(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self._begin

    on_train_begin = on_predict_begin = _start
    on_train_end = on_predict_end = _stop


def _train(model: keras.Model, x: Any, y: Any, burst: int) -> float | None:
    if burst == 1:
        model.train_on_batch(x, y)
        return None
    clock = _Clock()
    arguments = {"batch_size": len(x) // burst, "shuffle": False, "verbose": 0}
    model.fit(x, y, callbacks=[clock], **arguments)
    return clock.seconds


def _predict(model: keras.Model, x: Any, y: Any, burst: int) -> float | None:
    if burst == 1:
        model.predict_on_batch(x)
        return None
    clock = _Clock()
    batch_size = len(x) // burst
    model.predict(x, batch_size=batch_size, verbose=0, callbacks=[clock])
    return clock.seconds


def _cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Inputs of about the same number of bytes, over sizes and channels."""
    for data_format in _formats(arguments, convolutions=False):
        for size in arguments.sizes:
            yield Case(_batch(size), size, 64, data_format, 2.0)
    for channels in arguments.channels:
        yield Case(64, 32, channels, arguments.data_formats[0], 2.0)
    for size in arguments.unit_stride_sizes:
        yield Case(_batch(size), size, 64, arguments.data_formats[0], 1.0)


def _batch(size: int) -> int:
    return max(1, min(64, round(64 * (56 / size) ** 2)))


def _formats(arguments: argparse.Namespace, convolutions: bool) -> list[str]:
    return [
        data_format
        for data_format in arguments.data_formats
        if not convolutions or _has_convolutions(data_format)
    ]


def _has_convolutions(data_format: str) -> bool:
    """TensorFlow has none in channels_first on a CPU."""
    return (
        data_format == "channels_last" or BACKEND != "tensorflow" or _on_gpu()
    )


@functools.cache
def _on_gpu() -> bool:
    return bool(accelerators())


def _device() -> str:
    if names := accelerators():
        return names[0]
    model = ""
    with contextlib.suppress(OSError):
        text = pathlib.Path("/proc/cpuinfo").read_text()
        model = re.search(r"model name\s*:\s*(.*)", text)
        model = f" ({model.group(1)})" if model else ""
    return f"{len(os.sched_getaffinity(0))} CPU cores{model}"


def _status(name: str) -> int:
    """A memory figure of this process, in KB."""
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", text).group(1))


def _quartiles(values: list[float]) -> dict[str, float]:
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "low": low, "high": high}


def _progress(case: Case, rows: list[dict]) -> str:
    times = ", ".join(
        f"{row['contender']} {row['backward_ms']['median']:.1f}" for row in rows
    )
    return f"{case.data_format} {case.shape} stride {case.stride:g}: {times}"


def _arguments() -> argparse.Namespace:
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
    add("--section", metavar="JSON", help="print README's section on these")
    add("--plot", metavar="JSON", help="draw these results")
    add("--picture", default="docs/benchmark.png", help="where to draw them")
    return parser.parse_args()


if __name__ == "__main__":
    main()
