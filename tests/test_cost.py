import warnings

import keras
import numpy as np
import pytest
from keras import layers, ops
from maps import JAX, TORCH

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    SpatialPooling,
    format_cost,
    model_cost,
)
from diffstride.formatting import human
from diffstride.resnet import Resnet, resnet18

pytestmark = pytest.mark.skipif(JAX, reason="slow on JAX, and the same there")


def chain(*parts, shape):
    return keras.Sequential([keras.Input(shape), *parts])


def inner(**kwargs):
    return DiffStride(ramp="inner", **kwargs)


# Multiply-accumulates of the pooling of a map of (h, w) to (a, b), for each
# channel, as matrix products along height and width.


def real(h, w, a, b):
    """Re(A) x Re(B)^T."""
    return a * h * w + b * w * a


def complex_by_complex(h, w, a, b):
    """Both parts of A, stacked, then Re(B) and -Im(B) side by side."""
    return 2 * a * h * w + b * 2 * w * a


def low_rank(h, w, a, b, rank):
    """Re(A) x Re(B)^T - left (right x Im(B)^T)."""
    return real(h, w, a, b) + rank * h * w + b * w * rank + a * rank * b


def one_lopsided_frequency(h, w, a, b):
    """Its cosine and its sine make a rank of two."""
    return low_rank(h, w, a, b, 2)


def resnet18_by_hand(sizes, pooling):
    """Multiply-accumulates, and numbers in the outputs of leaf layers.

    `sizes` are those of the maps of stem and blocks, behind their pooling.
    `pooling` counts that for a channel; without it convolutions are strided.
    """
    first = h, w = (32, 32)
    (a, b), *sizes = sizes
    macs = h * w * 3 * 3 * 3 * 64
    numbers = h * w * 64
    if pooling:
        macs += 64 * pooling(h, w, a, b)
        numbers += a * b * 64
    else:
        assert (a, b) == first
    c = 64
    for block, filters in enumerate((64, 128, 256, 512)):
        (h, w), (a, b) = (a, b), sizes[block]
        macs_out = a * b * 9 * filters * filters
        if block == 0:  # Identity layers only.
            macs += 4 * macs_out
            numbers += 2 * 4 * a * b * filters
            continue
        # Main branch: BN, convolution, pooling, BN, convolution.
        conv_h, conv_w = (h, w) if pooling else (a, b)
        macs += conv_h * conv_w * 9 * c * filters + macs_out
        numbers += h * w * c + conv_h * conv_w * filters + 2 * a * b * filters
        # Shortcut: pooling, convolution.
        macs += a * b * c * filters
        numbers += a * b * filters
        if pooling:
            macs += (filters + c) * pooling(h, w, a, b)
            numbers += a * b * (filters + c)
        # Identity layer: twice BN and convolution.
        macs += 2 * macs_out
        numbers += 4 * a * b * filters
        c = filters
    # BN, average, dense.
    return macs + 512 * 10, numbers + a * b * 512 + 512 + 10


def square(*sizes):
    return [(size, size) for size in sizes]


def test_strided_resnet18_by_hand():
    by_hand = resnet18_by_hand(square(32, 32, 16, 8, 4), None)
    # Stem, first block, three blocks of equal cost, dense layer.
    assert by_hand[0] == 1_769_472 + 150_994_944 + 3 * 134_217_728 + 5_120
    model = resnet18(channels_first=False)
    model.build((None, 32, 32, 3))
    cost = model_cost(model, (32, 32, 3))
    assert (cost.macs, cost.activation_bytes) == (by_hand[0], 4 * by_hand[1])
    assert cost.unknown == ()
    assert sum(layer.macs for layer in cost.layers) == cost.macs


@pytest.mark.skipif(
    not TORCH, reason="slow, and counts do not know the backend"
)
@pytest.mark.parametrize(
    "pooling_cls, sizes, moved, pooling",
    [
        (
            FixedSpectralPooling,
            square(32, 32, 16, 8, 4),
            None,
            one_lopsided_frequency,
        ),
        (
            # 2 ceil(4 + size / 4), and of the moved strides
            # 2 ceil(4 + 16 / 3), 2 ceil(4 + 10).
            DiffStride,
            square(32, 32, 24, 20, 18),
            [(32, 32), (32, 32), (20, 28), (18, 22), (18, 20)],
            complex_by_complex,
        ),
        (
            # 2 ceil(size / 4), and 2 ceil(16 / 3), 2 ceil(10).
            inner,
            square(32, 32, 16, 8, 4),
            [(32, 32), (32, 32), (12, 20), (6, 10), (4, 6)],
            real,
        ),
    ],
)
def test_pooled_resnet18_by_hand(pooling_cls, sizes, moved, pooling):
    model = resnet18(pooling_cls=pooling_cls, channels_first=False)
    model.build((None, 32, 32, 3))
    macs, numbers = resnet18_by_hand(sizes, pooling)
    cost = model_cost(model)
    assert (cost.macs, cost.activation_bytes) == (macs, 4 * numbers)
    if moved:
        weights = model.blocks[1].layers[0].pooling.stride_weights
        weights.assign([3.0, 1.6])
        macs, numbers = resnet18_by_hand(moved, pooling)
        cost = model_cost(model)
        assert (cost.macs, cost.activation_bytes) == (macs, 4 * numbers)


