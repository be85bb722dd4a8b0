"""Statistics of batch normalisation, measured again on data."""

import contextlib
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from diffstride import arguments
from diffstride.internals import sublayers
from diffstride.profiling import intercepted


def recalibrate(
    model: keras.Model,
    data: Any,
    batch_size: int = 32,
    steps: int | None = None,
) -> None:
    """Measures the moving statistics of batch normalisation again.

    What `convert` and `harden` put in the place of a layer gives maps of other
    means and variances than those that the network was trained with. This
    replaces the moving averages of each `BatchNormalization` layer, trained or
    not, by the averages of means and variances of the batches at hand, weighted
    by their number of examples. Only these layers compute as in training;
    dropout and augmentation stay off. No other weight changes, and the model
    need not be compiled.

    Args:
        model: a built model.
        data: images as `fit` takes them: an array, or a list or dictionary of
            arrays for several inputs; or batches: a `tf.data.Dataset`, a
            `keras.utils.PyDataset`, a torch `DataLoader`, a generator. Targets
            in batches are left out. A few hundred examples, of those that the
            model was trained on, are enough.
        batch_size: number of examples in a batch, for arrays. Large batches
            tell variances best.
        steps: number of batches to use; by default all of them.

    Raises:
        ValueError: if the model is not built, or has no batch normalisation; if
            there is no data.

    Example:

    >>> model, report = diffstride.convert(source)
    >>> diffstride.recalibrate(model, images[:1024])
    """
    arguments.integer("batch_size", batch_size)
    arguments.optional_integer("steps", steps)
    norms = _norms(model)
    with _averaging(norms) as seen:
        for batch in _batches(data, batch_size, steps):
            model(batch, training=False)
        if not seen:
            raise ValueError(
                "`data` must hold at least one batch. Received: "
                f"{type(data).__name__} without any"
            )


def _norms(model: keras.Model) -> list[keras.layers.BatchNormalization]:
    norms = [
        layer
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    if not norms or not all(layer.built for layer in norms):
        raise ValueError(
            "`recalibrate` needs a built model with `BatchNormalization` "
            f"layers. Received: {model.name}, with {len(norms)} of them"
            f"{', not built: call it on data first' if norms else ''}"
        )
    return norms


@contextlib.contextmanager
def _averaging(
    norms: list[keras.layers.BatchNormalization],
) -> Iterator[dict[int, int]]:
    """Has layers average the statistics of batches, inside the block.

    It yields the number of examples that each has seen, by its identity. After
    an error the layers are as they were.
    """
    seen: dict[int, int] = {}
    before = [(layer, *_state(layer)) for layer in norms]

    def averaged(
        layer: Any, call: Callable, inputs: Any, *args: Any, **kwargs: Any
    ) -> Any:
        number = int(inputs.shape[0])
        if id(layer) not in seen:  # Or else what is not finite would stay.
            for statistic in (layer.moving_mean, layer.moving_variance):
                statistic.assign(keras.ops.zeros(statistic.shape))
        seen[id(layer)] = seen.get(id(layer), 0) + number
        layer.momentum = 1.0 - number / seen[id(layer)]
        return call(inputs, *args, **{**kwargs, "training": True})

    try:
        for layer in norms:
            layer.trainable = True  # Else it does not look at batches.
        with intercepted(norms, averaged):
            yield seen
    except BaseException:
        for layer, _, _, mean, variance in before:
            layer.moving_mean.assign(mean)
            layer.moving_variance.assign(variance)
        raise
    finally:
        for layer, momentum, trainable, *_ in before:
            layer.momentum, layer.trainable = momentum, trainable


def _state(layer: keras.layers.BatchNormalization) -> tuple:
    mean, variance = (
        np.array(keras.ops.convert_to_numpy(statistic))
        for statistic in (layer.moving_mean, layer.moving_variance)
    )
    return layer.momentum, layer.trainable, mean, variance


def _batches(data: Any, batch_size: int, steps: int | None) -> Iterator[Any]:
    """The inputs of a model, batch after batch."""
    if hasattr(data, "shape") or isinstance(data, (list, tuple, dict)):
        number = min(map(len, keras.tree.flatten(data)), default=0)
        slices = (
            slice(begin, begin + batch_size)
            for begin in range(0, number, batch_size)
        )
        batches: Any = (
            keras.tree.map_structure(operator.itemgetter(part), data)
            for part in slices
        )
    else:
        unpack = keras.utils.unpack_x_y_sample_weight
        batches = (unpack(batch)[0] for batch in data)
    return itertools.islice(batches, steps)
