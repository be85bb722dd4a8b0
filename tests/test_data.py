import collections
import functools
import json
import shutil
import struct
import time
import urllib.error
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from diffstride import data, train
from diffstride.data import sources
from diffstride.errors import DataError


def load(data_dir, **kwargs):
    known = {"mean": [0.5], "std": [0.25]}  # And need not be measured.
    kwargs = {"name": "digits", "batch_size": 64, **known, **kwargs}
    return data.load_datasets(data_dir=data_dir, **kwargs)


def arrays(dataset):
    images, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(images), np.concatenate(labels)


def test_digits_are_the_real_ones(data_dir):
    from sklearn.datasets import load_digits

    train, test = (
        tfds.as_numpy(tfds.load("digits", split=split, data_dir=data_dir))
        for split in ("train", "test")
    )
    ours = [*train, *test]
    assert len(ours) == 1797 and len(list(test)) == 360
    pixels, labels = load_digits(return_X_y=True)

    def count(images, labels):
        return collections.Counter(
            (np.asarray(i, "uint8").tobytes(), int(label))
            for i, label in zip(images, labels, strict=True)
        )

    expected = count(np.round(pixels * (255 / 16)), labels)
    got = count([e["image"] for e in ours], [e["label"] for e in ours])
    assert got == expected


