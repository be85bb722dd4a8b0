"""Models made of others: with constant strides, to deploy."""

import pathlib
import tempfile
import warnings
from collections.abc import Mapping
from typing import Any

import keras

from diffstride.internals import sublayers
from diffstride.static import learned_layers


def freeze(model: keras.Model) -> keras.Model:
    """Makes a model with constant strides, to deploy or to fine-tune.

    Its DiffStride layers have `frozen=True`: sizes and matrices are constants,
    static shapes are known, strides are no longer trained. The result is a
    Keras model like any other: it compiles on every backend, saves, loads and
    exports.

    Args:
        model: a built model. It is made again of its config, so that a layer
            with DiffStride layers inside must have these in its own, as Keras's
            wrappers do and `keras.saving.serialize_keras_object` makes them.

    Returns:
        A new model of the same outputs, not compiled. The weights are copied.

    Raises:
        ValueError: if the model is not built, or if DiffStride layers are
            where they cannot be reached.
    """
    if not model.built:
        raise ValueError(
            f"`freeze` needs a built model: its strides are weights. Call "
            f"{model.name} on data first, or `build` it."
        )
    copy = rebuilt(model)
    for layer, learned in zip(
        learned_layers(copy), learned_layers(model), strict=True
    ):
        copy_weights(learned, layer)
        layer.freeze()
    frozen = rebuilt(copy)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.weights.h5"
        model.save_weights(path)
        frozen.load_weights(path)
    for layer in learned_layers(frozen):
        if not layer.frozen:
            raise ValueError(
                f"`freeze` cannot reach {layer.path}: the layer around it does "
                "not have it in its config. Let that layer's `get_config` "
                "return it, by `keras.saving.serialize_keras_object`, and its "
                "`from_config` take it from there (`frozen_config` is gone)."
            )
    return frozen


def copy_weights(source: keras.layers.Layer, copy: keras.layers.Layer) -> None:
    """Copies the weights that are a layer's own, not those of its parts."""
    store: dict = {}
    source.save_own_variables(store)
    # Two variables of JAX could share an array, which a step of one deletes.
    copy.load_own_variables(keras.tree.map_structure(keras.ops.copy, store))


def rebuilt(
    layer: keras.layers.Layer,
    caller: str = "freeze",
    changes: Mapping[str, Any] | None = None,
    build: bool = True,
) -> Any:
    """A model or layer made again of its config, with new weights.

    Args:
        layer: the model or layer.
        caller: the public function that an error speaks of.
        changes: arguments that are other than in the config.
        build: whether to build it as it was.
    """
    try:
        with warnings.catch_warnings():
            # Keras warns of lambdas, which stay in this process here.
            warnings.simplefilter("ignore", UserWarning)
            config = keras.saving.serialize_keras_object(layer)
        config.pop("compile_config", None)
        if not build:
            config.pop("build_config", None)
        config["config"].update(changes or {})
        with keras.saving.custom_object_scope(_unregistered(layer, caller)):
            return keras.saving.deserialize_keras_object(
                config, safe_mode=False
            )
    except (NotImplementedError, TypeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(
            f"`{caller}` cannot reach the layers of {layer.name}: it makes a "
            "model again of its config, as `keras.models.load_model` does. "
            "Classes of your own need a `get_config` that returns what their "
            "`__init__` takes, and functions of your own "
            "`keras.saving.register_keras_serializable`. Keras says: "
            f"{reason}"
        ) from error


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


def no_graph(caller: str, model: keras.Model) -> ValueError:
    """Returns the error for a model whose calls cannot be seen."""
    return ValueError(
        f"`{caller}` needs functional or sequential models, whose calls can be "
        f"seen. Received: {model.name}, a {type(model).__name__}. Make one of "
        "it: `inputs = keras.Input(shape)`, then `keras.Model(inputs, "
        "model.call(inputs))`"
    )


def _unregistered(model: keras.layers.Layer, caller: str) -> dict[str, type]:
    """Classes in a model that Keras would not find by their names."""
    classes: dict[str, type] = {}
    for layer in sublayers(model):
        cls = type(layer)
        name = cls.__name__
        own = cls.__module__.split(".")[0] != "keras"
        if not own or keras.saving.get_registered_name(cls) != name:
            continue
        if classes.setdefault(name, cls) is not cls:
            raise ValueError(
                f"`{caller}` cannot tell two classes named {name} apart: "
                f"{cls.__module__} and {classes[name].__module__} have one. "
                "Register them with `keras.saving.register_keras_serializable`."
            )
    return classes
