#!/usr/bin/env python3
"""Images a second of training, against the bare step fed from memory.

    KERAS_BACKEND=jax python scripts/benchmarks/throughput.py \
        --output=results/throughput.json
    python scripts/benchmarks/throughput.py --table results/throughput.json

The table is that of `docs/backends.md`. One backend is measured in a call;
what the output has of the others stays. Two networks, strided and with learned
strides, are trained in three ways, which take turns: the step that Keras
compiles, called on one batch again and again; `fit` on batches in memory; and
the harness, with its callbacks, on images of a TFDS data set that are decoded,
shuffled, shifted and flipped. Compare only ratios within one backend, or
processor time, which depends less on what else the machine does. What happens
once in an epoch or a run is left out. It takes about ten minutes a backend.
"""

import argparse
import contextlib
import dataclasses
import functools
import io
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from backends import BACKENDS  # noqa: E402
from timing import (  # noqa: E402
    BACKEND,
    interleave,
    measured_on,
    measured_or_shown,
    timed_parser,
)

from diffstride import DiffStride, data, devices, resnet  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import read_json  # noqa: E402
from diffstride.formatting import markdown  # noqa: E402
from diffstride.stage import Stage  # noqa: E402
from diffstride.static import Retracer, learned_layers  # noqa: E402
from diffstride.tasks import objectives  # noqa: E402

BARE, FIT, HARNESS = "bare step", "fit, from memory", "the harness"
TOGETHER = 8  # Steps in one execution.
AT_ONCE = f"{FIT}, {TOGETHER} steps at once"
CLASSES = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A network, and how much of it is trained at a time."""

    name: str
    make: Callable[..., keras.Model]
    size: int
    batch: int
    steps: int


CASES = [
    Case("ResNet-18, 32 x 32, batch 32", resnet.resnet18, 32, 32, 9),
    Case(
        "quickstart's network, 16 x 16, batch 64",
        functools.partial(
            resnet.Resnet,
            filters=[16, 16, 32, 64],
            strides=[1, 1, 2, 2],
            num_layers=1,
        ),
        *(16, 64, 56),
    ),
]
STRIDES: dict[str, dict] = {
    "strided": {"pooling_cls": None},
    "learned": {
        "pooling_cls": functools.partial(DiffStride, ramp="inner"),
        "pooling_placement": "before",
    },
}


class Clock(keras.callbacks.Callback):
    """Times an epoch from its second step (or execution) to its last one."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = self.cpu_seconds = 0.0
        self.steps = 0

    def on_train_batch_begin(
        self, batch: int, logs: dict | None = None
    ) -> None:
        """Starts, once the first step is done."""
        if batch and not self.steps:
            self._wait()
            self.steps = batch
            self._begin = time.perf_counter(), time.process_time()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Notes the number of the step."""
        self._last = batch

    # Keras need not wait for a step to tell this callback of it.
    async_safe = True

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stops, unless validation has begun."""
        if not self.seconds:
            self._wait()
            begin, cpu = self._begin
            self.seconds = time.perf_counter() - begin
            self.cpu_seconds = time.process_time() - cpu
            self.steps = self._last + 1 - self.steps

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Stops."""
        self.on_epoch_end(0)

    def _wait(self) -> None:
        if BACKEND == "jax":
            self.model.jax_state_sync()
        keras.ops.convert_to_numpy(self.model.trainable_variables[0])


class Run:
    """Trains a network in one way; gives seconds a step, notes those of cores.

    Args:
        train: trains some steps; returns their number, and seconds on the clock
            and of all cores.
    """

    def __init__(self, train: Callable[[], tuple[int, float, float]]):
        self._train = train
        self._cpu: list[float] = []

    def __call__(self) -> float:
        """Trains."""
        steps, seconds, cpu_seconds = self._train()
        self._cpu.append(1e3 * cpu_seconds / steps)
        return seconds / steps

    def cpu_ms(self) -> float:
        """Median of the processor time a step, but for two first calls."""
        return statistics.median(self._cpu[2:])


def measure(seconds: float) -> list[dict[str, Any]]:
    """Measures all networks on this backend."""
    devices.set_up(deterministic=True)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            runs = {}
            for strides, arguments in STRIDES.items():
                made = ways(case, arguments, pathlib.Path(folder))
                runs |= {(strides, way): Run(run) for way, run in made.items()}
            wall = interleave(runs, seconds)
            rows += [
                {
                    **{"network": case.name, "batch": case.batch},
                    **{"strides": strides, "way": way},
                    **{"wall_ms": wall[strides, way], "cpu_ms": run.cpu_ms()},
                }
                for (strides, way), run in runs.items()
            ]
    return rows


def ways(
    case: Case, arguments: dict, folder: pathlib.Path
) -> dict[str, Callable[[], tuple[int, float, float]]]:
    """Lists the ways of training."""
    random = np.random.default_rng(0)
    images = random.normal(size=(case.batch, case.size, case.size, 3))
    labels = np.eye(CLASSES)[random.integers(CLASSES, size=case.batch)]
    batch = images.astype("float32"), labels.astype("float32")
    datasets = load(case, folder)

    def compiled(**settings: Any) -> keras.Model:
        model = case.make(**arguments, num_output_classes=CLASSES)
        model.build((None, case.size, case.size, 3))
        # Sizes stay as they are, so that nothing is compiled on the way.
        sgd = keras.optimizers.SGD(0.0, momentum=0.9)
        model.compile(sgd, **objectives((), 0.0), **settings)
        sgd.build(model.trainable_variables)
        return model

    model = compiled()
    found = {
        BARE: functools.partial(bare, bare_step(model, batch), case.steps),
        FIT: functools.partial(fit, model, batch, case.steps),
        HARNESS: functools.partial(harness, model, datasets, folder),
    }
    fixed = arguments["pooling_cls"] is None
    if BACKEND != "torch" and fixed and case.steps > TOGETHER:
        together = compiled(steps_per_execution=TOGETHER)
        found[AT_ONCE] = functools.partial(fit, together, batch, case.steps)
    return found


def bare(step: Callable[[], None], steps: int) -> tuple[int, float, float]:
    """Trains without Keras's `fit`."""
    begin, cpu = time.perf_counter(), time.process_time()
    for i in range(steps):
        step(wait=i == steps - 1)
    seconds = time.perf_counter() - begin
    return steps, seconds, time.process_time() - cpu


