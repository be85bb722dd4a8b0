"""From learned strides to plain networks with fixed ones."""

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride import arguments
from diffstride.cost import ModelCost, cost_of_calls, model_cost
from diffstride.formatting import aligned, human
from diffstride.internals import sublayers
from diffstride.pooling import BaseDiffStride, BaseSpectralPooling
from diffstride.profiling import (
    Call,
    PoolingState,
    first_calls,
    known_shape,
    pooling_states,
    profile,
)
from diffstride.resnet import BatchNormReLU, ResidualLayer, ResnetBlock
from diffstride.static import learned_layers
from diffstride.surgery import copy_weights, rebuilt

_TARGETS = ("spectral", "strided")
_POOLING = {
    1: keras.layers.AveragePooling1D,
    2: keras.layers.AveragePooling2D,
    3: keras.layers.AveragePooling3D,
}


def harden(
    model: keras.Model,
    to: str = "spectral",
    input_shape: Any = None,
    verbose: bool = True,
) -> keras.Model:
    """Makes a network with fixed strides of one that has learned them.

    Both forms have the weights of the model. They are exact where nothing had
    to be rounded, and else a start for fine-tuning.

    - `"spectral"`: the sizes of all maps stay, and masks become hard: each
      layer crops the spectrum to the size that it has learned. After a
      `SmoothnessSchedule` down to 0 nothing changes.
    - `"strided"`: no layer of this package is left, and the model loads without
      it. Strides become integers, those that come closest to the learned sizes.
      A convolution that a pooling followed takes its stride, in a residual
      layer and in a `keras.Sequential`; elsewhere average pooling does.

    Args:
        model: a built model with DiffStride layers.
        to: `"spectral"` or `"strided"`.
        input_shape: shape of one example, without batch dimension. Needed if
            the model was built for inputs of unknown size.
        verbose: whether to print what has changed, layer by layer.

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: if the model is not built, has no DiffStride layers, or has
            them where they cannot be replaced.
    """
    arguments.choice("to", to, _TARGETS)
    calls = profile(model, input_shape)
    plan = _plan(calls, integers=to == "strided")
    if not plan:
        raise ValueError(
            "`harden` needs a model with DiffStride layers. Received: "
            f"{model.name}, without any"
        )
    hardened = (_spectral if to == "spectral" else _strided)(model, plan)
    if verbose:
        before = cost_of_calls(model, calls)
        after = model_cost(hardened, input_shape or known_shape(model))
        print(_report(plan, before, after))
    return hardened


class _Step(NamedTuple):
    """What becomes of a layer: strides and sizes, one for each axis."""

    learned: PoolingState
    strides: tuple
    output_size: tuple[int, ...]


