"""Made-up records of runs, like those of a sweep, for the tests of reports."""

import math
import random
import zlib

METHODS = ("strided", "spectral", "outer", "inner", "straight_through")
LEARNED = METHODS[2:]
STRIDES = ("1,1,2,2", "1,3,2,3", "2,3,3,2", "3,4,4,3")
LAYERS = ("pooling", *(f"block_{i}/layer_1/pooling" for i in (1, 2, 3)))
_GAIN = dict(zip(METHODS, (0.0, 0.6, 1.4, 0.8, 1.0), strict=True))
_STATES = ("kind", "ramp", "smoothness_factor", "norm", "shared_stride")
_FILTERS = (16, 16, 32, 64)


def record(
    method="outer",
    strides="1,1,2,2",
    seed=0,
    epochs=10,
    size=28,
    cost=True,
    states=True,
    **more,
):
    """A run that ended well.

    Args:
        method: one of `METHODS`.
        strides: initial strides.
        seed: of the run, and of what is made up.
        epochs: number of epochs.
        size: height and width of an image.
        cost: whether it tells its cost.
        states: whether layers tell kind, ramp and so on.
        **more: further settings.
    """
    settings = {"method": method, "strides": strides, **more, "seed": seed}
    name = "_".join(f"{value}" for value in settings.values())
    chance = random.Random(zlib.crc32(name.encode()))
    initial = [float(s) for s in strides.split(",")]
    goal = [
        [max(s * chance.gauss(1.0, 0.12) - 0.25 * (s - 2), 1.0) for _ in "hw"]
        for s in initial
    ]
    pull = 1 / (1 + more.get("lambda", 0))
    goal = [[1 + (g - 1) / pull**0.3 for g in pair] for pair in goal]
    rows = []
    gain = _GAIN[method] - 0.4 * math.log(math.prod(initial))
    gain -= 0.3 * math.log1p(more.get("lambda", 0)) + chance.gauss(0, 0.2)
    if more.get("norm") == "backward":
        gain -= 1.5
    for epoch in range(1, epochs + 1):
        share = 1 - math.exp(-epoch / 3)
        now = [
            [s + share * (g - s) for g in pair]
            for s, pair in zip(initial, goal, strict=True)
        ]
        layers, macs = _layers(method, initial, now, size, more)
        accuracy = (91.5 + gain - 12 * math.exp(-epoch / 2)) / 100
        row = {
            "epoch": epoch,
            "step": 100 * epoch,
            "seconds": 2 + macs / 1e6 + chance.random(),
            "accuracy": accuracy + 0.01,
            "val_accuracy": accuracy,
        }
        for layer in layers:
            for i, axis in enumerate(("height", "width")):
                row[f"stride/{layer['name']}/{axis}"] = layer["strides"][i]
        if method in LEARNED:
            products = [math.prod(map(math.prod, now[:i])) for i in range(1, 5)]
            row["stride_cost"] = sum(1 / p for p in products)
        rows.append(row)
    if not states:
        for layer in layers:
            for key in _STATES:
                del layer[key]
    costs = {"macs": macs, "activation_bytes": macs // 20}
    return {
        "name": name,
        "settings": settings,
        "gin_config": "fashion_mnist.gin",
        "bindings": [f"train.train.num_epochs = {epochs}"],
        "jobs": 1,
        "error": None,
        "summary": {
            "test_accuracy": accuracy,
            "test_loss": 0.3,
            "seconds": sum(row["seconds"] for row in rows),
            "epochs": epochs,
            "parameters": 78306,
            "seed": seed,
            "environment": {
                "python": "3.11.7",
                "tensorflow": "2.21.0",
                "keras": "3.15.1",
                "devices": ["2 CPU cores"],
            },
            "pooling": layers,
            **({"cost": costs} if cost else {}),
        },
        "epochs": rows,
    }


def failed(**settings):
    """A run that ended in an error."""
    return {
        **record(**settings),
        "error": "Loss is nan at step 12 | epoch 1\nTraceback",
        "summary": None,
    }


def grid(methods=METHODS, strides=STRIDES, seeds=3, **more):
    """All combinations; settings of `**more` reach learned strides alone."""
    records = []
    for method in methods:
        for start in strides:
            for seed in range(seeds):
                reach = more if method in LEARNED else {}
                records.append(record(method, start, seed, **reach))
    return records


def _layers(method, initial, now, size, more):
    layers, macs, sizes = [], 0, [size, size]
    smoothness = more.get("smoothness", 4.0)
    for name, start, pair, filters in zip(
        LAYERS, initial, now, _FILTERS, strict=True
    ):
        strides = pair if method in LEARNED else [start, start]
        nominal = [n / s for n, s in zip(sizes, strides, strict=True)]
        beyond = smoothness if method == "outer" else 0
        output = [
            min(n, 2 * math.ceil(max(m, 2) / 2 + beyond))
            for n, m in zip(sizes, nominal, strict=True)
        ]
        macs += math.prod(sizes) * 9 * filters**2 + 2 * (
            math.prod(output) * 9 * filters**2
        )
        if method != "strided":
            learned = method in LEARNED
            layers.append(
                {
                    "name": name,
                    "initial": [start, start],
                    "strides": list(strides),
                    "input_size": sizes,
                    "output_size": output,
                    "learned": learned,
                    "kind": "DiffStride" if learned else "FixedSpectralPooling",
                    "ramp": method if learned else None,
                    "smoothness_factor": smoothness if learned else None,
                    "norm": more.get("norm", "forward"),
                    "shared_stride": False,
                }
            )
        sizes = output
    return layers, macs
