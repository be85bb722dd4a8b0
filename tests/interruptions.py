"""What is left of a run that was interrupted, without starting it for that."""

import shutil

from diffstride import callbacks


def keep_copies(monkeypatch, copies):
    """Copies a run's workdir where an epoch begins, as if it ended there.

    `copies` has the folder of the copy for each such epoch.
    """
    begin = callbacks.EpochRecorder.on_epoch_begin

    def copy_and_begin(recorder, epoch, logs=None):
        if epoch in copies:
            shutil.copytree(recorder.path.parent, copies.pop(epoch))
        begin(recorder, epoch, logs)

    monkeypatch.setattr(
        callbacks.EpochRecorder, "on_epoch_begin", copy_and_begin
    )
