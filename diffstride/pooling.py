"""Spectral pooling layers: fixed strides, and strides that are learned.

Strides are input size / nominal output size along each axis; smoothness is
counted in frequency bins. All dimensions share one base class. The mathematics
is in `diffstride.masks` and `diffstride.resampling`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride import arguments
from diffstride.masks import RAMPS, Band, HardCrop, LowPass
from diffstride.resampling import NORMS, resample, spatial_sizes
from diffstride.static import LearnedSizes, refuse_unknown_sizes

PACKAGE = "diffstride"
_PADDINGS = ("same", "valid", "SAME", "VALID")


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
        self.lower_limit, self.upper_limit = arguments.limits(
            "lower_limit", lower_limit, "upper_limit", upper_limit
        )

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


class BaseSpectralLayer(keras.layers.Layer):
    """What the spectral layers share: format, norm, dtypes.

    A subclass sets `rank`, the number of spatial axes.
    """

    rank: int

    def __init__(self, norm: str, data_format: str | None, **kwargs: Any):
        super().__init__(**kwargs)
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise arguments.refusal(
                "dtype", "a floating-point type", self.compute_dtype
            )
        self.norm = arguments.choice("norm", norm, NORMS)
        self.data_format = arguments.data_format(data_format)
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "norm": self.norm,
            "data_format": self.data_format,
        }

    @property
    def spatial_axes(self) -> tuple[int, ...]:
        """Axes of the input that are resampled."""
        first = 1 if self.data_format == "channels_last" else 2
        return tuple(range(first, first + self.rank))

    def sizes_in(self, shape: Sequence) -> tuple:
        """Returns the sizes of these axes in a shape."""
        return tuple(shape[axis] for axis in self.spatial_axes)

    @property
    def _matrix_dtype(self) -> str:
        """Matrices are built in float32 at least, whatever they multiply."""
        return "float64" if self.compute_dtype == "float64" else "float32"


class BaseSpectralPooling(BaseSpectralLayer):
    """What the pooling layers share: strides, shapes, the product.

    A subclass gives `bands(inputs)`, the mask in force along each axis, and
    `_static_sizes(sizes)`, what is known of the output sizes in advance.
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
        super().__init__(norm, data_format, **kwargs)
        self.strides = arguments.strides("strides", strides, self.rank)

    def call(self, inputs: Any) -> Any:
        """Returns the resampled maps."""
        inputs = ops.cast(inputs, self.compute_dtype)
        return resample(inputs, self.bands(inputs), self.norm, self.data_format)

    def bands(self, inputs: Any) -> tuple[Band, ...]:
        """Returns what each axis keeps of the spectrum of `inputs`."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the output shape, `None` where a stride decides it."""
        shape = list(input_shape)
        sizes = self._static_sizes(self.sizes_in(shape))
        for axis, size in zip(self.spatial_axes, sizes, strict=True):
            shape[axis] = size
        return tuple(shape)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {**super().get_config(), "strides": self.strides}

    def load_own_variables(self, store: Any) -> None:
        """Loads the strides.

        Args:
            store: mapping of names to arrays.

        Raises:
            ValueError: if sizes come from the argument `strides` and the loaded
                strides differ from it.
        """
        super().load_own_variables(store)
        if not self._strides_are_constant:
            return
        loaded = ops.convert_to_numpy(self.stride_weights)
        if not all(
            math.isclose(a, b, rel_tol=1e-5)
            for a, b in zip(loaded, self.strides, strict=False)
        ):
            raise ValueError(
                f"{self.name} was built with strides={self.strides}, but the "
                f"weights were saved with strides={tuple(loaded.tolist())}. "
                "Build the layer with those strides."
            )

    @property
    def _strides_are_constant(self) -> bool:
        return True


