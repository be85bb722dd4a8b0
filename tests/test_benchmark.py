"""What the benchmark measures is the right thing, and what docs say of it."""

import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from gradients import output_and_gradients, relative_error
from keras import ops
from maps import BACKEND, TORCH, slow_unless
from scripts_alone import FOLDER, ROOT, script

from diffstride import DiffStride

report = script("benchmark_report")
fft_form = script("fft_form")
timing = script("timing")


# With integers frequencies fall on the ends of the ramp, where the gradient of
# this form is a matter of the backend, and that of the layer is not.
@pytest.mark.parametrize(
    "stride, data_format",
    [
        (2.0 if BACKEND == "tensorflow" else 2.1, "channels_last"),
        (3.3, "channels_first"),
    ],
)
def test_the_fft_form_computes_the_same(stride, data_format):
    x = np.random.default_rng(0).normal(size=(2, 16, 20, 4)).astype("float32")
    if data_format == "channels_first":
        x = np.moveaxis(x, -1, 1)
    layers = [
        cls(stride, data_format=data_format)
        for cls in (fft_form.FFTForm, DiffStride)
    ]
    shape = tuple(ops.shape(layers[1](x)))
    cotangent = np.random.default_rng(1).normal(size=shape)
    ours, theirs = (
        output_and_gradients(layer, x, cotangent) for layer in layers
    )
    assert relative_error(ours[0], theirs[0]) < 2e-6
    assert relative_error(ours[1], theirs[1]) < 2e-6
    assert relative_error(ours[2][0], theirs[2][0]) < 1e-5


# Measures the FFT form and the outer ramp on one small input, with nothing but
# keras, numpy and the backend.
_SHORT_RUN = """
import sys
for name in sys.argv[1].split():
    sys.modules[name] = None
import benchmark
benchmark.CASES[:] = [benchmark.Case(2, 8, 4, "channels_last", 2.0)]
every = benchmark.layer_contenders
benchmark.layer_contenders = lambda case: {
    name: contender
    for name, contender in every(case).items()
    if name.startswith(("FFT", "outer"))
}
benchmark.main(sys.argv[2:])
"""


@slow_unless(TORCH)  # Which TensorFlow cannot help out.
def test_a_short_run_prints_and_keeps_its_tables(tmp_path):
    output = tmp_path / "benchmark.json"
    hidden = "pandas matplotlib"
    if BACKEND != "tensorflow":
        hidden += " tensorflow"
    paths = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {
        **os.environ,
        "KERAS_BACKEND": BACKEND,
        "PYTHONPATH": os.pathsep.join(paths),
        # Threads of torch wait long for each other on busy cores.
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [
            *(sys.executable, "-c", _SHORT_RUN, hidden),
            *("--part=layer", "--seconds=0", f"--output={output}"),
        ],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    assert done.stdout.strip() == report.tables(results)
    assert {row["size"] for row in results["layer"]} == {8}
    for row in results["layer"]:
        assert row["contender"] in done.stdout or "imag" in row["contender"]
        assert row["forward_ms"]["median"] > 0
        # TensorFlow's memory is measured in processes of their own.
        assert row.get("backward_mb") is not None or BACKEND == "tensorflow"


def test_memory_is_the_peak_of_a_call():
    peak = timing.peak_memory(lambda: np.ones((32, 2**20), "uint8").sum())
    assert peak is None or peak == pytest.approx(32, abs=4)


# The documents, each on the results that it is made from.

RESULTS = json.loads((ROOT / "results" / "benchmark.json").read_text())


def test_documents_hold_the_tables_of_the_results():
    text = report.tables(RESULTS)
    assert (ROOT / "docs" / "benchmark.md").read_text().strip() == text
    page = (ROOT / "docs" / "performance.md").read_text()
    shown = re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE)
    assert len(shown) == 2 and all(each.strip() in text for each in shown)


def test_sentences_on_performance_agree_with_the_results():
    page = (ROOT / "docs" / "performance.md").read_text()
    text = " ".join(page.split())
    for sentence in [*_layer_sentences(), *_network_sentences()]:
        assert sentence in text


