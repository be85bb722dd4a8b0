"""Callbacks of training: what stops it, what it logs, what it keeps."""

import contextlib
import os
import pathlib
import shutil
import time
import zipfile
from collections.abc import Iterator, Sequence

import keras
import numpy as np
import tensorflow as tf
from absl import logging

from diffstride.cost import scalars
from diffstride.devices import compilations
from diffstride.errors import NonFiniteLossError, UserError
from diffstride.files import replace_file, replace_lines, writing
from diffstride.internals import open_writers, optimizer_of, train_writer
from diffstride.profiling import profile
from diffstride.runs import read_rows
from diffstride.tasks import with_means


class StopOnNonFiniteLoss(keras.callbacks.Callback):
    """Raises at the first step whose loss is not finite, and names it.

    What the last step of an epoch did shows in no training loss of that epoch;
    therefore test loss and weights are looked at too, before anything is kept.
    To this end it must come first among the callbacks.
    """

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Looks at the loss."""
        self._batch = batch
        loss = (logs or {}).get("loss", 0.0)
        if not np.isfinite(loss):
            self._stop(f"Loss is {loss} at")

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Looks at the test loss and the weights."""
        loss = (logs or {}).get("val_loss", 0.0)
        if not np.isfinite(loss):
            self._stop(f"Test loss is {loss} after")
        for variable in self.model.trainable_variables:
            if not np.isfinite(keras.ops.convert_to_numpy(variable)).all():
                self._stop(f"Weight {variable.path} is not finite after")

    def _stop(self, what: str) -> None:
        # Steps are the optimizer's, which goes on counting after a restart.
        raise NonFiniteLossError(
            f"{what} step {_step(self.model)} (epoch {self._epoch + 1}, batch "
            f"{self._batch + 1}). Training stopped; the last epoch that ended "
            "well is kept. Try a lower learning rate."
        )


class Backup(keras.callbacks.Callback):
    """Keeps all that is needed to go on after the last complete epoch.

    One file holds model and optimizer, and is put in place in one step; the
    epoch follows from the optimizer's step count. Being killed at any moment
    thus leaves this epoch's file or the one before. (Keras's BackupAndRestore
    overwrites weights and epoch one after the other, in place.) A model that
    was saved when the run had ended, `saved`, serves in the backup's stead.
    `prefix` tells apart the backups of several networks. What is to be restored
    is read from `read_from` instead of `directory`, if it is given. `before` is
    the number of epochs that the optimizer does not count.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        steps_per_epoch: int,
        saved: pathlib.Path | None = None,
        prefix: str = "",
        read_from: str | os.PathLike | None = None,
        before: int = 0,
    ):
        super().__init__()
        name = f"{prefix}latest.weights.h5"
        self.path = pathlib.Path(directory) / name
        self.steps_per_epoch = steps_per_epoch
        self._before = before
        self._sources = [pathlib.Path(read_from or directory) / name]
        if saved:
            self._sources.append(saved)

    def exists(self) -> bool:
        """Tells whether there is anything to restore."""
        return any(path.exists() for path in self._sources)

    def restore(self, model: keras.Model) -> int:
        """Loads what is kept, if anything; returns the number of epochs done.

        The model must be built and compiled.

        Raises:
            UserError: if what is kept is damaged or of another network.
        """
        reasons = []
        for path in filter(pathlib.Path.exists, self._sources):
            try:
                return self._load(model, path)
            except Exception as error:  # Damaged HDF5 and ZIP raise anything.
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                reasons.append(f"{path} does not hold this run: {reason}")
                logging.warning(reasons[-1])
        if reasons:
            raise UserError(
                f"{'; '.join(reasons)}. Put back what was there, or remove "
                f"{' and '.join(map(str, self._sources))} to train again from "
                "the first epoch"
            )
        return 0

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves."""
        replace_file(self.path, self._save)

    def _load(self, model: keras.Model, path: pathlib.Path) -> int:
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
        epochs, rest = divmod(_step(model), self.steps_per_epoch)
        if rest or not epochs:  # Keras skips the state of other optimizers.
            raise ValueError(
                f"step {_step(model)} does not end an epoch of "
                f"{self.steps_per_epoch} steps"
            )
        return self._before + epochs

    def _save(self, path: pathlib.Path) -> None:
        # On a full disk HDF5 crashes the process, but not when it writes to
        # memory, as it does for a model in one file.
        whole = path.with_name("unfinished.keras")
        try:
            self.model.save(whole)
            with (
                zipfile.ZipFile(whole) as archive,
                archive.open("model.weights.h5") as weights,
                path.open("wb") as file,
            ):
                shutil.copyfileobj(weights, file)
        finally:
            whole.unlink(missing_ok=True)


