"""Resampling in the Fourier domain as small matrix products.

DiffStride and spectral pooling take the DFT of a real map over its spatial
axes, weight and crop the frequencies, and return to space on a coarser grid.
For given strides all of this is linear and separable, up to complex parts:
with one complex matrix an axis, each being synthesis . mask . analysis,

    1-D   y = Re(B) x
    2-D   y = Re(A) x Re(B)^T - Im(A) x Im(B)^T
    3-D   y = Re((A1 (x) A2 (x) B) x), and so on

This module builds masks, output sizes and matrices; no FFT, no complex dtype
and no transposition is needed, in either data format.

Conventions. `k` counts whole cycles over the map, 0..size // 2. All axes but
the last are two-sided: frequency `k` and frequency `-k` carry separate weights.
The last one is one-sided: `-k` is the conjugate of `k`. Sizes are Python
integers, or scalar integer tensors where they are known at run time only.

The three ramps. `S` is the stride, `R` the smoothness, `T = max(size/S, 2)/2`:

    ramp               weight of frequency k               output size
    outer              clip((T + R - p) / R, 0, 1)         2 ceil(T + R)
                       p = k, or k - 1 for -k and for
                       the last axis of even sizes
    inner              clip((T - q) / R', 0, 1)            2 ceil(T)
                       q = max(k - 1/2, 0)
                       R' = min(R, max(T / 2, 1))
    straight_through   1 if kept, else 0; with gradient    size // S, made even
                       dT / max(R, 1) in T wherever        in all but the last
                       0 < E - q <= max(R, 1) / 2 and      axis
                       k > 0, E = output size // 2

Sizes are for even inputs and never exceed the input's; odd ones stay odd
(`2 ceil(T + R) - 1`, `2 ceil(T - 1/2) + 1`), and `straight_through` is in all
that it computes forward the fixed spectral pooling of the same stride. No ramp
attenuates k = 0. In `outer`, as released, T has no gradient at `size/S < 2`, in
the others it keeps that of `size/(2 S)`, so that a stride can come back.

Masks and matrices are computed with `keras.ops`, or with numpy where the stride
is a numpy array: then they are constants.

References:
    - Riad et al., "Learning Strides in Convolutional Neural Networks", 2022.
    - Rippel et al., "Spectral Representations for CNNs", 2015.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from keras import ops as keras_ops
from keras.backend import standardize_dtype

NORMS = ("backward", "ortho", "forward")
RAMPS = ("outer", "inner", "straight_through")

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


def _ops(*values: Any) -> Any:
    """`keras.ops`, or numpy if no value is a tensor of the backend."""
    constant = (np.ndarray, np.generic, int, float)
    if all(isinstance(value, constant) for value in values):
        return _numpy_ops
    return keras_ops


class Band(NamedTuple):
    """What one axis keeps of its spectrum.

    Attributes:
        inner: weights of frequencies `k = 0..size // 2`.
        outer: weights of frequencies `-k`, and of the one-sided axis.
        output_size: number of samples after the inverse transform.
        lopsided: bound on the number of frequencies at which the two differ, 0
            if they are the same. For even sizes the authors' mask reaches one
            bin further down than up.
        first: least `k` at which they may differ.
    """

    inner: Tensor
    outer: Tensor
    output_size: Size
    lopsided: int = 0
    first: Any = 0


class Factor(NamedTuple):
    """The matrix of one axis, (output size, size), in real parts.

    The imaginary part is given in one of two forms: whole, or as a product
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


def smallest_stride(size: Size, smoothness: float, ramp: str = "outer") -> Any:
    """Smallest stride whose mask is not flat.

    Args:
        size: input size of the axis.
        smoothness: width of the ramp, in frequency bins.
        ramp: one of `RAMPS`.

    Returns:
        `size / (size - smoothness)` for the outer ramp, and 1 where the map is
        no larger than that ramp; 1 for the others, which are never flat.
    """
    if ramp != "outer":
        return 1.0
    if isinstance(size, int):
        return size / (size - smoothness) if size > smoothness else 1.0
    ops = keras_ops
    size = ops.cast(size, "float32")
    room = size - smoothness
    return ops.where(room > 0, size / ops.where(room > 0, room, 1.0), 1.0)


