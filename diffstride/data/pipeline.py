"""From a TFDS name to shuffled, augmented, normalised batches.

Everything random is drawn statelessly from the seed, the epoch and the index of
the example, so that a run taken up again at some epoch sees the same batches as
one that was never stopped.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial

import keras
import numpy as np
import tensorflow as tf

from diffstride.data.augmentation import mixup, mixup_weights
from diffstride.data.folders import PREFIX, own_source
from diffstride.data.sources import Source
from diffstride.errors import DataError

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]

_fold_in = tf.random.experimental.stateless_fold_in


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Batches of (images, one-hot labels), ready for `fit`.

    Attributes:
        epoch: gives the training batches of an epoch, from its number.
        test: the test batches, once through.
        num_classes: number of classes.
        image_shape: shape of an image, in the data format of the batches.
        steps_per_epoch: number of training batches in an epoch.
        reading: gives a context that turns what is wrong with the data, as
            batches are made of it, into one line.
        validation: the validation batches, once through; `None` without a
            validation split.
    """

    epoch: Callable[[int], tf.data.Dataset]
    test: tf.data.Dataset
    num_classes: int
    image_shape: tuple[int, int, int]
    steps_per_epoch: int
    reading: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    )
    validation: tf.data.Dataset | None = None

    @property
    def images_per_epoch(self) -> int | None:
        """Images that an epoch trains on, a mixed pair counted once.

        `None` where batches do not tell their size.
        """
        batch_size = self.epoch(0).element_spec[0].shape[0]
        return batch_size and batch_size * self.steps_per_epoch

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