class BaseDiffStride(LearnedSizes, BaseSpectralPooling):
    """Downsampling with learned strides, in any number of dimensions."""

    def __init__(
        self,
        strides: float | Sequence[float] = 2.0,
        smoothness_factor: float = 4.0,
        cropping: bool = True,
        trainable: bool = True,
        shared_stride: bool = False,
        lower_limit_stride: float | None = 1.0,
        upper_limit_stride: float | None = None,
        data_format: str | None = None,
        norm: str = "backward",
        ramp: str = "outer",
        stride_lr_multiplier: float = 1.0,
        frozen: bool = False,
        final_smoothness_factor: float | None = None,
        **kwargs: Any,
    ):
        frozen = arguments.boolean("frozen", frozen)
        trainable = arguments.boolean("trainable", trainable)
        super().__init__(
            strides,
            norm,
            data_format,
            trainable=trainable and not frozen,
            **kwargs,
        )
        self.smoothness_factor = arguments.number(
            "smoothness_factor",
            smoothness_factor,
            most=arguments.LARGEST_COUNT,
            of=", in frequency bins",
        )
        if final_smoothness_factor is not None:
            final_smoothness_factor = arguments.number(
                "final_smoothness_factor",
                final_smoothness_factor,
                most=self.smoothness_factor,
                of=" (`smoothness_factor`), or None",
            )
        self.cropping = arguments.boolean("cropping", cropping)
        self.shared_stride = arguments.boolean("shared_stride", shared_stride)
        if self.shared_stride and len(set(self.strides)) != 1:
            expected = "equal for all axes when `shared_stride=True`"
            raise arguments.refusal("strides", expected, strides)
        self.lower_limit_stride, self.upper_limit_stride = arguments.limits(
            "lower_limit_stride",
            lower_limit_stride,
            "upper_limit_stride",
            upper_limit_stride,
        )
        self.ramp = arguments.choice("ramp", ramp, RAMPS)
        self.stride_lr_multiplier = arguments.number(
            "stride_lr_multiplier", stride_lr_multiplier
        )
        self.frozen = frozen
        self.final_smoothness_factor = final_smoothness_factor
        self.current_smoothness = self.smoothness_factor
        self.supports_jit = self.compiles()

    def build(self, input_shape: tuple) -> None:
        """Creates the stride variable, of shape (rank,), or (1,) if shared."""
        self.stride_weights = self.add_weight(
            name="strides",
            shape=self.initial_strides.shape,
            dtype=self._matrix_dtype,
            initializer=_initial_value(self.initial_strides),
            constraint=StrideConstraint(
                self.lower_limit_stride, self.upper_limit_stride
            ),
            autocast=False,
        )
        if self.final_smoothness_factor is not None:
            self.smoothness = self.add_weight(
                name="smoothness",
                shape=(),
                dtype=self._matrix_dtype,
                initializer=_initial_value(self.smoothness_factor),
                trainable=False,
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
            "ramp": self.ramp,
            "stride_lr_multiplier": self.stride_lr_multiplier,
            "frozen": self.frozen,
            "final_smoothness_factor": self.final_smoothness_factor,
        }

    @property
    def initial_strides(self) -> np.ndarray:
        """What the stride variable holds when it is made."""
        kept = self.strides[:1] if self.shared_stride else self.strides
        return np.asarray(kept, self._matrix_dtype)

    def freeze(self) -> None:
        """Makes constants of the strides as they are; see `diffstride.freeze`.

        What has been built around this layer, or compiled, does not notice.
        """
        strides = ops.convert_to_numpy(self.stride_weights)
        strides = np.broadcast_to(strides, (self.rank,))
        self.strides = tuple(strides.tolist())
        self.smoothness_factor = self.current_smoothness
        self.frozen = True
        self.trainable = False

    def output_sizes(
        self, sizes: Sequence[int], strides: Any
    ) -> tuple[int, ...]:
        """Computes the output sizes on the host.

        Args:
            sizes: input size of each axis.
            strides: array of the shape of the stride variable.

        Returns:
            Output size of each axis, if cropped.
        """
        return self.low_pass.output_sizes(sizes, strides)

    def set_smoothness(self, smoothness: float) -> None:
        """Sets the width of the ramp, from the one of build on down.

        What has been compiled goes on with it. Needs `final_smoothness_factor`.

        Args:
            smoothness: in frequency bins, from 0 to `smoothness_factor`.
        """
        self.smoothness.assign(smoothness)
        # What tells sizes on the host and what is compiled must agree.
        self.current_smoothness = float(
            ops.convert_to_numpy(self.smoothness).item()
        )

    def load_own_variables(self, store: Any) -> None:
        """Loads strides, and smoothness where it changes.

        Args:
            store: mapping of names to arrays.

        Raises:
            ValueError: if the layer is frozen and the loaded strides differ
                from the argument `strides`.
        """
        super().load_own_variables(store)
        if self.final_smoothness_factor is not None:
            self.set_smoothness(self.smoothness)

    @property
    def low_pass(self) -> LowPass:
        """The mask, at the smoothness of now."""
        return LowPass(
            self.current_smoothness,
            self.ramp,
            self.lower_limit_stride,
            self.upper_limit_stride,
            self.cropping,
            self.smoothness_factor,
        )

    def scaled_strides(self) -> Any:
        """Returns the stride variable, its gradient multiplied."""
        strides = ops.convert_to_tensor(self.stride_weights)
        if self.stride_lr_multiplier == 1.0:
            return strides
        value = ops.stop_gradient(strides)
        return value + self.stride_lr_multiplier * (strides - value)

    def bands(self, inputs: Any) -> tuple[Band, ...]:
        """Returns the mask along each axis, with the strides' gradient."""
        sizes = spatial_sizes(inputs, self.data_format)
        known = self.known_output_sizes(inputs, sizes)
        strides = self.initial_strides if self.frozen else self.scaled_strides()
        low_pass = self.low_pass
        if self.final_smoothness_factor is not None and not self.frozen:
            smoothness = ops.convert_to_tensor(self.smoothness)
            low_pass = dataclasses.replace(low_pass, smoothness=smoothness)
        return low_pass.bands(sizes, strides, known)

    def _static_sizes(self, sizes: tuple) -> tuple:
        if not self.cropping:
            return sizes
        if not self.frozen or None in sizes:
            return (None,) * self.rank
        return self.output_sizes(sizes, self.initial_strides)

    @property
    def _strides_are_constant(self) -> bool:
        return self.frozen


