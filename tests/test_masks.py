import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from keras import ops

from diffstride import DiffStride, DiffStride3D, FixedSpectralPooling, masks, resampling

BACKEND = keras.backend.backend()
FORMATS = ("channels_last", "channels_first")


def tensor(value, dtype="float32"):
    return ops.convert_to_tensor(np.array(value, dtype))


def array(value):
    return ops.convert_to_numpy(value)


def learned_band(size, stride, smoothness, ramp="outer", cropping=True):
    output_size = masks.learned_size(size, stride, smoothness, ramp)
    return masks.learned_band(
        size, output_size, stride, smoothness, ramp, cropping
    )


@pytest.mark.parametrize(
    "size, smoothness, expected",
    [(32, 4.0, 32 / 28), (5, 4.0, 5.0), (4, 4.0, 1.0), (3, 4.0, 1.0)],
)
def test_smallest_stride(size, smoothness, expected):
    assert masks.smallest_stride(size, smoothness) == expected
    unknown = ops.convert_to_tensor(np.int32(size))
    np.testing.assert_allclose(
        array(masks.smallest_stride(unknown, smoothness)),
        expected,
        rtol=1e-6,
    )
    for ramp in ("inner", "straight_through"):
        assert masks.smallest_stride(size, smoothness, ramp) == 1.0
        assert masks.smallest_stride(unknown, smoothness, ramp) == 1.0


def test_used_strides_clip_then_lift():
    used = masks.LowPass(4.0, lower_limit=2.0, upper_limit=3.0).used(
        (32, 8), tensor([1.5, 9.0])
    )
    np.testing.assert_allclose(array(used), [2.0, 3.0])
    # The smallest stride of the map wins over the upper limit.
    used = masks.LowPass(4.0, lower_limit=1.0, upper_limit=3.0).used(
        (32, 5), tensor([1.0, 1.0])
    )
    np.testing.assert_allclose(array(used), [32 / 28, 5.0])


@pytest.mark.parametrize("ramp", ["inner", "straight_through"])
def test_only_the_outer_ramp_lifts_above_one(ramp):
    used = masks.LowPass(4.0, ramp, None).used((32, 5), tensor([0.5, 1.01]))
    np.testing.assert_allclose(array(used), [1.0, 1.01])


def test_used_strides_never_fall_below_the_bound_by_rounding():
    for size in range(5, 300):
        used = masks.LowPass(4.0).used((size,), tensor([1.0]))
        assert array(used)[0] == np.float32(size / (size - 4.0))


@pytest.mark.parametrize("sizes", [(32,), (32, 8), (8, 32, 16)])
def test_a_shared_stride_takes_the_largest_bound(sizes):
    used = masks.LowPass(4.0).used(sizes, tensor([1.0]))
    assert used.shape == (len(sizes),)
    largest = 32 / 28 if sizes == (32,) else 2.0
    np.testing.assert_allclose(array(used), [largest] * len(sizes))


@pytest.mark.parametrize("smoothness", [0.0, 0.5, 1.0, 4.0, 7.5])
@pytest.mark.parametrize("stride", [1.0, 1.7, 2.0, 5.0, 100.0])
def test_sizes_agree_with_the_masks(stride, smoothness):
    stride = np.float32(stride)
    for size in range(1, 70):
        band = learned_band(size, stride, smoothness)
        assert isinstance(band.output_size, int)
        kept = int((band.negative > 0).sum())
        expected = 2 * kept - 1 if size % 2 else 2 * (kept - 1)
        assert band.output_size == expected
        assert band.output_size % 2 == size % 2
        assert 1 <= band.output_size <= size

        band = learned_band(size, stride, smoothness, "inner")
        kept = int((band.negative > 0).sum())
        # Its outermost sample may carry nothing.
        assert 2 * kept - 1 <= band.output_size + 1 <= 2 * kept + 2
        assert band.output_size % 2 == size % 2
        assert 1 <= band.output_size <= size


def test_without_smoothness_the_size_is_nominal():
    for size, stride in ((32, 2.0), (48, 3.0), (30, 2.5)):
        for ramp in ("outer", "inner"):
            output_size = masks.learned_size(size, tensor(stride), 0.0, ramp)
            assert int(output_size) == size / stride


@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_uncropped_masks_are_the_same(ramp):
    for size in range(1, 40):
        for stride in (1.2, 2.0, 3.7):
            stride = np.float32(stride)
            cropped = learned_band(size, stride, 2.5, ramp)
            whole = learned_band(size, stride, 2.5, ramp, cropping=False)
            assert whole.output_size == size
            np.testing.assert_array_equal(whole.positive, cropped.positive)
            np.testing.assert_array_equal(whole.negative, cropped.negative)


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
    assert masks.fixed_size(size, stride, even) == expected
    unknown = ops.convert_to_tensor(np.int32(size))
    assert int(masks.fixed_size(unknown, stride, even)) == expected
    straight = masks.learned_size(
        size, np.float32(stride), 4.0, "straight_through", two_sided=even
    )
    assert straight == expected


