"""Spectral resizing against an FFT oracle, and in a network."""

import functools

import keras
import numpy as np
import pytest
from maps import (
    FIXED,
    FORMATS,
    JAX,
    TOLERANCE,
    apply,
    array,
    gradients,
    images,
    to_format,
)

import diffstride
from diffstride import (
    DiffStride,
    SpectralResize,
    SpectralResize1D,
    SpectralResize3D,
    freeze,
    model_cost,
    static_sizes,
)

RESIZE = {1: SpectralResize1D, 2: SpectralResize, 3: SpectralResize3D}
PAIRS = [
    ((5,), (9,)),
    ((8,), (13,)),
    ((9,), (4,)),
    ((6,), (6,)),
    ((1,), (4,)),
    ((5, 8), (9, 16)),
    ((8, 6), (12, 9)),
    ((8, 6), (5, 11)),  # down and up
    ((7, 9), (4, 2)),
    ((2, 3), (1, 8)),
    ((2, 3, 4), (5, 3, 6)),
    ((4, 4, 3), (2, 7, 6)),
]


def along(x, axis, size):
    """Pads or crops the full complex spectrum of one axis."""
    n = x.shape[axis]
    spectrum = np.moveaxis(np.fft.fft(x.astype("float64"), axis=axis), axis, 0)
    out = np.zeros((size, *spectrum.shape[1:]), complex)
    kept = min(n, size)
    for k in range(-((kept - 1) // 2), (kept - 1) // 2 + 1):
        out[k] = spectrum[k]
    if kept % 2 == 0:  # Nyquist: both frequencies that it stands for.
        half = kept // 2
        mean = (spectrum[half] + spectrum[-half]) / 2
        if size == kept:
            out[half] = mean * (1 if n == kept else 2)
        else:
            out[half] = out[-half] = mean / 2
    y = np.fft.ifft(out, axis=0).real * size / n
    return np.moveaxis(y, 0, axis)


def oracle(x, sizes):
    for axis, size in enumerate(sizes, 2):
        x = along(x, axis, size)
    return x


@functools.cache
def shared_map(sizes):
    return images(2, 3, *sizes, mean=0.5)


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(("sizes", "target"), PAIRS)
def test_it_is_that_of_the_oracle(sizes, target, data_format):
    x = shared_map(sizes)
    layer = RESIZE[len(sizes)](target, data_format=data_format)
    np.testing.assert_allclose(
        apply(layer, x), oracle(x, target), atol=2 * TOLERANCE * np.abs(x).max()
    )


@pytest.mark.parametrize(
    ("sizes", "target"),
    [pair for pair in PAIRS if all(a <= b for a, b in zip(*pair, strict=True))],
)
def test_up_and_down_is_the_identity(sizes, target):
    x = shared_map(sizes)
    up = apply(RESIZE[len(sizes)](target), x)
    back = apply(RESIZE[len(sizes)](sizes), up)
    np.testing.assert_allclose(back, x, atol=1e-5)


def test_samples_that_both_grids_have_stay():
    x = shared_map((8, 6))
    up = apply(SpectralResize((24, 12)), x)
    np.testing.assert_allclose(up[:, :, ::3, ::2], x, atol=1e-5)


@pytest.mark.parametrize("norm", ["backward", "ortho", "forward"])
@pytest.mark.parametrize("sizes", [(12,), (13,), (12, 15), (13, 14), (6, 8, 7)])
def test_what_pooling_crops_comes_back_low_passed(sizes, norm):
    rank = len(sizes)
    pooled = apply(FIXED[rank](2.0, norm=norm), x := shared_map(sizes))
    kept = pooled.shape[2:]
    # Without the Nyquist frequency of the small maps, which pooling halves.
    low = oracle(oracle(x, [(n - 1) // 2 * 2 + 1 for n in kept]), sizes)
    pooled = apply(FIXED[rank](2.0, norm=norm), low.astype("float32"))
    back = apply(RESIZE[rank](sizes, norm=norm), pooled)
    np.testing.assert_allclose(back, low, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes(dtype):
    x = shared_map((5, 8))
    layer = SpectralResize((9, 16), dtype=dtype)
    y = layer(to_format(x, layer.data_format))
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    y = keras.ops.convert_to_numpy(keras.ops.cast(y, "float32"))
    expected = to_format(oracle(x, (9, 16)), layer.data_format)
    atol = 1e-5 if dtype == "float32" else 5e-2
    np.testing.assert_allclose(y, expected, atol=atol)


def test_gradient_is_the_transpose():
    x, dy = shared_map((5, 8)), images(2, 3, 8, 6, seed=1)
    y, dx, _ = gradients(SpectralResize((8, 6)), x, dy)
    assert np.vdot(dy, y) == pytest.approx(np.vdot(dx, x), rel=1e-4)


@pytest.mark.parametrize(
    "size",
    [
        *(0, -3, 2.5, True, "8", (4,), (4, 4, 4), (4, None), (4, 0), {}),
        *(10**30, (4, 2**63), np.array([4, 4, 4]), np.array([4.5, 4])),
        *(np.array(["4", "4"]), np.True_, np.array([True, False])),
    ],
)
def test_sizes_that_cannot_be(size):
    with pytest.raises(ValueError, match="`size` must be .*Received: size="):
        SpectralResize(size)


@pytest.mark.parametrize(
    "size",
    [
        *(np.array([4, 4]), np.int64(4), np.array(4), [np.int8(4), 4]),
        keras.ops.array([4, 4], "int32"),
    ],
)
def test_sizes_of_arrays(size):
    layer = SpectralResize(size)
    assert layer.size == (4, 4)
    assert SpectralResize.from_config(layer.get_config()).size == (4, 4)


def unet(shape, strides=1.6, cell=SpectralResize, **kwargs):
    conv = functools.partial(
        keras.layers.Conv2D, 4, 3, padding="same", activation="relu"
    )
    image = keras.Input(shape)
    skip = conv()(image)
    x = DiffStride(strides, norm="forward", smoothness_factor=1.0, **kwargs)(
        skip
    )
    up = cell()([conv()(x), skip])
    x = keras.layers.Concatenate()([up, skip])
    return keras.Model(image, keras.layers.Conv2D(1, 1)(x))


@pytest.mark.parametrize("size", [(13, 18)] if JAX else [(16, 16), (13, 18)])
def test_a_unet_trains_while_its_strides_move(size):
    model = static_sizes(unet((*size, 1)))
    model.compile(keras.optimizers.SGD(1.0), "mse")
    x = np.random.default_rng(0).uniform(size=(8, *size, 1)).astype("float32")
    logger = diffstride.StrideLogger()
    history = model.fit(x, x, epochs=3, verbose=0, callbacks=[logger])
    first, *_, last = logger.strides
    assert list(first.values()) == pytest.approx([1.6, 1.6])
    assert first != last
    for key, value in last.items():
        assert history.history[key][-1] == value
    assert np.isfinite(history.history["loss"]).all()
    assert model.predict(x, verbose=0).shape == x.shape


@pytest.mark.skipif(JAX, reason="JAX needs known sizes")
def test_sizes_known_at_run_time_only():
    model = unet((None, None, 1))
    assert model.output_shape == (None, None, None, 1)
    for size in ((16, 16), (9, 14)):
        assert model.predict(np.ones((1, *size, 1)), verbose=0).shape == (
            1,
            *size,
            1,
        )


def test_saved_frozen_and_counted(tmp_path):
    model = unet((13, 18, 1))
    x = images(2, 13, 18, 1)
    expected = array(model(x))
    model.save(tmp_path / "unet.keras")
    loaded = keras.models.load_model(tmp_path / "unet.keras")
    for other in (loaded, freeze(model)):
        np.testing.assert_allclose(array(other(x)), expected, atol=1e-5)
    cost = model_cost(model)
    (resize,) = [c for c in cost.layers if c.kind == "SpectralResize"]
    (n, m, channels), (h, w, _) = resize.input_shape, resize.output_shape
    assert resize.macs == channels * (h * n * m + w * h * m)
    assert not cost.unknown


def test_config():
    layer = SpectralResize3D((3, 4, 5), norm="ortho", data_format=FORMATS[1])
    config = SpectralResize3D.from_config(layer.get_config()).get_config()
    assert config == layer.get_config()
    assert layer.compute_output_shape((None, 2, 9, 9, 9)) == (None, 2, 3, 4, 5)
