"""The wheel, installed and used in an empty folder."""

import doctest
import importlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import diffstride

ROOT = pathlib.Path(__file__).resolve().parent.parent
SOURCES = (
    "diffstride",
    "configs",
    "setup.py",
    "pyproject.toml",
    "MANIFEST.in",
    "README.md",
    "LICENSE",
    "CHANGELOG.md",
    "CITATION.cff",
)

TRAINS = """
import sys

for absent in ("tensorflow", "tensorflow_datasets", "gin"):
    sys.modules[absent] = None

import keras
import numpy as np
import diffstride
from diffstride.profiling import pooling_states, profile
from diffstride.resnet import Resnet

x = np.random.default_rng(0).normal(size=(8, 12, 12, 1))
y = np.eye(2)[[0, 1] * 4]
model = Resnet(
    [2, 4], [1, 2], num_output_classes=2,
    pooling_cls=diffstride.DiffStride, num_layers=1,
)
model.compile("sgd", "mse")
model.fit(x, y, batch_size=4, verbose=0, validation_data=(x, y))
expected = model.predict(x, verbose=0)
frozen = diffstride.freeze(model).predict(x, verbose=0)
np.testing.assert_allclose(frozen, expected, atol=1e-5)
states = pooling_states(profile(model, (12, 12, 1)))
assert float(diffstride.stride_cost([s.strides for s in states])) > 0
assert diffstride.model_cost(model).macs > 0
assert diffstride.DiffStride1D()(x[:, :, 0]).shape == (8, 12, 1)
model.save("model.keras")
np.savez("expected.npz", x=x, y=expected)
"""

LOADS = """
import sys

sys.modules["tensorflow"] = None

from diffstride.cost import model_cost
import keras  # Which knows the layers, whatever was imported.
import diffstride
import numpy as np

arrays = np.load("expected.npz")
model = keras.models.load_model("model.keras")
actual = model.predict(arrays["x"], verbose=0)
np.testing.assert_allclose(actual, arrays["y"], atol=1e-5)
assert diffstride.cost.model_cost is model_cost  # Modules, as ever.
assert model_cost(model).macs > 0
assert diffstride.__file__.startswith(sys.argv[1]), diffstride.__file__
"""


@pytest.fixture(scope="session")
def wheel(shared_folder):
    """Built from a copy: the checkout may hold the remains of another."""

    def build(folder):
        sources = folder / "sources"
        sources.mkdir()
        for name in SOURCES:
            if (ROOT / name).is_dir():
                ignored = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / name, sources / name, ignore=ignored)
            else:
                shutil.copy(ROOT / name, sources)
        pip("wheel", "--wheel-dir", folder, sources)

    (path,) = shared_folder("wheel", build).glob("*.whl")
    return path


def pip(command, *arguments):
    program = [sys.executable, "-m", "pip", command, "--no-deps", "--quiet"]
    subprocess.run([*program, *map(str, arguments)], check=True)


@pytest.fixture(scope="session")
def site(wheel, shared_folder):
    """Where the wheel is installed, by itself."""
    return shared_folder(
        "site", lambda folder: pip("install", "--target", folder, wheel)
    )


@pytest.fixture
def installed(site, tmp_path):
    """Runs Python on the installed wheel, in an empty folder."""

    def run(*arguments, backend="tensorflow"):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            env={
                **os.environ,
                "PYTHONPATH": str(site),
                "KERAS_BACKEND": backend,
            },
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_the_wheel_holds_modules_configs_and_types(wheel):
    archive = zipfile.ZipFile(wheel)
    files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        str(path.relative_to(ROOT))
        for pattern in ("*.py", "py.typed")
        for path in (ROOT / "diffstride").rglob(pattern)
    } | {
        str("diffstride" / path.relative_to(ROOT))
        for pattern in ("*.gin", "*.toml")
        for path in (ROOT / "configs").rglob(pattern)
    }
    assert files == expected


