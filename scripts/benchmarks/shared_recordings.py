#!/usr/bin/env python3
"""Which recordings do the fonts of the data set `notes` share?

    python scripts/benchmarks/shared_recordings.py --files=/usr/share

Two notes of one program and pitch are compared by the highest peak of the
correlation of their phases, over half a second: 1 for the same recording,
wherever it begins and however it is filtered. Two recordings of one kind of
instrument give little more than those of different instruments, which are the
control. The table has medians over programs, each a median over five pitches.
"""

import argparse
import itertools
import pathlib
import sys

import numpy as np

from diffstride.datasets import soundfonts
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
    folder = pathlib.Path(parser.parse_args(argv).files)
    found = soundfonts.find(folder, soundfonts.FONTS)
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


def _peak(one: np.ndarray, other: np.ndarray) -> float:
    first, second = (
        np.fft.rfft(note[:_LENGTH].astype(float), 2 * _LENGTH)
        for note in (one, other)
    )
    # Bins 60 dB below the strongest count for little: they are noise.
    first, second = (
        each / (np.abs(each) + 1e-3 * np.abs(each).max())
        for each in (first, second)
    )
    scale = np.sqrt(np.mean(np.abs(first) ** 2) * np.mean(np.abs(second) ** 2))
    return np.abs(np.fft.irfft(first * second.conj())).max() / scale


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
