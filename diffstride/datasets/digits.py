"""The 1,797 handwritten digits that come with scikit-learn, as a TFDS builder.

Optical Recognition of Handwritten Digits, test part; UCI repository, 1998.
"""

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

from diffstride.errors import DataError

_NUM_TEST = 360
_SPLIT_SEED = 0


class Digits(tfds.core.GeneratorBasedBuilder):
    """8x8 greyscale digits: 1,437 to train on and 360 to test on.

    The split is a fixed permutation, alike on every machine. Grey levels 0..16
    become 0..255.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits, 8x8, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: object) -> dict:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError(
                "The data set 'digits' comes with scikit-learn, which is not "
                "installed: pip install 'diffstride[datasets]'"
            ) from error
        images, labels = load_digits(return_X_y=True)
        images = np.round(images * (255 / 16)).astype("uint8")
        images = images.reshape(-1, 8, 8, 1)
        # MT19937's raw stream is frozen by NumPy's compatibility policy.
        order = np.random.RandomState(_SPLIT_SEED).permutation(len(images))
        test, train = order[:_NUM_TEST], order[_NUM_TEST:]
        return {
            "train": self._generate_examples(images, labels, train),
            "test": self._generate_examples(images, labels, test),
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray, indices: np.ndarray
    ) -> Iterator[tuple[int, dict]]:
        for i in indices.tolist():
            yield i, {"image": images[i], "label": int(labels[i])}
