#!/usr/bin/env python3
"""Counts the combinations of map sizes that occur in a run: compilations.

    python scripts/benchmarks/compilations.py --data_dir=data \
        --output=results/compilations.json
    KERAS_BACKEND=jax python scripts/benchmarks/compilations.py \
        --output=results/compilations.json
    python scripts/benchmarks/compilations.py --table results/compilations.json

The tables are those of `docs/scale.md`. On TensorFlow, whose sizes are
dynamic, small networks are trained, and the sizes of each step are noted; what
has been trained is not trained again. On JAX a step of ResNet-18 on images of
224 x 224 is compiled, without being run. Trainings take about ten minutes on
two cores, compilations three.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from timing import BACKEND, measured_on, results_parser  # noqa: E402
from walks import (  # noqa: E402
    COUNTED,
    MARGIN,
    count,
    foreseen,
    on_imagenet,
    runs_by_epoch,
    walk,
)

import diffstride  # noqa: E402
from diffstride import resnet  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import (  # noqa: E402
    make_folder,
    read_json,
    read_ours,
    replace_text,
)
from diffstride.formatting import markdown  # noqa: E402
from diffstride.masks import RAMPS  # noqa: E402
from diffstride.profiling import learned_in_order  # noqa: E402
from diffstride.static import Retracer  # noqa: E402

MODES = ("budget", "plain", "schedule")
STEPS = (1, 4)  # Trained with.
SETTINGS = ("data", "ramp", "mode", "size_step")
# Data: arguments of `load_datasets`, and epochs.
DATA = {"digits": ({"batch_size": 64, "image_size": 16}, 15)}
STRIDES = (1, 2, 2, 2)


def main(argv: list[str]) -> int:
    """Measures what the backend has to tell, or prints the tables."""
    arguments = _arguments(argv)
    if arguments.table:
        print(tables(_read_results(pathlib.Path(arguments.table))))
        return 0
    path = arguments.output
    read_ours(path, "--output", "results of this script", _read_results)
    make_folder(path.parent, "--output")
    results = (
        _read_results(path) if path.exists() else {"runs": [], "epochs": []}
    )

    def keep() -> None:
        replace_text(path, json.dumps(results, indent=1) + "\n")

    if BACKEND == "jax":
        results["compilations"] = compilations()
        keep()
    else:
        results["environment"] = measured_on()
        results["epochs"] = results["epochs"] or runs_by_epoch()
        train_all(results["runs"], arguments.data_dir, keep)
    print(tables(results))
    return 0


def train_all(
    runs: list[dict[str, Any]], data_dir: str | None, keep: Callable
) -> None:
    """Makes the runs that are not there, and keeps each at once."""
    done = [tuple(run[key] for key in SETTINGS) for run in runs]
    for data, step, mode, ramp in itertools.product(DATA, STEPS, MODES, RAMPS):
        values = (data, ramp, mode, step)
        if values not in done:
            settings = dict(zip(SETTINGS, values, strict=True))
            runs.append({**settings, **train(data_dir, **settings)})
            keep()


class Recorder(keras.callbacks.Callback):
    """Notes strides and smoothness before each step."""

    def __init__(self, layers: Sequence[Any]):
        super().__init__()
        self._layers = layers
        self.trace: list[tuple[list[np.ndarray], float]] = []

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes those of a step."""
        strides = [
            keras.ops.convert_to_numpy(layer.stride_weights)
            for layer in self._layers
        ]
        self.trace.append((strides, self._layers[0].current_smoothness))


