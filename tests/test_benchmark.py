"""What the benchmark measures is the right thing, and what README claims."""

import json
import pathlib

import benchmark_report
import keras
import numpy as np
import pytest
from benchmark_section import section
from fft_form import FFTForm
from gradients import output_and_gradients, relative_error
from keras import ops
from scripts_alone import run_script

from diffstride import DiffStride

ROOT = pathlib.Path(__file__).resolve().parent.parent

RESULTS = json.loads((ROOT / "results" / "benchmark.json").read_text())
SIZES = (8, 16, 32, 64, 112, 224)
FORMATS = ("channels_last", "channels_first")
BACKEND = keras.backend.backend()


@pytest.mark.parametrize("data_format", FORMATS)
# With integers frequencies fall on the ends of the ramp, where the gradient of
# this form is a matter of the backend, and that of the layer is not.
@pytest.mark.parametrize(
    "stride", [1.0, 2.0, 3.3] if BACKEND == "tensorflow" else [1.4, 2.1, 3.3]
)
def test_the_fft_form_computes_the_same(stride, data_format):
    x = np.random.default_rng(0).normal(size=(2, 16, 20, 4)).astype("float32")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    layers = [
        cls(stride, data_format=data_format) for cls in (FFTForm, DiffStride)
    ]
    shape = tuple(ops.shape(layers[1](x)))
    cotangent = np.random.default_rng(1).normal(size=shape)
    ours, theirs = (
        output_and_gradients(layer, x, cotangent) for layer in layers
    )
    assert relative_error(ours[0], theirs[0]) < 2e-6
    assert relative_error(ours[1], theirs[1]) < 2e-6
    assert relative_error(ours[2][0], theirs[2][0]) < 1e-5


def test_a_short_run_prints_and_keeps_its_tables(tmp_path):
    output = tmp_path / "benchmark.json"
    done = run_script(
        "benchmark.py",
        *("--part=layer", "--sizes=8", "--channels", "--unit_stride_sizes"),
        *("--seconds=0", "--data_formats=channels_last", f"--output={output}"),
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert done.stdout.strip() == benchmark_report.tables(results)
    (case,) = {(row["size"], row["data_format"]) for row in results["layer"]}
    assert case == (8, "channels_last")
    for row in results["layer"]:
        assert row["contender"] in done.stdout or "imag" in row["contender"]
        assert row["forward_ms"]["median"] > 0
        # TensorFlow's memory is measured in processes of their own.
        assert row.get("backward_mb", 0) >= 0


def test_documents_are_made_from_the_results():
    text = benchmark_report.tables(RESULTS)
    assert (ROOT / "docs" / "benchmark.md").read_text().strip() == text
    assert section(RESULTS) in (ROOT / "README.md").read_text()


# The claims of README, each on the results that it is made from.


def layer_ratio(over, under="FFT form", **case):
    return benchmark_report.ratio(RESULTS, over, under, **case)


def test_claim_the_layer_takes_a_third_of_the_fft_form():
    case = {"size": 32, "stride": 2, "channels": 64}
    case["data_format"] = "channels_last"
    assert layer_ratio("outer, dynamic", **case) <= 0.35


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("size", SIZES)
def test_claim_no_ramp_is_slower_than_the_fft_form(size, data_format):
    for ramp in ("outer", "inner", "straight-through"):
        case = {"size": size, "stride": 2, "channels": 64}
        case["data_format"] = data_format
        assert layer_ratio(f"{ramp}, dynamic", **case) < 1
        assert layer_ratio(f"{ramp}, static", **case) < 1


def steps():
    return {
        row["contender"]: row["step_ms"]["median"] for row in RESULTS["network"]
    }


def test_claim_the_outer_ramp_costs_what_its_maps_cost():
    assert steps()["outer"] <= 1.08 * steps()["outer's floor: slices"]


@pytest.mark.parametrize("ramp", ["inner", "straight-through"])
def test_claim_equal_compute(ramp):
    assert steps()[ramp] <= 1.25 * steps()["spectral"]
    assert steps()[ramp] <= 1.7 * steps()["strided"]


def test_claim_the_tables_take_less_than_ten_minutes():
    assert RESULTS["seconds"] < 600
