"""Models made of others: with constant strides, to deploy."""

import pathlib
import tempfile

import keras

from diffstride.static import _learned


def freeze(model: keras.Model) -> keras.Model:
    """Makes a model with constant strides, to deploy or to fine-tune.

    Its DiffStride layers have `frozen=True`: sizes and matrices are constants,
    static shapes are known, strides are no longer trained. The result is a
    Keras model like any other: it compiles on every backend, saves, loads and
    exports.

    Args:
        model: a built model: functional, sequential, or from
            `diffstride.resnet`, or made of these. Other models and layers that
            have DiffStride layers inside need a method `frozen_config`, which
            returns their config with these layers frozen.

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
    frozen = _frozen(model)
    if not frozen.built:
        frozen.build_from_config(model.get_build_config())
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.weights.h5"
        model.save_weights(path)
        frozen.load_weights(path)
    return frozen


def _frozen(layer: keras.layers.Layer) -> keras.layers.Layer:
    if hasattr(layer, "frozen_config"):
        return type(layer).from_config(layer.frozen_config())
    if isinstance(layer, keras.Sequential) or hasattr(layer, "operations"):
        # Keras would compile the clone, too, through a config of its loss.
        compiled, layer.compiled = layer.compiled, False
        try:
            return keras.models.clone_model(layer, clone_function=_frozen)
        finally:
            layer.compiled = compiled
    for inner in _learned(layer):
        raise ValueError(
            f"`freeze` cannot reach {inner.path}, inside of {layer.name}, a "
            f"{type(layer).__name__}. Give that class a method "
            "`frozen_config()` that returns its config with this layer frozen."
        )
    return type(layer).from_config(layer.get_config())
