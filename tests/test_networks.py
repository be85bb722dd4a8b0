"""DenseNet-BC and networks of `keras.applications`, with learned strides."""

import functools

import keras
import numpy as np
import pytest

import diffstride
from diffstride import DiffStride, FixedSpectralPooling, networks
from diffstride.resnet import resnet18
from diffstride.static import learned_layers

tiny_densenet = functools.partial(
    networks.densenet, num_layers=1, growth_rate=4, input_shape=(16, 16, 3)
)
tiny_application = functools.partial(
    networks.application, "MobileNet", input_shape=(32, 32, 3)
)
Narrow = functools.partial(DiffStride, smoothness_factor=1.0, norm="forward")


def images(shape, count=2):
    return np.random.default_rng(0).normal(size=(count, *shape)).astype("f4")


def numbers(tensors):
    return np.array([keras.ops.convert_to_numpy(each) for each in tensors])


def parameters(model):
    return sum(np.prod(each.shape) for each in model.trainable_weights)


def test_densenet_has_the_published_number_of_parameters():
    model = networks.densenet()
    assert parameters(model) == 769_162  # "0.8M" of the paper.
    # As it is counted by hand: convolutions, norms and the dense layer.
    count, channels = 27 * 24, 24
    for block in range(3):
        for _ in range(16):
            count += 2 * channels + 48 * channels + 2 * 48 + 9 * 48 * 12
            channels += 12
        if block < 2:
            count += 2 * channels + channels * (channels // 2)
            channels //= 2
    assert parameters(model) == count + 2 * channels + 10 * (channels + 1)
    learned = networks.densenet(pooling_cls=DiffStride)
    assert parameters(learned) == 769_162 + 2 * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_layers, growth_rate, millions", [(41, 24, 15.3), (31, 40, 25.6)]
)
def test_large_densenets_too(num_layers, growth_rate, millions):
    model = networks.densenet(num_layers=num_layers, growth_rate=growth_rate)
    assert round(parameters(model) / 1e6, 1) == millions


@pytest.mark.parametrize(
    "name, count",
    [("EfficientNetB0", 5_330_571), ("MobileNetV2", 3_538_984)],
)
def test_applications_have_the_published_number_of_parameters(name, count):
    model = networks.application(name, num_output_classes=1000)
    assert model.count_params() == count  # As Keras documents them.


def test_resnet18_of_large_images_has_the_published_kernels():
    model = resnet18(num_output_classes=1000, large_stem=True)
    model.build((None, 64, 64, 3))
    kernels = [w for w in model.weights if w.name in ("kernel", "bias")]
    # 11,689,512 in torchvision, of which batch normalisations have 9,600.
    assert sum(np.prod(w.shape) for w in kernels) == 11_689_512 - 9_600


def test_the_large_stem_has_fixed_strides():
    kwargs = dict(filters=[4, 4, 8], strides=[1, 1, 2], large_stem=True)
    plain = diffstride.resnet.Resnet(**kwargs)
    learned = diffstride.resnet.Resnet(**kwargs, pooling_cls=Narrow)
    for model in (plain, learned):
        model.build((None, 32, 32, 3))
        names = [layer.name for layer in model.layers[:3]]
        assert names == ["stem", "stem_max", "block_1"]
        assert model.layers[1].output.shape[1:] == (8, 8, 4)
    assert learned.stem_pooling is None
    assert len(learned.pooling_layers) == len(learned_layers(learned)) == 2
    again = diffstride.resnet.Resnet.from_config(learned.get_config())
    again.build((None, 32, 32, 3))
    again.set_weights(learned.get_weights())
    x = images((32, 32, 3))
    np.testing.assert_allclose(again(x), learned(x), atol=1e-6)
    with pytest.raises(ValueError, match=r"`strides\[0\]` must be 1.*large"):
        diffstride.resnet.Resnet(**{**kwargs, "strides": [2, 1, 2]})


