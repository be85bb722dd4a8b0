"""The ramps of DiffStride, in 2-D.

JAX compiles each operation anew for every size: it is given fewer of them, and
maps that are not cropped.
"""

import keras
import numpy as np
import oracle
import pytest
from gradients import output_and_gradients, relative_error
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import ops
from test_pooling import (
    FORMATS,
    NORMS,
    TOLERANCE,
    apply,
    flip,
    images,
    sizes_,
    smoothness_,
    strides_,
)

from diffstride import DiffStride, FixedSpectralPooling, masks, resampling

BACKEND = keras.backend.backend()
JAX = BACKEND == "jax"
RAMPS = masks.RAMPS
NEW_RAMPS = ("inner", "straight_through")


def to_format(x, data_format):
    return np.moveaxis(x, 1, -1) if data_format == "channels_last" else x


def stride_gradient(layer, x, cotangent):
    """For arrays (batch, channels, height, width)."""
    x, cotangent = (to_format(a, layer.data_format) for a in (x, cotangent))
    return output_and_gradients(layer, x, cotangent)[2][0]


class TestAgainstOracle:
    @settings(max_examples=4 if JAX else 60, deadline=None)
    @given(
        ramp=st.sampled_from(NEW_RAMPS),
        sizes=st.tuples(sizes_, sizes_),
        strides=st.tuples(strides_, strides_),
        smoothness=smoothness_,
        cropping=st.booleans(),
        norm=st.sampled_from(NORMS),
        data_format=st.sampled_from(FORMATS),
    )
    def test_outputs(
        self, ramp, sizes, strides, smoothness, cropping, norm, data_format
    ):
        x = images(2, 3, *sizes, mean=1.0)
        layer = DiffStride(
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

    @settings(max_examples=3 if JAX else 40, deadline=None)
    @given(
        ramp=st.sampled_from(NEW_RAMPS),
        sizes=st.tuples(sizes_, sizes_),
        stride=strides_,
        lower=strides_,
        width=st.integers(0, 40),
    )
    def test_shared_and_limited(self, ramp, sizes, stride, lower, width):
        upper = lower + width / 16
        x = images(1, 2, *sizes, mean=1.0)
        layer = DiffStride(
            stride,
            shared_stride=True,
            lower_limit_stride=lower,
            upper_limit_stride=upper,
            ramp=ramp,
        )
        expected = oracle.diffstride(
            x,
            (stride, stride),
            lower=lower,
            upper=upper,
            shared=True,
            ramp=ramp,
        )
        assert relative_error(apply(layer, x), expected) < TOLERANCE

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_frozen(self, ramp):
        for size in ((32, 32), (9, 14)):
            x = images(1, 2, *size, mean=1.0)
            layer = DiffStride((1.75, 2.5), ramp=ramp, frozen=True)
            expected = oracle.diffstride(x, (1.75, 2.5), ramp=ramp)
            assert relative_error(apply(layer, x), expected) < TOLERANCE


class TestSizes:
    strides = (1.0, 1.25, 1.5, 1.9375, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0, 61.0)

    def test_inner_takes_the_next_size_of_the_same_parity(self):
        for size in range(1, 100):
            for stride in self.strides:
                for smoothness in (0.0, 1.0, 4.0):
                    layer = DiffStride(stride, smoothness, ramp="inner")
                    (new_size, other) = layer.output_sizes(
                        (size, size), np.float32([stride, stride])
                    )
                    assert new_size == other
                    assert new_size % 2 == size % 2
                    nominal = min(max(size / stride, 2), size)
                    assert nominal <= new_size < nominal + 2

    def test_inner_is_as_small_as_fixed_where_that_is_even(self):
        met = 0
        for size in range(2, 200, 2):
            for stride in self.strides:
                if size / stride % 2 == 0:
                    met += 1
                    fixed = FixedSpectralPooling(stride, FORMATS[0])
                    layer = DiffStride(stride, ramp="inner")
                    new_sizes = layer.output_sizes(
                        (size, size), np.float32([stride, stride])
                    )
                    shape = fixed.compute_output_shape((1, size, size, 1))
                    assert new_sizes == shape[1:3]
        assert met > 200

    def test_straight_through_is_always_as_small_as_fixed(self):
        for size in range(1, 100):
            for stride in (*self.strides, 2.1, 1.1, 1.7):
                fixed = FixedSpectralPooling(stride, FORMATS[0])
                layer = DiffStride(stride, ramp="straight_through")
                new_sizes = layer.output_sizes(
                    (size, size), np.float32([stride, stride])
                )
                shape = fixed.compute_output_shape((1, size, size, 1))
                assert new_sizes == shape[1:3]

    @pytest.mark.parametrize("data_format", FORMATS)
    @pytest.mark.parametrize("ramp", NEW_RAMPS)
    def test_a_huge_stride_leaves_two_by_two(self, ramp, data_format):
        layer = DiffStride(1000.0, ramp=ramp, data_format=data_format)
        y = apply(layer, images(1, 2, 32, 32))
        assert y.shape == (1, 2, 2, 2)

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_without_cropping_sizes_stay(self, ramp):
        layer = DiffStride(2.0, cropping=False, ramp=ramp)
        assert apply(layer, images(1, 2, 17, 12)).shape == (1, 2, 17, 12)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("norm", NORMS)
def test_straight_through_is_fixed_pooling_forward(norm, data_format):
    options = {"norm": norm, "data_format": data_format}
    sizes = ((21, 13), (32, 32), (1, 2), (3, 9))
    for size in sizes[:1] if JAX else sizes:
        for strides in ((1.0, 1.0), (2.1, 2.1), (2.0, 3.0), (9.0, 1.3)):
            x = images(2, 3, *size)
            expected = apply(FixedSpectralPooling(strides, **options), x)
            options["ramp"] = "straight_through"
            y = apply(DiffStride(strides, **options), x)
            assert relative_error(y, expected) < 1e-6
            # Constants of NumPy in both: nothing is rounded otherwise.
            y = apply(DiffStride(strides, frozen=True, **options), x)
            np.testing.assert_array_equal(y, expected)
            del options["ramp"]


@pytest.mark.parametrize("ramp", RAMPS)
def test_a_constant_image_stays(ramp):
    sizes = (1, 2, 7) if JAX else range(1, 41)
    for n, size in enumerate(sizes):
        strides = (1.0, 1.5, 2.0, 3.0, 6.5, 60.0)
        x = np.full((1, 2, size, 41 - size), 3.0, "float32")
        for m, cropping in enumerate((True, False)):
            layer = DiffStride(
                (strides[n % 6], strides[(n // 6 + 3 * m) % 6]),
                cropping=cropping,
                norm="forward",
                ramp=ramp,
            )
            np.testing.assert_allclose(apply(layer, x), 3.0, rtol=1e-5)


def test_inner_commutes_with_flips_of_either_axis():
    # Its mask is symmetric, in even sizes as well: the outer ramp's is not.
    sizes = ((18, 24), (16, 16), (17, 10))
    for size in sizes[:1] if JAX else sizes:
        x = images(2, 3, *size)
        for strides in ((2.0, 1.7), (2.25, 3.0)):
            inner = DiffStride(strides, ramp="inner")
            for axis in (2, 3):
                np.testing.assert_allclose(
                    apply(inner, flip(x, axis)),
                    flip(apply(inner, x), axis),
                    atol=1e-5,
                )
        if size[0] % 2 == 0:
            outer = DiffStride((2.0, 1.7))
            for axis in (2, 3):
                difference = apply(outer, flip(x, axis)) - flip(
                    apply(outer, x), axis
                )
                assert np.abs(difference).max() > 0.1


def oracle_gradient(x, strides, cotangent, step=1e-4, side=0, **options):
    """Derivative of the oracle in each stride: central, or of one side."""
    strides = np.array(strides)
    if options["ramp"] == "straight_through":
        options["held"] = tuple(strides)

    def loss(axis, steps):
        moved = strides.copy()
        moved[axis] += steps * step
        y = oracle.diffstride(x, tuple(moved), **options)
        assert y.shape == cotangent.shape
        return (y * cotangent).sum()

    derivatives = []
    for axis in range(len(strides)):
        one, two, none = (loss(axis, n * (side or 1)) for n in (1, 2, 0))
        if side:
            derivatives.append(side * (4 * one - two - 3 * none) / (2 * step))
        else:
            other = loss(axis, -1)
            # Off the kinks the two sides agree.
            assert abs(one + other - 2 * none) < 0.01 * abs(one - other) + 1e-9
            derivatives.append((one - other) / (2 * step))
    return np.array(derivatives)


class TestGradients:
    @pytest.mark.parametrize("data_format", FORMATS)
    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize("smoothness", [1.0, 2.25, 4.0])
    @pytest.mark.parametrize("ramp", RAMPS)
    def test_of_strides_against_finite_differences(
        self, ramp, smoothness, cropping, data_format
    ):
        if JAX and cropping and data_format == "channels_first":
            pytest.skip("slow, and the same as elsewhere")
        sizes = ((16, 16), (15, 20), (9, 7), (10, 12), (33, 11))
        for size in sizes[:1] if JAX else sizes:
            if ramp == "outer" and min(size) < 2 * smoothness:
                continue
            options = {
                "smoothness": smoothness,
                "cropping": cropping,
                "ramp": ramp,
            }
            strides = (2.3, 3.1)
            x = images(2, 2, *size)
            shape = oracle.diffstride(x, strides, **options).shape
            cotangent = images(*shape, seed=1)
            layer = DiffStride(
                strides,
                smoothness,
                cropping,
                ramp=ramp,
                data_format=data_format,
            )
            gradient = stride_gradient(layer, x, cotangent)
            expected = oracle_gradient(x, strides, cotangent, **options)
            scale = np.maximum(np.abs(expected), 1e-2 * np.abs(expected).max())
            np.testing.assert_allclose(
                gradient, expected, atol=1e-3 * scale.min(), rtol=1e-3
            )

    @pytest.mark.parametrize("smoothness", [1.0, 2.0, 4.0, 7.0])
    @pytest.mark.parametrize("ramp", NEW_RAMPS)
    def test_every_stride_of_every_size_has_one(self, ramp, smoothness):
        sizes = (2, 3, 4, 5, 7, 8, 16, 21, 33, 64)
        for n, size in enumerate((4, 9) if JAX else sizes):
            strides = [1.0, 1.25, 2.0, 3.0, 4.7]
            strides += [size / 3, size / 2, size / 2 + 0.5, size, 1.5 * size]
            for stride in strides[n % 3 :: 3]:
                if stride < 1:
                    continue
                # The constant wave is to play no part.
                x = images(2, 2, size, size, seed=n)
                x -= x.mean(axis=2, keepdims=True)
                x -= x.mean(axis=3, keepdims=True)
                layer = DiffStride(
                    stride, smoothness, not JAX, ramp=ramp, norm="ortho"
                )
                cotangent = images(*apply(layer, x).shape, seed=size)
                gradient = stride_gradient(layer, x, cotangent)
                least = 1e-4 * size / stride**2
                assert np.abs(gradient).min() > least, (size, stride, gradient)

    @pytest.mark.parametrize("ramp", NEW_RAMPS)
    def test_without_smoothness_there_is_none(self, ramp):
        x = images(1, 2, 16, 9)
        layer = DiffStride(2.0, 0.0, ramp=ramp)
        gradient = stride_gradient(layer, x, 2 * apply(layer, x))
        np.testing.assert_array_equal(gradient, [0, 0])

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_a_constant_image_gives_none(self, ramp):
        # No ramp attenuates the constant wave, whatever the stride.
        sizes = ((4, 4),) if JAX else ((4, 4), (16, 9), (3, 1))
        for size in sizes:
            for stride in (1.5, 2.0, 4.0, 16.0):
                layer = DiffStride(
                    stride, 1.0, cropping=not JAX, norm="forward", ramp=ramp
                )
                x = np.ones((1, 2, *size), "float32")
                y = apply(layer, x)
                gradient = stride_gradient(layer, x, np.ones_like(y))
                np.testing.assert_allclose(gradient, 0.0, atol=1e-4)

    @pytest.mark.parametrize(
        "size, stride, smoothness",
        [
            (32, 2.0, 4.0),
            (16, 2.0, 2.0),
            (8, 2.0, 4.0),
            (32, 8.0, 2.0),
            (8, 2.0, 1.0),
            (8, 2.0, 0.75),
        ],
    )
    def test_of_inner_where_its_width_bends(self, size, stride, smoothness):
        # At T / 2 = R and at T / 2 = 1 a gradient is that of either side, not
        # something between, for backends not to differ.
        strides = (stride, stride)
        options = {
            "smoothness": smoothness,
            "cropping": False,
            "ramp": "inner",
        }
        x, cotangent = (
            images(1, 2, size, size),
            images(1, 2, size, size, seed=1),
        )
        layer = DiffStride(strides, smoothness, False, ramp="inner")
        gradient = stride_gradient(layer, x, cotangent)
        sides = [
            oracle_gradient(x, strides, cotangent, side=side, **options)
            for side in (1, -1)
        ]
        errors = [relative_error(gradient, side) for side in sides]
        assert min(errors) < 1e-3, (gradient, sides)

    @pytest.mark.parametrize("size", [8, 32])
    def test_of_outer_where_its_width_bends(self, size):
        # At `size / S = 2` the stride still has the gradient, as released.
        # Frequencies on either end of the ramp have it too.
        stride, smoothness = size / 2, 2.0
        x = np.zeros((1, 1, 1, size), "float32")
        x[..., 0] = 1.0
        layer = DiffStride((1.0, stride), smoothness, norm="forward")
        cotangent = np.zeros(apply(layer, x).shape, "float32")
        cotangent[..., 0] = 1.0
        # k = 2 begins the ramp, and counts for -k as well. k = 3 is the Nyquist
        # frequency of the output, which stands alone, and 4 is cropped.
        gradient = stride_gradient(layer, x, cotangent)
        change = -size / (2 * stride**2) / smoothness
        expected = (2 + 1) / size * change
        np.testing.assert_allclose(gradient[1], expected, rtol=1e-4)

    @pytest.mark.parametrize("ramp", RAMPS)
    @pytest.mark.parametrize("factor", [0.0, 0.1, 1.0, 25.0])
    def test_multiplier(self, factor, ramp):
        x = images(2, 3, 16, 11)
        layers = [
            DiffStride(2.3, ramp=ramp, stride_lr_multiplier=value)
            for value in (1.0, factor)
        ]
        y, scaled_y = (apply(layer, x) for layer in layers)
        np.testing.assert_array_equal(scaled_y, y)
        cotangent = images(*y.shape, seed=1)
        _, dx, (gradient,) = output_and_gradients(
            layers[0], *(to_format(a, FORMATS[0]) for a in (x, cotangent))
        )
        _, scaled_dx, (scaled,) = output_and_gradients(
            layers[1], *(to_format(a, FORMATS[0]) for a in (x, cotangent))
        )
        assert np.abs(gradient).min() > 1e-3
        np.testing.assert_allclose(scaled, factor * gradient, rtol=1e-6)
        np.testing.assert_array_equal(scaled_dx, dx)


def energy(y, x):
    return float((y.astype("float64") ** 2).sum() / x.size)


@pytest.mark.parametrize("start", [1.3, 6.0])
@pytest.mark.parametrize("ramp", RAMPS)
def test_a_stride_is_learned_from_above_and_below(ramp, start):
    # White noise has a spectrum that is flat: its energy tells the stride.
    x, solution = images(2, 1, 64, 64), 2.5
    options = {
        "ramp": ramp,
        "norm": "ortho",
        "cropping": not JAX,
        "shared_stride": True,
    }
    target = energy(apply(DiffStride(solution, **options), x), x)
    layer = DiffStride(start, **options)
    layer.build(to_format(x, layer.data_format).shape)
    optimizer = keras.optimizers.Adam(0.2, beta_1=0.5, beta_2=0.9)
    for _ in range(60):
        y = apply(layer, x)
        excess = energy(y, x) - target
        if abs(excess) < 0.01 * target:
            break
        gradient = stride_gradient(layer, x, 4 * excess * y / x.size)
        optimizer.apply(
            [ops.convert_to_tensor(gradient)], layer.trainable_variables
        )
    assert abs(excess) < 0.01 * target
    stride = ops.convert_to_numpy(layer.stride_weights)
    np.testing.assert_allclose(stride, [solution], atol=0.15)


def test_arguments_are_kept_in_the_config():
    for ramp in RAMPS:
        layer = DiffStride(ramp=ramp, stride_lr_multiplier=0.25)
        config = layer.get_config()
        assert config["ramp"] == ramp
        assert config["stride_lr_multiplier"] == 0.25
        assert DiffStride.from_config(config).get_config() == config


@pytest.mark.parametrize(
    "kwargs",
    [{"ramp": value} for value in ("Inner", "straight-through", None, 1)]
    + [
        {"stride_lr_multiplier": value}
        for value in (-0.1, float("nan"), float("inf"), "1", None, True)
    ],
)
def test_errors_name_argument_value_and_remedy(kwargs):
    ((name, value),) = kwargs.items()
    with pytest.raises(ValueError, match=f"`{name}` must be") as caught:
        DiffStride(**kwargs)
    assert f"Received: {name}={value}" in str(caught.value).replace("'", "")
