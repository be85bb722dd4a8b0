"""Image-classification data: a name in, normalised batches out."""

from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from diffstride.data.folders import PREFIX, own_source
from diffstride.data.pipeline import (
    AugmentFn,
    Datasets,
    Splits,
    batched,
    check_at_least,
)
from diffstride.data.sources import Source

_fold_in = tf.random.experimental.stateless_fold_in


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
            or a folder of these for each split, or that Hugging Face `datasets`
            has saved.
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
    check_at_least(0, mixup_alpha=mixup_alpha)
    check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer)
    how = (data_dir, image_size, resizing, least_area)
    if name.startswith(PREFIX):
        source: Source = own_source(name, *how, seed=seed)
    else:
        source = Source(name, *how)
    splits = Splits(
        source, train_split, test_split, validation_split, shuffle_files
    )
    with splits.reading():
        mean, std = source.normalization(splits.train, mean, std)
    channels_first = keras.config.image_data_format() == "channels_first"

    def example(
        image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor | None = None
    ) -> tuple:
        """Gives what a model takes; all that is random needs a seed."""
        window_seed = None if seed is None else _fold_in(seed, 0)
        image, label = source.decode(image, label, window_seed)
        if seed is not None and augment_fn is not None:
            image = augment_fn(image, seed)
        image = _normalized(image, mean, std)
        if channels_first:
            image = tf.transpose(image, (2, 0, 1))
        return image, label

    def once_through(examples: tf.data.Dataset) -> tf.data.Dataset:
        images = examples.map(example, tf.data.AUTOTUNE)
        return images.batch(batch_size).prefetch(tf.data.AUTOTUNE)

    return batched(
        splits,
        example,
        once_through,
        source.num_classes,
        batch_size,
        mixup_alpha,
        shuffle_buffer,
        seed,
        "images",
    )


def _normalized(
    image: tf.Tensor, mean: Sequence[float], std: Sequence[float]
) -> tf.Tensor:
    """Scales pixels in [0, 255] by what channels have in [0, 1]."""
    # As large as images, if that is known: to broadcast takes longer.
    known = image.shape.is_fully_defined()
    shape = image.shape if known else (len(mean),)
    mean, std = (
        tf.constant(np.broadcast_to(np.float32(each), shape))
        for each in (mean, std)
    )
    return (image / 255.0 - mean) / std
