"""Smoothness that falls while a model is trained."""

import keras
import numpy as np
import pytest
from keras import ops
from maps import JAX

import diffstride
from diffstride import DiffStride, DiffStride1D, SmoothnessSchedule
from diffstride.masks import RAMPS

IMAGES = np.random.RandomState(0).rand(24, 17, 16, 2).astype("float32")
LABELS = np.arange(24) % 3


def network(ramp="outer", final=0.0, **arguments):
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((17, 16, 2)),
            DiffStride(
                2.0,
                2.0,
                norm="forward",
                ramp=ramp,
                final_smoothness_factor=final,
                **arguments,
            ),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
            layers.Dense(3),
        ]
    )
    diffstride.static_sizes(model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    return model


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.smoothness, self.strides = [], []

    def on_epoch_end(self, epoch, logs=None):
        layer = self.model.layers[0]
        self.smoothness.append(float(ops.convert_to_numpy(layer.smoothness)))
        self.strides.append(ops.convert_to_numpy(layer.stride_weights))


def train(model, num_epochs=5, **arguments):
    record = Record()
    model.fit(
        IMAGES,
        LABELS,
        epochs=num_epochs,
        batch_size=8,
        verbose=0,
        callbacks=[SmoothnessSchedule(**arguments), record],
    )
    return record


@pytest.mark.parametrize("ramp", RAMPS[:1] if JAX else RAMPS)
def test_masks_are_soft_at_first_and_hard_at_last(ramp):
    model = network(ramp)
    record = train(model, share=0.6)
    np.testing.assert_allclose(
        record.smoothness, [2, 4 / 3, 2 / 3, 0, 0], atol=1e-6
    )
    # As long as there is a ramp strides learn, and no longer.
    assert not np.array_equal(record.strides[0], record.strides[2])
    np.testing.assert_array_equal(record.strides[2], record.strides[4])
    # At the end it is the layer that has no ramp.
    layer = model.layers[0]
    hard = DiffStride(tuple(record.strides[-1]), 0.0, norm="forward", ramp=ramp)
    np.testing.assert_allclose(
        ops.convert_to_numpy(layer(IMAGES)),
        ops.convert_to_numpy(hard(IMAGES)),
        atol=1e-5,
    )


@pytest.mark.parametrize("smoothness", [1.3, 0.0] if JAX else [1.3, 0.5, 0.0])
@pytest.mark.parametrize("ramp", RAMPS)
def test_at_any_time_it_is_the_layer_of_that_smoothness(ramp, smoothness):
    cases = (
        ((1.0, 2.3), (1, 12, 9, 2)),
        ((3.7, 1.5), (1, 7, 16, 1)),
        ((9.0, 1.0), (1, 5, 2, 1)),
    )
    for strides, shape in cases[:1] if JAX else cases:
        image = np.random.RandomState(1).rand(*shape).astype("float32")
        moving = DiffStride(
            strides, 2.0, ramp=ramp, final_smoothness_factor=0.0
        )
        moving.build(shape)
        moving.set_smoothness(smoothness)
        constant = DiffStride(strides, smoothness, ramp=ramp)
        np.testing.assert_allclose(
            ops.convert_to_numpy(moving(image)),
            ops.convert_to_numpy(constant(image)),
            atol=2e-5,
        )


def test_smoothness_falls_over_the_epochs_that_are_told():
    """However many of them this call of `fit` trains."""
    first = train(network(), num_epochs=2, epochs=5, share=0.6)
    np.testing.assert_allclose(first.smoothness, [2, 4 / 3], atol=1e-6)


def test_smoothness_is_saved_with_the_model(tmp_path):
    model = network()
    train(model, num_epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    expected = ops.convert_to_numpy(model(IMAGES))
    frozen = diffstride.freeze(loaded)
    for copy in (loaded, frozen):
        np.testing.assert_allclose(
            ops.convert_to_numpy(copy(IMAGES)), expected, atol=1e-5
        )
    assert loaded.layers[0].current_smoothness < 2.0
    assert frozen.layers[0].smoothness_factor < 2.0
    assert (
        frozen.layers[0].output.shape[1:] == frozen.layers[0](IMAGES).shape[1:]
    )


def test_steps_are_not_traced_again_where_sizes_stay():
    model = network("straight_through", upper_limit_stride=2.0)
    model.layers[0].lower_limit_stride = 2.0
    traces = []
    conv = model.layers[1]
    call = conv.call
    conv.call = lambda *args, **kwargs: (
        traces.append(1) or call(*args, **kwargs)
    )
    train(model, num_epochs=1)
    once = len(traces)
    train(model, num_epochs=4)
    if keras.backend.backend() != "torch":  # Torch runs eagerly.
        assert len(traces) == once


def test_smoothness_of_one_axis():
    layer = DiffStride1D(2.0, 3.0, final_smoothness_factor=1.0)
    signal = np.random.RandomState(0).rand(2, 20, 3).astype("float32")
    assert layer(signal).shape == (2, 16, 3)
    layer.set_smoothness(1.0)
    assert layer(signal).shape == (2, 12, 3)


@pytest.mark.parametrize("final", [-1.0, 2.5, "0", np.nan, [0.0], True])
def test_a_final_smoothness_that_cannot_be(final):
    with pytest.raises(ValueError, match="`final_smoothness_factor` must be"):
        DiffStride(2.0, 2.0, final_smoothness_factor=final)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, np.nan, "half"])
def test_a_share_that_cannot_be(share):
    with pytest.raises(ValueError, match="`share` must be"):
        SmoothnessSchedule(share)
    with pytest.raises(ValueError, match="`epochs` must be an integer"):
        SmoothnessSchedule(epochs=0)


def test_a_model_without_a_schedule_is_refused():
    with pytest.raises(ValueError, match="final_smoothness_factor"):
        train(network(final=None), num_epochs=1)
