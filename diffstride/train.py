"""Training: a network that learns strides, and a plain one made of it."""

import math
import pathlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import keras
from absl import logging

from diffstride import callbacks, data, files, hosts, resnet
from diffstride.budget import add_stride_cost
from diffstride.compute_budget import add_compute_budget
from diffstride.devices import check_compiling, place, set_up
from diffstride.ending import (
    HARDENED,
    Hardening,
    check_hardening,
    check_not_hardened,
    hardened,
)
from diffstride.errors import ConfigError, as_config_errors, check_argument
from diffstride.hardening import harden
from diffstride.networks import make_network
from diffstride.optimization import (
    exclude_strides_from_weight_decay,
    strides_apart,
)
from diffstride.profiling import learns_strides
from diffstride.schedule import SmoothnessSchedule, scheduled_layers
from diffstride.stage import Stage
from diffstride.static import learned_layers, static_sizes
from diffstride.tasks import objectives

_BACKEND = "# KERAS_BACKEND="  # How a config.gin begins.


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
    harden_by: str = "size",
    trials: int = 4,
    trial_epochs: int = 2,
    devices: Sequence[str] | None = None,
    deterministic: bool = True,
    jit_compile: bool = False,
    config_fn: Callable[[], str] | None = None,
    differing_fn: Callable[[str, str], Sequence[str]] | None = None,
    stride_optimizer_cls: Callable[[], keras.Optimizer] | None = None,
) -> dict[str, Any]:
    """Trains a classifier, or goes on with a run that was interrupted.

    The workdir receives `config.gin`, `metrics.jsonl`, TensorBoard event files
    in `tensorboard`, `model.keras`, `summary.json` and a backup of the last
    complete epoch. A run that was stopped, however it was, and is started again
    with the same arguments ends with the same weights as one that was not.

    Args:
        load_data_fn: called with `seed`, returns `data.Datasets`:
            `data.load_datasets` of images, `data.load_audio` of sounds,
            `data.load_tasks` of several tasks.
        model_cls: called with `num_output_classes`, and with `input_shape` if
            it has an argument of this name, returns a model that takes these
            and gives logits. Both numbers and logits are dictionaries where
            there are several tasks.
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
            seed, and the learning rate of a first step, as a network does that
            has these strides from the start.
        harden_by: what integer strides are chosen by: `"size"`, what comes
            closest to the learned sizes; `"loss"`, of what comes close that
            with the least loss on some training data, if the learned network's
            maps have the sizes which these strides would leave; or
            `"training"`, of the `trials` sets with the least such loss that
            whose plain network does best in a short training: it has the least
            mean loss in the last of `trial_epochs` epochs.
        trials: how many sets of strides are tried by training, at least 1.
        trial_epochs: how many epochs each is trained for, from 1 to
            `finetune_epochs`. They come on top of `num_epochs`.
        devices: devices to train on, such as `["GPU:0", "GPU:1"]`; by default
            all GPUs, or else the CPU. Only TensorFlow takes several.
        deterministic: whether the backend is held to deterministic operations,
            without which a resumed run may differ in the last digits.
        jit_compile: whether TensorFlow compiles steps by XLA, with static
            sizes: one compilation for each combination of map sizes. Needs
            `deterministic=False`. JAX always does, torch cannot.
        config_fn: called once model and optimizer are there, returns the
            settings in force as text. Without it, going on in a workdir with
            other arguments is not noticed.
        differing_fn: called with two such texts, returns the settings that
            forbid to go on from one with the other; by default all lines that
            are not in both.
        stride_optimizer_cls: called without arguments, returns an optimizer for
            the strides alone; `None` leaves them to the other one. With Adam
            and its like, which normalise gradients, only this gives strides a
            learning rate of their own.

    Returns:
        The content of `summary.json`.

    Raises:
        UserError: if data, settings or workdir do not allow the run.
        NonFiniteLossError: if the loss ceases to be finite.
    """
    hardening = Hardening(
        harden_to, finetune_epochs, restart, harden_by, trials, trial_epochs
    )
    _check_arguments(num_epochs, seed, label_smoothing, stride_cost_weight)
    check_hardening(hardening, num_epochs)
    check_compiling(jit_compile, deterministic)
    learning_epochs = num_epochs - finetune_epochs
    keras.utils.set_random_seed(seed)
    set_up(deterministic)
    placement = place(devices)
    with placement.running(), as_config_errors():
        with hosts.leader_first("data"):
            datasets = load_data_fn(seed=seed)
        # Again, as TFDS draws numbers when it has to build a data set first.
        keras.utils.set_random_seed(seed)
        compiled = partial(
            _compiled,
            optimizer_cls=optimizer_cls,
            stride_optimizer_cls=stride_optimizer_cls,
            label_smoothing=label_smoothing,
            jit_compile=jit_compile,
            tasks=datasets.heads,
        )
        with placement.making():
            model = _made(model_cls, datasets, stride_cost_weight)
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
            shape = datasets.image_shape
            harden(model, harden_to, shape, verbose=False, trials=trials)
    logging.info("%s: %d parameters", model.name, model.count_params())

    root = files.make_folder(workdir, "`workdir`")
    with placement.running(), hosts.own_folder(root) as own:
        config_text = f"{_BACKEND}{keras.backend.backend()}\n"
        config_text += config_fn() if config_fn else ""
        make_stage = partial(Stage, root, own, datasets, config_text)
        stage = make_stage("learned" if harden_to else "model")
        first_epoch = _begun(stage, model, root, own, config_text, differing_fn)
        if harden_to:
            check_not_hardened(root, first_epoch, learning_epochs)
        epochs = stage.fit(model, first_epoch, learning_epochs, steering)
        if not harden_to:
            return stage.finish(model, seed)

        with placement.making():
            plain, change = hardened(
                *(model, hardening, budget, datasets, compiled),
                *(seed, epochs, root, own),
            )
        stage = make_stage("model", HARDENED, epochs if restart else 0)
        first_epoch = max(epochs, stage.restore(plain))
        stage.fit(plain, first_epoch, epochs + finetune_epochs)
        return stage.finish(plain, seed, change)


