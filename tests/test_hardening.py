"""Networks with fixed strides, made of learned ones."""

import functools
import subprocess
import sys

import keras
import numpy as np
import pytest
from keras import ops
from maps import TORCH, array
from models import small_resnet

from diffstride import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    SpatialPooling,
    freeze,
    harden,
    model_cost,
)
from diffstride.compute import ComputeModel
from diffstride.folding import folded_strides
from diffstride.internals import sublayers
from diffstride.profiling import pooling_states, profile
from diffstride.resnet import ResidualLayer, Resnet
from diffstride.rounding import Step, at_sizes_of, candidates

# oneDNN crashes in gradients of strided convolutions of three images.
IMAGES = np.random.RandomState(0).rand(4, 28, 28, 1).astype("float32")


def network(strides=(1.2, 2.3, 2.6), **arguments):
    return small_resnet(strides, **{"num_layers": 1, **arguments})


# Graphs are made alike on all backends, fastest on torch.
only_torch = pytest.mark.skipif(not TORCH, reason="the same on all backends")


def output(model, images=IMAGES):
    return ops.convert_to_numpy(model(images))


def sizes(model):
    return [state.output_size for state in pooling_states(profile(model))]


@only_torch
@pytest.mark.parametrize(
    "ramp, shape",
    [
        ("outer", (17, 20, 1)),
        ("inner", (28, 28, 1)),
        ("straight_through", (17, 20, 1)),
    ],
)
def test_spectral_keeps_the_sizes(ramp, shape):
    model = network(ramp=ramp, shape=shape, shared_stride=True)
    hardened = harden(model, verbose=False)
    assert sizes(hardened) == sizes(model)
    for layer in hardened.pooling_layers:
        assert layer.frozen and layer.smoothness_factor == 0
    assert hardened.count_params() >= model.count_params()
    assert sizes(freeze(hardened)) == sizes(model)


@only_torch
@pytest.mark.parametrize("ramp", ["outer", "inner", "straight_through"])
def test_maps_of_a_sample_stay(ramp):
    arguments = {"keep_parity": False, "smallest_size": 1, "ramp": ramp}
    model = network(
        (1.0, 9.5, (1.0, 3.0)),
        placement="before",
        smoothness_factor=0.0,
        **arguments,
    )
    assert sizes(model)[-1][1] == 1
    hardened = harden(model, verbose=False)
    assert sizes(hardened) == sizes(model)
    np.testing.assert_allclose(output(hardened), output(model), atol=1e-5)
    # A loss tells 1 from 2: here the last map is to be as small as can be.
    seen = {}

    def loss():
        seen[sizes(model)[-1]] = np.prod(sizes(model)[-1])
        return seen[sizes(model)[-1]]

    plain = harden(model, "pooled", verbose=False, loss=loss)
    *_, last = (
        call.output_shape[1:3]
        for call in profile(plain)
        if call.name.endswith("conv_out")
    )
    assert len(seen) > 1
    assert last == min(seen, key=seen.get) and last[1] == 1


@only_torch
def test_spectral_is_exact_once_masks_are_hard():
    model = network(final_smoothness_factor=0.0)
    for layer in model.pooling_layers:
        layer.set_smoothness(0.0)
    hardened = harden(model, verbose=False)
    np.testing.assert_allclose(output(hardened), output(model), atol=1e-5)
    assert model_cost(hardened).macs <= model_cost(model).macs


def test_a_hard_layer_is_fixed_spectral_pooling():
    model = keras.Sequential(
        [keras.Input((28, 28, 1)), DiffStride((1.7, 2.4), ramp="inner")]
    )
    hardened = harden(model, verbose=False)
    height, width = model(IMAGES).shape[1:3]
    fixed = FixedSpectralPooling((28 / height, 28 / width))
    np.testing.assert_allclose(
        output(hardened), ops.convert_to_numpy(fixed(IMAGES)), atol=1e-4
    )


def averaged(strides, **arguments):
    return SpatialPooling(strides, strides, **arguments)


