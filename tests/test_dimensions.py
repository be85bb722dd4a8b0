"""The layers in one and three dimensions."""

import inspect

import keras
import numpy as np
import oracle
import pytest
from gradients import output_and_gradients, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from keras.src import testing
from test_pooling import (
    FORMATS,
    NORMS,
    TOLERANCE,
    apply,
    images,
    smoothness_,
    strides_,
)

import diffstride
from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    FixedSpectralPooling1D,
    FixedSpectralPooling3D,
    pooling,
    masks,
    resampling,
)

# JAX compiles each operation anew for every size.
JAX = keras.backend.backend() == "jax"
RAMPS = masks.RAMPS
LEARNED = {1: DiffStride1D, 2: DiffStride, 3: DiffStride3D}
FIXED = {
    1: FixedSpectralPooling1D,
    2: FixedSpectralPooling,
    3: FixedSpectralPooling3D,
}
# Off the kinks, and off the quotients at which a size changes.
STRIDES = {1: (2.3,), 3: (2.3, 1.7, 2.55)}
SIZES = {1: (21,), 3: (9, 10, 13)}


@st.composite
def sizes_and_strides(draw):
    rank = draw(st.sampled_from([1, 3]))
    size = st.integers(1, 48 if rank == 1 else 13)
    sizes = draw(st.tuples(*[size] * rank))
    return sizes, draw(st.tuples(*[strides_] * rank))


class TestAgainstOracle:
    @settings(max_examples=5 if JAX else 100, deadline=None)
    @given(
        shape=sizes_and_strides(),
        ramp=st.sampled_from(RAMPS),
        smoothness=smoothness_,
        cropping=st.booleans(),
        norm=st.sampled_from(NORMS),
        data_format=st.sampled_from(FORMATS),
    )
    def test_learned(
        self, shape, ramp, smoothness, cropping, norm, data_format
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
        )
        expected = oracle.diffstride(
            x, strides, smoothness, cropping, norm=norm, ramp=ramp
        )
        assert relative_error(apply(layer, x), expected) < TOLERANCE

    @settings(max_examples=5 if JAX else 60, deadline=None)
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
        moved = (3, *sizes) if data_format == FORMATS[1] else (*sizes, 3)
        expected = (3, *y.shape[2:])
        if data_format == FORMATS[0]:
            expected = (*y.shape[2:], 3)
        assert layer.compute_output_shape((None, *moved)) == (None, *expected)

    @pytest.mark.parametrize("rank", [1, 3])
    def test_shared_and_limited(self, rank):
        x = images(1, 2, *SIZES[rank], mean=1.0)
        for ramp in RAMPS:
            layer = LEARNED[rank](
                1.2,
                2.0,
                shared_stride=True,
                lower_limit_stride=1.75,
                upper_limit_stride=3.0,
                ramp=ramp,
            )
            expected = oracle.diffstride(
                x,
                (1.2,) * rank,
                2.0,
                lower=1.75,
                upper=3.0,
                shared=True,
                ramp=ramp,
            )
            assert relative_error(apply(layer, x), expected) < TOLERANCE
            assert layer.stride_weights.shape == (1,)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize("ramp", RAMPS)
@pytest.mark.parametrize("rank", [1, 3])
def test_stride_gradient_against_finite_differences(
    rank, ramp, cropping, data_format
):
    if JAX and cropping:
        pytest.skip("slow, and the same as elsewhere")
    strides, step, smoothness = np.array(STRIDES[rank]), 1e-4, 2.0
    x = images(2, 2, *SIZES[rank])

    def run(strides):
        held = STRIDES[rank] if ramp == "straight_through" else None
        return oracle.diffstride(
            x, tuple(strides), smoothness, cropping, ramp=ramp, held=held
        )

    cotangent = images(*run(strides).shape, seed=1)
    layer = LEARNED[rank](
        STRIDES[rank], smoothness, cropping, ramp=ramp, data_format=data_format
    )
    both = x, cotangent
    if data_format == "channels_last":
        both = (np.moveaxis(a, 1, -1) for a in both)
    gradient = output_and_gradients(layer, *both)[2][0]
    assert gradient.shape == (rank,)
    for axis in range(rank):
        offset = step * np.eye(rank)[axis]
        difference = run(strides + offset) - run(strides - offset)
        expected = (difference * cotangent).sum() / (2 * step)
        assert abs(expected) > 0.1
        np.testing.assert_allclose(gradient[axis], expected, rtol=1e-3)


