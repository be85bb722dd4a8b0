import re

import keras
import numpy as np
import pytest
from keras import layers, ops
from maps import BACKEND, array, fewer

from diffstride import (
    DiffStride,
    DiffStride1D,
    StrideLogger,
    check,
    model_cost,
    static_sizes,
)
from diffstride.resnet import Resnet

# Each new size or function is compiled there; the kinds are the same.
slow_on_jax = pytest.mark.skipif(BACKEND == "jax", reason="slow on JAX")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


@pytest.fixture(autouse=True)
def same_weights():
    """Of two filters both may be dead, and then nothing can be told."""
    keras.utils.set_random_seed(1)


def pooling(strides=2.0, smoothness=2.0, norm="forward", **kwargs):
    return DiffStride(strides, smoothness, norm=norm, **kwargs)


def conv(**kwargs):
    return layers.Conv2D(2, 3, padding="same", activation="relu", **kwargs)


def mean():
    return layers.GlobalAveragePooling2D()


def chain(*parts, shape=(12, 12, 1)):
    return keras.Sequential([keras.Input(shape), *parts])


class Subclassed(keras.Model):
    """Two branches, joined by a function, behind a convolution or not."""

    def __init__(self, left, right, join=lambda x, y: x + y):
        super().__init__()
        self.left, self.right, self.last = left, right, conv()
        self.join = join
        self(np.zeros((1, 12, 12, 1), "float32"))

    def call(self, x):
        return self.last(self.join(self.left(x), self.right(x)))


@slow_on_jax
@pytest.mark.parametrize(
    "model",
    fewer(
        [
            lambda: chain(pooling(name="it"), mean(), layers.Dense(1)),
            lambda: chain(pooling(name="it"), layers.Dropout(0.5), mean()),
            lambda: chain(
                pooling(name="it"), layers.BatchNormalization(), mean()
            ),
            lambda: chain(pooling(name="it"), layers.Rescaling(9.0), mean()),
            lambda: chain(pooling(name="it"), layers.Dense(3), mean()),
            lambda: chain(pooling(name="it"), layers.Conv2D(3, 1), mean()),
            lambda: chain(pooling(name="it", norm="backward"), mean()),
            lambda: chain(pooling(name="it", ramp="inner"), mean()),
            lambda: chain(pooling(name="it", ramp="straight_through"), mean()),
            lambda: chain(pooling(name="it", cropping=False), mean()),
            lambda: chain(
                pooling(name="it"), layers.Lambda(lambda x: ops.sum(x, (1, 2)))
            ),
            lambda: chain(
                conv(), pooling(), conv(), chain(pooling(name="it"), mean())
            ),
            lambda: chain(
                DiffStride1D(2.0, 2.0, name="it"),
                layers.GlobalAveragePooling1D(),
                shape=(12, 1),
            ),
            lambda: chain(
                pooling(name="it", stride_lr_multiplier=100.0),
                mean(),
                layers.Dense(2, activation="softmax"),
            ),
            lambda: Subclassed(
                pooling(name="it"),
                pooling(),
                lambda x, y: ops.mean(x, (1, 2), keepdims=True) + y,
            ),
        ]
    ),
)
def test_strides_of_which_only_the_mean_is_taken_are_found(model):
    with pytest.warns(UserWarning, match="what follows does not depend on it"):
        (finding,) = check(model())
    assert "it does not learn its stride: " in finding
    assert "\n" not in finding


def zero_at_first():
    inputs = keras.Input((12, 12, 1))
    x = pooling()(inputs)
    branch = conv(kernel_initializer="zeros")(pooling(1.5)(x))
    x = layers.Add()([mean()(conv()(x)), mean()(branch)])
    return keras.Model(inputs, x)


@slow_on_jax
@pytest.mark.parametrize(
    "model",
    fewer(
        [
            lambda: chain(pooling(), conv(), mean(), layers.Dense(1)),
            lambda: chain(pooling(), layers.ReLU(), conv(), mean()),
            lambda: chain(pooling(), layers.GlobalMaxPooling2D()),
            lambda: chain(pooling(), layers.Lambda(ops.square), mean()),
            lambda: chain(
                layers.Rescaling(1 / 255),
                pooling(stride_lr_multiplier=1e-6),
                conv(),
                mean(),
                layers.Dense(3, activation="softmax"),
            ),
            lambda: chain(pooling(ramp="inner"), pooling(1.5), conv(), mean()),
            lambda: chain(
                pooling(5.0, upper_limit_stride=4.0, ramp="inner"), conv()
            ),
            lambda: chain(keras.layers.ReLU(), mean()),
            zero_at_first,
        ]
    ),
)
def test_strides_that_can_be_learned_are_not_found(model, recwarn):
    assert check(model()) == []
    assert not [w for w in recwarn if w.category is UserWarning]


