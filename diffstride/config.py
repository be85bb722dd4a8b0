"""Gin, attached in one place: what can be configured, and how errors read.

The library knows nothing of gin. Here its functions and classes are registered
under the names that the authors' release used, config files are found and
parsed, and every binding is checked before anything runs.
"""

import inspect
import logging
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

from diffstride import data, pooling, resnet, train
from diffstride.errors import ConfigError

_BINDINGS = "--gin_bindings"


def _register(target: Any, module: str, name: str | None = None) -> Any:
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


for _target in (data.load_datasets, data.pad_crop_flip):
    _register(_target, "data")
for _name in ("DiffStride", "FixedSpectralPooling", "SpatialPooling"):
    _register(getattr(pooling, _name), "pooling")
for _name in ("SGD", "Adam", "AdamW", "RMSprop", "Lion", "Nadam"):
    _register(getattr(keras.optimizers, _name), "keras.optimizers")
for _name in ("CosineDecay", "ExponentialDecay", "PiecewiseConstantDecay"):
    _register(
        getattr(keras.optimizers.schedules, _name), "keras.optimizers.schedules"
    )
_Resnet = _register(resnet.Resnet, "resnet")
_register_named(resnet.resnet18)
_register_named(resnet.resnet56)
run_training = _register(train.train, "train")
operative = gin.operative_config_str


def load(files: Sequence[str], bindings: Sequence[str]) -> None:
    """Parses config files, then bindings, and checks all of them.

    A file is a path, or the name of a config that comes with this package.
    """
    paths = [str(_find(file)) for file in files]
    disabled = logging.root.manager.disable
    logging.disable()  # Gin logs each place where a file is not.
    try:
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
        sources = [*files, _BINDINGS] if bindings else files
        raise ConfigError(
            "Unfinished statement, a bracket or quote left open, in "
            f"{' or '.join(sources)}"
        ) from error
    except Exception as error:
        message = str(error).replace("bindings string", _BINDINGS)
        raise ConfigError(message) from error
    finally:
        logging.disable(disabled)
    for key, value, where in _statements(files, bindings):
        _check(key, value, where)
    gin.finalize()


def differing(old: str, new: str) -> list[str]:
    """Lists what two operative configs of one run may not differ in."""
    return sorted(_fixed_settings(old) ^ _fixed_settings(new))


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
    """Says of each binding that has no effect that it has none."""
    used = re.findall(r"^\s*([\w./]+) =", operative_text, re.MULTILINE)
    return [
        f"`{key}` is set in {where}, but nothing in this run uses it"
        for key, _, where in _statements([], bindings)
        if not any(key.endswith(u) or u.endswith(key) for u in used)
    ]


gin.add_config_file_search_path(str(configs_dir()))


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
) -> Iterator[tuple[str, Any, str]]:
    """Parameter, value and place of all bindings, includes followed.

    But for macros, which are checked where they are used.
    """
    sources = [(str(path), path.read_text()) for path in map(_find, files)]
    delegate = gin.config.ParserDelegate()
    for source, text in [*sources, (_BINDINGS, "\n".join(bindings))]:
        for each in gin.config_parser.ConfigParser(text, delegate):
            if isinstance(each, gin.config_parser.IncludeStatement):
                yield from _statements([each.filename], [])
            elif getattr(each, "arg_name", ""):
                where = f"{source}, line {each.location.line_num}"
                yield f"{each.selector}.{each.arg_name}", each.value, where


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


def _check(key: str, value: Any, where: str) -> None:
    """Checks name and type of a bound parameter, as gin does not."""
    selector, _, name = key.rpartition(".")
    parameters = _parameters(gin.config.get_configurable(selector))
    if name not in parameters:
        raise ConfigError(
            f"{where}: `{selector}` has no parameter `{name}`. It has: "
            f"{', '.join(sorted(parameters))}"
        )
    hint = parameters[name]
    value = _resolve(value, where)
    if not (hint is None or _is_computed(value) or _fits(value, hint)):
        raise ConfigError(
            f"{where}: `{key}` must be {_describe(hint)}. Received: {value!r}"
        )


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and hint in (int, float):
        return False
    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    try:
        typeguard.check_type(value, hint, collection_check_strategy=every)
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


def _parameters(target: Any) -> dict[str, Any]:
    """Names of the parameters, with a type hint where one is known."""
    target = inspect.unwrap(target)
    function = target.__init__ if inspect.isclass(target) else target
    function = inspect.unwrap(function)
    hints = typing.get_type_hints(function)
    result = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            result |= _hidden_parameters(target)
        elif name != "self" and parameter.kind is not parameter.VAR_POSITIONAL:
            numeric = type(parameter.default) in (int, float)
            result[name] = hints.get(name, float if numeric else None)
    return result


def _hidden_parameters(target: Any) -> dict[str, Any]:
    """The same, of the parameters behind a `**kwargs`."""
    if not inspect.isclass(target):  # `resnet18` or `resnet56`.
        return _parameters(resnet.Resnet)
    if issubclass(target, keras.Optimizer):
        names = inspect.signature(keras.Optimizer).parameters
        return {name: None for name in names if name != "kwargs"}
    return {"name": str | None, "dtype": str | None}


def _describe(hint: Any) -> str:
    if inspect.isclass(hint) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("collections.abc.", "")
