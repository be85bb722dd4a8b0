"""A model's strided layers, and the graph around them, as `convert` sees it."""

import fnmatch
from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import layers

from diffstride import arguments
from diffstride.conversion.branches import Shift, Step, Strides, Tensor
from diffstride.conversion.graphs import first_input, walk
from diffstride.conversion.policies import (
    POLICIES,
    Policy,
    Site,
    padding_of,
    per_axis,
    policy_of,
    window_of,
)
from diffstride.internals import sublayers
from diffstride.profiling import path_in
from diffstride.surgery import is_graph, no_graph

_ZERO_PADDING = (
    layers.ZeroPadding1D,
    layers.ZeroPadding2D,
    layers.ZeroPadding3D,
)
_CROPPING = (layers.Cropping1D, layers.Cropping2D, layers.Cropping3D)
_NEED_A_SIZE = (layers.Flatten, layers.Reshape)


class Chosen:
    """Tells of a layer why it is not to be converted; see `convert`."""

    def __init__(
        self,
        model: keras.Model,
        include: Any,
        exclude: Any,
        min_channels: int,
        where: str,
    ):
        self._model = model
        self._include = _selectors("include", include)
        self._exclude = _selectors("exclude", exclude)
        self._min_channels = min_channels
        self.where = where
        everything = list(sublayers(model))
        for name, given in (
            ("include", self._include or []),
            ("exclude", self._exclude or []),
        ):
            for each in given:
                if isinstance(each, str) and not any(
                    self._matches(layer, [each]) for layer in everything
                ):
                    expected = f"names of layers of {model.name}"
                    raise arguments.refusal(name, expected, each)

    def why_not(self, layer: Any, channels: int | None) -> str:
        """Returns a reason, empty if the layer is to be converted."""
        if self._include is not None and not self._matches(
            layer, self._include
        ):
            return "not in `include`"
        if self._matches(layer, self._exclude or []):
            return "in `exclude`"
        if channels is not None and channels < self._min_channels:
            return f"{channels} channels, less than `min_channels`"
        return ""

    def _matches(self, layer: Any, selectors: list) -> bool:
        names = layer.name, path_in(self._model, layer)
        for each in selectors:
            if isinstance(each, str):
                if any(fnmatch.fnmatchcase(name, each) for name in names):
                    return True
            elif isinstance(each, type):
                if isinstance(layer, each):
                    return True
            elif each(layer):
                return True
        return False


