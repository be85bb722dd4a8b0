"""From learned strides to plain networks with fixed ones."""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import keras

from diffstride import arguments
from diffstride.audio_cnn import WindowedSequential
from diffstride.cost import ModelCost, cost_of_calls, model_cost
from diffstride.formatting import aligned, human
from diffstride.internals import sublayers
from diffstride.parts import BatchNormReLU
from diffstride.pooling import BaseDiffStride, BaseSpectralPooling
from diffstride.profiling import (
    Call,
    known_shape,
    profile,
)
from diffstride.residual import ResidualLayer, ResnetBlock
from diffstride.rounding import (
    Plan,
    at_sizes_of,
    distance,
    hard_in_steps,
    integer_plans,
    spectral_plan,
)
from diffstride.static import learned_layers
from diffstride.surgery import copy_weights, rebuilt

TARGETS = ("spectral", "strided", "pooled")
_PLANS = 16  # Of integer strides, how many are followed and tried.
# Where they are chosen by a loss: how many are followed, and how many of those
# that use this share of a budget are measured.
_FOLLOWED, _MEASURED, _LEAST = 64, 32, 0.85
# What is tried where none is within a budget, as of maps that are still larger
# than they will be, with a ramp around them.
_SHRINK = (1.0, 0.7, 0.5, 0.35)
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
    macs: float | None = None,
    loss: Callable[[], float] | None = None,
) -> keras.Model:
    """Makes a network with fixed strides of one that has learned them.

    All forms have the weights of the model. They are exact where nothing had to
    be rounded, and else a start for fine-tuning.

    - `"spectral"`: the sizes of all maps stay, and masks become hard: each
      layer crops the spectrum to the size that it has learned. After a
      `SmoothnessSchedule` down to 0 nothing changes.
    - `"strided"`: no layer of this package is left, and the model loads without
      it. Strides become integers, those that come closest to the learned sizes,
      or, with `macs`, the closest within a budget. Convolutions take them, in
      residual layers and in a `keras.Sequential`: along each axis the last one
      before the pooling whose kernel is wider than 1 there, or else the first
      after it. Elsewhere average pooling does.
    - `"pooled"`: the same with average pooling everywhere. Like the crop that
      it replaces it takes high frequencies out, so that more of the accuracy is
      kept; convolutions before it stay at stride 1.

    Args:
        model: a built model with DiffStride layers.
        to: `"spectral"`, `"strided"` or `"pooled"`.
        input_shape: shape of one example, without batch dimension. Needed if
            the model was built for inputs of unknown size.
        verbose: whether to print what has changed, layer by layer.
        macs: multiply-accumulates of one example that the network is to need.
            It may exceed them by 5 %. Of no effect for `"spectral"`.
        loss: what integer strides are chosen by, if not by sizes alone: called
            while the maps of `model` have the sizes that some of them would
            leave, it returns what is to be least there, such as the loss on a
            few batches. Of no effect for `"spectral"`.

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: if the model is not built, has no DiffStride layers, or has
            them where they cannot be replaced; if no integer strides next to
            the learned ones stay within `macs`.
    """
    arguments.choice("to", to, TARGETS)
    others = [
        layer.path
        for layer in learned_layers(model)
        if not isinstance(layer, BaseSpectralPooling)
    ]
    if others:
        raise ValueError(
            "`harden` knows no fixed form of a layer that learns its stride "
            "without a spectrum: use `diffstride.freeze`, which makes strides "
            f"constant. Received: {', '.join(others)}"
        )
    calls = profile(model, input_shape)
    if not any(isinstance(call.layer, BaseSpectralPooling) for call in calls):
        raise ValueError(
            "`harden` needs a model with DiffStride layers. Received: "
            f"{model.name}, without any"
        )
    shape = input_shape or known_shape(model)
    if to == "spectral":
        plan = spectral_plan(calls)
        hardened = _spectral(model, plan)
    else:
        plan, hardened = _plain_within(model, to, calls, macs, shape, loss)
    if verbose:
        before = cost_of_calls(model, calls)
        print(_report(plan, before, model_cost(hardened, shape)))
    return hardened


class _Taken(NamedTuple):
    """A stride along one axis, that a convolution takes from a pooling.

    Attributes:
        pooling: identity of the pooling.
        axis: the axis of its maps.
        layers: identities of the convolution and of all that is between the
            two: their outputs along the axis have another size then.
        earlier: whether the convolution comes before the pooling.
    """

    pooling: int
    axis: int
    layers: tuple[int, ...]
    earlier: bool