def used_strides(
    strides: Tensor,
    sizes: tuple[Size, ...],
    smoothness: float,
    lower_limit: float | None = None,
    upper_limit: float | None = None,
    ramp: str = "outer",
) -> Tensor:
    """Strides in force, from the value of the trainable variable.

    The limits clip, and no gradient passes outside of them: the variable is
    brought back by its constraint. The smallest stride of the map, on the other
    hand, lifts the value but lets the gradient through, so that a variable at
    or below it can still leave.

    Args:
        strides: shape (len(sizes),), or (1,) for one shared by all axes.
        sizes: input size of each axis.
        smoothness: width of the ramp, in frequency bins.
        lower_limit: smallest value allowed, or `None`.
        upper_limit: largest value allowed, or `None`.
        ramp: one of `RAMPS`.

    Returns:
        Tensor of shape (len(sizes),).
    """
    ops = _ops(strides, *sizes)
    dtype = strides.dtype
    if lower_limit is not None:
        low = ops.cast(lower_limit, dtype)
        strides = ops.where(strides < low, low, strides)
    if upper_limit is not None:
        high = ops.cast(upper_limit, dtype)
        strides = ops.where(strides > high, high, strides)
    bounds = ops.stack(
        [
            ops.cast(smallest_stride(size, smoothness, ramp), dtype)
            for size in sizes
        ]
    )
    if strides.shape[0] == 1:
        bounds = ops.max(bounds, axis=0, keepdims=True)
    strides = _lift(ops, strides, bounds)
    return ops.broadcast_to(strides, (len(sizes),))


def learned_size(
    size: Size,
    stride: Tensor,
    smoothness: float,
    ramp: str = "outer",
    two_sided: bool = True,
) -> Size:
    """Output size along one axis.

    Args:
        size: input size.
        stride: scalar, the stride in force.
        smoothness: `R`, width of the ramp, in frequency bins.
        ramp: one of `RAMPS`.
        two_sided: whether the axis is. Matters to `straight_through`.

    Returns:
        At most `size`; a Python integer if all arguments are known on the host.
    """
    if ramp == "straight_through":
        return fixed_size(size, stride, even=two_sided)
    ops = _ops(size, stride)
    stride = ops.stop_gradient(stride)
    half_width = ops.maximum(ops.cast(size, stride.dtype) / stride, 2.0) / 2.0
    odd = size % 2
    if ramp == "outer":
        kept = ops.ceil(half_width + ops.cast(smoothness, stride.dtype))
        bins = ops.maximum(_integer(ops, kept), 1)  # Even without a number.
        bins = 2 * bins - odd
    else:
        kept = ops.ceil(half_width - ops.cast(odd, stride.dtype) / 2.0)
        bins = ops.maximum(_integer(ops, kept), 1)
        bins = 2 * bins + odd
    return _size(ops, ops.minimum(bins, size))


