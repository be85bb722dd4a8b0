"""Several processes that train one network, on one host or on many.

JAX's distributed runtime, as `keras.distribution` offers it. Each process takes
its share of each batch; all else, weights, sizes of maps and batch statistics,
is the same everywhere. The first process alone writes.
"""

import contextlib
import functools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from diffstride import files
from diffstride.errors import ConfigError, UserError


def join() -> None:
    """Joins the other processes, before anything is computed.

    Where they are is said by Keras's `KERAS_DISTRIBUTION_*` variables, or else
    found by JAX (on TPUs, and under Slurm, Open MPI and Kubernetes).

    Raises:
        UserError: if the backend cannot, or the others are not found.
    """
    if keras.backend.backend() != "jax":
        raise ConfigError(
            "--distributed needs KERAS_BACKEND=jax. Received: KERAS_BACKEND="
            f"{keras.backend.backend()}, where one process trains (on "
            "TensorFlow on several GPUs, see `train.devices`)"
        )
    import jax

    with contextlib.suppress(AttributeError):  # What CPUs talk by.
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        keras.distribution.initialize()
    except (ValueError, RuntimeError) as error:
        raise UserError(
            "--distributed found no other processes: set "
            "KERAS_DISTRIBUTION_JOB_ADDRESSES (host and port of the first), "
            "KERAS_DISTRIBUTION_NUM_PROCESSES and "
            f"KERAS_DISTRIBUTION_PROCESS_ID. JAX says: {error}"
        ) from error


def count() -> int:
    """Returns the number of processes."""
    if keras.backend.backend() != "jax":
        return 1
    import jax

    return jax.process_count()


def index() -> int:
    """Returns which of them this is."""
    if count() == 1:
        return 0
    import jax

    return jax.process_index()


def leads() -> bool:
    """Tells whether this process is the one that writes."""
    return index() == 0


def failing_together(
    main: Callable[[list[str]], int],
) -> Callable[[list[str]], int]:
    """Makes a failure end this process at once, so that the others notice.

    JAX would wait minutes for them, and they for this one.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str]) -> int:
        status = main(argv)
        if status and count() > 1:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        return status

    return wrapper


@contextlib.contextmanager
def leader_first(name: str) -> Iterator[None]:
    """Lets the first process do what is inside before the others do."""
    if not leads():
        wait(name)
    yield
    if leads():
        wait(name)


@contextlib.contextmanager
def own_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives the first process a folder, and others one that is thrown away.

    All do the same: what saves a model computes, and the others must take part.
    """
    if leads():
        with files.locked(folder):
            yield folder
    else:
        with tempfile.TemporaryDirectory() as thrown_away:
            yield pathlib.Path(thrown_away)


class SharedBatches(keras.distribution.DataParallel):
    """Splits batches between all devices of all processes, or copies them."""

    def __init__(self) -> None:
        super().__init__(auto_shard_dataset=False)
        self._copies = False

    @contextlib.contextmanager
    def copying(self, copies: bool) -> Iterator[None]:
        """Inside, each process may have the whole of a batch."""
        self._copies = copies
        try:
            yield
        finally:
            self._copies = False

    def get_data_layout(self, data_shape: tuple) -> Any:
        """Returns how a batch lies on the devices."""
        if not self._copies:
            return super().get_data_layout(data_shape)
        axes = [None] * len(data_shape)
        return keras.distribution.TensorLayout(axes, self.device_mesh)


def _devices() -> int:
    import jax

    return jax.device_count()


def share(datasets: Any) -> Any:
    """Takes from each training batch of `Datasets` what is trained on here.

    Raises:
        ConfigError: if the devices cannot have equal shares.
    """
    if count() == 1:
        return datasets
    size = datasets.batch_size
    if size % _devices():
        raise ConfigError(
            f"`batch_size` must be a multiple of the {_devices()} devices of "
            f"all {count()} processes. Received: batch_size={size}"
        )
    return datasets.share(index(), count())


