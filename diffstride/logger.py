"""A callback that logs strides in any `fit`."""

import keras

from diffstride.diagnostics import check
from diffstride.profiling import known_shape, stride_logs


class StrideLogger(keras.callbacks.Callback):
    """Adds the strides of a model to the logs of each epoch.

    They are there as `stride/<layer>/<axis>`, for all callbacks that come later
    in the list, and in the `History` that `fit` returns: of every pooling layer
    of this package that has strides, learned or not. Before training begins the
    model is checked as `diffstride.check` does, if its input size is known.

    Attributes:
        strides: a dictionary of them for each epoch. The first holds what they
            were when training began, epoch 0.

    Example:

    >>> logger = diffstride.StrideLogger()
    >>> history = model.fit(images, labels, callbacks=[logger])
    >>> history.history["stride/diff_stride/height"], logger.strides[0]
    """

    def __init__(self) -> None:
        super().__init__()
        self.strides: list[dict[str, float]] = []

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Warns of strides that cannot be learned, notes the initial ones."""
        try:
            shape = known_shape(self.model)
        except ValueError:
            shape = None
        if shape is not None:
            check(self.model, shape)
        self.strides = [stride_logs(self.model)]

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        """Notes the strides, and adds them to the logs."""
        self.strides.append(stride_logs(self.model))
        if logs is not None:
            logs.update(self.strides[-1])