class Survey:
    """Follows an example's shape through a model, into all models in it.

    Attributes:
        sites: strided layers that have a policy, by their identity.
        parts: what is called in the place of each, as its policy has it.
        merged: zero padding that a site makes up for, by the site's identity.
        skipped: why layers are left as they are, by their identity.
        layers: all strided layers by their identity, in the order of calls.
        inputs, steps: the graph, for `Branches`.
        heads: layers that need maps of fixed size, with what they receive.
        given: for each call of a model inside, and each of its inputs, the
            identity of that model, the number of the input, and the tensor.
    """

    def __init__(
        self,
        model: keras.Model,
        shape: Any,
        policies: Mapping[type, Policy | None],
        chosen: Chosen,
    ):
        self._model = model
        self._policies = policies
        self._chosen = chosen
        self._place = model
        self._producers: dict[int, tuple] = {}
        # Identities stand for tensors as long as these are there.
        self._alive: list[Any] = []
        self.sites: dict[int, Site] = {}
        self.parts: dict[int, list] = {}
        self.merged: dict[int, Any] = {}
        self.skipped: dict[int, str] = {}
        self.layers: dict[int, Any] = {}
        self.steps: list[Step] = []
        self.heads: list[tuple[str, int]] = []
        self.given: list[tuple[int, int, keras.KerasTensor]] = []
        if not is_graph(model):
            raise no_graph("convert", model)
        self._format = _data_format(model)
        inputs = keras.tree.map_shape_structure(
            lambda each: keras.KerasTensor((None, *each)), shape
        )
        self.inputs = [self._tensor(x) for x in keras.tree.flatten(inputs)]
        walk(model, inputs, self._call)
        for step in self.steps:
            if step.layer not in self.sites:
                step.layer = None

    def _call(self, operation: Any, *args: Any, **kwargs: Any) -> Any:
        if is_graph(operation):
            outer, self._place = self._place, operation
            inputs = first_input(args, kwargs)
            for number, x in enumerate(keras.tree.flatten(inputs)):
                self.given.append((id(operation), number, x))
            outputs = walk(operation, inputs, self._call)
            self._place = outer
            return outputs
        if isinstance(operation, keras.Model):
            raise no_graph("convert", operation)
        outputs = operation.compute_output_spec(*args, **kwargs)
        given = _maps(args, kwargs)
        returned = _maps(outputs)
        self._alive.append((given, returned))
        step = Step(
            operation.name,
            [self._tensor(x) for x in given],
            [self._tensor(x) for x in returned],
            _label(operation, given, returned, self._size),
            place=id(self._place),
        )
        if isinstance(operation, _NEED_A_SIZE) and step.inputs:
            self.heads.append((operation.name, step.inputs[0].key))
        for x in returned[:1]:
            if isinstance(operation, _ZERO_PADDING):
                self._producers[id(x)] = operation, given[0], self._place
        if isinstance(operation, layers.Layer):
            self._look(operation, given, returned, step)
        self.steps.append(step)
        return outputs

    def any_size(self, x: keras.KerasTensor) -> tuple:
        """The shape of a map, batch included, with no size of an axis."""
        if len(x.shape) < 3:
            return tuple(x.shape)
        shape = [None] * len(x.shape)
        channels = -1 if self._format == "channels_last" else 1
        shape[channels] = x.shape[channels]
        return tuple(shape)

    def _tensor(self, x: keras.KerasTensor) -> Tensor:
        self._alive.append(x)
        return Tensor(id(x), self._size(x))

    def _size(self, x: keras.KerasTensor) -> tuple:
        if len(x.shape) < 3:
            return ()
        last = self._format == "channels_last"
        return tuple(x.shape[1:-1] if last else x.shape[2:])

    def _look(
        self, layer: layers.Layer, given: list, returned: list, step: Step
    ) -> None:
        """Makes a site of a layer that is strided, or says why not."""
        policy = policy_of(layer, self._policies)
        known = policy_of(layer, POLICIES) is not None or policy is not None
        if not known:
            for part in sublayers(layer):
                if part is not layer and _is_strided(part, self._policies):
                    self.layers[id(part)] = part
                    self.skipped[id(part)] = (
                        f"inside of {layer.name}, a {type(layer).__name__}, "
                        "which is no model of layers"
                    )
            return
        if not _is_strided(layer, self._policies) or not given:
            return
        self.layers[id(layer)] = layer
        merged, x = self._without_padding(layer, given[0])
        step.inputs = [self._tensor(x)]
        channels = x.shape[-1 if self._format == "channels_last" else 1]
        reason = self._chosen.why_not(layer, channels)
        if policy is None:
            reason = "its class has no policy"
        step.label = _strides_label(layer, merged)
        size, output = self._size(x), self._size(returned[0])
        if None in size:
            reason = "the size of its maps depends on learned strides"
        elif set(output) == {1} and window_of(layer) == size:
            reason = "it takes the mean or maximum of whole maps"
        if not reason and id(layer) not in self.skipped:
            site = _site(layer, size, output, merged, self._chosen.where)
            reason = self._settle(site, policy, merged, step)
        if reason:
            self.skipped[id(layer)] = reason
            for kept in (self.sites, self.parts, self.merged):
                kept.pop(id(layer), None)

    def _settle(
        self, site: Site, policy: Policy, merged: Any, step: Step
    ) -> str:
        key = id(site.layer)
        if (before := self.sites.get(key)) is None:
            try:
                parts = list(policy(site))
            except NotImplementedError as error:
                return str(error)
            if sum(part is site.pooling for part in parts) != 1:
                expected = "what returns a list with `site.pooling` in it"
                raise arguments.refusal("policies", expected, policy)
            self.parts[key], self.sites[key] = parts, site
            if merged is not None:
                self.merged[key] = merged
        elif (
            before.dense_padding != site.dense_padding
            or self.merged.get(key) is not merged
        ):
            return "it is called on maps that it pads differently"
        first = self.parts[key][0] is self.sites[key].pooling
        shrinks = (0,) * len(site.strides) if first else site.shrinks
        step.layer, step.replaced = key, (site.strides, shrinks)
        return ""

    def _without_padding(self, layer: Any, x: Any) -> tuple[Any, Any]:
        """The zero padding before a valid convolution, and what it is given."""
        if getattr(layer, "kernel_size", None) and layer.padding == "valid":
            padding, given, place = self._producers.get(id(x), (None,) * 3)
            if padding is not None and place is self._place:
                return padding, given
        return None, x


