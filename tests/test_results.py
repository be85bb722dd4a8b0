"""What is written of the results is what the committed runs say."""

import pathlib
import re

import pytest
from report_data import LAMBDA, STRIDES, study
from report_tables import (
    ablation_table,
    accuracy_table,
    cost_table,
    expected_table,
    frontier_table,
)

from diffstride.runs import read_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
REPORTS = {path.parent.name: path for path in ROOT.glob("docs/results/*/*.md")}
WRITTEN = [ROOT / name for name in ("RESULTS.md", "README.md")]


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", REPORTS)
def test_reports_say_what_the_runs_say(name):
    runs = study(read_runs([ROOT / "results" / f"{name}.jsonl"]))
    report = REPORTS[name].read_text()
    expected = [accuracy_table(runs), cost_table(runs)]
    expected += [expected_table(runs), frontier_table(runs)]
    expected += [
        ablation_table(runs, axis)
        for axis in runs.axes
        if axis not in (LAMBDA, STRIDES)
    ]
    assert len(tables(report)) == len([t for t in expected if t])
    for table in expected:
        assert table is None or table in report


def test_the_tables_of_results_are_those_of_the_reports():
    reports = "".join(path.read_text() for path in REPORTS.values())
    found = tables((ROOT / "RESULTS.md").read_text())
    assert found
    for table in found:
        assert table in reports, table


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_each_figure_and_its_command_are_there(path):
    text = path.read_text()
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert pictures
    for picture in pictures:
        assert (ROOT / picture).with_suffix(".png").exists(), picture
        folder = pathlib.PurePath(picture).parent
        if folder.parent.name == "results":
            assert f"--output={folder}" in (ROOT / "RESULTS.md").read_text()
