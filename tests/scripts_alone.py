"""Runs a script on the backend of the tests, with no TensorFlow beside it."""

import os
import pathlib
import subprocess
import sys

import keras

ROOT = pathlib.Path(__file__).resolve().parent.parent
_RUN = """
import runpy, sys
if {hide}:
    sys.modules["tensorflow"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, "scripts")
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_script(name, *arguments):
    """Runs `scripts/name`; importing TensorFlow fails on other backends."""
    backend = keras.backend.backend()
    code = _RUN.format(hide=backend != "tensorflow")
    return subprocess.run(
        [sys.executable, "-c", code, f"scripts/{name}", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
