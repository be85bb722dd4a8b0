import contextlib
import functools
import io
import json
import math
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import sys

import gin
import keras
import numpy as np
import pytest
import tensorflow as tf
from absl import flags, logging
from absl.testing import flagsaver
from event_files import scalars
from interruptions import OneStep, end_after_a_step, keep_copies
from models import Probe

from diffstride import (
    DiffStride,
    FixedSpectralPooling,
    callbacks,
    choosing,
    config,
    counting,
    ending,
    files,
    main,
    resnet,
    rounding,
    stage,
    train,
)
from diffstride.data import load_datasets
from diffstride.errors import ConfigError, UserError, run_reporting_errors
from diffstride.runs import read_rows

TINY = [
    "resnet.Resnet.filters = [4, 8]",
    "resnet.Resnet.strides = [1, 2]",
    "data.load_datasets.image_size = 12",
    "data.load_datasets.mixup_alpha = 0.2",
    "data.load_datasets.batch_size = 64",
    "data.load_datasets.train_split = 'train[:640]'",
]
FEW = [  # Images to read, before something is refused.
    "data.load_datasets.train_split = 'train[:128]'",
    "data.load_datasets.test_split = 'test[:64]'",
]
FINISHED = [*TINY, "train.num_epochs = 4", "train.stride_cost_weight = 0.1"]


@pytest.fixture
def main_here(monkeypatch, capsys):
    """Runs the command line in this process: status, stdout, stderr."""
    # It could not be taken back.
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: None
    )

    def run(*arguments, **values):
        arguments = ["main", *arguments_of(*arguments, **values)]
        gin.clear_config()
        keras.utils.clear_session(free_memory=False)  # Names begin anew.
        capsys.readouterr()
        with flagsaver.flagsaver():
            rest = flags.FLAGS(arguments)
            status = run_reporting_errors(main.main)(rest)
        return (status, *capsys.readouterr())

    yield run
    gin.clear_config()


def arguments_of(workdir, data_dir, *bindings, config="digits.gin", **values):
    """Of the command line."""
    values = {"gin_config": config, "workdir": workdir, **values}
    values["data_dir"] = data_dir
    return [
        *(f"--{name}={value}" for name, value in values.items() if value),
        *(f"--gin_bindings={binding}" for binding in bindings),
    ]