@pytest.mark.parametrize("placement", ["after", "before"])
@pytest.mark.parametrize("to, fixed", [("strided", None), ("pooled", averaged)])
def test_plain_is_the_network_with_fixed_strides(placement, to, fixed):
    """At integer strides nothing is rounded."""
    arguments = {"num_layers": 2, "pooling_placement": placement}
    pooling = functools.partial(DiffStride, ramp="inner", norm="forward")
    model = Resnet([4, 4, 8], [1, 2, 2], 5, pooling_cls=pooling, **arguments)
    plain = Resnet([4, 4, 8], [1, 2, 2], 5, pooling_cls=fixed, **arguments)
    for each in (model, plain):
        each.build((None, 28, 28, 1))
    random = np.random.RandomState(0)
    for variable in model.weights:  # Statistics that are not the initial ones.
        if variable.name.startswith("moving"):
            variable.assign(random.uniform(0.5, 1.5, variable.shape))
    plain.set_weights([w for w in model.get_weights() if w.shape != (2,)])
    hardened = harden(model, to, verbose=False)
    np.testing.assert_allclose(output(hardened), output(plain), atol=1e-5)
    assert hardened.count_params() == plain.count_params()
    least = model_cost(plain).macs
    if to == "pooled":  # Its shortcut is pooled first.
        assert model_cost(hardened).macs <= least
    else:
        assert model_cost(hardened).macs == least


def test_strided_takes_the_strides_closest_to_the_learned_sizes():
    hardened = harden(network((1.9, 3.2, 1.3)), "strided", verbose=False)
    shapes = {call.name: call.output_shape[1:3] for call in profile(hardened)}
    assert shapes["stem"] == (14, 14)
    *_, last = (shapes[name] for name in shapes if name.endswith("conv_in"))
    assert last == (7, 7)


@only_torch
def test_integer_strides_stay_within_a_budget():
    model = network((1.4, 1.6, 2.6), placement="before")
    costs = []
    for budget in (None, 400_000, 250_000, 232_000):
        hardened = harden(model, "pooled", verbose=False, macs=budget)
        costs.append(model_cost(hardened).macs)
        assert budget is None or costs[-1] <= 1.05 * budget
    # Of the plans at the learned sizes the last budget would be half unused.
    assert costs[-1] >= 0.8 * budget
    assert len({*costs}) > 2
    # The closest sizes would leave a part of it unused.
    closest, budget = costs[0], 1.25 * costs[0]
    hardened = harden(model, "pooled", verbose=False, macs=budget)
    assert closest < 0.95 * budget <= model_cost(hardened).macs
    with pytest.raises(ValueError, match="`macs` must be what integer strides"):
        harden(model, "strided", macs=1000)


def conv(filters, size, **kwargs):
    return keras.layers.Conv2D(filters, size, padding="same", **kwargs)


def hard(strides=2.0):
    return DiffStride(strides, ramp="inner", final_smoothness_factor=0.0)


def two_for_one():
    """Both poolings could be folded into the convolution between them."""
    norm = keras.layers.BatchNormalization
    first = [conv(2, (3, 1)), hard(), norm(), conv(2, (1, 3)), norm()]
    second = [conv(2, (3, 1)), hard(), conv(2, (1, 3))]
    return keras.Sequential([keras.Input((16, 16, 4)), *first, *second])


def in_two_chains():
    shared, inputs = conv(4, 3), keras.Input((16, 16, 4))
    one, two = (
        keras.Sequential([keras.Input((16, 16, 4)), shared, hard(strides)])
        for strides in (2.0, 4.0)
    )
    return keras.Model(inputs, [one(inputs), two(inputs)])


def outside_of_its_chain():
    shared, inputs = conv(4, 3), keras.Input((16, 16, 4))
    chain = keras.Sequential([keras.Input((16, 16, 4)), shared, hard()])
    return keras.Model(inputs, shared(chain(inputs)))


def pooling_in_two_chains():
    pooling, inputs = hard(), keras.Input((16, 16, 4))
    size = keras.Input((None, None, 4))
    one = keras.Sequential([size, conv(4, 3), pooling])
    two = keras.Sequential([size, keras.layers.MaxPooling2D(1), pooling])
    return keras.Model(inputs, two(one(inputs)))