def _selectors(name: str, given: Any) -> list | None:
    if given is None:
        return None
    several = isinstance(given, (list, tuple, set, frozenset))
    selectors = list(given) if several else [given]
    for each in selectors:
        if not isinstance(each, str) and not callable(each):
            expected = "names, classes or functions of a layer"
            raise arguments.refusal(name, expected, given)
    return selectors


def _is_strided(layer: Any, policies: Mapping) -> bool:
    known = policy_of(layer, policies) or policy_of(layer, POLICIES)
    return known is not None and set(per_axis(layer.strides, 1)) != {1}


def _site(
    layer: Any, size: tuple, output: tuple, merged: Any, where: str
) -> Site:
    rank = len(size)
    padding = padding_of(layer, size, output)
    if merged is not None:
        padding = _sides(merged, rank)
    strides = per_axis(layer.strides, rank)
    return Site(layer, strides, size, output, padding, where)


def _label(operation: Any, given: list, returned: list, size: Callable) -> Any:
    """What an operation does to sizes, alike for those that do the same."""
    sizes = [size(x) for x in (*given[:1], *returned[:1]) if size(x)]
    strides = getattr(operation, "strides", None)
    if strides is not None and set(per_axis(strides, 1)) != {1}:
        return type(operation).__name__, strides, operation.name
    shifts = (*_ZERO_PADDING, *_CROPPING)
    if strides is not None or isinstance(operation, shifts):
        if len(sizes) == 2 and None not in (*sizes[0], *sizes[1]):
            return Shift(b - a for a, b in zip(*sizes, strict=True))
    return operation.name


def _strides_label(layer: Any, merged: Any) -> Strides:
    strides = per_axis(layer.strides, 1)
    padded = _sides(merged, len(strides)) if merged else ((0, 0),) * 3
    return Strides(
        (stride, sum(sides) - window if layer.padding == "valid" else -1)
        for stride, window, sides in zip(
            strides, window_of(layer), padded, strict=False
        )
    )


def _sides(padding: Any, rank: int) -> tuple[tuple[int, int], ...]:
    """What a zero padding layer adds to each axis."""
    sides = padding.padding
    return (tuple(sides),) if rank == 1 else tuple(map(tuple, sides))


def _maps(*structures: Any) -> list[keras.KerasTensor]:
    return [
        x
        for x in keras.tree.flatten(structures)
        if isinstance(x, keras.KerasTensor)
    ]


def _data_format(model: keras.Model) -> str:
    """The data format of the first layer in a model that has one."""
    for layer in sublayers(model):
        if (data_format := getattr(layer, "data_format", None)) is not None:
            return data_format
    return keras.config.image_data_format()