def _plan(calls: Sequence[Call], integers: bool) -> dict[int, _Step]:
    """The step of each spectral pooling that is called, by its identity."""
    plan: dict[int, _Step] = {}
    scale: Any = 1.0  # Of the new sizes, as rounding accumulates.
    for call, state in zip(
        first_calls(calls), pooling_states(calls), strict=True
    ):
        layer = call.layer
        if not isinstance(layer, BaseSpectralPooling):
            continue
        learned = np.array(state.output_size)
        size = np.maximum(np.rint(np.array(state.input_size) * scale), 1)
        if integers:
            strides = tuple(map(_closest, size.astype(int), learned))
            output = -(-size // strides)
        else:
            # The way that sizes are rounded must not come to a next one.
            down = getattr(layer, "ramp", None) == "straight_through"
            exact = size / learned * (1 - 1e-6 if down else 1 + 1e-6)
            strides = tuple(np.maximum(exact, 1.0).tolist())
            output = learned
        scale = output / learned
        sizes = tuple(output.astype(int).tolist())
        plan[id(layer)] = _Step(state, strides, sizes)
    return plan


def _closest(size: int, output_size: int) -> int:
    """The integer stride whose output, padded, is closest to a size."""
    return min(
        range(1, int(size) + 1),
        key=lambda s: abs(math.log(math.ceil(size / s) / output_size)),
    )


def _spectral(model: keras.Model, plan: dict[int, _Step]) -> keras.Model:
    copy = rebuilt(model)
    for layer, source in zip(
        learned_layers(copy), learned_layers(model), strict=True
    ):
        layer.freeze()
        if id(source) in plan:
            layer.strides = plan[id(source)].strides
            layer.smoothness_factor = 0.0
            if layer.ramp == "inner":
                layer.ramp = "outer"
            layer.final_smoothness_factor = None
            layer.shared_stride = False
    hardened = rebuilt(copy)
    for source, layer in zip(
        sublayers(model), sublayers(hardened), strict=True
    ):
        if not isinstance(layer, BaseDiffStride):
            copy_weights(source, layer)
    return hardened


def _strided(model: keras.Model, plan: dict[int, _Step]) -> keras.Model:
    hardened = _Plain(model, plan).model()
    if left := learned_layers(hardened):
        raise ValueError(
            f"`harden` cannot replace {left[0].path}: it is inside of a layer "
            "that is no Keras model. Put it into a functional model or a "
            "`keras.Sequential`, or use `to='spectral'`."
        )
    return hardened


class _Plain:
    """Makes a model of Keras's own layers."""

    def __init__(self, model: keras.Model, plan: dict[int, _Step]):
        self._model = model
        self._plan = plan
        self._pairs: list[tuple] = []
        # Convolutions that take the stride of the pooling that follows them.
        self._taken: dict[int, tuple | None] = {}
        for chain in sublayers(model):
            if isinstance(chain, keras.Sequential):
                for conv, pooling in itertools.pairwise(chain.layers):
                    if id(pooling) in plan and _can_stride(conv):
                        self._taken[id(conv)] = plan[id(pooling)].strides
                        self._taken[id(pooling)] = None

    def model(self) -> keras.Model:
        """Makes it, with the weights."""
        model = keras.models.clone_model(
            self._model, clone_function=self._layer, recursive=True
        )
        for source, copy in self._pairs:
            copy_weights(source, copy)
        return model

    def _layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in self._plan:
            return self._pooling(layer)
        if isinstance(layer, ResnetBlock):
            return self._residual(layer.name, layer.layers)
        if isinstance(layer, ResidualLayer):
            return self._residual(layer.name, [layer])
        if isinstance(layer, BatchNormReLU):
            return keras.Sequential(
                self._norm_relu(layer, layer.name), name=layer.name
            )
        return self._copy(layer, layer.name, self._taken.get(id(layer)))

    def _pooling(self, layer: BaseDiffStride) -> keras.layers.Layer:
        strides = self._plan[id(layer)].strides
        if id(layer) in self._taken or set(strides) == {1}:
            return keras.layers.Identity(name=layer.name)
        return _POOLING[layer.rank](
            strides,
            strides,
            padding="same",
            data_format=layer.data_format,
            dtype=layer.dtype_policy,
            name=layer.name,
        )

    def _residual(
        self, name: str, layers: Sequence[ResidualLayer]
    ) -> keras.Model:
        """The graph of a chain of residual layers."""
        channels = layers[0].bn_in.gamma.shape[0]
        first = layers[0].channels_first
        inputs = keras.Input(
            (channels, None, None) if first else (None, None, channels)
        )
        x = inputs
        for layer in layers:
            strides = None
            if layer.pooling is not None:
                strides = self._plan[id(layer.pooling)].strides
            main = [
                *self._norm_relu(layer.bn_in, f"{layer.name}_bn_in"),
                self._copy(layer.conv_in, f"{layer.name}_conv_in", strides),
                *self._norm_relu(layer.bn_out, f"{layer.name}_bn_out"),
                self._copy(layer.conv_out, f"{layer.name}_conv_out"),
            ]
            shortcut = x
            if layer.project:
                shortcut = self._copy(
                    layer.conv_shortcut, f"{layer.name}_conv_shortcut", strides
                )(x)
            for each in main:
                x = each(x)
            x = keras.layers.Add(name=f"{layer.name}_add")([x, shortcut])
        return keras.Model(inputs, x, name=name)

    def _norm_relu(
        self, layer: BatchNormReLU, name: str
    ) -> list[keras.layers.Layer]:
        config = {**layer.get_config(), "name": name}
        norm = keras.layers.BatchNormalization.from_config(config)
        self._pairs.append((layer, norm))
        return [norm, keras.layers.ReLU(dtype=layer.dtype_policy)]

    def _copy(
        self, layer: keras.layers.Layer, name: str, strides: tuple | None = None
    ) -> keras.layers.Layer:
        config = {**layer.get_config(), "name": name}
        if strides is not None:
            config["strides"] = strides
        copy = type(layer).from_config(config)
        # An operation of `keras.ops` has no weights.
        if isinstance(layer, keras.layers.Layer):
            self._pairs.append((layer, copy))
        return copy


def _can_stride(layer: keras.layers.Layer) -> bool:
    convolutions = (
        keras.layers.Conv1D,
        keras.layers.Conv2D,
        keras.layers.Conv3D,
    )
    return (
        type(layer) in convolutions
        and layer.padding == "same"
        and {*layer.strides, *layer.dilation_rate} == {1}
    )


def _report(
    plan: dict[int, _Step],
    before: ModelCost,
    after: ModelCost,
) -> str:
    """Lays out what has become of strides, sizes and cost."""
    rows = [("pooling layer", "in", "stride", "out", "stride now", "out now")]
    for step in plan.values():
        state = step.learned
        rows.append(
            (
                state.name,
                _product(state.input_size),
                _product(f"{s:.2f}" for s in state.strides),
                _product(state.output_size),
                _product(f"{s:.4g}" for s in step.strides),
                _product(step.output_size),
            )
        )
    return "\n".join(
        [
            *aligned(rows),
            f"multiply-accumulates: {human(before.macs)}, now "
            f"{human(after.macs)}",
        ]
    )


def _product(values: Iterable[Any]) -> str:
    return " x ".join(map(str, values))
