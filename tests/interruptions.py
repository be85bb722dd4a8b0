"""Runs that end early, and what is left of them."""

import shutil

import keras
import numpy as np

from diffstride import callbacks
from diffstride.profiling import pooling_states, profile


def keep_copies(monkeypatch, copies):
    """Copies a run's workdir where an epoch begins, as if it ended there.

    `copies` has the folder of the copy for each such epoch, and loses it.
    """
    begin = callbacks.EpochRecorder.on_epoch_begin

    def copy_and_begin(recorder, epoch, logs=None):
        if epoch in copies:
            shutil.copytree(recorder.path.parent, copies.pop(epoch))
        begin(recorder, epoch, logs)

    monkeypatch.setattr(
        callbacks.EpochRecorder, "on_epoch_begin", copy_and_begin
    )


class OneStep(Exception):
    """How a run ends after a step."""


def end_after_a_step(monkeypatch):
    """Has runs train for a step, eagerly, which spares what it takes to trace.

    They end in `OneStep`. Returns a list that receives of each its number of
    steps in an epoch, and the states of its pooling layers.
    """
    seen = []

    def fit(model, batches, steps_per_epoch, **kwargs):
        model.run_eagerly = True
        batch = next(iter(batches))
        losses = model.train_on_batch(*batch, return_dict=True)
        assert np.all(np.isfinite([*losses.values()])), losses
        calls = profile(model, batch[0].shape[1:])
        seen.append((steps_per_epoch, pooling_states(calls)))
        raise OneStep

    monkeypatch.setattr(keras.Model, "fit", fit)
    return seen
