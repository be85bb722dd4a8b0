"""Arithmetic with `keras.ops`, or with numpy where all values are known.

Sizes are Python integers, or scalar integer tensors where they are known at run
time only. What is made of numpy arrays and Python numbers alone is made with
numpy: it is a constant for every compiler.
"""

import math
from typing import Any

import numpy as np
from keras import ops as keras_ops
from keras.backend import standardize_dtype

Tensor = Any
Size = Any  # A Python integer, or a scalar integer tensor.


class _NumpyOps:
    """The part of `keras.ops` that numpy names or does otherwise."""

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    @staticmethod
    def cast(x: Any, dtype: Any) -> np.ndarray:
        return np.asarray(x, standardize_dtype(dtype))

    @staticmethod
    def stop_gradient(x: Any) -> Any:
        return x


_numpy_ops = _NumpyOps()


def ops_for(*values: Any) -> Any:
    """Returns `keras.ops`, or numpy if no value is a tensor of the backend."""
    constant = (np.ndarray, np.generic, int, float)
    if all(isinstance(value, constant) for value in values):
        return _numpy_ops
    return keras_ops


def to_size(value: Tensor) -> Size:
    """Returns a whole number as a size, and 0 for NaN."""
    if ops_for(value) is _numpy_ops:
        return int(value) if math.isfinite(value) else 0
    return keras_ops.cast(value, "int32")
