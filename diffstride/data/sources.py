"""Where data come from: TFDS data sets on disk, and images out of them."""

import contextlib
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from diffstride.data.cropping import (
    central_window,
    decode_window,
    random_window,
)
from diffstride.datasets import building, find_builder
from diffstride.errors import DataError

# Mean and deviation of each channel, for pixels in [0, 1]. Those of cifar10 are
# the authors' (its deviation is that of a mean image, but everybody uses it);
# the others are those of the training split. Other data sets are measured.
NORMALIZATION = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "fashion_mnist": ((0.2860,), (0.3530,)),
    "imagenet2012": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "mnist": ((0.1307,), (0.3081,)),
}
_MEASURED_EXAMPLES = 10_000
_LOOKED_AT_LABELS = 100
_NETWORK_TIMEOUT_S = 5
# Files read at once, and examples in a row of each, as TFDS reads them.
_FILES_AT_ONCE = 16
_BLOCK = 16
# The operations that give batches, as errors name them. A model's errors may
# have copies of a batch between devices, followed by "/_4".
ITERATOR = r"(MakeIterator|IteratorGetNext)\w*[]}]"


def listed_splits(sizes: dict[str, int]) -> tfds.core.splits.SplitDict:
    """Returns splits as those of TFDS, of which there is a list each."""
    return tfds.core.splits.SplitDict(
        [
            tfds.core.SplitInfo(
                name=name,
                shard_lengths=[size],
                num_bytes=0,
                filename_template=None,
            )
            for name, size in sizes.items()
        ]
    )


class TfdsSource:
    """A classification data set of TFDS on disk.

    A subclass has `num_classes`, what of an example is read, and how.
    """

    num_classes: int
    frugal = ""  # Settings that need less memory when they are smaller.

    def __init__(self, name: str, data_dir: str | None):
        self.name = name
        self.features, self.splits = self._open(data_dir)

    def _open(self, data_dir: str | None) -> tuple[Any, Any]:
        """Finds the data; returns features and splits, by their names."""
        self.builder = find_builder(self.name, data_dir)
        features = self.builder.info.features
        self._check_features(features)
        _prepare(self.builder)
        return features, self.builder.info.splits

    def _check_features(self, features: Any) -> None:
        """Refuses a data set of another kind, before it is downloaded."""
        raise NotImplementedError

    def _decoders(self) -> Any:
        """What TFDS is to decode, and what to leave as it is on disk."""
        raise NotImplementedError

    def _pair(self, example: dict) -> tuple[tf.Tensor, tf.Tensor]:
        """The encoded input, a scalar, and the label."""
        raise NotImplementedError

    def _decode_all(self, encoded: tf.Tensor, label: tf.Tensor) -> tuple:
        """Decodes all that an example has, which fails if it is damaged."""
        raise NotImplementedError

    def one_hot(self, label: tf.Tensor) -> tf.Tensor:
        """Returns a label as a vector, and fails for one that is no class."""
        tf.debugging.Assert(
            (0 <= label) & (label < self.num_classes),
            [f"Labels must be below {self.num_classes}. Received:", label],
        )
        return tf.one_hot(label, self.num_classes)

    def default_test_split(self) -> str:
        """Returns `"test"`, or else `"validation"`: the first with labels."""
        for split in ("test", "validation"):
            if split in self.splits:
                if not self._wrong_labels(self._read(split), split):
                    return split
        raise DataError(
            f"'{self.name}' has no test split with labels (-1 is none); set "
            "`train_split` and `test_split`, such as 'train[:90%]' and "
            f"'train[90%:]'. It has: {sorted(self.splits)}"
        )

    def examples(self, argument: str, split: str) -> tf.data.Dataset:
        """Reads pairs of an encoded input and a label, in the order on disk.

        `argument` is the name of the argument that gave the split.
        """
        try:
            examples = self._read(split)
        except (ValueError, KeyError) as error:
            raise DataError(
                f"`{argument}` must be a split of '{self.name}'. Received: "
                f"{argument}={split!r}. {error}"
            ) from error
        if wrong := self._wrong_labels(examples, split):
            raise DataError(
                f"`{argument}` must have labels from 0 to "
                f"{self.num_classes - 1}. Received: {argument}={split!r}, with "
                f"{wrong[0]}. Splits: {sorted(self.splits)}"
            )
        return examples

    @contextlib.contextmanager
    def reading(self, *splits: str) -> Iterator[None]:
        """Names the file in these splits that cannot be read, in one line.

        Errors of anything but a data set's iterator pass as they are.
        """
        try:
            yield
        except tf.errors.OpError as error:
            if not re.search(ITERATOR, str(error)):
                raise
            if isinstance(error, tf.errors.ResourceExhaustedError):
                raise DataError(
                    f"'{self.name}' does not fit into memory with these "
                    f"settings: {plain(error)}. Smaller ones of "
                    f"{self.frugal}`batch_size` or `shuffle_buffer` need less"
                ) from error
            logging.info("Looking for what is wrong with '%s'", self.name)
            fault = next(filter(None, map(self._fault, splits)), None)
            what = fault or f"{plain(error)}. Files are whole; `augment_fn`?"
            raise DataError(f"'{self.name}' cannot be used: {what}") from error

    def streamed(self, split: str) -> Callable[[tf.Tensor], tf.data.Dataset]:
        """Gives the same pairs from a seed, in an order that it decides.

        Files are read in a random order, several at once.
        """
        if self.builder.info.file_format != tfds.core.FileFormat.TFRECORD:
            raise DataError(
                f"`shuffle_files` needs TFRecord files. '{self.name}' has "
                f"{self.builder.info.file_format}"
            )
        files = self.builder.info.splits[split].file_instructions
        paths = tf.constant([str(file.filename) for file in files])
        parts = tf.constant([(f.skip, f.take) for f in files], tf.int64)

        def read(path: tf.Tensor, part: tf.Tensor) -> tf.data.Dataset:
            return tf.data.TFRecordDataset(path).skip(part[0]).take(part[1])

        def parsed(record: tf.Tensor) -> tuple:
            decoders = self._decoders()
            each = self.features.deserialize_example(record, decoders=decoders)
            return self._pair(each)

        def examples(seed: tf.Tensor) -> tf.data.Dataset:
            order = tf.random.experimental.stateless_shuffle(
                tf.range(len(files)), seed
            )
            shuffled = tf.gather(paths, order), tf.gather(parts, order)
            return (
                tf.data.Dataset.from_tensor_slices(shuffled)
                .interleave(
                    read,
                    cycle_length=min(_FILES_AT_ONCE, len(files)),
                    block_length=_BLOCK,
                    num_parallel_calls=tf.data.AUTOTUNE,
                )
                .map(parsed, tf.data.AUTOTUNE)
            )

        return examples

    def _read(
        self, split: str, files_fn: Callable[[list], list] | None = None
    ) -> tf.data.Dataset:
        """Pairs of a split, or of those of its files that `files_fn` picks."""
        examples = self.builder.as_dataset(
            split=split,
            shuffle_files=False,
            decoders=self._decoders(),
            read_config=tfds.ReadConfig(
                try_autocache=False, experimental_interleave_sort_fn=files_fn
            ),
        )
        return examples.map(self._pair)

    def _wrong_labels(self, examples: tf.data.Dataset, split: str) -> list[int]:
        """Those among the first labels that are no class; TFDS writes -1."""
        with self.reading(split):
            _, labels = next(iter(examples.batch(_LOOKED_AT_LABELS)))
        labels = labels.numpy().tolist()
        return [each for each in labels if not 0 <= each < self.num_classes]

    def _fault(self, split: str) -> str | None:
        """Finds the first file of a split that is faulty, and tells how."""
        for file in self.builder.info.splits[split].file_instructions:
            examples = self._read(split, lambda _, file=file: [file])
            try:
                for _ in examples.map(self._decode_all, tf.data.AUTOTUNE):
                    pass
            except tf.errors.OpError as error:
                what = plain(error).removeprefix(f"{file.filename}; ")
                return (
                    f"{what}, in {file.filename}. If it is damaged, remove "
                    f"{self.builder.data_path} and build it again"
                )
        return None


