"""Audio-classification data: windows of sound, one a training example."""

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Iterator
from functools import partial

import tensorflow as tf

from diffstride.data.pipeline import (
    AugmentFn,
    Datasets,
    Splits,
    batched,
    check_at_least,
)
from diffstride.data.sounds import FolderSounds, TfdsSounds
from diffstride.errors import DataError

# What a window is brought to, and the most that silence is raised by.
_LEVELS = {"rms": 0.1, "peak": 1.0, None: None}
_LARGEST_GAIN = 1000.0


def load_audio(
    name: str = "speech_commands",
    batch_size: int = 64,
    augment_fn: AugmentFn | None = None,
    mixup_alpha: float = 0.0,
    data_dir: str | None = None,
    folder: str | None = None,
    label: str = "label",
    sample_rate: int = 16000,
    seconds: float = 1.0,
    level: str | None = "rms",
    train_split: str = "train",
    test_split: str | None = None,
    validation_split: str | None = None,
    shuffle_buffer: int | None = None,
    average_windows: bool = True,
    max_windows: int = 60,
    seed: int = 0,
) -> Datasets:
    """Loads sounds of a class, from TFDS or from a folder of sound files.

    A training example is a window of `seconds`, taken from its clip at random;
    a shorter clip stands in it at random, with silence around. A test example
    is all the windows that a clip has room for, side by side around its middle:
    (windows, samples). The models of this package average what they put out for
    each of them. All that is random is drawn statelessly, as of images.

    Args:
        name: a TFDS name such as `"speech_commands"`; of no effect with
            `folder`.
        batch_size: number of examples in a batch, and at most of windows in a
            batch of a test, if no single clip has more. Incomplete training
            batches are dropped, incomplete test batches are not.
        augment_fn: `augment_fn(wave, seed)` gives the window to train on;
            `wave` is (samples,), its level normalised, `seed` a pair of
            integers for stateless random operations. `spec_augment` is one.
        mixup_alpha: parameter of the Beta distribution that the weights of
            Mixup are drawn from; 0 is no Mixup. It merges disjoint pairs, so
            that an epoch has half as many steps.
        data_dir: where TFDS keeps its data; `None` is TFDS's own choice.
        folder: a folder of WAV, FLAC or OGG files, with a sub-folder for each
            class, or with `train`, `test` (and `validation`) folders of these.
            Without such folders a fifth of each class is the split `"test"`.
            Needs `pip install 'diffstride[audio]'`.
        label: which class of a TFDS data set to learn, such as `"pitch"`, or
            `"instrument/family"` where it stands in a group.
        sample_rate: samples per second that sounds are brought to.
        seconds: length of a window.
        level: `"rms"` scales each window to a root mean square of 0.1,
            `"peak"` to a largest sample of 1, both by a factor of 1000 at most;
            `None` leaves it, full scale being 1.
        train_split: split to train on, such as `"train[:90%]"`.
        test_split: split to test on; by default `"test"`, or else
            `"validation"`.
        validation_split: split to validate on after each epoch; by default
            epochs are validated on the test split.
        shuffle_buffer: number of examples that are held and shuffled together,
            one such window after the other; by default all files of a folder,
            and 1,024 sounds of TFDS.
        average_windows: `False` tests on the one window in the middle of each
            clip, (samples,), for models that know nothing of several.
        max_windows: how many windows of a clip to test on, those in its middle.
        seed: seed of order, crops, augmentation and Mixup.

    Returns:
        A `Datasets`.

    Raises:
        DataError: if the data cannot be had, or does not fit the arguments.
            While batches are made, `Datasets.reading` has it name a file that
            is damaged.
    """
    check_at_least(0, mixup_alpha=mixup_alpha)
    check_at_least(
        1,
        batch_size=batch_size,
        shuffle_buffer=shuffle_buffer,
        sample_rate=sample_rate,
        max_windows=max_windows,
    )
    if level not in _LEVELS:
        raise DataError(
            f"`level` must be 'rms', 'peak' or None. Received: level={level!r}"
        )
    samples = round(seconds * sample_rate)
    if samples < 1:
        raise DataError(
            f"`seconds` must be a sample at least. Received: seconds={seconds}"
        )
    source: TfdsSounds | FolderSounds
    if folder is not None:
        source = FolderSounds(folder, sample_rate)
    else:
        source = TfdsSounds(name, data_dir, label, sample_rate)
    splits = Splits(source, train_split, test_split, validation_split)

    def example(sound: tf.Tensor, label: tf.Tensor, seed: tf.Tensor) -> tuple:
        place_seed, augment_seed = tf.unstack(
            tf.random.experimental.stateless_split(seed, 2)
        )
        places = tf.random.stateless_uniform([2], place_seed, dtype=tf.float64)
        wave = source.wave(sound, places[0], samples)
        wave = _levelled(_padded(wave, samples, places[1]), level)
        if augment_fn is not None:
            wave = augment_fn(wave, augment_seed)
        return tf.ensure_shape(wave, [samples]), source.one_hot(label)

    def windows(sound: tf.Tensor, label: tf.Tensor) -> tuple:
        most = max_windows if average_windows else 1
        wave = _middle(source.wave(sound), samples, most)
        return _levelled(wave, level), source.one_hot(label)

    def once_through(examples: tf.data.Dataset) -> tf.data.Dataset:
        clips = examples.map(windows, tf.data.AUTOTUNE)
        if not average_windows:
            clips = clips.map(lambda wave, label: (wave[0], label))
            batches = clips.batch(batch_size)
        else:
            batches = _by_length(clips, batch_size)
        return batches.prefetch(tf.data.AUTOTUNE)

    datasets = batched(
        splits,
        example,
        once_through,
        source.num_classes,
        batch_size,
        mixup_alpha,
        shuffle_buffer or source.shuffle_buffer,
        seed,
        "sounds",
    )
    return dataclasses.replace(
        datasets, reading=partial(_reading, datasets.reading)
    )


