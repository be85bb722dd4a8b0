"""What the layers of a model do to one example: a blank one is sent through.

Keras tells a layer's calls to nobody, so that `profile` has to stand between a
model and its layers: for the length of one forward pass it puts a method that
records in the place of each leaf layer's `call`. Graphs of functional models
would do without, but know neither what a composite layer does inside nor sizes
that are learned.
"""

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from diffstride.internals import sublayers
from diffstride.static import add_note_on_sizes
from diffstride.strided import BaseLearnedPooling, PoolingLayer

# Of the axes, by their number.
AXES = {
    1: ("length",),
    2: ("height", "width"),
    3: ("depth", "height", "width"),
}


def axes_of(model: keras.Model, rank: int) -> tuple[str, ...]:
    """Returns the names of the axes of a model's maps.

    A model may have others, as its `axes`, by their number.
    """
    return getattr(model, "axes", AXES)[rank]


class Call(NamedTuple):
    """A call of a layer.

    Attributes:
        layer: the layer.
        name: its path inside of the model.
        input_shape: shape of its first input, with a batch dimension.
        output_shape: shape of its first output, with a batch dimension.
        output_bytes: size of all its outputs.
    """

    layer: keras.layers.Layer
    name: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    output_bytes: int


def profile(model: keras.Model, input_shape: Any = None) -> list[Call]:
    """Runs one blank example through a model and records its layers' calls.

    Recorded are leaf layers, those without layers of their own. What a model
    computes outside of them is not seen.

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
    example = blank_example(model, input_shape)
    calls: list[Call] = []
    leaves = [
        layer
        for layer in sublayers(model)
        if layer is not model and len(list(sublayers(layer))) == 1
    ]

    def recorded(layer: Any, call: Callable, *args: Any, **kwargs: Any) -> Any:
        outputs = call(*args, **kwargs)
        name = path_in(model, layer)
        calls.append(_record(layer, name, (args, kwargs), outputs))
        return outputs

    try:
        with intercepted(leaves, recorded):
            send(example, model)
    except Exception as error:
        outputs = [
            (call.name, call.output_shape)
            for call in calls
            if isinstance(call.layer, BaseLearnedPooling)
        ]
        add_note_on_sizes(error, outputs)
        raise
    return calls


def send(example: Any, model: keras.Model) -> None:
    """Sends an example through a model, for what happens on its way."""
    if keras.backend.backend() != "jax":
        model(example, training=False)
    else:  # Shapes are enough, and nothing has to be compiled.
        import jax

        jax.eval_shape(lambda x: model(x, training=False), example)


def blank_example(model: keras.Model, input_shape: Any = None) -> Any:
    """Returns a batch of one blank example; see `profile`."""
    if not model.built:
        raise ValueError(
            f"{model.name} must be built, as its strides are weights. Call it "
            "on data first, or `build` it."
        )
    if input_shape is None:
        input_shape = known_shape(model)
    return keras.tree.map_shape_structure(
        lambda shape: np.zeros((1, *shape), "float32"), input_shape
    )


@contextlib.contextmanager
def intercepted(layers: Sequence[Any], between: Callable) -> Iterator[None]:
    """Has `between(layer, call, *inputs)` stand in for the call of layers."""
    for layer in layers:
        layer.call = functools.partial(between, layer, layer.call)
    try:
        yield
    finally:
        for layer in layers:
            del layer.call


def path_in(model: keras.Model, layer: keras.layers.Layer) -> str:
    """Returns the path of a layer inside of a model."""
    # A layer that nobody ever built has no path.
    return (layer.path or layer.name).removeprefix(f"{model.name}/")


class PoolingState(NamedTuple):
    """A pooling layer at work.

    Attributes:
        name: path of the layer inside of the model.
        initial: strides it was built with, one for each axis.
        strides: strides it has now.
        input_size: size of the map it receives, one for each axis.
        output_size: size of the map it returns, one for each axis.
        learned: whether its strides are trainable.
        kind: name of its class.
        ramp: its ramp, `None` if it has none.
        smoothness_factor: width of that ramp, `None` if it has none.
        current_smoothness: its width now, which a schedule moves, or `None`.
        norm: scaling of its transforms, `None` if it has none.
        shared_stride: whether one number serves as stride of all axes.
        keep_parity: whether even sizes stay even, `None` if it has no ramp.
        smallest_size: least nominal size, `None` if it has no ramp.
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
    current_smoothness: float | None
    norm: str | None
    shared_stride: bool
    keep_parity: bool | None
    smallest_size: int | None


def pooling_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """Returns the pooling layers of a model that are ours, each once."""
    return [
        layer for layer in sublayers(model) if isinstance(layer, PoolingLayer)
    ]


def learns_strides(model: keras.Model) -> bool:
    """Whether a model has DiffStride layers that are not frozen."""
    return any(
        isinstance(layer, BaseLearnedPooling) and not layer.frozen
        for layer in pooling_layers(model)
    )


def pooling_states(calls: Sequence[Call]) -> list[PoolingState]:
    """Returns the state of each pooling layer, at its first call of `calls`."""
    return [_state(call) for call in first_calls(calls)]


def first_calls(calls: Sequence[Call], kinds: Any = PoolingLayer) -> list[Call]:
    """Returns the first call of each layer of these kinds, else of poolings."""
    first: dict[int, Call] = {}
    for call in calls:
        if isinstance(call.layer, kinds):
            first.setdefault(id(call.layer), call)
    return list(first.values())


def learned_in_order(
    model: keras.Model, input_shape: Any = None
) -> list[BaseLearnedPooling]:
    """Returns the DiffStride layers that a forward pass reaches, each once.

    Those that are frozen are left out. Arguments are those of `profile`.
    """
    calls = first_calls(profile(model, input_shape), BaseLearnedPooling)
    return [call.layer for call in calls if not call.layer.frozen]


def stride_logs(model: keras.Model) -> dict[str, float]:
    """Returns the stride of each pooling layer and axis, under its name."""
    return {
        f"stride/{path_in(model, layer)}/{axis}": float(stride)
        for layer in pooling_layers(model)
        for axis, stride in zip(
            axes_of(model, len(layer.strides)), _strides(layer), strict=True
        )
    }


def _strides(layer: keras.layers.Layer) -> tuple[float, ...]:
    weights = getattr(layer, "stride_weights", layer.strides)
    strides = ops.convert_to_numpy(weights)
    return tuple(np.broadcast_to(strides, (len(layer.strides),)).tolist())


def _state(call: Call) -> PoolingState:
    layer = call.layer
    first = 1 if layer.data_format == "channels_last" else 2
    axes = slice(first, first + len(layer.strides))
    return PoolingState(
        name=call.name,
        initial=tuple(float(s) for s in layer.strides),
        strides=_strides(layer),
        input_size=call.input_shape[axes],
        output_size=call.output_shape[axes],
        learned=isinstance(layer, BaseLearnedPooling) and not layer.frozen,
        kind=type(layer).__name__,
        ramp=getattr(layer, "ramp", None),
        smoothness_factor=getattr(layer, "smoothness_factor", None),
        current_smoothness=getattr(layer, "current_smoothness", None),
        norm=getattr(layer, "norm", None),
        shared_stride=getattr(layer, "shared_stride", False),
        keep_parity=getattr(layer, "keep_parity", None),
        smallest_size=getattr(layer, "smallest_size", None),
    )


def known_shape(model: keras.Model) -> Any:
    """Returns the shape of one example that a model was built for.

    Raises:
        ValueError: if it was built for inputs of unknown size.
    """
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
