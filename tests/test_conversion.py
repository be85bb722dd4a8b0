"""Conversion of models: exact where it puts back what was there."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import ops
from maps import BACKEND, JAX, array

import diffstride
from diffstride import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    convert,
    freeze,
    harden,
)
from diffstride.conversion.policies import pool_alone, window_then_pool
from diffstride.internals import sublayers
from diffstride.profiling import pooling_layers

layers = keras.layers
SUBSAMPLING = {
    1: layers.MaxPooling1D,
    2: layers.MaxPooling2D,
    3: layers.MaxPooling3D,
}
KEEP_AVERAGES = {
    getattr(layers, f"AveragePooling{rank}D"): window_then_pool
    for rank in SUBSAMPLING
}
# Graphs are walked alike on all backends: the others repeat the core of it.
on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="the same there, and slower"
)
# TensorFlow has no convolutions in this format on a CPU.
channels_first = pytest.param(
    "channels_first",
    marks=pytest.mark.skipif(BACKEND == "tensorflow", reason="no such conv"),
)


def subsample(strides, data_format):
    """What is left of a strided layer once its windows run at stride 1."""
    return SUBSAMPLING[len(strides)](1, strides, data_format=data_format)


def randomised(model, seed=0):
    """Gives each weight another value, so that no mistake cancels."""
    generator = np.random.default_rng(seed)
    for variable in model.variables:
        if "float" not in variable.dtype:
            continue
        shape = variable.shape
        if variable.name in ("moving_variance", "variance", "gamma"):
            value = generator.uniform(0.5, 1.5, shape)
        elif variable.name == "kernel" or "kernel" in variable.name:
            value = generator.normal(0, 1 / np.sqrt(np.prod(shape[:-1])), shape)
        else:
            value = generator.normal(0, 0.1, shape)
        variable.assign(value)
    return model


def batch(model, number=2):
    generator = np.random.default_rng(1)
    sequential = isinstance(model, keras.Sequential)
    return keras.tree.map_structure(
        lambda x: generator.normal(size=(number, *x.shape[1:])).astype(
            "float32"
        ),
        model.inputs[0] if sequential else model.input,
    )


def outputs(model, x):
    return [array(y) for y in keras.tree.flatten(model(x, training=False))]


def assert_same(model, other, x=None):
    x = batch(model) if x is None else x
    pairs = list(zip(outputs(model, x), outputs(other, x), strict=True))
    for one, two in pairs:
        assert one.std() > 1e-3  # Of zeros everything would be the same.
        # On torch Keras's mean is of single precision, whatever it is given.
        atol = 1e-7 if one.dtype == np.float64 else 1e-5
        np.testing.assert_allclose(one, two, atol=atol)


def assert_exact(model, converted=None, **arguments):
    """Converts with what puts back the same; returns model and report."""
    randomised(model)
    new, report = convert(
        model, to=subsample, policies=KEEP_AVERAGES, **arguments
    )
    assert_same(model, new)
    done = [change for change in report.changes if change.became]
    assert len(done) == (converted or len(report.changes)) > 0, str(report)
    assert not set(map(id, model.variables)) & set(map(id, new.variables))
    return new, report


def graph(rank=2, size=12, data_format="channels_last", **kwargs):
    """Each kind of strided layer, with branches and padding."""

    def layer(kind, *args, **more):
        return getattr(layers, f"{kind}{rank}D")(
            *args, data_format=data_format, **more
        )

    shape = (size, size + 1, size - 1)[:rank]
    first = data_format == "channels_first"
    inputs = keras.Input((2, *shape) if first else (*shape, 2), **kwargs)
    x = layer("Conv", 4, 3, strides=2, padding="same", name="stem")(inputs)
    y = layer("ZeroPadding", 1)(x)
    y = layer("Conv", 4, 3, strides=2, activation="relu", name="main")(y)
    z = layer("MaxPooling", 1, 2, name="short")(x)
    x = layers.Add()([y, z])
    a = layer("Conv", 3, 1, strides=2, name="one")(x)
    b = layer("Conv", 3, 1, strides=2, name="two")(x)
    return keras.Model(inputs, [layers.Concatenate(1 if first else -1)([a, b])])


@pytest.mark.parametrize("data_format", ["channels_last", channels_first])
@pytest.mark.parametrize("rank,size", [(1, 13), (2, 12), (2, 15), (3, 8)])
def test_putting_back_the_same_is_exact(rank, size, data_format):
    if BACKEND != "tensorflow" and (rank, size) != (2, 12):
        pytest.skip("the same there, and slower")
    if JAX and data_format == "channels_last":
        pytest.skip("the same as in the other format")
    model = graph(rank, size, data_format)
    new, report = assert_exact(model)
    names = {layer.name for layer in sublayers(new)}
    assert {"stem", "main", "one", "two", "stem_stride"} <= names
    # One layer for both branches; one call before both 1x1 convolutions.
    kinds = [type(layer) for layer in sublayers(new)]
    assert kinds.count(SUBSAMPLING[rank]) == 3
    assert not any("ZeroPadding" in x.became for x in report.changes[1:])


CHAINS = {
    "max same": lambda: [layers.MaxPooling2D(3, 2, "same")],
    "max valid": lambda: [layers.MaxPooling2D(2)],
    "max of 4": lambda: [layers.MaxPooling2D((4, 3), (3, 2), "same")],
    "average": lambda: [layers.AveragePooling2D(2, 2)],
    "depthwise": lambda: [
        layers.DepthwiseConv2D(3, 2, "same", depth_multiplier=2)
    ],
    "separable": lambda: [layers.SeparableConv2D(5, 4, 2, padding="same")],
    "valid": lambda: [layers.Conv2D(4, 3, 2)],
    "patches": lambda: [layers.Conv2D(4, 4, 4), layers.LayerNormalization()],
    "asymmetric": lambda: [
        layers.ZeroPadding2D(((0, 1), (2, 0)), name="pad"),
        layers.DepthwiseConv2D(3, 2),
    ],
    "too wide": lambda: [layers.ZeroPadding2D(4), layers.Conv2D(3, 3, 2)],
    "uneven": lambda: [layers.MaxPooling2D(2, (2, 1), "same")],
    "two": lambda: [
        layers.Conv2D(4, 5, 2, "same", activation="relu"),
        layers.MaxPooling2D(3, 2, "same"),
    ],
}


@on_tensorflow
@pytest.mark.parametrize("size", [12, 13])
@pytest.mark.parametrize("name", CHAINS)
def test_chains_are_exact(name, size):
    chain = [keras.Input((size, size + 1, 3)), *CHAINS[name]()]
    # Negative everywhere: what is padded with zeros would be the maximum.
    chain[1:1] = [layers.Rescaling(1.0, -5.0)]
    model = keras.Sequential(chain)
    new, _ = assert_exact(model)
    assert [layer.name for layer in new.layers if layer.weights] == [
        layer.name for layer in model.layers if layer.weights
    ]


@on_tensorflow
def test_sequences():
    model = keras.Sequential(
        [
            keras.Input((20, 3)),
            layers.Conv1D(4, 3, 2, padding="causal"),
            layers.SeparableConv1D(4, 3, 2, padding="same"),
            layers.DepthwiseConv1D(3, 2),
        ]
    )
    assert_exact(model)


def nested():
    """A model in a model, called twice, with a strided layer inside."""
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            layers.Conv2D(2, 3, 2, "same", name="conv"),
            layers.BatchNormalization(name="norm"),
        ],
        name="inner",
    )
    inner.get_layer("norm").trainable = False
    body_input = keras.Input((12, 12, 2))
    body = keras.Model(body_input, ops.relu(inner(body_input)), name="body")
    one = keras.Input((12, 12, 2), name="one")
    two = keras.Input((12, 12, 2), name="two")
    shared = layers.Dense(3, name="shared")
    x = shared(body(one)) - shared(body(two))
    return keras.Model({"one": one, "two": two}, {"x": x, "y": ops.square(x)})


@on_tensorflow
def test_models_inside_and_shared_layers():
    model = nested()
    model.get_layer("shared").trainable = False
    new, _ = assert_exact(model)
    assert len(list(sublayers(new))) == len(list(sublayers(model))) + 2
    assert len(new.weights) == len(model.weights)
    assert [v.path for v in new.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    inner = new.get_layer("body").get_layer("inner")
    assert isinstance(inner, keras.Sequential)
    assert inner.get_layer("conv").strides == (1, 1)


def deep(data_format):
    """Models behind strided layers: in a row, called twice, of two inputs."""
    first = data_format == "channels_first"

    def maps(size, channels, name=None):
        shape = (channels, size, size) if first else (size, size, channels)
        return keras.Input(shape, name=name)

    def conv(filters, size, strides):
        return layers.Conv2D(
            filters, size, strides, "same", data_format=data_format
        )

    x = inputs = maps(24, 2)
    # It needs the size, which no stride changes there.
    flat = keras.Sequential([maps(24, 2), layers.Flatten(), layers.Dense(3)])
    y = flat(x)
    inner = keras.Sequential([maps(12, 4), conv(4, 3, 2)], name="inner")
    stem = keras.Sequential([maps(24, 2), conv(4, 3, 2), inner], name="stem")
    x = stem(x)
    block = keras.Sequential([maps(6, 4), conv(4, 3, 1)], name="block")
    x = block(block(x))
    one, two = maps(6, 4, "one"), maps(6, 4, "two")
    meet = keras.Model({"one": one, "two": two}, one * two, name="meet")
    x = meet({"one": x, "two": layers.Activation("sigmoid")(x)})
    x = keras.Sequential([maps(6, 4), conv(4, 2, 2)], name="down")(x)
    x = layers.GlobalAveragePooling2D(data_format)(x)
    return randomised(keras.Model(inputs, layers.Concatenate()([x, y])))


@pytest.mark.parametrize("data_format", ["channels_last", channels_first])
def test_models_inside_follow_strides_that_move(data_format):
    if JAX:
        pytest.skip("the same there, and slower")
    model = deep(data_format)
    kept, report = convert(model, to=subsample)
    assert_same(model, kept)
    kept_paths, paths = (
        {v.path for v in each.variables} for each in (kept, model)
    )
    assert kept_paths == paths
    assert len(report.changes) == 3 and all(c.became for c in report.changes)
    new, _ = convert(model)
    assert isinstance(new.get_layer("stem"), keras.Sequential)
    x = batch(model)
    before = outputs(new, x)[0]
    for number, layer in enumerate(pooling_layers(new)):
        layer.stride_weights.assign([1.3 + number / 4, 1.6])
    assert abs(outputs(new, x)[0] - before).max() > 1e-3
    assert_same(new, freeze(new), x)
    for to in ("spectral", "strided"):
        hardened = harden(new, to, verbose=False)
        assert np.isfinite(outputs(hardened, x)[0]).all()


@on_tensorflow
def test_a_model_inside_may_be_called_on_maps_of_two_sizes():
    inner = keras.Sequential(
        [keras.Input((None, None, 2)), layers.Conv2D(2, 3, padding="same")]
    )
    x = inputs = keras.Input((16, 16, 2))
    x = inner(layers.Cropping2D(4)(inner(x)))
    x = layers.Conv2D(3, 3, 2, "same")(x)
    model = randomised(keras.Model(inputs, x))
    kept, _ = convert(model, to=subsample)
    assert_same(model, kept)
    assert convert(model)[0](batch(model)).shape[0] == 2


@on_tensorflow
def test_weights_of_the_source_stay_its_own():
    model = randomised(graph())
    before = model.get_weights()
    new, _ = convert(model)
    new.set_weights([0 * w for w in new.get_weights()])
    for old, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, now)


@on_tensorflow
def test_dtype_policies_are_kept():
    inputs = keras.Input((12, 12, 2))
    half = layers.Conv2D(2, 3, 2, "same", dtype="mixed_float16", name="half")
    x = layers.Conv2D(2, 3, 2, "same", name="full")(half(inputs))
    new, _ = convert(keras.Model(inputs, x))
    for name, dtype in (("half", "mixed_float16"), ("full", "float32")):
        for each in (name, f"{name}_stride"):
            assert new.get_layer(each).dtype_policy.name == dtype
    assert new.get_layer("half").variable_dtype == "float32"


@on_tensorflow
def test_layers_of_one_s_own_survive():
    class Plus(layers.Layer):
        def build(self, shape):
            self.plus = self.add_weight(name="plus", shape=(shape[-1],))

        def call(self, x):
            return x + self.plus

    inputs = keras.Input((12, 12, 2))
    x = Plus()(layers.MaxPooling2D()(inputs))
    x = layers.Lambda(lambda x: 2 * x)(x)
    x = layers.TimeDistributed(layers.Dense(3))(x)
    assert_exact(keras.Model(inputs, x))


def learned_model():
    x = inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(x)
    y = layers.Conv2D(6, 3, 2, "same", name="main")(x)
    x = layers.Add()([y, layers.Conv2D(6, 1, 2, name="short")(x)])
    # Of two pooling layers in a row the first has no say.
    x = layers.Conv2D(6, 3, padding="same", activation="relu")(x)
    x = layers.AveragePooling2D(2, name="average")(x)
    x = layers.Conv2D(6, 3, activation="relu")(x)
    x = layers.GlobalAveragePooling2D()(x)
    return randomised(keras.Model(inputs, layers.Dense(3)(x)))


@pytest.fixture(scope="module")
def learned():
    return convert(learned_model())


@on_tensorflow
def test_what_learns_is_shared_where_branches_meet(learned):
    model, report = learned
    first, second = pooling_layers(model)
    assert type(first) is type(second) is DiffStride
    assert first.norm == "forward" and first.smoothness_factor == 1
    assert diffstride.check(model) == []
    assert [change.strides for change in report.changes] == [(2.0, 2.0)] * 3
    main, short, average = report.changes
    assert main.became == "ZeroPadding2D, Conv2D, DiffStride"
    assert short.became == "that of main, Conv2D"
    assert average.became == "DiffStride"


@on_tensorflow
def test_the_report_counts(learned):
    model, report = learned
    source = learned_model()
    assert report.macs_before == diffstride.model_cost(source).macs
    assert report.macs_after == diffstride.model_cost(model).macs
    main = report.changes[0]
    assert main.macs_before == 8 * 8 * 9 * 4 * 6
    assert main.macs_after > 4 * main.macs_before
    lines = str(report).splitlines()
    assert len(lines) == 5 and lines[0].split()[:2] == ["layer", "was"]
    nothing, dry = convert(source, dry_run=True)
    assert nothing is None and str(dry) == str(report)


@on_tensorflow
def test_max_pooling_on_an_even_map_survives_what_comes_after(tmp_path):
    """Its padding is an operation, not a layer."""
    inputs = keras.Input((12, 12, 2))
    x = layers.MaxPooling2D(3, 2, "same")(inputs)
    new, _ = convert(keras.Model(inputs, x), FixedSpectralPooling)
    new.save(tmp_path / "model.keras")
    assert_same(new, keras.models.load_model(tmp_path / "model.keras"))
    new, _ = convert(keras.Model(inputs, x))
    assert_same(new, freeze(new))
    assert harden(new, "strided", verbose=False).output_shape[1:3] == (6, 6)


def test_training_saving_and_what_comes_after(learned, tmp_path):
    model, _ = learned
    copy = diffstride.surgery.rebuilt(model)
    copy.set_weights(model.get_weights())
    x = batch(model, 4)
    if JAX:
        diffstride.static_sizes(copy)
    # Compiled it takes its time; the slow tests have that.
    copy.compile(keras.optimizers.SGD(0.01), "mse", run_eagerly=not JAX)
    before = [array(w) for w in copy.trainable_variables]
    copy.fit(x, np.ones((4, 3)), batch_size=4, epochs=2, verbose=0)
    for old, new in zip(before, copy.trainable_variables, strict=True):
        assert (old != array(new)).any(), new.path
    copy.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert_same(copy, loaded, x)
    assert_same(copy, freeze(copy), x)
    if not JAX:
        for to in ("spectral", "strided"):
            assert harden(copy, to, verbose=False).count_params()


@on_tensorflow
def test_pooling_before_the_convolution():
    model = graph(size=16)
    after, first = convert(model)
    before, second = convert(model, where="before")
    assert outputs(before, batch(model))[0].shape[1:3] <= (16, 16)
    assert second.macs_after < first.macs_after
    assert second.changes[0].became == "DiffStride, Conv2D"
    assert after.count_params() == before.count_params()


@on_tensorflow
def test_fixed_spectral_pooling_finds_the_same_grid():
    """Of smooth maps it gives the samples that the strided layer gives.

    Were the grids one sample apart, they would differ by a third of the range.
    """
    inputs = keras.Input((32, 32, 1))
    conv = layers.Conv2D(1, 3, 2, "same", use_bias=False)
    model = keras.Model(inputs, conv(inputs))
    conv.kernel.assign(np.eye(9)[4].reshape(3, 3, 1, 1))
    new, _ = convert(model, to=FixedSpectralPooling)
    wave = np.cos(2 * np.pi * 3 * np.arange(32) / 32 + 0.4)
    x = (wave[:, None] * wave).reshape(1, 32, 32, 1).astype("float32")
    kept = np.s_[:, 2:-2, 2:-2]
    one, two = outputs(model, x)[0][kept], outputs(new, x)[0][kept]
    shifted = outputs(model, np.roll(x, 1, (1, 2)))[0][kept]
    assert abs(one - two).max() < 0.12 < 0.3 < abs(one - shifted).max()


def converted_names(report):
    return {change.layer for change in report.changes if change.became}


@on_tensorflow
def test_what_is_chosen():
    model = graph()
    everything = {"stem", "main", "short", "one", "two"}

    def chosen(**arguments):
        _, report = convert(model, subsample, dry_run=True, **arguments)
        return converted_names(report)

    assert chosen() == everything
    assert chosen(include=["stem"]) == {"stem"}
    assert chosen(exclude="stem") == everything - {"stem"}
    assert chosen(min_channels=3) == everything - {"stem"}
    assert chosen(include=lambda layer: layer.name in ("one", "two")) == {
        "one",
        "two",
    }
    # Branches follow, or none of them does.
    assert chosen(exclude=layers.MaxPooling2D) == everything - {
        "main",
        "short",
    }
    _, report = convert(model, subsample, exclude="short", dry_run=True)
    reasons = {change.layer: change.skipped for change in report.changes}
    assert reasons["short"] == "in `exclude`"
    assert "meets another at add" in reasons["main"]


@on_tensorflow
def test_strides_and_factories():
    model = graph(size=16)

    def begin(strides):
        new, report = convert(
            model, FixedSpectralPooling, strides, dry_run=True
        )
        return [change.strides[0] for change in report.changes]

    assert begin("keep") == [2, 2, 2, 2, 2]
    assert begin(1.5) == [1.5] * 5
    assert begin((3, 2)) == [3] * 5
    assert begin({"stem": 3, "o*": 1.5}) == [3, 2, 2, 1.5, 1.5]
    assert begin(lambda layer: 3 if layer.name == "main" else "keep") == [
        2,
        3,
        3,
        2,
        2,
    ]
    new, _ = convert(
        model, functools.partial(DiffStride, ramp="inner", norm="ortho")
    )
    for layer in pooling_layers(new):
        assert (layer.ramp, layer.norm) == ("inner", "ortho")
    line = keras.Sequential([keras.Input((12, 2)), layers.MaxPooling1D()])
    assert isinstance(convert(line)[0].layers[-1], DiffStride1D)
    new, report = convert(line, lambda strides: DiffStride(), dry_run=True)
    assert report.changes[0].skipped == "DiffStride takes 4 dimensions"


@on_tensorflow
def test_policies_of_one_s_own():
    model = keras.Sequential(
        [keras.Input((12, 12, 2)), layers.MaxPooling2D(3, 2, "same")]
    )

    def activated(site):
        return [*site.dense(), layers.ReLU(name="relu"), site.pooling]

    for policy, kinds in (
        (pool_alone, "DiffStride"),
        (activated, "pad, MaxPooling2D, ReLU, DiffStride"),
        (None, ""),
    ):
        _, report = convert(model, policies={layers.MaxPooling2D: policy})
        assert report.changes[0].became == kinds
    with pytest.raises(ValueError, match="`site.pooling` in it"):
        convert(model, policies={layers.MaxPooling2D: lambda site: []})


@on_tensorflow
def test_inputs_of_unknown_size():
    inputs = keras.Input((None, None, 2))
    x = layers.Conv2D(3, 3, 2, "same")(inputs)
    model = randomised(keras.Model(inputs, x))
    with pytest.raises(ValueError, match="`input_shape` must be given"):
        convert(model)
    new, _ = convert(model, to=subsample, input_shape=(12, 10, 2))
    assert new.input_shape == (None, None, None, 2)
    x = np.random.default_rng(0).normal(size=(2, 8, 14, 2)).astype("float32")
    assert_same(model, new, x)


def flat():
    return keras.Sequential(
        [
            keras.Input((12, 12, 2)),
            layers.Conv2D(2, 3, 2, "same"),
            layers.Flatten(name="flat"),
            layers.Dense(3),
        ]
    )


@on_tensorflow
def test_heads_of_any_size_are_no_obstacle():
    """As in MobileNetV3: weights of channels, and a mean that keeps axes."""
    inputs = keras.Input((12, 12, 2))
    x = layers.Conv2D(4, 3, 2, "same", name="conv")(inputs)
    weights = layers.GlobalAveragePooling2D(keepdims=True)(x)
    weights = layers.Conv2D(4, 1, activation="sigmoid")(weights)
    x = layers.Multiply()([x, weights])
    x = layers.GlobalMaxPooling2D(keepdims=True)(x)
    x = layers.Reshape((4,))(layers.Conv2D(4, 1)(x))
    _, report = convert(keras.Model(inputs, x))
    assert converted_names(report) == {"conv"}


class Own(keras.Model):
    def __init__(self):
        super().__init__()
        self.conv = layers.Conv2D(2, 3, 2, "same")

    def call(self, x):
        return ops.relu(self.conv(x))


@on_tensorflow
def test_what_cannot_be_converted_says_what_to_do():
    with pytest.raises(ValueError, match=r"flat of .*include_top=False"):
        convert(flat())
    assert_exact(flat())  # Sizes stay what they are.
    own = Own()
    with pytest.raises(ValueError, match="must be built"):
        convert(own)
    own(np.zeros((1, 12, 12, 2), "float32"))
    with pytest.raises(ValueError, match=r"keras.Model\(inputs, model.call"):
        convert(own, input_shape=(12, 12, 2))
    inputs = keras.Input((12, 12, 2))
    assert_exact(keras.Model(inputs, own.call(inputs)))
    with pytest.raises(ValueError, match="own.*keras.Model"):
        convert(keras.Model(inputs, own(inputs)))
    for arguments in (
        {"to": "DiffStride"},
        {"to": DiffStride()},
        {"to": lambda strides: None},
        {"where": "between"},
        {"strides": 0.5},
        {"include": "nothing"},
        {"exclude": 3},
        {"min_channels": -1},
    ):
        (name,) = arguments
        with pytest.raises(ValueError, match=f"`{name}` must be"):
            convert(graph(), **arguments)


@on_tensorflow
def test_what_is_out_of_reach_is_reported():
    inputs = keras.Input((2, 12, 12, 2))
    x = layers.TimeDistributed(layers.Conv2D(2, 3, 2, name="conv"))(inputs)
    report = convert(keras.Model(inputs, x), dry_run=True)[1]
    assert "inside of time_distributed" in report.changes[0].skipped
    inputs = keras.Input((12, 12, 2))
    x = layers.AveragePooling2D(12)(inputs)
    report = convert(keras.Model(inputs, x), dry_run=True)[1]
    assert "whole maps" in report.changes[0].skipped
    for size, reason in ((8, ""), (10, "pads differently")):
        inputs = keras.Input((size, size, 2))
        conv = layers.Conv2D(2, 3, 2, "same", name="conv")
        model = keras.Model(inputs, conv(conv(inputs)))
        _, report = convert(model, subsample, dry_run=True)
        assert reason in report.changes[0].skipped
        assert bool(reason) == bool(report.changes[0].skipped)


FAMILIES = {
    "ResNet50": 8,
    "ResNet50V2": 8,
    "DenseNet121": 5,
    "EfficientNetB0": 5,
    "MobileNetV2": 5,
    "VGG16": 5,
    "ConvNeXtTiny": 4,
}


@pytest.fixture
def doubles():
    """In single precision, sums in another order differ by up to 3e-5."""
    with contextlib.ExitStack() as stack:
        if JAX:
            import jax

            stack.enter_context(jax.enable_x64(True))
        keras.config.set_dtype_policy("float64")
        yield
        keras.config.set_dtype_policy("float32")


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 75])
@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_exact(name, size, doubles):
    model = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(size, size, 3)
    )
    _, report = assert_exact(model)
    assert "float32" not in {variable.dtype for variable in model.variables}
    assert len(report.changes) == FAMILIES[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families_train(name):
    if BACKEND != "tensorflow" and name not in ("MobileNetV2", "VGG16"):
        pytest.skip("slow")
    model = getattr(keras.applications, name)(
        include_top=False, weights=None, input_shape=(64, 64, 3), pooling="avg"
    )
    new, _ = convert(randomised(model))
    new = keras.Model(new.input, layers.Dense(3)(new.output))
    if JAX:
        diffstride.static_sizes(new)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Without batch normalisation gradients fade: SGD would move no stride.
    fade = name in ("VGG16", "ConvNeXtTiny")
    rule = keras.optimizers.Adam if fade else keras.optimizers.SGD
    new.compile(rule(1e-3), loss, jit_compile=JAX)
    before = [array(layer.stride_weights) for layer in pooling_layers(new)]
    x = batch(new, 4)
    history = new.fit(x, np.arange(4) % 3, batch_size=4, epochs=3, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    for old, layer in zip(before, pooling_layers(new), strict=True):
        # Only the mean of the last map counts, which no stride changes.
        last = layer.name == "block5_pool_stride"
        assert last or (old != array(layer.stride_weights)).all()
    assert_same(new, freeze(new), x)