@pytest.mark.parametrize("rank", [1, 3])
def test_input_gradient_is_the_transpose(rank):
    # A linear layer: <y, c> = <x, dx> for its gradient dx at c.
    for data_format in FORMATS:
        shape = (3, *SIZES[rank])
        if data_format == "channels_last":
            shape = (*SIZES[rank], 3)
        options = {"data_format": data_format}
        layers = [FIXED[rank](STRIDES[rank], **options)]
        for ramp in RAMPS[:1] if JAX else RAMPS:
            layers.append(
                LEARNED[rank](STRIDES[rank], 2.0, ramp=ramp, **options)
            )
        for layer in layers:
            x = images(2, *shape, mean=1.0)
            c = images(*ops.shape(layer(x)), seed=1, mean=1.0)
            y, dx, _ = output_and_gradients(layer, x, c)
            products = [(np.float64(a) * b).sum() for a, b in ((y, c), (x, dx))]
            np.testing.assert_allclose(*products, rtol=1e-5)


class TestAcrossDimensions:
    @pytest.mark.parametrize("ramp", RAMPS)
    @pytest.mark.parametrize("data_format", FORMATS)
    def test_a_map_of_one_row_is_one_dimensional(self, data_format, ramp):
        options = {"ramp": ramp, "data_format": data_format}
        for size in (24,) if JAX else (24, 17, 3):
            x = images(2, 3, size)
            line = apply(DiffStride1D(2.3, 2.5, **options), x)
            layer = DiffStride((1.0, 2.3), 2.5, **options)
            plane = apply(layer, x[:, :, None])
            np.testing.assert_allclose(plane[:, :, 0], line, atol=1e-5)
            layer = DiffStride3D((1.0, 4.0, 2.3), 2.5, **options)
            volume = apply(layer, x[:, :, None, None])
            np.testing.assert_allclose(volume[:, :, 0, 0], line, atol=1e-5)

    @pytest.mark.parametrize("data_format", FORMATS)
    def test_a_depth_of_stride_one_is_left_alone(self, data_format):
        options = {
            "ramp": "straight_through",
            "norm": "forward",
            "data_format": data_format,
        }
        x = images(2, 3, 12, 15)
        volume = np.repeat(x[:, :, None], 6, axis=2)
        y = apply(DiffStride3D((1.0, 2.3, 1.6), **options), volume)
        slice_ = apply(DiffStride((2.3, 1.6), **options), x)
        assert y.shape == (*slice_.shape[:2], 6, *slice_.shape[2:])
        for depth in range(6):
            np.testing.assert_allclose(y[:, :, depth], slice_, atol=1e-5)

    @pytest.mark.parametrize("rank", [1, 2, 3])
    def test_constant_maps_stay(self, rank):
        for ramp in RAMPS:
            layer = LEARNED[rank](1.6, 1.5, norm="forward", ramp=ramp)
            y = apply(layer, np.full((1, 2, *(9, 8, 6)[:rank]), 3.0))
            np.testing.assert_allclose(y, 3.0, rtol=1e-5)

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_sizes(self, ramp):
        # Those of the last axis differ from the others' at most.
        for size in range(1, 40):
            for stride in (1.0, 1.7, 2.5, 9.0):
                sizes = {
                    rank: LEARNED[rank](stride, 2.0, ramp=ramp).output_sizes(
                        (size,) * rank, np.float32([stride] * rank)
                    )
                    for rank in (1, 2, 3)
                }
                assert sizes[1] == sizes[2][1:] == sizes[3][2:]
                assert sizes[2][:1] == sizes[3][:1] == sizes[3][1:2]
                if ramp == "straight_through":
                    fixed = oracle.fixed_sizes((size,) * 3, (stride,) * 3)
                    assert list(sizes[3]) == fixed


class TestKerasBehaviour(testing.TestCase):
    def test_learned(self):
        for rank, ramp in ((1, "outer"), (1, "inner"), (3, "straight_through")):
            self.run_layer_test(
                LEARNED[rank],
                # Keras compiles its `fit` on JAX.
                init_kwargs={"cropping": not JAX, "ramp": ramp},
                input_shape=(2, *(12, 6, 8)[:rank], 3),
                expected_num_trainable_weights=1,
                expected_num_non_trainable_weights=0,
                supports_masking=False,
                assert_built_after_instantiation=False,
                run_mixed_precision_check=not JAX,
            )

    def test_fixed(self):
        for rank, new_size in ((1, (6,)), (3, (6, 2, 4))):
            self.run_layer_test(
                FIXED[rank],
                init_kwargs={"strides": 2.0},
                input_shape=(2, *(12, 6, 8)[:rank], 3),
                expected_output_shape=(2, *new_size, 3),
                expected_num_trainable_weights=0,
                expected_num_non_trainable_weights=1,
                supports_masking=False,
            )


