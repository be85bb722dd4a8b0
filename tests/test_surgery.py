"""`freeze`: strides become constants."""

import keras
import numpy as np
import pytest
from keras import ops
from maps import BACKEND, JAX, TORCH, array, images
from models import (
    XLA,
    learned,
    nested,
    outputs_of,
    residual,
    resnet,
    resnet_inside,
    sequential,
    shared_at_two_sizes,
    small,
)

from diffstride import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    convert,
    freeze,
    harden,
    static_sizes,
)
from diffstride.masks import RAMPS, LowPass
from diffstride.resnet import ResidualLayer, Resnet

only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="about SavedModel"
)


def one_dimensional():
    inputs = keras.Input((30, 2))
    x = DiffStride1D(1.7, 2.0, ramp="inner")(inputs)
    return keras.Model(inputs, keras.layers.Conv1D(3, 3)(x))


def small_of(ramp):
    return lambda: small(DiffStride((1.4, 1.8), 2.0, ramp=ramp), (16, 12))


def distributed():
    """Inside of a wrapper of Keras."""
    inputs = keras.Input((3, 12, 10, 2))
    x = keras.layers.TimeDistributed(DiffStride((1.4, 1.8), 2.0))(inputs)
    return keras.Model(inputs, ops.mean(ops.square(x), axis=(2, 3)))


class Composed(keras.layers.Layer):
    """Keeps a DiffStride where `freeze` cannot reach it."""

    def __init__(self, inside=None, **kwargs):
        super().__init__(**kwargs)
        config = inside or {"strides": 2.0, "name": "inside"}
        self.inside = DiffStride.from_config(config)

    def build(self, input_shape):
        self.inside.build(input_shape)

    def call(self, inputs):
        return self.inside(inputs)


class Helpful(Composed):
    """The same, with what `freeze` asks for."""

    def get_config(self):
        return {**super().get_config(), "inside": self.inside.get_config()}


class OwnModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.inside = DiffStride(2.0)

    def call(self, inputs):
        return self.inside(inputs)


