"""Letters spoken in 20 languages, as a TFDS builder.

The label is the language. As each language has a speaker and a microphone of
its own, this is as much the task of telling who speaks: see docs/notes.md.
"""

import pathlib
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from diffstride.datasets import recordings, soundfonts
from diffstride.datasets.soundfonts import Font

LANGUAGES = (
    *("ar", "cs", "da", "de", "en", "en_GB", "es", "fr", "he", "hu"),
    *("it", "lt", "ml", "nb", "nds", "nl", "pt_BR", "ru", "tn", "uk"),
)
FONTS = {
    "klettres": Font(
        "klettres",
        "klettres-data",
        "638068fb0c6621e6f4fd5fc48abc290bddaa0b9ea397b6176319907a386afd8a",
    )
}
# Shares of the letters of each language; the rest is for training.
_SHARES = {"test": 0.2, "validation": 0.1}
# Letters and the start of the SHA-256 of their samples.
EXPECTED = {
    "train": (412, "135eaaa54ab1c5be"),
    "validation": (60, "a7345f89e1a44549"),
    "test": (116, "07887724c392f7ff"),
}
# Silence around a letter, which is as long as a speaker's microphone was open,
# would tell the language. It ends where this share of the peak is reached.
_SILENT = 0.05
_SEED = 0


class Letters(recordings.Recorded):
    """Spoken letters, labelled by language; each letter is in one split.

    The folder `klettres` is looked for in `files`, a folder, and below.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Spoken letters; one speaker for each language.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": recordings.feature(None),
                    "language": tfds.features.ClassLabel(names=LANGUAGES),
                    "letter": tfds.features.Text(),
                }
            ),
            supervised_keys=("audio", "language"),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        folder = soundfonts.find(self.files, FONTS)["klettres"]
        return {
            split: self._generate_examples(split, paths)
            for split, paths in _divided(folder).items()
        }

    def _generate_examples(
        self, split: str, paths: list[pathlib.Path]
    ) -> Iterator[tuple[int, dict]]:
        letters = (
            {
                "audio": _trimmed(recordings.read(path)),
                "language": path.parts[-3],
                "letter": path.stem,
            }
            for path in paths
        )
        yield from recordings.checked(
            letters, "letters", split, EXPECTED[split]
        )


def _divided(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Divides the letters of each language, alike on every machine."""
    # MT19937's raw stream is frozen by NumPy's compatibility policy.
    rng = np.random.RandomState(_SEED)
    divided: dict[str, list] = {"train": [], "validation": [], "test": []}
    for language in LANGUAGES:
        paths = sorted((folder / language / "alpha").glob("*.ogg"))
        total = len(paths)
        paths = [paths[i] for i in rng.permutation(total)]
        for split, share in _SHARES.items():
            count = round(share * total)
            divided[split] += paths[:count]
            paths = paths[count:]
        divided["train"] += paths
    return divided


def _trimmed(sound: np.ndarray) -> np.ndarray:
    loudness = np.abs(sound)
    loud = np.flatnonzero(loudness >= _SILENT * loudness.max())
    return sound[loud[0] : loud[-1] + 1]
