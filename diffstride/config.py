"""Gin, attached in one place: what can be configured, and how errors read.

The library knows nothing of gin. Here its functions and classes are registered
under the names that the authors' release used, config files are found and
parsed, and every binding is checked before anything runs.
"""

import contextlib
import inspect
import os
import pathlib
import re
import tokenize
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import gin
import keras
import typeguard
from absl import logging

from diffstride import data, pooling, resnet, train
from diffstride.errors import ConfigError

_OPTIMIZERS = ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Nadam")
_SCHEDULES = ("CosineDecay", "ExponentialDecay", "PiecewiseConstantDecay")
_BINDINGS = "--gin_bindings"

_ALL_ITEMS = typeguard.CollectionCheckStrategy.ALL_ITEMS
_OPTIMIZER_KWARGS = {
    name
    for name in inspect.signature(keras.Optimizer).parameters
    if name != "kwargs"
}


def _register(target: Any, module: str) -> Any:
    return gin.external_configurable(target, module=module)


for _target, _module in (
    (data.load_datasets, "data"),
    (data.pad_crop_flip, "data"),
    (pooling.DiffStride, "pooling"),
    (pooling.FixedSpectralPooling, "pooling"),
    (pooling.SpatialPooling, "pooling"),
):
    _register(_target, _module)
for _name in _OPTIMIZERS:
    _register(getattr(keras.optimizers, _name), "keras.optimizers")
for _name in _SCHEDULES:
    _register(
        getattr(keras.optimizers.schedules, _name), "keras.optimizers.schedules"
    )
_Resnet = _register(resnet.Resnet, "resnet")


def _named_resnet(function: Callable) -> Callable:
    """`resnet18` or `resnet56` that builds gin's `Resnet`.

    So that bindings of `resnet.Resnet` reach them, as users expect.
    """

    def build(
        strides: Sequence[resnet.Stride] | str | None = None, **kwargs: Any
    ) -> resnet.Resnet:
        return function(strides, resnet_cls=_Resnet, **kwargs)

    build.__name__ = build.__qualname__ = function.__name__
    return build


_named = {
    function.__name__: _register(_named_resnet(function), "resnet")
    for function in (resnet.resnet18, resnet.resnet56)
}
run_training = _register(train.train, "train")