@slow_on_jax
def test_a_resnet_has_none():
    model = Resnet([2, 4], [1, 2], pooling_cls=pooling, num_layers=1)
    model.build((None, 12, 12, 1))
    before = model.get_weights()
    assert check(model) == []
    for ours, theirs in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert "call" not in vars(model.stem_pooling)


@slow_on_jax
@pytest.mark.parametrize(
    "arguments, reason",
    fewer(
        [
            ({"frozen": True}, "frozen, or not `trainable`"),
            ({"trainable": False}, "frozen, or not `trainable`"),
            ({"stride_lr_multiplier": 0}, "`stride_lr_multiplier` is 0"),
            ({"smoothness": 0}, "larger `smoothness_factor`"),
            ({"strides": 1.0, "smoothness": 1.0}, r"\[1. 1.\] on .*\(12, 12\)"),
            (
                {"strides": (1.0, 2.0), "smoothness": 1.0},
                r"along axes \[0\] of",
            ),
            ({"strides": 8.0, "smoothness": 1.0}, "no gradient"),
            ({"smoothness": 0, "ramp": "straight_through"}, "no gradient"),
            (
                {"strides": 2.4, "smoothness": 0.1, "ramp": "inner"},
                "no gradient",
            ),
            ({"lower_limit_stride": 2.0, "upper_limit_stride": 2.0}, "no room"),
            (
                {"strides": 1.0, "upper_limit_stride": 1.1},
                r"no room .*\(12, 12\)",
            ),
        ]
    ),
)
def test_layers_that_cannot_learn_anywhere_are_found(arguments, reason):
    model = chain(conv(), pooling(name="it", **arguments), conv(), mean())
    with pytest.warns(UserWarning, match=f"it does not learn .*{reason}"):
        assert len(check(model)) == 1


@slow_on_jax
def test_a_model_that_is_not_trained_is_found():
    model = chain(pooling(), conv(), pooling(), conv())
    model.trainable = False
    assert len(check(model)) == 2


def joined(merge, left="left", right="right", between=lambda x: x):
    inputs = keras.Input((12, 12, 1))
    x, y = (between(pooling(name=name)(inputs)) for name in (left, right))
    return keras.Model(inputs, conv()(merge([x, y])))


def u_net():
    inputs = keras.Input((12, 12, 1))
    x = conv()(inputs)
    y = pooling(name="left", ramp="inner")(x)
    y = layers.UpSampling2D(2)(conv()(y))
    return keras.Model(inputs, layers.Concatenate()([x, y]))


@slow_on_jax
@pytest.mark.parametrize(
    "model, names",
    fewer(
        [
            (lambda: joined(layers.Add()), {"left", "right"}),
            (lambda: joined(layers.Concatenate()), {"left", "right"}),
            (lambda: joined(layers.Multiply()), {"left", "right"}),
            (lambda: joined(layers.Average()), {"left", "right"}),
            (lambda: joined(layers.Maximum()), {"left", "right"}),
            (lambda: joined(ops.concatenate), {"left", "right"}),
            (lambda: joined(lambda xs: xs[0] + xs[1]), {"left", "right"}),
            (lambda: joined(layers.Add(), between=conv()), {"left", "right"}),
            (lambda: joined(lambda xs: ops.maximum(*xs)), {"left", "right"}),
            (
                lambda: Subclassed(pooling(name="left"), pooling(name="right")),
                {"left", "right"},
            ),
            (u_net, {"left"}),
            (
                lambda: chain(
                    pooling(name="left"),
                    layers.Reshape((-1,)),
                    layers.Lambda(lambda x: ops.reshape(x, (-1, 100))),
                    layers.Dense(1),
                ),
                {"left"},
            ),
            (
                lambda: Subclassed(
                    pooling(name="left"),
                    layers.AveragePooling2D(2),
                    lambda x, y: (
                        x[:, :6] + layers.UpSampling2D((1, 2))(y)[:, :, :10]
                    ),
                ),
                {"left"},
            ),
        ]
    ),
)
def test_sizes_that_would_part_are_found(model, names):
    with pytest.warns(UserWarning, match="Branches that are joined need one"):
        (finding,) = check(model())
    found = re.match("The model breaks as soon .*: (.*)[.] Branches", finding)
    assert set(found[1].split(", ")) == names


