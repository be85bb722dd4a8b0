"""Learned strides by the discrete cosine transform: real from end to end."""

import keras

from diffstride.masks import CosineLowPass
from diffstride.pooling import BaseDiffStride
from diffstride.resampling import cosine_factors
from diffstride.strided import PACKAGE


@keras.saving.register_keras_serializable(PACKAGE)
class DCTDiffStride(BaseDiffStride):
    """Downsampling with learned strides by the cosine transform (2-D).

    As `DiffStride`, with the discrete cosine transform (DCT-II) in the place of
    the Fourier transform. It sees a map and its mirror image, and has no jump
    at the border; a map of `n` samples has `n` real coefficients, half a cycle
    apart, and any of them may be the last that is kept. Output sizes are
    therefore not bound to be even.

    The mask is that of `diffstride.masks`, along each axis `clip((size / stride
    + smoothness_factor - k) / smoothness_factor, 0, 1)` for coefficient `k`
    with the outer ramp. The smoothness counts coefficients: the same number is
    a ramp half as wide as that of `DiffStride`, in cycles over the map.

    Of the paper its abstract was read; that the mask keeps its formula, and
    that transforms are orthonormal, is from memory. Its further regularisers
    are not here: `diffstride.add_stride_cost` and a budget apply.

    Args:
        strides: initial stride, a number >= 1 or one for each axis, (height,
            width).
        **kwargs: all arguments of `DiffStride`, with the same meaning. A
            `smallest_size` of `None` stands for 1. `norm` is the scale:
            `"ortho"` stands for orthonormal transforms, and `"forward"`
            preserves the mean.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with the new height and width, at most those of the input:
        `ceil(size / stride + smoothness_factor)` with the outer ramp, `ceil(
        size / stride)` with the inner one, and `floor(size / stride)` with
        straight-through; in all of them `size / stride` is at least the
        `smallest_size`. Static shapes show `None` there when cropping, unless
        frozen.

    Raises:
        ValueError: if an argument is out of range.
        NotImplementedError: if called inside of a compiled function (XLA,
            `jax.jit`) without `diffstride.static_sizes`.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> layer = DCTDiffStride((2, 3), 1.0, data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 17, 12, 8)

    Reference:
        [DCT-DiffStride: Differentiable Strides with Real-Valued Data](
        https://openreview.net/forum?id=HgJ3HYIP3pY), 2022.
    """

    rank = 2
    mask_cls = CosineLowPass
    factors = staticmethod(cosine_factors)
