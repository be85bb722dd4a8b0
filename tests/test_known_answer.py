"""The expected strides are those at which the mask meets the highest wave."""

import json

import numpy as np
import pytest
from scripts_alone import script

from diffstride import masks
from diffstride.errors import UserError

known_answer = script("known_answer")
SIZE, WAVES = known_answer.SIZE, known_answer.WAVES
SMOOTHNESS = known_answer.SMOOTHNESS


def passed(ramp, stride):
    """Share of the highest wave that a mask lets through, both signs."""
    low_pass = masks.LowPass(SMOOTHNESS, ramp)
    band, _ = low_pass.bands((SIZE, SIZE), np.array([stride, stride]))
    return (band.positive[WAVES] + band.negative[WAVES]) / 2


@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_expected_strides_are_the_ends_of_the_ramp(ramp):
    (low, high), _ = known_answer.expected_strides(ramp)
    assert passed(ramp, low - 1e-3) == 1
    assert passed(ramp, low + 1e-3) < 1
    assert passed(ramp, high - 1e-3) > 0
    # The outer mask reaches one bin further on one side of the spectrum.
    beyond = SIZE / 2 / (WAVES - 1 - SMOOTHNESS) if ramp == "outer" else high
    assert passed(ramp, beyond + 1e-3) == 0


def test_images_hold_the_waves_that_the_labels_say():
    x, labels = known_answer.images(5, seed=0)
    spectrum = np.abs(np.fft.fft(x[:, :, 3, 0], axis=1)[:, 1 : WAVES + 2])
    np.testing.assert_array_equal(spectrum[:, :WAVES] > 1, labels > 0)
    assert (spectrum[:, WAVES] < 1e-3).all() and (np.ptp(x, axis=2) == 0).all()


def test_a_run_is_a_record():
    settings = {"method": "inner", "strides": "2", "lambda": 0.1, "seed": 0}
    record = known_answer.run("a", settings, epochs=1)
    assert record["settings"] == settings and record["error"] is None
    (row,) = record["epochs"]
    (layer,) = record["summary"]["pooling"]
    assert layer["strides"][1] == row["stride/pooling/width"] > 2
    assert layer["expected"] == known_answer.expected_strides("inner")


def test_runs_of_other_length_are_not_mixed(tmp_path):
    path = tmp_path / "runs.jsonl"
    name = "method-outer_strides-1.2_lambda-0.1_seed-0"
    summary = {"test_accuracy": 0.9, "seconds": 1.0, "epochs": 40}
    record = {"name": name, "settings": {}, "summary": summary}
    path.write_text(json.dumps(record) + "\n")
    with pytest.raises(
        UserError, match=f"{name} with 40 epochs, not 1; choose"
    ):
        known_answer.main([f"--output={path}", "--epochs=1"])
