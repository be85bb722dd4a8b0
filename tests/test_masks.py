"""Strides in force, output sizes and masks, by themselves."""

import math

import numpy as np
import oracle
import pytest
from keras import ops
from maps import JAX, array

from diffstride import masks
from diffstride.masks import HardCrop, LowPass

STRIDES = (1.0, 1.25, 1.5, 1.9375, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0, 61.0)


def tensor(value, dtype="float32"):
    return ops.convert_to_tensor(np.array(value, dtype))


def band_of(size, stride, smoothness, ramp="outer", cropping=True):
    """The band of the first of two axes."""
    low_pass = LowPass(smoothness, ramp, cropping=cropping)
    strides = np.array([stride, stride], "float32")
    return low_pass.bands((size, size), strides)[0]


class TestUsedStrides:
    @pytest.mark.parametrize(
        "size, smoothness, expected",
        [(32, 4.0, 32 / 28), (5, 4.0, 5.0), (4, 4.0, 1.0), (3, 4.0, 1.0)],
    )
    def test_smallest(self, size, smoothness, expected):
        unknown = ops.convert_to_tensor(np.int32(size))
        assert masks.smallest_stride(size, smoothness) == expected
        np.testing.assert_allclose(
            array(masks.smallest_stride(unknown, smoothness)),
            expected,
            rtol=1e-6,
        )
        for ramp in ("inner", "straight_through"):
            assert masks.smallest_stride(size, smoothness, ramp) == 1.0
            assert masks.smallest_stride(unknown, smoothness, ramp) == 1.0

    @pytest.mark.parametrize("make", [np.float32, tensor])
    def test_limits_clip_then_the_bound_lifts(self, make):
        limited = LowPass(4.0, lower_limit=2.0, upper_limit=3.0)
        used = limited.used((32, 8), make([1.5, 9.0]))
        np.testing.assert_allclose(array(used), [2.0, 3.0])
        # The smallest stride of the map wins over the upper limit.
        limited = LowPass(4.0, lower_limit=1.0, upper_limit=3.0)
        used = limited.used((32, 5), make([1.0, 1.0]))
        np.testing.assert_allclose(array(used), [32 / 28, 5.0])

    @pytest.mark.parametrize("ramp", ["inner", "straight_through"])
    def test_other_ramps_lift_to_one(self, ramp):
        used = LowPass(4.0, ramp, None).used((32, 5), np.float32([0.5, 1.01]))
        np.testing.assert_allclose(used, [1.0, 1.01])

    def test_rounding_takes_none_below_the_bound(self):
        used = [LowPass(4.0).used((n,), np.float32([1])) for n in range(5, 300)]
        bounds = [np.float32(n / (n - 4.0)) for n in range(5, 300)]
        np.testing.assert_array_equal(np.concatenate(used), bounds)
        for n in (5, 32, 71):
            used = array(LowPass(4.0).used((n,), tensor([1.0])))
            assert used[0] == bounds[n - 5]

    @pytest.mark.parametrize("sizes", [(32,), (32, 8), (8, 32, 16)])
    def test_a_shared_stride_takes_the_largest_bound(self, sizes):
        used = LowPass(4.0).used(sizes, tensor([1.0]))
        assert used.shape == (len(sizes),)
        largest = 32 / 28 if sizes == (32,) else 2.0
        np.testing.assert_allclose(array(used), [largest] * len(sizes))


