"""Outputs and gradients of a layer, on whatever backend Keras runs.

JAX compiles them as one function; eagerly it would compile each operation.
"""

import keras
import numpy as np
from keras import ops

from diffstride.static import Retracer, learned_layers

BACKEND = keras.backend.backend()


def output_of(layer, x):
    """Runs a layer. Returns an array."""
    x = ops.convert_to_tensor(x)
    if not layer.built:
        layer.build(x.shape)
    if BACKEND != "jax":
        return ops.convert_to_numpy(layer(x))
    # The strides are constants of what is compiled.
    return _compiled(layer, layer, x)


def output_and_gradients(layer, x, cotangent=None):
    """Runs a layer and differentiates `sum(output * cotangent)`.

    Returns arrays: output, gradient of the input, list of gradients of the
    trainable variables.
    """
    x = ops.convert_to_tensor(x)
    if not layer.built:
        layer.build(x.shape)

    def loss_of(y):
        return ops.sum(
            y if cotangent is None else y * ops.cast(cotangent, y.dtype)
        )

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = loss_of(y)
        dx, *dv = tape.gradient(
            loss,
            [x, *(v.value for v in layer.trainable_variables)],
            unconnected_gradients=tf.UnconnectedGradients.ZERO,
        )
    elif BACKEND == "jax":
        import jax

        def run(x, trainable):
            y, _ = layer.stateless_call(
                trainable, [v.value for v in layer.non_trainable_variables], x
            )
            return loss_of(y), y

        values = [v.value for v in layer.trainable_variables]
        gradient = jax.grad(run, argnums=(0, 1), has_aux=True)
        (dx, dv), y = _compiled(layer, gradient, x, values)
    else:
        x = x.detach().requires_grad_(True)
        layer.zero_grad()
        y = layer(x)
        loss_of(y).backward()
        dx = x.grad
        dv = [
            ops.zeros_like(v) if v.value.grad is None else v.value.grad
            for v in layer.trainable_variables
        ]
    as_array = ops.convert_to_numpy
    return as_array(y), as_array(dx), [as_array(v) for v in dv]


def _compiled(layer, function, *args):
    """What a function of a layer returns, compiled by JAX for its sizes."""
    import jax

    learned = learned_layers(layer)
    strides = [ops.convert_to_numpy(each.stride_weights) for each in learned]
    run = Retracer(learned, lambda: jax.jit(lambda *args: function(*args)))
    return jax.tree.map(np.asarray, run(strides, *args))


def gradients_of(function, *values):
    """Gradients of a scalar function of arrays, as arrays."""
    values = [ops.convert_to_tensor(value) for value in values]
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            result = function(*values)
        gradients = tape.gradient(result, values)
    elif BACKEND == "jax":
        import jax

        arguments = tuple(range(len(values)))
        gradients = jax.grad(function, argnums=arguments)(*values)
    else:
        import torch

        values = [value.detach().requires_grad_(True) for value in values]
        gradients = torch.autograd.grad(function(*values), values)
    return [ops.convert_to_numpy(gradient) for gradient in gradients]


def relative_error(actual, expected):
    """Largest difference, relative to the largest entry expected."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape, (actual.shape, expected.shape)
    scale = max(np.abs(expected).max(), 1e-30)
    return np.abs(actual - expected).max() / scale
