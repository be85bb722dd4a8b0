"""The three ramps: symmetries, gradients of strides and inputs, learning."""

import keras
import numpy as np
import oracle
import pytest
from gradients import relative_error
from keras import ops
from maps import (
    FIXED,
    FORMATS,
    JAX,
    LEARNED,
    TORCH,
    apply,
    array,
    flip,
    gradients,
    images,
)

from diffstride import DiffStride, FixedSpectralPooling
from diffstride.masks import RAMPS
from diffstride.resampling import NORMS

NEW_RAMPS = ("inner", "straight_through")
# Off the kinks, and off the quotients at which a size changes.
STRIDES = {1: (2.3,), 2: (2.3, 3.1), 3: (2.3, 1.7, 2.55)}


@pytest.mark.parametrize("norm", NORMS)
def test_straight_through_is_fixed_pooling_forward(norm):
    options = {"norm": norm, "data_format": FORMATS[norm == "ortho"]}
    for size in ((21, 13),) if JAX else ((21, 13), (32, 32), (1, 2), (3, 9)):
        x = images(2, 3, *size)
        every = ((2.1, 2.1), (9.0, 1.3), (1.0, 1.0), (2.0, 3.0))
        for strides in every[:2] if JAX else every:
            expected = apply(FixedSpectralPooling(strides, **options), x)
            ours = {**options, "ramp": "straight_through"}
            y = apply(DiffStride(strides, **ours), x)
            assert relative_error(y, expected) < 1e-6
            # Constants of NumPy in both: nothing is rounded otherwise.
            y = apply(DiffStride(strides, frozen=True, **ours), x)
            np.testing.assert_array_equal(y, expected)


