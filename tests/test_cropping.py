"""Windows of images, files in a new order, and the config for ImageNet."""

import io
import shutil

import gin
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from interruptions import OneStep, end_after_a_step

from diffstride import config, data
from diffstride.data import cropping, sources
from diffstride.errors import DataError

COUNT, FILES = 40, 4


def jpeg(image, **kwargs):
    return tf.io.encode_jpeg(np.asarray(image, "uint8"), **kwargs).numpy()


def colour(i):
    """What tells an image apart, wherever it is cropped."""
    return [6 * i, 250 - 6 * i, 128]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A TFDS folder that holds `jpegs`, of many sizes, one of them a PNG."""
    root = tmp_path_factory.mktemp("tfds")

    def examples(count):
        for i in range(count):
            image = np.full((20 + i, 60 - i, 3), colour(i), "uint8")
            encode = tf.io.encode_png if i == 3 else tf.io.encode_jpeg
            file = io.BytesIO(encode(image).numpy())
            yield i, {"image": file, "label": i % 10}

    tfds.dataset_builders.store_as_tfds_dataset(
        name="jpegs",
        version="1.0.0",
        features=tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="jpeg"),
                "label": tfds.features.ClassLabel(num_classes=10),
            }
        ),
        split_datasets={"train": examples(COUNT), "validation": examples(8)},
        data_dir=root,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=FILES),
    )
    return root


def load(folder, **kwargs):
    kwargs = {
        **{"batch_size": 8, "image_size": 16, "resizing": "crop"},
        **{"mean": [0.0] * 3, "std": [1 / 255] * 3},
        **{"shuffle_files": True, "shuffle_buffer": 8, **kwargs},
    }
    return data.load_datasets("jpegs", data_dir=str(folder), **kwargs)


def order(dataset):
    """Which images come, one after the other."""
    reds = [images[:, 0, 0, 0] for images, _ in dataset.as_numpy_iterator()]
    return np.rint(np.concatenate(reds) / 6).astype(int).tolist()


def test_of_a_jpeg_the_window_is_what_the_whole_would_have():
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (64, 80, 3))
    feature = tfds.features.Image()
    for encoded in (jpeg(image), tf.io.encode_png(image.astype("uint8"))):
        whole = feature.decode_example(encoded)
        for window in ([8, 16, 24, 32], [3, 5, 41, 17], [0, 0, 64, 80]):
            part = cropping.decode_window(
                encoded, lambda _, window=window: window, feature
            )
            top, left, height, width = window
            expected = whole[top : top + height, left : left + width]
            assert part.shape == expected.shape
            # Colours of a JPEG are interpolated within the window.
            inner = slice(1, -1)
            np.testing.assert_array_equal(
                part[inner, inner], expected[inner, inner]
            )


def test_random_windows_are_inside_and_as_large_as_asked_for():
    shape = tf.constant([300, 400, 3])
    found = np.array(
        [
            cropping.random_window(tf.constant([i, 7]), 0.25)(shape)
            for i in range(300)
        ]
    )
    top, left, height, width = found.T
    assert (found[:, :2] >= 0).all()
    assert (top + height <= 300).all() and (left + width <= 400).all()
    area = height * width / (300 * 400)
    assert 0.24 < area.min() < 0.3 and 0.9 < area.max() <= 1
    aspect = width / height
    assert 0.74 < aspect.min() < 0.8 and 1.25 < aspect.max() < 1.35
    middle = np.mean([top + height / 2, left + width / 2], 1)
    np.testing.assert_allclose(middle, (150, 200), atol=10)
    again = cropping.random_window(tf.constant([0, 7]), 0.25)(shape)
    np.testing.assert_array_equal(again, found[0])


@pytest.mark.parametrize(
    "shape, size, expected",
    [
        ((375, 500, 3), (224, 224), (23, 86, 328, 328)),
        ((256, 256, 3), (224, 224), (16, 16, 224, 224)),
        ((100, 100, 1), (10, 20), (28, 6, 44, 88)),
        ((1, 1, 3), (224, 224), (0, 0, 1, 1)),
    ],
)
def test_central_windows(shape, size, expected):
    window = cropping.central_window(size)(tf.constant(shape))
    np.testing.assert_array_equal(window, expected)


def test_training_windows_differ_and_those_of_the_test_do_not(folder):
    """Images of a gradient tell where they were cropped."""
    source = sources.Source("jpegs", str(folder), 16, "crop")
    ramp = np.broadcast_to(np.arange(256)[:, None, None], (256, 256, 3))
    encoded = tf.constant(jpeg(ramp, quality=100))

    def middle(seed):
        image, _ = source.decode(encoded, tf.constant(0), seed)
        assert image.shape == (16, 16, 3)
        return float(tf.reduce_mean(image))

    assert middle(None) == pytest.approx(127.5, abs=1)
    drawn = [middle(tf.constant([1, i])) for i in range(8)]
    assert len({round(each) for each in drawn}) > 4
    assert drawn == [middle(tf.constant([1, i])) for i in range(8)]


def test_an_epoch_reads_all_files_in_an_order_of_its_own(folder):
    one = load(folder, seed=1)
    epochs = [order(one.epoch(i)) for i in range(3)]
    for each in epochs:
        assert sorted(each) == list(range(COUNT))
    assert len(set(map(tuple, epochs))) == 3
    # Not the first file first each time.
    assert len({tuple(sorted(each[:8])) for each in epochs}) > 1
    part = load(folder, train_split="train[:50%]", test_split="validation")
    found = order(part.epoch(0))
    assert len({*found}) == 16 and max(found) < COUNT // 2


def test_order_and_windows_depend_on_seed_and_epoch_alone(folder):
    kwargs = {"augment_fn": data.pad_crop_flip, "shuffle_buffer": 16}

    def gathered(batches):
        return np.concatenate([x for x, _ in batches])

    first = gathered(load(folder, seed=1, **kwargs).epoch(2))
    tf.random.set_seed(99)
    resumed = gathered(load(folder, seed=1, **kwargs).epochs(1, 3))
    assert len(resumed) == 2 * len(first)
    np.testing.assert_array_equal(resumed[len(first) :], first)
    other = gathered(load(folder, seed=2, **kwargs).epoch(2))
    assert not np.array_equal(other, first)


def test_damage_outside_of_the_window_is_named(folder, tmp_path):
    root = shutil.copytree(folder, tmp_path / "tfds")
    path = sorted(root.rglob("jpegs-validation*"))[0]
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    example = tf.train.Example.FromString(records[0])
    image = example.features.feature["image"].bytes_list
    image.value[0] = image.value[0][: len(image.value[0]) // 2]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for record in [example.SerializeToString(), *records[1:]]:
            writer.write(record)
    loaded = load(root)
    with pytest.raises(DataError, match=f"cannot be used: .* in {path}"):
        with loaded.reading():
            list(loaded.test)


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"image_size": None}, "`resizing='crop'` needs an `image_size`"),
        ({"least_area": 0}, "`least_area` must be above 0"),
        ({"resizing": "cut"}, "must be 'resize', 'pad' or 'crop'"),
    ],
)
def test_what_cannot_be_is_refused(kwargs, message, folder):
    with pytest.raises(DataError, match=message):
        load(folder, **kwargs)


def test_the_config_for_imagenet_begins_to_train(folder, tmp_path, monkeypatch):
    seen = end_after_a_step(monkeypatch)
    gin.clear_config()
    try:
        config.load(
            ["imagenet_resnet18.gin"],
            [
                "train.num_epochs = 1",
                "train.deterministic = False",
                f"train.workdir = '{tmp_path / 'run'}'",
                "data.load_datasets.name = 'jpegs'",
                f"data.load_datasets.data_dir = '{folder}'",
                "data.load_datasets.batch_size = 8",
                "data.load_datasets.image_size = 32",
                "data.load_datasets.shuffle_buffer = 16",
                "resnet.resnet18.filters = [4, 4, 8]",
                "resnet.resnet18.strides = [1, 1, 2]",
                "resnet.resnet18.num_layers = 1",
            ],
        )
        with pytest.raises(OneStep):
            config.run_training(config_fn=config.operative)
    finally:
        gin.clear_config()
    ((steps, layers),) = seen
    assert steps == COUNT // 8
    assert [tuple(state.input_size) for state in layers] == [(8, 8)]