def load(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Parses config files, then bindings, and checks all of them.

    Args:
        files: names or paths; a name that is no path is looked up among the
            configs that come with this package.
        bindings: single bindings, which override the files.

    Raises:
        ConfigError: naming file, line and parameter.
    """
    paths = [str(_find(file)) for file in files]
    try:
        with _quiet():
            gin.parse_config_files_and_bindings(
                paths, list(bindings), finalize_config=False
            )
    except OSError as error:  # An include that is not there.
        raise ConfigError(f"{error} {_available()}") from error
    except SyntaxError as error:
        text = error.text
        if error.filename is None:
            text = "\n".join(bindings).splitlines()[error.lineno - 1]
        raise ConfigError(
            f"{error.filename or _BINDINGS}, line {error.lineno}: "
            f"{error.msg} Received: {text}"
        ) from error
    except tokenize.TokenError as error:
        sources = ", ".join(files) if files else _BINDINGS
        raise ConfigError(
            f"Unfinished statement, a bracket or quote left open, in {sources}"
            f"{' or ' + _BINDINGS if files and bindings else ''}"
        ) from error
    except Exception as error:
        message = str(error).replace("bindings string", _BINDINGS)
        raise ConfigError(message) from error
    for statement, where in _statements(files, bindings):
        _check(statement, where)
    gin.finalize()


def bind_default(parameter: str, value: Any) -> None:
    """Sets a parameter that the config may set otherwise.

    Args:
        parameter: module, function and name, such as `"train.train.seed"`.
        value: the value.
    """
    gin.bind_parameter(parameter, value)


def operative() -> str:
    """Returns the settings in force, as a config file."""
    return gin.operative_config_str()


def differing(old: str, new: str) -> list[str]:
    """Lists the settings that forbid to go on from one run with another.

    Args:
        old: what `operative` returned in the run that was interrupted.
        new: what it returns now.

    Returns:
        The settings that are not in both, but for those that may change.
    """
    return sorted(_fixed_settings(old) ^ _fixed_settings(new))


def configs_dir() -> pathlib.Path:
    """Returns the folder of the configs: the checkout's, or the installed."""
    checkout = pathlib.Path(__file__).resolve().parent.parent / "configs"
    if (checkout / "base.gin").exists():
        return checkout
    return pathlib.Path(__file__).resolve().with_name("configs")


def locate(message: str, files: Sequence[str], bindings: Sequence[str]) -> str:
    """Tells where the parameter that an error is about was set.

    Args:
        message: an error's text, with the parameter in backquotes and with the
            chain of calls that gin appends.
        files: the config files that were loaded.
        bindings: the bindings that were loaded.

    Returns:
        A sentence, or nothing if the parameter was not set.
    """
    called = re.search(r"In call to configurable '([\w.]+)'", message)
    if not called:
        return ""
    found = [
        f"`{statement.selector}.{statement.arg_name}` is set in {where}"
        for statement, where in _statements(files, bindings)
        if f"`{statement.arg_name}`" in message
        and statement.selector.endswith(called[1].rpartition(".")[2])
    ]
    return found[-1] if found else ""


def plain(error: Exception) -> str:
    """Returns an error's text without the chain of calls that gin appends."""
    return str(error).partition("In call to configurable")[0].strip()


def unused(bindings: Sequence[str], operative_text: str) -> list[str]:
    """Tells which bindings have no effect on a run.

    Args:
        bindings: single bindings, as given to `load`.
        operative_text: what `operative` returns once the run is set up.

    Returns:
        A sentence for each.
    """
    used = re.findall(r"^\s*([\w./]+) =", operative_text, re.MULTILINE)
    keys = [
        (f"{statement.selector}.{statement.arg_name}", where)
        for statement, where in _statements([], bindings)
        if statement.arg_name
    ]
    return [
        f"`{key}` is set in {where}, but nothing in this run uses it"
        for key, where in keys
        if not any(key.endswith(u) or u.endswith(key) for u in used)
    ]


gin.add_config_file_search_path(str(configs_dir()))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences gin, which logs each place where a file is not."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def _available() -> str:
    names = sorted(p.name for p in configs_dir().glob("*.gin"))
    return f"Configs that come with DiffStride: {', '.join(names)}"


def _find(file: str) -> pathlib.Path:
    for folder in ("", configs_dir()):
        path = pathlib.Path(folder) / os.path.expanduser(file)
        if path.is_file():
            return path
    raise ConfigError(
        f"Config file '{file}' not found, neither as a path nor in "
        f"{configs_dir()}. {_available()}"
    )


def _statements(
    files: Sequence[str], bindings: Sequence[str]
) -> Iterator[tuple[Any, str]]:
    """All bindings, includes followed, each with where it stands."""
    for file in files:
        path = _find(file)
        yield from _parsed(path.read_text(), str(path))
    yield from _parsed("\n".join(bindings), _BINDINGS)


def _parsed(text: str, source: str) -> Iterator[tuple[Any, str]]:
    delegate = gin.config.ParserDelegate()
    for statement in gin.config_parser.ConfigParser(text, delegate):
        if isinstance(statement, gin.config_parser.IncludeStatement):
            yield from _statements([statement.filename], [])
        elif isinstance(statement, gin.config_parser.BindingStatement):
            yield statement, f"{source}, line {statement.location.line_num}"


def _fixed_settings(text: str) -> set[str]:
    """The statements of a config that a run taken up again has to keep."""
    text = re.sub(r"^\s*#.*\n?", "", text, flags=re.MULTILINE)
    statements = re.split(r"\n(?=\S)", re.sub(r"\\\n\s*", "", text))
    free = r"(\w+\.)*(train\.(workdir|num_epochs)|load_datasets\.data_dir) ="
    return {
        " ".join(statement.split())
        for statement in statements
        if statement.strip() and not re.match(free, statement)
    }


def _check(statement: Any, where: str) -> None:
    """Checks name and type of a bound parameter, as gin does not."""
    selector, name = statement.selector, statement.arg_name
    if not name:  # A macro; it is checked where it is used.
        return
    parameters = _parameters(selector, gin.config.get_configurable(selector))
    if name not in parameters:
        raise ConfigError(
            f"{where}: `{selector}` has no parameter `{name}`. It has: "
            f"{', '.join(sorted(parameters))}"
        )
    hint = parameters[name]
    value = _resolve(statement.value, where)
    if hint is None or _is_computed(value):
        return
    if not _fits(value, hint):
        raise ConfigError(
            f"{where}: `{selector}.{name}` must be {_describe(hint)}. "
            f"Received: {value!r}"
        )


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    try:
        typeguard.check_type(value, hint, collection_check_strategy=_ALL_ITEMS)
    except typeguard.TypeCheckError:
        return False
    return True


def _resolve(value: Any, where: str) -> Any:
    """Puts values in the place of references, but for calls yet to be made."""
    if isinstance(value, (list, tuple)):
        return type(value)(_resolve(item, where) for item in value)
    if not isinstance(value, gin.config.ConfigurableReference):
        return value
    if not value.selector.endswith("macro"):
        return value if value.evaluate else value.scoped_configurable_fn
    name = "/".join(value.scopes)
    try:
        value = gin.query_parameter(f"%{name}")
    except ValueError as error:
        raise ConfigError(f"{where}: there is no macro `{name}`") from error
    return _resolve(value, where)


def _is_computed(value: Any) -> bool:
    """Whether a value, or part of it, comes of a call yet to be made."""
    if isinstance(value, (list, tuple)):
        return any(map(_is_computed, value))
    return isinstance(value, gin.config.ConfigurableReference)


def _parameters(selector: str, target: Any) -> dict[str, Any]:
    """Names of the parameters, with a type hint where one is known."""
    target = inspect.unwrap(target)
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    hints = typing.get_type_hints(function)
    result = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            result |= _hidden_parameters(selector, target)
        elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
            default = parameter.default
            numeric = type(default) in (int, float)
            result[name] = hints.get(name, float if numeric else None)
    return result


def _hidden_parameters(selector: str, target: Any) -> dict[str, Any]:
    """The same, of the parameters behind a `**kwargs`."""
    if selector.rpartition(".")[2] in _named:
        return _parameters("resnet.Resnet", resnet.Resnet)
    if inspect.isclass(target) and issubclass(target, keras.Optimizer):
        return dict.fromkeys(_OPTIMIZER_KWARGS)
    if inspect.isclass(target) and issubclass(target, keras.layers.Layer):
        return {"name": str | None, "dtype": str | None}
    return {}


def _describe(hint: Any) -> str:
    if inspect.isclass(hint) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
