"""Made-up tones of eight timbres, rendered by NumPy, as a TFDS builder.

A stand-in for instruments where there is nothing to record them from: a network
can be tried on it without data, and nothing is learned from its accuracy.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

TIMBRES = (
    *("sine", "square", "sawtooth", "organ"),
    *("pluck", "bell", "vibrato", "tremolo"),
)
PITCHES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
RATE = 16000
_SIZES = {"train": 640, "test": 160}
_HARMONICS = np.arange(1, 13)
_LOWEST_NOTE = 48  # MIDI; two octaves from there on.
_HIGHEST_HZ = 7600


class Tones(tfds.core.GeneratorBasedBuilder):
    """Tones of 0.7 to 1.2 s, with noise: 640 to train on and 160 to test on.

    The classes are `timbre` and `pitch`, that of the octave. Notes of two
    octaves are out of tune by up to a quarter of a semitone.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Made-up tones of eight timbres.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": tfds.features.Audio(
                        shape=(None,),
                        # TFDS stores integers in up to ten bytes.
                        dtype=np.float32,
                        sample_rate=RATE,
                    ),
                    "timbre": tfds.features.ClassLabel(names=TIMBRES),
                    "pitch": tfds.features.ClassLabel(names=PITCHES),
                }
            ),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        return {
            split: self._generate_examples(size, seed)
            for seed, (split, size) in enumerate(_SIZES.items())
        }

    def _generate_examples(
        self, size: int, seed: int
    ) -> Iterator[tuple[int, dict]]:
        # MT19937's raw stream is frozen by NumPy's compatibility policy.
        random = np.random.RandomState(seed)
        for i in range(size):
            timbre = i % len(TIMBRES)
            note = random.randint(24)
            wave = rendered(TIMBRES[timbre], _LOWEST_NOTE + note, random)
            yield i, {"audio": wave, "timbre": timbre, "pitch": note % 12}


def rendered(
    timbre: str, note: float, random: np.random.RandomState
) -> np.ndarray:
    """Renders one tone, from -1 to 1.

    Args:
        timbre: one of `TIMBRES`.
        note: MIDI number of the note.
        random: decides length, tuning, phases, level and noise.
    """
    seconds = random.uniform(0.7, 1.2)
    time = np.arange(int(seconds * RATE)) / RATE
    pitch = 440.0 * 2 ** ((note - 69 + random.uniform(-0.25, 0.25)) / 12)
    k = _HARMONICS
    partials, amplitudes = k * 1.0, 1.0 / k
    if timbre in ("sine", "vibrato", "tremolo"):
        amplitudes = 0.3 ** (k - 1.0)
    elif timbre == "square":
        amplitudes = amplitudes * (k % 2)
    elif timbre == "organ":
        amplitudes = np.isin(k, (1, 2, 3, 4, 6, 8)) / np.sqrt(k)
    elif timbre == "bell":
        partials = k**1.35
    decay = {"pluck": 4.0 * np.sqrt(k), "bell": 1.5 + 0.5 * k}
    decay = decay.get(timbre, 0.0 * k)
    phase = 2 * np.pi * pitch * time
    if timbre == "vibrato":
        phase = phase + 0.015 * pitch / 6 * np.sin(2 * np.pi * 6 * time)
    amplitudes = amplitudes * (partials * pitch < _HIGHEST_HZ)
    starts = random.uniform(0, 2 * np.pi, len(k))
    wave = np.zeros_like(time)
    for each in range(len(k)):
        envelope = amplitudes[each] * np.exp(-decay[each] * time)
        wave += envelope * np.sin(partials[each] * phase + starts[each])
    if timbre == "tremolo":
        wave *= 1 + 0.6 * np.sin(2 * np.pi * 8 * time)
    wave *= np.minimum(time / 0.01, 1)  # Begins without a click.
    wave /= np.sqrt(np.mean(wave**2))
    wave += random.uniform(0.03, 0.3) * random.standard_normal(len(time))
    wave *= random.uniform(0.2, 0.9) / np.abs(wave).max()
    return wave.astype("float32")