class EpochRecorder(keras.callbacks.Callback):
    """Completes the metrics of an epoch and appends them to a JSON-lines file.

    Of several `tasks` it adds the mean accuracy.

    To what Keras reports it adds the epoch's duration, its training steps per
    second, the learning rate, the stride cost J, for each pooling layer its
    strides and output size, and what an image costs at these strides:
    multiply-accumulates (`macs`) and `activation_bytes`. On JAX also how many
    steps were compiled in the epoch, and the time this took. Rows of epochs
    that are about to be repeated are taken out when training begins.
    `steps_before` are those of the run that the optimizer does not count.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_shape: tuple[int, ...],
        first_epoch: int = 0,
        tasks: Sequence[str] = (),
        steps_before: int = 0,
    ):
        super().__init__()
        self.path = pathlib.Path(path)
        self.image_shape = image_shape
        self.tasks = tasks
        self._steps_before = steps_before
        self.rows = [
            row for row in read_rows(self.path) if row["epoch"] <= first_epoch
        ]
        self.scalars: dict[str, float] = {}
        self.initial: dict[str, float] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Rewrites the file without the rows that will be repeated."""
        replace_lines(self.path, self.rows)
        if not self.rows:
            calls = profile(self.model, self.image_shape)
            self.initial = scalars(self.model, calls)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()
        self._compiled = compilations()

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Notes the speed up to the last training step, before validation."""
        seconds = time.perf_counter() - self._start
        self._steps_per_second = (batch + 1) / seconds

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Appends a row."""
        calls = profile(self.model, self.image_shape)
        optimizer = optimizer_of(
            self.model.optimizer, self.model.trainable_variables[0]
        )
        self.scalars = {
            "learning_rate": float(
                keras.ops.convert_to_numpy(optimizer.learning_rate)
            ),
            "steps_per_second": self._steps_per_second,
            **self._compilations(),
            **scalars(self.model, calls),
        }
        row = {
            "epoch": epoch + 1,
            "step": self._steps_before + _step(self.model),
            "seconds": time.perf_counter() - self._start,
            **with_means(logs or {}, self.tasks),
            **self.scalars,
        }
        self.rows.append(row)
        replace_lines(self.path, self.rows)

    def _compilations(self) -> dict[str, float]:
        """What JAX compiled in this epoch, for training and testing."""
        if self._compiled is None:
            return {}
        names = ("compilations", "compile_seconds")
        now = compilations()
        return {
            name: after - before
            for name, before, after in zip(
                names, self._compiled, now, strict=True
            )
        }


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's callback, with the scalars of an `EpochRecorder` and a text.

    Steps are epochs; at 0 stand the initial strides and what follows from them.
    The recorder must come earlier among the callbacks. So should a `Backup`: an
    epoch that it does not keep would be written twice.
    """

    def __init__(
        self, log_dir: str, recorder: EpochRecorder, config_text: str = ""
    ):
        super().__init__(log_dir=log_dir, write_graph=False)
        self._recorder = recorder
        self._config_text = config_text

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Writes the text."""
        with self._writing():
            super().on_train_begin(logs)
            if self._config_text:
                indented = self._config_text.replace("\n", "\n    ")
                with train_writer(self).as_default():
                    tf.summary.text("config", f"    {indented}", step=0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the scalars, and sends them off."""
        with self._writing():
            if epoch == 0:
                with train_writer(self).as_default():
                    for name, value in self._recorder.initial.items():
                        tf.summary.scalar(f"epoch_{name}", float(value), step=0)
            logs = with_means(logs or {}, self._recorder.tasks)
            logs |= self._recorder.scalars
            # Summaries take no integers of more than 32 bits.
            logs = {name: float(value) for name, value in logs.items()}
            super().on_epoch_end(epoch + 1, logs)
            for writer in open_writers(self):
                writer.flush()

    def on_test_begin(self, logs: dict | None = None) -> None:
        """Does nothing: `on_epoch_end` gets the same numbers."""

    on_test_end = on_test_begin

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        with writing(self.log_dir):
            try:
                yield
            except tf.errors.OpError as error:
                # Less what TensorFlow says of its own insides.
                reason = error.message.splitlines()[0].split("}} ")[-1]
                raise OSError(reason) from error


def _step(model: keras.Model) -> int:
    """Training steps done, over all restarts."""
    if keras.backend.backend() == "jax":
        # During `fit` the values are not in the variables.
        model.jax_state_sync()
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))