def test_the_readme_agrees_with_the_results():
    steps = {
        row["contender"]: row["step_ms"]["median"] for row in RESULTS["network"]
    }
    before, after = (
        steps[name] / steps["strided"] for name in ("inner, before", "inner")
    )
    said = (
        f"takes {before:.2f} of the time of strided convolutions, {after:.2f}"
    )
    assert said in (ROOT / "README.md").read_text()


def _layer_sentences():
    ms = report.backward_ms
    cases = {}
    for row in RESULTS["layer"]:
        key = (row["data_format"], row["stride"], row["channels"], row["size"])
        cases.setdefault(key, {})[row["contender"]] = row
    usual, other, xla = [], [], []
    for (_, stride, channels, _), rows in cases.items():
        for name, row in rows.items():
            if name.startswith(("outer", "inner", "straight")):
                ratio = ms(row) / ms(rows["FFT form"])
                if name.endswith("XLA"):
                    xla.append(ratio)
                elif "imaginary" not in name:
                    is_usual = (stride, channels) == (2.0, 64)
                    (usual if is_usual else other).append(ratio)
    last = {key[1:]: rows for key, rows in cases.items() if "last" in key[0]}
    sizes = {size: last[2.0, 64, size] for size in (8, 16, 32, 64, 112, 224)}
    outer = {n: rows["outer, dynamic"] for n, rows in sizes.items()}
    per_value = [report.nanoseconds(row) for row in outer.values()]
    few, many = (
        report.nanoseconds(last[2.0, n, 32]["outer, dynamic"]) for n in (4, 256)
    )
    low_rank = [
        ms(rows[report.FORMS[0]]) / ms(rows[report.FORMS[1]])
        for rows in (sizes[32], sizes[64], sizes[224])
    ]
    ratio = ms(outer[32]) / ms(sizes[32]["FFT form"])
    assert max(usual) < 1
    yield f"the outer ramp takes {ratio:.2f} of the time of the FFT form"
    yield f"at most {max(usual):.2f} of its time"
    yield f"it is at most {max(other):.2f}"
    yield f"compiled by XLA, on this CPU, up to {max(xla):.1f}"
    yield f"{min(per_value):.0f} to {max(per_value):.0f} ns for each input"
    yield f"from {few:.0f} ns at 4 channels to {many:.1f} ns at 256"
    yield "{:.2f} of it at 32 x 32, {:.2f} at 64 x 64, {:.2f} at 224".format(
        *low_rank
    )


def _network_sentences():
    steps = {
        row["contender"]: row["step_ms"]["median"] for row in RESULTS["network"]
    }
    strided, floor = steps["strided"], steps[report.FLOOR]
    outer, inner = steps["outer"], steps["inner"]
    through = steps["straight-through"]
    yield f"{outer / strided:.2f} times the strided network"
    yield f"the floor takes {floor / strided:.2f} times"
    yield f"bring it to {outer / floor:.2f} of the floor"
    yield f"inner ramp takes {inner / steps['spectral']:.2f} of the time of"
    yield f"and {inner / strided:.2f} of that of strided convolutions"
    ratios = [
        f"{through / steps[name]:.2f}" for name in ("spectral", "strided")
    ]
    yield f"straight-through {' and '.join(ratios)}"
    yield from _before_sentences()
    yield f"in {RESULTS['seconds'] / 60:.0f} minutes"
    for key in ("device", "version", "keras"):
        yield RESULTS["environment"][key]


def _before_sentences():
    rows = {row["contender"]: row for row in RESULTS["network"]}
    (step, forward), (hard_step, hard_forward) = (
        [
            rows[name][f"{key}_ms"]["median"]
            / rows["strided"][f"{key}_ms"]["median"]
            for key in ("step", "forward")
        ]
        for name in ("inner, before", "outer, hard, before")
    )
    yield f"of the inner ramp takes {step:.2f} of the time of strided"
    yield f"convolutions, and a forward pass {forward:.2f}"
    yield f"made hard takes {hard_step:.2f} and {hard_forward:.2f}"