@keras.saving.register_keras_serializable(PACKAGE)
class DiffStride(BaseDiffStride):
    """Downsampling with learned strides (2-D).

    The spectrum of every channel is multiplied by a soft low-pass mask whose
    half-width is `max(size / stride, 2) / 2`, and cropped to where the mask is
    not zero. The mask falls from one to zero over `smoothness_factor` frequency
    bins; gradient reaches the stride through this ramp. Where the ramp lies is
    for `ramp` to say; the formulas are in `diffstride.masks`.

    With the outer ramp the stride in force is never below
    `size / (size - smoothness_factor)`, where the mask would be flat; the
    variable itself is not changed by a call. A map no larger than
    `smoothness_factor` is kept whole.

    Args:
        strides: initial stride, a number >= 1 or one for each axis, (height,
            width).
        smoothness_factor: width of the mask's ramp, in frequency bins, >= 0.
            With 0 the mask is hard and the strides receive no gradient; with
            little there are strides at which they receive none (below 1, and
            for the outer ramp below 2 at a stride of 1).
        cropping: whether to crop. If `False` the same mask applies and the
            output has the size of the input.
        trainable: whether the strides are trained.
        shared_stride: whether one number serves as stride of all axes.
        lower_limit_stride: smallest stride allowed, >= 1, or `None`.
        upper_limit_stride: largest stride allowed, or `None`. The limits clip
            the stride used, and hold the variable after each optimizer step.
        data_format: `"channels_last"` or `"channels_first"`. `None` stands for
            `keras.config.image_data_format()`.
        norm: scaling of the transforms, with the names of `numpy.fft`.
            `"backward"`, that of the authors' release, multiplies the mean of a
            map by about the product of the strides; `"ortho"`, that of the
            paper, by about its square root; `"forward"` preserves it.
        ramp: `"outer"`, as released: the ramp lies outside of the nominal crop,
            and maps come out larger than `size / stride` by up to
            `2 * smoothness_factor`. `"inner"`: inside of it, and maps come out
            at `size / stride`. `"straight_through"`: the output is that of
            `FixedSpectralPooling` at the same stride, while the stride's
            gradient comes from a ramp around the crop's edge, as far as its
            frequencies are kept. The latter two are less to compute.
        stride_lr_multiplier: factor of the strides' gradient, >= 0. With SGD
            that is a learning rate of their own; optimizers that normalise
            gradients, such as Adam, undo it.
        frozen: whether sizes and matrices are constants, made from `strides`.
            Nothing is trained then, and static shapes are known; see
            `diffstride.freeze`.
        final_smoothness_factor: smoothness at the end of training, from 0 to
            `smoothness_factor`, or `None` where it stays. The layer keeps the
            smoothness in a weight then, which `SmoothnessSchedule` moves.
        **kwargs: arguments of every Keras layer, such as `name` and `dtype`.

    Call arguments:
        inputs: 4-D tensor. Half precision is fine: strides and matrices stay
            in float32, the products run in the compute dtype.

    Input shape:
        `(batch, height, width, channels)`, or `(batch, channels, height,
        width)` with `data_format="channels_first"`. Any size >= 1, known in
        advance or not.

    Output shape:
        The same with the new height and width, at most those of the input. From
        an even size it is `2 * ceil(smoothness_factor + max(size / stride, 2) /
        2)` with the outer ramp, and the next even number from `size / stride`
        on with the inner one; odd sizes stay odd. Straight-through gives the
        sizes of `FixedSpectralPooling`. As the strides may change, static
        shapes show `None` there when cropping, unless frozen.

    Raises:
        ValueError: if an argument is out of range.
        NotImplementedError: if called inside of a compiled function (XLA,
            `jax.jit`) without `diffstride.static_sizes`.

    Example:

    >>> x = np.random.uniform(size=(4, 32, 32, 8)).astype("float32")
    >>> tuple(DiffStride(strides=2.0, data_format="channels_last")(x).shape)
    (4, 24, 24, 8)

    Reference:
        [Learning Strides in Convolutional Neural Networks](
        https://arxiv.org/abs/2202.01653), Riad et al., ICLR 2022.
    """

    rank = 2