def test_a_size_made_from_a_stride_that_is_not_a_number_is_one_at_least():
    for stride in (np.float32("nan"), tensor(np.nan)):
        for ramp in masks.RAMPS:
            for size in (7, 8):
                output_size = masks.learned_size(size, stride, 4.0, ramp)
                assert 1 <= int(output_size) <= size


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
                    band = learned_band(
                        size, np.float64(stride), smoothness, ramp, cropping
                    )
                    compared += self.compare(size, band)
        assert compared > 200

    def test_of_fixed_bands(self, monkeypatch):
        monkeypatch.setattr(resampling, "low_rank_pays", lambda *_: True)
        for size in range(1, 40):
            for output_size in range(min(size, 2), size + 1, 2):
                band = masks.fixed_band(size, output_size, "float64")
                assert self.compare(size, band)

    @staticmethod
    def compare(size, band):
        """Whether there was anything to compare."""
        for norm in resampling.NORMS:
            low_rank = resampling.two_sided_factor(size, band, norm)
            whole = resampling.two_sided_factor(size, band, norm, dense=True)
            np.testing.assert_array_equal(low_rank.real, whole.real)
            if not band.asymmetric:
                assert low_rank.left is None and whole.imaginary is None
                return False
            assert low_rank.imaginary is None
            assert low_rank.left.shape[1] == 2 * band.asymmetric
            np.testing.assert_allclose(
                low_rank.left @ low_rank.right, whole.imaginary, atol=1e-12
            )
        return True

    @pytest.mark.parametrize("data_format", FORMATS)
    @pytest.mark.parametrize("cropping", [True, False])
    @pytest.mark.parametrize(
        "size, stride, smoothness, ramp",
        [
            ((6, 7), 1.0, 2.0, "outer"),
            # The ends of the ramp are frequencies, and their gradient passes.
            ((16, 12), 2.0, 4.0, "outer"),
            ((24, 9), 2.3, 2.5, "outer"),
            ((40, 60), 3.1, 0.8, "outer"),
            ((60, 40), 6.0, 4.0, "outer"),
            ((60, 50), 19.0, 7.0, "outer"),
            ((21, 30), 2.6, 4.0, "straight_through"),
            ((32, 32), 2.0, 1.0, "straight_through"),
        ],
    )
    def test_through_the_layer(
        self, size, stride, smoothness, ramp, cropping, data_format, monkeypatch
    ):
        if BACKEND == "jax" and (cropping or max(size) > 32):
            pytest.skip("slow, and the same as elsewhere")
        random = np.random.default_rng(0)
        shape = (2, *size, 3) if data_format == FORMATS[0] else (2, 3, *size)
        x = random.normal(size=shape).astype("float32")
        layer = DiffStride(
            stride, smoothness, cropping, ramp=ramp, data_format=data_format
        )
        cotangent = random.normal(size=layer(x).shape).astype("float32")
        met = []
        two_sided_factor = resampling.two_sided_factor

        def spy(*args, **kwargs):
            met.append(two_sided_factor(*args, **kwargs))
            return met[-1]

        monkeypatch.setattr(resampling, "two_sided_factor", spy)
        results = []
        for low_rank in (True, False):
            monkeypatch.setattr(resampling, "low_rank_pays", lambda *_, answer=low_rank: answer
            )
            results.append(output_and_gradients(layer, x, cotangent))
            assert (met[-1].left is not None) == low_rank
            assert (met[-1].imaginary is None) == low_rank
        for a, b in zip(results[0][:2], results[1][:2], strict=True):
            np.testing.assert_allclose(a, b, atol=2e-6 * np.abs(b).max())
        gradients = results[0][2][0], results[1][2][0]
        assert np.abs(gradients[1]).min() > 1e-4
        np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("ramp", masks.RAMPS)
@pytest.mark.parametrize("cropping", [True, False])
def test_numpy_gives_what_tensors_give(ramp, cropping):
    sizes_met = (5, 12) if BACKEND == "jax" else (1, 2, 5, 12, 31, 60)
    for size in sizes_met:
        for stride in (1.0, 1.7, 2.0, 9.0):
            bands = [
                learned_band(size, value, 2.5, ramp, cropping)
                for value in (np.float32(stride), tensor(stride))
            ]
            on_host, on_device = bands
            assert isinstance(on_host.output_size, int)
            assert isinstance(on_host.negative, np.ndarray)
            assert ops.is_tensor(on_device.negative)
            assert on_host.output_size == int(on_device.output_size)
            for a, b in zip(
                resampling.factors((size, size), (on_host, on_host)),
                resampling.factors((size, size), (on_device, on_device)),
                strict=True,
            ):
                for name, part in a._asdict().items():
                    other = getattr(b, name)
                    assert (part is None) == (other is None)
                    if part is not None:
                        assert isinstance(part, np.ndarray)
                        np.testing.assert_allclose(
                            part, array(other), atol=3e-6
                        )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="sizes are always known")
@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_sizes_known_on_the_host_or_in_the_graph(ramp, cropping):
    import tensorflow as tf

    for layer, sizes_met in (
        (
            DiffStride((1.9, 2.6), 2.5, cropping, ramp=ramp),
            ((1, 1), (2, 3), (9, 16), (16, 9), (60, 31)),
        ),
        (
            DiffStride3D((1.9, 2.6, 1.2), 1.5, cropping, ramp=ramp),
            ((1, 2, 3), (5, 8, 6), (8, 5, 9)),
        ),
        (FixedSpectralPooling((1.9, 2.6)), ((1, 1), (16, 9), (9, 32))),
    ):
        layer.build((None,) * (layer.rank + 1) + (2,))
        unknown = tf.TensorSpec([None] * (layer.rank + 1) + [2])
        variables = [v.value for v in layer.trainable_variables]

        @tf.function(input_signature=[unknown], autograph=False)
        def run(x, layer=layer, variables=variables):
            with tf.GradientTape() as tape:
                tape.watch(x)
                y = layer(x)
                loss = tf.reduce_sum(y**2)
            return y, tape.gradient(loss, [x, *variables])

        for sizes in sizes_met:
            x = np.random.default_rng(0).normal(size=(2, *sizes, 2))
            x = x.astype("float32")
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
