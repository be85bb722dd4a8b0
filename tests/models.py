"""Small models with DiffStride layers inside, in all the ways there are."""

import functools

import keras
import numpy as np
from keras import ops
from maps import BACKEND, array

from diffstride import DiffStride
from diffstride.resnet import ResidualLayer, Resnet, ResnetBlock
from diffstride.static import learned_layers as learned  # noqa: F401

# Whatever the backend compiles with, if it does.
XLA = {"jit_compile": BACKEND != "torch"}


def outputs_of(model, x):
    """Of an eager call, whose sizes follow the strides on every backend."""
    return array(model(x, training=False))


class Probe(keras.layers.Layer):
    """Calls a function of its input whenever its Python runs."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def call(self, inputs):
        self.watch(inputs)
        return inputs


def small(layer=None, size=(12, 12), watch=None):
    """A convolution, a pooling, a head. Weights are alike on all backends."""
    inputs = keras.Input((*size, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
    x = (layer or DiffStride((1.5, 2.0), 2.0))(x)
    if watch is not None:
        x = Probe(watch)(x)
    x = keras.layers.GlobalAveragePooling2D()(ops.square(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.name == "kernel":
            variable.assign(generator.uniform(-0.2, 0.6, variable.shape))
    return model


def shared_at_two_sizes():
    layer = DiffStride((1.4, 1.6), 2.0, stride_lr_multiplier=30, name="shared")
    inputs = keras.Input((16, 12, 1))
    x = layer(inputs)
    y = layer(keras.layers.AveragePooling2D(2)(inputs))
    y = DiffStride(1.5, 1.0, ramp="inner", name="other")(y)
    x, y = keras.layers.GlobalAveragePooling2D()(ops.square(x)), ops.square(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model(inputs, keras.layers.Add()([x, y]))


def nested():
    inner = keras.Sequential(
        [
            keras.Input((16, 12, 2)),
            DiffStride((1.4, 1.6), 2.0),
            keras.layers.ReLU(),
        ],
        name="inner",
    )
    inputs = keras.Input((16, 12, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(inner(x))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((16, 12, 1)),
            DiffStride((1.4, 1.6), 2.0, shared_stride=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            DiffStride(1.5, 1.0, ramp="straight_through", shared_stride=True),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def resnet():
    model = Resnet(
        [2, 4], [1.5, (1.5, 2)], pooling_cls=DiffStride, num_layers=1
    )
    model.build((None, 16, 12, 1))
    return model


def residual():
    inputs = keras.Input((16, 12, 1))
    x = ResidualLayer(2, strides=1.5, pooling_cls=DiffStride, project=True)(
        inputs
    )
    x = ResnetBlock(4, (1.5, 2), num_layers=1, pooling_cls=DiffStride)(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def resnet_inside():
    inputs = keras.Input((16, 12, 1))
    return keras.Model(inputs, resnet()(inputs))


def small_resnet(
    strides,
    shape=(28, 28, 1),
    classes=5,
    num_layers=2,
    placement="after",
    **arguments,
):
    """A built ResNet of three stages, with DiffStride layers like our own."""
    pooling = functools.partial(
        DiffStride, **{"smoothness_factor": 1.0, "norm": "forward"} | arguments
    )
    model = Resnet(
        [4, 4, 8],
        list(strides),
        classes,
        pooling_cls=pooling,
        num_layers=num_layers,
        pooling_placement=placement,
    )
    model.build((None, *shape))
    return model
