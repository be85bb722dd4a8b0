"""Windows at stride 1 sit where the strided ones do, counted by hand."""

import itertools
import math

import keras
import pytest

from diffstride.policies import POLICIES, Site, padding_of, policy_of

layers = keras.layers


def padded(size, stride, window, padding):
    """Padding and output size, as Keras's documentation has them."""
    if padding == "same":
        output = math.ceil(size / stride)
        total = max((output - 1) * stride + window - size, 0)
        return (total // 2, total - total // 2), output
    before, after = (0, 0) if padding == "valid" else padding
    return (before, after), (size + before + after - window) // stride + 1


@pytest.mark.parametrize("padding", ["same", "valid", (0, 1), (1, 1), (3, 2)])
def test_every_stride_th_window_is_a_strided_one(padding):
    sizes = itertools.product(range(1, 14), (2, 3, 4), (1, 2, 3, 4, 5, 7))
    for size, stride, window in sizes:
        (before, after), output = padded(size, stride, window, padding)
        if output < 1:
            continue
        layer = layers.Conv1D(1, window, stride, padding="valid")
        site = Site(layer, (stride,), (size,), (output,), ((before, after),))
        ((left, right),) = site.dense_padding
        positions = size + left + right - window + 1
        first = [i - left for i in range(positions)][::stride]
        assert first == [i * stride - before for i in range(output)]
        assert positions == size - site.shrinks[0]
        # No more is computed than there was to see, and never less.
        assert positions <= max(size, output * stride)
        if output * stride <= size:
            assert positions == output * stride or right == 0


@pytest.mark.parametrize("size", [7, 8, 9])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_padding_is_what_keras_pads(size, padding):
    for stride, window in itertools.product((1, 2, 3), (1, 2, 3, 4)):
        layer = layers.MaxPooling1D(window, stride, padding)
        sides, output = padded(size, stride, window, padding)
        assert layer.compute_output_shape((1, size, 1))[1] == output
        assert padding_of(layer, (size,), (output,)) == (sides,)


def test_dilation_and_causal_padding():
    layer = layers.Conv1D(1, 3, 2, padding="causal", name="c")
    assert padding_of(layer, (8,), (4,)) == ((2, 0),)
    site = Site(layer, (2,), (8,), (4,), ((2, 0),))
    assert [part.padding for part in site.dense()] == ["causal"]
    dilated = layers.Conv1D(1, 3, dilation_rate=3)
    assert Site(dilated, (1,), (8,), (2,), ((0, 0),)).window == (7,)


def test_the_closest_class_decides():
    class Mine(layers.Conv2D):
        pass

    assert policy_of(Mine(1, 1), POLICIES) is POLICIES[layers.Conv2D]
    assert policy_of(Mine(1, 1), {**POLICIES, Mine: None}) is None
    assert policy_of(layers.Dense(1), POLICIES) is None
