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
from diffstride.composite import Composite, network_config, pooling_factory
from diffstride.parts import (
    PLACEMENTS,
    Parts,
    PoolingClass,
    Stride,
    as_pair,
    parse_strides,
    resolve_channels_first,
    resolve_weight_decay,
    whole_strides,
)
from diffstride.pooling import PACKAGE
from diffstride.residual import ResidualLayer as ResidualLayer
from diffstride.residual import ResnetBlock
from diffstride.static import StaticSizes


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
        self.weight_decay = resolve_weight_decay(weight_decay)
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
