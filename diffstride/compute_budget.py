"""Computation within a budget: strides held to a number of MACs."""

import itertools
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from diffstride import arguments
from diffstride.compute import ComputeModel, Strides, stride_limits
from diffstride.formatting import human
from diffstride.optimization import (
    gradient_factor,
    warn_of_normalized_gradients,
)
from diffstride.static import learned_layers

_TOLERANCE = 0.02  # In log(MACs / budget). Within it nothing moves.
_FINAL_TOLERANCE = 0.04  # What strides are settled to before training ends.
_MISSED = 1.05  # Factor from a budget on which it is not met.
_SETTLED = 0.8  # Share of the epochs after which they are.
_MOMENTUM = 0.9  # Of the direction in which strides go.


class ComputeBudget(keras.callbacks.Callback):
    """Makes training end with strides that cost a given number of MACs.

    While a model is trained its MACs are led to the budget, from what its
    initial strides cost, evenly in their logarithm over the first `share` of
    the epochs; then they are held there. Every few steps it is looked at how
    the optimizer has moved the strides: this tells the gradient of the loss,
    and the strides take a step that moves computation between layers and holds
    the sum. How far a step goes depends on how constant its direction is, and
    not on the size of gradients, so that there is no weight to tune; a
    `stride_lr_multiplier` of 0 leaves the projection alone. Where it leads
    depends on how large gradients are beside each other, which SGD keeps, while
    Adam and its like normalise each of them.

    Counts are those of `diffstride.model_cost`, at the sizes that maps really
    have and, where it is on a schedule, at the final smoothness. Use
    `add_compute_budget` to make one.

    Args:
        compute: of the model that will be trained.
        macs: the budget, in multiply-accumulates of one example.
        share: above 0, up to 1.
        reach: how far a stride may get while training lasts: the logarithm of
            its largest factor; 3 stands for one of 20.
        every: number of steps between projections.
        epochs: number of epochs to plan for; by default the `epochs` of `fit`.

    Raises:
        ValueError: if an argument is out of range, or, when training begins, if
            another model is trained.

    Warns:
        UserWarning: if training ends more than 5 % away from the budget, as it
            was stopped early or sizes are too coarse. Callbacks that restore
            weights in the end, such as `EarlyStopping`, belong before it.
    """

    def __init__(
        self,
        compute: ComputeModel,
        macs: float,
        share: float = 0.5,
        reach: float = 3.0,
        every: int = 10,
        epochs: int | None = None,
    ):
        super().__init__()
        self.compute = compute
        self.macs = arguments.number("macs", macs, least=1)
        self.share = arguments.share("share", share)
        self.reach = arguments.number("reach", reach)
        self.every = arguments.integer("every", every)
        self.epochs = arguments.optional_integer("epochs", epochs)
        self._start = compute.macs(compute.strides(initial=True))

    def on_train_begin(self, logs: dict | None = None) -> None:
        """Refuses another model; warns of an optimizer that tells nothing."""
        trained = {id(layer) for layer in learned_layers(self.model)}
        if not all(id(layer) in trained for layer in self.compute.layers):
            raise ValueError(
                "`add_compute_budget` must be given the model that `fit` "
                "trains; a copy has layers of its own. Received: another one "
                f"than {self.model.name}"
            )
        self._epoch = None
        optimizer = getattr(self.model, "optimizer", None)
        self._factors = [
            gradient_factor(optimizer, layer) for layer in self.compute.layers
        ]
        warn_of_normalized_gradients(optimizer, self.compute.layers)

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        """Remembers where an epoch began.

        Nothing is carried from one epoch to the next, so that a run which is
        taken up again takes the same steps.
        """
        self._epoch = epoch
        self._before = self._now()
        self._direction = _Direction(self.compute.own_shares(self._before))

    def on_train_end(self, logs: dict | None = None) -> None:
        """Warns if the budget is not met."""
        if self._epoch is None:
            return
        cost = self.compute.macs(self._now())
        if not 1 / _MISSED <= cost / self.macs <= _MISSED:
            done = self._epoch + 1
            epochs = self.epochs or self.params["epochs"]
            why = (
                f"It was planned for epochs={epochs}, of which {done} are done"
                if done < epochs
                else "Sizes near it are too coarse, or limits too narrow"
            )
            warnings.warn(
                f"Training ends at {human(cost)} multiply-accumulates, more "
                f"than 5 % from the budget of {human(self.macs)}. {why}",
                stacklevel=2,
            )

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        """Moves the strides, every few steps."""
        steps = self.params.get("steps")
        last = steps is not None and batch + 1 >= steps
        if (batch + 1) % self.every and not last:
            return
        epochs = self.epochs or self.params["epochs"]
        done = (self._epoch + ((batch + 1) / steps if steps else 0.0)) / epochs
        target = (self.macs / self._start) ** min(1.0, done / self.share)
        strides = self._now()
        # Most in the middle: at first weights are random, in the end at rest.
        pace = 6 * done * (1 - done) * self.reach
        pace *= self.every / (epochs * (steps or self.every))
        limits = [stride_limits(layer)[0] for layer in self.compute.layers]
        moves = moves_of(self._before, strides, self._factors, limits)
        shifts = self._direction.step(moves, pace)
        moved = self.compute.with_sizes_moved(self._before, shifts)
        moved = project(self.compute, moved, self._start * target)
        if done >= max(self.share, _SETTLED):
            moved = settle(self.compute, moved, self.macs)
        moved = self.compute.within_maps(moved)
        for layer, old, new in zip(
            self.compute.layers, strides, moved, strict=True
        ):
            if not np.array_equal(old, new):
                layer.stride_weights.assign(new)
        self._before = moved

    def _now(self) -> list[np.ndarray]:
        if keras.backend.backend() == "jax":
            # During `fit` the values are not in the variables.
            self.model.jax_state_sync()
        return self.compute.strides()