def test_an_epoch_is_a_full_shuffle_of_the_data(data_dir):
    whole = load(data_dir, batch_size=1437 // 3, mean=[0.0], std=[1.0])
    assert whole.steps_per_epoch == 3
    first, labels = arrays(whole.epoch(0))
    second, _ = arrays(whole.epoch(1))
    assert first.shape == (1437, 8, 8, 1) and labels.shape == (1437, 10)
    in_order = tfds.load("digits", split="train", data_dir=data_dir)
    place = {
        np.round(e["image"] / np.float32(255), 4).tobytes(): i
        for i, e in enumerate(tfds.as_numpy(in_order))
    }
    assert len(place) == 1437
    orders = [
        np.array([place[np.round(x, 4).tobytes()] for x in epoch])
        for epoch in (first, second)
    ]
    for order in orders:
        assert sorted(order) == list(range(1437))
        # Examples travel anywhere: a third of the way, on average.
        travel = np.abs(order - np.arange(1437))
        assert travel.max() > 1200 and abs(travel.mean() - 1437 / 3) < 60
    assert not np.array_equal(*orders)


def test_order_depends_on_seed_and_epoch_alone(data_dir):
    kwargs = dict(
        augment_fn=data.pad_crop_flip,
        mixup_alpha=0.3,
        train_split="train[:25%]",
    )
    one = load(data_dir, seed=1, **kwargs)
    tf.random.set_seed(99)
    again = load(data_dir, seed=1, **kwargs)
    other = load(data_dir, seed=2, **kwargs)
    images, labels = arrays(one.epoch(3))
    for x, y in zip((images, labels), arrays(again.epoch(3)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(images, arrays(other.epoch(3))[0])
    assert not np.array_equal(images, arrays(one.epoch(4))[0])
    # The epochs of a run, taken up at the third.
    steps = one.steps_per_epoch
    run = arrays(one.epochs(2, 4))[0]
    np.testing.assert_array_equal(run[steps * 64 :], images)
    assert len(run) == 2 * steps * 64
    endless = one.epochs(3).take(steps + 1)
    np.testing.assert_array_equal(arrays(endless)[0][: steps * 64], images)


def test_shuffle_buffer_limits_how_far_examples_travel(data_dir):
    raw = [
        e["label"]
        for e in tfds.as_numpy(
            tfds.load("digits", split="train", data_dir=data_dir)
        )
    ]
    loaded = load(data_dir, batch_size=10, shuffle_buffer=10)
    labels = arrays(loaded.epoch(0))[1].argmax(-1)
    for start in range(0, 1430, 10):
        window = slice(start, start + 10)
        assert sorted(labels[window]) == sorted(raw[window])


@pytest.mark.parametrize(
    "name", ["cifar10", "cifar100", "fashion_mnist", "mnist"]
)
def test_known_data_sets_are_normalised_by_their_constants(mocked, name):
    mocked(name, train=24, test=24)
    loaded = data.load_datasets(name, batch_size=8)
    plain = data.load_datasets(
        name,
        batch_size=8,
        mean=[0.0] * len(data.NORMALIZATION[name][0]),
        std=[1.0] * len(data.NORMALIZATION[name][0]),
    )
    mean, std = (np.float32(v) for v in data.NORMALIZATION[name])
    ours = arrays(loaded.test)[0]
    expected = (arrays(plain.test)[0] - mean) / std
    np.testing.assert_allclose(ours, expected, atol=1e-5)
    assert loaded.num_classes == {"cifar100": 100}.get(name, 10)


def test_cifar100_has_constants_of_its_own():
    assert data.NORMALIZATION["cifar100"] == (
        (0.5071, 0.4865, 0.4409),
        (0.2673, 0.2564, 0.2762),
    )


def test_other_data_sets_are_measured(data_dir):
    measured = load(data_dir, batch_size=479, mean=None, std=None)
    images = arrays(measured.epoch(0))[0]
    np.testing.assert_allclose(images.mean(), 0.0, atol=1e-4)
    np.testing.assert_allclose(images.std(), 1.0, atol=1e-4)


def test_images_of_differing_sizes_need_a_size(mocked):
    mocked("cats_vs_dogs", train=24)
    kwargs = dict(batch_size=2, train_split="train[:50%]", test_split="train")
    with pytest.raises(DataError, match="set `image_size`"):
        data.load_datasets("cats_vs_dogs", **kwargs)
    loaded = data.load_datasets("cats_vs_dogs", image_size=(24, 20), **kwargs)
    assert loaded.image_shape == (24, 20, 3)
    assert next(iter(loaded.epoch(0)))[0].shape == (2, 24, 20, 3)


def test_resizing_and_padding(data_dir):
    for resizing in ("resize", "pad"):
        kwargs = dict(resizing=resizing, mean=[0.0], std=[1.0])
        small = arrays(load(data_dir, mean=[0.0], std=[1.0]).test)[0]
        large = arrays(load(data_dir, image_size=12, **kwargs).test)[0]
        assert large.shape == (360, 12, 12, 1)
        if resizing == "pad":
            np.testing.assert_array_equal(large[:, 2:10, 2:10], small)
            assert large.sum() == pytest.approx(small.sum())
        else:
            expected = tf.image.resize(small, (12, 12), antialias=True)
            np.testing.assert_allclose(large, expected, atol=1e-5)


def test_channels_first_follows_keras(data_dir):
    last = load(data_dir, image_size=(10, 12))
    keras.config.set_image_data_format("channels_first")
    try:
        first = load(data_dir, image_size=(10, 12))
        assert first.image_shape == (1, 10, 12)
        np.testing.assert_array_equal(
            arrays(first.test)[0][:, 0], arrays(last.test)[0][..., 0]
        )
    finally:
        keras.config.set_image_data_format("channels_last")


def test_augmentation_is_wired_to_training_only(data_dir):
    plain = load(data_dir)
    augmented = load(data_dir, augment_fn=lambda image, seed: image * 0.0)
    assert np.ptp(arrays(augmented.epoch(0))[0]) < 1e-6
    np.testing.assert_array_equal(
        arrays(augmented.test)[0], arrays(plain.test)[0]
    )


def test_pad_crop_flip_draws_every_outcome_and_no_other():
    image = tf.reshape(tf.range(1.0, 13.0), (3, 4, 1))
    padded = np.pad(image.numpy(), ((1, 1), (1, 1), (0, 0)))
    outcomes = set()
    for top in range(3):
        for left in range(3):
            crop = padded[top : top + 3, left : left + 4]
            outcomes |= {crop.tobytes(), crop[:, ::-1].tobytes()}
    drawn = {
        data.pad_crop_flip(image, tf.constant([0, i]), pad=1).numpy().tobytes()
        for i in range(300)
    }
    assert drawn == outcomes
    unflipped = {
        data.pad_crop_flip(image, tf.constant([0, i]), 1, flip=False)
        .numpy()
        .tobytes()
        for i in range(200)
    }
    assert len(unflipped) == 9


def test_mixup_merges_disjoint_pairs(data_dir):
    images = tf.reshape(tf.range(8.0), (4, 2))
    labels = tf.eye(4)
    mixed, mixed_labels = data.mixup(images, labels, tf.constant([0.25, 1.0]))
    np.testing.assert_allclose(mixed, [[3.0, 4.0], [2.0, 3.0]])
    np.testing.assert_allclose(
        mixed_labels, [[0.25, 0, 0.75, 0], [0, 1.0, 0, 0]]
    )
    # Half as many steps as without, each of the size asked for.
    loaded = load(data_dir, mixup_alpha=1.0)
    assert loaded.steps_per_epoch == 1437 // 128
    x, y = arrays(loaded.epoch(0))
    assert len(x) == 64 * (1437 // 128)
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-5)
    assert np.all((y > 0).sum(-1) <= 2)


def test_a_validation_split_is_read_as_a_test_split_is(data_dir):
    splits = {"train_split": "train[:80%]", "validation_split": "train[80%:]"}
    loaded = load(data_dir, **splits)
    images, labels = arrays(loaded.validation)
    assert len(images) == 1437 - 1150
    assert loaded.images_per_epoch == 1150 // 64 * 64
    other = load(data_dir, train_split="train[:80%]", test_split="train[80%:]")
    for found, expected in zip(
        (images, labels), arrays(other.test), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    assert len(arrays(loaded.test)[0]) == 360
    # Nothing of it is trained on, and without it nothing changes.
    trained = {image.tobytes() for image in arrays(loaded.epoch(0))[0]}
    assert trained.isdisjoint(image.tobytes() for image in images)
    assert other.validation is None
    for found, expected in zip(
        arrays(loaded.epoch(1)), arrays(other.epoch(1)), strict=True
    ):
        np.testing.assert_array_equal(found, expected)
    with pytest.raises(DataError, match="`validation_split` must be a split"):
        load(data_dir, validation_split="valid")


def test_cifar10_with_mixup_has_195_steps(mocked):
    mocked("cifar10", train=50_000, test=10_000)
    assert data.load_datasets("cifar10", 128).steps_per_epoch == 390
    mixed = data.load_datasets("cifar10", 128, mixup_alpha=0.2)
    assert mixed.steps_per_epoch == 195


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_mixup_weights_are_of_their_beta_distribution(alpha):
    weights = data.mixup_weights(20_000, alpha, tf.constant([1, 2])).numpy()
    assert weights.min() >= 0 and weights.max() <= 1
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.02)
    # Of Beta(alpha, alpha).
    np.testing.assert_allclose(
        weights.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.06
    )


@pytest.mark.parametrize("alpha", [0.2, 4.0])
def test_mixup_alpha_is_used(alpha, data_dir):
    weights = data.mixup_weights(20_000, alpha, tf.constant([1, 2])).numpy()
    loaded = load(data_dir, mixup_alpha=alpha)
    labels = np.concatenate([arrays(loaded.epoch(e))[1] for e in range(2)])
    larger = labels.max(-1)
    two_classes = (labels > 0).sum(-1) == 2
    got = (larger[two_classes] - 0.5).mean()
    # Pairs of one class do not tell; nor, in float32, do weights of 0 and 1.
    visible = np.minimum(weights, 1 - weights) > 0
    expected = np.abs(weights[visible] - 0.5).mean()
    np.testing.assert_allclose(got, expected, atol=0.02)


def test_missing_data_without_network_fails_within_seconds(tmp_path):
    start = time.perf_counter()
    with pytest.raises(DataError) as caught:
        data.load_datasets("cifar10", data_dir=str(tmp_path))
    assert time.perf_counter() - start < 20
    message = str(caught.value)
    assert "\n" not in message
    for text in (
        "'cifar10' is not in",
        "Either run",
        "or build it from files on disk: python -m diffstride.datasets.prepare",
    ):
        assert text in message


@pytest.mark.parametrize(
    "name, hint",
    [
        ("imagenet2012", "prepare it with TFDS elsewhere"),
        ("domainnet", "prepare it with TFDS elsewhere"),
        ("cifar100", "python -m diffstride.datasets.prepare"),
    ],
)
def test_missing_data_of_any_kind_is_one_line(name, hint, tmp_path):
    with pytest.raises(DataError, match=hint):
        data.load_datasets(name, data_dir=str(tmp_path), image_size=8)


def test_what_tfds_cannot_build_is_one_line(tmp_path, monkeypatch):
    # Somebody answers, and then the download fails.
    def refuse(request, timeout):
        raise urllib.error.HTTPError(request.full_url, 403, "no", {}, None)

    def fail(self):
        raise RuntimeError("Failed to get url. HTTP code: 403.")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    builder_cls = tfds.builder_cls("cifar10")
    monkeypatch.setattr(builder_cls, "download_and_prepare", fail)
    with pytest.raises(
        DataError, match="'cifar10' could not be built in .*403"
    ):
        data.load_datasets("cifar10", data_dir=str(tmp_path))


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"name": "digitz"}, "`name` must be a data set of TFDS.*digits"),
        ({"name": "imdb_reviews"}, "must be an image-classification data set"),
        ({"mixup_alpha": -0.1}, "`mixup_alpha` must be >= 0"),
        (
            {"resizing": "stretch"},
            "`resizing` must be 'resize', 'pad' or 'crop'",
        ),
        ({"image_size": (8, 8, 8)}, "`image_size` must be a positive number"),
        ({"batch_size": 0}, "`batch_size` must be >= 1"),
        ({"shuffle_buffer": 0}, "`shuffle_buffer` must be >= 1"),
        ({"std": [0.0]}, "those of `std` above 0"),
        ({"train_split": "trian"}, "`train_split` must be a split of 'digits'"),
        ({"test_split": "tset"}, "`test_split` must be a split of 'digits'"),
        ({"image_size": 0}, "`image_size` must be a positive number"),
        ({"batch_size": 1438}, "1438 images make a training batch, but"),
        (
            {"batch_size": 719, "mixup_alpha": 1.0},
            "1438 images make a training batch with Mixup",
        ),
        ({"mean": (0.5, 0.5, 0.5)}, "one number for each of the 1 channels"),
    ],
)
def test_errors(kwargs, message, data_dir):
    with pytest.raises(DataError, match=message):
        load(data_dir, **kwargs)


