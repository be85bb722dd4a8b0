"""All that is private in Keras and TensorFlow and that this package relies on.

Each function uses one private name. `tests/test_internals.py` fails when one of
them disappears, and says what to do.
"""

from collections.abc import Iterator
from typing import Any

import keras
from keras.src.backend.common import symbolic_scope


def in_symbolic_scope() -> bool:
    """Tells whether Keras is running a layer to learn the shape it returns."""
    return symbolic_scope.in_symbolic_scope()


def sublayers(layer: keras.layers.Layer) -> Iterator[keras.layers.Layer]:
    """Returns a layer and all layers in it, at any depth, in their order."""
    return layer._flatten_layers()


def in_xla(tensor: Any) -> bool:
    """Tells whether XLA is about to compile a symbolic tensor of TensorFlow.

    TensorFlow itself says so only once compilation has failed.
    """
    graph = getattr(tensor, "graph", None)
    while hasattr(graph, "_get_control_flow_context"):
        context = graph._get_control_flow_context()
        while context is not None:
            if context.IsXLAContext():
                return True
            context = context.outer_context
        graph = getattr(graph, "outer_graph", None)
    return False


def optimizer_of(optimizer: Any, variable: Any) -> Any:
    """Returns what updates a variable, inside of optimizers that wrap."""
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    choose = getattr(optimizer, "_optimizer_map", None)
    return optimizer if choose is None else choose(variable)


def uses_weight_decay(optimizer: Any, variable: Any) -> bool:
    """Tells whether an optimizer, one that does not wrap, decays a variable."""
    # Muon has a decay of its own for vectors.
    decay = getattr(optimizer, "adam_weight_decay", optimizer.weight_decay)
    return bool(decay) and optimizer._use_weight_decay(variable)


def exclude_from_weight_decay(optimizer: Any, variable: Any) -> None:
    """Excludes a variable as Keras does, which forgets what was excluded."""
    before = getattr(optimizer, "_exclude_from_weight_decay", set())
    names = getattr(optimizer, "_exclude_from_weight_decay_pattern", None)
    optimizer.exclude_from_weight_decay(
        var_list=[variable], var_names=names and [names.pattern]
    )
    optimizer._exclude_from_weight_decay.update(before)


def train_writer(callback: keras.callbacks.TensorBoard) -> Any:
    """Returns what Keras's callback writes the summaries of training with."""
    return callback._train_writer


def open_writers(callback: keras.callbacks.TensorBoard) -> list[Any]:
    """Returns all writers that Keras's callback has opened until now."""
    return list(callback._writers.values())


def graph_calls(model: keras.Model) -> Iterator[tuple]:
    """Yields what a functional model calls, in the order in which it does.

    Each as `(operation, args, kwargs, outputs)`, with the symbolic tensors of
    the model in arguments and outputs; inputs are not among them.
    """
    for _, nodes in sorted(model._nodes_by_depth.items(), reverse=True):
        for node in nodes:
            if not node.is_input:
                args, kwargs = node.arguments.args, node.arguments.kwargs
                yield node.operation, args, kwargs, node.outputs
