"""Half and double precision: what is computed in what, and how well.

Errors are those of the layer against the oracle in float64, for inputs and
cotangents that half precision represents exactly.
"""

import functools

import keras
import ml_dtypes
import numpy as np
import oracle
import pytest
from gradients import output_and_gradients, relative_error
from keras import ops
from maps import BACKEND, FORMATS, JAX, LEARNED, array, to_format

from diffstride import (
    DiffStride,
    DiffStride1D,
    DiffStride3D,
    FixedSpectralPooling,
    masks,
    resampling,
)

HALVES = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Bounds, about twice of what is measured; the unit roundoffs are 5e-4 and 4e-3.
# Of outputs and input gradients, relative to the largest entry.
ERROR = {"float16": 2e-3, "bfloat16": 1.6e-2}
# Of a stride's gradient, relative to the size that it has on average over
# random cotangents.
STRIDE_ERROR = {"float16": 4e-3, "bfloat16": 1.6e-2}

SIZES = {1: (64,), 2: (32, 32), 3: (12, 10, 14)}
STRIDES = {1: (2.3,), 2: (2.3, 1.7), 3: (2.3, 1.7, 2.55)}
SMOOTHNESS = 2.5


double = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="JAX computes in float32 unless told otherwise; so does Keras on "
    "torch, see `test_keras_multiplies_in_float32_on_torch`",
)


@pytest.mark.skipif(BACKEND != "torch", reason="about Keras on torch")
def test_keras_multiplies_in_float32_on_torch():
    x = ops.convert_to_tensor(np.ones((2, 2)), dtype="float64")
    for y in (ops.matmul(x, x), ops.maximum(x, 0.0)):
        assert keras.backend.standardize_dtype(y.dtype) == "float32", (
            "Keras has learned double precision on torch: let the tests marked "
            "`double` run there."
        )


@functools.lru_cache
def problem(rank, ramp, half):
    """Input and cotangent, and all results in float64."""
    random = np.random.default_rng(0)

    def draw(shape):
        values = random.normal(size=shape)
        return values.astype(HALVES[half]).astype("float64")

    def run(x, strides=STRIDES[rank]):
        held = STRIDES[rank] if ramp == "straight_through" else None
        return oracle.diffstride(
            x, tuple(strides), SMOOTHNESS, ramp=ramp, held=held
        )

    x = draw((2, 3, *SIZES[rank]))
    y = run(x)
    cotangent = draw(y.shape)
    # Linear: the matrix has what becomes of each sample in its rows.
    samples = np.prod(SIZES[rank])
    matrix = run(np.eye(samples).reshape(1, samples, *SIZES[rank]))
    matrix = matrix.reshape(samples, -1)
    dx = (cotangent.reshape(6, -1) @ matrix.T).reshape(x.shape)
    step = 1e-4
    changes = [
        (run(x, STRIDES[rank] + offset) - run(x, STRIDES[rank] - offset))
        / (2 * step)
        for offset in step * np.eye(rank)
    ]
    gradient = np.array([(change * cotangent).sum() for change in changes])
    typical = np.array([np.linalg.norm(change) for change in changes])
    return x, cotangent, y, dx, gradient, typical


@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ramp", masks.RAMPS)
@pytest.mark.parametrize("half", HALVES)
def test_half_precision(half, ramp, rank, data_format):
    # Slow to compile on JAX: there each case comes once or not at all.
    if JAX and (data_format == "channels_first") == (half == "bfloat16"):
        pytest.skip("the other format, on JAX")
    if JAX and rank != 2 and ramp != "outer":
        pytest.skip("this ramp has two dimensions, on JAX")
    x, cotangent, *expected = problem(rank, ramp, half)
    layer = LEARNED[rank](
        STRIDES[rank],
        SMOOTHNESS,
        ramp=ramp,
        data_format=data_format,
        dtype=f"mixed_{half}",
    )
    y, dx, (gradient,) = output_and_gradients(
        layer,
        ops.cast(to_format(x, data_format).astype("float32"), half),
        to_format(cotangent, data_format).astype("float32"),
    )
    assert y.dtype == dx.dtype == HALVES[half]
    assert layer.stride_weights.dtype == "float32"
    assert gradient.dtype == "float32"
    expected_y, expected_dx, expected_gradient, typical = expected
    errors = (
        relative_error(y.astype("float64"), to_format(expected_y, data_format)),
        relative_error(
            dx.astype("float64"), to_format(expected_dx, data_format)
        ),
        (np.abs(gradient - expected_gradient) / typical).max(),
    )
    assert errors[0] < ERROR[half]
    assert errors[1] < ERROR[half]
    assert errors[2] < STRIDE_ERROR[half]
    # It is half precision that was measured.
    assert min(errors[:2]) > 1e-5


