import json
import shutil
import zipfile

import keras
import numpy as np
import pytest
from event_files import scalars

from diffstride import DiffStride, model_cost
from diffstride.callbacks import (
    Backup,
    EpochRecorder,
    StopOnNonFiniteLoss,
    TensorBoard,
)
from diffstride.errors import NonFiniteLossError, UserError
from diffstride.resnet import Resnet
from diffstride.runs import read_rows


def dense(learning_rate=0.1, units=1, inputs=1, momentum=0.9):
    """The smallest model; it pools nothing."""
    model = keras.Sequential(
        [keras.Input((inputs,)), keras.layers.Dense(units)]
    )
    model.compile(keras.optimizers.SGD(learning_rate, momentum), "mse")
    model.optimizer.build(model.trainable_variables)
    return model


def fit(model, callbacks, x=None, **kwargs):
    """Trains: three steps an epoch."""
    x = np.ones((12, 1)) if x is None else x
    model.fit(x, 2 * x, 4, verbose=0, callbacks=callbacks, **kwargs)
    return model


def test_a_non_finite_loss_names_the_step():
    with pytest.raises(NonFiniteLossError) as caught:
        fit(dense(1e30), [StopOnNonFiniteLoss()])
    message = str(caught.value)
    assert "at step 2 (epoch 1, batch 2)" in message
    assert "\n" not in message


def test_weights_must_stay_finite(tmp_path):
    # The only step of the epoch spoils the weights; its own loss is finite.
    model = dense(3e38, momentum=0.0)
    backup = Backup(tmp_path, steps_per_epoch=1)
    with pytest.raises(NonFiniteLossError) as caught:
        fit(model, [StopOnNonFiniteLoss(), backup], np.full((4, 1), 10.0))
    message = str(caught.value)
    assert message.startswith("Weight ")
    assert "is not finite after step 1 (epoch 1, batch 1)" in message
    assert not backup.path.exists()


def test_steps_are_counted_over_restarts(tmp_path):
    backup = Backup(tmp_path, steps_per_epoch=3)
    fit(dense(), [backup], epochs=2)
    model = dense()
    assert backup.restore(model) == 2
    with pytest.raises(NonFiniteLossError, match=r"at step 7 \(epoch 3, batch"):
        fit(
            model,
            [StopOnNonFiniteLoss()],
            np.full((12, 1), np.nan),
            initial_epoch=2,
            epochs=3,
        )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """The workdir of two epochs, and the model."""
    root = tmp_path_factory.mktemp("kept")
    (root / "backup").mkdir()
    model = fit(dense(), [Backup(root / "backup", 3)], epochs=2)
    model.save(root / "model.keras")
    return root, model


def same(ours, theirs):
    for a, b in (
        (ours.variables, theirs.variables),
        (ours.optimizer.variables, theirs.optimizer.variables),
    ):
        assert len(a) == len(b) > 0
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


def test_backup_keeps_model_and_optimizer(kept, tmp_path):
    root, model = kept
    shutil.copytree(root / "backup", tmp_path, dirs_exist_ok=True)
    # Killed while writing the next one.
    (tmp_path / "unfinished.latest.weights.h5").write_bytes(b"cut short")
    fresh = dense()
    assert Backup(tmp_path, steps_per_epoch=3).restore(fresh) == 2
    same(fresh, model)


def test_nothing_to_restore(tmp_path):
    backup = Backup(tmp_path / "none", 3, tmp_path / "model.keras")
    assert not backup.exists()
    assert backup.restore(keras.Model()) == 0


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def make_a_folder(path):
    path.unlink()
    path.mkdir()


def save_other(**kwargs):
    """Puts there what another run left, which is whole."""

    def save(path):
        model = fit(dense(**kwargs), [], np.ones((12, kwargs.get("inputs", 1))))
        if path.suffix == ".h5":
            model.save_weights(path)
        else:
            model.save(path)

    return save


