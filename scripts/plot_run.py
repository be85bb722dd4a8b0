#!/usr/bin/env python3
"""Draws a run: accuracy, and how the strides moved.

python scripts/plot_run.py exp/digits docs/digits.png
"""

import pathlib

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt  # noqa: E402
from absl import app  # noqa: E402

from diffstride.errors import UserError, run_reporting_errors  # noqa: E402
from diffstride.files import read_rows  # noqa: E402

# Okabe and Ito's colours, which colour-blind readers can tell apart.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def main(argv: list[str]) -> int:
    """Reads the workdir, writes the picture."""
    if len(argv) != 3:
        raise UserError("Usage: plot_run.py WORKDIR PICTURE")
    metrics = pathlib.Path(argv[1]) / "metrics.jsonl"
    if not metrics.exists():
        raise UserError(f"{metrics} does not exist; is {argv[1]} a workdir?")
    rows = read_rows(metrics)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8))
    _draw_accuracy(left, rows)
    _draw_strides(right, rows)
    figure.tight_layout()
    pathlib.Path(argv[2]).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(argv[2], dpi=110)
    return 0


def _draw_accuracy(axes: plt.Axes, rows: list[dict]) -> None:
    epochs = [row["epoch"] for row in rows]
    for name, label, color in (
        ("accuracy", "training", _COLORS[1]),
        ("val_accuracy", "test", _COLORS[0]),
    ):
        values = [100 * row[name] for row in rows]
        axes.plot(epochs, values, color=color, label=label)
    axes.set(xlabel="epoch", ylabel="accuracy, %")
    axes.legend(frameon=False, loc="lower right")


def _draw_strides(axes: plt.Axes, rows: list[dict]) -> None:
    epochs = [row["epoch"] for row in rows]
    names = [n for n in rows[0] if n.startswith("stride/")]
    layers = dict.fromkeys(n.split("/", 1)[1].rsplit("/", 1)[0] for n in names)
    for layer, color in zip(layers, _COLORS * 9, strict=False):
        title = layer.replace("/layer_1/pooling", "").replace("_", " ")
        title = "stem" if title == "pooling" else title
        for axis, style in (("height", "-"), ("width", "--")):
            values = [row[f"stride/{layer}/{axis}"] for row in rows]
            axes.plot(
                epochs,
                values,
                style,
                color=color,
                label=f"{title}, {axis}",
            )
    axes.set(xlabel="epoch", ylabel="stride (input size / nominal size)")
    if not names:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no spectral pooling in this run", ha="center")
    else:
        axes.legend(frameon=False, bbox_to_anchor=(1, 1), loc="upper left")


if __name__ == "__main__":
    app.run(run_reporting_errors(main))
