"""What is written of the results is what the committed runs say."""

import pathlib
import re

import pytest

from diffstride.report.page import head
from diffstride.report.study import study
from diffstride.runs import read_runs

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = sorted(ROOT.glob("results/*.jsonl"))
REPORTS = [
    ROOT / "docs" / "results" / path.stem / "report.md" for path in RESULTS
]
WRITTEN = [ROOT / name for name in ("RESULTS.md", "README.md")]


def tables(text):
    return re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_reports_say_what_the_runs_say(path):
    report = REPORTS[RESULTS.index(path)].read_text()
    title = report.partition("\n")[0].removeprefix("# ")
    before_figures = report.partition("\n\n## Figures\n")[0]
    runs = study(read_runs([path]))
    assert before_figures == "\n\n".join(head(runs, title))


def test_the_tables_of_results_are_those_of_the_reports():
    reports = [table for path in REPORTS for table in tables(path.read_text())]
    found = tables((ROOT / "RESULTS.md").read_text())
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
    text = " ".join((ROOT / "RESULTS.md").read_text().split())
    assert f"{sum(found)} of the 36 strides end within the expected" in text
    assert min(strides[1] for strides, _ in ends) > 7.5


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
