"""Image-classification data: a TFDS name in, batches for a Keras model out.

Everything random is drawn statelessly from the seed, the epoch and the index of
the example, so that a run taken up again at some epoch sees the same batches as
one that was never stopped.
"""

import contextlib
import dataclasses
import difflib
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

import diffstride.datasets as _builders  # noqa: F401, registers `digits`.
from diffstride.errors import DataError

# Mean and deviation of each channel, for pixels in [0, 1]. Those of cifar10 are
# the authors' (its deviation is that of a mean image, but everybody uses it);
# the others are those of the training split. Other data sets are measured.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "mnist": ((0.1307,), (0.3081,)),
}
_MEASURED_EXAMPLES = 10_000
_NETWORK_TIMEOUT_S = 5

AugmentFn = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


@dataclasses.dataclass(frozen=True)
class Datasets:
    """Batches of (images, one-hot labels), ready for `fit`.

    Attributes:
        epoch: gives the training batches of an epoch, from its number.
        test: the test batches, once through.
        num_classes: number of classes.
        image_shape: shape of an image, in the data format of the batches.
        steps_per_epoch: number of training batches in an epoch.
    """

    epoch: Callable[[int], tf.data.Dataset]
    test: tf.data.Dataset
    num_classes: int
    image_shape: tuple[int, int, int]
    steps_per_epoch: int

    def epochs(
        self, first: int = 0, last: int | None = None
    ) -> tf.data.Dataset:
        """Training batches of the epochs from `first` up to before `last`.

        Args:
            first: number of the first epoch.
            last: number after that of the last epoch; `None` goes on for ever.

        Returns:
            One data set, to be used with `fit(steps_per_epoch=...)`.
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
        std: deviation of each channel, likewise.
        train_split: TFDS split to train on, such as `"train[:90%]"`.
        test_split: TFDS split to test on; by default `"test"`, or else
            `"validation"`.
        shuffle_buffer: number of (still encoded) examples that are held and
            shuffled together, one such window after the other; by default all
            of them, a full shuffle. To be set where they exceed the memory.
        seed: seed of order, augmentation and Mixup.

    Returns:
        A `Datasets`.

    Raises:
        DataError: if the data set does not exist, is not at hand and cannot be
            downloaded, or does not fit the other arguments.
    """
    for argument, value, least in (
        ("mixup_alpha", mixup_alpha, 0),
        ("batch_size", batch_size, 1),
        ("shuffle_buffer", 1 if shuffle_buffer is None else shuffle_buffer, 1),
    ):
        if value < least:
            raise DataError(
                f"`{argument}` must be >= {least}. Received: {argument}={value}"
            )
    if resizing not in ("resize", "pad"):
        raise DataError(
            f"`resizing` must be 'resize' or 'pad'. Received: {resizing!r}"
        )
    builder = _prepared_builder(name, data_dir)
    features = builder.info.features
    num_classes = features["label"].num_classes
    test_split = test_split or _default_test_split(builder)
    size = _output_size(name, features["image"].shape, image_size)
    channels_first = keras.config.image_data_format() == "channels_first"

    def read(split: str) -> tf.data.Dataset:
        # Images stay encoded until after the shuffle, to keep its buffer small.
        return builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=tfds.ReadConfig(try_autocache=False),
        ).map(lambda example: (example["image"], example["label"]))

    def decode(image: tf.Tensor) -> tf.Tensor:
        image = tf.cast(features["image"].decode_example(image), tf.float32)
        if image_size is None:
            return tf.ensure_shape(image, features["image"].shape)
        if resizing == "pad":
            return tf.image.resize_with_crop_or_pad(image, *size)
        return tf.image.resize(image, size, antialias=True)

    examples = {}
    for argument, split in (
        ("train_split", train_split),
        ("test_split", test_split),
    ):
        try:
            examples[argument] = read(split)
        except (ValueError, KeyError) as error:
            raise DataError(
                f"`{argument}` must be a split of '{name}'. Received: "
                f"{argument}={split!r}. {error}"
            ) from error
    if mean is None or std is None:
        known = NORMALIZATION.get(builder.name) or _measure(
            examples["train_split"].take(_MEASURED_EXAMPLES), decode
        )
        mean = known[0] if mean is None else mean
        std = known[1] if std is None else std
    channels = features["image"].shape[-1]
    if not len(mean) == len(std) == channels or min(std) <= 0:
        raise DataError(
            f"`mean` and `std` must have one number for each of the {channels} "
            f"channels of '{name}', those of `std` above 0. Received: "
            f"mean={mean}, std={std}"
        )

    def finish(image: tf.Tensor, label: tf.Tensor) -> tuple:
        image = (image / 255.0 - tf.constant(mean)) / tf.constant(std)
        if channels_first:
            image = tf.transpose(image, (2, 0, 1))
        return image, tf.one_hot(label, num_classes)

    train_examples = examples["train_split"].enumerate()
    num_examples = int(train_examples.cardinality())
    group_size = batch_size * (2 if mixup_alpha else 1)
    if num_examples < group_size:
        raise DataError(
            f"`batch_size` is too large: {group_size} images make a training "
            f"batch{' with Mixup' if mixup_alpha else ''}, but '{name}' has "
            f"{num_examples}. Received: batch_size={batch_size}"
        )

    @tf.autograph.experimental.do_not_convert
    def epoch(number: int) -> tf.data.Dataset:
        number = tf.cast(number, tf.int64)  # The dtype decides the outcome.
        order_seed, image_seed, mixup_seed = (
            tf.random.experimental.stateless_fold_in([seed, purpose], number)
            for purpose in range(3)
        )

        def example(index: tf.Tensor, encoded: tuple) -> tuple:
            image, label = decode(encoded[0]), encoded[1]
            if augment_fn is not None:
                own_seed = tf.random.experimental.stateless_fold_in(
                    image_seed, index
                )
                image = augment_fn(image, own_seed)
            return finish(image, label)

        batches = (
            train_examples.batch(shuffle_buffer or num_examples)
            .enumerate()
            .map(lambda index, window: _permute(order_seed, index, window))
            .unbatch()
            .map(example, num_parallel_calls=tf.data.AUTOTUNE)
            .batch(group_size, drop_remainder=True)
        )
        if not mixup_alpha:
            return batches

        def mix(index: tf.Tensor, batch: tuple) -> tuple:
            own_seed = tf.random.experimental.stateless_fold_in(
                mixup_seed, index
            )
            return mixup(
                *batch, mixup_weights(batch_size, mixup_alpha, own_seed)
            )

        return batches.enumerate().map(mix, num_parallel_calls=tf.data.AUTOTUNE)

    test = (
        examples["test_split"]
        .map(
            lambda image, label: finish(decode(image), label),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        .batch(batch_size)
        .prefetch(tf.data.AUTOTUNE)
    )
    # Tracing the first epoch now tells of a faulty `augment_fn` in good time.
    image_shape = tuple(epoch(0).element_spec[0].shape[1:])
    return Datasets(
        epoch, test, num_classes, image_shape, num_examples // group_size
    )


def pad_crop_flip(
    image: tf.Tensor, seed: tf.Tensor, pad: int = 4, flip: bool = True
) -> tf.Tensor:
    """Pads with zeros, crops at random to the old size, mirrors at random.

    Args:
        image: (height, width, channels).
        seed: pair of integers that decides the outcome.
        pad: number of pixels on each side.
        flip: whether to mirror left to right, in one case out of two.

    Returns:
        An image of the same shape.
    """
    crop_seed, flip_seed = tf.unstack(
        tf.random.experimental.stateless_split(seed, 2)
    )
    if pad < 0:
        raise DataError(f"`pad` must be >= 0. Received: pad={pad}")
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
    if flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return image


def mixup_weights(count: int, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draws `count` weights from Beta(alpha, alpha).

    Args:
        count: number of weights.
        alpha: parameter of the distribution, > 0.
        seed: pair of integers that decides the outcome.

    Returns:
        Tensor of shape (count,) in [0, 1].
    """
    # float64, as both gammas underflow together for small alpha.
    gamma = tf.random.stateless_gamma(
        (2, count), seed, tf.constant(alpha, tf.float64), dtype=tf.float64
    )
    ratio = tf.math.divide_no_nan(gamma[0], gamma[0] + gamma[1])
    return tf.cast(ratio, tf.float32)


def mixup(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Merges the first half of a batch with the second half.

    Args:
        images: (2 * count, ...).
        labels: (2 * count, classes).
        weights: (count,), weight of the image from the first half.

    Returns:
        Images and labels, `count` of each.

    Reference:
        [mixup: Beyond Empirical Risk Minimization](
        https://arxiv.org/abs/1710.09412), Zhang et al., 2018.
    """

    def merge(x: tf.Tensor) -> tf.Tensor:
        first, second = tf.split(x, 2)
        shape = [-1] + [1] * (x.shape.rank - 1)
        weight = tf.reshape(weights, shape)
        return weight * first + (1.0 - weight) * second

    return merge(images), merge(labels)


def _permute(seed: tf.Tensor, index: tf.Tensor, window: tuple) -> tuple:
    """Shuffles a batch of examples, the `index`-th of its epoch.

    `Dataset.shuffle` would do, did it not mix in the process's global seed.
    """
    own_seed = tf.random.experimental.stateless_fold_in(seed, index)
    count = tf.shape(window[0])[0]
    order = tf.random.experimental.stateless_shuffle(tf.range(count), own_seed)
    return tf.nest.map_structure(lambda x: tf.gather(x, order), window)


def find_builder(name: str, data_dir: str | None) -> tfds.core.DatasetBuilder:
    """Looks a data set up, without preparing it.

    Args:
        name: TFDS name.
        data_dir: where TFDS keeps its data; `None` is TFDS's own choice.

    Returns:
        Its builder.

    Raises:
        DataError: if there is none of that name, or TFDS cannot load it.
    """
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*tfds.list_builders(), "digits"]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise DataError(
            f"`name` must be a data set of TFDS. Received: name={name!r}.{hint}"
        ) from error
    except Exception as error:
        raise DataError(f"Data set '{name}' cannot be used: {error}") from error


def _prepared_builder(
    name: str, data_dir: str | None
) -> tfds.core.DatasetBuilder:
    """Builder of a data set that is on disk, if need be from the network."""
    builder = find_builder(name, data_dir)
    features = builder.info.features
    if (
        features is None
        or not {"image", "label"} <= set(features)
        or not isinstance(features["label"], tfds.features.ClassLabel)
        or not isinstance(features["image"], tfds.features.Image)
    ):
        raise DataError(
            "`name` must be an image-classification data set, one with an "
            f"'image' and a 'label'. Received: name={name!r}"
        )
    if not builder.data_path.exists():
        _check_reachable(builder)
        try:
            builder.download_and_prepare()
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f"Data set '{name}' could not be built in "
                f"{builder.data_dir_root}: {type(error).__name__}: "
                f"{str(error)[:500]}"
            ) from error
    return builder


