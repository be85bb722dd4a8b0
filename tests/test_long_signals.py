"""Long axes, which go by FFT: the same as by matrices, in far less time."""

import json
import math
import re
import time

import keras
import numpy as np
import oracle
import pytest
from gradients import output_and_gradients, relative_error
from keras import ops
from maps import (
    BACKEND,
    FIXED,
    FORMATS,
    JAX,
    LEARNED,
    apply,
    array,
    from_format,
    gradients,
    images,
    to_format,
)
from scripts_alone import ROOT, script

from diffstride import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling1D,
    SpectralResize,
    SpectralResize1D,
    fourier,
    freeze,
    masks,
    model_cost,
    resampling,
    static_sizes,
)
from diffstride.compute import ComputeModel

benchmark = script("long_signals")

SWITCH = fourier.FFT_SIZE
NORMS = resampling.NORMS
RESIZE = {1: SpectralResize1D, 2: SpectralResize}

only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="sizes are always known on this backend"
)


@pytest.fixture
def go_by(monkeypatch):
    """Makes axes go by FFT from a size on."""
    return lambda size: monkeypatch.setattr(fourier, "FFT_SIZE", size)


@pytest.fixture
def by_fft(monkeypatch):
    """Axes that went by FFT, as they do."""
    met = []
    usual = fourier.apply_spectrum

    def spy(spectrum, x, axis):
        met.append(axis)
        return usual(spectrum, x, axis)

    monkeypatch.setattr(fourier, "apply_spectrum", spy)
    return met


def compare_paths(go_by, layer, x, tolerance=1e-5):
    """Output and gradients by FFT, once they are those of the matrices."""
    go_by(10**9)
    cotangent = images(*apply(layer, x).shape, seed=1)
    expected = gradients(layer, x, cotangent)
    go_by(1)
    found = gradients(layer, x, cotangent)
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None:
            assert relative_error(ours, theirs) < tolerance
    return cotangent, *found


LENGTHS = [1, 2, 3, 5, 8, 97, SWITCH - 1, SWITCH, 1031]  # 97, 1031 are prime


class TestOneDimension:
    @pytest.mark.parametrize("ramp", masks.RAMPS)
    @pytest.mark.parametrize("size", [8, 1031] if JAX else LENGTHS)
    def test_learned(self, size, ramp, go_by):
        norm = NORMS[size % 3]
        layer = DiffStride1D(
            2.3, 2.5, ramp=ramp, norm=norm, data_format=FORMATS[size % 2]
        )
        x = images(2, 3, size)
        _, y, *_ = compare_paths(go_by, layer, x)
        expected = oracle.diffstride(x, (2.3,), 2.5, ramp=ramp, norm=norm)
        assert relative_error(y, expected) < 2e-6

    @pytest.mark.parametrize("size", [SWITCH, 1031])
    @pytest.mark.parametrize("ramp", masks.RAMPS[:1] if JAX else masks.RAMPS)
    def test_gradients_are_those_of_finite_differences(self, ramp, size):
        if JAX and size != 1031:
            pytest.skip("one length, on JAX")
        stride, step = 2.3, 1e-3
        x = images(2, 3, size)

        def run(x, stride_now):
            held = (stride,) if ramp == "straight_through" else None
            return oracle.diffstride(
                x, (stride_now,), 2.5, ramp=ramp, held=held
            )

        cotangent = images(*run(x, stride).shape, seed=1)
        layer = DiffStride1D(stride, 2.5, ramp=ramp)
        _, dx, gradient = gradients(layer, x, cotangent)
        # Linear in x.
        change = images(2, 3, size, seed=2)
        expected = (run(change, stride) * cotangent).sum()
        assert (dx * change).sum() == pytest.approx(expected, abs=1e-3)
        change = (run(x, stride + step) - run(x, stride - step)) / (2 * step)
        expected = (change * cotangent).sum()
        scale = np.linalg.norm(change)  # Its size for random cotangents.
        assert gradient[0] == pytest.approx(expected, abs=3e-3 * scale)

    @pytest.mark.parametrize("cropping", [True, False])
    def test_without_cropping_and_shared(self, cropping, go_by):
        layer = DiffStride1D(3.0, 4.0, cropping, shared_stride=True)
        compare_paths(go_by, layer, images(2, 3, 60))

    @pytest.mark.parametrize("size", [5, 8, SWITCH + 1])
    def test_fixed_and_frozen(self, size, go_by):
        x = images(2, 3, size)
        layer = FixedSpectralPooling1D(2.6, norm="ortho")
        _, y, *_ = compare_paths(go_by, layer, x)
        expected = oracle.fixed(x, (2.6,), norm="ortho")
        assert relative_error(y, expected) < 2e-6
        compare_paths(go_by, DiffStride1D(2.6, frozen=True), x)

    @pytest.mark.parametrize(
        "size, target", [(5, 9), (8, 13), (9, 4), (6, 6), (1, 4), (1031, 90)]
    )
    def test_resizing(self, size, target, go_by):
        layer = SpectralResize1D(target, norm=NORMS[size % 3])
        compare_paths(go_by, layer, images(2, 3, size))


