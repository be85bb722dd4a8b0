import functools
import json
import pathlib

import keras
import numpy as np
import pytest
from maps import BACKEND, JAX, array

import diffstride
from diffstride import DiffStride, FixedSpectralPooling
from diffstride.audio_cnn import AudioCNN, WindowedSequential
from diffstride.compute import ComputeModel
from diffstride.profiling import pooling_states, profile, stride_logs

SAMPLES = 600  # 61 frames of 8 channels.
LEARNED = functools.partial(DiffStride, smoothness_factor=1.0, norm="forward")


def sounds(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=(*shape, SAMPLES))
    return (0.1 * x).astype("float32")


def small(pooling_cls=LEARNED, strides=((2, 2), (1, 2)), **kwargs):
    model = AudioCNN(
        [2, 3],
        strides,
        4,
        pooling_cls=pooling_cls,
        sample_rate=1000,
        mel_channels=8,
        **kwargs,
    )
    model.build((None, SAMPLES))
    for variable in model.trainable_variables:
        if variable.name == "beta":  # No chance of ReLUs that are all zero.
            variable.assign(0.5 + keras.ops.abs(variable))
    return model


def test_the_front_end_is_that_of_librosa():
    """librosa's HTK triangles have straight sides in Hz, Keras's in mel."""
    path = pathlib.Path(__file__).parent / "goldens" / "librosa" / "log_mel.npz"
    with np.load(path) as golden:
        sound, expected = golden["sound"], golden["log_mel"]
    model = AudioCNN([2], [1])
    model.build((None, len(sound)))
    x = sound[None]
    for layer in model.layers[:4]:
        x = layer(x)
    found = 40 * (array(x)[0, ..., 0] - 1)
    assert found.shape == expected.shape == (51, 64)
    difference = np.abs(found - expected)
    assert np.median(difference) < 0.02 and difference.max() < 0.1


def test_examples_of_a_batch_do_not_change_each_other():
    model = small()
    x = sounds(2)
    together = array(model(x * np.float32([[1e-4], [1]]), training=False))
    others = array(model(x * np.float32(1e-4), training=False))
    np.testing.assert_allclose(together[0], others[0], atol=1e-5)
    assert not np.allclose(together[1], others[1], atol=1e-3)


def test_outputs_are_averaged_over_windows():
    model = small()
    x = sounds(2, 3)
    alone = [array(model(x[:, i], training=False)) for i in range(3)]
    together = array(model(x, training=False))
    np.testing.assert_allclose(together, np.mean(alone, 0), atol=1e-5)
    assert not np.allclose(alone[0], alone[1], atol=1e-3)
    assert model.compute_output_shape((None, 3, SAMPLES)) == (None, 4)
    outer = keras.Sequential([keras.Input((None, SAMPLES)), model])
    np.testing.assert_allclose(
        array(outer(x, training=False)), together, atol=1e-5
    )


@pytest.mark.parametrize(
    "pooling_cls, placement",
    [(None, "after"), (LEARNED, "before"), (FixedSpectralPooling, "after")],
)
def test_it_is_saved_and_loaded(pooling_cls, placement, tmp_path):
    model = small(pooling_cls, pooling_placement=placement)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded) is AudioCNN
    assert json.dumps(loaded.get_config()) == json.dumps(model.get_config())
    x = sounds(2, 2)
    np.testing.assert_array_equal(
        array(loaded(x, training=False)), array(model(x, training=False))
    )


def test_strides_are_time_then_frequency():
    for pooling_cls in (None, FixedSpectralPooling):
        model = small(pooling_cls, ((3, 1), (1, 2)))
        shapes = [block.output.shape for block in model.layers[4:6]]
        time, *_ = {20, 21} & {shapes[0][1]}
        assert [s[1:3] for s in shapes] == [(time, 8), (time, 4)]
    model = small(strides=[(1.5, 2.5), 2.0])
    logs = stride_logs(model)
    assert logs["stride/block_1/pooling/time"] == 1.5
    assert logs["stride/block_1/pooling/frequency"] == 2.5
    states = pooling_states(profile(model))
    assert [state.name for state in states] == [
        "block_1/pooling",
        "block_2/pooling",
    ]
    assert states[0].input_size == (61, 8)
    assert states[0].strides == (1.5, 2.5)


def test_poolings_stand_where_those_of_resnets_do():
    for placement, places in (
        ("after", (1, 1)),
        ("before", (1, 0)),
        ("end", (4, 4)),
    ):
        blocks = small(pooling_placement=placement).layers[4:6]
        names = [[layer.name for layer in block.layers] for block in blocks]
        assert tuple(each.index("pooling") for each in names) == places


def test_what_it_costs():
    cost = diffstride.model_cost(small(None))
    # 31 x 8 and 31 x 4 positions, then 31 x 4 and 31 x 2.
    macs = 31 * 8 * 3 * 2 + 31 * 4 * 3 * 2 * 2
    macs += 31 * 4 * 3 * 2 * 3 + 31 * 2 * 3 * 3 * 3 + 3 * 4
    assert cost.macs == macs and not cost.unknown