def test_a_data_set_without_test_split_says_what_to_set(mocked):
    mocked("cats_vs_dogs", train=24)
    with pytest.raises(
        DataError, match="has no test split with labels.*set `train_split`"
    ):
        data.load_datasets("cats_vs_dogs", batch_size=2, image_size=8)


CLASSES = 10


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A TFDS folder that holds `tiny`, grey, in two files a split."""
    root = tmp_path_factory.mktemp("kept")

    def examples(count):
        for i in range(count):
            image = np.full((8, 8, 1), i, "uint8")
            yield i, {"image": image, "label": i % CLASSES}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(8, 8, 1)),
                "label": tfds.features.ClassLabel(num_classes=CLASSES),
            }
        ),
        split_datasets={
            "train": examples(24),
            "test": examples(24),
            "validation": examples(6),
        },
        data_dir=root,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=2),
    )
    return root


@pytest.fixture
def tiny(kept, tmp_path, monkeypatch):
    """The folder of a `tiny` of one's own; few labels are looked at."""
    monkeypatch.setattr(sources, "_LOOKED_AT_LABELS", 4)
    return shutil.copytree(kept, tmp_path / "kept") / "tiny" / "1.0.0"


def load_tiny(tiny, **kwargs):
    kwargs = {"mean": [0.5], "std": [0.25], "batch_size": 4, **kwargs}
    return data.load_datasets("tiny", data_dir=tiny.parent.parent, **kwargs)


