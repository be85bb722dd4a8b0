"""Resampling in the Fourier domain as small matrix products.

DiffStride and spectral pooling take the DFT of a real map over its spatial
axes, weight and crop the frequencies, and return to space on a coarser grid.
For given strides all of this is linear and separable, up to complex parts:
with one complex matrix an axis, each being synthesis . mask . analysis,

    1-D   y = Re(B) x
    2-D   y = Re(A) x Re(B)^T - Im(A) x Im(B)^T
    3-D   y = Re((A1 (x) A2 (x) B) x), and so on

This module makes these matrices of `masks.Band`s and multiplies by them; no
complex dtype and no transposition is needed, in either data format. Only the
frequencies that are kept take part. Long axes go by FFT (`diffstride.fourier`).
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keras import KerasTensor, backend
from keras import ops as keras_ops

from diffstride import fourier
from diffstride.fourier import Spectrum
from diffstride.masks import Band
from diffstride.numerics import Size, Tensor, ops_for, to_size
from diffstride.waves import cosine_matrix, sine_factors, wave_matrix

NORMS = ("backward", "ortho", "forward")
# Size of an axis, per asymmetric frequency, from which on the low rank pays.
LOW_RANK_SIZE = 10
# Up to this size waves without weight are summed, too, which costs nothing:
# trainings of images go on as they began, to the last bit.
WHOLE_SIZE = 256


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
    if transform is not None:
        made = transform(sizes, bands, norm)
        return _product(x, made, data_format, _along)

    def product(by_fft: bool | None = None) -> Tensor:
        made = factors(sizes, bands, norm, by_fft)
        return _product(x, made, data_format, _along)

    known = not keras_ops.is_tensor(sizes[0])
    if len(sizes) > 1 or known or fourier.FFT_SIZE == math.inf:
        return product()
    # A signal whose length is known no sooner than it is there.
    longer = keras_ops.maximum(sizes[0], bands[0].output_size)
    return keras_ops.cond(
        longer >= fourier.FFT_SIZE,
        lambda: product(True),
        lambda: product(False),
    )


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
        Their number. Making the matrices, once for a batch, is not in it. What
        an FFT counts is for `fourier.fft_macs` to say.
    """
    x = KerasTensor(shape)
    counts = []

    def along(operator: Tensor | Spectrum, x: Tensor, axis: int) -> Tensor:
        if isinstance(operator, Spectrum):
            lengths = (x.shape[axis], int(operator.output_size))
            lines = math.prod(x.shape) // x.shape[axis]
            counts.append(lines * sum(map(fourier.fft_macs, lengths)))
        else:
            # Each number meets all rows.
            counts.append(int(operator.shape[0]) * math.prod(x.shape))
        return _along(operator, x, axis)

    sizes = spatial_sizes(x, data_format)
    made = (transform or factors)(sizes, bands)
    _product(x, made, data_format, along)
    return sum(counts)


def spatial_sizes(x: Tensor, data_format: str) -> tuple[Size, ...]:
    """Returns the sizes of the axes that are neither batch nor channels."""
    shape = keras_ops.shape(x)
    sizes = shape[1:-1] if data_format == "channels_last" else shape[2:]
    if backend.backend() == "torch":
        # In `torch.jit.trace`, by which Keras exports, sizes are tensors.
        sizes = [int(n) if keras_ops.is_tensor(n) else n for n in sizes]
    return tuple(sizes)


class Factor(NamedTuple):
    """The matrix of one axis, (output size, size), in real parts.

    Where the axis is long each part is a `Spectrum`, and no matrix is made.
    The imaginary part is given in one of two forms: dense, or as a product
    `left @ right` of low rank, which is cheaper for long axes. It is zero if
    none of them is there.

    Attributes:
        real: real part.
        imaginary: imaginary part, or `None`.
        left: (output size, rank), or `None`.
        right: (rank, size), or `None`.
    """

    real: Tensor | Spectrum
    imaginary: Tensor | Spectrum | None = None
    left: Tensor | None = None
    right: Tensor | None = None


def factors(
    sizes: tuple[Size, ...],
    bands: tuple[Band, ...],
    norm: str = "backward",
    by_fft: bool | None = None,
) -> list[Factor]:
    """The matrices of all axes; the last axis is the one-sided one.

    `by_fft` is for a signal of unknown length: whether it goes by FFT.
    """
    if by_fft is None:
        long = [
            fourier.is_long(size, band.output_size, len(sizes))
            for size, band in zip(sizes, bands, strict=True)
        ]
    else:
        long = [by_fft]
    symmetric = not any(band.asymmetric for band in bands[:-1])
    dense = len(sizes) != 2 or any(long)
    made = [
        two_sided_factor(*each, norm, dense, by_fft)
        for *each, by_fft in zip(sizes[:-1], bands, long, strict=False)
    ]
    last = one_sided_factor(sizes[-1], bands[-1], norm, symmetric, long[-1])
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
    made = []
    for size, band in zip(sizes, bands, strict=True):
        weights = band.positive
        weights = weights * _scale(size, band.output_size, weights.dtype, norm)
        made.append(Factor(cosine_matrix(size, band.output_size, weights)))
    return made


