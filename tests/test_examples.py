"""The programs and the notebook of `examples/` run to their end."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from matplotlib import pyplot

EXAMPLES = pathlib.Path(__file__).resolve().parent.parent / "examples"
NOTEBOOK = json.loads((EXAMPLES / "learned_strides.ipynb").read_text())


def run(folder, *arguments):
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "QUICK": "1", "MPLBACKEND": "Agg"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cells_of_the_notebook_run_in_turn(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("QUICK", "1")
    monkeypatch.chdir(tmp_path)
    pyplot.switch_backend("Agg")
    cells = [
        "".join(cell["source"])
        for cell in NOTEBOOK["cells"]
        if cell["cell_type"] == "code"
    ]
    try:
        exec("\n\n".join(cells), {})
    finally:
        pyplot.close("all")
    printed = capsys.readouterr().out
    for text in ("M MACs after", "recalibrated:", "that of branch"):
        assert text in printed
    assert list(tmp_path.glob("learned_strides*"))


def test_the_notebook_holds_no_outputs():
    assert (NOTEBOOK["nbformat"], NOTEBOOK["nbformat_minor"]) == (4, 5)
    for cell in NOTEBOOK["cells"]:
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    assert set(NOTEBOOK["metadata"]) == {"kernelspec", "language_info"}


@pytest.mark.slow
def test_the_conversion_of_resnet50_ends_with_a_picture(tmp_path):
    printed = run(
        tmp_path, EXAMPLES / "convert_resnet50.py", "--size=32", "--steps=2"
    )
    assert "conv3_block1_1_conv" in printed and "step 2: loss" in printed
    assert (tmp_path / "convert_resnet50.png").stat().st_size > 10_000