def rewrite(path, first=0, label=None, image=None):
    """Changes the examples of a file, from the `first` on."""
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for i, record in enumerate(records):
            example = tf.train.Example.FromString(record)
            feature = example.features.feature
            if i >= first and label is not None:
                feature["label"].int64_list.value[:] = [label]
            if i >= first and image is not None:
                feature["image"].bytes_list.value[:] = [image]
            writer.write(example.SerializeToString())


def relabel(tiny, split, label, first=0):
    for path in files(tiny, split):
        rewrite(path, first, label)


def files(tiny, split="train"):
    return sorted(tiny.glob(f"tiny-{split}.tfrecord*"))


def change_features(tiny, **changes):
    path = tiny / "features.json"
    content = json.loads(path.read_text())
    content["featuresDict"]["features"]["image"]["image"].update(changes)
    path.write_text(json.dumps(content))


def use(tiny, split):
    """Decodes the examples of a split."""
    source = sources.Source("tiny", str(tiny.parent.parent), None, "resize")
    with source.reading(split):
        for _ in source.examples("train_split", split).map(source.decode):
            pass


@pytest.mark.parametrize(
    "test_label, validation_label, split, expected",
    [
        (-1, 3, None, "validation"),  # As imagenet2012.
        (CLASSES, 3, None, "validation"),
        (3, -1, None, "test"),
        (-1, -1, None, "has no test split with labels"),
        (-1, 3, "test", "`test_split` must have labels from 0 to 9.*test"),
        (-1, 3, "test[:50%]", "`test_split` must have labels.* with -1"),
        (3, -1, "validation+test", "`test_split` must have labels"),
        (
            2**40,
            3,
            "test",
            "`test_split` must have labels.* with 1099511627776",
        ),
    ],
)
def test_what_is_tested_on_has_labels(
    test_label, validation_label, split, expected, tiny
):
    relabel(tiny, "test", test_label)
    relabel(tiny, "validation", validation_label)
    if expected not in ("test", "validation"):
        with pytest.raises(DataError, match=expected):
            load_tiny(tiny, test_split=split)
        return
    labels = arrays(load_tiny(tiny, test_split=split).test)[1]
    assert len(labels) == {"test": 24, "validation": 6}[expected]
    np.testing.assert_array_equal(labels, np.eye(CLASSES)[[3] * len(labels)])


