import functools

import keras
import numpy as np
import pytest
from gradients import gradients_of, output_and_gradients
from keras import ops

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    add_stride_cost,
    freeze,
    model_cost,
    static_sizes,
    stride_cost,
)
from diffstride.resnet import Resnet


def test_stride_cost_by_hand():
    strides = [np.array([2.0, 2.0]), np.array([1.0, 4.0]), np.array([3.0])]
    expected = 1 / 4 + 1 / 16 + 1 / 144
    assert float(stride_cost(strides)) == pytest.approx(expected)
    assert float(stride_cost([])) == 0.0


def test_stride_cost_of_other_ranks():
    strides = [np.array([2.0]), np.array([4.0])]
    assert float(stride_cost(strides, rank=1)) == pytest.approx(1 / 2 + 1 / 8)
    strides = [np.array([1.0, 2.0, 4.0]), np.array([2.0])]
    assert float(stride_cost(strides, rank=3)) == pytest.approx(1 / 8 + 1 / 64)


def test_stride_cost_gradient():
    a, b = gradients_of(
        lambda *strides: stride_cost(strides),
        np.array([2.0, 2.0], "float32"),
        np.array([3.0], "float32"),
    )
    # J = 1 / (h w) (1 + 1 / s^2)
    np.testing.assert_allclose(a, [-(1 + 1 / 9) / 8] * 2, rtol=1e-6)
    np.testing.assert_allclose(b, [-2 / (4 * 27)], rtol=1e-6)


def chain(*layers, shape=(16, 16, 1)):
    return keras.Sequential([keras.Input(shape), *layers])


def term(model):
    return float(sum(ops.convert_to_numpy(loss) for loss in model.losses))


class Regularised(keras.layers.Layer):
    """Gives the additional losses of a model, to be differentiated."""

    def __init__(self, model):
        super().__init__()
        self.model = model
        self.built = True

    def call(self, x):
        return sum(self.model.losses) + 0.0 * ops.sum(x)


def gradients_of_losses(model):
    """One for each trainable variable."""
    layer = Regularised(model)
    *_, gradients = output_and_gradients(layer, np.zeros((1, 1), "float32"))
    return gradients


@pytest.mark.parametrize(
    "layers, shape, expected, gradients",
    [
        (
            # J = 1 / a (1 + 1 / b)
            [DiffStride1D(2.0), DiffStride1D(4.0, shared_stride=True)],
            (32, 1),
            1 / 2 + 1 / 8,
            [[-(1 + 1 / 4) / 4], [-1 / (2 * 16)]],
        ),
        (
            # J = 1 / s^2 (1 + 1 / (h w))
            [DiffStride(2.0, shared_stride=True), DiffStride((1.0, 4.0))],
            (32, 32, 1),
            1 / 4 + 1 / 16,
            [[-2 * (1 + 1 / 4) / 8], [-1 / 16, -1 / (4 * 16)]],
        ),
        (
            # J = 1 / (d h w) (1 + 1 / s^3)
            [DiffStride3D((1.0, 2.0, 2.0)), DiffStride3D(2.0, shared_stride=1)],
            (8, 8, 8, 1),
            1 / 4 + 1 / 32,
            [[-9 / 32, -9 / 64, -9 / 64], [-3 / (4 * 16)]],
        ),
    ],
    ids=["1-D", "2-D, shared stride", "3-D"],
)
def test_the_term_and_its_gradient_by_hand(layers, shape, expected, gradients):
    layers = [type(one).from_config(one.get_config()) for one in layers]
    model = add_stride_cost(chain(*layers, shape=shape), 10.0)
    assert term(model) == pytest.approx(10 * expected)
    for ours, theirs in zip(gradients_of_losses(model), gradients, strict=True):
        np.testing.assert_allclose(ours, 10 * np.array(theirs), rtol=1e-5)