def _taken_strides(model: keras.Model, to: str) -> dict[int, list[_Taken]]:
    """Finds the strides that convolutions take, by their identities."""
    taken: dict[int, list[_Taken]] = {}
    if to == "pooled":
        return taken
    for part in sublayers(model):
        if isinstance(part, ResidualLayer) and part.pooling is not None:
            earlier = {id(part.conv_in): part.pooling_placement == "after"}
            if part.project:
                earlier[id(part.conv_shortcut)] = not part._pool_first
            for conv, before in earlier.items():
                layers = (conv,) if before else ()
                taken[conv] = [
                    _Taken(id(part.pooling), axis, layers, before)
                    for axis in range(part.pooling.rank)
                ]
        elif isinstance(part, keras.Sequential):
            for place, layer in enumerate(part.layers):
                if isinstance(layer, BaseSpectralPooling):
                    for axis in range(layer.rank):
                        conv, each = _taker(part.layers, place, axis)
                        if conv is not None:
                            taken.setdefault(conv, []).append(each)
    return taken


def _taker(
    layers: Sequence[keras.layers.Layer], place: int, axis: int
) -> tuple[int | None, _Taken | None]:
    """The convolution of a chain that takes a pooling's stride along an axis.

    It is the last one before the pooling that sees more than a point along the
    axis, past what acts on points: there nothing changes but that the values
    which the stride drops are not computed. Where only convolutions along other
    axes come before, it is the first one after the pooling; theirs would drop
    values that nothing has seen.
    """
    passed: list[int] = []
    along = False
    for layer in layers[:place][::-1]:
        passed.append(id(layer))
        if _can_stride(layer):
            if layer.kernel_size[axis] > 1:
                taken = _Taken(id(layers[place]), axis, tuple(passed), True)
                return id(layer), taken
            along = True
        elif not isinstance(layer, _OF_POINTS):
            break
    if not along:
        return None, None
    passed = []
    for layer in layers[place + 1 :]:
        if _can_stride(layer) and layer.kernel_size[axis] > 1:
            return id(layer), _Taken(
                id(layers[place]), axis, tuple(passed), False
            )
        passed.append(id(layer))
        if not isinstance(layer, _OF_POINTS) and not _can_stride(layer):
            break
    return None, None


def plain_calls(
    model: keras.Model, to: str, calls: Sequence[Call]
) -> list[Call]:
    """What calls become by hardening, before sizes are rounded.

    Products of poolings are gone, if not for `"spectral"`, and sizes are those
    of convolutions that have taken their strides.
    """
    if to == "spectral":
        return list(calls)
    resized: dict[int, list[_Taken]] = {}
    for each in itertools.chain(*_taken_strides(model, to).values()):
        for layer in each.layers:
            resized.setdefault(layer, []).append(each)
    remaining = []
    for place, call in enumerate(calls):
        if isinstance(call.layer, BaseSpectralPooling):
            continue
        for each in resized.get(id(call.layer), ()):
            near = calls[place + 1 :] if each.earlier else calls[:place][::-1]
            pooling = next(c for c in near if id(c.layer) == each.pooling)
            call = _resized(call, pooling, each)
        remaining.append(call)
    return remaining


def _resized(call: Call, pooling: Call, taken: _Taken) -> Call:
    """The call with the size that it has if the pooling does not stride."""
    whole = pooling.output_shape if taken.earlier else pooling.input_shape
    last = pooling.layer.data_format == "channels_last"
    place = taken.axis + (1 if last else 2)
    shape = (
        *call.output_shape[:place],
        whole[place],
        *call.output_shape[place + 1 :],
    )
    return call._replace(output_shape=shape)


def _plain_within(
    model: keras.Model,
    to: str,
    calls: Sequence[Call],
    macs: float | None,
    shape: Any,
    loss: Callable[[], float] | None,
) -> tuple[Plan, keras.Model]:
    """The plain network closest to the learned sizes and to a budget."""
    if macs is None:
        plan = _least_loss(integer_plans(calls), calls, loss)
        return plan, _plain(model, to, plan)
    found = []
    for shrink in _SHRINK:
        for plan in integer_plans(calls, shrink, _FOLLOWED if loss else _PLANS):
            ratio = model_cost(_plain(model, to, plan), shape).macs / macs
            # Of all axes the mean, of all of them together the budget.
            score = distance(plan) + abs(math.log(ratio)) / len(plan)
            found.append((ratio > 1.05, score, ratio, plan))
        if not all(exceeds for exceeds, *_ in found):
            break
    found.sort(key=lambda each: each[:2])
    exceeds, _, ratio, plan = found[0]
    if exceeds:
        least = min(ratio for _, _, ratio, _ in found)
        raise ValueError(
            "`macs` must be what integer strides next to the learned ones can "
            f"meet, at least {human(least * macs)} multiply-accumulates. "
            f"Received: macs={macs:g}"
        )
    least = min(_LEAST, ratio)
    plans = [plan for _, _, r, plan in found if least <= r <= 1.05]
    plan = _least_loss(plans[:_MEASURED], calls, loss)
    return plan, _plain(model, to, plan)


