"""Several tasks at once: their batches, and runs on them."""

import functools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from event_files import scalars
from interruptions import keep_copies

from diffstride import data, train
from diffstride.data.tasks import load_tasks
from diffstride.errors import DataError
from diffstride.resnet import Resnet


def made(size, classes, batch_size=2, width=3, validation=True, seed=0):
    """Data whose first number tells epoch and example, the second the seed."""

    def batches(count, number=0):
        index = tf.range(count, dtype=tf.int64)
        number = tf.cast(number, tf.int64)
        return tf.data.Dataset.from_tensor_slices(
            (
                tf.stack(
                    [1000 * number + index] + [index * 0 + seed] * (width - 1),
                    1,
                ),
                tf.one_hot(index % classes, classes),
            )
        )

    def epoch(number):
        return batches(size, number).batch(batch_size, drop_remainder=True)

    once = batches(size // 2).batch(4)
    return data.Datasets(
        epoch,
        once,
        classes,
        (width,),
        size // batch_size,
        validation=once if validation else None,
    )


def maker(*args, **kwargs):
    return lambda seed: made(*args, **kwargs, seed=seed)


LOADERS = {"large": maker(12, 4), "small": maker(8, 3)}


def gathered(batches):
    """Inputs, labels and weights of all batches, joined."""
    found = list(batches.as_numpy_iterator())
    return tf.nest.map_structure(lambda *parts: np.concatenate(parts), *found)


def test_a_batch_has_equal_shares_and_an_epoch_the_largest_task_once():
    datasets = load_tasks(LOADERS)
    assert datasets.num_classes == {"large": 4, "small": 3}
    assert datasets.tasks == datasets.heads == ("large", "small")
    assert (datasets.steps_per_epoch, datasets.images_per_epoch) == (6, 24)
    batches = list(datasets.epochs(5, 6).as_numpy_iterator())
    assert [len(x) for x, *_ in batches] == [4] * 6
    inputs, labels, weights = gathered(datasets.epoch(5))
    # In turn, so that half a batch has equal shares too.
    assert inputs[0::2, 0].tolist() == [*range(5000, 5012)]
    assert inputs[1::2, 0].tolist() == [
        *range(10000, 10008),
        *range(11000, 11004),
    ]
    assert len({*inputs[:, 1]}) == 2  # Seeds.
    for place, (task, classes) in enumerate(datasets.num_classes.items()):
        own = np.arange(24) % 2 == place
        np.testing.assert_array_equal(weights[task], 2.0 * own)
        wanted = np.eye(classes)[inputs[:, 0] % 1000 % classes] * own[:, None]
        np.testing.assert_array_equal(labels[task], wanted)


def test_tests_go_once_through_each_task_which_then_count_alike():
    inputs, labels, weights = gathered(load_tasks(LOADERS).test)
    assert inputs[:, 0].tolist() == [*range(6), *range(4)]
    assert labels["large"].sum(1).tolist() == [1] * 6 + [0] * 4
    np.testing.assert_allclose(weights["large"], [10 / 6] * 6 + [0] * 4)
    np.testing.assert_allclose(weights["small"], [0] * 6 + [10 / 4] * 4)


def test_one_task_is_loaded_as_by_its_own_loader():
    found = load_tasks(LOADERS, "small", seed=7)
    assert found.num_classes == 3 and found.heads == ()
    for ours, theirs in zip(
        gathered(found.epoch(1)),
        gathered(made(8, 3, seed=7).epoch(1)),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    "loaders, tasks, said",
    [
        ([maker(4, 2)], None, "must be a dictionary of functions"),
        ({"made": made(4, 2)}, None, "without brackets behind"),
        (LOADERS, "larg", "names of `loaders`, each once: large, small"),
        (LOADERS, "small, small", "each once"),
        ({**LOADERS, "val": maker(4, 2)}, None, "Received: 'val'"),
        ({**LOADERS, "a/b": maker(4, 2)}, None, "Received: 'a/b'"),
        (
            {**LOADERS, "wide": maker(4, 2, width=5)},
            None,
            "examples of one size for all tasks. Received: large (3,), small "
            "(3,), wide (5,)",
        ),
        (
            {**LOADERS, "big": maker(4, 2, batch_size=4)},
            None,
            "batches of one size for all tasks. Received: large 2, small 2, "
            "big 4",
        ),
        (
            {**LOADERS, "bare": maker(4, 2, validation=False)},
            None,
            "validation split for all tasks or for none. Without one: bare",
        ),
    ],
)
def test_what_does_not_fit_is_told_in_one_line(loaders, tasks, said):
    with pytest.raises(DataError) as error:
        load_tasks(loaders, tasks)
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.fixture(scope="module")
def digits(data_dir):
    """Two tasks: the digit, and whether it is even."""
    load = functools.partial(
        data.load_datasets,
        "digits",
        batch_size=16,
        data_dir=data_dir,
        train_split="train[:64]",
    )

    def parity(seed):
        digits = load(test_split="test[:24]", seed=seed)
        return digits_to_parity(digits)

    return {
        "digit": functools.partial(load, test_split="test[:40]"),
        "parity": parity,
    }


def digits_to_parity(digits):
    def halved(x, y):
        return x, tf.stack([tf.reduce_sum(y[:, i::2], 1) for i in (0, 1)], 1)

    return data.Datasets(
        lambda number: digits.epoch(number).map(halved),
        digits.test.map(halved),
        2,
        digits.image_shape,
        digits.steps_per_epoch,
    )


def tiny(num_output_classes):
    return Resnet(
        [4, 4],
        [1, 2],
        num_output_classes,
        num_layers=1,
    )


def run(loaders, workdir, num_epochs=2, **kwargs):
    return train.train(
        functools.partial(load_tasks, loaders),
        tiny,
        functools.partial(keras.optimizers.SGD, 0.1),
        num_epochs,
        workdir,
        seed=3,
        deterministic=False,
        **kwargs,
    )


def rows(workdir):
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    timing = ("seconds", "steps_per_second")
    return [
        {k: v for k, v in json.loads(line).items() if k not in timing}
        for line in lines
    ]


def test_a_run_of_two_tasks_and_its_resumption(digits, tmp_path, monkeypatch):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    with monkeypatch.context() as patched:
        keep_copies(patched, {1: resumed})
        summary = run(digits, whole, label_smoothing=0.1)
    model = keras.models.load_model(whole / "model.keras")
    for task, load in digits.items():
        x, y = gathered(load(seed=0).test)
        hits = model.predict(x, verbose=0)[task].argmax(1) == y.argmax(1)
        own = summary["tasks"][task]
        assert own["num_classes"] == y.shape[1]
        assert own["test_accuracy"] == pytest.approx(hits.mean())
    assert summary["tasks"].keys() == digits.keys()
    for metric in ("test_accuracy", "test_loss"):
        each = [own[metric] for own in summary["tasks"].values()]
        assert summary[metric] == pytest.approx(np.mean(each), rel=1e-5)
    last = rows(whole)[-1]
    assert last["val_accuracy"] == pytest.approx(summary["test_accuracy"])
    assert last["val_parity_loss"] == pytest.approx(
        summary["tasks"]["parity"]["test_loss"]
    )
    tags = {tag for _, tag, *_ in scalars(whole / "tensorboard" / "validation")}
    assert {"epoch_accuracy", "epoch_parity_loss"} <= tags
    assert not any("cross_entropy" in name for name in {*tags, *last})

    run(digits, resumed, label_smoothing=0.1)
    assert rows(resumed) == rows(whole)
    again = keras.models.load_model(resumed / "model.keras")
    for ours, theirs in zip(again.variables, model.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.path)


def test_a_run_of_one_task_is_that_of_its_loader(digits, tmp_path):
    loaders = {"digit": digits["digit"]}
    ours = run(loaders, tmp_path / "ours", 1)
    theirs = train.train(
        digits["digit"],
        tiny,
        functools.partial(keras.optimizers.SGD, 0.1),
        1,
        tmp_path / "theirs",
        seed=3,
        deterministic=False,
    )
    task = ours.pop("tasks")["digit"]
    assert task["test_accuracy"] == ours["test_accuracy"]
    assert rows(tmp_path / "ours") == rows(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
