"""One-shot hits of drums from sampled kits, as a TFDS builder.

The task is to tell, from a second of sound, the class of the drum. No recording
is in two splits, and no author of a kit to test on in another: docs/notes.md.
"""

import pathlib
import re
import xml.etree.ElementTree
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow_datasets as tfds

from diffstride.datasets import recordings, soundfonts
from diffstride.datasets.soundfonts import SAMPLE_RATE, Font


class Drum(NamedTuple):
    """A class: what the names of its drums have, and its General MIDI keys."""

    pattern: str
    keys: tuple[int, ...]


# What every split has, by the names that the kits give. Left out are drums that
# a split or two lack (cowbell, splash, china, hand percussion), sounds without
# a drum's name, and those between two classes (`_UNCLEAR`). A pedal's hi-hat
# is closed, one that is half open rings and counts as open.
DRUMS = {
    "kick": Drum(r"kick|bass ?drum", (36,)),
    "snare": Drum(r"snare", (38, 40)),
    "side_stick": Drum(r"stick|rim click", (37,)),
    "clap": Drum(r"clap", (39,)),
    "tom": Drum(r"\btom", (41, 43, 45, 47)),
    "closed_hihat": Drum(r"closed|pedal|\bcl$|\bpd$|side hh", (42, 44)),
    "open_hihat": Drum(r"open|\bop\b|side ohh", (46,)),
    "crash": Drum(r"crash", (49, 57)),
    "ride": Drum(r"ride|\bbell", (51, 53, 59)),
}
_UNCLEAR = r"roll|choke|tambourine|china|splash|crash/ride|ride-crash"
# Drums whose name says one thing, and their file or its sound another.
_MISNAMED = {
    ("ColomboAcousticDrumkit", "Pedal HH"),  # Files are of a half-open one.
    ("ForzeeStereo", "Stick"),  # A pair of sticks, for counting in.
}
# A soundfont of avldrums has five layers; these are the loudest hits of each.
_VELOCITIES = (26, 52, 77, 102, 127)
# With the SHA-256 of what is in them.
KITS = {
    "train": {
        "The Black Pearl 1.0": (
            "0c2da00d9b1884849b41d21902d17df69319938581adf16c4f8f55a007eb94c2"
        ),
        "Gimme A Hand 1.0": (
            "5f498027b20dc0adbd1c9a4aa9d66cad7b27afbe01f04cd8c549f1c6087c6f65"
        ),
        "Black_Pearl_4_LV2.sf2": (
            "3bc27deb1b9d6a919c7cfc4ba5fc5c077ac7899fc21becbbb234749ffc523d13"
        ),
        "Red_Zeppelin_4_LV2.sf2": (
            "e8710b899ece8f83b109d0e2f6a89b007b864c8c088ca3ad3cd6e47bd8e629cc"
        ),
        "ForzeeStereo": (
            "ced683cd412012884f4aedd89587938bd003903d2237f320180b1c4bf1dd1dfd"
        ),
        "ElectricEmpireKit": (
            "095605b8db4d775eb33b9f6e49eb261aec731056df8e610647b8ee3914eafdcd"
        ),
        "VariBreaks": (
            "01245e4422ff73f790a544ae0205ceda26fd8d428805c80d157c8ee60a53f59a"
        ),
    },
    "validation": {
        "ColomboAcousticDrumkit": (
            "aca3543a15aa724c9a2a4174404e86d114f18d0f0ec43a499549857054f2d176"
        ),
        "HardElectro1": (
            "94544db7d339dc65567b107dc9f50d9082f1f5417d7599a9b4a109291d73837b"
        ),
        "rumpf_kit_z01_h2": (
            "4552dd27f5fd8b016ed7dbf791795a5b11bc5b3e6d1e6127e0b3fbc9d66eaff8"
        ),
    },
    "test": {
        "Millo-Drums_v.1": (
            "f95c0fa81658fb52b67ba6dc13ae2cf7ba4bcb3b2c447e6ba316037baf652592"
        ),
        "Millo_MultiLayered2": (
            "5e9bb1644d1fccc98598c784da064fd8033e77aebc6f1146c71f4ddd2f5dfa29"
        ),
        "Millo_MultiLayered3": (
            "094a3d0719795f8219dc9afb2869f6c982e1c5231d557017b6b5520160d51bea"
        ),
        "BJA_Pacific": (
            "3ea7c745209663f6c6e08a2a0c5a316426193130e7479c4e7a868c911c190319"
        ),
    },
}
FONTS = {
    kit: Font(
        kit,
        "avldrums.lv2-soundfont"
        if kit.endswith(".sf2")
        else "hydrogen-drumkits",
        sha256,
    )
    for kits in KITS.values()
    for kit, sha256 in kits.items()
}
# Hits and the start of the SHA-256 of their samples.
EXPECTED = {
    "train": (359, "159e76df0b42f3b6"),
    "validation": (52, "39732e33ebd0ed89"),
    "test": (181, "c2892cf9fa4defd3"),
}


