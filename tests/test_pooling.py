"""All layers against the oracle, and as layers of Keras."""

import inspect
import warnings

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from keras.src import testing
from maps import (
    BACKEND,
    FIXED,
    FORMATS,
    JAX,
    LEARNED,
    TOLERANCE,
    TORCH,
    apply,
    array,
    flip,
    gradients,
    images,
)

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    SpatialPooling,
    StrideConstraint,
    static_sizes,
)
from diffstride.masks import RAMPS
from diffstride.resampling import NORMS

# Examples of hypothesis: torch, the fastest, takes most of them.
EXAMPLES = {"torch": 300, "tensorflow": 48, "jax": 12}[BACKEND]
# Multiples of 1/16: no rounding can move an output size.
strides_ = st.integers(16, 160).map(lambda n: n / 16)
smoothness_ = st.integers(0, 24).map(lambda n: n / 4)


@st.composite
def sizes_and_strides(draw):
    rank = draw(st.sampled_from([1, 2, 2, 3]))
    size = st.integers(1, {1: 48, 2: 34, 3: 13}[rank])
    sizes = draw(st.tuples(*[size] * rank))
    return sizes, draw(st.tuples(*[strides_] * rank))


def fit_to_run(model):
    """Static on JAX, which has no other way; dynamic elsewhere."""
    return static_sizes(model) if JAX else model


