"""Exported files, loaded by their own runtimes without this package."""

import json
import pathlib
import sys

import pytest
from maps import BACKEND
from scripts_alone import script

export = script("export")

ROOT = pathlib.Path(__file__).resolve().parent.parent
RESULTS = json.loads((ROOT / "results" / "export.json").read_text())
# What is exported and loaded with no other packages than those of the tests.
AT_HAND = {
    "tensorflow": ("SavedModel",),  # LiteRT takes 10 s: a slow test has it.
    "jax": ("SavedModel",),
    "torch": ("torch",),
}[BACKEND]


def load_here(folder, format):
    """Loads the files in this process, without what is imported of ours."""
    hidden = {
        name: module
        for name, module in sys.modules.items()
        if name.partition(".")[0] == "diffstride"
    }
    for name in hidden:
        del sys.modules[name]
    try:
        export.load_all(folder, format)
    finally:
        sys.modules.update(hidden)


def load_apart(folder, format):
    export.start("--load", str(folder), format)


def exported(folder, monkeypatch, load, **cases):
    """Rows of the table, for some cases, by their keys."""
    for name, value in cases.items():
        monkeypatch.setattr(export, name, value)
    export.write_images(folder)
    export.export_all(folder)
    for format in export.FORMATS:
        load(folder, format)
    return export.by_case(export.read(folder / "loaded.jsonl"))


def test_files_give_the_outputs_of_their_source(tmp_path, monkeypatch):
    formats = {name: export.FORMATS[name] for name in AT_HAND}
    rows = exported(
        *(tmp_path, monkeypatch, load_here),
        FORMATS=formats,
        FORMS=("frozen",),
        MODELS=("converted",),
    )
    assert len(rows) == len(formats)
    for row in rows.values():
        assert row.get("difference", 1) < 1e-5, row


@pytest.mark.slow
def test_what_has_worked_works(tmp_path, monkeypatch):
    """With whatever runtimes are installed."""
    rows = exported(tmp_path, monkeypatch, load_apart)
    worked = [
        row
        for row in RESULTS["rows"]
        if row["backend"] == BACKEND and "difference" in row
    ]
    assert worked
    for row in worked:
        (case,) = export.by_case([row])
        found = rows.get(case)
        if found is None or "not installed" in found.get("error", ""):
            continue
        assert found.get("difference", 1) < export.TOLERANCE, found


def test_the_page_has_the_table():
    text = (ROOT / "docs" / "export.md").read_text()
    for part in export.table(RESULTS).split("\n\n"):
        assert part in text
    backends = {row["backend"] for row in RESULTS["rows"]}
    assert backends == set(export.BACKENDS)
