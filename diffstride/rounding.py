"""Fixed strides next to learned ones, and how some of them are chosen."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride.formatting import human
from diffstride.pooling import BaseDiffStride, BaseSpectralPooling
from diffstride.profiling import (
    Call,
    PoolingState,
    first_calls,
    pooling_states,
)
from diffstride.strided import BaseLearnedPooling

PLANS = 16  # Of integer strides, how many are followed and tried.
# Where they are chosen by a loss: how many are followed, and how many of them
# are measured.
_FOLLOWED, _MEASURED = 64, 32
# Least and largest share of a budget to use.
_LEAST_SHARE, _MOST_SHARE = 0.95, 1.05
# How often sizes are multiplied until a plan uses a budget, and by how much at
# first. With a ramp around them maps may be larger than they will be.
_ATTEMPTS, _FACTOR = 7, 1.3
_WITHOUT_LIMITS = {"lower_limit_stride": None, "upper_limit_stride": None}


class Step(NamedTuple):
    """What becomes of a layer: strides and sizes, one for each axis."""

    learned: PoolingState
    input_size: tuple[int, ...]
    strides: tuple
    output_size: tuple[int, ...]


Plan = dict[int, Step]  # By the identity of the pooling.


def spectral_plan(calls: Sequence[Call]) -> Plan:
    """Keeps all sizes."""
    plan: Plan = {}
    for layer, state in spectral_poolings(calls):
        # The way that sizes are rounded must not come to a next one.
        down = getattr(layer, "ramp", None) == "straight_through"
        exact = np.array(state.input_size) / state.output_size
        exact = exact * (1 - 1e-6 if down else 1 + 1e-6)
        strides = tuple(np.maximum(exact, 1.0).tolist())
        if hard_in_steps(layer):
            strides = state.strides
        plan[id(layer)] = Step(
            state, state.input_size, strides, state.output_size
        )
    return plan


def integer_plans(
    calls: Sequence[Call], shrink: float = 1.0, number: int = PLANS
) -> list[Plan]:
    """Integer strides whose sizes are close to the learned ones, best first.

    Args:
        calls: of the network that has learned.
        shrink: factor of the sizes that are looked for.
        number: how many plans are followed from layer to layer.
    """
    plans: list[Plan] = [{}]
    for layer, state in spectral_poolings(calls):
        longer = []
        for plan in plans:
            scale: Any = 1.0  # Of the sizes, as rounding accumulates.
            for last in plan.values():
                scale = np.divide(last.output_size, last.learned.output_size)
            sizes = np.maximum(np.rint(np.array(state.input_size) * scale), 1)
            sizes = sizes.astype(int)
            wanted = np.rint(np.array(state.output_size) * shrink)
            wanted = np.maximum(wanted, 1).astype(int)
            choices = map(candidates, sizes, wanted)
            for strides in itertools.product(*choices):
                output = tuple((-(-sizes // strides)).astype(int).tolist())
                step = Step(state, tuple(sizes.tolist()), strides, output)
                longer.append({**plan, id(layer): step})
        plans = sorted(longer, key=distance)[:number]
    return plans


def candidates(size: int, output_size: int) -> tuple[int, ...]:
    """The integer strides next to a size, whose outputs are padded."""
    # Of the strides to one size the smallest, which leaves the least out.
    strides = {math.ceil(size / s): s for s in range(int(size), 0, -1)}
    larger = min(n for n in strides if n >= min(output_size, size))
    smaller = max((n for n in strides if n < output_size), default=larger)
    return tuple({strides[larger], strides[smaller]})


def distance(plan: Plan) -> float:
    """How far sizes are from the learned ones, in size and in aspect."""
    return float(np.mean([_change(step) for step in plan.values()]))


def _change(step: Step) -> float:
    factors = np.log(np.divide(step.output_size, step.learned.output_size))
    return float(np.abs(factors).mean() + np.ptp(factors) / 2)


def plans_within(
    macs: float,
    macs_of: Callable[[Plan], float],
    calls: Sequence[Call],
    many: bool = False,
    least_number: int = 1,
) -> list[Plan]:
    """The plans closest to the learned sizes and to a budget, best first.

    Behind those that use it, if they are too few, come those that use most.

    Args:
        macs: the budget, in multiply-accumulates.
        macs_of: counts those that a plan needs.
        calls: of the network that has learned.
        many: whether to look for more than are needed to take the closest.
        least_number: how many to look for, if there are so many.

    Raises:
        ValueError: if none stays within the budget.
    """
    found = _plans_around(
        calls,
        _FOLLOWED if many else PLANS,
        lambda plan: macs_of(plan) / macs,
        least_number,
    )
    found.sort(key=lambda each: each[0])
    within = [each for each in found if each[1] <= _MOST_SHARE]
    if not within:
        least = min(share for _, share, _ in found)
        raise ValueError(
            "`macs` must be what integer strides next to the learned ones can "
            f"meet, at least {human(least * macs)} multiply-accumulates. "
            f"Received: macs={macs:g}"
        )
    most = max(share for _, share, _ in within)
    least = _LEAST_SHARE if most >= _LEAST_SHARE else 0.9 * most
    within.sort(key=lambda each: -min(each[1], least))  # Stable.
    using = sum(share >= least for _, share, _ in within)
    number = max(min(using, _MEASURED), least_number)
    return [plan for *_, plan in within[:number]]


def _plans_around(
    calls: Sequence[Call],
    number: int,
    share_of: Callable[[Plan], float],
    least_number: int,
) -> list[tuple[float, float, Plan]]:
    """Looks for plans that use a budget, next to the learned sizes.

    Args:
        calls: of the network that has learned.
        number: how many plans are followed.
        share_of: tells the share of the budget that a plan needs.
        least_number: how many that use the budget are enough.

    Returns:
        Of each plan how far it is from sizes and budget, its share, and itself.
    """
    found: dict[tuple, tuple[float, float, Plan]] = {}
    factor, low, high = 1.0, 0.0, math.inf
    for _ in range(_ATTEMPTS):
        shares, known = [], len(found)
        for plan in integer_plans(calls, factor, number):
            key = tuple(step.strides for step in plan.values())
            if key not in found:
                share = share_of(plan)
                # Of all axes the mean, of all of them together the budget.
                score = distance(plan) + abs(math.log(share)) / len(plan)
                found[key] = (score, share, plan)
            shares.append(found[key][1])
        using = sum(
            _LEAST_SHARE <= share <= _MOST_SHARE
            for _, share, _ in found.values()
        )
        if using >= least_number or using and len(found) == known:
            break
        if np.median(shares) > 1:
            high = factor
        else:
            low = factor
        if not low:
            factor = high / _FACTOR
        elif high == math.inf:
            factor = low * _FACTOR
        else:
            factor = math.sqrt(low * high)
    return list(found.values())


def by_loss(
    plans: Sequence[Plan],
    calls: Sequence[Call],
    loss: Callable[[], float] | None,
) -> list[Plan]:
    """The plans as they are, or by the loss of the learned network."""
    if loss is None:
        return list(plans)
    losses: dict[tuple, float] = {}  # Of plans that differ in strides only.
    for plan in plans:
        if _sizes(plan) not in losses:
            with at_sizes_of(plan, calls):
                losses[_sizes(plan)] = _finite(loss())
    if min(losses.values()) == math.inf:
        raise ValueError(
            "`loss` must be finite at the sizes that integer strides leave. "
            f"Received: no such number at all of {len(losses)}"
        )
    return sorted(plans, key=lambda plan: losses[_sizes(plan)])


def best_in_trials(
    plans: Sequence[Plan],
    plain: Callable[[Plan], keras.Model],
    trial: Callable[[keras.Model, list[tuple]], float] | None,
) -> Plan:
    """The first plan, or that of the network which is best in a trial."""
    if trial is None or len(plans) == 1:
        return plans[0]
    results = [
        _finite(trial(plain(plan), [step.strides for step in plan.values()]))
        for plan in plans
    ]
    best = min(results)
    if best == math.inf:
        raise ValueError(
            "`trial` must give a finite number of a network. Received: none of "
            f"all {len(results)}"
        )
    return plans[results.index(best)]


def _finite(value: Any) -> float:
    """A number, or infinity if it is not finite."""
    return float(value) if math.isfinite(value) else math.inf


def _sizes(plan: Plan) -> tuple:
    return tuple(step.output_size for step in plan.values())


def spectral_poolings(
    calls: Sequence[Call],
) -> list[tuple[BaseSpectralPooling, PoolingState]]:
    """The spectral pooling layers, in the order of calls, and their states."""
    return [
        (call.layer, state)
        for call, state in zip(
            first_calls(calls), pooling_states(calls), strict=True
        )
        if isinstance(call.layer, BaseSpectralPooling)
    ]


def hard_in_steps(layer: BaseSpectralPooling) -> bool:
    """Whether a mask is hard as it is, and may hold less than its map does."""
    return (
        isinstance(layer, BaseDiffStride)
        and layer.size_step > 1
        and layer.current_smoothness == 0
    )


@contextlib.contextmanager
def at_sizes_of(plan: Plan, calls: Sequence[Call]) -> Iterator[None]:
    """Inside the block maps of the learned network have the sizes of a plan.

    Layers that keep the parity of sizes may give one less. What calls change,
    such as the statistics of batch normalisation, stays changed.
    """
    with contextlib.ExitStack() as stack:
        for layer in (call.layer for call in first_calls(calls)):
            if isinstance(layer, BaseDiffStride) and not layer.frozen:
                stack.enter_context(_with(layer, _WITHOUT_LIMITS))
                strides = _strides_to(layer, plan[id(layer)])
                stack.enter_context(frozen_at(layer, strides))
        yield


def frozen_at(
    layer: BaseLearnedPooling, strides: np.ndarray
) -> contextlib.AbstractContextManager:
    """Inside the block a layer is what freezing it would make of it, there."""
    return _with(layer, layer.frozen_at(strides))


@contextlib.contextmanager
def _with(layer: Any, attributes: Mapping[str, Any]) -> Iterator[None]:
    before = {name: getattr(layer, name) for name in attributes}
    try:
        for name, value in attributes.items():
            setattr(layer, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(layer, name, value)


def _strides_to(layer: BaseDiffStride, step: Step) -> np.ndarray:
    """The least strides that leave no more than a step's sizes.

    They are single floats, of the precision that the layer divides sizes in: at
    the least stride to a size rounding decides which one comes out.
    """
    low = np.ones(layer.rank, "float32")
    high = 4 * np.array(step.input_size, "float32")

    def fits(strides: np.ndarray) -> np.ndarray:
        sizes = layer.final_output_sizes(step.input_size, strides)
        return np.less_equal(sizes, step.output_size)

    whole = fits(low)
    for _ in range(30):
        middle = np.sqrt(low * high)
        enough = fits(middle)
        low = np.where(enough, low, middle)
        high = np.where(enough, middle, high)
    return np.where(whole, np.float32(1), high)
