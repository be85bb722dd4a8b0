#!/usr/bin/env python3
"""Which recordings do fonts, or splits of a data set, share?

    python scripts/benchmarks/shared_recordings.py --files=/usr/share
    python scripts/benchmarks/shared_recordings.py --name=drums --data_dir=data

The first compares the fonts of `notes`. Two notes of one program and pitch are
compared by the highest peak of the correlation of their phases, over half a
second: 1 for the same recording, wherever it begins and however it is filtered.
Two recordings of one kind of instrument give little more than those of
different instruments, which are the control. The table has medians over
programs, each a median over five pitches.

The second compares the sounds of each split of `drums` or `letters` with those
of the others. The table has the highest peaks, of sounds of one class and, as
the control, of different classes; then come the pairs that share a recording.
"""

import argparse
import itertools
import pathlib
import sys

import numpy as np
import tensorflow_datasets as tfds

from diffstride.datasets import find_builder, soundfonts
from diffstride.datasets.notes import FAMILIES
from diffstride.errors import run_reporting_errors

PITCHES = (43, 55, 60, 67, 79)
VELOCITY = 100
PROGRAMS = [program for family in FAMILIES.values() for program in family]
# Above what different instruments have.
_SHARED = 0.55
_LENGTH = 8000


def main(argv: list[str]) -> int:
    """Renders the notes, and prints a row for each pair of fonts."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--files", default="/usr/share")
    parser.add_argument("--name", choices=("drums", "letters"))
    parser.add_argument("--data_dir")
    options = parser.parse_args(argv)
    if options.name:
        _compare_splits(find_builder(options.name, options.data_dir))
        return 0
    found = soundfonts.find(pathlib.Path(options.files), soundfonts.FONTS)
    fonts = {name: _render(path) for name, path in found.items()}
    print("| fonts | programs | median | control | shared | programs shared |")
    print("|---|---|---|---|---|---|")
    for one, other in itertools.combinations(fonts, 2):
        print(_row(one, other, fonts))
    return 0


def _render(path: pathlib.Path) -> dict[int, list]:
    instruments = soundfonts.load(path)
    return {
        program: [
            soundfonts.render(instruments, program, pitch, VELOCITY)
            for pitch in PITCHES
        ]
        for program in PROGRAMS
    }


def _row(one: str, other: str, fonts: dict) -> str:
    shifted = PROGRAMS[5:] + PROGRAMS[:5]
    alike, control = {}, {}
    for program, another in zip(PROGRAMS, shifted, strict=True):
        alike[program] = likeness(fonts[one][program], fonts[other][program])
        control[program] = likeness(fonts[one][program], fonts[other][another])
    values = np.array(list(alike.values()))
    shared = [program for program in PROGRAMS if alike[program] > _SHARED]
    names = shared if len(shared) < 8 else "..."
    return (
        f"| {one}, {other} | {np.isfinite(values).sum()} | "
        f"{np.nanmedian(values):.2f} | "
        f"{np.nanmedian(list(control.values())):.2f} | {len(shared)} | "
        f"{names} |"
    )


def likeness(ones: list, others: list) -> float:
    """Median over pitches; NaN where one font has none of the notes."""
    pairs = zip(ones, others, strict=True)
    peaks = [_peak(*pair) for pair in pairs if all(x is not None for x in pair)]
    return float(np.median(peaks)) if peaks else np.nan


def _compare_splits(builder: tfds.core.DatasetBuilder) -> None:
    _, key = builder.info.supervised_keys
    splits = {
        split: list(tfds.as_numpy(builder.as_dataset(split)))
        for split in builder.info.splits
    }
    print("| splits | pairs of a class | highest | control | shared |")
    print("|---|---|---|---|---|")
    names = []
    for ones, others in itertools.combinations(splits, 2):
        first, second = splits[ones], splits[others]
        alike = np.array([[x[key] == y[key] for y in second] for x in first])
        spectra = _whitened([y["audio"] for y in second])
        peaks = np.stack(
            [_peaks(x, spectra) for x in _whitened([x["audio"] for x in first])]
        )
        print(
            f"| {ones}, {others} | {alike.sum()} | {peaks[alike].max():.2f} | "
            f"{peaks[~alike].max():.2f} | {(peaks > _SHARED).sum()} |"
        )
        names += [
            (peaks[i, j], first[i], second[j])
            for i, j in np.argwhere(peaks > _SHARED)
        ]
    for peak, *pair in names:
        for sound in pair:
            sound.pop("audio", None)
        print(f"{peak:.2f}", *pair)


def _peak(one: np.ndarray, other: np.ndarray) -> float:
    return float(_peaks(*_whitened([one, other])))


def _peaks(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Highest values of the correlations of one spectrum with others."""
    return np.abs(np.fft.irfft(one * others.conj())).max(axis=-1)


def _whitened(sounds: list[np.ndarray]) -> np.ndarray:
    """Spectra of half a second, of which little more than phases is left."""
    spectra = np.array([np.fft.rfft(x[:_LENGTH], 2 * _LENGTH) for x in sounds])
    magnitudes = np.abs(spectra)
    # Bins 60 dB below the strongest count for little: they are noise.
    spectra /= magnitudes + 1e-3 * magnitudes.max(axis=-1, keepdims=True)
    power = np.mean(np.abs(spectra) ** 2, axis=-1, keepdims=True)
    return spectra / np.sqrt(power)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
