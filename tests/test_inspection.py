import keras
import numpy as np
import pytest
from gradients import gradients_of
from keras import ops

from diffstride import DiffStride, FixedSpectralPooling, SpatialPooling
from diffstride.inspection import (
    cost_of,
    pooling_layers,
    pooling_states,
    stride_variables,
)
from diffstride.regularizers import stride_cost
from diffstride.resnet import Resnet


def test_stride_cost_by_hand():
    strides = [np.array([2.0, 2.0]), np.array([1.0, 4.0]), np.array([3.0])]
    expected = 1 / 4 + 1 / 16 + 1 / 144
    assert float(stride_cost(strides)) == pytest.approx(expected)
    assert float(stride_cost([])) == 0.0


def test_stride_cost_gradient():
    a, b = gradients_of(
        lambda *strides: stride_cost(strides),
        np.array([2.0, 2.0], "float32"),
        np.array([3.0], "float32"),
    )
    # J = 1 / (h w) (1 + 1 / s^2)
    np.testing.assert_allclose(a, [-(1 + 1 / 9) / 8] * 2, rtol=1e-6)
    np.testing.assert_allclose(b, [-2 / (4 * 27)], rtol=1e-6)


def test_states_of_a_resnet():
    model = Resnet([4, 4, 8], [1, 2, (3, 2)], pooling_cls=DiffStride)
    model.build((None, 32, 30, 1))
    states = pooling_states(model, (32, 30, 1))
    assert [s.name for s in states] == [
        "pooling",
        "block_1/layer_1/pooling",
        "block_2/layer_1/pooling",
    ]
    assert [s.initial for s in states] == [(1, 1), (2, 2), (3, 2)]
    assert [s.input_size for s in states] == [(32, 30), (32, 30), (24, 24)]
    assert [s.output_size for s in states] == [(32, 30), (24, 24), (16, 20)]
    assert all(s.learned for s in states)
    assert cost_of(states) == pytest.approx(1 + 1 / 4 + 1 / 24)
    # Sizes are those of the strides of now; and nothing is left behind.
    states = pooling_states(model, (32, 30, 1))
    model.stem_pooling.stride_weights.assign([4.0, 4.0])
    assert pooling_states(model, (32, 30, 1))[0].output_size == (16, 16)
    assert "call" not in vars(model.stem_pooling)
    assert len(stride_variables(model)) == 3


def test_a_shared_layer_is_counted_once():
    layer = DiffStride(2.0, shared_stride=True)
    inputs = keras.Input((24, 24, 1))
    x = keras.layers.Add()([layer(inputs), layer(inputs)])
    x = FixedSpectralPooling(2.0)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    assert pooling_layers(model)[0] is layer
    states = pooling_states(model, (24, 24, 1))
    assert len(states) == 2
    assert states[0].strides == (2.0, 2.0)
    assert not states[1].learned
    assert cost_of(states) == pytest.approx(1 / 4)


def test_average_pooling_is_reported_too():
    model = Resnet([4, 8], [1, (2, 3)], pooling_cls=SpatialPooling)
    model.build((None, 12, 12, 1))
    stem, block = pooling_states(model, (12, 12, 1))
    assert block.strides == block.initial == (2.0, 3.0)
    assert (block.input_size, block.output_size) == ((12, 12), (6, 4))
    assert block.name == "block_1/layer_1/pooling"
    assert not block.learned
    assert stride_variables(model) == []


def test_a_model_without_pooling():
    model = Resnet([4, 8], [1, 2])
    model.build((None, 8, 8, 1))
    assert pooling_states(model, (8, 8, 1)) == []
    assert ops.shape(model(np.zeros((1, 8, 8, 1)))) == (1, 10)
