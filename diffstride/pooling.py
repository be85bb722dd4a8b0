"""Spectral pooling layers: fixed strides, and strides that are learned.

Strides are input size / nominal output size along (height, width); smoothness
is counted in frequency bins. The mathematics is in `diffstride.spectral`.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from diffstride import spectral

PACKAGE = "diffstride"


@keras.saving.register_keras_serializable(PACKAGE)
class StrideConstraint(keras.constraints.Constraint):
    """Keeps strides within limits after each optimizer step.

    Args:
        lower_limit: smallest stride allowed, >= 1, or `None` for no limit.
        upper_limit: largest stride allowed, or `None` for no limit.

    Raises:
        ValueError: if the limits are below 1, not finite, or crossed.

    Example:

    >>> constraint = StrideConstraint(lower_limit=1.0, upper_limit=4.0)
    >>> [float(s) for s in constraint(np.array([0.5, 6.0], "float32"))]
    [1.0, 4.0]
    """

    def __init__(
        self,
        lower_limit: float | None = 1.0,
        upper_limit: float | None = None,
    ):
        _check_limits("lower_limit", lower_limit, "upper_limit", upper_limit)
        self.lower_limit = lower_limit
        self.upper_limit = upper_limit

    def __call__(self, strides: Any) -> Any:
        """Returns `strides` clipped to the limits."""
        strides = ops.convert_to_tensor(strides)
        if self.lower_limit is not None:
            strides = ops.maximum(strides, self.lower_limit)
        if self.upper_limit is not None:
            strides = ops.minimum(strides, self.upper_limit)
        return strides

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            "lower_limit": self.lower_limit,
            "upper_limit": self.upper_limit,
        }


class _SpectralPooling(keras.layers.Layer):
    """What the spectral layers share: format, norm, shapes, the product.

    A subclass gives `_bands(height, width)`, the two `spectral.Band`s in force
    for an input of that size, and `_output_size(size, axis)` for what is known
    before the layer is called.
    """

    # Linear and alike in every channel, hence exchangeable with a bias-free
    # 1x1 convolution. ResidualLayer makes use of it.
    commutes_with_pointwise = True

    def __init__(
        self,
        strides: float | Sequence[float],
        norm: str,
        data_format: str | None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.strides = _standardize_strides(strides)
        if norm not in spectral.NORMS:
            raise ValueError(
                f"`norm` must be one of {spectral.NORMS}. Received: norm={norm}"
            )
        self.norm = norm
        self.data_format = _standardize_data_format(data_format)
        self.input_spec = keras.layers.InputSpec(ndim=4)

    def call(self, inputs: Any) -> Any:
        """Returns the resampled maps."""
        inputs = ops.cast(inputs, self.compute_dtype)
        first = self._spatial_axes[0]
        height, width = ops.shape(inputs)[first : first + 2]
        rows, columns = self._bands(height, width)
        return spectral.resample(
            inputs,
            spectral.two_sided_matrices(height, rows, self.norm),
            spectral.one_sided_matrices(width, columns, self.norm),
            self.data_format,
        )

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the output shape, `None` where a stride decides it."""
        shape = list(input_shape)
        for axis, dimension in enumerate(self._spatial_axes):
            if shape[dimension] is not None:
                shape[dimension] = self._output_size(shape[dimension], axis)
        return tuple(shape)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "strides": self.strides,
            "norm": self.norm,
            "data_format": self.data_format,
        }

    @property
    def _spatial_axes(self) -> tuple[int, int]:
        return (1, 2) if self.data_format == "channels_last" else (2, 3)

    @property
    def _matrix_dtype(self) -> str:
        """Matrices are built in float32 at least, whatever they multiply."""
        return "float64" if self.compute_dtype == "float64" else "float32"


