"""Resampling in the Fourier domain as small matrix products.

DiffStride and spectral pooling take the DFT of a real map over its spatial
axes, weight and crop the frequencies, and return to space on a coarser grid.
For given strides all of this is linear and separable, up to complex parts:
with one complex matrix an axis, each being synthesis . mask . analysis,

    1-D   y = Re(B) x
    2-D   y = Re(A) x Re(B)^T - Im(A) x Im(B)^T
    3-D   y = Re((A1 (x) A2 (x) B) x), and so on

This module makes these matrices of `masks.Band`s and multiplies by them; no
FFT, no complex dtype and no transposition is needed, in either data format.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from keras import KerasTensor
from keras import ops as keras_ops
from keras.backend import standardize_dtype

from diffstride.masks import Band
from diffstride.numerics import Size, Tensor, ops_for

NORMS = ("backward", "ortho", "forward")
# Size of an axis, per asymmetric frequency, from which on the low rank pays.
LOW_RANK_SIZE = 10


def resample(
    x: Tensor,
    bands: Sequence[Band],
    norm: str,
    data_format: str,
    transform: Callable | None = None,
) -> Tensor:
    """Weights and crops the spectrum of every channel.

    Args:
        x: tensor of one batch axis, `len(bands)` spatial axes, one of channels.
        bands: what each axis keeps; the last axis is the one-sided one.
        norm: scaling of the transforms, one of `NORMS`, as in `numpy.fft`.
        data_format: `"channels_last"` or `"channels_first"`.
        transform: what makes the matrices; by default `factors`, the DFT.

    Returns:
        Tensor of the rank and the dtype of `x`, with the new sizes.
    """
    sizes = spatial_sizes(x, data_format)
    made = (transform or factors)(sizes, bands, norm)
    return _product(x, made, data_format, _along)


def resample_macs(
    shape: Sequence[int],
    bands: Sequence[Band],
    data_format: str,
    transform: Callable | None = None,
) -> int:
    """Counts the multiply-accumulates of `resample`, as it goes.

    Args:
        shape: of its input, all of it known.
        bands: as in `resample`.
        data_format: as in `resample`.
        transform: as in `resample`.

    Returns:
        Their number. Making the matrices, once for a batch, is not in it.
    """
    x = KerasTensor(shape)
    counts = []

    def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
        # Each number meets all rows.
        counts.append(int(matrix.shape[0]) * math.prod(x.shape))
        return _along(matrix, x, axis)

    sizes = spatial_sizes(x, data_format)
    made = (transform or factors)(sizes, bands)
    _product(x, made, data_format, along)
    return sum(counts)


def spatial_sizes(x: Tensor, data_format: str) -> tuple[Size, ...]:
    """Returns the sizes of the axes that are neither batch nor channels."""
    shape = keras_ops.shape(x)
    return tuple(shape[1:-1] if data_format == "channels_last" else shape[2:])


class Factor(NamedTuple):
    """The matrix of one axis, (output size, size), in real parts.

    The imaginary part is given in one of two forms: dense, or as a product
    `left @ right` of low rank, which is cheaper for long axes. It is zero if
    none of them is there.

    Attributes:
        real: real part.
        imaginary: imaginary part, or `None`.
        left: (output size, rank), or `None`.
        right: (rank, size), or `None`.
    """

    real: Tensor
    imaginary: Tensor | None = None
    left: Tensor | None = None
    right: Tensor | None = None


def factors(
    sizes: tuple[Size, ...], bands: tuple[Band, ...], norm: str = "backward"
) -> list[Factor]:
    """The matrices of all axes; the last axis is the one-sided one."""
    rank = len(sizes)
    symmetric = not any(band.asymmetric for band in bands[:-1])
    made = [
        two_sided_factor(size, band, norm, dense=rank != 2)
        for size, band in zip(sizes[:-1], bands[:-1], strict=True)
    ]
    last = one_sided_factor(sizes[-1], bands[-1], norm, real=symmetric)
    return [*made, last]


def two_sided_factors(
    sizes: tuple[Size, ...], bands: tuple[Band, ...], norm: str = "backward"
) -> list[Factor]:
    """The matrices of axes that are all two-sided, of one or two of them.

    The output is the real part of what a complex transform would give.
    """
    last = two_sided_factor(sizes[-1], bands[-1], norm, dense=True)
    if len(sizes) == 1:
        return [last]
    return [two_sided_factor(sizes[0], bands[0], norm), last]


def cosine_factors(
    sizes: tuple[Size, ...], bands: tuple[Band, ...], norm: str = "backward"
) -> list[Factor]:
    """The matrices of the DCT: analysis, mask, and synthesis at the new size.

    The transforms are DCT-II and DCT-III; `bands` hold a weight for each of
    their coefficients. `norm` scales as it does the DFT: `"ortho"` stands for
    orthonormal transforms, `"forward"` preserves the mean.
    """
    return [
        Factor(_cosine_matrix(size, band.output_size, band.positive, norm))
        for size, band in zip(sizes, bands, strict=True)
    ]


def two_sided_factor(
    size: Size, band: Band, norm: str = "backward", dense: bool = False
) -> Factor:
    """Matrix of an axis whose frequencies of either sign have own weights.

    `dense` asks for the imaginary part, if any, as one matrix. By default it is
    given as a product where that is cheaper.
    """
    if not band.asymmetric:
        return one_sided_factor(size, band, norm, real=True)
    ops = ops_for(band.negative)
    k = ops_for(size).arange(size // 2 + 1)
    # An even size has one Nyquist row; it belongs to the negative side.
    upper = ops.where(2 * k < size, band.positive, 0.0)
    lower = ops.where(k > 0, band.negative, 0.0)
    real = _matrix(size, band.output_size, upper + lower, norm)
    if dense or not low_rank_pays(size, band.asymmetric):
        imaginary = _matrix(size, band.output_size, upper - lower, norm, 1)
        return Factor(real, imaginary)
    left, right = _low_rank(size, band, upper - lower, norm)
    return Factor(real, None, left, right)


def one_sided_factor(
    size: Size, band: Band, norm: str = "backward", real: bool = False
) -> Factor:
    """Matrix of an axis whose negative frequencies mirror the positive ones.

    `real` says that the imaginary part can be left out.
    """
    ops = ops_for(band.negative)
    index = ops_for(size, band.output_size)
    k = index.arange(size // 2 + 1)
    # DC and the output's Nyquist column have no conjugate twin.
    single = index.logical_or(k == 0, 2 * k == band.output_size)
    weights = ops.where(single, band.negative, 2.0 * band.negative)
    return Factor(
        _matrix(size, band.output_size, weights, norm),
        None if real else _matrix(size, band.output_size, weights, norm, 1),
    )


def low_rank_pays(size: Size, asymmetric: int) -> bool:
    """Whether an imaginary part of low rank is cheaper than a dense one.

    It is for few frequencies, compared to the size where that is known.
    `scripts/benchmarks/benchmark.py` shows where the crossover lies.
    """
    known = size if isinstance(size, int) else 0
    return asymmetric == 1 or known >= LOW_RANK_SIZE * asymmetric


def _product(
    x: Tensor,
    factors: Sequence[Factor],
    data_format: str,
    along: Callable[[Tensor, Tensor, int], Tensor],
) -> Tensor:
    """Applies the matrices of all axes to every channel."""
    begin = 1 if data_format == "channels_last" else 2
    cast = functools.partial(keras_ops.cast, dtype=x.dtype)
    if factors[0].left is not None:
        first, last = factors
        y = along(cast(first.real), x, begin)
        y = along(cast(last.real), y, begin + 1)
        x = along(cast(first.right), x, begin)
        x = along(cast(last.imaginary), x, begin + 1)
        return y - along(cast(first.left), x, begin)
    # Real and imaginary part ride in one product an axis. They are interleaved
    # row by row, so that the next product sums over (part, position).
    parts = 1
    for axis, factor in enumerate(factors, begin):
        final = axis == begin + len(factors) - 1
        x = along(cast(_stacked(factor, parts, final)), x, axis)
        if not final and (parts == 2 or factor.imaginary is not None):
            parts = 2
            shape = list(keras_ops.shape(x))
            shape[axis] = shape[axis] // 2
            shape[axis + 1] = 2 * shape[axis + 1]
            x = keras_ops.reshape(x, shape)
    return x


def _along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
    """Multiplies one axis of `x` by a matrix."""
    shape = list(keras_ops.shape(x))
    if axis == len(shape) - 1:
        return keras_ops.matmul(x, keras_ops.transpose(matrix))
    trailing = 1
    for size in shape[axis + 1 :]:
        trailing = trailing * size
    x = keras_ops.reshape(x, (*shape[: axis + 1], trailing))
    x = keras_ops.matmul(matrix, x)
    rows = keras_ops.shape(matrix)[0]
    return keras_ops.reshape(x, (*shape[:axis], rows, *shape[axis + 1 :]))


def _stacked(factor: Factor, parts: int, final: bool) -> Tensor:
    """The complex matrix as a real one, from `parts` parts to the next ones."""
    real, imaginary = factor.real, factor.imaginary
    ops = ops_for(real)
    rows, columns = ops.shape(real)
    if final:
        if parts == 1:
            return real
        stacked = ops.stack((real, -imaginary), axis=1)
        return ops.reshape(stacked, (rows, 2 * columns))
    if imaginary is None and parts == 1:
        return real
    if imaginary is None:
        imaginary = ops.zeros_like(real)
    if parts == 1:
        stacked = ops.stack((real, imaginary), axis=1)
        return ops.reshape(stacked, (2 * rows, columns))
    stacked = ops.stack(
        (
            ops.stack((real, -imaginary), axis=1),
            ops.stack((imaginary, real), axis=1),
        ),
        axis=1,
    )
    return ops.reshape(stacked, (2 * rows, 2 * columns))


def _matrix(
    size: Size, output_size: Size, weights: Tensor, norm: str, part: int = 0
) -> Tensor:
    """Sum of weighted waves, sampled at (i / output_size - j / size).

    The waves are cosines in the real part (0), sines in the imaginary one (1).
    """
    ops = ops_for(weights)
    frequencies = size // 2 + 1
    cos_out, sin_out = _waves(output_size, frequencies, weights.dtype)
    cos_in, sin_in = _waves(size, frequencies, weights.dtype)
    weights = weights * _scale(size, output_size, weights.dtype, norm)
    cos_out = ops.multiply(cos_out, weights)
    sin_out = ops.multiply(sin_out, weights)
    pair = [sin_out, -cos_out] if part else [cos_out, sin_out]
    synthesis = ops.concatenate(pair, axis=1)
    analysis = ops_for(cos_in).concatenate([cos_in, sin_in], axis=1)
    return ops.matmul(synthesis, ops.transpose(analysis))


def _cosine_matrix(
    size: Size, output_size: Size, weights: Tensor, norm: str
) -> Tensor:
    """Sum of weighted cosines, sampled between the grids' outer edges."""
    ops = ops_for(weights)
    # All but the constant wave have twice its energy.
    twice = ops_for(size).where(ops_for(size).arange(size) > 0, 2.0, 1.0)
    weights = weights * ops.cast(twice, weights.dtype)
    weights = weights * _scale(size, output_size, weights.dtype, norm)
    synthesis = _half_waves(output_size, size, weights.dtype)
    analysis = _half_waves(size, size, weights.dtype)
    synthesis = ops.multiply(synthesis, weights)
    return ops.matmul(synthesis, ops_for(analysis).transpose(analysis))


