"""Callbacks of training: what stops it, what it logs, what it keeps."""

import json
import os
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from diffstride.cost import scalars
from diffstride.errors import NonFiniteLossError
from diffstride.files import read_rows, replace_file, replace_text
from diffstride.internals import open_writers, optimizer_of, train_writer
from diffstride.profiling import profile


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
    overwrites weights and epoch one after the other, in place.)
    """

    def __init__(self, directory: str | os.PathLike, steps_per_epoch: int):
        super().__init__()
        self.path = pathlib.Path(directory) / "latest.weights.h5"
        self.steps_per_epoch = steps_per_epoch

    def restore(self, model: keras.Model) -> int:
        """Loads what is kept, if anything; returns the number of epochs done.

        The model must be built and compiled.
        """
        if not self.path.exists():
            return 0
        model.optimizer.build(model.trainable_variables)
        model.load_weights(self.path)
        return _step(model) // self.steps_per_epoch

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Saves."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(self.path, self.model.save_weights)


class EpochRecorder(keras.callbacks.Callback):
    """Completes the metrics of an epoch and appends them to a JSON-lines file.

    To what Keras reports it adds the epoch's duration, its training steps per
    second, the learning rate, the stride cost J, for each pooling layer its
    strides and output size, and what an image costs at these strides:
    multiply-accumulates (`macs`) and `activation_bytes`. Rows of epochs that
    are about to be repeated are taken out when training begins.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        image_shape: tuple[int, int, int],
        first_epoch: int = 0,
    ):
        super().__init__()
        self.path = pathlib.Path(path)
        self.image_shape = image_shape
        self.rows = [
            row for row in read_rows(self.path) if row["epoch"] <= first_epoch
        ]
        self.scalars: dict[str, float] = {}

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Rewrites the file without the rows that will be repeated."""
        lines = [json.dumps(row) + "\n" for row in self.rows]
        replace_text(self.path, "".join(lines))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Starts the clock."""
        self._start = time.perf_counter()

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
            **scalars(self.model, calls),
        }
        row = {
            "epoch": epoch + 1,
            "step": _step(self.model),
            "seconds": time.perf_counter() - self._start,
            **(logs or {}),
            **self.scalars,
        }
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")


class TensorBoard(keras.callbacks.TensorBoard):
    """Keras's callback, with the scalars of an `EpochRecorder` and a text.

    The recorder must come earlier among the callbacks.
    """

    def __init__(
        self, log_dir: str, recorder: EpochRecorder, config_text: str = ""
    ):
        super().__init__(log_dir=log_dir, write_graph=False)
        self._recorder = recorder
        self._config_text = config_text

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Writes the text."""
        super().on_train_begin(logs)
        if self._config_text:
            indented = self._config_text.replace("\n", "\n    ")
            with train_writer(self).as_default():
                tf.summary.text("config", f"    {indented}", step=0)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Writes the scalars, and sends them off."""
        logs = {**(logs or {}), **self._recorder.scalars}
        # Summaries take no integers of more than 32 bits.
        super().on_epoch_end(epoch, {k: float(v) for k, v in logs.items()})
        for writer in open_writers(self):
            writer.flush()


def _step(model: keras.Model) -> int:
    """Training steps done, over all restarts."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))
