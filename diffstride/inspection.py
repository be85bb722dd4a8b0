"""Which pooling layers a model has, and what they do at their strides now."""

from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from diffstride.pooling import (
    BaseDiffStride,
    BaseFixedSpectralPooling,
    SpatialPooling,
)
from diffstride.regularizers import stride_cost


class PoolingState(NamedTuple):
    """A pooling layer at work.

    Attributes:
        name: path of the layer inside of the model.
        initial: strides it was built with, one for each axis.
        strides: strides it has now.
        input_size: size of the map it receives, likewise.
        output_size: size of the map it returns.
        learned: whether its strides are trainable.
    """

    name: str
    initial: tuple[float, ...]
    strides: tuple[float, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    learned: bool


def pooling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooling layers of a model that are ours, each once."""
    kinds = (BaseDiffStride, BaseFixedSpectralPooling, SpatialPooling)
    return [
        layer for layer in model._flatten_layers() if isinstance(layer, kinds)
    ]


def stride_variables(model: keras.Model) -> list[Any]:
    """Returns the stride variables of a model's pooling layers."""
    return [
        layer.stride_weights
        for layer in pooling_layers(model)
        if isinstance(layer, (BaseDiffStride, BaseFixedSpectralPooling))
    ]


def pooling_states(
    model: keras.Model, image_shape: tuple[int, ...]
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
    learned = [state.strides for state in states if state.learned]
    return float(stride_cost(learned, rank=len(learned[0]) if learned else 2))


def _state(
    model: keras.Model, layer: Any, input_shape: Any, output_shape: Any
) -> PoolingState:
    first = 1 if layer.data_format == "channels_last" else 2
    weights = getattr(layer, "stride_weights", layer.strides)
    strides = np.broadcast_to(
        ops.convert_to_numpy(weights), (len(layer.strides),)
    )
    return PoolingState(
        name=layer.path.removeprefix(f"{model.name}/"),
        initial=tuple(float(s) for s in layer.strides),
        strides=tuple(strides.tolist()),
        input_size=tuple(int(n) for n in input_shape[first:][: len(strides)]),
        output_size=tuple(int(n) for n in output_shape[first:][: len(strides)]),
        learned=isinstance(layer, BaseDiffStride) and not layer.frozen,
    )