def run_python(*arguments):
    """Runs a process: status, stdout, stderr."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    return done.returncode, done.stdout, done.stderr


def weights(workdir, name="model"):
    model = keras.models.load_model(pathlib.Path(workdir) / f"{name}.keras")
    variables = [*model.variables, *model.optimizer.variables]
    # Optimizers are numbered through in a process.
    return {
        re.sub(r"^sgd_\d+", "sgd", v.path): np.asarray(v) for v in variables
    }


def rows(workdir):
    text = (pathlib.Path(workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def charts(directory):
    """All scalars of TensorBoard event files: name -> {step: value}.

    No step is there twice.
    """
    found = {}
    for _, tag, step, number in scalars(directory):
        assert step not in found.setdefault(tag, {})
        found[tag][step] = number
    return found


@pytest.fixture(scope="module")
def finished(shared_folder, data_dir):
    """A run of four epochs that nobody disturbed."""

    def make(folder):
        arguments = arguments_of(folder / "run", data_dir, *FINISHED)
        status, out, err = run_python("-m", "diffstride.main", *arguments)
        assert status == 0, err
        (folder / "out.txt").write_text(out)

    folder = shared_folder("finished", make)
    return folder / "run", (folder / "out.txt").read_text()


def test_workdir_holds_what_is_promised(finished):
    workdir, _ = finished
    names = {path.name for path in workdir.iterdir()}
    assert names == {
        "backup",
        "config.gin",
        "metrics.jsonl",
        "model.keras",
        "summary.json",
        "tensorboard",
    }
    text = (workdir / "config.gin").read_text()
    for line in (
        "Resnet.filters = [4, 8]",
        "load_datasets.mixup_alpha = 0.2",
        "DiffStride.smoothness_factor = 1.0",
        "pad_crop_flip.pad = 1",
        "train.seed = 0",
    ):
        assert line in text


def test_metrics(finished):
    workdir, _ = finished
    table = rows(workdir)
    assert [row["epoch"] for row in table] == [1, 2, 3, 4]
    assert table[-1]["step"] == 4 * 5
    assert table[-1]["loss"] < table[0]["loss"]


def test_tensorboard_files_read_back(finished):
    workdir, _ = finished
    found = charts(workdir / "tensorboard" / "train")
    table = rows(workdir)
    expected = [
        "loss",
        "accuracy",
        "learning_rate",
        "steps_per_second",
        "stride_cost",
        "macs",
        "activation_bytes",
    ]
    for name in ("pooling", "block_1/layer_1/pooling"):
        for axis in ("height", "width"):
            expected.append(f"stride/{name}/{axis}")
            expected.append(f"output_size/{name}/{axis}")
    for name in expected:
        series = found[f"epoch_{name}"]
        # At 0 what the initial strides tell.
        start = [] if name in expected[:4] else [0]
        assert sorted(series) == [*start, 1, 2, 3, 4]
        for row in table:
            value = series[row["epoch"]]
            assert value == pytest.approx(row[name], rel=1e-5), name
    assert found["epoch_stride/block_1/layer_1/pooling/width"][0] == 2.0
    validation = charts(workdir / "tensorboard" / "validation")
    assert set(validation) == {"epoch_accuracy", "epoch_loss"}


def test_validation_images_are_not_those_of_the_test(
    main_here, data_dir, tmp_path
):
    """And what is counted without training is what the run needs."""
    workdir = tmp_path / "run"
    bindings = [
        *TINY,
        "train.num_epochs = 1",
        "resnet.Resnet.pooling_cls = None",
        "data.load_datasets.validation_split = 'train[640:]'",
    ]
    status, _, err = main_here(workdir, data_dir, *bindings)
    assert status == 0, err
    summary = json.loads((workdir / "summary.json").read_text())
    model = keras.models.load_model(workdir / "model.keras")
    (row,) = rows(workdir)
    images = load_datasets(  # Those of the test: see below.
        *("digits", 64),
        data_dir=data_dir,
        image_size=12,
        train_split="train[:640]",
        test_split="train[640:]",
    ).test
    found = model.evaluate(images, verbose=0, return_dict=True)
    expected = pytest.approx(found["accuracy"])
    assert summary["validation_accuracy"] == row["val_accuracy"] == expected
    assert summary["validation_accuracy"] != summary["test_accuracy"]
    # Pairs are mixed: ten steps of 128 images in each, half as many come out.
    assert summary["images_per_epoch"] == 5 * 64

    asked = [[], ["resnet.Resnet.strides = [1]"], ["a.b = 1"], []]
    answers = io.StringIO()
    args = counting._arguments(
        ["--gin_config=digits.gin", f"--data_dir={data_dir}"]
        + [f"--gin_bindings={binding}" for binding in bindings]
    )
    counting.answer(args, map(json.dumps, asked), answers)
    found = [json.loads(line) for line in answers.getvalue().splitlines()]
    expected = {
        "macs": summary["cost"]["macs"],
        "images": summary["images_per_epoch"],
        "epochs": 1,
        "validates": True,
    }
    assert found[0] == found[3] == expected
    assert "`filters` and `strides` must" in found[1]["error"]
    assert "configurable" not in found[1]["error"]
    assert "a.b" in found[2]["error"]


def test_summary_on_the_terminal(finished):
    workdir, out = finished
    summary = json.loads((workdir / "summary.json").read_text())
    accuracy = summary["test_accuracy"]
    assert f"test accuracy  {100 * accuracy:.2f} %" in out
    assert accuracy == pytest.approx(rows(workdir)[-1]["val_accuracy"])
    assert "training time" in out
    cost = summary["cost"]
    for name in ("macs", "activation_bytes"):
        assert cost[name] == rows(workdir)[-1][name]
    assert (
        f"cost           {cost['macs'] / 1e3:.1f} k multiply-accumulates and "
        f"{cost['activation_bytes'] / 1e3:.1f} kB of activations an image\n"
    ) in out
    # Those that begin at 1 may be driven against that limit.
    assert any(s["strides"] != s["initial"] for s in summary["pooling"])
    for state in summary["pooling"]:
        assert state["kind"] == "DiffStride"
        assert (state["ramp"], state["norm"]) == ("outer", "forward")
        assert state["smoothness_factor"] == 1.0
        assert not state["shared_stride"]
        cells = (
            state["name"],
            " x ".join(f"{s:.2f}" for s in state["initial"]),
            " x ".join(f"{s:.2f}" for s in state["strides"]),
            " x ".join(map(str, state["input_size"])),
            " x ".join(map(str, state["output_size"])),
        )
        (line,) = [
            text
            for text in out.splitlines()
            if text.startswith(state["name"] + "  ")
        ]
        for cell in cells:
            assert cell in line


def test_the_saved_model_is_the_tested_one(finished, data_dir):
    workdir, _ = finished
    model = keras.models.load_model(workdir / "model.keras")
    data = load_datasets(
        "digits",
        batch_size=64,
        data_dir=data_dir,
        image_size=12,
        # Which the pixels are normalised by.
        train_split="train[:640]",
    )
    found = model.evaluate(data.test, verbose=0, return_dict=True)
    summary = json.loads((workdir / "summary.json").read_text())
    assert found["accuracy"] == pytest.approx(summary["test_accuracy"])
    # The loss that is reported has the term of the stride cost.
    term = 0.1 * rows(workdir)[-1]["stride_cost"]
    loss = pytest.approx(found["loss"] + term, rel=1e-5)
    assert summary["test_loss"] == loss


# Starts main in one process after another, which are spared the imports. A
# statement before may say when the process kills itself.
STARTS = """
import json, os, runpy, signal, sys
import tensorflow_datasets
from diffstride import callbacks, config

def die_before(owner, name, count):
    function, calls = getattr(owner, name), []
    def dying(*args, **kwargs):
        calls.append(args)
        if len(calls) == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    setattr(owner, name, dying)