@pytest.mark.parametrize("fixed", [0, 1])
def test_strides_that_are_not_trained_are_constants(fixed):
    layers = [DiffStride(2.0), DiffStride((1.0, 2.0))]
    model = add_stride_cost(chain(*layers), 1.0)
    whole = gradients_of_losses(model)
    # After the call, and before it.
    layers[fixed].trainable = False
    for _ in range(2):
        assert term(model) == pytest.approx(1 / 4 + 1 / 8)
        (gradient,) = gradients_of_losses(model)
        np.testing.assert_allclose(gradient, whole[1 - fixed], rtol=1e-6)
        add_stride_cost(model, 1.0)
    layers[1 - fixed].trainable = False
    assert term(model) == 0.0


def test_a_shared_layer_counts_once_and_depth_is_that_of_the_call():
    class Model(keras.Model):
        def __init__(self):
            super().__init__()
            self.late = DiffStride(4.0)
            self.early = DiffStride(2.0)

        def call(self, x):
            x = self.early(x) + self.early(2 * x)
            return self.late(x)

    model = Model()
    model(np.zeros((2, 32, 32, 1)))
    add_stride_cost(model, 1.0, (32, 32, 1))
    assert term(model) == pytest.approx(1 / 4 + 1 / 64)
    late, early = (layer.stride_weights for layer in (model.late, model.early))
    gradients = gradients_of_losses(model)
    assert [v.path for v in model.trainable_variables] == [
        late.path,
        early.path,
    ]
    np.testing.assert_allclose(gradients[0], [-1 / 256] * 2, rtol=1e-5)
    np.testing.assert_allclose(gradients[1], [-17 / 128] * 2, rtol=1e-5)


def test_the_shape_is_that_of_the_build():
    model = Resnet([4, 8], [1, 2], pooling_cls=DiffStride)
    model.build((None, 16, 16, 1))
    assert term(add_stride_cost(model, 2.0)) == pytest.approx(2 * (1 + 1 / 4))
    inner = chain(DiffStride(2.0), shape=(None, None, 1))
    with pytest.raises(ValueError, match="`input_shape` must be given for"):
        add_stride_cost(inner, 1.0)
    inputs = {
        "image": keras.Input((16, 16, 1), name="image"),
        "factor": keras.Input((1,), name="factor"),
    }
    x = inner(inputs["image"]) * inputs["factor"][:, None, None]
    nested = keras.Model(inputs, DiffStride(2.0)(x))
    assert term(add_stride_cost(nested, 1.0)) == pytest.approx(1 / 4 + 1 / 16)


def test_a_stride_learning_rate_holds_for_the_term_too():
    model = chain(DiffStride(2.0, stride_lr_multiplier=3.0))
    add_stride_cost(model, 1.0)
    (gradient,) = gradients_of_losses(model)
    np.testing.assert_allclose(gradient, [-3 / 8] * 2, rtol=1e-5)


def test_another_call_replaces_the_weight():
    model = chain(DiffStride(2.0), DiffStride(2.0))
    for weight in (1.0, 3.0, 0.0, 2):
        add_stride_cost(model, weight)
        assert term(model) == pytest.approx(weight * (1 / 4 + 1 / 16))
    add_stride_cost(model, 0)
    assert model.losses == []


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf")])
def test_bad_weights_are_refused(weight):
    with pytest.raises(ValueError, match="`weight` must be finite and >= 0"):
        add_stride_cost(chain(DiffStride(2.0)), weight)


def test_models_without_learned_strides_are_refused():
    model = chain(FixedSpectralPooling(2.0))
    with pytest.raises(ValueError, match="must hold DiffStride layers"):
        add_stride_cost(model, 1.0)
    with pytest.raises(ValueError, match="must hold DiffStride layers"):
        add_stride_cost(freeze(chain(DiffStride(2.0))), 1.0)
    with pytest.raises(ValueError, match="must be built"):
        add_stride_cost(keras.Sequential([DiffStride(2.0)]), 1.0)


def compiled(model, learning_rate=0.0, static=True, **kwargs):
    if static:
        static_sizes(model)
    model.compile(keras.optimizers.SGD(learning_rate), "mse", **kwargs)
    return model


