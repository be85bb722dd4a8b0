"""Sounds as training data, and a run on them."""

import json
import shutil
import struct
import wave

import gin
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from interruptions import OneStep, end_after_a_step, keep_copies

from diffstride import DiffStride, config, data, train
from diffstride.audio_cnn import AudioCNN
from diffstride.data import sounds
from diffstride.data.audio import _levelled
from diffstride.datasets.tones import TIMBRES, rendered
from diffstride.errors import DataError

RATE = 1000
FeaturesDict = tfds.features.FeaturesDict


def arrays(dataset):
    waves, labels = zip(*dataset.as_numpy_iterator(), strict=True)
    return np.concatenate(waves), np.concatenate(labels)


def ramp(i):
    """A clip that tells where a piece of it is from; from 400 to 2,700."""
    size = (400, 1000, 2100, 2700)[i % 4]
    return 1 + np.arange(size) + 3000 * (i % 8)


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """`clips`: integers, labels in a group; `stereo`: floats at 500 Hz."""
    root = tmp_path_factory.mktemp("tfds")
    audio = tfds.features.Audio

    def clips(count):
        for i in range(count):
            group = {"family": i % 3, "pitch": i % 5}
            yield i, {"audio": ramp(i), "group": group, "label": i % 2}

    group = {
        "family": tfds.features.ClassLabel(num_classes=3),
        "pitch": tfds.features.ClassLabel(num_classes=5),
    }
    features = {"audio": audio(sample_rate=RATE), "group": FeaturesDict(group)}
    store("clips", features, clips, root)

    def stereo(count):
        for i in range(count):
            tone = np.sin(0.2 * np.arange(700)) * (i + 1) / count
            both = np.stack([tone, 0 * tone], axis=1)
            yield i, {"speech": both.astype("float32"), "label": i % 2}

    speech = audio(shape=(None, 2), dtype=np.float32, sample_rate=500)
    store("stereo", {"speech": speech}, stereo, root)
    return root


def store(name, features, examples, root):
    label = tfds.features.ClassLabel(num_classes=2)
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=FeaturesDict({**features, "label": label}),
        split_datasets={"train": examples(24), "test": examples(12)},
        data_dir=root,
        disable_shuffling=True,
    )


def load(tfds_dir, name="clips", **kwargs):
    kwargs = {"batch_size": 4, "sample_rate": RATE, "level": None, **kwargs}
    return data.load_audio(name, data_dir=tfds_dir, **kwargs)


def places(waves):
    """What of a ramp is in each window, silence left out."""
    return [np.rint(w[w != 0] * 2**15).astype(int) for w in waves]


