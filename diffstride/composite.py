"""Layers made of others, in configs: their poolings, and changed parts."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras

from diffstride import arguments
from diffstride.internals import sublayers


class _Saved:
    """A pooling factory: makes the layers that were saved, in their order.

    `pooling_cls` may be any callable, such as a partial or a class configured
    elsewhere, of which a saved model could not tell what it makes. The layers
    themselves stand in its place in a config.
    """

    def __init__(self, configs: Sequence[dict], learned: bool = True):
        self._configs = itertools.cycle(configs)
        self._learned = learned

    def __call__(self, **decided: Any) -> keras.layers.Layer:
        saved = next(self._configs)
        config = saved["config"]
        if self._learned and config.get("frozen"):
            decided.pop("strides")
        decided = {key: decided[key] for key in decided if key in config}
        return keras.saving.deserialize_keras_object(
            {**saved, "config": {**config, **decided}, "build_config": None}
        )


def pooling_factory(pooling_cls: Any) -> Callable | None:
    """What makes pooling layers, from an argument or from its saved form."""
    made = isinstance(pooling_cls, keras.layers.Layer)
    if pooling_cls is None or callable(pooling_cls) and not made:
        return pooling_cls
    # Of version 0.1: one for all.
    old = isinstance(pooling_cls, dict)
    saved = [pooling_cls] if old else pooling_cls
    if (
        not isinstance(saved, (list, tuple))
        or not saved
        or not all(isinstance(x, dict) and "config" in x for x in saved)
    ):
        expected = "None, a layer class, or a callable that makes layers"
        raise arguments.refusal("pooling_cls", expected, pooling_cls)
    return _Saved(saved, learned=not old)


def saved_pooling(layer: Any) -> list[dict] | None:
    """Saved form of `pooling_cls`, of a layer or model that has made layers."""
    if layer.pooling_cls is None:
        return None
    return [
        keras.saving.serialize_keras_object(pooling)
        for pooling in layer.pooling_layers
    ]


def network_config(model: Any) -> dict[str, Any]:
    """What the configs of all networks have."""
    activation = model.output_activation
    if callable(activation):
        activation = keras.activations.serialize(activation)
    return {
        "name": model.name,
        "trainable": model.trainable,
        "dtype": keras.dtype_policies.serialize(model.dtype_policy),
        "filters": model.filters,
        "strides": model.strides,
        "num_output_classes": model.num_output_classes,
        "output_activation": activation,
        "channels_first": model.channels_first,
        "pooling_cls": saved_pooling(model),
        "weight_decay": model.weight_decay,
        "pooling_placement": model.pooling_placement,
        **model.changed_config(),
    }


class Composite:
    """Mixin of what makes its parts itself: a config has what became of them.

    Dtype policies, as `quantize` sets them, and whether a part is trained stand
    in the config under `changed_parts`, where they are not as made.
    """

    @classmethod
    def from_config(cls, config: dict, custom_objects: Any = None) -> Any:
        """Makes the layer or network of what `get_config` returned."""
        config = dict(config)
        changed = config.pop("changed_parts", {})
        made = cls(**config)
        for place, part in enumerate(_parts_of(made)):
            for name, value in changed.get(str(place), {}).items():
                value = keras.saving.deserialize_keras_object(value)
                setattr(part, name, value)
        return made

    def changed_config(self) -> dict:
        """Returns what a config has to say of parts that were changed."""
        as_made = {
            "dtype_policy": keras.dtype_policies.serialize(self.dtype_policy),
            "trainable": True,
            "quantization_config": None,
        }
        changed = {}
        for place, part in enumerate(_parts_of(self)):
            for name, made in as_made.items():
                value = getattr(part, name, None)
                value = keras.saving.serialize_keras_object(value)
                if value != made:
                    changed.setdefault(str(place), {})[name] = value
        return {"changed_parts": changed} if changed else {}


def _parts_of(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    others = (keras.layers.InputLayer, keras.Model)
    parts = (part for part in sublayers(layer) if part is not layer)
    return [part for part in parts if not isinstance(part, others)]
