#!/usr/bin/env python3
"""Measures the input of `imagenet_resnet18.gin` against decoding alone.

    python scripts/benchmarks/input_pipeline.py \
        --output=results/input_pipeline.json
    python scripts/benchmarks/input_pipeline.py \
        --table results/input_pipeline.json

The table is that of `docs/training.md`. Images are made up, JPEG files of the
size of those of ImageNet (500 x 375, about 110 kB), in 16 files of TFDS.
Contenders take turns: compare only ratios within one run, or processor time,
which depends less on what else the machine does. Peak memory is that of one
epoch in a process of its own. It takes about three minutes.
"""

import concurrent.futures
import io
import multiprocessing
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402
import tensorflow as tf  # noqa: E402
import tensorflow_datasets as tfds  # noqa: E402
from timing import (  # noqa: E402
    interleave,
    measured_on,
    measured_or_shown,
    peak_memory,
    timed_parser,
)

from diffstride import data  # noqa: E402
from diffstride.data import cropping  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402
from diffstride.files import read_json  # noqa: E402
from diffstride.formatting import markdown  # noqa: E402

NAME = "made_up_jpegs"
HEIGHT, WIDTH, QUALITY = 375, 500, 92
DIFFERENT, FILES = 64, 16
STORED, IMAGES = 2048, 512  # For memory, and for time.
BATCH, SIZE, BUFFER = 64, 224, 128
LIMIT = "decode a random window"


def main(argv: list[str]) -> int:
    """Measures, prints the table, writes the results."""
    return measured_or_shown(
        timed_parser(__doc__).parse_args(argv[1:]),
        lambda arguments, _: measure(arguments.seconds),
        table,
        _read_results,
    )


