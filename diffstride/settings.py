"""What a sweep varies, and the gin parameters that this sets.

The names here are those that `config` registers: a parameter that is renamed
there is renamed here. Imports no framework.
"""

from typing import Any

RAMPS = ("outer", "inner", "straight_through")
STRIDES = "strides"
LAMBDA = "lambda"
BUDGET = "budget"
NETWORK = "network"
TASK = "task"

_POOLING = "resnet.Resnet.pooling_cls"
METHODS = {
    "strided": [f"{_POOLING} = None"],
    "spectral": [f"{_POOLING} = @pooling.FixedSpectralPooling"],
} | {
    ramp: [
        f"{_POOLING} = @pooling.DiffStride",
        f"pooling.DiffStride.ramp = '{ramp}'",
    ]
    for ramp in RAMPS
}
# What others do, and the layer that does it.
RIVALS = {
    "average": "AveragePooling",
    "max": "MaxPooling",
    "fractional_max": "FractionalMaxPooling2D",
    "blur": "BlurPool2D",
    "max_blur": "MaxBlurPool2D",
    "flc": "FLCPooling",
    "dynopool": "DynOPool",
    "dct": "DCTDiffStride",
}
METHODS |= {
    method: [f"{_POOLING} = @pooling.{layer}"]
    for method, layer in RIVALS.items()
}
LEARNED = (*RAMPS, "dynopool", "dct")
# The short names of settings, and the parameters that each of them sets.
PARAMETERS = {
    STRIDES: ["resnet.Resnet.strides"],
    "smoothness": [
        "pooling.DiffStride.smoothness_factor",
        "pooling.DCTDiffStride.smoothness_factor",
    ],
    "norm": [
        "pooling.DiffStride.norm",
        "pooling.FixedSpectralPooling.norm",
        "pooling.FLCPooling.norm",
        "pooling.DCTDiffStride.norm",
    ],
    LAMBDA: ["train.train.stride_cost_weight"],
    "shared": [
        "pooling.DiffStride.shared_stride",
        "pooling.DynOPool.shared_stride",
        "pooling.DCTDiffStride.shared_stride",
    ],
    "stride_lr": [
        "pooling.DiffStride.stride_lr_multiplier",
        "pooling.DynOPool.stride_lr_multiplier",
        "pooling.DCTDiffStride.stride_lr_multiplier",
    ],
    "final_smoothness": [
        "pooling.DiffStride.final_smoothness_factor",
        "pooling.DCTDiffStride.final_smoothness_factor",
    ],
    "size_step": [
        "pooling.DiffStride.size_step",
        "pooling.DCTDiffStride.size_step",
    ],
    "placement": ["resnet.Resnet.pooling_placement"],
    BUDGET: ["train.train.budget"],
    "harden": ["train.train.harden_to"],
    "finetune": ["train.train.finetune_epochs"],
    "restart": ["train.train.restart"],
    "harden_by": ["train.train.harden_by"],
    "trials": ["train.train.trials"],
    "trial_epochs": ["train.train.trial_epochs"],
    NETWORK: ["train.train.model_cls"],
    TASK: ["data.load_tasks.tasks"],
}
# Networks by name, and what has the parameters of `resnet.Resnet` there.
NETWORKS = {
    "resnet": ("resnet.Resnet", {}),
    "resnet18": (
        "resnet.resnet18",
        {"resnet.Resnet.strides": "resnet.resnet18.strides"},
    ),
    "resnet56": (
        "resnet.resnet56",
        {"resnet.Resnet.strides": "resnet.resnet56.strides"},
    ),
    "densenet": (
        "networks.densenet",
        {"resnet.Resnet.": "networks.densenet."},
    ),
    "application": (
        "networks.application",
        {"resnet.Resnet.": "networks.application."},
    ),
    "audio_cnn": (
        "audio_cnn.AudioCNN",
        {"resnet.Resnet.": "audio_cnn.AudioCNN."},
    ),
}
# Which methods a parameter reaches, by how its name begins; all, if not here.
_REACH = {
    "pooling.DiffStride.": RAMPS,
    "pooling.FixedSpectralPooling.": ("spectral",),
    "train.train.stride_cost_weight": LEARNED,
    "train.train.budget": LEARNED,
    "train.train.harden_to": (*RAMPS, "dct"),
    "train.train.finetune_epochs": (*RAMPS, "dct"),
    "train.train.restart": (*RAMPS, "dct"),
    "train.train.harden_by": (*RAMPS, "dct"),
    "train.train.trials": (*RAMPS, "dct"),
    "train.train.trial_epochs": (*RAMPS, "dct"),
    "resnet.Resnet.pooling_placement": tuple(set(METHODS) - {"strided"}),
} | {f"pooling.{layer}.": (method,) for method, layer in RIVALS.items()}
AXES = ("method", *PARAMETERS, "seed")


def parameters(settings: dict[str, Any], axis: str) -> list[str]:
    """Lists the gin parameters that an axis sets, if the method has them."""
    if axis in ("method", "seed"):
        return []
    method = settings.get("method")
    unreached = tuple(
        beginning
        for beginning, methods in _REACH.items()
        if method not in methods
        # Where no method is given, those of this package may be meant.
        and (method is not None or RIVALS.keys() >= set(methods))
    )
    names = PARAMETERS.get(axis, [axis])
    return [
        _in_network(settings, name) if axis in PARAMETERS else name
        for name in names
        if not name.startswith(unreached)
    ]


def has_effect(settings: dict[str, Any], axis: str) -> bool:
    """Tells whether a run of such a method differs by an axis."""
    return axis in ("method", "seed") or bool(parameters(settings, axis))


def bindings(settings: dict[str, Any]) -> list[str]:
    """Lists the gin bindings that the settings of a run mean."""
    lines = [
        _in_network(settings, line)
        for line in METHODS.get(settings.get("method"), [])
    ]
    for axis, value in settings.items():
        if axis == NETWORK:
            value = f"@{NETWORKS[value][0]}"
        for parameter in parameters(settings, axis):
            lines.append(f"{parameter} = {_as_gin(value)}")
    return lines


def _in_network(settings: dict[str, Any], text: str) -> str:
    """A parameter, or a line that sets one, for the network of a run."""
    _, names = NETWORKS.get(settings.get(NETWORK), ("", {}))
    for begin, instead in names.items():
        if text.startswith(begin):
            return instead + text.removeprefix(begin)
    return text


def _as_gin(value: Any) -> str:
    """A value as gin writes it; text that looks like gin is left as it is."""
    looks_like_gin = isinstance(value, str) and (
        value == "None" or value.startswith(tuple("@%[({'\""))
    )
    return value if looks_like_gin else repr(value)
