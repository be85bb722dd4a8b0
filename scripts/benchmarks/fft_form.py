"""DiffStride as the authors wrote it: rfft2, two masks, crop, irfft2.

For the benchmark alone, on each backend with its own transforms. It works in
float32, as these have no half precision, for even sizes.
"""

from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride.pooling import BaseDiffStride


class FFTForm(BaseDiffStride):
    """What `DiffStride` computes, by way of the FFT."""

    rank = 2

    def call(self, inputs: Any) -> Any:
        """Returns the resampled maps."""
        first = self.data_format == "channels_first"
        x = ops.cast(inputs, "float32")
        x = x if first else ops.transpose(x, (0, 3, 1, 2))
        y = self._resampled(x)
        y = y if first else ops.transpose(y, (0, 2, 3, 1))
        return ops.cast(y, inputs.dtype)

    def _resampled(self, x: Any) -> Any:
        sizes = height, width = tuple(x.shape[2:])
        strides = self.low_pass.used(sizes, self.scaled_strides())
        rows = np.fft.fftfreq(height) * height
        rows = np.where(rows < 0, -rows - 1, rows).astype("float32")
        columns = np.arange(width // 2 + 1, dtype="float32") - 1
        rows = self._weights(height, strides[0], rows)
        columns = self._weights(width, strides[1], columns)
        if keras.backend.backend() == "tensorflow":
            return _tensorflow(x, rows, columns)
        # On these backends sizes have to be known.
        output = self.output_sizes(sizes, self.initial_strides)
        return _cropped_to(output, x, rows, columns)

    def _weights(self, size: int, stride: Any, positions: Any) -> Any:
        smoothness = self.smoothness_factor
        edge = smoothness + ops.maximum(size / stride, 2.0) / 2.0
        distance = edge - ops.convert_to_tensor(positions)
        return ops.clip(distance / smoothness, 0.0, 1.0)


def _tensorflow(x: Any, rows: Any, columns: Any) -> Any:
    import tensorflow as tf

    spectrum = tf.signal.rfft2d(x)
    spectrum *= tf.cast(columns[None, :], "complex64")
    spectrum *= tf.cast(rows[:, None], "complex64")
    kept_rows = tf.where(tf.stop_gradient(rows) > 0)[:, 0]
    kept_columns = tf.where(tf.stop_gradient(columns) > 0)[:, 0]
    spectrum = tf.gather(spectrum, kept_columns, axis=3)
    spectrum = tf.gather(spectrum, kept_rows, axis=2)
    length = [tf.size(kept_rows), 2 * (tf.size(kept_columns) - 1)]
    return tf.signal.irfft2d(spectrum, length)


def _cropped_to(sizes: tuple[int, int], x: Any, rows: Any, columns: Any) -> Any:
    if keras.backend.backend() == "jax":
        from jax.numpy import fft
    else:
        from torch import fft

    spectrum = fft.rfft2(x) * columns[None, :] * rows[:, None]
    height, half = x.shape[2], sizes[0] // 2
    kept_rows = np.r_[0:half, height - half : height]
    kept_columns = np.arange(sizes[1] // 2 + 1)
    return fft.irfft2(spectrum[:, :, kept_rows][..., kept_columns], sizes)
