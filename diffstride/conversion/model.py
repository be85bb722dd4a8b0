"""`convert`: the downsampling of any Keras model by layers of one's choice."""

import fnmatch
import functools
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import keras
from keras import layers

from diffstride import arguments
from diffstride.conversion.branches import Branches
from diffstride.conversion.graphs import Rebuild
from diffstride.conversion.policies import (
    POLICIES,
    Policy,
    Site,
    per_axis,
    window_of,
)
from diffstride.conversion.survey import Chosen, Survey
from diffstride.cost import cost_of_calls, layer_macs
from diffstride.formatting import aligned, human
from diffstride.internals import sublayers
from diffstride.pooling import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    FixedSpectralPooling1D,
    FixedSpectralPooling3D,
)
from diffstride.profiling import Call, known_shape, path_in, profile
from diffstride.static import LearnedSizes

# By the number of axes, from 1 on.
_FAMILIES = (
    (DiffStride1D, DiffStride, DiffStride3D),
    (FixedSpectralPooling1D, FixedSpectralPooling, FixedSpectralPooling3D),
)


class Change(NamedTuple):
    """What has become of a strided layer.

    Attributes:
        layer: path of the layer inside of the model.
        was: what it was.
        became: what is in its place, in the order of calls; empty if skipped.
        strides: strides that the new layer begins with, or those of the layer.
        macs_before: multiply-accumulates of the layer, for one example.
        macs_after: those of all that is in its place. A pooling layer that
            several share is counted at the first of them.
        skipped: why it was left as it is; empty if it was not.
    """

    layer: str
    was: str
    became: str
    strides: tuple
    macs_before: int
    macs_after: int
    skipped: str


class ConversionReport(NamedTuple):
    """What `convert` has done; printed, it is a table.

    Attributes:
        changes: a `Change` for each strided layer, in the order of calls.
        macs_before: multiply-accumulates of the model, for one example.
        macs_after: those of the new one.
    """

    changes: tuple[Change, ...]
    macs_before: int
    macs_after: int

    def __str__(self) -> str:
        rows = [("layer", "was", "becomes", "strides", "MACs", "MACs now")]
        for each in self.changes:
            strides = " x ".join(f"{s:.4g}" for s in each.strides)
            became = each.became or f"skipped: {each.skipped}"
            macs = human(each.macs_before), human(each.macs_after)
            rows.append((each.layer, each.was, became, strides, *macs))
        total = human(self.macs_before), human(self.macs_after)
        rows.append(("model", "", "", "", *total))
        return "\n".join(aligned(rows, right=(4, 5)))


