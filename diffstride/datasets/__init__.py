"""TFDS builders that need no network; importing this registers them."""

from diffstride.datasets.digits import Digits as Digits
