"""What a model costs at its current strides: products and activations."""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
from keras import layers

from diffstride.budget import stride_cost
from diffstride.formatting import aligned, human
from diffstride.internals import sublayers
from diffstride.profiling import Call, axes_of, path_in, pooling_states, profile
from diffstride.resampling import resample_macs
from diffstride.resizing import BaseSpectralResize
from diffstride.strided import PoolingLayer


class LayerCost(NamedTuple):
    """What one call of a layer costs, for one example.

    Attributes:
        name: path of the layer inside of the model.
        kind: name of its class.
        input_shape: shape of its input, without batch dimension.
        output_shape: shape of its output, without batch dimension.
        macs: number of multiply-accumulates.
        activation_bytes: size of its outputs.
    """

    name: str
    kind: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    activation_bytes: int


class ModelCost(NamedTuple):
    """What a model costs, for one example.

    Attributes:
        macs: number of multiply-accumulates.
        activation_bytes: size of the outputs of all leaf layers.
        layers: the calls of leaf layers in their order. A layer that is called
            twice is there twice.
        unknown: names of the layers that have weights and are of a kind whose
            multiply-accumulates are not known here, hence not counted.
    """

    macs: int
    activation_bytes: int
    layers: tuple[LayerCost, ...]
    unknown: tuple[str, ...]

    def totals(self) -> dict[str, int]:
        """Returns what is logged."""
        return {"macs": self.macs, "activation_bytes": self.activation_bytes}


def model_cost(model: keras.Model, input_shape: Any = None) -> ModelCost:
    """Counts what a model does to one example, at its strides as they are.

    One blank example is sent through it. Nothing is kept: another call, after
    strides have moved, gives another count.

    Multiply-accumulates are those of products with weights: convolutions
    (padding counts as input), dense layers, and the matrix products of spectral
    pooling and DiffStride. Their matrices are made once for a batch, which is
    not counted. The FFTs that resample long axes count 2.5 n log2 n each.
    Elementwise work is not counted, such as normalisation, activations, sums,
    averages.

    Activations are the outputs of all leaf layers (those without layers of
    their own), in bytes of their dtype: about what training keeps for the
    gradient. It is a figure to compare models by, and not the peak of memory:
    results of what a model computes outside of its leaf layers, such as the
    sums of a `Resnet`, are not seen.

    Args:
        model: any built model.
        input_shape: shape of one example, without batch dimension; for several
            inputs a list or dictionary of shapes. `None` stands for the shape
            that the model was built with.

    Returns:
        A `ModelCost`.

    Raises:
        ValueError: if the model is not built, or if it was built for inputs of
            unknown size and no shape is given.
    """
    return cost_of_calls(model, profile(model, input_shape))


def cost_of_calls(model: keras.Model, calls: Sequence[Call]) -> ModelCost:
    """Counts what a model does, from the calls that `profile` returned."""
    costs = tuple(
        LayerCost(
            name=call.name,
            kind=type(call.layer).__name__,
            input_shape=call.input_shape[1:],
            output_shape=call.output_shape[1:],
            macs=layer_macs(call),
            activation_bytes=call.output_bytes,
        )
        for call in calls
    )
    return ModelCost(
        macs=sum(cost.macs for cost in costs),
        activation_bytes=sum(cost.activation_bytes for cost in costs),
        layers=costs,
        unknown=_unknown(model),
    )


def scalars(model: keras.Model, calls: Sequence[Call]) -> dict[str, float]:
    """Returns what to log of a model, from the calls that `profile` returned.

    For each pooling layer its strides and output size; `stride_cost`, J of the
    learned ones if there are any; `macs` and `activation_bytes`.
    """
    values: dict[str, float] = {}
    states = pooling_states(calls)
    for state in states:
        names = axes_of(model, len(state.strides))
        for axis, stride, size in zip(
            names, state.strides, state.output_size, strict=True
        ):
            values[f"stride/{state.name}/{axis}"] = stride
            values[f"output_size/{state.name}/{axis}"] = size
    # States have a stride for each axis.
    if learned := [state.strides for state in states if state.learned]:
        values["stride_cost"] = float(stride_cost(learned, rank=1))
    return {**values, **cost_of_calls(model, calls).totals()}


