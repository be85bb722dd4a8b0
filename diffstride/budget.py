"""The stride cost `J`: what a chain of strides leaves to compute."""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride.profiling import learned_in_order
from diffstride.strided import BaseLearnedPooling


def stride_cost(
    strides: Sequence[Any] | keras.Model,
    rank: int = 2,
    input_shape: Any = None,
) -> Any:
    """Sum over layers of the share of the input that is left after each.

    `J = sum_l prod_{i <= l} 1 / (S_h^i S_w^i)`, with layers counted in depth
    order. A layer that serves several branches is to be given once.

    Args:
        strides: for each DiffStride layer, its strides: a tensor or array of
            shape (rank,), or (1,) where one number serves all axes. Or a built
            model, for its DiffStride layers that are not frozen, each once.
        rank: number of spatial axes. Those of a model's layers are known.
        input_shape: of one example, without batch dimension. Needed for a model
            that was built for inputs of unknown size.

    Returns:
        Scalar tensor, differentiable in the strides; 0 without any layer.

    Raises:
        ValueError: if `strides` is neither, or the model is not built.

    Reference:
        [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., 2022, section 2.4.
    """
    if isinstance(strides, keras.Model):
        strides = _strides_by_axis(learned_in_order(strides, input_shape))
        rank = 1
    elif not _is_list_of_strides(strides):
        raise ValueError(
            "`strides` must be a model, or for each DiffStride layer an array "
            "of its strides, such as [layer.stride_weights]. Received: "
            f"strides={strides!r}"
        )
    cost = ops.convert_to_tensor(0.0, dtype="float32")
    share = ops.convert_to_tensor(1.0, dtype="float32")
    for each in strides:
        each = ops.cast(ops.convert_to_tensor(each), "float32")
        share = share / ops.prod(each) ** (rank if each.shape[0] == 1 else 1)
        cost = cost + share
    return cost


def add_stride_cost(
    model: keras.Model, weight: float, input_shape: Any = None
) -> keras.Model:
    """Adds `weight * J` to the loss that a model is trained on.

    J is the `stride_cost` of all its DiffStride layers, in the order in which a
    forward pass reaches them; a layer that it reaches several times counts
    once. Strides that are not trained count as constants, those of layers with
    `frozen=True` not at all. Where no stride is trained nothing is added.

    The term is among `model.losses`, like any regulariser: `fit` and
    `evaluate` include it on every backend, and with `static_sizes`; each stride
    that is trained brings an equal part of it. It is no part of what is saved;
    call this again on a model that was loaded, cloned or frozen.

    Args:
        model: any built model that holds DiffStride layers.
        weight: finite and >= 0. Replaces the weight of an earlier call; 0 takes
            the term away.
        input_shape: shape of one example, without batch dimension. Needed if
            the model was built for inputs of unknown size.

    Returns:
        The same model.

    Raises:
        ValueError: if the weight is negative or not finite, if the model is not
            built, or if it has no learned strides.

    Example:

    >>> model = diffstride.add_stride_cost(model, 0.1)
    >>> model.compile("sgd", "mse")

    Reference:
        [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., 2022, section 2.4.
    """
    if not (math.isfinite(weight) and weight >= 0):
        raise ValueError(
            f"`weight` must be finite and >= 0. Received: weight={weight}"
        )
    layers = learned_in_order(model, input_shape)
    if not layers:
        raise ValueError(
            "`model` must hold DiffStride layers that are not frozen and that "
            f"its forward pass reaches. Received: {model.name}, without any"
        )
    term = _StrideCost(float(weight), layers) if weight else None
    for layer in layers:
        layer.stride_weights.regularizer = term
    # Functions that were compiled before know nothing of it.
    model.train_function = model.test_function = None
    return model


def _strides_by_axis(layers: Sequence[BaseLearnedPooling]) -> list[Any]:
    return [
        ops.broadcast_to(layer.scaled_strides(), (layer.rank,))
        for layer in layers
    ]


def _is_list_of_strides(strides: Any) -> bool:
    return isinstance(strides, (list, tuple)) and all(
        len(getattr(each, "shape", np.shape(each))) == 1 for each in strides
    )


class _StrideCost(keras.regularizers.Regularizer):
    """`weight * J`, in equal parts for all strides that are trained.

    Keras asks the regulariser of each variable that is trained at that time,
    and adds up what it hears.
    """

    def __init__(self, weight: float, layers: Sequence[BaseLearnedPooling]):
        self.weight = weight
        self.layers = layers

    def __call__(self, _: Any) -> Any:
        parts = sum(layer.stride_weights.trainable for layer in self.layers)
        strides = _strides_by_axis(self.layers)
        return self.weight / parts * stride_cost(strides, rank=1)
