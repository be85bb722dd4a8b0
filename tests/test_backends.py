"""The harness on the backend that Keras has: TensorFlow, JAX or torch.

What does not depend on the backend is in test_train.py, on TensorFlow.
"""

import argparse
import json
import os

import keras
import numpy as np
import pytest
import tensorflow as tf
from event_files import scalars
from interruptions import keep_copies
from maps import BACKEND, JAX, slow_unless
from scripts_alone import ROOT, script

from diffstride import DiffStride, devices, train
from diffstride.data import load_datasets
from diffstride.errors import ConfigError, NonFiniteLossError
from diffstride.runs import read_rows

backends = script("backends")

OTHER = "jax" if BACKEND == "torch" else "torch"
# Where test_train.py has the like.
slow_on_tensorflow = slow_unless(BACKEND != "tensorflow")
# What another run of the same may differ in.
TIMES = ("seconds", "steps_per_second", "compilations", "compile_seconds")


@pytest.fixture(autouse=True)
def taken_back(monkeypatch):
    """What a run sets for the whole process."""
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    if BACKEND == "tensorflow":  # Which cannot.
        monkeypatch.setattr(devices, "_make_deterministic", lambda: None)
    data_format = keras.config.image_data_format()
    yield
    keras.config.set_image_data_format(data_format)
    if BACKEND == "torch":
        import torch

        torch.use_deterministic_algorithms(False)


@pytest.fixture
def run(data_dir, tmp_path):
    """Trains a tiny network in a workdir of this name."""

    def network(num_output_classes, input_shape):
        return keras.Sequential(
            [
                keras.Input(input_shape),
                keras.layers.Conv2D(4, 3, use_bias=False),
                keras.layers.BatchNormalization(),
                keras.layers.ReLU(),
                DiffStride(1.5),
                keras.layers.Conv2D(4, 1, activation="relu"),
                keras.layers.GlobalAveragePooling2D(),
                keras.layers.Dense(num_output_classes),
            ]
        )

    def run(name, learning_rate=0.01, **settings):
        keras.utils.clear_session(free_memory=False)
        return train.train(
            lambda seed: load_datasets(
                *("digits", 32),
                data_dir=data_dir,
                image_size=8,
                mixup_alpha=0.2,
                train_split="train[:128]",
                test_split="test[:64]",
                seed=seed,
            ),
            network,
            lambda: keras.optimizers.SGD(learning_rate, momentum=0.9),
            workdir=str(tmp_path / name),
            stride_cost_weight=0.01,
            **settings,
        )

    return run


def weights(workdir, name="model"):
    model = keras.models.load_model(workdir / f"{name}.keras")
    values = [*model.variables, *model.optimizer.variables]
    return {v.path: keras.ops.convert_to_numpy(v) for v in values}


def lasting(row):
    return {name: value for name, value in row.items() if name not in TIMES}


def assert_same_runs(ours, theirs, models=("model",)):
    for name in models:
        expected, got = weights(theirs, name), weights(ours, name)
        assert expected.keys() == got.keys()
        for path, value in expected.items():
            np.testing.assert_array_equal(got[path], value, err_msg=path)
    rows = [read_rows(each / "metrics.jsonl") for each in (ours, theirs)]
    assert [*map(lasting, rows[0])] == [*map(lasting, rows[1])]
    events = [
        sorted(
            (tag, step, value)
            for _, tag, step, value in scalars(each / "tensorboard" / part)
            if tag.removeprefix("epoch_") not in TIMES
        )
        for part in ("train", "validation")
        for each in (ours, theirs)
    ]
    assert events[0] == events[1] and events[2] == events[3] != []


@slow_on_tensorflow
def test_a_run_goes_on_bit_for_bit(run, tmp_path, monkeypatch, capsys):
    """With what is drawn, the stride cost, and strides' own optimizer."""
    settings = {
        "num_epochs": 2,
        "stride_optimizer_cls": lambda: keras.optimizers.Adam(0.05),
    }
    if not hasattr(keras.optimizers, "MultiOptimizer"):  # A later Keras has.
        del settings["stride_optimizer_cls"]
    with monkeypatch.context() as patched:
        keep_copies(patched, {1: tmp_path / "again"})
        summary = run("whole", **settings)
    assert BACKEND in summary["environment"]
    assert np.isfinite(summary["test_loss"]) and summary["epochs"] == 2
    first, second = read_rows(tmp_path / "whole" / "metrics.jsonl")
    if JAX:  # One of training, one of testing, and nothing again.
        assert (first["compilations"], second["compilations"]) == (2, 0)
        assert summary["compilations"] == 2
        assert 0 < summary["compile_seconds"] < summary["seconds"]
        assert "compilations   2 of steps" in capsys.readouterr().out
    else:
        assert "compilations" not in summary | first

    run("again", **settings)
    assert_same_runs(tmp_path / "again", tmp_path / "whole")
    # One of another backend is not gone on with.
    config = tmp_path / "again" / "config.gin"
    assert config.read_text() == f"# KERAS_BACKEND={BACKEND}\n"
    config.write_text(f"# KERAS_BACKEND={OTHER}\n")
    with pytest.raises(ConfigError, match=f"set KERAS_BACKEND={OTHER}, or"):
        run("again", **settings)


