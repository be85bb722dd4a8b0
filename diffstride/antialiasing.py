"""Pooling at fixed strides that takes care of aliasing, after its papers."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride import arguments
from diffstride.masks import HardCrop
from diffstride.numerics import Size, Tensor, ops_for
from diffstride.pooling import BaseFixedSpectralPooling
from diffstride.resampling import spatial_sizes, two_sided_factors
from diffstride.strided import PACKAGE, BaseMapLayer, Strided

_LARGEST_KERNEL = 7
_PADDINGS = ("same", "valid")


@keras.saving.register_keras_serializable(PACKAGE)
class BlurPool2D(Strided, BaseMapLayer):
    """Subsampling of maps that were blurred by a binomial filter before.

    Each axis by itself is mirrored at its ends, the outermost sample not
    repeated, filtered, and sampled. Filters are rows of Pascal's triangle that
    sum up to one: `(1, 1) / 2`, `(1, 2, 1) / 4`, `(1, 3, 3, 1) / 8`, and so on.
    Even ones take a sample more on the far side than on the near one. An axis
    of stride 1, where nothing is left out, stays as it is.

    Args:
        strides: an integer >= 1, or one for each axis, (height, width).
        kernel_size: length of the filter, an integer from 1, without a blur, to
            7. With an even one outputs of even maps stay centred.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with height and width divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> layer = BlurPool2D((2, 3), data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 16, 11, 8)

    Reference:
        [Making Convolutional Networks Shift-Invariant Again](
        https://arxiv.org/abs/1904.11486), Zhang, ICML 2019.
    """

    rank = 2
    commutes_with_pointwise = True

    def __init__(
        self,
        strides: int | Sequence[int] = 2,
        kernel_size: int = 4,
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(strides=strides, data_format=data_format, **kwargs)
        self.strides = arguments.integers("strides", strides)
        self.kernel_size = arguments.integer("kernel_size", kernel_size)
        if self.kernel_size > _LARGEST_KERNEL:
            expected = f"an integer from 1 to {_LARGEST_KERNEL}"
            raise arguments.refusal("kernel_size", expected, kernel_size)

    def call(self, inputs: Any) -> Any:
        """Returns the maps, blurred and sampled."""
        x = ops.cast(inputs, self.compute_dtype)
        for axis, stride in zip(self.spatial_axes, self.strides, strict=True):
            if stride > 1:
                x = _blurred(x, axis, self.kernel_size, stride)
        return x

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {**super().get_config(), "kernel_size": self.kernel_size}

    def macs(self, input_shape: Sequence[int]) -> int:
        """Counts the multiply-accumulates of a call; see `PoolingLayer`."""
        if self.kernel_size == 1:
            return 0
        shape = list(input_shape)
        before = self._before_blur(self.sizes_in(shape))
        after = self._static_sizes(self.sizes_in(shape))
        for axis, size in zip(self.spatial_axes, before, strict=True):
            shape[axis] = size
        total = 0
        for axis, size, stride in zip(
            self.spatial_axes, after, self.strides, strict=True
        ):
            shape[axis] = size
            if stride > 1:
                total += self.kernel_size * math.prod(shape)
        return total

    def _static_sizes(self, sizes: Sequence) -> tuple:
        return tuple(
            None if size is None else -(-size // stride)
            for size, stride in zip(
                self._before_blur(sizes), self.strides, strict=True
            )
        )

    def _before_blur(self, sizes: Sequence) -> tuple:
        """Sizes of the maps that are blurred."""
        return tuple(sizes)


@keras.saving.register_keras_serializable(PACKAGE)
class MaxBlurPool2D(BlurPool2D):
    """The maximum at every position, then `BlurPool2D`.

    Max pooling is taken apart: the maximum of each window at stride 1, and a
    subsampling, before which it is blurred. With strides of 1 on both axes maps
    stay as they are.

    Args:
        strides: an integer >= 1, or one for each axis, (height, width).
        kernel_size: length of the blur, an integer from 1 to 7.
        pool_size: window of the maximum, an integer or a pair (height, width).
        padding: of the maximum. `"same"`, or `"valid"`, by which maps become
            smaller by `pool_size - 1` before they are blurred; that is what the
            paper puts in the place of max pooling of 2 x 2.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, and at least
        `pool_size` with `padding="valid"`.

    Output shape:
        The same with height and width, with `padding="valid"` less `pool_size -
        1`, divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range, or a map is smaller than an
            unpadded window.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> tuple(MaxBlurPool2D(2, data_format="channels_last")(x).shape)
    (4, 16, 16, 8)

    Reference:
        [Making Convolutional Networks Shift-Invariant Again](
        https://arxiv.org/abs/1904.11486), Zhang, ICML 2019.
    """

    commutes_with_pointwise = False

    def __init__(
        self,
        strides: int | Sequence[int] = 2,
        kernel_size: int = 4,
        pool_size: int | Sequence[int] = 2,
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(strides, kernel_size, data_format, **kwargs)
        self.pool_size = arguments.integers("pool_size", pool_size)
        self.padding = arguments.choice("padding", padding, _PADDINGS)

    def call(self, inputs: Any) -> Any:
        """Returns the maxima, blurred and sampled."""
        x = ops.cast(inputs, self.compute_dtype)
        if max(self.strides) == 1:
            return x
        self._before_blur(spatial_sizes(x, self.data_format))
        maxima = ops.max_pool(
            x, self.pool_size, 1, self.padding, self.data_format
        )
        return super().call(maxima)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "pool_size": self.pool_size,
            "padding": self.padding,
        }

    def _before_blur(self, sizes: Sequence) -> tuple:
        """Sizes of the maxima; those that are not known are not looked at."""
        if self.padding == "same" or max(self.strides) == 1:
            return tuple(sizes)
        known = [
            (size, pool)
            for size, pool in zip(sizes, self.pool_size, strict=True)
            if isinstance(size, int)
        ]
        if any(size < pool for size, pool in known):
            raise ValueError(
                f"{self.name} needs maps of at least `pool_size` with "
                f"padding='valid'; use padding='same'. Received: maps of "
                f"{tuple(sizes)}, pool_size={self.pool_size}"
            )
        return tuple(
            None if size is None else size - pool + 1
            for size, pool in zip(sizes, self.pool_size, strict=True)
        )


@keras.saving.register_keras_serializable(PACKAGE)
class FLCPooling(BaseFixedSpectralPooling):
    """FrequencyLowCut pooling: what is above the new Nyquist frequency is cut.

    In effect `FixedSpectralPooling(norm="forward")`, from which it differs in
    two ways. The real part is taken of a complex transform over both axes, and
    not a transform that knows its input to be real: they treat the highest
    frequency of an even output size differently, where along either axis one of
    two mirror images is cut, and agree in all others. And output sizes are not
    made even.

    The authors' code has stride 2, and is reproduced for sizes that 4 divides.
    At other sizes its crop is not centred (of 14 rows it keeps the frequencies
    -4 to 2, and puts them one place off); here the crop stays centred. Other
    strides are ours.

    Args:
        strides: a number >= 1 or one for each axis, (height, width). They need
            not be integers. Kept as a non-trainable weight besides.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        norm: scaling of the transforms; see `DiffStride`. `"forward"`, that of
            the authors' code, preserves the mean.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with `height // strides[0]` and `width // strides[1]`; both at
        least 2, and at most the input's.

    Raises:
        ValueError: if an argument is out of range, or if weights saved with
            other strides are loaded.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 20, 8)).astype("float32")
    >>> tuple(FLCPooling(2, data_format="channels_last")(x).shape)
    (4, 16, 10, 8)

    Reference:
        [FrequencyLowCut Pooling: Plug & Play against Catastrophic
        Overfitting](https://arxiv.org/abs/2204.00491), Grabinski et al., ECCV
        2022.
    """

    rank = 2
    factors = staticmethod(two_sided_factors)

    def __init__(
        self,
        strides: float | Sequence[float] = 2.0,
        data_format: str | None = None,
        norm: str = "forward",
        **kwargs: Any,
    ):
        super().__init__(strides, data_format, norm, **kwargs)
        self._crop = HardCrop(self.strides, self._matrix_dtype, even=False)


def _blurred(x: Tensor, axis: int, kernel_size: int, stride: int) -> Tensor:
    """Filters an axis and takes every `stride`-th sample."""
    size = ops.shape(x)[axis]
    last = (size - 1) // stride * stride
    x = ops.take(x, _mirrored(size, kernel_size - 1), axis=axis)
    total = 0.0
    for place in range(kernel_size):
        tap = math.comb(kernel_size - 1, place) / 2 ** (kernel_size - 1)
        samples = slice(place, place + last + 1, stride)
        total = total + tap * x[(slice(None),) * axis + (samples,)]
    return total


def _mirrored(size: Size, more: int) -> Tensor:
    """Where to find the samples of an axis that is longer by mirror images."""
    np_or_keras = ops_for(size)
    index = np_or_keras.arange(size + more) - more // 2
    period = np_or_keras.maximum(2 * size - 2, 1)
    index = index % period
    return np_or_keras.where(index < size, index, period - index)