def _half_waves(size: Size, frequencies: Size, dtype: Any) -> Tensor:
    """Cosines of `pi k (i + 1/2) / size`, (size, frequencies)."""
    if isinstance(size, int) and isinstance(frequencies, int):
        dtype = standardize_dtype(dtype)
        return _constant_half_waves(size, frequencies, dtype)
    return _half_wave_samples(size, keras_ops.arange(frequencies), dtype)


@functools.lru_cache(maxsize=256)
def _constant_half_waves(size: int, frequencies: int, dtype: str) -> np.ndarray:
    return _half_wave_samples(size, np.arange(frequencies), dtype)


def _half_wave_samples(size: Size, k: Tensor, dtype: Any) -> Tensor:
    ops = ops_for(size, k)
    i = ops.expand_dims(ops.arange(size), 1)
    angle = _angle(ops, k * (2 * i + 1), 4 * size, dtype)
    return ops.cast(ops.cos(angle), dtype)


def _low_rank(
    size: Size, band: Band, weights: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """What `_matrix` gives as the imaginary part, as a product of two."""
    ops = ops_for(weights, band.first)
    k = ops.arange(band.asymmetric) + band.first
    # The constant wave has no imaginary part: 0 stands for nothing.
    k = ops.where(k <= size // 2, k, 0)
    weights = ops.take(weights, k, axis=0)
    weights = weights * _scale(size, band.output_size, weights.dtype, norm)
    cos_out, sin_out = _sampled(band.output_size, k, weights.dtype)
    cos_in, sin_in = _sampled(size, k, weights.dtype)
    left = ops.concatenate([sin_out, -cos_out], axis=1)
    right = ops.concatenate([cos_in * weights, sin_in * weights], axis=1)
    return left, ops.transpose(right)


def _scale(size: Size, output_size: Size, dtype: Any, norm: str) -> Any:
    ops = ops_for(size, output_size)
    input_length = ops.cast(size, dtype)
    output_length = ops.cast(output_size, dtype)
    divisors = {
        "backward": output_length,
        "ortho": ops.sqrt(input_length * output_length),
        "forward": input_length,
    }
    return 1.0 / divisors[norm]


def _waves(size: Size, frequencies: Size, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi k i / size`, each (size, frequencies)."""
    if isinstance(size, int) and isinstance(frequencies, int):
        return _constant_waves(size, frequencies, standardize_dtype(dtype))
    return _sampled(size, keras_ops.arange(frequencies), dtype)


@functools.lru_cache(maxsize=256)
def _constant_waves(
    size: int, frequencies: int, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    return _sampled(size, np.arange(frequencies), dtype)


def _sampled(size: Size, k: Tensor, dtype: Any) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi k i / size`, each (size, len(k))."""
    ops = ops_for(size, k)
    i = ops.expand_dims(ops.arange(size), 1)
    angle = _angle(ops, i * k, size, dtype)
    return ops.cast(ops.cos(angle), dtype), ops.cast(ops.sin(angle), dtype)


def _angle(ops: Any, numerator: Tensor, turn: Size, dtype: Any) -> Tensor:
    """`2 pi numerator / turn` of integers, for any whole turns less."""
    # Reduced to one turn in integers: large angles cost float32 its digits.
    exact = dtype if ops is keras_ops else "float64"
    part = ops.cast(ops.mod(numerator, turn), exact) / ops.cast(turn, exact)
    return 2.0 * math.pi * part
