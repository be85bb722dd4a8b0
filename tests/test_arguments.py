"""What constructors refuse and accept, kind by kind."""

import fractions
import json

import keras
import numpy as np
import pytest
from keras import ops
from maps import FIXED, JAX, LEARNED

from diffstride import DiffStride, SpatialPooling, StrideConstraint
from diffstride.resnet import ResidualLayer, Resnet, ResnetBlock

pytestmark = pytest.mark.skipif(JAX, reason="slow on JAX, and the same there")
# Finite in double precision, and not in float32.
HUGE = 3.5e38
TEXTS = ("2", b"2", b"ab", bytearray(b"ab"), np.array("2"), np.str_("2"))
OBJECTS = (1j, fractions.Fraction(5, 2), {2.0}, {2: 3}, object(), float, len)
BOOLEANS = (True, np.True_, np.array(True))
NOT_FINITE = (
    HUGE,
    -HUGE,
    10**400,
    float("nan"),
    float("inf"),
    np.float64(HUGE),
)
NUMBERS = (*TEXTS, *OBJECTS, *BOOLEANS, *NOT_FINITE, [2.0], np.ones(1), -0.5)
COUNTS = (*TEXTS, *OBJECTS, *BOOLEANS, *NOT_FINITE, None, 0, -1, 2.5, 1e30)


def residual(**kwargs):
    return ResidualLayer(**{"filters": 4, "project": True, **kwargs})


def block(**kwargs):
    return ResnetBlock(4, **kwargs)


def network(**kwargs):
    return Resnet(**{"filters": [4, 8], "strides": [1, 2], **kwargs})


def of_strides(rank):
    one = (*TEXTS, *OBJECTS, *BOOLEANS, *NOT_FINITE, None, 0.5, 1e30, 2**25)
    several = [[2.0] * (rank + 1), [], {1, 2, 3}, range(rank + 1), "2" * rank]
    several += [b"2" * rank, memoryview(b"2" * rank), np.array(["2"] * rank)]
    several += [np.full((rank, 1), 2.0), [[2.0]] * rank, dict.fromkeys("abc")]
    return [*one, *several, *([value] * rank for value in one)]


NOT_A_FLAG = ("no", "", b"no", None, [], [True], 2, -1, 0.5, np.ones(2, bool))
NOT_A_CHOICE = (1, True, b"outer", ["outer"], {}, "OUTER?", np.array(["outer"]))
REFUSED = [
    *(
        (layer, "strides", of_strides(rank))
        for layers in (LEARNED, FIXED)
        for rank, layer in layers.items()
    ),
    (residual, "strides", [*of_strides(2), 2.5]),
    (SpatialPooling, "strides", [*COUNTS, (2,), (2, 2, 2), {1, 2}]),
    (SpatialPooling, "pool_size", [*COUNTS, (2,), (2, 2, 2), {1, 2}]),
    (residual, "kernel_size", [*COUNTS, (2,), (2, 2, 2), {1, 2}]),
    (block, "num_layers", [*COUNTS, [2]]),
    (network, "num_layers", [*COUNTS, [2]]),
    (DiffStride, "smoothness_factor", [*NUMBERS, None, 1e30]),
    (DiffStride, "stride_lr_multiplier", [*NUMBERS, None]),
    (DiffStride, "lower_limit_stride", [*NUMBERS, 0.5, 1e30]),
    (DiffStride, "upper_limit_stride", [*NUMBERS, 0.5]),
    (StrideConstraint, "lower_limit", [*NUMBERS, 0.5]),
    (StrideConstraint, "upper_limit", [*NUMBERS, 0.5]),
    (residual, "weight_decay", NUMBERS),
    (network, "weight_decay", NUMBERS),
    *((DiffStride, name, NOT_A_FLAG) for name in ("cropping", "trainable")),
    *((DiffStride, name, NOT_A_FLAG) for name in ("shared_stride", "frozen")),
    (residual, "project", NOT_A_FLAG),
    (block, "project_first", NOT_A_FLAG),
    (network, "id_only", ["no", "", None, [], 2, ["no"], [True, False]]),
    *(
        (make, "channels_first", [x for x in NOT_A_FLAG if x is not None])
        for make in (residual, block, network)
    ),
    (DiffStride, "norm", [*NOT_A_CHOICE, None]),
    (DiffStride, "ramp", [*NOT_A_CHOICE, None]),
    (SpatialPooling, "padding", [*NOT_A_CHOICE, None]),
    (DiffStride, "data_format", NOT_A_CHOICE),
    (network, "strides", [3, None, b"12", {1, 2}, "1; 2", "1, nan"]),
    *(
        (make, "pooling_cls", [3, "DiffStride", {}, [], [3], DiffStride()])
        for make in (residual, network)
    ),
    (residual, "pooling_cls", [dict, lambda **_: None]),
    (DiffStride, "dtype", ["int32", "uint8", "bool", "string", "complex64"]),
]


