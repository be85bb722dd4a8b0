#!/usr/bin/env python3
"""What conversion does to a trained network, and what brings it back.

    python scripts/benchmarks/pretrained.py --output=results/pretrained.json
    python scripts/benchmarks/pretrained.py --table results/pretrained.json

A small residual network with strided convolutions is trained on Fashion-MNIST
(`--data_dir` has it; see docs/training.md), converted in several ways, and
tested three times: as it comes, after `recalibrate`, and after a short
fine-tuning. The one with the default layer is hardened after that, and tested
in the same way. It takes a few minutes on one core.
"""

import argparse
import functools
import json
import os
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
from keras import layers  # noqa: E402
from timing import measured_on  # noqa: E402

import diffstride  # noqa: E402
from diffstride import data  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import make_folder, replace_text  # noqa: E402
from diffstride.formatting import human, markdown  # noqa: E402

LEARNED = functools.partial(diffstride.DiffStride, smoothness_factor=1.0)
BACKWARD = functools.partial(LEARNED, norm="backward")
# What is passed to `convert`, by a name for the table.
VARIANTS: dict[str, dict[str, Any]] = {
    "DiffStride": {"to": LEARNED},
    'DiffStride, `norm="backward"`': {"to": BACKWARD},
    "FixedSpectralPooling": {"to": diffstride.FixedSpectralPooling},
    "BlurPool2D": {"to": diffstride.BlurPool2D},
    "AveragePooling": {"to": diffstride.AveragePooling},
}
STAGES = ("converted", "recalibrated", "fine_tuned")
BATCH = 128
CALIBRATION = 8  # batches for `recalibrate`


def network() -> keras.Model:
    """A residual network of Keras's own layers."""
    inputs = keras.Input((28, 28, 1))
    x = _conv(inputs, 8, 3, name="stem")
    x = layers.ReLU()(x)
    for number, filters in enumerate((12, 24), 1):
        shortcut = _conv(x, filters, 1, 2, f"shortcut_{number}")
        x = layers.ReLU()(_conv(x, filters, 3, 2, f"strided_{number}"))
        x = _conv(x, filters, 3, name=f"conv_{number}")
        x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(10)(x))


def _conv(x: Any, filters: int, size: int, strides: int = 1, name: str = ""):
    x = layers.Conv2D(
        filters, size, strides, padding="same", use_bias=False, name=name
    )(x)
    # Few steps: a momentum of 0.99 would leave the averages behind.
    return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)


class Trainer:
    """Trains and tests on Fashion-MNIST, always on the same images."""

    def __init__(self, options: argparse.Namespace, seed: int):
        self._data = data.load_datasets(
            "fashion_mnist",
            BATCH,
            data_dir=options.data_dir,
            train_split=f"train[:{options.images}]",
            test_split=f"test[:{options.tests}]",
            seed=seed,
        )
        self._options = options

    def train(self, model: keras.Model) -> None:
        """Trains a new network."""
        epochs = self._options.epochs
        self._fit(model, epochs * self._data.steps_per_epoch, 0.1)

    def tune(self, model: keras.Model) -> None:
        """Trains a network on for a little while."""
        self._fit(model, self._options.tuning_steps, 0.02)

    def calibrate(self, model: keras.Model) -> None:
        """Measures the statistics of batch normalisation."""
        diffstride.recalibrate(model, self._data.epoch(0), steps=CALIBRATION)

    def accuracy(self, model: keras.Model) -> float:
        """Tests a network."""
        model.compile(metrics=["accuracy"], loss="mse")
        return model.evaluate(self._data.test, verbose=0)[1]

    def stages(self, model: keras.Model) -> dict[str, float]:
        """Test accuracy as the network is, recalibrated, and fine-tuned."""
        found = [self.accuracy(model)]
        for improve in (self.calibrate, self.tune):
            improve(model)
            found.append(self.accuracy(model))
        return dict(zip(STAGES, found, strict=True))

    def _fit(self, model: keras.Model, steps: int, rate: float) -> None:
        schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
        model.compile(
            keras.optimizers.SGD(schedule, momentum=0.9),
            keras.losses.CategoricalCrossentropy(from_logits=True),
        )
        batches = self._data.epochs()
        model.fit(batches, steps_per_epoch=steps, verbose=0)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the content of a results file."""
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []

    def add(name: str, model: keras.Model, stages: Callable) -> None:
        macs = diffstride.model_cost(model).macs
        row = {"network": name, "seed": seed, "macs": macs, **stages(model)}
        rows.append(row)
        print(json.dumps(row), flush=True)

    for seed in range(options.seeds):
        keras.utils.set_random_seed(seed)
        trainer = Trainer(options, seed)
        source = network()
        trainer.train(source)
        weights = source.get_weights()
        add("as trained", source, trainer.stages)
        source.set_weights(weights)
        for name, arguments in VARIANTS.items():
            model, _ = diffstride.convert(source, **arguments)
            add(name, model, trainer.stages)
            if name == "DiffStride":
                learned = model
        model = diffstride.harden(learned, "pooled", verbose=False)
        add('DiffStride, hardened to `"pooled"`', model, trainer.stages)
    return {
        "environment": measured_on(),
        "images": options.images,
        "epochs": options.epochs,
        "tuning_steps": options.tuning_steps,
        "rows": rows,
        "seconds": round(time.perf_counter() - begin),
    }


def table(results: dict[str, Any]) -> str:
    """Lays out results as Markdown, the mean of seeds."""
    lines = []
    names = dict.fromkeys(row["network"] for row in results["rows"])
    for name in names:
        rows = [row for row in results["rows"] if row["network"] == name]
        macs = statistics.mean(row["macs"] for row in rows)
        accuracies = (
            f"{100 * statistics.mean(row[stage] for row in rows):.1f}"
            for stage in STAGES
        )
        lines.append([name, human(macs), *accuracies])
    header = ["network", "MACs", *(each.replace("_", "-") for each in STAGES)]
    return markdown(header, lines)


def main(argv: list[str]) -> int:
    """Measures, prints the table, writes the results."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, help="receives the results, as JSON")
    add("--table", metavar="JSON", help="print the table of these results")
    add("--data_dir", help="where TFDS keeps its data")
    add("--images", type=int, default=10_000, help="to train on")
    add("--tests", type=int, default=2_000, help="images to test on")
    add("--epochs", type=int, default=3, help="of the first training")
    add("--tuning_steps", type=int, default=40, help=f"of {BATCH} images")
    add("--seeds", type=int, default=1)
    options = parser.parse_args(argv)
    if options.table:
        print(table(json.loads(pathlib.Path(options.table).read_text())))
        return 0
    if options.output:
        make_folder(options.output.parent, "--output")
    results = measure(options)
    print(table(results))
    if options.output:
        replace_text(options.output, json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