def bare_step(model: keras.Model, batch: tuple) -> Callable[[bool], None]:
    """Compiles the step as Keras does, and gives it a batch in memory."""
    values = tuple(map(keras.ops.convert_to_tensor, batch))
    if BACKEND == "jax":
        return _JaxStep(model, values)
    step = model.train_step
    if BACKEND == "tensorflow":
        step = tf.function(step)

    def train(wait: bool) -> None:
        logs = step(values)
        if wait:
            float(logs["loss"])

    return train


class _JaxStep:
    """A step whose state is kept outside of the model, as JAX wants it."""

    def __init__(self, model: keras.Model, values: tuple):
        import jax

        layers = learned_layers(model)
        self._step = Retracer(
            layers, lambda: jax.jit(model.train_step, donate_argnums=0)
        )
        self._sizes = [
            keras.ops.convert_to_numpy(layer.stride_weights) for layer in layers
        ]
        self._values = values
        # The model keeps its own, which other ways of training use.
        self._state = [
            [keras.ops.copy(v.value) for v in variables]
            for variables in (
                model.trainable_variables,
                model.non_trainable_variables,
                model.optimizer.variables,
                model.metrics_variables,
            )
        ]

    def __call__(self, wait: bool) -> None:
        logs, self._state = self._step(self._sizes, self._state, self._values)
        if wait:
            float(logs["loss"])


def fit(
    model: keras.Model, batch: tuple, steps: int
) -> tuple[int, float, float]:
    """Trains by `fit`, on batches that are there."""
    batches = tf.data.Dataset.from_tensors(batch).repeat()
    clock = Clock()
    model.fit(batches, steps_per_epoch=steps, verbose=0, callbacks=[clock])
    return clock.steps, clock.seconds, clock.cpu_seconds