def test_static_shapes():
    for rank in (1, 3):
        sizes = (32, 31, 8)[:rank]
        nothing = (None,) * rank
        layer = LEARNED[rank](2.0, data_format="channels_last")
        assert layer.compute_output_shape((4, *sizes, 3)) == (4, *nothing, 3)
        layer = LEARNED[rank](2.0, cropping=False, data_format="channels_first")
        assert layer.compute_output_shape((4, 3, *sizes)) == (4, 3, *sizes)
    layer = FixedSpectralPooling3D((2, 3, 4), data_format="channels_first")
    assert layer.compute_output_shape((4, 3, 32, None, 15)) == (
        (4, 3, 16, None, 3)
    )
    # A number in each axis but the last is even.
    assert layer.compute_output_shape((4, 3, 7, 11, 15)) == (4, 3, 2, 2, 3)
    layer = FixedSpectralPooling1D(3, data_format="channels_last")
    assert layer.compute_output_shape((4, 17, 3)) == (4, 5, 3)


@pytest.mark.parametrize("rank", [1, 3])
def test_save_and_load(rank, tmp_path):
    inputs = keras.Input((*(16, 10, 12)[:rank], 2))
    layer = LEARNED[rank](
        2.0, 1.5, ramp="inner", stride_lr_multiplier=3.0, norm="ortho"
    )
    x = FIXED[rank]([1.5, 2.0, 1.5][:rank], norm="forward")(inputs)
    x = keras.layers.Dense(3)(x)
    model = keras.Model(inputs, layer(x))
    strides = [1.75, 2.5, 1.25][:rank]
    layer.stride_weights.assign(strides)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is LEARNED[rank]
    assert loaded.layers[-1].get_config() == layer.get_config()
    np.testing.assert_array_equal(
        ops.convert_to_numpy(loaded.layers[-1].stride_weights), strides
    )
    x = images(2, *inputs.shape[1:])
    np.testing.assert_allclose(
        ops.convert_to_numpy(loaded(x)), ops.convert_to_numpy(model(x))
    )


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_input_of_another_rank_is_refused(rank):
    for layer in (LEARNED[rank](), FIXED[rank]()):
        for other in {1, 2, 3} - {rank}:
            with pytest.raises(ValueError, match=f"expected ndim={rank + 2}"):
                layer(images(2, *(8,) * other, 3))


@pytest.mark.parametrize(
    "rank, wanted, axes, wrong",
    [
        (1, "a sequence of one", "steps", [(2, 2), (), 0.5, (0.5,)]),
        (2, "a pair of them", "height, width", [(2,), (2, 2, 2), (2, 0.5)]),
        (3, "3 of them", "depth, height, width", [(2, 2), (2,), (2, 2, 0)]),
    ],
)
def test_wrong_strides_are_refused(rank, wanted, axes, wrong):
    for strides in wrong:
        for cls in (LEARNED[rank], FIXED[rank]):
            with pytest.raises(ValueError) as caught:
                cls(strides)
            assert str(caught.value) == (
                f"`strides` must be a number >= 1 or {wanted}, for ({axes}). "
                f"Received: strides={strides!r}"
            )


def test_strides_are_a_number_or_one_for_each_axis():
    for rank in (1, 2, 3):
        for cls in (LEARNED[rank], FIXED[rank]):
            assert cls(2).strides == (2.0,) * rank
            each = [2.0, 3.0, 4.0][:rank]
            assert cls(each).strides == tuple(each)
            assert cls(np.array(each)).strides == tuple(each)


@pytest.mark.parametrize("cls", [*LEARNED.values(), *FIXED.values()])
def test_config_keys_equal_the_signature(cls):
    names = set(inspect.signature(cls.__init__).parameters)
    names -= {"self", "kwargs"}
    config = cls().get_config()
    assert set(config) - {"name", "dtype", "trainable"} == names - {"trainable"}
    for name in names:
        assert hasattr(cls(), name)
    assert cls.from_config(config).get_config() == config


@pytest.mark.parametrize(
    "base, layers",
    [
        (pooling.BaseDiffStride, LEARNED),
        (pooling.BaseFixedSpectralPooling, FIXED),
    ],
)
def test_dimensions_differ_in_their_rank_alone(base, layers):
    for rank, cls in layers.items():
        assert cls.__bases__ == (base,)
        assert cls.rank == rank
        own = {name for name in vars(cls) if not name.startswith("__")}
        assert own == {"rank"}
        assert getattr(diffstride, cls.__name__) is cls
        assert (
            keras.saving.get_registered_object(f"diffstride>{cls.__name__}")
            is cls
        )
    assert issubclass(base, pooling.BaseSpectralPooling)