def trained(model, **kwargs):
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.CategoricalCrossentropy(from_logits=True),
    )
    y = np.eye(4, dtype="float32")[[0, 1]]
    model.fit(sounds(2), y, verbose=0, **kwargs)
    model.evaluate(sounds(2, 2), y, verbose=0)
    return model


def test_strides_learn_and_freeze():
    model = small(strides=((1.5, 2.0), (1.4, 2.0)))
    before = [array(layer.stride_weights) for layer in model.pooling_layers]
    trained(model)
    after = [array(layer.stride_weights) for layer in model.pooling_layers]
    assert all(np.all(b != a) for b, a in zip(before, after, strict=True))
    frozen = diffstride.freeze(model)
    x = sounds(2, 2)
    np.testing.assert_allclose(
        array(frozen(x, training=False)),
        array(model(x, training=False)),
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "to", ["strided"] if JAX else ["spectral", "strided", "pooled"]
)
def test_it_hardens(to, tmp_path):
    model = small(strides=((1.5, 2.0), (1.4, 2.0)))
    plain = diffstride.harden(model, to, verbose=False)
    assert isinstance(plain, WindowedSequential)
    assert plain.axes == model.axes
    x = sounds(2, 3)
    alone = [array(plain(x[:, i], training=False)) for i in range(3)]
    together = array(plain(x, training=False))
    np.testing.assert_allclose(together, np.mean(alone, 0), atol=1e-5)
    plain.save(tmp_path / "plain.keras")
    loaded = keras.models.load_model(tmp_path / "plain.keras")
    np.testing.assert_array_equal(array(loaded(x, training=False)), together)
    if to == "strided":  # For one window nothing of this package is needed.
        keras.Sequential(loaded.layers)(x[:, 0])


@pytest.mark.skipif(JAX, reason="the same there, and slower")
@pytest.mark.parametrize("placement", ["after", "end"])
def test_hardened_each_convolution_strides_along_its_own_axis(placement):
    """As in the network that has strided convolutions from the start."""
    strides = ((2, 2), (3, 1))
    arguments = {"strides": strides, "pooling_placement": placement}
    pooling = functools.partial(
        DiffStride, ramp="inner", final_smoothness_factor=0.0
    )
    model, plain = small(pooling, **arguments), small(None, **arguments)
    random = np.random.RandomState(0)
    for variable in model.weights:
        if variable.name.startswith("moving"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    plain.set_weights(
        [array(v) for v in model.weights if "/pooling/" not in v.path]
    )
    hardened = diffstride.harden(model, "strided", verbose=False)
    x = sounds(2)
    expected = array(plain(x, training=False))
    np.testing.assert_allclose(
        array(hardened(x, training=False)), expected, atol=1e-5
    )
    macs = diffstride.model_cost(plain).macs
    assert diffstride.model_cost(hardened).macs == macs
    compute = ComputeModel(model, harden_to="strided")
    assert compute.macs(compute.strides()) == macs


@pytest.mark.skipif(JAX, reason="compiles for each size")
def test_it_is_held_to_a_budget():
    model = small(strides=((1.5, 2.0), (1.4, 2.0)))
    most = diffstride.model_cost(model).macs
    model.compile("sgd", "mse")
    callback = diffstride.add_compute_budget(model, 0.6 * most, epochs=1)
    trained(model, callbacks=[callback])
    assert 0.57 < diffstride.model_cost(model).macs / most < 0.63


@pytest.mark.skipif(BACKEND != "tensorflow", reason="exports from TensorFlow")
def test_it_exports_with_its_front_end(tmp_path):
    import tensorflow as tf

    model = diffstride.freeze(small())
    x = sounds(2)
    model.export(tmp_path / "saved", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "saved"))
    np.testing.assert_allclose(
        served.serve(x), array(model(x, training=False)), atol=1e-5
    )


@pytest.mark.skipif(JAX or BACKEND == "torch", reason="alike on all")
@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"strides": [2]}, "must have one entry for each block"),
        ({"strides": [2, 0.5]}, r"`strides\[1\]` must be a number >= 1"),
        ({"strides": [1.5, 2], "pooling_cls": None}, "must be integers"),
        ({"filters": [2, 0]}, r"`filters\[1\]` must be an integer"),
        ({"pooling_placement": "middle"}, "`pooling_placement` must be"),
        ({"sample_rate": 100}, "`sample_rate` must be an integer >= 200"),
        ({"num_output_classes": None}, "`num_output_classes` must be"),
    ],
)
def test_errors(kwargs, message):
    kwargs = {"filters": [2, 3], "strides": [2, 2], **kwargs}
    with pytest.raises(ValueError, match=message):
        AudioCNN(**kwargs)


@pytest.mark.parametrize("data_format", ["channels_first"])
@pytest.mark.skipif(BACKEND == "tensorflow", reason="no such convolutions")
def test_channels_may_come_first(data_format):
    last, first = small(), small(channels_first=True)
    first.set_weights(last.get_weights())
    x = sounds(2)
    np.testing.assert_allclose(
        array(first(x, training=False)),
        array(last(x, training=False)),
        atol=1e-5,
    )
