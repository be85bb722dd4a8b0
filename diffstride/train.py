"""Training: data, model, optimizer, callbacks, fit, summary."""

import json
import math
import pathlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
import tensorflow as tf
from absl import logging

from diffstride import callbacks, data, files, resnet
from diffstride.budget import add_stride_cost
from diffstride.compute_budget import add_compute_budget
from diffstride.cost import cost_of_calls
from diffstride.environment import environment
from diffstride.errors import ConfigError, as_config_errors
from diffstride.formatting import aligned, cutoffs, human
from diffstride.hardening import TARGETS, harden
from diffstride.networks import make_network
from diffstride.optimization import exclude_strides_from_weight_decay
from diffstride.profiling import learns_strides, pooling_states, profile
from diffstride.schedule import SmoothnessSchedule, scheduled_layers
from diffstride.static import learned_layers, static_sizes
from diffstride.surgery import rebuilt

_HARDENED = "hardened."  # How the name of the hardened network's backup begins.


def train(
    load_data_fn: Callable[..., data.Datasets] = data.load_datasets,
    model_cls: Callable[..., keras.Model] = resnet.resnet18,
    optimizer_cls: Callable[[], keras.Optimizer] = keras.optimizers.SGD,
    num_epochs: int = 1,
    workdir: str = "exp/diffstride",
    seed: int = 0,
    label_smoothing: float = 0.0,
    stride_cost_weight: float = 0.0,
    budget: float | None = None,
    smoothness_share: float = 0.7,
    harden_to: str | None = None,
    finetune_epochs: int = 0,
    restart: bool = False,
    devices: Sequence[str] | None = None,
    deterministic: bool = True,
    jit_compile: bool = False,
    config_fn: Callable[[], str] | None = None,
    differing_fn: Callable[[str, str], Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Trains a classifier, or goes on with a run that was interrupted.

    The workdir receives `config.gin`, `metrics.jsonl`, TensorBoard event files
    in `tensorboard`, `model.keras`, `summary.json` and a backup of the last
    complete epoch. A run that was stopped, however it was, and is started again
    with the same arguments ends with the same weights as one that was not.

    Args:
        load_data_fn: called with `seed`, returns `data.Datasets`:
            `data.load_datasets` of images, `data.load_audio` of sounds.
        model_cls: called with `num_output_classes`, and with `input_shape` if
            it has an argument of this name, returns a model that takes these
            and gives logits.
        optimizer_cls: called without arguments, returns an optimizer. Strides
            are kept out of its weight decay.
        num_epochs: number of epochs to have trained in the end.
        workdir: where the run is kept.
        seed: seed of initial weights, data order and augmentation.
        label_smoothing: share of the label that is spread over all classes.
        stride_cost_weight: weight in the loss of the stride cost J, >= 0. All
            losses that are reported include it. It has no effect on a model
            without learned strides.
        budget: multiply-accumulates of one image that the network is to need
            in the end, as `model_cost` counts them; `None` for no budget.
        smoothness_share: share of the epochs over which the smoothness of
            layers with a `final_smoothness_factor` falls to it.
        harden_to: `"spectral"`, `"strided"` or `"pooled"`: what `harden` makes
            of the network in the end, with fixed strides and within the budget.
            The network that learned them is kept as `learned.keras`.
        finetune_epochs: how many of the epochs, the last ones, train the
            hardened network.
        restart: whether these epochs begin with new weights, drawn from the
            seed, and not with those that were learned.
        devices: devices to train on, as in `tf.distribute.MirroredStrategy`;
            by default all GPUs, or else the CPU.
        deterministic: whether TensorFlow is held to deterministic operations,
            without which a resumed run may differ in the last digits.
        jit_compile: whether steps are compiled by XLA, with static sizes: one
            compilation for each combination of map sizes. Needs
            `deterministic=False`.
        config_fn: called once model and optimizer are there, returns the
            settings in force as text. Without it, going on in a workdir with
            other arguments is not noticed.
        differing_fn: called with two such texts, returns the settings that
            forbid to go on from one with the other; by default all lines that
            are not in both.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: if data, settings or workdir do not allow the run.
        NonFiniteLossError: if the loss ceases to be finite.
    """
    _check_arguments(
        num_epochs,
        seed,
        label_smoothing,
        stride_cost_weight,
        harden_to,
        finetune_epochs,
        restart,
        deterministic,
        jit_compile,
    )
    learning_epochs = num_epochs - finetune_epochs
    _set_up(seed, deterministic)
    strategy = _strategy(devices)
    with as_config_errors():
        datasets = load_data_fn(seed=seed)
        # Again, as TFDS draws numbers when it has to build a data set first.
        keras.utils.set_random_seed(seed)
        with strategy.scope():
            model = make_network(
                model_cls, datasets.num_classes, datasets.image_shape
            )
            _check_data_format(model)
            model.build((None, *datasets.image_shape))
            _add_stride_cost(model, stride_cost_weight, datasets.image_shape)
            compiled = partial(
                _compiled,
                optimizer_cls=optimizer_cls,
                label_smoothing=label_smoothing,
                jit_compile=jit_compile,
            )
            compiled(model)
        steering = _steering(
            model,
            learning_epochs,
            budget,
            smoothness_share,
            harden_to or "spectral",
            datasets.image_shape,
        )
        if harden_to:  # What cannot be done is to be known before training.
            harden(model, harden_to, datasets.image_shape, verbose=False)
    logging.info("%s: %d parameters", model.name, model.count_params())

    root = files.make_folder(workdir, "`workdir`")
    with files.locked(root):
        config_text = config_fn() if config_fn else ""
        for name in ("backup", "tensorboard"):
            files.make_folder(root / name, f"`{name}` of the run")
        stage = _Stage(
            root, datasets, config_text, "learned" if harden_to else "model"
        )
        _check_same_run(root, stage.backup, config_text, differing_fn)
        first_epoch = stage.backup.restore(model)
        files.replace_text(root / "config.gin", config_text)
        if first_epoch:
            logging.info("Going on after epoch %d in %s", first_epoch, root)
        if harden_to:
            _check_not_hardened(root, first_epoch, learning_epochs)
        epochs = stage.fit(model, first_epoch, learning_epochs, steering)
        if not harden_to:
            return stage.finish(model, seed)

        with strategy.scope():
            plain = harden(model, harden_to, datasets.image_shape, macs=budget)
            compiled(plain)
            hardened = _hardened(harden_to, model, plain, datasets)
            if restart:
                keras.utils.set_random_seed(seed)
                plain = rebuilt(plain, "train")
                compiled(plain)
        plain.optimizer.iterations.assign(model.optimizer.iterations)
        stage = _Stage(root, datasets, config_text, "model", _HARDENED)
        first_epoch = max(epochs, stage.backup.restore(plain))
        stage.fit(plain, first_epoch, epochs + finetune_epochs)
        return stage.finish(plain, seed, hardened)


class _Stage:
    """The part of a run that trains one network, and can be resumed.

    Args:
        root: folder of the run.
        datasets: what it trains and tests on.
        config_text: settings in force.
        saved: name of the model that is saved in the end.
        prefix: of the name of the backup.
    """

    def __init__(
        self,
        root: pathlib.Path,
        datasets: data.Datasets,
        config_text: str,
        saved: str,
        prefix: str = "",
    ):
        self._root = root
        self._datasets = datasets
        self._config_text = config_text
        self._saved = root / f"{saved}.keras"
        self.backup = callbacks.Backup(
            root / "backup", datasets.steps_per_epoch, self._saved, prefix
        )

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
        datasets, root = self._datasets, self._root
        recorder = callbacks.EpochRecorder(
            root / "metrics.jsonl", datasets.image_shape, first_epoch
        )
        if first_epoch < last_epoch:
            datasets.reading()(model.fit)(
                datasets.epochs(first_epoch, last_epoch),
                validation_data=datasets.test
                if datasets.validation is None
                else datasets.validation,
                initial_epoch=first_epoch,
                epochs=last_epoch,
                steps_per_epoch=datasets.steps_per_epoch,
                shuffle=False,  # The data set is shuffled.
                verbose=1 if sys.stdout.isatty() else 2,
                # What stops comes before what keeps.
                callbacks=[
                    callbacks.StopOnNonFiniteLoss(),
                    *steering,
                    recorder,
                    self.backup,
                    callbacks.TensorBoard(
                        str(root / "tensorboard"), recorder, self._config_text
                    ),
                ],
            )
        # Replicas have batch statistics of their own. The model that is tested
        # is to be the one that is kept.
        self._epochs = self.backup.restore(model) or first_epoch
        files.replace_file(self._saved, model.save)
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
            **_tested(model, self._datasets),
            "seconds": sum(row.get("seconds", 0) for row in self._rows),
            "epochs": self._epochs,
            "images_per_epoch": self._datasets.images_per_epoch,
            "parameters": model.count_params(),
            "cost": cost_of_calls(model, calls).totals(),
            "seed": seed,
            "environment": environment(),
            "pooling": [state._asdict() for state in pooling_states(calls)],
        }
        if steps := getattr(model, "steps", None):  # Its maps are no images.
            summary |= {"axes": list(model.axes[2]), "steps": list(steps)}
        if hardened:
            summary["hardened"] = hardened
        files.replace_text(
            self._root / "summary.json", json.dumps(summary, indent=1) + "\n"
        )
        print(_format_summary(summary))
        print(f"\nmodel, summary and metrics of each epoch are in {self._root}")
        return summary


def _tested(model: keras.Model, datasets: data.Datasets) -> dict[str, float]:
    found = {}
    for name in ("test", "validation"):
        batches = getattr(datasets, name)
        if batches is not None:
            with datasets.reading():
                of = model.evaluate(batches, verbose=0, return_dict=True)
            found[f"{name}_accuracy"] = of["accuracy"]
            found[f"{name}_loss"] = of["loss"]
    return found


def _hardened(
    to: str, learned: keras.Model, plain: keras.Model, datasets: data.Datasets
) -> dict[str, Any]:
    """What is to be said of hardening: the network before, and just after."""
    calls = profile(learned, datasets.image_shape)
    return {
        "to": to,
        "learned": {
            **_tested(learned, datasets),
            "cost": cost_of_calls(learned, calls).totals(),
            "pooling": [state._asdict() for state in pooling_states(calls)],
        },
        "before_finetuning": _tested(plain, datasets),
    }


def _check_arguments(
    num_epochs: int,
    seed: int,
    label_smoothing: float,
    stride_cost_weight: float,
    harden_to: str | None,
    finetune_epochs: int,
    restart: bool,
    deterministic: bool,
    jit_compile: bool,
) -> None:
    _check(num_epochs >= 1, "at least 1", num_epochs=num_epochs)
    _check(0 <= seed < 2**31, "from 0 to 2**31 - 1", seed=seed)
    _check(
        0 <= label_smoothing < 1,
        "at least 0 and below 1",
        label_smoothing=label_smoothing,
    )
    _check(
        0 <= stride_cost_weight < math.inf,
        "finite and at least 0",
        stride_cost_weight=stride_cost_weight,
    )
    _check(
        not (jit_compile and deterministic),
        "False with `jit_compile=True`: not all of XLA's operations are",
        deterministic=deterministic,
    )
    _check(
        harden_to in (None, *TARGETS),
        f"None or one of {', '.join(map(repr, TARGETS))}",
        harden_to=repr(harden_to),
    )
    _check(
        0 <= finetune_epochs < (num_epochs if harden_to else 1),
        f"less than num_epochs={num_epochs} with `harden_to`, 0 without it",
        finetune_epochs=finetune_epochs,
    )
    _check(
        finetune_epochs > 0 or not restart,
        "False with `finetune_epochs=0`: nothing would train the new weights",
        restart=restart,
    )


def _check(good: bool, expected: str, **argument: Any) -> None:
    ((name, value),) = argument.items()
    if not good:
        raise ConfigError(
            f"`{name}` must be {expected}. Received: {name}={value}"
        )


def _set_up(seed: int, deterministic: bool) -> None:
    """Sets what holds for the whole process."""
    keras.utils.set_random_seed(seed)
    if deterministic:
        tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    keras.config.set_image_data_format(
        "channels_first" if gpus else "channels_last"
    )


def _strategy(devices: Sequence[str] | None) -> tf.distribute.Strategy:
    names = [device.name for device in tf.config.list_logical_devices()]
    short = [name.removeprefix("/device:") for name in names]
    if devices is None:
        devices = [name for name in short if name.startswith("GPU:")]
    asked = {name.removeprefix("/device:") for name in devices}
    _check(
        asked <= {*short} and len(asked) == len(devices),
        f"among those of this machine, each once: {', '.join(short)}",
        devices=list(devices),
    )
    if len(devices) > 1:
        return tf.distribute.MirroredStrategy(list(devices))
    if devices:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.get_strategy()


def _check_data_format(model: keras.Model) -> None:
    expected = keras.config.image_data_format() == "channels_first"
    received = getattr(model, "channels_first", expected)
    _check(
        received == expected,
        f"left out or be {expected} on this machine (channels come first on a "
        "GPU)",
        channels_first=received,
    )


def _add_stride_cost(
    model: keras.Model, weight: float, image_shape: tuple
) -> None:
    if weight and learns_strides(model):
        add_stride_cost(model, weight, image_shape)
    elif weight:
        logging.info("`stride_cost_weight` has no effect: no learned strides")


def _steering(
    model: keras.Model,
    epochs: int,
    budget: float | None,
    smoothness_share: float,
    harden_to: str,
    image_shape: tuple,
) -> list[keras.callbacks.Callback]:
    """What changes strides and smoothness beside the optimizer."""
    steering: list[keras.callbacks.Callback] = []
    if scheduled_layers(model):
        steering.append(SmoothnessSchedule(smoothness_share, epochs))
    if budget is not None:
        steering.append(
            add_compute_budget(
                model,
                budget,
                input_shape=image_shape,
                harden_to=harden_to,
                epochs=epochs,
            )
        )
    return steering


def _compiled(
    model: keras.Model,
    optimizer_cls: Callable[[], keras.Optimizer],
    label_smoothing: float,
    jit_compile: bool,
) -> keras.Model:
    # Our ResNets are so on JAX without being told.
    on_jax = keras.backend.backend() == "jax"
    if jit_compile or on_jax and learned_layers(model):
        static_sizes(model)
    optimizer = optimizer_cls()
    exclude_strides_from_weight_decay(optimizer, model)
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(
            from_logits=True, label_smoothing=label_smoothing
        ),
        # By its name it would be made in the first step, which TensorFlow would
        # then trace again.
        metrics=[keras.metrics.CategoricalAccuracy("accuracy")],
        jit_compile=True if jit_compile else "auto",
    )
    optimizer.build(model.trainable_variables)
    return model


def _check_not_hardened(
    root: pathlib.Path, done: int, learning_epochs: int
) -> None:
    """Refuses to learn strides further when a network was made of them."""
    if done < learning_epochs and any((root / "backup").glob(f"{_HARDENED}*")):
        raise ConfigError(
            f"`num_epochs` less `finetune_epochs` must be {done} in {root}, "
            "where the network was hardened after that many epochs. Received: "
            f"{learning_epochs}. Raise both, or choose another --workdir"
        )


def _check_same_run(
    root: pathlib.Path,
    backup: callbacks.Backup,
    config_text: str,
    differing_fn: Callable[[str, str], Sequence[str]] | None,
) -> None:
    """Refuses a workdir that holds anything else than this run.

    Other settings may follow those with which no epoch was completed.
    """
    path = root / "config.gin"
    kept = backup.exists() or (root / "summary.json").exists()
    if not path.exists():
        if backup.path.exists() or not kept:
            return
        raise ConfigError(
            f"`workdir` {root} holds a model or a summary without the "
            "config.gin that a run leaves; choose another --workdir"
        )
    if not kept and (root / "metrics.jsonl").exists():
        return
    old = files.read_text(path)
    if differing_fn:
        differing = differing_fn(old, config_text)
    else:
        differing = sorted({*old.splitlines()} ^ {*config_text.splitlines()})
    if differing:
        raise ConfigError(
            f"`workdir` {root} holds a run with other settings; choose another "
            "--workdir, or remove it to start afresh. Differing: "
            f"{'; '.join(differing)}"
        )


def _format_summary(summary: dict[str, Any]) -> str:
    """Lays out the result of a run for the terminal."""
    cost = summary["cost"]
    lines = [
        "",
        f"test accuracy  {100 * summary['test_accuracy']:.2f} %",
        f"training time  {summary['seconds']:.0f} s, "
        f"{summary['epochs']} epochs",
        f"parameters     {summary['parameters']:,}",
        f"cost           {human(cost['macs'])} multiply-accumulates and "
        f"{human(cost['activation_bytes'], 'B')} of activations "
        f"{'a window' if 'axes' in summary else 'an image'}",
    ]
    if hardened := summary.get("hardened"):
        learned = hardened["learned"]
        lines.append(
            f"hardened       {hardened['to']}, from "
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
