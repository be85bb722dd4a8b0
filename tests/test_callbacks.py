import json

import keras
import numpy as np
import pytest

from diffstride import DiffStride, model_cost
from diffstride.callbacks import (
    Backup,
    EpochRecorder,
    StopOnNonFiniteLoss,
    TensorBoard,
)
from diffstride.errors import NonFiniteLossError
from diffstride.files import read_rows
from diffstride.resnet import Resnet


def trained(callbacks, learning_rate=0.1, epochs=2, **kwargs):
    model = Resnet([4, 8], [1, 2], pooling_cls=DiffStride)
    model.build((None, 16, 16, 1))
    model.compile(keras.optimizers.SGD(learning_rate, momentum=0.9), "mse")
    x = np.random.default_rng(0).normal(size=(12, 16, 16, 1))
    y = np.eye(10)[np.arange(12) % 10]
    model.fit(
        x,
        y,
        batch_size=4,
        epochs=epochs,
        verbose=0,
        callbacks=callbacks,
        **kwargs,
    )
    return model


def test_a_non_finite_loss_names_the_step():
    with pytest.raises(NonFiniteLossError) as caught:
        trained([StopOnNonFiniteLoss()], learning_rate=1e30)
    message = str(caught.value)
    assert "at step 2 (epoch 1, batch 2)" in message
    assert "\n" not in message


def test_weights_must_stay_finite(tmp_path):
    # The only step of the epoch spoils the weights; its own loss is finite.
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(3e38), "mse")
    backup = Backup(tmp_path, steps_per_epoch=1)
    with pytest.raises(NonFiniteLossError) as caught:
        model.fit(
            np.full((4, 1), 10.0),
            np.ones((4, 1)),
            verbose=0,
            callbacks=[StopOnNonFiniteLoss(), backup],
        )
    message = str(caught.value)
    assert message.startswith("Weight ")
    assert "is not finite after step 1 (epoch 1, batch 1)" in message
    assert not backup.path.exists()


def test_finite_weights_are_no_reason_to_stop():
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((4, 1))
    model.fit(x, x, verbose=0, callbacks=[StopOnNonFiniteLoss()])


def test_steps_are_counted_over_restarts(tmp_path):
    backup = Backup(tmp_path, steps_per_epoch=3)
    trained([backup], epochs=2)
    model = Resnet([4, 8], [1, 2], pooling_cls=DiffStride)
    model.build((None, 16, 16, 1))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    assert backup.restore(model) == 2
    with pytest.raises(NonFiniteLossError, match=r"at step 7 \(epoch 3, batch"):
        model.fit(
            np.full((4, 16, 16, 1), np.nan),
            np.zeros((4, 10)),
            initial_epoch=2,
            epochs=3,
            verbose=0,
            callbacks=[StopOnNonFiniteLoss()],
        )


def test_backup_keeps_model_and_optimizer(tmp_path):
    model = trained([Backup(tmp_path, steps_per_epoch=3)])
    # Killed while writing the next one.
    (tmp_path / "unfinished.latest.weights.h5").write_bytes(b"cut short")
    fresh = Resnet([4, 8], [1, 2], pooling_cls=DiffStride)
    fresh.build((None, 16, 16, 1))
    fresh.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    assert Backup(tmp_path, steps_per_epoch=3).restore(fresh) == 2
    for ours, theirs in (
        (fresh.variables, model.variables),
        (fresh.optimizer.variables, model.optimizer.variables),
    ):
        assert len(ours) == len(theirs) > 0
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_array_equal(a, b)


def test_nothing_to_restore(tmp_path):
    assert Backup(tmp_path / "none", 3).restore(keras.Model()) == 0


def test_recorder_writes_a_row_an_epoch(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = EpochRecorder(path, (16, 16, 1))
    model = trained([recorder], validation_split=0.25)
    rows = read_rows(path)
    assert [row["epoch"] for row in rows] == [1, 2]
    assert [row["step"] for row in rows] == [3, 6]
    row = rows[-1]
    for name in (
        "loss",
        "val_loss",
        "seconds",
        "steps_per_second",
        "stride_cost",
    ):
        assert row[name] > 0
    cost = model_cost(model, (16, 16, 1))
    assert row["macs"] == cost.macs > 0
    assert row["activation_bytes"] == cost.activation_bytes > 0
    assert row["learning_rate"] == pytest.approx(0.1)
    strides = np.asarray(model.blocks[0].layers[0].pooling.stride_weights)
    name = "block_1/layer_1/pooling"
    for axis, stride in zip(("height", "width"), strides, strict=True):
        assert row[f"stride/{name}/{axis}"] == pytest.approx(float(stride))
        assert row[f"output_size/{name}/{axis}"] in (14, 16)


def test_tensorboard_takes_numbers_of_more_than_32_bits(tmp_path):
    recorder = EpochRecorder(tmp_path / "metrics.jsonl", (16, 16, 1))
    recorder.scalars = {"macs": 2**40}
    board = TensorBoard(str(tmp_path), recorder)
    model = keras.Sequential([keras.Input((1,))])
    model.compile("sgd", "mse")
    board.set_model(model)
    board.on_train_begin()
    board.on_epoch_end(0, {})
    board.on_train_end()


def test_rows_that_will_be_repeated_are_taken_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"epoch": n, "seconds": 1.0} for n in (1, 2, 3)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    path.write_text(text + '{"epoch": 4, "sec')  # Killed while writing.
    assert read_rows(path) == rows
    recorder = EpochRecorder(path, (16, 16, 1), first_epoch=2)
    recorder.on_train_begin()
    assert read_rows(path) == rows[:2]


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="a later Keras"
)
def test_recorder_tells_the_learning_rate_of_the_first_weights(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(1, 1),
            DiffStride(2.0, 1.0),
            keras.layers.GlobalMaxPooling2D(),
        ]
    )
    others = {".*/strides": keras.optimizers.Adam(0.5)}
    choice = keras.optimizers.OptimizerMap(keras.optimizers.SGD(0.25), others)
    optimizer = keras.optimizers.MultiOptimizer(choice)
    model.compile(optimizer, "mse", run_eagerly=True)
    recorder = EpochRecorder(tmp_path / "metrics.jsonl", (8, 8, 1))
    x = np.ones((2, 8, 8, 1))
    model.fit(x, np.zeros((2, 1)), verbose=0, callbacks=[recorder])
    assert recorder.rows[0]["learning_rate"] == 0.25