def test_the_metadata_tell_what_the_wheel_is(wheel):
    archive = zipfile.ZipFile(wheel)
    (name,) = [n for n in archive.namelist() if n.endswith("/METADATA")]
    text = archive.read(name).decode()
    extras = {
        line.partition(": ")[2]
        for line in text.splitlines()
        if line.startswith("Provides-Extra")
    }
    assert extras >= {"datasets", "report", "jax", "torch"}
    # Without it the tests of searches are skipped.
    assert 'optuna>=5.0; extra == "test"' in text
    assert "Description-Content-Type: text/markdown" in text
    assert "License-File: LICENSE" in text


@pytest.mark.parametrize(
    "backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"]
)
def test_the_layers_train_where_there_is_no_tensorflow(
    installed, site, backend
):
    installed("-c", TRAINS, backend=backend)
    installed("-c", LOADS, site, backend=backend)


@pytest.mark.parametrize(
    "arguments",
    [
        ("diffstride.sweep", "--help"),
        ("diffstride.report", "--help"),
        ("diffstride.search", "--help"),
        (
            "diffstride.sweep",
            "--gin_config=digits.gin",
            "--grid=method=strided|outer",
            "--grid=seed=0|1|2",
            "--dry_run",
        ),
    ],
    ids=lambda arguments: "".join(arguments[::4]),
)
def test_tools_start_without_keras(installed, arguments):
    done = installed("-X", "importtime", "-m", *arguments)
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
    }
    assert not imported & {"keras", "tensorflow", "torch", "jax"}
    assert "diffstride" in imported
    if "--dry_run" in arguments:
        assert "6 runs in" in done.stdout


def test_a_sweep_and_its_report_in_an_empty_folder(
    installed, tmp_path, data_dir
):
    """The run of a sweep is one of `diffstride.main`."""
    bindings = (
        "train.num_epochs = 2",
        "resnet.Resnet.filters = [2, 2]",
        "data.load_datasets.image_size = 8",
        "data.load_datasets.train_split = 'train[:256]'",
        "data.load_datasets.test_split = 'test[:128]'",
    )
    installed(
        *("-m", "diffstride.sweep", "--gin_config=digits.gin"),
        *("--grid=method=outer", "--grid=strides=1,2", "--grid=seed=0"),
        *("--workdir=runs", "--output=runs.jsonl", f"--data_dir={data_dir}"),
        *(f"--gin_bindings={binding}" for binding in bindings),
    )
    (line,) = (tmp_path / "runs.jsonl").read_text().splitlines()
    record = json.loads(line)
    assert record["error"] is None and len(record["epochs"]) == 2
    (run,) = (path.parent for path in tmp_path.glob("runs/*/model.keras"))
    installed("-m", "diffstride.report", run, "runs.jsonl", "--output=report")
    report = tmp_path / "report"
    assert "## Test accuracy" in (report / "report.md").read_text()
    assert (report / "trajectories.png").exists()
    assert not list(report.glob("*.svg"))


@pytest.mark.parametrize(
    "statement",
    [
        pytest.param("import keras, diffstride", marks=pytest.mark.slow),
        pytest.param("from diffstride import freeze", marks=pytest.mark.slow),
        pytest.param(
            "from diffstride.cost import model_cost", marks=pytest.mark.slow
        ),
    ],
)
def test_whatever_is_imported_keras_knows_the_layers(installed, statement):
    installed(
        "-c",
        f"{statement}\n"
        "import keras\n"
        "for name in ('DiffStride', 'Resnet'):\n"
        "    name = f'diffstride>{name}'\n"
        "    assert keras.saving.get_registered_object(name), name\n",
        backend="torch",
    )


def test_import_diffstride_leaves_keras_to_others(installed):
    installed(
        "-c",
        "import sys, diffstride\n"
        "assert 'keras' not in sys.modules and 'DiffStride' in dir(diffstride)",
    )


@pytest.mark.parametrize("name", ["pooling", "resnet"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"diffstride.{name}")
    names = {"np": np, "DiffStride": diffstride.DiffStride}
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert tried and not failed


def test_public_names_are_found_when_they_are_used():
    assert set(diffstride.__all__) <= set(dir(diffstride))
    for name in diffstride.__all__:
        assert getattr(diffstride, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'Diffstride'"):
        diffstride.Diffstride  # noqa: B018