@keras.saving.register_keras_serializable(PACKAGE)
class DiffStride(_SpectralPooling):
    """Downsampling with learned strides (2-D).

    The spectrum of every channel is multiplied by a soft low-pass mask whose
    half-width is `max(size / stride, 2) / 2`, and cropped to where the mask is
    not zero. The mask falls from one to zero over `smoothness_factor` frequency
    bins; gradient reaches the stride through this ramp. Because the ramp lies
    outside of the nominal crop, maps come out larger than `size / stride`, by
    up to `2 * smoothness_factor`.

    The stride in force is never below `size / (size - smoothness_factor)`,
    where the mask would be flat; the variable itself is not changed by a call.
    A map no larger than `smoothness_factor` is kept whole.

    Args:
        strides: initial stride, a number >= 1 or a pair (height, width).
        smoothness_factor: width of the mask's ramp, in frequency bins, >= 0.
            With 0 the mask is hard and the strides receive no gradient; below 2
            the mask of a map with stride 1 is flat, and they receive none
            there.
        cropping: whether to crop. If `False` the same mask applies and the
            output has the size of the input.
        trainable: whether the strides are trained.
        shared_stride: whether one number serves as stride of both axes.
        lower_limit_stride: smallest stride allowed, >= 1, or `None`.
        upper_limit_stride: largest stride allowed, or `None`. The limits clip
            the stride used, and hold the variable after each optimizer step.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        norm: scaling of the transforms, with the names of `numpy.fft`.
            `"backward"`, that of the authors' release, multiplies the mean of a
            map by about the product of the strides; `"ortho"`, that of the
            paper, by about its square root; `"forward"` preserves it.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor. Half precision is fine: strides and matrices stay
            in float32, the products run in the compute dtype.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with the new height and width. From an even size it is
        `2 * ceil(smoothness_factor + max(size / stride, 2) / 2)`, from an odd
        one that minus 1, and never more than the input's. As the strides may
        change, static shapes show `None` there when cropping.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> tuple(DiffStride(strides=2.0, data_format="channels_last")(x).shape)
    (4, 24, 24, 8)

    Reference:
        [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., ICLR 2022.
    """

    def __init__(
        self,
        strides: float | Sequence[float] = (2.0, 2.0),
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = 1.0,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        norm: str = "backward",
        **kwargs: Any,
    ):
        super().__init__(
            strides, norm, data_format, trainable=trainable, **kwargs
        )
        if not (_is_number(smoothness_factor) and smoothness_factor >= 0):
            raise ValueError(
                "`smoothness_factor` must be a finite number >= 0, in frequency"
                f" bins. Received: smoothness_factor={smoothness_factor!r}"
            )
        if shared_stride and self.strides[0] != self.strides[1]:
            raise ValueError(
                "`strides` must be equal for both axes when "
                f"`shared_stride=True`. Received: strides={strides}"
            )
        _check_limits(
            "lower_limit_stride",
            lower_limit_stride,
            "upper_limit_stride",
            upper_limit_stride,
        )
        self.smoothness_factor = smoothness_factor
        self.cropping = cropping
        self.shared_stride = shared_stride
        self.lower_limit_stride = lower_limit_stride
        self.upper_limit_stride = upper_limit_stride
        # The output size depends on a variable, which XLA cannot compile.
        self.supports_jit = not cropping

    def build(self, input_shape: tuple) -> None:
        """Creates the stride variable, of shape (2,), or (1,) if shared."""
        initial = self.strides[:1] if self.shared_stride else self.strides
        self.stride_weights = self.add_weight(
            name="strides",
            shape=(len(initial),),
            dtype=self._matrix_dtype,
            initializer=_initial_value(initial),
            constraint=StrideConstraint(
                self.lower_limit_stride, self.upper_limit_stride
            ),
            autocast=False,
        )

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "smoothness_factor": self.smoothness_factor,
            "cropping": self.cropping,
            "shared_stride": self.shared_stride,
            "lower_limit_stride": self.lower_limit_stride,
            "upper_limit_stride": self.upper_limit_stride,
        }

    def _bands(self, height: Any, width: Any) -> tuple:
        strides = spectral.used_strides(
            ops.convert_to_tensor(self.stride_weights),
            (height, width),
            self.smoothness_factor,
            self.lower_limit_stride,
            self.upper_limit_stride,
        )
        return tuple(
            spectral.learned_band(
                size, stride, self.smoothness_factor, self.cropping
            )
            for size, stride in (
                (height, strides[0]),
                (width, strides[-1]),
            )
        )

    def _output_size(self, size: int, axis: int) -> int | None:
        return None if self.cropping else size