class TestTfds:
    def test_windows_are_cut_at_random_and_short_clips_padded(self, tfds_dir):
        loaded = load(tfds_dir)
        assert loaded.image_shape == (1000,) and loaded.num_classes == 2
        starts = {}
        steps = loaded.steps_per_epoch
        for waves, _ in loaded.epochs(0, 30).batch(steps):
            waves = waves.numpy().reshape(-1, 1000)
            assert waves.shape == (24, 1000)
            for wave_, found in zip(waves, places(waves), strict=True):
                clip, start = divmod(found[0] - 1, 3000)
                whole = ramp(clip)
                # One piece, as long as there is room for.
                assert len(found) == min(len(whole), 1000)
                np.testing.assert_array_equal(np.diff(found), 1)
                before = np.flatnonzero(wave_)[0]
                starts.setdefault(clip % 4, []).append(start + before)
        room = {0: 600, 1: 0, 2: 1100, 3: 1700}
        for clip, most in room.items():
            drawn = np.array(starts[clip])
            assert drawn.max() <= most
            np.testing.assert_allclose(drawn.mean(), most / 2, atol=most / 6)
            np.testing.assert_allclose(
                drawn.std(), most / 12**0.5, atol=most / 12
            )

    def test_tests_are_on_all_windows_around_the_middle(self, tfds_dir):
        for average, most, counts in (
            (True, 60, [1, 1, 2, 2]),
            (True, 1, [1, 1, 1, 1]),
            (False, 60, None),
        ):
            loaded = load(tfds_dir, average_windows=average, max_windows=most)
            seen = []
            for waves, _ in loaded.test:
                waves = waves.numpy()
                if counts is None:
                    assert waves.shape[1:] == (1000,)
                    waves = waves[:, None]
                assert waves.shape[0] * waves.shape[1] <= 4
                for windows in waves:
                    (found,) = places([windows.ravel()])
                    clip, start = divmod(found[0] - 1, 3000)
                    size = len(ramp(clip))
                    n = (counts or [1] * 4)[clip % 4]
                    assert windows.shape == (n, 1000)
                    assert start == max(size - n * 1000, 0) // 2
                    assert len(found) == min(size, n * 1000)
                    seen.append(clip)
            assert sorted(seen) == sorted(i % 8 for i in range(12))

    def test_all_depends_on_seed_and_epoch_alone(self, tfds_dir):
        kwargs = dict(
            augment_fn=data.spec_augment, mixup_alpha=0.3, level="rms"
        )
        one = load(tfds_dir, seed=1, **kwargs)
        waves, labels = arrays(one.epoch(3))
        assert len(waves) == 12 and one.steps_per_epoch == 3
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5)
        tf.random.set_seed(99)
        again = load(tfds_dir, seed=1, **kwargs)
        np.testing.assert_array_equal(arrays(again.epochs(3, 4))[0], waves)
        for other in (one.epoch(4), load(tfds_dir, seed=2, **kwargs).epoch(3)):
            assert not np.array_equal(arrays(other)[0], waves)

    @pytest.mark.parametrize(
        "label, classes", [("label", 2), ("group/pitch", 5)]
    )
    def test_any_class_is_learned(self, label, classes, tfds_dir):
        loaded = load(tfds_dir, label=label, max_windows=1)
        waves, labels = arrays(loaded.test)
        assert labels.shape == (12, classes) == (12, loaded.num_classes)
        clips = [(found[0] - 1) // 3000 for found in places(waves[:, 0])]
        expected = [
            [i % classes for i in range(12) if i % 8 == c] for c in clips
        ]
        for found, possible in zip(labels.argmax(-1), expected, strict=True):
            assert found in possible

    def test_stereo_is_mixed_down_and_resampled(self, tfds_dir):
        waves, _ = arrays(load(tfds_dir, "stereo").test)
        time = np.arange(1400)[200:1200]  # Of 1.4 s the middle second.
        expected = 0.5 * np.sin(0.1 * time)
        np.testing.assert_allclose(waves[-1, 0], expected, atol=2e-3)
        pieces, _ = arrays(load(tfds_dir, "stereo").epoch(0))
        assert np.abs(pieces[:, 20:-20]).max() < 0.52  # Its ends ring.

    @pytest.mark.parametrize(
        "kwargs, message",
        [
            ({"name": "clipz"}, "`name` must be a data set of TFDS"),
            ({"name": "mnist"}, "must be an audio-classification data set"),
            ({"label": "pitch"}, "one of the classes .*group/pitch, label"),
            ({"level": "loud"}, "`level` must be 'rms', 'peak' or None"),
            ({"seconds": 0}, "`seconds` must be a sample at least"),
            ({"batch_size": 25}, "25 sounds make a training batch"),
            ({"train_split": "trian"}, "`train_split` must be a split"),
            ({"max_windows": 0}, "`max_windows` must be >= 1"),
        ],
    )
    def test_errors(self, kwargs, message, tfds_dir):
        with pytest.raises(DataError, match=message):
            load(tfds_dir, **kwargs)

    def test_a_damaged_file_is_named(self, tfds_dir, tmp_path):
        root = shutil.copytree(tfds_dir, tmp_path / "tfds")
        (path,) = (root / "clips" / "1.0.0").glob("clips-test*")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(DataError, match=f"in {path}. If it is damaged"):
            loaded = load(root)
            with loaded.reading():
                list(loaded.test)


@pytest.mark.parametrize("level, size", [("rms", 0.1), ("peak", 1.0)])
def test_levels(level, size):
    x = np.random.default_rng(0).normal(size=(3, 500)).astype("float32")
    x *= [[30], [1e-3], [0]]
    y = _levelled(tf.constant(x), level).numpy()
    found = {
        "rms": np.sqrt((y**2).mean(-1)),
        "peak": np.abs(y).max(-1),
    }[level]
    np.testing.assert_allclose(found, [size, size, 0], rtol=1e-5)
    faint = _levelled(tf.constant(x[:1] * 1e-9), level).numpy()
    np.testing.assert_allclose(faint, 1e-6 * x[:1], rtol=1e-5)


def test_spec_augment_silences_a_stretch_and_a_band():
    x = np.random.default_rng(0).normal(size=4000).astype("float32")
    silent, quiet = [], []
    for i in range(60):
        seed = tf.constant([5, i])
        y = data.spec_augment(x, seed, 1, 0.3, 0.0, 8000).numpy()
        kept = y != 0
        np.testing.assert_allclose(y[kept], x[kept], atol=1e-4)
        assert (np.diff(np.flatnonzero(~kept)) == 1).all()
        silent.append((~kept).mean())
        y = data.spec_augment(x, seed, 1, 0.0, 0.3, 8000).numpy()
        gain = np.abs(np.fft.rfft(y)) / np.abs(np.fft.rfft(x))
        band = np.flatnonzero(gain < 0.5)
        assert (np.diff(band) == 1).all()
        mel = np.log1p(band / 2000 * 4000 / 700) / np.log1p(4000 / 700)
        quiet.append(np.ptp(mel) if len(mel) else 0)
    for shares in (silent, quiet):
        assert 0.27 < max(shares) <= 0.3 and 0.1 < np.mean(shares) < 0.2
    with pytest.raises(DataError, match="`mel_share` must be from 0 to 1"):
        data.spec_augment(x, [0, 0], mel_share=1.5)


TONE = 0.5 * np.sin(2 * np.pi * 50 * np.arange(1500) / RATE)


def write_wav(path, frames, width=2, channels=1, rate=RATE):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(frames)


def bytes_of(x, width):
    if width == 1:
        return (np.rint(x * 127) + 128).astype("uint8").tobytes()
    scaled = np.rint(x * (2 ** (8 * width - 1) - 1)).astype("<i4")
    raw = scaled.view("uint8").reshape(-1, 4)[:, :width]
    return raw.tobytes()


def written(path, kind):
    """Writes the tone as a file of one kind."""
    import soundfile

    soft = {"8 bit": 1, "16 bit": 2, "24 bit": 3, "32 bit": 4}
    if kind in soft:
        return write_wav(path, bytes_of(TONE, soft[kind]), soft[kind])
    if kind == "stereo":
        both = np.stack([TONE, TONE / 2], 1).ravel() / 0.75
        return write_wav(path, bytes_of(both, 2), 2, 2)
    if kind == "8 kHz":
        tone = 0.5 * np.sin(2 * np.pi * 50 * np.arange(12000) / 8000)
        return write_wav(path, bytes_of(tone, 2), rate=8000)
    subtypes = {"float": "FLOAT", "double": "DOUBLE", "A-law": "ALAW"}
    formats = {"FLAC": "FLAC", "OGG": "OGG", "AIFF": "AIFF", "MP3": "MP3"}
    if kind in subtypes:
        return soundfile.write(path, TONE, RATE, subtypes[kind], format="WAV")
    rate = 16000 if kind == "MP3" else RATE
    tone = np.sin(2 * np.pi * 50 * np.arange(1.5 * rate) / rate) / 2
    return soundfile.write(path, tone, rate, format=formats[kind])


READ = {
    **{"8 bit": 0.01, "16 bit": 1e-4, "24 bit": 1e-5, "32 bit": 1e-5},
    **{"stereo": 1e-4, "8 kHz": 3e-3, "float": 1e-6, "double": 1e-6},
    **{"A-law": 0.02, "FLAC": 1e-4, "OGG": 0.1, "AIFF": 1e-4},
}


@pytest.mark.parametrize("kind", [*READ, "MP3"])
def test_files_of_all_kinds_are_read(kind, tmp_path):
    pytest.importorskip("soundfile")
    path = tmp_path / "tone.wav"  # Whatever it is.
    written(path, kind)
    found = sounds.read_sound(str(path), RATE)
    if kind == "MP3":  # Its encoder delays by what it pleases.
        assert abs(np.sqrt((found**2).mean()) - 0.35) < 0.03
        return
    assert abs(len(found) - 1500) <= 1
    inner = slice(50, 1450)
    np.testing.assert_allclose(found[inner], TONE[inner], atol=READ[kind])
    piece = sounds.read_sound(str(path), RATE, 0.5, 500)
    np.testing.assert_allclose(
        piece[50:450], TONE[500:1000][50:450], atol=2 * READ[kind]
    )


BROKEN = {
    "empty": ("cannot be read", lambda path: path.write_bytes(b"")),
    "text": ("cannot be read", lambda path: path.write_text("no sound" * 99)),
    "no frames": ("holds no sound", lambda path: write_wav(path, b"")),
    "cut": ("is cut short: 1000 bytes of sound missing", "cut"),
    "cut header": ("cannot be read", "header"),
    "not a number": ("samples that are not finite", "nan"),
    "FLAC, cut": ("is damaged|cannot be read", "flac"),
    "a folder": ("cannot be read", lambda path: path.mkdir()),
}


def break_(path, how):
    import soundfile

    if callable(how):
        return how(path)
    if how == "nan":
        return soundfile.write(
            path, np.full(99, np.nan), RATE, "FLOAT", format="WAV"
        )
    if how == "flac":
        noise = np.random.default_rng(0).uniform(-1, 1, 30000)
        soundfile.write(path, noise, RATE, format="FLAC")
        return path.write_bytes(path.read_bytes()[:20000])
    write_wav(path, bytes_of(TONE, 2))
    end = {"cut": -1000, "header": 30}[how]
    return path.write_bytes(path.read_bytes()[:end])


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_files_are_named_in_one_line(kind, tmp_path):
    pytest.importorskip("soundfile")
    path = tmp_path / "bad.wav"
    message, how = BROKEN[kind]
    break_(path, how)
    with pytest.raises(DataError) as caught:
        sounds.read_sound(str(path), RATE)
    text = str(caught.value)
    assert text.startswith(str(path)) and "\n" not in text
    assert text.endswith("Replace the file, or remove it")
    with pytest.raises(DataError, match=message):
        raise caught.value


def test_sizes_that_a_writer_left_open_are_no_damage(tmp_path):
    pytest.importorskip("soundfile")
    path = tmp_path / "streamed.wav"
    write_wav(path, bytes_of(TONE, 2))
    content = bytearray(path.read_bytes())
    content[40:44] = struct.pack("<I", 0xFFFFFFFF)
    path.write_bytes(content)
    assert len(sounds.read_sound(str(path), RATE)) == 1500


@pytest.fixture
def folder(tmp_path):
    """Three classes of ten files, each a tone of its own."""
    pytest.importorskip("soundfile")
    root = tmp_path / "sounds"
    for label in range(3):
        (root / f"class_{label}" / "inner").mkdir(parents=True)
        for i in range(10):
            inner = "inner/" * (i % 2)
            size = (700, 1000, 2300)[i % 3]
            x = np.sin((0.3 + label) * np.arange(size)) / 2
            name = f"{inner}{i}.{'WAV' if i % 3 else 'wav'}"
            write_wav(root / f"class_{label}" / name, bytes_of(x, 2))
    (root / "class_0" / "notes.txt").write_text("no sound")
    (root / "class_0" / ".hidden.wav").write_text("no sound")
    return root


def load_folder(root, **kwargs):
    kwargs = {"batch_size": 4, "sample_rate": RATE, "level": None, **kwargs}
    return data.load_audio(folder=str(root), **kwargs)


class TestFolder:
    def test_a_fifth_of_each_class_is_tested_on(self, folder, caplog):
        loaded = load_folder(folder)
        assert loaded.num_classes == 3 and loaded.steps_per_epoch == 6
        waves, labels = arrays(loaded.epoch(0))
        assert waves.shape == (24, 1000)
        np.testing.assert_array_equal(labels.sum(0), [8, 8, 8])
        for wave_, label in zip(waves, labels.argmax(-1), strict=True):
            spectrum = np.abs(np.fft.rfft(wave_))
            omega = 2 * np.pi * spectrum.argmax() / 1000
            np.testing.assert_allclose(omega, 0.3 + label, atol=0.01)
        tested = [(w, y) for w, y in loaded.test]
        assert sum(len(y) for _, y in tested) == 6
        assert {w.shape[1] for w, _ in tested} <= {1, 2}
        # Which files these are depends on their names alone.
        for x, y in zip(
            arrays(load_folder(folder, seed=5).epochs(2, 3)),
            arrays(load_folder(folder, seed=5).epochs(2, 3)),
            strict=True,
        ):
            np.testing.assert_array_equal(x, y)

    def test_splits_have_folders_or_are_parts(self, folder):
        parts = dict(train_split="train[:75%]", validation_split="train[75%:]")
        loaded = load_folder(folder, **parts)
        assert loaded.steps_per_epoch == 4
        assert sum(len(y) for _, y in loaded.validation) == 6
        other = folder.with_name("named")
        other.mkdir()
        folder.rename(other / "train")
        with pytest.raises(DataError, match="none that is called 'test'"):
            load_folder(other)
        (other / "test" / "class_1").mkdir(parents=True)
        write_wav(other / "test" / "class_1" / "a.wav", bytes_of(TONE, 2))
        loaded = load_folder(other)
        assert loaded.steps_per_epoch == 7
        ((_, labels),) = loaded.test
        np.testing.assert_array_equal(labels, [[0, 1, 0]])
        (other / "test" / "class_9").mkdir()
        write_wav(other / "test" / "class_9" / "a.wav", bytes_of(TONE, 2))
        with pytest.raises(DataError, match="must have the classes of 'train'"):
            load_folder(other)

    def test_a_broken_file_ends_the_run_with_its_name(self, folder, tmp_path):
        for path in folder.rglob("5.*"):
            path.write_bytes(path.read_bytes()[:900])
        loaded = load_folder(folder)
        with pytest.raises(DataError, match=r"5\.WAV is cut short: \d+ bytes"):
            with loaded.reading():
                list(loaded.epoch(0))
                list(loaded.test)

    @pytest.mark.parametrize(
        "change, message",
        [
            (lambda root: root.rename(root.parent / "x"), "must be a folder"),
            (lambda root: (root / "none").mkdir(), "none has no .wav"),
            (lambda root: None, "`train_split` must be a split of"),
        ],
    )
    def test_errors(self, change, message, folder):
        change(folder)
        with pytest.raises(DataError, match=message):
            load_folder(folder, train_split="trian")

    def test_memory_does_not_grow_with_the_set(self, folder):
        (held,) = {
            str(spec.dtype)
            for spec in sounds.FolderSounds(str(folder), RATE)
            .examples("train_split", "train")
            .element_spec[:1]
        }
        assert held == "<dtype: 'string'>"  # Paths, and no sounds.


def test_tones_are_of_their_pitch():
    for timbre in TIMBRES:
        x = rendered(timbre, 69, np.random.RandomState(0))
        assert x.dtype == np.float32 and np.abs(x).max() <= 1
        spectrum = np.abs(np.fft.rfft(x * np.hanning(len(x))))
        peak = spectrum[: len(x) // 20].argmax() * 16000 / len(x)
        if timbre != "bell":
            assert abs(peak / 440 - 1) < 0.03, timbre


def test_a_run_is_resumed_bit_for_bit(tfds_dir, tmp_path, monkeypatch):
    # It could not be taken back.
    monkeypatch.setattr(
        tf.config.experimental, "enable_op_determinism", lambda: None
    )

    def run(workdir, epochs):
        return train.train(
            lambda seed: load(
                tfds_dir,
                seed=seed,
                level="rms",
                augment_fn=data.spec_augment,
                mixup_alpha=0.3,
            ),
            lambda num_output_classes: AudioCNN(
                [2],
                [(1, 2)],
                num_output_classes,
                sample_rate=RATE,
                mel_channels=8,
                pooling_cls=DiffStride,
            ),
            num_epochs=epochs,
            workdir=workdir,
            harden_to="strided",
        )

    with monkeypatch.context() as patched:
        keep_copies(patched, {1: tmp_path / "parts"})
        whole = run(tmp_path / "whole", 2)
    parts = run(tmp_path / "parts", 2)
    assert whole["axes"] == ["time", "frequency"]
    assert whole["steps"] == whole["hardened"]["learned"]["steps"]
    for key in ("test_accuracy", "test_loss", "pooling", "hardened"):
        assert whole[key] == parts[key]
    rows = [
        json.loads(line)
        for line in (tmp_path / "parts" / "metrics.jsonl").open()
    ]
    for axis in ("time", "frequency"):
        assert f"stride/block_1/pooling/{axis}" in rows[-1]


@pytest.mark.parametrize(
    "name, steps",
    [
        pytest.param("audio_folder.gin", None, marks=pytest.mark.slow),
        pytest.param("notes_multitask.gin", None, marks=pytest.mark.slow),
        ("audio_folder.gin", 3),
        ("notes_multitask.gin", 3),
    ],
)
def test_configs_train(name, steps, folder, tmp_path, monkeypatch):
    """A whole epoch, or to be quicker a step."""
    gin.clear_config()
    bindings = [
        f"data.load_audio.folder = '{folder}'",
        f"data.load_audio.sample_rate = {RATE}",
        "data.load_audio.validation_split = None",
        "data.load_audio.batch_size = 8",
        "train.num_epochs = 1",
        "train.deterministic = False",
        f"train.workdir = '{tmp_path / 'run'}'",
        f"audio_cnn.AudioCNN.sample_rate = {RATE}",
        "audio_cnn.AudioCNN.mel_channels = 8",
        "audio_cnn.AudioCNN.filters = [2, 2]",
        "audio_cnn.AudioCNN.strides = [2, (1, 2)]",
    ]
    config.load([name], bindings)
    if steps:
        seen = end_after_a_step(monkeypatch)
        with pytest.raises(OneStep):
            config.run_training(config_fn=config.operative)
        gin.clear_config()
        ((found, layers),) = seen
        assert found == steps
        assert [len(each.strides) for each in layers] == [2, 2]
        return
    summary = config.run_training(config_fn=config.operative)
    gin.clear_config()
    assert np.isfinite(summary["test_loss"])
    assert [len(each["strides"]) for each in summary["pooling"]] == [2, 2]
