"""Folders of images of one's own."""

import datasets
import numpy as np
import pytest
import tensorflow as tf

from diffstride import data
from diffstride.errors import DataError

CLASSES = ("cat", "dog", "eel")


def write(path, i, encode=tf.io.encode_png):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.full((10 + i % 5, 14 - i % 3, 3), 8 * i, "uint8")
    path.write_bytes(encode(image).numpy())


def fill(root, count=30, first=0):
    for i in range(first, first + count):
        name, kind = CLASSES[i % 3], ("png", "jpg", "bmp.jpeg")[i % 3 - 1]
        encode = tf.io.encode_png if kind == "png" else tf.io.encode_jpeg
        write(root / name / "deeper" / f"{i}.{kind}", i, encode)
    return root


def load(path, **kwargs):
    kwargs = {
        **{"batch_size": 2, "image_size": 8, "mean": [0.0] * 3},
        **{"std": [1 / 255] * 3, "train_split": "train[:80%]"},
        **{"test_split": "train[80%:]", **kwargs},
    }
    return data.load_datasets(f"folder:{path}", **kwargs)


def numbers(dataset):
    """Which images come, and that each has its label."""
    found = []
    for images, labels in dataset.as_numpy_iterator():
        values = np.rint(images.mean((1, 2, 3)) / 8).astype(int)
        np.testing.assert_array_equal(labels.argmax(-1), values % 3)
        found += values.tolist()
    return found


def test_parts_of_a_folder_are_drawn_by_the_seed(tmp_path):
    fill(tmp_path)
    kwargs = {
        "train_split": "train[:60%]",
        "validation_split": "train[60%:80%]",
    }
    loaded = load(tmp_path, **kwargs)
    assert loaded.num_classes == 3 and loaded.image_shape == (8, 8, 3)
    parts = [
        numbers(each)
        for each in (loaded.epoch(0), loaded.validation, loaded.test)
    ]
    assert [len(part) for part in parts] == [18, 6, 6]
    assert sorted(sum(parts, [])) == list(range(30))
    assert parts[2] not in (list(range(24, 30)), sorted(parts[2]))
    assert numbers(load(tmp_path, **kwargs).test) == parts[2]
    assert numbers(load(tmp_path, **kwargs, seed=1).test) != parts[2]
    assert sorted(numbers(loaded.epoch(1))) == sorted(parts[0])
    assert numbers(loaded.epoch(1)) != parts[0]


def test_folders_of_splits(tmp_path):
    fill(tmp_path / "train", 12)
    fill(tmp_path / "validation", 6, 12)
    loaded = load(tmp_path, train_split="train", test_split=None)
    assert sorted(numbers(loaded.test)) == list(range(12, 18))
    assert sorted(numbers(loaded.epoch(0))) == list(range(12))
    both = load(tmp_path, train_split="train+validation[:50%]")
    assert len(numbers(both.epoch(0))) == 14


@pytest.mark.parametrize("resizing", ["pad", "crop"])
def test_other_ways_to_one_size(resizing, tmp_path):
    fill(tmp_path)
    loaded = load(tmp_path, resizing=resizing, mean=None, std=None)
    assert next(iter(loaded.epoch(0)))[0].shape == (2, 8, 8, 3)


def test_a_broken_file_is_named(tmp_path):
    fill(tmp_path)
    broken = tmp_path / "dog" / "deeper" / "1.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DataError, match=f"cannot be used: .*in {broken}.*Repl"):
        load(tmp_path, mean=None)
    broken.unlink()
    loaded = load(tmp_path)
    gone = tmp_path / "eel" / "deeper" / "2.jpg"
    gone.unlink()
    with pytest.raises(DataError, match=f"{gone}"), loaded.reading():
        list(loaded.epoch(0))
        list(loaded.test)


@pytest.mark.parametrize(
    "change, kwargs, message",
    [
        (lambda root: root.rename(f"{root}2"), {}, "a folder that exists"),
        (lambda root: (root / "ox").mkdir(), {}, "ox has no images"),
        (
            lambda root: fill(root / "train") and fill(root / "test" / "ox", 3),
            {},
            "cat is no class|no class: there is no such folder in",
        ),
        (lambda root: None, {"shuffle_files": True}, "`shuffle_files` is for"),
        (lambda root: None, {"test_split": None}, "no test split"),
        (lambda root: None, {"test_split": "dev"}, "`test_split` must be a"),
        (lambda root: None, {"image_size": None}, "set `image_size`"),
    ],
)
def test_what_cannot_be_is_one_line(change, kwargs, message, tmp_path):
    root = fill(tmp_path / "images", 9)
    change(root)
    with pytest.raises(DataError, match=message) as caught:
        load(root, **kwargs)
    assert "\n" not in str(caught.value)


def test_a_folder_without_folders(tmp_path):
    with pytest.raises(DataError, match="a folder of images for each class"):
        load(tmp_path)


FEATURES = datasets.Features(
    {
        "id": datasets.Value("int32"),
        "photo": datasets.Image(),
        "kind": datasets.ClassLabel(names=CLASSES),
    }
)


def saved(root, files, features=FEATURES):
    """What Hugging Face `datasets` makes of files."""
    rows = [
        {"id": i, "photo": str(path), "kind": CLASSES.index(path.parts[-3])}
        for i, path in enumerate(sorted(files.rglob("*.*")))
    ]
    table = datasets.Dataset.from_list(rows, features=features)
    table.save_to_disk(root)
    return table


def test_hugging_face_data_sets_on_disk(tmp_path):
    table = saved(tmp_path / "one", fill(tmp_path / "files"))
    parts = {"train": table, "test": table.select(range(10))}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "two")
    loaded = load(tmp_path / "one")
    train, test = numbers(loaded.epoch(0)), numbers(loaded.test)
    assert sorted(train + test) == list(range(30)) and len(test) == 6
    assert numbers(load(tmp_path / "one", seed=1).test) != test
    loaded = load(tmp_path / "two", train_split="train", test_split=None)
    assert len(numbers(loaded.test)) == 10 and loaded.num_classes == 3
    assert sorted(numbers(loaded.epoch(0))) == list(range(30))


def broken_image(files):
    path = files / "dog" / "deeper" / "1.png"
    path.write_bytes(path.read_bytes()[:40])
    return FEATURES


@pytest.mark.parametrize(
    "change, message",
    [
        (broken_image, "cannot be used: .* in image 10 of split 'train'"),
        (
            lambda files: datasets.Features(
                {**FEATURES, "kind": datasets.Value("int64")}
            ),
            "must have one column of `datasets.ClassLabel`. It has: id, photo",
        ),
    ],
)
def test_what_of_hugging_face_cannot_be_is_one_line(change, message, tmp_path):
    files = fill(tmp_path / "files")
    saved(tmp_path / "saved", files, change(files))
    with pytest.raises(DataError, match=message) as caught:
        load(tmp_path / "saved", mean=None)
    assert "\n" not in str(caught.value)


def test_damaged_files_of_hugging_face_are_one_line(tmp_path):
    saved(tmp_path, fill(tmp_path / "files"))
    next(tmp_path.glob("*.arrow")).write_bytes(b"no arrow")
    with pytest.raises(DataError, match="cannot be read: ") as caught:
        load(tmp_path)
    assert "\n" not in str(caught.value)
