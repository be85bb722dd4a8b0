"""Strides and optimizers: weight decay, learning rates of their own."""

import warnings
from collections.abc import Sequence
from typing import Any

import keras

from diffstride.internals import (
    exclude_from_weight_decay,
    optimizer_of,
    sublayers,
    uses_weight_decay,
)


def exclude_strides_from_weight_decay(
    optimizer: keras.Optimizer, model: keras.Model
) -> keras.Optimizer:
    """Keeps the strides of a model out of an optimizer's weight decay.

    Decay pulls every stride down, whatever the gradient says. Exclusions made
    before stay. As in Keras they are not saved: call this again on an optimizer
    that was loaded.

    Args:
        optimizer: any optimizer, with or without weight decay.
        model: a built model.

    Returns:
        The same optimizer.

    Raises:
        ValueError: if the model is not built.

    Example:

    >>> optimizer = keras.optimizers.AdamW(1e-3, weight_decay=0.05)
    >>> diffstride.exclude_strides_from_weight_decay(optimizer, model)
    >>> model.compile(optimizer, "mse")
    """
    if not model.built:
        raise ValueError(
            f"{model.name} must be built, as its strides are weights. Call it "
            "on data first, or `build` it."
        )
    for layer in _layers(model):
        variable = layer.stride_weights
        exclude_from_weight_decay(optimizer_of(optimizer, variable), variable)
    # A step that was traced before would go on with the decay.
    model.train_function = None
    return optimizer


def strides_apart(
    optimizer: keras.Optimizer, of_strides: keras.Optimizer
) -> keras.Optimizer:
    """Gives strides an optimizer of their own.

    Args:
        optimizer: of all other weights.
        of_strides: of the strides of this package's layers.

    Returns:
        A `keras.optimizers.MultiOptimizer`.

    Raises:
        ValueError: if Keras has none yet.
    """
    if not hasattr(keras.optimizers, "MultiOptimizer"):
        raise ValueError(
            "An optimizer of the strides alone needs a Keras that has "
            "`keras.optimizers.MultiOptimizer`: pip install --upgrade keras. "
            f"Received: Keras {keras.__version__}"
        )
    return keras.optimizers.MultiOptimizer(
        keras.optimizers.OptimizerMap(optimizer, {".*/strides": of_strides})
    )


def optimizer_findings(model: keras.Model) -> list[str]:
    """Returns what the optimizer of a model does to strides, and the cure."""
    optimizer = getattr(model, "optimizer", None)
    decayed, undone = [], []
    for layer in _layers(model):
        if optimizer is None or not layer.stride_weights.trainable:
            continue
        own = optimizer_of(optimizer, layer.stride_weights)
        if uses_weight_decay(own, layer.stride_weights):
            decayed.append(layer.path)
        if layer.stride_lr_multiplier not in (0, 1) and _normalizes(own):
            undone.append(layer.path)
    findings = []
    if decayed:
        findings.append(
            "The optimizer's weight decay pulls these strides down, whatever "
            f"the gradient says: {', '.join(decayed)}. Call `diffstride."
            "exclude_strides_from_weight_decay(optimizer, model)` before `fit`."
        )
    if undone:
        findings.append(
            "`stride_lr_multiplier` scales gradients, which the optimizer "
            f"undoes by normalising them: {', '.join(undone)}. Use SGD, or "
            "`keras.optimizers.MultiOptimizer` with one for the strides."
        )
    return findings


def gradient_factor(optimizer: Any, layer: Any) -> float:
    """Returns what an optimizer's steps have multiplied a stride's gradient by.

    0 stands for strides that are not trained.
    """
    if not layer.stride_weights.trainable or not layer.stride_lr_multiplier:
        return 0.0
    if optimizer is not None and _normalizes(
        optimizer_of(optimizer, layer.stride_weights)
    ):
        return 1.0
    return layer.stride_lr_multiplier


def warn_of_normalized_gradients(optimizer: Any, layers: Sequence[Any]) -> None:
    """Warns where the gradients of strides cannot be compared any more."""
    if optimizer is None:
        return
    normalized = [
        layer.path
        for layer in layers
        if gradient_factor(optimizer, layer)
        and _normalizes(optimizer_of(optimizer, layer.stride_weights))
    ]
    if normalized:
        warnings.warn(
            "A budget compares the gradients of strides, which the optimizer "
            f"makes equally large: {', '.join(normalized)}. Use SGD for them, "
            "by `keras.optimizers.MultiOptimizer` or, in a config, "
            "`train.stride_optimizer_cls`.",
            stacklevel=1,
        )


def warn_of_optimizer(model: keras.Model) -> None:
    """Warns of what `optimizer_findings` finds."""
    for finding in optimizer_findings(model):
        warnings.warn(finding, stacklevel=1)  # Python tells each text once.


def _normalizes(optimizer: Any) -> bool:
    """Whether the size of a gradient is lost in an optimizer's steps."""
    return not isinstance(optimizer, keras.optimizers.SGD)


def _layers(model: keras.Model) -> list[Any]:
    return [
        layer for layer in sublayers(model) if hasattr(layer, "stride_weights")
    ]