def learned_band(
    size: Size,
    output_size: Size,
    stride: Tensor,
    smoothness: float,
    ramp: str = "outer",
    cropping: bool = True,
) -> Band:
    """Mask along one axis, with the gradient of its stride.

    Where the smoothness is 0 the mask is hard and the stride has no gradient.

    Args:
        size: input size of the axis.
        output_size: output size of the axis, as `learned_size` gives it.
        stride: scalar, the stride in force. Sets the dtype.
        smoothness: `R`, width of the ramp, in frequency bins.
        ramp: one of `RAMPS`.
        cropping: whether the output has that size. If not, it keeps the size of
            the input, and the mask stays the same.

    Returns:
        A `Band`.
    """
    ops = _ops(size, output_size, stride)
    dtype = stride.dtype
    k = ops.cast(ops.arange(size // 2 + 1), dtype)
    nominal = ops.cast(size, dtype) / stride
    final_size = output_size if cropping else size
    if ramp == "outer":
        # As released: the gradient is whole at 2, on all backends.
        half_width = ops.where(nominal < 2.0, 2.0, nominal) / 2.0
        edge = half_width + ops.cast(smoothness, dtype)
        odd = size % 2
        shift = ops.cast(1 - odd, dtype)
        inner = _ramp(ops, edge - k, smoothness, cropping)
        outer = _ramp(ops, edge - k + shift, smoothness, cropping)
        if isinstance(odd, int) and odd:
            return Band(inner, inner, final_size)
        # They differ, in value or gradient, from where one ramp begins to where
        # the other ends.
        first = ops.cast(ops.ceil(ops.stop_gradient(half_width)), "int32")
        lopsided = math.ceil(smoothness + 1) + (not cropping)
        return Band(inner, outer, final_size, lopsided, first)
    position = ops.maximum(k - 0.5, 0.0)
    if ramp == "inner":
        half_width = _lift(ops, nominal, ops.cast(2.0, dtype)) / 2.0
        width = _inner_width(ops, half_width, smoothness)
        weights = _ramp(ops, half_width - position, width, cropping)
        weights = ops.where(k > 0, weights, ops.ones_like(weights))
        return Band(weights, weights, final_size)
    band = fixed_band(size, output_size, dtype)
    if smoothness:
        width = max(smoothness, 1.0)
        edge = ops.cast(output_size // 2, dtype)
        moves = ops.logical_and(k > 0, edge - position <= width / 2)
        zero = (nominal - ops.stop_gradient(nominal)) / 2.0
        change = 1.0 + ops.where(moves, zero / width, 0.0)
        band = band._replace(
            inner=ops.multiply(band.inner, change),
            outer=ops.multiply(band.outer, change),
        )
    return band._replace(output_size=final_size)


def fixed_band(size: Size, output_size: Size, dtype: str) -> Band:
    """Hard crop of one axis to a given output size.

    Args:
        size: input size of the axis.
        output_size: output size, at most `size`.
        dtype: floating-point dtype of the weights.

    Returns:
        A `Band` of zeros and ones.
    """
    ops = _ops(size, output_size)
    k = ops.arange(size // 2 + 1)
    inner = ops.cast(2 * k < output_size, dtype)
    outer = ops.cast(2 * k <= output_size, dtype)
    # Only the output's Nyquist frequency is kept on one side alone.
    return Band(inner, outer, output_size, 1, output_size // 2)


def fixed_size(size: Size, stride: Any, even: bool) -> Size:
    """Output size of fixed spectral pooling along one axis.

    Args:
        size: input size.
        stride: stride >= 1, in input samples for an output sample.
        even: whether to round down to an even number, as two-sided axes are.

    Returns:
        `size // stride`, at least 2 and at most `size`.
    """
    ops = _ops(size, stride)
    output = ops.floor(ops.cast(size, "float32") / ops.cast(stride, "float32"))
    output = _integer(ops, output)
    output = output - (output % 2 if even else 0)
    return _size(ops, ops.minimum(ops.maximum(output, 2), size))


def factors(
    sizes: tuple[Size, ...], bands: tuple[Band, ...], norm: str = "backward"
) -> list[Factor]:
    """The matrices of all axes.

    Args:
        sizes: input size of each axis.
        bands: weights and output size of each axis.
        norm: scaling of the transforms, as in `numpy.fft`.

    Returns:
        A `Factor` for each axis; the last axis is the one-sided one.
    """
    rank = len(sizes)
    symmetric = not any(band.lopsided for band in bands[:-1])
    made = [
        two_sided_factor(size, band, norm, whole=rank != 2)
        for size, band in zip(sizes[:-1], bands[:-1], strict=True)
    ]
    last = one_sided_factor(sizes[-1], bands[-1], norm, real=symmetric)
    return [*made, last]


def two_sided_factor(
    size: Size, band: Band, norm: str = "backward", whole: bool = False
) -> Factor:
    """Matrix of an axis whose frequencies of either sign have own weights.

    Args:
        size: input size.
        band: weights and output size.
        norm: scaling of the transforms, as in `numpy.fft`.
        whole: whether the imaginary part, if any, must be one matrix. If not,
            it is given as a product where that is cheaper.

    Returns:
        A `Factor` of shape (output size, size).
    """
    if not band.lopsided:
        return one_sided_factor(size, band, norm, real=True)
    ops = _ops(band.outer)
    k = _ops(size).arange(size // 2 + 1)
    # An even size has one Nyquist row; it belongs to the negative side.
    upper = ops.where(2 * k < size, band.inner, 0.0)
    lower = ops.where(k > 0, band.outer, 0.0)
    real = _matrix(size, band.output_size, upper + lower, norm)
    if whole or not low_rank_pays(size, band.lopsided):
        imaginary = _matrix(size, band.output_size, upper - lower, norm, 1)
        return Factor(real, imaginary)
    left, right = _low_rank(size, band, upper - lower, norm)
    return Factor(real, None, left, right)


def one_sided_factor(
    size: Size, band: Band, norm: str = "backward", real: bool = False
) -> Factor:
    """Matrix of an axis whose negative frequencies mirror the positive ones.

    Args:
        size: input size.
        band: weights and output size.
        norm: scaling of the transforms, as in `numpy.fft`.
        real: whether the imaginary part can be left out.

    Returns:
        A `Factor` of shape (output size, size).
    """
    ops = _ops(band.outer)
    index = _ops(size, band.output_size)
    k = index.arange(size // 2 + 1)
    # DC and the output's Nyquist column have no conjugate twin.
    single = index.logical_or(k == 0, 2 * k == band.output_size)
    weights = ops.where(single, band.outer, 2.0 * band.outer)
    return Factor(
        _matrix(size, band.output_size, weights, norm),
        None if real else _matrix(size, band.output_size, weights, norm, 1),
    )


def low_rank_pays(size: Size, lopsided: int) -> bool:
    """Whether an imaginary part of low rank is cheaper than a whole one.

    `scripts/benchmark.py` shows where the crossover lies.

    Args:
        size: input size of the axis.
        lopsided: number of frequencies that make up the imaginary part.

    Returns:
        `True` for few frequencies, compared to the size where it is known.
    """
    known = size if isinstance(size, int) else 0
    return lopsided == 1 or known >= LOW_RANK_SIZE * lopsided


# Size of an axis, per lopsided frequency, from which on the low rank pays.
LOW_RANK_SIZE = 10


def resample(
    x: Tensor,
    factors: list[Factor],
    data_format: str,
    along: Callable[[Tensor, Tensor, int], Tensor] | None = None,
) -> Tensor:
    """Applies the matrices of all axes to every channel.

    Args:
        x: tensor of one batch axis, `len(factors)` spatial axes, one of
            channels.
        factors: the `Factor` of each axis, as `factors` makes them.
        data_format: `"channels_last"` or `"channels_first"`.
        along: multiplies by a matrix along an axis of a tensor; `None` stands
            for the product itself.

    Returns:
        Tensor of the rank and the dtype of `x`, with the new sizes.
    """
    along = along or _along
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


def resample_macs(x: Any, factors: list[Factor], data_format: str) -> int:
    """Counts the multiply-accumulates of `resample`, as it goes.

    Args:
        x: symbolic tensor of known shape.
        factors: as in `resample`.
        data_format: as in `resample`.

    Returns:
        Their number. Making the factors, once for a batch, is not in it.
    """
    counts = []

    def along(matrix: Tensor, x: Tensor, axis: int) -> Tensor:
        # Each number meets all rows.
        counts.append(int(matrix.shape[0]) * math.prod(x.shape))
        return _along(matrix, x, axis)

    resample(x, factors, data_format, along)
    return sum(counts)


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
    ops = _ops(real)
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


def _lift(ops: Any, value: Tensor, least: Tensor) -> Tensor:
    """`max(value, least)`, with the gradient of `value`."""
    lifted = ops.stop_gradient(ops.maximum(value, least))
    return lifted + (value - ops.stop_gradient(value))


def _inner_width(ops: Any, half_width: Tensor, smoothness: float) -> Any:
    """`min(smoothness, max(half_width / 2, 1))`, without gradient at ties."""
    if smoothness <= 1:
        return smoothness
    dtype = half_width.dtype
    width = half_width / 2.0
    width = ops.where(width <= 1.0, ops.cast(1.0, dtype), width)
    return ops.where(width >= smoothness, ops.cast(smoothness, dtype), width)


def _ramp(ops: Any, distance: Tensor, width: Any, cropping: bool) -> Tensor:
    """`clip(distance / width, 0, 1)`, alike in gradient on all backends.

    At integer strides frequencies fall exactly on either end of the ramp, where
    backends differ in the gradient of a clip. Here, as in the release, it
    passes at both ends; a cropped frequency has none.
    """
    dtype = distance.dtype
    if isinstance(width, (int, float)) and width == 0:
        return ops.cast(distance > 0, dtype)
    weight = distance / ops.cast(width, dtype)
    below = weight <= 0 if cropping else weight < 0
    off_ramp = ops.logical_or(below, weight > 1)
    flat = ops.cast(weight > 1, dtype)
    return ops.where(off_ramp, flat, weight)


def _matrix(
    size: Size, output_size: Size, weights: Tensor, norm: str, part: int = 0
) -> Tensor:
    """Sum of weighted waves, sampled at (i / output_size - j / size).

    The waves are cosines in the real part (0), sines in the imaginary one (1).
    """
    ops = _ops(weights)
    frequencies = size // 2 + 1
    cos_out, sin_out = _waves(output_size, frequencies, weights.dtype)
    cos_in, sin_in = _waves(size, frequencies, weights.dtype)
    weights = weights * _scale(size, output_size, weights.dtype, norm)
    cos_out = ops.multiply(cos_out, weights)
    sin_out = ops.multiply(sin_out, weights)
    pair = [sin_out, -cos_out] if part else [cos_out, sin_out]
    synthesis = ops.concatenate(pair, axis=1)
    analysis = _ops(cos_in).concatenate([cos_in, sin_in], axis=1)
    return ops.matmul(synthesis, ops.transpose(analysis))


def _low_rank(
    size: Size, band: Band, weights: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """What `_matrix` gives as the imaginary part, as a product of two."""
    ops = _ops(weights, band.first)
    k = ops.arange(band.lopsided) + band.first
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
    ops = _ops(size, output_size)
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
    ops = _ops(size, k)
    i = ops.expand_dims(ops.arange(size), 1)
    # Reduced to one turn in integers: large angles cost float32 its digits.
    exact = "float64" if ops is _numpy_ops else dtype
    turn = ops.cast(ops.mod(i * k, size), exact) / ops.cast(size, exact)
    angle = 2.0 * math.pi * turn
    return ops.cast(ops.cos(angle), dtype), ops.cast(ops.sin(angle), dtype)


def _integer(ops: Any, value: Tensor) -> Tensor:
    if ops is _numpy_ops:
        return int(value) if math.isfinite(value) else 0
    return ops.cast(value, "int32")


def _size(ops: Any, value: Tensor) -> Size:
    return int(value) if ops is _numpy_ops else value