def test_a_layer_called_twice_is_there_twice():
    model = Resnet(
        [4, 8], [1, 2], num_layers=1, channels_first=False, pooling_cls=inner
    )
    model.build((None, 16, 16, 1))
    cost = model_cost(model)
    name = "block_1/layer_1/pooling"
    main, shortcut = [layer for layer in cost.layers if layer.name == name]
    assert main.kind == shortcut.kind == "DiffStride"
    assert (main.input_shape, main.output_shape) == ((16, 16, 8), (8, 8, 8))
    assert shortcut.input_shape == (16, 16, 4)
    assert main.macs == 2 * shortcut.macs == 8 * real(16, 16, 8, 8)
    assert main.activation_bytes == 4 * 8 * 8 * 8


LAST = {"data_format": "channels_last"}


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        # Low rank: five lopsided frequencies in 64.
        (
            DiffStride(2.0, **LAST),
            (64, 64, 3),
            3 * low_rank(64, 64, 40, 40, 10),
        ),
        (
            DiffStride(2.0, cropping=False, **LAST),
            (32, 32, 3),
            3 * complex_by_complex(32, 32, 32, 32),
        ),
        (
            DiffStride(2.0, frozen=True, **LAST),
            (33, 33, 1),
            real(33, 33, 25, 25),
        ),
        (
            FixedSpectralPooling((2, 4), **LAST),
            (16, 20, 5),
            5 * one_lopsided_frequency(16, 20, 8, 5),
        ),
        (DiffStride1D(2.0, **LAST), (32, 3), 3 * 32 * 24),
        (
            # Both parts of the first two matrices, then one of the result's.
            DiffStride3D((1.0, 2.0, 2.0), **LAST),
            (10, 16, 20, 2),
            2
            * (
                2 * 10 * 10 * 16 * 20
                + (2 * 16) * (2 * 16) * 10 * 20
                + 18 * 2 * 20 * 10 * 16
            ),
        ),
        (
            DiffStride(2.0, ramp="inner", data_format="channels_first"),
            (3, 32, 16),
            3 * real(32, 16, 16, 8),
        ),
        (SpatialPooling(**LAST), (16, 16, 2), 0),
    ],
)
def test_spectral_layers_by_hand(layer, shape, expected):
    layer = type(layer).from_config(layer.get_config())
    (cost,) = model_cost(chain(layer, shape=shape)).layers
    assert cost.macs == expected


@pytest.mark.parametrize(
    "layer, shape, expected",
    [
        (layers.Conv1D(6, 3, dilation_rate=2, **LAST), (20, 4), 16 * 3 * 4 * 6),
        (
            layers.Conv2D(6, (3, 5), groups=2, padding="same", **LAST),
            (7, 9, 4),
            7 * 9 * 3 * 5 * 2 * 6,
        ),
        (layers.Conv2D(6, 3, strides=2, **LAST), (9, 7, 4), 4 * 3 * 9 * 4 * 6),
        (layers.Conv3D(2, 2, **LAST), (3, 4, 5, 2), 2 * 3 * 4 * 8 * 2 * 2),
        (layers.DepthwiseConv1D(3, **LAST), (10, 4), 8 * 3 * 4),
        (
            layers.DepthwiseConv2D(3, depth_multiplier=2, **LAST),
            (10, 8, 4),
            8 * 6 * 9 * 4 * 2,
        ),
        (
            layers.SeparableConv2D(6, 3, strides=2, depth_multiplier=2, **LAST),
            (9, 9, 4),
            4 * 4 * (9 * 4 * 2 + 4 * 2 * 6),
        ),
        (
            layers.Conv2DTranspose(6, 3, strides=2, **LAST),
            (5, 4, 2),
            5 * 4 * 2 * 9 * 6,
        ),
        (layers.Dense(6), (4,), 24),
        (layers.Dense(6), (5, 3, 4), 5 * 3 * 24),
    ],
)
def test_keras_layers_by_hand(layer, shape, expected):
    layer = type(layer).from_config(layer.get_config())
    cost = model_cost(chain(layer, shape=shape))
    assert cost.macs == expected
    assert cost.activation_bytes == 4 * np.prod(
        layer.compute_output_shape((1, *shape))
    )


