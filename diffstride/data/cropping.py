"""Windows of images that differ in size: random to train on, central to test.

Of a JPEG file only the window is decoded.
"""

from collections.abc import Callable, Sequence

import tensorflow as tf
import tensorflow_datasets as tfds

# Of the largest central window what is tested on: 224 of 256 pixels.
_CENTRAL = 0.875
_ASPECTS = (3 / 4, 4 / 3)

# Of a shape: top, left, height and width.
Window = Callable[[tf.Tensor], tf.Tensor]


def random_window(seed: tf.Tensor, least_area: float) -> Window:
    """Returns what draws a window, of random area, aspect and place.

    The area is uniform from `least_area` to 1 of the image, the aspect from
    3/4 to 4/3. Where none of ten such windows is inside of the image, the whole
    image is taken.

    Reference:
        [Going Deeper with Convolutions](https://arxiv.org/abs/1409.4842),
        Szegedy et al., 2015.
    """

    def window(shape: tf.Tensor) -> tf.Tensor:
        begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
            shape,
            tf.zeros((1, 0, 4)),
            seed,
            min_object_covered=0.0,
            aspect_ratio_range=_ASPECTS,
            area_range=(least_area, 1.0),
            max_attempts=10,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat((begin[:2], size[:2]), 0)

    return window


def central_window(image_size: Sequence[int]) -> Window:
    """Returns what gives 7/8 of the largest central window of an aspect."""

    def window(shape: tf.Tensor) -> tf.Tensor:
        available = tf.cast(shape[:2], tf.float32)
        scale = tf.reduce_min(available / tf.constant(image_size, tf.float32))
        size = _CENTRAL * scale * tf.constant(image_size, tf.float32)
        size = tf.cast(tf.maximum(tf.round(size), 1), tf.int32)
        return tf.concat(((shape[:2] - size) // 2, size), 0)

    return window


def decode_window(
    encoded: tf.Tensor, window: Window, feature: tfds.features.Image
) -> tf.Tensor:
    """Decodes a window of an image, in the dtype of the feature."""

    def from_whole() -> tf.Tensor:
        image = feature.decode_example(encoded)
        top, left, height, width = tf.unstack(window(tf.shape(image)))
        return image[top : top + height, left : left + width]

    def from_jpeg() -> tf.Tensor:
        where = window(tf.image.extract_jpeg_shape(encoded))
        return tf.image.decode_and_crop_jpeg(
            encoded, where, channels=feature.shape[-1]
        )

    if feature.np_dtype != "uint8" or feature.shape[-1] not in (1, 3):
        return from_whole()
    return tf.cond(tf.io.is_jpeg(encoded), from_jpeg, from_whole)
