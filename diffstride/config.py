"""Gin, attached in one place: what can be configured, and how errors read.

The library knows nothing of gin. Here its functions and classes are registered
under the names that the authors' release used, config files are found and
parsed, and every binding is checked before anything runs.
"""

import difflib
import inspect
import logging
import math
import os
import pathlib
import re
import reprlib
import tokenize
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import gin
import keras
import typeguard

from diffstride import audio_cnn, data, networks, resnet, train
from diffstride.antialiasing import BlurPool2D, FLCPooling, MaxBlurPool2D
from diffstride.cosine import DCTDiffStride
from diffstride.dynopool import DynOPool
from diffstride.errors import ConfigError
from diffstride.pooling import DiffStride, FixedSpectralPooling
from diffstride.windows import (
    AveragePooling,
    FractionalMaxPooling2D,
    MaxPooling,
    SpatialPooling,
)

_BINDINGS = "--gin_bindings"
_registered: list[str] = []


def _register(target: Any, module: str, name: str | None = None) -> Any:
    name = name or target.__name__
    _registered.append(name if name == module else f"{module}.{name}")
    return gin.external_configurable(target, name=name, module=module)


def _register_named(function: Callable) -> None:
    """Registers `resnet18` or `resnet56`, building gin's `Resnet`.

    So that bindings of `resnet.Resnet` reach them, as users expect.
    """

    def build(
        strides: Sequence[resnet.Stride] | str | None = None, **kwargs: Any
    ) -> resnet.Resnet:
        return function(strides, resnet_cls=_Resnet, **kwargs)

    _register(build, "resnet", function.__name__)


for _target in (
    *(data.load_datasets, data.pad_crop_flip),
    *(data.load_audio, data.spec_augment),
    data.load_tasks,
):
    _register(_target, "data")
for _target in (
    *(DiffStride, DCTDiffStride, DynOPool),
    *(FixedSpectralPooling, FLCPooling),
    *(BlurPool2D, MaxBlurPool2D),
    *(SpatialPooling, AveragePooling, MaxPooling, FractionalMaxPooling2D),
):
    _register(_target, "pooling")
for _name in ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Nadam"):
    _register(getattr(keras.optimizers, _name), "keras.optimizers")
for _name in ("CosineDecay", "ExponentialDecay", "PiecewiseConstantDecay"):
    _register(
        getattr(keras.optimizers.schedules, _name), "keras.optimizers.schedules"
    )
_Resnet = _register(resnet.Resnet, "resnet")
_register(audio_cnn.AudioCNN, "audio_cnn")
_register_named(resnet.resnet18)
_register_named(resnet.resnet56)
_register(networks.densenet, "networks")
_register(networks.application, "networks")
run_training = _register(train.train, "train")
operative = gin.operative_config_str


