import doctest
import importlib
import os
import pathlib
import subprocess
import sys
import zipfile

import numpy as np
import pytest

import diffstride

ROOT = pathlib.Path(__file__).resolve().parent.parent


@pytest.mark.parametrize(
    "module",
    [
        "diffstride",
        "diffstride.spectral",
        "diffstride.pooling",
        "diffstride.regularizers",
        "diffstride.resnet",
    ],
)
def test_layers_import_neither_tensorflow_nor_gin_nor_tfds(module):
    script = (
        f"import sys, {module}\n"
        "bad = {'tensorflow', 'gin', 'tensorflow_datasets', 'absl.app'}\n"
        "sys.exit(', '.join(sorted(bad & set(sys.modules))) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet"]
        + ["--wheel-dir", str(folder), str(ROOT)],
        check=True,
    )
    (path,) = folder.glob("*.whl")
    return path


def test_the_wheel_holds_modules_and_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, pattern in (("diffstride", "**/*.py"), ("configs", "*.gin")):
        files = [p.relative_to(ROOT) for p in (ROOT / folder).glob(pattern)]
        assert files
        for file in files:
            inside = file if folder == "diffstride" else "diffstride" / file
            assert str(inside) in names
    assert not any(name.startswith("tests") for name in names)


def test_an_installed_wheel_finds_its_configs_from_any_folder(wheel, tmp_path):
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    script = (
        "import diffstride.config as c; c.load(['cifar10.gin'], []); "
        "print(c.configs_dir())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(site)},
        cwd=elsewhere,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(site / "diffstride" / "configs")


@pytest.mark.parametrize("name", ["pooling", "resnet"])
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"diffstride.{name}")
    names = {"np": np, "DiffStride": diffstride.DiffStride}
    failed, tried = doctest.testmod(module, extraglobs=names)
    assert tried and not failed


def test_public_names():
    for name in (
        "DiffStride",
        "FixedSpectralPooling",
        "SpatialPooling",
        "StrideConstraint",
    ):
        assert hasattr(diffstride, name)