def without_weights(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")


DAMAGES = {
    "truncated": truncate,
    "a folder": make_a_folder,
    "of another network": save_other(units=2),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("no HDF5" * 99),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "another archive": without_weights,
    "without its end": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "of another optimizer": save_other(momentum=0.0),
    "of more inputs": save_other(inputs=3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_backup(damage, kept, tmp_path):
    root, model = kept
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    backup = Backup(tmp_path / "backup", 3, tmp_path / "model.keras")
    damage(backup.path)
    fresh = dense()
    assert backup.restore(fresh) == 2  # From the model that was saved.
    same(fresh, model)
    damage(tmp_path / "model.keras")
    with pytest.raises(UserError) as caught:
        backup.restore(dense())
    for path in (backup.path, tmp_path / "model.keras"):
        assert f"{path} does not hold this run: " in str(caught.value)
    assert f"or remove {backup.path} and" in str(caught.value)


def test_a_backup_that_cannot_be_written(kept, tmp_path):
    root, model = kept
    shutil.copytree(root / "backup", tmp_path, dirs_exist_ok=True)
    backup = Backup(tmp_path, 3)
    before = backup.path.read_bytes()
    backup.set_model(fit(dense(), []))
    for name in ("unfinished.keras", "unfinished.latest.weights.h5"):
        (tmp_path / name).symlink_to("/dev/full")
        with pytest.raises(UserError, match="written: No space left on device"):
            backup.on_epoch_end(2)
        assert backup.path.read_bytes() == before
        # What was begun is gone, so that there is space for what comes next.
        assert list(tmp_path.iterdir()) == [backup.path]
    backup.on_epoch_end(2)
    assert backup.path.read_bytes() != before


def recorded(callbacks, epochs=2, **kwargs):
    model = Resnet([4, 8], [1, 2], pooling_cls=DiffStride, num_layers=1)
    model.build((None, 16, 16, 1))
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
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


def charts(directory):
    """What TensorBoard shows: name -> list of steps and values."""
    found = {}
    for folder, tag, step, number in scalars(directory):
        found.setdefault(f"{folder}/{tag}", []).append((step, number))
    return found


def test_recorder_writes_a_row_an_epoch(tmp_path):
    path = tmp_path / "metrics.jsonl"
    recorder = EpochRecorder(path, (16, 16, 1))
    board = TensorBoard(str(tmp_path / "board"), recorder)
    model = recorded([recorder, board], validation_split=0.25)
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
    layer = model.blocks[0].layers[0].pooling
    strides = np.asarray(layer.stride_weights)
    name = "block_1/layer_1/pooling"
    for axis, stride in zip(("height", "width"), strides, strict=True):
        assert row[f"stride/{name}/{axis}"] == pytest.approx(float(stride))
        assert row[f"output_size/{name}/{axis}"] in (14, 16)

    # The charts: epochs by their number, and the initial strides at 0.
    found = charts(tmp_path / "board")
    height = found[f"train/epoch_stride/{name}/height"]
    assert [step for step, _ in height] == [0, 1, 2]
    assert height[0][1] == float(layer.strides[0])
    assert height[2][1] == pytest.approx(float(strides[0]))
    assert [step for step, _ in found["train/epoch_loss"]] == [1, 2]
    validation = {n for n in found if n.startswith("validation/")}
    assert validation == {"validation/epoch_loss"}


def test_charts_go_on_after_a_restart(tmp_path, monkeypatch):
    """No step twice, though the second epoch could not be kept."""
    rows = tmp_path / "metrics.jsonl"

    def callbacks(first_epoch):
        recorder = EpochRecorder(rows, (1,), first_epoch)
        backup = Backup(tmp_path, 3)
        return backup, [
            recorder,
            backup,
            TensorBoard(str(tmp_path / "board"), recorder),
        ]

    backup, both = callbacks(0)
    full = keras.callbacks.LambdaCallback(
        on_epoch_begin=lambda epoch, logs: (
            epoch and (tmp_path / "unfinished.keras").symlink_to("/dev/full")
        )
    )
    with pytest.raises(UserError, match="No space left on device"):
        fit(dense(), [full, *both], epochs=3)
    model = dense()
    assert backup.restore(model) == 1
    fit(model, callbacks(1)[1], initial_epoch=1, epochs=3)
    found = charts(tmp_path / "board")
    assert [step for step, _ in found["train/epoch_macs"]] == [0, 1, 2, 3]
    assert [step for step, _ in found["train/epoch_loss"]] == [1, 2, 3]
    assert [row["epoch"] for row in read_rows(rows)] == [1, 2, 3]


def test_tensorboard_takes_numbers_of_more_than_32_bits(tmp_path):
    recorder = EpochRecorder(tmp_path / "metrics.jsonl", (16, 16, 1))
    recorder.scalars = {"macs": 2**40}
    board = TensorBoard(str(tmp_path), recorder)
    board.set_model(dense())
    board.on_train_begin()
    board.on_epoch_end(0, {})
    board.on_train_end()


def test_event_files_that_cannot_be_written(tmp_path):
    (tmp_path / "train").write_text("no folder")
    board = TensorBoard(str(tmp_path), EpochRecorder(tmp_path / "x", (1,)))
    board.set_model(dense())
    with pytest.raises(UserError, match=f"^{tmp_path} cannot be written: Not"):
        board.on_train_begin()


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
