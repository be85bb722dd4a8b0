import fcntl
import os
import shutil

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    """A folder that one of pytest's processes makes, for all of them.

    `shared_folder(name, make)` calls `make(folder)` if no one has.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def shared(name, make):
        folder, done = root / name, root / f"{name}.done"
        with (root / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def data_dir(shared_folder):
    """A TFDS folder that holds `digits`."""
    from diffstride import data

    def make(folder):
        data.load_datasets("digits", data_dir=str(folder))

    return str(shared_folder("tfds", make))


@pytest.fixture
def mocked(tmp_path):
    """TFDS without data: `mocked(name, train=24)` gives random images.

    The splits are as large as they are said to be.
    """
    import contextlib

    import tensorflow_datasets as tfds
    from tensorflow_datasets.core import splits

    with contextlib.ExitStack() as stack:

        def mock(name, **sizes):
            builder = tfds.builder(name, data_dir=tmp_path)
            builder.info.set_splits(
                splits.SplitDict(
                    [
                        splits.SplitInfo(
                            name=split,
                            shard_lengths=[size],
                            num_bytes=size,
                            filename_template=None,
                        )
                        for split, size in sizes.items()
                    ]
                )
            )
            builder.data_path.mkdir(parents=True)
            builder.info.write_to_directory(builder.data_path)
            stack.enter_context(
                tfds.testing.mock_data(
                    num_examples=sizes["train"], data_dir=tmp_path
                )
            )

        yield mock