def spec_augment(
    wave: tf.Tensor,
    seed: tf.Tensor,
    num_masks: int = 2,
    time_share: float = 0.2,
    mel_share: float = 0.2,
    sample_rate: int = 16000,
) -> tf.Tensor:
    """Silences stretches of time and bands of frequency, as SpecAugment does.

    It acts on the sound, so that the spectrogram can stay inside of the model:
    a stretch or band that is masked is silent there, to within the width of an
    analysis window.

    Args:
        wave: (samples,).
        seed: pair of integers that decides the outcome.
        num_masks: number of stretches, and number of bands.
        time_share: the longest stretch, as a share of the window. Lengths and
            places are drawn uniformly.
        mel_share: the widest band, as a share of the mel scale up to half the
            sample rate.
        sample_rate: samples per second.

    Returns:
        A sound of the same shape.

    Reference:
        [SpecAugment](https://arxiv.org/abs/1904.08779), Park et al., 2019.
    """
    for name, share in (("time_share", time_share), ("mel_share", mel_share)):
        if not 0 <= share <= 1:
            raise DataError(
                f"`{name}` must be from 0 to 1. Received: {name}={share}"
            )
    check_at_least(0, num_masks=num_masks)
    samples = wave.shape[0]
    times = tf.linspace(0.0, 1.0, samples)
    # mel(f) goes with log(1 + f / 700).
    mels = tf.math.log1p(
        tf.linspace(0.0, sample_rate / 2 / 700, samples // 2 + 1)
    )
    draws = tf.random.stateless_uniform([2, 2, num_masks, 1], seed)
    spectrum = tf.signal.rfft(wave)
    kept = _unmasked(mels / mels[-1], draws[0], mel_share)
    spectrum *= tf.cast(kept, spectrum.dtype)
    wave = tf.signal.irfft(spectrum, [samples])
    return wave * _unmasked(times, draws[1], time_share)


def _unmasked(axis: tf.Tensor, draws: tf.Tensor, share: float) -> tf.Tensor:
    """Where on an axis from 0 to 1 there is no mask, as ones and zeros."""
    width = share * draws[0]
    start = (1.0 - width) * draws[1]
    masked = (axis >= start) & (axis < start + width)
    return tf.cast(~tf.reduce_any(masked, axis=0), tf.float32)


def _padded(wave: tf.Tensor, samples: int, place: tf.Tensor) -> tf.Tensor:
    """Brings a sound to a length, with silence before and after it."""
    wave = wave[:samples]
    missing = samples - tf.shape(wave)[0]
    before = tf.cast(place * tf.cast(missing + 1, place.dtype), tf.int32)
    wave = tf.pad(wave, [[before, missing - before]])
    return tf.ensure_shape(wave, [samples])


def _middle(wave: tf.Tensor, samples: int, most: int) -> tf.Tensor:
    """The windows that a clip has room for, around its middle."""
    size = tf.shape(wave)[0]
    count = tf.clip_by_value(size // samples, 1, most)
    start = tf.maximum(size - count * samples, 0) // 2
    wave = wave[start : start + count * samples]
    missing = count * samples - tf.shape(wave)[0]
    wave = tf.pad(wave, [[missing // 2, missing - missing // 2]])
    return tf.reshape(wave, [-1, samples])


def _levelled(wave: tf.Tensor, level: str | None) -> tf.Tensor:
    """Scales windows, which are on the last axis."""
    if level is None:
        return wave
    wanted = _LEVELS[level]
    if level == "rms":
        power = tf.reduce_mean(tf.square(wave), -1, keepdims=True)
        found = tf.sqrt(power)
    else:
        found = tf.reduce_max(tf.abs(wave), -1, keepdims=True)
    return wave * (wanted / tf.maximum(found, wanted / _LARGEST_GAIN))


@contextlib.contextmanager
def _reading(reading: Callable) -> Iterator[None]:
    with warnings.catch_warnings(), reading():
        # Nobody knows how many batches clips of unknown lengths make, and Keras
        # warns when it has found out.
        warnings.filterwarnings("ignore", "Your input ran out of data")
        yield


def _by_length(clips: tf.data.Dataset, batch_size: int) -> tf.data.Dataset:
    """Batches of clips that have the same number of windows."""

    def clips_in(count: tf.Tensor) -> tf.Tensor:
        return tf.maximum(batch_size // count, 1)

    return clips.group_by_window(
        key_func=lambda wave, label: tf.shape(wave, tf.int64)[0],
        reduce_func=lambda count, group: group.batch(clips_in(count)),
        window_size_func=clips_in,
    )
