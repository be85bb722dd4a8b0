#!/usr/bin/env python3
"""Which files models can be exported to, and how far these are off.

    python scripts/benchmarks/export.py --output=results/export.json
    python scripts/benchmarks/export.py --table results/export.json

Two small models, a `Resnet` and a functional model that `convert` has given
learned strides, are exported as they are, frozen and hardened, to each format
of `model.export` on each backend. Each file is loaded by the runtime that it is
for, in a process that cannot import diffstride, and its outputs are compared
with those of the source. It takes some minutes; with `--folder` the files are
kept, and the same command goes on where it was stopped. Runtimes and converters
are optional (`ai-edge-litert onnxruntime openvino onnx tf2onnx onnxscript
jax2onnx litert-torch`); what is not installed is a line of the table.
"""

import argparse
import collections
import functools
import importlib.metadata
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np  # noqa: E402

BACKENDS = ("tensorflow", "jax", "torch")
FORMS = ("learned", "frozen", "spectral", "strided", "pooled")
MODELS = ("converted", "Resnet")
CASE = ("backend", "format", "model", "form")
SHAPE = (20, 18, 3)
TOLERANCE = 1e-4  # Above it a file computes something else.
# What errors mean that do not say it themselves.
KNOWN = {
    "structure of `inputs` and `dynamic_shapes`": (
        "Keras exports no model from torch to SavedModel: torch refuses how it "
        "describes the shapes of inputs"
    ),
    r"aten::ravel": (
        "matrices of strides that may change need an operation, "
        "`aten::ravel`, that the converter lacks: freeze the model"
    ),
    r"called inside of a compiled function|to jax.numpy.arange as": (
        "sizes depend on a learned stride, and have to be known: freeze the "
        "model"
    ),
    r"XlaCallModule": (
        "OpenVINO has no rule for what holds a program of JAX (`XlaCallModule`)"
    ),
    r"pip install litert-torch": "not installed: litert-torch",
}
PACKAGES = (
    *("keras", "tensorflow", "jax", "torch", "onnxruntime", "ai-edge-litert"),
    *("openvino", "onnx", "tf2onnx", "onnxscript", "jax2onnx"),
    *("litert-torch", "torch-xla"),
)


def load_saved_model(path: str) -> Callable:
    """Loads the signature that TF Serving calls."""
    import tensorflow as tf

    model = tf.saved_model.load(path)
    signature = model.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    signature.model = model  # It holds the weights.
    return lambda x: next(iter(signature(**{name: tf.constant(x)}).values()))


def load_onnx(path: str) -> Callable:
    """Loads a session of ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(
        path, providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def load_litert(path: str) -> Callable:
    """Loads an interpreter of LiteRT, or the same one of TensorFlow."""
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow import lite

        Interpreter = lite.Interpreter

    interpreter = Interpreter(model_path=path)
    (given,) = interpreter.get_input_details()
    (returned,) = interpreter.get_output_details()

    def call(x: np.ndarray) -> np.ndarray:
        interpreter.resize_tensor_input(given["index"], x.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(returned["index"])

    return call


def load_torch(path: str) -> Callable:
    """Loads an exported program."""
    import torch

    module = torch.export.load(path).module()
    return lambda x: module(torch.from_numpy(x)).detach().numpy()


def load_openvino(path: str) -> Callable:
    """Compiles a model with OpenVINO, which would go down to bfloat16."""
    import openvino

    model = openvino.Core().compile_model(
        path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    return lambda x: model(x)[0]


class Format(NamedTuple):
    """A format: its name in Keras, the suffix of its files, what loads it."""

    keras_name: str
    suffix: str
    load: Callable[[str], Callable]


FORMATS = {
    "SavedModel": Format("tf_saved_model", "", load_saved_model),
    "LiteRT": Format("litert", ".tflite", load_litert),
    "ONNX": Format("onnx", ".onnx", load_onnx),
    "torch": Format("torch", ".pt2", load_torch),
    "OpenVINO": Format("openvino", ".xml", load_openvino),
}


def resnet() -> Any:
    """A small `Resnet` with strides that are no integers."""
    from diffstride import DiffStride
    from diffstride.resnet import Resnet

    pooling = functools.partial(
        DiffStride, smoothness_factor=1.0, norm="forward"
    )
    model = Resnet(
        [4, 6, 8], [1, 1.7, (1.6, 2.3)], 5, num_layers=1, pooling_cls=pooling
    )
    model.build((None, *SHAPE))
    return model


def converted() -> Any:
    """A functional model of Keras's layers, converted."""
    import keras
    from keras import layers

    from diffstride import convert

    inputs = keras.Input(SHAPE)
    x = layers.Conv2D(6, 3, 2, padding="same", name="stem")(inputs)
    x = layers.BatchNormalization()(x)
    x = shortcut = layers.ReLU()(x)
    x = layers.DepthwiseConv2D(3, 2, padding="same", name="depthwise")(x)
    x = layers.Conv2D(8, 1, name="pointwise")(x)
    shortcut = layers.Conv2D(8, 1, 2, name="shortcut")(shortcut)
    x = layers.ReLU()(layers.Add()([x, shortcut]))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3)(x))
    model = keras.Model(inputs, layers.Dense(5)(x))
    model, _ = convert(model, strides={"stem": 1.7, "*": (1.6, 2.3)})
    return model


