"""Models made of others: with constant strides, to deploy."""

import pathlib
import tempfile

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
    copy = _rebuilt(model)
    for layer in learned_layers(copy):
        layer.freeze()
    frozen = _rebuilt(copy)
    for layer in learned_layers(frozen):
        if not layer.frozen:
            raise ValueError(
                f"`freeze` cannot reach {layer.path}: the layer around it does "
                "not have it in its config. Let that layer's `get_config` "
                "return it, by `keras.saving.serialize_keras_object`, and its "
                "`from_config` take it from there."
            )
    return frozen


def _rebuilt(model: keras.Model) -> keras.Model:
    """The model made again of its config, with the same weights."""
    classes = {type(layer).__name__: type(layer) for layer in sublayers(model)}
    try:
        with keras.saving.custom_object_scope(classes):
            copy = type(model).from_config(model.get_config())
    except (NotImplementedError, TypeError) as error:
        raise ValueError(
            f"`freeze` cannot reach the layers of {model.name}: it makes a "
            "model again of its config, as `keras.models.load_model` does. "
            f"Give {type(model).__name__} a `get_config` that returns what its "
            "`__init__` takes."
        ) from error
    if not copy.built:
        copy.build_from_config(model.get_build_config())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.weights.h5"
        model.save_weights(path)
        copy.load_weights(path)
    return copy
