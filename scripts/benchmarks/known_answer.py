#!/usr/bin/env python3
"""Learned strides on a task whose right strides are known.

    python scripts/benchmarks/known_answer.py --output=exp/known_answer.jsonl

Images of 32 x 32 hold waves that run down the height, of 1 to 8 cycles and of
random phase. The task is to detect which are present; nothing depends on the
width. The network sees the pooled images in white noise, so that what the mask
takes from a wave is lost. (Without that noise it would not be: the next layer
can amplify again what was attenuated.) The transforms are unitary: at any
stride a wave that is passed whole stands out of the noise alike.

With `lambda * J` in the loss strides grow until they cost information: in
height until the mask has reached the highest wave, in width up to the limit of
the layer. The expected strides are kept with each run.
"""

import argparse
import itertools
import os
import pathlib
import sys
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

from diffstride import DiffStride, add_stride_cost  # noqa: E402
from diffstride.cost import cost_of_calls, scalars  # noqa: E402
from diffstride.environment import environment  # noqa: E402
from diffstride.errors import UserError, run_reporting_errors  # noqa: E402
from diffstride.files import (  # noqa: E402
    make_folder,
    read_ours,
    replace_lines,
)
from diffstride.masks import RAMPS  # noqa: E402
from diffstride.profiling import pooling_states, profile  # noqa: E402
from diffstride.runs import read_records  # noqa: E402

SIZE = 32
WAVES = 8
SMOOTHNESS = 2.0
UPPER_LIMIT = 8.0
_AMPLITUDE = 0.25


def main(argv: list[str]) -> int:
    """Trains from each start with each ramp; finished runs are kept."""
    arguments = _arguments(argv)
    output = pathlib.Path(arguments.output)
    what = "the records of this script"
    records = read_ours(output, "--output", what, read_records) or []
    make_folder(output.parent, "--output")
    done = {
        each["name"]: (each["summary"] or {}).get("epochs") for each in records
    }
    for seed, ramp, start in itertools.product(
        range(arguments.seeds), RAMPS, arguments.starts
    ):
        settings = {
            "method": ramp,
            "strides": f"{start:g}",
            "lambda": arguments.weight,
            "seed": seed,
        }
        name = "_".join(f"{key}-{value}" for key, value in settings.items())
        if name not in done:
            records.append(run(name, settings, arguments.epochs))
            replace_lines(output, records)
            _print_end(records[-1])
        elif done[name] != arguments.epochs:
            raise UserError(
                f"{output} holds {name} with {done[name]} epochs, not "
                f"{arguments.epochs}; choose another --output or --epochs"
            )
    return 0


def _print_end(record: dict[str, Any]) -> None:
    (layer,) = record["summary"]["pooling"]
    ends = " x ".join(f"{stride:.2f}" for stride in layer["strides"])
    accuracy = 100 * record["summary"]["test_accuracy"]
    print(f"{record['name']}: {ends}, {accuracy:.1f} %", flush=True)


def expected_strides(ramp: str) -> list[tuple[float, float]]:
    """Between which strides each axis should end.

    The height: from where the mask takes from the highest wave, to where
    nothing is left of it (with the outer ramp: of its positive frequency, as
    that mask reaches one bin further on the other side). The width: at the
    limit, as there is nothing to lose.
    """
    half = SIZE / 2
    if ramp == "outer":  # The ramp of frequency k is from T = k - R to k.
        height = (half / WAVES, half / (WAVES - SMOOTHNESS))
    elif ramp == "inner":  # It is from T = q to q + R, q = k - 1/2.
        edge = WAVES - 0.5
        height = (half / (edge + SMOOTHNESS), half / edge)
    else:  # Whole in an output of 2 k + 2, and gone below 2 k.
        height = (half / (WAVES + 1), half / WAVES)
    return [height, (UPPER_LIMIT, UPPER_LIMIT)]


def images(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws images (number, 32, 32, 1), and labels: which waves they hold."""
    random = np.random.default_rng(seed)
    labels = random.integers(2, size=(number, WAVES)).astype("float32")
    phases = random.uniform(0, 2 * np.pi, size=(number, WAVES, 1))
    cycles = np.arange(1, WAVES + 1)[:, None]
    waves = np.cos(2 * np.pi * cycles * np.arange(SIZE) / SIZE + phases)
    rows = _AMPLITUDE * np.einsum("nk,nkh->nh", labels, waves)
    x = np.tile(rows[:, :, None, None], (1, 1, SIZE, 1))
    return x.astype("float32"), labels


def network(ramp: str, start: float) -> keras.Model:
    """Builds a network that pools first; it gives a logit for each wave."""
    layers = keras.layers
    return keras.Sequential(
        [
            layers.Input((SIZE, SIZE, 1)),
            DiffStride(
                start,
                SMOOTHNESS,
                upper_limit_stride=UPPER_LIMIT,
                norm="ortho",
                ramp=ramp,
                name="pooling",
            ),
            layers.GaussianNoise(1.0),
            layers.Lambda(lambda x: keras.ops.mean(x, axis=2)),
            layers.Conv1D(64, 9, padding="same", activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(64, activation="relu"),
            layers.Dense(WAVES),
        ]
    )


def run(name: str, settings: dict[str, Any], epochs: int) -> dict[str, Any]:
    """Trains one network; returns a record, as of `diffstride.runs`."""
    seed = settings["seed"]
    keras.utils.set_random_seed(seed)
    model = network(settings["method"], float(settings["strides"]))
    add_stride_cost(model, settings["lambda"])
    rate = keras.optimizers.schedules.CosineDecay(0.01, 100 * epochs)
    model.compile(
        keras.optimizers.Adam(rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
    )
    rows: list[dict[str, Any]] = []

    def note(epoch: int, logs: dict[str, float]) -> None:
        place = {"epoch": epoch + 1, "step": 100 * (epoch + 1)}
        rows.append({**place, **logs, **scalars(model, profile(model))})

    train, test = images(6400, seed=2 * seed), images(2000, seed=2 * seed + 1)
    begin = time.perf_counter()
    model.fit(
        *train,
        batch_size=64,
        epochs=epochs,
        verbose=0,
        callbacks=[keras.callbacks.LambdaCallback(on_epoch_end=note)],
    )
    seconds = time.perf_counter() - begin
    loss, accuracy = model.evaluate(*test, verbose=0)
    calls = profile(model)
    (state,) = pooling_states(calls)
    expected = expected_strides(settings["method"])
    summary = {
        "test_accuracy": accuracy,
        "test_loss": loss,
        "seconds": seconds,
        "epochs": epochs,
        "parameters": model.count_params(),
        "cost": cost_of_calls(model, calls).totals(),
        "seed": seed,
        "environment": environment(),
        "pooling": [{**state._asdict(), "expected": expected}],
    }
    return {
        "name": name,
        "settings": settings,
        "gin_config": None,
        "bindings": [],
        "jobs": 1,
        "error": None,
        "summary": summary,
        "epochs": rows,
    }


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--output", required=True, help="records of the runs, JSON lines")
    add("--starts", type=float, nargs="+", default=[1.2, 2.5, 4.0, 6.0])
    add("--seeds", type=int, default=3, help="number of seeds")
    add("--weight", type=float, default=0.1, help="lambda")
    add("--epochs", type=int, default=40, help="of 100 steps")
    add("--debug", action="store_true", help="tell where errors come from")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run_reporting_errors(main)(sys.argv[1:]))
