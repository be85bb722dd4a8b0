"""Imports scripts of `scripts/benchmarks`, which the package does not hold."""

import importlib
import pathlib
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "scripts" / "benchmarks"


def script(name):
    """Imports a script; it finds its neighbours, as when it is run."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))
