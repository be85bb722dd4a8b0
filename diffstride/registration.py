"""Registers the layers with Keras as soon as both are there.

`keras.models.load_model` finds only what is registered, so that `import
diffstride` has to suffice for it. Importing keras in there would take seconds,
which the tools can do without: it is left to whoever else imports keras.
"""

import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

# Modules that do not import keras. Where one of the others imports it first, it
# is half made, and registering in there would import in a circle.
_LIGHT = {"registration", "errors", "files", "formatting", "runs", "settings"}


def register_with_keras() -> None:
    """Registers the layers now, or else once keras has been imported."""
    if "keras" in sys.modules:
        _register()
    else:
        sys.meta_path.insert(0, _KerasFinder)


def _register() -> None:
    importlib.import_module("diffstride.pooling")
    importlib.import_module("diffstride.resnet")


class _KerasFinder:
    """Finds keras as others do, and has its loader register afterwards."""

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
        ours = {n[11:] for n in sys.modules if n.startswith("diffstride.")}
        if spec is None or ours - _LIGHT:
            return spec

        def exec_module(module: ModuleType) -> None:
            sys.meta_path.remove(cls)
            del spec.loader.exec_module  # This one, set below.
            spec.loader.exec_module(module)
            _register()

        spec.loader.exec_module = exec_module
        return spec
