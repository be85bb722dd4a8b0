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

from diffstride import DiffStride, FixedSpectralPooling, fourier, resampling
from diffstride.masks import RAMPS


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
    """A layer, and how it is compiled."""

    make: Callable[[], keras.layers.Layer]
    # Whether its sizes are held while it is compiled.
    static: bool = False
    # Whether XLA compiles it. JAX always does, torch never.
    jit: bool = False
    # From which size on the imaginary part of a matrix is taken as two factors.
    low_rank_size: int = resampling.LOW_RANK_SIZE
    # From which size on an axis goes by FFT.
    fft_size: int = fourier.FFT_SIZE


def layer_contenders(case: Case) -> dict[str, Contender]:
    """Lists the layers that are compared on one input.

    The last two differ in nothing but the form of the imaginary part, of which
    the layer chooses one.
    """

    def layer(cls: Callable, *args: Any, **kwargs: Any) -> Callable:
        return functools.partial(
            cls, *args, data_format=case.data_format, **kwargs
        )

    contenders = {
        "FFT form": Contender(layer(FFTForm, case.stride)),
        "FixedSpectralPooling": Contender(
            layer(FixedSpectralPooling, case.stride)
        ),
    }
    if has_convolutions(case.data_format):
        stride = int(case.stride)
        contenders["strided convolution"] = Contender(
            layer(
                keras.layers.Conv2D,
                *(case.channels, 3, stride, "same"),
                use_bias=False,
            )
        )
        contenders["average pooling"] = Contender(
            layer(keras.layers.AveragePooling2D, stride, padding="same")
        )
    for ramp in RAMPS:
        name = ramp.replace("_", "-")
        make = layer(DiffStride, case.stride, ramp=ramp)
        if BACKEND != "jax":
            contenders[f"{name}, dynamic"] = Contender(make)
        if BACKEND != "torch":
            contenders[f"{name}, static"] = Contender(make, static=True)
        if BACKEND == "tensorflow" and ramp == "outer":
            contenders[f"{name}, static, XLA"] = Contender(make, True, True)
    make = layer(DiffStride, case.stride)
    for name, size in (("whole", 10**9), ("low rank", 0)):
        contenders[f"outer, imaginary part {name}"] = Contender(
            make, static=BACKEND != "torch", low_rank_size=size
        )
    return contenders


def network_contenders() -> dict[str, Any]:
    """Lists the networks that are compared, by the arguments of `resnet18`.

    A hard mask is what a schedule of the smoothness ends with.
    """
    classes = {
        "strided": None,
        "spectral": FixedSpectralPooling,
        "outer": DiffStride,
        "outer, strides fixed": functools.partial(DiffStride, trainable=False),
        "outer's floor: slices": functools.partial(Slice, frozen=True),
        "inner": functools.partial(DiffStride, ramp="inner"),
        "straight-through": functools.partial(
            DiffStride, ramp="straight_through"
        ),
    }
    before = {
        "spectral": FixedSpectralPooling,
        "outer": DiffStride,
        "outer, hard": functools.partial(DiffStride, smoothness_factor=0.0),
        "inner": classes["inner"],
    }
    return {name: {"pooling_cls": cls} for name, cls in classes.items()} | {
        f"{name}, before": {"pooling_cls": cls, "pooling_placement": "before"}
        for name, cls in before.items()
    }


class Slice(DiffStride):
    """The least that pooling to the sizes of a frozen DiffStride can cost."""

    def call(self, inputs: Any) -> Any:
        """Returns the upper left corner."""
        shape = self.compute_output_shape(inputs.shape)
        height, width = (shape[axis] for axis in self.spatial_axes)
        if self.data_format == "channels_last":
            return inputs[:, :height, :width, :]
        return inputs[:, :, :height, :width]


def has_convolutions(data_format: str) -> bool:
    """Whether the backend has them: TensorFlow has one format on a CPU."""
    return data_format == "channels_last" or BACKEND != "tensorflow" or on_gpu()