@keras.saving.register_keras_serializable(PACKAGE)
class DiffStride1D(BaseDiffStride):
    """Downsampling with learned strides (1-D); see `DiffStride`.

    Args:
        strides: initial stride, a number >= 1.
        **kwargs: all arguments of `DiffStride`.

    Call arguments:
        inputs: 3-D tensor.

    Input shape:
        `(batch, steps, channels)`, or `(batch, channels, steps)` with
        `data_format="channels_first"`.

    Output shape:
        The same with the new number of steps.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 100, 8)).astype("float32")
    >>> layer = DiffStride1D(4.0, ramp="inner", data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 26, 8)
    """

    rank = 1


@keras.saving.register_keras_serializable(PACKAGE)
class DiffStride3D(BaseDiffStride):
    """Downsampling with learned strides (3-D); see `DiffStride`.

    Args:
        strides: initial stride, a number >= 1 or one for each axis, (depth,
            height, width).
        **kwargs: all arguments of `DiffStride`.

    Call arguments:
        inputs: 5-D tensor.

    Input shape:
        `(batch, depth, height, width, channels)`, or `(batch, channels, depth,
        height, width)` with `data_format="channels_first"`.

    Output shape:
        The same with the new depth, height and width.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> x = np.random.uniform(size=(4, 16, 32, 32, 8)).astype("float32")
    >>> layer = DiffStride3D((1, 2, 2), data_format="channels_last")
    >>> tuple(layer(x).shape)
    (4, 16, 24, 24, 8)
    """

    rank = 3


