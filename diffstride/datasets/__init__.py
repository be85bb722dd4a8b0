"""Data sets by name: those of TFDS, and builders that need no network."""

import difflib

import tensorflow_datasets as tfds

from diffstride.datasets.digits import Digits as Digits
from diffstride.errors import DataError


def find_builder(
    name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set, without preparing it."""
    try:
        return tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        known = [*tfds.list_builders(), "digits"]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise DataError(
            f"`name` must be a data set of TFDS. Received: name={name!r}.{hint}"
        ) from error
    except Exception as error:
        raise DataError(f"Data set '{name}' cannot be used: {error}") from error