def in_form(model: Any, form: str) -> Any:
    """Makes a model of one of the `FORMS` of one that has learned."""
    from diffstride import freeze, harden

    if form == "learned":
        return model
    return (
        freeze(model)
        if form == "frozen"
        else harden(model, form, verbose=False)
    )


def export(model: Any, format: str, place: pathlib.Path) -> None:
    """Exports a model to a path without suffix."""
    name, suffix, _ = FORMATS[format]
    model.export(f"{place}{suffix}", format=name, verbose=False)


def export_all(folder: pathlib.Path) -> None:
    """Exports everything on the backend of this process; notes what came."""
    import keras

    backend = keras.backend.backend()
    x = np.load(folder / "images.npy")
    done = by_case(read(folder / "exported.jsonl"))
    for name in MODELS:
        keras.utils.set_random_seed(0)
        source = globals()[name.lower()]()
        for form in FORMS:
            model = in_form(source, form)
            y = keras.ops.convert_to_numpy(model(x, training=False))
            for format in FORMATS:
                case = (backend, format, name, form)
                if case in done:
                    continue
                place = folder / "_".join(case)
                np.save(f"{place}.npy", y)
                row = dict(zip(CASE, case, strict=True))
                # Stands if this ends the process.
                fatal = {**row, "error": "exporting ends the process"}
                note(folder / "exported.jsonl", fatal)
                try:
                    export(model, format, place)
                except Exception as error:
                    row["error"] = reason(error, folder)
                note(folder / "exported.jsonl", row)


def load_all(folder: pathlib.Path, format: str) -> None:
    """Loads all files of a format, without diffstride; notes differences."""
    sys.modules["diffstride"] = None  # To import it is an error.
    x = np.load(folder / "images.npy")
    done = by_case(read(folder / "loaded.jsonl"))
    for case, row in by_case(read(folder / "exported.jsonl")).items():
        if row["format"] != format or "error" in row or case in done:
            continue
        fatal = {**row, "error": "loading ends the process"}
        note(folder / "loaded.jsonl", fatal)
        place = str(folder / "_".join(case))
        try:
            call = FORMATS[format].load(place + FORMATS[format].suffix)
            row.update(compared(call, x, np.load(f"{place}.npy")))
        except Exception as error:
            row["error"] = reason(error, folder)
        note(folder / "loaded.jsonl", row)


