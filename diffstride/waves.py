"""Matrices of one axis: sums of waves, weighted and sampled on two grids."""

import functools
import math
from typing import Any

import numpy as np
from keras import ops as keras_ops
from keras.backend import standardize_dtype

from diffstride.numerics import Size, Tensor, ops_for

# Up to this size tables are kept, and those of an input serve all strides.
_TABLE_SIZE = 1024


def wave_matrix(
    size: Size, output_size: Size, weights: Tensor, sines: bool = False
) -> Tensor:
    """Sum of weighted waves, sampled at (i / output_size - j / size).

    Args:
        size: number of columns.
        output_size: number of rows.
        weights: of frequencies `k = 0, 1, ...`, as many as there are weights.
        sines: whether the waves are sines, not cosines.
    """
    ops = ops_for(weights)
    frequencies = ops.shape(weights)[0]
    cos_out, sin_out = _waves(output_size, frequencies, weights.dtype)
    cos_in, sin_in = _of_input(size, frequencies, weights.dtype)
    cos_out = ops.multiply(cos_out, weights)
    sin_out = ops.multiply(sin_out, weights)
    pair = [sin_out, -cos_out] if sines else [cos_out, sin_out]
    synthesis = ops.concatenate(pair, axis=1)
    analysis = ops_for(cos_in).concatenate([cos_in, sin_in], axis=1)
    return ops.matmul(synthesis, ops.transpose(analysis))


def sine_factors(
    size: Size, output_size: Size, k: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """What `wave_matrix` gives of sines, as a product of two, for any `k`."""
    ops = ops_for(weights, k)
    cos_out, sin_out = _sampled(output_size, k, weights.dtype)
    cos_in, sin_in = _sampled(size, k, weights.dtype)
    left = ops.concatenate([sin_out, -cos_out], axis=1)
    right = ops.concatenate([cos_in * weights, sin_in * weights], axis=1)
    return left, ops.transpose(right)


def cosine_matrix(size: Size, output_size: Size, weights: Tensor) -> Tensor:
    """Sum of weighted cosines, sampled between the grids' outer edges."""
    ops = ops_for(weights)
    # All but the constant wave have twice its energy.
    twice = ops_for(size).where(ops_for(size).arange(size) > 0, 2.0, 1.0)
    weights = weights * ops.cast(twice, weights.dtype)
    synthesis = _half_waves(output_size, size, weights.dtype)
    analysis = _half_waves(size, size, weights.dtype)
    synthesis = ops.multiply(synthesis, weights)
    return ops.matmul(synthesis, ops_for(analysis).transpose(analysis))


def _of_input(
    size: Size, frequencies: Size, dtype: Any
) -> tuple[Tensor, Tensor]:
    """What `_waves` gives, for not more frequencies than the size has."""
    if not isinstance(size, int) or size > _TABLE_SIZE:
        return _waves(size, frequencies, dtype)
    tables = _waves(size, size // 2 + 1, dtype)
    if not isinstance(frequencies, int):
        tables = map(keras_ops.convert_to_tensor, tables)
    cosines, sines = (table[:, :frequencies] for table in tables)
    return cosines, sines


def _waves(size: Size, frequencies: Size, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi k i / size`, each (size, frequencies)."""
    if not isinstance(size, int) or not isinstance(frequencies, int):
        return _sampled(size, keras_ops.arange(frequencies), dtype)
    make = _table if size <= _TABLE_SIZE else _table.__wrapped__
    return make(size, frequencies, standardize_dtype(dtype))


@functools.lru_cache(maxsize=256)
def _table(
    size: int, frequencies: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    return _sampled(size, np.arange(frequencies), dtype)


def _sampled(size: Size, k: Tensor, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi k i / size`, each (size, len(k))."""
    ops = ops_for(size, k)
    i = ops.expand_dims(ops.arange(size), 1)
    angle = _angle(ops, i * k, size, dtype)
    return ops.cast(ops.cos(angle), dtype), ops.cast(ops.sin(angle), dtype)


def _half_waves(size: Size, frequencies: Size, dtype: Any) -> Tensor:
    """Cosines of `pi k (i + 1/2) / size`, (size, frequencies)."""
    if isinstance(size, int) and isinstance(frequencies, int):
        return _half_wave_table(size, frequencies, standardize_dtype(dtype))
    return _half_wave_samples(size, keras_ops.arange(frequencies), dtype)


@functools.lru_cache(maxsize=256)
def _half_wave_table(size: int, frequencies: int, dtype: str) -> np.ndarray:
    return _half_wave_samples(size, np.arange(frequencies), dtype)


def _half_wave_samples(size: Size, k: Tensor, dtype: Any) -> Tensor:
    ops = ops_for(size, k)
    i = ops.expand_dims(ops.arange(size), 1)
    angle = _angle(ops, k * (2 * i + 1), 4 * size, dtype)
    return ops.cast(ops.cos(angle), dtype)


def _angle(ops: Any, numerator: Tensor, turn: Size, dtype: Any) -> Tensor:
    """`2 pi numerator / turn` of integers, for any whole turns less."""
    # Reduced to one turn in integers: large angles cost float32 its digits.
    exact = dtype if ops is keras_ops else "float64"
    part = ops.cast(ops.mod(numerator, turn), exact) / ops.cast(turn, exact)
    return 2.0 * math.pi * part
