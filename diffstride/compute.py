"""The computation of a model, as a function of its strides."""

import contextlib
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from diffstride.cost import layer_macs
from diffstride.hardening import plain_calls
from diffstride.profiling import first_calls, learned_in_order, profile
from diffstride.rounding import frozen_at
from diffstride.strided import BaseLearnedPooling

Strides = Sequence[np.ndarray]  # Of each layer, in the shape of its variable.

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
        harden_to: what to count: what `harden` leaves for this `to`, before it
            rounds strides.

    Attributes:
        layers: the DiffStride layers that a forward pass reaches, in the order
            in which it does.
    """

    def __init__(
        self,
        model: keras.Model,
        input_shape: Any = None,
        harden_to: str = "spectral",
    ):
        self._model = model
        self._harden_to = harden_to
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

    def own_shares(self, strides: Strides) -> list[np.ndarray]:
        """Returns for each stride what its maps add to the MACs.

        It is about d log(MACs) / d log(size), while other maps keep theirs. A
        stride that serves all axes changes the sizes of all of them.
        """
        counts, _ = self._lookup(strides)
        return [
            np.full(value.size, count / sum(counts) * layer.rank / value.size)
            for count, value, layer in zip(
                counts[:-1], strides, self.layers, strict=True
            )
        ]

    def with_sizes_moved(
        self, strides: Strides, steps: Sequence[np.ndarray]
    ) -> list[np.ndarray]:
        """Divides the sizes of maps by the exponentials of steps.

        A layer whose input becomes smaller gets a smaller stride.
        """
        moved = []
        for place, value in enumerate(strides):
            parent = self._parent[place]
            step = steps[place] - (steps[parent] if parent >= 0 else 0.0)
            if value.size == 1:  # One stride for all axes.
                step = np.mean(step)
            moved.append(value * np.exp(step))
        return self.clipped(moved)

    def within_maps(self, strides: Strides) -> list[np.ndarray]:
        """Takes strides that exceed the size of their map back to it.

        A map has its least size there, so that nothing changes but the way
        back. In most layers the gradient ends before, at the `smallest_size`.
        """
        sizes = self._lookup(strides)[1]
        least = self.clipped(
            [
                np.minimum(value, max(size) if value.size == 1 else size)
                for value, size in zip(strides, sizes, strict=True)
            ]
        )
        return [
            less
            if layer.final_output_sizes(size, less)
            == layer.final_output_sizes(size, value)
            else value
            for layer, size, value, less in zip(
                self.layers, sizes, strides, least, strict=True
            )
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
                stack.enter_context(frozen_at(layer, value))
            calls = profile(self._model, self._input_shape)
            found = {
                id(c.layer): c for c in first_calls(calls, BaseLearnedPooling)
            }
            calls = plain_calls(self._model, self._harden_to, calls)
            macs = np.array([layer_macs(call) for call in calls])
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
                np.clip(value, *stride_limits(layer)),
                layer.initial_strides.shape,
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


def stride_limits(layer: BaseLearnedPooling) -> tuple[float, float]:
    """Returns the least and the largest stride that a layer may have."""
    low, high = layer.lower_limit_stride, layer.upper_limit_stride
    return (
        1.0 if low is None else low,
        _LARGEST_STRIDE if high is None else high,
    )
