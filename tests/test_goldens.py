"""Outputs and gradients of the authors' release; see goldens/README.md."""

import json
import pathlib

import numpy as np
import pytest
from gradients import output_and_gradients, relative_error
from keras import ops

import diffstride

GOLDENS = sorted(pathlib.Path(__file__).with_name("goldens").glob("*.npz"))
TOLERANCE = 1e-4


@pytest.mark.parametrize("path", GOLDENS, ids=lambda p: p.stem)
def test_golden(path):
    golden = np.load(path)
    layer_cls = getattr(diffstride, str(golden["kind"]))
    layer = layer_cls(**json.loads(str(golden["kwargs"])))
    y, dx, dstrides = output_and_gradients(
        layer, golden["x"], golden["cotangent"]
    )
    assert relative_error(y, golden["y"]) < TOLERANCE
    assert relative_error(dx, golden["dx"]) < TOLERANCE
    if "dstrides" in golden:
        expected = golden["dstrides"]
        if np.any(expected):
            assert relative_error(dstrides[0], expected) < TOLERANCE
        else:
            np.testing.assert_array_equal(dstrides[0], expected)
    # The release stores the stride it used; ours leaves the variable alone.
    kwargs = json.loads(str(golden["kwargs"]))
    initial = kwargs["strides"][: 1 if kwargs.get("shared_stride") else 2]
    np.testing.assert_array_equal(
        ops.convert_to_numpy(layer.stride_weights), np.float32(initial)
    )


def test_the_stride_that_the_release_stores_is_the_one_used():
    (path,) = [p for p in GOLDENS if p.stem == "03_DiffStride"]
    golden = np.load(path)
    kwargs = json.loads(str(golden["kwargs"]))
    raised = golden["strides_after"].tolist()
    assert kwargs["strides"] == [1.0, 1.0] and raised[0] > 1.14
    layer = diffstride.DiffStride(**{**kwargs, "strides": raised})
    y = output_and_gradients(layer, golden["x"])[0]
    assert relative_error(y, golden["y"]) < TOLERANCE
