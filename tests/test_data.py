import collections
import time
import urllib.error

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from diffstride import data
from diffstride.errors import DataError


def load(data_dir, **kwargs):
    kwargs = {"name": "digits", "batch_size": 64, **kwargs}
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
    kwargs = dict(augment_fn=data.pad_crop_flip, mixup_alpha=0.3)
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
    images = arrays(load(data_dir, batch_size=479).epoch(0))[0]
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


def test_cifar10_with_mixup_has_195_steps(mocked):
    mocked("cifar10", train=50_000, test=10_000)
    assert data.load_datasets("cifar10", 128).steps_per_epoch == 390
    mixed = data.load_datasets("cifar10", 128, mixup_alpha=0.2)
    assert mixed.steps_per_epoch == 195


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_mixup_alpha_is_used(alpha, data_dir):
    weights = data.mixup_weights(20_000, alpha, tf.constant([1, 2])).numpy()
    assert weights.min() >= 0 and weights.max() <= 1
    np.testing.assert_allclose(weights.mean(), 0.5, atol=0.02)
    # Of Beta(alpha, alpha).
    np.testing.assert_allclose(
        weights.var(), 1 / (4 * (2 * alpha + 1)), rtol=0.06
    )
    loaded = load(data_dir, mixup_alpha=alpha)
    labels = np.concatenate([arrays(loaded.epoch(e))[1] for e in range(4)])
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
        ({"resizing": "stretch"}, "`resizing` must be 'resize' or 'pad'"),
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
    with pytest.raises(DataError, match="has no test split; set `train_split`"):
        data.load_datasets("cats_vs_dogs", batch_size=2, image_size=8)