def test_densenet_by_hand():
    """Transitions pool, and layers append what they make to their input."""
    model = tiny_densenet(strides=[2, 3])
    x = images((16, 16, 3))

    def weights(name):
        return [np.array(w) for w in model.get_layer(name).weights]

    def norm(x, name):
        gamma, beta, mean, variance = weights(name)
        x = (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta
        return np.maximum(x, 0)

    def conv(x, name):
        (kernel,) = weights(name)
        side = kernel.shape[0] // 2
        x = np.pad(x, [(0, 0), (side, side), (side, side), (0, 0)])
        windows = np.lib.stride_tricks.sliding_window_view(
            x, kernel.shape[:2], axis=(1, 2)
        )
        return np.einsum("nhwcij,ijco->nhwo", windows, kernel)

    def pool(x, s):
        size = -(-x.shape[1] // s)
        missing = size * s - x.shape[1]
        before = missing // 2
        pads = [(0, 0), (before, missing - before)]
        pads = [pads[0], pads[1], pads[1], pads[0]]
        total, count = (
            np.pad(each, pads).reshape(2, size, s, size, s, -1).sum((2, 4))
            for each in (x, np.ones_like(x))
        )
        return total / count

    h = conv(x, "stem")
    for block, stride in ((1, 2), (2, 3), (3, None)):
        name = f"block_{block}_layer_1"
        y = conv(norm(h, f"{name}_bn_in"), f"{name}_conv_in")
        y = conv(norm(y, f"{name}_bn_out"), f"{name}_conv_out")
        h = np.concatenate([h, y], -1)
        if stride:
            name = f"transition_{block}"
            h = pool(conv(norm(h, f"{name}_bn"), f"{name}_conv"), stride)
    h = norm(h, "bn_head").mean((1, 2))
    kernel, bias = weights("dense")
    np.testing.assert_allclose(model(x), h @ kernel + bias, atol=1e-4)


@pytest.mark.parametrize("pooling_cls", [None, FixedSpectralPooling, Narrow])
def test_where_a_linear_pooling_stands_does_not_matter(pooling_cls):
    made = [
        tiny_densenet(pooling_cls=pooling_cls, pooling_placement=where)
        for where in ("after", "before")
    ]
    for layer in made[1].layers:
        layer.set_weights(made[0].get_layer(layer.name).get_weights())
    x = images((16, 16, 3))
    np.testing.assert_allclose(made[0](x), made[1](x), atol=1e-5)


@pytest.mark.parametrize(
    "make, strides",
    [
        pytest.param(tiny_densenet, [2, 3], id="densenet"),
        pytest.param(
            *(tiny_application, [1, 1, 2, 2.5, 2]),
            marks=pytest.mark.slow,
            id="application",
        ),
    ],
)
def test_networks_learn_freeze_harden_and_are_saved(make, strides, tmp_path):
    model = make(pooling_cls=Narrow, strides=strides)
    layers = learned_layers(model)
    begin = numbers([each.stride_weights for each in layers])
    np.testing.assert_array_equal(begin, [[s, s] for s in strides])
    x, y = images(model.input_shape[1:], 4), np.arange(4) % 10
    diffstride.static_sizes(model)
    model.compile(
        keras.optimizers.SGD(0.1),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit(x, y, epochs=2, batch_size=4, verbose=0)
    moved = numbers([each.stride_weights for each in layers])
    assert not np.allclose(begin, moved)
    outputs = keras.ops.convert_to_numpy(model(x))
    frozen = diffstride.freeze(model)
    np.testing.assert_allclose(frozen(x), outputs, atol=1e-4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded(x), outputs, atol=1e-4)
    for to in ("spectral", "pooled", "strided"):
        plain = diffstride.harden(model, to, verbose=False)
        assert np.isfinite(keras.ops.convert_to_numpy(plain(x))).all()
        assert not [each for each in learned_layers(plain) if not each.frozen]


def test_images_are_taken_as_they_come():
    """EfficientNet would divide them by 255 itself."""
    model = networks.application("EfficientNetB0")
    (scale,) = [
        x for x in model.layers if isinstance(x, keras.layers.Rescaling)
    ]
    x = images((32, 32, 3))
    np.testing.assert_array_equal(scale(x), x)


@pytest.mark.parametrize(
    "make, kwargs, message",
    [
        (
            networks.densenet,
            {"compression": 0},
            "`compression` must be a share",
        ),
        (networks.densenet, {"strides": "2, x"}, "`strides` must be numbers"),
        (networks.densenet, {"strides": [2.5, 2]}, "strides"),
        (networks.densenet, {"pooling_placement": "in"}, "pooling_placement"),
        (networks.application, {"name": "ResNet19"}, "one of .*ResNet50,"),
        (tiny_application, {"strides": [2]}, "`strides` must be None without"),
        (
            tiny_application,
            {"strides": [2, 2], "pooling_cls": DiffStride},
            "`strides` must be 5 strides, for conv1, ",
        ),
    ],
)
def test_what_cannot_be_is_refused(make, kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


def test_only_who_takes_a_shape_is_given_it():
    given = {}

    def plain(num_output_classes):
        given["plain"] = num_output_classes

    def shaped(num_output_classes, input_shape=None):
        given["shaped"] = num_output_classes, input_shape

    for make in (plain, shaped):
        networks.make_network(make, 3, [8, 9, 1])
    assert given == {"plain": 3, "shaped": (3, (8, 9, 1))}
