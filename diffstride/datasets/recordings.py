"""What the builders of recorded sounds share: reading, storing, checking."""

import hashlib
import math
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from diffstride.datasets.soundfonts import SAMPLE_RATE
from diffstride.errors import DataError


class Recorded(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of sounds from `files`, a folder: they are there or below."""

    # Where packages of Debian are installed.
    files = pathlib.Path("/usr/share")


def feature(samples: int | None = SAMPLE_RATE) -> tfds.features.Audio:
    """Returns the feature of mono sounds, `None` for those of any length."""
    return tfds.features.Audio(
        shape=(samples,),
        dtype=np.int16,
        sample_rate=SAMPLE_RATE,
        encoding="bytes",
    )


def read(path: pathlib.Path, samples: int | None = None) -> np.ndarray:
    """Reads a sound file, mixed down and resampled.

    Args:
        path: A file that libsndfile can read.
        samples: Length to cut it to, or to fill it up to with silence.

    Returns:
        Mono samples of int16 at `SAMPLE_RATE`.
    """
    from scipy import signal

    try:
        import soundfile
    except ImportError as error:
        raise DataError(
            "Recordings are read by the package 'soundfile', which is not "
            "installed: pip install 'diffstride[audio]'"
        ) from error
    wave, rate = soundfile.read(path, always_2d=True)
    common = math.gcd(SAMPLE_RATE, rate)
    # In float64, so that rounding to int16 is alike on every machine.
    wave = signal.resample_poly(
        wave.mean(axis=1), SAMPLE_RATE // common, rate // common
    )
    # The filter overshoots where a recording reaches full scale.
    wave /= max(1.0, np.abs(wave).max(initial=0.0))
    if samples is not None:
        wave = np.pad(wave[:samples], (0, max(samples - len(wave), 0)))
    return np.round(wave * 32767).astype("int16")


def checked(
    examples: Iterable[dict],
    name: str,
    split: str,
    expected: tuple[int, str],
) -> Iterator[tuple[int, dict]]:
    """Numbers and encodes the examples of a split, and checks them.

    Args:
        examples: Examples whose `"audio"` is an array of int16.
        name: The data set, as it is asked for.
        split: The split.
        expected: How many there are, and the start of the SHA-256 of all their
            samples.

    Raises:
        DataError: In the end, if there is another number of examples. Of other
            samples a line in the log tells.
    """
    digest, count = hashlib.sha256(), 0
    for example in examples:
        content = example["audio"].astype("<i2").tobytes()
        digest.update(content)
        # Audio passes arrays on without encoding them.
        yield count, {**example, "audio": np.array(content, dtype=object)}
        count += 1
    if count != expected[0]:
        raise DataError(
            f"'{name}' must have {expected[0]} examples in '{split}', but "
            f"{count} were made: are the packages of the versions that "
            "docs/notes.md names?"
        )
    if (found := digest.hexdigest()[:16]) != expected[1]:
        logging.warning(
            "The sound of '%s', split '%s', is not bit for bit that of the "
            "published results (%s, not %s).",
            name,
            split,
            found,
            expected[1],
        )
