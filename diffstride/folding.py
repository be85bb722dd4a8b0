"""Strides of poolings that convolutions take, when a network is hardened."""

import collections
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras

from diffstride.internals import sublayers
from diffstride.pooling import BaseSpectralPooling
from diffstride.profiling import Call
from diffstride.residual import ResidualLayer

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
# What acts on each point of a map, and so on those that a stride leaves.
_OF_POINTS = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dropout,
    keras.layers.ELU,
    keras.layers.Identity,
    keras.layers.LeakyReLU,
    keras.layers.ReLU,
)


class FoldedStride(NamedTuple):
    """A stride along one axis, that a convolution takes from a pooling.

    Attributes:
        conv: identity of the convolution.
        pooling: identity of the pooling.
        axis: the axis of its maps.
        layers: identities of the layers whose outputs have another size along
            the axis then: from the convolution to the pooling, or from there to
            the convolution.
        earlier: whether the convolution comes before the pooling.
    """

    conv: int
    pooling: int
    axis: int
    layers: tuple[int, ...]
    earlier: bool

    def resized(self, call: Call, calls: Sequence[Call], place: int) -> Call:
        """The call at a place, with the size that its output has then."""
        nearest_first = calls[place + 1 :] if self.earlier else calls[:place]
        if not self.earlier:
            nearest_first = nearest_first[::-1]
        pooling = next(c for c in nearest_first if id(c.layer) == self.pooling)
        whole = pooling.output_shape if self.earlier else pooling.input_shape
        last = pooling.layer.data_format == "channels_last"
        index = self.axis + (1 if last else 2)
        shape = list(call.output_shape)
        shape[index] = whole[index]
        return call._replace(output_shape=tuple(shape))


def folded_strides(
    model: keras.Model, to: str, calls: Sequence[Call]
) -> list[FoldedStride]:
    """Finds the strides that convolutions take from poolings.

    Args:
        model: a model that has learned strides.
        to: as in `harden`.
        calls: what the model calls.
    """
    if to == "pooled":
        return []
    folded: list[FoldedStride] = []
    chains = []
    for part in sublayers(model):
        if isinstance(part, ResidualLayer) and part.pooling is not None:
            folded += _of_residual(part)
        elif isinstance(part, keras.Sequential):
            chains.append(part.layers)
    times = collections.Counter(id(call.layer) for call in calls)
    homes = collections.Counter(
        id(layer) for chain in chains for layer in chain
    )
    taken: set[tuple[int, int]] = set()
    given: set[tuple[int, int]] = set()
    # Those before their pooling first: nothing changes there.
    for find in (_before, _after):
        for found in (each for chain in chains for each in find(chain)):
            conv, pooling = (
                (found.conv, found.axis),
                (found.pooling, found.axis),
            )
            alone = homes[found.conv] == homes[found.pooling] == 1
            alike = times[found.conv] == times[found.pooling]
            if alone and alike and conv not in taken and pooling not in given:
                taken.add(conv)
                given.add(pooling)
                folded.append(found)
    return folded


def _of_residual(layer: ResidualLayer) -> Iterator[FoldedStride]:
    earlier = {id(layer.conv_in): layer.pooling_placement == "after"}
    if layer.project:
        earlier[id(layer.conv_shortcut)] = not layer._pool_first
    for conv, before in earlier.items():
        for axis in range(layer.pooling.rank):
            resized = (conv,) if before else ()
            yield FoldedStride(conv, id(layer.pooling), axis, resized, before)


def _before(chain: Sequence[Any]) -> Iterator[FoldedStride]:
    """Those of the last convolutions that see more than points along an axis.

    What is between acts on points, so that nothing changes but that the values
    which the stride drops are not computed.
    """
    for place, axis in _poolings(chain):
        pooling = chain[place]
        conv, passed = _first_wide(chain[:place][::-1], axis, pooling)
        if conv is not None:
            layers = (*passed, id(conv))
            yield FoldedStride(id(conv), id(pooling), axis, layers, True)


def _after(chain: Sequence[Any]) -> Iterator[FoldedStride]:
    """Those of the first such convolutions behind a pooling.

    If there is a convolution right before it, of size 1 along the axis: with
    the stride it would drop values that nothing has seen.
    """
    for place, axis in _poolings(chain):
        pooling = chain[place]
        for layer in chain[:place][::-1]:
            if not isinstance(layer, _OF_POINTS):
                break
        else:
            continue
        if not (_can_stride(layer) and layer.kernel_size[axis] == 1):
            continue
        conv, passed = _first_wide(chain[place + 1 :], axis, pooling)
        if conv is not None:
            layers = tuple(passed)
            yield FoldedStride(id(conv), id(pooling), axis, layers, False)


def _first_wide(
    layers: Sequence[Any], axis: int, pooling: BaseSpectralPooling
) -> tuple[Any, list[int]]:
    """The first convolution that sees more than points along an axis.

    `None` if something else comes first; and the identities of what is passed.
    """
    passed: list[int] = []
    for layer in layers:
        wide = _width(layer, axis, pooling)
        if wide is None:
            break
        if wide > 1:
            return layer, passed
        passed.append(id(layer))
    return None, passed


def _poolings(chain: Sequence[Any]) -> Iterator[tuple[int, int]]:
    """Places of the spectral poolings of a chain, with each of their axes."""
    for place, layer in enumerate(chain):
        if isinstance(layer, BaseSpectralPooling):
            for axis in range(layer.rank):
                yield place, axis


def _width(layer: Any, axis: int, pooling: BaseSpectralPooling) -> int | None:
    """How many points along an axis each output depends on.

    `None` if the layer cannot do with a stride in front of it, or take one.
    """
    last = pooling.data_format == "channels_last"
    activation = getattr(layer, "activation", None)
    if not last and activation is keras.activations.softmax:
        return None  # It is over the last axis, which is none of channels.
    if _can_stride(layer):
        return layer.kernel_size[axis]
    if not isinstance(layer, _OF_POINTS):
        return None
    if isinstance(layer, keras.layers.BatchNormalization):
        ndim = pooling.rank + 2
        channels = ndim - 1 if last else 1
        return 1 if layer.axis in (channels, channels - ndim) else None
    return None if getattr(layer, "noise_shape", None) else 1


def _can_stride(layer: Any) -> bool:
    return (
        type(layer) in _CONVOLUTIONS
        and layer.padding == "same"
        and {*layer.strides, *layer.dilation_rate} == {1}
    )