@pytest.mark.parametrize(
    "split, label, mixup_alpha",
    [
        ("train", -1, 0.0),
        ("train", CLASSES, 0.2),
        ("test", -7, 0.0),
        ("test", 2**33, 0.2),
    ],
)
def test_a_wrong_label_is_refused_wherever_it_is(
    split, label, mixup_alpha, tiny
):
    path = files(tiny, split)[1]
    rewrite(path, 11, label)
    datasets = load_tiny(tiny, mixup_alpha=mixup_alpha)
    # As in a run that is taken up again.
    batches = datasets.epochs(5, 6) if split == "train" else datasets.test
    with pytest.raises(DataError, match=f"Received:.*{label}.*in {path}"):
        with datasets.reading():
            list(batches)


def test_training_split_without_labels_is_refused(tiny):
    relabel(tiny, "train", -1)
    with pytest.raises(DataError, match="`train_split` must have labels"):
        load_tiny(tiny)


@pytest.mark.parametrize(
    "dtype, low, high",
    [
        ("uint8", 0, 255),
        ("uint16", 0, 65535),
        ("uint32", 0, 2**32 - 1),
        ("int8", -128, 127),
        ("int16", -32768, 32767),
        ("int32", -(2**31), 2**31 - 1),
        ("bool", False, True),
        ("float16", 0, 1),
        ("float32", 0, 1),
        ("float64", 0, 1),
    ],
)
def test_pixels_are_scaled_by_the_range_of_their_dtype(dtype, low, high):
    middle = low / 2 + high / 2
    image = tf.constant(np.array([low, middle, high]).astype(dtype)[None, None])
    scaled = sources._as_bytes(image).numpy().ravel()
    assert scaled.dtype == np.float32
    expected = [0.0, 255.0 if dtype == "bool" else 127.5, 255.0]
    # Middles of integers are halves, which are cut.
    tolerance = 0.5 if dtype in ("uint8", "int8") else 0.01
    np.testing.assert_allclose(scaled, expected, atol=tolerance)


