"""Sizes that go in steps: fewer of them, of the same masks."""

import keras
import numpy as np
import pytest
from maps import BACKEND, JAX, array, images
from models import XLA, outputs_of, small, small_resnet

from diffstride import (
    DCTDiffStride,
    DiffStride,
    freeze,
    harden,
    model_cost,
    static_sizes,
)
from diffstride.compute import ComputeModel
from diffstride.compute_budget import project
from diffstride.masks import RAMPS, CosineLowPass, LowPass
from diffstride.profiling import pooling_states, profile

on_the_host = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="of the host, on each backend alike"
)
IMAGES = images(2, 28, 28, 1)


def network(**arguments):
    keras.utils.set_random_seed(0)
    return small_resnet((1, 2, 2), num_layers=1, size_step=4, **arguments)


def sizes(model):
    return [state.output_size for state in pooling_states(profile(model))]


def allowed(size, step, ramp, keep_parity):
    """All sizes that a map may get, of which one is its own."""
    first = 0
    if keep_parity and step > 1:
        step *= 1 + step % 2
        first = 0 if ramp == "straight_through" else size % 2
    return [*range(first, size, step), size]


@pytest.mark.parametrize("keep_parity", [True, False])
@pytest.mark.parametrize("ramp", RAMPS)
def test_of_the_sizes_allowed_it_is_the_next(ramp, keep_parity):
    options = {"ramp": ramp, "keep_parity": keep_parity}
    for step in (1, 2, 3, 4, 16):
        own = LowPass(1.25, **options)
        low_pass = LowPass(1.25, **options, size_step=step)
        for size in (1, 2, 3, 7, 8, 15, 16, 28, 33, 39):
            for stride in (1.0, 1.7, 2.5, 9.0):
                both, strides = (size, size), np.float32([stride, stride])
                for least, band in zip(
                    own.output_sizes(both, strides),
                    low_pass.bands(both, strides),
                    strict=True,
                ):
                    among = allowed(size, step, ramp, keep_parity)
                    among = [n for n in among if n >= least]
                    assert band.output_size == min(among)
                    assert isinstance(band.output_size, int)
                    # Nothing that has a weight is cut off.
                    assert (band.negative > 0).sum() <= min(among) // 2 + 1
                    if keep_parity and step == 2 and ramp != RAMPS[2]:
                        assert band.output_size == least


@pytest.mark.parametrize("low_pass", [LowPass, CosineLowPass])
def test_sizes_that_are_known_at_run_time_are_the_same(low_pass):
    mask = low_pass(1.25, size_step=4)
    for size in (7,) if JAX else (7, 20, 29):
        for stride in (1.3, 2.5):
            strides = np.float32([stride])
            (known,) = mask.output_sizes((size,), strides)
            tensors = map(
                keras.ops.convert_to_tensor, (np.int32(size), strides)
            )
            size_, strides_ = tensors
            (found,) = mask.output_sizes((size_,), strides_)
            assert int(found) == known <= size


@pytest.mark.parametrize("value", [0, 1.5, "4", None, True])
def test_what_is_no_step(value):
    with pytest.raises(ValueError, match="`size_step` must be an integer >= 1"):
        DiffStride(size_step=value)


@pytest.mark.parametrize(
    "layer_cls", [DiffStride] if JAX else [DiffStride, DCTDiffStride]
)
def test_saved_and_loaded(layer_cls, tmp_path):
    layer = layer_cls((1.5, 2.0), 1.0, size_step=3, keep_parity=False)
    model = small(layer, (13, 12))
    x = images(2, 13, 12, 1)
    expected = outputs_of(model, x)
    assert layer.output_sizes((13, 12), layer.initial_strides) == (12, 9)
    model.save(tmp_path / "m.keras")
    loaded = keras.models.load_model(tmp_path / "m.keras")
    assert loaded.layers[2].size_step == 3
    np.testing.assert_array_equal(outputs_of(loaded, x), expected)


@on_the_host
@pytest.mark.parametrize(
    "ramp, smoothness", [("outer", 1.0), *((ramp, 0.0) for ramp in RAMPS)]
)
def test_frozen_and_hardened(ramp, smoothness):
    model = network(ramp=ramp, final_smoothness_factor=0.0)
    for layer in model.pooling_layers:
        layer.set_smoothness(smoothness)
        layer.stride_weights.assign([1.3, 1.9])
    assert all(n % 4 == 0 for size in sizes(model) for n in size)
    frozen, hardened = freeze(model), harden(model, verbose=False)
    assert sizes(frozen) == sizes(hardened) == sizes(model)
    assert model_cost(frozen).macs <= model_cost(model).macs
    expected = array(model(IMAGES))
    np.testing.assert_allclose(array(frozen(IMAGES)), expected, atol=1e-5)
    if not smoothness:  # Masks are hard already, and stay as they are.
        np.testing.assert_allclose(array(hardened(IMAGES)), expected, atol=1e-5)


@on_the_host
def test_a_budget_counts_the_sizes_that_maps_have():
    model = network(placement="before")
    compute = ComputeModel(model)
    start = compute.strides()
    for factor in (1.0, 0.7, 0.4):
        budget = factor * compute.macs(start)
        strides = project(compute, start, budget)
        for layer, value in zip(compute.layers, strides, strict=True):
            layer.stride_weights.assign(value)
        assert compute.macs(strides) == model_cost(model).macs
        np.testing.assert_allclose(compute.macs(strides), budget, rtol=0.1)


@pytest.mark.skipif(BACKEND == "torch", reason="nothing is compiled there")
def test_fewer_sizes_are_fewer_compilations():
    compiled = {}
    for step in (1, 6):
        layer = DiffStride((1.2, 1.2), 1.0, ramp="inner", size_step=step)
        model = static_sizes(small(layer))
        model.compile("sgd", "mse", **XLA)
        x, found = images(2, 12, 12, 1), set()
        for stride in (1.2, 1.4, 1.7, 2.0, 2.4, 1.4, 1.2):
            layer.stride_weights.assign([stride, stride])
            found.add(layer.output_sizes((12, 12), array(layer.stride_weights)))
            np.testing.assert_allclose(
                model.predict_on_batch(x), outputs_of(model, x), atol=1e-5
            )
        compiled[step] = model.predict_function.compiled
        assert compiled[step] == len(found)
    assert compiled == {1: 3, 6: 2}
