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


def train_writer(callback: keras.callbacks.TensorBoard) -> Any:
    """Returns what Keras's callback writes the summaries of training with."""
    return callback._train_writer


def open_writers(callback: keras.callbacks.TensorBoard) -> list[Any]:
    """Returns all writers that Keras's callback has opened until now."""
    return list(callback._writers.values())