def _check_reachable(builder: tfds.core.DatasetBuilder) -> None:
    """Fails now where TFDS would retry for minutes."""
    manual_dir = builder.data_dir_root / "downloads" / "manual"
    files = {
        url: info.filename for url, info in (builder.url_infos or {}).items()
    }
    missing = [
        url
        for url, file in files.items()
        if not (file and (manual_dir / file).exists())
    ]
    if not files and type(builder).__module__.startswith("tensorflow_datasets"):
        missing = [builder.info.homepage]  # The best guess there is.
    if not missing:
        return
    url = missing[0]
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_NETWORK_TIMEOUT_S).close()
    except urllib.error.HTTPError:
        return  # Somebody answers; TFDS will say what is wrong.
    except (OSError, ValueError) as error:
        by_hand = (
            "build it from files on disk: python -m diffstride.datasets.prepare"
            f" --name={builder.name} --files=FOLDER "
            f"--data_dir={builder.data_dir_root}"
            if files and all(files.values())
            else "prepare it with TFDS elsewhere (see "
            f"{builder.info.homepage}) and name its folder with --data_dir"
        )
        raise DataError(
            f"Data set '{builder.name}' is not in {builder.data_dir_root} and "
            f"cannot be downloaded from {url} ({error}). Either run the same "
            "command once where there is a network and copy that folder here "
            f"(--data_dir tells where it is), or {by_hand}"
        ) from error