class TestFreeze:
    def frozen(self, build):
        """Returns a model after some training, its frozen form, images."""
        model = build()
        for i, layer in enumerate(learned(model)):
            # On no grid, and on none of which rounding could move a size.
            layer.stride_weights.assign(
                np.linspace(1.37, 2.13 + 0.1 * i, layer.stride_weights.shape[0])
            )
        x = images(
            4, *(model.input_shape[1:] if build is not resnet else (16, 12, 1))
        )
        # Batch statistics are weights, too.
        model(x, training=True)
        return model, freeze(model), x

    @pytest.mark.parametrize(
        "build",
        [
            shared_at_two_sizes,
            nested,
            sequential,
            residual,
            resnet_inside,
            one_dimensional,
            distributed,
        ],
    )
    def test_a_frozen_model_is_the_same_model(self, build, tmp_path):
        if not TORCH and build in (sequential, residual):
            pytest.skip("slow, and `resnet_inside` has their parts")
        model, frozen, x = self.frozen(build)
        assert learned(model) and len(learned(frozen)) == len(learned(model))
        expected = outputs_of(model, x)
        np.testing.assert_allclose(
            outputs_of(frozen, x), expected, rtol=1e-6, atol=1e-6
        )
        for layer, original in zip(
            learned(frozen), learned(model), strict=True
        ):
            assert layer.frozen and not layer.trainable_variables
            assert not original.frozen and original.trainable_variables
            np.testing.assert_array_equal(
                array(layer.stride_weights), array(original.stride_weights)
            )
        assert frozen.count_params() == model.count_params()
        assert not frozen.compiled
        # It compiles like any other, and needs no `static_sizes`.
        frozen.compile("sgd", "mse", **XLA)
        np.testing.assert_allclose(
            frozen.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
        )
        frozen.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert all(layer.frozen for layer in learned(loaded))
        np.testing.assert_allclose(
            outputs_of(loaded, x), expected, rtol=1e-6, atol=1e-6
        )

    def test_static_shapes_are_known(self):
        model = keras.Sequential(
            [keras.Input((16, 12, 1)), DiffStride((1.4, 1.8), 2.0)]
        )
        assert model.output_shape == (None, None, None, 1)
        frozen = freeze(model)
        shape = outputs_of(model, images(1, 16, 12, 1)).shape[1:]
        assert frozen.output_shape == (None, *shape)
        for layer in learned(frozen):
            assert layer.compute_output_shape((2, 16, 12, 1)) == (2, *shape)
            assert layer.compute_output_shape((2, None, 12, 1))[1] is None
        head = keras.Sequential(
            [frozen, keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        head.build((None, 16, 12, 1))
        assert head.layers[-1].kernel.shape == (np.prod(shape), 3)
        assert head.predict(images(2, 16, 12, 1), verbose=0).shape == (2, 3)

    @pytest.mark.parametrize("build", [shared_at_two_sizes, nested, residual])
    def test_the_summary_shows_sizes(self, build):
        def summary(model):
            lines = []
            model.summary(print_fn=lambda line, **_: lines.append(line))
            return "\n".join(lines)

        model, frozen, _ = self.frozen(build)
        assert "(None, None" in summary(model)
        assert "(None, None" not in summary(frozen)

    def test_fine_tuning_leaves_the_strides(self):
        _, frozen, x = self.frozen(sequential)
        before = [array(v) for v in frozen.trainable_variables]
        strides = [array(a.stride_weights) for a in learned(frozen)]
        frozen.compile(keras.optimizers.SGD(0.1), "mse", **XLA)
        frozen.fit(x, np.ones((4, 1)), epochs=2, verbose=0)
        after = [array(v) for v in frozen.trainable_variables]
        assert not np.allclose(before[0], after[0])
        for layer, value in zip(learned(frozen), strides, strict=True):
            np.testing.assert_array_equal(array(layer.stride_weights), value)

    def test_a_compiled_model(self):
        # Whatever it was compiled with; a function of one's own included.
        model = small()
        model.compile("sgd", lambda a, b: ops.mean(ops.square(a - b)))
        assert not freeze(model).compiled

    def test_weights_of_other_strides_are_refused(self, tmp_path):
        model, frozen, _ = self.frozen(small_of("outer"))
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        frozen.load_weights(path)
        learned(model)[0].stride_weights.assign([3.0, 3.0])
        model.save_weights(path)
        with pytest.raises(ValueError, match="weights were saved with strides"):
            frozen.load_weights(path)

    def test_a_model_that_is_not_built(self):
        with pytest.raises(ValueError, match="needs a built model"):
            freeze(Resnet([4, 8], [1, 2], pooling_cls=DiffStride))

    def test_layers_of_ones_own(self):
        inputs = keras.Input((12, 12, 1))
        x = images(2, 12, 12, 1)
        model = keras.Model(inputs, Composed(name="composed")(inputs))
        with pytest.raises(
            ValueError, match=r"cannot reach .*inside"
        ) as caught:
            freeze(model)
        assert "serialize_keras_object" in str(caught.value)
        model = keras.Model(inputs, Helpful()(inputs))
        learned(model)[0].stride_weights.assign([1.3, 1.7])
        frozen = freeze(model)
        assert learned(frozen)[0].frozen
        np.testing.assert_allclose(
            outputs_of(frozen, x), outputs_of(model, x), atol=1e-6
        )

    def test_models_of_ones_own(self):
        model = OwnModel()
        model(images(2, 12, 12, 1))
        with pytest.raises(ValueError, match="cannot reach"):
            freeze(model)

    def test_a_frozen_model_may_be_frozen_again(self):
        _, frozen, x = self.frozen(small_of("outer"))
        np.testing.assert_array_equal(
            outputs_of(freeze(frozen), x), outputs_of(frozen, x)
        )

    def test_fixed_layers_stay_what_they_are(self):
        inputs = keras.Input((12, 12, 1))
        model = keras.Model(inputs, FixedSpectralPooling((2, 2.5))(inputs))
        x = images(2, 12, 12, 1)
        np.testing.assert_array_equal(
            outputs_of(freeze(model), x), outputs_of(model, x)
        )

    @only_tensorflow
    @pytest.mark.parametrize("build", [nested, resnet])
    def test_export(self, build, tmp_path):
        import tensorflow as tf

        model, frozen, x = self.frozen(build)
        # Nobody has called it: a graph knows its inputs.
        frozen.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        np.testing.assert_allclose(
            array(loaded.serve(x)), outputs_of(model, x), rtol=1e-5, atol=1e-5
        )


class Dense(keras.layers.Dense):
    """Has the name of a layer of Keras, and computes something else."""

    def call(self, inputs):
        return 2.0 * super().call(inputs)


class ConfiguredModel(keras.Model):
    """A subclassed model that keeps its layer in its config."""

    def __init__(self, inside=None, **kwargs):
        super().__init__(**kwargs)
        self.inside = inside or DiffStride(1.7)

    def call(self, inputs):
        return self.inside(inputs)

    def get_config(self):
        inside = keras.saving.serialize_keras_object(self.inside)
        return {**super().get_config(), "inside": inside}

    @classmethod
    def from_config(cls, config):
        inside = keras.saving.deserialize_keras_object(config["inside"])
        return cls(**{**config, "inside": inside})


def two_classes_named_dense():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            DiffStride(1.4),
            keras.layers.GlobalAveragePooling2D(),
            Dense(3),
            keras.layers.Dense(2),
        ]
    )