class TestSizes:
    @pytest.mark.parametrize("smoothness", [0.0, 0.5, 1.0, 4.0, 7.5])
    def test_agree_with_the_masks(self, smoothness):
        for stride in (1.0, 1.7, 2.0, 5.0, 100.0):
            for size in (*range(1, 36), 64, 69):
                band = band_of(size, stride, smoothness)
                assert isinstance(band.output_size, int)
                kept = int((band.negative > 0).sum())
                expected = 2 * kept - 1 if size % 2 else 2 * (kept - 1)
                assert band.output_size == expected
                assert band.output_size % 2 == size % 2
                assert 1 <= band.output_size <= size

                band = band_of(size, stride, smoothness, "inner")
                kept = int((band.negative > 0).sum())
                # Its outermost sample may carry nothing.
                assert 2 * kept - 1 <= band.output_size + 1 <= 2 * kept + 2

    @pytest.mark.parametrize("smoothness", [0.0, 1.0, 4.0])
    def test_inner_takes_the_next_size_of_the_same_parity(self, smoothness):
        low_pass = LowPass(smoothness, "inner")
        for size in range(1, 70):
            for stride in STRIDES:
                strides = np.float32([stride, stride])
                output, other = low_pass.output_sizes((size, size), strides)
                assert output == other
                assert output % 2 == size % 2
                nominal = min(max(size / stride, 2), size)
                assert nominal <= output < nominal + 2
                if nominal % 2 == 0 and size % 2 == 0:
                    crop = HardCrop((stride, stride))
                    assert crop.output_sizes((size, size)) == (output, other)

    @pytest.mark.parametrize("smallest", [1, 2, 3])
    @pytest.mark.parametrize("smoothness", [0.0, 0.5, 4.0])
    @pytest.mark.parametrize("ramp", masks.RAMPS)
    def test_of_any_parity_hold_what_has_a_weight(
        self, ramp, smoothness, smallest
    ):
        low_pass = LowPass(
            smoothness, ramp, keep_parity=False, smallest_size=smallest
        )
        for size in range(1, 40):
            for stride in (*STRIDES, 1.7):
                strides = np.float32([stride])
                (band,) = low_pass.bands((size,), strides)
                kept = int((band.negative > 0).sum())
                assert band.output_size // 2 + 1 == kept
                assert min(size, smallest) <= band.output_size <= size
                if ramp == "inner":
                    (used,) = low_pass.used((size,), strides)
                    least = max(math.ceil(size / used), smallest)
                    assert band.output_size == min(size, least)

    @pytest.mark.parametrize("ramp", masks.RAMPS)
    @pytest.mark.parametrize("smallest", [1, 2, 3, 4])
    def test_where_parity_stays_the_smallest_is_the_next_of_it(
        self, ramp, smallest
    ):
        low_pass = LowPass(0.0, ramp, smallest_size=smallest)
        for size in range(4, 20):
            strides = np.float32([2 * size])
            (output,) = low_pass.output_sizes((size,), strides)
            expected = {
                "outer": 2 * math.ceil(smallest / 2) - size % 2,
                "inner": smallest + (size - smallest) % 2,
                # The last axis of fixed pooling has any size.
                "straight_through": smallest,
            }
            assert output == min(expected[ramp], size)

    def test_straight_through_has_those_of_fixed_pooling(self):
        low_pass = LowPass(4.0, "straight_through")
        for size in range(1, 70):
            for stride in (*STRIDES, 2.1, 1.1, 1.7):
                sizes, strides = (size,) * 3, (stride,) * 3
                output = low_pass.output_sizes(sizes, np.float32(strides))
                assert output == HardCrop(strides).output_sizes(sizes)
                # In float32 11 / 1.1 is 10, in float64 it is less.
                if stride not in (1.1, 2.1):
                    assert list(output) == oracle.fixed_sizes(sizes, strides)

    @pytest.mark.parametrize("ramp", masks.RAMPS)
    def test_the_last_axis_differs_from_the_others_at_most(self, ramp):
        low_pass = LowPass(2.0, ramp)
        for size in range(1, 40):
            for stride in (1.0, 1.7, 2.5, 9.0):
                one, two, three = (
                    low_pass.output_sizes(
                        (size,) * rank, np.float32([stride] * rank)
                    )
                    for rank in (1, 2, 3)
                )
                assert one == two[1:] == three[2:]
                assert two[:1] == three[:1] == three[1:2]

    def test_without_smoothness_the_size_is_nominal(self):
        for size, stride in ((32, 2.0), (48, 3.0), (30, 2.5)):
            for ramp in ("outer", "inner"):
                size_ = LowPass(0.0, ramp).size(size, tensor(stride))
                assert int(size_) == size / stride

    @pytest.mark.parametrize(
        "size, stride, even, expected",
        [
            (32, 2.0, True, 16),
            (28, 4.0, True, 6),
            (28, 4.0, False, 7),
            (21, 2.1, False, 10),
            (33, 2.0, True, 16),
            (3, 2.0, True, 2),
            (3, 9.0, False, 2),
            (2, 5.0, True, 2),
            (1, 1.0, True, 1),
            (1, 2.0, False, 1),
        ],
    )
    def test_of_fixed_pooling(self, size, stride, even, expected):
        assert masks.fixed_size(size, stride, even) == expected
        unknown = ops.convert_to_tensor(np.int32(size))
        assert int(masks.fixed_size(unknown, stride, even)) == expected
        low_pass = LowPass(4.0, "straight_through")
        straight = low_pass.size(size, np.float32(stride), two_sided=even)
        assert straight == expected

    def test_of_a_stride_that_is_not_a_number_is_one_at_least(self):
        for stride in (np.float32("nan"), tensor(np.nan)):
            for ramp in masks.RAMPS:
                for size in (7, 8):
                    output = LowPass(4.0, ramp).size(size, stride)
                    assert 1 <= int(output) <= size


class TestBands:
    @pytest.mark.parametrize("ramp", masks.RAMPS)
    def test_without_cropping_the_mask_is_the_same(self, ramp):
        for size in range(1, 40):
            for stride in (1.2, 2.0, 3.7):
                cropped = band_of(size, stride, 2.5, ramp)
                whole = band_of(size, stride, 2.5, ramp, cropping=False)
                assert whole.output_size == size
                np.testing.assert_array_equal(whole.positive, cropped.positive)
                np.testing.assert_array_equal(whole.negative, cropped.negative)

    @pytest.mark.parametrize("ramp", masks.RAMPS)
    @pytest.mark.parametrize("cropping", [True, False])
    def test_numpy_gives_what_tensors_give(self, ramp, cropping):
        low_pass = LowPass(2.5, ramp, cropping=cropping)
        for size in (5, 12) if JAX else (1, 2, 5, 12, 31, 60):
            for stride in (1.0, 1.7, 2.0, 9.0):
                on_host, on_device = (
                    low_pass.bands((size,), make([stride]))[0]
                    for make in (np.float32, tensor)
                )
                assert isinstance(on_host.output_size, int)
                assert isinstance(on_host.negative, np.ndarray)
                assert ops.is_tensor(on_device.negative)
                assert on_host.output_size == int(on_device.output_size)
                assert on_host.asymmetric == on_device.asymmetric
                assert int(on_host.first) == int(on_device.first)
                for name in ("positive", "negative"):
                    np.testing.assert_allclose(
                        array(getattr(on_device, name)),
                        getattr(on_host, name),
                        atol=1e-6,
                    )
