"""What all networks of this package are made of: parts, and their arguments."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from diffstride import arguments
from diffstride.pooling import PACKAGE

PoolingClass = Callable[..., keras.layers.Layer] | None
PLACEMENTS = ("after", "before")
Stride = int | float | Sequence[float]


@keras.saving.register_keras_serializable(PACKAGE)
class BatchNormReLU(keras.layers.BatchNormalization):
    """Batch normalisation and ReLU, which stand together in these networks."""

    def call(
        self, inputs: Any, training: bool | None = None, mask: Any = None
    ) -> Any:
        """Returns the normalised inputs, rectified."""
        return keras.ops.relu(super().call(inputs, training, mask))


class Parts:
    """Makes the parts that all layers and networks have in common."""

    def __init__(self, channels_first: bool, weight_decay: float, dtype: Any):
        self.data_format = (
            "channels_first" if channels_first else "channels_last"
        )
        self.channel_axis = 1 if channels_first else -1
        self.weight_decay = weight_decay
        self.dtype = dtype

    def penalty(self) -> keras.regularizers.Regularizer | None:
        """Returns what weights are penalised by."""
        decay = self.weight_decay
        return keras.regularizers.L2(decay) if decay else None

    def conv(
        self, filters: int, kernel_size: Any, strides: Any, name: str
    ) -> keras.layers.Layer:
        """Returns a convolution without bias."""
        return keras.layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            data_format=self.data_format,
            kernel_initializer="he_normal",
            kernel_regularizer=self.penalty(),
            dtype=self.dtype,
            name=name,
        )

    def batch_norm_relu(self, name: str) -> keras.layers.Layer:
        """Returns batch normalisation and ReLU."""
        return BatchNormReLU(
            axis=self.channel_axis,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            name=name,
        )

    def head(
        self,
        classes: int | dict[str, int],
        activation: Any = None,
        channels: int | None = None,
    ) -> Iterator[keras.layers.Layer]:
        """Yields what ends a network: average pooling and `dense`."""
        yield keras.layers.GlobalAveragePooling2D(
            data_format=self.data_format, dtype=self.dtype, name="average"
        )
        yield self.dense(classes, activation, channels)

    def dense(
        self,
        classes: int | dict[str, int],
        activation: Any = None,
        channels: int | None = None,
        name: str = "dense",
    ) -> keras.layers.Layer:
        """Returns the dense layer that ends a network, or one for each task.

        Of several tasks it is a model that gives a dictionary, of inputs with
        a number of `channels`.
        """
        if isinstance(classes, dict):
            inputs = keras.Input((channels,))
            outputs = {
                task: self.dense(number, activation, name=task)(inputs)
                for task, number in classes.items()
            }
            return keras.Model(inputs, outputs, name="heads")
        return keras.layers.Dense(
            classes,
            activation=activation,
            kernel_initializer="he_normal",
            kernel_regularizer=self.penalty(),
            bias_regularizer=self.penalty(),
            dtype=self.dtype,
            name=name,
        )

    def pooling(
        self, factory: Callable, strides: Stride, name: str = "pooling"
    ) -> keras.layers.Layer:
        """Returns a pooling layer."""
        layer = factory(
            strides=as_pair(strides),
            data_format=self.data_format,
            dtype=self.dtype,
            name=name,
        )
        if not isinstance(layer, keras.layers.Layer):
            expected = "a layer class, or a callable that makes layers"
            raise arguments.refusal("pooling_cls", expected, factory)
        return layer


def as_pair(strides: Stride) -> tuple:
    """Returns strides along both axes."""
    plain = arguments.plain(strides)
    return tuple(plain) if isinstance(plain, (list, tuple)) else (plain,) * 2


def whole_strides(strides: Stride, pooling_cls: PoolingClass) -> tuple:
    """Returns the strides of convolutions: 1 where a pooling has them."""
    if pooling_cls is not None:
        return (1, 1)
    pair = arguments.strides("strides", strides, 2)
    if not all(s == int(s) for s in pair):
        expected = (
            "integers where convolutions do the striding (`pooling_cls=None`)"
        )
        raise arguments.refusal("strides", expected, strides)
    return tuple(int(s) for s in pair)


def parse_strides(strides: Sequence[Stride] | str) -> list:
    """Returns strides as a list, from a list or from text."""
    plain = arguments.plain(strides)
    if isinstance(plain, (list, tuple)):
        return [arguments.plain(s) for s in plain]
    try:
        return [_parse_stride(stride) for stride in plain.split(",")]
    except (ValueError, AttributeError, TypeError):
        expected = (
            "numbers, or pairs such as 4x1, separated by commas, such as "
            "'1, 1, 2, 2, 2', or a list"
        )
        raise arguments.refusal("strides", expected, strides) from None


def _parse_stride(stride: str) -> Stride:
    numbers = [float(number) for number in stride.split("x")]
    if len(numbers) > 2 or not all(map(math.isfinite, numbers)):
        raise ValueError
    plain = tuple(int(s) if s == int(s) else s for s in numbers)
    return plain if len(plain) == 2 else plain[0]


def resolve_channels_first(channels_first: bool | None) -> bool:
    """Returns whether channels come first, as Keras has it for `None`."""
    if channels_first is None:
        return keras.config.image_data_format() == "channels_first"
    return arguments.boolean("channels_first", channels_first)


def resolve_weight_decay(weight_decay: float | None) -> float | None:
    """Returns the factor of an L2 penalty, which `None` leaves out."""
    if weight_decay is None:
        return None
    return arguments.number("weight_decay", weight_decay)
