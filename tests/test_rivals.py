"""Rivals of DiffStride against oracles, which are written otherwise."""

import itertools

import keras
import numpy as np
import pytest
import scipy.fft
import scipy.ndimage
from gradients import output_and_gradients, relative_error
from maps import BACKEND, FORMATS, JAX, apply, array, gradients, images

import diffstride
from diffstride import (
    AveragePooling,
    BlurPool2D,
    DCTDiffStride,
    DynOPool,
    FixedSpectralPooling,
    FLCPooling,
    FractionalMaxPooling2D,
    MaxBlurPool2D,
    MaxPooling,
    SpatialPooling,
    model_cost,
    static_sizes,
)
from diffstride.compute import ComputeModel
from diffstride.windows import max_between

RIVALS = {
    "average": AveragePooling,
    "max": MaxPooling,
    "fractional_max": FractionalMaxPooling2D,
    "blur": BlurPool2D,
    "max_blur": MaxBlurPool2D,
    "flc": FLCPooling,
    "dynopool": DynOPool,
    "dct": DCTDiffStride,
}
LEARNED = (DynOPool, DCTDiffStride)
INTEGERS = (AveragePooling, MaxPooling, BlurPool2D, MaxBlurPool2D)
ATOL = 3e-6
not_jax = pytest.mark.skipif(
    JAX, reason="JAX compiles each operation; of two backends it is known"
)


def some(*values):
    """One of them on JAX, which compiles for each anew."""
    return values[:1] if JAX else values


SIZES = some((5, 8), (12, 9), (1, 2), (1, 1), (3, 7))


def blurred(x, kernel_size, strides):
    """By SciPy, an axis at a time."""
    taps = np.array([1.0])
    for _ in range(kernel_size - 1):
        taps = np.convolve(taps, [0.5, 0.5])
    for axis, stride in enumerate(strides, 2):
        if stride == 1:
            continue
        x = scipy.ndimage.correlate1d(
            x.astype("float64"),
            taps,
            axis,
            mode="mirror",
            origin=-1 if kernel_size % 2 == 0 else 0,
        )
        x = x[(slice(None),) * axis + (slice(None, None, stride),)]
    return x


