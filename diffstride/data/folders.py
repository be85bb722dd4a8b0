"""Images of one's own: a folder of folders, or Hugging Face `datasets`.

Splits are named as those of TFDS, parts of them too. Examples are listed in a
random order that the seed decides, so that parts of a split are random ones.
"""

import pathlib
from collections import Counter
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds
from absl import logging

from diffstride.data.sources import Source, listed_splits, plain
from diffstride.errors import DataError

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif"}
PREFIX = "folder:"
# What tells a folder that Hugging Face `datasets` has saved, of one or of
# several splits.
_HUGGING_FACE = ("state.json", "dataset_dict.json")


def own_source(name: str, *args: Any, seed: int) -> Source:
    """Returns the source of a name that begins with `"folder:"`."""
    path = pathlib.Path(name.removeprefix(PREFIX)).expanduser()
    if not path.is_dir():
        raise DataError(
            f"`name` must be 'folder:' and a folder that exists. Received: "
            f"name={name!r}"
        )
    if any((path / file).exists() for file in _HUGGING_FACE):
        return HuggingFace(path, seed, name, *args)
    return Folder(path, seed, name, *args)


class Listed(Source):
    """Images that are found one by one, by what a list has of each.

    A subclass fills `_items`: for each split what stands for each image, and
    its label.
    """

    def __init__(self, path: pathlib.Path, seed: int, *args: Any):
        self._path = path
        self._items: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        super().__init__(*args)
        for split, columns in self._items.items():
            # MT19937's raw stream is frozen by NumPy's compatibility policy.
            order = np.random.RandomState(seed).permutation(len(columns[0]))
            self._items[split] = tuple(column[order] for column in columns)

    def _known_normalization(self) -> None:
        return None

    def _features(self, names: list[str]) -> tuple[dict, dict]:
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=names),
        }
        sizes = {name: len(items) for name, (items, _) in self._items.items()}
        return features, listed_splits(sizes)

    def _read(self, split: str, files_fn: None = None) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(self._listed(split))

    def _listed(self, split: str) -> tuple[np.ndarray, np.ndarray]:
        parts = tfds.core.ReadInstruction.from_spec(split)
        found = [
            [x[part.from_ : part.to] for x in self._items[part.splitname]]
            for part in parts.to_absolute(self.splits)
        ]
        items, labels = map(np.concatenate, zip(*found, strict=True))
        return items, labels

    def streamed(self, split: str) -> Any:
        """Refuses: what is shuffled is a list, which is never too large."""
        raise DataError(
            "`shuffle_files` is for data sets of TFDS. Of a folder all images "
            "are shuffled as they are. Received: shuffle_files=True"
        )

    def _fault(self, split: str) -> str | None:
        items, _ = self._listed(split)
        done = 0
        try:
            for _ in self._read(split).map(self._decode_all, tf.data.AUTOTUNE):
                done += 1
        except tf.errors.OpError as error:
            where = self._where(items[done])
            return f"{plain(error)}, in {where}. Replace it or take it out"
        return None

    def _where(self, item: Any) -> str:
        """Names an image in an error."""
        return str(item)


class Folder(Listed):
    """A folder with a folder for each class.

    Or with one for each split, `train` among them, of which each has these.
    """

    def _open(self, data_dir: str | None) -> tuple[dict, dict]:
        splits = {"train": self._path}
        if (self._path / "train").is_dir():
            splits = {path.name: path for path in _folders(self._path)}
        names = [path.name for path in _folders(splits["train"])]
        ignored: Counter[str] = Counter()
        for split, folder in splits.items():
            paths, labels = [], []
            for each in _folders(folder):
                if each.name not in names:
                    raise DataError(
                        f"{each} is no class: there is no such folder in "
                        f"{splits['train']}"
                    )
                files = sorted(p for p in each.rglob("*") if p.is_file())
                found = [p for p in files if p.suffix.lower() in _SUFFIXES]
                ignored.update(p.suffix for p in set(files) - set(found))
                if not found:
                    kinds = ", ".join(sorted(_SUFFIXES))
                    raise DataError(f"{each} has no images ({kinds})")
                paths += map(str, found)
                labels += [names.index(each.name)] * len(found)
            if not paths:
                raise DataError(
                    f"{folder} must have a folder of images for each class. "
                    "It has no folders"
                )
            self._items[split] = np.array(paths), np.array(labels, "int64")
        if ignored:
            what = ", ".join(
                f"{n} {s or 'without'}" for s, n in ignored.items()
            )
            logging.warning("%s: ignored by suffix: %s", self._path, what)
        return self._features(names)

    def _encoded(self, item: tf.Tensor) -> tf.Tensor:
        return tf.io.read_file(item)


class HuggingFace(Listed):
    """What `datasets.Dataset.save_to_disk`, or a `DatasetDict`'s, has written.

    It has one column of `datasets.Image`, and one of `datasets.ClassLabel`.
    """

    def _open(self, data_dir: str | None) -> tuple[dict, dict]:
        try:
            import datasets
        except ImportError as error:
            raise DataError(
                f"{self._path} is read by Hugging Face `datasets`: pip install "
                f"'diffstride[huggingface]' ({error})"
            ) from error
        try:
            saved = datasets.load_from_disk(str(self._path))
        except Exception as error:  # Damaged files of Arrow raise anything.
            raise DataError(f"{self._path} cannot be read: {error}") from error
        if isinstance(saved, datasets.Dataset):
            saved = {"train": saved}
        features = next(iter(saved.values())).features
        image, label = (
            self._column(features, kind)
            for kind in (datasets.Image, datasets.ClassLabel)
        )
        self._images: list[tuple[str, Any]] = []
        for split, table in saved.items():
            first = sum(len(images) for _, images in self._images)
            if table.features[label] != features[label]:
                raise DataError(
                    f"{self._path} must have the same classes in all splits. "
                    f"'{split}' has others: {table.features[label].names}"
                )
            labels = [-1 if each is None else each for each in table[label]]
            labels = np.array(labels, "int64")
            self._items[split] = first + np.arange(len(labels)), labels
            encoded = table.cast_column(image, datasets.Image(decode=False))
            self._images.append((split, encoded.select_columns(image)))
        self._column_name = image
        return self._features(features[label].names)

    def _column(self, features: Any, kind: type) -> str:
        names = [name for name, each in features.items() if type(each) is kind]
        if len(names) != 1:
            raise DataError(
                f"{self._path} must have one column of `datasets."
                f"{kind.__name__}`. It has: {', '.join(map(str, features))}"
            )
        return names[0]

    def _find(self, item: int) -> tuple[str, int, Any]:
        """The split of an image, its place there, and all images there."""
        for split, images in self._images:
            if item < len(images):
                return split, item, images
            item -= len(images)
        raise IndexError(item)

    def _encoded(self, item: tf.Tensor) -> tf.Tensor:
        def find(item: np.ndarray) -> bytes:
            _, place, images = self._find(int(item))
            return images[place][self._column_name]["bytes"]

        encoded = tf.numpy_function(find, [item], tf.string, stateful=False)
        return tf.ensure_shape(encoded, ())

    def _where(self, item: Any) -> str:
        split, place, _ = self._find(int(item))
        return f"image {place} of split '{split}'"


def _folders(path: pathlib.Path) -> list[pathlib.Path]:
    return sorted(
        each
        for each in path.iterdir()
        if each.is_dir() and not each.name.startswith(".")
    )