def test_bytes_are_not_changed_by_scaling():
    image = np.arange(256, dtype="uint8").reshape(16, 16, 1)
    np.testing.assert_array_equal(sources._as_bytes(tf.constant(image)), image)


@pytest.mark.parametrize("dtype, grey", [("uint16", 32768), ("float32", 0.5)])
def test_half_grey_is_half_grey(dtype, grey, tiny):
    change_features(tiny, dtype=dtype, encodingFormat="png")
    feature = tfds.features.Image(shape=(8, 8, 1), dtype=np.dtype(dtype))
    image = feature.encode_example(np.full((8, 8, 1), grey, dtype))
    for path in tiny.glob("*tfrecord*"):
        rewrite(path, image=image)
    for batch, _ in load_tiny(tiny).test:
        np.testing.assert_allclose(batch, 0.0, atol=1e-4)


@pytest.mark.parametrize("value", [1.01, np.nan])
def test_float_images_out_of_range_are_refused(value, tiny):
    change_features(tiny, dtype="float32")
    feature = tfds.features.Image(shape=(8, 8, 1), dtype=np.float32)
    image = np.full((8, 8, 1), 0.5, "float32")
    image[3, 4] = value
    rewrite(files(tiny, "test")[0], image=feature.encode_example(image))
    with pytest.raises(DataError, match="Float images must be from 0 to 1"):
        use(tiny, "test")


def cut(path, fraction):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 0xFF
    path.write_bytes(bytes(content))


def cut_between_examples(path):
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in records[:-3]:
            writer.write(record)


def make_folder(path):
    path.unlink()
    path.mkdir()


def png(height, width):
    """A PNG file that promises a size, and holds nothing."""

    def chunk(kind, content):
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


def larger(path):
    feature = tfds.features.Image(shape=(9, 8, 1))
    image = feature.encode_example(np.zeros((9, 8, 1), "uint8"))
    rewrite(path, 3, image=image)


DAMAGE = {
    "truncated": lambda path: cut(path, 0.7),
    "cut to nothing": lambda path: cut(path, 0),
    "deleted": lambda path: path.unlink(),
    "flipped byte": lambda path: flip(path, 200),
    "flipped length": lambda path: flip(path, 0),
    "flipped checksum": lambda path: flip(path, -1),
    "text": lambda path: path.write_text("no records " * 99),
    "a folder": make_folder,
    "examples missing": cut_between_examples,
    "twice as long": lambda path: path.write_bytes(path.read_bytes() * 2),
    "no image": lambda path: rewrite(path, 5, image=b"GIF89a, nearly"),
    "too large an image": lambda path: rewrite(
        path, 5, image=png(2**20, 2**20)
    ),
    "cut image": lambda path: rewrite(path, 5, image=png(8, 8)),
    "image of another size": larger,
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_damaged_file_is_named(kind, tiny):
    split = "test" if len(kind) % 2 else "train"
    path = files(tiny, split)[1]
    DAMAGE[kind](path)
    with pytest.raises(DataError) as caught:
        use(tiny, split)
    message = str(caught.value)
    assert message.startswith("'tiny' cannot be used: ")
    assert f"in {path}. If it is damaged, remove {tiny}" in message
    assert "{" not in message and "node" not in message, message


def test_damage_is_told_where_data_are_measured(tiny):
    DAMAGE["cut image"](files(tiny)[0])
    with pytest.raises(DataError, match="'tiny' cannot be used: .*-00000-of"):
        load_tiny(tiny, mean=None)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"dtype": "int32"}, "cannot be used, or is damaged.*int32"),
        ({"dtype": "junk"}, "cannot be used, or is damaged.*junk"),
        ({"dtype": "float32"}, "Float images must be|cannot be used"),
        (
            {"encodingFormat": "tiff"},
            "cannot be used, or is damaged.*encoding_format",
        ),
        (
            {"shape": {"dimensions": ["8", "9", "1"]}},
            "[Ss]hape.*in .*-00000-of",
        ),
        (
            {"shape": {"dimensions": ["8", "8", "2"]}},
            "`channels` must be 0, 1, 3 or 4 but got 2, in",
        ),
    ],
)
def test_features_that_do_not_fit_are_one_line(changes, message, tiny):
    change_features(tiny, **changes)
    with pytest.raises(DataError, match=message):
        use(tiny, "train")