@slow_on_jax
@pytest.mark.parametrize(
    "between",
    fewer(
        [
            lambda x: mean()(conv()(x)),
            lambda x: layers.Resizing(8, 8)(x),
            lambda x: layers.GlobalMaxPooling2D(keepdims=True)(x),
            lambda x: layers.Lambda(lambda x: x[:, :4, :4])(x),
        ]
    ),
)
def test_sizes_that_are_made_equal_are_not_found(between):
    inputs = keras.Input((12, 12, 1))
    x, y = (between(pooling()(inputs)) for _ in range(2))
    assert check(keras.Model(inputs, layers.Add()([x, y]))) == []


def test_a_shared_layer_is_not_found_and_two_are():
    layer = pooling()
    inputs = keras.Input((12, 12, 1))
    x = layers.Add()([layer(inputs), layer(2.0 * inputs)])
    assert check(keras.Model(inputs, layers.Lambda(ops.square)(x))) == []
    x = layers.Add()([layer(inputs), pooling(name="other")(inputs)])
    model = keras.Model(inputs, layers.Lambda(ops.square)(x))
    (finding,) = check(model)
    assert f"{layer.name}, other" in finding


def test_an_error_of_sizes_that_have_parted_names_the_layers():
    model = joined(layers.Add())
    model.get_layer("left").stride_weights.assign([1.2, 1.2])
    for function in (check, model_cost):
        with pytest.raises(Exception) as caught:
            function(model)
        note = " ".join(caught.value.__notes__)  # JAX adds one of its own.
        assert "one shared DiffStride layer" in note
        assert "left gave (1, 12, 12, 1), right gave (1, 10, 10, 1)" in note


def test_a_fit_with_the_logger_warns_of_sizes_that_would_part():
    model = static_sizes(joined(layers.Add()))
    model.compile("sgd", "mse")
    x = np.zeros((2, 12, 12, 1), "float32")
    y = model(x)
    with pytest.warns(UserWarning, match="these strides moves.* left, right"):
        model.fit(x, y, verbose=0, callbacks=[StrideLogger()])


@pytest.mark.skipif(BACKEND == "torch", reason="static sizes do nothing there")
def test_a_step_whose_sizes_have_parted_names_the_layers():
    model = static_sizes(joined(layers.Add()))
    model.compile("sgd", "mse")
    x = np.zeros((2, 12, 12, 1), "float32")
    y = np.zeros(model(x).shape)
    model.fit(x, y, verbose=0)
    model.get_layer("left").stride_weights.assign([1.2, 1.2])
    with pytest.raises(Exception) as caught:
        model.fit(x, y, verbose=0)
    note = " ".join(caught.value.__notes__)
    assert "one shared DiffStride layer" in note
    assert "left gave (12, 12), right gave (10, 10)" in note


def test_optimizers_are_looked_at_too():
    model = chain(pooling(), layers.Lambda(ops.square), mean())
    model.compile(keras.optimizers.AdamW(), "mse")
    (finding,) = check(model)
    assert "weight decay" in finding


@slow_on_jax
def test_several_inputs_and_outputs_of_several_kinds():
    inputs = {
        "image": keras.Input((None, None, 1), name="image"),
        "word": keras.Input((3,), dtype="int32", name="word"),
    }
    x = pooling(name="it")(inputs["image"])
    word = layers.Flatten()(layers.Embedding(5, 2)(inputs["word"]))
    outputs = {"mean": mean()(x), "word": word, "kind": ops.argmax(word, -1)}
    model = keras.Model(inputs, outputs)
    with pytest.raises(ValueError, match="`input_shape` must be given"):
        check(model)
    (finding,) = check(model, {"image": (12, 12, 1), "word": (3,)})
    assert finding.startswith("it does not learn its stride: what follows")


@slow_on_jax
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_half_precision(dtype):
    model = chain(
        conv(dtype=dtype), pooling(dtype=dtype), conv(dtype=dtype), mean()
    )
    assert check(static_sizes(model)) == []
    assert array(model.layers[1].stride_weights).tolist() == [2.0, 2.0]
