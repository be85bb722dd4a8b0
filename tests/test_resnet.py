"""Networks: structure, parameters, graphs, and files old and new."""

import functools
import importlib
import inspect
import json
import warnings
import zipfile

import h5py
import keras
import numpy as np
import pytest
from gradients import output_and_gradients, relative_error
from maps import BACKEND, JAX, TORCH, array, images

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    SpatialPooling,
    freeze,
    model_cost,
    static_sizes,
)
from diffstride.internals import sublayers
from diffstride.resnet import (
    ResidualLayer,
    Resnet,
    ResnetBlock,
    resnet18,
    resnet56,
)

CONFIGURED = functools.partial(DiffStride, smoothness_factor=2.0, norm="ortho")


large = pytest.mark.skipif(not TORCH, reason="large, and the same elsewhere")


@large
@pytest.mark.parametrize(
    "pooling_cls, expected",
    [
        (None, 11_179_978),
        (SpatialPooling, 11_179_978),
        (FixedSpectralPooling, 11_179_986),
        (DiffStride, 11_179_986),
    ],
)
def test_resnet18_parameters(pooling_cls, expected):
    model = resnet18(pooling_cls=pooling_cls)
    model.build((None, 32, 32, 3))
    assert model.count_params() == expected


@large
def test_resnet56_structure():
    model = resnet56(pooling_cls=DiffStride)
    assert [len(block.layers) for block in model.blocks] == [9, 9, 9]
    assert [block.filters for block in model.blocks] == [16, 32, 64]
    assert [block.layers[0].project for block in model.blocks] == [True] * 3
    model.build((None, 32, 32, 3))
    convolutions = [
        layer
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.Conv2D)
        and layer.name != "conv_shortcut"
    ]
    assert len(convolutions) + 1 == 56


def test_resnet18_first_block_is_identity_only():
    model = resnet18(pooling_cls=DiffStride)
    assert [block.layers[0].project for block in model.blocks] == [
        False,
        True,
        True,
        True,
    ]
    assert model.blocks[0].layers[0].pooling is None


@pytest.mark.parametrize("strides", ["1, 1, 3, 2, 3", [1, 1, 3, 2, 3]])
def test_strides_as_text_or_list(strides):
    model = resnet18(strides, pooling_cls=DiffStride)
    assert model.strides == [1, 1, 3, 2, 3]
    pooling = [model.stem_pooling] + [
        block.layers[0].pooling for block in model.blocks[1:]
    ]
    assert [layer.strides[0] for layer in pooling] == [1, 3, 2, 3]


def test_text_with_pairs():
    model = resnet18("1x2, 1, 3x1.5, 2, 3", pooling_cls=DiffStride)
    assert model.strides == [(1, 2), 1, (3, 1.5), 2, 3]
    with pytest.raises(ValueError, match="`strides` must be numbers, or pairs"):
        resnet18("1, 1, 2x2x2, 2, 3")


def test_output_sizes_follow_the_strides():
    for pooling_cls, expected in (
        (None, 3),
        (SpatialPooling, 3),
        (FixedSpectralPooling, 2),
    ):
        model = Resnet(
            [4, 4, 8, 8], [1, 3, 2, 2], id_only=False, pooling_cls=pooling_cls
        )
        model.build((None, 32, 32, 3))
        assert model.bn_head.output.shape[1:3] == (expected, expected)


def test_stride_pairs():
    block = ResnetBlock(8, (2, 4), pooling_cls=None)
    assert block(images(1, 16, 16, 4)).shape == (1, 8, 4, 8)
    block = ResnetBlock(8, (2, 3.5), pooling_cls=FixedSpectralPooling)
    assert block(images(1, 16, 16, 4)).shape == (1, 8, 4, 8)


@pytest.mark.parametrize(
    "pooling_cls, channels",
    [
        (DiffStride, 4),
        (DiffStride, 16),
        (FixedSpectralPooling, 4),
        (SpatialPooling, 16),
    ],
)
def test_pooling_and_shortcut_convolution_commute(pooling_cls, channels):
    layer = ResidualLayer(8, strides=2, pooling_cls=pooling_cls, project=True)
    x = images(2, 15, 20, channels)
    y = array(layer(x))
    # The cheaper order was taken, which is a matter of channels.
    assert layer._pool_first == (channels <= 8)
    layer._pool_first = not layer._pool_first
    other = array(layer(x))
    np.testing.assert_allclose(other, y, atol=1e-5 * np.abs(y).max())


