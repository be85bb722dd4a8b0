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

# What the layers import of this package. Where one of these imports keras it is
# half made itself, and registering in there would import in a circle.
_NEEDED = {
    *("arguments", "pooling", "residual", "resnet", "masks", "resampling"),
    "numerics",
    *("static", "internals", "optimization", "resizing", "composite"),
    *("strided", "antialiasing", "cosine", "dynopool", "windows"),
    *("fourier", "waves", "parts", "audio_cnn"),
}

# Modules that have layers of their own.
LAYERS = (
    *("pooling", "resizing", "parts", "residual", "resnet", "audio_cnn"),
    *("antialiasing", "cosine", "dynopool", "windows"),
)


def register_with_keras() -> None:
    """Registers the layers now, or else once keras has been imported."""
    if "keras" in sys.modules:
        register()
    else:
        sys.meta_path.insert(0, _KerasFinder)


def register() -> None:
    """Registers the layers, which takes keras."""
    for name in LAYERS:
        importlib.import_module(f"diffstride.{name}")


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
        if spec is None or ours & _NEEDED:
            return spec

        def exec_module(module: ModuleType) -> None:
            del spec.loader.exec_module  # This one, set below.
            spec.loader.exec_module(module)
            sys.meta_path.remove(cls)
            register()

        spec.loader.exec_module = exec_module
        return spec
