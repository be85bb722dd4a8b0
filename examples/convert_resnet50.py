"""Learned strides for a network of `keras.applications`, in five lines.

    python examples/convert_resnet50.py
    python examples/convert_resnet50.py --weights=imagenet --size=224

Converts ResNet50, trains it for a few steps on made-up images of two kinds
(coarse and fine stripes), and ends with a table of what has become of each
layer and a picture of where its strides have gone. Needs matplotlib.
"""

import argparse
import pathlib

import keras
import numpy as np

import diffstride


def stripes(number: int, size: int, seed: int = 0) -> tuple:
    """Makes images of coarse (0) and fine (1) stripes, in any direction."""
    generator = np.random.default_rng(seed)
    labels = np.arange(number) % 2
    angles = generator.uniform(0, np.pi, (number, 1, 1))
    waves = np.where(labels == 0, 3, size / 5).reshape(-1, 1, 1)
    grid = np.arange(size) / size
    across = np.cos(angles) * grid[:, None] + np.sin(angles) * grid
    images = 127.5 + 100 * np.cos(2 * np.pi * waves * across)
    images = images[..., None] + generator.normal(
        0, 10, (number, size, size, 3)
    )
    return images.astype("float32"), labels


def strides_of(model: keras.Model) -> dict[str, tuple[float, ...]]:
    """Returns the strides of the layers that learn them."""
    return {
        layer.name: tuple(keras.ops.convert_to_numpy(layer.stride_weights))
        for layer in model.layers
        if isinstance(layer, diffstride.DiffStride)
    }


def picture(history: list[dict], path: pathlib.Path) -> None:
    """Draws how far strides have moved, a line for each layer and axis."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4))
    for number, name in enumerate(history[0]):
        for axis, style in enumerate(("-", "--")):
            line = [
                each[name][axis] - history[0][name][axis] for each in history
            ]
            label = name.removesuffix("_stride") if axis == 0 else None
            axes.plot(line, style, color=f"C{number}", label=label)
    axes.set_xlabel("step")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_ylabel("change of the stride (dashed: width)")
    axes.legend(fontsize="small")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Converts, trains for some steps, prints the table, draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--weights", choices=("imagenet",))
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--output", default="convert_resnet50.png")
    options = parser.parse_args()

    source = keras.applications.ResNet50(
        include_top=False,
        weights=options.weights,
        input_shape=(options.size, options.size, 3),
        pooling="avg",
    )
    body, report = diffstride.convert(source)
    model = keras.Model(body.input, keras.layers.Dense(2)(body.output))
    if keras.backend.backend() == "jax":
        diffstride.static_sizes(model)
    model.compile(
        keras.optimizers.SGD(0.001, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    images, labels = stripes(4 * options.steps, options.size)
    images = keras.applications.resnet.preprocess_input(images)
    history = [strides_of(model)]
    for step in range(options.steps):
        batch = slice(4 * step, 4 * step + 4)
        loss = model.train_on_batch(images[batch], labels[batch])
        print(
            f"step {step + 1}: loss {float(np.squeeze(loss)):.3f}", flush=True
        )
        history.append(strides_of(model))
    print(report)
    picture(history, pathlib.Path(options.output))
    print(f"The strides are drawn in {options.output}")


if __name__ == "__main__":
    main()
