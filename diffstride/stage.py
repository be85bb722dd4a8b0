"""A network of a run: trained from epoch to epoch, kept, tested, summed up."""

import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import keras

from diffstride import callbacks, data, files, hosts
from diffstride.cost import cost_of_calls
from diffstride.environment import environment
from diffstride.formatting import aligned, cutoffs, human
from diffstride.profiling import pooling_states, profile
from diffstride.tasks import with_means

_AXES = ("axes", "steps")  # What a summary says of maps that are no images.


class Stage:
    """The part of a run that trains one network, and can be resumed.

    Args:
        root: folder of the run.
        own: folder that this process writes to.
        datasets: what it trains and tests on.
        config_text: settings in force.
        saved: name of the model that is saved in the end.
        prefix: of the name of the backup.
        before: epochs of the run before this network's first, whose steps its
            optimizer does not count.
    """

    def __init__(
        self,
        root: pathlib.Path,
        own: pathlib.Path,
        datasets: data.Datasets,
        config_text: str,
        saved: str,
        prefix: str = "",
        before: int = 0,
    ):
        self._root = root
        self._own = own
        self._datasets = datasets
        self._config_text = config_text
        self._saved = f"{saved}.keras"
        self._before = before
        self.backup = callbacks.Backup(
            own / "backup",
            datasets.steps_per_epoch,
            root / self._saved,
            prefix,
            root / "backup",
            before,
        )

    def restore(self, model: keras.Model) -> int:
        """Loads the last epoch that is kept; returns the number of epochs."""
        return hosts.agree("number of epochs", self.backup.restore(model))

    def fit(
        self,
        model: keras.Model,
        first_epoch: int,
        last_epoch: int,
        steering: Sequence[keras.callbacks.Callback] = (),
    ) -> int:
        """Trains from one epoch to another, and saves the model.

        Returns:
            The number of epochs done.
        """
        datasets, own = self._datasets, self._own
        recorder = callbacks.EpochRecorder(
            own / "metrics.jsonl",
            datasets.image_shape,
            first_epoch,
            datasets.heads,
            self._before * datasets.steps_per_epoch,
        )
        validation = datasets.validation
        if validation is None:
            validation = datasets.test
        # What stops comes before what keeps.
        steps = [
            callbacks.StopOnNonFiniteLoss(),
            *steering,
            recorder,
            self.backup,
            callbacks.TensorBoard(
                str(own / "tensorboard"), recorder, self._config_text
            ),
        ]
        if hosts.count() > 1:
            steps.insert(0, hosts.Validation(validation))
            validation = None
        if first_epoch < last_epoch:
            hosts.fit(
                *(model, datasets, first_epoch, last_epoch),
                validation_data=validation,
                verbose=_verbosity(),
                callbacks=steps,
            )
        # Replicas have batch statistics of their own. The model that is tested
        # is to be the one that is kept.
        hosts.wait("end of training")
        self._epochs = self.restore(model) or first_epoch
        files.replace_file(own / self._saved, model.save)
        self._rows = recorder.rows
        return self._epochs

    def finish(
        self,
        model: keras.Model,
        seed: int,
        hardened: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Tests a model, leaves and prints what there is to say."""
        calls = profile(model, self._datasets.image_shape)
        summary = {
            **tested(model, self._datasets),
            **self._times(),
            "epochs": self._epochs,
            "images_per_epoch": self._datasets.images_per_epoch,
            "parameters": model.count_params(),
            "cost": cost_of_calls(model, calls).totals(),
            "seed": seed,
            "environment": environment(),
            "pooling": [state._asdict() for state in pooling_states(calls)],
        }
        if hardened:
            summary["hardened"] = hardened
        # A plain network does not know what its maps are.
        known = hardened["learned"] if hardened else axes_of(model)
        summary |= {key: known[key] for key in _AXES if key in known}
        files.replace_text(
            self._own / "summary.json", json.dumps(summary, indent=1) + "\n"
        )
        if hosts.leads():
            print(_format_summary(summary))
            kept = "model, summary and metrics of each epoch are in"
            print(f"\n{kept} {self._root}")
        return summary

    def _times(self) -> dict[str, float]:
        """Seconds of all epochs, and on JAX what compiling took of them."""
        names = ["seconds"]
        if any("compilations" in row for row in self._rows):
            names += ["compilations", "compile_seconds"]
        return {
            name: sum(row.get(name, 0) for row in self._rows) for name in names
        }


def _verbosity() -> int:
    if not hosts.leads():
        return 0
    return 1 if sys.stdout.isatty() else 2


def tested(model: keras.Model, datasets: data.Datasets) -> dict[str, Any]:
    """Accuracies and losses, of several tasks their means and those of each."""
    found: dict[str, Any] = {}
    classes = datasets.num_classes
    tasks: dict[str, Any] = {
        task: {"num_classes": classes[task] if datasets.heads else classes}
        for task in datasets.tasks
    }
    for name in ("test", "validation"):
        batches = getattr(datasets, name)
        if batches is not None:
            with datasets.reading():
                of = hosts.evaluate(model, batches)
            of = with_means(of, datasets.heads)
            for metric in ("accuracy", "loss"):
                found[f"{name}_{metric}"] = of[metric]
                for task, own in tasks.items():
                    key = f"{task}_{metric}" if datasets.heads else metric
                    own[f"{name}_{metric}"] = of[key]
    return {**found, "tasks": tasks} if tasks else found


def axes_of(model: keras.Model) -> dict[str, Any]:
    """What the axes of maps are, and their steps."""
    if steps := getattr(model, "steps", None):
        return dict(zip(_AXES, (list(model.axes[2]), list(steps)), strict=True))
    return {}


def _format_compilations(summary: dict[str, Any]) -> list[str]:
    if "compilations" not in summary:
        return []
    return [
        f"compilations   {summary['compilations']} of steps, "
        f"{summary['compile_seconds']:.0f} s of the training time"
    ]


def _format_summary(summary: dict[str, Any]) -> str:
    """Lays out the result of a run for the terminal."""
    cost = summary["cost"]
    tasks = summary.get("tasks", {})
    of_each = ", ".join(
        f"{task} {100 * own['test_accuracy']:.2f} %"
        for task, own in tasks.items()
    )
    lines = [
        "",
        f"test accuracy  {100 * summary['test_accuracy']:.2f} %"
        + (f": {of_each}" if len(tasks) > 1 else ""),
        f"training time  {summary['seconds']:.0f} s, "
        f"{summary['epochs']} epochs",
        *_format_compilations(summary),
        f"parameters     {summary['parameters']:,}",
        f"cost           {human(cost['macs'])} multiply-accumulates and "
        f"{human(cost['activation_bytes'], 'B')} of activations "
        f"{'a window' if 'axes' in summary else 'an image'}",
    ]
    if hardened := summary.get("hardened"):
        learned = hardened["learned"]
        of = len(hardened.get("trials", ()))
        lines.append(
            f"hardened       {hardened['to']}, "
            + (f"the best of {of} in trials, " if of else "")
            + "from "
            f"{100 * learned['test_accuracy']:.2f} % as learned, by "
            f"{100 * hardened['before_finetuning']['test_accuracy']:.2f} % "
            "before fine-tuning"
        )
    rows = [["pooling layer", "initial stride", "stride now", "in", "out"]]
    for state in summary["pooling"]:
        strides = (state["initial"], state["strides"])
        sizes = (state["input_size"], state["output_size"])
        rows.append(
            [
                state["name"],
                *(" x ".join(f"{s:.2f}" for s in pair) for pair in strides),
                *(" x ".join(map(str, pair)) for pair in sizes),
            ]
        )
    if steps := summary.get("steps"):
        found = cutoffs(summary["pooling"], steps)
        for row, cell in zip(rows, ["cut-off", *found], strict=True):
            row.append(cell)
    if summary["pooling"]:
        lines += ["", *aligned(rows)]
    if summary["pooling"] and "axes" in summary:
        axes = " x ".join(summary["axes"])
        lines += ["", f"Of strides, sizes and cut-offs the order is {axes}."]
    return "\n".join(lines)
