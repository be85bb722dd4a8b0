"""Networks beside the ResNets: DenseNet-BC, and those of `keras.applications`.

Both are functional models, whose graphs begin with the shape of an image.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride import arguments
from diffstride.conversion import convert
from diffstride.parts import (
    PLACEMENTS,
    Parts,
    PoolingClass,
    Stride,
    parse_strides,
)
from diffstride.windows import AveragePooling


def make_network(
    model_cls: Callable[..., keras.Model],
    num_output_classes: int | dict[str, int],
    image_shape: Sequence[int],
) -> keras.Model:
    """Calls what makes a network, with `input_shape` if it takes one."""
    taken = inspect.signature(model_cls).parameters
    kwargs: dict[str, Any] = {"num_output_classes": num_output_classes}
    if "input_shape" in taken:
        kwargs["input_shape"] = tuple(image_shape)
    return model_cls(**kwargs)


def densenet(
    strides: Sequence[Stride] | str | None = None,
    num_output_classes: int | dict[str, int] = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    num_layers: int = 16,
    growth_rate: int = 12,
    compression: float = 0.5,
    pooling_cls: PoolingClass = None,
    pooling_placement: str = "after",
    weight_decay: float = 0.0,
) -> keras.Model:
    """DenseNet-BC for small images: dense blocks, and transitions that pool.

    A dense layer is BN, ReLU, 1x1 convolution to four times the growth rate,
    BN, ReLU, 3x3 convolution; its output is appended to its input. A transition
    is BN, ReLU, 1x1 convolution, pooling. With the defaults it is the network
    of 100 layers and 0.8 million parameters of the paper.

    Args:
        strides: strides of the transitions, one for each, so that there is one
            more block; default 2, 2. Integers unless `pooling_cls` takes
            others.
        num_output_classes: number of outputs, logits; or a dictionary of them
            for several tasks.
        input_shape: shape of an image, in the data format of Keras.
        num_layers: number of dense layers in each block: (depth - 4) / 6 with
            three blocks.
        growth_rate: channels that each dense layer appends.
        compression: share of its channels that a transition keeps, above 0 and
            at most 1.
        pooling_cls: `None` for average pooling, as in the paper, or a pooling
            layer class that takes `strides`, `data_format`, `dtype` and `name`;
            any callable with these arguments will do.
        pooling_placement: whether transitions pool `"after"` their convolution
            or `"before"` it. With average and spectral pooling and DiffStride
            the two give the same.
        weight_decay: factor of the L2 penalty on kernels and dense bias.

    Returns:
        A functional model.

    Raises:
        ValueError: if an argument is out of range.

    Reference:
        [Densely Connected Convolutional Networks](
        https://arxiv.org/abs/1608.06993), Huang et al., 2017.
    """
    strides = parse_strides([2, 2] if strides is None else strides)
    num_layers = arguments.integer("num_layers", num_layers)
    growth_rate = arguments.integer("growth_rate", growth_rate)
    arguments.number("compression", compression)
    if not 0 < compression <= 1:
        expected = "a share, above 0 and at most 1"
        raise arguments.refusal("compression", expected, compression)
    arguments.choice("pooling_placement", pooling_placement, PLACEMENTS)
    first = keras.config.image_data_format() == "channels_first"
    decay = arguments.number("weight_decay", weight_decay)
    parts = Parts(first, decay, keras.config.dtype_policy())
    inputs = keras.Input(tuple(input_shape), name="images")
    x = parts.conv(2 * growth_rate, 3, 1, "stem")(inputs)
    for number in range(1, len(strides) + 2):
        for i in range(1, num_layers + 1):
            name = f"block_{number}_layer_{i}"
            x = _dense_layer(parts, x, growth_rate, name)
        if number <= len(strides):
            name = f"transition_{number}"
            filters = int(compression * x.shape[parts.channel_axis])
            x = parts.batch_norm_relu(f"{name}_bn")(x)
            down = [
                parts.conv(filters, 1, 1, f"{name}_conv"),
                parts.pooling(
                    pooling_cls or AveragePooling,
                    strides[number - 1],
                    f"{name}_pooling",
                ),
            ]
            for layer in down if pooling_placement == "after" else down[::-1]:
                x = layer(x)
    x = parts.batch_norm_relu("bn_head")(x)
    classes = arguments.classes("num_output_classes", num_output_classes)
    for layer in parts.head(classes, channels=x.shape[parts.channel_axis]):
        x = layer(x)
    return keras.Model(inputs, x, name="densenet")


def application(
    name: str = "EfficientNetB0",
    strides: Sequence[Stride] | str | None = None,
    num_output_classes: int = 10,
    input_shape: Sequence[int] = (32, 32, 3),
    pooling_cls: PoolingClass = None,
    pooling_placement: str = "after",
    dropout: float = 0.0,
) -> keras.Model:
    """A network of `keras.applications`, converted, to be trained from scratch.

    Its head is average pooling, dropout and a dense layer. Images are taken as
    they come: what such a network has to normalise them with is switched off.

    Args:
        name: of a function in `keras.applications`.
        strides: initial strides, one for each new pooling layer in the order of
            calls; default those of the network. They need a `pooling_cls`.
        num_output_classes: number of outputs, logits.
        input_shape: shape of an image, in the data format of Keras.
        pooling_cls: `None` for the network as it is, or what `diffstride
            .convert` takes as `to`: its layers downsample in the place of
            strided convolutions and poolings.
        pooling_placement: whether they do `"after"` a convolution or
            `"before"` it; see `where` of `convert`.
        dropout: share that is dropped before the dense layer.

    Returns:
        A functional model.

    Raises:
        ValueError: if there is no such network, or an argument is out of range.
    """
    make = getattr(keras.applications, name, None)
    if not inspect.isfunction(make):
        names = [
            each
            for each, value in vars(keras.applications).items()
            if inspect.isfunction(value)
        ]
        expected = f"one of {', '.join(sorted(names))}"
        raise arguments.refusal("name", expected, name)
    arguments.choice("pooling_placement", pooling_placement, PLACEMENTS)
    classes = arguments.integer("num_output_classes", num_output_classes)
    inner = {}
    if "include_preprocessing" in inspect.signature(make).parameters:
        inner["include_preprocessing"] = False
    source = make(
        include_top=False,
        weights=None,
        input_shape=tuple(input_shape),
        pooling="avg",
        **inner,
    )
    for layer in source.layers:
        if isinstance(layer, keras.layers.Rescaling):
            layer.scale, layer.offset = 1.0, 0.0
    x = keras.layers.Dropout(dropout, name="head_dropout")(source.output)
    x = keras.layers.Dense(classes, name="head_dense")(x)
    model = keras.Model(source.input, x, name=source.name)
    if pooling_cls is not None:
        return _converted(model, pooling_cls, strides, pooling_placement)
    if strides is not None:
        expected = "None without `pooling_cls`, as the network has its own"
        raise arguments.refusal("strides", expected, strides)
    return model


def _converted(
    model: keras.Model,
    pooling_cls: Callable,
    strides: Sequence[Stride] | str | None,
    where: str,
) -> keras.Model:
    """The network with new pooling layers, at strides in the order of calls."""
    given = None if strides is None else parse_strides(strides)
    places: list[str] = []

    def begin(layer: keras.layers.Layer) -> Any:
        places.append(layer.name)
        if given is None or len(places) > len(given):
            return "keep"
        return given[len(places) - 1]

    model, _ = convert(model, pooling_cls, strides=begin, where=where)
    if given is not None and len(given) != len(places):
        expected = f"{len(places)} strides, for {', '.join(places)}"
        raise arguments.refusal("strides", expected, strides)
    return model


def _dense_layer(
    parts: Parts, inputs: keras.KerasTensor, growth_rate: int, name: str
) -> keras.KerasTensor:
    x = parts.batch_norm_relu(f"{name}_bn_in")(inputs)
    x = parts.conv(4 * growth_rate, 1, 1, f"{name}_conv_in")(x)
    x = parts.batch_norm_relu(f"{name}_bn_out")(x)
    x = parts.conv(growth_rate, 3, 1, f"{name}_conv_out")(x)
    axis = parts.channel_axis
    return keras.layers.Concatenate(axis, name=f"{name}_append")([inputs, x])