def _check_arguments(
    num_epochs: int,
    seed: int,
    label_smoothing: float,
    stride_cost_weight: float,
) -> None:
    check_argument(num_epochs >= 1, "at least 1", num_epochs=num_epochs)
    check_argument(0 <= seed < 2**31, "from 0 to 2**31 - 1", seed=seed)
    check_argument(
        0 <= label_smoothing < 1,
        "at least 0 and below 1",
        label_smoothing=label_smoothing,
    )
    check_argument(
        0 <= stride_cost_weight < math.inf,
        "finite and at least 0",
        stride_cost_weight=stride_cost_weight,
    )


def _check_data_format(model: keras.Model) -> None:
    expected = keras.config.image_data_format() == "channels_first"
    received = getattr(model, "channels_first", expected)
    check_argument(
        received == expected,
        f"left out or be {expected} on this machine (channels come first on a "
        "GPU)",
        channels_first=received,
    )


def _made(
    model_cls: Callable[..., keras.Model],
    datasets: data.Datasets,
    stride_cost_weight: float,
) -> keras.Model:
    """Makes and builds a network for the data."""
    shape = datasets.image_shape
    model = make_network(model_cls, datasets.num_classes, shape)
    _check_data_format(model)
    model.build((None, *shape))
    _add_stride_cost(model, stride_cost_weight, shape)
    return model


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
    with as_config_errors(share="smoothness_share", macs="budget"):
        if scheduled_layers(model):
            steering.append(SmoothnessSchedule(smoothness_share, epochs))
        if budget is not None:
            steering.append(
                add_compute_budget(
                    *(model, budget),
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
    tasks: Sequence[str] = (),
    stride_optimizer_cls: Callable[[], keras.Optimizer] | None = None,
) -> keras.Model:
    # Our ResNets are so on JAX without being told.
    on_jax = keras.backend.backend() == "jax"
    if jit_compile or on_jax and learned_layers(model):
        static_sizes(model)
    optimizer = optimizer_cls()
    if stride_optimizer_cls and learns_strides(model):
        optimizer = strides_apart(optimizer, stride_optimizer_cls())
    exclude_strides_from_weight_decay(optimizer, model)
    model.compile(
        optimizer,
        jit_compile=True if jit_compile else "auto",
        **objectives(tasks, label_smoothing),
    )
    optimizer.build(model.trainable_variables)
    return model


def _begun(
    stage: Stage,
    model: keras.Model,
    root: pathlib.Path,
    own: pathlib.Path,
    config_text: str,
    differing_fn: Callable[[str, str], Sequence[str]] | None,
) -> int:
    """Makes the workdir of a run, or takes up the one that is there.

    Returns the number of epochs that it has behind it.
    """
    for name in ("backup", "tensorboard"):
        files.make_folder(own / name, f"`{name}` of the run")
    if hosts.leads():
        _check_same_run(root, stage.backup, config_text, differing_fn)
    first_epoch = stage.restore(model)
    files.replace_text(own / "config.gin", config_text)
    if first_epoch:
        logging.info("Going on after epoch %d in %s", first_epoch, root)
    return first_epoch


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
    (old_backend, old), (backend, config_text) = (
        _without_backend(text) for text in (files.read_text(path), config_text)
    )
    if old_backend not in (None, backend):
        raise ConfigError(
            f"`workdir` {root} holds a run of another backend, which this one "
            f"would not end bit for bit; set KERAS_BACKEND={old_backend}, or "
            f"choose another --workdir. Received: KERAS_BACKEND={backend}"
        )
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


def _without_backend(text: str) -> tuple[str | None, str]:
    """Splits a config.gin. Those of old runs do not name their backend."""
    if not text.startswith(_BACKEND):
        return None, text
    first, _, rest = text.partition("\n")
    return first.removeprefix(_BACKEND), rest