def convert(
    model: keras.Model,
    to: Callable[..., keras.layers.Layer] | None = None,
    strides: Any = "keep",
    include: Any = None,
    exclude: Any = None,
    min_channels: int = 1,
    where: str = "after",
    dry_run: bool = False,
    policies: Mapping[type, Policy | None] | None = None,
    input_shape: Any = None,
) -> tuple[keras.Model | None, ConversionReport]:
    """Replaces the downsampling of a Keras model, strided layers and pooling.

    Convolutions run at stride 1, and a new layer after them downsamples; so it
    is with max pooling, while average pooling is replaced. A 1x1 convolution
    runs after the new layer instead, where there is less to compute. Layers
    whose maps are added or concatenated later on get one new layer in common.
    Weights, names, dtype policies, trainable flags and sharing of layers stay.

    Args:
        model: a built functional or sequential model, with models of these
            kinds inside. It stays as it is.
        to: makes the new layers: a class, or a function that is called with
            strides and, as far as it takes them, `name`, `dtype` and
            `data_format`. A class of this package gets `norm="forward"`, which
            keeps the mean of maps as networks expect it, and stands for those
            of other dimensions. `None` stands for `DiffStride` with
            `smoothness_factor=1.0`.
        strides: what they begin with: `"keep"` for those of the layer, a number
            or one for each axis, a dictionary of these by patterns of names, or
            a function of the layer.
        include: layers to convert: names or patterns of names (`"conv4_*"`),
            paths inside of the model, classes, or functions of a layer; one or
            a list. `None` stands for all.
        exclude: layers to leave as they are, in the same way.
        min_channels: least number of channels that a layer receives to be
            converted; 4 spares a convolution that reads images.
        where: `"after"`: convolutions run at stride 1, as in the paper.
            `"before"`: they run on the map that has been downsampled; that is
            less to compute, and another function of the input.
        dry_run: whether only the report is wanted.
        policies: what becomes of layers, by their class, in addition to and
            instead of `diffstride.conversion.POLICIES`: a function of a `Site`
            that returns what is called in turn. `None` for a class leaves its
            layers as they are.
        input_shape: shape of one example, without batch dimension. Needed if
            the model was built for inputs of unknown size.

    Returns:
        The new model, not compiled (`None` with `dry_run`), and a
        `ConversionReport`.

    Raises:
        ValueError: if an argument is out of range, or if the model is not
            built, is not a graph of layers, or cannot do with other sizes.

    Example:

    >>> model = keras.applications.MobileNetV2(
    ...     (64, 64, 3), alpha=0.35, include_top=False, weights=None
    ... )
    >>> learned, report = convert(model)
    >>> print(report)  # doctest: +SKIP
    """
    arguments.choice("where", where, ("before", "after"))
    arguments.integer("min_channels", min_channels)
    make = _factory(to)
    calls = profile(model, input_shape)
    shape = known_shape(model) if input_shape is None else input_shape
    chosen = Chosen(model, include, exclude, min_channels, where)
    survey = Survey(model, shape, {**POLICIES, **(policies or {})}, chosen)
    plan = _Plan(model, survey, make, strides)
    new = plan.converted(model)
    calls_now = profile(new, shape)
    report = ConversionReport(
        tuple(plan.changes(calls, calls_now)),
        cost_of_calls(model, calls).macs,
        cost_of_calls(new, calls_now).macs,
    )
    return None if dry_run else new, report


def _factory(to: Any) -> Callable:
    """`make(strides, layer, name)`, of what was given as `to`."""
    if to is None:
        to = functools.partial(DiffStride, smoothness_factor=1.0)
    if isinstance(to, layers.Layer) or not callable(to):
        expected = "a layer class, or a function of strides that makes layers"
        raise arguments.refusal("to", expected, to)
    given = getattr(to, "keywords", {})
    base = getattr(to, "func", to)
    family = next((each for each in _FAMILIES if base in each), None)

    def make(strides: tuple, layer: Any, name: str) -> layers.Layer:
        call = to
        if family and (cls := family[len(strides) - 1]) is not base:
            call = functools.partial(cls, **given)
        offered = {
            "data_format": layer.data_format,
            "dtype": layer.dtype_policy,
            "name": name,
            **({"norm": "forward"} if family else {}),
        }
        taken = inspect.signature(call).parameters
        anything = any(p.kind is p.VAR_KEYWORD for p in taken.values())
        accepted = {
            key: value
            for key, value in offered.items()
            if key not in given and (anything or key in taken)
        }
        made = call(strides, **accepted)
        if not isinstance(made, layers.Layer):
            raise arguments.refusal("to", "what makes a layer", made)
        if "name" not in accepted:
            made.name = name
        return made

    return make


