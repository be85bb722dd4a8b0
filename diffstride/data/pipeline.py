"""From examples to shuffled, augmented batches, whatever they are of.

Everything random is drawn statelessly from the seed, the epoch and the index of
the example, so that a run taken up again at some epoch sees the same batches as
one that was never stopped.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import tensorflow as tf

from diffstride.data.augmentation import mixup, mixup_weights
from diffstride.errors import DataError

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_fold_in = tf.random.experimental.stateless_fold_in


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Batches of (images or sounds, one-hot labels), ready for `fit`.

    Attributes:
        epoch: gives the training batches of an epoch, from its number.
        test: the test batches, once through.
        num_classes: number of classes, or of those of each task by its name.
        image_shape: shape of an example: that of an image, in the data format
            of the batches, or (samples,) of a sound.
        steps_per_epoch: number of training batches in an epoch.
        reading: gives a context that turns what is wrong with the data, as
            batches are made of it, into one line.
        validation: the validation batches, once through; `None` without a
            validation split.
        tasks: names of the tasks, if they have names.
    """

    epoch: Callable[[int], tf.data.Dataset]
    test: tf.data.Dataset
    num_classes: int | dict[str, int]
    image_shape: tuple[int, ...]
    steps_per_epoch: int
    reading: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    )
    validation: tf.data.Dataset | None = None
    tasks: tuple[str, ...] = ()

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the tasks, where a network has several at once."""
        several = isinstance(self.num_classes, dict)
        return tuple(self.num_classes) if several else ()

    @property
    def batch_size(self) -> int | None:
        """Examples in a training batch; `None` where it does not tell."""
        return self.epoch(0).element_spec[0].shape[0]

    def share(self, index: int, count: int) -> "Datasets":
        """Gives the `index`-th of `count` equal parts of each training batch.

        What is left out is not decoded.
        """
        if not isinstance(self.epoch, _Epoch):
            raise DataError(
                "Only batches of one task, made by this package, can be shared "
                f"by processes. Received: {self.epoch}"
            )
        epoch = dataclasses.replace(self.epoch, share=(index, count))
        return dataclasses.replace(self, epoch=epoch)

    @property
    def images_per_epoch(self) -> int | None:
        """Images that an epoch trains on, a mixed pair counted once.

        `None` where batches do not tell their size.
        """
        size = self.batch_size
        return size and size * self.steps_per_epoch

    def epochs(
        self, first: int = 0, last: int | None = None
    ) -> tf.data.Dataset:
        """Training batches of the epochs from `first` up to before `last`.

        One data set, to be used with `fit(steps_per_epoch=...)`; without `last`
        it has no end.
        """
        last = tf.int64.max if last is None else last
        numbers = tf.data.Dataset.range(first, last)
        return numbers.flat_map(self.epoch).prefetch(tf.data.AUTOTUNE)


class Splits:
    """What is trained, tested and validated on, of one source.

    A source has `name`, `default_test_split()`, `examples(argument, split)`,
    which are pairs of an encoded input and a label, both scalars,
    `reading(*splits)`, a context that names the file that is at fault, and for
    `shuffle_files` `streamed(split)`, which gives the pairs in an order that
    is decided by a seed.
    """

    def __init__(
        self,
        source: Any,
        train_split: str,
        test_split: str | None,
        validation_split: str | None,
        shuffle_files: bool = False,
    ):
        self.name = source.name
        test_split = test_split or source.default_test_split()
        self.train = source.examples("train_split", train_split)
        self.streamed = source.streamed(train_split) if shuffle_files else None
        self.test = source.examples("test_split", test_split)
        self.validation = None
        splits = [train_split, test_split]
        if validation_split is not None:
            self.validation = source.examples(
                "validation_split", validation_split
            )
            splits.append(validation_split)
        self.reading = partial(source.reading, *splits)


def batched(
    splits: Splits,
    example: Callable[..., tuple],
    once_through: Callable[[tf.data.Dataset], tf.data.Dataset],
    num_classes: int,
    batch_size: int,
    mixup_alpha: float,
    shuffle_buffer: int | None,
    seed: int,
    kind: str,
) -> Datasets:
    """Makes batches of examples.

    Args:
        splits: the encoded examples.
        example: called with what a split holds and `seed`, gives what is
            trained on.
        once_through: gives the batches of a split that is tested on.
        num_classes: number of classes.
        batch_size: number of examples in a batch.
        mixup_alpha: parameter of Mixup, 0 for none.
        shuffle_buffer: number of examples that are shuffled together, all of
            them for `None`.
        seed: seed of all that is random.
        kind: what the examples are, for errors.
    """
    num_examples = int(splits.train.cardinality())
    per_batch = batch_size * (2 if mixup_alpha else 1)
    if num_examples < per_batch:
        raise DataError(
            f"`batch_size` is too large: {per_batch} {kind} make a "
            f"training batch{' with Mixup' if mixup_alpha else ''}, but "
            f"'{splits.name}' has {num_examples}. Received: "
            f"batch_size={batch_size}"
        )
    epoch = _Epoch(
        splits.streamed or (lambda _: splits.train),
        example,
        per_batch,
        mixup_alpha,
        shuffle_buffer or num_examples,
        splits.streamed is not None,
        seed,
        num_examples // per_batch,
    )
    # Tracing the first epoch now tells of a faulty `augment_fn` in good time.
    shape = tuple(epoch(0).element_spec[0].shape[1:])
    return Datasets(
        epoch,
        once_through(splits.test),
        num_classes,
        shape,
        num_examples // per_batch,
        splits.reading,
        None if splits.validation is None else once_through(splits.validation),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Epoch:
    """Gives the training batches of an epoch, from its number."""

    examples: Callable[[tf.Tensor], tf.data.Dataset]  # Of a seed.
    example: Callable[..., tuple]
    per_batch: int
    mixup_alpha: float
    window: int
    prefetch: bool  # Of a window, while the one before is used up.
    seed: int
    steps: int
    share: tuple[int, int] = (0, 1)  # Which part of each batch, of how many.

    @tf.autograph.experimental.do_not_convert
    def __call__(self, number: int) -> tf.data.Dataset:
        number = tf.cast(number, tf.int64)  # The dtype decides the outcome.
        order_seed, example_seed, mixup_seed, file_seed = (
            _fold_in([self.seed, purpose], number) for purpose in range(4)
        )
        windows = self.examples(file_seed).enumerate().batch(self.window)
        if self.prefetch:
            windows = windows.prefetch(1)
        examples = (
            windows.enumerate().map(partial(_permute, order_seed)).unbatch()
        )
        batches = (
            self._shared(examples)
            .map(
                lambda index, encoded: self.example(
                    *encoded, seed=_fold_in(example_seed, index)
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .batch(self.per_batch // self.share[1], drop_remainder=True)
        )
        if not self.mixup_alpha:
            return batches
        return batches.enumerate().map(
            lambda index, batch: self._mix(*batch, _fold_in(mixup_seed, index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    @property
    def _batch_size(self) -> int:
        return self.per_batch // (2 if self.mixup_alpha else 1)

    def _own(self) -> slice:
        """The rows of a whole batch that are trained on."""
        index, count = self.share
        size = self._batch_size // count
        return slice(index * size, (index + 1) * size)

    def _shared(self, examples: tf.data.Dataset) -> tf.data.Dataset:
        """The examples of these rows; with Mixup, in both halves."""
        if self.share[1] == 1:
            return examples
        own = self._own()

        def is_own(place: tf.Tensor, example: tuple) -> tf.Tensor:
            row = place % self._batch_size
            return (own.start <= row) & (row < own.stop)

        return (
            examples.take(self.steps * self.per_batch)
            .enumerate()
            .filter(is_own)
            .map(lambda _, example: example)
        )

    def _mix(
        self, inputs: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple:
        weights = mixup_weights(self._batch_size, self.mixup_alpha, seed)
        return mixup(inputs, labels, weights[self._own()])


def _permute(seed: tf.Tensor, index: tf.Tensor, window: tuple) -> tuple:
    """Shuffles a batch of examples, the `index`-th of its epoch.

    `Dataset.shuffle` would do, did it not mix in the process's global seed.
    """
    count = tf.shape(window[0])[0]
    order = tf.random.experimental.stateless_shuffle(
        tf.range(count), _fold_in(seed, index)
    )
    return tf.nest.map_structure(lambda x: tf.gather(x, order), window)


def check_at_least(least: int, **arguments: float | None) -> None:
    """Refuses arguments that are smaller."""
    for name, value in arguments.items():
        if value is not None and value < least:
            raise DataError(
                f"`{name}` must be >= {least}. Received: {name}={value}"
            )