def two_sided_factor(
    size: Size,
    band: Band,
    norm: str = "backward",
    dense: bool = False,
    by_fft: bool = False,
) -> Factor:
    """Matrix of an axis whose frequencies of either sign have own weights.

    `dense` asks for the imaginary part, if any, as one matrix. By default it is
    given as a product where that is cheaper.
    """
    if not band.asymmetric:
        return one_sided_factor(size, band, norm, real=True, by_fft=by_fft)
    ops = ops_for(band.negative)
    kept = _kept(size, band.output_size)
    k = ops_for(kept).arange(kept)
    # An even size has one Nyquist row; it belongs to the negative side.
    upper = ops.where(2 * k < size, band.positive[:kept], 0.0)
    lower = ops.where(k > 0, band.negative[:kept], 0.0)
    make = functools.partial(_part, size, band.output_size, norm, by_fft)
    real = make(upper + lower)
    if dense or not low_rank_pays(size, band.asymmetric):
        return Factor(real, make(upper - lower, sines=True))
    left, right = _low_rank(size, band, upper - lower, norm)
    return Factor(real, None, left, right)


def one_sided_factor(
    size: Size,
    band: Band,
    norm: str = "backward",
    real: bool = False,
    by_fft: bool = False,
) -> Factor:
    """Matrix of an axis whose negative frequencies mirror the positive ones.

    `real` says that the imaginary part can be left out.
    """
    ops = ops_for(band.negative)
    kept = _kept(size, band.output_size)
    index = ops_for(kept, band.output_size)
    k = index.arange(kept)
    # DC and the output's Nyquist column have no conjugate twin.
    single = index.logical_or(k == 0, 2 * k == band.output_size)
    negative = band.negative[:kept]
    weights = ops.where(single, negative, 2.0 * negative)
    make = functools.partial(_part, size, band.output_size, norm, by_fft)
    return Factor(make(weights), None if real else make(weights, sines=True))


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
    if any(isinstance(factor.real, Spectrum) for factor in factors):
        return _axis_by_axis(x, factors, begin, along)
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


def _axis_by_axis(
    x: Tensor, factors: Sequence[Factor], begin: int, along: Callable
) -> Tensor:
    """What `_product` does, part by part, in the precision of the masks."""
    (operator, *_), *_ = factors
    weights = operator.weights if isinstance(operator, Spectrum) else operator
    parts = (keras_ops.cast(x, weights.dtype), None)
    for axis, factor in enumerate(factors, begin):
        times = functools.partial(_times, along, axis)
        (a, b), (c, d) = (factor.real, factor.imaginary), parts
        final = axis == begin + len(factors) - 1
        parts = (
            _sum(times(a, c), times(b, d), -1.0),
            None if final else _sum(times(a, d), times(b, c)),
        )
    return keras_ops.cast(parts[0], x.dtype)


def _times(along: Callable, axis: int, operator: Any, x: Any) -> Any:
    """Applies an operator, `None` standing for zero."""
    return None if operator is None or x is None else along(operator, x, axis)


def _sum(x: Any, y: Any, sign: float = 1.0) -> Any:
    """Adds two tensors, `None` standing for zero."""
    if x is None or y is None:
        return x if y is None else sign * y
    return x + sign * y


def _along(operator: Tensor | Spectrum, x: Tensor, axis: int) -> Tensor:
    """Multiplies one axis of `x` by a matrix, or by what stands for it."""
    if isinstance(operator, Spectrum):
        return fourier.apply_spectrum(operator, x, axis)
    matrix = operator
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


def _part(
    size: Size,
    output_size: Size,
    norm: str,
    by_fft: bool,
    weights: Tensor,
    sines: bool = False,
) -> Tensor | Spectrum:
    """One part of the matrix of an axis, or what stands for it."""
    weights = weights * _scale(size, output_size, weights.dtype, norm)
    if by_fft:
        return fourier.spectrum_of(output_size, weights, sines)
    return wave_matrix(size, output_size, weights, sines)


def _low_rank(
    size: Size, band: Band, weights: Tensor, norm: str
) -> tuple[Tensor, Tensor]:
    """The imaginary part as a product of two."""
    ops = ops_for(weights, band.first)
    k = ops.arange(band.asymmetric) + band.first
    # The constant wave has no imaginary part: 0 stands for nothing.
    k = ops.where(k < ops.shape(weights)[0], k, 0)
    weights = ops.take(weights, k, axis=0)
    weights = weights * _scale(size, band.output_size, weights.dtype, norm)
    return sine_factors(size, band.output_size, k, weights)


def _kept(size: Size, output_size: Size) -> Size:
    """Number of frequencies that both sizes hold: no other has a weight."""
    if isinstance(size, int) and size <= WHOLE_SIZE:
        return size // 2 + 1
    ops = ops_for(size, output_size)
    kept = ops.where(size <= WHOLE_SIZE, size, ops.minimum(size, output_size))
    return to_size(kept) // 2 + 1


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