def windows(x, reduce, pool, strides, padding="same"):
    """Reduces each window, padded as TensorFlow does, by `reduce`."""
    pads = [(0, 0)] * 2
    for size, window, stride in zip(x.shape[2:], pool, strides, strict=True):
        more = max((-(-size // stride) - 1) * stride + window - size, 0)
        more = more if padding == "same" else 0
        pads.append((more // 2, more - more // 2))
    x = np.pad(x.astype("float64"), pads, constant_values=np.nan)
    seen = np.lib.stride_tricks.sliding_window_view(x, pool, (2, 3))
    return reduce(seen[:, :, :: strides[0], :: strides[1]], (-2, -1))


def cosine(x, strides, cells, norm="ortho"):
    """The DCT by SciPy; `cells(size, stride)` gives weights and output size."""
    spectrum = scipy.fft.dctn(x.astype("float64"), axes=(2, 3), norm="ortho")
    for axis, stride in enumerate(strides, 2):
        size = x.shape[axis]
        weights, output = cells(size, stride)
        spectrum = np.moveaxis(spectrum, axis, -1) * weights
        spectrum = np.moveaxis(spectrum[..., :output], -1, axis)
        power = {"ortho": 0, "backward": 0.5, "forward": -0.5}[norm]
        spectrum = spectrum * (size / output) ** power
    return scipy.fft.idctn(spectrum, axes=(2, 3), norm="ortho")


def outer_cells(size, stride, smoothness=2.0):
    if size > smoothness / 2:  # Where the mask would be flat.
        stride = max(stride, 2 * size / (2 * size - smoothness))
    edge = max(size / stride, 1) + smoothness
    weights = np.clip((edge - np.arange(size)) / smoothness, 0, 1)
    return weights, np.count_nonzero(weights)


def inner_cells(size, stride, smoothness=2.0):
    width = max(size / stride, 1)
    ramp = min(smoothness, max(width / 2, 1))
    k = np.arange(size)
    weights = np.clip((width - np.maximum(k - 0.5, 0)) / ramp, 0, 1)
    weights[0] = 1
    return weights, min(int(np.ceil(width)), size)


def straight_cells(size, stride):
    output = max(int(size / stride), 1)
    return np.arange(size) < output, output


def queried(x, outputs, cells):
    """Bilinear queries by SciPy, and the largest of the four of each cell."""
    grids = [
        (np.arange(2 * output) + 0.5) / 2 * cell - 0.5
        for output, cell in zip(outputs, cells, strict=True)
    ]
    where = np.meshgrid(*grids, indexing="ij")
    y = np.array(
        [
            [
                scipy.ndimage.map_coordinates(
                    each.astype("float64"), where, order=1, mode="nearest"
                )
                for each in example
            ]
            for example in x
        ]
    )
    return windows(y, np.max, (2, 2), (2, 2))


def nearest(size, stride):
    return min(max(int(size / stride + 0.5), 1), size)


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("strides", some((2, 3), (1, 2), (3, 5)))
@pytest.mark.parametrize("size", SIZES)
def test_blur_pool(size, strides, data_format):
    x = images(2, 3, *size)
    for kernel_size in some(4, 1, 2, 3, 5, 6, 7):
        layer = BlurPool2D(strides, kernel_size, data_format)
        expected = blurred(x, kernel_size, strides)
        np.testing.assert_allclose(apply(layer, x), expected, atol=ATOL)


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("padding", some("same", "valid"))
@pytest.mark.parametrize("pool", some((3, 2), (2, 2)))
def test_max_blur_pool(pool, padding, data_format):
    x = images(2, 3, 7, 6)
    layer = MaxBlurPool2D((2, 3), 3, pool, padding, data_format)
    maxima = windows(x, np.nanmax, pool, (1, 1), padding)
    np.testing.assert_allclose(
        apply(layer, x), blurred(maxima, 3, (2, 3)), atol=ATOL
    )
    layer = MaxBlurPool2D(1, 3, pool, padding, data_format)
    np.testing.assert_array_equal(apply(layer, x), x)


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("strides", some((2, 3), (1, 1), (3, 2)))
@pytest.mark.parametrize("size", SIZES)
def test_average_and_max_pooling(size, strides, data_format):
    x = images(2, 3, *size)
    average = AveragePooling(strides, data_format=data_format)
    largest = MaxPooling(strides, data_format=data_format)
    for layer, reduce in ((average, np.nanmean), (largest, np.nanmax)):
        expected = windows(x, reduce, strides, strides)
        np.testing.assert_allclose(apply(layer, x), expected, atol=ATOL)


@not_jax
def test_spatial_pooling_samples_unless_it_is_given_a_window():
    x = images(2, 3, 6, 9)
    sampled = apply(SpatialPooling(strides=(2, 3)), x)
    np.testing.assert_array_equal(sampled, x[:, :, ::2, ::3])
    given = apply(SpatialPooling((2, 3), (2, 3)), x)
    np.testing.assert_array_equal(given, apply(AveragePooling((2, 3)), x))


@pytest.mark.parametrize("size", some((8, 12), (16, 4), (4, 4)))
def test_flc_pooling_is_that_of_its_authors(size):
    x = images(2, 3, *size)
    spectrum = np.fft.fftshift(
        np.fft.fft2(x.astype("float64"), norm="forward"), (2, 3)
    )
    quarters = [slice(n // 4, n // 4 * 3) for n in size]
    low = np.fft.ifftshift(spectrum[(..., *quarters)], (2, 3))
    expected = np.fft.ifft2(low, norm="forward").real
    # Beyond the batch and channels, which the authors shift, too, and back.
    np.testing.assert_allclose(apply(FLCPooling(2), x), expected, atol=ATOL)


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("strides", some((1.5, 2.6), (1, 1), (3, 2)))
@pytest.mark.parametrize("size", some((12, 9), (5, 8), (14, 6)))
def test_flc_pooling_crops_about_the_middle(size, strides, data_format):
    x = images(2, 3, *size)
    outputs = [
        min(max(int(n / s), 2), n) for n, s in zip(size, strides, strict=True)
    ]
    spectrum = np.fft.fft2(x.astype("float64"), norm="forward")
    for axis, output in enumerate(outputs, 2):
        kept = np.fft.fftfreq(output, 1 / output).astype(int)
        spectrum = np.take(spectrum, kept % x.shape[axis], axis)
    expected = np.fft.ifft2(spectrum, norm="forward").real
    layer = FLCPooling(strides, data_format)
    np.testing.assert_allclose(apply(layer, x), expected, atol=ATOL)


@not_jax
def test_flc_and_spectral_pooling_differ_at_the_nyquist_frequency_alone():
    x = images(2, 3, 16, 16)
    flc = np.fft.fft2(apply(FLCPooling(2), x))
    ours = np.fft.fft2(apply(FixedSpectralPooling(2, norm="forward"), x))
    differ = np.abs(flc - ours).max((0, 1)) > 1e-4
    assert differ.any()
    assert not np.delete(np.delete(differ, 4, 0), 4, 1).any()


@pytest.mark.parametrize(
    "ramp, cells, norm",
    [
        ("outer", outer_cells, "ortho"),
        ("inner", inner_cells, "forward"),
        ("straight_through", straight_cells, "backward"),
    ],
)
@pytest.mark.parametrize("strides", some((1.7, 3.2), (1.0, 2.0), (9.0, 1.1)))
def test_dct_diffstride(strides, ramp, cells, norm):
    for size in SIZES:
        x = images(2, 3, *size)
        expected = cosine(x, strides, cells, norm)
        for data_format in some(*FORMATS):
            layer = DCTDiffStride(
                strides, 2.0, ramp=ramp, norm=norm, data_format=data_format
            )
            y = apply(layer, x)
            scale = max(np.abs(expected).max(), 1)
            np.testing.assert_allclose(y, expected, atol=ATOL * scale)


@pytest.mark.parametrize(
    "ramp, cells", [("outer", outer_cells), ("inner", inner_cells)]
)
def test_gradient_of_the_dct_s_strides(ramp, cells):
    x, strides = images(2, 3, 9, 12), np.array([1.7, 2.3])
    expected = cosine(x, strides, cells)
    dy = images(*expected.shape, seed=1)
    layer = DCTDiffStride(tuple(strides), 2.0, ramp=ramp, norm="ortho")
    _, _, gradient = gradients(layer, x, dy)
    steps = 1e-5 * np.eye(2)
    differences = [
        np.vdot(dy, cosine(x, strides + h, cells))
        - np.vdot(dy, cosine(x, strides - h, cells))
        for h in steps
    ]
    assert relative_error(gradient, np.array(differences) / 2e-5) < 1e-4


@not_jax
@pytest.mark.parametrize("ramp", ["inner", "straight_through"])
@pytest.mark.parametrize("stride", [1.0, 2.0, 5.0])
def test_strides_of_the_dct_can_always_learn(stride, ramp):
    layer = DCTDiffStride(stride, 2.0, ramp=ramp)
    x = images(2, 3, 12, 10)
    dy = images(*apply(layer, x).shape, seed=1)
    _, _, gradient = gradients(layer, x, dy)
    assert np.isfinite(gradient).all() and gradient.all()


@not_jax
@pytest.mark.parametrize("ramp", ["outer", "inner", "straight_through"])
def test_smallest_size_of_the_dct(ramp):
    x = np.ones((1, 9, 7, 2), "float32")
    for smallest in (None, 1, 2, 3):
        layer = DCTDiffStride(
            (20.0, 4.0),
            0.0,
            ramp=ramp,
            smallest_size=smallest,
            data_format="channels_last",
        )
        least = smallest or 1
        sizes = layer(x).shape[1:3]
        expected = 1 if ramp == "straight_through" else 2  # 7 / 4 = 1.75
        assert tuple(sizes) == (least, max(least, expected))


@not_jax
def test_straight_through_gradient_of_the_dct():
    """That of a ramp of width 2 around the last coefficient that is kept."""
    x, strides = images(2, 3, 12, 10), (2.0, 2.5)
    dy = images(2, 3, 6, 4, seed=1)
    layer = DCTDiffStride(strides, 2.0, ramp="straight_through", norm="ortho")
    _, _, gradient = gradients(layer, x, dy)
    expected = []
    for moving, stride in zip(x.shape[2:], strides, strict=True):

        def last(size, stride, moving=moving):
            weights, output = straight_cells(size, stride)
            if size == moving:
                weights = np.arange(size) == output - 1
            return weights, output

        slope = -moving / stride**2 / 2
        expected.append(np.vdot(dy, cosine(x, strides, last)) * slope)
    assert relative_error(gradient, expected) < 1e-4


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("strides", some((1.7, 3.2), (1.0, 2.0), (9.0, 1.1)))
@pytest.mark.parametrize("size", SIZES)
def test_dynopool(size, strides, data_format):
    x = images(2, 3, *size)
    outputs = list(map(nearest, size, strides))
    cells = np.array(size) / outputs
    layer = DynOPool(strides, data_format=data_format)
    np.testing.assert_allclose(
        apply(layer, x), queried(x, outputs, cells), atol=ATOL
    )


@not_jax
def test_dynopool_at_stride_2_is_max_pooling():
    x = images(2, 3, 8, 6)
    np.testing.assert_allclose(
        apply(DynOPool(2), x), apply(MaxPooling(2), x), atol=ATOL
    )


def test_gradient_of_dynopool_s_strides():
    size, strides = (9, 13), np.array([1.7, 2.3])
    x = images(2, 3, *size)
    outputs = list(map(nearest, size, strides))
    dy = images(2, 3, *outputs, seed=1)
    _, dx, gradient = gradients(DynOPool(tuple(strides)), x, dy)
    # Cells are as wide as they are, and change with the stride.
    cells = np.array(size) / outputs
    differences = [
        np.vdot(dy, queried(x, outputs, cells + h))
        - np.vdot(dy, queried(x, outputs, cells - h))
        for h in 1e-6 * np.eye(2)
    ]
    assert relative_error(gradient, np.array(differences) / 2e-6) < 1e-4
    change = 1e-3 * images(*x.shape, seed=2).astype("float64")
    difference = np.vdot(dy, queried(x + change, outputs, cells)) - np.vdot(
        dy, queried(x - change, outputs, cells)
    )
    assert np.vdot(dx, change) == pytest.approx(difference / 2, rel=0.05)


@not_jax
@pytest.mark.parametrize("stride", [1.0, 2.0, 4.0])
def test_dynopool_learns_from_whole_strides(stride):
    x = images(2, 3, 8, 12)
    layer = DynOPool(stride)
    dy = images(*apply(layer, x).shape, seed=1)
    _, _, gradient = gradients(layer, x, dy)
    assert np.isfinite(gradient).all() and gradient.all()
    slow = DynOPool(stride, stride_lr_multiplier=0.5)
    _, _, halved = gradients(slow, x, dy)
    np.testing.assert_allclose(halved, gradient / 2, rtol=1e-5)


def largest_between(x, *edges):
    """A rectangle after the other."""
    shape = *x.shape[:2], *(len(each) - 1 for each in edges)
    y = np.empty(shape, x.dtype)
    for i, j in np.ndindex(shape[2:]):
        rows, columns = (
            slice(each[k], each[k + 1])
            for each, k in zip(edges, (i, j), strict=True)
        )
        y[:, :, i, j] = x[:, :, rows, columns].max((2, 3))
    return y


@pytest.mark.parametrize("data_format", some(*FORMATS))
@pytest.mark.parametrize("strides", some((1.4, 2.0), (1.0, 1.5), (2.7, 50.0)))
@pytest.mark.parametrize("size", SIZES)
def test_fractional_max_pooling_in_inference(size, strides, data_format):
    x = images(2, 3, *size)
    edges = [
        [
            (i * n + parts // 2) // parts
            for parts in [max(int(n / s), 1)]
            for i in range(parts + 1)
        ]
        for n, s in zip(size, strides, strict=True)
    ]
    layer = FractionalMaxPooling2D(strides, data_format=data_format)
    np.testing.assert_array_equal(apply(layer, x), largest_between(x, *edges))


@not_jax
@pytest.mark.parametrize("pseudo_random", [False, True])
def test_fractional_max_pooling_in_training(pseudo_random):
    """Parts are of two lengths, in an order that changes; and in no other."""
    layer = FractionalMaxPooling2D(
        1.4, pseudo_random, seed=3, data_format="channels_last"
    )
    ramp = np.arange(10.0, dtype="float32")
    x = np.broadcast_to(ramp[:, None] + 100 * ramp, (1, 10, 10))[..., None]
    seen = set()
    for _ in range(12):
        y = array(layer(x, training=True))[0, :, :, 0]
        rows = y[:, 0] % 100
        assert (y - y[:1] == (rows - rows[0])[:, None]).all()
        assert rows[-1] == 9 and y[0, -1] // 100 == 9
        lengths = np.diff(rows, prepend=-1)
        assert set(lengths) == {1, 2} and len(lengths) == 7
        seen.add(tuple(lengths))
    assert len(seen) > 2
    if pseudo_random:  # No two long ones beside each other, as few as they are.
        assert not any((2, 2) in itertools.pairwise(each) for each in seen)
    again = FractionalMaxPooling2D(
        1.4, pseudo_random, seed=3, data_format="channels_last"
    )
    first = FractionalMaxPooling2D.from_config(again.get_config())
    np.testing.assert_array_equal(
        array(first(x, training=True)), array(again(x, training=True))
    )


@pytest.mark.skipif(BACKEND != "tensorflow", reason="has the operation")
@pytest.mark.parametrize("overlapping", [False, True])
def test_fractional_max_pooling_is_that_of_tensorflow(overlapping):
    import tensorflow as tf

    x = np.moveaxis(images(2, 3, 17, 13), 1, -1)
    for seed in range(1, 6):
        expected, rows, columns = tf.nn.fractional_max_pool(
            *(x, [1, 1.6, 2.3, 1], seed % 2 == 0, overlapping, seed)
        )
        y = max_between(x, rows.numpy(), 1, 3, overlapping)
        y = max_between(y, columns.numpy(), 2, 4, overlapping)
        np.testing.assert_array_equal(array(y), array(expected))
        layer = FractionalMaxPooling2D((1.6, 2.3), data_format="channels_last")
        assert layer.compute_output_shape(x.shape) == tuple(expected.shape)


@not_jax
def test_fractional_max_pooling_is_max_pooling_where_the_stride_divides():
    x, layer = images(2, 3, 8, 6), FractionalMaxPooling2D(2.0)
    expected = apply(MaxPooling(2), x)
    np.testing.assert_array_equal(apply(layer, x), expected)
    layer = FractionalMaxPooling2D(2.0, data_format="channels_first")
    y = array(layer(x, training=True))
    np.testing.assert_array_equal(y, expected)


@not_jax
@pytest.mark.parametrize("method", RIVALS)
def test_what_every_layer_has(method, tmp_path):
    """Shapes, configs, `.keras` files, and a gradient that is the slope."""
    cls = RIVALS[method]
    layer = cls((2, 3), data_format="channels_last")
    x = images(2, 7, 6, 3)
    shape = layer.compute_output_shape((None, None, None, 3))
    assert shape == (None, None, None, 3)
    y, dx, _ = output_and_gradients(layer, x)
    learned = method in ("dynopool", "dct")
    shape = layer.compute_output_shape(x.shape)
    assert shape == ((2, None, None, 3) if learned else y.shape)
    copy = cls.from_config(layer.get_config())
    assert copy.get_config() == layer.get_config()
    assert np.isfinite(dx).all() and dx.any()

    inputs = keras.Input(x.shape[1:])
    model = keras.Model(inputs, cls((2, 3), name="pool")(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert type(loaded.get_layer("pool")) is cls
    np.testing.assert_array_equal(array(loaded(x)), array(model(x)))
    # Two layers downsample one after the other: strides are logged by axis.
    assert list(diffstride.profiling.stride_logs(model).values()) == [2, 3]


@not_jax
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("method", RIVALS)
def test_half_precision(method, dtype):
    strides = (2, 3)
    x = images(2, 3, 9, 8)
    layer = RIVALS[method](strides, dtype=dtype)
    exact = apply(RIVALS[method](strides), x)
    y = layer(np.moveaxis(x, 1, -1))
    assert keras.backend.standardize_dtype(y.dtype) == dtype[6:]
    y = np.moveaxis(array(keras.ops.cast(y, "float32")), -1, 1)
    atol = 0.04 if "b" in dtype[6:8] else 0.005
    np.testing.assert_allclose(
        y, exact, atol=atol * max(1, np.abs(exact).max())
    )


@pytest.mark.skipif(JAX, reason="JAX needs known sizes")
@pytest.mark.parametrize("method", [*RIVALS][2:])
def test_sizes_known_at_run_time_only(method):
    inputs = keras.Input((None, None, 2))
    layer = RIVALS[method]((2, 3))
    model = keras.Model(inputs, layer(inputs))
    x = images(2, 7, 8, 2)
    y = model.predict(x, verbose=0)
    np.testing.assert_allclose(y, array(layer(x)), atol=ATOL)


@pytest.mark.parametrize(
    "method", ["fractional_max", "dynopool", "dct"] if JAX else RIVALS
)
def test_compiled_steps(method):
    """With XLA where there is one; learned strides move, and are frozen."""
    layer = RIVALS[method]((1, 2))
    model = keras.Sequential(
        [
            keras.Input((6, 7, 1)),
            layer,
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )
    static_sizes(model)
    model.compile(
        keras.optimizers.SGD(1.0), "mse", jit_compile=BACKEND != "torch"
    )
    x, y = images(4, 6, 7, 1), images(4, 1)
    assert np.isfinite(model.train_on_batch(x, y))
    assert len(diffstride.static.learned_layers(model)) == (
        type(layer) in LEARNED
    )
    if type(layer) in LEARNED:
        assert (array(layer.stride_weights) != (1, 2)).any()
        assert model.output_shape == (None, 1)
        frozen = diffstride.freeze(model)
        expected = array(model(x))
        np.testing.assert_allclose(array(frozen(x)), expected, atol=1e-5)
        assert frozen.layers[0].frozen
        assert None not in frozen.layers[0].output.shape[1:]


@not_jax
@pytest.mark.parametrize("cls", LEARNED)
def test_learned_strides_are_known_to_all_that_bounds_them(cls):
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((12, 14, 1)),
            cls((1.5, 2.0), name="first"),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            cls((1.5, 1.2), upper_limit_stride=3.0, name="second"),
            layers.Conv2D(4, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling2D(),
        ]
    )
    assert diffstride.check(model) == []
    compute = ComputeModel(model)
    for strides in ([1.0, 3.1], [2.4, 1.3]), ([4.0, 1.0], [9.0, 2.2]):
        strides = compute.clipped([np.float32(each) for each in strides])
        told = compute.macs(strides)
        for layer, value in zip(compute.layers, strides, strict=True):
            layer.stride_weights.assign(value)
        assert told == model_cost(model).macs
    assert (strides[1] == np.float32([3.0, 2.2])).all()
    diffstride.add_stride_cost(model, 2.0)
    share = 1 / 4.0
    cost = share + share / (3.0 * 2.2)
    losses = [float(array(loss)) for loss in model.losses]
    assert sum(losses) == pytest.approx(2 * cost)
    # A stride beyond the limits is not used.
    layer = compute.layers[1]
    layer.stride_weights.assign([7.0, 0.2])
    used = layer.used_strides((12, 14), array(layer.stride_weights))
    np.testing.assert_allclose(used[0], 3.0)
    assert used[1] >= 1


@not_jax
@pytest.mark.parametrize("ramp", ["outer", "straight_through"])
def test_harden(ramp):
    inputs = keras.Input((9, 12, 2))
    layer = DCTDiffStride((1.7, 2.3), 0.0, ramp=ramp)
    model = keras.Model(inputs, layer(inputs))
    x = images(2, 9, 12, 2)
    hardened = diffstride.harden(model, verbose=False)
    np.testing.assert_allclose(array(hardened(x)), array(model(x)), atol=ATOL)
    strided = diffstride.harden(model, "strided", verbose=False)
    assert type(strided.layers[1]) is keras.layers.AveragePooling2D
    model = keras.Model(inputs, DynOPool(2, name="pool")(inputs))
    with pytest.raises(ValueError, match="use `diffstride.freeze`.*pool"):
        diffstride.harden(model)


@not_jax
def test_costs_are_those_of_what_is_multiplied():
    def macs(layer, *shape):
        model = keras.Sequential([keras.Input(shape), layer])
        return model_cost(model).macs

    h, w, c = shape = (12, 10, 3)
    assert macs(MaxPooling(2), *shape) == macs(AveragePooling(2), *shape) == 0
    assert macs(FractionalMaxPooling2D(1.5), *shape) == 0
    assert macs(BlurPool2D(2, 1), *shape) == 0
    assert macs(BlurPool2D((2, 3), 4), *shape) == 4 * c * (6 * w + 6 * 4)
    assert macs(BlurPool2D((1, 3), 4), *shape) == 4 * c * h * 4
    valid = MaxBlurPool2D((2, 3), 4, padding="valid")
    assert macs(valid, *shape) == 4 * c * (6 * (w - 1) + 6 * 3)
    dct = DCTDiffStride((2, 3), ramp="inner")
    assert macs(dct, *shape) == c * (6 * h * w + 6 * 4 * w)
    dynopool = DynOPool((2, 3))
    assert macs(dynopool, *shape) == 2 * c * (12 * w + 12 * 6)
    # Of the frequencies that differ a product of rank 2 is made besides.
    parts = 6 * h * w + 6 * 5 * w, 2 * h * w + 2 * w * 5 + 6 * 2 * 5
    assert macs(FLCPooling(2), *shape) == c * sum(parts)


@not_jax
@pytest.mark.parametrize(
    "make, text",
    [
        (lambda: BlurPool2D(1.5), "`strides` must be an integer >= 1"),
        (lambda: BlurPool2D(2, 8), "`kernel_size` must be an integer from 1 "),
        (lambda: BlurPool2D(2, 0), "`kernel_size` must be an integer >= 1"),
        (lambda: MaxBlurPool2D(2, padding="full"), "`padding` must be one of"),
        (lambda: MaxPooling((2, 2, 2)), "`strides` must be an integer >= 1"),
        (lambda: AveragePooling(0), "`strides` must be an integer >= 1"),
        (lambda: FLCPooling(0.5), "`strides` must be a number >= 1"),
        (lambda: FractionalMaxPooling2D(0.5), "`strides` must be a number"),
        (lambda: FractionalMaxPooling2D(seed=-1), "`seed` must be an integer"),
        (lambda: DynOPool(0.5), "`strides` must be a number >= 1"),
        (lambda: DynOPool((2, 3), shared_stride=True), "`strides` must be eq"),
        (lambda: DynOPool(2, upper_limit_stride=0.5), "`upper_limit_stride`"),
        (lambda: DCTDiffStride(2, ramp="soft"), "`ramp` must be one of"),
        (
            lambda: MaxBlurPool2D(padding="valid")(images(1, 1, 4, 1)),
            "maps of at least `pool_size`",
        ),
    ],
)
def test_refusals(make, text):
    with pytest.raises(ValueError, match=text) as raised:
        make()
    assert "Received" in str(raised.value)