def train(
    data_dir: str | None,
    data: str,
    ramp: str,
    mode: str,
    size_step: int,
) -> dict[str, Any]:
    """Trains a small network, and says which sizes occurred."""
    from diffstride.data import load_datasets

    begin = time.perf_counter()
    options, epochs = DATA[data]
    datasets = load_datasets(data, data_dir=data_dir, **options)
    keras.utils.set_random_seed(0)
    model = network(ramp, mode, size_step, datasets.num_classes)
    model.build((None, *datasets.image_shape))
    decay = keras.optimizers.schedules.CosineDecay(
        0.1, epochs * datasets.steps_per_epoch
    )
    model.compile(
        keras.optimizers.SGD(decay, momentum=0.9),
        keras.losses.CategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    recorder = Recorder(learned_in_order(model))
    callbacks = [recorder]
    if mode == "schedule":
        callbacks.append(diffstride.SmoothnessSchedule(0.7))
    if mode == "budget":
        callbacks.append(diffstride.add_compute_budget(model, relative=0.5))
    model.fit(
        datasets.epochs(0, epochs),
        epochs=epochs,
        steps_per_epoch=datasets.steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=callbacks,
    )
    test = model.evaluate(datasets.test, verbose=0, return_dict=True)
    cost = diffstride.model_cost(model, datasets.image_shape)
    found = {
        "steps": len(recorder.trace),
        "accuracy": round(test["accuracy"], 4),
        "macs": cost.macs,
        "seconds": round(time.perf_counter() - begin, 1),
        **counted(recorder, model, datasets.image_shape[:2], size_step),
    }
    keras.backend.clear_session()
    return found


def network(
    ramp: str, mode: str, size_step: int, classes: int
) -> resnet.Resnet:
    """The network that is trained."""

    def pooling(strides: Any, **kwargs: Any) -> diffstride.DiffStride:
        return diffstride.DiffStride(
            strides,
            smoothness_factor=1.0,
            norm="forward",
            ramp=ramp,
            final_smoothness_factor=0.0 if mode == "schedule" else None,
            size_step=size_step,
            **kwargs,
        )

    return resnet.Resnet(
        [8, 8, 16, 32],
        list(STRIDES),
        classes,
        pooling_cls=pooling,
        num_layers=1,
        weight_decay=5e-4,
    )


def counted(
    recorder: Recorder, model: Any, first: tuple, size_step: int
) -> dict[str, Any]:
    """Counts combinations of sizes, as they were and as they would have been.

    Those that would have been are of the same strides, and only counted where
    they were learned with the sizes of the release.
    """
    masks = [layer.low_pass for layer in learned_in_order(model)]
    trace = recorder.trace
    own = count(walk(masks, trace, first, size_step))
    if size_step > 1:
        return own
    return {
        **own,
        "hysteresis": count(walk(masks, trace, first, 1, MARGIN)),
        "ahead": foreseen(masks, trace, first),
        "imagenet": on_imagenet(masks, trace),
    }


def compilations() -> dict[str, Any]:
    """Compiles steps of ResNet-18 on JAX, anew and out of a cache on disk."""
    import jax

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        for ramp, stride in (("outer", 2.0), ("inner", 1.5)):
            row = {"ramp": ramp, "stride": stride}
            for name in ("new", "cached"):
                row[name] = _compile(ramp, stride)
                jax.clear_caches()
            rows.append(row)
    return {"environment": measured_on(), "rows": rows}


def _compile(ramp: str, stride: float) -> dict[str, float]:
    """Processor seconds to trace and to compile a training step."""
    import jax

    model = resnet.resnet18(
        [1, 1, 2, 2, 2],
        num_output_classes=1000,
        large_stem=True,
        pooling_cls=lambda strides, **kwargs: diffstride.DiffStride(
            strides, ramp=ramp, **kwargs
        ),
    )
    model.build((None, 224, 224, 3))
    layers = learned_in_order(model)
    spent: dict[str, float] = {}

    def loss(trainable: Any, state: Any, x: Any, y: Any) -> Any:
        logits, state = model.stateless_call(trainable, state, x, training=True)
        losses = keras.losses.sparse_categorical_crossentropy(y, logits, True)
        return keras.ops.mean(losses), state

    def step(trainable: Any, state: Any, x: Any, y: Any) -> Any:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, state), grads = gradient(trainable, state, x, y)
        moved = jax.tree.map(lambda w, g: w - 0.1 * g, trainable, grads)
        return value, moved, state

    def compiling(*args: Any) -> None:
        begin = time.process_time()
        lowered = jax.jit(step).lower(*args)
        traced = time.process_time()
        lowered.compile()
        spent["trace_s"] = round(traced - begin, 2)
        spent["compile_s"] = round(time.process_time() - traced, 2)

    shapes = [
        [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]
        for variables in (
            model.trainable_variables,
            model.non_trainable_variables,
        )
    ]
    batch = (
        jax.ShapeDtypeStruct((256, 224, 224, 3), "float32"),
        jax.ShapeDtypeStruct((256,), "int32"),
    )
    strides = [np.full_like(layer.initial_strides, stride) for layer in layers]
    Retracer(layers, lambda: compiling)(strides, *shapes, *batch)
    return spent