def _default_test_split(builder: tfds.core.DatasetBuilder) -> str:
    for split in ("test", "validation"):
        with contextlib.suppress(KeyError, ValueError):
            return builder.info.splits[split].name
    raise DataError(
        f"'{builder.name}' has no test split; set `train_split` and "
        "`test_split`, such as 'train[:90%]' and 'train[90%:]'. It has: "
        f"{sorted(builder.info.splits)}"
    )


def _output_size(
    name: str, image_shape: tuple, image_size: int | Sequence[int] | None
) -> tuple[int, int]:
    if image_size is None:
        if None in image_shape:
            raise DataError(
                f"Images of '{name}' differ in size; set `image_size` to the "
                f"size to bring them to. Their shape is {image_shape}"
            )
        return tuple(image_shape[:2])
    size = (image_size,) * 2 if isinstance(image_size, int) else image_size
    if len(size) != 2 or min(size) < 1:
        raise DataError(
            "`image_size` must be a positive number or a pair of them. "
            f"Received: image_size={image_size}"
        )
    return tuple(size)


def _measure(
    encoded: tf.data.Dataset, decode: Callable
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel over some examples."""
    total, total_of_squares, count = 0.0, 0.0, 0
    images = encoded.map(lambda image, _: decode(image) / 255.0).batch(256)
    for batch in images.as_numpy_iterator():
        pixels = batch.astype("float64").reshape(-1, batch.shape[-1])
        total += pixels.sum(0)
        total_of_squares += (pixels**2).sum(0)
        count += len(pixels)
    mean = total / count
    std = np.sqrt(np.maximum(total_of_squares / count - mean**2, 1e-12))
    return tuple(mean.tolist()), tuple(std.tolist())