def test_a_pooling_that_does_not_commute_stays_behind_the_convolution():
    def max_pooling(strides, **kwargs):
        return keras.layers.MaxPooling2D(
            strides, strides, padding="same", **kwargs
        )

    layer = ResidualLayer(8, strides=2, pooling_cls=max_pooling, project=True)
    layer(images(1, 8, 8, 4))
    assert not layer._pool_first


def test_one_pooling_instance_serves_both_branches():
    layer = ResidualLayer(8, strides=2, pooling_cls=DiffStride, project=True)
    calls = []
    layer.build((None, 16, 16, 4))
    call = layer.pooling.call
    layer.pooling.call = lambda x: calls.append(x.shape[-1]) or call(x)
    layer(images(1, 16, 16, 4))
    assert sorted(calls) == [4, 8]
    strides = [v for v in layer.trainable_variables if "strides" in v.path]
    assert len(strides) == 1


def test_initialisation_and_penalties():
    model = Resnet([4, 8], [1, 2], weight_decay=0.5, pooling_cls=DiffStride)
    model.build((None, 16, 16, 1))
    kernels = [v for v in model.trainable_variables if v.name == "kernel"]
    # A stem, two convolutions in each of two layers, a shortcut, a head.
    assert len(kernels) == 1 + 4 + 1 + 1
    assert len(model.losses) == len(kernels) + 1  # and the dense bias
    expected = sum(0.5 * np.sum(np.square(array(k))) for k in kernels)
    np.testing.assert_allclose(float(sum(model.losses)), expected, rtol=1e-5)
    for layer in sublayers(model):
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
            assert layer.kernel_initializer.__class__.__name__ == "HeNormal"
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon) == (0.9, 1e-5)
    assert not Resnet([4, 8], [1, 2]).losses


def test_residual_layer_by_hand():
    layer = ResidualLayer(4, project=False)
    x = images(2, 6, 6, 4)
    y = layer(x)
    h = keras.ops.relu(layer.bn_in(x))
    h = keras.ops.relu(layer.bn_out(layer.conv_in(h)))
    np.testing.assert_allclose(
        array(y), x + array(layer.conv_out(h)), atol=1e-6
    )


