"""Fixed strides next to learned ones, and how they are tried."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from diffstride.pooling import BaseDiffStride, BaseSpectralPooling
from diffstride.profiling import (
    Call,
    PoolingState,
    first_calls,
    pooling_states,
)
from diffstride.strided import BaseLearnedPooling

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
    calls: Sequence[Call], shrink: float = 1.0, number: int = 16
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
