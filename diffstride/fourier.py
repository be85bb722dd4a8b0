"""Resampling of long axes by FFT, in place of a matrix.

The matrix of an axis is synthesis . mask . analysis. For many samples it is too
large to be made, while its three factors one after the other take n log n: a
transform, a weight for each kept frequency, and a transform back to the new
size. Outputs and gradients are those of the matrix, but for rounding.
"""

import math
from typing import NamedTuple

from keras import ops as keras_ops

from diffstride.numerics import Size, Tensor, ops_for

# Samples of a signal, before or after, from which on FFTs replace its matrix;
# axes of planes and volumes wait for twice as many, as there a matrix serves
# many lines. `scripts/benchmarks/long_signals.py` shows where FFTs are faster.
# With `math.inf` there are none, as formats want that have no FFT.
FFT_SIZE: float = 1024


class Spectrum(NamedTuple):
    """What stands for the matrix of one axis, to be applied by FFT.

    Attributes:
        weights: of the kept frequencies `k = 0, 1, ...`, with all scales.
        output_size: number of samples after the inverse transform.
        sines: whether the waves are sines, as in the imaginary part.
    """

    weights: Tensor
    output_size: Size
    sines: bool = False


def is_long(size: Size, output_size: Size, rank: int) -> bool:
    """Whether an axis goes by FFT, of `rank` axes in all.

    It does not where nothing is known of its size.
    """
    known = (n for n in (size, output_size) if isinstance(n, int))
    return max(known, default=0) >= FFT_SIZE * min(rank, 2)


def spectrum_of(
    output_size: Size, waves: Tensor, sines: bool = False
) -> Spectrum:
    """Makes what stands for a sum of waves, weighted for the matrix form."""
    ops = ops_for(output_size, waves)
    # TensorFlow's gradient takes no more than the inverse transform does.
    waves = waves[: output_size // 2 + 1]
    k = ops_for(output_size).arange(ops.shape(waves)[0])
    # The inverse transform doubles all but these, and divides by the size.
    single = ops.logical_or(k == 0, 2 * k == output_size)
    weights = ops.where(single, waves, 0.5 * waves)
    scale = ops.cast(output_size, waves.dtype)
    return Spectrum(weights * scale, output_size, sines)


def apply_spectrum(spectrum: Spectrum, x: Tensor, axis: int) -> Tensor:
    """Resamples one axis of `x`, in the dtype of the weights."""
    weights, output_size, sines = spectrum
    ops = keras_ops
    real, imaginary = ops.rfft(ops.moveaxis(x, axis, -1))
    weights = ops.convert_to_tensor(weights)
    kept = ops.shape(weights)[0]
    real, imaginary = real[..., :kept], imaginary[..., :kept]
    if sines:
        real, imaginary = imaginary, -real
    y = ops.irfft((real * weights, imaginary * weights), output_size)
    return ops.moveaxis(y, -1, axis)


def fft_macs(size: int) -> int:
    """What an FFT of real samples counts: 2.5 n log2 n.

    That is the usual number of its additions and multiplications, which do not
    come in pairs as those of a product with a matrix do.
    """
    return round(2.5 * size * math.log2(size)) if size > 1 else 0
