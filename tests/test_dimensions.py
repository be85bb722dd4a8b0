"""What one, two and three dimensions have in common, and what not."""

import keras
import numpy as np
import pytest
from maps import FIXED, FORMATS, JAX, LEARNED, apply, array, images

import diffstride
from diffstride import DiffStride, DiffStride1D, DiffStride3D, pooling
from diffstride.masks import RAMPS


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


def test_static_shapes():
    for rank in (1, 2, 3):
        sizes = (32, 31, 8)[:rank]
        nothing = (None,) * rank
        layer = LEARNED[rank](2.0, data_format="channels_last")
        assert layer.compute_output_shape((4, *sizes, 3)) == (4, *nothing, 3)
        layer = LEARNED[rank](2.0, cropping=False, data_format="channels_first")
        assert layer.compute_output_shape((4, 3, *sizes)) == (4, 3, *sizes)
    layer = FIXED[3]((2, 3, 4), data_format="channels_first")
    assert layer.compute_output_shape((4, 3, 32, None, 15)) == (
        (4, 3, 16, None, 3)
    )
    # A number in each axis but the last is even.
    assert layer.compute_output_shape((4, 3, 7, 11, 15)) == (4, 3, 2, 2, 3)
    layer = FIXED[1](3, data_format="channels_last")
    assert layer.compute_output_shape((4, 17, 3)) == (4, 5, 3)


@pytest.mark.parametrize("rank", [1] if JAX else [1, 3])
def test_save_and_load(rank, tmp_path):
    inputs = keras.Input((*(16, 10, 12)[:rank], 2))
    layer = LEARNED[rank](
        2.0, 1.5, ramp="inner", stride_lr_multiplier=3.0, norm="ortho"
    )
    x = FIXED[rank]([1.5, 2.0, 1.5][:rank], norm="forward")(inputs)
    model = keras.Model(inputs, layer(x))
    strides = [1.75, 2.5, 1.25][:rank]
    layer.stride_weights.assign(strides)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.layers[-1]) is LEARNED[rank]
    assert loaded.layers[-1].get_config() == layer.get_config()
    np.testing.assert_array_equal(
        array(loaded.layers[-1].stride_weights), strides
    )
    x = images(2, *inputs.shape[1:])
    np.testing.assert_allclose(array(loaded(x)), array(model(x)))


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
                f"`strides` must be a number >= 1 or {wanted}, for ({axes}), "
                f"up to 16777216. Received: strides={strides!r}"
            )


def test_strides_are_a_number_or_one_for_each_axis():
    for rank in (1, 2, 3):
        for cls in (LEARNED[rank], FIXED[rank]):
            assert cls(2).strides == (2.0,) * rank
            each = [2.0, 3.0, 4.0][:rank]
            assert cls(each).strides == tuple(each)
            assert cls(np.array(each)).strides == tuple(each)


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