def tables(results: dict[str, Any]) -> str:
    """Lays out the content of a results file as Markdown."""
    parts = [
        runs_table(results["runs"]),
        imagenet_table(results["runs"] + results["epochs"]),
    ]
    if "compilations" in results:
        parts.append(compile_table(results["compilations"]["rows"]))
    return "\n\n".join(parts)


def runs_table(runs: Sequence[dict]) -> str:
    """Combinations, changes, accuracy and cost by step of sizes."""
    rows = []
    for data, mode, ramp in itertools.product(DATA, MODES, RAMPS):
        these = {"data": data, "mode": mode, "ramp": ramp}
        found = {run["size_step"]: run for run in _those(runs, **these)}
        if not found:
            continue
        cells = [
            f"{run['combinations']} / {run['changes']}, "
            f"{100 * run['accuracy']:.1f} %, {run['macs'] / 1e6:.2f} M"
            for run in map(found.get, STEPS)
            if run
        ]
        held = found[1]["hysteresis"]
        cells.insert(1, f"{held['combinations']} / {held['changes']}")
        rows.append([*these.values(), *cells, *["-"] * (3 - len(cells))])
    steps = [f"`size_step={n}`" for n in STEPS]
    steps.insert(1, "hysteresis")
    return markdown(["data", "training", "ramp", *steps], rows)


def imagenet_table(runs: Sequence[dict]) -> str:
    """Combinations that the strides of these runs are to ResNet-18, at most."""
    rows = []
    modes = dict.fromkeys(run["mode"] for run in runs)
    for mode, ramp in itertools.product(modes, RAMPS):
        found = _those(runs, ramp=ramp, mode=mode, size_step=1)
        if found:
            counts = [most(found, step) for step in map(str, COUNTED)]
            counts.insert(1, most(found, "1", "hysteresis"))
            rows.append([mode, ramp, *map(str, counts)])
    steps = [f"`size_step={n}`" for n in COUNTED]
    steps.insert(1, "hysteresis")
    return markdown(["training", "ramp", *steps], rows)


def most(
    runs: Sequence[dict], size_step: str, what: str = "combinations"
) -> int:
    """Most combinations that some runs are to ResNet-18."""
    return max(run["imagenet"][size_step][what] for run in runs)


def compile_table(rows: Sequence[dict]) -> str:
    """Processor seconds of a compilation."""
    return markdown(
        ["ramp", "stride", "traced", "compiled", "compiled, from the cache"],
        [
            [
                row["ramp"],
                f"{row['stride']:g}",
                f"{row['new']['trace_s']:.1f} s",
                f"{row['new']['compile_s']:.1f} s",
                f"{row['cached']['compile_s']:.1f} s",
            ]
            for row in rows
        ],
    )


def _those(runs: Sequence[dict], **settings: Any) -> list[dict]:
    return [run for run in runs if settings.items() <= run.items()]


def _read_results(path: pathlib.Path) -> Any:
    return read_json(path, {"runs": [dict], "epochs": [dict]}, "Move it away")


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = results_parser(__doc__)
    parser.add_argument("--data_dir", help="where TFDS keeps its data")
    arguments = parser.parse_args(argv[1:])
    if not (arguments.output or arguments.table):
        parser.error("give --output or --table")
    return arguments


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
