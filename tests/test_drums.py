import hashlib
import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffstride import data
from diffstride.datasets import drums, letters, prepare, recordings, soundfonts
from diffstride.datasets.soundfonts import Font
from diffstride.errors import DataError

soundfile = pytest.importorskip("soundfile")


def write(path, hertz, seconds, rate=44_100, channels=2, silence=0.0):
    """A sine in the first of the channels, silence around and in others."""
    wave = np.zeros((round(seconds * rate), channels))
    wave[:, 0] = np.sin(2 * np.pi * hertz * np.arange(len(wave)) / rate)
    wave = np.pad(wave, [(round(silence * rate),) * 2, (0, 0)])
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, rate)


def zero_crossings(sound):
    return np.count_nonzero(np.diff(np.sign(sound)))


def check_sine(sound, hertz, seconds):
    """A sine of half of full scale, as mixed down, with silence behind."""
    end = round(seconds * 16_000)
    expected = np.sin(2 * np.pi * hertz * np.arange(end) / 16_000) / 2
    # At its ends the resampler rings.
    middle = slice(200, end - 200)
    error = sound[:end] / 32_767 - expected
    assert np.abs(error[middle]).max() < 0.01
    assert np.abs(sound[end + 200 :]).max(initial=0) < 2


def kit(folder, pieces, namespace=""):
    """A kit of Hydrogen: its pieces, and the frequencies of their layers."""
    for hertz in set(itertools.chain(*pieces.values())) - {0}:
        write(folder / f"{hertz}.flac", hertz, 0.3 if hertz < 500 else 1.5)
    instruments = "".join(
        f"<instrument><name>{name}</name>"
        + "".join(
            f"<layer><filename>{hertz}.flac</filename></layer>"
            for hertz in layers
        )
        + "</instrument>"
        for name, layers in pieces.items()
    )
    (folder / "drumkit.xml").write_text(
        f"<drumkit_info{namespace}><instrumentList>{instruments}"
        "</instrumentList></drumkit_info>"
    )


class Keys:
    """Plays sines; only keys 36 and 46, and in three layers."""

    def play(self, program, pitch, velocity, held, released):
        loudness = {26: 0.1, 52: 0.1, 77: 0.2, 102: 0.2, 127: 0.3}[velocity]
        if program or pitch not in (36, 46):
            return None
        time = np.arange(held + released) / soundfonts.RENDER_RATE
        return loudness * np.sin(2 * np.pi * 10 * pitch * time)


@pytest.fixture
def kits(tmp_path, monkeypatch):
    """Three small kits and a soundfont."""
    root = tmp_path / "files"
    kit(root / "A", {"Snare 1": [200, 300, 0], "Cowbell": [440], "Tom": [300]})
    kit(root / "B", {"Pedal HH": [250]}, " xmlns='http://hydrogen'")
    kit(root / "C", {"Crash": [600], "Ride": [200]})  # The ride is A's snare.
    (root / "D.sf2").write_bytes(b"RIFF")
    monkeypatch.setattr(soundfonts, "load", lambda path: Keys())
    monkeypatch.setattr(
        drums,
        "KITS",
        {"train": ("A", "D.sf2"), "validation": ("B",), "test": ("C",)},
    )
    fonts = {
        name: Font(name, "drumkits", soundfonts._digest(root / name))
        for name in ("A", "B", "C", "D.sf2")
    }
    monkeypatch.setattr(drums, "FONTS", fonts)
    for split, count in (("train", 8), ("validation", 1), ("test", 1)):
        monkeypatch.setitem(drums.EXPECTED, split, (count, "other"))
    return root


def test_hits_are_in_the_split_of_their_kit_and_no_recording_is_twice(
    kits, tmp_path, caplog
):
    out = str(tmp_path / "out")
    for _ in range(2):  # The second time there is nothing to do.
        builder = prepare.prepare("drums", str(kits), out)
    assert "'drums', split 'test', is not bit for bit" in caplog.text
    name = builder.info.features["drum"].int2str
    found = {}
    for split in drums.KITS:
        for hit in tfds.as_numpy(builder.as_dataset(split)):
            assert hit["audio"].shape == (16_000,)
            assert hit["audio"].dtype == "int16"
            kit, piece = hit["kit"].decode(), hit["piece"].decode()
            assert kit in drums.KITS[split]
            found.setdefault((kit, piece, name(hit["drum"])), []).append(
                hit["audio"]
            )
    assert {key: len(hits) for key, hits in found.items()} == {
        ("A", "Snare 1", "snare"): 2,
        ("B", "Pedal HH", "closed_hihat"): 1,
        ("C", "Crash", "crash"): 1,
        ("D.sf2", "36", "kick"): 3,
        ("D.sf2", "46", "open_hihat"): 3,
    }
    snares = sorted(found["A", "Snare 1", "snare"], key=zero_crossings)
    for snare, hertz in zip(snares, (200, 300), strict=True):
        check_sine(snare, hertz, seconds=0.3)
    check_sine(found["C", "Crash", "crash"][0], 600, seconds=1.0)


