"""DynOPool: max pooling at a scale that is learned."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride.masks import LowPass
from diffstride.numerics import Size, Tensor, ops_for, to_size
from diffstride.resampling import spatial_sizes
from diffstride.strided import PACKAGE, BaseLearnedPooling


@keras.saving.register_keras_serializable(PACKAGE)
class DynOPool(BaseLearnedPooling):
    """Downsampling with learned strides, by bilinear queries and maxima.

    The map is covered by cells, one for each output sample. In each there are
    four query points, a quarter of the cell to either side of its centre along
    both axes. The map is interpolated there bilinearly, and the output is the
    largest of the four. The position of a query depends on the stride, and so
    the stride has a gradient. At stride 2 and even sizes this is max pooling of
    2 x 2; at stride 1 it is no identity.

    Sizes are whole numbers: along an axis there are `n`, closest to `size /
    stride`, and cells are `size / n` wide; the gradient is as if they were as
    wide as the stride. What is trained is the stride, the inverse of the scale.

    Of the paper its abstract was read, and the caption of its figure 2: scale
    of each axis, a cell's four queries, bilinear interpolation, maximum, a
    rounding that lets gradients through, a reparametrised scale, a loss term on
    the computation. That queries are a quarter of a cell off the centre, that
    sizes are rounded to the nearest and that the inverse scale is trained is
    from memory. The loss term is not here: `diffstride.add_compute_budget` and
    `diffstride.add_stride_cost` take its place.

    Args:
        strides: initial stride, a number >= 1 or one for each axis, (height,
            width).
        trainable: whether the strides are trained.
        shared_stride: whether one number serves as stride of all axes.
        lower_limit_stride: smallest stride allowed, >= 1, or `None`.
        upper_limit_stride: largest stride allowed, or `None`. The limits clip
            the stride used, and hold the variable after each optimizer step.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        stride_lr_multiplier: factor of the strides' gradient, >= 0; see
            `DiffStride`.
        frozen: whether sizes and positions are constants, made from `strides`;
            see `diffstride.freeze`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with height and width divided by the strides, rounded to the
        nearest, half up; at least 1, and at most the input's. Static shapes
        show `None` there, unless frozen.

    Raises:
        ValueError: if an argument is out of range.
        NotImplementedError: if called inside of a compiled function (XLA,
            `jax.jit`) without `diffstride.static_sizes`.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> layer = DynOPool((2, 2.5), data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 16, 13, 8)

    Reference:
        [Pooling Revisited: Your Receptive Field is Suboptimal](
        https://arxiv.org/abs/2205.15254), Jang et al., CVPR 2022.
    """

    rank = 2

    def __init__(
        self,
        strides: float | Sequence[float] = 2.0,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = 1.0,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        stride_lr_multiplier: float = 1.0,
        frozen: bool = False,
        **kwargs: Any,
    ):
        super().__init__(
            strides=strides,
            trainable=trainable,
            shared_stride=shared_stride,
            lower_limit_stride=lower_limit_stride,
            upper_limit_stride=upper_limit_stride,
            data_format=data_format,
            stride_lr_multiplier=stride_lr_multiplier,
            frozen=frozen,
            **kwargs,
        )

    def call(self, inputs: Any) -> Any:
        """Returns the largest of the four queries of each cell."""
        x = ops.cast(inputs, self.compute_dtype)
        queries = self._queries(x)
        for axis, (left, part) in zip(self.spatial_axes, queries, strict=True):
            x = _interpolated(x, axis, left, part)
        return ops.max_pool(x, 2, 2, "valid", self.data_format)

    def output_sizes(
        self, sizes: Sequence[Size], strides: Any
    ) -> tuple[Size, ...]:
        """Computes the output sizes, on the host if strides are an array."""
        used = self.used_strides(sizes, strides)
        return tuple(
            _output_size(size, used[axis]) for axis, size in enumerate(sizes)
        )

    def used_strides(self, sizes: Sequence[Size], strides: Any) -> Any:
        """Returns the strides in force on maps of some sizes, for each axis."""
        # Limits are those of a mask that is never flat.
        limits = LowPass(
            ramp="inner",
            lower_limit=self.lower_limit_stride,
            upper_limit=self.upper_limit_stride,
        )
        return limits.used(sizes, strides)

    def macs(self, input_shape: Sequence[int]) -> int:
        """Counts the multiply-accumulates of a call; see `PoolingLayer`.

        A value that is interpolated between two takes two of them.
        """
        shape = list(input_shape)
        queries = self._queries(keras.KerasTensor(input_shape))
        total = 0
        for axis, (left, _) in zip(self.spatial_axes, queries, strict=True):
            shape[axis] = left.shape[0]
            total += 2 * math.prod(shape)
        return total

    def _queries(self, inputs: Any) -> list[tuple[Tensor, Tensor]]:
        """What `_between` tells of each axis, with the strides' gradient."""
        sizes = spatial_sizes(inputs, self.data_format)
        known = self.known_output_sizes(inputs, sizes)
        strides = self.initial_strides if self.frozen else self.scaled_strides()
        used = self.used_strides(sizes, strides)
        outputs = known or self.output_sizes(sizes, strides)
        return [
            _between(size, output, used[axis])
            for axis, (size, output) in enumerate(
                zip(sizes, outputs, strict=True)
            )
        ]


def _output_size(size: Size, stride: Tensor) -> Size:
    ops = ops_for(size, stride)
    stride = ops.stop_gradient(stride)
    nominal = ops.cast(size, stride.dtype) / stride
    rounded = to_size(ops.floor(nominal + 0.5))
    return to_size(ops.minimum(ops.maximum(rounded, 1), size))


def _between(
    size: Size, output_size: Size, stride: Tensor
) -> tuple[Tensor, Tensor]:
    """Places of the queries along an axis, two in each cell.

    Sample `j` is at `j`, and the map covers what is from -1/2 to `size - 1/2`.

    Returns:
        For each of `2 * output_size` queries the sample on its left, an
        integer, and its distance from that, from 0 to 1.
    """
    ops = ops_for(size, output_size, stride)
    dtype = stride.dtype
    cell = ops.cast(size, dtype) / ops.cast(output_size, dtype)
    cell = cell + (stride - ops.stop_gradient(stride))
    quarters = ops.cast(2 * ops.arange(2 * output_size) + 1, dtype) / 4.0
    place = quarters * cell - 0.5
    # Beyond the outermost samples there is nothing to interpolate.
    end = ops.cast(size - 1, dtype)
    place = ops.where(place < 0, ops.zeros_like(place), place)
    place = ops.where(place > end, end, place)
    left = ops.floor(ops.stop_gradient(place))
    left = ops.minimum(left, ops.maximum(end - 1, 0))
    return ops.cast(left, "int32"), place - left


def _interpolated(x: Tensor, axis: int, left: Tensor, part: Tensor) -> Tensor:
    """The values of an axis at places between its samples."""
    size = ops.shape(x)[axis]
    right = ops_for(left, size).minimum(left + 1, size - 1)
    near, far = (ops.take(x, place, axis=axis) for place in (left, right))
    shape = [1] * len(x.shape)
    shape[axis] = -1
    part = ops.cast(ops.reshape(part, shape), x.dtype)
    return near + part * (far - near)