@keras.saving.register_keras_serializable(PACKAGE)
class FixedSpectralPooling(_SpectralPooling):
    """Downsampling by cropping the spectrum, with strides given in advance.

    Args:
        strides: a number >= 1 or a pair (height, width). They need not be
            integers. Kept as a non-trainable weight of shape (2,) besides, as
            in the authors' release.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        norm: scaling of the transforms; see `DiffStride`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with height `height // strides[0]`, rounded down to an even
        number, and width `width // strides[1]`; both at least 2, and at most
        the input's.

    Raises:
        ValueError: if an argument is out of range, or if weights saved with
            other strides are loaded.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> layer = FixedSpectralPooling((2.0, 2.5), data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 16, 12, 8)

    Reference:
        [Spectral Representations for Convolutional Neural Networks](
        https://arxiv.org/abs/1506.03767), Rippel et al., 2015.
    """

    def __init__(
        self,
        strides: float | Sequence[float] = (2.0, 2.0),
        data_format: str | None = None,
        norm: str = "backward",
        **kwargs: Any,
    ):
        super().__init__(strides, norm, data_format, **kwargs)

    def build(self, input_shape: tuple) -> None:
        """Creates the weight that records the strides."""
        self.stride_weights = self.add_weight(
            name="strides",
            shape=(2,),
            dtype=self._matrix_dtype,
            initializer=_initial_value(self.strides),
            trainable=False,
            autocast=False,
        )

    def load_own_variables(self, store: Any) -> None:
        """Loads the strides, and checks them against the argument.

        Args:
            store: mapping of names to arrays.

        Raises:
            ValueError: if they differ; sizes come from the argument.
        """
        super().load_own_variables(store)
        loaded = ops.convert_to_numpy(self.stride_weights)
        if not all(
            math.isclose(a, b, rel_tol=1e-5)
            for a, b in zip(loaded, self.strides, strict=True)
        ):
            raise ValueError(
                f"{self.name} was built with strides={self.strides}, but the "
                f"weights were saved with strides={tuple(loaded.tolist())}. "
                "Build the layer with those strides."
            )

    def _bands(self, height: Any, width: Any) -> tuple:
        return tuple(
            spectral.fixed_band(
                size, self._output_size(size, axis), self._matrix_dtype
            )
            for axis, size in enumerate((height, width))
        )

    def _output_size(self, size: Any, axis: int) -> Any:
        return spectral.fixed_size(size, self.strides[axis], even=axis == 0)


@keras.saving.register_keras_serializable(PACKAGE)
class SpatialPooling(keras.layers.AveragePooling2D):
    """Keras average pooling with the defaults of the authors' release.

    Args:
        pool_size: window, an integer or a pair (height, width).
        strides: integer stride, or a pair (height, width).
        padding: `"same"` or `"valid"`.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`.

    Output shape:
        The same with height and width divided by the strides, rounded up.

    Raises:
        ValueError: if an argument is out of range.
    """

    commutes_with_pointwise = True

    def __init__(
        self,
        pool_size: int | Sequence[int] = (1, 1),
        strides: int | Sequence[int] = (2, 2),
        padding: str = "same",
        data_format: str | None = None,
        **kwargs: Any,
    ):
        for name, value in (("pool_size", pool_size), ("strides", strides)):
            pair = value if hasattr(value, "__len__") else (value, value)
            if not all(_is_number(v) and v == int(v) >= 1 for v in pair):
                raise ValueError(
                    f"`{name}` must be an integer >= 1 or a pair of them. "
                    f"Received: {name}={value!r}"
                )
        super().__init__(
            pool_size=pool_size,
            strides=strides,
            padding=padding,
            data_format=data_format,
            **kwargs,
        )


def _is_number(value: Any) -> bool:
    return (
        not isinstance(value, (bool, str))
        and isinstance(value, (int, float))
        or hasattr(value, "dtype")
        and getattr(value, "ndim", 1) == 0
    ) and math.isfinite(value)


def _standardize_strides(strides: Any) -> tuple[float, float]:
    pair = (strides, strides) if _is_number(strides) else strides
    if (
        isinstance(pair, (str, dict))
        or not hasattr(pair, "__len__")
        or len(pair) != 2
        or not all(_is_number(s) and s >= 1 for s in pair)
    ):
        raise ValueError(
            "`strides` must be a number >= 1 or a pair of them, for (height, "
            f"width). Received: strides={strides!r}"
        )
    return float(pair[0]), float(pair[1])


def _standardize_data_format(data_format: str | None) -> str:
    if data_format is None:
        return keras.config.image_data_format()
    if data_format not in ("channels_last", "channels_first"):
        raise ValueError(
            "`data_format` must be 'channels_last', 'channels_first' or None. "
            f"Received: data_format={data_format!r}"
        )
    return data_format


def _check_limits(
    lower_name: str, lower: Any, upper_name: str, upper: Any
) -> None:
    for name, limit in ((lower_name, lower), (upper_name, upper)):
        if limit is not None and not (_is_number(limit) and limit >= 1):
            raise ValueError(
                f"`{name}` must be a finite number >= 1, or None. "
                f"Received: {name}={limit!r}"
            )
    if lower is not None and upper is not None and upper < lower:
        raise ValueError(
            f"`{upper_name}` must be at least `{lower_name}`. "
            f"Received: {upper_name}={upper}, {lower_name}={lower}"
        )


def _initial_value(values: Sequence[float]) -> Any:
    return lambda shape, dtype: ops.convert_to_tensor(values, dtype=dtype)
