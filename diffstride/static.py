"""Output sizes for compilers: known for a step, constant, or refused.

The size of a map behind a learned stride changes while training goes on, which
no compiler takes. `static_sizes` therefore reads the strides before each step,
keeps the sizes for its length, and compiles another step only where one of them
has changed. All that the layers have to know of compilers is here.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from diffstride.internals import in_symbolic_scope, in_xla, sublayers
from diffstride.optimization import warn_of_optimizer

_KINDS = ("train", "test", "predict")


@dataclasses.dataclass
class CachedStrides:
    """Strides of a layer, as numbers, for as long as one step is traced.

    Attributes:
        strides: array of the shape of the stride variable.
        sizes: filled in by the layer; for each tuple of input sizes that it
            met, its output sizes.
    """

    strides: np.ndarray
    sizes: dict[tuple, tuple]


class LearnedSizes:
    """Mixin of a layer whose output sizes depend on a variable.

    The layer has `stride_weights`, `initial_strides`, `cropping`, `frozen` and
    `output_sizes(sizes, strides)`, as `BaseDiffStride` does.
    """

    # What `static_sizes` knows of the strides while a step is traced.
    cached: CachedStrides | None = None

    def compiles(self) -> bool:
        """Tells whether Keras may compile this layer without `static_sizes`.

        Keras turns XLA on by itself where no layer objects. On JAX it has
        nothing else to offer; there, `known_output_sizes` says what to do.
        """
        return (
            self.frozen or not self.cropping or keras.backend.backend() == "jax"
        )

    def known_output_sizes(
        self, inputs: Any, sizes: tuple
    ) -> tuple[int, ...] | None:
        """Returns the output sizes as integers, `None` where they are dynamic.

        Args:
            inputs: input of the layer.
            sizes: its spatial sizes.

        Raises:
            NotImplementedError: in a compiled function without `static_sizes`.
            ValueError: if `static_sizes` meets an input of unknown size.
        """
        strides = self._known_strides()
        if strides is not None and all(isinstance(n, int) for n in sizes):
            output_sizes = self.output_sizes(sizes, strides)
            if self.cached is not None:
                self.cached.sizes[sizes] = output_sizes
            return output_sizes
        if not self.cropping:
            return None
        refuse_unknown_sizes(self.name, inputs)
        if self.frozen:
            return None  # XLA finds the sizes: they follow from the input's.
        if self.cached is not None:
            raise ValueError(
                f"`static_sizes` needs inputs of known size at {self.name}. "
                f"Received: an input of shape {tuple(inputs.shape)}. Give the "
                "size in `keras.Input`, or to the data set that is trained on."
            )
        backend = keras.backend.backend()
        exporting = backend == "torch" and strides is None
        if backend == "jax" or exporting or in_xla(inputs):
            raise NotImplementedError(
                f"{self.name} was called inside of a compiled function (XLA, "
                "`jax.jit` or `torch.export`), where the size of its output "
                "must be known, while it depends on a learned stride. Call "
                "`diffstride.static_sizes(model)` before training, or "
                "`diffstride.freeze(model)` after it."
            )
        return None

    def _known_strides(self) -> np.ndarray | None:
        """Strides as an array, or `None` where they are known later."""
        if self.frozen:
            return self.initial_strides
        if self.cached is not None:
            return self.cached.strides
        # Under an eager `jax.grad` a tracer covers the value.
        for uncover in (lambda variable: variable, keras.ops.stop_gradient):
            # A RuntimeError is what `torch.export` gives.
            errors = (TypeError, NotImplementedError, RuntimeError)
            with contextlib.suppress(*errors):
                return keras.ops.convert_to_numpy(
                    uncover(self.stride_weights.value)
                )
        if keras.backend.backend() == "jax" and in_symbolic_scope():
            # Keras builds what follows. Layers say `None` in advance for sizes
            # that are learned; here a number is needed, and any will do.
            return self.initial_strides
        return None


def refuse_unknown_sizes(name: str, inputs: Any) -> None:
    """Raises if JAX does not know an input's size, as in `model.export`."""
    shape = tuple(inputs.shape)
    if keras.backend.backend() == "jax" and not all(
        isinstance(size, int) for size in shape[1:]
    ):
        raise NotImplementedError(
            f"{name} was called on an input of unknown size, from which JAX "
            "cannot tell the size of its output. Give the size in "
            f"`keras.Input`. Received: an input of shape {shape}"
        )


