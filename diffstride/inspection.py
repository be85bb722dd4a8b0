"""Which pooling layers a model has, and what they do at their strides now."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from diffstride.pooling import (
    DiffStride,
    FixedSpectralPooling,
    SpatialPooling,
)
from diffstride.regularizers import stride_cost


class PoolingState(NamedTuple):
    """A pooling layer at work.

    Attributes:
        name: path of the layer inside of the model.
        initial: strides it was built with, (height, width).
        strides: strides it has now.
        input_size: size of the map it receives, (height, width).
        output_size: size of the map it returns.
        learned: whether its strides are trainable.
    """

    name: str
    initial: tuple[float, float]
    strides: tuple[float, float]
    input_size: tuple[int, int]
    output_size: tuple[int, int]
    learned: bool


def pooling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooling layers of a model that are ours, each once."""
    kinds = (DiffStride, FixedSpectralPooling, SpatialPooling)
    return [
        layer for layer in model._flatten_layers() if isinstance(layer, kinds)
    ]


def stride_variables(model: keras.Model) -> list[Any]:
    """Returns the stride variables of a model's pooling layers."""
    return [
        layer.stride_weights
        for layer in pooling_layers(model)
        if isinstance(layer, (DiffStride, FixedSpectralPooling))
    ]


def pooling_states(
    model: keras.Model, image_shape: tuple[int, int, int]
) -> list[PoolingState]:
    """Runs one blank image through a model and watches its pooling layers.

    Args:
        model: a built model that takes images.
        image_shape: shape of one image, without batch dimension.

    Returns:
        The state of each pooling layer, in the order in which they
        are first reached, which is that of depth.
    """
    seen: dict[int, PoolingState] = {}

    def watch(layer: keras.layers.Layer) -> None:
        call = layer.call

        def watched(inputs: Any) -> Any:
            outputs = call(inputs)
            seen.setdefault(
                id(layer), _state(model, layer, inputs.shape, outputs.shape)
            )
            return outputs

        layer.call = watched

    layers = pooling_layers(model)
    if not layers:
        return []
    for layer in layers:
        watch(layer)
    try:
        model(np.zeros((1, *image_shape), "float32"), training=False)
    finally:
        for layer in layers:
            del layer.call
    return list(seen.values())


def cost_of(states: list[PoolingState]) -> float:
    """Returns the stride cost J of the DiffStride layers among `states`."""
    return float(stride_cost([s.strides for s in states if s.learned]))


def _state(
    model: keras.Model, layer: Any, input_shape: Any, output_shape: Any
) -> PoolingState:
    first = 1 if layer.data_format == "channels_last" else 2
    weights = getattr(layer, "stride_weights", layer.strides)
    values = ops.convert_to_numpy(weights)
    return PoolingState(
        name=layer.path.removeprefix(f"{model.name}/"),
        initial=tuple(float(s) for s in layer.strides),
        strides=(float(values[0]), float(values[-1])),
        input_size=tuple(int(n) for n in input_shape[first : first + 2]),
        output_size=tuple(int(n) for n in output_shape[first : first + 2]),
        learned=isinstance(layer, DiffStride),
    )
