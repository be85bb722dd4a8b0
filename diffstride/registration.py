"""Registers the layers with Keras as soon as both are there.

`keras.models.load_model` finds only what is registered, so that `import
diffstride` has to suffice for it. Importing keras in there would take seconds,
which the tools can do without: it is left to whoever else imports keras.
"""

import importlib
import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

_REGISTERING = ("diffstride.pooling", "diffstride.resnet")


def register_with_keras() -> None:
    """Registers the layers now, or else once keras has been imported."""
    if "keras" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _KerasFinder)


def _register() -> None:
    for name in _REGISTERING:
        importlib.import_module(name)


class _KerasFinder(importlib.abc.MetaPathFinder):
    """Finds keras as others do, with a loader that registers afterwards."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        """Returns the spec of keras, and `None` for all else."""
        if name != "keras":
            return None
        sys.meta_path.remove(cls)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            # Whoever looks for keras need not import it.
            sys.meta_path.insert(0, cls)
        # Where one of our modules imports keras it registers what it has.
        if spec is not None and not _being_imported():
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, loader: Any):
        self._loader = loader

    def create_module(self, spec: Any) -> ModuleType | None:
        """Makes the module as its own loader does."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Runs keras, then registers."""
        sys.meta_path.remove(_KerasFinder)
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        _register()


def _being_imported() -> bool:
    ours = (name for name in sys.modules if name.startswith("diffstride."))
    return any(name not in _LIGHT for name in ours)


_LIGHT = {
    f"diffstride.{name}"
    for name in (
        "registration",
        "errors",
        "files",
        "formatting",
        "runs",
        "settings",
    )
}
