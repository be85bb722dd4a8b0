"""Classification data: images and sounds, in batches for a Keras model."""

from diffstride.data.audio import load_audio, spec_augment
from diffstride.data.augmentation import mixup, mixup_weights, pad_crop_flip
from diffstride.data.images import load_datasets
from diffstride.data.pipeline import Datasets
from diffstride.data.sources import NORMALIZATION
from diffstride.data.tasks import load_tasks

__all__ = [
    "NORMALIZATION",
    "Datasets",
    "load_audio",
    "load_datasets",
    "load_tasks",
    "mixup",
    "mixup_weights",
    "pad_crop_flip",
    "spec_augment",
]
