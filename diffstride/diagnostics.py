"""`check`: what keeps the strides of a model from being learned.

Models are tried, not read: a graph does not tell what layers and functions of
one's own do.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride.optimization import optimizer_findings
from diffstride.profiling import (
    Call,
    blank_example,
    first_calls,
    intercepted,
    profile,
    send,
)
from diffstride.strided import BaseLearnedPooling


def check(model: keras.Model, input_shape: Any = None) -> list[str]:
    """Warns of strides that cannot be learned as the model stands.

    Found are strides that are not trained, whose limits leave no room, or that
    no gradient reaches; sizes taken for granted, as by branches that are joined
    and have a layer each, or by `Flatten`; and, if the model is compiled,
    weight decay of strides and an optimizer that undoes `stride_lr_multiplier`.
    A random example is sent through to find out. No weight changes.

    Args:
        model: any built model.
        input_shape: as in `model_cost`.

    Returns:
        A line for each finding, with layers and remedy. Each is a warning, too.

    Raises:
        ValueError: if the model is not built, or if the shape is unknown.
    """
    calls = first_calls(profile(model, input_shape), BaseLearnedPooling)
    example = keras.tree.map_structure(
        lambda blank: _random(blank.shape), blank_example(model, input_shape)
    )
    findings = []
    for call, none in zip(
        calls, _no_gradient(model, example, calls), strict=True
    ):
        why = _held(call) or (none.any() and _cause(call, none))
        if why:
            findings.append(f"{call.name} does not learn its stride: {why}.")
    findings += _taken_for_granted(model, example, calls)
    findings += optimizer_findings(model)
    for finding in findings:
        warnings.warn(finding, stacklevel=2)
    return findings


def _random(shape: Sequence[int]) -> np.ndarray:
    return np.random.default_rng(0).random(shape, "float32")


def _strides(call: Call) -> np.ndarray:
    variable = call.layer.stride_weights
    return ops.convert_to_numpy(variable.constraint(variable))


def _sizes(call: Call) -> tuple[int, ...]:
    return call.layer.sizes_in(call.input_shape)


def _held(call: Call) -> str | None:
    """Why a stride stays where it is, by the layer's arguments."""
    layer = call.layer
    if layer.frozen or not layer.stride_weights.trainable:
        return "it is frozen, or not `trainable`"
    if layer.stride_lr_multiplier == 0:
        return "its `stride_lr_multiplier` is 0"
    if layer.upper_limit_stride:
        lowest, highest = (
            layer.used_strides(_sizes(call), np.full_like(_strides(call), x))
            for x in (layer.lower_limit_stride or 1.0, layer.upper_limit_stride)
        )
        if (lowest == highest).all():
            return f"its limits leave no room on a map of {_sizes(call)}"
    return None


def _cause(call: Call, none: np.ndarray) -> str:
    """Why strides, those of which `none` tells, have no gradient."""
    (alone,) = _no_gradient(call.layer, _random(call.input_shape), [call])
    if alone.any():
        return (
            f"the mask of stride {_strides(call)} on a map of {_sizes(call)} "
            f"has no gradient along axes {np.flatnonzero(none).tolist()} of "
            "these. Give a larger `smoothness_factor`, another `ramp`, or "
            "other initial strides"
        )
    return (
        "what follows does not depend on it. A layer keeps the mean of a map, "
        "up to a factor, and global average pooling takes only that. Put a "
        "convolution and a nonlinearity between"
    )


def _no_gradient(
    model: keras.layers.Layer, example: Any, calls: Sequence[Call]
) -> list[np.ndarray]:
    """Tells of each stride whether what a model gives has no gradient in it.

    The yardstick is the gradient in the height of a random pattern on what the
    layer gives. Where that is zero, too, as in a branch whose last weights are
    zero to begin with, nothing can be told.
    """
    layers = [call.layer for call in calls]

    def projection(values: Sequence[Any]) -> Any:
        generator = np.random.default_rng(1)
        heights = dict(zip(map(id, layers), values[len(layers) :], strict=True))

        def pattern(x: Any) -> Any:
            return ops.array(generator.normal(size=x.shape), "float32")

        def between(layer: Any, call: Callable, *args: Any, **kw: Any) -> Any:
            x = call(*args, **kw)
            return x * ops.cast(1.0 + heights[id(layer)] * pattern(x), x.dtype)

        variables = [layer.stride_weights for layer in layers]
        with (
            keras.StatelessScope(list(zip(variables, values, strict=False))),
            intercepted(layers, between),
        ):
            outputs = keras.tree.flatten(model(example, training=False))
        return sum(
            ops.sum(ops.cast(x, "float32") * pattern(x)) for x in outputs
        )

    gradients = _gradients(
        projection,
        [_strides(call) for call in calls]
        + [np.zeros((), "float32") for _ in layers],
    )
    return [
        abs(of_stride) < 1e-5 * layer.stride_lr_multiplier * abs(of_height)
        for layer, of_stride, of_height in zip(
            layers, gradients, gradients[len(layers) :], strict=False
        )
    ]


def _gradients(function: Callable, values: Sequence[Any]) -> list[np.ndarray]:
    """Gradients of a scalar function of a list."""
    backend = keras.backend.backend()
    tensors = [ops.convert_to_tensor(value) for value in values]
    if not tensors:
        return []
    if backend == "jax":
        import jax

        gradients = jax.grad(function)(tensors)
    elif backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(tensors)
            result = function(tensors)
        gradients = tape.gradient(result, tensors, unconnected_gradients="zero")
    else:
        import torch

        tensors = [tensor.requires_grad_() for tensor in tensors]
        gradients = torch.autograd.grad(
            function(tensors), tensors, materialize_grads=True
        )
    return [ops.convert_to_numpy(gradient) for gradient in gradients]


def _taken_for_granted(
    model: keras.Model, example: Any, calls: Sequence[Call]
) -> list[str]:
    """Finds layers whose size cannot change without the model breaking."""
    errors = {}
    for call in calls:
        try:
            with keras.StatelessScope(
                [(call.layer.stride_weights, _moved(call))]
            ):
                send(example, model)
        except Exception as error:  # Each backend has its own.
            errors[call.name] = str(error).partition("\n")[0]
    if not errors:
        return []
    return [
        "The model breaks as soon as one of these strides moves, and with it "
        f"the size of a map: {', '.join(errors)}. Branches that are joined need"
        " one shared DiffStride layer; before a dense layer, use global pooling"
        f" instead of `Flatten`. Keras says: {[*errors.values()][0]}"
    ]


def _moved(call: Call) -> np.ndarray:
    """The strides closest by that give another output size, if any do."""
    layer, now = call.layer, _strides(call)
    if layer.stride_weights.trainable and layer.cropping:
        steps = np.arange(1, 100)
        # Larger maps first: they suit whatever follows.
        for factor in (*0.99**steps, *1.01**steps):
            moved = (now * factor).astype(now.dtype)
            if layer.output_sizes(_sizes(call), moved) != layer.output_sizes(
                _sizes(call), now
            ):
                return moved
    return now
