"""Several tasks at once: batches in which each has an equal share."""

import contextlib
import dataclasses
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import tensorflow as tf

from diffstride.data.pipeline import Datasets
from diffstride.errors import DataError


def load_tasks(
    loaders: Mapping[str, Callable[..., Datasets]],
    tasks: str | Sequence[str] | None = None,
    seed: int = 0,
) -> Datasets:
    """Loads the data of several tasks, to train one network with all of them.

    A batch has as many examples of each task, in turn: as many as the task's
    own loader puts into a batch. An epoch goes once through the training data
    of the task that has the most batches; the others begin again, in another
    order, until it ends. Tests go through each task's data once.

    Labels are a dictionary with one entry for each task, in which examples of
    other tasks are zeros; so are sample weights, by which all tasks count alike
    in a loss, however many examples they are tested on.

    Args:
        loaders: what loads each task, by the name of the task: called with
            `seed`, it returns `Datasets`, such as `load_audio` and
            `load_datasets` do. Tasks may differ in the data set, or in the
            label alone.
        tasks: names of the tasks to load, such as `"family, pitch"`; all by
            default. One is loaded as by its own loader.
        seed: seed of the first task. Others have seeds that follow from it, so
            that two labels of one data set do not come with the same examples.

    Returns:
        A `Datasets`, with a number of classes for each task if there are two.

    Raises:
        DataError: if names or data of the tasks do not fit.

    Example:

    >>> datasets = load_tasks(
    ...     {
    ...         "family": partial(load_audio, "notes", label="family"),
    ...         "pitch": partial(load_audio, "notes", label="pitch"),
    ...     }
    ... )
    """
    chosen = _chosen(loaders, tasks)
    found = {
        name: loaders[name](seed=_seed(seed, place))
        for place, name in enumerate(chosen)
    }
    if len(found) == 1:
        ((name, datasets),) = found.items()
        return dataclasses.replace(datasets, tasks=(name,))
    _check_alike("examples", {n: each.image_shape for n, each in found.items()})
    _check_alike("batches", {n: each.batch_size for n, each in found.items()})
    return _Tasks(found).datasets()


class _Tasks:
    """Merges the data of several tasks."""

    def __init__(self, found: Mapping[str, Datasets]):
        self._found = found
        self._classes = {n: each.num_classes for n, each in found.items()}
        self._steps = max(each.steps_per_epoch for each in found.values())

    def datasets(self) -> Datasets:
        each = list(self._found.values())
        validation = None
        if any(own.validation is not None for own in each):
            validation = self._once_through("validation")
        return Datasets(
            self._epoch,
            self._once_through("test"),
            self._classes,
            each[0].image_shape,
            self._steps,
            self._reading,
            validation,
            tuple(self._found),
        )

    @tf.autograph.experimental.do_not_convert
    def _epoch(self, number: int) -> tf.data.Dataset:
        number = tf.cast(number, tf.int64)
        parts = []
        for task, own in self._found.items():
            passes = -(-self._steps // own.steps_per_epoch)
            first = number * passes
            numbers = tf.data.Dataset.range(first, first + passes)
            batches = numbers.flat_map(own.epoch)
            parts.append(batches.map(self._labelled(task, len(self._found))))
        return tf.data.Dataset.zip(*parts).take(self._steps).map(_in_turn)

    def _once_through(self, split: str) -> tf.data.Dataset:
        """A split of all tasks, one task after the other."""
        parts = {n: getattr(own, split) for n, own in self._found.items()}
        lacking = [name for name, part in parts.items() if part is None]
        if lacking:
            raise DataError(
                f"`loaders` must have a {split} split for all tasks or for "
                f"none. Without one: {', '.join(lacking)}"
            )
        counts = {}
        for name, part in parts.items():
            with self._found[name].reading():
                counts[name] = int(part.reduce(np.int64(0), _count))
        every = sum(counts.values())
        merged = [
            part.map(self._labelled(name, every / counts[name]))
            for name, part in parts.items()
        ]
        whole = merged[0]
        for part in merged[1:]:
            whole = whole.concatenate(part)
        return whole.prefetch(tf.data.AUTOTUNE)

    def _labelled(self, task: str, weight: float) -> Callable[..., tuple]:
        """Gives batches of a task the labels and weights of all."""

        def labelled(inputs: tf.Tensor, labels: tf.Tensor) -> tuple:
            own = tf.ones_like(labels[:, 0])
            return (
                inputs,
                {
                    name: labels
                    if name == task
                    else tf.zeros([tf.shape(labels)[0], count], labels.dtype)
                    for name, count in self._classes.items()
                },
                {
                    name: own * (weight if name == task else 0.0)
                    for name in self._classes
                },
            )

        return labelled

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for own in self._found.values():
                stack.enter_context(own.reading())
            yield


def _in_turn(*batches: tuple) -> tuple:
    """One batch of several, with an example of each in turn.

    So that any even split of it, among devices, has equal shares too.
    """

    def merge(*parts: tf.Tensor) -> tf.Tensor:
        stacked = tf.stack(parts, axis=1)
        return tf.reshape(
            stacked, [parts[0].shape[0] * len(parts), *parts[0].shape[1:]]
        )

    return tf.nest.map_structure(merge, *batches)


def _count(count: tf.Tensor, batch: tuple) -> tf.Tensor:
    return count + tf.shape(batch[1], tf.int64)[0]


def _seed(seed: int, place: int) -> int:
    """The seed of a task; that of the first is the one that is given."""
    if not place:
        return seed
    return int(np.random.SeedSequence([seed, place]).generate_state(1)[0] >> 1)


def _chosen(
    loaders: Mapping[str, Callable], tasks: str | Sequence[str] | None
) -> list[str]:
    if not isinstance(loaders, Mapping) or not all(
        callable(load) for load in loaders.values()
    ):
        raise DataError(
            "`loaders` must be a dictionary of functions, in gin such as "
            "{'pitch': @pitch/data.load_audio}, without brackets behind. "
            f"Received: loaders={reprlib.repr(loaders)}"
        )
    if isinstance(tasks, str):
        tasks = [name.strip() for name in tasks.split(",")]
    names = list(loaders) if tasks is None else list(tasks)
    if not names or len(set(names)) < len(names) or not {*names} <= {*loaders}:
        raise DataError(
            "`tasks` must be names of `loaders`, each once: "
            f"{', '.join(loaders)}. Received: tasks={tasks!r}"
        )
    for name in names:
        # Names of outputs, of layers and in logs, where `val_` is a prefix.
        if not re.fullmatch(r"(?!(val|test|validation)(_|$))[A-Za-z]\w*", name):
            raise DataError(
                "`loaders` must have names of letters, digits and _ that do "
                f"not begin with val_. Received: {name!r}"
            )
    return names


def _check_alike(what: str, of: Mapping[str, object]) -> None:
    if len({*of.values()}) > 1 or None in of.values():
        found = ", ".join(f"{name} {value}" for name, value in of.items())
        raise DataError(
            f"`loaders` must give {what} of one size for all tasks. "
            f"Received: {found}"
        )
