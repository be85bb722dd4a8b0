"""Statistics of batch normalisation, against averages in NumPy."""

import itertools

import keras
import numpy as np
import pytest
from maps import BACKEND, array, images
from models import small_resnet

import diffstride
from diffstride import recalibrate

layers = keras.layers
X = images(10, 6, 5, 3, mean=2.0)


def statistics(layer):
    return array(layer.moving_mean), array(layer.moving_variance)


def network():
    """Two normalisations with what is random in training between them."""
    return keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            layers.BatchNormalization(name="first"),
            layers.Dropout(0.5),
            layers.Conv2D(4, 1, name="conv"),
            layers.BatchNormalization(scale=False, trainable=False),
            layers.GlobalAveragePooling2D(),
        ]
    )


def averages(batches):
    """Means and variances of batches, by their number of examples."""
    count = [len(batch) for batch in batches]
    mean, variance = (
        np.average([f(b, axis=(0, 1, 2)) for b in batches], 0, count)
        for f in (np.mean, np.var)
    )
    return mean, variance


def expected(model, batches):
    """What both layers of `network` should find."""
    first = averages(batches)
    kernel, bias = map(array, model.get_layer("conv").weights)
    epsilon = model.get_layer("first").epsilon
    after = [
        (b - b.mean((0, 1, 2))) / np.sqrt(b.var((0, 1, 2)) + epsilon)
        for b in batches
    ]
    return first, averages([b @ kernel[0, 0] + bias for b in after])


def dataset():
    if BACKEND == "torch":
        import torch

        pairs = torch.utils.data.TensorDataset(
            torch.from_numpy(X), torch.zeros(len(X))
        )
        return torch.utils.data.DataLoader(pairs, 4)
    return ((X[i : i + 4], np.zeros(4)) for i in range(0, len(X), 4))


@pytest.mark.parametrize("data", [X, dataset()], ids=["array", "batches"])
def test_statistics_are_averages_of_batches(data):
    model = network()
    model.compile("sgd", "mse")
    first, second = model.layers[0], model.layers[3]
    first.moving_variance.assign([np.nan] * 3)
    kept = [array(v) for v in model.get_layer("conv").weights]
    recalibrate(model, data, batch_size=4)  # 4, 4 and 2 examples
    wanted = expected(model, [X[:4], X[4:8], X[8:]])
    for layer, values in zip((first, second), wanted, strict=True):
        for actual, value in zip(statistics(layer), values, strict=True):
            np.testing.assert_allclose(actual, value, atol=2e-6)
    assert first.momentum == second.momentum == 0.99
    assert first.trainable and not second.trainable
    for before, variable in zip(
        kept, model.get_layer("conv").weights, strict=True
    ):
        np.testing.assert_array_equal(array(variable), before)


def test_steps_bound_a_stream():
    model = network()
    recalibrate(model, itertools.repeat(X[:4]), steps=2)
    mean, _ = averages([X[:4]])
    np.testing.assert_allclose(statistics(model.layers[0])[0], mean, atol=1e-6)


def test_networks_of_this_package():
    model = small_resnet((1.0, 1.6, 1.7), shape=(12, 12, 1), num_layers=1)
    x = images(4, 12, 12, 1, mean=5.0)
    stem = keras.Model(model.inputs[0], model.get_layer("pooling").output)
    recalibrate(model, x)
    found = array(model.get_layer("block_1").layers[0].bn_in.moving_mean)
    wanted = array(stem(x)).mean((0, 1, 2))
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    hardened = diffstride.harden(model, "strided", verbose=False)
    before = array(hardened(x))
    recalibrate(hardened, x)
    assert np.abs(array(hardened(x)) - before).max() > 1e-3


def test_after_an_error_nothing_has_changed():
    model = network()
    before = model.get_weights()
    with pytest.raises(ValueError):
        recalibrate(model, iter([X[:4], X[:4, ..., :2]]))
    for value, weight in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, weight)
    assert model.layers[0].momentum == 0.99
    assert not model.layers[3].trainable


@pytest.mark.parametrize(
    "model, data, arguments, message",
    [
        (network, X[:0], {}, "`data` must hold at least one batch"),
        (network, iter([]), {}, "`data` must hold at least one batch"),
        (network, X, {"steps": 0}, "`steps` must be an integer >= 1"),
        (network, X, {"batch_size": 1.5}, "`batch_size` must be an integer"),
        (
            lambda: keras.Sequential([keras.Input((3,)), layers.Dense(1)]),
            X,
            {},
            "needs a built model with `BatchNormalization`",
        ),
        (
            lambda: keras.Sequential([layers.BatchNormalization()]),
            X,
            {},
            "not built",
        ),
    ],
)
def test_what_is_refused(model, data, arguments, message):
    with pytest.raises(ValueError, match=message):
        recalibrate(model(), data, **arguments)
