"""Pre-activation residual layers, and blocks of them."""

from collections.abc import Sequence
from typing import Any

import keras

from diffstride import arguments
from diffstride.composite import Composite, pooling_factory, saved_pooling
from diffstride.parts import (
    PLACEMENTS,
    Parts,
    PoolingClass,
    Stride,
    resolve_channels_first,
    resolve_weight_decay,
    whole_strides,
)
from diffstride.pooling import PACKAGE


@keras.saving.register_keras_serializable(PACKAGE)
class ResidualLayer(Composite, keras.layers.Layer):
    """Pre-activation residual layer.

    Main branch: BN, ReLU, conv, pooling, BN, ReLU, conv; or the pooling before
    the first convolution. Shortcut: the input, or with `project` the pooled
    input through a 1x1 convolution.

    Args:
        filters: number of output channels.
        kernel_size: size of the convolutions of the main branch.
        strides: stride of the layer, a number or a pair (height, width).
            Integers unless `pooling_cls` takes others.
        pooling_cls: `None`, or a pooling layer class that takes `strides`,
            `data_format`, `dtype` and `name`; any callable with these
            arguments will do.
        project: whether the shortcut is a 1x1 convolution. A layer that does
            not project keeps size and number of channels.
        channels_first: whether channels come first; `None` follows
            `keras.config.image_data_format()`.
        weight_decay: factor of the L2 penalty on kernels.
        pooling_placement: `"after"` the first convolution, as released, or
            `"before"` it, after BN and ReLU, where the convolution has fewer
            pixels to do. Strided convolutions know no difference.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.
        training: whether batch statistics are used and updated.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `channels_first`.

    Output shape:
        The same with `filters` channels and, when projecting, the size that
        the stride leaves.

    Raises:
        ValueError: if strides are given to a layer that does not project, or
            are not integers without a pooling class.

    Reference:
        [Identity Mappings in Deep Residual Networks](
        https://arxiv.org/abs/1603.05027), He et al., 2016.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int] = 3,
        strides: Stride = 1,
        pooling_cls: PoolingClass = None,
        project: bool = False,
        channels_first: bool | None = None,
        weight_decay: float = 0.0,
        pooling_placement: str = "after",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.project = arguments.boolean("project", project)
        pair = arguments.strides("strides", strides, 2)
        if not self.project and pair != (1, 1):
            raise ValueError(
                "`strides` must be 1 for a residual layer that does not "
                f"project. Received: strides={strides}, project=False"
            )
        self.filters = filters = arguments.integer("filters", filters)
        kernel = arguments.integers("kernel_size", kernel_size)
        self.kernel_size = arguments.plain(kernel_size)
        self.strides = arguments.plain(strides)
        self.pooling_cls = pooling_factory(pooling_cls)
        self.channels_first = resolve_channels_first(channels_first)
        self.weight_decay = resolve_weight_decay(weight_decay)
        self.pooling_placement = arguments.choice(
            "pooling_placement", pooling_placement, PLACEMENTS
        )

        parts = Parts(self.channels_first, self.weight_decay, self.dtype_policy)
        conv_strides = whole_strides(strides, pooling_cls)
        self.bn_in = parts.batch_norm_relu("bn_in")
        self.conv_in = parts.conv(filters, kernel, conv_strides, "conv_in")
        self.pooling = None
        self.conv_shortcut = None
        if self.project:
            if pooling_cls is not None:
                self.pooling = parts.pooling(self.pooling_cls, strides)
            self.conv_shortcut = parts.conv(
                filters, 1, conv_strides, "conv_shortcut"
            )
        self.bn_out = parts.batch_norm_relu("bn_out")
        self.conv_out = parts.conv(filters, kernel, 1, "conv_out")

    def build(self, input_shape: tuple) -> None:
        """Builds the parts, in the order of the main branch."""
        channel_axis = 1 if self.channels_first else -1
        channels = input_shape[channel_axis]
        if not self.project and channels != self.filters:
            raise ValueError(
                f"{self.name} does not project, so its input must have "
                f"`filters` channels. Received: filters={self.filters}, "
                f"input_shape={tuple(input_shape)}"
            )
        # The two orders give the same result when the pooling acts alike and
        # linearly on every channel. Pooling first then costs less: the pooling
        # has no more channels to do, and the convolution fewer pixels.
        self._pool_first = self.pooling_placement == "before" or (
            getattr(self.pooling, "commutes_with_pointwise", False)
            and channels <= self.filters
        )
        self.bn_in.build(input_shape)
        shape = input_shape
        for layer in self._down:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if self.project:
            self.conv_shortcut.build(input_shape)
        self.bn_out.build(shape)
        self.conv_out.build(shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the sum of main branch and shortcut."""
        x = self.bn_in(inputs, training=training)
        for layer in self._down:
            x = layer(x)
        x = self.bn_out(x, training=training)
        # The two may have been given different dtypes.
        return keras.ops.add(self.conv_out(x), self._shortcut(inputs))

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the output shape, `None` where a learned stride decides."""
        for layer in (*self._down, self.conv_out):
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "pooling_cls": saved_pooling(self),
            "project": self.project,
            "channels_first": self.channels_first,
            "weight_decay": self.weight_decay,
            "pooling_placement": self.pooling_placement,
            **self.changed_config(),
        }

    @property
    def pooling_layers(self) -> list[keras.layers.Layer]:
        """The pooling layer, if there is one."""
        return [] if self.pooling is None else [self.pooling]

    @property
    def _down(self) -> list[keras.layers.Layer]:
        """First convolution and pooling, in the order of the main branch."""
        if self.pooling_placement == "before":
            return [*self.pooling_layers, self.conv_in]
        return [self.conv_in, *self.pooling_layers]

    def _pool(self, x: Any) -> Any:
        return x if self.pooling is None else self.pooling(x)

    def _shortcut(self, x: Any) -> Any:
        if not self.project:
            return x
        if self._pool_first:
            return self.conv_shortcut(self._pool(x))
        return self._pool(self.conv_shortcut(x))


_LAYER_ARGS = (
    "kernel_size",
    "pooling_cls",
    "channels_first",
    "weight_decay",
    "pooling_placement",
)


@keras.saving.register_keras_serializable(PACKAGE)
class ResnetBlock(Composite, keras.layers.Layer):
    """A chain of residual layers, of which the first may project and stride.

    Args:
        filters: number of output channels.
        strides: stride of the first layer, a number or a pair.
        num_layers: number of residual layers, >= 1.
        project_first: whether the first layer projects. If not the block never
            strides.
        **residual_layer_args: arguments of every `ResidualLayer`
            (`kernel_size`, `pooling_cls`, `channels_first`, `weight_decay`,
            `pooling_placement`), and those of every Keras layer, such as `name`
            and `dtype`.

    Call arguments:
        inputs: 4-D tensor.
        training: whether batch statistics are used and updated.

    Attributes:
        layers: the residual layers, `num_layers` of them.

    Raises:
        ValueError: if `num_layers` is not positive, or an argument is refused
            by `ResidualLayer`.
    """

    def __init__(
        self,
        filters: int,
        strides: Stride = 1,
        num_layers: int = 2,
        project_first: bool = True,
        **residual_layer_args: Any,
    ):
        layer_args = {
            key: arguments.plain(residual_layer_args.pop(key))
            for key in _LAYER_ARGS
            if key in residual_layer_args
        }
        if "pooling_cls" in layer_args:
            layer_args["pooling_cls"] = pooling_factory(
                layer_args["pooling_cls"]
            )
        super().__init__(**residual_layer_args)
        self.filters = filters = arguments.integer("filters", filters)
        self.strides = arguments.plain(strides)
        self.num_layers = arguments.integer("num_layers", num_layers)
        self.project_first = arguments.boolean("project_first", project_first)
        self.pooling_cls = layer_args.get("pooling_cls")
        self.residual_layer_args = layer_args
        layer_args = {**layer_args, "dtype": self.dtype_policy}
        self.layers = [
            ResidualLayer(
                filters,
                strides=strides,
                project=self.project_first,
                name="layer_1",
                **layer_args,
            )
        ]
        self.layers += [
            ResidualLayer(filters, name=f"layer_{i}", **layer_args)
            for i in range(2, self.num_layers + 1)
        ]

    @property
    def pooling_layers(self) -> list[keras.layers.Layer]:
        """The pooling layers, in depth order."""
        return [each for layer in self.layers for each in layer.pooling_layers]

    def build(self, input_shape: tuple) -> None:
        """Builds the residual layers in order."""
        for layer in self.layers:
            layer.build(input_shape)
            input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        """Returns the output of the last residual layer."""
        x = inputs
        for layer in self.layers:
            x = layer(x, training=training)
        return x

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the output shape, `None` where a learned stride decides."""
        for layer in self.layers:
            input_shape = layer.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict:
        """Returns the arguments."""
        config = {
            **super().get_config(),
            "filters": self.filters,
            "strides": self.strides,
            "num_layers": self.num_layers,
            "project_first": self.project_first,
            **self.residual_layer_args,
            **self.changed_config(),
        }
        if "pooling_cls" in config:
            config["pooling_cls"] = saved_pooling(self)
        return config