def test_where_the_switch_is(by_fft):
    layer = FixedSpectralPooling1D(2.0, data_format="channels_last")
    layer(images(1, SWITCH - 1, 1))
    assert not by_fft
    layer(images(1, SWITCH, 1))
    assert by_fft == [1]
    # A plane of that height is none yet.
    layer = SpectralResize((4, 2), data_format="channels_last")
    layer(images(1, 2 * SWITCH - 1, 2, 1))
    assert by_fft == [1]
    layer(images(1, 2 * SWITCH, 2, 1))
    assert by_fft.pop() == 1 and by_fft == [1]
    # The larger side counts.
    SpectralResize1D(SWITCH, data_format="channels_last")(images(1, 8, 1))
    assert by_fft == [1, 1]


@pytest.mark.parametrize("ramp", masks.RAMPS)
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize(
    "sizes", [(12, 17)] if JAX else [(12, 17), (16, 16), (1, 9), (8, 7, 12)]
)
def test_each_axis_of_planes_and_volumes(
    sizes, data_format, ramp, go_by, by_fft
):
    if JAX and data_format == FORMATS[0]:
        pytest.skip("one format, on JAX")
    strides = (1.7, 2.1, 1.4)[: len(sizes)]
    layer = LEARNED[len(sizes)](strides, 2.5, ramp=ramp)
    layer.data_format = data_format
    x = images(2, 3, *sizes)
    cotangent, y, *every = compare_paths(go_by, layer, x)
    expected = oracle.diffstride(x, strides, 2.5, ramp=ramp)
    assert relative_error(y, expected) < 2e-6
    if JAX:
        return
    # One axis by FFT, the others by matrices.
    go_by(max(sizes) // 2)
    by_fft.clear()
    y, *some = gradients(layer, x, cotangent)
    assert by_fft
    assert relative_error(y, expected) < 2e-6
    for ours, theirs in zip(some, every, strict=True):
        assert relative_error(ours, theirs) < 1e-5


def test_fixed_planes_and_resized_ones(go_by):
    x = images(2, 3, 12, 9)
    compare_paths(go_by, FIXED[2]((1.7, 2.1)), x)
    compare_paths(go_by, SpectralResize((8, 15)), x)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
def test_half_precision(half):
    stride, size = 2.3, SWITCH
    layer = DiffStride1D(
        stride, 2.5, norm="forward", data_format="channels_last"
    )
    layer.dtype_policy = f"mixed_{half}"
    x = array(ops.cast(ops.cast(images(2, 3, size), half), "float32"))
    y, dx, (gradient,) = output_and_gradients(
        layer, ops.cast(to_format(x, "channels_last"), half)
    )
    assert str(y.dtype) == str(dx.dtype) == half
    assert gradient.dtype == "float32"
    expected = oracle.diffstride(x, (stride,), 2.5, norm="forward")
    y = from_format(y.astype("float32"), "channels_last")
    # The rounding of the output is the only one.
    error = relative_error(y, expected)
    assert 1e-5 < error < {"float16": 5e-4, "bfloat16": 4e-3}[half]


class TestKeptFrequencies:
    """Matrices are made of those waves alone that have a weight."""

    @pytest.mark.parametrize("ramp", masks.RAMPS)
    def test_they_suffice(self, ramp, monkeypatch):
        met = []
        wave_matrix = resampling.wave_matrix

        def spy(size, output_size, weights, sines):
            matrix = wave_matrix(size, output_size, weights, sines)
            met.append((array(matrix), len(weights)))
            return matrix

        monkeypatch.setattr(resampling, "wave_matrix", spy)
        layer = DiffStride((2.3, 4.0), 2.5, ramp=ramp)
        x = images(2, 3, 64, 45)
        results = []
        for whole in (256, 0):
            monkeypatch.setattr(resampling, "WHOLE_SIZE", whole)
            results.append(gradients(layer, x) if not JAX else [])
            layer.data_format = "channels_first"
            layer(x)
            met.append(None)
        if not JAX:
            for ours, theirs in zip(*results, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
        made, kept = (
            [each for each in part if each is not None]
            for part in (met[: met.index(None)], met[met.index(None) :])
        )
        assert made and len(made) == len(kept)
        for (theirs, whole), (ours, some) in zip(made, kept, strict=True):
            rows, columns = ours.shape
            assert whole == columns // 2 + 1
            assert some == rows // 2 + 1 < whole
            np.testing.assert_allclose(ours, theirs, atol=1e-6)


@only_tensorflow
class TestSizesOfTheGraph:
    @pytest.mark.parametrize("ramp", masks.RAMPS)
    def test_unknown(self, ramp, go_by):
        from test_resampling import compare_graph_and_host

        go_by(30)
        sizes = ((1,), (5,), (29,), (30,), (31,), (64,))
        compare_graph_and_host(DiffStride1D(1.9, 2.5, ramp=ramp), sizes)

    def test_unknown_and_frozen_or_fixed(self, go_by):
        import tensorflow as tf

        go_by(30)
        for layer in (
            DiffStride1D(1.9, 2.5, frozen=True),
            FixedSpectralPooling1D(1.9),
        ):
            unknown = tf.TensorSpec([None, None, 3])
            for jit in (False, True):
                run = tf.function(
                    layer, input_signature=[unknown], jit_compile=jit
                )
                for size in (20, 41):
                    x = images(2, size, 3)
                    y = run(x)
                    np.testing.assert_allclose(y, layer(x), atol=1e-5)
            assert y.shape[1] == layer.compute_output_shape(x.shape)[1]

    def test_a_graph_without_ffts(self, go_by):
        import tensorflow as tf

        layer = DiffStride1D(1.9, 2.5, frozen=True)
        unknown = tf.TensorSpec([None, None, 3])
        for size, expected in ((SWITCH, True), (math.inf, False)):
            go_by(size)
            run = tf.function(layer).get_concrete_function(unknown)
            assert ("RFFT" in str(run.graph.as_graph_def())) == expected

    def test_of_the_map_to_resize_to(self, go_by):
        import tensorflow as tf

        go_by(30)
        layer = SpectralResize1D(data_format="channels_last")
        unknown = tf.TensorSpec([None, None, 3])
        run = tf.function(
            lambda x, like: layer([x, like]), input_signature=[unknown] * 2
        )
        for size, target in ((8, 12), (8, 50), (50, 8)):
            x, like = images(2, size, 3), images(2, target, 3)
            np.testing.assert_allclose(run(x, like), layer([x, like]), 1e-4)

    @pytest.mark.parametrize("jit", [False, True])
    def test_training(self, jit):
        keras.utils.set_random_seed(0)
        model = keras.Sequential(
            [
                keras.Input((SWITCH, 1)),
                DiffStride1D(2.0, norm="forward", data_format="channels_last"),
                keras.layers.Conv1D(2, 3, activation="relu"),
                # Longer and shorter ones, of a size unknown to the graph.
                DiffStride1D(2.0, norm="forward", data_format="channels_last"),
                keras.layers.Conv1D(1, 3),
                keras.layers.GlobalMaxPooling1D(),
            ]
        )
        if jit:
            static_sizes(model)
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=jit)
        before = array(model.layers[0].stride_weights)
        history = model.fit(
            images(4, SWITCH, 1), images(4, 1), epochs=2, verbose=0
        )
        assert np.isfinite(history.history["loss"]).all()
        assert (array(model.layers[0].stride_weights) != before).all()

    @pytest.mark.parametrize("size", [None, SWITCH])
    def test_export(self, size, tmp_path):
        import tensorflow as tf

        inputs = keras.Input((size, 1))
        layer = DiffStride1D(2.3, data_format="channels_last")
        model = keras.Model(inputs, layer(inputs))
        frozen = freeze(model)
        frozen.export(tmp_path / "model", verbose=False)
        serve = tf.saved_model.load(tmp_path / "model").serve
        for length in (SWITCH, 100) if size is None else (SWITCH,):
            x = images(2, length, 1)
            np.testing.assert_allclose(serve(x), model(x), atol=1e-5)


@pytest.mark.parametrize("size", [16_000, 160_000])
def test_a_long_signal_takes_no_second(size):
    stride = 2.5
    layer = DiffStride1D(stride, norm="forward")
    x = images(1, 1, size)
    y, dx, gradient = gradients(layer, x)
    expected = oracle.diffstride(x, (stride,), norm="forward")
    # The mask's place is rounded to float32: 0.004 of 40,000 frequencies.
    assert relative_error(y, expected) < 1e-5
    assert np.isfinite(dx).all() and np.isfinite(gradient).all()
    if not JAX:  # It compiles each time.
        begin = time.process_time()  # Of all threads, whoever else computes.
        gradients(layer, x)
        assert time.process_time() - begin < 1.0


class TestCost:
    def test_macs(self):
        size, output = 4096, 2056
        shape = (size, 3)
        layer = DiffStride1D(2.0, 4.0, data_format="channels_last")
        model = keras.Sequential([keras.Input(shape), layer])
        cost = model_cost(model)
        assert cost.layers[0].output_shape == (output, 3)
        expected = sum(2.5 * n * np.log2(n) for n in (size, output))
        assert cost.macs == pytest.approx(3 * expected, abs=3)
        assert fourier.fft_macs(1) == 0

    def test_macs_of_planes(self):
        # Two parts along the long axis, as vertical masks are asymmetric.
        layer = DiffStride((2.0, 2.0), data_format="channels_last")
        model = keras.Sequential([keras.Input((2048, 12, 1)), layer])
        rows, columns = model_cost(model).layers[0].output_shape[:2]
        ffts = sum(map(fourier.fft_macs, (2048, rows)))
        products = 2 * rows * 12 * columns
        assert model_cost(model).macs == 2 * 12 * ffts + products

    def test_a_longer_stride_costs_less(self):
        layer = DiffStride1D(2.0, data_format="channels_last")
        model = keras.Sequential(
            [keras.Input((4096, 1)), layer, keras.layers.Conv1D(2, 3)]
        )
        compute = ComputeModel(model)
        costs = [
            compute.macs([np.array([s], "float32")]) for s in (1.5, 2, 3, 8)
        ]
        assert costs == sorted(costs, reverse=True)
        assert len(set(costs)) == 4


class TestBenchmark:
    """What it measures is put into tables, and the documents hold these."""

    @pytest.mark.skipif(JAX, reason="the same there, and compiled")
    def test_a_short_run(self, tmp_path, monkeypatch, capsys):
        for name, value in (
            ("LENGTHS", (64,)),
            ("SHORT_LENGTHS", (32,)),
            ("OTHER_SIZES", ((1, 2), (1, 4, 2))),
            ("MEMORY_CASES", ()),
        ):
            monkeypatch.setattr(benchmark, name, value)
        path = tmp_path / "long.json"
        assert benchmark.main(["--seconds=0", f"--output={path}"]) == 0
        results = json.loads(path.read_text())
        assert capsys.readouterr().out.strip() == benchmark.tables(results)
        assert {row["size"] for row in results["long"]} == {64}
        forms = [(row["layer"], row["form"]) for row in results["short"]]
        assert len(set(forms)) == len(forms) == 8
        assert fourier.FFT_SIZE == SWITCH

    def test_documents_hold_its_tables(self):
        path = ROOT / "results" / "long_signals.json"
        results = json.loads(path.read_text())
        section = (ROOT / "docs" / "layers.md").read_text()
        section = section.partition("## Long signals")[2].partition("\n## ")[0]
        shown = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
        text = benchmark.tables(results)
        assert len(shown) == 2 and all(t.strip() in text for t in shown)
        rows = {(r["layer"], r["size"]): r for r in results["long"]}
        words = " ".join(section.split())
        ratios = [
            benchmark.ratio(row, rows[benchmark.PAIR, size])
            for (name, size), row in rows.items()
            if size == 160_000 and name != benchmark.PAIR
        ]
        low, high = min(ratios), max(ratios)
        assert f"takes {low:.1f} to {high:.1f} times a bare pair" in words
        megabytes = [f"{row['backward_mb']:.0f}" for row in results["memory"]]
        assert (
            "4,000 samples take {} MB as a matrix and {} by FFT, 160,000 take "
            "{}".format(*megabytes)
        ) in words
        for key in ("device", "version"):
            assert results["environment"][key] in words
