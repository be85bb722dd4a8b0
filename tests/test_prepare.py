import dataclasses
import gzip
import hashlib
import io
import pathlib
import tarfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from idx_files import idx

from diffstride import data
from diffstride.datasets import prepare
from diffstride.errors import DataError

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")


@pytest.fixture
def fashion(tmp_path, monkeypatch):
    """Four small IDX files that pass for Fashion-MNIST's."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "files"
    folder.mkdir()
    arrays = {}
    for prefix, count in (("train", 20), ("t10k", 10)):
        arrays[f"{prefix}-images-idx3-ubyte"] = rng.integers(
            0, 255, (count, 28, 28), "uint8"
        )
        arrays[f"{prefix}-labels-idx1-ubyte"] = rng.integers(
            0, 10, count, "uint8"
        )
    for i, (name, array) in enumerate(arrays.items()):
        if i % 2:
            (folder / name).write_bytes(idx(array))
        else:
            (folder / f"{name}.gz").write_bytes(
                gzip.compress(idx(array), compresslevel=i + 1)
            )
    digests = {
        name: hashlib.sha256(idx(array)).hexdigest()
        for name, array in arrays.items()
    }
    monkeypatch.setattr(prepare, "_FASHION_MNIST", digests)
    return folder, arrays


def test_fashion_mnist_from_idx_files(fashion, tmp_path):
    folder, arrays = fashion
    out = str(tmp_path / "out")
    for _ in range(2):  # The second time there is nothing to do.
        builder = prepare.prepare("fashion_mnist", str(folder), out)
    assert builder.info.splits["train"].num_examples == 20
    test = list(
        tfds.as_numpy(tfds.load("fashion_mnist", split="test", data_dir=out))
    )
    ours = sorted((e["image"].tobytes(), int(e["label"])) for e in test)
    expected = zip(
        arrays["t10k-images-idx3-ubyte"],
        arrays["t10k-labels-idx1-ubyte"],
        strict=True,
    )
    assert ours == sorted((i.tobytes(), int(n)) for i, n in expected)
    loaded = data.load_datasets("fashion_mnist", batch_size=5, data_dir=out)
    assert (loaded.num_classes, loaded.steps_per_epoch) == (10, 4)


@pytest.mark.skipif(not DEBIAN.exists(), reason="needs dataset-fashion-mnist")
def test_debian_ships_the_real_fashion_mnist():
    for name in prepare._FASHION_MNIST:
        array = prepare._read_checked(DEBIAN, name)
        assert array.shape[0] == (60_000 if "train" in name else 10_000)


def test_changed_content_is_refused(fashion, tmp_path):
    folder, _ = fashion
    path = folder / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[100] ^= 1
    path.write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match="does not hold Fashion-MNIST: the SHA"):
        prepare.prepare("fashion_mnist", str(folder), str(tmp_path / "out"))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="Cannot read"):
        prepare.prepare("fashion_mnist", str(folder), str(tmp_path / "out"))
    path.unlink()
    with pytest.raises(DataError, match="Missing: .*train-images-idx3-ubyte"):
        prepare.prepare("fashion_mnist", str(folder), str(tmp_path / "out"))


def cifar10_archive(path):
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w:gz") as tar:

        def add(name, content):
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))

        for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
            records = rng.integers(0, 255, (4, 3073), "uint8")
            records[:, 0] %= 10
            add(f"{name}.bin", records.tobytes())
        names = "airplane automobile bird cat deer dog frog horse ship truck"
        add("batches.meta.txt", "\n".join(names.split()).encode())


def test_cifar_from_its_archive(tmp_path, monkeypatch):
    # The path that the real archive takes, but for its checksum.
    archive = tmp_path / "cifar-10-binary.tar.gz"
    cifar10_archive(archive)
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="is not the published one"):
        prepare.prepare("cifar10", str(tmp_path), out)
    infos = tfds.builder("cifar10", data_dir=out).url_infos
    (url,) = infos
    digest = hashlib.sha256(archive.read_bytes()).hexdigest()
    monkeypatch.setitem(
        infos,
        url,
        dataclasses.replace(
            infos[url],
            size=type(infos[url].size)(archive.stat().st_size),
            checksum=digest,
        ),
    )
    builder = prepare.prepare("cifar10", str(tmp_path), out)
    assert builder.info.splits["train"].num_examples == 20
    loaded = data.load_datasets("cifar10", batch_size=4, data_dir=out)
    assert loaded.image_shape == (32, 32, 3)


@pytest.mark.parametrize(
    "name, message",
    [
        ("cifar100", "Missing in .*: cifar-100-binary.tar.gz"),
        ("no_such_thing", "`name` must be a data set of TFDS"),
    ],
)
def test_errors(name, message, tmp_path):
    with pytest.raises(DataError, match=message):
        prepare.prepare(name, str(tmp_path), str(tmp_path / "out"))
