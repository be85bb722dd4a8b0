import hashlib
import itertools
import pathlib
import struct
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

from diffstride.datasets import (
    find_builder,
    notes,
    patches,
    prepare,
    soundfonts,
)
from diffstride.errors import DataError

HERE = soundfonts.RENDER_RATE


def frequency(sound, rate):
    """Frequency of the strongest part, in Hz."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return np.argmax(spectrum) * rate / len(sound)


class Sine:
    """Plays sines, but not program 3, and program 4 too loud."""

    def play(self, program, pitch, velocity, held, released):
        if program == 3:
            return None
        time = np.arange(held + released) / HERE
        sound = np.sin(2 * np.pi * 440 * 2 ** ((pitch - 69) / 12) * time)
        return sound * velocity / 127 * (3 if program == 4 else 0.9)


@pytest.fixture
def fake(monkeypatch):
    """Renders sines; `fake` lists the fonts that were loaded."""
    loaded = []

    def load(path):
        loaded.append(str(path))
        return Sine()

    sizes = {"train": 20, "validation": 10, "test": 10}
    monkeypatch.setattr(
        soundfonts,
        "find",
        lambda folder, names: {name: pathlib.Path(name) for name in names},
    )
    monkeypatch.setattr(soundfonts, "load", load)
    monkeypatch.setitem(notes.SIZES, "small", sizes)
    for split, size in sizes.items():
        sounds = [
            soundfonts.render(Sine(), note.program, note.pitch, note.velocity)
            for note in notes.notes(split, size)
        ]
        kept = [sound.tobytes() for sound in sounds if sound is not None]
        digest = hashlib.sha256(b"".join(kept)).hexdigest()[:16]
        expected = (len(kept), digest)
        monkeypatch.setitem(notes.EXPECTED, ("small", split), expected)
    return loaded


def test_the_data_set_has_what_was_rendered(fake, tmp_path, caplog):
    for _ in range(2):  # The second time there is nothing to do.
        prepare.prepare("notes/small", str(tmp_path), str(tmp_path / "out"))
    assert "bit for bit" not in caplog.text
    assert sorted(fake) == sorted(itertools.chain(*notes.FONTS.values()))
    loaded = tfds.load("notes/small", data_dir=tmp_path / "out", split="train")
    examples = list(tfds.as_numpy(loaded))
    assert len(examples) == notes.EXPECTED["small", "train"][0]
    for example in examples:
        assert example["audio"].dtype == "int16"
        program, pitch = int(example["program"]), int(example["pitch"])
        velocity = int(example["velocity"])
        expected = soundfonts.render(Sine(), program, pitch, velocity)
        np.testing.assert_array_equal(example["audio"], expected)
        family = list(notes.FAMILIES)[example["family"]]
        assert program in notes.FAMILIES[family]
        assert example["font"].decode() in notes.FONTS["train"]


def test_other_sound_is_warned_of_and_another_number_of_notes_refused(
    fake, tmp_path, monkeypatch, caplog
):
    count, _ = notes.EXPECTED["small", "train"]
    monkeypatch.setitem(notes.EXPECTED, ("small", "train"), (count, "other"))
    monkeypatch.setitem(notes.EXPECTED, ("small", "test"), (3, ""))
    with pytest.raises(DataError, match="must have 3 examples in 'test', but"):
        prepare.prepare("notes/small", str(tmp_path), str(tmp_path / "out"))
    assert "'notes/small', split 'train', is not bit for bit" in caplog.text
    assert "'validation'" not in caplog.text
    assert not list(tmp_path.glob("out/notes/small/1*"))


def test_notes_are_drawn_once_and_never_of_a_font_of_another_split():
    fonts = list(itertools.chain(*notes.FONTS.values()))
    assert len(fonts) == len(set(fonts)) == len(soundfonts.FONTS)
    for split, size in notes.SIZES["full"].items():
        drawn = notes.notes(split, size)
        assert drawn == notes.notes(split, size)
        assert len({note[:4] for note in drawn}) == len(drawn) > size - 99
        assert {note.font for note in drawn} == set(notes.FONTS[split])
        assert not notes.SHARED & {(n.font, n.program) for n in drawn}
        assert {note.pitch for note in drawn} == set(range(36, 85))


def test_silent_and_clipped_notes_are_dropped():
    def kept(gain):
        class Scaled(Sine):
            def play(self, *note):
                return super().play(*note) * gain

        return soundfonts.render(Scaled(), 0, 60, 127) is not None

    assert [kept(gain) for gain in (1e-3, 1e-2, 1.0, 1.2)] == [
        False, True, True, False,
    ]  # fmt: skip
    assert soundfonts.render(Sine(), 3, 60, 127) is None


def test_what_16_khz_cannot_hold_does_not_alias():
    class High(Sine):
        def play(self, *note):
            time = np.arange(HERE) / HERE
            low, high = (np.sin(2 * np.pi * f * time) for f in (1e3, 11e3))
            return 0.4 * low + 0.4 * high

    sound = soundfonts.render(High(), 0, 60, 127)
    assert sound.shape == (16_000,) and sound.dtype == "int16"
    spectrum = np.abs(np.fft.rfft(sound[2000:14_000] * np.hanning(12_000)))
    alias = spectrum[5000 * 12_000 // 16_000]
    assert alias < 1e-3 * spectrum.max()


def patch(data, modes, root=440_000, loop=(0, 0), levels=b"\xff" * 6):
    """A GF1 patch with one sample at 44,100 Hz."""
    content = data.tobytes()
    header = bytearray(239)
    header[:12] = b"GF1PATCH110\0"
    header[198] = 1
    width = data.itemsize
    sample = struct.pack(
        "<7sBIIIHIIIHB6s6s6sBHH36x",
        b"a", 0, len(content), loop[0] * width, loop[1] * width, 44_100,
        0, 20_000_000, root, 0, 7, b"\x3f" * 6, levels, bytes(6), modes, 60,
        1024,
    )  # fmt: skip
    return bytes(header) + sample + content


@pytest.mark.parametrize("kind", ["<i2", "<u2", "i1", "u1"])
def test_patches_play_the_pitch_that_is_asked_for(kind, tmp_path):
    period = 441  # Samples at 100 Hz, looped.
    wave = np.sin(2 * np.pi * np.arange(10 * period) / period)
    full = np.iinfo(kind).max * (0.5 if "u" in kind else 1.0)
    data = (wave * full * 0.99 + ("u" in kind) * full).astype(kind)
    modes = (np.dtype(kind).itemsize - 1) | ("u" in kind) * 2 | 4
    loop = (5 * period, 10 * period)
    content = patch(data, modes, root=100_000, loop=loop)
    (tmp_path / "007_Clavinet.pat").write_bytes(content)
    instruments = patches.PatchSet(tmp_path, HERE)
    sound = instruments.play(7, 57, 127, 36_000, 12_000)
    assert frequency(sound, HERE) == pytest.approx(220, abs=1)
    assert np.abs(sound[12_000:24_000]).max() == pytest.approx(0.99, abs=0.02)
    # No click at the loop's end.
    assert np.abs(np.diff(sound)).max() < 1.1 * 2 * np.pi * 220 / HERE
    assert instruments.play(8, 57, 127, 36_000, 12_000) is None


def test_envelopes_of_patches_decay_after_release(tmp_path):
    # Sustain and envelope; released to 63 of 255: 12 octaves down.
    data = np.full(44_100 * 2, 20_000, "<i2")
    levels = bytes([255, 255, 255, 63, 63, 63])
    content = patch(data, 1 | 32 | 64, root=440_000, levels=levels)
    (tmp_path / "000_Piano.pat").write_bytes(content)
    sound = patches.PatchSet(tmp_path, HERE).play(0, 69, 127, 36_000, 12_000)
    level = 20_000 / 32_768
    assert sound[35_999] == pytest.approx(level, rel=1e-3)
    assert 0 < sound[-1] == pytest.approx(level * 2**-12, rel=1e-3)


@pytest.mark.parametrize("name", soundfonts.FONTS)
def test_missing_and_wrong_fonts_name_the_package(name, tmp_path):
    font = soundfonts.FONTS[name]
    with pytest.raises(
        DataError, match=f"{font.file}.* apt install {font.package}$"
    ):
        soundfonts.find(tmp_path, {name: font})
    (tmp_path / "below").mkdir()
    path = tmp_path / "below" / font.file
    if path.suffix:
        path.write_bytes(b"RIFF")
    else:
        path.mkdir()
    with pytest.raises(DataError, match=f"{path} is not that of .* SHA-256"):
        soundfonts.find(tmp_path, {name: font})
    font = font._replace(sha256=soundfonts._digest(path))
    assert soundfonts.find(tmp_path, {name: font}) == {name: path}


def test_renderer_that_is_not_installed_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tinysoundfont", None)
    with pytest.raises(DataError, match="pip install --no-deps tinysoundfont"):
        soundfonts.load(tmp_path / "font.sf2")


@pytest.mark.slow
def test_real_notes_are_alike_twice_and_have_their_pitch():
    pytest.importorskip("tinysoundfont")
    try:
        names = ("csound", "freepats")
        fonts = {name: soundfonts.FONTS[name] for name in names}
        paths = soundfonts.find(notes.Notes.files, fonts)
    except DataError as error:
        pytest.skip(str(error))
    for path in paths.values():
        first, second = (soundfonts.load(path) for _ in range(2))
        for program, pitch in ((0, 60), (73, 72), (56, 65)):
            sound = soundfonts.render(first, program, pitch, 100)
            again = soundfonts.render(second, program, pitch, 100)
            np.testing.assert_array_equal(sound, again)
            key = 440 * 2 ** ((pitch - 69) / 12)
            harmonic = frequency(sound, 16_000) / key
            assert round(harmonic) >= 1
            assert harmonic == pytest.approx(round(harmonic), rel=0.01)


@pytest.mark.parametrize("label", ["pitch", "family"])
def test_spectrograms_show_the_pitch(label, fake, tmp_path, monkeypatch):
    builder = find_builder(f"notes_images/{label}", str(tmp_path))
    with pytest.raises(DataError, match="'notes', which must be built first"):
        builder.download_and_prepare()
    for split in notes.SIZES["full"]:
        monkeypatch.setitem(
            notes.EXPECTED, ("full", split), notes.EXPECTED["small", split]
        )
    monkeypatch.setitem(notes.SIZES, "full", notes.SIZES["small"])
    prepare.prepare("notes", str(tmp_path), str(tmp_path))
    builder.download_and_prepare()
    sounds = tfds.as_numpy(tfds.load("notes", data_dir=tmp_path, split="train"))
    images = list(tfds.as_numpy(builder.as_dataset("train")))
    labels = [each["label"] + 36 * (label == "pitch") for each in images]
    assert sorted(labels) == sorted(each[label] for each in sounds)
    for image, pitch in zip(images, labels, strict=True):
        assert image["image"].shape == (48, 64, 1)
        assert image["image"].dtype == "uint8" and image["image"].max() == 255
        if label == "pitch":
            loudest = image["image"][10, :, 0].argmax()
            hertz = 440 * 2 ** ((pitch - 69) / 12)
            low, high, here = 2595 * np.log10(
                1 + np.array([50, 7600, hertz]) / 700
            )
            # Centres of 64 triangles, evenly on the mel scale.
            expected = (here - low) / (high - low) * 65 - 1
            assert abs(loudest - expected) < 1