class TestAgainstOracle:
    # Images have a mean: where little more than that is kept, errors are to be
    # relative to more than a sum that happens to be small.

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(
        shape=sizes_and_strides(),
        ramp=st.sampled_from(RAMPS),
        smoothness=smoothness_,
        cropping=st.booleans(),
        norm=st.sampled_from(NORMS),
        data_format=st.sampled_from(FORMATS),
        frozen=st.booleans(),
    )
    def test_learned(
        self, shape, ramp, smoothness, cropping, norm, data_format, frozen
    ):
        sizes, strides = shape
        x = images(2, 3, *sizes, mean=1.0)
        layer = LEARNED[len(sizes)](
            strides,
            smoothness,
            cropping,
            norm=norm,
            ramp=ramp,
            data_format=data_format,
            frozen=frozen,
        )
        expected = oracle.diffstride(
            x, strides, smoothness, cropping, norm=norm, ramp=ramp
        )
        assert relative_error(apply(layer, x), expected) < TOLERANCE

    @settings(max_examples=EXAMPLES // 3, deadline=None)
    @given(
        shape=sizes_and_strides(),
        ramp=st.sampled_from(RAMPS),
        lower=strides_,
        width=st.integers(0, 40),
    )
    def test_shared_and_limited(self, shape, ramp, lower, width):
        sizes, (stride, *_) = shape
        upper = lower + width / 16
        x = images(1, 2, *sizes, mean=1.0)
        layer = LEARNED[len(sizes)](
            stride,
            shared_stride=True,
            lower_limit_stride=lower,
            upper_limit_stride=upper,
            ramp=ramp,
        )
        expected = oracle.diffstride(
            x,
            (stride,) * len(sizes),
            lower=lower,
            upper=upper,
            shared=True,
            ramp=ramp,
        )
        assert relative_error(apply(layer, x), expected) < TOLERANCE
        assert layer.stride_weights.shape == (1,)

    @settings(max_examples=EXAMPLES // 2, deadline=None)
    @given(
        shape=sizes_and_strides(),
        norm=st.sampled_from(NORMS),
        data_format=st.sampled_from(FORMATS),
    )
    def test_fixed(self, shape, norm, data_format):
        sizes, strides = shape
        x = images(2, 3, *sizes, mean=1.0)
        layer = FIXED[len(sizes)](strides, norm=norm, data_format=data_format)
        y = apply(layer, x)
        assert relative_error(y, oracle.fixed(x, strides, norm)) < TOLERANCE
        given, expected = (3, *sizes), (3, *y.shape[2:])
        if data_format == "channels_last":
            given, expected = (*given[1:], 3), (*expected[1:], 3)
        assert layer.compute_output_shape((None, *given)) == (None, *expected)


class TestAnalytic:
    @pytest.mark.parametrize("ramp", RAMPS)
    @pytest.mark.parametrize("norm", NORMS)
    def test_constant_map(self, norm, ramp):
        options = {"norm": norm, "data_format": FORMATS[norm == "ortho"]}
        for size in ((31, 20),) if JAX else ((32, 32), (31, 20), (7, 9)):
            x = np.full((1, 2, *size), 3.0, "float32")
            for layer in (
                DiffStride((1.6, 2.5), 3.0, ramp=ramp, **options),
                FixedSpectralPooling((1.6, 2.5), **options),
            ):
                y = apply(layer, x)
                share = np.prod(y.shape) / np.prod(x.shape)
                power = {"backward": -1.0, "ortho": -0.5, "forward": 0.0}[norm]
                np.testing.assert_allclose(y, 3.0 * share**power, rtol=1e-5)

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_constant_maps_of_all_sizes_stay(self, ramp):
        strides = (1.0, 1.5, 2.0, 3.0, 6.5, 60.0)
        sizes = range(1, 41) if TORCH else (1, 2) if JAX else range(1, 41, 5)
        for n, size in enumerate(sizes):
            x = np.full((1, 2, size, 41 - size), 3.0, "float32")
            for m, cropping in enumerate((True, False)):
                layer = DiffStride(
                    (strides[n % 6], strides[(n // 6 + 3 * m) % 6]),
                    cropping=cropping,
                    norm="forward",
                    ramp=ramp,
                )
                np.testing.assert_allclose(apply(layer, x), 3.0, rtol=1e-5)

    @pytest.mark.parametrize("size", [(32, 32), (31, 31), (30, 27)])
    def test_band_limited_sine_survives(self, size):
        def sine(height, width):
            rows = np.sin(2 * np.pi * 3 * np.arange(height) / height + 0.4)
            columns = np.cos(2 * np.pi * 2 * np.arange(width) / width + 1.1)
            return np.outer(rows, columns)[None, None].astype("float32")

        for layer in (
            DiffStride(3.0, norm="forward"),
            FixedSpectralPooling(2.0, norm="forward"),
        ):
            y = apply(layer, sine(*size))
            assert y.shape[2] < size[0]
            np.testing.assert_allclose(y, sine(*y.shape[2:]), atol=1e-5)

    def test_a_sine_above_the_cut_vanishes(self):
        wave = np.cos(2 * np.pi * 15 * np.arange(32) / 32)
        x = np.broadcast_to(wave, (1, 1, 32, 32)).astype("float32")
        y = apply(DiffStride(4.0, smoothness_factor=2.0), x)
        np.testing.assert_allclose(y, 0.0, atol=1e-5)

    # Flips are about sample 0, as the grid of samples has it. A flip of the
    # width alone commutes where the vertical mask is symmetric: the release's
    # mask for even heights, one bin wider downwards, is not.

    @pytest.mark.parametrize("size", [(17, 24), (9, 23)])
    def test_flips_of_either_axis_commute_for_odd_heights(self, size):
        x = images(2, 3, *size)
        layer = DiffStride((2.0, 1.7))
        for axis in (2, 3):
            np.testing.assert_allclose(
                apply(layer, flip(x, axis)),
                flip(apply(layer, x), axis),
                atol=1e-5,
            )

    def test_flip_of_the_width_commutes_for_maps_constant_in_height(self):
        row = images(2, 3, 1, 24)
        x = np.repeat(row, 18, axis=2)
        for layer in (DiffStride((2.0, 1.7)), FixedSpectralPooling((2, 2.4))):
            np.testing.assert_allclose(
                apply(layer, flip(x, 3)), flip(apply(layer, x), 3), atol=1e-5
            )

    @pytest.mark.parametrize("size", [(18, 24), (17, 10), (16, 9)])
    def test_flip_of_both_axes_commutes(self, size):
        x = images(2, 3, *size)
        for layer in (DiffStride((2.0, 1.7)), FixedSpectralPooling((2, 2.4))):
            np.testing.assert_allclose(
                apply(layer, flip(x, 2, 3)),
                flip(apply(layer, x), 2, 3),
                atol=1e-5,
            )

    def test_the_release_mask_of_even_heights_is_lopsided(self):
        x = images(2, 3, 18, 24)
        layer = DiffStride((2.0, 1.7))
        difference = apply(layer, flip(x, 3)) - flip(apply(layer, x), 3)
        assert np.abs(difference).max() > 0.1

    @pytest.mark.parametrize(
        "size", [(1, 1), (2, 2), (3, 3), (4, 4), (1, 4), (3, 2)]
    )
    def test_everything_kept_is_the_identity(self, size):
        x = images(2, 2, *size)
        for layer in (
            DiffStride(1.0, norm=NORMS[sum(size) % 3]),
            DiffStride(1.0, 0.0),
        ):
            np.testing.assert_allclose(apply(layer, x), x, atol=1e-5)

    @pytest.mark.parametrize("size", [(16, 16), (15, 15), (16, 9), (31, 2)])
    def test_flat_mask_is_the_identity(self, size):
        x = images(2, 2, *size)
        for cropping in (True, False):
            layer = DiffStride(1.0, 0.0, cropping)
            np.testing.assert_allclose(apply(layer, x), x, atol=1e-5)

    def test_fixed_with_stride_one_is_the_identity_for_even_heights(self):
        x = images(2, 2, 16, 9)
        layer = FixedSpectralPooling(1.0)
        np.testing.assert_allclose(apply(layer, x), x, atol=1e-5)

    @pytest.mark.parametrize("ramp", ["outer", "inner"])
    def test_squares_stay_squares_of_their_parity(self, ramp):
        for size in range(1, 41) if TORCH else (1, 8, 15):
            for stride in (1.5, 50.0):
                x = np.ones((1, 1, size, size), "float32")
                y = apply(DiffStride(stride, ramp=ramp), x)
                assert y.shape[2] == y.shape[3]
                assert y.shape[2] % 2 == size % 2
                if ramp == "inner" and stride == 50.0 and size % 2 == 0:
                    assert y.shape[2:] == (2, 2)
                whole = DiffStride(stride, cropping=False, ramp=ramp)
                assert whole.compute_output_shape(x.shape) == x.shape

    @pytest.mark.parametrize("size", [1, 4] if JAX else [1, 2, 3, 4, 5])
    @pytest.mark.parametrize("smoothness", [0.0, 1.0, 4.0, 10.0])
    def test_tiny_maps_are_finite(self, size, smoothness):
        x = images(2, 2, size, size)
        for stride in (100.0,) if JAX else (1.0, 2.0, 100.0):
            layer = DiffStride(stride, smoothness, data_format="channels_first")
            y, dx, gradient = gradients(layer, x)
            assert np.isfinite(y).all() and np.isfinite(dx).all()
            assert np.isfinite(gradient).all()
            assert size > smoothness or y.shape == x.shape


class TestKerasBehaviour(testing.TestCase):
    """What Keras checks of all its layers; it is slow on JAX."""

    def run_learned(self, layer_cls, shape, **kwargs):
        self.run_layer_test(
            layer_cls,
            init_kwargs=kwargs,
            input_shape=shape,
            expected_num_trainable_weights=1,
            expected_num_non_trainable_weights=0,
            supports_masking=False,
            assert_built_after_instantiation=False,
            run_mixed_precision_check=not JAX,
            # JAX trains with `static_sizes` only; see test_static.py.
            run_training_check=not (JAX and kwargs.get("cropping", True)),
        )

    def test_learned(self):
        for data_format in FORMATS[:1] if JAX else FORMATS:
            shape = (2, 12, 10, 3)
            if data_format == "channels_first":
                shape = (2, 3, 12, 10)
            self.run_learned(DiffStride, shape, data_format=data_format)

    def test_learned_of_other_ranks(self):
        self.run_learned(DiffStride1D, (2, 12, 3), ramp="inner")
        if not JAX:
            self.run_learned(
                DiffStride3D, (2, 12, 6, 8, 3), ramp="straight_through"
            )

    def test_without_cropping(self):
        self.run_layer_test(
            DiffStride,
            init_kwargs={"cropping": False, "shared_stride": True},
            input_shape=(2, 12, 10, 3),
            expected_output_shape=(2, 12, 10, 3),
            expected_num_trainable_weights=1,
            supports_masking=False,
        )

    def test_fixed(self):
        sizes = (12, 13, 8)
        for rank, new_sizes in ((2, (6, 4)), (1, (6,)), (3, (6, 4, 4))):
            if JAX and rank != 2:
                continue
            self.run_layer_test(
                FIXED[rank],
                init_kwargs={"strides": (2.0, 3.0, 2.0)[:rank]},
                input_shape=(2, *sizes[:rank], 3),
                expected_output_shape=(2, *new_sizes, 3),
                expected_num_trainable_weights=0,
                expected_num_non_trainable_weights=1,
                supports_masking=False,
                run_mixed_precision_check=not JAX,
                run_training_check=not JAX,
            )

    @pytest.mark.skipif(
        BACKEND != "tensorflow", reason="Keras's own layer, but for arguments"
    )
    def test_spatial_pooling(self):
        self.run_layer_test(
            SpatialPooling,
            init_kwargs={},
            input_shape=(2, 12, 13, 3),
            expected_output_shape=(2, 6, 7, 3),
            expected_num_trainable_weights=0,
            supports_masking=False,
        )


def test_spatial_pooling_is_average_pooling():
    x = images(2, 9, 8, 3)
    np.testing.assert_allclose(
        array(SpatialPooling()(x)), x[:, ::2, ::2], atol=1e-6
    )
    for strides in (2.5, (2.5, 2.5), 0):
        with pytest.raises(ValueError, match="`strides` must be an integer"):
            SpatialPooling(strides=strides)
    ours = SpatialPooling(pool_size=3, strides=2)(x)
    keras_own = keras.layers.AveragePooling2D(3, 2, "same")(x)
    np.testing.assert_array_equal(array(ours), array(keras_own))


@pytest.mark.parametrize(
    "cls",
    [*LEARNED.values(), *FIXED.values(), SpatialPooling, StrideConstraint],
)
def test_config_keys_equal_the_signature(cls):
    names = set(inspect.signature(cls.__init__).parameters)
    names -= {"self", "kwargs"}
    instance = cls()
    config = instance.get_config()
    assert set(config) - {"name", "dtype", "trainable"} == names - {"trainable"}
    for name in names:
        assert hasattr(instance, name)
    assert cls.from_config(config).get_config() == config


def test_arguments_are_kept_in_the_config():
    arguments = {
        "strides": (2.5, 2.5),
        "smoothness_factor": 1.5,
        "cropping": False,
        "shared_stride": True,
        "lower_limit_stride": 1.25,
        "upper_limit_stride": 3.0,
        "data_format": "channels_first",
        "norm": "ortho",
        "ramp": "inner",
        "stride_lr_multiplier": 0.25,
        "frozen": True,
        "trainable": False,
    }
    config = DiffStride(**arguments).get_config()
    assert {name: config[name] for name in arguments} == arguments


def test_arguments_keep_the_release_order():
    names = list(inspect.signature(DiffStride.__init__).parameters)[1:9]
    assert names == [
        "strides",
        "smoothness_factor",
        "cropping",
        "trainable",
        "shared_stride",
        "lower_limit_stride",
        "upper_limit_stride",
        "data_format",
    ]
    names = list(inspect.signature(FixedSpectralPooling.__init__).parameters)
    assert names[1:3] == ["strides", "data_format"]


def test_default_data_format_is_that_of_keras():
    for layer_cls in (DiffStride, FixedSpectralPooling, SpatialPooling):
        assert layer_cls().data_format == keras.config.image_data_format()


def test_unknown_sizes_and_batches():
    for layer in (DiffStride(2.0), FixedSpectralPooling(2.0)):
        inputs = keras.Input((None, None, 3))
        model = fit_to_run(keras.Model(inputs, layer(inputs)))
        assert model.output_shape == (None, None, None, 3)
        shapes = ((1, 16, 16, 3), (5, 9, 30, 3), (2, 1, 4, 3))
        for shape in shapes[1:] if JAX else shapes:
            x = images(*shape)
            np.testing.assert_allclose(
                model.predict(x, verbose=0), array(layer(x)), atol=1e-5
            )


def test_static_shapes():
    assert DiffStride(2.0).compute_output_shape((None, 32, 32, 3)) == (
        (None, None, None, 3)
    )
    layer = DiffStride(2.0, cropping=False, data_format="channels_first")
    assert layer.compute_output_shape((None, 3, 32, 31)) == (None, 3, 32, 31)
    layer = FixedSpectralPooling((2, 3), data_format="channels_first")
    assert layer.compute_output_shape((4, 3, 32, None)) == (4, 3, 16, None)


def test_integer_images_are_welcome():
    x = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), "uint8")
    y = DiffStride(2.0)(x)
    expected = DiffStride(2.0)(x.astype("float32"))
    np.testing.assert_allclose(array(y), array(expected))


def test_a_call_never_changes_the_variable():
    layer = DiffStride(1.0)
    for training in (True, False):
        layer(images(1, 32, 32, 1), training=training)
        np.testing.assert_array_equal(array(layer.stride_weights), [1, 1])


def test_a_stride_that_is_not_a_number_shows_in_the_output():
    layer = DiffStride(2.0)
    layer.build((None, 16, 16, 1))
    layer.stride_weights.assign([np.nan, 2.0])
    y = array(layer(images(2, 16, 16, 1)))
    assert y.size and np.isnan(y).all()


def test_the_constraint_holds_the_variable_after_each_step():
    layer = DiffStride(
        (2.0, 3.0), lower_limit_stride=1.8, upper_limit_stride=2.5
    )
    model = keras.Sequential(
        [layer, keras.layers.ReLU(), keras.layers.GlobalAveragePooling2D()]
    )
    fit_to_run(model).compile(keras.optimizers.SGD(100.0), "mse")
    x = images(8, 16, 16, 1)
    for _ in range(3):
        model.fit(x, np.ones((8, 1)), epochs=1, verbose=0)
        strides = array(layer.stride_weights)
        assert np.all((strides >= 1.8) & (strides <= 2.5))
    constraint = StrideConstraint(1.5, None)
    np.testing.assert_allclose(constraint(np.array([1.0, 9.0])), [1.5, 9.0])
    constraint = StrideConstraint(None, 3.0)
    np.testing.assert_allclose(constraint(np.array([0.5, 9.0])), [0.5, 3.0])


def test_strides_are_not_trained_when_told_so():
    layer = DiffStride(2.0, trainable=False)
    layer.build((None, 16, 16, 3))
    assert not layer.trainable_variables
    assert layer.get_config()["trainable"] is False


def test_xla_is_never_turned_on_for_sizes_that_vary():
    # On JAX there is no other way: there, `call` objects.
    assert DiffStride().supports_jit == JAX
    assert DiffStride(cropping=False).supports_jit
    assert FixedSpectralPooling().supports_jit


def test_save_and_load_a_trained_model(tmp_path):
    inputs = keras.Input((20, 20, 1))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = DiffStride(2.0, 2.0, upper_limit_stride=5.0, norm="ortho")(x)
    x = keras.layers.ReLU()(x)
    x = FixedSpectralPooling((1.5, 2.0), norm="forward")(x)
    outputs = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, outputs)
    fit_to_run(model).compile(keras.optimizers.SGD(0.05), "mse")
    data = images(8, 20, 20, 1)
    model.train_on_batch(data, np.ones((8, 4)))
    strides = array(model.layers[2].stride_weights)
    assert np.all(strides != 2.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        array(loaded.layers[2].stride_weights), strides
    )
    np.testing.assert_allclose(array(loaded(data)), array(model(data)))


def test_fixed_pooling_refuses_weights_of_other_strides(tmp_path):
    def model(strides):
        return keras.Sequential(
            [keras.Input((8, 8, 1)), FixedSpectralPooling(strides)]
        )

    model(2.0).save_weights(tmp_path / "w.weights.h5")
    model(2.0).load_weights(tmp_path / "w.weights.h5")
    with pytest.raises(Exception, match="weights were saved with strides"):
        model(3.0).load_weights(tmp_path / "w.weights.h5")


@pytest.mark.parametrize(
    "kwargs, message",
    [
        (
            {"strides": (2, 2, 2)},
            r"`strides` must be a number >= 1 or a pair of them, for \(height",
        ),
        (
            {"strides": (2, 3), "shared_stride": True},
            "`strides` must be equal for all axes",
        ),
        (
            {"smoothness_factor": -1.0},
            "`smoothness_factor` must be a finite number >= 0 .* bins",
        ),
        (
            {"upper_limit_stride": 0.5},
            "`upper_limit_stride` must be a finite number >= 1, or None",
        ),
        (
            {"lower_limit_stride": 3, "upper_limit_stride": 2},
            "`upper_limit_stride` must be at least `lower_limit_stride`",
        ),
        ({"ramp": "Inner"}, "`ramp` must be one of .*'straight_through'"),
        ({"norm": "unitary"}, "`norm` must be one of .*'backward'"),
    ],
)
def test_errors_name_argument_value_and_remedy(kwargs, message):
    with pytest.raises(ValueError, match=message) as caught:
        DiffStride(**kwargs)
    name = list(kwargs)[-1 if "shared_stride" not in kwargs else 0]
    assert f"Received: {name}={kwargs[name]!r}" in str(caught.value)


def test_no_warnings_are_raised():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # Of Keras, which reads torch tensors and variables the old way.
        warnings.filterwarnings("ignore", "__array__ implementation")
        DiffStride(2.0)(images(1, 16, 16, 1))
