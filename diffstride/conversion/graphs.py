"""Graphs of models: walked call by call, and made again with other calls."""

from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride.internals import graph_calls, sublayers
from diffstride.surgery import is_graph, rebuilt

Part = Callable[[Any], Any]


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
        unknown: shapes of inputs of models inside whose sizes are not known
            once strides are learned, by the identity of the model and the
            number of the input.
    """

    def __init__(
        self,
        replacements: dict[int, Sequence[Part]],
        merged: dict[int, int],
        copies: dict[int, keras.layers.Layer],
        unknown: dict[tuple[int, int], tuple],
    ):
        self._replacements = replacements
        self._merged = merged
        self._unknown = unknown
        self._made: dict[int, Any] = dict(copies)
        self._outputs: dict[tuple[int, int], Any] = {}
        # Of what each merged layer gave, that and what it was given.
        self._before: dict[tuple[int, int], Any] = {}

    def model(self, model: keras.Model) -> keras.Model:
        """Makes a model, with the weights of the one that is given."""
        made = self._container(model, model.inputs)
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

    def _container(self, model: keras.Model, given: Any) -> keras.Model:
        """The model made again, for what it is called on first."""
        if id(model) not in self._made:
            pairs = zip(model.inputs, keras.tree.flatten(given), strict=True)
            inputs = [
                keras.Input(
                    batch_shape=self._unknown.get((id(model), number))
                    or _known(own, x),
                    dtype=own.dtype,
                    sparse=own.sparse,
                    name=own.name,
                )
                for number, (own, x) in enumerate(pairs)
            ]
            if isinstance(model, keras.Sequential):
                self._made[id(model)] = self._sequential(model, *inputs)
            else:
                inputs = keras.tree.pack_sequence_as(model.input, inputs)
                outputs = walk(model, inputs, self._call)
                made = keras.Model(inputs, outputs, name=model.name)
                self._made[id(model)] = made
        return self._made[id(model)]

    def _sequential(
        self, model: keras.Sequential, inputs: keras.KerasTensor
    ) -> keras.Model:
        dropped = {
            self._merged[id(layer)]
            for layer in model.layers
            if id(layer) in self._merged
        }
        parts: list = []
        outputs = inputs
        for layer in model.layers:
            if id(layer) in dropped:
                continue
            for part in self._replacements.get(id(layer)) or [
                self._copy(layer, outputs)
            ]:
                parts.append(part)
                with keras.name_scope(model.name):  # As Keras builds them.
                    outputs = part(outputs)
        if all(isinstance(part, keras.layers.Layer) for part in parts):
            # Of the same input: what layers have given stays part of it.
            return keras.Sequential([inputs, *parts], name=model.name)
        return keras.Model(inputs, outputs, name=model.name)

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        parts = self._replacements.get(id(operation))
        if parts is None:
            copy = self._copy(operation, first_input(args, kwargs))
            outputs = copy(*args, **kwargs)
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

    def _copy(self, operation: Any, given: Any) -> Any:
        if is_graph(operation):
            return self._container(operation, given)
        if id(operation) not in self._made:
            self._made[id(operation)] = copied(operation)
        return self._made[id(operation)]


def copied(layer: keras.Operation, **changes: Any) -> Any:
    """A layer made again of its config, with other arguments; not built."""
    if not isinstance(layer, keras.layers.Layer):  # One of `keras.ops`.
        return type(layer).from_config(layer.get_config())
    return rebuilt(layer, "convert", changes, build=False)


def _known(own: keras.KerasTensor, given: keras.KerasTensor) -> tuple:
    """The shape of what is given, where a model's own has a size."""
    pairs = zip(own.shape, given.shape, strict=True)
    return tuple(None if size is None else now for size, now in pairs)


def first_input(args: tuple, kwargs: dict) -> Any:
    """What a layer of one input is called on."""
    return args[0] if args else next(iter(kwargs.values()))
