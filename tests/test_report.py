"""What a report says is what the runs say."""

import itertools
import json
import math
import re
import statistics
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from made_up_runs import STRIDES, failed, grid, record

import diffstride
from diffstride.errors import UserError, run_reporting_errors
from diffstride.report import figures, masks, page, ranks, style
from diffstride.report import strides as strides_figures
from diffstride.report.__main__ import main
from diffstride.report.study import shown, study
from diffstride.report.tables import (
    ablation_table,
    accuracy_table,
    budget_table,
    cost_table,
    cutoff_table,
    expected_table,
    frontier_table,
    hardened_strides_table,
    hardening_table,
    repeated_seeds,
    task_table,
)
from diffstride.settings import METHODS, bindings

FIGURES = (
    "accuracy_cost",
    "global_factor",
    "learned_strides",
    "cutoffs",
    "trajectories",
    "masks",
)


def made(accuracies, **settings):
    """Runs of one setting with the given accuracies, in %, one a seed."""
    records = []
    for seed, accuracy in enumerate(accuracies):
        each = record(seed=seed, epochs=2, **settings)
        each["summary"]["test_accuracy"] = accuracy / 100
        records.append(each)
    return records


def table(text):
    """Rows of the first Markdown table, as lists of cells."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [[c.strip() for c in line[1:-1].split(" | ")] for line in lines]
    assert len({len(row) for row in rows}) == 1
    return [row for row in rows if set("".join(row)) != {"-"}]


def test_accuracies_by_hand():
    records = (
        made([90, 92, 94], method="strided", strides="1,1,2,2")
        + made([91, 95], method="outer", strides="1,1,2,2")
        + made([80], method="strided", strides="3,3,3,3")
        + made([93, 92.996], method="outer", strides="3,3,3,3")
        + made([93], method="inner", strides="3,3,3,3")
    )
    text = accuracy_table(study(reversed(records)))
    assert table(text) == [
        ["initial strides", "strided", "outer", "inner"],
        # 92, sqrt((4 + 0 + 4) / 2) = 2; 93, sqrt((4 + 4) / 1) = 2.83.
        ["1,1,2,2", "92.00 ± 2.00 (3)", "**93.00 ± 2.83 (2)**", "-"],
        # 92.998 and 93 are alike as printed: both are marked.
        ["3,3,3,3", "80.00 (1)", "**93.00 ± 0.00 (2)**", "**93.00 (1)**"],
        ["*mean of 2*", "86.00", "**93.00**", "-"],
        ["*spread: largest - smallest*", "12.00", "**0.00**", "-"],
    ]
    # Squares about the means: 8 + 8 + 0.000008; degrees of freedom: 2 + 1 + 1.
    # As many cells have two runs as have one: sqrt(4) sqrt(2 / 2).
    assert (
        "of a run, pooled over cells, is 2.00 points (standard error of the "
        "difference of two means of 2: 2.00)"
    ) in text


def test_noise_is_told_of_each_group():
    records = []
    for norm, sets in (
        ("forward", ([90, 92], [80, 82])),
        ("backward", ([20, 60], [30, 30])),
    ):
        for method, accuracies in zip(("inner", "outer"), sets, strict=True):
            records += made(accuracies, method=method, norm=norm)
    text = accuracy_table(study(records))
    # Squares about the means: 2 + 2 and 800, each over 2.
    assert "is 20.00 points with norm backward (standard error of the d" in text
    assert "two means of 2: 20.00); 1.41 points with norm forward (" in text
    assert "two means of 2: 1.41)." in text


def test_mean_and_spread_over_initial_strides():
    records = []
    for strides, strided, outer in (
        ("1,1,1,2", 90, 88),
        ("2,2,2,2", 87, 89),
        ("3,2,2,2", 81, 87),
        ("4,4,4,4", 10, None),
    ):
        records += made([strided], method="strided", strides=strides)
        if outer:
            records += made([outer], method="outer", strides=strides)
    text = accuracy_table(study(records))
    rows = table(text)
    assert [row[0] for row in rows[1:5]] == [
        *("1,1,1,2", "2,2,2,2", "3,2,2,2", "4,4,4,4")
    ]
    # Only over the three that both were run with.
    assert rows[5] == ["*mean of 3*", "86.00", "**88.00**"]
    assert rows[6] == ["*spread: largest - smallest*", "9.00", "**2.00**"]
    assert "all methods of the group" in text
    records += made([99], method="inner", strides="1,1,1,2")
    text = accuracy_table(study(records))
    # One row is too few: means of those alone that have all of them.
    assert table(text)[5] == ["*mean of 4*", "67.00", "-", "-"]
    assert table(text)[6][1:] == ["80.00", "-", "-"]
    assert "all methods of the group" not in text
    assert "nothing is known of the noise" in text


def test_learned_strides_beside_expected_ones():
    records = []
    for seed, learned in enumerate(([2.0, 8.0], [2.2, 7.0])):
        each = record(method="inner", seed=seed, epochs=2)
        layer = each["summary"]["pooling"][0]
        layer |= {"strides": learned, "expected": [(1.5, 2.5), (8.0, 8.0)]}
        each["summary"]["pooling"] = [layer]
        records.append(each)
    assert table(expected_table(study(records)))[1] == [
        *("1,1,2,2", "inner"),
        # Means 2.1 and 7.5, deviations 0.2 / sqrt(2) and 1 / sqrt(2).
        *("1.50 to 2.50", "2.10 ± 0.14 (2)", "8.00", "7.50 ± 0.71 (2)"),
    ]
    assert expected_table(study([record()])) is None


def test_strides_are_ordered_by_their_product_and_groups_by_other_axes():
    records = [
        each
        for strides in ("10,1,1,1", "2,2,1,1")
        for norm in ("forward", "backward")
        for each in made([90], strides=strides, norm=norm)
    ]
    rows = table(accuracy_table(study(records)))
    assert [row[:2] for row in rows] == [
        ["norm", "initial strides"],
        ["backward", "2,2,1,1"],
        ["backward", "10,1,1,1"],
        ["backward", "*mean of 2*"],
        ["backward", "*spread: largest - smallest*"],
        ["forward", "2,2,1,1"],
        ["forward", "10,1,1,1"],
        ["forward", "*mean of 2*"],
        ["forward", "*spread: largest - smallest*"],
    ]


def test_a_method_without_a_setting_stands_in_each_of_its_rows(tmp_path):
    records = made([90, 91], method="strided")
    for smoothness, accuracy in ((1, 80), (4, 85), (10, 95)):
        records += made([accuracy], method="outer", smoothness=smoothness)
    runs = study(records)
    assert [row[::2] for row in table(accuracy_table(runs))] == [
        ["smoothness", "strided"],
        ["1", "**90.50 ± 0.71 (2)**"],
        ["4", "**90.50 ± 0.71 (2)**"],
        ["10", "90.50 ± 0.71 (2)"],
    ]
    text = page.write(records, tmp_path).read_text()
    assert "strided was not given smoothness" in text
    assert "is 0.71 points with smoothness 1 (" in text
    # A start that only it has stands beside each of the others' settings.
    records += made([70], method="strided", strides="1,1,1,1")
    rows = table(accuracy_table(study(records)))
    assert [row for row in rows if row[1] == "1,1,1,1"] == [
        [number, "1,1,1,1", "70.00 (1)", "-"] for number in ("1", "4", "10")
    ]


def test_strides_that_were_not_varied_are_those_of_all():
    records = made([90], method="strided") + made([80], method="outer")
    for each in records:
        del each["settings"]["strides"]
    assert table(accuracy_table(study(records)))[1:] == [
        ["1,1,2,2", "**90.00 (1)**", "80.00 (1)"]
    ]


def test_runs_with_other_bindings_are_no_further_seeds():
    records = made([90, 92]) + made([80, 82])
    for each, width in zip(records, (8, 8, 16, 16), strict=True):
        each["bindings"] = ["a.b = 1", f"resnet.Resnet.filters = [{width}]"]
        each["name"] += f"_{width}"
    rows = table(accuracy_table(study(records)))
    assert [row[0] for row in rows] == [
        "bindings",
        "resnet.Resnet.filters = [16]",
        "resnet.Resnet.filters = [8]",
    ]


def test_an_axis_alone_is_compared_at_equal_settings():
    records = (
        made([80, 82], norm="backward", strides="1,1,2,2")
        + made([90, 94], norm="forward", strides="1,1,2,2")
        + made([60], norm="backward", strides="2,2,2,2")
        + made([70], norm="forward", strides="2,2,2,2")
        # Was not run with the other norm, and would turn the table.
        + made([10], norm="forward", strides="9,9,9,9")
        + made([50], method="spectral", norm="forward", strides="1,1,2,2")
    )
    assert table(ablation_table(study(records), "norm")) == [
        # Not spectral, which was run with one norm.
        ["norm", "outer"],
        # (81 + 60) / 2, (92 + 70) / 2; sqrt(2 / 1) and sqrt(8 / 1).
        ["backward", "70.50 ± 1.41 (3)"],
        ["forward", "**81.00 ± 2.83 (3)**"],
    ]
    records += made([99], method="spectral", norm="ortho", strides="1,1,2,2")
    rows = table(ablation_table(study(records), "norm"))
    assert [row[1] for row in rows] == [
        *("spectral", "-", "50.00 (1)", "**99.00 (1)**")
    ]
    assert ablation_table(study(made([50], norm="ortho")), "norm") is None


def test_costs_by_hand():
    records = made([90, 92], method="spectral") + made([80], method="strided")
    for each, macs, seconds in zip(
        records, (3e6, 5e6, 1e6), ((1, 9), (2, 8), (7, 7)), strict=True
    ):
        each["summary"]["cost"] = {"macs": macs, "activation_bytes": macs / 8}
        for row, value in zip(each["epochs"], seconds, strict=True):
            row["seconds"] = value
    for each, stride in zip(records[:2], (2, 3), strict=True):
        first = each["summary"]["pooling"][0]
        first.update(strides=[stride, 2], output_size=[stride, stride])
        each["summary"]["pooling"] = [first, each["summary"]["pooling"][1]]
    strided, spectral = table(cost_table(study(records)))[1:]
    assert strided[1:] == [
        *("strided", "80.00 (1)", "1.00", "0.125", "7.0", "-", "-")
    ]
    assert spectral == [
        *("1,1,2,2", "spectral", "91.00 ± 1.41 (2)", "4.00", "0.500"),
        *("5.0", "2.50 x 2.00, 1.00", "2.5, 28"),
    ]


def test_without_cost_the_last_epoch_may_tell_it():
    (each,) = made([90])
    del each["summary"]["cost"]
    assert table(cost_table(study([each])))[1][3:5] == ["-", "-"]
    each["epochs"][-1] |= {"macs": 2e6, "activation_bytes": 1e6}
    assert table(cost_table(study([each])))[1][3:5] == ["2.00", "1.000"]


def test_lambda_gets_a_frontier(tmp_path):
    records = made([70, 70], method="strided")
    for weight, accuracy in ((10, 80), (0.1, 95), (0, 96)):
        records += made([accuracy, accuracy + 1], **{"lambda": weight})
    rows = table(frontier_table(study(records)))
    assert [row[:4] for row in rows[1:]] == [
        ["strided", "1,1,2,2", "-", "70.00 ± 0.00 (2)"],
        ["outer", "1,1,2,2", "0", "96.50 ± 0.71 (2)"],
        ["outer", "1,1,2,2", "0.1", "95.50 ± 0.71 (2)"],
        ["outer", "1,1,2,2", "10", "80.50 ± 0.71 (2)"],
    ]
    last = records[2:4]
    products = [
        math.prod(math.prod(layer["strides"]) for layer in layers)
        for layers in (each["summary"]["pooling"] for each in last)
    ]
    assert rows[-1][-1] == f"{statistics.fmean(products):.1f}"
    costs = [each["epochs"][-1]["stride_cost"] for each in last]
    assert rows[-1][-2] == f"{statistics.fmean(costs):.3f}"
    assert frontier_table(study(made([70]))) is None
    text = page.write(records, tmp_path).read_text()
    assert "](lambda.png)" in text and "](accuracy_cost.png)" not in text


@pytest.mark.parametrize(("lowest", "alike"), [(85, True), (20, False)])
def test_panels_share_a_scale_where_that_shows_each(lowest, alike):
    records = []
    for norm, accuracies in (("forward", (90, 94)), ("backward", (lowest, 93))):
        for strides, accuracy in zip(STRIDES, accuracies, strict=False):
            records += made([accuracy], strides=strides, norm=norm)
    figure = figures.accuracy_against_cost(study(records))
    backward, forward = figure.axes
    assert (backward.get_ylim() == forward.get_ylim()) == alike
    assert ("own" in forward.get_ylabel()) != alike
    assert backward.get_xlim() == forward.get_xlim()


def test_a_report_of_everything(tmp_path):
    records = [*grid(), failed(method="inner", seed=9)]
    unfinished = {**record(seed=8), "summary": None}
    path = page.write([*records, unfinished], tmp_path, "A title")
    text = path.read_text()
    assert path == tmp_path / "report.md"
    assert text.startswith("# A title\n")
    assert "62 runs: 60 ended well, 1 failed, 1 did not end" in text
    assert "On 2 CPU cores, Python 3.11.7, TensorFlow 2.21.0, Keras" in text
    assert "config `fashion_mnist.gin`" in text
    # One line of the error, and no new column.
    assert r"| Loss is nan at step 12 \| epoch 1 |" in text
    assert "Traceback" not in text
    assert f"did not end\n\n{unfinished['name']}." in text
    assert "No figure" not in text
    for stem in FIGURES:
        assert f"]({stem}.png)" in text
        look(tmp_path / f"{stem}.png")


def look(png):
    """The picture has something on it, and nothing of it is at the edge."""
    import matplotlib.pyplot as plt

    picture = plt.imread(png)[..., :3].mean(-1)
    assert min(picture.shape) > 300
    assert 0.005 < (picture < 0.9).mean() < 0.5
    edges = (picture[0], picture[-1], picture[:, 0], picture[:, -1])
    assert min(edge.min() for edge in edges) > 0.99


def test_the_same_runs_give_the_same_bytes(tmp_path):
    contents = []
    for name in ("one", "two"):
        page.write(grid(strides=STRIDES[:2], seeds=2), tmp_path / name)
        files = sorted((tmp_path / name).iterdir())
        contents.append({path.name: path.read_bytes() for path in files})
    assert len(contents[0]) == 1 + len(FIGURES)
    assert contents[0] == contents[1]


@pytest.fixture
def draw(monkeypatch):
    """`draw(*names)` sets the figures of reports from then on, empty ones."""
    import matplotlib.pyplot as plt

    def draw(*names):
        parts = [f"![A figure]({name})" for name in names]
        drawings = {name: plt.figure(figsize=(1, 1)) for name in names}
        monkeypatch.setattr(figures, "draw_all", lambda *_: (parts, drawings))

    yield draw
    plt.close("all")


def test_only_an_earlier_report_is_replaced(draw, tmp_path):
    (tmp_path / "mine.png").write_text("precious")
    (tmp_path / "notes.md").write_text("![mine](mine.png)")
    draw("masks.png", "lambda.png")
    page.write([record()], tmp_path)
    draw("masks.png", "cutoffs.png")
    page.write([record()], tmp_path, "Again")
    assert (tmp_path / "report.md").read_text().startswith("# Again")
    left = {"mine.png", "notes.md", "report.md", "masks.png", "cutoffs.png"}
    assert {path.name for path in tmp_path.iterdir()} == left
    draw("mine.png")
    with pytest.raises(UserError, match="holds mine.png, which is not of an"):
        page.write([record()], tmp_path)


@pytest.mark.parametrize(
    "name, content",
    [
        ("report.md", "# My own report"),
        ("report.md", "## Test accuracy, %\n\nOf the thesis: 93"),
        ("report.md", "no end"),
        ("report.md", "\xff\xfe"),
        ("report.md", None),
        ("masks.png", "a picture"),
        ("masks.png", ""),
        ("masks.png", None),
    ],
)
def test_what_no_report_wrote_is_left_alone(name, content, draw, tmp_path):
    path = tmp_path / name
    if content is None:
        path.mkdir()
    else:
        path.write_text(content, encoding="latin1")
    draw("masks.png")
    with pytest.raises(UserError, match=f"{name},? which "):
        page.write([record()], tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == [name]
    assert content is None or path.read_text("latin1") == content


def test_a_report_that_could_not_be_written_is_written_again(draw, tmp_path):
    draw("masks.png")
    for name in ("report.md", "masks.png"):
        (tmp_path / f"unfinished.{name}").symlink_to("/dev/full")
        with pytest.raises(UserError, match=f"{name} cannot be .* No space"):
            page.write([record()], tmp_path)
    page.write([record()], tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "masks.png",
        "report.md",
    }


MARKUP = (
    "<script>alert(1)</script>",
    "a<img src=x onerror=alert(1)>",
    "`code` <b>bold</b>",
    "[click](javascript:alert(1))",
    "![track](http://example.com/x.png)",
    "[x]: javascript:alert(1)",
    "two\nlines\n\n<hr>",
    "$x^$ and \\frac",
    "| a | b <i>",
    "&lt;s> <s>",
)


def test_markup_in_records_is_text_in_a_report(tmp_path):
    records = []
    for text in MARKUP:
        run = {**record("outer", norm=text), "name": f"{text} ended"}
        run |= {"bindings": [f"a.b = '{text}'"], "gin_config": text}
        run["summary"]["environment"]["devices"] = [text]
        lost = {**failed(), "name": f"{text} failed", "error": text}
        unfinished = {**run, "name": f"{text} lives", "summary": None}
        records += [run, lost, unfinished]
    # One is shown by itself, and is in headings and captions.
    path = page.write(records, tmp_path, MARKUP[0], f"{MARKUP[0]} ended")
    written = path.read_text()
    for what in ("ended", "failed", "lives"):
        assert f"&lt;script>alert(1)&lt;/script> {what}" in written
    assert "<" not in written
    links = re.findall(r"(?<!\\)\]\(.*", written)
    assert len(links) == written.count(".png)\n")
    assert not re.search(r"(?<!\\)\][:\[]", written)
    look(tmp_path / "masks.png")
    # Nor is it mathematics in a figure.
    runs = [record(norm=text) for text in MARKUP[6:8]]
    figures.accuracy_against_cost(study(runs)).canvas.draw()


def test_what_there_is_no_data_for_is_left_out(tmp_path):
    page.write(grid(seeds=1), tmp_path)
    text = page.write(
        [record(method, cost=False) for method in ("strided", "spectral")],
        tmp_path,
    ).read_text()
    assert text.count("No figure:") == len(FIGURES)
    # Those of the earlier report are gone.
    assert [path.name for path in tmp_path.iterdir()] == ["report.md"]


def test_a_run_started_by_hand(tmp_path, capsys):
    each = record(states=False, cost=False)
    workdir = tmp_path / "mine"
    workdir.mkdir()
    (workdir / "summary.json").write_text(json.dumps(each["summary"]))
    lines = [json.dumps(row) + "\n" for row in each["epochs"]]
    (workdir / "metrics.jsonl").write_text("".join(lines))
    output = tmp_path / "out"
    assert main(["", str(workdir), f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"{output / 'report.md'}\n"
    text = (output / "report.md").read_text()
    accuracy = 100 * each["summary"]["test_accuracy"]
    assert f"| 1,1,2,2 | {accuracy:.2f} (1) |" in text
    assert "lacks ramp and smoothness" in text
    assert "](trajectories.png)" in text


@pytest.mark.parametrize(
    ("change", "method"),
    [
        ({"learned": True, "ramp": "inner"}, "inner"),
        ({"learned": True}, "learned"),
        ({"learned": False}, "spectral"),
        ({"learned": False, "kind": "SpatialPooling"}, "average"),
        ({"learned": False, "ramp": "outer"}, "outer, fixed"),
        ({"learned": False, "kind": "MaxBlurPool2D"}, "max_blur"),
        ({"learned": True, "kind": "DynOPool"}, "dynopool"),
        ({"learned": False, "kind": "DynOPool"}, "dynopool, fixed"),
        (
            {"learned": True, "ramp": "outer", "kind": "DCTDiffStride"},
            "dct",
        ),
    ],
)
def test_methods_of_runs_started_by_hand(change, method):
    each = {**record(states=False), "settings": {}}
    for layer in each["summary"]["pooling"]:
        layer.update(change)
    assert study([each]).methods == [method]


def test_rivals_have_names_and_looks_of_their_own():
    records = []
    for method in METHODS:
        each = record("spectral", seed=len(records), epochs=2)
        each["settings"]["method"] = method
        records.append(each)
    runs = study(records)
    header = table(accuracy_table(runs))[0]
    assert len({*header}) == len(METHODS) + 1
    assert {"DynOPool", "DCT-DiffStride", "FLC pooling", "max"} <= {*header}
    drawn = figures.accuracy_against_cost(runs)
    (axes,) = drawn.axes
    points = [each for each in axes.containers if each.lines]
    assert len(points) == len(METHODS)
    colors = style.method_colors(runs.cells["method"])
    assert len({*colors.values()}) == len(METHODS)
    legend = {
        each.get_text(): line.get_linestyle()
        for each, line in zip(
            drawn.legends[0].get_texts(),
            drawn.legends[0].get_lines(),
            strict=True,
        )
    }
    assert legend["outer"] == "-" and legend["BlurPool"] == "--"


@pytest.mark.parametrize("kind", ["DiffStride", "DCTDiffStride"])
def test_masks_are_those_of_the_layer(kind):
    layer = {
        **{"kind": kind, "ramp": "outer", "smoothness_factor": 2.0},
        **{"initial": [2.0, 2.0], "strides": [2.0, 2.5]},
        **{"input_size": [12, 10], "shared_stride": False},
    }
    mask = masks._mask(layer, "strides")
    # The ramp, and where it would be one half at 0.5 / stride.
    below = mask.frequencies < 0.5 / 2.5 - 1e-9
    assert (mask.weights[below] == 1).all()
    assert mask.frequencies[-1] == (0.5 if kind == "DiffStride" else 0.45)
    cls = getattr(diffstride, kind)
    used = cls((2.0, 2.5), 2.0, data_format="channels_last")
    sizes = used.output_sizes((12, 10), np.float32([2, 2.5]))
    kept = np.count_nonzero(mask.weights)
    assert sizes[1] == (2 * (kept - 1) if kind == "DiffStride" else kept)


@pytest.mark.parametrize("kind", ["DiffStride", "DCTDiffStride"])
def test_masks_know_the_smallest_size(kind):
    options = {"keep_parity": False, "smallest_size": 1, "ramp": "outer"}
    layer = {
        **{"kind": kind, "smoothness_factor": 1.0, **options},
        **{"initial": [2.0, 2.0], "strides": [7.0, 3.5]},
        **{"input_size": [7, 6], "shared_stride": False},
    }
    used = getattr(diffstride, kind)((7.0, 3.5), 1.0, **options)
    bands = used.low_pass.bands((7, 6), np.float32([7.0, 3.5]))
    for axis in (0, 1):
        mask = masks._mask(layer, "strides", axis=axis)
        band = bands[axis]
        weights = band.negative if axis else band.positive
        np.testing.assert_array_equal(mask.weights, weights)
    own, _ = strides_figures.frequencies([layer], 0, "strides")
    assert own == pytest.approx([0.5 / 7])


def test_masks_end_as_narrow_as_a_schedule_made_them():
    layer = {
        **{"kind": "DiffStride", "ramp": "outer", "smoothness_factor": 2.0},
        **{"initial": [2.0, 2.0], "strides": [2.0, 2.0]},
        **{"input_size": [12, 12], "shared_stride": False},
    }
    wide = [1, 1, 1, 1, 1, 0.5, 0]
    np.testing.assert_allclose(masks._mask(layer, "strides").weights, wide)
    layer["current_smoothness"] = 0.0
    np.testing.assert_allclose(masks._mask(layer, "initial").weights, wide)
    hard = [1, 1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(masks._mask(layer, "strides").weights, hard)


def test_masks_of_dynopool_do_not_exist():
    each = record(epochs=2)
    for layer in each["summary"]["pooling"]:
        layer.update(kind="DynOPool", ramp=None, smoothness_factor=None)
    runs = study([each])
    assert masks.masks(shown(runs).single) == "DynOPool has no masks"


def test_without_pooling_layers_the_method_is_strided_or_unknown():
    each = {**record("strided"), "settings": {}}
    assert study([each]).methods == ["strided"]
    del each["summary"]["pooling"]
    assert study([each]).methods == ["run"]


def test_runs_of_which_no_setting_is_known_are_reported(tmp_path):
    records = made([90, 92], method="strided")
    for each in records:
        each["settings"] = {}
    text = page.write(records, tmp_path).read_text()
    header, row = table(accuracy_table(study(records)))
    assert header == ["initial strides", "strided"]
    assert row == ["-", "91.00 ± 1.41 (2)"]
    assert "there is only one point to show" in text


@pytest.mark.parametrize("rank", [1, 3])
def test_layers_of_other_dimensions_are_drawn(rank, tmp_path):
    records = made([90, 92], method="outer", strides="1,2,2,2")
    for layer in (x for each in records for x in each["summary"]["pooling"]):
        for key in ("initial", "strides", "input_size", "output_size"):
            layer[key] = [*layer[key], layer[key][1]][:rank]
    page.write(records, tmp_path)
    drawn = {path.stem for path in tmp_path.glob("*.png")}
    assert drawn >= {"learned_strides", "cutoffs", "masks", "trajectories"}


def test_fixed_strides_stand_in_the_budget_that_they_spend():
    records = [
        *made([94, 98], strides="1,1,2,2", budget=1_000_000),
        *made([96], strides="1,1,2,2", budget=2_000_000),
        *made([91, 93], method="strided", strides="2,2,2,2"),
        *made([95], method="strided", strides="1,4,2,2"),
        *made([99], method="strided", strides="1,1,1,1"),
    ]
    fixed = [each for each in records if each["settings"]["method"] != "outer"]
    for each, macs in zip(fixed, (0.9e6, 0.9e6, 1.04e6, 1.3e6), strict=True):
        each["summary"]["cost"]["macs"] = macs
    for each, validation in zip(fixed, (0.9, 0.8, 0.8, 0.9), strict=True):
        each["summary"]["validation_accuracy"] = validation
    _, *rows = table(budget_table(study(records)))
    assert [[*row[:3], *row[4:]] for row in rows] == [
        ["1", "outer", "1 (2)", "96.00", *["96.00 (1,1,2,2)"] * 2, "-"],
        [
            *("1", "strided", "2 (3)", "93.50", "92.00 (2,2,2,2)"),
            *("95.00 (1,4,2,2)", "92.00 (2,2,2,2)"),
        ],
        ["2", "outer", "1 (1)", "96.00", *["96.00 (1,1,2,2)"] * 2, "-"],
    ]
    assert rows[1][3] == "0.90 to 1.04"
    assert budget_table(study(made([90]))) is None


def test_how_early_epochs_rank_strides():
    accuracies = [90 + i for i in range(10)]
    records = made([97], budget=1_000_000)  # It says which budget there is.
    for i, accuracy in enumerate(accuracies):
        each = made([accuracy], method="strided", strides=f"{i + 1},1,2,2")[0]
        each["summary"]["cost"]["macs"] = 1e6
        first, second = each["epochs"]
        # Two that are next to each other change places; the others do not.
        first |= {"loss": -i + 1.5 * (i == 3), "val_accuracy": 9 - i}
        second |= {"loss": -i, "val_accuracy": i}
        records.append(each)
    # 1 - 6 * (1 + 1) / (10 * 99)
    header, *rows = table(ranks.ranks_table(study(records)))
    assert header[-2:] == ["epoch 1", "epoch 2"]
    assert rows == [
        ["1", "strided", "10", "training loss", "0.99", "1.00"],
        ["1", "strided", "10", "validation accuracy", "-1.00", "1.00"],
    ]
    # Networks that learned are others from epoch to epoch.
    for each in records[1:]:
        each["summary"]["pooling"] = record()["summary"]["pooling"]
    assert ranks.ranks_table(study(records)) is None
    for each in records[1:]:
        each["summary"]["pooling"] = []
    # Ten runs of five sets are not ten sets.
    twice = [
        {**each, "settings": {**each["settings"], "seed": seed}}
        for each in records[1:6]
        for seed in (0, 1)
    ]
    assert ranks.ranks_table(study([records[0], *twice])) is None
    # What one of the runs does not tell is left out.
    del records[-1]["epochs"][0]["loss"]
    _, row, _ = table(ranks.ranks_table(study(records)))
    assert row == ["1", "strided", "10", "training loss", "-", "1.00"]
    few = study(records[:-1])
    assert ranks.ranks_table(few) is ranks.short_trainings_table(few) is None
    assert ranks.ranks_table(study(made([90]))) is None


def test_what_short_trainings_of_random_strides_reach():
    records = made([97], budget=1_000_000)
    accuracies = [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]
    for i, accuracy in enumerate(accuracies):
        each = made([accuracy], method="strided", strides=f"{i + 1},1,2,2")[0]
        each["summary"]["cost"]["macs"] = 1e6
        for row, loss in zip(each["epochs"], (i, -i), strict=True):
            row["loss"] = loss
        records.append(each)
    _, first, second = table(ranks.short_trainings_table(study(records)))
    # The best of 5 of 10: of all choices what is first, worst set first.
    choices = list(itertools.combinations(accuracies, 5))
    worst, best = (statistics.mean(map(f, choices)) for f in (min, max))
    name = ["1", "strided", "10"]
    assert first == [*name, "1", f"{worst:.2f} (3.0)", "90.00 (5.5)", "-"]
    assert second == [*name, "2", f"{best:.2f} (5.0)", "99.00 (10.0)", "-"]


def test_a_learned_run_beside_the_best_of_a_search():
    learned = made([97, 95], budget=1_000_000)
    for each in learned:
        each["summary"]["hardened"] = {"to": "pooled"}
    # The better a set is in the test, the worse it is in validation.
    accuracies = [90, 91, 92, 93, 94, 95, 96, 97, 98, 99]
    fixed = []
    for i, accuracy in enumerate(accuracies):
        each = made([accuracy], method="strided", strides=f"{i + 1},1,2,2")[0]
        each["summary"]["cost"]["macs"] = 1e6
        each["summary"]["validation_accuracy"] = 1 - accuracy / 100
        fixed.append(each)
    for each in learned + fixed:
        each["summary"]["images_per_epoch"] = 1000
        for row in each["epochs"]:
            row["macs"] = 1e9
    header, found, mine = table(ranks.searches_table(study(learned + fixed)))
    worst = statistics.mean(map(min, itertools.combinations(accuracies, 5)))
    epochs = len(fixed[0]["epochs"])
    cost = f"{3 * 1000 * epochs / 1e3:.2f}"
    assert header[:4] == ["budget, M", "method", "sets, or start", "runs"]
    assert found[:6] == ["1", "strided", "10", "10", cost, "94.50"]
    assert found[-3:] == [f"{worst:.2f}", "90.00", "-"]
    start = learned[0]["settings"]["strides"]
    assert mine == ["1", "outer", start, "2", cost, "96.00", *5 * ["-"]]
    del fixed[3]["summary"]["validation_accuracy"]
    assert ranks.searches_table(study(learned + fixed)) is None


def test_whether_methods_agree_on_strides():
    records = []
    for i in range(10):
        strides = f"{i + 1},1,2,2"
        records += made([80 + i, 82 + i], method="strided", strides=strides)
        records += made([90 - i], method="spectral", strides=strides)
        records += made([70], method="outer", strides="1,1,2,2")
    rows = table(ranks.agreement_table(study(records)))[1:]
    assert rows == [["strided", "spectral", "10", "-1.00"]]
    assert ranks.agreement_table(study(records[:-4])) is None


def test_layers_that_were_hardened_are_those_that_learned():
    each = record(budget=1_000_000)
    learned = {"pooling": each["summary"].pop("pooling")}
    each["summary"] |= {"pooling": [], "hardened": {"learned": learned}}
    del each["settings"]["method"], each["settings"]["strides"]
    (row,) = study([each]).runs.itertuples()
    assert row.strides and row.strides != "none"
    assert row.learned == learned["pooling"] and row.moved
    assert row.method == "outer"


def test_hardened_networks_before_and_after():
    records = made([90, 92], budget=1_000_000) + made([94], budget=2_000_000)
    for i, each in enumerate(records):
        learned = {"pooling": each["summary"].pop("pooling")}
        learned |= {"test_accuracy": 0.5 + i / 10, "cost": {"macs": 3e6 + i}}
        each["summary"]["cost"]["macs"] = 1.5e6
        each["summary"] |= {
            "pooling": [],
            "hardened": {
                "to": "pooled",
                "learned": learned,
                "before_finetuning": {"test_accuracy": 0.25},
            },
        }
    _, *rows = table(hardening_table(study(records + made([80]))))
    assert rows == [
        [
            *("1000000", "outer", "55.00 ± 7.07 (2)", "3.00", "pooled"),
            *("25.00 ± 0.00 (2)", "91.00 ± 1.41 (2)", "1.50"),
        ],
        [
            *("2000000", "outer", "70.00 (1)", "3.00", "pooled"),
            *("25.00 (1)", "94.00 (1)", "1.50"),
        ],
    ]
    assert hardening_table(study(made([90]))) is None
    assert hardened_strides_table(study(records)) is None
    for strides in ([3.0, 1.0], [2.0, 2.0]):
        records[1]["summary"]["hardened"].setdefault("pooling", []).append(
            {"strides": strides}
        )
    _, row = table(hardened_strides_table(study(records)))
    assert row[0] == "1000000" and row[-4:] == [
        "1",
        "3x1, 2x2",
        "92.00",
        "1.50",
    ]


def test_runs_are_not_counted_twice():
    each = record()
    assert len(study([each, each]).runs) == 1
    other = {**record(), "name": "other"}
    assert repeated_seeds(study([each, other])) == [each["name"], "other"]
    assert repeated_seeds(study([each, record(seed=1)])) == []


def test_runs_of_other_length_are_told_apart():
    runs = study([record(epochs=2), record(epochs=3, seed=1)])
    assert runs.axes == ["epochs", "strides"]
    assert list(runs.cells["epochs"]) == [2, 3]


def test_masks_are_those_of_the_definition():
    """Against the table of ramps in `spectral`, written out for one layer."""
    layer = {
        "initial": [2.0, 2.0],
        "strides": [2.0, 3.0],
        "input_size": [24, 24],
        "output_size": [20, 16],
        "smoothness_factor": 4.0,
        "ramp": "outer",
        "shared_stride": False,
    }
    mask = masks._mask(layer, "strides")
    k = np.arange(13)
    weights = np.clip((4 + 24 / 3 / 2 - (k - 1)) / 4, 0, 1)
    np.testing.assert_allclose(mask.frequencies, k / 24)
    np.testing.assert_allclose(mask.weights, weights, atol=1e-6)
    assert mask.used == mask.stride == pytest.approx(3.0)
    # No stride is below that at which the mask would be flat, 24 / (24 - 4).
    layer["strides"] = [1.0, 1.0]
    assert masks._mask(layer, "strides").used == pytest.approx(1.2)


def test_sizes_at_the_start_follow_from_the_initial_strides():
    each = record("inner", "1,2,2,1", size=32)
    layers = each["summary"]["pooling"]
    sizes = [tuple(size) for size in masks.sizes_of_inputs(layers, "initial")]
    assert sizes == [(32, 32), (32, 32), (16, 16), (8, 8)]


def test_cut_offs_by_hand():
    """Not those of the product of the strides: maps are larger than that."""
    layers = [
        {"strides": [2.0, 1.0], "input_size": [28, 28], "initial": [2, 2]},
        {"strides": [4.0, 4.0], "input_size": [22, 28], "initial": [2, 2]},
        {"strides": [16.0, 1.0], "input_size": [14, 15], "initial": [2, 2]},
    ]
    layers = [{**layer, "output_size": [0, 0]} for layer in layers]
    less = {**layers[2], "smallest_size": 1}
    own, _ = strides_figures.frequencies([less], 0, "strides")
    assert own == pytest.approx([0.5 / 14])
    # 14 / 2 cycles; 22 / 4 / 2; 1, which is the least.
    own, of_image = strides_figures.frequencies(layers, 0, "strides")
    assert own == pytest.approx([7 / 28, 2.75 / 22, 1 / 14])
    assert of_image == pytest.approx([7 / 28, 2.75 / 28, 1 / 28])
    # 14; 28 / 4 / 2; 7.5, of which no more can pass than before.
    own, of_image = strides_figures.frequencies(layers, 1, "strides")
    assert own == pytest.approx([14 / 28, 3.5 / 28, 7.5 / 15])
    assert of_image == pytest.approx([14 / 28, 3.5 / 28, 3.5 / 28])


def test_what_settings_mean_is_not_said_again(tmp_path):
    records = made([90, 91], smoothness=2, norm="forward")
    for each in records:
        each["bindings"] += bindings(each["settings"])
    text = page.write(records, tmp_path).read_text()
    assert "smoothness 2" in text and "smoothness_factor" not in text
    assert "`train.train.num_epochs = " in text


def test_strides_are_shown_of_one_setting(tmp_path):
    records = made([90, 91], norm="backward")
    records += made([90], norm="forward") + made(
        [92], norm="forward", strides=STRIDES[1]
    )
    # Two starts rather than two seeds.
    chosen = shown(study(records))
    assert (chosen.what, set(chosen.runs["norm"])) == (
        *("norm forward", {"forward"}),
    )
    assert chosen.single["norm"] == "forward"
    text = page.write(records, tmp_path).read_text()
    assert text.count("Runs with norm forward only.") == 3
    # Or those beside the run that is asked for.
    chosen = shown(study(records), records[1]["name"])
    assert chosen.what == "norm backward"
    assert chosen.single["name"] == records[1]["name"]
    assert chosen.single["name"] in set(chosen.runs["name"])
    assert shown(study(made([90]))).what == ""
    nothing = shown(study(made([90], method="strided")))
    assert nothing.single is None and not len(nothing.runs)


def test_strides_that_moved_are_shown_rather_than_others():
    still, moved = made([90], stride_lr=0), made([90], stride_lr=1)
    for layer in still[0]["summary"]["pooling"]:
        layer["strides"] = layer["initial"]
    for records in (still + moved, moved + still):
        chosen = shown(study(records))
        assert (chosen.single["name"], chosen.what) == (
            *(moved[0]["name"], "stride lr 1"),
        )
    # Strides that moved at no run are shown where there are no others.
    assert shown(study(still)).single["name"] == still[0]["name"]


def test_the_run_that_is_shown():
    runs = study([record("strided"), record("outer"), record("inner")])
    assert shown(runs).single.method == "outer"
    assert shown(runs, record("inner")["name"]).single.method == "inner"
    for bad in ("missing", record("strided")["name"]):
        with pytest.raises(UserError, match=f"Received: {bad}. There are: out"):
            shown(runs, bad)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (None, "does not exist"),
        ([], "run"),
        ([failed(method="outer")], "Loss is nan"),
        ([{**record(), "summary": None}], "1 did not end"),
        ([record(), None], "runs.jsonl, line 2: it must be dict"),
        ([record(), 3], "runs.jsonl, line 2: it must be dict"),
        ([record(), "text"], "runs.jsonl, line 2: it must be dict"),
        ([[record()]], "runs.jsonl, line 1: it must be dict"),
        ([{"name": "x"}], "runs.jsonl, line 1: settings must be dict"),
        ([{"settings": {}}], "runs.jsonl, line 1: name must be str"),
        ([{**record(), "summary": []}], "line 1: summary must be dict"),
        ([{**record(), "summary": {"seconds": 1}}], "summary.test_accuracy"),
        ([{**record(), "epochs": [None]}], "line 1: epochs[0] must be dict"),
        ([{**record(), "name": None}], "line 1: name must be str"),
    ],
)
def test_what_cannot_be_reported_ends_in_one_line(
    write, message, tmp_path, capsys
):
    path = tmp_path / "runs.jsonl"
    if write is not None:
        path.write_text("".join(json.dumps(r) + "\n" for r in write))
    argv = ["", str(path), f"--output={tmp_path / 'out'}"]
    assert run_reporting_errors(main)(argv) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert message in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [[1, [2]], {"a": 1}, None, "", True, [[]]])
def test_settings_may_be_anything(value):
    runs = study([record(norm=value), record(norm="ortho", seed=value)])
    page.head(runs, "")


def test_the_title_tells_which_strides_were_found():
    records = []
    for seed, learned in enumerate(([2.0, 8.0], [2.6, 7.0])):
        each = record(method="inner", seed=seed, epochs=2)
        (layer, *_) = each["summary"]["pooling"]
        layer |= {"strides": learned, "expected": [(1.5, 2.5), (8.0, 8.0)]}
        each["summary"]["pooling"] = [layer]
        records.append(each)
    figure = strides_figures.distribution(shown(study(records)).runs)
    assert figure.get_suptitle() == (
        "Height: 1 of 2 ended in the range expected; Width: expected at 8, "
        "learned 7.00 to 8.00"
    )
    figure = strides_figures.distribution(shown(study(grid(seeds=1))).runs)
    assert figure.get_suptitle().startswith("Training raised ")


def test_colours_and_markers_are_in_the_key():
    figure = figures.accuracy_against_cost(study(grid(seeds=2)))
    (key,) = figure.legends
    texts = [text.get_text() for text in key.get_texts()]
    assert texts[:2] == ["strided", "spectral"]
    assert texts[-4:] == [f"from {start}" for start in STRIDES]
    # More than there are markers: they are alike, and no line joins them.
    starts = [f"1,1,{i},{j}" for i in range(1, 4) for j in range(1, 4)]
    many = grid(["strided", "spectral"], starts, seeds=1)
    figure = figures.accuracy_against_cost(study(many))
    (key,) = figure.legends
    assert len(key.get_texts()) == 2
    lines = [each[0] for each in figure.axes[0].containers]
    assert {line.get_linestyle() for line in lines} == {"None"}


def test_it_starts_without_what_it_draws_with():
    code = """