def measure(seconds: float) -> dict[str, Any]:
    """Returns the content of a results file."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        files = [jpeg(seed) for seed in range(DIFFERENT)]
        store(folder, files)
        rows = _speed(folder, files, seconds)
        memory = [
            {
                "shuffle_buffer": buffer,
                "peak_mb": _in_process(_memory, folder, buffer),
            }
            for buffer in (BUFFER, None)
        ]
    return {
        "environment": measured_on(),
        "file_bytes": round(np.mean([len(file) for file in files])),
        "images": IMAGES,
        "stored": STORED,
        "speed": rows,
        "memory": memory,
        "seconds": round(time.perf_counter() - begin),
    }


def jpeg(seed: int) -> bytes:
    """Makes up a JPEG file, with the spectrum of natural images, 1 / f."""
    random = np.random.default_rng(seed)
    noise = np.fft.rfft2(random.normal(size=(3, HEIGHT, WIDTH)))
    across = np.fft.rfftfreq(WIDTH)
    down = np.fft.fftfreq(HEIGHT)[:, None]
    noise /= np.maximum(np.hypot(down, across), 1 / WIDTH)
    image = np.fft.irfft2(noise, (HEIGHT, WIDTH))
    image = 128 + 60 * image / image.std(axis=(1, 2), keepdims=True)
    image = np.clip(image, 0, 255).astype("uint8").transpose(1, 2, 0)
    return tf.io.encode_jpeg(image, quality=QUALITY).numpy()


def store(folder: str, files: list[bytes]) -> None:
    """Writes a TFDS data set of these files, each several times."""

    def examples(count: int) -> Iterator[tuple[int, dict]]:
        for i in range(count):
            image = io.BytesIO(files[i % len(files)])
            yield i, {"image": image, "label": i % 10}

    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(num_classes=10),
        }
    )
    tfds.dataset_builders.store_as_tfds_dataset(
        name=NAME,
        version="1.0.0",
        features=features,
        split_datasets={"train": examples(STORED), "test": examples(BATCH)},
        data_dir=folder,
        download_config=tfds.download.DownloadConfig(num_shards=FILES),
    )


def load(folder: str, **kwargs: Any) -> data.Datasets:
    """Loads them as `imagenet_resnet18.gin` does."""

    def flip(image: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        return data.pad_crop_flip(image, seed, pad=0)

    return data.load_datasets(
        NAME,
        data_dir=folder,
        batch_size=BATCH,
        image_size=SIZE,
        resizing="crop",
        augment_fn=flip,
        mean=data.NORMALIZATION["imagenet2012"][0],
        std=data.NORMALIZATION["imagenet2012"][1],
        **kwargs,
    )


def table(results: dict[str, Any]) -> str:
    """Lays out the content of a results file as Markdown."""
    (limit,) = (row for row in results["speed"] if row["what"] == LIMIT)
    rows = [
        [
            row["what"],
            f"{results['images'] / row['wall_ms']['median'] * 1e3:.0f}",
            f"{limit['wall_ms']['median'] / row['wall_ms']['median']:.2f}",
            f"{row['cpu_ms'] / results['images']:.2f}",
            f"{row['cpu_ms'] / limit['cpu_ms']:.2f}",
        ]
        for row in results["speed"]
    ]
    memory = [
        [f"{row['shuffle_buffer'] or 'all'}", f"{row['peak_mb']:.0f}"]
        for row in results["memory"]
    ]
    environment = results["environment"]
    megabytes = results["stored"] * results["file_bytes"] / 1e6
    return "\n\n".join(
        [
            f"TensorFlow {tf.__version__}, {environment['device']}; "
            f"{results['images']:,} files of {results['file_bytes']:,} bytes, "
            "on average.",
            markdown(
                ["", "images/s", "of the limit", "CPU ms an image", "/ limit"],
                rows,
            ),
            f"Memory that an epoch adds, of {megabytes:.0f} MB of files:",
            markdown(["shuffle_buffer", "MB"], memory),
        ]
    )


def _speed(folder: str, files: list[bytes], seconds: float) -> list[dict]:
    encoded = tf.data.Dataset.from_tensor_slices(files)
    encoded = encoded.repeat(IMAGES // DIFFERENT).enumerate()
    feature = tfds.features.Image()

    def whole(index: tf.Tensor, file: tf.Tensor) -> tf.Tensor:
        return tf.io.decode_jpeg(file, channels=3)

    def window(index: tf.Tensor, file: tf.Tensor) -> tf.Tensor:
        seed = tf.stack([tf.constant(0, tf.int64), index])
        drawn = cropping.random_window(seed, 0.08)
        return cropping.decode_window(file, drawn, feature)

    def resized(index: tf.Tensor, file: tf.Tensor) -> tf.Tensor:
        return tf.image.resize(window(index, file), (SIZE, SIZE))

    part = f"train[:{IMAGES}]"
    streamed = load(
        folder, train_split=part, shuffle_files=True, shuffle_buffer=BUFFER
    )
    split = load(folder, test_split=part)
    made = {
        "decode all of an image": _alone(encoded, whole),
        LIMIT: _alone(encoded, window),
        "and scale it, without antialiasing": _alone(encoded, resized),
        "an epoch of training": _Run(streamed.epochs(0, 1)),
        "the test": _Run(split.test),
    }
    wall = interleave(made, seconds)
    return [
        {"what": name, "wall_ms": wall[name], "cpu_ms": run.cpu_ms()}
        for name, run in made.items()
    ]


class _Run:
    """Goes once through a data set."""

    def __init__(self, dataset: tf.data.Dataset):
        self._dataset = dataset
        self._cpu: list[float] = []

    def __call__(self) -> float:
        """Returns the seconds that it takes; notes those of all threads."""
        begin, cpu = time.perf_counter(), time.process_time()
        for _ in self._dataset:
            pass
        self._cpu.append(1e3 * (time.process_time() - cpu))
        return time.perf_counter() - begin

    def cpu_ms(self) -> float:
        """Returns the median of the processor time, but for two first calls."""
        return statistics.median(self._cpu[2:])


def _alone(encoded: tf.data.Dataset, decode: Callable) -> _Run:
    """Decoding with all cores, and nothing that comes after it."""
    corners = encoded.map(lambda *each: decode(*each)[0, 0], tf.data.AUTOTUNE)
    return _Run(corners.batch(BATCH).prefetch(tf.data.AUTOTUNE))


def _memory(folder: str, buffer: int | None) -> float | None:
    """Peak memory in MB of an epoch, in a process that has done little else."""
    kwargs = {"shuffle_files": buffer is not None, "shuffle_buffer": buffer}
    warm = load(folder, **kwargs, train_split="train[:256]")
    _Run(warm.epoch(0))()
    return peak_memory(_Run(load(folder, **kwargs).epoch(0)))


def _in_process(function: Callable, *args: Any) -> Any:
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *args).result()


def _read_results(path: pathlib.Path) -> Any:
    return read_json(path, {"speed": [dict], "memory": [dict]}, "Move it away")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