class Source(TfdsSource):
    """An image-classification data set on disk, its images brought to a size.

    Arguments are those of `load_datasets`.
    """

    frugal = "`image_size`, "

    def __init__(
        self,
        name: str,
        data_dir: str | None,
        image_size: int | Sequence[int] | None,
        resizing: str,
        least_area: float = 0.08,
    ):
        if resizing not in ("resize", "pad", "crop"):
            raise DataError(
                "`resizing` must be 'resize', 'pad' or 'crop'. Received: "
                f"{resizing!r}"
            )
        if resizing == "crop" and image_size is None:
            raise DataError("`resizing='crop'` needs an `image_size`")
        if not 0 < least_area <= 1:
            raise DataError(
                "`least_area` must be above 0 and at most 1. Received: "
                f"least_area={least_area}"
            )
        self.resizing = resizing
        self.least_area = least_area
        super().__init__(name, data_dir)
        self.image_size = _checked_size(
            name, self.features["image"].shape, image_size
        )
        self.num_classes = self.features["label"].num_classes

    def _check_features(self, features: Any) -> None:
        features = dict(features or {})
        if not (
            isinstance(features.get("label"), tfds.features.ClassLabel)
            and features["label"].num_classes
            and isinstance(features.get("image"), tfds.features.Image)
        ):
            raise DataError(
                "`name` must be an image-classification data set, one with an "
                f"'image' and a 'label'. Received: name={self.name!r}"
            )

    def _decoders(self) -> Any:
        return {"image": tfds.decode.SkipDecoding()}

    def _pair(self, example: dict) -> tuple[tf.Tensor, tf.Tensor]:
        return example["image"], example["label"]

    def decode(
        self,
        image: tf.Tensor,
        label: tf.Tensor,
        seed: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns pixels in [0, 255] at the size asked for; one-hot label.

        What is cropped is so at random if there is a seed.
        """
        feature, image = self.features["image"], self._encoded(image)
        if self.resizing == "crop":
            window = central_window(self.image_size)
            if seed is not None:
                window = random_window(seed, self.least_area)
            image = decode_window(image, window, feature)
        else:
            image = feature.decode_example(image)
        scales = self.image_size is not None and self.resizing != "pad"
        if not (scales and image.dtype == tf.uint8):  # Scaling takes those.
            image = _as_bytes(image)
        if self.image_size is None:
            image = tf.ensure_shape(image, feature.shape)
        elif self.resizing == "pad":
            image = tf.image.resize_with_crop_or_pad(image, *self.image_size)
        else:
            image = tf.image.resize(image, self.image_size, antialias=True)
        return image, self.one_hot(label)

    def normalization(
        self,
        train_examples: tf.data.Dataset,
        mean: Sequence[float] | None,
        std: Sequence[float] | None,
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Completes mean and deviation of each channel, and checks them.

        What is not given and not known is measured on some examples.
        """
        if mean is None or std is None:
            known = self._known_normalization() or self._measure(
                train_examples.take(_MEASURED_EXAMPLES)
            )
            mean = known[0] if mean is None else mean
            std = known[1] if std is None else std
        channels = self.features["image"].shape[-1]
        if not len(mean) == len(std) == channels or min(std) <= 0:
            raise DataError(
                f"`mean` and `std` must have one number for each of the "
                f"{channels} channels of '{self.name}', those of `std` above "
                f"0. Received: mean={mean}, std={std}"
            )
        return mean, std

    def _known_normalization(self) -> tuple | None:
        return NORMALIZATION.get(self.builder.name)

    def _measure(self, examples: tf.data.Dataset) -> tuple:
        """Mean and deviation of each channel over some examples."""
        total, total_of_squares, count = 0.0, 0.0, 0
        images = examples.map(lambda *each: self.decode(*each)[0] / 255.0)
        for batch in images.batch(256).as_numpy_iterator():
            pixels = batch.astype("float64").reshape(-1, batch.shape[-1])
            total += pixels.sum(0)
            total_of_squares += (pixels**2).sum(0)
            count += len(pixels)
        mean = total / count
        std = np.sqrt(np.maximum(total_of_squares / count - mean**2, 1e-12))
        return tuple(mean.tolist()), tuple(std.tolist())

    def _decode_all(self, image: tf.Tensor, label: tf.Tensor) -> tuple:
        # Of a window the rest is not looked at.
        whole = self.features["image"].decode_example(self._encoded(image))
        return whole, self.decode(image, label)

    def _encoded(self, image: tf.Tensor) -> tf.Tensor:
        """The file of an image, of what an example has for it."""
        return image


def _as_bytes(image: tf.Tensor) -> tf.Tensor:
    """Scales pixels from the range of their dtype, or [0, 1], to [0, 255]."""
    low, high = 0, 1
    if image.dtype.is_integer:
        low, high = image.dtype.min, image.dtype.max
    elif image.dtype.is_floating:
        tf.debugging.Assert(
            tf.reduce_all((image >= 0) & (image <= 1)),
            ["Float images must be from 0 to 1. Received:", image],
        )
    return (tf.cast(image, tf.float32) - low) / ((high - low) / 255)


def plain(error: tf.errors.OpError) -> str:
    """What TensorFlow says, without the names of its operations."""
    noise = (
        r"(?s)Error in user-defined function .*? iterator: \S+: |"
        r"Graph execution error:.*<stack traces unavailable>|"
        r"\s\[\[\{.*|\{\{.*?\}\}|\[Op:.*"
    )
    return " ".join(re.sub(noise, "", error.message).split()).rstrip(".")


def _checked_size(
    name: str, image_shape: tuple, image_size: int | Sequence[int] | None
) -> tuple[int, int] | None:
    if image_size is None:
        if None in image_shape:
            raise DataError(
                f"Images of '{name}' differ in size; set `image_size` to the "
                f"size to bring them to. Their shape is {image_shape}"
            )
        return None
    size = (image_size,) * 2 if isinstance(image_size, int) else image_size
    if len(size) != 2 or min(size) < 1:
        raise DataError(
            "`image_size` must be a positive number or a pair of them. "
            f"Received: image_size={image_size}"
        )
    return tuple(size)


def _prepare(builder: tfds.core.DatasetBuilder) -> None:
    """Builds a data set that is not on disk, if need be from the network."""
    if builder.data_path.exists():
        if not builder.info.splits:
            raise DataError(f"{builder.data_path} is damaged; remove it")
        return
    _check_reachable(builder)
    with building(builder):
        builder.download_and_prepare()


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
