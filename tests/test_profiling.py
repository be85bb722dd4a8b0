import keras
import numpy as np
import pytest
from keras import ops

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    SpatialPooling,
    freeze,
)
from diffstride.cost import scalars
from diffstride.profiling import (
    learns_strides,
    pooling_layers,
    pooling_states,
    profile,
)
from diffstride.resnet import Resnet


def values_of(model):
    return scalars(model, profile(model))


def test_states_of_a_resnet():
    model = Resnet([4, 4, 8], [1, 2, (3, 2)], pooling_cls=DiffStride)
    model.build((None, 32, 30, 1))
    states = pooling_states(profile(model, (32, 30, 1)))
    assert [s.name for s in states] == [
        "pooling",
        "block_1/layer_1/pooling",
        "block_2/layer_1/pooling",
    ]
    assert [s.initial for s in states] == [(1, 1), (2, 2), (3, 2)]
    assert [s.input_size for s in states] == [(32, 30), (32, 30), (24, 24)]
    assert [s.output_size for s in states] == [(32, 30), (24, 24), (16, 20)]
    assert all(s.learned for s in states)
    cost = values_of(model)["stride_cost"]
    assert cost == pytest.approx(1 + 1 / 4 + 1 / 24)
    # Sizes are those of the strides of now; and nothing is left behind.
    model.stem_pooling.stride_weights.assign([4.0, 4.0])
    assert pooling_states(profile(model, (32, 30, 1)))[0].output_size == (
        16,
        16,
    )
    assert "call" not in vars(model.stem_pooling)
    assert len(pooling_layers(model)) == 3


def test_a_shared_layer_is_counted_once():
    layer = DiffStride(2.0, shared_stride=True)
    inputs = keras.Input((24, 24, 1))
    x = keras.layers.Add()([layer(inputs), layer(inputs)])
    x = FixedSpectralPooling(2.0)(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    assert pooling_layers(model)[0] is layer
    states = pooling_states(profile(model, (24, 24, 1)))
    assert len(states) == 2
    assert states[0].strides == (2.0, 2.0)
    assert not states[1].learned
    assert values_of(model)["stride_cost"] == pytest.approx(1 / 4)


def test_states_say_what_a_layer_is():
    model = keras.Sequential(
        [
            keras.Input((16, 16, 1)),
            DiffStride(
                *(2.0, 3.0),
                norm="ortho",
                ramp="inner",
                keep_parity=False,
                smallest_size=1,
            ),
            DiffStride(2.0, shared_stride=True),
            FixedSpectralPooling(2.0, norm="forward"),
            SpatialPooling(),
        ]
    )
    states = pooling_states(profile(model, (16, 16, 1)))
    assert [
        (s.kind, s.ramp, s.smoothness_factor, s.norm, s.shared_stride)
        for s in states
    ] == [
        ("DiffStride", "inner", 3.0, "ortho", False),
        ("DiffStride", "outer", 4.0, "backward", True),
        ("FixedSpectralPooling", None, None, "forward", False),
        ("SpatialPooling", None, None, None, False),
    ]
    assert [(s.keep_parity, s.smallest_size) for s in states] == [
        *[(False, 1), (True, 2)],
        *[(None, None)] * 2,
    ]
    assert [s.current_smoothness for s in states] == [3.0, 4.0, None, None]
    assert learns_strides(model)
    assert not learns_strides(freeze(model))


def test_stride_cost_of_a_shared_stride_of_one_axis_and_of_two():
    inputs = keras.Input((16, 16, 2))
    x = DiffStride(2.0, shared_stride=True, ramp="inner")(inputs)
    x = keras.ops.mean(x, axis=1)
    model = keras.Model(inputs, DiffStride1D(2.0)(x))
    states = pooling_states(profile(model, (16, 16, 2)))
    values = values_of(model)
    assert values.pop("stride_cost") == pytest.approx(1 / 4 + 1 / 8)
    assert values.pop("macs") > 0 and values.pop("activation_bytes") > 0
    two, one = (state.name for state in states)
    assert values == {
        f"stride/{two}/height": 2,
        f"stride/{two}/width": 2,
        f"output_size/{two}/height": 8,
        f"output_size/{two}/width": 8,
        f"stride/{one}/length": 2,
        f"output_size/{one}/length": states[1].output_size[0],
    }


def test_scalars_of_a_volume():
    model = keras.Sequential(
        [keras.Input((8, 8, 8, 1)), DiffStride3D((1, 2, 4), ramp="inner")]
    )
    values = values_of(model)
    axes = ("depth", "height", "width")
    (name,) = {key.split("/")[1] for key in values if "/" in key}
    assert [values[f"stride/{name}/{axis}"] for axis in axes] == [1, 2, 4]
    assert [values[f"output_size/{name}/{axis}"] for axis in axes] == [8, 4, 2]


def test_average_pooling_is_reported_too():
    model = Resnet([4, 8], [1, (2, 3)], pooling_cls=SpatialPooling)
    model.build((None, 12, 12, 1))
    stem, block = pooling_states(profile(model, (12, 12, 1)))
    assert block.strides == block.initial == (2.0, 3.0)
    assert (block.input_size, block.output_size) == ((12, 12), (6, 4))
    assert block.name == "block_1/layer_1/pooling"
    assert not block.learned


def test_a_model_without_pooling():
    model = Resnet([4, 8], [1, 2])
    model.build((None, 8, 8, 1))
    assert pooling_states(profile(model, (8, 8, 1))) == []
    assert ops.shape(model(np.zeros((1, 8, 8, 1)))) == (1, 10)