def test_inner_commutes_with_flips_of_either_axis():
    # Its mask is symmetric, in even sizes as well: the outer ramp's is not.
    sizes = ((18, 24), (16, 16), (17, 10))
    for size in sizes[:1] if JAX else sizes:
        x = images(2, 3, *size)
        for axis in (2, 3):
            inner = DiffStride((2.0, 1.7), ramp="inner")
            np.testing.assert_allclose(
                apply(inner, flip(x, axis)),
                flip(apply(inner, x), axis),
                atol=1e-5,
            )
            if size[0] % 2 == 0:
                outer = DiffStride((2.0, 1.7))
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
    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize("smoothness", [1.0, 2.25, 4.0])
    @pytest.mark.parametrize("ramp", RAMPS)
    def test_of_strides_against_finite_differences(
        self, ramp, smoothness, cropping
    ):
        sizes = ((16, 16), (15, 20), (9, 7), (10, 12), (33, 11), (21,))
        if JAX:
            # Each smoothness has sizes of its own.
            sizes = {1.0: [(21,)], 2.25: [(9, 10, 13)], 4.0: [(15, 20)]}
            sizes = sizes[smoothness]
        elif smoothness == 2.25:
            sizes += ((9, 10, 13),)
        if not (JAX or TORCH):
            sizes = sizes[::2]
        for n, size in enumerate(sizes):
            if ramp == "outer" and min(size) < 2 * smoothness:
                continue
            options = {
                "smoothness": smoothness,
                "cropping": cropping,
                "ramp": ramp,
            }
            strides = STRIDES[len(size)]
            x = images(2, 2, *size)
            shape = oracle.diffstride(x, strides, **options).shape
            cotangent = images(*shape, seed=1)
            layer = LEARNED[len(size)](
                strides,
                smoothness,
                cropping,
                ramp=ramp,
                data_format=FORMATS[(n + cropping) % 2],
            )
            gradient = gradients(layer, x, cotangent)[2]
            expected = oracle_gradient(x, strides, cotangent, **options)
            scale = np.maximum(np.abs(expected), 1e-2 * np.abs(expected).max())
            np.testing.assert_allclose(
                gradient, expected, atol=1e-3 * scale.min(), rtol=1e-3
            )

    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize("ramp", RAMPS)
    @pytest.mark.parametrize(
        "keep_parity, size_step", [(False, 1), (False, 3), (True, 4)]
    )
    def test_where_sizes_are_rounded_otherwise(
        self, ramp, cropping, keep_parity, size_step
    ):
        sizes = ((16, 16), (9, 7), (15, 20), (21,), (9, 10, 13))
        if size_step > 1:
            sizes = sizes[3:4] if JAX else sizes[2:]
        for size in sizes[3:] if JAX and size_step == 1 else sizes:
            options = {
                "smoothness": 1.25,
                "cropping": cropping,
                "ramp": ramp,
                "keep_parity": keep_parity,
                "size_step": size_step,
            }
            for factor in (1.0, 0.88):
                strides = [factor * s for s in STRIDES[len(size)]]
                x = images(2, 2, *size)
                expected = oracle.diffstride(x, strides, **options)
                cotangent = images(*expected.shape, seed=1)
                learned = {**options, "smoothness_factor": 1.25}
                del learned["smoothness"]
                layer = LEARNED[len(size)](strides, **learned)
                assert relative_error(apply(layer, x), expected) < 1e-5
                np.testing.assert_allclose(
                    gradients(layer, x, cotangent)[2],
                    oracle_gradient(x, strides, cotangent, **options),
                    rtol=2e-3,
                )

    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize("ramp", RAMPS)
    @pytest.mark.parametrize("keep_parity", [False, True])
    @pytest.mark.parametrize("smallest", [1, 3])
    def test_where_another_size_is_the_smallest(
        self, ramp, cropping, keep_parity, smallest
    ):
        sizes = ((9, 8), (7, 7), (5, 10, 4))
        for size in sizes[:1] if JAX else sizes:
            options = {
                "smoothness": 1.25,
                "cropping": cropping,
                "ramp": ramp,
                "keep_parity": keep_parity,
            }
            # Nominal sizes just above 1, between 1 and 2, and above 3.
            strides = [size[0] / 1.1, size[1] / 1.6, size[-1] / 3.3][
                : len(size)
            ]
            x = images(2, 2, *size, mean=1.0)
            expected = oracle.diffstride(
                x, strides, smallest=smallest, **options
            )
            cotangent = images(*expected.shape, seed=1)
            layer = LEARNED[len(size)](
                strides,
                options.pop("smoothness"),
                smallest_size=smallest,
                **options,
            )
            options |= {"smoothness": 1.25, "smallest": smallest}
            assert relative_error(apply(layer, x), expected) < 1e-5
            gradient = gradients(layer, x, cotangent)[2]
            # The inner ramp keeps its gradient where it is held.
            if ramp != "inner" or smallest == 1:
                exact = oracle_gradient(x, strides, cotangent, **options)
                np.testing.assert_allclose(
                    gradient, exact, rtol=2e-3, atol=1e-5
                )
            if ramp == "outer":
                assert np.all((gradient[:2] != 0) == (smallest == 1))

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_of_a_single_sample_is_none(self, ramp):
        options = {"keep_parity": False, "smallest_size": 1, "ramp": ramp}
        x = images(2, 2, 9, 8, mean=1.0)
        layer = DiffStride((9.5, 12.0), 2.0, **options)
        gradient = gradients(layer, x)[2]
        np.testing.assert_array_equal(gradient, [0, 0])

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_of_a_single_sample_is_that_of_a_mean(self, ramp):
        options = {"keep_parity": False, "smallest_size": 1, "norm": "forward"}
        x = images(2, 3, 7, 6, mean=1.0)
        layer = DiffStride((7.0, 6.0), 0.0, ramp=ramp, **options)
        expected = x.mean(axis=(2, 3), keepdims=True)
        np.testing.assert_allclose(apply(layer, x), expected, rtol=1e-5)
        again = type(layer).from_config(layer.get_config())
        assert again.smallest_size == 1
        np.testing.assert_allclose(apply(again, x), expected, rtol=1e-5)

    @pytest.mark.parametrize("rank", [1, 2, 3])
    @pytest.mark.parametrize("data_format", FORMATS)
    def test_of_the_input_is_the_transpose(self, data_format, rank):
        # A linear layer: <y, c> = <x, dx> for its gradient dx at c.
        options = {"data_format": data_format}
        size = {1: (21,), 2: (13, 18), 3: (9, 10, 13)}[rank]
        layers = [FIXED[rank](STRIDES[rank], **options)]
        for ramp in RAMPS[:1] if JAX else RAMPS:
            layers.append(
                LEARNED[rank](STRIDES[rank], 2.0, ramp=ramp, **options)
            )
        for layer in layers:
            x = images(2, 3, *size, mean=1.0)
            c = images(*apply(layer, x).shape, seed=1, mean=1.0)
            y, dx, _ = gradients(layer, x, c)
            products = [(np.float64(a) * b).sum() for a, b in ((y, c), (x, dx))]
            np.testing.assert_allclose(*products, rtol=1e-5)

    def test_reaches_a_stride_at_or_below_the_bound(self):
        for stride in (1.0, 32 / 28) if JAX else (1.0, 1.1, 32 / 28):
            layer = DiffStride(stride)
            x = images(2, 2, 32, 32)
            c = images(*apply(layer, x).shape, seed=1)
            assert np.all(np.abs(gradients(layer, x, c)[2]) > 1e-3)

    def test_is_none_when_everything_is_kept(self):
        for size in (1, 4) if JAX else (1, 2, 4):
            gradient = gradients(DiffStride(1.0), images(1, 1, size, size))[2]
            np.testing.assert_array_equal(gradient, [0, 0])

    @pytest.mark.parametrize("smoothness", [1.0, 2.0, 4.0, 7.0])
    @pytest.mark.parametrize("ramp", NEW_RAMPS)
    def test_every_stride_of_every_size_has_one(self, ramp, smoothness):
        sizes = (2, 3, 4, 5, 7, 8, 16, 21, 33, 64)
        if not TORCH:
            sizes = sizes[1::4]
        if JAX:
            sizes = {1.0: (4,), 4.0: (9,)}.get(smoothness, ())
        for n, size in enumerate(sizes):
            strides = [1.0, 1.25, 2.0, 3.0, 4.7]
            strides += [size / 3, size / 2, size / 2 + 0.5, size, 1.5 * size]
            for stride in strides[n % 3 :: 3]:
                if stride < 1:
                    continue
                # The constant wave is to play no part.
                x = images(2, 2, size, size, seed=n)
                x -= x.mean(axis=2, keepdims=True)
                x -= x.mean(axis=3, keepdims=True)
                layer = DiffStride(stride, smoothness, ramp=ramp, norm="ortho")
                strides_ = layer.initial_strides
                shape = layer.output_sizes((size, size), strides_)
                cotangent = images(2, 2, *shape, seed=size)
                gradient = gradients(layer, x, cotangent)[2]
                least = 1e-4 * size / stride**2
                assert np.abs(gradient).min() > least, (size, stride, gradient)

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_without_smoothness_there_is_none(self, ramp):
        _, dx, gradient = gradients(
            DiffStride(2.0, 0.0, ramp=ramp), images(1, 2, 16, 9)
        )
        np.testing.assert_array_equal(gradient, [0, 0])
        assert np.all(np.isfinite(dx))

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_a_constant_map_gives_none(self, ramp):
        # No ramp attenuates the constant wave, whatever the stride.
        for size in ((16, 9),) if JAX else ((4, 4), (16, 9), (3, 1)):
            for stride in (1.5, 16.0) if JAX else (1.5, 2.0, 4.0, 16.0):
                layer = DiffStride(stride, 1.0, norm="forward", ramp=ramp)
                x = np.ones((1, 2, *size), "float32")
                gradient = gradients(layer, x)[2]
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
        x = images(1, 2, size, size)
        cotangent = images(1, 2, size, size, seed=1)
        layer = DiffStride(strides, smoothness, False, ramp="inner")
        gradient = gradients(layer, x, cotangent)[2]
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
        _, width = layer.output_sizes((1, size), layer.initial_strides)
        cotangent = np.zeros((1, 1, 1, width), "float32")
        cotangent[..., 0] = 1.0
        # k = 2 begins the ramp, and counts for -k as well. k = 3 is the Nyquist
        # frequency of the output, which stands alone, and 4 is cropped.
        gradient = gradients(layer, x, cotangent)[2]
        change = -size / (2 * stride**2) / smoothness
        expected = (2 + 1) / size * change
        np.testing.assert_allclose(gradient[1], expected, rtol=1e-4)

    @pytest.mark.parametrize("ramp", RAMPS)
    def test_multiplier(self, ramp):
        x = images(2, 3, 16, 11)
        layer = DiffStride(2.3, ramp=ramp)
        y = apply(layer, x)
        cotangent = images(*y.shape, seed=1)
        _, dx, gradient = gradients(layer, x, cotangent)
        assert np.abs(gradient).min() > 1e-3
        for factor in (25.0,) if JAX else (0.0, 0.1, 25.0):
            layer = DiffStride(2.3, ramp=ramp, stride_lr_multiplier=factor)
            scaled_y, scaled_dx, scaled = gradients(layer, x, cotangent)
            np.testing.assert_allclose(scaled_y, y, atol=1e-6)
            np.testing.assert_allclose(scaled_dx, dx, atol=1e-6)
            np.testing.assert_allclose(scaled, factor * gradient, rtol=1e-5)


