import dataclasses
import gzip
import hashlib
import io
import pathlib
import tarfile
import zipfile
import zlib

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


def publish(archive, monkeypatch):
    """Lets a file pass for the archive of CIFAR-10 that is published."""
    infos = tfds.builder_cls("cifar10").url_infos
    (url,) = infos
    info = dataclasses.replace(
        infos[url],
        size=type(infos[url].size)(archive.stat().st_size),
        checksum=hashlib.sha256(archive.read_bytes()).hexdigest(),
    )
    monkeypatch.setitem(infos, url, info)


def test_cifar_from_its_archive(tmp_path, monkeypatch):
    # The path that the real archive takes, but for its checksum.
    archive = tmp_path / "cifar-10-binary.tar.gz"
    cifar10_archive(archive)
    out = str(tmp_path / "out")
    with pytest.raises(DataError, match="has wrong checksum"):
        prepare.prepare("cifar10", str(tmp_path), out)
    publish(archive, monkeypatch)
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


def flip(content, place):
    content = bytearray(content)
    content[place] ^= 0xFF
    return bytes(content)


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("content", content)
    return file.getvalue()


# What may have become of a compressed file.
DAMAGE = {
    "corrupt deflate data": lambda content: flip(content, len(content) // 2),
    "an invalid block": lambda content: content[:10] + b"\x07" + content[11:],
    "cut short": lambda content: content[:-20],
    "cut in its header": lambda content: content[:6],
    "empty": lambda content: b"",
    "another checksum": lambda content: flip(content, -6),
    "another size": lambda content: flip(content, -1),
    "something behind it": lambda content: content + b"more",
    "text": lambda content: b"<html>404 Not Found</html>",
    "zip": lambda content: zipped(gzip.decompress(content)),
    "zlib": lambda content: zlib.compress(gzip.decompress(content)),
    "compressed twice": gzip.compress,
    "another method": lambda content: flip(content, 2),
    "other content": lambda content: gzip.compress(b"other"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_compressed_files_are_named(kind, fashion, tmp_path):
    path = fashion[0] / "train-images-idx3-ubyte.gz"
    path.write_bytes(DAMAGE[kind](path.read_bytes()))
    with pytest.raises(DataError, match=f"{path}"):
        prepare.prepare("fashion_mnist", str(fashion[0]), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "fashion_mnist").exists()


# What may be wrong with IDX files, did they not have to have a checksum.
WRONG = {
    "rank": lambda content: content[:3] + b"\x04" + content[4:],
    "sizes": lambda content: content[:4] + b"\xff" * 8 + content[12:],
    "one byte missing": lambda content: content[:-1],
    "one more byte": lambda content: content + b"\0",
    "header only": lambda content: content[:16],
    "nothing": lambda content: b"",
    "fewer images": lambda content: idx(np.zeros((3, 28, 28), "uint8")),
    "smaller images": lambda content: idx(np.zeros((20, 8, 8), "uint8")),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_idx_files_are_one_line(kind, fashion, tmp_path, monkeypatch):
    path = fashion[0] / "train-images-idx3-ubyte.gz"
    content = WRONG[kind](gzip.decompress(path.read_bytes()))
    path.write_bytes(gzip.compress(content))
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(prepare._FASHION_MNIST, path.stem, digest)
    with pytest.raises(DataError, match="'fashion_mnist' could not be built"):
        prepare.prepare("fashion_mnist", str(fashion[0]), str(tmp_path / "out"))


@pytest.mark.parametrize(
    "kind",
    ["corrupt deflate data", "cut short", "text", "zip", "other content"],
)
def test_damaged_archives_are_one_line(kind, tmp_path, monkeypatch):
    archive = tmp_path / "cifar-10-binary.tar.gz"
    cifar10_archive(archive)
    archive.write_bytes(DAMAGE[kind](archive.read_bytes()))
    publish(archive, monkeypatch)
    with pytest.raises(DataError, match="'cifar10' could not be built"):
        prepare.prepare("cifar10", str(tmp_path), str(tmp_path / "out"))


@pytest.mark.parametrize("place", ["file", "file/below", "\0", "x" * 5000])
def test_data_dir_that_cannot_be_is_one_line(place, fashion, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match="'fashion_mnist' c"):
        prepare.prepare("fashion_mnist", str(fashion[0]), f"{tmp_path}/{place}")
    assert (tmp_path / "file").read_text() == "precious"


def test_home_is_understood_in_paths(fashion, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    prepare.prepare("fashion_mnist", "~/files", "~/out")
    loaded = data.load_datasets("fashion_mnist", batch_size=5, data_dir="~/out")
    assert loaded.steps_per_epoch == 4
    assert (tmp_path / "out" / "fashion_mnist").exists()
    assert not (tmp_path / "~").exists()
