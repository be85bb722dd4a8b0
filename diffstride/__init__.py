"""DiffStride for Keras 3: downsampling whose strides are learned.

Names are imported when they are first used, so that the tools (`sweep`,
`report`) start without keras. The layers need keras and numpy only.
"""

import importlib
from typing import Any

from diffstride.registration import register, register_with_keras

_MODULES = {
    "add_stride_cost": "budget",
    "stride_cost": "budget",
    "add_compute_budget": "compute_budget",
    "format_cost": "cost",
    "model_cost": "cost",
    "convert": "conversion",
    "harden": "hardening",
    "recalibrate": "recalibration",
    "check": "diagnostics",
    "exclude_strides_from_weight_decay": "optimization",
    "BlurPool2D": "antialiasing",
    "FLCPooling": "antialiasing",
    "MaxBlurPool2D": "antialiasing",
    "DCTDiffStride": "cosine",
    "DynOPool": "dynopool",
    "AveragePooling": "windows",
    "FractionalMaxPooling2D": "windows",
    "MaxPooling": "windows",
    "DiffStride": "pooling",
    "DiffStride1D": "pooling",
    "DiffStride3D": "pooling",
    "FixedSpectralPooling": "pooling",
    "FixedSpectralPooling1D": "pooling",
    "FixedSpectralPooling3D": "pooling",
    "SpatialPooling": "windows",
    "StrideConstraint": "pooling",
    "SmoothnessSchedule": "schedule",
    "SpectralResize": "resizing",
    "SpectralResize1D": "resizing",
    "SpectralResize3D": "resizing",
    "StrideLogger": "logger",
    "static_sizes": "static",
    "freeze": "surgery",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES.values():
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(f"{__name__}.{_MODULES[name]}")
    register()
    value = globals()[name] = getattr(module, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})


register_with_keras()
