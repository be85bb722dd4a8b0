"""Matrices, and the product with a map."""

import numpy as np
import pytest
from keras import ops
from maps import BACKEND, FORMATS, JAX, array, gradients, images

from diffstride import (
    DiffStride,
    DiffStride3D,
    FixedSpectralPooling,
    masks,
    resampling,
)
from diffstride.masks import LowPass

NORMS = resampling.NORMS


def band_of(size, stride, smoothness, ramp="outer", cropping=True):
    """The band of the first of two axes, in float64."""
    low_pass = LowPass(smoothness, ramp, cropping=cropping)
    return low_pass.bands((size, size), np.array([stride, stride]))[0]


@pytest.mark.parametrize("low_rank", [True, False])
def test_matrices_are_accurate_for_long_axes(low_rank, monkeypatch):
    # Large angles would cost float32 its digits. Equal weights on either side
    # make the identity, whatever `asymmetric` says.
    monkeypatch.setattr(resampling, "low_rank_pays", lambda *_: low_rank)
    size = 1024
    ones = ops.ones(size // 2 + 1)
    band = masks.Band(ones, ones, size, size // 2 + 1, 0)
    factor = resampling.two_sided_factor(size, band)
    assert (factor.left is not None) == low_rank
    np.testing.assert_allclose(array(factor.real), np.eye(size), atol=3e-6)
    imaginary = factor.imaginary
    if low_rank:
        imaginary = array(factor.left) @ array(factor.right)
    np.testing.assert_allclose(array(imaginary), 0.0, atol=3e-6)


@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_matrices_of_numpy_are_those_of_tensors(ramp):
    for size, cropping in ((5, True), (12, False), (12, True), (60, True)):
        if JAX and size == 60:
            continue
        band = band_of(size, 1.7, 2.5, ramp, cropping)
        band = band._replace(
            positive=np.float32(band.positive),
            negative=np.float32(band.negative),
        )
        on_device = band._replace(
            positive=ops.convert_to_tensor(band.positive),
            negative=ops.convert_to_tensor(band.negative),
        )
        for a, b in zip(
            resampling.factors((size, size), (band, band)),
            resampling.factors((size, size), (on_device, on_device)),
            strict=True,
        ):
            for part, other in zip(a, b, strict=True):
                assert (part is None) == (other is None)
                if part is not None:
                    assert isinstance(part, np.ndarray)
                    assert ops.is_tensor(other)
                    np.testing.assert_allclose(part, array(other), atol=3e-6)


class TestLowRank:
    """The two forms of the imaginary part are one matrix."""

    def test_where_it_pays(self, monkeypatch):
        assert resampling.low_rank_pays(8, 1)
        monkeypatch.setattr(resampling, "LOW_RANK_SIZE", 10)
        assert resampling.low_rank_pays(50, 5)
        assert not resampling.low_rank_pays(49, 5)
        # Nothing is known of a tensor.
        assert not resampling.low_rank_pays(ops.convert_to_tensor(500), 5)

    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize("smoothness", [0.0, 0.4, 1.0, 2.5, 4.0, 7.0])
    def test_of_learned_bands(self, smoothness, cropping, monkeypatch):
        monkeypatch.setattr(resampling, "low_rank_pays", lambda *_: True)
        compared = 0
        for ramp in ("outer", "straight_through"):
            for size in (*range(1, 20), 32, 47, 60):
                for stride in (1.0, 1.2, 1.6, 2.0, 2.3, 4.0, size / 3, 90.0):
                    band = band_of(size, stride, smoothness, ramp, cropping)
                    compared += self.compare(size, band, NORMS[compared % 3])
        assert compared > 200

    def test_of_fixed_bands(self, monkeypatch):
        monkeypatch.setattr(resampling, "low_rank_pays", lambda *_: True)
        for size in range(1, 40):
            for output_size in range(min(size, 2), size + 1, 2):
                band = masks.fixed_band(size, output_size, "float64")
                assert self.compare(size, band, NORMS[size % 3])

    @staticmethod
    def compare(size, band, norm):
        """Whether there was anything to compare."""
        low_rank = resampling.two_sided_factor(size, band, norm)
        dense = resampling.two_sided_factor(size, band, norm, dense=True)
        np.testing.assert_array_equal(low_rank.real, dense.real)
        if not band.asymmetric:
            assert low_rank.left is None and dense.imaginary is None
            return False
        assert low_rank.imaginary is None
        assert low_rank.left.shape[1] == 2 * band.asymmetric
        np.testing.assert_allclose(
            low_rank.left @ low_rank.right, dense.imaginary, atol=1e-12
        )
        return True

    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize(
        "number, size, stride, smoothness, ramp",
        [
            (0, (6, 7), 1.0, 2.0, "outer"),
            # The ends of the ramp are frequencies, and their gradient passes.
            (1, (16, 12), 2.0, 4.0, "outer"),
            (2, (24, 9), 2.3, 2.5, "outer"),
            (3, (40, 60), 3.1, 0.8, "outer"),
            (4, (60, 40), 6.0, 4.0, "outer"),
            (5, (60, 50), 19.0, 7.0, "outer"),
            (6, (21, 30), 2.6, 4.0, "straight_through"),
            (7, (32, 32), 2.0, 1.0, "straight_through"),
        ],
    )
    def test_through_the_layer(
        self, number, size, stride, smoothness, ramp, cropping, monkeypatch
    ):
        if JAX and number not in (1, 6):
            pytest.skip("slow to compile on JAX, and the same as elsewhere")
        x = images(2, 3, *size)
        layer = DiffStride(
            stride,
            smoothness,
            cropping,
            ramp=ramp,
            data_format=FORMATS[(number + cropping) % 2],
        )
        met = []
        two_sided_factor = resampling.two_sided_factor

        def spy(*args, **kwargs):
            met.append(two_sided_factor(*args, **kwargs))
            return met[-1]

        monkeypatch.setattr(resampling, "two_sided_factor", spy)
        sizes = layer.low_pass.bands(size, layer.initial_strides)
        cotangent = images(2, 3, *(b.output_size for b in sizes), seed=1)
        results = []
        for low_rank in (True, False):
            monkeypatch.setattr(
                resampling, "low_rank_pays", lambda *_, pays=low_rank: pays
            )
            results.append(gradients(layer, x, cotangent))
            assert (met[-1].left is not None) == low_rank
            assert (met[-1].imaginary is None) == low_rank
        (*ours, gradient), (*theirs, expected) = results
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
        assert np.abs(expected).min() > 1e-4
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="sizes are always known on this backend"
)
@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_sizes_known_on_the_host_or_in_the_graph(ramp, cropping):
    compare_graph_and_host(
        DiffStride((1.9, 2.6), 2.5, cropping, ramp=ramp),
        ((1, 1), (2, 3), (9, 16), (60, 31)),
    )
    if ramp == masks.RAMPS[0]:  # Of further axes only the number is new.
        compare_graph_and_host(
            DiffStride3D((1.9, 2.6, 1.2), 1.5, cropping, ramp=ramp),
            ((1, 2, 3), (5, 8, 6)),
        )


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="sizes are always known on this backend"
)
def test_sizes_of_fixed_pooling_in_the_graph():
    compare_graph_and_host(
        FixedSpectralPooling((1.9, 2.6)), ((1, 1), (16, 9), (9, 32))
    )


def compare_graph_and_host(layer, sizes_met):
    import tensorflow as tf
    from gradients import output_and_gradients

    layer.build((None,) * (layer.rank + 1) + (2,))
    unknown = tf.TensorSpec([None] * (layer.rank + 1) + [2])
    variables = [v.value for v in layer.trainable_variables]

    @tf.function(input_signature=[unknown], autograph=False)
    def run(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(y**2)
        return y, tape.gradient(loss, [x, *variables])

    for sizes in sizes_met:
        x = images(2, *sizes, 2)
        y, (dx, *dv) = run(x)
        expected = layer(x)
        _, expected_dx, expected_dv = output_and_gradients(
            layer, x, 2 * array(expected)
        )
        assert y.shape == expected.shape
        scale = 1e-5 * np.abs(expected).max()
        np.testing.assert_allclose(y, expected, atol=scale)
        scale = 1e-5 * np.abs(expected_dx).max()
        np.testing.assert_allclose(dx, expected_dx, atol=scale)
        for a, b in zip(dv, expected_dv, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)
