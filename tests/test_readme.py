"""What README shows is run."""

import pathlib
import re

import numpy as np

from diffstride.runs import read_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_python_blocks_run():
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 6
    names = {}
    for block in blocks:
        exec(block, names)
    model = names["model"]
    assert names["frozen"].output_shape == (None, 10)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3))
    model.fit(images, np.zeros((2, 10)), verbose=0)
    assert names["cost"].macs == sum(c.macs for c in names["cost"].layers)
    assert names["learned"](images).shape == (2, 10)
    assert len(names["learned"].blocks) == 4


def test_paths_and_anchors_exist():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        if target.startswith("#"):
            headings = re.findall(r"^#+ (.*)$", README, flags=re.MULTILINE)
            anchors = [h.lower().replace(" ", "-") for h in headings]
            assert target[1:] in anchors
        elif not target.startswith("http"):
            assert (ROOT / target).exists(), target
    for path in re.findall(
        r"(?:scripts|configs|results|docs)/[\w.]++(?!\$)", README
    ):
        assert (ROOT / path).exists(), path


def test_lines_are_short():
    code = False
    for line in README.splitlines():
        code ^= line.startswith("```")
        table_or_link = line.lstrip().startswith(("|", "["))
        assert code or table_or_link or len(line) <= 80, line


def test_the_output_of_the_quickstart_is_that_of_the_results_file():
    (record,) = read_runs([ROOT / "results" / "digits.jsonl"])
    summary = record["summary"]
    assert f"test accuracy  {100 * summary['test_accuracy']:.2f} %" in README
    for state in summary["pooling"]:
        assert " x ".join(f"{s:.2f}" for s in state["strides"]) in README


def test_our_own_configs_have_what_is_recommended():
    section = README.partition("### Where to start")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| `?([^ |`]+)", section, re.M))
    recommended = {
        "norm": rows["norm"].replace('"', "'"),
        "ramp": rows["ramp"].replace('"', "'"),
        "smoothness_factor": str(float(rows["smoothness_factor"])),
    }
    for name in ("digits", "fashion_mnist", "cifar10_augmented"):
        text = (ROOT / "configs" / f"{name}.gin").read_text()
        bound = re.findall(r"^pooling\.DiffStride\.(.*) = (.*)$", text, re.M)
        assert dict(bound) == recommended, name
