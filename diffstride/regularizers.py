"""The stride cost `J`: what a chain of strides leaves to compute."""

from collections.abc import Sequence
from typing import Any

from keras import ops


def stride_cost(strides: Sequence[Any], rank: int = 2) -> Any:
    """Sum over layers of the share of the input that is left after each.

    `J = sum_l prod_{i <= l} 1 / (S_h^i S_w^i)`, with layers counted in depth
    order. A layer that serves several branches is to be given once.

    Args:
        strides: for each DiffStride layer, its strides: a tensor or array of
            shape (rank,), or (1,) where one number serves all axes.
        rank: number of spatial axes.

    Returns:
        Scalar tensor, differentiable in the strides; 0 without any layer.

    Reference:
        [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., 2022, section 2.4.
    """
    cost = ops.convert_to_tensor(0.0, dtype="float32")
    share = ops.convert_to_tensor(1.0, dtype="float32")
    for each in strides:
        each = ops.cast(ops.convert_to_tensor(each), "float32")
        share = share / ops.prod(each) ** (rank if each.shape[0] == 1 else 1)
        cost = cost + share
    return cost