def load(
    files: Sequence[str],
    bindings: Sequence[str],
    allow_imports: bool = False,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Parses config files, then bindings, and checks all of them.

    What was loaded before is forgotten.

    Args:
        files: paths, or names of configs that come with this package.
        bindings: statements such as `"train.num_epochs = 3"`.
        allow_imports: whether import statements are carried out. With gin's
            dynamic registration they make a config a program.
        defaults: values of parameters that files and bindings may change.
    """
    gin.clear_config()
    for key, value in (defaults or {}).items():
        gin.bind_parameter(key, value)
    # Once without gin's doing anything, which is then known to be harmless.
    for where, each in _parse(files, bindings, _Unresolved()):
        importing = isinstance(each, gin.config_parser.ImportStatement)
        if importing and not allow_imports:
            raise ConfigError(
                f"{where}: a config that imports can run any program. Remove "
                f"`{each.format()}`, or pass --allow_imports if you trust it"
            )
    paths = [str(_find(file)) for file in files]
    disabled = logging.root.manager.disable
    logging.disable()  # Gin logs each place where a file is not.
    try:
        gin.parse_config_files_and_bindings(
            paths, list(bindings), finalize_config=False
        )
        _check_all(files, bindings)
        gin.finalize()
    except ConfigError:
        raise
    except Exception as error:
        message = str(error).replace("bindings string", _BINDINGS)
        raise ConfigError(message) from error
    finally:
        logging.disable(disabled)


def workdir() -> str:
    """Returns the workdir of what was loaded, or of its defaults."""
    return gin.get_bindings("train.train")["workdir"]


def training() -> dict[str, Any]:
    """Returns the arguments of `train` that what was loaded sets."""
    return gin.get_bindings("train.train")


def differing(old: str, new: str) -> list[str]:
    """Lists what two operative configs of one run may not differ in.

    What an older version did not know may have its default in the new one.
    """
    before, now = _fixed_settings(old), _fixed_settings(new)
    known = {statement.partition(" = ")[0] for statement in before}
    added = {
        statement
        for statement in now
        if statement.partition(" = ")[0] not in known and _is_default(statement)
    }
    return sorted((before ^ now) - added)


def configs_dir() -> pathlib.Path:
    """Returns the folder of the configs: the checkout's, or the installed."""
    checkout = pathlib.Path(__file__).resolve().parent.parent / "configs"
    if (checkout / "base.gin").exists():
        return checkout
    return pathlib.Path(__file__).resolve().with_name("configs")


def located(message: str, files: Sequence[str], bindings: Sequence[str]) -> str:
    """Ends an error's text with where its parameter was set, if it was.

    There gin has put its chain of calls. The parameter is in backquotes.
    """
    text, _, calls = message.partition("In call to configurable")
    called = re.match(r" '(?:[\w.]+\.)?(\w+)'", calls)
    place = ""
    for key, _, where in _statements(files, bindings):
        selector, _, name = key.rpartition(".")
        if called and f"`{name}`" in text and selector.endswith(called[1]):
            place = f"`{key}` is set in {where}"
    return f"{text.strip()} {place}".strip()


def unused(bindings: Sequence[str], operative_text: str) -> list[str]:
    """Says of each binding that has no effect that it has none.

    What is set alike for several, such as the strides of two networks, has one
    if one of them is used.
    """
    used = re.findall(r"^\s*([\w./]+) =", operative_text, re.MULTILINE)
    given = [
        (key, (key.rpartition(".")[2], repr(value)), where)
        for key, value, where in _statements([], bindings)
    ]
    effective = {
        alike
        for key, alike, _ in given
        if any(_is_same(key, each) for each in used)
    }
    return [
        f"`{key}` is set in {where}, but nothing in this run uses it"
        for key, alike, where in given
        if alike not in effective
    ]


def _is_same(key: str, operative: str) -> bool:
    """Whether a setting is the one that an operative config has like this."""
    scope, _, name = f"/{key}".rpartition("/")
    used_in, _, used = f"/{operative}".rpartition("/")
    if f".{name}".endswith(f".{used}") or f".{used}".endswith(f".{name}"):
        # A setting of a scope reaches the scopes within it.
        return f"{used_in}/".startswith(f"{scope}/")
    return False


gin.add_config_file_search_path(str(configs_dir()))
gin.config.register_file_reader(
    lambda path: open(os.path.expanduser(path)),
    lambda path: os.path.isfile(os.path.expanduser(path)),
)


def _available(file: str) -> str:
    """The configs like this one that come with DiffStride, or else all."""
    names = sorted(p.name for p in configs_dir().glob("*.gin"))
    close = difflib.get_close_matches(os.path.basename(file), names)
    if close:
        return f"Did you mean {' or '.join(close)}?"
    return f"Configs that come with DiffStride: {', '.join(names)}"


def _find(file: str, where: str = "") -> pathlib.Path:
    for folder in ("", configs_dir()):
        path = os.path.join(folder, os.path.expanduser(file))
        if os.path.isfile(path):
            return pathlib.Path(path)
    raise ConfigError(
        f"{where}Config file {file!r} not found, neither as a path nor in "
        f"{configs_dir()}. {_available(file)}"
    )


class _Unresolved(gin.config_parser.ParserDelegate):
    """Takes references and macros as text, for what they stand for."""

    def configurable_reference(self, name: str, evaluate: bool) -> str:
        return f"@{name}"

    def macro(self, name: str) -> str:
        return f"%{name}"


def _parse(
    files: Sequence[str],
    bindings: Sequence[str],
    delegate: gin.config_parser.ParserDelegate,
) -> Iterator[tuple[str, Any]]:
    """Place and statement of all there is, includes followed."""
    for path in map(_find, files):
        chain = (path.resolve(),)
        yield from _parse_text(str(path), _read(path), chain, delegate)
    yield from _parse_text(_BINDINGS, "\n".join(bindings), (), delegate)


def _read(path: pathlib.Path) -> str:
    try:
        return path.read_text()
    except (OSError, ValueError) as error:  # Not UTF-8 is a ValueError.
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _parse_text(
    source: str,
    text: str,
    including: tuple[pathlib.Path, ...],
    delegate: gin.config_parser.ParserDelegate,
) -> Iterator[tuple[str, Any]]:
    try:
        for each in gin.config_parser.ConfigParser(text, delegate):
            where = f"{source}, line {each.location.line_num}"
            if isinstance(each, gin.config_parser.IncludeStatement):
                path = _find(each.filename, f"{where}: ")
                if path.resolve() in including:
                    raise ConfigError(f"{where}: {path} includes itself")
                chain = (*including, path.resolve())
                yield from _parse_text(str(path), _read(path), chain, delegate)
            else:
                yield where, each
    except ConfigError:
        raise
    except SyntaxError as error:
        line = (text.splitlines() or [""])[(error.lineno or 1) - 1]
        raise ConfigError(
            f"{source}, line {error.lineno}: {_readable(error.msg)} Received: "
            f"{line}"
        ) from error
    except tokenize.TokenError as error:
        raise ConfigError(
            f"Unfinished statement, a bracket or quote left open, in {source}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{source}: {error}") from error


def _readable(message: str) -> str:
    """What gin says of a syntax error, without the words of `ast`."""
    token = re.search(r"Failed to parse token '(.*)'", message, re.DOTALL)
    if token is None:
        return message
    return (
        f"{token[1]} is no value. A number is finite, a text has quotes, a "
        "reference begins with @, a macro with %."
    )


def _statements(
    files: Sequence[str], bindings: Sequence[str]
) -> Iterator[tuple[str, Any, str]]:
    """Parameter, value and place of all bindings; a macro is its name."""
    for where, each in _parse(files, bindings, gin.config.ParserDelegate()):
        if isinstance(each, gin.config_parser.BindingStatement):
            name = f"{each.selector}.{each.arg_name}".strip(".")
            yield f"{each.scope}/{name}".strip("/"), each.value, where


def _fixed_settings(text: str) -> set[str]:
    """The statements of a config that a run taken up again has to keep."""
    text = re.sub(r"^\s*#.*\n?", "", text, flags=re.MULTILINE)
    statements = re.split(r"\n(?=\S)", re.sub(r"\\\n\s*", "", text))
    free = (
        r"(\w+/)*(\w+\.)*(train\.(workdir|num_epochs|finetune_epochs)|"
        r"load_(datasets|audio)\.data_dir) ="
    )
    return {
        " ".join(statement.split())
        for statement in statements
        if statement.strip() and not re.match(free, statement)
    }


def _is_default(statement: str) -> bool:
    key, _, value = statement.partition(" = ")
    selector, _, name = key.rpartition("/")[2].rpartition(".")
    if not selector:  # A macro.
        return False
    function = _function(gin.config.get_configurable(selector))
    parameter = inspect.signature(function).parameters.get(name)
    return parameter is not None and repr(parameter.default) == value


def _check_all(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Checks all bindings, and that no macro was meant to be one."""
    statements = list(_statements(files, bindings))
    for key, value, where in statements:
        _check_ends(value, f"{where}: `{key}`", ())
        if "." in key:
            _check(key, value, where)
    values = [value for _, value, _ in statements]
    used = set(map(repr, gin.config.iterate_references(values)))
    for key, _, where in statements:
        if "." in key or f"%{key}" in used:
            continue
        targets = [
            f"{selector}.{name}"
            for selector in _registered
            for name in _parameters(gin.config.get_configurable(selector))
            if name == key.rpartition("/")[2]
        ]
        if targets:
            raise ConfigError(
                f"{where}: `{key}` without a dot is a macro, and nothing uses "
                f"it. Did you mean {' or '.join(targets)}?"
            )


def _check_ends(value: Any, what: str, chain: tuple[str, ...]) -> None:
    """Refuses what refers to itself, by macros, calls, or both."""
    for reference in gin.config.iterate_references([value]):
        name = repr(reference)
        if chain[:1] == (name,):
            raise ConfigError(
                f"{what} refers to itself: {' -> '.join((*chain, name))}"
            )
        if name in chain:
            continue  # Another binding begins that circle.
        bound = gin.get_bindings(
            reference.scoped_selector, resolve_references=False
        )
        _check_ends(bound, what, (*chain, name))


def _check(key: str, value: Any, where: str) -> None:
    """Checks name and type of a bound parameter, as gin does not."""
    selector, _, name = key.rpartition("/")[2].rpartition(".")
    parameters = _parameters(gin.config.get_configurable(selector))
    if name not in parameters:
        raise ConfigError(
            f"{where}: `{selector}` has no parameter `{name}`. It has: "
            f"{', '.join(sorted(parameters))}"
        )
    hint = parameters[name]
    value = _resolve(value, where)
    for part in _leaves(value):
        most = 2**63 if isinstance(part, int) else math.inf
        if isinstance(part, (int, float)) and not abs(part) < most:
            raise ConfigError(
                f"{where}: `{key}` must be finite, and an integer of 64 bits "
                f"if it is one. Received: {reprlib.repr(value)}"
            )
    if not (hint is None or _fits(value, hint)):
        raise ConfigError(
            f"{where}: `{key}` must be {_describe(hint)}. Received: {value!r}"
        )


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, gin.config.ConfigurableReference):
        return _reference_fits(value, hint)
    leaves = list(_leaves(value))
    if any(isinstance(v, gin.config.ConfigurableReference) for v in leaves):
        return True  # It comes of a call yet to be made.
    if any(isinstance(v, bool) for v in leaves) and "bool" not in str(hint):
        return False
    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=every)
    except typeguard.TypeCheckError:
        return False
    return True


def _reference_fits(
    reference: gin.config.ConfigurableReference, hint: Any
) -> bool:
    """Whether a function, or what it returns, is what a hint asks for."""
    made = inspect.unwrap(reference.configurable.wrapped)
    if not inspect.isclass(made):
        made = typing.get_type_hints(made).get("return")
    if not inspect.isclass(made):
        return True  # Nobody knows.
    several = typing.get_origin(hint) in (typing.Union, types.UnionType)
    kinds = typing.get_args(hint) if several else (hint,)
    return any(_makes(made, reference.evaluate, kind) for kind in kinds)


def _makes(made: type, evaluated: bool, kind: Any) -> bool:
    origin = typing.get_origin(kind) or kind
    if origin is not Callable:
        return evaluated and issubclass(made, origin)
    returned = (typing.get_args(kind) or (Any,))[-1]
    return not evaluated and (
        not inspect.isclass(returned) or issubclass(made, returned)
    )


def _leaves(value: Any) -> Iterator[Any]:
    """The parts of a value that hold no others."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _resolve(value: Any, where: str) -> Any:
    """Puts the values of macros in their places."""
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, where) for item in value)
    if isinstance(value, dict):
        return {k: _resolve(item, where) for k, item in value.items()}
    if not isinstance(value, gin.config.ConfigurableReference):
        return value
    if not value.selector.endswith("macro"):
        return value
    name = "/".join(value.scopes)
    try:
        value = gin.query_parameter(f"%{name}")
    except ValueError as error:
        raise ConfigError(f"{where}: there is no macro `{name}`") from error
    return _resolve(value, where)


