"""Output sizes as Python integers: for XLA, for JAX, and for deployment.

The size of a map behind a learned stride changes while training goes on, which
no compiler takes. `static_sizes` therefore holds the sizes for the length of a
step, and compiles another step only where one of them has changed.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from diffstride.pooling import BaseDiffStride, HeldStrides

_KINDS = ("train", "test", "predict")


def static_sizes(model: keras.Model, enabled: bool = True) -> keras.Model:
    """Lets `fit`, `evaluate` and `predict` know all sizes before each step.

    Needed on JAX, which compiles everything, and for `jit_compile=True` on
    TensorFlow. Before each step the strides are read, and the sizes of all maps
    follow as Python integers. A function is traced and compiled once for each
    combination of sizes that occurs; steps whose sizes occurred before use it
    again. Nothing is rounded or bounded: the results are those of the dynamic
    sizes.

    By default sizes are dynamic on TensorFlow, where nothing is ever traced
    again, and on torch, which runs eagerly and needs none of this (the call has
    no effect there). A `diffstride.resnet.Resnet` on JAX is static by itself.

    Args:
        model: any model that holds DiffStride layers. Call this before
            `compile`, as Keras decides there whether to use XLA. The setting
            is not saved with the model.
        enabled: `False` makes sizes dynamic again.

    Returns:
        The same model.

    Raises:
        ValueError: during `fit`, `evaluate` or `predict`, if the model was
            compiled with `steps_per_execution` other than 1 (strides may
            change between steps), or if the size of its input is unknown.

    Example:

    >>> model = diffstride.static_sizes(model)
    >>> model.compile("sgd", "mse", jit_compile=True)
    >>> model.fit(images, labels)
    """
    if keras.backend.backend() == "torch":
        return model
    for kind in _KINDS:
        name = f"make_{kind}_function"
        if enabled:
            setattr(model, name, functools.partial(_make, model, kind))
        elif name in vars(model):
            delattr(model, name)
        setattr(model, f"{kind}_function", None)
    for layer in _learned(model):
        dynamic = keras.backend.backend() == "tensorflow" and layer.cropping
        layer.supports_jit = enabled or not dynamic
    return model


class Retracer:
    """A compiled function for each combination of output sizes.

    What `static_sizes` uses, for training loops of one's own.

    Args:
        layers: the DiffStride layers that the function calls.
        make: called without arguments, returns a new compiled function, such as
            `lambda: jax.jit(step)` with a `step` that was not traced before.

    Attributes:
        compiled: number of functions made.

    Example:

    >>> step = Retracer(layers, lambda: jax.jit(lambda *args: loss(*args)))
    >>> step(strides, weights, images)
    """

    def __init__(
        self, layers: Sequence[BaseDiffStride], make: Callable[[], Callable]
    ):
        self.layers = list(layers)
        self._make = make
        self._functions: list[_Compiled] = []

    def __call__(self, strides: Sequence[np.ndarray], *args: Any) -> Any:
        """Calls the function that fits the strides.

        Args:
            strides: for each layer the value of its stride variable.
            *args: arguments of the function.

        Returns:
            What the function returns.
        """
        compiled = self._find(strides)
        for layer, value, sizes in zip(
            self.layers, strides, compiled.sizes, strict=True
        ):
            layer.held = HeldStrides(value, sizes)
        try:
            return compiled.function(*args)
        finally:
            for layer in self.layers:
                layer.held = None

    @property
    def compiled(self) -> int:
        """Number of functions made."""
        return len(self._functions)

    def _find(self, strides: Sequence[np.ndarray]) -> "_Compiled":
        for place, compiled in enumerate(self._functions):
            if compiled.fits(self.layers, strides):
                # Strides move slowly: the next step most likely fits, too.
                self._functions.insert(0, self._functions.pop(place))
                return compiled
        compiled = _Compiled(self._make(), len(self.layers))
        self._functions.insert(0, compiled)
        return compiled


class _Compiled:
    """A compiled function, and the sizes for which it was traced."""

    def __init__(self, function: Callable, num_layers: int):
        self.function = function
        self.sizes: list[dict] = [{} for _ in range(num_layers)]

    def fits(self, layers: Sequence, strides: Sequence[np.ndarray]) -> bool:
        """Whether all layers would come to the same sizes again."""
        return all(
            layer.output_sizes(inputs, value) == outputs
            for layer, value, sizes in zip(
                layers, strides, self.sizes, strict=True
            )
            for inputs, outputs in sizes.items()
        )


def _make(model: keras.Model, kind: str, force: bool = False) -> Callable:
    """Stands in for `make_train_function` and its like."""
    name = f"{kind}_function"
    if getattr(model, name) is not None and not force:
        return getattr(model, name)
    if model.steps_per_execution != 1:
        raise ValueError(
            "`steps_per_execution` must be 1 with `static_sizes`, as sizes may "
            "change from step to step. Received: steps_per_execution="
            f"{model.steps_per_execution}"
        )
    original = getattr(type(model), f"make_{kind}_function")

    def make() -> Callable:
        one_step = getattr(model, f"{kind}_step")
        # A new function each time: JAX goes by the function when it looks for
        # what was traced before, with whatever sizes.
        setattr(model, f"{kind}_step", lambda *args: one_step(*args))
        try:
            original(model, force=True)
        finally:
            delattr(model, f"{kind}_step")
        function = getattr(model, name)
        setattr(model, name, step)
        return function

    layers = _learned(model)
    retracer = Retracer(layers, make)

    def step(*args: Any) -> Any:
        strides = [_value(model, layer, args) for layer in layers]
        return retracer(strides, *args)

    step.retracer = retracer
    setattr(model, name, step)
    return step


def _value(
    model: keras.Model, layer: BaseDiffStride, args: tuple
) -> np.ndarray:
    """The strides of a layer before a step of `fit` or its like."""
    if not layer.built:
        return layer.initial_strides
    if keras.backend.backend() != "jax":
        return keras.ops.convert_to_numpy(layer.stride_weights)
    # During `fit` on JAX values are in the first argument, not in the model.
    (trainable, non_trainable, *_), *_ = args
    for kept, values in (
        (model.trainable_variables, trainable),
        (model.non_trainable_variables, non_trainable),
    ):
        for variable, value in zip(kept, values, strict=True):
            if variable is layer.stride_weights:
                return np.asarray(value)
    raise ValueError(
        f"{layer.path} is not among the layers that {model.name} was compiled "
        "with. Call `compile` again."
    )


def _learned(model: keras.Operation) -> list[BaseDiffStride]:
    if not isinstance(model, keras.layers.Layer):
        return []  # An operation such as `keras.ops.square`.
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, BaseDiffStride)
    ]