class _Plan:
    """What is put into the place of strided layers."""

    def __init__(
        self, model: keras.Model, survey: Survey, make: Callable, strides: Any
    ):
        self._model = model
        self._survey = survey
        branches = Branches(survey.inputs, survey.steps)
        self._skipped = dict(survey.skipped)
        for key, name in branches.kept.items():
            self._skipped[key] = (
                f"its branch meets another at {name} that is resized otherwise"
            )
        self._poolings: dict[Any, layers.Layer] = {}
        self._first: dict[int, int] = {}  # Of a pooling layer, its first site.
        self._replacements: dict[int, list] = {}
        self._shared: dict[int, layers.Layer] = {}
        names = {layer.name for layer in sublayers(model)}
        for key, group in branches.groups.items():
            site = survey.sites[key]
            if group not in self._poolings:
                name = _unused(f"{site.layer.name}_stride", names)
                begin = _initial(strides, site, path_in(model, site.layer))
                self._poolings[group] = make(begin, site.layer, name)
                self._first[id(self._poolings[group])] = key
            pooling = self._poolings[group]
            ndim = getattr(pooling.input_spec, "ndim", None)
            if ndim not in (None, len(site.strides) + 2):
                kind = type(pooling).__name__
                self._skipped[key] = f"{kind} takes {ndim} dimensions"
                continue
            parts = survey.parts[key]
            for part in parts:
                if part is not site.pooling and part is not site.copy:
                    if isinstance(part, layers.Layer):
                        part.name = _unused(part.name, names)
            self._shared[key] = pooling
            self._replacements[key] = [
                pooling if part is site.pooling else part for part in parts
            ]
        self._heads = [
            name for name, x in survey.heads if not branches.fixed(x)
        ]
        self._unknown = {
            (inner, number): survey.any_size(x)
            for inner, number, x in survey.given
            if not branches.fixed(id(x))
        }

    def converted(self, model: keras.Model) -> keras.Model:
        """Makes the new model."""
        learned = any(
            isinstance(pooling, LearnedSizes)
            and pooling.cropping
            and not pooling.frozen
            for pooling in self._shared.values()
        )
        if learned and self._heads:
            raise ValueError(_no_size(model, self._heads[0]))
        sites = self._survey.sites
        rebuild = Rebuild(
            self._replacements,
            {
                key: id(padding)
                for key, padding in self._survey.merged.items()
                if key in self._replacements
            },
            {
                key: sites[key].copy
                for key in self._replacements
                if sites[key].copy is not None
            },
            self._unknown if learned else {},
        )
        try:
            return rebuild.model(model)
        except Exception as error:
            if not self._heads:
                raise
            raise ValueError(_no_size(model, self._heads[0])) from error

    def changes(self, calls: list[Call], calls_now: list[Call]) -> Any:
        """Yields a `Change` for each strided layer."""
        before, after = _macs_by_layer(calls), _macs_by_layer(calls_now)
        for key, layer in self._survey.layers.items():
            macs = before.get(key, 0)
            parts = self._replacements.get(key)
            strides = per_axis(layer.strides, 1)
            kind = f"{type(layer).__name__} {_product(window_of(layer))}"
            path = path_in(self._model, layer)
            if parts is None:
                why = self._skipped[key]
                yield Change(path, kind, "", strides, macs, macs, why)
                continue
            pooling = self._shared[key]
            first = self._first[id(pooling)]
            became = ", ".join(
                f"that of {self._survey.layers[first].name}"
                if part is pooling and first != key
                else _kind(part)
                for part in parts
            )
            now = sum(
                after.get(id(part), 0)
                for part in parts
                if part is not pooling or first == key
            )
            strides = tuple(getattr(pooling, "strides", strides))
            yield Change(path, kind, became, strides, macs, now, "")


def _initial(strides: Any, site: Site, path: str) -> tuple:
    if isinstance(strides, Mapping):
        names = site.layer.name, path
        strides = next(
            (
                value
                for pattern, value in strides.items()
                if any(fnmatch.fnmatchcase(name, pattern) for name in names)
            ),
            "keep",
        )
    elif callable(strides):
        strides = strides(site.layer)
    if isinstance(strides, str) and strides == "keep":
        return site.strides
    each = arguments.strides("strides", strides, len(site.strides))
    # Layers of Keras take integers only.
    return tuple(int(s) if s == int(s) else s for s in each)


def _unused(name: str, names: set[str]) -> str:
    """Returns a name that is not among some, and adds it to them."""
    number, free = 1, name
    while free in names:
        free, number = f"{name}_{number}", number + 1
    names.add(free)
    return free


def _macs_by_layer(calls: list[Call]) -> dict[int, int]:
    macs: dict[int, int] = {}
    for call in calls:
        key = id(call.layer)
        macs[key] = macs.get(key, 0) + layer_macs(call)
    return macs


def _kind(part: Any) -> str:
    if isinstance(part, functools.partial):
        part = part.func
    if isinstance(part, layers.Layer):
        return type(part).__name__
    return re.sub(r"\W", "", getattr(part, "__name__", "function"))


def _product(values: Any) -> str:
    return "x".join(map(str, values))


def _no_size(model: keras.Model, head: str) -> str:
    return (
        f"{head} of {model.name} needs maps of a fixed size, and the new "
        "layers change it. End in `GlobalAveragePooling2D` instead (in "
        "`keras.applications`: `include_top=False, pooling='avg'`), or leave "
        "the layers before it as they are, by `exclude`"
    )