for statement, *arguments in json.loads(sys.argv[1]):
    if not (child := os.fork()):
        exec(statement)
        sys.argv[1:] = arguments
        runpy.run_module("diffstride.main", run_name="__main__", alter_sys=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
MOMENTS = {
    "in the first epoch": "die_before("
    "callbacks.StopOnNonFiniteLoss, 'on_train_batch_end', 3)",
    "in the third epoch": "die_before("
    "callbacks.StopOnNonFiniteLoss, 'on_train_batch_end', 13)",
    "between metrics and backup": "die_before("
    "callbacks.Backup, 'on_epoch_end', 2)",
    # Of the second epoch; the first call is for config.gin, then come
    # metrics.jsonl at the start, and metrics.jsonl and backup of each epoch.
    "with a backup written and not in place": "die_before(os, 'replace', 6)",
    "with the model written and not in place": "die_before(os, 'replace', 11)",
}


# The one that goes wrong in most ways; the others are as slow and tell less.
TELLING = ("in the third epoch",)


@pytest.mark.parametrize(
    "when",
    [
        pytest.param(when, marks=() if when in TELLING else pytest.mark.slow)
        for when in MOMENTS
    ],
)
def test_a_killed_run_ends_with_the_same_weights(
    when, finished, data_dir, tmp_path
):
    undisturbed, _ = finished
    workdir = tmp_path / "run"
    arguments = arguments_of(workdir, data_dir, *FINISHED)
    bad = arguments_of(workdir, data_dir, "train.nope = 1.0")
    starts = [["", *bad], [MOMENTS[when], *arguments], ["", *arguments]]
    status, out, err = run_python("-c", STARTS, json.dumps(starts))
    assert status == 0, err
    statuses = [line for line in out.splitlines() if line.strip("-").isdigit()]
    assert statuses == ["1", str(-signal.SIGKILL), "0"]
    refused = "error: Configurable 'train' doesn't have a"
    assert refused in err and "Traceback" not in err
    done = {
        "in the first epoch": 0,
        "with the model written and not in place": 4,
    }.get(when, 2)
    assert (f"Going on after epoch {done} in" in err) == (done > 0)

    assert_weights(workdir, undisturbed, "model")
    charted = charts(workdir / "tensorboard" / "train")
    assert sorted(charted["epoch_loss"]) == [1, 2, 3, 4]
    timing = ("seconds", "steps_per_second")
    for ours, theirs in zip(rows(workdir), rows(undisturbed), strict=True):
        assert {k: v for k, v in ours.items() if k not in timing} == {
            k: v for k, v in theirs.items() if k not in timing
        }


def test_a_damaged_run_is_summed_up_again(
    finished, data_dir, main_here, tmp_path
):
    undisturbed, out = finished
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    before = weights(workdir)
    (workdir / "backup" / "latest.weights.h5").write_bytes(b"cut short")
    (workdir / "summary.json").write_text("\0\0")
    path = workdir / "metrics.jsonl"
    path.write_text(f'\n\0\0\n{path.read_text()}{{"epoch": 5, "sec')
    again = (workdir, data_dir, *FINISHED)
    status, told, err = main_here(*again)
    assert status == 0, err
    assert "ms/step" not in told
    body = "test accuracy"
    told = told.replace(str(workdir), str(undisturbed))
    assert told.partition(body)[2] == out.partition(body)[2] != ""
    for name, value in weights(workdir).items():
        np.testing.assert_array_equal(value, before[name])
    assert read_rows(path) == rows(undisturbed)
    # What cannot be mended is named, with what to do.
    for name, wrong, message in (
        ("metrics.jsonl", "hello\n", "metrics.jsonl, line 1: it must be JSON."),
        ("config.gin", "\xff", "config.gin cannot be read: "),
        ("tensorboard", None, "`tensorboard` of the run must be a folder"),
    ):
        path = workdir / name
        if wrong is None:
            shutil.rmtree(path)
        whole = path.read_bytes() if path.exists() else b""
        path.write_text(wrong or "", encoding="latin1")
        status, _, err = main_here(*again)
        last = err.strip().splitlines()[-1]
        assert (status, last[:7], message in last) == (1, "error: ", True)
        path.write_bytes(whole)


TUNED = [
    *("resnet.Resnet.filters = [4, 4]", "resnet.Resnet.strides = [1, 2]"),
    "data.load_datasets.image_size = 12",
    "data.load_datasets.train_split = 'train[:256]'",  # Four steps.
    "data.load_datasets.test_split = 'test[:128]'",
    "train.budget = 16500",
    "train.harden_to = 'strided'",
    "train.harden_by = 'training'",
    "train.trials = 2",
    "train.trial_epochs = 1",
    "train.num_epochs = 5",
    "train.finetune_epochs = 3",
]


def make_shorter(config):
    """Makes the config of such a run that of one of fewer epochs."""
    text = config.read_text()
    for longer, shorter in (
        ("train.num_epochs = 5", "train.num_epochs = 4"),
        ("train.finetune_epochs = 3", "train.finetune_epochs = 2"),
    ):
        assert longer in text
        text = text.replace(longer, shorter)
    config.write_text(text)


def assert_weights(workdir, other, name):
    expected, got = weights(other, name), weights(workdir, name)
    assert expected.keys() == got.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(got[path], value, err_msg=path)


def note_beginnings(monkeypatch, stops):
    """A list that receives weights and epoch wherever a training begins.

    Those of these numbers end as if they had been stopped after an epoch.
    """
    begun, fit = [], stage.Stage.fit

    def note_and_fit(stage, model, first_epoch, *args):
        steps = model.optimizer.iterations
        begun.append({w.path: np.array(w) for w in model.weights})
        begun[-1] |= {"steps": int(steps), "epoch": first_epoch}
        keras.utils.set_random_seed(len(begun))  # Nothing depends on draws.
        if len(begun) in stops:
            steps.assign(steps + 4)
            stage.backup.set_model(model)
            stage.backup.on_epoch_end(first_epoch)
            raise KeyboardInterrupt
        return fit(stage, model, first_epoch, *args)

    monkeypatch.setattr(stage.Stage, "fit", note_and_fit)
    return begun


def test_a_network_is_learned_hardened_and_tuned_though_interrupted(
    data_dir, tmp_path, main_here, monkeypatch
):
    again = [*TUNED, "train.restart = True"]
    run = functools.partial(main_here, config="digits_budget.gin")
    whole, learning, hardened, tuning = folders = [
        tmp_path / name for name in ("whole", "learning", "hardened", "tuning")
    ]
    monkeypatch.setattr(rounding, "_FOLLOWED", 4)  # Each takes its time.
    # Hardened, of the second run and those without `restart`.
    begun = note_beginnings(monkeypatch, stops=(4, 8, 10))
    with monkeypatch.context() as patched:
        keep_copies(patched, dict(zip((1, 2, 3), folders[1:], strict=True)))
        status, out, err = run(whole, data_dir, *again)
    assert status == 0, err
    learned = weights(whole, "learned")
    assert float(learned["resnet/pooling/smoothness"]) == 0
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["epochs"] == 5 and summary["pooling"] == []
    assert summary["cost"]["macs"] <= 1.05 * 16_500
    of_hardening = summary["hardened"]
    assert len(of_hardening["learned"]["pooling"]) == 2
    tried = of_hardening["trials"]
    assert len(tried) == 2 and [row["epochs"] for row in tried] == [1, 1]
    assert tried[0]["strides"] != tried[1]["strides"]
    best = min(tried, key=lambda row: row["loss"])
    assert best["macs"] == summary["cost"]["macs"]
    # A trial is what the first epoch of the network is.
    assert best["loss"] == pytest.approx(rows(whole)[2]["loss"], rel=1e-5)
    after = rows(whole)[1]["val_accuracy"]
    assert of_hardening["learned"]["test_accuracy"] == pytest.approx(after)
    table = rows(whole)
    assert [row["step"] for row in table] == [4, 8, 12, 16, 20]
    assert table[-1]["macs"] == summary["cost"]["macs"]
    # Its optimizer begins anew, too.
    assert table[2]["learning_rate"] == table[0]["learning_rate"]
    assert "trial 2: strides " in out
    assert f"the best of 2 in trials, from {100 * after:.2f} % as lea" in out

    # Hardened after two epochs, it goes on for as many more as are asked for.
    make_shorter(tuning / "config.gin")
    status, _, err = run(tuning, data_dir, *again, "train.finetune_epochs = 2")
    assert status == 1 and "`finetune_epochs` must be 2 in" in err

    # Where it had been hardened already, nothing is measured again.
    measured, measure = [], choosing.training_loss
    monkeypatch.setattr(
        choosing,
        "training_loss",
        lambda *args: lambda: measured.append(1) or measure(*args)(),
    )
    for workdir, name, ends in (
        (learning, "learned", 130),
        (tuning, "model", 0),
    ):
        assert workdir == learning or measured
        measured.clear()
        status, _, err = run(workdir, data_dir, *again)
        assert status == ends, err
        assert_weights(workdir, whole, name)
    assert len(rows(tuning)) == 5 and not measured
    for path, value in begun[1].items():  # Drawn from the seed.
        np.testing.assert_array_equal(begun[3][path], value, path)

    # Without `restart` it goes on with what was learned.
    monkeypatch.setattr(ending, "_change", lambda *args: {})
    (hardened / "config.gin").unlink()
    for _ in range(2):
        assert run(hardened, data_dir, *TUNED)[0] == 130
    for i, steps, epoch in ((1, 0, 2), (5, 4, 3), (7, 8, 2), (9, 12, 3)):
        assert (begun[i]["steps"], begun[i]["epoch"]) == (steps, epoch)
    for values, kept in ((begun[1], False), (begun[7], True)):
        kernels = [w for path, w in values.items() if path.endswith("kernel")]
        assert len(kernels) == 5
        for kernel in kernels:
            among = [np.array_equal(kernel, w) for w in learned.values()]
            assert any(among) == kept


def test_losses_are_remembered(tmp_path):
    kept, new = tmp_path / "kept.jsonl", tmp_path / "new.jsonl"

    def losses(values, sizes, *paths):
        measure = iter(values).__next__
        known = choosing.Losses(paths[0], "sizes", *paths[1:])
        return [known([(8, 8), (np.int64(n), n)], measure) for n in sizes]

    measured = [0.1, math.nan, 1e305]
    assert losses(measured, [8, 4, 2, 8], kept) == [
        0.1,
        math.inf,
        math.inf,
        0.1,
    ]
    # In another order, and with one more.
    found = losses([9.0], [2, 8, 6, 4], new, kept)
    assert found == [math.inf, 0.1, 9.0, math.inf]
    assert len(kept.read_text().splitlines()) == 3
    assert losses([], [6, 8], new) == [9.0, 0.1]
    new.write_text('{"loss": 0.5}\n')
    with pytest.raises(UserError, match="Remove it, and losses are measured"):
        losses([], [8], new)


def test_trials_are_gone_on_with(data_dir, tmp_path, monkeypatch):
    datasets = load_datasets("digits", batch_size=512, data_dir=data_dir)
    path, seen = tmp_path / "trials.jsonl", []

    def readied(plain):
        seen.append(plain)
        if len(seen) == 2:
            raise KeyboardInterrupt
        plain.compile("sgd", "categorical_crossentropy")
        return plain

    def trials():
        known = choosing.Losses(path, "strides")
        return choosing.Trials(readied, datasets, 3, 2, 0, known)

    def plain(stride):
        keras.utils.set_random_seed(0)
        conv = keras.layers.Conv2D(4, 3, stride)
        shape = keras.Input(datasets.image_shape)
        head = [keras.layers.Flatten(), keras.layers.Dense(10, "softmax")]
        return keras.Sequential([shape, conv, *head])

    both = [(plain(stride), [(stride, stride)]) for stride in (1, 2)]
    first = trials()
    known = first(*both[0])
    drawn = keras.random.uniform((2,))
    with pytest.raises(KeyboardInterrupt):
        first(*both[1])
    again = trials()
    assert again(*both[0]) == known and len(seen) == 2
    np.testing.assert_array_equal(drawn, keras.random.uniform((2,)))
    loss = again(*both[1])
    assert [row["loss"] for row in again.rows] == [known, loss]
    assert [row["strides"] for row in again.rows] == [[[1, 1]], [[2, 2]]]
    assert again.rows[0]["macs"] > again.rows[1]["macs"]
    # The mean of the second epoch, that of these images alone.
    fitted = plain(2)
    fitted.compile("sgd", "categorical_crossentropy")
    steps = datasets.steps_per_epoch
    fits = [
        fitted.fit(
            datasets.epochs(epoch, epoch + 1),
            steps_per_epoch=steps,
            shuffle=False,
            verbose=0,
        )
        for epoch in (3, 4)
    ]
    assert loss == pytest.approx(fits[1].history["loss"][0], rel=1e-5)
    # One that diverges.
    wild = plain(3)
    wild.set_weights([weight * np.nan for weight in wild.get_weights()])
    assert again(wild, [(3, 3)]) == math.inf
    assert again.rows[-1]["loss"] is None
    assert len(path.read_text().splitlines()) == 3


def test_a_loss_is_measured_and_nothing_changes(data_dir, monkeypatch):
    datasets = load_datasets("digits", batch_size=64, data_dir=data_dir)
    model = resnet.Resnet([2, 2], [1, 2], 10, pooling_cls=DiffStride)
    model.compile(loss="categorical_crossentropy")
    model.build((None, *datasets.image_shape))
    before = [np.array(variable) for variable in model.variables]
    measure = choosing.training_loss(model, datasets)
    assert measure() == measure() > 0
    monkeypatch.setattr(model, "compute_loss", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        measure()
    for old, variable in zip(before, model.variables, strict=True):
        np.testing.assert_array_equal(old, variable)


@pytest.mark.parametrize("strides", ["1, 1, 1", "1, 2, 2", "2, 3, 3"])
def test_a_run_ends_within_its_budget(strides, data_dir, tmp_path, main_here):
    status, _, err = main_here(
        *(tmp_path, data_dir, *TINY),
        "resnet.Resnet.filters = [4, 4, 8]",
        f"resnet.Resnet.strides = [{strides}]",
        "resnet.Resnet.pooling_placement = 'before'",
        "data.load_datasets.train_split = 'train[:256]'",
        "data.load_datasets.test_split = 'test[:64]'",
        "pooling.DiffStride.final_smoothness_factor = 0.0",
        "train.budget = 40000",
        "train.num_epochs = 4",
    )
    assert status == 0, err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 0.95 <= summary["cost"]["macs"] / 40_000 <= 1.05


@pytest.mark.parametrize(
    "binding, message",
    [
        ("train.budget = 10", "`budget` must be a budget that strides"),
        ("train.harden_to = 'plain'", "`harden_to` must be None or one of"),
        ("train.finetune_epochs = -1", "`finetune_epochs` must be less than"),
        ("train.finetune_epochs = 2", "with `harden_to`, 0 without it"),
        ("train.restart = True", "`restart` must be False with"),
        ("train.harden_by = 'luck'", "`harden_by` must be one of 'size', 'lo"),
        ("train.harden_by = 'loss'", "'size' unless `harden_to` is"),
    ],
)
def test_what_a_network_is_led_to(
    binding, message, data_dir, tmp_path, main_here
):
    workdir = tmp_path / "run"
    status, _, err = main_here(workdir, data_dir, *TINY, *FEW, binding)
    assert status == 1 and message in err
    assert not workdir.exists()


@pytest.mark.parametrize(
    "numbers, message",
    [
        ({"trials": 0}, "`trials` must be at least 1. Received: trials=0"),
        ({"trials": 0, "by": "loss"}, "`trials` must be at least 1. Received"),
        ({"trial_epochs": 0}, "`trial_epochs` must be from 1 to finetune_ep"),
        ({"trial_epochs": 4}, "from 1 to finetune_epochs=3 with `harden_by="),
    ],
)
def test_how_strides_are_tried(numbers, message):
    good = ending.Hardening("pooled", 3, True, "training", 2, 3)
    ending.check_hardening(good, 5)
    bad = good._replace(**numbers)
    with pytest.raises(ConfigError, match=re.escape(message)):
        ending.check_hardening(bad, 5)
    if "trial_epochs" in numbers:  # Of no effect there.
        ending.check_hardening(bad._replace(by="loss"), 5)


@pytest.mark.parametrize(
    "files, refused",
    [
        ({}, None),
        ({"config.gin": "old", "metrics.jsonl": ""}, None),  # No epoch kept.
        ({"config.gin": "new", "summary.json": ""}, None),
        ({"backup/latest.weights.h5": ""}, None),
        ({"log.txt": "", "run.json": ""}, None),
        ({"config.gin": "old", "backup/latest.weights.h5": ""}, "other sett"),
        ({"config.gin": "old", "model.keras": ""}, "other settings"),
        (
            {"config.gin": "old", "metrics.jsonl": "", "summary.json": ""},
            "other settings",
        ),
        ({"config.gin": "my own"}, "other settings"),
        ({"model.keras": "mine"}, "a model or a summary without the config"),
        ({"summary.json": "{}"}, "a model or a summary without the config"),
        ({"model.keras": "mine", "metrics.jsonl": ""}, "without the config.gi"),
    ],
)
def test_which_workdirs_are_gone_on_with(files, refused, tmp_path):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    backup = callbacks.Backup(tmp_path / "backup", 1, tmp_path / "model.keras")
    with (
        pytest.raises(ConfigError, match=refused)
        if refused
        else contextlib.nullcontext()
    ):
        train._check_same_run(tmp_path, backup, "new", None)


def test_a_workdir_of_another_run_is_refused(finished, data_dir, main_here):
    workdir, _ = finished
    before = (workdir / "config.gin").read_text()
    status, _, err = main_here(workdir, data_dir, *FINISHED, seed=7)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: `workdir` ")
    assert "holds a run with other settings" in last
    assert "Differing: train.seed = 0; train.seed = 7 `train.workdir`" in last
    assert (workdir / "config.gin").read_text() == before


def test_divergence_in_the_last_step_of_an_epoch(data_dir, tmp_path, main_here):
    workdir = tmp_path / "run"
    status, out, err = main_here(
        workdir,
        data_dir,
        *TINY,
        "data.load_datasets.train_split = 'train[:128]'",  # One step.
        "resnet.Resnet.pooling_cls = None",
        "keras.optimizers.SGD.learning_rate = 1e30",
    )
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert "after step 1 (epoch 1, batch 1). Training stopped" in last
    assert "test accuracy" not in out
    names = {path.name for path in workdir.iterdir()}
    assert not names & {"model.keras", "summary.json"}
    assert not list((workdir / "backup").iterdir())
    assert rows(workdir) == []


@pytest.mark.parametrize(
    "bindings, message",
    [
        (
            ["pooling.DiffStride.smoothness_factor = -1.0"],
            "error: `smoothness_factor` must be a finite number >= 0 and <= "
            "16777216, in frequency bins. Received: smoothness_factor=-1.0 "
            "`pooling.DiffStride.smoothness_factor` is set in --gin_bindings,",
        ),
        (
            ["train.num_epochs = 'ten'"],
            "error: --gin_bindings, line 1: `train.num_epochs` must be int.",
        ),
        (["train.nope = 1"], "error: Configurable 'train' doesn't have a"),
        (["train.seed = -1"], "error: `seed` must be from 0 to"),
        (
            ["train.stride_cost_weight = -0.1"],
            "error: `stride_cost_weight` must be finite and at least 0. Rec",
        ),
        (["train.jit_compile = True"], "error: `deterministic` must be False"),
        (["train.num_epochs = 0"], "error: `num_epochs` must be at least 1"),
        (["train.devices = ['CPU:7']"], "error: `devices` must be among those"),
        (["train.devices = ['CPU:0', '/device:CPU:0']"], "error: `devices` m"),
        (["train.label_smoothing = 1.0"], "error: `label_smoothing` must be"),
        (["resnet.Resnet.filters = [4, 0, 8]"], "error: `filters[1]` must be"),
        (["train.workdir = ' '"], "error: `workdir` must be a folder that can"),
        (["import os"], "error: --gin_bindings, line 1: a config that imports"),
        (["data.pad_crop_flip.pad = -1"], "error: `pad` must be >= 0."),
        (["resnet.Resnet.strides = '1, inf'"], "error: `strides` must be num"),
        (
            ["train.workdir = '/dev/null/x'"],
            "error: `workdir` must be a folder",
        ),
    ],
)
def test_bad_settings_end_in_one_line(
    bindings, message, data_dir, tmp_path, main_here
):
    workdir = "" if "workdir" in bindings[0] else tmp_path / "run"
    status, _, err = main_here(workdir, data_dir, *bindings, *FEW)
    assert status == 1
    assert err.strip().splitlines()[-1].startswith(message)


def test_a_second_run_in_a_workdir_is_refused(data_dir, tmp_path, main_here):
    workdir = tmp_path / "run"
    workdir.mkdir()
    code = (
        "import pathlib, sys, time; from diffstride import files\n"
        "with files.locked(pathlib.Path(sys.argv[1])):\n"
        "    print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(workdir)], stdout=subprocess.PIPE
    )
    try:
        assert other.stdout.readline() == b"locked\n"
        status, _, err = main_here(workdir, data_dir, *TINY)
        assert status == 1
        last = err.strip().splitlines()[-1]
        assert last.startswith(f"error: Another run is at work in {workdir};")
        assert list(workdir.iterdir()) == []
    finally:
        other.kill()
        other.wait()
    # However the process ended, the lock is gone; and again after each use.
    for _ in range(2):
        with files.locked(workdir):
            assert list(workdir.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_in_one_line(
    number, finished, data_dir, tmp_path, main_here, monkeypatch
):
    monkeypatch.setattr(
        callbacks.EpochRecorder,
        "on_epoch_begin",
        lambda self, epoch, logs=None: os.kill(os.getpid(), number),
    )
    before = signal.getsignal(number)
    workdir, how = tmp_path / "run", "The same command starts again."
    if number == signal.SIGTERM:
        shutil.copytree(finished[0], workdir)
        how = f"The same command goes on after epoch 4, in {workdir}."
    status, out, err = main_here(
        workdir, data_dir, *FINISHED, "train.num_epochs = 5"
    )
    assert status == 128 + number
    assert "test accuracy" not in out
    assert err.strip().splitlines()[-1] == f"Stopped. {how}"
    assert not [path for path in workdir.rglob("unfinished*")]
    assert signal.getsignal(number) == before


# Parameters, and values, that a config may join: hardly any of them rightly.
KEYS = [
    "train.num_epochs",
    "train.workdir",
    "train.seed",
    "train.devices",
    "train.model_cls",
    "train.load_data_fn",
    "train.optimizer_cls",
    "train.label_smoothing",
    "data.load_datasets.name",
    "data.load_datasets.batch_size",
    "data.load_datasets.augment_fn",
    "data.load_datasets.mixup_alpha",
    "data.load_datasets.test_split",
    "data.load_datasets.mean",
    "resnet.Resnet.filters",
    "resnet.Resnet.strides",
    "resnet.Resnet.id_only",
    "resnet.Resnet.pooling_cls",
    "resnet.Resnet.num_output_classes",
    "resnet.Resnet.output_activation",
    "pooling.DiffStride.smoothness_factor",
    "pooling.DiffStride.cropping",
    "pooling.DiffStride.dtype",
    "keras.optimizers.SGD.learning_rate",
    "keras.optimizers.SGD.clipnorm",
    "keras.optimizers.schedules.CosineDecay.decay_steps",
    "A",
    "a/train.seed",
    "gin.macro.value",
    "include",
    "import os",
    "x:\n  y",
    "nothing.at_all",
]
VALUES = [
    *("None", "True", "''", "'x'", "b'ab'", "0", "-1", "1e400", "-0.0", "nan"),
    *("1e38", "9" * 30, "9" * 5000, "0x", "1_0", r"'\0'", "'~'", "'/dev/null'"),
    *("[]", "{}", "()", "[[]]", "[None]", "{1: [2]}", "[1, 'a']", "[1] * 2"),
    *("['CPU:0', 'CPU:0']", "[4, 4]", "[1, 2, 3]", "'1, 2'", f"'{'x' * 5000}'"),
    *("%A", "%gin.REQUIRED", "@A", "@train.train", "@train.train()"),
    *("@resnet.Resnet", "@resnet.Resnet()", "@x/y/resnet.resnet18"),
    *("@data.pad_crop_flip", "@data.load_datasets()", "@pooling.DiffStride"),
    *("@keras.optimizers.SGD()", "@keras.optimizers.schedules.CosineDecay()"),
    *("@gin.singleton()", "@gin.macro", "@gin.constant()", "[%A, @A()]", "2j"),
    *("[" * 300, "(" * 90 + ")" * 90, "...", r"'\ud800'", r"\N", "'" * 3, "`"),
]


@pytest.mark.parametrize(
    "count", [4, pytest.param(200, marks=pytest.mark.slow)]
)
def test_malformed_bindings_end_in_one_line(
    count, data_dir, tmp_path, main_here, monkeypatch
):
    def fit(*args, **kwargs):
        raise UserError("nothing wrong was found")

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.chdir(tmp_path)
    generator = random.Random(count)
    wrong = []
    for number in range(count):
        bindings = [
            f"{generator.choice(KEYS)} = {generator.choice(VALUES)}"
            for _ in range(generator.choice([1, 1, 2]))
        ]
        status, _, err = main_here(
            tmp_path / str(number), data_dir, *TINY[:2], *bindings
        )
        last = err.strip().split("\n")[-1]
        # The net, which names --debug, is for what nobody thought of.
        if not (
            status == 1
            and last.startswith("error: ")
            and len(last) < 1100
            and "Traceback" not in err
            and "--debug" not in last
        ):
            wrong.append((bindings, status, err[-2000:]))
    assert not wrong


def test_a_workdir_at_home(data_dir, tmp_path, main_here, monkeypatch):
    def fit(*args, **kwargs):
        with pytest.raises(UserError, match="Another run is at work in"):
            with files.locked(tmp_path / "run"):
                pass
        raise MemoryError("of a network too large")

    monkeypatch.setattr(keras.Model, "fit", fit)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    status, _, err = main_here("~/run", data_dir, *TINY)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: MemoryError: of a network too large")
    assert last.endswith("(--debug shows where this comes from)")
    assert (tmp_path / "run" / "config.gin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_stray_argument_and_a_missing_flag(capsys, main_here):
    assert run_reporting_errors(main.main)(["main", "digits.gin"]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("error: Unexpected argument: digits.gin")
    status, _, err = main_here("", "", config="")
    assert (status, err[:32]) == (1, "error: --gin_config is required,")


SOUNDS = (
    *("audio", "drums", "letters", "notes_instrument", "notes_pitch"),
    *("notes_multitask", "nsynth", "sounds", "speech"),
)
CONFIGS = sorted(
    path.name
    for path in config.configs_dir().glob("*.gin")
    # That of ImageNet reads files in a new order: test_cropping.py has some.
    if path.name not in ("base.gin", "imagenet_resnet18.gin")
    and not path.name.startswith(SOUNDS)
    # They are in test_audio.py.
)
# Whose networks others have. The graph of EfficientNet takes a minute.
SLOW_CONFIGS = (
    *("digits.gin", "digits_budget.gin", "fashion_mnist.gin"),
    *("cifar100.gin", "cifar10_augmented.gin", "cifar10_efficientnet.gin"),
)
POOLINGS = {"cifar10_densenet.gin": 2, "cifar10_efficientnet.gin": 5}


@pytest.fixture
def run_config(mocked, tmp_path):
    """Runs a config on random images, with few filters."""

    def run(name):
        gin.clear_config()
        bindings = [
            "train.num_epochs = 1",
            "train.finetune_epochs = 0",
            "train.deterministic = False",
            f"train.workdir = '{tmp_path / 'run'}'",
            "data.load_datasets.batch_size = 8",
            "resnet.resnet18.filters = [4, 4, 8, 8, 8]",
            "resnet.resnet18.num_layers = 1",
            "networks.densenet.num_layers = 1",
        ]
        config.load([name], bindings)
        images = gin.query_parameter("data.load_datasets.name")
        mocked(images, train=32, test=16)
        return config.run_training(config_fn=config.operative)

    yield run
    gin.clear_config()


def steps_of(name):
    return 2 if name in ("cifar10.gin", "cifar100.gin") else 4  # Mixup halves.


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=pytest.mark.slow if name in SLOW_CONFIGS else ()
        )
        for name in CONFIGS
    ],
)
def test_every_config_begins_to_train(name, run_config, monkeypatch):
    seen = end_after_a_step(monkeypatch)
    with pytest.raises(OneStep):
        run_config(name)
    ((steps, layers),) = seen
    assert (steps, len(layers)) == (steps_of(name), POOLINGS.get(name, 4))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_every_config_trains(name, run_config, tmp_path):
    summary = run_config(name)
    assert np.isfinite(summary["test_loss"])
    learned = summary.get("hardened", {}).get("learned", summary)
    assert len(learned["pooling"]) == POOLINGS.get(name, 4)
    (row,) = rows(tmp_path / "run")
    assert row["step"] == steps_of(name)


def tiny(num_output_classes, pooling_cls=DiffStride):
    return resnet.Resnet(
        [4, 8], [1, 2], num_output_classes, pooling_cls=pooling_cls
    )


def test_a_stride_cost_without_learned_strides_is_told(caplog):
    model = tiny(10, FixedSpectralPooling)
    model.build((None, 8, 8, 1))
    logging.use_absl_handler()
    with caplog.at_level("INFO", "absl"):
        train._add_stride_cost(model, 2e4, (8, 8, 1))
    assert "`stride_cost_weight` has no effect" in caplog.text
    assert model.losses == []


def test_strides_are_kept_out_of_weight_decay():
    model = tiny(10)
    model.build((None, 8, 8, 1))
    train._compiled(
        model, lambda: keras.optimizers.SGD(1.0, weight_decay=0.1), 0.0, False
    )
    variables = model.trainable_variables
    before = [np.array(variable) for variable in variables]
    model.optimizer.apply(list(map(np.zeros_like, before)), variables)
    for variable, value in zip(variables, before, strict=True):
        kept = np.array_equal(variable, value)
        assert kept == (variable.name == "strides" or not value.any())


@pytest.mark.slow
def test_initial_weights_do_not_depend_on_how_data_was_loaded(
    data_dir, tmp_path
):
    losses = []
    for draws in (0, 3):

        def load(seed, draws=draws):
            for _ in range(draws):  # As TFDS does while it builds.
                random.random()
                np.random.random()
            return load_datasets(
                "digits", 128, data_dir=data_dir, image_size=12, seed=seed
            )

        workdir = tmp_path / str(draws)
        train.train(load, tiny, workdir=str(workdir), deterministic=False)
        losses.append(rows(workdir)[0]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_model_of_the_other_data_format_is_refused(data_dir, tmp_path):
    with pytest.raises(ConfigError, match="`channels_first` must be left out"):
        train.train(
            lambda seed: load_datasets("digits", 64, data_dir=data_dir),
            lambda num_output_classes: resnet.Resnet(
                [4, 8], [1, 2], channels_first=True
            ),
            workdir=str(tmp_path),
            deterministic=False,
        )


MIRRORED = """
import json, sys
import tensorflow as tf

cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
import keras
from diffstride import DiffStride, data, resnet, train

def model(num_output_classes):
    assert tf.distribute.get_strategy().num_replicas_in_sync == len(devices)
    return resnet.Resnet(
        [4, 8], [1, 2], num_output_classes, pooling_cls=DiffStride
    )

for devices, workdir, num_epochs in json.loads(sys.argv[2]):
    keras.utils.clear_session()
    train.train(
        lambda seed: data.load_datasets(
            "digits", 64, data_dir=sys.argv[1], image_size=12, seed=seed,
            train_split="train[:640]",
        ),
        model,
        lambda: keras.optimizers.SGD(0.05, momentum=0.9),
        num_epochs=num_epochs,
        workdir=workdir,
        devices=devices,
        stride_cost_weight=0.1,
    )
"""


def test_a_step_is_traced_once():
    traced = []
    layers = [keras.Input((4,)), Probe(traced.append), keras.layers.Dense(2)]
    model = keras.Sequential(layers)
    train._compiled(model, keras.optimizers.SGD, 0.0, False)
    traced.clear()
    model.fit(np.zeros((8, 4)), np.zeros((8, 2)), batch_size=4, verbose=0)
    assert len(traced) == 1


@pytest.mark.parametrize("compiled", [True, False])
def test_jit_compile_makes_sizes_static(compiled):
    model = tiny(10)
    model.build((None, 8, 8, 1))
    train._compiled(model, keras.optimizers.SGD, 0.0, jit_compile=compiled)
    assert (model.jit_compile, model.static_sizes) == (compiled, compiled)


@pytest.mark.slow
def test_a_compiled_run_ends_like_a_dynamic_one(data_dir, tmp_path, main_here):
    bindings = [
        *TINY,
        "train.num_epochs = 1",
        "train.deterministic = False",
        "train.stride_cost_weight = 0.1",
        "pooling.DiffStride.ramp = 'inner'",
    ]
    losses = []
    for jit_compile in (False, True):
        workdir = tmp_path / f"jit_{jit_compile}"
        code, _, errors = main_here(
            workdir, data_dir, *bindings, f"train.jit_compile = {jit_compile}"
        )
        assert code == 0, errors
        losses.append([row["loss"] for row in rows(workdir)])
    np.testing.assert_allclose(*losses, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("resumes", [False, True])
def test_two_devices(resumes, data_dir, tmp_path):
    two = ["CPU:0", "CPU:1"]
    run, again, one = (str(tmp_path / name) for name in ("two", "again", "one"))
    runs = [(two, run, 2), (["CPU:0"], one, 2)]
    if resumes:
        runs += [(two, again, 1), (two, again, 2)]
    else:
        again = run
    done = subprocess.run(
        [sys.executable, "-c", MIRRORED, data_dir, json.dumps(runs)],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    summary, resumed = (
        json.loads((pathlib.Path(workdir) / "summary.json").read_text())
        for workdir in (run, again)
    )
    got = weights(again)
    for name, value in weights(run).items():
        np.testing.assert_array_equal(got[name], value)
    # What is reported is what the saved model does, and the stride cost.
    model = keras.models.load_model(tmp_path / "two" / "model.keras")
    data = load_datasets(
        "digits",
        64,
        data_dir=data_dir,
        image_size=12,
        train_split="train[:640]",
    )
    test = model.evaluate(data.test, verbose=0, return_dict=True)
    test["loss"] += 0.1 * rows(run)[-1]["stride_cost"]
    for name, value in (("accuracy", 1e-6), ("loss", 1e-5)):
        expected = pytest.approx(test[name], rel=value)
        assert summary[f"test_{name}"] == expected
        assert resumed[f"test_{name}"] == expected
    # Gradients are those of the whole batch; batch statistics are not.
    for ours, theirs in zip(rows(run), rows(one), strict=True):
        assert ours["step"] == theirs["step"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=0.05)