def of_a_lambda():
    return keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            DiffStride(1.4),
            keras.layers.Lambda(lambda x: 2.0 * x, output_shape=lambda s: s),
        ]
    )


@pytest.mark.parametrize(
    "build", [two_classes_named_dense, of_a_lambda, ConfiguredModel]
)
def test_classes_and_functions_of_ones_own(build):
    model = build()
    x = images(2, 12, 12, 1)
    expected = outputs_of(model, x)
    frozen = freeze(model)
    assert all(layer.frozen for layer in learned(frozen))
    np.testing.assert_allclose(outputs_of(frozen, x), expected, atol=1e-6)


def test_two_classes_of_one_name_are_refused():
    first, second = (type("Own", (keras.layers.Dense,), {}) for _ in range(2))
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), DiffStride(), first(2), second(2)]
    )
    with pytest.raises(ValueError, match="two classes named Own"):
        freeze(model)


@keras.saving.register_keras_serializable("tests")
class Cell(keras.layers.Layer):
    """A recurrent cell that looks at frames."""

    state_size = output_size = 2

    def __init__(self, inside=None, **kwargs):
        super().__init__(**kwargs)
        get = keras.saving.deserialize_keras_object
        self.inside = get(inside) if inside else DiffStride(1.4, 1.0)

    def build(self, input_shape):
        if not self.inside.built:
            self.inside.build(input_shape)

    def call(self, inputs, states):
        x = ops.mean(ops.square(self.inside(inputs)), axis=(1, 2))
        return x + states[0], [x]

    def get_config(self):
        inside = keras.saving.serialize_keras_object(self.inside)
        return {**super().get_config(), "inside": inside}


@keras.saving.register_keras_serializable("tests")
class Doubled(keras.layers.Wrapper):
    def call(self, inputs):
        return 2.0 * self.layer(inputs)


@keras.saving.register_keras_serializable("tests")
class Holder(keras.layers.Layer):
    """Keeps layers in a dictionary and in a list."""

    def __init__(self, named=None, listed=None, **kwargs):
        super().__init__(**kwargs)
        get = keras.saving.deserialize_keras_object
        put = keras.saving.serialize_keras_object
        named = named or {"first": put(pooling())}
        listed = listed or [put(keras.layers.ReLU()), put(pooling())]
        self.named = {key: get(each) for key, each in named.items()}
        self.listed = [get(each) for each in listed]

    def call(self, inputs):
        x = self.named["first"](inputs)
        for layer in self.listed:
            x = layer(x)
        return x

    def get_config(self):
        put = keras.saving.serialize_keras_object
        named = {key: put(each) for key, each in self.named.items()}
        listed = [put(each) for each in self.listed]
        return {**super().get_config(), "named": named, "listed": listed}


def pooling():
    return DiffStride(1.4, 1.0)


