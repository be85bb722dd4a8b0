"""Which map sizes strides come to, on the way that they have taken.

A trace is a list of steps, each a list of the strides of all layers and a
smoothness. Layers are in a row: each pools what the one before it gives.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from diffstride.masks import LowPass
from diffstride.profiling import AXES
from diffstride.runs import read_runs

COUNTED = (1, 4, 8)  # Steps of sizes that are counted for ResNet-18.
# What ResNet-18 gives to its three learned layers, on images of 224 x 224.
IMAGENET = (56, 56)
# Runs that are there already, with their strides at the end of each epoch.
EPOCHS = pathlib.Path(__file__).parents[2] / "results" / "longer.jsonl"
BETWEEN = 50  # Places that are looked at between two of them.
MARGIN = 0.02  # Of a stride, before hysteresis lets a map become smaller.
LEAD = 20  # Steps that a compilation takes, to be ahead of.


def on_imagenet(
    masks: Sequence[Any], trace: Sequence[tuple]
) -> dict[str, dict[str, int]]:
    """Counts what the strides of all layers but the first are to ResNet-18."""
    later = [(strides[1:], smoothness) for strides, smoothness in trace]
    found = {}
    for step in COUNTED:
        found[str(step)] = count(walk(masks[1:], later, IMAGENET, step))
        held = count(walk(masks[1:], later, IMAGENET, step, MARGIN))
        found[str(step)]["hysteresis"] = held["combinations"]
    return found


def runs_by_epoch() -> list[dict[str, Any]]:
    """Counts in committed runs, whose strides went straight in an epoch."""
    rows = []
    for run in read_runs([EPOCHS]):
        layers = (run["summary"] or {}).get("pooling", [])
        if not any(layer["learned"] for layer in layers):
            continue
        masks = [
            LowPass(layer["smoothness_factor"], layer["ramp"])
            for layer in layers
        ]
        ends = [[np.float32(layer["initial"]) for layer in layers]] + [
            [
                np.float32(
                    [row[f"stride/{layer['name']}/{axis}"] for axis in AXES[2]]
                )
                for layer in layers
            ]
            for row in run["epochs"]
        ]
        trace = [
            (
                [
                    a + np.float32(far) * (b - a)
                    for a, b in zip(*two, strict=True)
                ],
                masks[0].smoothness,
            )
            for two in itertools.pairwise(ends)
            for far in np.arange(BETWEEN) / BETWEEN
        ]
        rows.append(
            {
                "ramp": masks[0].ramp,
                "mode": f"{len(run['epochs'])} epochs",
                "size_step": 1,
                **count(walk(masks, trace, layers[0]["input_size"], 1)),
                "imagenet": on_imagenet(masks, trace),
            }
        )
    return rows


def walk(
    masks: Sequence[Any],
    trace: Sequence[tuple],
    first: tuple,
    size_step: int,
    margin: float = 0.0,
) -> list[tuple]:
    """Returns the sizes of all maps at each step.

    With a `margin` a map that could be smaller stays as it is until it could be
    at strides smaller by this share.
    """
    held: list[Any] = [None] * len(masks)
    walked = []
    for strides, smoothness in trace:
        sizes = first
        for place, (mask, value) in enumerate(zip(masks, strides, strict=True)):
            mask = dataclasses.replace(
                mask, smoothness=smoothness, size_step=size_step
            )
            now = mask.output_sizes(sizes, value)
            if margin and held[place]:
                least = mask.output_sizes(sizes, value * (1 - margin))
                # No larger than the input, which may have become smaller.
                now = tuple(
                    low
                    if before < low or before > size or bound < before
                    else before
                    for low, bound, before, size in zip(
                        now, least, held[place], sizes, strict=True
                    )
                )
            held[place] = sizes = now
        walked.append(tuple(held))
    return walked


def count(walked: Sequence[tuple]) -> dict[str, int]:
    """Counts what occurred, and how often it changed."""
    changes = sum(a != b for a, b in itertools.pairwise(walked))
    return {"combinations": len(set(walked)), "changes": changes}


def foreseen(
    masks: Sequence[Any], trace: Sequence[tuple], first: tuple
) -> dict[str, int]:
    """Counts what a compiler in the background would have known in time.

    Every `LEAD` steps the way that strides took since is drawn out twice as
    far, and all combinations on it are compiled, which takes `LEAD` steps.
    """
    walked = walk(masks, trace, first, 1)
    ready: dict[tuple, int] = {}
    for now in range(LEAD, len(trace), LEAD):
        (before, _), (after, smoothness) = trace[now - LEAD], trace[now]
        drawn = [
            (
                [
                    np.maximum(b + far * (b - a), 1).astype(b.dtype)
                    for a, b in zip(before, after, strict=True)
                ],
                smoothness,
            )
            for far in np.linspace(0, 2, 11)
        ]
        for sizes in walk(masks, drawn, first, 1):
            ready.setdefault(sizes, now + LEAD)
    new = {sizes: walked.index(sizes) for sizes in set(walked[1:])}
    new.pop(walked[0], None)
    hits = sum(ready.get(sizes, len(walked)) <= at for sizes, at in new.items())
    wasted = len(ready.keys() - set(walked))
    return {"new": len(new), "hits": hits, "wasted": wasted}