def _least_loss(
    plans: Sequence[Plan],
    calls: Sequence[Call],
    loss: Callable[[], float] | None,
) -> Plan:
    """The first plan, or the one with which the learned network has least."""
    if loss is None:
        return plans[0]
    losses: dict[tuple, float] = {}  # Of plans that differ in strides only.
    for plan in plans:
        sizes = tuple(step.output_size for step in plan.values())
        if sizes not in losses:
            with at_sizes_of(plan, calls):
                losses[sizes] = float(loss())
    return min(
        plans,
        key=lambda plan: losses[
            tuple(step.output_size for step in plan.values())
        ],
    )


def _spectral(model: keras.Model, plan: Plan) -> keras.Model:
    copy = rebuilt(model)
    for layer, source in zip(
        learned_layers(copy), learned_layers(model), strict=True
    ):
        layer.freeze()
        if id(source) in plan:
            layer.strides = plan[id(source)].strides
            layer.smoothness_factor = 0.0
            if layer.ramp == "inner" and not hard_in_steps(source):
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


def _plain(model: keras.Model, to: str, plan: Plan) -> keras.Model:
    hardened = _Plain(model, to, plan).model()
    if left := learned_layers(hardened):
        raise ValueError(
            f"`harden` cannot replace {left[0].path}: it is inside of a layer "
            "that is no Keras model. Put it into a functional model or a "
            "`keras.Sequential`, or use `to='spectral'`."
        )
    return hardened


class _Plain:
    """Makes a model of Keras's own layers."""

    def __init__(self, model: keras.Model, to: str, plan: Plan):
        self._model = model
        self._to = to
        self._plan = plan
        self._pairs: list[tuple] = []
        self._taken = _taken_strides(model, to)

    def model(self) -> keras.Model:
        """Makes it, with the weights."""
        model = keras.models.clone_model(
            self._model, clone_function=self._layer, recursive=True
        )
        for source, copy in self._pairs:
            copy_weights(source, copy)
        if isinstance(self._model, WindowedSequential):
            shape = model.input_shape
            model = WindowedSequential(model.layers, name=model.name)
            model.build(shape)
        return model

    def _layer(self, layer: keras.layers.Layer) -> keras.layers.Layer:
        if id(layer) in self._plan:
            return self._pooling(layer, layer.name)
        if isinstance(layer, ResnetBlock):
            return self._residual(layer.name, layer.layers)
        if isinstance(layer, ResidualLayer):
            return self._residual(layer.name, [layer])
        if isinstance(layer, BatchNormReLU):
            return keras.Sequential(
                self._norm_relu(layer, layer.name), name=layer.name
            )
        strides = None
        if taken := self._taken.get(id(layer)):
            strides = list(layer.strides)
            for each in taken:
                strides[each.axis] = self._plan[each.pooling].strides[each.axis]
        return self._copy(layer, layer.name, strides and tuple(strides))

    def _pooling(
        self, layer: BaseSpectralPooling, name: str
    ) -> keras.layers.Layer:
        gone = {
            each.axis
            for each in itertools.chain(*self._taken.values())
            if each.pooling == id(layer)
        }
        strides = tuple(
            1 if axis in gone else stride
            for axis, stride in enumerate(self._plan[id(layer)].strides)
        )
        if set(strides) == {1}:
            return keras.layers.Identity(name=name)
        return _POOLING[layer.rank](
            strides,
            strides,
            padding="same",
            data_format=layer.data_format,
            dtype=layer.dtype_policy,
            name=name,
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
            # On torch weights of one path stand in each other's place.
            own = name if layer.name == name else f"{name}_{layer.name}"
            strides = pooling = None
            if layer.pooling is not None and self._to == "strided":
                strides = self._plan[id(layer.pooling)].strides
            elif layer.pooling is not None:
                pooling = self._pooling(layer.pooling, f"{own}_pooling")
            conv_in = [self._copy(layer.conv_in, f"{own}_conv_in", strides)]
            if pooling is not None:
                before = layer.pooling_placement == "before"
                conv_in.insert(0 if before else 1, pooling)
            main = [
                *self._norm_relu(layer.bn_in, f"{own}_bn_in"),
                *conv_in,
                *self._norm_relu(layer.bn_out, f"{own}_bn_out"),
                self._copy(layer.conv_out, f"{own}_conv_out"),
            ]
            shortcut = x
            if layer.project:
                # Averages commute with a convolution of size 1.
                shortcut = x if pooling is None else pooling(x)
                shortcut = self._copy(
                    layer.conv_shortcut, f"{own}_conv_shortcut", strides
                )(shortcut)
            for each in main:
                x = each(x)
            x = keras.layers.Add(name=f"{own}_add")([x, shortcut])
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
    plan: Plan,
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
