"""Which layers of a graph must downsample alike, since their maps meet again.

Maps that are added or concatenated have one size. Strides that are learned move
it, so that the layers on all branches have to be one, or none of them may be
replaced. This module knows sizes and calls only, not what they stand for.

Every tensor belongs to a grid. Grids are one where an operation joins tensors
of one size, or gives back the size that it received. What leads from the inputs
to a grid is its history, step by step; two ways to one grid must have the same.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

Size = tuple[int | None, ...]


class Shift(tuple):
    """What is added to the size of each axis: those in a row are summed."""


class Strides(tuple):
    """For each axis `(s, d)`: of a size `n` comes `(n + d) // s + 1`."""


class Tensor(NamedTuple):
    """A map: what identifies it, and its spatial size, `()` if it has none."""

    key: int
    size: Size


@dataclasses.dataclass
class Step:
    """A call in a graph.

    Attributes:
        name: of what is called.
        inputs: maps it receives.
        outputs: maps it gives.
        label: what it does to a size that it does not keep.
        layer: identity of the layer that may be replaced, or `None`.
        replaced: what it does then.
        place: whatever has to be the same for layers that become one.
    """

    name: str
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    label: Hashable
    layer: int | None = None
    replaced: Hashable = None
    place: Hashable = None


class _Union:
    """Sets that grow together."""

    def __init__(self) -> None:
        self._parents: dict[Any, Any] = {}

    def find(self, x: Any) -> Any:
        while (parent := self._parents.get(x, x)) != x:
            x = parent
        return x

    def join(self, x: Any, y: Any) -> None:
        self._parents[self.find(y)] = self.find(x)


class Branches:
    """What may be replaced in a graph, and by which layers in common.

    Attributes:
        groups: for each layer that may be replaced what identifies its group;
            the layers of a group have to become one.
        kept: for each layer that has to stay as it is where branches meet.

    Args:
        inputs: maps that the graph begins with.
        steps: its calls, in their order.
    """

    def __init__(self, inputs: Sequence[Tensor], steps: Sequence[Step]):
        self._steps = steps
        self._grids = _Union()
        # Maps that are 1 in height and width whatever comes before, such as
        # weights of channels: they are broadcast.
        self._constant: set[int] = set()
        self._merges: list[tuple[int, str]] = []
        roots = list(inputs)
        for step in steps:
            roots += self._join(step)
        self._roots = {self._grids.find(x.key): x.size for x in roots}
        ties = _Union()
        for step in steps:
            if step.layer is not None:
                grid = self._grids.find(step.outputs[0].key)
                ties.join(("grid", grid), ("layer", step.layer))
        self.groups: dict[int, Any] = {
            step.layer: ties.find(("layer", step.layer))
            for step in steps
            if step.layer is not None
        }
        self.kept: dict[int, str] = {}
        self._refuse_groups_apart()
        while conflict := self._conflict():
            groups, name = conflict
            for layer in [x for x, y in self.groups.items() if y in groups]:
                self.kept[layer] = name
                del self.groups[layer]

    def fixed(self, key: int) -> bool:
        """Tells whether no replaced layer decides on the size of a map."""
        history = self._histories().get(self._grids.find(key), ())
        return not any(_group(step) for step in history)

    def _join(self, step: Step) -> list[Tensor]:
        """Joins grids at a step; returns the maps that come of no map."""
        made = []
        for output in filter(lambda x: x.size, step.outputs):
            alike = [
                x
                for x in step.inputs
                if x.size == output.size and x.key not in self._constant
            ]
            if step.layer is None and alike:
                for x in alike:
                    self._grids.join(x.key, output.key)
                if len(alike) > 1:
                    self._merges.append((output.key, step.name))
            elif self._source(step, output) is None:
                if set(output.size) == {1}:
                    self._constant.add(output.key)
                else:
                    made.append(output)
        return made

    def _source(self, step: Step, output: Tensor) -> Tensor | None:
        """The input that decides on the size of an output, if any does."""
        sizes = [x.size for x in step.inputs]
        if (
            set(output.size) == {1}
            and output.size not in sizes
            and not isinstance(step.label, (Shift, Strides))
        ):
            return None  # Global pooling, of maps of any size.
        for x in step.inputs:
            if x.size and x.key not in self._constant:
                return x
        return None

    def _refuse_groups_apart(self) -> None:
        for group in set(self.groups.values()):
            members = [x for x, y in self.groups.items() if y == group]
            places = {s.place for s in self._steps if s.layer in members}
            if len(places) > 1:
                for layer in members:
                    self.kept[layer] = "another model inside of this one"
                    del self.groups[layer]

    def _edges(self) -> Any:
        for step in self._steps:
            for output in step.outputs:
                source = self._source(step, output)
                if source is None or not output.size:
                    continue
                grids = (
                    self._grids.find(source.key),
                    self._grids.find(output.key),
                )
                if grids[0] != grids[1]:
                    group = self.groups.get(step.layer)
                    label: Any = ("own", step.label)
                    if group is not None:
                        label = ("group", group, step.replaced)
                    yield *grids, label, step.name

    def _histories(self) -> dict:
        histories = {
            grid: (("input", size),) for grid, size in self._roots.items()
        }
        for source, target, label, _ in self._edges():
            if source in histories:
                way = _longer(histories[source], label)
                histories.setdefault(target, way)
        return histories

    def _conflict(self) -> tuple[set, str] | None:
        """Groups that cannot be, and where that shows; `None` if all can."""
        histories = self._histories()
        for source, target, label, name in self._edges():
            if source not in histories:
                continue
            one, other = histories[target], _longer(histories[source], label)
            if one == other:
                continue
            common = 0
            while one[common : common + 1] == other[common : common + 1]:
                common += 1
            groups = set(map(_group, (*one[common:], *other[common:])))
            if groups == {None}:
                # Whatever is in common before them may not change either.
                shared = [g for g in map(_group, one[:common]) if g]
                groups = set(shared[-1:])
            if groups := groups - {None}:
                for key, merge in self._merges:
                    if self._grids.find(key) == target:
                        name = merge
                return groups, name
        return None


def _longer(history: tuple, label: tuple) -> tuple:
    *earlier, last = history
    shift, then = last[-1], label[-1]
    if not isinstance(shift, Shift) or not isinstance(then, (Shift, Strides)):
        return *history, label
    if isinstance(then, Strides):
        axes = zip(then, shift, strict=True)
        sum_up = Strides((stride, d + more) for (stride, d), more in axes)
        return *earlier, ("own", sum_up)
    total = Shift(a + b for a, b in zip(shift, then, strict=True))
    return (*earlier, ("own", total)) if any(total) else tuple(earlier)


def _group(label: tuple) -> Any:
    return label[1] if label[0] == "group" else None
