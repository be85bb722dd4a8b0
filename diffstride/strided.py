"""What pooling layers share: maps, strides, and strides that are learned.

Strides are input size / output size along each axis. All that logs, counts,
freezes or bounds strides goes by the classes here, whatever the layer does with
them.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from diffstride import arguments
from diffstride.static import LearnedSizes

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


class BaseMapLayer(keras.layers.Layer):
    """What layers of maps share: format, axes, dtypes.

    A subclass sets `rank`, the number of spatial axes.
    """

    rank: int

    def __init__(self, data_format: str | None, **kwargs: Any):
        super().__init__(**kwargs)
        if not keras.backend.is_float_dtype(self.compute_dtype):
            raise arguments.refusal(
                "dtype", "a floating-point type", self.compute_dtype
            )
        self.data_format = arguments.data_format(data_format)
        self.input_spec = keras.layers.InputSpec(ndim=self.rank + 2)

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {**super().get_config(), "data_format": self.data_format}

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


class PoolingLayer:
    """Mixin of the pooling layers that are ours: they are logged and counted.

    They have `strides`, one for each axis, and `data_format`.
    """

    def macs(self, input_shape: Sequence[int]) -> int:
        """Counts the multiply-accumulates of a call, whatever the batch is.

        Args:
            input_shape: shape of its input, all of it known.

        Returns:
            Their number; 0 for sums and maxima alone, which are not counted.
        """
        return 0


class WindowPooling(PoolingLayer):
    """Mixin of a Keras pooling layer, whose arguments it checks."""

    def __init__(
        self,
        pool_size: int | Sequence[int],
        strides: int | Sequence[int],
        padding: str,
        data_format: str | None,
        **kwargs: Any,
    ):
        super().__init__(
            pool_size=arguments.integers("pool_size", pool_size),
            strides=arguments.integers("strides", strides),
            padding=arguments.choice("padding", padding, _PADDINGS),
            data_format=data_format,
            **kwargs,
        )


class Strided(PoolingLayer):
    """Mixin of a `BaseMapLayer` with a real stride for each axis.

    A subclass gives `_static_sizes(sizes)`, what is known of the output sizes
    in advance.
    """

    def __init__(self, strides: float | Sequence[float], **kwargs: Any):
        super().__init__(**kwargs)
        self.strides = arguments.strides("strides", strides, self.rank)

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
        """Loads the strides, where they are a weight.

        Args:
            store: mapping of names to arrays.

        Raises:
            ValueError: if sizes come from the argument `strides` and the loaded
                strides differ from it.
        """
        super().load_own_variables(store)
        if not self._strides_are_constant:
            return
        loaded = getattr(self, "stride_weights", self.strides)
        loaded = ops.convert_to_numpy(loaded)
        if not all(
            math.isclose(a, b, rel_tol=1e-5)
            for a, b in zip(loaded, self.strides, strict=False)
        ):
            raise ValueError(
                f"{self.name} was built with strides={self.strides}, but the "
                f"weights were saved with strides={tuple(loaded.tolist())}. "
                "Build the layer with those strides."
            )

    def _static_sizes(self, sizes: tuple) -> tuple:
        raise NotImplementedError

    @property
    def _strides_are_constant(self) -> bool:
        return True


class BaseLearnedPooling(LearnedSizes, Strided, BaseMapLayer):
    """Downsampling with learned strides: the variable, and what holds it.

    A subclass gives `output_sizes(sizes, strides)`. Its `call` reads
    `scaled_strides()`, or `initial_strides` where it is `frozen`.
    """

    cropping = True
    final_smoothness_factor: float | None = None

    def __init__(
        self,
        strides: float | Sequence[float],
        trainable: bool,
        shared_stride: bool,
        lower_limit_stride: float | None,
        upper_limit_stride: float | None,
        stride_lr_multiplier: float,
        frozen: bool,
        **kwargs: Any,
    ):
        frozen = arguments.boolean("frozen", frozen)
        trainable = arguments.boolean("trainable", trainable)
        super().__init__(
            strides=strides, trainable=trainable and not frozen, **kwargs
        )
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
        self.stride_lr_multiplier = arguments.number(
            "stride_lr_multiplier", stride_lr_multiplier
        )
        self.frozen = frozen
        self.supports_jit = self.compiles()

    def build(self, input_shape: tuple) -> None:
        """Creates the stride variable, of shape (rank,), or (1,) if shared."""
        self.stride_weights = self.add_weight(
            name="strides",
            shape=self.initial_strides.shape,
            dtype=self._matrix_dtype,
            initializer=initial_value(self.initial_strides),
            constraint=StrideConstraint(
                self.lower_limit_stride, self.upper_limit_stride
            ),
            autocast=False,
        )

    def get_config(self) -> dict:
        """Returns the arguments."""
        return {
            **super().get_config(),
            "shared_stride": self.shared_stride,
            "lower_limit_stride": self.lower_limit_stride,
            "upper_limit_stride": self.upper_limit_stride,
            "stride_lr_multiplier": self.stride_lr_multiplier,
            "frozen": self.frozen,
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
        self.frozen = True
        self.trainable = False

    def frozen_at(self, strides: np.ndarray) -> dict[str, Any]:
        """Returns the attributes that the layer has if frozen at strides."""
        return {
            "frozen": True,
            "shared_stride": False,
            "strides": tuple(np.broadcast_to(strides, self.rank).tolist()),
        }

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
        raise NotImplementedError

    def final_output_sizes(
        self, sizes: Sequence[int], strides: Any
    ) -> tuple[int, ...]:
        """Computes the output sizes when a schedule has come to its end."""
        return self.output_sizes(sizes, strides)

    def used_strides(self, sizes: Sequence[int], strides: Any) -> Any:
        """Returns the strides in force on maps of some sizes, for each axis."""
        raise NotImplementedError

    def scaled_strides(self) -> Any:
        """Returns the stride variable, its gradient multiplied."""
        strides = ops.convert_to_tensor(self.stride_weights)
        if self.stride_lr_multiplier == 1.0:
            return strides
        value = ops.stop_gradient(strides)
        return value + self.stride_lr_multiplier * (strides - value)

    def _static_sizes(self, sizes: tuple) -> tuple:
        if not self.cropping:
            return sizes
        if not self.frozen or None in sizes:
            return (None,) * self.rank
        return self.output_sizes(sizes, self.initial_strides)

    @property
    def _strides_are_constant(self) -> bool:
        return self.frozen


def initial_value(values: Any) -> Any:
    """Returns an initializer that gives these values."""
    return lambda shape, dtype: ops.convert_to_tensor(values, dtype=dtype)