def energy(y, x):
    return float((y.astype("float64") ** 2).sum() / x.size)


@pytest.mark.parametrize(
    "ramp, start", [(ramp, start) for ramp in RAMPS for start in (1.3, 6.0)]
)
@pytest.mark.skipif(
    not TORCH, reason="slow elsewhere, where the gradients are tested"
)
def test_a_stride_is_learned_from_above_and_below(ramp, start):
    # White noise has a spectrum that is flat: its energy tells the stride.
    x, solution = images(2, 1, 64, 64), 2.5
    options = {
        "ramp": ramp,
        "norm": "ortho",
        "shared_stride": True,
    }
    target = energy(apply(DiffStride(solution, **options), x), x)
    layer = DiffStride(start, **options)
    y = apply(layer, x)
    optimizer = keras.optimizers.Adam(0.2, beta_1=0.5, beta_2=0.9)
    for _ in range(60):
        excess = energy(y, x) - target
        if abs(excess) < 0.01 * target:
            break
        y, _, gradient = gradients(layer, x, 4 * excess * y / x.size)
        optimizer.apply(
            [ops.convert_to_tensor(gradient)], layer.trainable_variables
        )
        y = apply(layer, x)
    assert abs(excess) < 0.01 * target
    np.testing.assert_allclose(
        array(layer.stride_weights), [solution], atol=0.15
    )
