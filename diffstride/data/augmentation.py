"""Random changes of images, each decided by a seed alone."""

import tensorflow as tf

from diffstride.errors import DataError


def pad_crop_flip(
    image: tf.Tensor, seed: tf.Tensor, pad: int = 4, flip: bool = True
) -> tf.Tensor:
    """Pads with zeros, crops at random to the old size, mirrors at random.

    Args:
        image: (height, width, channels).
        seed: pair of integers that decides the outcome.
        pad: number of pixels on each side.
        flip: whether to mirror left to right, in one case out of two.

    Returns:
        An image of the same shape.
    """
    crop_seed, flip_seed = tf.unstack(
        tf.random.experimental.stateless_split(seed, 2)
    )
    if pad < 0:
        raise DataError(f"`pad` must be >= 0. Received: pad={pad}")
    padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
    image = tf.image.stateless_random_crop(padded, image.shape, crop_seed)
    if flip:
        image = tf.image.stateless_random_flip_left_right(image, flip_seed)
    return image


def mixup_weights(count: int, alpha: float, seed: tf.Tensor) -> tf.Tensor:
    """Draws `count` weights from Beta(alpha, alpha), as a seed decides."""
    # float64, as both gammas underflow together for small alpha.
    gamma = tf.random.stateless_gamma(
        (2, count), seed, tf.constant(alpha, tf.float64), dtype=tf.float64
    )
    ratio = tf.math.divide_no_nan(gamma[0], gamma[0] + gamma[1])
    return tf.cast(ratio, tf.float32)


def mixup(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Merges the first half of a batch with the second half.

    Images are (2 * count, ...), labels (2 * count, classes), and weights, those
    of the first half, (count,). Returns `count` of each.

    Reference:
        [mixup: Beyond Empirical Risk Minimization](
        https://arxiv.org/abs/1710.09412), Zhang et al., 2018.
    """

    def merge(x: tf.Tensor) -> tf.Tensor:
        first, second = tf.split(x, 2)
        weight = tf.reshape(weights, [-1] + [1] * (x.shape.rank - 1))
        return weight * first + (1.0 - weight) * second

    return merge(images), merge(labels)