def test_channels_first_and_mixed_precision_cost_the_same():
    def costs(channels_first, shape, dtype="float32"):
        model = Resnet(
            [4, 8],
            [1, 2],
            pooling_cls=DiffStride,
            channels_first=channels_first,
            dtype=dtype,
        )
        model.build((None, *shape))
        cost = model_cost(model)
        return cost.macs, cost.activation_bytes

    macs, size = costs(False, (16, 12, 3))
    assert costs(False, (16, 12, 3), "mixed_bfloat16") == (macs, size / 2)
    if keras.backend.backend() != "tensorflow":  # Whose CPU has no such thing.
        assert costs(True, (3, 16, 12)) == (macs, size)


@pytest.mark.filterwarnings("default")
def test_unknown_layers_are_listed_and_told_of_once():
    class Scaled(layers.Layer):
        """Weights of its own, and a layer inside."""

        def __init__(self):
            super().__init__(name="scaled")
            self.dense = layers.Dense(4)

        def build(self, shape):
            self.scale = self.add_weight(shape=(4, 4), name="scale")
            self.dense.build(shape)

        def call(self, x):
            return ops.matmul(self.dense(x), self.scale)

    model = chain(
        layers.LayerNormalization(),
        layers.EinsumDense("abc,cd->abd", (None, 4), name="einsum"),
        Scaled(),
        layers.LSTM(3, name="lstm"),
        shape=(5, 4),
    )
    with warnings.catch_warnings(record=True) as caught:
        cost = model_cost(model)
        assert model_cost(model) == cost
    assert cost.unknown == ("einsum", "scaled", "lstm/lstm_cell")
    assert cost.macs == 5 * 4 * 4
    (warning,) = [each for each in caught if each.category is UserWarning]
    assert "einsum, scaled, lstm/lstm_cell (of kind E" in str(warning.message)
    assert format_cost(cost).endswith(": einsum, scaled, lstm/lstm_cell")


def test_several_inputs_and_nested_models():
    nested = chain(layers.Dense(3, name="inside"), shape=(4,))
    inputs = {
        name: keras.Input((n,), name=name) for name, n in (("a", 4), ("b", 3))
    }
    outputs = layers.Add(name="add")([nested(inputs["a"]), inputs["b"]])
    cost = model_cost(keras.Model(inputs, outputs))
    assert [layer.macs for layer in cost.layers] == [12, 0]
    assert cost.activation_bytes == 2 * 4 * 3
    assert cost == model_cost(
        keras.Model(inputs, outputs), {"a": [4], "b": [3]}
    )


def test_models_that_cannot_be_run():
    with pytest.raises(ValueError, match="must be built"):
        model_cost(resnet18())
    model = chain(layers.Conv2D(1, 3, **LAST), shape=(None, None, 1))
    with pytest.raises(ValueError, match=r"`input_shape` must .* \(None, None"):
        model_cost(model)
    assert model_cost(model, (5, 4, 1)).macs == 3 * 2 * 9


def test_nothing_is_left_behind():
    model = chain(layers.Dense(1), layers.Dropout(0.5), shape=(4,))
    model_cost(model)
    with pytest.raises(ValueError):
        model_cost(model, (5,))
    assert not any("call" in vars(layer) for layer in model.layers)


def test_the_table():
    model = chain(
        layers.Conv2D(64, 3, padding="same", name="conv", **LAST),
        DiffStride(2.0, ramp="inner", name="pooling", **LAST),
        shape=(32, 32, 3),
    )
    text = format_cost(model_cost(model))
    assert [" ".join(line.split()) for line in text.splitlines()] == [
        "layer kind input output MACs activations",
        "conv Conv2D 32 x 32 x 3 32 x 32 x 64 1.8 M 262.1 kB",
        "pooling DiffStride 32 x 32 x 64 16 x 16 x 64 1.6 M 65.5 kB",
        "total 3.3 M 327.7 kB",
    ]
    header, *lines = text.splitlines()
    assert {len(line) for line in lines} == {len(header)}


def test_numbers_for_people():
    assert [human(n, "B") for n in (0, 999, 1000, 12_345, 999_960)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "12.3 kB",
        "1.0 MB",
    ]
    assert human(555_422_720) == "555.4 M"
    assert human(5) == "5"
    assert human(2.5e9) == "2.5 G"
