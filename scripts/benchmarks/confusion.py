#!/usr/bin/env python3
"""Draws which classes trained networks confuse, on the notes of the test.

    python scripts/benchmarks/confusion.py exp/notes/outer_*task-family_seed-* \
        --data_dir=data --output=docs/results/notes/confusion.png

Rows are what a note is, columns what the networks heard, in shares of the row,
over all networks that are given. A network of several tasks has its head of
`--label`.
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras  # noqa: E402
import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
from sklearn.metrics import ConfusionMatrixDisplay  # noqa: E402

from diffstride import data  # noqa: E402
from diffstride.datasets import find_builder  # noqa: E402
from diffstride.errors import run_reporting_errors  # noqa: E402

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402


def main(argv: list[str]) -> int:
    """Tests the networks, draws, prints the largest confusions."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--name", default="notes", help="TFDS data set")
    parser.add_argument("--label", default="family")
    parser.add_argument("--data_dir")
    parser.add_argument("--output", type=pathlib.Path, required=True)
    options = parser.parse_args(argv[1:])
    batches = data.load_audio(
        options.name, label=options.label, data_dir=options.data_dir
    ).test
    builder = find_builder(options.name, options.data_dir)
    names = builder.info.features[options.label].names
    truth, heard = [], []
    for run in options.runs:
        model = keras.models.load_model(run / "model.keras", compile=False)
        for sounds, labels in batches:
            logits = model(sounds, training=False)
            if isinstance(logits, dict):
                logits = logits[options.label]
            truth.append(np.argmax(labels, -1))
            heard.append(np.argmax(keras.ops.convert_to_numpy(logits), -1))
    draw(np.concatenate(truth), np.concatenate(heard), names, options.output)
    return 0


def draw(
    truth: np.ndarray, heard: np.ndarray, names: list[str], path: pathlib.Path
) -> None:
    """Saves the picture."""
    accuracy = np.mean(truth == heard)
    _, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    shown = ConfusionMatrixDisplay.from_predictions(
        truth,
        heard,
        labels=range(len(names)),
        display_labels=names,
        normalize="true",
        values_format=".0%",
        cmap="Blues",
        xticks_rotation=45,
        colorbar=False,
        ax=axes,
        text_kw={"fontsize": 8},
    )
    axes.set(
        xlabel="heard as",
        ylabel="is",
        title=f"{len(truth):,} notes, {accuracy:.1%} right",
    )
    plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
    path.parent.mkdir(parents=True, exist_ok=True)
    plt.savefig(path, dpi=110)
    wrong = shown.confusion_matrix.copy()
    np.fill_diagonal(wrong, 0)
    for place in np.argsort(wrong, axis=None)[::-1][:5]:
        row, column = np.unravel_index(place, wrong.shape)
        share = f"{wrong[row, column]:.0%}"
        print(f"{share} of {names[row]} heard as {names[column]}")
    print(f"picture in {path}")


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv))
