"""Computation within a budget: strides held to a number of MACs."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride.cost import layer_macs
from diffstride.formatting import human
from diffstride.profiling import first_calls, learned_in_order, profile
from diffstride.strided import BaseLearnedPooling

Strides = Sequence[np.ndarray]  # Of each layer, in the shape of its variable.

_TOLERANCE = 0.02  # In log(MACs / budget). Within it nothing moves.
_FINAL_TOLERANCE = 0.04  # What strides are settled to before training ends.
_SETTLED = 0.8  # Share of the epochs after which they are.
_LARGEST_STRIDE = 1e4  # Larger than any map.


class ComputeModel:
    """The multiply-accumulates of a model, as a function of its strides.

    Counts are those of `model_cost`, at real sizes and at the final smoothness.
    For sizes that were not met before, a blank example is sent through the
    model. What it costs is noted for each DiffStride layer by its sizes, as
    they decide those of all that follows up to the next one.

    Args:
        model: a built model with DiffStride layers that are not frozen.
        input_shape: shape of one example, without batch dimension; `None`
            stands for the one that the model was built with.

    Attributes:
        layers: the DiffStride layers that a forward pass reaches, in the order
            in which it does.
    """

    def __init__(self, model: keras.Model, input_shape: Any = None):
        self._model = model
        self._input_shape = input_shape
        self.layers = [
            layer
            for layer in learned_in_order(model, input_shape)
            if layer.cropping
        ]
        if not self.layers:
            raise ValueError(
                "A budget needs DiffStride layers that are not frozen. "
                f"Received: {model.name}, whose forward pass reaches none"
            )
        self._counts: dict[tuple, int] = {}
        self._inputs: dict[tuple, tuple] = {}
        self._separable = True
        # By layer, which calls and which inputs of layers it reaches. Each is
        # decided by the deepest layer that does, -1 standing for none.
        bases: dict[float, _Run] = {}
        changed = [
            self._changed(place, bases) for place in range(len(self.layers))
        ]
        self._segment = _deepest([calls for calls, _ in changed])
        self._parent = _deepest([inputs for _, inputs in changed])
        self._below = [
            {place, *self._segment[calls]}
            for place, (calls, _) in enumerate(changed)
        ]

    def strides(self, initial: bool = False) -> list[np.ndarray]:
        """Returns the strides of now, or those the layers were built with."""
        if initial:
            return [layer.initial_strides for layer in self.layers]
        return [
            keras.ops.convert_to_numpy(layer.stride_weights)
            for layer in self.layers
        ]

    def macs(self, strides: Strides) -> int:
        """Counts the multiply-accumulates of one example."""
        return sum(self._lookup(strides)[0])

    def shares(self, strides: Strides) -> list[float]:
        """Returns for each layer the share of the MACs that its sizes decide.

        It is about -d log(MACs) / d log(stride), for each axis.
        """
        counts, _ = self._lookup(strides)
        return [
            sum(counts[i] for i in below) / sum(counts) for below in self._below
        ]

    def input_sizes(self, strides: Strides, place: int) -> tuple[int, ...]:
        """Returns the sizes of the map that a layer receives."""
        return self._lookup(strides)[1][place]

    def limits(self) -> tuple[int, int]:
        """Returns the least and the most that strides within limits cost."""
        most, least = (
            self.macs(self.clipped([stride] * len(self.layers)))
            for stride in (0.0, math.inf)
        )
        return least, most

    def _lookup(self, strides: Strides) -> tuple[list[int], list[tuple]]:
        """MACs of the segment of each layer, last of none; input sizes."""
        inputs: list = []
        outputs: list = []
        for i, value in enumerate(strides):
            source = self._source(i, outputs)
            if source not in self._inputs:
                return self._learn(strides)
            inputs.append(self._inputs[source])
            layer = self.layers[i]
            outputs.append(layer.final_output_sizes(inputs[i], value))
        keys = [self._key(i, inputs, outputs) for i in self._segments]
        if not all(key in self._counts for key in keys):
            return self._learn(strides)
        return [self._counts[key] for key in keys], inputs

    def _source(self, i: int, outputs: list) -> tuple:
        """What decides the input sizes of a layer."""
        if not self._separable:
            return (i, *outputs[:i])
        parent = self._parent[i]
        return (i, outputs[parent] if parent >= 0 else None)

    def _key(self, i: int, inputs: list, outputs: list) -> tuple:
        """What decides the MACs of a segment."""
        if not self._separable:
            return (i, *outputs)
        return (i, inputs[i], outputs[i]) if i >= 0 else (i,)

    def _learn(self, strides: Strides) -> tuple[list[int], list[tuple]]:
        run = self._run(strides)
        counts = [
            int(run.macs[self._segment == i].sum()) for i in self._segments
        ]
        inputs = {
            self._source(i, run.outputs): sizes
            for i, sizes in enumerate(run.inputs)
        }
        macs = {
            self._key(i, run.inputs, run.outputs): count
            for i, count in zip(self._segments, counts, strict=True)
        }
        for table, new in ((self._inputs, inputs), (self._counts, macs)):
            if any(table.get(key, new[key]) != new[key] for key in new):
                # Segments depend on each other, as in a decoder.
                self._separable = False
                self._inputs.clear()
                self._counts.clear()
                return self._learn(strides)
        self._inputs |= inputs
        self._counts |= macs
        return counts, run.inputs

    @property
    def _segments(self) -> list[int]:
        return [*range(len(self.layers)), -1]

    def _run(self, strides: Strides) -> "_Run":
        """Sends an example through the model as if frozen at these strides."""
        with contextlib.ExitStack() as stack:
            for layer, value in zip(self.layers, strides, strict=True):
                stack.enter_context(_frozen_at(layer, value))
            calls = profile(self._model, self._input_shape)
            macs = np.array([layer_macs(call) for call in calls])
        found = {id(c.layer): c for c in first_calls(calls, BaseLearnedPooling)}
        first = [found[id(layer)] for layer in self.layers]
        return _Run(
            [(each.input_shape, each.output_shape) for each in calls],
            macs,
            [call.layer.sizes_in(call.input_shape) for call in first],
            [call.layer.sizes_in(call.output_shape) for call in first],
        )

    def _changed(
        self, place: int, bases: dict[float, "_Run"]
    ) -> tuple[list, list]:
        """Calls and inputs of layers that follow the sizes of one layer.

        `bases` keeps what layers are compared with, the same for all of them.
        """
        initial = self.strides(initial=True)
        # A map may be too small to become smaller: it gets a larger one, then.
        for divisor, factor in itertools.product((1, 2, 8, 1e4), (2, 0.5)):
            before = self.clipped([value / divisor for value in initial])
            after = list(before)
            after[place] = before[place] * factor
            if divisor not in bases:
                bases[divisor] = self._run(before)
            base, run = bases[divisor], self._run(self.clipped(after))
            if base.outputs[place] != run.outputs[place]:
                break
        return (
            [a != b for a, b in zip(base.shapes, run.shapes, strict=True)],
            [a != b for a, b in zip(base.inputs, run.inputs, strict=True)],
        )

    def clipped(self, strides: Strides) -> list[np.ndarray]:
        """Returns strides within the limits of their layers."""
        return [
            np.broadcast_to(
                np.clip(value, *_limits(layer)), layer.initial_strides.shape
            ).astype(layer.initial_strides.dtype)
            for layer, value in zip(self.layers, strides, strict=True)
        ]


class _Run(NamedTuple):
    """Shapes and MACs of all calls, input and output sizes of all layers."""

    shapes: list
    macs: np.ndarray
    inputs: list
    outputs: list


def _deepest(reached: list[list[bool]]) -> np.ndarray:
    """For each column the last row that is true, -1 if none is."""
    rows = np.arange(len(reached))[:, None]
    return np.where(reached, rows, -1).max(axis=0)


class ComputeBudget(keras.callbacks.Callback):
    """Makes training end with strides that cost a given number of MACs.

    While a model is trained its MACs are led to the budget, from what its
    initial strides cost, evenly in their logarithm over the first `share` of
    the epochs; then they are held there. Every few steps the strides that the
    optimizer has reached are projected to where they cost what they should: the
    gradient of the loss moves computation between layers, and the projection
    holds the sum. There is no weight to tune, and any optimizer will do.

    Counts are those of `diffstride.model_cost`, at the sizes that maps really
    have and, where it is on a schedule, at the final smoothness. Use
    `add_compute_budget` to make one.

    Args:
        compute: of the model that will be trained.
        macs: the budget, in multiply-accumulates of one example.
        share: above 0, up to 1.
        every: number of steps between projections.
        epochs: number of epochs to plan for; by default the `epochs` of `fit`.
    """

    def __init__(
        self,
        compute: ComputeModel,
        macs: float,
        share: float = 0.5,
        every: int = 10,
        epochs: int | None = None,
    ):
        super().__init__()
        self.compute = compute
        self.macs = macs
        self.share = share
        self.every = every
        self.epochs = epochs
        self._start = compute.macs(compute.strides(initial=True))

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remembers the epoch."""
        self._epoch = epoch

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Projects the strides, every few steps."""
        steps = self.params.get("steps")
        last = steps is not None and batch + 1 >= steps
        if (batch + 1) % self.every and not last:
            return
        done = self._epoch + ((batch + 1) / steps if steps else 0.0)
        done /= self.epochs or self.params["epochs"]
        target = (self.macs / self._start) ** min(1.0, done / self.share)
        if keras.backend.backend() == "jax":
            # During `fit` the values are not in the variables.
            self.model.jax_state_sync()
        strides = self.compute.strides()
        moved = project(self.compute, strides, self._start * target)
        if done >= max(self.share, _SETTLED):
            moved = settle(self.compute, moved, self.macs)
        for layer, old, new in zip(
            self.compute.layers, strides, moved, strict=True
        ):
            if not np.array_equal(old, new):
                layer.stride_weights.assign(new)


def add_compute_budget(
    model: keras.Model,
    macs: float | None = None,
    relative: float | None = None,
    input_shape: Any = None,
    **settings: Any,
) -> ComputeBudget:
    """Makes the callback that ends training of a model within a budget.

    Args:
        model: any built model with DiffStride layers.
        macs: budget in multiply-accumulates of one example, as `model_cost`
            counts them.
        relative: the budget as a share of what the model costs at its initial
            strides; in place of `macs`.
        input_shape: shape of one example, without batch dimension. Needed if
            the model was built for inputs of unknown size.
        **settings: `share`, `every` and `epochs` of `ComputeBudget`.

    Returns:
        A callback for `fit`.

    Raises:
        ValueError: if no strides within the limits of the layers come within 5
            % of the budget, or the model has no learned strides.

    Example:

    >>> budget = diffstride.add_compute_budget(model, relative=0.5)
    >>> model.fit(images, labels, epochs=10, callbacks=[budget])
    """
    if (macs is None) == (relative is None):
        raise ValueError(
            "Give either `macs` or `relative`. Received: "
            f"macs={macs}, relative={relative}"
        )
    compute = ComputeModel(model, input_shape)
    name, value = ("macs", macs) if relative is None else ("relative", relative)
    if relative is not None:
        macs = relative * compute.macs(compute.strides(initial=True))
    least, most = compute.limits()
    if not least / 1.05 <= macs <= 1.05 * most:
        raise ValueError(
            f"`{name}` must be a budget that strides within their limits can "
            f"meet, from {human(least)} to {human(most)} multiply-accumulates. "
            f"Received: {name}={value}, which is {human(macs)}"
        )
    return ComputeBudget(compute, macs, **settings)


def project(
    compute: ComputeModel, strides: Strides, budget: float
) -> list[np.ndarray]:
    """Moves strides, by as little as it takes, to where they cost a budget.

    They move along the gradient of the logarithm of the MACs in the logarithm
    of the strides: what decides much of the computation moves most. Sizes are
    whole numbers; of the two next to the budget the closer one is taken.

    Args:
        compute: of the model.
        strides: of each layer, where to begin.
        budget: multiply-accumulates of one example.

    Returns:
        The strides, the same if they are within 2 % of the budget.
    """
    best, error = strides, _error(compute, strides, budget)
    if abs(error) <= _TOLERANCE:
        return strides
    sign = math.copysign(1.0, error)
    # Axes that would change their sizes at once do so one after the other.
    turn = itertools.count()
    rates = [
        sign * share * np.array([1 + 1e-3 * next(turn) for _ in value])
        for share, value in zip(compute.shares(strides), strides, strict=True)
    ]
    near, far = 0.0, None
    distance = 0.02
    for _ in range(30):
        if abs(error) <= _TOLERANCE or distance > 20:
            break
        moved = compute.clipped(
            [
                value * np.exp(rate * distance)
                for value, rate in zip(strides, rates, strict=True)
            ]
        )
        reached = _error(compute, moved, budget)
        if abs(reached) < abs(error):
            best, error = moved, reached
        if reached * sign > 0:
            near = distance
        else:
            far = distance
        distance = 2 * near if far is None else (near + far) / 2
    return best


def settle(
    compute: ComputeModel, strides: Strides, budget: float
) -> list[np.ndarray]:
    """Moves a few axes by one size each, so that a budget is met within 4 %.

    Args:
        compute: of the model.
        strides: of each layer, where to begin.
        budget: multiply-accumulates of one example.

    Returns:
        The strides, the same if they are within 4 % of the budget. Where three
        steps do not get there, the closest.
    """
    frontier = [list(strides)]
    best, error = frontier[0], _error(compute, strides, budget)
    for _ in range(3):
        if abs(error) <= _FINAL_TOLERANCE:
            break
        found = [
            (abs(_error(compute, other, budget)), other)
            for each in frontier
            for other in _neighbours(compute, each)
        ]
        found.sort(key=lambda each: each[0])
        good = [each for each in found if each[0] <= _FINAL_TOLERANCE]
        if good:
            return min(good, key=lambda each: _distance(each[1], strides))[1]
        frontier = [other for _, other in found[:4]]
        if found and found[0][0] < abs(error):
            error, best = found[0]
    return best


def _error(compute: ComputeModel, strides: Strides, budget: float) -> float:
    return math.log(compute.macs(strides) / budget)


def _distance(strides: Strides, others: Strides) -> float:
    return sum(
        float(np.abs(np.log(a / b)).sum())
        for a, b in zip(strides, others, strict=True)
    )


def _neighbours(
    compute: ComputeModel, strides: Strides
) -> Iterator[list[np.ndarray]]:
    """Strides at which one axis of one layer has its next size."""
    for place, value in enumerate(strides):
        for axis, factor in itertools.product(
            range(len(value)), (1.01, 1 / 1.01)
        ):
            if other := _next_size(compute, strides, place, axis, factor):
                yield other


def _next_size(
    compute: ComputeModel,
    strides: Strides,
    place: int,
    axis: int,
    factor: float,
) -> list[np.ndarray] | None:
    layer = compute.layers[place]
    inputs = compute.input_sizes(strides, place)
    value = strides[place].copy()
    size = layer.final_output_sizes(inputs, value)
    for _ in range(100):
        value[axis] *= factor
        value = np.clip(value, *_limits(layer)).astype(value.dtype)
        if layer.final_output_sizes(inputs, value) != size:
            return [*strides[:place], value, *strides[place + 1 :]]
    return None


@contextlib.contextmanager
def _frozen_at(
    layer: BaseLearnedPooling, strides: np.ndarray
) -> Iterator[None]:
    """Inside the block a layer is what freezing it would make of it, here."""
    supposed = layer.frozen_at(strides)
    before = {name: getattr(layer, name) for name in supposed}
    try:
        for name, value in supposed.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def _limits(layer: BaseLearnedPooling) -> tuple[float, float]:
    low, high = layer.lower_limit_stride, layer.upper_limit_stride
    return (
        1.0 if low is None else low,
        _LARGEST_STRIDE if high is None else high,
    )