def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    folder = tmp_path / "digits" / "1.0.0"
    folder.mkdir(parents=True)
    with pytest.raises(DataError, match=f"{folder} is damaged; remove it"):
        load(tmp_path)


def flat_model(num_output_classes):
    flat = keras.layers.Flatten()
    return keras.Sequential([flat, keras.layers.Dense(num_output_classes)])


def train_on(tiny, workdir, model_cls=flat_model, **kwargs):
    return train.train(
        functools.partial(load_tiny, tiny, **kwargs),
        model_cls,
        num_epochs=1,
        workdir=workdir,
        deterministic=False,
    )


def test_training_on_damaged_data_ends_in_one_line(tiny, tmp_path):
    damaged, deleted = files(tiny, "train")[1], files(tiny, "test")[1]
    whole = damaged.read_bytes()
    DAMAGE["too large an image"](damaged)
    with pytest.raises(DataError, match=f"cannot be used: .* in {damaged}"):
        train_on(tiny, tmp_path / "run")
    damaged.write_bytes(whole)
    train_on(tiny, tmp_path / "run")
    deleted.unlink()  # The run is complete, and is only tested again.
    with pytest.raises(DataError, match=f"cannot be used: .* in {deleted}"):
        train_on(tiny, tmp_path / "run")


def test_faults_of_augmentation_are_told_apart(tiny, tmp_path):
    def fail(image, seed):
        tf.debugging.Assert(tf.reduce_max(image) < 20, ["too light"])
        return image

    with pytest.raises(DataError, match="too light.*Files are whole") as caught:
        train_on(tiny, tmp_path / "run", augment_fn=fail)
    assert "stack traces" not in str(caught.value)


@pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="TensorFlow's errors"
)
def test_errors_of_the_model_are_not_called_errors_of_the_data(tiny, tmp_path):
    class Refuse(keras.layers.Layer):
        def call(self, x):
            tf.debugging.assert_less(tf.reduce_max(x), -99.0)
            return x

    def model_cls(num_output_classes):
        return keras.Sequential([Refuse(), flat_model(num_output_classes)])

    with pytest.raises(tf.errors.InvalidArgumentError):
        train_on(tiny, tmp_path / "run", model_cls)


@pytest.mark.parametrize(
    "real", [False, pytest.param(True, marks=pytest.mark.slow)]
)
def test_too_little_memory_is_no_damage(real, tiny):
    # More than there are addresses. TensorFlow waits half a minute for them.
    source = sources.Source("tiny", str(tiny.parent.parent), 10**7, "resize")
    with pytest.raises(DataError, match="not fit into memory.*`image_size`"):
        with source.reading("train"):
            if not real:
                text = "{{node IteratorGetNext}} OOM when allocating tensor"
                raise tf.errors.ResourceExhaustedError(None, None, text)
            examples = source.examples("train_split", "train")
            next(iter(examples.map(source.decode)))


@pytest.mark.parametrize("mixup_alpha", [0.0, 0.4])
@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_batches(count, mixup_alpha, data_dir):
    loaded = data.load_datasets(
        "digits",
        batch_size=6,
        train_split="train[:50]",
        test_split="test[:10]",
        augment_fn=data.pad_crop_flip,
        mixup_alpha=mixup_alpha,
        data_dir=str(data_dir),
    )
    whole = list(loaded.epochs(0, 2).as_numpy_iterator())
    parts = [
        list(loaded.share(i, count).epochs(0, 2).as_numpy_iterator())
        for i in range(count)
    ]
    assert [len(part) for part in parts] == [len(whole)] * count
    for batch, *shares in zip(whole, *parts, strict=True):
        for column, *own in zip(batch, *shares, strict=True):
            np.testing.assert_allclose(np.concatenate(own), column, rtol=1e-6)