import runpy, sys
sys.argv = ["report", sys.argv[1]]
sys.modules["pandas"] = None
try:
    runpy.run_module("diffstride.report", run_name="__main__", alter_sys=True)
finally:
    heavy = {"keras", "tensorflow", "matplotlib.pyplot"}
    assert heavy.isdisjoint(sys.modules), heavy & set(sys.modules)
"""
    for argument, status, said in (
        ("--help", 0, "usage: python -m diffstride.report"),
        (__file__, 1, "error: A report needs pandas; pip install 'diffstride"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, argument],
            capture_output=True,
            text=True,
        )
        assert done.returncode == status, done.stderr
        assert said in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


def test_strides_of_sounds_are_told_in_hertz(tmp_path):
    records = made([90, 92], method="outer", strides="2,2,2,2")
    for each in records:
        each["summary"] |= {"axes": ["time", "frequency"], "steps": [0.01, 1]}
        for row in each["epochs"]:
            for key in [key for key in row if key.startswith("stride/")]:
                axis = "time" if key.endswith("height") else "frequency"
                row[f"{key.rpartition('/')[0]}/{axis}"] = row.pop(key)
    text = page.write(records, tmp_path).read_text()
    assert "## Strides as cut-off frequencies" in text
    assert "](trajectories.png)" in text and "height x width" not in text
    first = [each["summary"]["pooling"][0]["strides"] for each in records]
    time, frequency = np.mean(first, axis=0)
    assert table(cutoff_table(study(records)))[1][-3:] == [
        "pooling",
        f"{time:.2f} x {frequency:.2f}",
        f"{50 / time:.1f} Hz x {0.5 / frequency:.3f} per mel channel",
    ]
    assert cutoff_table(study([record()])) is None


def runs_of_tasks(methods=("strided", "outer")):
    """Two tasks, each alone and both at once, of sounds."""
    accuracies = iter([*range(60, 96)])
    records = []
    for method in methods:
        for tasks in (["family"], ["pitch"], ["family", "pitch"]):
            for seed in (0, 1):
                each = record(method, "2,2,2,2", seed, task=",".join(tasks))
                found = {t: next(accuracies) / 100 for t in tasks}
                each["summary"] |= {
                    "test_accuracy": np.mean([*found.values()]),
                    "tasks": {
                        t: {"test_accuracy": a} for t, a in found.items()
                    },
                    "axes": ["time", "frequency"],
                    "steps": [0.01, 1],
                }
                records.append(each)
    return records


def test_tasks_alone_and_together():
    records = runs_of_tasks()
    rows = table(task_table(study(records)))
    macs = [each["summary"]["cost"]["macs"] / 1e6 for each in records]
    assert rows[0] == [
        *("tasks of a network", "accuracy in"),
        *("strided, %", "MACs, M", "outer, %", "MACs, M"),
    ]
    # Means of seeds: 60, 61; 62, 63; and of both at once (64, 65), (66, 67).
    assert [row[:3] for row in rows[1:]] == [
        ["one a run", "family", "60.50 ± 0.71 (2)"],
        ["one a run", "pitch", "62.50 ± 0.71 (2)"],
        ["one a run", "*mean of tasks*", "61.50 ± 0.71 (2)"],
        ["family, pitch", "family", "65.00 ± 1.41 (2)"],
        ["family, pitch", "pitch", "66.00 ± 1.41 (2)"],
        ["family, pitch", "*mean of tasks*", "65.50 ± 1.41 (2)"],
    ]
    assert rows[2][-1] == f"{np.mean(macs[8:10]):.2f}"
    assert rows[3][-1] == f"{np.mean(macs[6:10]):.2f}"
    by_hand = [{**each, "settings": {**each["settings"]}} for each in records]
    for each in by_hand:
        del each["settings"]["task"]
    assert table(task_table(study(by_hand))) == rows
    assert study(by_hand).axes == ["task", "strides"]
    # The name of a task stands in older summaries' settings alone.
    for each in records:
        if len(each["summary"]["tasks"]) == 1:
            del each["summary"]["tasks"]
    assert table(task_table(study(records))) == rows
    assert task_table(study(made([90, 92]))) is None


def test_figures_of_sounds_and_tasks_have_their_units(tmp_path):
    records = runs_of_tasks(("outer",))
    runs = study(records)
    drawn = figures.draw_all(runs, shown(runs))[1]
    text = {
        name: " ".join(
            each.get_text() for each in drawn[f"{name}.png"].findobj(plt.Text)
        )
        for name in ("cutoffs", "masks", "masks_time", "task_strides")
    }
    for name in ("cutoffs", "task_strides"):
        assert "cut-off, Hz" in text[name], name
        assert "cut-off, cycles per mel channel" in text[name], name
    assert "cycles per mel channel" in text["masks"]
    assert "(frequency; " in text["masks"] and "(time; " in text["masks_time"]
    assert not any("pixel" in each for each in text.values())
    assert "family and pitch" in text["task_strides"]
    # A first stride of 1.6 along time, at 10 ms a frame.
    layer = {**runs.ended[0]["summary"]["pooling"][0], "strides": [1.6, 2.0]}
    span = [0.01 * layer["input_size"][0], layer["input_size"][1]]
    assert masks._mask(layer, "strides", None, 0, span).cutoff == pytest.approx(
        31.25
    )
    alone = study(records[:2])
    assert "task_strides.png" not in figures.draw_all(alone, shown(alone))[1]
