"""What takes the place of a strided layer: policies, by its class.

A strided layer is the same layer at stride 1, of whose output each `stride`th
sample is kept. The first one of them is kept, too, if the first windows of both
are at one place. With the padding "same" they are not on most maps of even
size: Keras pads less for a stride, and the samples sit at odd positions. Here
the padding is set so that they sit at 0, stride, 2 * stride, where subsampling
and the spectral layers look for them. No layer has to know of an offset.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from diffstride.graphs import Part, copied

_ZERO_PADDING = {
    1: layers.ZeroPadding1D,
    2: layers.ZeroPadding2D,
    3: layers.ZeroPadding3D,
}
_MAX_POOLING = (
    layers.MaxPooling1D,
    layers.MaxPooling2D,
    layers.MaxPooling3D,
)


@dataclasses.dataclass
class Site:
    """A strided layer in its place; what a policy is given.

    Attributes:
        layer: the layer.
        strides: its strides, one for each axis.
        size: size of the maps that it is given, without explicit padding.
        output_size: size of the maps that it returns.
        padding: for each axis what is padded before and after, be it by the
            layer itself or by zero padding before it.
        where: `"before"` or `"after"`, as `convert` was called.
        pooling: stands for the layer that downsamples, in a policy's answer.
    """

    layer: keras.layers.Layer
    strides: tuple[int, ...]
    size: tuple[int, ...]
    output_size: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    where: str = "after"
    pooling: Any = dataclasses.field(default_factory=object, compare=False)
    copy: Any = dataclasses.field(default=None, compare=False)

    @property
    def window(self) -> tuple[int, ...]:
        """Size of the layer's window, dilation included."""
        return window_of(self.layer)

    @property
    def pointwise(self) -> bool:
        """Whether each output sees one position: it may as well come last."""
        return set(self.window) == {1} and not any(map(any, self.padding))

    @property
    def dense_padding(self) -> tuple[tuple[int, int], ...]:
        """Padding at which the layer at stride 1 has the strided windows.

        Those that are added make maps of `output_size * strides`, as far as
        maps do not become larger than they were.
        """
        sides = []
        for size, output, stride, window, (before, after) in zip(
            self.size,
            self.output_size,
            self.strides,
            self.window,
            self.padding,
            strict=True,
        ):
            rest = window - 1 - before
            missing = output * stride - size + rest
            sides.append((before, min(missing, max(rest, after))))
        return tuple(sides)

    @property
    def shrinks(self) -> tuple[int, ...]:
        """How much smaller than `size` the maps are at stride 1."""
        return tuple(
            window - 1 - sum(sides)
            for window, sides in zip(
                self.window, self.dense_padding, strict=True
            )
        )

    def at_stride_1(self, padding: str) -> keras.layers.Layer:
        """Returns the layer at stride 1; it is given the weights later on."""
        # Config of an integer, as of a 1-D layer, or of one for each axis.
        ones = (1,) * len(self.strides)
        self.copy = copied(self.layer, strides=ones, padding=padding)
        return self.copy

    def dense(self) -> list[Part]:
        """Returns what computes all windows: padding, layer at stride 1."""
        sides = self.dense_padding
        if not any(map(any, sides)):
            return [self.at_stride_1("valid")]
        if sides == tuple(((w - 1) // 2, w // 2) for w in self.window):
            return [self.at_stride_1("same")]
        if self.layer.padding == "causal":
            return [self.at_stride_1("causal")]
        return [self._padding(sides), self.at_stride_1("valid")]

    def _padding(self, sides: tuple) -> Part:
        rank, data_format = len(sides), self.layer.data_format
        if isinstance(self.layer, _MAX_POOLING):
            none = [(0, 0)]
            last = data_format == "channels_last"
            return functools.partial(
                keras.ops.pad,
                pad_width=[*none, *sides, *none]
                if last
                else [*none, *none, *sides],
                constant_values=-float("inf"),
            )
        # A mean leaves out what Keras itself pads.
        convolves = hasattr(self.layer, "kernel_size")
        if not convolves and self.layer.padding != "valid":
            raise NotImplementedError(
                "its windows at stride 1 cannot be padded alike; `pool_alone` "
                "does without them"
            )
        return _ZERO_PADDING[rank](
            sides[0] if rank == 1 else sides,
            data_format=data_format,
            dtype=self.layer.dtype_policy,
            name=f"{self.layer.name}_window",
        )


Policy = Callable[[Site], list]


def window_then_pool(site: Site) -> list:
    """All windows of the layer, then the pooling.

    A convolution of window 1 runs after the pooling, on fewer samples, and a
    pooling layer of window 1 does nothing; neither makes a difference. With
    `where="before"` all layers run after the pooling.
    """
    if site.pointwise and not hasattr(site.layer, "kernel_size"):
        return [site.pooling]
    if site.pointwise or site.where == "before":
        return [site.pooling, site.at_stride_1("same")]
    return [*site.dense(), site.pooling]


def pool_alone(site: Site) -> list:
    """The pooling instead of the layer: it averages, too."""
    return [site.pooling]


POLICIES: Mapping[type, Policy | None] = {
    layers.Conv1D: window_then_pool,
    layers.Conv2D: window_then_pool,
    layers.Conv3D: window_then_pool,
    layers.DepthwiseConv1D: window_then_pool,
    layers.DepthwiseConv2D: window_then_pool,
    layers.SeparableConv1D: window_then_pool,
    layers.SeparableConv2D: window_then_pool,
    layers.MaxPooling1D: window_then_pool,
    layers.MaxPooling2D: window_then_pool,
    layers.MaxPooling3D: window_then_pool,
    layers.AveragePooling1D: pool_alone,
    layers.AveragePooling2D: pool_alone,
    layers.AveragePooling3D: pool_alone,
}


def policy_of(layer: Any, policies: Mapping[type, Policy | None]) -> Any:
    """Returns the policy of the closest class that has one."""
    for cls in type(layer).__mro__:
        if cls in policies:
            return policies[cls]
    return None


def per_axis(value: Any, rank: int) -> tuple[int, ...]:
    """Returns a number for each axis, of one or of several."""
    several = isinstance(value, (tuple, list))
    return tuple(value) if several else (value,) * rank


def window_of(layer: Any) -> tuple[int, ...]:
    """Returns the size of a layer's window, dilation included."""
    window = getattr(layer, "kernel_size", None) or layer.pool_size
    rank = len(per_axis(layer.strides, 1))
    dilation = per_axis(getattr(layer, "dilation_rate", 1), rank)
    return tuple(
        (size - 1) * step + 1
        for size, step in zip(per_axis(window, rank), dilation, strict=True)
    )


def padding_of(
    layer: Any, size: tuple[int, ...], output_size: tuple[int, ...]
) -> tuple[tuple[int, int], ...]:
    """Returns what a layer pads before and after, for each axis."""
    sides = []
    strides = per_axis(layer.strides, len(size))
    for n, output, stride, window in zip(
        size, output_size, strides, window_of(layer), strict=True
    ):
        total = 0
        if layer.padding == "same":
            total = max((output - 1) * stride + window - n, 0)
        before = window - 1 if layer.padding == "causal" else total // 2
        sides.append((before, total - total // 2))
    return tuple(sides)
