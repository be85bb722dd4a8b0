"""Spectral resizing: the way back up, to a size or to the size of a map."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride import arguments
from diffstride.masks import Band, resize_band
from diffstride.numerics import Size
from diffstride.pooling import PACKAGE, BaseSpectralLayer
from diffstride.resampling import resample, spatial_sizes


class BaseSpectralResize(BaseSpectralLayer):
    """Resizing in any number of dimensions."""

    def __init__(
        self,
        size: int | Sequence[int] | None = None,
        data_format: str | None = None,
        norm: str = "forward",
        **kwargs: Any,
    ):
        super().__init__(norm, data_format, **kwargs)
        self.size = _standardize_size(size, self.rank)
        if self.size is None:
            self.input_spec = [self.input_spec] * 2

    def call(self, inputs: Any) -> Any:
        """Returns the resized maps."""
        x, like = self._pair(inputs)
        output_sizes = self.size or spatial_sizes(like, self.data_format)
        x = ops.cast(x, self.compute_dtype)
        bands = self.bands(spatial_sizes(x, self.data_format), output_sizes)
        return resample(x, bands, self.norm, self.data_format)

    def bands(
        self, sizes: Sequence[Size], output_sizes: Sequence[Size]
    ) -> tuple[Band, ...]:
        """Returns what each axis keeps."""
        return tuple(
            resize_band(size, output_size, self._matrix_dtype)
            for size, output_size in zip(sizes, output_sizes, strict=True)
        )

    def compute_output_shape(self, input_shape: Any) -> tuple:
        """Returns the output shape, `None` where `like` has it."""
        shape, like = self._pair(input_shape)
        shape = list(shape)
        for place, axis in enumerate(self.spatial_axes):
            shape[axis] = self.size[place] if self.size else like[axis]
        return tuple(shape)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {**super().get_config(), "size": self.size}

    def _pair(self, inputs: Any) -> Any:
        return (inputs, None) if self.size else inputs


@keras.saving.register_keras_serializable(PACKAGE)
class SpectralResize(BaseSpectralResize):
    """Resizes maps by their spectrum, up or down (2-D).

    `SpectralResize((32, 32))(x)` gives maps of that size; without a size,
    `SpectralResize()([x, like])` gives those of `x` the size of `like`. That is
    what a decoder needs behind learned strides, whose sizes change.

    Each axis by itself is interpolated by the waves that fit into both sizes.
    Upwards nothing is lost: resizing back is the identity, and a map that was
    cropped by `FixedSpectralPooling`, of the same `norm`, comes back without
    its high frequencies. The Nyquist frequency of an even size is halved
    between the two that it stands for, and downwards these are summed. (Pooling
    takes one of the two, as released.)

    Args:
        size: output size, an integer >= 1 or one for each axis, (height,
            width). `None` takes it from a second input.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        norm: scaling of the transforms; see `DiffStride`. The default,
            `"forward"`, keeps values, as any resizing does. The others undo
            what pooling of the same `norm` does to the mean.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor; without `size` a list of two, `[x, like]`. Of `like`
            the size is used, and nothing else; no gradient reaches it.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with the new height and width.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 12, 9, 8)).astype("float32")
    >>> like = np.zeros((4, 21, 18, 3), "float32")
    >>> layer = SpectralResize(data_format="channels_last")
    >>> tuple(layer([x, like]).shape)
    (4, 21, 18, 8)
    """

    rank = 2


@keras.saving.register_keras_serializable(PACKAGE)
class SpectralResize1D(BaseSpectralResize):
    """Resizes maps by their spectrum (1-D); see `SpectralResize`.

    Args:
        size: an integer >= 1, or `None`.
        **kwargs: all arguments of `SpectralResize`.

    Call arguments:
        inputs: 3-D tensor; without `size` a list of two, `[x, like]`.

    Input shape:
        `(batch, steps, channels)`, or `(batch, channels, steps)` with
        `data_format="channels_first"`.

    Output shape:
        The same with the new number of steps.

    Raises:
        ValueError: if an argument is out of range.
    """

    rank = 1


@keras.saving.register_keras_serializable(PACKAGE)
class SpectralResize3D(BaseSpectralResize):
    """Resizes maps by their spectrum (3-D); see `SpectralResize`.

    Args:
        size: an integer >= 1 or one for each axis, (depth, height, width), or
            `None`.
        **kwargs: all arguments of `SpectralResize`.

    Call arguments:
        inputs: 5-D tensor; without `size` a list of two, `[x, like]`.

    Input shape:
        `(batch, depth, height, width, channels)`, or `(batch, channels, depth,
        height, width)` with `data_format="channels_first"`.

    Output shape:
        The same with the new sizes.

    Raises:
        ValueError: if an argument is out of range.
    """

    rank = 3


def _standardize_size(size: Any, rank: int) -> tuple[int, ...] | None:
    if size is None:
        return None
    given = arguments.plain(size)
    each = given if isinstance(given, (tuple, list)) else (given,) * rank
    each = tuple(map(arguments.plain, each))
    whole = all(isinstance(n, int) and not isinstance(n, bool) for n in each)
    most = arguments.LARGEST_COUNT
    if len(each) != rank or not whole or not all(1 <= n <= most for n in each):
        raise arguments.refusal(
            "size",
            f"an integer >= 1 and <= {most}, or {rank} of them for "
            f"({arguments.AXES[rank]}), or None to resize to a second input, "
            "[x, like]",
            size,
        )
    return each
