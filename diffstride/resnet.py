"""Pre-activation ResNets whose downsampling is a strided conv or a pooling.

With `pooling_cls=None` the convolutions carry the strides. With a pooling class
they have stride 1 and an instance of that class does the downsampling, one for
the stem and one for each projecting residual layer, where it serves the main
branch and the shortcut alike.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras

from diffstride import arguments
from diffstride.composite import (
    Composite,
    network_config,
    pooling_factory,
    saved_pooling,
)
from diffstride.parts import (
    PLACEMENTS,
    Parts,
    PoolingClass,
    Stride,
    as_pair,
    parse_strides,
    resolve_channels_first,
    whole_strides,
)
from diffstride.pooling import PACKAGE
from diffstride.static import StaticSizes


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
        self.weight_decay = _resolve_weight_decay(weight_decay)
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


@keras.saving.register_keras_serializable(PACKAGE)
class Resnet(Composite, StaticSizes, keras.Sequential):
    """Pre-activation ResNet: stem, blocks, head.

    Stem: 3x3 convolution, then pooling. Head: BN, ReLU, global average pooling,
    dense. These are the layers of a sequential model (`stem`, `pooling`,
    `block_1`, ..., `bn_head`, `average`, `dense`), which is a graph with
    `inputs`, `outputs` and feature maps once it is built. Kernels are
    initialised with he_normal; convolutions have no bias. To copy a network use
    `from_config`: `keras.models.clone_model` makes a plain sequential model.

    Args:
        filters: channels of the stem, then of each block.
        strides: strides of the stem, then of each block; numbers or pairs
            (height, width), or text such as `"4x1, 1, 2, 2"`. Integers unless
            `pooling_cls` takes others.
        num_output_classes: number of outputs, or a dictionary of them for
            several tasks, whose heads share all that comes before; `None` for a
            network that ends before average and dense layer and puts out the
            last maps.
        output_activation: activation of the dense layer, `None` for logits.
        id_only: whether the first block consists of identity layers only, and
            therefore never strides; or one boolean for each block.
        channels_first: whether channels come first; `None` follows
            `keras.config.image_data_format()`.
        pooling_cls: `None` for strided convolutions, or a pooling layer class
            that takes `strides`, `data_format`, `dtype` and `name`; any
            callable with these arguments will do.
        weight_decay: factor of the L2 penalty on kernels and dense bias.
        num_layers: number of residual layers in each block.
        pooling_placement: where residual layers pool, `"after"` their first
            convolution or `"before"` it; see `ResidualLayer`. The stem pools
            after its convolution.
        large_stem: whether the stem is that of large images: a 7x7 convolution
            and a 3x3 max pooling, each with a fixed stride of 2, in front of
            what `strides` are about. The first of `strides` must be 1 then, as
            the stem has no pooling layer of `pooling_cls`.
        **kwargs: `name`, `trainable` and `dtype`.

    Call arguments:
        inputs: 4-D tensor of images, of any number of channels.
        training: whether batch statistics are used and updated.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `channels_first`.

    Output shape:
        `(batch, num_output_classes)`, of several tasks a dictionary of such
        outputs; without classes that of the last maps.

    Raises:
        ValueError: if lengths disagree, or strides are given where they would
            be ignored or cannot be had.

    Example:

    >>> model = Resnet([8, 8, 16], [1, 1, 2], pooling_cls=DiffStride)
    >>> tuple(model(np.zeros((2, 16, 16, 3), "float32")).shape)
    (2, 10)

    Reference:
        - [Identity Mappings in Deep Residual Networks](
        https://arxiv.org/abs/1603.05027), He et al., 2016.
        - [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., ICLR 2022.
    """

    def __init__(
        self,
        filters: Sequence[int],
        strides: Sequence[Stride] | str,
        num_output_classes: int | dict[str, int] | None = 10,
        output_activation: str | Callable | None = None,
        id_only: bool | Sequence[bool] = False,
        channels_first: bool | None = None,
        pooling_cls: PoolingClass = None,
        weight_decay: float = 0.0,
        num_layers: int = 2,
        pooling_placement: str = "after",
        large_stem: bool = False,
        **kwargs: Any,
    ):
        dtype = kwargs.pop("dtype", None)  # Sequential models take none.
        super().__init__(**kwargs)
        if dtype is not None:
            self.dtype_policy = keras.dtype_policies.get(dtype)
        strides = parse_strides(strides)
        filters = arguments.plain(filters)
        if not isinstance(filters, (list, tuple)):
            raise arguments.refusal("filters", "a list of integers", filters)
        filters = [
            arguments.integer(f"filters[{i}]", each)
            for i, each in enumerate(filters)
        ]
        num_blocks = len(filters) - 1
        if num_blocks < 1 or len(strides) != len(filters):
            raise ValueError(
                "`filters` and `strides` must have one entry for the stem and "
                "one for each block, at least 2. Received: "
                f"filters={list(filters)}, strides={list(strides)}"
            )
        id_only = _resolve_id_only(id_only, num_blocks)
        for i, (stride, identity) in enumerate(
            zip(strides, [False, *id_only], strict=True)
        ):
            pair = arguments.strides(f"strides[{i}]", stride, 2)
            if identity and pair != (1, 1):
                raise ValueError(
                    f"`strides[{i}]` must be 1: that block consists of identity"
                    f" layers only (`id_only`). Received: strides={strides}"
                )
        self.large_stem = arguments.boolean("large_stem", large_stem)
        if large_stem and set(as_pair(strides[0])) != {1}:
            raise ValueError(
                "`strides[0]` must be 1 with `large_stem`, whose strides are "
                f"fixed. Received: strides={strides}"
            )
        self.filters = filters
        self.strides = strides
        if num_output_classes is not None:
            num_output_classes = arguments.classes(
                "num_output_classes", num_output_classes
            )
        self.num_output_classes = num_output_classes
        if num_output_classes is None and output_activation is not None:
            expected = "None where there are no outputs (`num_output_classes`)"
            raise arguments.refusal(
                "output_activation", expected, output_activation
            )
        self.output_activation = output_activation
        self.id_only = id_only
        self.channels_first = resolve_channels_first(channels_first)
        self.pooling_cls = pooling_factory(pooling_cls)
        self.weight_decay = _resolve_weight_decay(weight_decay)
        self.num_layers = arguments.integer("num_layers", num_layers)
        self.pooling_placement = arguments.choice(
            "pooling_placement", pooling_placement, PLACEMENTS
        )

        for layer in self._parts():
            self.add(layer)

    def _parts(self) -> Iterator[keras.layers.Layer]:
        """The layers from the input to the output."""
        parts = Parts(self.channels_first, self.weight_decay, self.dtype_policy)
        yield from self._stem_parts(parts)
        for i, identity in enumerate(self.id_only, 1):
            yield ResnetBlock(
                self.filters[i],
                self.strides[i],
                self.num_layers,
                project_first=not identity,
                pooling_cls=self.pooling_cls,
                channels_first=self.channels_first,
                weight_decay=self.weight_decay,
                pooling_placement=self.pooling_placement,
                dtype=self.dtype_policy,
                name=f"block_{i}",
            )
        yield parts.batch_norm_relu("bn_head")
        if self.num_output_classes is None:
            return
        yield from parts.head(
            self.num_output_classes, self.output_activation, self.filters[-1]
        )

    def _stem_parts(self, parts: Parts) -> Iterator[keras.layers.Layer]:
        if self.large_stem:
            yield parts.conv(self.filters[0], 7, 2, "stem")
            yield keras.layers.MaxPooling2D(
                3,
                2,
                padding="same",
                data_format=parts.data_format,
                dtype=self.dtype_policy,
                name="stem_max",
            )
            return
        strides = whole_strides(self.strides[0], self.pooling_cls)
        yield parts.conv(self.filters[0], 3, strides, "stem")
        if self.pooling_cls is not None:
            yield parts.pooling(self.pooling_cls, self.strides[0])

    def build(self, input_shape: tuple) -> None:
        """Builds the graph, for batches of any size."""
        super().build((None, *input_shape[1:]))

    # Files of version 0.1 know the parts by these names.
    stem = property(lambda self: self.layers[0])
    bn_head = property(lambda self: self._part("bn_head"))
    average = property(lambda self: self._part("average"))
    dense = property(lambda self: self._part("dense"))

    def _part(self, name: str) -> keras.layers.Layer | None:
        return {layer.name: layer for layer in self.layers}.get(name)

    @property
    def stem_pooling(self) -> keras.layers.Layer | None:
        """The pooling layer of the stem, if there is one."""
        none = self.pooling_cls is None or self.large_stem
        return None if none else self.layers[1]

    @property
    def blocks(self) -> list[ResnetBlock]:
        """The blocks of residual layers, in their order."""
        return [each for each in self.layers if isinstance(each, ResnetBlock)]

    @property
    def pooling_layers(self) -> list[keras.layers.Layer]:
        """The pooling layers, in depth order."""
        stem = self.stem_pooling
        return ([] if stem is None else [stem]) + [
            each for block in self.blocks for each in block.pooling_layers
        ]

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **network_config(self),
            "id_only": self.id_only,
            "num_layers": self.num_layers,
            "large_stem": self.large_stem,
        }


def resnet18(
    strides: Sequence[Stride] | str | None = None,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """Pre-Act ResNet-18 for small images: two layers in each of four blocks.

    Args:
        strides: strides of the stem and the four blocks; default 1, 1, 2, 2, 2.
            The first block consists of identity layers and never strides.
        resnet_cls: what builds the network.
        **kwargs: further arguments of `Resnet`.

    Returns:
        A `Resnet`, to be built by calling it or `fit`.
    """
    defaults = {
        "filters": [64, 64, 128, 256, 512],
        "id_only": True,
        "num_layers": 2,
    }
    strides = [1, 1, 2, 2, 2] if strides is None else strides
    return resnet_cls(strides=strides, **{**defaults, **kwargs})


def resnet56(
    strides: Sequence[Stride] | str | None = None,
    resnet_cls: Callable[..., Resnet] = Resnet,
    **kwargs: Any,
) -> Resnet:
    """Pre-Act ResNet-56 for small images: nine layers in each of three blocks.

    Args:
        strides: strides of the stem and the three blocks; default 1, 1, 2, 2.
        resnet_cls: what builds the network.
        **kwargs: further arguments of `Resnet`.

    Returns:
        A `Resnet`, to be built by calling it or `fit`.
    """
    defaults = {"filters": [16, 16, 32, 64], "num_layers": 9}
    strides = [1, 1, 2, 2] if strides is None else strides
    return resnet_cls(strides=strides, **{**defaults, **kwargs})


def _resolve_id_only(id_only: Any, num_blocks: int) -> list[bool]:
    plain = arguments.plain(id_only)
    if not isinstance(plain, (list, tuple)):
        first = arguments.boolean("id_only", plain)
        return [first] + [False] * (num_blocks - 1)
    if len(plain) != num_blocks:
        raise arguments.refusal(
            "id_only", f"a boolean or one for each block ({num_blocks})", plain
        )
    return [arguments.boolean("id_only", each) for each in plain]


def _resolve_weight_decay(weight_decay: Any) -> float | None:
    if weight_decay is None:
        return None
    return arguments.number("weight_decay", weight_decay)
