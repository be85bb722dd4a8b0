"""Pooling by windows of the map: averages and maxima, fractional ones too."""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride import arguments
from diffstride.numerics import Size, Tensor, ops_for
from diffstride.strided import PACKAGE, BaseMapLayer, Strided, WindowPooling


@keras.saving.register_keras_serializable(PACKAGE)
class SpatialPooling(WindowPooling, keras.layers.AveragePooling2D):
    """Keras average pooling with the defaults of the authors' release.

    Args:
        pool_size: window, an integer or a pair (height, width).
        strides: integer stride, or a pair (height, width).
        padding: `"same"` or `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The same with height and width divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range.
    """

    commutes_with_pointwise = True

    def __init__(
        self,
        pool_size: int | Sequence[int] = (1, 1),
        strides: int | Sequence[int] = (2, 2),
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(pool_size, strides, padding, data_format, **kwargs)


class _WindowOfStride:
    """Mixin: where no window is given, it is as large as the stride."""

    def __init__(
        self,
        strides: int | Sequence[int] = 2,
        pool_size: int | Sequence[int] | None = None,
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        if pool_size is None:
            pool_size = arguments.integers("strides", strides)
        super().__init__(pool_size, strides, padding, data_format, **kwargs)


@keras.saving.register_keras_serializable(PACKAGE)
class AveragePooling(_WindowOfStride, SpatialPooling):
    """Keras average pooling over windows of the size of the stride.

    That is `SpatialPooling` with another default: its windows are single
    samples unless they are given.

    Args:
        strides: an integer >= 1, or one for each axis, (height, width).
        pool_size: window, an integer or a pair (height, width); `None` stands
            for that of the strides.
        padding: `"same"` or `"valid"`. What is padded is not averaged.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The same with height and width divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range.
    """

    def call(self, inputs: Any) -> Any:
        """Returns the average of each window."""
        if keras.backend.backend() != "torch" or self.padding != "same":
            return super().call(inputs)
        # Keras pads with the outermost samples there, and averages them, too.
        x = ops.convert_to_tensor(inputs)
        seen = self._padded_average(ops.ones_like(x[:1]))
        return self._padded_average(x) / seen

    def _padded_average(self, x: Any) -> Any:
        """Averages windows of which what is padded counts as zero."""
        first = 1 if self.data_format == "channels_last" else 2
        pads = [(0, 0)] * 4
        for axis, window, stride in zip(
            (first, first + 1), self.pool_size, self.strides, strict=True
        ):
            size = x.shape[axis]
            more = max((-(-size // stride) - 1) * stride + window - size, 0)
            pads[axis] = (more // 2, more - more // 2)
        return ops.average_pool(
            ops.pad(x, pads),
            self.pool_size,
            self.strides,
            "valid",
            self.data_format,
        )


@keras.saving.register_keras_serializable(PACKAGE)
class MaxPooling(_WindowOfStride, WindowPooling, keras.layers.MaxPooling2D):
    """Keras max pooling over windows of the size of the stride.

    Args:
        strides: an integer >= 1, or one for each axis, (height, width).
        pool_size: window, an integer or a pair (height, width); `None` stands
            for that of the strides.
        padding: `"same"` or `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The same with height and width divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range.
    """


@keras.saving.register_keras_serializable(PACKAGE)
class FractionalMaxPooling2D(Strided, BaseMapLayer):
    """Max pooling over windows of two sizes in turn, at random.

    Each axis is cut into `floor(size / stride)` parts of `k` or `k + 1`
    samples, `k = floor(size / parts)`, and the maximum is taken of each
    rectangle. In training a new cut is drawn at each call, the same for all
    maps of the batch. In inference it is always the same, and as even as can
    be. Where the stride divides the size this is max pooling.

    At given cuts the layer is `tf.nn.fractional_max_pool`, whose cuts cannot be
    held in inference, nor continued after an interruption. It is built of other
    operations, and runs on all backends.

    Two calls of a layer in training, as for the branches of a residual layer,
    cut differently.

    Args:
        strides: a number >= 1 or one for each axis, (height, width). They need
            not be integers; between 1 and 2 in the paper.
        pseudo_random: how cuts are drawn. If `False` the order of the parts is
            random. If `True` they are spread evenly, from a random beginning.
        overlapping: whether parts take in the first sample of the next one.
        seed: an integer, or `None` for one that Keras draws.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.
        training: whether cuts are drawn at random.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with height and width divided by the strides and rounded down,
        at least 1.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> layer = FractionalMaxPooling2D(1.5, data_format="channels_last")
    >>> tuple(layer(x, training=True).shape)
    (4, 21, 21, 8)

    Reference:
        [Fractional Max-Pooling](https://arxiv.org/abs/1412.6071), Graham, 2014.
    """

    rank = 2

    def __init__(
        self,
        strides: float | Sequence[float] = 1.5,
        pseudo_random: bool = False,
        overlapping: bool = False,
        seed: int | None = None,
        data_format: str | None = None,
        **kwargs: Any,
    ):
        super().__init__(strides=strides, data_format=data_format, **kwargs)
        self.pseudo_random = arguments.boolean("pseudo_random", pseudo_random)
        self.overlapping = arguments.boolean("overlapping", overlapping)
        self.seed = arguments.optional_integer("seed", seed, least=0)
        self.seed_generator = keras.random.SeedGenerator(self.seed)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the maximum of each rectangle."""
        x = ops.cast(inputs, self.compute_dtype)
        for axis, stride in zip(self.spatial_axes, self.strides, strict=True):
            size = ops.shape(x)[axis]
            parts = _parts(size, stride)
            edges = self._edges(size, parts, bool(training))
            if isinstance(size, int):
                widest = -(-size // parts)
            else:  # The most that a size can come to.
                widest = math.ceil(2 * stride)
            x = max_between(x, edges, axis, widest, self.overlapping)
        return x

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "pseudo_random": self.pseudo_random,
            "overlapping": self.overlapping,
            "seed": self.seed,
        }

    def _edges(self, size: Size, parts: Size, training: bool) -> Tensor:
        """First samples of all parts of an axis, and its size at the end."""
        places = ops_for(size, parts).arange(parts + 1)
        if not training:
            return (places * size + parts // 2) // parts
        places = ops.cast(places, "int32")
        if self.pseudo_random:
            begin = keras.random.randint((), 0, parts, seed=self.seed_generator)
            return (places * size + begin) // parts
        even = places * size // parts
        lengths = even[1:] - even[:-1]
        lengths = keras.random.shuffle(lengths, seed=self.seed_generator)
        return ops.pad(ops.cumsum(lengths), ((1, 0),))

    def _static_sizes(self, sizes: Sequence) -> tuple:
        return tuple(
            None if size is None else _parts(size, stride)
            for size, stride in zip(sizes, self.strides, strict=True)
        )


def max_between(
    x: Tensor, edges: Tensor, axis: int, widest: int, overlapping: bool = False
) -> Tensor:
    """Takes the maximum of each part of an axis.

    Args:
        x: tensor.
        edges: increasing integers, the first sample of each part, and the size
            of the axis.
        axis: axis of `x`.
        widest: bound on the length of a part.
        overlapping: whether parts take in the first sample of the next one.

    Returns:
        The tensor with one sample for each part.
    """
    first, last = edges[:-1], edges[1:] - (0 if overlapping else 1)
    size = ops.shape(x)[axis]
    last = ops_for(last, size).minimum(last, size - 1)
    samples = [
        ops.take(x, ops_for(first, last).minimum(first + i, last), axis=axis)
        for i in range(widest + overlapping)
    ]
    largest = samples[0]
    for each in samples[1:]:
        largest = ops.maximum(largest, each)
    return largest


def _parts(size: Size, stride: float) -> Size:
    """Number of parts of an axis."""
    if isinstance(size, int):
        return max(int(size / stride), 1)
    parts = ops.floor(ops.cast(size, "float32") / stride)
    return ops.maximum(ops.cast(parts, "int32"), 1)
