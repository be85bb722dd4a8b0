"""Soundfonts and patches: notes of recorded instruments, without a network.

All is found by the name of its file and checked by content. Notes are rendered
at 48 kHz and brought to 16 kHz by a filter: the renderers interpolate, which
aliases at a low rate.
"""

import hashlib
import pathlib
from collections.abc import Mapping
from typing import NamedTuple, Protocol

import numpy as np

from diffstride.datasets.patches import PatchSet
from diffstride.errors import DataError

SAMPLE_RATE = 16_000
RENDER_RATE = 48_000
# A note of a second: the key is held for most of it, then released.
_HELD = RENDER_RATE * 3 // 4
_RELEASED = RENDER_RATE - _HELD
# What rings on after that ends before the next note begins.
_SILENCE = RENDER_RATE // 4
# Below, a note is silent; at 1 it is clipped.
_QUIETEST_PEAK = 0.003
_LOUDEST_PEAK = 1.0


class Font(NamedTuple):
    """A file or folder of sounds, the Debian package that has it, its SHA-256.

    Of a folder it is that of its files, one after the other.
    """

    file: str
    package: str
    sha256: str


FONTS = {
    "fluid": Font(
        "FluidR3_GM.sf2",
        "fluid-soundfont-gm",
        "74594e8f4250680adf590507a306655a299935343583256f3b722c48a1bc1cb0",
    ),
    "musescore": Font(
        "MuseScore_General_Full.sf3",
        "musescore-general-soundfont",
        "f9a37b36655f23e167c66ec91bef6097c8e99be29286219a54062919eb41aeae",
    ),
    "freepats": Font(
        "Tone_000",
        "freepats",
        "f158f92206085c0a735c91c47261b849e2281ac0b32b6b8fe2b0398d64642737",
    ),
    "csound": Font(
        "sf_GMbank.sf2",
        "csound-soundfont",
        "9f39fc53bd3a1a69f13cb486838944eded358b3b6e8afbd6c1c2c33675b2034b",
    ),
    "timgm": Font(
        "TimGM6mb.sf2",
        "timgm6mb-soundfont",
        "c5378b62028c920cb11e4803327983fee2f2cdff5dc89c708e39da417e51c854",
    ),
}


class Instruments(Protocol):
    """What can play notes of General MIDI programs, at `RENDER_RATE`."""

    def play(
        self, program: int, pitch: int, velocity: int, held: int, released: int
    ) -> np.ndarray | None:
        """Returns mono samples, `None` where there is no such program."""


class SoundFont:
    """An SF2 or SF3 file, played by the package `tinysoundfont`."""

    def __init__(self, path: pathlib.Path):
        try:
            import tinysoundfont
        except ImportError as error:
            raise DataError(
                "Notes are rendered by the package 'tinysoundfont', which is "
                "not installed: pip install --no-deps tinysoundfont (what it "
                "depends on is for playing aloud only)"
            ) from error
        self._synth = tinysoundfont.Synth(samplerate=RENDER_RATE)
        self._font = self._synth.sfload(str(path))

    def play(
        self, program: int, pitch: int, velocity: int, held: int, released: int
    ) -> np.ndarray | None:
        """Returns mono samples, `None` where there is no such program."""
        synth = self._synth
        if synth.sfpreset_name(self._font, 0, program) is None:
            return None
        synth.program_select(0, self._font, 0, program)
        synth.noteon(0, pitch, velocity)
        first = bytes(synth.generate(held))
        synth.noteoff(0, pitch)
        rest = bytes(synth.generate(released))
        synth.sounds_off(0)
        synth.generate(_SILENCE)
        stereo = np.frombuffer(first + rest, "float32").reshape(-1, 2)
        return stereo.mean(1, dtype="float64")


def render(
    instruments: Instruments, program: int, pitch: int, velocity: int
) -> np.ndarray | None:
    """Renders a note of one second.

    Args:
        instruments: What plays it.
        program: General MIDI program, from 0.
        pitch: MIDI number; 69 is 440 Hz.
        velocity: How hard the key is hit, 1 to 127.

    Returns:
        16,000 samples of int16, or `None` where there is no such program, or
        the note is silent (its peak below 0.3 % of full scale) or clipped.
    """
    from scipy import signal

    sound = instruments.play(program, pitch, velocity, _HELD, _RELEASED)
    if sound is None:
        return None
    # In float64, so that rounding to int16 is alike on every machine.
    sound = signal.resample_poly(sound, SAMPLE_RATE, RENDER_RATE)
    if not _QUIETEST_PEAK <= np.abs(sound).max() < _LOUDEST_PEAK:
        return None
    return np.round(sound * 32767).astype("int16")


def find(
    folder: pathlib.Path, wanted: Mapping[str, Font]
) -> dict[str, pathlib.Path]:
    """Finds fonts by the names of their files, anywhere below a folder.

    Raises:
        DataError: If one is not there, or is not that of Debian.
    """
    candidates: dict[str, list] = {font.file: [] for font in wanted.values()}
    for path in folder.rglob("*"):
        if path.name in candidates:
            candidates[path.name].append(path)
    missing = [font for font in wanted.values() if not candidates[font.file]]
    if missing:
        packages = dict.fromkeys(font.package for font in missing)
        raise DataError(
            "`files` must be a folder with what is rendered in it or below. "
            f"Missing in {folder}: {', '.join(font.file for font in missing)}. "
            f"On Debian: apt install {' '.join(packages)}"
        )
    return {
        name: _right(font, sorted(candidates[font.file]))
        for name, font in wanted.items()
    }


def _right(font: Font, paths: list[pathlib.Path]) -> pathlib.Path:
    digests = {_digest(path): path for path in reversed(paths)}
    if font.sha256 not in digests:
        raise DataError(
            f"{paths[0]} is not that of the Debian package {font.package}: its "
            f"SHA-256 is {_digest(paths[0])}, expected {font.sha256}"
        )
    return digests[font.sha256]


def load(path: pathlib.Path) -> Instruments:
    """Loads a soundfont, or a folder of patches."""
    if path.is_dir():
        return PatchSet(path, RENDER_RATE)
    return SoundFont(path)


def _digest(path: pathlib.Path) -> str:
    """SHA-256 of a file, or of the files of a folder in their order."""
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        # What authors say of their sounds does not count.
        if part.is_file() and part.suffix != ".txt":
            digest.update(part.read_bytes())
    return digest.hexdigest()
