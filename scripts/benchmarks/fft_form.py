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
        height, width = map(int, x.shape[2:])
        sizes = (height, width)
        strides = self.low_pass.used(sizes, self.scaled_strides())
        rows = np.fft.fftfreq(height) * height
        rows = np.where(rows < 0, -rows - 1, rows).astype("float32")
        columns = np.arange(width // 2 + 1, dtype="float32") - 1
        rows = self._weights(height, strides[0], rows)
        columns = self._weights(width, strides[1], columns)
        return _TRANSFORMS[keras.backend.backend()](self, x, rows, columns)

    def _weights(self, size: int, stride: Any, positions: Any) -> Any:
        smoothness = self.smoothness_factor
        edge = smoothness + ops.maximum(size / stride, 2.0) / 2.0
        distance = edge - ops.convert_to_tensor(positions)
        return ops.clip(distance / smoothness, 0.0, 1.0)


def _tensorflow(layer: FFTForm, x: Any, rows: Any, columns: Any) -> Any:
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


def _jax(layer: FFTForm, x: Any, rows: Any, columns: Any) -> Any:
    import jax.numpy as jnp

    spectrum = jnp.fft.rfft2(x)
    spectrum *= columns[None, :]
    spectrum *= rows[:, None]
    kept_rows, kept_columns, sizes = _kept(layer, x.shape[2:])
    spectrum = spectrum[:, :, kept_rows][..., kept_columns]
    return jnp.fft.irfft2(spectrum, sizes)


def _torch(layer: FFTForm, x: Any, rows: Any, columns: Any) -> Any:
    import torch

    spectrum = torch.fft.rfft2(x)
    spectrum = spectrum * columns[None, :]
    spectrum = spectrum * rows[:, None]
    kept_rows, kept_columns, sizes = _kept(layer, x.shape[2:])
    spectrum = spectrum[:, :, kept_rows][..., kept_columns]
    return torch.fft.irfft2(spectrum, sizes)


def _kept(layer: FFTForm, shape: tuple) -> tuple:
    """What is kept, as sizes have to be known on these backends."""
    sizes = layer.output_sizes(tuple(shape), layer.initial_strides)
    half = sizes[0] // 2
    rows = np.r_[0:half, shape[0] - half : shape[0]]
    return rows, np.arange(sizes[1] // 2 + 1), sizes


_TRANSFORMS = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