def moves_of(
    before: Strides,
    after: Strides,
    factors: Sequence[float],
    limits: Sequence[float],
) -> list[np.ndarray]:
    """Tells the gradient of the loss from what an optimizer did to strides.

    Args:
        before: strides of each layer before its steps.
        after: strides after its steps.
        factors: of each layer, what gradients were multiplied by; 0 where
            strides are not trained.
        limits: the least strides of each layer.

    Returns:
        For each layer an array of the shape of its variable, in proportion to
        `-dL / d log(stride)` if the optimizer is SGD. NaN stands for what is
        not trained or got no gradient. At its lower limit a stride does not
        show whether the loss pulls it further down. It counts as 0, so that it
        leaves the limit and its gradient shows.
    """
    moves = []
    for start, end, factor, limit in zip(
        before, after, factors, limits, strict=True
    ):
        # SGD moves a stride s by -lr dL/ds. Times s it is -lr dL/d log(s), as
        # costs are told. Else large strides seem to matter little, and grow.
        move = start * (end - start) / (factor or 1.0)
        told = (factor > 0) & ((move != 0) | (start <= limit))
        moves.append(np.where(told, move, np.nan))
    return moves


class _Direction:
    """Where the gradient of the loss leads maps that cost the same.

    A layer's gradient tells what its own cut-off is worth while those of the
    layers after it stay. As they depend on the size of their input, strides
    alone would take them along. Steps are therefore of sizes: those of Adam, in
    their logarithm and along the surface of equal cost.

    Args:
        costs: `ComputeModel.own_shares`.
    """

    def __init__(self, costs: Strides):
        self._costs = np.concatenate(costs)
        self._places = np.cumsum([each.size for each in costs])[:-1]
        self._counts = np.zeros_like(self._costs)
        self._means = np.zeros_like(self._costs)
        self._squares = np.zeros_like(self._costs)

    def step(self, moves: Strides, pace: float) -> list[np.ndarray]:
        """Returns steps of -log(size), in the direction of an optimizer's.

        Args:
            moves: of `moves_of`. Where they are NaN a step is 0, and nothing is
                remembered.
            pace: largest step to return.
        """
        moved = np.concatenate(moves)
        told = np.isfinite(moved)
        costs = np.where(told, self._costs, 0.0)
        moved = _along(np.where(told, moved, 0.0), costs, self._scale())
        self._counts += told
        kept = np.where(told, _MOMENTUM, 1.0)
        self._means = kept * self._means + (1 - kept) * moved
        self._squares += moved**2
        scale = self._scale()
        mean = np.where(told, self._means, 0.0)
        mean /= 1 - _MOMENTUM ** np.maximum(self._counts, 1)
        step = pace * np.clip(_along(mean, costs, scale) * scale, -1, 1)
        return np.split(step, self._places)

    def _scale(self) -> np.ndarray:
        """What makes directions as long as they are constant."""
        known = self._squares > 0
        if not known.any():
            return np.ones_like(self._squares)
        means = self._squares / np.maximum(self._counts, 1)
        # What hardly moved, or was told nothing yet, would outweigh all others.
        usual = np.median(means[known])
        return 1 / np.sqrt(
            np.where(known, np.maximum(means, 1e-4 * usual), usual)
        )


def _along(
    direction: np.ndarray, costs: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Takes from a direction what changes the cost, once it is scaled."""
    weight = (scale * costs * costs).sum()
    if not weight:
        return direction
    return direction - costs * (scale * costs * direction).sum() / weight


def add_compute_budget(
    model: keras.Model,
    macs: float | None = None,
    relative: float | None = None,
    input_shape: Any = None,
    harden_to: str = "spectral",
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
        harden_to: what the budget is for, as `to` of `harden`. The products of
            poolings count for `"spectral"` only.
        **settings: `share`, `reach`, `every` and `epochs` of `ComputeBudget`.

    Returns:
        A callback for `fit`.

    Raises:
        ValueError: if an argument is out of range, or not one of `macs` and
            `relative` is given; if no strides within the limits of the layers
            come within 5 % of the budget; if the model has no learned strides.

    Example:

    >>> budget = diffstride.add_compute_budget(model, relative=0.5)
    >>> model.fit(images, labels, epochs=10, callbacks=[budget])
    """
    if (macs is None) == (relative is None):
        raise ValueError(
            "Give either `macs` or `relative`. Received: "
            f"macs={macs}, relative={relative}"
        )
    name, value = ("macs", macs) if relative is None else ("relative", relative)
    arguments.number(name, value, least=0 if macs is None else 1)
    compute = ComputeModel(model, input_shape, harden_to)
    if relative is not None:
        macs = relative * compute.macs(compute.strides(initial=True))
    least, most = compute.limits()
    if not least / _MISSED <= macs <= _MISSED * most:
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
        value = np.clip(value, *stride_limits(layer)).astype(value.dtype)
        if layer.final_output_sizes(inputs, value) != size:
            return [*strides[:place], value, *strides[place + 1 :]]
    return None