def _parameters(target: Any) -> dict[str, Any]:
    """Names of the parameters, with a type hint where one is known."""
    target, function = inspect.unwrap(target), _function(target)
    hints = typing.get_type_hints(function)
    result = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            result |= _hidden_parameters(target)
        elif name == "learning_rate":
            result[name] = (
                float | keras.optimizers.schedules.LearningRateSchedule
            )
        elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
            kind = type(parameter.default)
            guess = {int: float, float: float, bool: bool}.get(kind)
            result[name] = hints.get(name, guess)
    return result


def _function(target: Any) -> Callable:
    """What has the parameters of a configurable."""
    target = inspect.unwrap(target)
    function = target.__init__ if inspect.isclass(target) else target
    return inspect.unwrap(function)


def _hidden_parameters(target: Any) -> dict[str, Any]:
    """The same, of the parameters behind a `**kwargs`."""
    if not inspect.isclass(target):  # `resnet18` or `resnet56`.
        return _parameters(resnet.Resnet)
    if target is keras.Optimizer:
        return {}
    if issubclass(target, keras.Optimizer):
        return _parameters(keras.Optimizer)
    return {"name": str | None, "dtype": str | None}


def _describe(hint: Any) -> str:
    if inspect.isclass(hint) and not typing.get_args(hint):
        return hint.__name__
    return re.sub(r"(\w+\.)+(?=\w)", "", str(hint))
