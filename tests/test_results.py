"""What is written of the results is what the committed runs say."""

import json
import pathlib
import re

import keras
import numpy as np
import pytest
from models import small_resnet
from scripts_alone import script

from diffstride.profiling import learned_in_order, pooling_states, profile
from diffstride.report.page import head
from diffstride.report.study import study
from diffstride.runs import read_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Reports of several files, in the order in which they are given.
TOGETHER = {
    "budgets": [
        "budgets",
        "budgets_search_1800000",
        "budgets_search_2600000",
        "budgets_search_3700000",
        "budgets_search_5200000",
    ],
    "pitch_budget": [
        "pitch_budget",
        "pitch_search",
        "pitch_search_5000000",
        "pitch_search_11000000",
        "pitch_search_14000000",
    ],
    "pitch_spectral": ["pitch_spectral", "pitch_search_5000000"],
}
RESULTS = [
    path
    for path in sorted(ROOT.glob("results/*.jsonl"))
    if path.stem in TOGETHER or path.stem not in sum(TOGETHER.values(), [])
]
REPORTS = [
    ROOT / "docs" / "results" / path.stem / "report.md" for path in RESULTS
]
PAGES = sorted((ROOT / "docs" / "results").glob("*.md"))
TEXT = "".join(path.read_text() for path in PAGES)


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_reports_say_what_the_runs_say(path):
    report = REPORTS[RESULTS.index(path)].read_text()
    title = report.partition("\n")[0].removeprefix("# ")
    before_figures = report.partition("\n\n## Figures\n")[0]
    stems = TOGETHER.get(path.stem, [path.stem])
    runs = study(read_runs([path.with_stem(stem) for stem in stems]))
    assert before_figures == "\n\n".join(head(runs, title))


def test_the_tables_of_results_are_those_of_the_reports():
    reports = [table for path in REPORTS for table in tables(path.read_text())]
    found = tables(TEXT)
    assert len(found) > 3
    for table in found:
        assert table in reports, table


def test_the_known_answer_is_found():
    runs = study(read_runs([ROOT / "results" / "known_answer.jsonl"])).runs
    ends = [
        (layer["strides"], layer["expected"]) for (layer,) in runs["layers"]
    ]
    found = [
        round(low, 2) <= round(strides[0], 2) <= round(high, 2)
        for strides, ((low, high), _) in ends
    ]
    assert len(found) == 36
    text = " ".join(TEXT.split())
    assert f"{sum(found)} of the 36 strides end within the expected" in text
    assert min(strides[1] for strides, _ in ends) > 7.5


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *PAGES], ids=lambda path: path.name
)
def test_each_figure_and_its_command_are_there(path):
    text = path.read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (path.parent / picture).with_suffix(".png").exists(), picture
        folder = (path.parent / picture).parent.relative_to(ROOT)
        if folder.parent.name == "results":
            assert f"--output={folder}" in TEXT


def test_what_conversion_does_to_trained_weights():
    results = json.loads((ROOT / "results" / "pretrained.json").read_text())
    made = script("pretrained").tables(results)
    shown = tables((ROOT / "docs" / "convert.md").read_text())
    assert sum(each.strip() in made for each in shown) == 2


def test_combinations_of_sizes():
    compilations = script("compilations")
    path = ROOT / "results" / "compilations.json"
    results = json.loads(path.read_text())
    page = (ROOT / "docs" / "scale.md").read_text()
    shown = tables(page)
    made = compilations.tables(results)
    assert len(shown) == 3 and all(each.strip() in made for each in shown)
    runs = results["runs"] + results["epochs"]
    released = [run for run in runs if run["size_step"] == 1]
    counts = {
        step: compilations.most(released, str(step))
        for step in compilations.COUNTED
    }
    words = " ".join(page.split())
    images = 90 * 1_281_167
    for throughput in (2_500, 25_000):
        seconds = images / throughput
        hours = f"{seconds / 3600:.1f} hours at {throughput:,} images a second"
        assert hours in words
        for step, count in counts.items():
            allowed = f"{0.05 * seconds / count:.0f} s at `size_step={step}`"
            assert allowed in words
    by_step = [
        {
            (run["mode"], run["ramp"]): run
            for run in results["runs"]
            if run["size_step"] == step
        }
        for step in compilations.STEPS
    ]
    both = [(by_step[0][key], run) for key, run in by_step[1].items()]
    before, after = (
        sum(run["combinations"] for run in each)
        for each in zip(*both, strict=True)
    )
    assert f"there are {after} combinations for {before} in the" in words
    lost = sorted(round(360 * (a["accuracy"] - b["accuracy"])) for a, b in both)
    said = "by {}, {} and, with the inner ramp in a budget, {}, more"
    assert said.format(*lost) in words
    foreseen = [run["ahead"] for run in results["runs"] if "ahead" in run]
    new, hits, wasted = (
        sum(each[key] for each in foreseen) for key in ("new", "hits", "wasted")
    )
    assert f"{hits} of {new} new combinations in time, and {wasted}" in words


def test_sizes_that_are_counted_are_those_of_a_network():
    walks = script("walks")
    model = small_resnet((1, 2, 2), num_layers=1, ramp="inner")
    layers = learned_in_order(model)
    for layer, strides in zip(
        layers, ([1.2, 1.9], [1.4, 2.3], [1.7, 1.1]), strict=True
    ):
        layer.stride_weights.assign(strides)
    step = [keras.ops.convert_to_numpy(each.stride_weights) for each in layers]
    masks = [layer.low_pass for layer in layers]
    (sizes,) = walks.walk(masks, [(step, 1.0)], (28, 28), 1)
    states = pooling_states(profile(model))
    assert list(sizes) == [state.output_size for state in states]
    # A stride that goes to and fro at an edge, and one that leaves it.
    trace = [([np.float32([s, s])], 1.0) for s in (2.01, 1.99, 2.01, 2.5)]
    first = (28, 28)
    assert walks.count(walks.walk(masks[:1], trace, first, 1)) == {
        "combinations": 3,
        "changes": 3,
    }
    held = walks.walk(masks[:1], trace, first, 1, margin=0.02)
    assert [size for ((size, _),) in held] == [14, 16, 16, 12]
