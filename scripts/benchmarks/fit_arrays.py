#!/usr/bin/env python3
r"""Trains ResNet-18 on Fashion-MNIST as NumPy arrays, on any Keras backend.

    KERAS_BACKEND=jax python scripts/benchmarks/fit_arrays.py \
        --files=/usr/share/datasets/fashion-mnist --output=results/jax.jsonl

Needs keras, one of tensorflow, jax and torch, and the four IDX files; neither
TFDS nor gin. Each pooling adds one line to the output: accuracy and duration of
each epoch, strides in the end, device and versions.
"""

import argparse
import functools
import gzip
import json
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from contenders import RAMPS  # noqa: E402
from timing import measured_on  # noqa: E402

from diffstride import DiffStride, FixedSpectralPooling  # noqa: E402
from diffstride.errors import DataError, run_reporting_errors  # noqa: E402
from diffstride.profiling import pooling_states, profile  # noqa: E402
from diffstride.resnet import resnet18  # noqa: E402

POOLINGS = {
    "strided": None,
    "spectral": functools.partial(FixedSpectralPooling, norm="forward"),
    **{
        name: functools.partial(DiffStride, norm="forward", ramp=ramp)
        for name, ramp in RAMPS.items()
    },
}


class Timer(keras.callbacks.Callback):
    """Notes how long the training part of each epoch takes."""

    def __init__(self):
        super().__init__()
        self.seconds: list[float] = []

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._begin = self._last = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Keeps the time of the last step, before validation."""
        self._last = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Stops it."""
        self.seconds.append(round(self._last - self._begin, 2))


def main(argv: list[str]) -> int:
    """Trains with each pooling in turn."""
    arguments = _arguments(argv)
    if arguments.dtype != "float32":
        keras.config.set_dtype_policy(f"mixed_{arguments.dtype}")
    train = load(arguments.files, "train", arguments.limit)
    test = load(arguments.files, "t10k", arguments.limit)
    for name in arguments.poolings:
        row = fit(name, train, test, arguments)
        print(
            f"{name}: {100 * row['val_accuracy'][-1]:.2f} %, "
            f"{np.median(row['seconds']):.1f} s an epoch",
            flush=True,
        )
        if arguments.output:
            path = pathlib.Path(arguments.output)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")
    return 0


def fit(
    name: str, train: tuple, test: tuple, arguments: argparse.Namespace
) -> dict[str, Any]:
    """Trains one network.

    Args:
        name: key of `POOLINGS`.
        train: images and labels to train on.
        test: images and labels to test on.
        arguments: the settings.

    Returns:
        What the run has shown, ready for JSON.
    """
    keras.utils.set_random_seed(arguments.seed)
    model = resnet18(
        strides=arguments.strides,
        filters=[n * arguments.width // 64 for n in (64, 64, 128, 256, 512)],
        pooling_cls=POOLINGS[name],
        weight_decay=5e-4,
    )
    model.build((None, *train[0].shape[1:]))
    steps = -(-len(train[0]) // arguments.batch) * arguments.epochs
    peak, warmup = arguments.learning_rate, steps // 20
    rate = keras.optimizers.schedules.CosineDecay(
        0.0, steps, warmup_target=peak, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.SGD(rate, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    timer = Timer()
    history = model.fit(
        *train,
        batch_size=arguments.batch,
        epochs=arguments.epochs,
        validation_data=test,
        verbose=0,
        callbacks=[timer],
    ).history
    states = pooling_states(profile(model, train[0].shape[1:]))
    settings = ("strides", "width", "batch", "seed", "dtype")
    return {
        "pooling": name,
        **{key: getattr(arguments, key) for key in settings},
        "images": len(train[0]),
        "learned_strides": [state.strides for state in states],
        "output_sizes": [state.output_size for state in states],
        "seconds": timer.seconds,
        "val_accuracy": [float(a) for a in history["val_accuracy"]],
        "loss": [float(loss) for loss in history["loss"]],
        "environment": measured_on(),
    }


def load(folder: str, split: str, limit: int | None) -> tuple:
    """Reads images, normalised, and labels.

    Args:
        folder: holds the IDX files, compressed or not.
        split: `"train"` or `"t10k"`.
        limit: number of images to take, or `None` for all.

    Returns:
        Arrays of shape (images, 28, 28, 1) and (images,).
    """
    images = np.frombuffer(_read(folder, f"{split}-images"), "uint8", offset=16)
    labels = np.frombuffer(_read(folder, f"{split}-labels"), "uint8", offset=8)
    images = images.reshape(-1, 28, 28, 1).astype("float32") / 255
    if keras.config.image_data_format() == "channels_first":
        images = np.moveaxis(images, -1, 1)
    images = (images - 0.2860) / 0.3530
    return images[:limit], labels[:limit].astype("int32")


def _read(folder: str, name: str) -> bytes:
    for path in sorted(pathlib.Path(folder).glob(f"{name}-idx*-ubyte*")):
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    raise DataError(
        f"no {name} in --files={folder}; it must hold the four IDX files of "
        "Fashion-MNIST"
    )


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--files", required=True, help="folder of the IDX files")
    add("--output", help="JSON-lines file to add to")
    add("--poolings", nargs="+", choices=POOLINGS, default=list(POOLINGS)[:4])
    add("--strides", type=float, nargs=5, default=[1, 1, 2, 2, 2])
    add("--epochs", type=int, default=20)
    add("--batch", type=int, default=128)
    add("--width", type=int, default=64, help="channels of the first stage")
    add("--learning_rate", type=float, default=0.1)
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="number of images to take")
    add("--dtype", choices=["float32", "bfloat16"], default="float32")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
