"""What conversion costs: MACs and one step of networks, before and after.

    python scripts/benchmarks/convert.py --output=docs/results/convert
    python scripts/benchmarks/convert.py --models=ResNet50V2 --timings=10

Weights are random: neither figure depends on them. The strides are those that
the networks come with. Times are of one training step (SGD) and one inference
on images of `--size`, in the order before, after, before, after, so that a
machine that slows down slows both; given is the median.
"""

import argparse
import json
import pathlib
import statistics
import time

_TIMES = (
    "train_step_before",
    "train_step_after",
    "infer_before",
    "infer_after",
)
FAMILIES = (
    "ResNet50",
    "ResNet50V2",
    "DenseNet121",
    "EfficientNetB0",
    "MobileNetV2",
    "VGG16",
    "ConvNeXtTiny",
)
# From the dearest to the cheapest: ramp and place of the new layers.
VARIANTS = (("outer", "after"), ("inner", "after"), ("inner", "before"))


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--models", default=",".join(FAMILIES))
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument(
        "--timings", type=int, default=0, help="steps to time, 0 for MACs only"
    )
    parser.add_argument("--output", type=pathlib.Path)
    return parser.parse_args()


def measure(name: str, options: argparse.Namespace) -> list[dict]:
    """Returns a record for the network and each of its conversions."""
    import functools

    import keras

    from diffstride import DiffStride, convert

    shape = (options.size, options.size, 3)
    model = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=shape, pooling="avg"
    )
    models, records = [model], []
    for ramp, where in VARIANTS:
        to = functools.partial(DiffStride, smoothness_factor=1.0, ramp=ramp)
        new, report = convert(model, to, where=where)
        models.append(new)
        records.append(
            {
                "model": name,
                "size": options.size,
                "ramp": ramp,
                "where": where,
                "converted": sum(bool(c.became) for c in report.changes),
                "macs_before": report.macs_before,
                "macs_after": report.macs_after,
                "table": str(report),
            }
        )
    if options.timings:
        times = timed(models, options)
        for record, (train, infer) in zip(records, times[1:], strict=True):
            record["train_step_before"], record["infer_before"] = times[0]
            record["train_step_after"], record["infer_after"] = train, infer
            record["batch"] = options.batch
            record["backend"] = keras.backend.backend()
    return records


def timed(models: list, options: argparse.Namespace) -> list[tuple]:
    """Median seconds of a training step and of an inference, of each model."""
    import keras
    import numpy as np

    from diffstride import static_sizes

    jax = keras.backend.backend() == "jax"
    shape = (options.batch, options.size, options.size, 3)
    x = np.random.default_rng(0).normal(size=shape).astype("float32")
    y = np.arange(options.batch) % 3
    trained = []
    for model in models:
        head = keras.layers.Dense(3)(model.output)
        model = keras.Model(model.input, head)
        if jax:
            static_sizes(model)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(keras.optimizers.SGD(1e-4), loss, jit_compile=jax)
        model.train_on_batch(x, y)
        model.predict_on_batch(x)
        trained.append(model)
    seconds: list = [([], []) for _ in models]
    for _ in range(options.timings):
        for model, (train, infer) in zip(trained, seconds, strict=True):
            start = time.perf_counter()
            model.train_on_batch(x, y)
            middle = time.perf_counter()
            model.predict_on_batch(x)
            train.append(middle - start)
            infer.append(time.perf_counter() - middle)
    return [tuple(map(statistics.median, pair)) for pair in seconds]


def table(records: list[dict]) -> str:
    """Lays out the records, a line for each conversion."""
    from diffstride.formatting import human, markdown

    header = ["model", "ramp", "where", "layers", "MACs", "MACs now", "ratio"]
    timings = any("train_step_after" in r for r in records)
    if timings:
        header += ["step", "step now", "inference", "inference now"]
    rows = []
    for r in records:
        ratio = r["macs_after"] / r["macs_before"]
        row = [r["model"], r["ramp"], r["where"], str(r["converted"])]
        row += [human(r["macs_before"]), human(r["macs_after"])]
        row.append(f"{ratio:.2f}")
        if timings:
            row += [f"{r[k]:.2f} s" if k in r else "-" for k in _TIMES]
        rows.append(row)
    return markdown(header, rows)


def main() -> None:
    """Measures, prints a table, and writes it with its records."""
    options = parse()
    records = []
    for name in options.models.split(","):
        records += measure(name, options)
        print(records[-len(VARIANTS)]["table"], flush=True)
        if options.output:  # Each network, in case that the next one fails.
            options.output.mkdir(parents=True, exist_ok=True)
            (options.output / "table.md").write_text(table(records) + "\n")
            lines = [json.dumps(record) + "\n" for record in records]
            (options.output / "records.jsonl").write_text("".join(lines))
    print(table(records))


if __name__ == "__main__":
    main()
