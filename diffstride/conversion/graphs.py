"""Graphs of models: walked call by call, and made again with other calls."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride.internals import graph_calls, sublayers
from diffstride.surgery import rebuilt

Part = Callable[[Any], Any]


def is_graph(operation: Any) -> bool:
    """Tells whether an operation is a model whose calls can be walked."""
    # A class with a `call` of its own need not call what is in its graph.
    return (
        isinstance(operation, keras.Model)
        and type(operation).call.__module__.startswith("keras.")
        and operation.built
        and hasattr(operation, "inputs")
        and operation.inputs is not None
    )


def walk(model: keras.Model, inputs: Any, apply: Callable) -> Any:
    """Runs the graph of a model on inputs of any kind.

    Args:
        model: a functional or built sequential model.
        inputs: in the structure of the model's inputs.
        apply: `apply(operation, *args, **kwargs)` stands in for each call. What
            it returns is given to the calls that follow.

    Returns:
        What has come of the model's outputs, in their structure.
    """
    if isinstance(model, keras.Sequential):
        for layer in model.layers:
            inputs = apply(layer, inputs)
        return inputs
    values = dict(
        zip(map(id, model.inputs), keras.tree.flatten(inputs), strict=True)
    )

    def lookup(x: Any) -> Any:
        return values[id(x)] if isinstance(x, keras.KerasTensor) else x

    for operation, args, kwargs, outputs in graph_calls(model):
        args, kwargs = keras.tree.map_structure(lookup, (args, kwargs))
        given = keras.tree.flatten(apply(operation, *args, **kwargs))
        values.update(zip(map(id, outputs), given, strict=True))
    return keras.tree.map_structure(lookup, model.output)


class Rebuild:
    """Makes a model again, with other parts in the place of some layers.

    Layers keep names, weights, dtype policies, trainable flags, and whether
    they are called more than once; so do models inside of models.

    Args:
        replacements: for the identity of a layer what is called in its place,
            one after the other: layers, or functions of a symbolic tensor. A
            layer that is called on one tensor twice is called once.
        merged: for the identity of a layer that of one before it, which the
            replacement makes up for: it is given the input of that one.
        copies: for the identity of layers their copies, where these are among
            the replacements.
    """

    def __init__(
        self,
        replacements: dict[int, Sequence[Part]],
        merged: dict[int, int],
        copies: dict[int, keras.layers.Layer],
    ):
        self._replacements = replacements
        self._merged = merged
        self._made: dict[int, Any] = dict(copies)
        self._outputs: dict[tuple[int, int], Any] = {}
        # Of what each merged layer gave, that and what it was given.
        self._before: dict[tuple[int, int], Any] = {}

    def model(self, model: keras.Model) -> keras.Model:
        """Makes a model, with the weights of the one that is given."""
        made = self._container(model)
        pairs = [
            (source, self._made[id(source)])
            for source in sublayers(model)
            if id(source) in self._made
        ]
        # Models first: each sets the flags of all that is inside.
        pairs.sort(key=lambda pair: not is_graph(pair[0]))
        for source, copy in pairs:
            if is_graph(source):
                copy.trainable = source.trainable
                continue
            for old, new in zip(
                sublayers(source), sublayers(copy), strict=True
            ):
                new.trainable = old.trainable
            for old, new in zip(source.variables, copy.variables, strict=True):
                new.assign(keras.ops.copy(old))  # As in `copy_weights`.
        return made

    def _container(self, model: keras.Model) -> keras.Model:
        if id(model) not in self._made:
            sequential = isinstance(model, keras.Sequential)
            make = self._sequential if sequential else self._functional
            self._made[id(model)] = make(model)
        return self._made[id(model)]

    def _functional(self, model: keras.Model) -> keras.Model:
        inputs = keras.tree.map_structure(_new_input, model.input)
        outputs = walk(model, inputs, self._call)
        return keras.Model(inputs, outputs, name=model.name)

    def _sequential(self, model: keras.Sequential) -> keras.Model:
        dropped = {
            self._merged[id(layer)]
            for layer in model.layers
            if id(layer) in self._merged
        }
        parts: list = []
        for layer in model.layers:
            if id(layer) not in dropped:
                parts += self._replacements.get(id(layer)) or [
                    self._copy(layer)
                ]
        inputs = _new_input(model.inputs[0])
        if all(isinstance(part, keras.layers.Layer) for part in parts):
            return keras.Sequential([inputs, *parts], name=model.name)
        outputs = inputs
        for part in parts:
            outputs = part(outputs)
        return keras.Model(inputs, outputs, name=model.name)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        parts = self._replacements.get(id(operation))
        if parts is None:
            outputs = self._copy(operation)(*args, **kwargs)
            if id(operation) in self._merged.values():
                x = first_input(args, kwargs)
                self._before[id(operation), id(outputs)] = outputs, x
            return outputs
        x = first_input(args, kwargs)
        if id(operation) in self._merged:
            _, x = self._before[self._merged[id(operation)], id(x)]
        for part in parts:
            key = id(part), id(x)
            if key not in self._outputs:
                # With its input, which must live for its id to stand for it.
                self._outputs[key] = part(x), x
            x, _ = self._outputs[key]
        return x

    def _copy(self, operation: Any) -> Any:
        if is_graph(operation):
            return self._container(operation)
        if id(operation) not in self._made:
            self._made[id(operation)] = copied(operation)
        return self._made[id(operation)]


def copied(layer: keras.Operation, **changes: Any) -> Any:
    """A layer made again of its config, with other arguments; not built."""
    if not isinstance(layer, keras.layers.Layer):  # One of `keras.ops`.
        return type(layer).from_config(layer.get_config())
    return rebuilt(layer, "convert", changes, build=False)


def first_input(args: tuple, kwargs: dict) -> Any:
    """What a layer of one input is called on."""
    return args[0] if args else next(iter(kwargs.values()))


def _new_input(x: keras.KerasTensor) -> keras.KerasTensor:
    return keras.Input(
        batch_shape=x.shape, dtype=x.dtype, sparse=x.sparse, name=x.name
    )
