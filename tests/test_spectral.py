import numpy as np
import pytest
from keras import ops

from diffstride import spectral


def tensor(value, dtype="float32"):
    return ops.convert_to_tensor(np.array(value, dtype))


@pytest.mark.parametrize(
    "size, smoothness, expected",
    [(32, 4.0, 32 / 28), (5, 4.0, 5.0), (4, 4.0, 1.0), (3, 4.0, 1.0)],
)
def test_smallest_stride(size, smoothness, expected):
    assert spectral.smallest_stride(size, smoothness) == expected
    unknown = ops.convert_to_tensor(np.int32(size))
    np.testing.assert_allclose(
        np.asarray(spectral.smallest_stride(unknown, smoothness)),
        expected,
        rtol=1e-6,
    )


def test_used_strides_clip_then_lift():
    used = spectral.used_strides(
        tensor([1.5, 9.0]), (32, 8), 4.0, lower_limit=2.0, upper_limit=3.0
    )
    np.testing.assert_allclose(np.asarray(used), [2.0, 3.0])
    # The smallest stride of the map wins over the upper limit.
    used = spectral.used_strides(
        tensor([1.0, 1.0]), (32, 5), 4.0, lower_limit=1.0, upper_limit=3.0
    )
    np.testing.assert_allclose(np.asarray(used), [32 / 28, 5.0])


def test_used_strides_never_fall_below_the_bound_by_rounding():
    for size in range(5, 300):
        used = spectral.used_strides(tensor([1.0]), (size,), 4.0)
        assert np.asarray(used)[0] == np.float32(size / (size - 4.0))


def test_a_shared_stride_takes_the_larger_bound():
    used = spectral.used_strides(tensor([1.0]), (32, 8), 4.0)
    np.testing.assert_allclose(np.asarray(used), [2.0])


@pytest.mark.parametrize("smoothness", [0.0, 0.5, 1.0, 4.0, 7.5])
@pytest.mark.parametrize("stride", [1.0, 1.7, 2.0, 5.0, 100.0])
def test_sizes_agree_with_the_masks(stride, smoothness):
    for size in range(1, 70):
        band = spectral.learned_band(size, tensor(stride), smoothness)
        assert isinstance(band.output_size, int)
        kept = int((np.asarray(band.outer) > 0).sum())
        expected = 2 * kept - 1 if size % 2 else 2 * (kept - 1)
        assert band.output_size == expected
        assert band.output_size % 2 == size % 2
        assert 1 <= band.output_size <= size


def test_without_smoothness_the_size_is_nominal():
    for size, stride in ((32, 2.0), (48, 3.0), (30, 2.5)):
        band = spectral.learned_band(size, tensor(stride), 0.0)
        assert band.output_size == size / stride


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
def test_fixed_size(size, stride, even, expected):
    assert spectral.fixed_size(size, stride, even) == expected
    unknown = ops.convert_to_tensor(np.int32(size))
    assert int(spectral.fixed_size(unknown, stride, even)) == expected


def test_matrices_are_accurate_for_long_axes():
    # Large angles would cost float32 its digits.
    size = 1024
    band = spectral.Band(ops.ones(size // 2 + 1), ops.ones(size // 2 + 1), size)
    real, imaginary = spectral.two_sided_matrices(size, band)
    np.testing.assert_allclose(np.asarray(real), np.eye(size), atol=3e-6)
    np.testing.assert_allclose(np.asarray(imaginary), 0.0, atol=3e-6)