class BaseFixedSpectralPooling(BaseSpectralPooling):
    """Downsampling by cropping the spectrum, in any number of dimensions."""

    def __init__(
        self,
        strides: float | Sequence[float] = 2.0,
        data_format: str | None = None,
        norm: str = "backward",
        **kwargs: Any,
    ):
        super().__init__(strides, norm, data_format, **kwargs)
        self._crop = HardCrop(self.strides, self._matrix_dtype)

    def build(self, input_shape: tuple) -> None:
        """Creates the weight that records the strides."""
        self.stride_weights = self.add_weight(
            name="strides",
            shape=(self.rank,),
            dtype=self._matrix_dtype,
            initializer=_initial_value(self.strides),
            trainable=False,
            autocast=False,
        )

    def bands(self, inputs: Any) -> tuple[Band, ...]:
        """Returns what each axis keeps."""
        refuse_unknown_sizes(self.name, inputs)
        return self._crop.bands(spatial_sizes(inputs, self.data_format))

    def _static_sizes(self, sizes: Sequence) -> Sequence:
        return self._crop.output_sizes(sizes)


@keras.saving.register_keras_serializable(PACKAGE)
class FixedSpectralPooling(BaseFixedSpectralPooling):
    """Downsampling by cropping the spectrum, with strides given in advance.

    Args:
        strides: a number >= 1 or one for each axis, (height, width). They need
            not be integers. Kept as a non-trainable weight of shape (2,)
            besides, as in the authors' release.
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

    rank = 2


@keras.saving.register_keras_serializable(PACKAGE)
class FixedSpectralPooling1D(BaseFixedSpectralPooling):
    """Downsampling by cropping the spectrum (1-D); see `FixedSpectralPooling`.

    Args:
        strides: a number >= 1.
        **kwargs: all arguments of `FixedSpectralPooling`.

    Call arguments:
        inputs: 3-D tensor.

    Input shape:
        `(batch, steps, channels)`, or `(batch, channels, steps)` with
        `data_format="channels_first"`.

    Output shape:
        The same with `steps // strides`, at least 2 and at most the input's.

    Raises:
        ValueError: if an argument is out of range, or if weights saved with
            other strides are loaded.
    """

    rank = 1


@keras.saving.register_keras_serializable(PACKAGE)
class FixedSpectralPooling3D(BaseFixedSpectralPooling):
    """Downsampling by cropping the spectrum (3-D); see `FixedSpectralPooling`.

    Args:
        strides: a number >= 1 or one for each axis, (depth, height, width).
        **kwargs: all arguments of `FixedSpectralPooling`.

    Call arguments:
        inputs: 5-D tensor.

    Input shape:
        `(batch, depth, height, width, channels)`, or `(batch, channels, depth,
        height, width)` with `data_format="channels_first"`.

    Output shape:
        The same with each size divided by its stride and rounded down, depth
        and height to even numbers; all at least 2, and at most the input's.

    Raises:
        ValueError: if an argument is out of range, or if weights saved with
            other strides are loaded.
    """

    rank = 3


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
        super().__init__(
            pool_size=arguments.integers("pool_size", pool_size),
            strides=arguments.integers("strides", strides),
            padding=arguments.choice("padding", padding, _PADDINGS),
            data_format=data_format,
            **kwargs,
        )


def _initial_value(values: Sequence[float]) -> Any:
    return lambda shape, dtype: ops.convert_to_tensor(values, dtype=dtype)