@pytest.mark.parametrize("static", [True, False])
def test_loss_of_a_model_is_that_without_the_term_and_the_term(static):
    if not static and keras.backend.backend() == "jax":
        pytest.skip("JAX compiles everything.")
    model = chain(DiffStride(2.0), keras.layers.GlobalAveragePooling2D())
    compiled(model, static=static)
    x = np.random.default_rng(0).normal(size=(4, 16, 16, 1))

    def losses():
        history = model.fit(x, np.zeros((4, 1)), verbose=0)
        evaluated = model.evaluate(x, np.zeros((4, 1)), verbose=0)
        return history.history["loss"][0], evaluated

    plain = losses()
    # Included although functions were compiled before.
    add_stride_cost(model, 5.0)
    for with_term, without in zip(losses(), plain, strict=True):
        expected = without + 5.0 / 4
        assert with_term == pytest.approx(expected, rel=1e-5)


def test_a_step_of_training_moves_the_strides_by_the_gradient():
    model = chain(
        DiffStride(2.0, trainable=False),
        DiffStride((1.0, 2.0)),
        keras.layers.GlobalAveragePooling2D(),
    )
    add_stride_cost(compiled(model, learning_rate=0.1), 8.0)
    # Blank images: nothing but the term has a gradient.
    model.fit(np.zeros((4, 16, 16, 1)), np.zeros((4, 1)), verbose=0)
    fixed, moved = (layer.stride_weights for layer in model.layers[:2])
    # J = 1 / 4 (1 + 1 / (h w)) at h = 1, w = 2.
    np.testing.assert_allclose(ops.convert_to_numpy(fixed), [2.0, 2.0])
    np.testing.assert_allclose(
        ops.convert_to_numpy(moved),
        [1 + 0.8 / 4 / 2, 2 + 0.8 / 4 / 4],
        rtol=1e-5,
    )


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="slow to compile on JAX"
)
def test_a_large_weight_makes_strides_grow_and_computation_shrink():
    pooling = functools.partial(DiffStride, ramp="inner")
    model = Resnet([4, 8], [1, 2], num_layers=1, pooling_cls=pooling)
    model.build((None, 16, 16, 1))
    before = model_cost(model)
    add_stride_cost(model, 5.0)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    x = np.random.default_rng(0).normal(size=(8, 16, 16, 1))
    model.fit(x, np.eye(10)[:8], batch_size=4, verbose=0)
    strides = [
        ops.convert_to_numpy(variable)
        for variable in model.trainable_variables
        if variable.name == "strides"
    ]
    for now, initial in zip(strides, (1.0, 2.0), strict=True):
        assert (now > initial).all()
    after = model_cost(model)
    assert after.macs < 0.7 * before.macs
    assert after.activation_bytes < 0.8 * before.activation_bytes


def test_the_term_is_not_saved(tmp_path):
    model = add_stride_cost(chain(DiffStride(2.0)), 1.0)
    assert term(model) == pytest.approx(1 / 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.losses == []
    assert term(add_stride_cost(loaded, 1.0)) == pytest.approx(1 / 4)
    assert keras.models.clone_model(model).losses == []
    assert freeze(model).losses == []


def test_stride_cost_of_a_model():
    model = chain(
        DiffStride(2.0),
        keras.layers.Conv2D(2, 3, activation="relu"),
        DiffStride(2.0, shared_stride=True),
        FixedSpectralPooling(2.0),
    )
    assert float(stride_cost(model)) == pytest.approx(1 / 4 + 1 / 16)
    unknown = keras.Sequential([keras.Input((None, None, 1)), DiffStride(2.0)])
    with pytest.raises(ValueError, match="`input_shape` must be given"):
        stride_cost(unknown)
    cost = stride_cost(unknown, input_shape=(16, 16, 1))
    assert float(cost) == pytest.approx(1 / 4)
    assert float(stride_cost(freeze(unknown), input_shape=(16, 16, 1))) == 0


@pytest.mark.parametrize(
    "strides",
    [
        2.0,
        None,
        "2, 2",
        [2.0, 2.0],
        np.ones(2),
        {"a": [2.0]},
        [[[2.0, 2.0]]],
        [None],
        DiffStride(2.0),
        [DiffStride(2.0)],
    ],
    ids=str,
)
def test_what_stride_cost_refuses(strides):
    with pytest.raises(ValueError, match="`strides` must be a model, or"):
        stride_cost(strides)
