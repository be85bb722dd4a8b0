"""Several processes that train one network, on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from diffstride import hosts
from diffstride.data import Datasets
from diffstride.errors import ConfigError

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="several processes train on JAX"
)

BINDINGS = [
    "data.load_datasets.train_split = 'train[:32]'",
    "data.load_datasets.test_split = 'test[:21]'",
    "data.load_datasets.batch_size = 16",
    "resnet.Resnet.filters = [4, 4, 8, 8]",
    "resnet.Resnet.pooling_placement = 'before'",
]


def start(workdir, data_dir, processes, *bindings):
    """Starts processes that train one network."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "diffstride.main"]
    command += ["--gin_config=digits.gin", f"--workdir={workdir}"]
    command += [f"--data_dir={data_dir}"]
    command += [f"--gin_bindings={each}" for each in [*BINDINGS, *bindings]]
    if processes > 1:
        command.append("--distributed")
    return [
        subprocess.Popen(
            command,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "KERAS_DISTRIBUTION_JOB_ADDRESSES": address,
                "KERAS_DISTRIBUTION_NUM_PROCESSES": str(processes),
                "KERAS_DISTRIBUTION_PROCESS_ID": str(index),
            },
        )
        for index in range(processes)
    ]


def end(started, status=0):
    for process in started:
        out, _ = process.communicate(timeout=600)
        assert process.returncode == status, out
    return out


def rows(workdir):
    text = (workdir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def assert_same_runs(one, other, steps):
    """Losses, sizes and results agree, whatever the number of processes."""
    first, second = rows(one), rows(other)
    assert len(first) == len(second) == steps
    for key in ("loss", "val_loss", "val_accuracy", "macs"):
        np.testing.assert_allclose(
            [row[key] for row in first],
            [row[key] for row in second],
            rtol=1e-5,
            err_msg=key,
        )
    summaries = [
        json.loads((run / "summary.json").read_text()) for run in (one, other)
    ]
    for key in ("test_accuracy", "test_loss"):
        assert summaries[0][key] == pytest.approx(summaries[1][key], rel=1e-5)
    assert summaries[0]["images_per_epoch"] == summaries[1]["images_per_epoch"]


@pytest.mark.slow
def test_two_processes_train_as_one_does(tmp_path):
    for processes in (1, 2):
        workdir = tmp_path / str(processes)
        end(start(workdir, tmp_path, processes, "train.num_epochs = 2"))
    assert_same_runs(tmp_path / "1", tmp_path / "2", 2)


@pytest.mark.slow
def test_two_processes_harden_as_one_does(tmp_path):
    bindings = [
        "train.num_epochs = 3",
        "train.budget = 400000",
        "train.harden_to = 'pooled'",
        "train.harden_by = 'training'",
        "train.trials = 2",
        "train.trial_epochs = 1",
        "train.finetune_epochs = 1",
    ]
    for processes in (1, 2):
        end(start(tmp_path / str(processes), tmp_path, processes, *bindings))
    assert_same_runs(tmp_path / "1", tmp_path / "2", 3)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_a_host_that_dies_costs_no_more_than_an_epoch(processes, tmp_path):
    bindings = [
        "data.load_datasets.train_split = 'train[:16]'",
        "train.num_epochs = 50",
        # At 0.1 rounding grows within 15 steps to more than 1e-5.
        "keras.optimizers.schedules.CosineDecay.initial_learning_rate = 0.01",
    ]
    end(start(tmp_path / "whole", tmp_path, 1, *bindings))
    for dying in range(2):  # The one that leads, and another.
        started = start(tmp_path / "cut", tmp_path, processes, *bindings)
        path = tmp_path / "cut" / "metrics.jsonl"
        goal = 10 * (dying + 1)
        while not path.exists() or len(rows(tmp_path / "cut")) < goal:
            assert all(each.poll() is None for each in started)
            time.sleep(0.1)
        started[dying].send_signal(signal.SIGKILL)
        for process in started:  # The others notice, and end.
            out, _ = process.communicate(timeout=300)
            assert process.returncode != 0, out
    end(start(tmp_path / "cut", tmp_path, processes, *bindings))
    assert_same_runs(tmp_path / "whole", tmp_path / "cut", 50)


def test_what_devices_cannot_share_is_one_line(monkeypatch):
    monkeypatch.setattr(hosts, "count", lambda: 2)
    monkeypatch.setattr(hosts, "_devices", lambda: 2)
    batches = tf.data.Dataset.range(30).batch(15, drop_remainder=True)
    datasets = Datasets(lambda _: tf.data.Dataset.zip((batches,)), *[None] * 4)
    with pytest.raises(ConfigError, match="a multiple of the 2 devices of all"):
        hosts.share(datasets)
    with pytest.raises(ConfigError, match="must have a known number with"):
        hosts.evaluate(None, batches.filter(lambda each: True))