def compared(call: Callable, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Largest difference for single images, and whether batches will do."""
    found = np.concatenate(
        [np.asarray(call(each)) for each in np.split(x, len(x))]
    )
    try:
        together = np.asarray(call(x))
        any_batch = bool(np.allclose(together, found, atol=TOLERANCE))
    except Exception:  # Each runtime has errors of its own.
        any_batch = False
    return {
        "difference": float(np.abs(found - y).max()),
        "any_batch": any_batch,
    }


def reason(error: BaseException, folder: pathlib.Path) -> str:
    """What an error says, on one line, without paths of this machine."""
    root = error
    while root.__cause__ is not None and isinstance(
        root.__cause__, ImportError
    ):
        root = root.__cause__
    text = str(root)
    if bold := re.search(r"\x1b\[1m(.*?)\x1b\[0m", text, re.DOTALL):
        text = bold[1]  # What Keras has been told, in its own words around it.
    for pattern, known in KNOWN.items():
        if re.search(pattern, text):
            return known
    text = " ".join(text.replace(str(folder), "").split())
    text = re.sub(r"(?<![\w.:/])/[\w./+-]+/", "", text)
    if isinstance(root, ImportError):
        text = f"not installed: {text}"
    return (text or type(root).__name__)[:400]


def note(path: pathlib.Path, row: dict) -> None:
    """Appends a row at once: a later one may end the process."""
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")


def read(path: pathlib.Path) -> list[dict]:
    """Returns the rows of a file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def by_case(rows: list[dict]) -> dict[tuple, dict]:
    """Returns the last row of each case."""
    return {tuple(row[key] for key in CASE): row for row in rows}


def measure(folder: pathlib.Path, backends: tuple[str, ...]) -> dict[str, Any]:
    """Exports in a process for each backend, loads in one for each format."""
    write_images(folder)
    for backend in backends:
        print(f"exporting on {backend}", flush=True)
        start("--export", str(folder), KERAS_BACKEND=backend)
    for format in FORMATS:
        print(f"loading {format}", flush=True)
        start("--load", str(folder), format)
    rows = [
        row
        for file in ("exported.jsonl", "loaded.jsonl")
        for row in read(folder / file)
    ]
    rows = [row for _, row in sorted(by_case(rows).items())]
    return {"packages": versions(), "rows": rows}


def write_images(folder: pathlib.Path) -> None:
    """Makes the images that outputs are compared for."""
    x = np.random.default_rng(0).normal(size=(3, *SHAPE))
    np.save(folder / "images.npy", x.astype("float32"))


def start(*arguments: str, **environment: str) -> None:
    """Runs this script in a process of its own; rows say how far it came."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(
        command,
        # Converters fork, and a fork keeps the locks of files just written.
        env={**os.environ, "HDF5_USE_FILE_LOCKING": "FALSE", **environment},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        print(done.stderr[-2000:], file=sys.stderr)


def versions() -> dict[str, str]:
    """Versions of what takes part, as far as it is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def table(results: dict[str, Any]) -> str:
    """Lays out results as Markdown: differences, and why there is none."""
    from diffstride.formatting import harmless, markdown

    cells = collections.defaultdict(list)
    for row in results["rows"]:
        cells[row["backend"], row["format"], row["form"]].append(row)
    notes: dict[str, int] = {}
    lines = []
    for backend, format in itertools.product(BACKENDS, FORMATS):
        if (backend, format, FORMS[0]) not in cells:
            continue
        rows = [cells[backend, format, form] for form in FORMS]
        worked = [r for each in rows for r in each if "difference" in r]
        batch = "any" if all(r["any_batch"] for r in worked) else "one image"
        lines.append(
            [
                backend,
                format,
                *(cell(each, notes) for each in rows),
                batch if worked else "-",
            ]
        )
    header = ["backend", "format", *FORMS, "batch"]
    reasons = [f"{number}. {harmless(text)}" for text, number in notes.items()]
    return "\n\n".join([markdown(header, lines), "\n".join(reasons)])


def cell(rows: list[dict], notes: dict[str, int]) -> str:
    """The largest difference of several models, or the numbers of reasons."""
    parts: list[str] = []
    if differences := [r["difference"] for r in rows if "difference" in r]:
        largest = max(differences)
        wrong = " (wrong)" if largest > TOLERANCE else ""
        parts.append(f"{largest:.0e}{wrong}" if largest else "0")
    for row in rows:
        if "error" in row:
            number = notes.setdefault(row["error"], len(notes) + 1)
            only = f"{row['model']}: " if differences else ""
            parts.append(f"{only}no, {number}")
    return ", ".join(dict.fromkeys(parts))


def main(argv: list[str]) -> int:
    """Exports, loads, prints the table, writes the results."""
    options = parse(argv)
    if options.export:
        export_all(options.export)
    elif options.load:
        load_all(pathlib.Path(options.load[0]), options.load[1])
    else:
        if options.table:
            results = json.loads(pathlib.Path(options.table).read_text())
        else:
            with tempfile.TemporaryDirectory() as name:
                folder = options.folder or pathlib.Path(name)
                folder.mkdir(parents=True, exist_ok=True)
                results = measure(folder.resolve(), options.backends)
        print(table(results))
        if options.output:
            from diffstride.files import make_folder, replace_text

            make_folder(options.output.parent, "--output")
            replace_text(options.output, json.dumps(results, indent=1) + "\n")
    return 0


def parse(argv: list[str]) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    add = parser.add_argument
    add("--output", type=pathlib.Path, help="receives the results, as JSON")
    add("--table", metavar="JSON", help="print the table of these results")
    add("--folder", type=pathlib.Path, help="keeps the exported files")
    add("--backends", nargs="+", default=BACKENDS, choices=BACKENDS)
    add("--export", type=pathlib.Path, help=argparse.SUPPRESS)
    add("--load", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
