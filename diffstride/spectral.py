"""Resampling in the Fourier domain as two small matrix products.

DiffStride and spectral pooling take the 2-D DFT of a real feature map, weight
and crop its frequencies, and return to space on a coarser grid. For given
strides all of this is linear and separable up to one complex part, so that

    y = Re(A) x Re(B)^T - Im(A) x Im(B)^T

with `A` of shape (H', H) and `B` of shape (W', W), each being
synthesis . mask . analysis along one axis. This module builds the masks, the
output sizes and the two pairs of matrices from `keras.ops`; no FFT, no complex
dtype and no transposition is needed, in either data format.

Conventions. `k` counts whole cycles over the map, 0..size // 2. The height is
two-sided: frequency `k` and frequency `-k` carry separate weights. The width
is one-sided: `-k` is the conjugate of `k`. Sizes are Python integers, or scalar
integer tensors where they are known at run time only.

References:
    - Riad et al., "Learning Strides in Convolutional Neural Networks", 2022.
    - Rippel et al., "Spectral Representations for CNNs", 2015.
"""

import math
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

NORMS = ("backward", "ortho", "forward")

Tensor = Any
Size = Any  # A Python integer, or a scalar integer tensor.


class Band(NamedTuple):
    """What one axis keeps of its spectrum.

    For even sizes the authors' vertical mask reaches one bin further down than
    up, which is what makes its output even; `inner` is the shorter side and
    `outer` the longer one. For odd sizes the two are equal.

    Attributes:
        inner: weights of frequencies `k = 0..size // 2`, upper side.
        outer: weights of frequencies `-k`, and of the one-sided axis.
        output_size: number of samples after the inverse transform.
    """

    inner: Tensor
    outer: Tensor
    output_size: Size


def smallest_stride(size: Size, smoothness: float) -> Any:
    """Smallest stride whose mask is not flat: `size / (size - smoothness)`.

    Args:
        size: input size of the axis.
        smoothness: width of the ramp, in frequency bins.

    Returns:
        The bound; 1 where the map is no larger than the ramp.
    """
    if isinstance(size, int):
        return size / (size - smoothness) if size > smoothness else 1.0
    size = ops.cast(size, "float32")
    room = size - smoothness
    return ops.where(room > 0, size / ops.where(room > 0, room, 1.0), 1.0)


