"""Instruments as GF1 patches (`.pat`), as FreePats has them.

A patch holds samples that each cover a range of frequencies. All numbers are
little endian; frequencies are in mHz.
"""

import pathlib
import struct
from typing import NamedTuple

import numpy as np

_PREFIX = b"GF1PATCH1"
_FIRST_SAMPLE = 239
_NUM_SAMPLES = 198
_SAMPLE = struct.Struct("<7xxIIIHIIIHx6s6s6xBHH36x")
_16_BITS, _UNSIGNED, _LOOP, _PING_PONG, _REVERSE, _SUSTAIN, _ENVELOPE = (
    1 << i for i in range(7)
)


class _Sample(NamedTuple):
    data: np.ndarray
    rate: int
    loop: tuple[int, int] | None
    low: int
    high: int
    root: int
    rates: bytes
    levels: bytes
    modes: int


class PatchSet:
    """A folder of patches, their names beginning with the program's number."""

    def __init__(self, folder: pathlib.Path, sample_rate: int = 48_000):
        self._paths = {
            int(path.name[:3]): path for path in folder.glob("[0-9]*.pat")
        }
        self._sample_rate = sample_rate
        self._loaded = {}

    def play(
        self, program: int, pitch: int, velocity: int, held: int, released: int
    ) -> np.ndarray | None:
        """Returns mono samples, `None` where there is no such program."""
        if program not in self._paths:
            return None
        if program not in self._loaded:
            self._loaded[program] = _read(self._paths[program])
        samples = self._loaded[program]
        frequency = 440e3 * 2 ** ((pitch - 69) / 12)
        covering = [s for s in samples if s.low <= frequency <= s.high]
        sample = min(
            covering or samples,
            key=lambda each: abs(np.log(each.root / frequency)),
        )
        step = frequency / sample.root * sample.rate / self._sample_rate
        sound = _stretched(sample, np.arange(held + released) * step)
        if sample.modes & _ENVELOPE:
            sound *= _envelope(sample, held, released, self._sample_rate)
        else:
            sound[held:] *= np.linspace(1, 0, released)
        # Loudness goes with the square of velocity, as in General MIDI.
        return sound * (velocity / 127) ** 2


def _read(path: pathlib.Path) -> list[_Sample]:
    content = path.read_bytes()
    if not content.startswith(_PREFIX):
        raise ValueError(f"{path} is not a GF1 patch")
    samples, place = [], _FIRST_SAMPLE
    for _ in range(content[_NUM_SAMPLES]):
        (
            length,
            start,
            end,
            rate,
            low,
            high,
            root,
            _,
            rates,
            levels,
            modes,
            *_,
        ) = _SAMPLE.unpack_from(content, place)
        place += _SAMPLE.size
        data = _decode(content[place : place + length], modes)
        place += length
        width = 2 if modes & _16_BITS else 1
        loop = (start // width, end // width) if modes & _LOOP else None
        if loop and modes & _PING_PONG:
            back = data[loop[0] : loop[1]][::-1]
            data = np.concatenate([data[: loop[1]], back])
            loop = loop[0], len(data)
        samples.append(
            _Sample(data, rate, loop, low, high, root, rates, levels, modes)
        )
    return samples


def _decode(content: bytes, modes: int) -> np.ndarray:
    kind = ("u" if modes & _UNSIGNED else "i") + "12"[modes & _16_BITS]
    data = np.frombuffer(content[: len(content) // 2 * 2], f"<{kind}")
    full = 128 if kind[1] == "1" else 32768
    data = data / full - (1 if modes & _UNSIGNED else 0)
    return data[::-1] if modes & _REVERSE else data


def _stretched(sample: _Sample, places: np.ndarray) -> np.ndarray:
    """Reads a sample at fractional places, round its loop if it has one."""
    data = sample.data
    if sample.loop and sample.loop[1] > sample.loop[0]:
        start, end = sample.loop
        data = np.append(data[:end], data[start])
        beyond = places >= end
        places = np.where(
            beyond, start + (places - start) % (end - start), places
        )
    return np.interp(places, np.arange(len(data)), data, right=0.0)


def _envelope(
    sample: _Sample, held: int, released: int, sample_rate: int
) -> np.ndarray:
    """Six ramps of the level; a factor of two in loudness every 16 of 255."""
    times, levels = [0.0], [0.0]
    for stage in range(6):
        if stage == 3 and sample.modes & _SUSTAIN:
            # Held where the key is; the release begins when it is let go.
            now = np.interp(held, times, levels)
            times = [t for t in times if t < held] + [float(held)]
            levels = [*levels[: len(times) - 1], float(now)]
        byte = sample.rates[stage]
        slope = (byte & 63) << 3 * (3 - (byte >> 6))
        slope *= 44_100 / sample_rate / 8192
        target = sample.levels[stage]
        gap = abs(target - levels[-1])
        times.append(times[-1] + max(gap / slope if slope else 1e9, 1e-3))
        levels.append(float(target))
    level = np.interp(np.arange(held + released), times, levels)
    return np.where(level > 0, 2 ** ((level - 255) / 16), 0.0)
