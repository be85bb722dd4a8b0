"""Masks, crops and output sizes: what an axis keeps of its spectrum.

Conventions. `k` counts whole cycles over the map, 0..size // 2. All axes but
the last are two-sided: frequency `k` and frequency `-k` carry separate weights.
The last one is one-sided: `-k` is the conjugate of `k`.

The three ramps. `S` is the stride, `R` the smoothness, `T = max(size/S, 2)/2`,
where another smallest size may stand for 2:

    ramp               weight of frequency k               output size
    outer              clip((T + R - p) / R, 0, 1)         2 ceil(T + R)
                       p = k, or k - 1 for -k and for
                       the last axis of even sizes
    inner              clip((T - q) / R', 0, 1), 1 at 0    2 ceil(T)
                       q = max(k - 1/2, 0)
                       R' = min(R, max(T / 2, 1))
    straight_through   1 if kept, else 0; with gradient    size // S, made even
                       dT / max(R, 1) in T wherever        in all but the last
                       0 < E - q <= max(R, 1) / 2 and      axis
                       k > 0, E = output size // 2

Sizes are for even inputs and never exceed the input's; odd ones stay odd
(`2 ceil(T + R) - 1`, `2 ceil(T - 1/2) + 1`), and `straight_through` is in all
that it computes forward the fixed spectral pooling of the same stride, if that
has the same smallest size. Where parity need not stay, sizes are the least that
hold what has a weight: `ceil(2 T + 2 R)`, `ceil(2 T)` and `size // S`. The
outer ramp's `-k` takes the weight of `k - 1` then where the output is even. In
steps, sizes are the next ones that are allowed, for the same masks;
`straight_through` keeps what they hold. No ramp attenuates k = 0. In `outer`,
as released, T has no gradient below the smallest size, in the others it keeps
that of `size/(2 S)`, so that a stride can come back, if not from a map of one
sample.

References:
    - Riad et al., "Learning Strides in Convolutional Neural Networks", 2022.
    - Rippel et al., "Spectral Representations for CNNs", 2015.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from keras import ops as keras_ops

from diffstride.numerics import Size, Tensor, ops_for, to_size

RAMPS = ("outer", "inner", "straight_through")


class Band(NamedTuple):
    """What one axis keeps of its spectrum.

    Attributes:
        positive: weights of frequencies `k = 0..size // 2`.
        negative: weights of frequencies `-k`, and of the one-sided axis.
        output_size: number of samples after the inverse transform.
        asymmetric: bound on the number of frequencies at which the two differ,
            0 if they are the same. For even sizes the authors' mask reaches one
            bin further down than up.
        first: least `k` at which they may differ.
    """

    positive: Tensor
    negative: Tensor
    output_size: Size
    asymmetric: int = 0
    first: Any = 0


@dataclasses.dataclass(frozen=True)
class LowPass:
    """The soft low-pass mask of DiffStride, for any number of axes.

    Strides are those of the trainable variable: of shape (axes,), or (1,) for
    one shared by all of them. Where they are a numpy array and sizes are Python
    integers, all results are numpy arrays and Python integers.

    Args:
        smoothness: `R`, width of the ramp, in frequency bins; a number, or a
            tensor of which `widest` is the bound.
        ramp: one of `RAMPS`.
        lower_limit: smallest stride used, or `None`.
        upper_limit: largest stride used, or `None`.
        cropping: whether outputs have the size that the mask leaves. If not,
            they keep that of the input, and the mask is the same.
        widest: largest smoothness there will be, where it changes.
        keep_parity: whether even sizes stay even, and odd ones odd.
        size_step: what output sizes are multiples of; see `in_steps`.
        smallest_size: least nominal size, `size / stride`, of an axis.
    """

    smoothness: Any = 4.0
    ramp: str = "outer"
    lower_limit: float | None = 1.0
    upper_limit: float | None = None
    cropping: bool = True
    widest: float | None = None
    keep_parity: bool = True
    size_step: int = 1
    smallest_size: int = 2

    def used(self, sizes: Sequence[Size], strides: Tensor) -> Tensor:
        """Returns the strides in force on maps of the given sizes.

        The limits clip, and no gradient passes outside of them: the variable is
        brought back by its constraint. The smallest stride of the map, on the
        other hand, lifts the value but lets the gradient through, so that a
        variable at or below it can still leave.

        Args:
            sizes: input size of each axis.
            strides: value of the variable.

        Returns:
            Tensor of shape (axes,).
        """
        ops = ops_for(strides, *sizes)
        dtype = strides.dtype
        strides = ops.cast(strides, dtype)  # numpy's, of a size yet unknown
        if self.lower_limit is not None:
            low = ops.cast(self.lower_limit, dtype)
            strides = ops.where(strides < low, low, strides)
        if self.upper_limit is not None:
            high = ops.cast(self.upper_limit, dtype)
            strides = ops.where(strides > high, high, strides)
        bounds = ops.stack(
            [
                ops.cast(
                    smallest_stride(size, self.smoothness, self.ramp), dtype
                )
                for size in sizes
            ]
        )
        if strides.shape[0] == 1:
            bounds = ops.max(bounds, axis=0, keepdims=True)
        return ops.broadcast_to(_lift(ops, strides, bounds), (len(sizes),))

    def output_sizes(
        self, sizes: Sequence[Size], strides: Tensor
    ) -> tuple[Size, ...]:
        """Returns the output size of each axis, if cropped.

        Args:
            sizes: input size of each axis.
            strides: value of the variable.
        """
        return self._output_sizes(sizes, self.used(sizes, strides))

    def bands(
        self,
        sizes: Sequence[Size],
        strides: Tensor,
        output_sizes: Sequence[Size] | None = None,
    ) -> tuple[Band, ...]:
        """Returns the mask along each axis, with the gradient of its stride.

        Args:
            sizes: input size of each axis.
            strides: value of the variable. Sets the dtype.
            output_sizes: what `output_sizes` gives, where it is known already.
        """
        used = self.used(sizes, strides)
        if output_sizes is None:
            output_sizes = self._output_sizes(sizes, used)
        return tuple(
            self._band(size, output, stride)._replace(
                output_size=output if self.cropping else size
            )
            for size, output, stride in zip(
                sizes, output_sizes, _each(used, sizes), strict=True
            )
        )

    def _output_sizes(self, sizes: Sequence[Size], used: Tensor) -> tuple:
        last = len(sizes) - 1
        return tuple(
            self._in_steps(size, self.size(size, stride, axis < last))
            for axis, (size, stride) in enumerate(
                zip(sizes, _each(used, sizes), strict=True)
            )
        )

    def size(self, size: Size, stride: Tensor, two_sided: bool = True) -> Size:
        """Returns the output size of an axis, before `size_step` counts.

        Args:
            size: input size.
            stride: in force.
            two_sided: matters to `straight_through` only.
        """
        if self.ramp == "straight_through":
            even = two_sided and self.keep_parity
            return fixed_size(size, stride, even, self.smallest_size)
        ops = ops_for(size, stride)
        stride = ops.stop_gradient(stride)
        nominal = ops.cast(size, stride.dtype) / stride
        half_width = ops.maximum(nominal, float(self.smallest_size)) / 2.0
        odd = size % 2
        outside = self.smoothness if self.ramp == "outer" else 0.0
        edge = half_width + ops.cast(outside, stride.dtype)
        if not self.keep_parity:
            return to_size(ops.minimum(to_size(ops.ceil(2.0 * edge)), size))
        if self.ramp == "outer":
            bins = ops.maximum(to_size(ops.ceil(edge)), 1)  # Without a number.
            bins = 2 * bins - odd
        else:
            kept = ops.ceil(half_width - ops.cast(odd, stride.dtype) / 2.0)
            least = (self.smallest_size - odd + 1) // 2
            bins = 2 * ops.maximum(to_size(kept), least) + odd
        return to_size(ops.minimum(bins, size))

    def _band(self, size: Size, output_size: Size, stride: Tensor) -> Band:
        """The mask along an axis, with the gradient of the stride in force.

        The stride sets the dtype. Where the smoothness is 0 the mask is hard
        and the stride has no gradient.
        """
        ops = ops_for(size, output_size, stride)
        k = ops.cast(ops.arange(size // 2 + 1), stride.dtype)
        nominal = ops.cast(size, stride.dtype) / stride
        if self.ramp == "outer":
            return self._outer_band(ops, k, nominal, size, output_size)
        if self.ramp == "inner":
            return self._inner_band(ops, k, nominal, output_size)
        band = fixed_band(size, output_size, stride.dtype)
        return self._straight_through_band(ops, k, nominal, band)

    def _outer_band(
        self,
        ops: Any,
        k: Tensor,
        nominal: Tensor,
        size: Size,
        output_size: Size,
    ) -> Band:
        dtype = nominal.dtype
        # As released: the gradient is whole at the least, on all backends.
        least = float(self.smallest_size)
        half_width = ops.where(nominal < least, least, nominal) / 2.0
        edge = half_width + ops.cast(self.smoothness, dtype)
        odd = (size if self.keep_parity else output_size) % 2
        shift = ops.cast(1 - odd, dtype)
        positive, negative = (
            _ramp(ops, distance, self.smoothness, self.cropping)
            for distance in (edge - k, edge - k + shift)
        )
        if isinstance(odd, int) and odd:
            return Band(positive, positive, output_size)
        # They differ, in value or gradient, from where one ramp begins to where
        # the other ends.
        first = ops.cast(ops.ceil(ops.stop_gradient(half_width)), "int32")
        widest = self.smoothness if self.widest is None else self.widest
        asymmetric = math.ceil(widest + 1) + (not self.cropping)
        return Band(positive, negative, output_size, asymmetric, first)

    def _inner_band(
        self, ops: Any, k: Tensor, nominal: Tensor, output_size: Size
    ) -> Band:
        least = ops.cast(self.smallest_size, nominal.dtype)
        half_width = _lift(ops, nominal, least) / 2.0
        width = _inner_width(ops, half_width, self.smoothness)
        distance = half_width - ops.maximum(k - 0.5, 0.0)
        weights = _ramp(ops, distance, width, self.cropping)
        weights = ops.where(k > 0, weights, ops.ones_like(weights))
        return Band(weights, weights, output_size)

    def _straight_through_band(
        self, ops: Any, k: Tensor, nominal: Tensor, band: Band
    ) -> Band:
        """Gives a hard crop the gradient of its edge."""
        constant = isinstance(self.smoothness, (int, float))
        if constant and not self.smoothness:
            return band
        width = (max if constant else ops.maximum)(self.smoothness, 1.0)
        edge = ops.cast(band.output_size // 2, nominal.dtype)
        distance = edge - ops.maximum(k - 0.5, 0.0)
        moves = ops.logical_and(k > 0, distance <= width / 2)
        if not constant:
            moves = ops.logical_and(moves, self.smoothness > 0)
        zero = (nominal - ops.stop_gradient(nominal)) / 2.0
        change = 1.0 + ops.where(moves, zero / width, 0.0)
        return band._replace(
            positive=ops.multiply(band.positive, change),
            negative=ops.multiply(band.negative, change),
        )

    def _in_steps(self, size: Size, output_size: Size) -> Size:
        step, first = self.size_step, 0
        if self.keep_parity and step > 1:
            step = math.lcm(step, 2)
            first = 0 if self.ramp == "straight_through" else size % 2
        return in_steps(size, output_size, step, first)


@dataclasses.dataclass(frozen=True)
class CosineLowPass(LowPass):
    """The same mask for the DCT; arguments are those of `LowPass`.

    Coefficient `k` of the DCT of `size` samples is frequency `k` of the DFT of
    these and their mirror image, `2 size` samples. There is no negative one,
    and the band holds a weight for each of `size` coefficients. Smoothness and
    half-width thereby count coefficients, half a cycle over the map each.
    """

    smallest_size: int = 1

    @property
    def _mirrored(self) -> LowPass:
        """The mask of maps with their mirror image, of even sizes."""
        return LowPass(
            *(self.smoothness, self.ramp, self.lower_limit, self.upper_limit),
            *(self.cropping, self.widest),
            smallest_size=2 * self.smallest_size,
        )

    def used(self, sizes: Sequence[Size], strides: Tensor) -> Tensor:
        """Returns the strides in force on maps of the given sizes."""
        return self._mirrored.used([2 * size for size in sizes], strides)

    def size(self, size: Size, stride: Tensor, two_sided: bool = True) -> Size:
        """Returns the output size of an axis, before `size_step` counts."""
        return self._mirrored.size(2 * size, stride) // 2

    def _in_steps(self, size: Size, output_size: Size) -> Size:
        return in_steps(size, output_size, self.size_step)

    def _band(self, size: Size, output_size: Size, stride: Tensor) -> Band:
        # The mirrored spectrum of as many coefficients: they have no Nyquist.
        band = self._mirrored._band(2 * size, 2 * output_size - 1, stride)
        weights = band.positive[:size]
        return Band(weights, weights, output_size)


@dataclasses.dataclass(frozen=True)
class HardCrop:
    """The crop of fixed spectral pooling, for any number of axes.

    Args:
        strides: stride of each axis, in input samples for an output sample.
        dtype: floating-point dtype of the weights.
        even: whether the sizes of all axes but the last are made even.
    """

    strides: tuple[float, ...]
    dtype: str = "float32"
    even: bool = True

    def output_sizes(self, sizes: Sequence[Size | None]) -> tuple:
        """Returns the output size of each axis, `None` where it has none."""
        last = len(sizes) - 1
        return tuple(
            None
            if size is None
            else fixed_size(size, stride, even=self.even and axis < last)
            for axis, (size, stride) in enumerate(
                zip(sizes, self.strides, strict=True)
            )
        )

    def bands(self, sizes: Sequence[Size]) -> tuple[Band, ...]:
        """Returns what each axis keeps."""
        return tuple(
            fixed_band(size, output, self.dtype)
            for size, output in zip(
                sizes, self.output_sizes(sizes), strict=True
            )
        )


def smallest_stride(size: Size, smoothness: float, ramp: str = "outer") -> Any:
    """Smallest stride whose mask is not flat.

    It is `size / (size - smoothness)` for the outer ramp, and 1 where the map
    is no larger than that ramp; 1 for the others, which are never flat.
    """
    if ramp != "outer":
        return 1.0
    if isinstance(size, int) and isinstance(smoothness, (int, float)):
        return size / (size - smoothness) if size > smoothness else 1.0
    ops = keras_ops
    size = ops.cast(size, "float32")
    room = size - ops.cast(smoothness, "float32")
    return ops.where(room > 0, size / ops.where(room > 0, room, 1.0), 1.0)


def in_steps(size: Size, output_size: Size, step: int, first: Any = 0) -> Size:
    """Rounds an output size up to the next one of `first + n * step`.

    It stays at most `size`, that of the input.
    """
    if step == 1:
        return output_size
    whole = (output_size - first + step - 1) // step * step + first
    return to_size(ops_for(size, output_size).minimum(whole, size))


def fixed_band(size: Size, output_size: Size, dtype: str) -> Band:
    """Hard crop of one axis to a size of at most its own: zeros and ones."""
    ops = ops_for(size, output_size)
    k = ops.arange(size // 2 + 1)
    positive = ops.cast(2 * k < output_size, dtype)
    negative = ops.cast(2 * k <= output_size, dtype)
    # Only the output's Nyquist frequency is kept on one side alone.
    return Band(positive, negative, output_size, 1, output_size // 2)


def resize_band(size: Size, output_size: Size, dtype: str) -> Band:
    """What an axis keeps that is resized, up or down: all that both sizes hold.

    The Nyquist frequency of an even size stands for two frequencies of any
    larger size. Upwards it is halved between them, downwards they are summed:
    samples stay where both grids have one, and up and down again is nothing.
    """
    ops = ops_for(size, output_size)
    k = ops.arange(size // 2 + 1)
    kept = ops.minimum(size, output_size)
    nyquist = ops.where(size < output_size, 0.5, 2.0)
    nyquist = ops.where(size == output_size, 1.0, nyquist)
    weights = ops.where(2 * k == kept, nyquist, ops.where(2 * k < kept, 1.0, 0))
    weights = ops.cast(weights, dtype)
    return Band(weights, weights, output_size)


def fixed_size(
    size: Size, stride: Any, even: bool, smallest_size: int = 2
) -> Size:
    """Output size of fixed spectral pooling along one axis.

    It is `size // stride`, at least `smallest_size` and at most `size`;
    two-sided axes round it down, and the smallest one up, to an `even` number.
    """
    ops = ops_for(size, stride)
    output = ops.floor(ops.cast(size, "float32") / ops.cast(stride, "float32"))
    output = to_size(output)
    if even:
        output = output - output % 2
        smallest_size = smallest_size + smallest_size % 2
    return to_size(ops.minimum(ops.maximum(output, smallest_size), size))


def _each(used: Tensor, sizes: Sequence[Size]) -> list[Tensor]:
    return [used[axis] for axis in range(len(sizes))]


def _lift(ops: Any, value: Tensor, least: Tensor) -> Tensor:
    """`max(value, least)`, with the gradient of `value`."""
    lifted = ops.stop_gradient(ops.maximum(value, least))
    return lifted + (value - ops.stop_gradient(value))


def _inner_width(ops: Any, half_width: Tensor, smoothness: float) -> Any:
    """`min(smoothness, max(half_width / 2, 1))`, without gradient at ties."""
    if isinstance(smoothness, (int, float)) and smoothness <= 1:
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
    width = ops.cast(width, dtype)
    # A width that changes may come to 0: a hard mask then, without gradient.
    hard = 2.0 * ops.cast(distance > 0, dtype)
    weight = distance / ops.where(width > 0, width, ops.ones_like(width))
    weight = ops.where(width > 0, weight, hard)
    below = weight <= 0 if cropping else weight < 0
    off_ramp = ops.logical_or(below, weight > 1)
    flat = ops.cast(weight > 1, dtype)
    return ops.where(off_ramp, flat, weight)