@pytest.mark.parametrize(
    ("piece", "expected"),
    {
        "VP Kick 1": "kick",
        "BassDrum": "kick",
        "Snare 2 Rimshot (Pearl Free Floating Maple 14x3.5)": "snare",
        "Snare Roll": None,
        "Rim Click (Pearl Free Floating Maple 14x3.5)": "side_stick",
        "d#3 - clap": "clap",
        "tomhi2": "tom",
        "VariBreaks Hat 1 Cl": "closed_hihat",
        "g#3 - hi-hat pedal": "closed_hihat",
        'Hi-Hat Semiopen (Paiste Alpha Metal edge 14")': "open_hihat",
        "Sabian Hat Choke": None,
        'Crash/Ride Bell (Paiste Rude Crash/Ride 18")': None,
        "Paiste Bell": "ride",
        "Cowbell": None,
        "Tambourine Pedal (Pearl PTM-10GH)": None,
        "17": None,
    }.items(),
)
def test_class_of_a_drum_is_read_from_its_name(piece, expected):
    assert drums.drum_class("a kit", piece) == expected


def test_kits_are_in_one_split_each_and_general_midi_keys_in_one_class():
    kits = list(itertools.chain(*drums.KITS.values()))
    keys = list(itertools.chain(*(drum.keys for drum in drums.DRUMS.values())))
    assert sorted(kits) == sorted(drums.FONTS)
    assert len(set(keys)) == len(keys)
    assert {*drums.KITS} == {*drums.EXPECTED} == {*letters.EXPECTED}


def test_letters_of_a_language_are_divided(tmp_path, monkeypatch):
    root, out = tmp_path / "files", tmp_path / "out"
    monkeypatch.setattr(letters, "LANGUAGES", ("nds", "tn"))
    sizes = {"nds": 20, "tn": 5}
    for language, count in sizes.items():
        for i in range(count):
            path = root / "klettres" / language / "alpha" / f"{i}.ogg"
            write(path, 100 + i, 0.5 + 0.1 * i, channels=1, silence=0.2)
    write(root / "other" / "klettres" / "x.ogg", 100, 0.1)
    digest = soundfonts._digest(root / "klettres")
    assert digest != hashlib.sha256().hexdigest()  # Of no files.
    font = letters.FONTS["klettres"]._replace(sha256=digest)
    monkeypatch.setitem(letters.FONTS, "klettres", font)
    expected = {"train": 14 + 4, "validation": 2 + 0, "test": 4 + 1}
    for split, count in expected.items():
        monkeypatch.setitem(letters.EXPECTED, split, (count, ""))
    builder = prepare.prepare("letters", str(root), str(out))
    seen = set()
    for split, count in expected.items():
        examples = list(tfds.as_numpy(builder.as_dataset(split)))
        assert len(examples) == count
        for each in examples:
            i = int(each["letter"])
            assert abs(len(each["audio"]) - (0.5 + 0.1 * i) * 16_000) < 160
            seen.add((int(each["language"]), i))
    assert seen == {
        (label, i)
        for label, count in enumerate(sizes.values())
        for i in range(count)
    }
    datasets = data.load_audio(
        "letters", label="language", batch_size=2, data_dir=str(out)
    )
    assert datasets.num_classes == 2
    shapes = {batch.shape[1:] for batch, _ in datasets.test.as_numpy_iterator()}
    assert all(shape[1:] == (16_000,) for shape in shapes) and len(shapes) > 1


def test_missing_and_other_kits_are_one_line(kits, tmp_path):
    (kits / "A" / "drumkit.xml").write_text("<drumkit_info/>")
    with pytest.raises(DataError, match="A is not that of .* drumkits: its"):
        prepare.prepare("drums", str(kits), str(tmp_path / "out"))
    (kits / "D.sf2").unlink()
    with pytest.raises(DataError, match="D.sf2. On .*: apt install drumkits$"):
        prepare.prepare("drums", str(kits), str(tmp_path / "out"))


def test_recordings_beyond_full_scale_are_not_clipped(tmp_path):
    wave = np.sign(np.sin(2 * np.pi * 100 * np.arange(4410) / 44_100))
    soundfile.write(tmp_path / "square.wav", wave, 44_100, "FLOAT")
    sound = recordings.read(tmp_path / "square.wav")
    assert np.abs(sound).max() == 32_767
    full = np.abs(sound) == 32_767
    assert not np.any(full[1:] & full[:-1])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["drums", "letters"])
def test_real_sounds_are_those_of_the_published_results(name, tmp_path, caplog):
    try:
        prepare.prepare(name, "/usr/share", str(tmp_path))
    except DataError as error:
        if "apt install" not in str(error):
            raise
        pytest.skip(str(error))
    assert "bit for bit" not in caplog.text
