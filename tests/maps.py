"""Maps for tests, and layers applied to them in either data format.

Arrays are (batch, channels, *spatial), as in `oracle`; a layer receives them in
its own format.
"""

import keras
import numpy as np
import pytest
from gradients import output_and_gradients, output_of
from keras import ops

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    FixedSpectralPooling1D,
    FixedSpectralPooling3D,
)

BACKEND = keras.backend.backend()
# JAX compiles for each size anew: it is given fewer of them. Torch is fastest
# at what is called once, and has them all.
JAX, TORCH = BACKEND == "jax", BACKEND == "torch"
FORMATS = ("channels_last", "channels_first")


def slow_unless(telling):
    """Marks a test as slow but on backends where it is quick, or tells most."""
    return (lambda function: function) if telling else pytest.mark.slow


LEARNED = {1: DiffStride1D, 2: DiffStride, 3: DiffStride3D}
FIXED = {
    1: FixedSpectralPooling1D,
    2: FixedSpectralPooling,
    3: FixedSpectralPooling3D,
}
TOLERANCE = 2e-6  # of float32 against the float64 oracle


def fewer(values):
    """All on torch, two elsewhere: of what hardly knows the backend."""
    return values if TORCH else values[:2]


def array(x):
    return ops.convert_to_numpy(x)


def images(*shape, seed=0, mean=0.0):
    x = np.random.default_rng(seed).normal(mean, size=shape)
    return x.astype("float32")


def to_format(x, data_format):
    return np.moveaxis(x, 1, -1) if data_format == "channels_last" else x


def from_format(x, data_format):
    return np.moveaxis(x, -1, 1) if data_format == "channels_last" else x


def apply(layer, x):
    y = output_of(layer, to_format(x, layer.data_format))
    return from_format(y, layer.data_format)


def gradients(layer, x, cotangent=None):
    """Output, gradient of the input, that of the strides (or `None`)."""
    data_format = layer.data_format
    if cotangent is not None:
        cotangent = to_format(cotangent, data_format)
    y, dx, dv = output_and_gradients(
        layer, to_format(x, data_format), cotangent
    )
    y, dx = (from_format(a, data_format) for a in (y, dx))
    return y, dx, dv[0] if dv else None


def flip(x, *axes):
    """Reverses axes about their sample 0."""
    return np.roll(np.flip(x, axes), 1, axes)