def load_datasets(
    name: str = "cifar10",
    batch_size: int = 128,
    augment_fn: AugmentFn | None = None,
    mixup_alpha: float = 0.0,
    data_dir: str | None = None,
    image_size: int | Sequence[int] | None = None,
    resizing: str = "resize",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    train_split: str = "train",
    test_split: str | None = None,
    shuffle_buffer: int | None = None,
    seed: int = 0,
    validation_split: str | None = None,
    shuffle_files: bool = False,
    least_area: float = 0.08,
) -> Datasets:
    """Loads an image-classification data set of TFDS by its name.

    With Mixup, images are merged in disjoint pairs, as in the authors'
    release: a batch of `batch_size` uses up twice as many images, and an epoch
    has half as many steps.

    Args:
        name: a TFDS name such as `"cifar10"`, or `"digits"`, or `"folder:"`
            and the path of a folder that has a folder of images for each class,
            or a folder of these for each split.
        batch_size: number of examples in a batch. Incomplete training batches
            are dropped, incomplete test batches are not.
        augment_fn: `augment_fn(image, seed)` gives the image to train on;
            `image` is (height, width, channels) in [0, 255], `seed` a pair of
            integers for stateless random operations. `pad_crop_flip` is one.
        mixup_alpha: parameter of the Beta distribution that the weights of
            Mixup are drawn from; 0 is no Mixup.
        data_dir: where TFDS keeps its data; `None` is TFDS's own choice.
        image_size: size to bring images to, a number or (height, width).
            Needed where images differ in size.
        resizing: `"resize"` scales to `image_size`; `"pad"` pads or crops to
            it, around the centre; `"crop"` trains on random windows, of other
            area, aspect and place in each epoch, and tests on the central one,
            7/8 of the largest of that aspect, scaled to `image_size`.
        mean: mean of each channel, for pixels in [0, 1]. By default the known
            constants of the data set, else measured on the first 10,000
            examples of the training split.
        std: deviation of each channel, with the same default.
        train_split: TFDS split to train on, such as `"train[:90%]"`.
        test_split: TFDS split to test on; by default `"test"`, or else
            `"validation"`, the first that has labels.
        shuffle_buffer: number of (still encoded) examples that are held and
            shuffled together, one such window after the other; by default all
            of them, a full shuffle. To be set where they exceed the memory.
        seed: seed of order, augmentation and Mixup.
        validation_split: TFDS split to validate on after each epoch, such as
            `"train[90%:]"`, to be kept out of `train_split`; by default epochs
            are validated on the test split.
        shuffle_files: whether each epoch reads the files of the training split
            in a new order, several at once, so that a `shuffle_buffer` far
            below the number of examples mixes them well. Then it holds the
            buffer three times at most: read, being shuffled, and in use.
        least_area: share of an image that a random window has at least.

    Returns:
        A `Datasets`.

    Raises:
        DataError: if the data set does not exist, is not at hand and cannot be
            downloaded, or does not fit the other arguments.
    """
    _check_at_least(0, mixup_alpha=mixup_alpha)
    _check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer)
    how = (data_dir, image_size, resizing, least_area)
    if name.startswith(PREFIX):
        source: Source = own_source(name, *how, seed=seed)
    else:
        source = Source(name, *how)
    test_split = test_split or source.default_test_split()
    train = source.examples("train_split", train_split)
    test = source.examples("test_split", test_split)
    splits = [train_split, test_split]
    if validation_split is not None:
        validation = source.examples("validation_split", validation_split)
        splits.append(validation_split)
    reading = partial(source.reading, *splits)
    with reading():
        mean, std = source.normalization(train, mean, std)
    num_examples = int(train.cardinality())
    images_per_batch = batch_size * (2 if mixup_alpha else 1)
    if num_examples < images_per_batch:
        raise DataError(
            f"`batch_size` is too large: {images_per_batch} images make a "
            f"training batch{' with Mixup' if mixup_alpha else ''}, but "
            f"'{name}' has {num_examples}. Received: batch_size={batch_size}"
        )
    epoch = _Epoch(
        source,
        source.streamed(train_split) if shuffle_files else lambda _: train,
        mean,
        std,
        keras.config.image_data_format() == "channels_first",
        images_per_batch,
        augment_fn,
        mixup_alpha,
        shuffle_buffer or num_examples,
        shuffle_files,
        seed,
    )
    # Tracing the first epoch now tells of a faulty `augment_fn` in good time.
    image_shape = tuple(epoch(0).element_spec[0].shape[1:])

    def once_through(examples: tf.data.Dataset) -> tf.data.Dataset:
        images = examples.map(epoch.example, tf.data.AUTOTUNE)
        return images.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return Datasets(
        epoch,
        once_through(test),
        source.num_classes,
        image_shape,
        num_examples // images_per_batch,
        reading,
        once_through(validation) if validation_split is not None else None,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Epoch:
    """Gives the training batches of an epoch, from its number."""

    source: Source
    examples: Callable[[tf.Tensor], tf.data.Dataset]  # Of a seed.
    mean: Sequence[float]
    std: Sequence[float]
    channels_first: bool
    images_per_batch: int
    augment_fn: AugmentFn | None
    mixup_alpha: float
    window: int
    prefetch: bool  # Of a window, while the one before is used up.
    seed: int

    @tf.autograph.experimental.do_not_convert
    def __call__(self, number: int) -> tf.data.Dataset:
        number = tf.cast(number, tf.int64)  # The dtype decides the outcome.
        order_seed, image_seed, mixup_seed, file_seed = (
            _fold_in([self.seed, purpose], number) for purpose in range(4)
        )
        windows = self.examples(file_seed).enumerate().batch(self.window)
        if self.prefetch:
            windows = windows.prefetch(1)
        batches = (
            windows.enumerate()
            .map(partial(_permute, order_seed))
            .unbatch()
            .map(
                lambda index, encoded: self.example(
                    *encoded, seed=_fold_in(image_seed, index)
                ),
                num_parallel_calls=tf.data.AUTOTUNE,
            )
            .batch(self.images_per_batch, drop_remainder=True)
        )
        if not self.mixup_alpha:
            return batches
        return batches.enumerate().map(
            lambda index, batch: self._mix(*batch, _fold_in(mixup_seed, index)),
            num_parallel_calls=tf.data.AUTOTUNE,
        )

    def example(
        self, image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor | None = None
    ) -> tuple:
        """Turns an encoded image and a label into what a model takes.

        The image is augmented only if there is a seed.
        """
        window_seed = None if seed is None else _fold_in(seed, 0)
        image, label = self.source.decode(image, label, window_seed)
        if seed is not None and self.augment_fn is not None:
            image = self.augment_fn(image, seed)
        # As large as images, if that is known: to broadcast takes longer.
        known = image.shape.is_fully_defined()
        shape = image.shape if known else (len(self.mean),)
        mean, std = (
            tf.constant(np.broadcast_to(np.float32(each), shape))
            for each in (self.mean, self.std)
        )
        image = (image / 255.0 - mean) / std
        if self.channels_first:
            image = tf.transpose(image, (2, 0, 1))
        return image, label

    def _mix(
        self, images: tf.Tensor, labels: tf.Tensor, seed: tf.Tensor
    ) -> tuple:
        count = self.images_per_batch // 2
        weights = mixup_weights(count, self.mixup_alpha, seed)
        return mixup(images, labels, weights)


def _permute(seed: tf.Tensor, index: tf.Tensor, window: tuple) -> tuple:
    """Shuffles a batch of examples, the `index`-th of its epoch.

    `Dataset.shuffle` would do, did it not mix in the process's global seed.
    """
    count = tf.shape(window[0])[0]
    order = tf.random.experimental.stateless_shuffle(
        tf.range(count), _fold_in(seed, index)
    )
    return tf.nest.map_structure(lambda x: tf.gather(x, order), window)


def _check_at_least(least: int, **arguments: float | None) -> None:
    for name, value in arguments.items():
        if value is not None and value < least:
            raise DataError(
                f"`{name}` must be >= {least}. Received: {name}={value}"
            )