def between(*layers):
    return lambda: keras.Sequential(
        [keras.Input((16, 16, 4)), conv(4, 3), *layers, hard(), conv(2, 3)]
    )


@only_torch
@pytest.mark.parametrize(
    "make, folded",
    [
        (two_for_one, 3),
        (in_two_chains, 0),
        (outside_of_its_chain, 0),
        (pooling_in_two_chains, 0),
        (between(keras.layers.BatchNormalization(), keras.layers.ReLU()), 2),
        (between(keras.layers.BatchNormalization(axis=1)), 0),
        (between(keras.layers.Dropout(0.5, noise_shape=(1, 16, 16, 1))), 0),
        (between(conv(4, 1)), 2),
        (between(conv(4, 3, dilation_rate=2)), 0),
    ],
)
def test_strides_are_folded_where_nothing_else_changes(make, folded):
    model = make()
    hardened = harden(model, "strided", verbose=False)
    x = np.ones((2, *model.input_shape[1:]), "float32")
    shapes, expected = (
        [y.shape for y in keras.tree.flatten(each(x, training=True))]
        for each in (hardened, model)
    )
    assert shapes == expected
    compute = ComputeModel(model, harden_to="strided")
    assert compute.macs(compute.strides()) == model_cost(hardened).macs
    found = folded_strides(model, "strided", profile(model))
    assert len(found) == folded


@only_torch
@pytest.mark.parametrize("axis", [0, 1])
def test_integer_strides_may_be_chosen_by_a_loss(axis):
    """Here the axis matters whose map is to stay large."""
    model = network((1.0, 1.5, 1.5), placement="before")
    before = [array(layer.stride_weights) for layer in model.pooling_layers]
    seen = []

    def loss():
        seen.append(tuple(sizes(model)))
        return -sizes(model)[-1][axis] / sizes(model)[-1][1 - axis]

    budget = 0.25 * model_cost(model).macs
    hardened = harden(model, "strided", verbose=False, macs=budget, loss=loss)
    assert model_cost(hardened).macs <= 1.05 * budget
    *_, last = (
        call.output_shape[1:3]
        for call in profile(hardened)
        if call.name.endswith("conv_out")
    )
    assert last[axis] > last[1 - axis]
    assert len({*seen}) == len(seen) > 4  # None is measured twice.
    for old, layer in zip(before, model.pooling_layers, strict=True):
        np.testing.assert_array_equal(array(layer.stride_weights), old)
        assert not layer.frozen
    last = []
    for first in (np.nan, 0.0):  # The second is the least, or the first.
        values = iter([first, 1.0] + [2.0] * len(seen))
        some = harden(model, "strided", None, False, budget, values.__next__)
        assert model_cost(some).macs <= 1.05 * budget
        last.append([call.output_shape for call in profile(some)])
    assert last[0] != last[1]
    with pytest.raises(ValueError, match="`loss` must be finite"):
        harden(model, "strided", None, False, budget, lambda: np.nan)
    with pytest.raises(ValueError, match="`loss` must be None or a function"):
        harden(model, "strided", loss=0.3)


