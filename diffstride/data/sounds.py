"""Where sounds come from: TFDS data sets, and folders of sound files."""

import contextlib
import hashlib
import os
import pathlib
import re
import struct
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from diffstride.data.sources import ITERATOR, TfdsSource, listed_splits
from diffstride.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg")
_TEST_SHARE = 0.2  # Of the files of a class, where folders name no splits.
_FULL_SCALE = 2.0**15
# Sizes of sound that a writer leaves in a header when it cannot go back to it.
_UNKNOWN_SIZES = (0, 0x7FFFFFFF - 36, 0xFFFFFFFF - 36)


class TfdsSounds(TfdsSource):
    """A data set of TFDS with sounds and a label.

    Arguments are those of `load_audio`.
    """

    # Encoded sounds are held, and not paths: all of them may be too many.
    shuffle_buffer = 1024

    def __init__(
        self, name: str, data_dir: str | None, label: str, sample_rate: int
    ):
        self.label = label.split("/")
        self.sample_rate = sample_rate
        super().__init__(name, data_dir)

    def _check_features(self, features: Any) -> None:
        features = dict((features or {}).items())
        sounds = [
            key
            for key, feature in features.items()
            if isinstance(feature, tfds.features.Audio)
        ]
        labels = dict(_labels(features))
        if not sounds or not labels:
            raise DataError(
                "`name` must be an audio-classification data set, one with "
                f"sounds and a class. Received: name={self.name!r}"
            )
        label = "/".join(self.label)
        if label not in labels:
            raise DataError(
                f"`label` must be one of the classes of '{self.name}': "
                f"{', '.join(sorted(labels))}. Received: label={label!r}"
            )
        self.num_classes = labels[label].num_classes
        self._key = "audio" if "audio" in sounds else sounds[0]
        self._sound = features[self._key]
        if not self._sound.sample_rate:
            raise DataError(
                f"'{self.name}' does not tell the sample rate of its sounds. "
                "Build it with `tfds.features.Audio(sample_rate=...)`"
            )

    def _decoders(self) -> Any:
        return {self._key: tfds.decode.SkipDecoding()}

    def _pair(self, example: dict) -> tuple[tf.Tensor, tf.Tensor]:
        sound, label = example[self._key], example
        for part in self.label:
            label = label[part]
        self._stored = sound.dtype
        if sound.dtype == tf.string:
            return sound, label
        if sound.dtype == tf.int64:  # Half the memory while it is shuffled.
            sound = tf.cast(sound, tf.int32)
        return tf.io.serialize_tensor(sound), label

    def _decode_all(self, encoded: tf.Tensor, label: tf.Tensor) -> tuple:
        return self.wave(encoded), self.one_hot(label)

    def wave(
        self,
        encoded: tf.Tensor,
        place: tf.Tensor | None = None,
        samples: int = 0,
    ) -> tf.Tensor:
        """Returns a sound, mixed down and resampled.

        Args:
            encoded: what `examples` gives.
            place: where to cut out a piece, from 0 to below 1; `None` for all.
            samples: length of that piece, less where the sound is shorter.
        """
        if self._stored != tf.string:
            whole = self._stored == tf.int64
            encoded = tf.io.parse_tensor(
                encoded, tf.int32 if whole else self._stored
            )
            encoded = tf.cast(encoded, self._stored)
        wave = self._sound.decode_example(encoded)
        wave = tf.ensure_shape(wave, self._sound.shape)
        integer = wave.dtype.is_integer
        wave = tf.cast(wave, tf.float32) / (_FULL_SCALE if integer else 1.0)
        if wave.shape.rank == 2:
            wave = tf.reduce_mean(wave, axis=1)
        rate = self._sound.sample_rate
        if place is not None:
            size = -(-samples * rate // self.sample_rate)
            start = _start(place, tf.shape(wave)[0], size)
            wave = wave[start : start + size]
        if rate == self.sample_rate:
            return wave
        return tf.ensure_shape(
            tf.numpy_function(
                lambda x: resampled(x, rate, self.sample_rate),
                [wave],
                tf.float32,
                stateful=False,
            ),
            [None],
        )


def _labels(features: dict, path: str = "") -> Iterator[tuple[str, Any]]:
    """The classes among the features, by their paths."""
    for key, feature in features.items():
        if isinstance(feature, tfds.features.FeaturesDict):
            yield from _labels(dict(feature.items()), f"{path}{key}/")
        elif (
            isinstance(feature, tfds.features.ClassLabel)
            and feature.num_classes
        ):
            yield path + key, feature


class FolderSounds:
    """Sound files in a folder, one sub-folder a class.

    The classes are in `folder` itself, or in sub-folders `train`, `test` and,
    if there is one, `validation`. Without these a fifth of each class, chosen
    by the names of its files, is the test split.

    Args:
        folder: the folder.
        sample_rate: samples per second to bring sounds to.
    """

    shuffle_buffer = None  # Paths: all of them.

    def __init__(self, folder: str, sample_rate: int):
        _need_libraries()
        self.sample_rate = sample_rate
        self.root = pathlib.Path(folder).expanduser()
        self.name = str(self.root)
        if not self.root.is_dir():
            raise DataError(
                "`folder` must be a folder with a sub-folder for each class. "
                f"Received: folder={folder!r}"
            )
        self._others: Counter = Counter()
        named = bool(_folders(self.root / "train"))
        found = (
            {
                each.name: self._by_class(each)
                for each in _folders(self.root)
                if _folders(each)
            }
            if named
            else _divided(self._by_class(self.root))
        )
        self.classes = sorted(found["train"])
        for split, by_class in found.items():
            if strange := sorted(set(by_class) - set(self.classes)):
                raise DataError(
                    f"{self.root / split} must have the classes of 'train' "
                    f"only: {', '.join(self.classes)}. Received: "
                    f"{', '.join(strange)}"
                )
        self.num_classes = len(self.classes)
        if self.num_classes < 2:
            raise DataError(
                "`folder` must have two classes at least, each a sub-folder of "
                f"{', '.join(SUFFIXES)} files. Found in {self.root}: "
                f"{', '.join(self.classes) or 'none'}"
            )
        # In the order of a hash, so that part of a split has all classes.
        self.splits = {
            split: sorted(
                (_hash(self.root, path), str(path), self.classes.index(name))
                for name, paths in by_class.items()
                for path in paths
            )
            for split, by_class in found.items()
        }
        logging.info(
            "%s: %s; classes %s",
            self.root,
            ", ".join(f"{len(v)} {k}" for k, v in self.splits.items()),
            ", ".join(self.classes),
        )
        if self._others:
            logging.warning(
                "warning: files of other kinds in %s are not used: %s",
                self.root,
                ", ".join(f"{n} {kind}" for kind, n in self._others.items()),
            )

    def default_test_split(self) -> str:
        """Returns `"test"`, or else `"validation"`."""
        for split in ("test", "validation"):
            if split in self.splits:
                return split
        raise DataError(
            f"{self.root} has a sub-folder 'train' but none that is called "
            "'test' or 'validation'. Make one, or set `train_split` and "
            "`test_split`, such as 'train[:90%]' and 'train[90%:]'"
        )

    def examples(self, argument: str, split: str) -> tf.data.Dataset:
        """Reads pairs of a path and a label, in the order of a hash."""
        sizes = listed_splits(
            {name: len(files) for name, files in self.splits.items()}
        )
        try:
            parts = tfds.core.ReadInstruction.from_spec(split)
            files = [
                file
                for part in parts.to_absolute(sizes)
                for file in self.splits[part.splitname][part.from_ : part.to]
            ]
        except (AssertionError, KeyError, ValueError) as error:
            raise DataError(
                f"`{argument}` must be a split of {self.root}, one of "
                f"{sorted(self.splits)} or a part. Received: {argument}="
                f"{split!r}. {str(error).splitlines()[0]}"
            ) from error
        if not files:
            raise DataError(
                f"`{argument}` must not be empty. Received: {argument}="
                f"{split!r}, of {self.root}"
            )
        _, paths, labels = zip(*files, strict=True)
        return tf.data.Dataset.from_tensor_slices((list(paths), list(labels)))

    def one_hot(self, label: tf.Tensor) -> tf.Tensor:
        """Returns a label as a vector."""
        return tf.one_hot(label, self.num_classes)

    @contextlib.contextmanager
    def reading(self, *splits: str) -> Iterator[None]:
        """Says what file cannot be read, in one line."""
        try:
            yield
        except tf.errors.OpError as error:
            if not re.search(ITERATOR, str(error)):
                raise
            if found := re.search(r"DataError: (.*)", error.message):
                raise DataError(found[1]) from error
            text = " ".join(error.message.split())[:300]
            raise DataError(
                f"{self.root} cannot be used: {text}. Is it `augment_fn`?"
            ) from error

    def wave(
        self,
        path: tf.Tensor,
        place: tf.Tensor | None = None,
        samples: int = 0,
    ) -> tf.Tensor:
        """Returns a sound, mixed down and resampled; see `TfdsSounds.wave`."""

        def read(path: bytes, *place: float) -> np.ndarray:
            name = os.fsdecode(path)
            return read_sound(name, self.sample_rate, *place, samples=samples)

        given = [path] if place is None else [path, place]
        wave = tf.numpy_function(read, given, tf.float32, stateful=False)
        return tf.ensure_shape(wave, [None])

    def _by_class(self, folder: pathlib.Path) -> dict[str, list]:
        """The sound files in each sub-folder, at any depth."""
        found = {}
        for each in _folders(folder):
            files = [
                path
                for path in sorted(each.rglob("*"))
                if path.is_file() and not path.name.startswith(".")
            ]
            kinds = [path.suffix.lower() for path in files]
            self._others.update(kind for kind in kinds if kind not in SUFFIXES)
            found[each.name] = [
                path
                for path, kind in zip(files, kinds, strict=True)
                if kind in SUFFIXES
            ]
            if not found[each.name]:
                raise DataError(
                    f"{each} has no {', '.join(SUFFIXES)} files, though it "
                    "stands for a class. Put some there, or remove it"
                )
        return found


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    if not root.is_dir():
        return []
    return sorted(
        path
        for path in root.iterdir()
        if path.is_dir() and not path.name.startswith((".", "_"))
    )


def _hash(root: pathlib.Path, path: pathlib.Path) -> str:
    name = os.fsencode(path.relative_to(root).as_posix())
    return hashlib.sha256(name).hexdigest()


def _divided(by_class: dict[str, list]) -> dict[str, dict[str, list]]:
    """Takes a fifth of each class to test on, by a hash of the file names."""
    divided: dict[str, dict[str, list]] = {"train": {}, "test": {}}
    for name, paths in by_class.items():
        if len(paths) < 2:
            raise DataError(
                f"{paths[0].parent} must have two files at least, to train and "
                "to test on. Add some, or make sub-folders 'train' and 'test'"
            )
        folder = paths[0].parent
        paths = sorted(paths, key=lambda path: _hash(folder.parent, path))
        count = max(round(_TEST_SHARE * len(paths)), 1)
        divided["test"][name] = paths[:count]
        divided["train"][name] = paths[count:]
    return divided


def read_sound(
    path: str,
    sample_rate: int,
    place: float | None = None,
    samples: int = 0,
) -> np.ndarray:
    """Reads a sound file, or no more than a piece of it.

    Args:
        path: a file that libsndfile can read: WAV, FLAC, OGG.
        sample_rate: samples per second to bring it to.
        place: where to cut out a piece, from 0 to below 1; `None` for all.
        samples: length of that piece, less where the sound is shorter.

    Returns:
        Samples of all channels mixed down, in float32, full scale being 1.

    Raises:
        DataError: if the file is damaged, empty, or no sound.
    """
    import soundfile

    try:
        with soundfile.SoundFile(path) as file:
            frames, rate = file.frames, file.samplerate
            kind = file.format
            start, size = 0, frames
            if place is not None:
                size = min(-(-samples * rate // sample_rate), frames)
                start = int(_start(place, frames, size))
            file.seek(start)
            wave = file.read(size, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise _broken(path, f"cannot be read: {reason}") from error
    if kind in ("WAV", "WAVEX") and (missing := _missing_bytes(path)):
        raise _broken(path, f"is cut short: {missing} bytes of sound missing")
    if not frames:
        raise _broken(path, "holds no sound")
    if len(wave) < size:
        raise _broken(path, f"is damaged: {len(wave)} of {size} frames read")
    wave = wave.mean(axis=1)
    if not np.isfinite(wave).all():
        raise _broken(path, "has samples that are not finite")
    return resampled(wave, rate, sample_rate)


def resampled(wave: np.ndarray, rate: int, to: int) -> np.ndarray:
    """Brings a sound from one sample rate to another."""
    if rate == to:
        return wave
    import soxr

    return soxr.resample(wave, rate, to).astype("float32")


def _broken(path: str, what: str) -> DataError:
    return DataError(f"{path} {what}. Replace the file, or remove it")


def _start(place: Any, frames: Any, size: int) -> Any:
    """First of `size` frames, where the last possible one is just below 1."""
    if isinstance(frames, tf.Tensor):
        room = tf.cast(tf.maximum(frames - size, 0) + 1, place.dtype)
        return tf.cast(place * room, tf.int32)
    return int(place * (max(frames - size, 0) + 1))


def _missing_bytes(path: str) -> int:
    """How much less sound a WAV file has than its header says.

    libsndfile reads what there is, and says nothing.
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(12)
        while len(header := file.read(8)) == 8:
            name, size = struct.unpack("<4sI", header)
            if name == b"data":
                known = size < min(_UNKNOWN_SIZES[1:]) and size
                return max(size - (end - file.tell()), 0) if known else 0
            file.seek(size + size % 2, os.SEEK_CUR)
    return 0


def _need_libraries() -> None:
    try:
        import soundfile  # noqa: F401
        import soxr  # noqa: F401
    except (ImportError, OSError) as error:
        raise DataError(
            "Sound files are read by soundfile and soxr, which are not "
            f"installed ({error}): pip install 'diffstride[audio]'"
        ) from error
