"""Training on arrays, on this backend and without TensorFlow beside it."""

import json

import numpy as np
import pytest
from idx_files import idx
from scripts_alone import run_script, script

from diffstride.errors import DataError


def test_a_small_network_trains(tmp_path):
    random = np.random.default_rng(0)
    for split in ("train", "t10k"):
        images = random.integers(256, size=(8, 28, 28), dtype="uint8")
        labels = random.integers(10, size=8, dtype="uint8")
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            (tmp_path / f"{split}-{name}-ubyte").write_bytes(idx(array))
    output = tmp_path / "runs.jsonl"
    done = run_script(
        "fit_arrays",
        *(f"--files={tmp_path}", f"--output={output}", "--poolings", "inner"),
        *("--epochs=1", "--batch=8", "--width=1", "--strides"),
        *"2 1 2 2 2".split(),
    )
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in output.read_text().splitlines()]
    assert row["pooling"] == "inner" and row["images"] == 8
    assert len(row["val_accuracy"]) == len(row["seconds"]) == 1
    assert np.isfinite(row["loss"]).all()
    assert np.shape(row["learned_strides"]) == (4, 2)


def test_missing_files(tmp_path):
    with pytest.raises(DataError, match="no train-images in --files=.*four"):
        script("fit_arrays").main([f"--files={tmp_path}"])
