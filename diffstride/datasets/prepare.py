"""Builds a TFDS data set from files that are already on disk.

    python -m diffstride.datasets.prepare --name=fashion_mnist \
        --files=/usr/share/datasets/fashion-mnist --data_dir=DIR

Fashion-MNIST is built from its four IDX files, compressed in any way or not at
all: what is checked is their content. `notes`, `drums`, `letters` are made from
packages of Debian, in or below the folder. Any other data set is built from the
archives that TFDS would download, which are checked by TFDS.
"""

import gzip
import hashlib
import pathlib
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import app, flags

from diffstride.datasets import building, find_builder
from diffstride.datasets.recordings import Recorded
from diffstride.errors import DataError, UserError, run_reporting_errors

_NAME = flags.DEFINE_string("name", None, "TFDS name, such as fashion_mnist.")
_FILES = flags.DEFINE_string("files", None, "Folder that holds the files.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir",
    None,
    "Where to build; default is TFDS's own choice.",
    allow_override=True,  # One process may import `main` too, which has it.
)
flags.DEFINE_bool(
    "debug",
    False,
    "Whether an unexpected error shows where it comes from.",
    allow_override=True,
)

# SHA-256 of the uncompressed files. Packages recompress them, so the checksums
# that TFDS has of the .gz files do not apply.
_FASHION_MNIST = {
    "train-images-idx3-ubyte": (
        "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888"
    ),
    "train-labels-idx1-ubyte": (
        "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9"
    ),
    "t10k-images-idx3-ubyte": (
        "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b"
    ),
    "t10k-labels-idx1-ubyte": (
        "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34"
    ),
}


def prepare(
    name: str, files: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
    """Builds a data set from a folder of files, unless it is there already."""
    builder = find_builder(name, data_dir)
    if builder.data_path.exists():
        return builder
    folder = pathlib.Path(files).expanduser()
    if name == "fashion_mnist":
        with building(builder):
            _store_fashion_mnist(builder, folder)
        return find_builder(name, data_dir)
    if isinstance(builder, Recorded):
        builder.files = folder
        with building(builder):
            builder.download_and_prepare()
        return builder
    wanted = [info.filename for info in (builder.url_infos or {}).values()]
    if not wanted or not all(wanted):
        raise DataError(
            f"TFDS does not tell the archives of '{name}' by name, so they "
            "cannot be taken from disk; prepare it with TFDS where there is a "
            "network and name its folder with --data_dir"
        )
    missing = [file for file in wanted if not (folder / file).exists()]
    if missing:
        raise DataError(
            f"`files` must be a folder with the archives of '{name}': "
            f"{', '.join(wanted)}. Missing in {folder}: {', '.join(missing)}"
        )
    config = tfds.download.DownloadConfig(manual_dir=folder)
    with building(builder):
        builder.download_and_prepare(download_config=config)
    return builder


def _store_fashion_mnist(
    builder: tfds.core.DatasetBuilder, folder: pathlib.Path
) -> None:
    arrays = {name: _read_checked(folder, name) for name in _FASHION_MNIST}

    def examples(prefix: str) -> Iterator[tuple[int, dict]]:
        images = arrays[f"{prefix}-images-idx3-ubyte"][..., np.newaxis]
        labels = arrays[f"{prefix}-labels-idx1-ubyte"]
        for i, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield i, {"image": image, "label": int(label)}

    tfds.dataset_builders.store_as_tfds_dataset(
        name=builder.name,
        version=builder.version,
        features=builder.info.features,
        split_datasets={"train": examples("train"), "test": examples("t10k")},
        data_dir=builder.data_dir_root,
        description=builder.info.description,
        homepage=builder.info.homepage,
        citation=builder.info.citation,
    )


def _read_checked(folder: pathlib.Path, name: str) -> np.ndarray:
    path = folder / f"{name}.gz"
    if not path.exists():
        path = folder / name
    if not path.exists():
        raise DataError(
            "`files` must be a folder with the four IDX files of Fashion-MNIST,"
            f" as .gz or plain. Missing: {path}"
        )
    try:
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"Cannot read {path}: {error}") from error
    digest = hashlib.sha256(content).hexdigest()
    if digest != _FASHION_MNIST[name]:
        raise DataError(
            f"{path} does not hold Fashion-MNIST: the SHA-256 of its content is"
            f" {digest}, expected {_FASHION_MNIST[name]}"
        )
    # The IDX format, for bytes: two zeros, type, rank, sizes, content.
    rank = content[3]
    sizes = np.frombuffer(content, ">u4", rank, offset=4)
    return np.frombuffer(content, "uint8", offset=4 + 4 * rank).reshape(sizes)


def main(argv: list[str]) -> int:
    """Builds what the flags ask for, and says where."""
    if len(argv) > 1:
        raise UserError(f"Unexpected argument: {argv[1]}")
    if not _NAME.value or not _FILES.value:
        raise UserError("Both --name and --files are required.")
    builder = prepare(_NAME.value, _FILES.value, _DATA_DIR.value)
    for split, info in builder.info.splits.items():
        print(f"{builder.name} {split}: {info.num_examples} examples")
    print(f"in {builder.data_path}")
    return 0


if __name__ == "__main__":
    app.run(run_reporting_errors(main))