@pytest.mark.parametrize(
    "policy", ["bfloat16"] if JAX else ["mixed_float16", "bfloat16"]
)
@pytest.mark.parametrize(
    "layer_cls, kwargs",
    [(DiffStride, {"ramp": ramp}) for ramp in masks.RAMPS]
    + [
        (DiffStride, {"frozen": True}),
        (DiffStride3D, {"cropping": False}),
        (DiffStride1D, {}),
        (FixedSpectralPooling, {}),
    ],
)
def test_matrices_are_made_in_float32(layer_cls, kwargs, policy, monkeypatch):
    met = []
    factors = resampling.factors

    def spy(*args):
        met.extend(factors(*args))
        return met

    monkeypatch.setattr(resampling, "factors", spy)
    layer = layer_cls(2.3, dtype=policy, **kwargs)
    x = np.ones((1, *(8,) * layer.rank, 2), "float32")
    half = policy.removeprefix("mixed_")
    assert keras.backend.standardize_dtype(layer(x).dtype) == half
    assert len(met) == layer.rank
    assert layer.stride_weights.dtype == "float32"
    for factor in met:
        for part in factor:
            if part is not None:
                assert keras.backend.standardize_dtype(part.dtype) == "float32"


def test_matrices_are_rounded_once():
    # Waves of a long axis, made in half precision, would have no digit right.
    layer = DiffStride1D(2.0, ramp="inner", norm="forward", dtype="bfloat16")
    wave = np.cos(2 * np.pi * 150 * np.arange(1024) / 1024 + 0.3)
    y = array(layer(wave[None, :, None])).astype("float64")
    expected = np.cos(2 * np.pi * 150 * np.arange(512) / 512 + 0.3)
    assert relative_error(y[0, :, 0], expected) < ERROR["bfloat16"]


@double
@pytest.mark.parametrize("data_format", FORMATS)
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("ramp", masks.RAMPS)
def test_double_precision(ramp, rank, data_format):
    x, cotangent, *expected = problem(rank, ramp, "float16")
    layer = LEARNED[rank](
        STRIDES[rank],
        SMOOTHNESS,
        ramp=ramp,
        data_format=data_format,
        dtype="float64",
    )
    y, dx, (gradient,) = output_and_gradients(
        layer, to_format(x, data_format), to_format(cotangent, data_format)
    )
    assert y.dtype == dx.dtype == gradient.dtype == np.float64
    assert layer.stride_weights.dtype == "float64"
    expected_y, expected_dx, expected_gradient, typical = expected
    assert relative_error(y, to_format(expected_y, data_format)) < 1e-12
    assert relative_error(dx, to_format(expected_dx, data_format)) < 1e-12
    # As exact as finite differences are.
    assert (np.abs(gradient - expected_gradient) / typical).max() < 1e-6


@double
def test_fixed_pooling_in_double_precision():
    x = np.random.default_rng(0).normal(size=(2, 3, 32, 27))
    layer = FixedSpectralPooling(
        (2.3, 1.7), data_format="channels_first", dtype="float64"
    )
    y = array(layer(x))
    assert y.dtype == np.float64
    assert relative_error(y, oracle.fixed(x, (2.3, 1.7))) < 1e-12
