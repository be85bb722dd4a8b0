"""Spectral pooling layers: fixed strides, and strides that are learned.

Strides are input size / nominal output size along each axis; smoothness is
counted in frequency bins. All dimensions share one base class. The mathematics
is in `diffstride.masks` and `diffstride.resampling`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride import arguments
from diffstride.masks import RAMPS, Band, HardCrop, LowPass
from diffstride.resampling import (
    NORMS,
    resample,
    resample_macs,
    spatial_sizes,
)
from diffstride.static import refuse_unknown_sizes
from diffstride.strided import (
    PACKAGE,
    BaseLearnedPooling,
    BaseMapLayer,
    Strided,
    initial_value,
)
from diffstride.strided import (
    StrideConstraint as StrideConstraint,  # Where the release has it.
)
from diffstride.windows import (
    SpatialPooling as SpatialPooling,  # And this.
)


class BaseSpectralLayer(BaseMapLayer):
    """What the spectral layers share: the scale of their transforms."""

    def __init__(self, norm: str, data_format: str | None, **kwargs: Any):
        super().__init__(data_format=data_format, **kwargs)
        self.norm = arguments.choice("norm", norm, NORMS)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {**super().get_config(), "norm": self.norm}


class BaseSpectralPooling(Strided, BaseSpectralLayer):
    """What the spectral pooling layers share: masks, and the product.

    A subclass gives `bands(inputs)`, the mask in force along each axis.
    """

    # Linear and alike in every channel, hence exchangeable with a bias-free
    # 1x1 convolution. ResidualLayer makes use of it.
    commutes_with_pointwise = True
    # What makes the matrices of the masks: the transform, `None` for the DFT.
    factors = None

    def call(self, inputs: Any) -> Any:
        """Returns the resampled maps."""
        inputs = ops.cast(inputs, self.compute_dtype)
        bands = self.bands(inputs)
        return resample(
            inputs, bands, self.norm, self.data_format, self.factors
        )

    def bands(self, inputs: Any) -> tuple[Band, ...]:
        """Returns what each axis keeps of the spectrum of `inputs`."""
        raise NotImplementedError

    def macs(self, input_shape: Sequence[int]) -> int:
        """Counts the multiply-accumulates of a call; see `PoolingLayer`."""
        bands = self.bands(keras.KerasTensor(input_shape))
        return resample_macs(input_shape, bands, self.data_format, self.factors)


class BaseDiffStride(BaseLearnedPooling, BaseSpectralPooling):
    """Downsampling with a learned mask, in any number of dimensions."""

    # The kind of mask, and with `factors` the transform.
    mask_cls = LowPass

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
        keep_parity: bool = True,
        size_step: int = 1,
        smallest_size: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(
            strides=strides,
            norm=norm,
            data_format=data_format,
            trainable=trainable,
            shared_stride=shared_stride,
            lower_limit_stride=lower_limit_stride,
            upper_limit_stride=upper_limit_stride,
            stride_lr_multiplier=stride_lr_multiplier,
            frozen=frozen,
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
        self.ramp = arguments.choice("ramp", ramp, RAMPS)
        self.keep_parity = arguments.boolean("keep_parity", keep_parity)
        self.size_step = arguments.integer("size_step", size_step)
        if smallest_size is None:
            smallest_size = self.mask_cls.smallest_size
        self.smallest_size = arguments.integer("smallest_size", smallest_size)
        self.final_smoothness_factor = final_smoothness_factor
        self.current_smoothness = self.smoothness_factor
        self.supports_jit = self.compiles()

    def build(self, input_shape: tuple) -> None:
        """Creates the stride variable, and one of a smoothness that changes."""
        super().build(input_shape)
        if self.final_smoothness_factor is not None:
            self.smoothness = self.add_weight(
                name="smoothness",
                shape=(),
                dtype=self._matrix_dtype,
                initializer=initial_value(self.smoothness_factor),
                trainable=False,
                autocast=False,
            )

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "smoothness_factor": self.smoothness_factor,
            "cropping": self.cropping,
            "ramp": self.ramp,
            "final_smoothness_factor": self.final_smoothness_factor,
            "keep_parity": self.keep_parity,
            "size_step": self.size_step,
            "smallest_size": self.smallest_size,
        }

    def freeze(self) -> None:
        """Makes constants of strides and smoothness as they are."""
        super().freeze()
        self.smoothness_factor = self.current_smoothness

    def frozen_at(self, strides: np.ndarray) -> dict[str, Any]:
        """Returns the attributes that the layer has if frozen at strides."""
        smoothness = self._final_low_pass.smoothness
        return {**super().frozen_at(strides), "current_smoothness": smoothness}

    def output_sizes(
        self, sizes: Sequence[int], strides: Any
    ) -> tuple[int, ...]:
        """Computes the output sizes on the host, if cropped."""
        return self.low_pass.output_sizes(sizes, strides)

    def final_output_sizes(
        self, sizes: Sequence[int], strides: Any
    ) -> tuple[int, ...]:
        """Computes the output sizes at the final smoothness."""
        return self._final_low_pass.output_sizes(sizes, strides)

    def used_strides(self, sizes: Sequence[int], strides: Any) -> Any:
        """Returns the strides in force on maps of some sizes, for each axis."""
        return self.low_pass.used(sizes, strides)

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
        return self.mask_cls(
            self.current_smoothness,
            self.ramp,
            self.lower_limit_stride,
            self.upper_limit_stride,
            self.cropping,
            self.smoothness_factor,
            self.keep_parity,
            self.size_step,
            self.smallest_size,
        )

    @property
    def _final_low_pass(self) -> LowPass:
        """The mask, at the smoothness that a schedule ends with."""
        if self.final_smoothness_factor is None:
            return self.low_pass
        return dataclasses.replace(
            self.low_pass, smoothness=self.final_smoothness_factor
        )

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
            `FixedSpectralPooling` at the same stride (as far as parity and
            smallest size are those of the release), while the stride's
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
        keep_parity: whether maps of even sizes stay even and odd ones odd, as
            released. If not, sizes change one by one, which matters to small
            maps; with the inner ramp, or a smoothness of 0, they are then
            `ceil(size / stride)`, those of strided convolutions.
        size_step: an integer >= 1. Output sizes are rounded up to a multiple of
            it (to an even one where parity is kept, from an odd size to one
            more), at most to the size of the input, so that fewer sizes occur
            and less is compiled. The masks of `"outer"` and `"inner"` stay as
            they are, and maps have more samples; `"straight_through"` crops to
            the size. A map no larger than the step keeps its size.
        smallest_size: lower bound of the nominal size, `size / stride`. `None`
            stands for 2, as released (`DCTDiffStride`: 1). With 1, and
            `keep_parity=False`, maps may shrink to their mean along an axis,
            as those of strided convolutions do. There strides receive no
            gradient; with the outer ramp they have one down to there.
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
        sizes of `FixedSpectralPooling`. With `keep_parity=False` these are
        `ceil(2 * smoothness_factor + max(size / stride, 2))`, `ceil(max(size /
        stride, 2))` and `max(size // stride, 2)`. In all of them 2 is the
        `smallest_size`. As the strides may change, static shapes show `None`
        there when cropping, unless frozen.

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
        super().__init__(
            strides=strides, norm=norm, data_format=data_format, **kwargs
        )
        self._crop = HardCrop(self.strides, self._matrix_dtype)

    def build(self, input_shape: tuple) -> None:
        """Creates the weight that records the strides."""
        self.stride_weights = self.add_weight(
            name="strides",
            shape=(self.rank,),
            dtype=self._matrix_dtype,
            initializer=initial_value(self.strides),
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
