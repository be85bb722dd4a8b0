import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest  # noqa: E402


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """A TFDS folder that holds `digits`."""
    from diffstride import data

    path = str(tmp_path_factory.mktemp("tfds"))
    data.load_datasets("digits", data_dir=path)
    return path


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