def format_cost(cost: ModelCost) -> str:
    """Lays out a cost as a table.

    Args:
        cost: what `model_cost` returns.

    Returns:
        A line for each call of a layer, then the total.
    """
    rows = [("layer", "kind", "input", "output", "MACs", "activations")]
    rows += [
        (
            layer.name,
            layer.kind,
            " x ".join(map(str, layer.input_shape)),
            " x ".join(map(str, layer.output_shape)),
            human(layer.macs),
            human(layer.activation_bytes, "B"),
        )
        for layer in cost.layers
    ]
    total = (human(cost.macs), human(cost.activation_bytes, "B"))
    rows.append(("total", "", "", "", *total))
    lines = aligned(rows, right=(4, 5))
    if cost.unknown:
        lines.append(f"MACs not counted: {', '.join(cost.unknown)}")
    return "\n".join(lines)


_CONVOLUTIONS = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv3D,
    layers.DepthwiseConv1D,
    layers.DepthwiseConv2D,
)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_TRANSPOSED = (
    layers.Conv1DTranspose,
    layers.Conv2DTranspose,
    layers.Conv3DTranspose,
)
_COUNTED = (
    *_CONVOLUTIONS,
    *_SEPARABLE,
    *_TRANSPOSED,
    layers.Dense,
    PoolingLayer,
    BaseSpectralResize,
)
_ELEMENTWISE = (
    layers.BatchNormalization,
    layers.Embedding,
    layers.GroupNormalization,
    layers.LayerNormalization,
    layers.Normalization,
    layers.PReLU,
    layers.RMSNormalization,
)


def layer_macs(call: Call) -> int:
    """Counts multiply-accumulates of a call, whatever its batch axis is."""
    layer = call.layer
    inputs, outputs = math.prod(call.input_shape), math.prod(call.output_shape)
    if isinstance(layer, PoolingLayer):
        return layer.macs(call.input_shape)
    if isinstance(layer, BaseSpectralResize):
        bands = layer.bands(
            layer.sizes_in(call.input_shape), layer.sizes_in(call.output_shape)
        )
        return resample_macs(call.input_shape, bands, layer.data_format)
    if isinstance(layer, layers.Dense):
        return outputs * call.input_shape[-1]
    if isinstance(layer, _SEPARABLE):
        # The stride is that of the depthwise part.
        positions = outputs // layer.filters
        kernels = (layer.depthwise_kernel, layer.pointwise_kernel)
        return positions * sum(math.prod(kernel.shape) for kernel in kernels)
    if isinstance(layer, _TRANSPOSED):
        # (sizes, filters, input channels): each input meets all filters.
        return inputs * math.prod(layer.kernel.shape[:-1])
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        # (sizes, channels, multiplier): each output comes of one channel.
        return outputs * math.prod(layer.kernel.shape[:-2])
    if isinstance(layer, _CONVOLUTIONS):
        # (sizes, input channels of a group, filters).
        return outputs * math.prod(layer.kernel.shape[:-1])
    return 0


def _unknown(model: keras.Model) -> tuple[str, ...]:
    # Also layers with layers inside, and those that were not seen being called:
    # a recurrent layer need not call its cell.
    unknown = [
        layer
        for layer in sublayers(model)
        if _own_weights(layer)
        and not isinstance(layer, (*_COUNTED, *_ELEMENTWISE))
    ]
    names = tuple(path_in(model, layer) for layer in unknown)
    if unknown:
        kinds = sorted({type(layer).__name__ for layer in unknown})
        warnings.warn(
            "The multiply-accumulates of these layers are not known, and not "
            f"counted: {', '.join(names)} (of kind {', '.join(kinds)})",
            stacklevel=1,  # One place: Python tells each text once.
        )
    return names


def _own_weights(layer: keras.layers.Layer) -> list[Any]:
    """The weights of a layer that are not those of a layer inside of it."""
    _, *inner = sublayers(layer)
    others = {id(weight) for each in inner for weight in each.weights}
    return [weight for weight in layer.weights if id(weight) not in others]
