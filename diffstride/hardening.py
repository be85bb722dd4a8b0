"""From learned strides to plain networks with fixed ones."""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import keras

from diffstride import arguments
from diffstride.audio_cnn import WindowedSequential
from diffstride.cost import cost_of_calls, model_cost
from diffstride.folding import FoldedStride, folded_strides
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
    PLANS,
    Plan,
    best_in_trials,
    by_loss,
    hard_in_steps,
    integer_plans,
    plans_within,
    spectral_plan,
)
from diffstride.static import learned_layers
from diffstride.surgery import copy_weights, is_graph, no_graph, rebuilt

TARGETS = ("spectral", "strided", "pooled")
_POOLING = {
    1: keras.layers.AveragePooling1D,
    2: keras.layers.AveragePooling2D,
    3: keras.layers.AveragePooling3D,
}


class Hardened(NamedTuple):
    """A network with fixed strides, and what has become of the learned ones.

    Attributes:
        model: the network.
        plan: by which it was made.
        calls: of the network that it was made of.
    """

    model: keras.Model
    plan: Plan
    calls: Sequence[Call]


def harden(
    model: keras.Model,
    to: str = "spectral",
    input_shape: Any = None,
    verbose: bool = True,
    macs: float | None = None,
    loss: Callable[[], float] | None = None,
    trial: Callable[[keras.Model, list[tuple]], float] | None = None,
    trials: int = 4,
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
      residual layers and in a `keras.Sequential`: along each axis the last
      convolution before the pooling that is wider than 1 along it, or, if those
      before it are of size 1 along it, the first such one after it. Elsewhere
      average pooling does.
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
            It may exceed them by 5 %. Of the closest strides it takes those
            that use at least 95 %, or, if none do, nearly as much as any of
            them does. Of no effect for `"spectral"`.
        loss: what integer strides are chosen by, if not by sizes alone: called
            while the maps of `model`, spectral pooling and all, have the sizes
            that some of them would leave, it returns a number that is to be
            least, such as the loss on a few batches. Of no effect for
            `"spectral"`.
        trial: what decides between the `trials` best sets of integer strides,
            those with the least loss or the closest: called with the plain
            network of each, not compiled, and a list of its strides in the
            order of poolings, it returns a number that is to be least, such as
            the loss after a short training. Of no effect for `"spectral"`.
        trials: how many sets are tried, at least 1. Where fewer use 95 % of
            `macs`, those that use most of it are among them.

    Returns:
        A new model, not compiled.

    Raises:
        ValueError: if the model is not built, has no DiffStride layers, or has
            them where they cannot be replaced, as in a model that is neither
            functional nor sequential; if no integer strides next to
            the learned ones stay within `macs`; if `loss` or `trial` is never
            finite.
    """
    made = hardened_with_plan(
        *(model, to, input_shape, macs, loss, trial, trials)
    )
    if verbose:
        print(hardening_report(model, made, input_shape))
    return made.model


def hardened_with_plan(
    model: keras.Model,
    to: str = "spectral",
    input_shape: Any = None,
    macs: float | None = None,
    loss: Callable[[], float] | None = None,
    trial: Callable[[keras.Model, list[tuple]], float] | None = None,
    trials: int = 4,
) -> Hardened:
    """Does what `harden` does, and tells by which plan."""
    arguments.choice("to", to, TARGETS)
    if macs is not None:
        unit = ", in multiply-accumulates, or None"
        macs = arguments.number("macs", macs, least=1, of=unit)
    if loss is not None and not callable(loss):
        expected = "None or a function without arguments"
        raise arguments.refusal("loss", expected, loss)
    if trial is not None and not callable(trial):
        expected = "None or a function of a network and its strides"
        raise arguments.refusal("trial", expected, trial)
    trials = arguments.integer("trials", trials, 1)
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
        return Hardened(_spectral(model, plan), plan, calls)
    if not _has_graph(model):
        raise no_graph("harden", model)
    folded = folded_strides(model, to, calls)
    plain = partial(_plain, model, to, folded=folded)
    if macs is None:
        plans = integer_plans(calls, number=max(PLANS, trials))
    else:
        plans = plans_within(
            macs,
            lambda plan: model_cost(plain(plan), shape).macs,
            calls,
            many=loss is not None or trial is not None,
            least_number=1 if trial is None else trials,
        )
    plans = by_loss(plans, calls, loss)[:trials]
    plan = best_in_trials(plans, plain, trial)
    return Hardened(plain(plan), plan, calls)


def plain_calls(
    model: keras.Model, to: str, calls: Sequence[Call]
) -> list[Call]:
    """What calls become by hardening, before sizes are rounded.

    Products of poolings are gone, if not for `"spectral"`, and sizes are those
    of convolutions that have taken their strides.
    """
    if to == "spectral":
        return list(calls)
    resized: dict[int, list[FoldedStride]] = {}
    for folded in folded_strides(model, to, calls):
        for layer in folded.layers:
            resized.setdefault(layer, []).append(folded)
    remaining = []
    for place, call in enumerate(calls):
        if isinstance(call.layer, BaseSpectralPooling):
            continue
        for folded in resized.get(id(call.layer), ()):
            call = folded.resized(call, calls, place)
        remaining.append(call)
    return remaining


def _spectral(model: keras.Model, plan: Plan) -> keras.Model:
    copy = rebuilt(model, "harden")
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
    hardened = rebuilt(copy, "harden")
    for source, layer in zip(
        sublayers(model), sublayers(hardened), strict=True
    ):
        if not isinstance(layer, BaseDiffStride):
            copy_weights(source, layer)
    return hardened


def _has_graph(model: keras.Model) -> bool:
    return is_graph(model) or isinstance(model, WindowedSequential)


def _plain(
    model: keras.Model, to: str, plan: Plan, folded: Sequence[FoldedStride]
) -> keras.Model:
    hardened = _Plain(model, to, plan, folded).model()
    if left := learned_layers(hardened):
        for inner in sublayers(hardened):
            is_model = isinstance(inner, keras.Model) and not _has_graph(inner)
            if is_model and left[0] in learned_layers(inner):
                raise no_graph("harden", inner)
        raise ValueError(
            f"`harden` cannot replace {left[0].path}: it is inside of a layer "
            "that is no Keras model. Put it into a functional model or a "
            "`keras.Sequential`, or use `to='spectral'`."
        )
    return hardened


class _Plain:
    """Makes a model of Keras's own layers."""

    def __init__(
        self,
        model: keras.Model,
        to: str,
        plan: Plan,
        folded: Sequence[FoldedStride],
    ):
        self._model = model
        self._to = to
        self._plan = plan
        self._pairs: list[tuple] = []
        self._folded = folded

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
        for folded in self._folded:
            if folded.conv == id(layer):
                strides = strides or list(layer.strides)
                step = self._plan[folded.pooling]
                strides[folded.axis] = step.strides[folded.axis]
        return self._copy(layer, layer.name, strides and tuple(strides))

    def _pooling(
        self, layer: BaseSpectralPooling, name: str
    ) -> keras.layers.Layer:
        gone = {
            folded.axis
            for folded in self._folded
            if folded.pooling == id(layer)
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


def hardening_report(
    model: keras.Model, made: Hardened, input_shape: Any = None
) -> str:
    """Lays out what has become of strides, sizes and cost."""
    rows = [("pooling layer", "in", "stride", "out", "stride now", "out now")]
    for step in made.plan.values():
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
    shape = input_shape or known_shape(model)
    before = human(cost_of_calls(model, made.calls).macs)
    after = human(model_cost(made.model, shape).macs)
    return "\n".join(
        [*aligned(rows), f"multiply-accumulates: {before}, now {after}"]
    )


def _product(values: Iterable[Any]) -> str:
    return " x ".join(map(str, values))