@slow_on_tensorflow
def test_the_step_that_diverged_is_named(run):
    with pytest.raises(NonFiniteLossError, match=r"step 2 \(epoch 1, batch 2"):
        run("diverged", learning_rate=1e38)


@pytest.mark.parametrize("names", [["CPU:0"], ["/device:CPU:0"], ["cpu:0"]])
def test_one_device_is_chosen(names):
    placement = devices.place(names)
    with placement.running(), placement.making():
        layer = keras.layers.Dense(2)
        layer.build((None, 2))
    assert keras.ops.convert_to_numpy(layer.kernel).shape == (2, 2)


@pytest.mark.parametrize(
    "names, message",
    [
        (["GPU:99"], "among those of this machine, each once: CPU:0"),
        (["CPU:0", "CPU:0"], "each once: CPU:0"),
        pytest.param(
            ["CPU:0", "GPU:0"],
            f"one device on {BACKEND}, which trains on one from one process",
            marks=pytest.mark.skipif(
                BACKEND == "tensorflow", reason="takes several"
            ),
        ),
    ],
)
def test_devices_that_cannot_be_are_refused(names, message, monkeypatch):
    if "GPU:0" in names:
        monkeypatch.setattr(devices, "_devices", lambda: ["CPU:0", "GPU:0"])
    with pytest.raises(ConfigError, match=message):
        devices.place(names)


def test_a_gpu_is_the_backend_s_and_decides_where_channels_are(monkeypatch):
    hidden = []
    monkeypatch.setattr(devices, "accelerators", lambda: ["a GPU"])
    monkeypatch.setattr(
        tf.config, "set_visible_devices", lambda *what: hidden.append(what)
    )
    devices.set_up(deterministic=False)
    assert hidden == ([] if BACKEND == "tensorflow" else [([], "GPU")])
    expected = "channels_last" if JAX else "channels_first"
    assert keras.config.image_data_format() == expected


def test_what_cannot_be_compiled_is_refused():
    for jit_compile, deterministic, refused in (
        (False, True, ()),
        (True, False, ("torch",)),
        (True, True, ("torch", "tensorflow")),
    ):
        if BACKEND in refused:
            with pytest.raises(ConfigError, match="must be False"):
                devices.check_compiling(jit_compile, deterministic)
        else:
            devices.check_compiling(jit_compile, deterministic)


def test_operations_are_deterministic_where_they_would_not_be():
    if BACKEND == "tensorflow":
        pytest.skip("cannot be taken back")
    devices._make_deterministic()
    if JAX:
        assert "xla_gpu_deterministic_ops=true" in os.environ["XLA_FLAGS"]
    else:
        import torch

        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]


@pytest.mark.skipif(not JAX, reason="compiles nothing")
def test_what_was_compiled_is_kept_where_the_user_said_or_at_home(
    monkeypatch, tmp_path
):
    import jax

    before = jax.config.jax_compilation_cache_dir
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    try:
        for chosen, expected in (
            ("/of/the/user", "/of/the/user"),
            (None, str(tmp_path / "diffstride" / "jax")),
        ):
            jax.config.update("jax_compilation_cache_dir", chosen)
            devices._keep_compilations()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", before)


RESULTS = json.loads((ROOT / "results" / "backends.json").read_text())


def test_the_quickstart_was_trained_killed_and_resumed_on_each():
    assert [each["backend"] for each in RESULTS] == list(backends.BACKENDS)
    for each in RESULTS:
        assert each["same_weights"]
        assert each["summary"]["test_accuracy"] >= 0.97
    page = (ROOT / "docs" / "backends.md").read_text()
    assert backends.table(RESULTS) in page


def test_what_files_and_callbacks_cost():
    path = ROOT / "results" / "throughput.json"
    results = json.loads(path.read_text())
    throughput = script("throughput")
    assert set(results["backends"]) == set(throughput.BACKENDS)
    page = (ROOT / "docs" / "backends.md").read_text()
    assert throughput.table(results) in page


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights(data_dir, tmp_path):
    """Within a budget and on a schedule, to a plain network."""
    arguments = argparse.Namespace(
        folder=tmp_path,
        data_dir=data_dir,
        gin_config="digits_budget.gin",
        gin_bindings=["train.num_epochs = 4", "train.finetune_epochs = 2"],
    )
    found = backends.measure(BACKEND, arguments)
    assert found["same_weights"]
    assert found["killed"]["epochs"] == 2
    assert found["summary"]["hardened"]["to"] == "pooled"