@pytest.mark.parametrize(
    "make, name, values",
    REFUSED,
    ids=[f"{make.__name__}-{name}" for make, name, _ in REFUSED],
)
def test_refused_in_one_line(make, name, values):
    for value in values:
        with pytest.raises(ValueError, match=f"^`{name}` must be") as caught:
            make(**{name: value})
        message = str(caught.value)
        assert "Received: " in message, value
        assert "\n" not in message and len(message) < 250


@pytest.mark.parametrize("value", [1e30, True, "2", None, [2], {1, 2}])
def test_a_stride_of_a_network_is_named(value):
    with pytest.raises(ValueError, match=r"^`strides\[1\]` must be"):
        Resnet([4, 8], [1, value], pooling_cls=lambda **_: DiffStride())


TWO = [2, 2.0, np.float32(2), np.float16(2), np.int64(2), np.uint8(2)]
TWO += [np.array(2.0), np.array(2), ops.convert_to_tensor(2.0)]


@pytest.mark.parametrize("value", TWO, ids=repr)
def test_numbers_of_all_kinds(value):
    layer = DiffStride(
        value,
        smoothness_factor=value,
        lower_limit_stride=value,
        upper_limit_stride=value,
        stride_lr_multiplier=value,
    )
    assert layer.strides == (2.0, 2.0)
    config = json.loads(json.dumps(layer.get_config()))
    assert config["smoothness_factor"] == config["lower_limit_stride"] == 2
    assert DiffStride.from_config(config).get_config() == layer.get_config()
    for make in (residual, block):
        layer = make(strides=value, weight_decay=value, kernel_size=value)
        json.dumps(layer.get_config())
    model = network(strides=[1, value], num_layers=value, weight_decay=value)
    assert json.loads(json.dumps(model.get_config()))["strides"] == [1, 2]


@pytest.mark.parametrize("make", [list, tuple, np.array, np.float32, ops.array])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_one_for_each_axis(rank, make):
    for layers in (LEARNED, FIXED):
        layer = layers[rank](make([2, 3, 4][:rank]))
        assert layer.strides == (2.0, 3.0, 4.0)[:rank]


@pytest.mark.parametrize("value", [True, 1, np.True_, np.int64(1), np.array(1)])
def test_flags_of_all_kinds(value):
    layer = DiffStride(cropping=value, shared_stride=value, trainable=value)
    assert layer.cropping is layer.shared_stride is layer.trainable is True
    assert DiffStride(frozen=value).frozen is True
    model = network(id_only=value, strides=[1, 1], channels_first=value)
    assert model.id_only == [True] and model.channels_first is True


@pytest.mark.parametrize("value", [HUGE, 1e30])
def test_no_layer_gives_what_is_not_a_number(value):
    """What is accepted stays finite, up to the largest that is."""
    with pytest.raises(ValueError):
        DiffStride(value)
    x = keras.random.uniform((1, 8, 8, 1))
    for kwargs in ({"strides": 2**24}, {"smoothness_factor": 2**24}):
        y = ops.convert_to_numpy(DiffStride(**kwargs)(x))
        assert np.isfinite(y).all()