@only_torch
def test_integer_strides_may_be_chosen_by_trials():
    model = network((1.0, 1.5, 1.5), placement="before")
    budget = 0.3 * model_cost(model).macs
    tried = []

    def macs_last(network, strides):
        """Of those with the least loss, which has the most MACs?"""
        tried.append((model_cost(network).macs, strides, network))
        return -tried[-1][0]

    def chosen(trial, trials, loss=None):
        tried.clear()
        arguments = ("strided", None, False, budget, loss, trial, trials)
        return model_cost(harden(model, *arguments)).macs

    most = chosen(macs_last, 6)
    assert most == max(macs for macs, *_ in tried) and len(tried) == 6
    assert len({str(strides) for _, strides, _ in tried}) == 6
    shares = [macs / budget for macs, *_ in tried]  # Few use the budget.
    assert max(shares) == shares[0] <= 1.05 and shares[0] > 0.95 > shares[-1]
    for _, strides, network_tried in tried:
        assert [len(each) for each in strides] == [2, 2, 2]
        *_, last = (
            call.output_shape[1:3]
            for call in profile(network_tried)
            if call.name.endswith("conv_out")
        )
        size = np.array((28, 28))
        for each in strides:
            size = -(-size // each)
        assert last == tuple(size)
    # Without a trial it is the first of them.
    first, *_ = (macs for macs, *_ in tried)
    assert chosen(macs_last, 1) == first and not tried  # It is known.
    # A loss orders them.
    orders = []
    for step in (1, -1):
        losses = iter(range(0, 1000 * step, step)).__next__
        chosen(macs_last, 3, losses)
        orders.append([str(strides) for _, strides, _ in tried])
    assert len(orders[0]) == len(orders[1]) == 3 and orders[0] != orders[1]
    # One that diverges is not taken, whatever it costs.
    macs = chosen(lambda *of: (macs_last(*of), np.nan)[len(tried) < 2], 2)
    assert macs == tried[1][0] != tried[0][0]
    with pytest.raises(ValueError, match="`trial` must give a finite number"):
        chosen(lambda *_: np.nan, 2)
    with pytest.raises(ValueError, match="`trial` must be None or a function"):
        chosen(0.3, 2)
    with pytest.raises(ValueError, match="`trials` must be an integer >= 1"):
        chosen(macs_last, 0)


@pytest.mark.parametrize(
    "size, learned, expected",
    [
        (28, 14, {2, 3}),
        (28, 18, {1, 2}),
        (28, 30, {1}),
        (6, 2, {3, 6}),
        (8, 2, {4, 8}),
        (10, 3, {4, 5}),
        (1, 2, {1}),
    ],
)
def test_of_strides_to_one_size_the_smallest(size, learned, expected):
    assert {*candidates(size, learned)} == expected


@pytest.mark.parametrize(
    "ramp, size, wanted",
    [
        ("outer", 26, 13),
        ("outer", 52, 13),
        ("outer", 37, 28),
        ("inner", 13, 11),
        ("inner", 31, 7),
        ("straight_through", 26, 11),
    ],
)
def test_maps_have_the_sizes_that_losses_are_measured_at(ramp, size, wanted):
    layer = DiffStride(
        2.0,
        smoothness_factor=1.0,
        ramp=ramp,
        keep_parity=False,
        smallest_size=1,
    )
    model = keras.Sequential([keras.Input((size, size, 1)), layer])
    calls = profile(model)
    step = Step(None, (size, size), (1, 1), (wanted, wanted))
    with at_sizes_of({id(layer): step}, calls):
        maps = model(array(np.zeros((1, size, size, 1), "float32")))
    assert tuple(maps.shape[1:3]) == (wanted, wanted)


@only_torch
def test_plain_networks_train_and_load_without_this_package(tmp_path):
    np.save(tmp_path / "images.npy", IMAGES)
    for to in ("strided", "pooled"):
        hardened = harden(network(), to, verbose=False)
        assert {
            type(layer).__module__.split(".")[0]
            for layer in sublayers(hardened)
        } == {"keras"}
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        hardened.compile("sgd", loss)
        hardened.fit(IMAGES, np.arange(4), verbose=0)
        hardened.save(tmp_path / f"{to}.keras")
        paths = [variable.path for variable in hardened.variables]
        assert len(set(paths)) == len(paths)  # torch tells them apart by these.
        np.save(tmp_path / f"{to}.npy", output(hardened))
    program = (
        "import sys, keras, numpy as np\n"
        "sys.modules['diffstride'] = None\n"
        "for to in ('strided', 'pooled'):\n"
        "    model = keras.models.load_model(f'{to}.keras')\n"
        "    y = keras.ops.convert_to_numpy(model(np.load('images.npy')))\n"
        "    assert np.abs(y - np.load(f'{to}.npy')).max() < 1e-5\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def graph(pooling, rank=2):
    layers = keras.layers
    conv = {1: layers.Conv1D, 2: layers.Conv2D, 3: layers.Conv3D}[rank]
    average = {
        1: layers.GlobalAveragePooling1D,
        2: layers.GlobalAveragePooling2D,
        3: layers.GlobalAveragePooling3D,
    }[rank]
    inputs = keras.Input((12,) * rank + (2,))
    x = conv(4, 3, padding="same", activation="relu")(inputs)
    a = conv(4, 3, padding="same")(x)
    x = layers.Add()([pooling(a), pooling(x)])
    return keras.Model(inputs, layers.Dense(2)(average()(x)))


@pytest.mark.parametrize("rank", [1, 2])
def test_a_graph_gets_average_pooling(rank):
    cls = {1: DiffStride1D, 2: DiffStride}[rank]
    model = graph(cls(2.2, 1.0), rank)
    hardened = harden(model, "strided", verbose=False)
    pooled = [
        layer
        for layer in hardened.layers
        if "AveragePooling" in type(layer).__name__
    ]
    assert pooled[0].strides == (2,) * rank and len(pooled) == 2
    images = np.random.RandomState(0).rand(2, *model.input_shape[1:])
    assert output(hardened, images).shape == (2, 2)


@only_torch
@pytest.mark.parametrize(
    "make",
    [
        lambda: keras.Sequential(
            [keras.Input((12, 12, 3)), network(shape=(12, 12, 3))]
        ),
        lambda: keras.Sequential(
            [
                keras.Input((12, 12, 3)),
                ResidualLayer(
                    6, strides=2.3, project=True, pooling_cls=DiffStride
                ),
                keras.layers.GlobalAveragePooling2D(),
            ]
        ),
        lambda: graph(
            keras.Sequential([keras.layers.Conv2D(4, 1), DiffStride(3.0)])
        ),
        lambda: freeze(network(shape=(12, 12, 3))),
    ],
)
def test_models_in_models(make):
    model = make()
    images = np.random.RandomState(0).rand(2, *model.input_shape[1:])
    for to in ("spectral", "strided", "pooled"):
        hardened = harden(model, to, verbose=False)
        assert output(hardened, images).shape == output(model, images).shape
        if to != "spectral":
            assert not any(
                type(layer).__module__.startswith("diffstride")
                for layer in sublayers(hardened)
            )


@only_torch
def test_what_rounding_changes_is_reported(capsys):
    harden(network((1, 2.3, 2.6)), "strided")
    table = capsys.readouterr().out
    assert "2.30 x 2.30" in table and "2 x 2" in table
    assert "multiply-accumulates" in table


def test_what_cannot_be_hardened():
    with pytest.raises(ValueError, match="`to` must be one of"):
        harden(network(), "dense")
    model = keras.Sequential([keras.Input((4, 4, 1)), SpatialPooling()])
    with pytest.raises(ValueError, match="DiffStride"):
        harden(model)
    frames = keras.Sequential(
        [keras.Input((2, 8, 8, 1)), keras.layers.TimeDistributed(DiffStride())]
    )
    with pytest.raises(ValueError, match="cannot replace"):
        harden(frames, "strided")
    own = OwnModel()
    own(np.zeros((1, 8, 8, 1), "float32"))
    with pytest.raises(ValueError, match="`harden` needs functional or seq"):
        harden(own, "pooled", input_shape=(8, 8, 1))
    with pytest.raises(ValueError, match="`harden` cannot reach the layers"):
        harden(own, input_shape=(8, 8, 1))


@pytest.mark.parametrize("macs", [-1, 0, np.inf, np.nan, "1M"])
def test_a_budget_that_is_no_number(macs):
    with pytest.raises(ValueError, match="`macs` must be a finite number >= 1"):
        harden(network(), "pooled", macs=macs)


class OwnModel(keras.Model):
    """A model without a graph or a config."""

    def __init__(self, *layers):
        super().__init__()
        self.pooling = DiffStride()

    def call(self, x):
        return self.pooling(x)