LAYERS = keras.layers
HOLDERS = {
    "distributed twice": lambda: LAYERS.TimeDistributed(
        LAYERS.TimeDistributed(pooling())
    ),
    "distributed model": lambda: LAYERS.TimeDistributed(
        keras.Sequential([pooling(), LAYERS.ReLU()])
    ),
    "distributed residual layer": lambda: LAYERS.TimeDistributed(
        ResidualLayer(2, strides=1.4, pooling_cls=DiffStride, project=True)
    ),
    "cell": lambda: LAYERS.RNN(Cell()),
    "cells": lambda: LAYERS.RNN([Cell(), LAYERS.LSTMCell(2)], unroll=True),
    "both ways": lambda: LAYERS.Bidirectional(LAYERS.RNN(Cell())),
    "wrapper": lambda: Doubled(pooling()),
    "wrapped model": lambda: Doubled(Doubled(keras.Sequential([pooling()]))),
    "nested": lambda: keras.Sequential(
        [keras.Sequential([keras.Sequential([pooling()])]), LAYERS.ReLU()]
    ),
    "pipeline": lambda: LAYERS.Pipeline([pooling()]),
    "dictionary and list": Holder,
}


SLOW = ("distributed residual layer", "wrapped model", "cells", "pipeline")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in HOLDERS
        if not JAX or name in ("cell", "wrapper", "dictionary and list")
    ],
)
def test_whatever_holds_the_layer(name):
    moving = name.startswith(("distributed", "cell", "both"))
    frames = (2, 3) if name == "distributed twice" else (3,) * moving
    inputs = keras.Input((*frames, 10, 9, 2))
    outputs = HOLDERS[name]()(inputs)
    axes = tuple(range(1, outputs.ndim))
    model = keras.Model(inputs, ops.mean(ops.square(outputs), axis=axes))
    assert learned(model)
    for layer in learned(model):
        layer.stride_weights.assign([1.9, 1.7])
    x = images(2, *model.input_shape[1:])
    expected = outputs_of(model, x)
    frozen = freeze(model)
    assert len(learned(frozen)) == len(learned(model))
    assert all(layer.frozen for layer in learned(frozen))
    np.testing.assert_allclose(outputs_of(frozen, x), expected, atol=1e-5)
    if name in ("cell", "distributed model"):
        static_sizes(model).compile("sgd", "mse")
        prediction = model.predict(x, verbose=0)
        np.testing.assert_allclose(prediction, expected, atol=1e-5)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX has no dynamic sizes")
@pytest.mark.parametrize(
    "layer",
    [
        DiffStride(1.5, frozen=True),
        DiffStride(1.5, ramp="inner", frozen=True),
        DiffStride(1.5, shared_stride=True),
        DiffStride1D(1.5, frozen=True),
        FixedSpectralPooling(1.5),
    ],
)
def test_export_of_unknown_sizes_on_jax(layer, tmp_path):
    inputs = keras.Input((*(None,) * layer.rank, 2))
    model = keras.Model(inputs, ops.square(layer(inputs)))
    with pytest.raises(NotImplementedError) as caught:
        model.export(tmp_path / "model", verbose=False)
    message = str(caught.value)
    assert "Give the size in `keras.Input`" in message
    assert "freeze" not in message
    assert "None" not in message  # ... but the letters that JAX gives sizes


@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("size", [9, 16])
def test_constant_strides_and_sizes_known_at_run_time(ramp, size):
    # As when torch traces a frozen model, to export it.
    low_pass = LowPass(1.0, ramp)
    strides = np.array([1.7, 2.3], "float32")
    unknown = ops.convert_to_tensor(np.array(size, "int32"))
    expected = low_pass.bands((size, size), strides)
    bands = low_pass.bands((unknown, unknown), strides)
    for band, wanted in zip(bands, expected, strict=True):
        assert int(band.output_size) == wanted.output_size


@pytest.mark.skipif(BACKEND != "jax", reason="assigning copies elsewhere")
@pytest.mark.parametrize("make", [freeze, harden, convert])
def test_what_was_made_outlives_a_step_of_its_source(make):
    """JAX deletes the arrays that a step of training or testing was given."""
    source = keras.Sequential([keras.Input((6, 6, 1)), DiffStride(1.5)])
    if make is convert:
        pooling = keras.layers.AveragePooling2D(2)
        source = keras.Sequential([keras.Input((6, 6, 1)), pooling])
    source.add(keras.layers.Conv2D(2, 1))
    made = make(source)
    made = made[0] if make is convert else made
    for variable in source.variables:
        variable.value.delete()
    assert np.isfinite(outputs_of(made, images(2, 6, 6, 1))).all()