def randomise(model):
    """As training would leave it: no variable is what it was made with."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        value = 1 + random.uniform(size=variable.shape)
        variable.assign(value.astype("float32"))


@pytest.mark.parametrize("pooling_cls", [None, SpatialPooling, CONFIGURED])
def test_save_and_load(pooling_cls, tmp_path):
    model = Resnet(
        [4, 4, 8], [1, 1, 2], num_output_classes=3, pooling_cls=pooling_cls
    )
    model.build((None, 16, 16, 1))
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    randomise(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = images(8, 16, 16, 1)
    np.testing.assert_allclose(
        array(loaded(x)), array(model(x)), rtol=1e-5, atol=1e-6
    )
    if pooling_cls is CONFIGURED:
        assert loaded.stem_pooling.smoothness_factor == 2.0
        assert loaded.stem_pooling.norm == "ortho"
    assert loaded.get_config() == model.get_config()


def old_layout(path):
    """Makes of a `.keras` file one of before version 0.2.

    `Resnet` was a model of the parts `stem`, `stem_pooling`, `blocks`,
    `bn_head` and `dense`, of which stem and pooling were saved in `layers`
    besides; one pooling layer stood for all of them in its config.
    """
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    config = json.loads(files["config.json"])
    saved = config["config"]
    if saved["pooling_cls"]:
        saved["pooling_cls"] = saved["pooling_cls"][0]
    files["config.json"] = json.dumps(config)
    weights = path.with_name("old.weights.h5")
    weights.write_bytes(files["model.weights.h5"])
    with h5py.File(weights, "r+") as file:
        layers = file["layers"]
        for name in list(layers):
            if name.startswith("resnet_block"):
                file.move(f"layers/{name}", f"blocks/{name}")
            elif name.startswith(("batch_norm", "dense")):
                file.move(
                    f"layers/{name}",
                    "dense" if name == "dense" else "bn_head",
                )
            elif name.startswith("global_average"):
                file.move(f"layers/{name}", "average")
    files["model.weights.h5"] = weights.read_bytes()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return weights


@pytest.mark.parametrize("pooling_cls", [None, CONFIGURED])
def test_files_of_the_old_layout_load(pooling_cls, tmp_path):
    def build():
        model = Resnet([4, 4, 8], [1, 2, 2], pooling_cls=pooling_cls)
        model.build((None, 12, 12, 1))
        return model

    model = build()
    randomise(model)
    path = tmp_path / "model.keras"
    model.save(path)
    weights = old_layout(path)
    with h5py.File(weights) as file:
        assert {"blocks", "bn_head", "dense"} <= set(file)
        assert "dense" not in file["layers"]
    loaded, other = keras.models.load_model(path), build()
    other.load_weights(weights)
    for each in (loaded, other):
        assert len(each.variables) == len(model.variables)
        for ours, theirs in zip(each.variables, model.variables, strict=True):
            np.testing.assert_array_equal(array(ours), array(theirs))
    if pooling_cls is not None:
        for layer in sublayers(loaded):
            if isinstance(layer, DiffStride):
                assert (layer.norm, layer.smoothness_factor) == ("ortho", 2.0)
        (block,) = loaded.blocks[:1]
        assert block.layers[0].pooling.strides == (2.0, 2.0)


def test_it_is_a_graph():
    model = Resnet([4, 8, 8], [1, 2, 1], pooling_cls=DiffStride)
    model.build((None, 16, 16, 1))
    assert [tuple(x.shape) for x in model.inputs] == [(None, 16, 16, 1)]
    assert model.output_shape == (None, 10)
    feature = model.get_layer("block_1").output
    assert feature.shape[-1] == 8
    x = images(2, 16, 16, 1)
    maps = keras.Model(
        model.inputs, [feature, model.get_layer("bn_head").output]
    )
    block, head = (array(y) for y in maps(x))
    y = model.stem(x)
    y = model.stem_pooling(y)
    np.testing.assert_allclose(block, array(model.blocks[0](y)), atol=1e-5)
    logits = model.dense(head.mean(axis=(1, 2)))
    np.testing.assert_allclose(array(model(x)), array(logits), atol=1e-4)


@pytest.mark.parametrize(
    "cls, args",
    [(ResidualLayer, (8,)), (ResnetBlock, (8,)), (Resnet, ([4, 8], [1, 2]))],
)
def test_config_keys_equal_the_signature(cls, args):
    instance = cls(*args)
    names = set(inspect.signature(cls.__init__).parameters)
    names -= {"self", "kwargs", "residual_layer_args"}
    config = instance.get_config()
    assert set(config) - {"name", "dtype", "trainable"} == names
    for name in names:
        assert hasattr(instance, name)


def test_block_config_keeps_the_arguments_of_its_layers():
    block = ResnetBlock(
        8, 2, pooling_cls=CONFIGURED, kernel_size=5, weight_decay=0.1
    )
    clone = ResnetBlock.from_config(block.get_config())
    layer = clone.layers[0]
    assert (layer.kernel_size, layer.weight_decay) == (5, 0.1)
    assert layer.pooling.smoothness_factor == 2.0


def test_output_activation():
    model = Resnet([4, 8], [1, 2], output_activation="softmax")
    y = array(model(images(3, 8, 8, 1)))
    np.testing.assert_allclose(y.sum(-1), 1.0, rtol=1e-5)


def test_inside_a_functional_model_of_unknown_size():
    inputs = keras.Input((None, None, 2))
    outputs = Resnet([4, 8], [1, 2], pooling_cls=DiffStride)(inputs)
    model = keras.Model(inputs, outputs)
    assert model.output_shape == (None, 10)
    if JAX:
        # A `Resnet` is static by itself, but what it is a part of is not.
        static_sizes(model)
    assert model.predict(images(2, 17, 12, 2), verbose=0).shape == (2, 10)


def test_mixed_precision_reaches_all_parts():
    policy = "mixed_bfloat16"
    model = Resnet([4, 8], [1, 2], pooling_cls=DiffStride, dtype=policy)
    y = model(images(2, 16, 16, 1))
    assert keras.backend.standardize_dtype(y.dtype) == "bfloat16"
    assert model.dtype_policy.name == policy
    for layer in sublayers(model):
        if not isinstance(layer, keras.layers.InputLayer):
            assert layer.dtype_policy.name == policy
    assert {v.dtype for v in model.trainable_variables} == {"float32"}


def test_channels_first_shapes():
    model = Resnet([4, 8], [1, 2], channels_first=True, pooling_cls=DiffStride)
    model.build((None, 3, 16, 16))
    assert model.stem.kernel.shape == (3, 3, 3, 4)
    assert model.blocks[0].compute_output_shape((None, 4, 16, 16)) == (
        None,
        8,
        None,
        None,
    )


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: Resnet([4, 8], [1, 2, 2]),
            "`filters` and `strides` must have one entry for the stem",
        ),
        (
            lambda: Resnet([4, 8], [1, 2], id_only=[True, False]),
            "`id_only` must be a boolean or one for each block",
        ),
        (
            lambda: resnet18([1, 2, 2, 2, 2]),
            r"`strides\[1\]` must be 1: that block consists of identity",
        ),
        (
            lambda: Resnet([4, 8], [1, 2.5]),
            "`strides` must be integers where convolutions do the striding",
        ),
        (
            lambda: resnet18("1, 1, two"),
            "`strides` must be numbers, or pairs such as 4x1",
        ),
        (
            lambda: ResidualLayer(8, strides=2),
            "`strides` must be 1 for a residual layer that does not project",
        ),
        (
            lambda: ResnetBlock(8, num_layers=0),
            "`num_layers` must be an integer >= 1",
        ),
        (
            lambda: ResidualLayer(8)(images(1, 8, 8, 4)),
            "does not project, so its input must have",
        ),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message) as caught:
        build()
    assert "Received" in str(caught.value)


class TestConfigs:
    """A config says what is made, also one that was edited."""

    def config(self):
        pooling = functools.partial(DiffStride, norm="forward")
        return Resnet([4, 8], [1, 2], pooling_cls=pooling).get_config()

    def test_edited_arguments_reach_the_pooling(self):
        config = {**self.config(), "strides": [1, 3], "channels_first": True}
        model = Resnet.from_config(config)
        assert [each.strides for each in model.pooling_layers] == [
            (1.0, 1.0),
            (3.0, 3.0),
        ]
        for each in model.pooling_layers:
            assert (each.norm, each.data_format) == (
                "forward",
                "channels_first",
            )
        config["pooling_cls"] = FixedSpectralPooling
        model = Resnet.from_config(config, custom_objects={})
        assert isinstance(model.stem_pooling, FixedSpectralPooling)

    def test_the_pooling_of_a_loaded_network_serves_another(self):
        loaded = Resnet(**self.config())
        other = Resnet([4, 8, 8], [1, 2, 2], pooling_cls=loaded.pooling_cls)
        assert [each.norm for each in other.pooling_layers] == ["forward"] * 3

    def test_a_callable_that_names_its_layers_itself(self, tmp_path):
        def pooling(strides, data_format=None, **_):
            return DiffStride(strides, data_format=data_format)

        model = Resnet([4, 8], [1, 2], pooling_cls=pooling)
        x = images(2, 12, 12, 1)
        expected = array(model(x))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(array(loaded(x)), expected, atol=1e-6)


def states(model):
    return [
        (layer.dtype_policy.name, layer.trainable)
        for layer in sublayers(model)
        if not isinstance(layer, keras.layers.InputLayer)
    ]


def a_network(**kwargs):
    model = Resnet(
        [4, 8], [1, 1.5], 3, pooling_cls=DiffStride, num_layers=1, **kwargs
    )
    model.build((None, 12, 12, 2))
    return model


def layers_in_a_graph():
    inputs = keras.Input((12, 12, 2))
    x = ResidualLayer(
        4, strides=1.5, pooling_cls=FixedSpectralPooling, project=True
    )(inputs)
    x = ResnetBlock(8, 1.5, pooling_cls=DiffStride, num_layers=1)(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(3)(x))


def quantized(build, mode):
    def make():
        model = build()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of layers that stay as they are
            model.quantize(mode)
        return model

    return make


def of_policies(build, change):
    def make():
        model = build()
        change(model)
        return model

    return make


def half_the_head(model):
    model.get_layer("dense").dtype_policy = "mixed_float16"
    model.blocks[0].layers[0].conv_in.dtype_policy = "mixed_bfloat16"


def half_within_layers(model):
    _, residual, block, *_ = model.layers
    residual.pooling.dtype_policy = "mixed_float16"
    block.layers[0].conv_out.dtype_policy = "mixed_bfloat16"


def not_trained(model):
    model.stem.trainable = False
    model.blocks[0].layers[0].conv_in.trainable = False
    model.pooling_layers[1].trainable = False


CHANGED = {
    "int8": quantized(a_network, "int8"),
    "int4": quantized(a_network, "int4"),
    "float8": quantized(a_network, "float8"),
    "int8, frozen": quantized(lambda: freeze(a_network()), "int8"),
    "int8, other models": quantized(layers_in_a_graph, "int8"),
    "int8 of mixed": quantized(lambda: a_network(dtype="bfloat16"), "int8"),
    "mixed": lambda: a_network(dtype="mixed_float16"),
    "head": of_policies(a_network, half_the_head),
    "within layers": of_policies(layers_in_a_graph, half_within_layers),
    "not trained": of_policies(a_network, not_trained),
    "none trained": of_policies(
        a_network, lambda model: setattr(model, "trainable", False)
    ),
}


SLOW = ("int4", "float8", "int8, frozen", "int8 of mixed")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name
        for name in CHANGED
        if not JAX or name == "not trained"
    ],
)
def test_what_became_of_the_parts_is_saved(name, tmp_path):
    model = CHANGED[name]()
    x = images(2, 12, 12, 2)
    expected = array(model(x)).astype("float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert states(loaded) == states(model)
    frozen = freeze(model)
    assert [p for p, _ in states(frozen)] == [p for p, _ in states(model)]
    for other in (loaded, frozen):
        actual = array(other(x)).astype("float32")
        np.testing.assert_allclose(actual, expected, atol=1e-2)


def test_a_config_of_parts_as_made_has_no_changes():
    assert "changed_parts" not in a_network().get_config()


@pytest.mark.parametrize("pooling_cls", [None, DiffStride])
def test_without_a_head(pooling_cls, tmp_path):
    strides = [1, 2, 1] if pooling_cls is None else [1, 2, 1.5]
    model = Resnet([4, 8, 8], strides, None, pooling_cls=pooling_cls)
    model.build((None, 12, 12, 2))
    assert model.layers[-1] is model.bn_head
    assert model.dense is model.average is None
    x = images(2, 12, 12, 2)
    maps = array(model(x))
    assert maps.ndim == 4 and maps.shape[-1] == 8
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.num_output_classes is None
    np.testing.assert_array_equal(array(loaded(x)), maps)
    # Maps are as large as the weights of this run happen to make them.
    assert relative_error(array(freeze(model)(x)), maps) < 1e-6
    with pytest.raises(ValueError, match="`output_activation` must be None"):
        Resnet([4, 8], [1, 2], None, output_activation="softmax")


def test_without_a_head_by_gin():
    from diffstride import config

    if BACKEND != "tensorflow":
        pytest.skip("the harness")
    with config.gin.unlock_config():
        config.gin.clear_config()
        config.gin.parse_config("resnet.Resnet.num_output_classes = None")
    try:
        model = config.gin.get_configurable("resnet.resnet18")()
    finally:
        config.gin.clear_config()
    assert model.dense is None


def test_transfer_learning():
    """The head of a trained network is replaced, its body is kept."""
    trained = a_network()
    randomise(trained)
    body = Resnet.from_config(
        {**trained.get_config(), "num_output_classes": None}
    )
    body.build((None, 12, 12, 2))
    for layer in body.layers:
        layer.set_weights(trained.get_layer(layer.name).get_weights())
    body.trainable = False
    model = keras.Sequential(
        [body, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)]
    )
    model.build((None, 12, 12, 2))
    before = [array(v) for v in body.variables]
    x = images(4, 12, 12, 2)
    np.testing.assert_allclose(
        array(body(x)),
        array(keras.Model(trained.inputs, trained.bn_head.output)(x)),
        rtol=1e-5,
    )
    static_sizes(model).compile("sgd", "mse")
    model.fit(x, np.ones((4, 2)), verbose=0)
    for variable, value in zip(body.variables, before, strict=True):
        np.testing.assert_array_equal(array(variable), value)
    assert len(model.trainable_variables) == 2


def test_class_activation_maps():
    """Grad-CAM: what in the last maps moves the score of a class."""
    model = a_network()
    features = keras.Model(model.inputs, model.get_layer("block_1").output)
    maps = array(features(images(2, 12, 12, 2)))
    head = keras.Sequential(
        [model.bn_head, model.average, model.dense, Score(1)]
    )
    _, gradient, _ = output_and_gradients(head, maps)
    assert gradient.shape == maps.shape
    weights = gradient.mean(axis=(1, 2), keepdims=True)
    cam = np.maximum((weights * maps).sum(-1), 0)
    assert cam.shape == maps.shape[:3] and cam.max() > 0


class Score(keras.layers.Layer):
    def __init__(self, label):
        super().__init__()
        self.label = label

    def call(self, logits):
        return logits[:, self.label]


@pytest.mark.parametrize(
    "make",
    [
        *(DiffStride, DiffStride1D, DiffStride3D, FixedSpectralPooling),
        *(SpatialPooling, lambda: ResidualLayer(4), lambda: ResnetBlock(4)),
        lambda: Resnet([4, 8], [1, 2]),
    ],
)
def test_what_keras_says_where_nothing_was_imported(make):
    saved = keras.saving.serialize_keras_object(make())
    module = importlib.import_module(saved["module"])
    assert hasattr(module, saved["class_name"])
    objects = keras.saving.get_custom_objects()
    ours = {key: objects[key] for key in objects if key[:10] == "diffstride"}
    for key in ours:
        del objects[key]
    try:
        with pytest.raises(TypeError) as caught:
            keras.saving.deserialize_keras_object(saved)
    finally:
        objects.update(ours)
    name, module = saved["class_name"], saved["module"]
    assert f"Could not locate class '{name}'" in str(caught.value)
    assert f"Full object config: {{'module': '{module}'" in str(caught.value)
    keras.saving.deserialize_keras_object(saved)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"filters": [True, 4]}, "filters.0."),
        ({"filters": [4, 0]}, "filters.1."),
        ({"filters": [4, -2.0]}, "filters.1."),
        ({"filters": [4, 2.5]}, "filters.1."),
        ({"filters": 5}, "filters"),
        ({"filters": "44"}, "filters"),
        ({"filters": None}, "filters"),
        ({"filters": [4, float("nan")]}, "filters.1."),
        ({"num_output_classes": 0}, "num_output_classes"),
        ({"num_output_classes": True}, "num_output_classes"),
        ({"num_output_classes": 2.5}, "num_output_classes"),
        ({"num_output_classes": "10"}, "num_output_classes"),
        ({"num_output_classes": [10]}, "num_output_classes"),
    ],
)
def test_numbers_of_channels_and_classes_that_cannot_be(arguments, expected):
    with pytest.raises(ValueError, match=f"`{expected}` must be") as error:
        Resnet(**{"filters": [4, 4], "strides": [1, 2], **arguments})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("filters", [3, 8])  # Fewer and more than the input.
def test_pooling_before_the_first_convolution(filters):
    layer = ResidualLayer(
        filters,
        strides=1.7,
        project=True,
        pooling_cls=CONFIGURED,
        pooling_placement="before",
    )
    x = np.random.RandomState(0).rand(2, 12, 9, 4).astype("float32")
    layer(x)  # Builds it.
    y = layer.conv_in(layer.pooling(layer.bn_in(x)))
    y = layer.conv_out(layer.bn_out(y)) + layer.conv_shortcut(layer.pooling(x))
    np.testing.assert_allclose(
        keras.ops.convert_to_numpy(layer(x)),
        keras.ops.convert_to_numpy(y),
        atol=1e-5,
    )


def test_where_to_pool_is_saved_and_saves_computation(tmp_path):
    costs = {}
    for placement in ("after", "before"):
        model = Resnet(
            [4, 4, 8],
            [1, 2, 2],
            pooling_cls=CONFIGURED,
            pooling_placement=placement,
        )
        model.build((None, 16, 16, 1))
        model.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert loaded.pooling_placement == placement
        assert loaded.blocks[0].layers[1].pooling_placement == placement
        costs[placement] = model_cost(loaded).macs
    assert costs["before"] < costs["after"]


def test_strided_convolutions_know_no_placement():
    models = []
    for placement in ("after", "before"):
        keras.utils.set_random_seed(0)
        model = Resnet([4, 4, 8], [1, 2, 2], pooling_placement=placement)
        models.append(model(np.ones((2, 8, 8, 1), "float32")))
    np.testing.assert_array_equal(*map(keras.ops.convert_to_numpy, models))


@pytest.mark.parametrize("cls", [ResidualLayer, ResnetBlock, Resnet])
@pytest.mark.parametrize("placement", ["between", None, 1, ["before"], ""])
def test_a_placement_that_cannot_be(cls, placement):
    arguments = {"filters": 4, "strides": 1}
    if cls is Resnet:
        arguments = {"filters": [4, 4], "strides": [1, 1]}
    with pytest.raises(ValueError, match="`pooling_placement` must be one of"):
        cls(**arguments, pooling_placement=placement)