def fit(
    model: keras.Model,
    datasets: Any,
    first_epoch: int,
    last_epoch: int,
    **arguments: Any,
) -> keras.callbacks.History:
    """Trains a compiled model from one epoch to another, by all processes.

    Args:
        model: a compiled model.
        datasets: `Datasets`.
        first_epoch: number of epochs done.
        last_epoch: number of epochs to have done in the end.
        **arguments: further arguments of `fit`.
    """
    return datasets.reading()(model.fit)(
        share(datasets).epochs(first_epoch, last_epoch),
        initial_epoch=first_epoch,
        epochs=last_epoch,
        steps_per_epoch=datasets.steps_per_epoch,
        shuffle=False,  # The data set is shuffled.
        **arguments,
    )


def _own_rows(*batch: Any) -> Any:
    """The rows of this process, of as many as devices can share evenly."""
    own = _rows(*batch) // _devices() * (_devices() // count())
    return tf.nest.map_structure(
        lambda each: each[index() * own : (index() + 1) * own], batch
    )


def _left_over(*batch: Any) -> Any:
    """The rows that they cannot."""
    rows = _rows(*batch)
    return tf.nest.map_structure(
        lambda each: each[rows - rows % _devices() :], batch
    )


def _rows(*batch: Any) -> tf.Tensor:
    return tf.shape(tf.nest.flatten(batch)[0])[0]


def _parts(batches: tf.data.Dataset) -> list[tuple[bool, tf.data.Dataset]]:
    """Cuts batches into what devices share evenly, and what each computes."""
    number = int(batches.cardinality())
    if number < 1:
        raise ConfigError(
            "Batches to test on must have a known number with --distributed. "
            f"Received: {batches}"
        )
    last = batches.skip(number - 1)
    (rows,) = last.map(_rows).as_numpy_iterator()
    parts = []
    if shared := number - (rows < _devices()):
        own = batches.take(shared).map(_own_rows, tf.data.AUTOTUNE)
        parts.append((False, own.prefetch(tf.data.AUTOTUNE)))
    if rows % _devices():
        parts.append((True, last.map(_left_over)))
    return parts


def evaluate(model: keras.Model, batches: tf.data.Dataset) -> dict[str, float]:
    """Evaluates a model on all rows, by all processes together.

    Args:
        model: a compiled model.
        batches: whole batches, the same in all processes. All but the last have
            as many rows as devices can share.

    Returns:
        Loss and metrics by their names.
    """
    if count() == 1:
        return model.evaluate(batches, verbose=0, return_dict=True)
    return _evaluated(model, _parts(batches))


def _evaluated(
    model: keras.Model, parts: list[tuple[bool, tf.data.Dataset]]
) -> dict[str, float]:
    found = []
    for copied, batches in parts:
        with keras.distribution.distribution().copying(copied):
            values = model.evaluate(batches, verbose=0, return_dict=True)
        (loss,) = (each for each in model.metrics if each.name == "loss")
        found.append((float(loss.count), values))
    total = sum(rows for rows, _ in found)
    return {
        name: sum(rows * values[name] for rows, values in found) / total
        for name in found[0][1]
    }


class Validation(keras.callbacks.Callback):
    """Adds to the logs of an epoch what `evaluate` finds.

    In the place of `validation_data`, where processes could not share the last
    batch. It must come before callbacks that read the logs.
    """

    def __init__(self, batches: tf.data.Dataset):
        super().__init__()
        self._parts = _parts(batches)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Evaluates."""
        found = _evaluated(self.model, self._parts)
        logs.update({f"val_{name}": value for name, value in found.items()})


def wait(name: str) -> None:
    """Waits until all processes are here. `name` is that of the place."""
    if count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)


def agree(what: str, value: int) -> int:
    """Waits for all processes, and checks that they have one value.

    Raises:
        UserError: if they do not.
    """
    if count() == 1:
        return value
    from jax.experimental import multihost_utils

    values = multihost_utils.process_allgather(np.array(value)).tolist()
    if len(set(values)) > 1:
        raise UserError(
            f"All processes must find the same {what}: they need one "
            "--workdir, in a folder that all hosts see. They found: "
            f"{values}"
        )
    return value
