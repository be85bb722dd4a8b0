"""Notes of recorded instruments, rendered from soundfonts, as a TFDS builder.

The task is to tell, from a second of sound, the family of the instrument and
the pitch. No recording is in two splits: see docs/notes.md.
"""

import itertools
import operator
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds

from diffstride.datasets import recordings, soundfonts

# Of General MIDI's sixteen families, ten. Left out are the three of
# synthesizers (no recordings), that of ethnic instruments (one origin, all
# kinds of sound), drums and effects (no pitch). Of the ten, these programs are
# left out: guitar harmonics (31, octaves above the key), timpani (47, drums),
# orchestra hit (55, a chord), and synthesizers (38, 39, 50, 51, 54, 62, 63).
FAMILIES = {
    "piano": range(0, 8),
    "chromatic_percussion": range(8, 16),
    "organ": range(16, 24),
    "guitar": range(24, 31),
    "bass": range(32, 38),
    "strings": range(40, 47),
    "ensemble": (48, 49, 52, 53),
    "brass": range(56, 62),
    "reed": range(64, 72),
    "pipe": range(72, 80),
}
PITCHES = range(36, 85)
# Programs whose recordings a font of another split has too.
SHARED = {("freepats", 46), ("freepats", 79), ("csound", 78), ("timgm", 78)}
VELOCITIES = (60, 80, 100, 120)
FONTS = {
    "train": ("fluid", "musescore"),
    "validation": ("freepats",),
    "test": ("csound", "timgm"),
}
# Notes to render, of which some are dropped.
SIZES = {
    "full": {"train": 6000, "validation": 2000, "test": 1500},
    "small": {"train": 1500, "validation": 500, "test": 500},
}
# Notes kept and the start of the SHA-256 of their samples.
EXPECTED = {
    ("full", "train"): (5910, "bf39a54b5214ff83"),
    ("full", "validation"): (1526, "0c2b761dfe62079a"),
    ("full", "test"): (1475, "6164435d2dfd13d1"),
    ("small", "train"): (1480, "ac8e1eea634750f6"),
    ("small", "validation"): (376, "0e7159cd32369de6"),
    ("small", "test"): (492, "30dbc6fc40c54274"),
}
_SEED = 0


class Note(NamedTuple):
    """One example: who plays what, and how hard."""

    font: str
    family: str
    program: int
    pitch: int
    velocity: int


def notes(split: str, size: int) -> list[Note]:
    """Draws the notes of a split, alike on every machine, sorted by font."""
    combinations = [
        (font, family, program, pitch)
        for font in FONTS[split]
        for family, programs in FAMILIES.items()
        for program in programs
        for pitch in PITCHES
    ]
    # MT19937's raw stream is frozen by NumPy's compatibility policy.
    rng = np.random.RandomState(_SEED)
    drawn = rng.permutation(len(combinations))[:size]
    velocities = rng.randint(len(VELOCITIES), size=len(combinations))
    chosen = [
        Note(*combinations[i], VELOCITIES[velocities[i]])
        for i in sorted(drawn.tolist())
    ]
    return [n for n in chosen if (n.font, n.program) not in SHARED]


class Notes(recordings.Recorded):
    """One-second notes of 70 instruments: family and pitch.

    Fonts are looked for in `files`, a folder, and below. Configurations are
    `full` and `small`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(
            name=name, description=f"{sizes['train']} notes to train on."
        )
        for name, sizes in SIZES.items()
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Notes of sampled instruments; fonts differ by split.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": recordings.feature(),
                    "family": tfds.features.ClassLabel(names=list(FAMILIES)),
                    # As in NSynth, a label is the MIDI number.
                    "pitch": tfds.features.ClassLabel(num_classes=128),
                    "program": tfds.features.ClassLabel(num_classes=128),
                    "velocity": np.int64,
                    "font": tfds.features.Text(),
                }
            ),
            supervised_keys=("audio", "family"),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        found = soundfonts.find(self.files, soundfonts.FONTS)
        sizes = SIZES[self.builder_config.name]
        return {
            split: self._generate_examples(split, size, found)
            for split, size in sizes.items()
        }

    def _generate_examples(
        self, split: str, size: int, paths: dict[str, pathlib.Path]
    ) -> Iterator[tuple[int, dict]]:
        name = self.builder_config.name
        yield from recordings.checked(
            _rendered(notes(split, size), paths),
            f"notes/{name}",
            split,
            EXPECTED[name, split],
        )


def _rendered(
    drawn: list[Note], paths: dict[str, pathlib.Path]
) -> Iterator[dict]:
    for font, its_notes in itertools.groupby(
        drawn, operator.attrgetter("font")
    ):
        instruments = soundfonts.load(paths[font])
        for note in its_notes:
            sound = soundfonts.render(
                instruments, note.program, note.pitch, note.velocity
            )
            if sound is not None:
                yield {"audio": sound, **note._asdict()}
        del instruments  # Before the next takes as much memory.