class Drums(recordings.Recorded):
    """One-second hits of nine classes of drums; kits differ by split.

    Kits are looked for in `files`, a folder, and below.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Hits of sampled drums; kits differ by split.",
            features=tfds.features.FeaturesDict(
                {
                    "audio": recordings.feature(),
                    "drum": tfds.features.ClassLabel(names=list(DRUMS)),
                    # What the kit calls it; a soundfont its key.
                    "piece": tfds.features.Text(),
                    "kit": tfds.features.Text(),
                }
            ),
            supervised_keys=("audio", "drum"),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        found = soundfonts.find(self.files, FONTS)
        seen: set[bytes] = set()
        return {
            split: self._generate_examples(
                split, {kit: found[kit] for kit in kits}, seen
            )
            for split, kits in KITS.items()
        }

    def _generate_examples(
        self, split: str, paths: dict[str, pathlib.Path], seen: set[bytes]
    ) -> Iterator[tuple[int, dict]]:
        hits = (
            {"kit": kit, **hit}
            for kit, path in paths.items()
            for hit in (_played if path.is_file() else _read)(path)
        )
        yield from recordings.checked(
            _new(hits, seen), "drums", split, EXPECTED[split]
        )


def drum_class(kit: str, piece: str) -> str | None:
    """Returns the class of a drum by its name, `None` for one of no class."""
    name = piece.lower()
    if (kit, piece) in _MISNAMED or re.search(_UNCLEAR, name):
        return None
    for drum, (pattern, _) in DRUMS.items():
        if re.search(pattern, name):
            return drum
    return None


def _read(folder: pathlib.Path) -> Iterator[dict]:
    """The hits of a kit of Hydrogen: each layer of each drum is a file."""
    kit = xml.etree.ElementTree.parse(folder / "drumkit.xml")
    for piece in kit.findall(".//{*}instrument"):
        name = piece.findtext("{*}name") or ""
        if (drum := drum_class(folder.name, name)) is None:
            continue
        for layer in piece.findall(".//{*}filename"):
            path = folder / (layer.text or "")
            if path.is_file():  # Some kits name files that they do not have.
                sound = recordings.read(path, SAMPLE_RATE)
                yield {"audio": sound, "drum": drum, "piece": name}


def _played(path: pathlib.Path) -> Iterator[dict]:
    """The hits of a soundfont, whose keys are those of General MIDI."""
    kit = soundfonts.load(path)
    for drum, (_, keys) in DRUMS.items():
        for key in keys:
            for velocity in _VELOCITIES:
                sound = soundfonts.render(kit, 0, key, velocity)
                if sound is not None:
                    yield {"audio": sound, "drum": drum, "piece": str(key)}


def _new(hits: Iterator[dict], seen: set[bytes]) -> Iterator[dict]:
    """Leaves out what was there before: kits use a file for several drums."""
    for hit in hits:
        content = hit["audio"].tobytes()
        if content not in seen:
            seen.add(content)
            yield hit
