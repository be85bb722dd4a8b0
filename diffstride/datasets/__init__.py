"""Data sets by name: those of TFDS, and builders that need no network."""

import contextlib
import difflib
import os
from collections.abc import Iterator

import tensorflow_datasets as tfds

from diffstride.datasets.digits import Digits as Digits
from diffstride.datasets.drums import Drums as Drums
from diffstride.datasets.letters import Letters as Letters
from diffstride.datasets.notes import Notes as Notes
from diffstride.datasets.spectrograms import NotesImages as NotesImages
from diffstride.datasets.tones import Tones as Tones
from diffstride.errors import DataError


def find_builder(
    name: str, data_dir: str | None = None
) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set, without preparing it."""
    folder = data_dir and os.path.expanduser(data_dir)
    try:
        return tfds.builder(name, data_dir=folder)
    except tfds.core.registered.DatasetNotFoundError as error:
        names = ["digits", "drums", "letters", "notes", "notes_images", "tones"]
        known = [*tfds.list_builders(), *names]
        close = difflib.get_close_matches(name, known, n=3)
        hint = f" Did you mean {', '.join(close)}?" if close else ""
        raise DataError(
            f"`name` must be a data set of TFDS. Received: name={name!r}.{hint}"
        ) from error
    except Exception as error:
        raise DataError(
            f"Data set '{name}' cannot be used, or is damaged (if so, remove "
            f"it): {error}"
        ) from error


@contextlib.contextmanager
def building(builder: tfds.core.DatasetBuilder) -> Iterator[None]:
    """Turns whatever fails while a data set is built into one line."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"Data set '{builder.name}' could not be built in "
            f"{builder.data_dir_root}: {type(error).__name__}: "
            f"{str(error)[:500]}"
        ) from error
