"""Which pooling layers a model has, and what they do at their strides now."""

from collections.abc import Sequence
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
from diffstride.watch import Call, watch

_KINDS = (BaseDiffStride, BaseFixedSpectralPooling, SpatialPooling)
# By the number of axes.
_AXES = {
    1: ("length",),
    2: ("height", "width"),
    3: ("depth", "height", "width"),
}


class PoolingState(NamedTuple):
    """A pooling layer at work.

    Attributes:
        name: path of the layer inside of the model.
        initial: strides it was built with, one for each axis.
        strides: strides it has now.
        input_size: size of the map it receives, likewise.
        output_size: size of the map it returns.
        learned: whether its strides are trainable.
        kind: name of its class.
        ramp: where its mask falls off; `None` where there is no such choice.
        smoothness_factor: width of that ramp, likewise.
        norm: scaling of its transforms, likewise.
        shared_stride: whether one number serves as stride of all axes.
    """

    name: str
    initial: tuple[float, ...]
    strides: tuple[float, ...]
    input_size: tuple[int, ...]
    output_size: tuple[int, ...]
    learned: bool
    kind: str
    ramp: str | None
    smoothness_factor: float | None
    norm: str | None
    shared_stride: bool


def pooling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooling layers of a model that are ours, each once."""
    return [
        layer for layer in model._flatten_layers() if isinstance(layer, _KINDS)
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
    return states_of(watch(model, image_shape))


def states_of(calls: Sequence[Call]) -> list[PoolingState]:
    """Likewise, of a model that was watched.

    Args:
        calls: what `watch` returns.

    Returns:
        The state of each pooling layer, at its first call.
    """
    first: dict[int, Call] = {}
    for call in calls:
        if isinstance(call.layer, _KINDS):
            first.setdefault(id(call.layer), call)
    return [_state(call) for call in first.values()]


def learns_strides(model: keras.Model) -> bool:
    """Whether a model has DiffStride layers that are not frozen."""
    return any(
        isinstance(layer, BaseDiffStride) and not layer.frozen
        for layer in pooling_layers(model)
    )


def cost_of(states: Sequence[PoolingState]) -> float:
    """Returns the stride cost J of the DiffStride layers among `states`."""
    learned = [state.strides for state in states if state.learned]
    # States have a stride for each axis.
    return float(stride_cost(learned, rank=1))


def pooling_scalars(states: Sequence[PoolingState]) -> dict[str, float]:
    """Names and values to log for the pooling layers of a model.

    Args:
        states: what `pooling_states` gives.

    Returns:
        For each layer its strides and output size, and `stride_cost`.
    """
    scalars: dict[str, float] = {}
    for state in states:
        names = _AXES[len(state.strides)]
        for axis, stride, size in zip(
            names, state.strides, state.output_size, strict=True
        ):
            scalars[f"stride/{state.name}/{axis}"] = stride
            scalars[f"output_size/{state.name}/{axis}"] = size
    if any(state.learned for state in states):
        scalars["stride_cost"] = cost_of(states)
    return scalars


def _state(call: Call) -> PoolingState:
    layer = call.layer
    first = 1 if layer.data_format == "channels_last" else 2
    axes = slice(first, first + len(layer.strides))
    weights = getattr(layer, "stride_weights", layer.strides)
    strides = np.broadcast_to(
        ops.convert_to_numpy(weights), (len(layer.strides),)
    )
    return PoolingState(
        name=call.name,
        initial=tuple(float(s) for s in layer.strides),
        strides=tuple(strides.tolist()),
        input_size=call.input_shape[axes],
        output_size=call.output_shape[axes],
        learned=isinstance(layer, BaseDiffStride) and not layer.frozen,
        kind=type(layer).__name__,
        ramp=getattr(layer, "ramp", None),
        smoothness_factor=getattr(layer, "smoothness_factor", None),
        norm=getattr(layer, "norm", None),
        shared_stride=getattr(layer, "shared_stride", False),
    )
