import doctest
import importlib
import os
import pathlib
import subprocess
import sys
import textwrap
import zipfile

import numpy as np
import pytest

import diffstride

ROOT = pathlib.Path(__file__).resolve().parent.parent


def run(script, backend):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_import_neither_tensorflow_nor_gin_nor_tfds(backend):
    script = """
        import sys
        import diffstride.cost
        import diffstride.inspection
        import diffstride.pooling
        import diffstride.regularizers
        import diffstride.resnet
        import diffstride.spectral
        import diffstride.static
        bad = {'tensorflow', 'gin', 'tensorflow_datasets', 'absl.app'}
        sys.exit(', '.join(sorted(bad & set(sys.modules))) or None)
    """
    run(script, backend)


@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_layers_train_where_there_is_no_tensorflow(backend):
    # Keras itself imports it where it is found.
    script = """
        import sys

        class Without:
            def __init__(self, finder):
                self.finder = finder

            def __getattr__(self, name):
                return getattr(self.finder, name)

            def find_spec(self, name, path=None, target=None):
                absent = ("tensorflow", "tensorflow_datasets", "gin")
                if name.partition(".")[0] not in absent:
                    return self.finder.find_spec(name, path, target)

        sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]

        import keras
        import numpy as np
        import diffstride
        from diffstride.profiling import pooling_states
        from diffstride.budget import stride_cost
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
        actual = diffstride.freeze(model).predict(x, verbose=0)
        np.testing.assert_allclose(actual, expected, atol=1e-5)
        states = pooling_states(model, (12, 12, 1))
        assert float(stride_cost([s.strides for s in states])) > 0
        assert diffstride.DiffStride1D()(x[:, :, 0]).shape == (8, 12, 1)
        assert "tensorflow" not in sys.modules
    """
    run(script, backend)


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
        "add_stride_cost",
        "format_cost",
        "model_cost",
        "stride_cost",
    ):
        assert hasattr(diffstride, name)
