"""Imports scripts of `scripts/benchmarks`, or runs them without TensorFlow."""

import importlib
import os
import pathlib
import subprocess
import sys

import keras

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDER = ROOT / "scripts" / "benchmarks"
_RUN = """
import sys
if {hide}:
    sys.modules["tensorflow"] = None
import {module}
sys.exit({module}.main(sys.argv[1:]))
"""


def script(name):
    """Imports a script; it finds its neighbours, as when it is run."""
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(FOLDER))


def run_script(name, *arguments):
    """Runs a script; importing TensorFlow fails on other backends."""
    backend = keras.backend.backend()
    code = _RUN.format(hide=backend != "tensorflow", module=name)
    paths = [str(FOLDER), str(ROOT), os.environ.get("PYTHONPATH", "")]
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "KERAS_BACKEND": backend,
            "PYTHONPATH": os.pathsep.join(paths),
        },
    )