def used_strides(
    strides: Tensor,
    sizes: tuple[Size, ...],
    smoothness: float,
    lower_limit: float | None = None,
    upper_limit: float | None = None,
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

    Returns:
        Tensor of the shape of `strides`.
    """
    if lower_limit is not None:
        low = ops.cast(lower_limit, strides.dtype)
        strides = ops.where(strides < low, low, strides)
    if upper_limit is not None:
        high = ops.cast(upper_limit, strides.dtype)
        strides = ops.where(strides > high, high, strides)
    bounds = ops.stack(
        [
            ops.cast(smallest_stride(size, smoothness), strides.dtype)
            for size in sizes
        ]
    )
    if strides.shape[0] == 1:
        bounds = ops.max(bounds, axis=0, keepdims=True)
    lifted = ops.stop_gradient(ops.maximum(strides, bounds))
    return lifted + (strides - ops.stop_gradient(strides))


def learned_band(
    size: Size, stride: Tensor, smoothness: float, cropping: bool = True
) -> Band:
    """Soft mask of half-width `T = max(size / stride, 2) / 2` along one axis.

    The weight at position `p` is `clip((R + T - p) / R, 0, 1)` with `p = k`,
    and `p = k - 1` on the outer side of even sizes. With `R = 0` the mask is
    hard (`p < T`) and no gradient reaches the stride.

    Args:
        size: input size of the axis.
        stride: scalar tensor, the stride in force. Sets the dtype.
        smoothness: `R`, width of the ramp, in frequency bins.
        cropping: whether the frequencies of weight zero are dropped, and the
            output is smaller for it.

    Returns:
        A `Band`; its `output_size` is a Python integer where the stride's value
        is known, or where nothing can be cropped.
    """
    dtype = stride.dtype
    odd = size % 2
    half_width = ops.maximum(ops.cast(size, dtype) / stride, 2.0) / 2.0
    edge = half_width + ops.cast(smoothness, dtype)
    k = ops.cast(ops.arange(size // 2 + 1), dtype)
    shift = ops.cast(1 - odd, dtype)
    inner = _ramp(edge - k, smoothness, cropping)
    outer = _ramp(edge - k + shift, smoothness, cropping)
    if not cropping:
        return Band(inner, outer, size)
    kept = ops.cast(ops.ceil(ops.stop_gradient(edge)), "int32")
    kept = ops.maximum(kept, 1)  # Even if a stride is not a number.
    return Band(inner, outer, _known(ops.minimum(2 * kept - odd, size)))


def fixed_band(size: Size, output_size: Size, dtype: str) -> Band:
    """Hard crop of one axis to a given output size.

    Args:
        size: input size of the axis.
        output_size: output size, at most `size`.
        dtype: floating-point dtype of the weights.

    Returns:
        A `Band` of zeros and ones.
    """
    k = ops.arange(size // 2 + 1)
    inner = ops.cast(2 * k < output_size, dtype)
    outer = ops.cast(2 * k <= output_size, dtype)
    return Band(inner, outer, output_size)


def fixed_size(size: Size, stride: float, even: bool) -> Size:
    """Output size of fixed spectral pooling along one axis.

    Args:
        size: input size.
        stride: stride >= 1, in input samples for an output sample.
        even: whether to round down to an even number (the height is).

    Returns:
        `size // stride`, at least 2 and at most `size`.
    """
    stride = np.float32(stride)
    if isinstance(size, int):
        output = int(np.floor(np.float32(size) / stride))
        return min(max(output - (output % 2 if even else 0), 2), size)
    output = ops.floor(ops.cast(size, "float32") / stride)
    output = ops.cast(output, "int32")
    output = output - (output % 2 if even else 0)
    return ops.minimum(ops.maximum(output, 2), size)


def two_sided_matrices(
    size: Size, band: Band, norm: str = "backward"
) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the complex resampling matrix of the height.

    Args:
        size: input size.
        band: weights and output size.
        norm: scaling of the transforms, as in `numpy.fft`.

    Returns:
        Two tensors of shape (output size, size).
    """
    k = ops.arange(size // 2 + 1)
    # An even size has one Nyquist row; it belongs to the negative side.
    upper = ops.where(2 * k < size, band.inner, 0.0)
    lower = ops.where(k > 0, band.outer, 0.0)
    return _matrices(size, band.output_size, upper + lower, upper - lower, norm)


def one_sided_matrices(
    size: Size, band: Band, norm: str = "backward"
) -> tuple[Tensor, Tensor]:
    """Real and imaginary part of the resampling matrix of the width.

    Args:
        size: input size.
        band: weights and output size.
        norm: scaling of the transforms, as in `numpy.fft`.

    Returns:
        Two tensors of shape (output size, size).
    """
    k = ops.arange(size // 2 + 1)
    # DC and the output's Nyquist column have no conjugate twin.
    single = ops.logical_or(k == 0, 2 * k == band.output_size)
    weights = ops.where(single, band.outer, 2.0 * band.outer)
    return _matrices(size, band.output_size, weights, weights, norm)


def resample(
    x: Tensor,
    rows: tuple[Tensor, Tensor],
    columns: tuple[Tensor, Tensor],
    data_format: str,
) -> Tensor:
    """Applies `Re(A) x Re(B)^T - Im(A) x Im(B)^T` to every channel.

    Args:
        x: 4-D tensor.
        rows: the pair (Re(A), Im(A)), each (H', H).
        columns: the pair (Re(B), Im(B)), each (W', W).
        data_format: `"channels_last"` or `"channels_first"`.

    Returns:
        4-D tensor of the dtype of `x`, with H' rows and W' columns.
    """
    # Both terms ride in one product an axis: the parts of A are interleaved
    # row by row, so that the second product sums over (part, column).
    new_height, height = ops.shape(rows[0])
    new_width, width = ops.shape(columns[0])
    left = ops.cast(ops.stack(rows, axis=1), x.dtype)
    left = ops.reshape(left, (2 * new_height, height))
    right = ops.stack((columns[0], -columns[1]), axis=1)
    right = ops.cast(ops.reshape(right, (new_width, 2 * width)), x.dtype)
    shape = ops.shape(x)
    if data_format == "channels_last":
        batch, channels = shape[0], shape[3]
        x = ops.reshape(x, (batch, height, width * channels))
        x = ops.matmul(left, x)
        x = ops.reshape(x, (batch, new_height, 2 * width, channels))
        return ops.matmul(right, x)
    batch, channels = shape[0], shape[1]
    x = ops.matmul(left, x)
    x = ops.reshape(x, (batch, channels, new_height, 2 * width))
    return ops.matmul(x, ops.transpose(right))


def _ramp(distance: Tensor, smoothness: float, cropping: bool) -> Tensor:
    """`clip(distance / smoothness, 0, 1)`, alike in gradient on all backends.

    At integer strides frequencies fall exactly on either end of the ramp, where
    backends differ in the gradient of a clip. Here, as in the release, it
    passes at both ends; a cropped frequency has none.
    """
    if smoothness == 0:
        return ops.cast(distance > 0, distance.dtype)
    weight = distance / ops.cast(smoothness, distance.dtype)
    below = weight <= 0 if cropping else weight < 0
    off_ramp = ops.logical_or(below, weight > 1)
    flat = ops.cast(weight > 1, distance.dtype)
    return ops.where(off_ramp, flat, weight)


def _matrices(
    size: Size,
    output_size: Size,
    cosine_weights: Tensor,
    sine_weights: Tensor,
    norm: str,
) -> tuple[Tensor, Tensor]:
    """Sums of weighted waves, sampled at (i / output_size - j / size)."""
    dtype = cosine_weights.dtype
    input_length = ops.cast(size, dtype)
    output_length = ops.cast(output_size, dtype)
    divisors = {
        "backward": output_length,
        "ortho": ops.sqrt(input_length * output_length),
        "forward": input_length,
    }
    scale = 1.0 / divisors[norm]
    frequencies = size // 2 + 1
    cos_out, sin_out = _waves(output_size, frequencies, dtype)
    cos_in, sin_in = _waves(size, frequencies, dtype)
    analysis = ops.transpose(ops.concatenate([cos_in, sin_in], axis=1))
    a = cosine_weights * scale
    b = sine_weights * scale
    real = ops.concatenate([cos_out * a, sin_out * a], axis=1)
    imaginary = ops.concatenate([sin_out * b, -cos_out * b], axis=1)
    return ops.matmul(real, analysis), ops.matmul(imaginary, analysis)


def _waves(size: Size, frequencies: Size, dtype: str) -> tuple[Tensor, Tensor]:
    """Cosines and sines of `2 pi k i / size`, each (size, frequencies)."""
    i = ops.expand_dims(ops.arange(size), 1)
    k = ops.expand_dims(ops.arange(frequencies), 0)
    # Reduced to one turn in integers: large angles cost float32 its digits.
    turn = ops.cast(ops.mod(i * k, size), dtype) / ops.cast(size, dtype)
    return ops.cos(2.0 * math.pi * turn), ops.sin(2.0 * math.pi * turn)


def _known(size: Tensor) -> Size:
    """`size` as a Python integer, unless it is symbolic."""
    try:
        return int(size)
    except TypeError as error:
        if keras.backend.backend() != "jax":
            return size
        raise NotImplementedError(
            "JAX cannot trace a map whose size depends on a learned stride, "
            "as `fit` and `jax.jit` would have it. Call the layer eagerly, set "
            "`cropping=False`, or use the tensorflow or torch backend."
        ) from error
