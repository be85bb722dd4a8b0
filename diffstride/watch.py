"""What the layers of a model do to one example: a blank one is sent through."""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
        layer: the layer.
        name: its path inside of the model.
        input_shape: shape of its first input, with a batch dimension.
        output_shape: shape of its first output, likewise.
        output_bytes: size of all its outputs.
    """

    layer: keras.layers.Layer
    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    output_bytes: int


def watch(model: keras.Model, input_shape: Any = None) -> list[Call]:
    """Runs one blank example through a model and watches its leaf layers.

    These are the layers without layers of their own. What a model computes
    outside of them is not seen.

    Args:
        model: a built model.
        input_shape: shape of one example, without batch dimension; for several
            inputs a list or dictionary of shapes. `None` stands for the shape
            that the model was built with.

    Returns:
        The calls, in the order in which they end, which is that of depth.

    Raises:
        ValueError: if the model is not built, or if it was built for inputs of
            unknown size and no shape is given.
    """
    if not model.built:
        raise ValueError(
            f"{model.name} must be built, as its strides are weights. Call it "
            "on data first, or `build` it."
        )
    if input_shape is None:
        input_shape = _known_shape(model)
    blank = keras.tree.map_shape_structure(
        lambda shape: np.zeros((1, *shape), "float32"), input_shape
    )
    calls: list[Call] = []

    def watched(layer: keras.layers.Layer) -> Callable:
        call = layer.call

        def watching(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            name = path_in(model, layer)
            calls.append(_record(layer, name, (args, kwargs), outputs))
            return outputs

        return watching

    leaves = [
        layer
        for layer in model._flatten_layers(include_self=False)
        if not layer._layers
    ]
    for layer in leaves:
        layer.call = watched(layer)
    try:
        model(blank, training=False)
    finally:
        for layer in leaves:
            del layer.call
    return calls


def path_in(model: keras.Model, layer: keras.layers.Layer) -> str:
    """Returns the path of a layer inside of a model."""
    # A layer that nobody ever built has no path.
    return (layer.path or layer.name).removeprefix(f"{model.name}/")


def _known_shape(model: keras.Model) -> Any:
    shape = getattr(model, "input_shape", None)
    if hasattr(model, "operations"):  # Functional; the names of its inputs.
        shape = keras.tree.map_structure(lambda x: x.shape, model.input)
    if shape is None:
        shape = (model.get_build_config() or {}).get("input_shape")
    if shape is not None:
        one = keras.tree.map_shape_structure(lambda s: tuple(s)[1:], shape)
        if None not in keras.tree.flatten(one):
            return one
    raise ValueError(
        f"`input_shape` must be given for {model.name}, which was built for "
        f"inputs of shape {shape}: the shape of one example, such as "
        "(32, 32, 3). Received: input_shape=None"
    )


def _record(
    layer: keras.layers.Layer, name: str, inputs: Any, outputs: Any
) -> Call:
    given, returned = _tensors(inputs), _tensors(outputs)
    return Call(
        layer=layer,
        name=name,
        input_shape=_shape(given[0]) if given else (),
        output_shape=_shape(returned[0]) if returned else (),
        output_bytes=sum(
            math.prod(_shape(tensor)) * _item_bytes(tensor.dtype)
            for tensor in returned
        ),
    )


def _tensors(structure: Any) -> list[Any]:
    return [x for x in keras.tree.flatten(structure) if hasattr(x, "shape")]


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(n) for n in tensor.shape)


def _item_bytes(dtype: Any) -> int:
    # Not by numpy, to which bfloat16 is unknown.
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return int(bits[0]) // 8 if bits else 1
