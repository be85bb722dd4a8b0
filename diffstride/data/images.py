"""Image-classification data: a TFDS name in, normalised batches out."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from diffstride.data.pipeline import (
    AugmentFn,
    Datasets,
    Splits,
    batched,
    check_at_least,
)
from diffstride.data.sources import Source


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
) -> Datasets:
    """Loads an image-classification data set of TFDS by its name.

    With Mixup, images are merged in disjoint pairs, as in the authors'
    release: a batch of `batch_size` uses up twice as many images, and an epoch
    has half as many steps.

    Args:
        name: a TFDS name such as `"cifar10"`, or `"digits"`.
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
            it, around the centre.
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

    Returns:
        A `Datasets`.

    Raises:
        DataError: if the data set does not exist, is not at hand and cannot be
            downloaded, or does not fit the other arguments.
    """
    check_at_least(0, mixup_alpha=mixup_alpha)
    check_at_least(1, batch_size=batch_size, shuffle_buffer=shuffle_buffer)
    source = Source(name, data_dir, image_size, resizing)
    splits = Splits(source, train_split, test_split, validation_split)
    with splits.reading():
        mean, std = source.normalization(splits.train, mean, std)
    channels_first = keras.config.image_data_format() == "channels_first"

    def example(
        image: tf.Tensor, label: tf.Tensor, seed: tf.Tensor | None = None
    ) -> tuple:
        """Gives what a model takes; the image is augmented with a seed only."""
        image, label = source.decode(image, label)
        if seed is not None and augment_fn is not None:
            image = augment_fn(image, seed)
        image = image / 255.0 - tf.constant(mean)
        image = image / tf.constant(std)
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
