"""What README and docs show is run, and what they say is looked up."""

import importlib.util
import pathlib
import re
import statistics

import gin
import keras
import numpy as np
import pytest

from diffstride import config
from diffstride.resnet import Resnet
from diffstride.runs import read_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
PAGES = [
    *(ROOT / name for name in ("README.md", "RESULTS.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "results").glob("*.md")),
]


def examples(name):
    """Runs the Python blocks of a page, one after the other."""
    text = (ROOT / name).read_text()
    names = {}
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(block, names)
    return names


def of_pages(function):
    return pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)(
        function
    )


def test_the_examples_of_readme_learn_their_strides():
    keras.utils.set_random_seed(0)
    names = examples("README.md")
    model = names["model"]
    (layer,) = [
        each for each in model.layers if isinstance(each, names["DiffStride"])
    ]
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
    before = np.array(layer.stride_weights)
    model.fit(images, np.eye(10)[:8], epochs=10, verbose=0)
    assert np.abs(np.array(layer.stride_weights) - before).min() > 1e-6
    for name in ("learned", "fixed", "strided"):
        assert names[name].strides == [1, 1, 2, 2, 2]


def test_the_examples_on_layers_run():
    names = examples("docs/layers.md")
    assert names["frozen"](np.zeros((1, 32, 32, 3))).shape == (1, 10)
    assert names["cost"].macs == sum(c.macs for c in names["cost"].layers)
    assert names["small"].losses
    assert "what follows does not depend on it" in names["finding"]
    strides = names["model"].layers[0].stride_weights
    names["optimizer"].apply([np.zeros(2, "float32")], [strides])
    assert np.array(strides).tolist() == [2.0, 2.0]


def test_the_examples_on_sound_run():
    names = examples("docs/audio.md")
    assert names["logits"].shape == (4, 8)
    network = names["waveform_network"](3)
    x = np.random.default_rng(0).normal(size=(2, 2, 512)).astype("float32")
    network.build((None, 512))
    assert network(x).shape == (2, 3)


@pytest.mark.slow
def test_the_examples_on_conversion_run():
    names = examples("docs/convert.md")
    x = np.random.default_rng(0).normal(size=(2, 64, 64, 3))
    np.testing.assert_allclose(names["same"](x), names["source"](x), atol=1e-5)
    kinds = [type(layer).__name__ for layer in names["own"].layers]
    assert kinds[-2:] == ["ReLU", "DiffStride"]
    begin = [change.strides for change in names["report"].changes]
    assert begin == [(2, 2)]


def test_the_pooling_method_of_contributing_works(tmp_path):
    names = examples("CONTRIBUTING.md")
    model = Resnet(
        [2, 4],
        [1, 2],
        num_output_classes=2,
        num_layers=1,
        pooling_cls=names["PeakPooling"],
    )
    model.compile("sgd", "mse")
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    model.fit(images, np.eye(2), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = names["keras"].models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(images), model(images), atol=1e-6)


@of_pages
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if target.startswith("http"):
            continue
        path, _, anchor = "".join(target.split()).partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            anchors = [
                re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
                for heading in headings
            ]
            assert anchor in anchors, target


@of_pages
def test_commands_name_what_is_there(page):
    text = page.read_text().partition("## 0.1.0")[0]
    for module in re.findall(r"python -m (diffstride[\w.]*)", text):
        spec = importlib.util.find_spec(module)
        assert spec, module
        if spec.submodule_search_locations:
            assert importlib.util.find_spec(f"{module}.__main__"), module
    for path in re.findall(
        r"(?:scripts|configs)/[\w./]+\.(?:py|sh|gin|toml)", text
    ):
        assert (ROOT / path).exists(), path
    for name in re.findall(r"--gin_config=(\w+\.gin)", text):
        assert (ROOT / "configs" / name).exists(), name


@of_pages
def test_bindings_are_accepted(page):
    gin.clear_config()
    found = re.findall(r'--gin_bindings="([^"]+)"', page.read_text())
    try:
        config.load([], [each.replace("\n", " ") for each in found])
    finally:
        gin.clear_config()


def test_the_results_in_readme_are_those_of_the_runs():
    methods = ("strided", "spectral", "outer")
    cells = {}
    for run in read_runs([ROOT / "results" / "longer.jsonl"]):
        settings = run["settings"]
        if settings.get("stride_lr", 1) == 1:
            key = settings["strides"], settings["method"]
            cells.setdefault(key, []).append(run["summary"])
    section = README.partition("## Results")[2].partition("##")[0]
    rows = re.findall(r"^\| (\d, \d, \d, \d) \| (.* at .*) \|$", section, re.M)
    assert len(rows) == 3
    for strides, row in rows:
        start = strides.replace(" ", "")
        for method, cell in zip(methods, row.split(" | "), strict=True):
            runs = cells.get((start, method))
            assert (runs is None) == (cell == "not run")
            if runs:
                accuracy = statistics.mean(r["test_accuracy"] for r in runs)
                macs = statistics.mean(r["cost"]["macs"] for r in runs)
                assert cell == f"{100 * accuracy:.1f} % at {macs / 1e6:.2f} M"


def test_the_output_of_the_quickstart_is_that_of_the_results_file():
    (record,) = read_runs([ROOT / "results" / "digits.jsonl"])
    summary = record["summary"]
    text = (ROOT / "docs" / "training.md").read_text()
    assert f"test accuracy  {100 * summary['test_accuracy']:.2f} %" in text
    for state in summary["pooling"]:
        assert " x ".join(f"{s:.2f}" for s in state["strides"]) in text


def test_our_own_configs_have_what_is_recommended():
    section = README.partition("## Where to start")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^ |`]+)", section, re.M))
    recommended = {
        "norm": rows["norm"].replace('"', "'"),
        "ramp": rows["ramp"].replace('"', "'"),
        "smoothness_factor": str(float(rows["smoothness_factor"])),
    }
    for name in ("digits", "fashion_mnist", "cifar10_augmented", "audio"):
        text = (ROOT / "configs" / f"{name}.gin").read_text()
        bound = re.findall(r"^pooling\.DiffStride\.(.*) = (.*)$", text, re.M)
        assert dict(bound) == recommended, name