def harness(
    model: keras.Model, datasets: data.Datasets, folder: pathlib.Path
) -> tuple[int, float, float]:
    """Trains as `diffstride.main` does, from files."""
    model.optimizer.iterations.assign(0)
    clock = Clock()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        path = pathlib.Path(root)
        (path / "backup").mkdir()
        stage = Stage(path, path, datasets, "", "model")
        with contextlib.redirect_stdout(io.StringIO()):
            stage.fit(model, 0, 1, [clock])
    return clock.steps, clock.seconds, clock.cpu_seconds


def load(case: Case, folder: pathlib.Path) -> data.Datasets:
    """Stores images of noise, and loads them as `cifar10_augmented.gin` does.

    An image is as large a file as noise can be, and thus slow to decode.
    """
    name = f"noise_{case.size}"
    count = case.batch * case.steps
    random = np.random.default_rng(0)
    shape = (case.size, case.size, 3)

    def examples(number: int) -> Iterator[tuple[int, dict]]:
        for i in range(number):
            image = random.integers(256, size=shape, dtype="uint8")
            yield i, {"image": image, "label": i % CLASSES}

    if not (folder / name).exists():
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="1.0.0",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=shape),
                    "label": tfds.features.ClassLabel(num_classes=CLASSES),
                }
            ),
            split_datasets={
                "train": examples(count),
                "test": examples(case.batch),
            },
            data_dir=folder,
        )
    return data.load_datasets(
        name,
        data_dir=str(folder),
        batch_size=case.batch,
        augment_fn=data.pad_crop_flip,
        mean=[127.5] * 3,
        std=[127.5] * 3,
    )


def table(results: dict[str, Any]) -> str:
    """Lays out the content of a results file as Markdown."""
    lines = []
    backends = {
        name: results["backends"][name]
        for name in BACKENDS
        if name in results["backends"]
    }
    for backend, found in backends.items():
        of: dict[tuple, dict] = {}
        for row in found["rows"]:
            key = backend, row["network"], row["strides"]
            of.setdefault(key, {})[row["way"]] = row
        for key, ways in of.items():
            times = {way: row["wall_ms"]["median"] for way, row in ways.items()}
            cpu = {way: row["cpu_ms"] for way, row in ways.items()}
            batch = ways[BARE]["batch"]
            lines.append(
                [
                    *key,
                    f"{batch / times[BARE] * 1e3:.0f}",
                    *(
                        f"{times[BARE] / times[way]:.2f}"
                        if way in times
                        else "-"
                        for way in (FIT, AT_ONCE, HARNESS)
                    ),
                    f"{times[HARNESS] - times[BARE]:.1f}",
                    f"{cpu[HARNESS] / cpu[BARE]:.2f}",
                ]
            )
    environment = next(iter(backends.values()))["environment"]
    header = ["", "network", "strides", "bare step, images/s"]
    header += ["`fit`", f"`fit`, {TOGETHER} steps at once", "harness"]
    header += ["harness, ms a step more", "its processor time / bare"]
    return "\n\n".join(
        [
            f"{environment['device']}, Keras {environment['keras']}: "
            + ", ".join(
                f"{name} {found['environment']['version']}"
                for name, found in backends.items()
            )
            + ".",
            markdown(header, lines),
        ]
    )


def main(argv: list[str]) -> int:
    """Measures, prints the table, writes the results."""
    return measured_or_shown(
        timed_parser(__doc__).parse_args(argv[1:]),
        _with_this_backend,
        table,
        _read_results,
    )


def _with_this_backend(
    arguments: argparse.Namespace, before: dict[str, Any] | None
) -> dict[str, Any]:
    """Returns the content of a results file, other backends' as before."""
    begin = time.perf_counter()
    rows = measure(arguments.seconds)
    found = {
        "environment": measured_on(),
        "rows": rows,
        "seconds": round(time.perf_counter() - begin),
    }
    results = before or {"backends": {}}
    return {"backends": {**results["backends"], BACKEND: found}}


def _read_results(path: pathlib.Path) -> Any:
    return read_json(path, {"backends": dict}, "Move it away")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