class StaticSizes:
    """Mixin of a `keras.Model`: its steps know all sizes, on JAX by default.

    `static_sizes(model, enabled)` switches it.
    """

    static_sizes = keras.backend.backend() == "jax"

    def make_train_function(self, force: bool = False) -> Any:
        """Makes the function that `fit` calls for each step."""
        warn_of_optimizer(self)
        return self._make("train", super().make_train_function, force)

    def make_test_function(self, force: bool = False) -> Any:
        """Makes the function that `evaluate` calls for each step."""
        return self._make("test", super().make_test_function, force)

    def make_predict_function(self, force: bool = False) -> Any:
        """Makes the function that `predict` calls for each step."""
        return self._make("predict", super().make_predict_function, force)

    def _make(self, kind: str, original: Callable, force: bool) -> Any:
        if not self.static_sizes or all(
            layer.frozen for layer in learned_layers(self)
        ):
            return original(force=force)
        return _make_step(self, kind, original, force)


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

    Inputs may differ in size from batch to batch: the step is compiled again
    for each size that is new.

    Raises:
        ValueError: during `fit`, `evaluate` or `predict`, if the model was
            compiled with `steps_per_execution` other than 1 (strides may
            change between steps).

    Example:

    >>> model = diffstride.static_sizes(model)
    >>> model.compile("sgd", "mse", jit_compile=True)
    >>> model.fit(images, labels)
    """
    if keras.backend.backend() == "torch":
        return model
    for kind in _KINDS:
        setattr(model, f"{kind}_function", None)
    if isinstance(model, StaticSizes):
        model.static_sizes = enabled
    else:
        _override(model, enabled)
    for layer in learned_layers(model):
        layer.supports_jit = enabled or layer.compiles()
    return model


class Retracer:
    """A compiled function for each combination of output sizes.

    What `static_sizes` uses, for training loops of one's own.

    Args:
        layers: the DiffStride layers that the function calls.
        make: called without arguments, returns a new compiled function, such as
            `lambda: jax.jit(step)`.

    Attributes:
        compiled: number of functions made.

    Example:

    >>> step = Retracer(layers, lambda: jax.jit(loss))
    >>> step(strides, weights, images)
    """

    def __init__(
        self, layers: Sequence[LearnedSizes], make: Callable[[], Callable]
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
            layer.cached = CachedStrides(value, sizes)
        try:
            with _traced_apart(compiled):
                return compiled.function(*args)
        except Exception as error:
            add_note_on_sizes(
                error,
                [
                    (layer.path or layer.name, output)
                    for layer, sizes in zip(
                        self.layers, compiled.sizes, strict=True
                    )
                    for output in sizes.values()
                ],
            )
            raise
        finally:
            for layer in self.layers:
                layer.cached = None

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


class _Step:
    """A step of `fit` or its like that knows all sizes.

    Args:
        model: the model.
        name: attribute of the model that holds this step.
        make: makes Keras's own step and puts it there.
    """

    def __init__(self, model: keras.Model, name: str, make: Callable):
        self._model = model
        self._name = name
        self._make = make
        self.layers = learned_layers(model)
        # One for each size of the inputs, where Keras has TensorFlow generalise
        # a function from the sizes that it met.
        self.retracers: dict[Any, Retracer] = {}

    def __call__(self, *args: Any) -> Any:
        strides = [_value(self._model, layer, args) for layer in self.layers]
        sizes = None
        if keras.backend.backend() == "tensorflow":
            args, sizes = _batch_at_hand(*args)
        if sizes not in self.retracers:
            self.retracers[sizes] = Retracer(self.layers, self._compiled)
        return self.retracers[sizes](strides, *args)

    @property
    def compiled(self) -> int:
        """Number of functions made."""
        return sum(each.compiled for each in self.retracers.values())

    def _compiled(self) -> Callable:
        with _undistributed():
            self._make(force=True)
        function = getattr(self._model, self._name)
        setattr(self._model, self._name, self)
        return function


@contextlib.contextmanager
def _undistributed() -> Iterator[None]:
    """Lets a step be made anew in the middle of `fit` by several processes.

    Keras would have it give the shardings of variables, whose values are in the
    step's argument then. Without them JAX keeps those of the argument.
    """
    distribution = keras.distribution.distribution()
    keras.distribution.set_distribution(None)
    try:
        yield
    finally:
        keras.distribution.set_distribution(distribution)


def _batch_at_hand(data: Any) -> tuple[tuple, Any]:
    """The argument of a step on TensorFlow, and the sizes in its batch.

    The step takes an iterator, which may not know the sizes of what comes next:
    then the batch is taken from it and stands in its place.
    """
    if not hasattr(data, "element_spec"):
        batch = data = list(data)  # Batches, or a generator of one.
    else:
        batch = data.element_spec
    sizes = _sizes(batch)
    if any(None in each for each in sizes):
        data = [next(data)]
        sizes = _sizes(data)
    return (data,), sizes


def _sizes(batch: Any) -> tuple:
    """Sizes of all axes but the first of all that is in a batch."""
    shapes = [
        each.shape
        for each in keras.tree.flatten(batch)
        if hasattr(each, "shape")
    ]
    return tuple(
        (None,) if getattr(shape, "rank", 0) is None else tuple(shape[1:])
        for shape in shapes
    )


def add_note_on_sizes(
    error: Exception, outputs: Sequence[tuple[str, Any]]
) -> None:
    """Adds to an error what learned layers gave before it, by their names.

    Keras tells no layer what its output is joined with, so that the error of
    branches whose sizes have parted is the backend's.
    """
    if len(outputs) > 1:
        sizes = ", ".join(f"{name} gave {output}" for name, output in outputs)
        error.add_note(
            "Branches that are joined need one shared DiffStride layer. "
            f"Before this error: {sizes}"
        )


def learned_layers(layer: keras.Operation) -> list[LearnedSizes]:
    """Returns the layers in a model or layer whose sizes are learned."""
    if not isinstance(layer, keras.layers.Layer):
        return []  # An operation such as `keras.ops.square`.
    return [each for each in sublayers(layer) if isinstance(each, LearnedSizes)]


def _override(model: keras.Model, enabled: bool) -> None:
    """Does to a model of a foreign class what `StaticSizes` does.

    Keras looks these methods up on the model, and its class is not ours.
    """
    for kind in _KINDS:
        name = f"make_{kind}_function"
        original = functools.partial(getattr(type(model), name), model)
        if enabled:
            make = functools.partial(_make_step, model, kind, original)
            setattr(model, name, make)
        elif name in vars(model):
            delattr(model, name)


def _make_step(
    model: keras.Model, kind: str, original: Callable, force: bool = False
) -> Any:
    """Makes a function for the steps of `kind`, as `original` does."""
    name = f"{kind}_function"
    if kind == "train":
        warn_of_optimizer(model)
    if getattr(model, name) is None or force:
        if model.steps_per_execution != 1:
            raise ValueError(
                "`steps_per_execution` must be 1 with `static_sizes`, as sizes "
                "may change from step to step. Received: steps_per_execution="
                f"{model.steps_per_execution}"
            )
        setattr(model, name, _Step(model, name, original))
    return getattr(model, name)


@functools.cache
def _jax_context() -> Callable:
    import jax

    return jax.make_user_context()


def _traced_apart(compiled: _Compiled) -> contextlib.AbstractContextManager:
    """Makes JAX trace anew where it would find a function traced before.

    It goes by the function and its arguments, and knows nothing of sizes.
    """
    if keras.backend.backend() == "jax":
        return _jax_context()(compiled)
    return contextlib.nullcontext()


def _value(model: keras.Model, layer: LearnedSizes, args: tuple) -> np.ndarray:
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
