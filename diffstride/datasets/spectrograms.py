"""Spectrograms of the data set `notes` as images, as a TFDS builder.

With them everything here that is for images can be tried on maps whose two axes
mean different things: time from top to bottom, frequency from left to right.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow as tf
import tensorflow_datasets as tfds

from diffstride.errors import DataError

_SHAPE = (48, 64, 1)  # Frames, and channels of the mel scale.
_HOP = 320  # Samples between frames: 20 ms.
_WINDOW = 1024
_EDGES_HZ = (50.0, 7600.0)
_RANGE = 9.0  # Of the logarithm of magnitudes below the loudest: 78 dB.
_LOWEST, _HIGHEST = 36, 84  # MIDI numbers of the pitches.


class NotesImages(tfds.core.GeneratorBasedBuilder):
    """Log-mel spectrograms of `notes`: 48 frames of 20 ms, 64 mel channels.

    Configurations: `pitch` has 49 classes, the semitones from C2 to C6;
    `family` those of `notes`. `notes` must have been built in the same
    `data_dir`.
    """

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="pitch", description="Labels: pitch."),
        tfds.core.BuilderConfig(name="family", description="Labels: family."),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        if self.builder_config.name == "pitch":
            label = tfds.features.ClassLabel(
                names=[str(n) for n in range(_LOWEST, _HIGHEST + 1)]
            )
        else:
            label = tfds.builder_cls("notes")(
                data_dir=self.data_dir_root
            ).info.features["family"]
        return tfds.core.DatasetInfo(
            builder=self,
            description="Log-mel spectrograms of notes of instruments.",
            features=tfds.features.FeaturesDict(
                {"image": tfds.features.Image(shape=_SHAPE), "label": label}
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        notes = tfds.builder("notes", data_dir=self.data_dir_root)
        if not notes.data_path.exists():
            raise DataError(
                "'notes_images' is made from the data set 'notes', which must "
                f"be built first in {self.data_dir_root}: python -m "
                "diffstride.datasets.prepare --name=notes"
            )
        return {
            split: self._generate_examples(notes, split)
            for split in notes.info.splits
        }

    def _generate_examples(
        self, notes: tfds.core.DatasetBuilder, split: str
    ) -> Iterator[tuple[int, dict]]:
        mel = tf.signal.linear_to_mel_weight_matrix(
            _SHAPE[1], _WINDOW // 2 + 1, 16_000, *_EDGES_HZ
        )
        examples = notes.as_dataset(split, shuffle_files=False)
        for i, example in enumerate(examples):
            image = _image(tf.cast(example["audio"], tf.float32) / 2**15, mel)
            label = int(example[self.builder_config.name])
            if self.builder_config.name == "pitch":
                label -= _LOWEST
            yield i, {"image": image, "label": label}


def _image(samples: tf.Tensor, mel: tf.Tensor) -> np.ndarray:
    spectrum = tf.signal.stft(samples, _WINDOW, _HOP, _WINDOW, pad_end=True)
    magnitudes = tf.abs(spectrum)[: _SHAPE[0]] @ mel
    levels = tf.math.log(tf.maximum(magnitudes, 1e-5))
    levels = 1 + (levels - tf.reduce_max(levels)) / _RANGE
    pixels = tf.round(255 * tf.clip_by_value(levels, 0.0, 1.0))
    return tf.cast(pixels, tf.uint8).numpy()[..., np.newaxis]
