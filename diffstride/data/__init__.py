"""Image-classification data: a TFDS name in, batches for a Keras model out."""

from diffstride.data.augmentation import mixup, mixup_weights, pad_crop_flip
from diffstride.data.pipeline import Datasets, load_datasets
from diffstride.data.sources import NORMALIZATION

__all__ = [
    "NORMALIZATION",
    "Datasets",
    "load_datasets",
    "mixup",
    "mixup_weights",
    "pad_crop_flip",
]
