"""What the benchmark compares: layers on one input, and poolings of ResNet-18.

`layer_contenders` and `network_contenders` list them by the names that the
results and tables use. How a layer is called is in `calls.py`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from fft_form import FFTForm
from timing import BACKEND, on_gpu

from diffstride import DiffStride, FixedSpectralPooling, resampling

RAMPS = {
    "outer": "outer",
    "inner": "inner",
    "straight-through": "straight_through",
}


class Case(NamedTuple):
    """An input of the layers, and their stride."""

    batch: int
    size: int
    channels: int
    data_format: str
    stride: float

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        sizes = (self.size, self.size)
        if self.data_format == "channels_last":
            return (self.batch, *sizes, self.channels)
        return (self.batch, self.channels, *sizes)


class Contender(NamedTuple):
    """A layer, and how it is compiled.

    Attributes:
        make: makes the layer.
        static: whether its sizes are held while it is compiled.
        jit: whether XLA compiles it. JAX always does, torch never.
        low_rank_size: the size from which on the imaginary part of a matrix is
            taken as two factors.
    """

    make: Callable[[], keras.layers.Layer]
    static: bool = False
    jit: bool = False
    low_rank_size: int = resampling.LOW_RANK_SIZE


class Slice(keras.layers.Layer):
    """The least that a pooling to the sizes of a DiffStride layer can cost."""

    commutes_with_pointwise = True

    def __init__(self, strides: Any, data_format: str | None = None, **kwargs):
        super().__init__(**kwargs)
        self.model = DiffStride(strides, data_format=data_format, frozen=True)

    def call(self, inputs: Any) -> Any:
        """Returns the upper left corner."""
        shape = self.model.compute_output_shape(inputs.shape)
        height, width = (shape[axis] for axis in self.model.spatial_axes)
        if self.model.data_format == "channels_last":
            return inputs[:, :height, :width, :]
        return inputs[:, :, :height, :width]

    def compute_output_shape(self, input_shape: tuple) -> tuple:
        """Returns the shape of the corner."""
        return self.model.compute_output_shape(input_shape)


def layer_contenders(case: Case) -> dict[str, Contender]:
    """Lists the layers that are compared on one input.

    Args:
        case: the input.

    Returns:
        Contenders by name. The last two differ in nothing but the form of the
        imaginary part, of which the layer chooses one.
    """
    kwargs = {"data_format": case.data_format}
    contenders = {
        "FFT form": Contender(lambda: FFTForm(case.stride, **kwargs)),
        "FixedSpectralPooling": Contender(
            lambda: FixedSpectralPooling(case.stride, **kwargs)
        ),
    }
    if case.stride.is_integer() and has_convolutions(case.data_format):
        stride = int(case.stride)
        contenders["strided convolution"] = Contender(
            lambda: keras.layers.Conv2D(
                case.channels, 3, stride, "same", use_bias=False, **kwargs
            )
        )
        contenders["average pooling"] = Contender(
            lambda: keras.layers.AveragePooling2D(
                stride, padding="same", **kwargs
            )
        )
    for name, ramp in RAMPS.items():
        make = functools.partial(DiffStride, case.stride, ramp=ramp, **kwargs)
        if BACKEND != "jax":
            contenders[f"{name}, dynamic"] = Contender(make)
        if BACKEND != "torch":
            contenders[f"{name}, static"] = Contender(make, static=True)
        if BACKEND == "tensorflow" and ramp == "outer":
            contenders[f"{name}, static, XLA"] = Contender(make, True, True)
    make = functools.partial(DiffStride, case.stride, **kwargs)
    static = BACKEND != "torch"
    for name, threshold in (("whole", 10**9), ("low rank", 0)):
        contenders[f"outer, imaginary part {name}"] = Contender(
            make, static, low_rank_size=threshold
        )
    return contenders


def network_contenders() -> dict[str, Any]:
    """Lists the pooling classes of the networks that are compared, by name."""
    return {
        "strided": None,
        "spectral": FixedSpectralPooling,
        "outer": DiffStride,
        "outer, strides fixed": functools.partial(DiffStride, trainable=False),
        "outer's floor: slices": Slice,
        "inner": functools.partial(DiffStride, ramp="inner"),
        "straight-through": functools.partial(
            DiffStride, ramp="straight_through"
        ),
    }


def has_convolutions(data_format: str) -> bool:
    """Whether the backend has them: TensorFlow has one format on a CPU."""
    return data_format == "channels_last" or BACKEND != "tensorflow" or on_gpu()
