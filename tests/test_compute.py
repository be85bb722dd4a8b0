"""MACs at other strides, and strides held to a number of MACs."""

import functools

import keras
import numpy as np
import pytest
from maps import BACKEND, JAX, TORCH
from models import small_resnet

import diffstride
from diffstride import DiffStride1D, add_compute_budget, harden, model_cost
from diffstride.compute import ComputeModel
from diffstride.compute_budget import (
    _Direction,
    moves_of,
    project,
    settle,
)
from diffstride.optimization import gradient_factor, strides_apart

on_the_host = pytest.mark.skipif(
    not TORCH, reason="counted on the host, on each backend alike"
)


def network(strides=(1, 2, 2), placement="before", **arguments):
    keras.utils.set_random_seed(0)
    return small_resnet(strides, (14, 14, 1), 3, 1, placement, **arguments)


def two_branches():
    layers = keras.layers
    inputs = keras.Input((20, 3))
    x = layers.Conv1D(4, 3, padding="same")(inputs)
    tower = layers.Conv1D(6, 3, padding="same")(DiffStride1D(1.5, 2.0)(x))
    other = layers.Conv1D(5, 5, padding="same")(DiffStride1D(3.0, 1.0)(x))
    pooled = [layers.GlobalAveragePooling1D()(each) for each in (tower, other)]
    return keras.Model(inputs, layers.Dense(3)(layers.Concatenate()(pooled)))


def joined():
    """Where the cost of a layer depends on two strides at once."""
    layers = keras.layers
    inputs = keras.Input((24, 2))
    maps = [DiffStride1D(s, 1.0)(inputs) for s in (1.2, 2.0)]
    joined = layers.Concatenate(axis=1)(maps)
    return keras.Model(inputs, layers.Conv1D(4, 3, padding="same")(joined))


def random_strides(compute, seed):
    random = np.random.RandomState(seed)
    return compute.clipped(
        [
            np.exp(random.uniform(0, 1.5, layer.initial_strides.shape))
            for layer in compute.layers
        ]
    )


@on_the_host
@pytest.mark.parametrize(
    "make",
    [
        network,
        functools.partial(network, (2, 3, 3), "after", ramp="inner"),
        functools.partial(network, shared_stride=True, smoothness_factor=4.0),
        functools.partial(network, ramp="straight_through"),
        two_branches,
        joined,
    ],
)
def test_macs_at_other_strides_are_those_of_model_cost(make):
    model = make()
    compute = ComputeModel(model)
    for seed in range(3):
        strides = random_strides(compute, seed)
        told = compute.macs(strides)
        for layer, value in zip(compute.layers, strides, strict=True):
            layer.stride_weights.assign(value)
        assert told == model_cost(model).macs


@on_the_host
def test_nothing_of_the_model_changes():
    model = network()
    before = model.get_weights()
    project(ComputeModel(model), [np.float32([1, 1])] * 3, 2e4)
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert all(layer.cached is None for layer in model.pooling_layers)


@on_the_host
def test_shares_fall_with_depth_and_towers_have_their_own():
    chain = ComputeModel(network())
    shares = chain.shares(chain.strides())
    assert 1 > shares[0] > shares[1] > shares[2] > 0
    towers = ComputeModel(two_branches())
    assert sum(towers.shares(towers.strides())) < 1


@on_the_host
@pytest.mark.parametrize(
    "ramp, start",
    [
        ("outer", (1, 1, 1)),
        ("inner", (2, 3, 3)),
        ("straight_through", (2, 3, 3)),
    ],
)
def test_projection_meets_a_budget_from_any_start(ramp, start):
    compute = ComputeModel(network(start, ramp=ramp))
    least, most = compute.limits()
    for budget in np.geomspace(1.3 * least, most / 1.3, 2):
        strides = settle(
            compute, project(compute, compute.strides(), budget), budget
        )
        assert abs(compute.macs(strides) / budget - 1) < 0.05
        for value in strides:
            assert (value >= 1).all()


@on_the_host
def test_within_the_tolerance_nothing_moves():
    compute = ComputeModel(network())
    strides = compute.strides()
    budget = compute.macs(strides) * 1.015
    assert project(compute, strides, budget) is strides


def chain():
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((48, 2)),
            layers.Conv1D(4, 3, padding="same", activation="relu"),
            DiffStride1D(2.0, 1.0, final_smoothness_factor=0.0, norm="forward"),
            layers.Conv1D(8, 3, padding="same", activation="relu"),
            DiffStride1D(3.0, 1.0, ramp="inner", norm="forward"),
            layers.Conv1D(8, 3, padding="same", activation="relu"),
            layers.GlobalAveragePooling1D(),
            layers.Dense(3),
        ]
    )
    return diffstride.static_sizes(model, JAX)


@pytest.mark.parametrize(
    "make, relative",
    [
        (chain, 0.6),
        pytest.param(
            chain,
            2.0,
            marks=pytest.mark.skipif(
                BACKEND != "tensorflow", reason="slow, and once is enough"
            ),
        ),
        pytest.param(network, 0.5, marks=pytest.mark.slow),
        pytest.param(
            functools.partial(network, (1, 1, 1)), 0.1, marks=pytest.mark.slow
        ),
        pytest.param(
            functools.partial(network, (2, 3, 3), ramp="inner"),
            3.0,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_training_ends_within_the_budget(make, relative):
    model = make()
    budget = add_compute_budget(model, relative=relative, every=2)
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    macs = []
    noting = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: macs.append(model_cost(model).macs)
    )
    callbacks = [budget, noting]
    if make is chain:
        callbacks.insert(0, diffstride.SmoothnessSchedule())
    count = 16 if make is chain else 32
    images = np.random.RandomState(0).rand(count, *model.input_shape[1:])
    with pytest.warns(UserWarning, match="Use SGD for them") as told:
        model.fit(
            images,
            np.arange(count) % 3,
            batch_size=8,
            epochs=3,
            verbose=0,
            callbacks=callbacks,
        )
    assert abs(macs[-1] / budget.macs - 1) < 0.05
    assert not any("Training ends" in str(each.message) for each in told)
    assert macs[-1] == model_cost(model).macs


@on_the_host
def test_no_warning_where_gradients_of_strides_stay_as_they_are(recwarn):
    model = network()
    by_sgd = keras.optimizers.SGD(0.1)
    optimizers = [None, by_sgd]
    if hasattr(keras.optimizers, "MultiOptimizer"):
        optimizers.append(strides_apart(keras.optimizers.Adam(), by_sgd))
    for optimizer in optimizers:
        budget = add_compute_budget(model, relative=0.5)
        model.compile(optimizer, "mse")
        budget.set_model(model)
        budget.on_train_begin()
    for layer in model.pooling_layers:
        layer.stride_lr_multiplier = 0.0  # They are led, and learn nothing.
    model.compile(keras.optimizers.Adam(), "mse")
    budget.on_train_begin()
    assert not [each for each in recwarn if "SGD" in str(each.message)]


@on_the_host
def test_relative_is_to_the_initial_strides():
    model = network()
    macs = model_cost(model).macs
    assert add_compute_budget(model, relative=0.5).macs == 0.5 * macs
    model.pooling_layers[0].stride_weights.assign([3.0, 3.0])
    assert add_compute_budget(model, relative=0.5).macs == 0.5 * macs


@on_the_host
@pytest.mark.parametrize(
    "budget, expected",
    [
        ({"macs": 10}, "from .* to .* multiply-accumulates"),
        ({"macs": 1e12}, "from .* to .* multiply-accumulates"),
        ({"relative": 0.0}, "`relative` must be"),
        ({"relative": "half"}, "`relative` must be a finite number"),
        ({"macs": np.nan}, "`macs` must be"),
        ({"macs": "1M"}, "`macs` must be a finite number"),
        ({"share": 0}, "`share` must be a number above 0 and at most 1"),
        ({"share": -1}, "`share` must be a number"),
        ({"share": np.nan}, "`share` must be a number"),
        ({"reach": np.nan}, "`reach` must be a finite number"),
        ({"every": 0}, "`every` must be an integer >= 1"),
        ({"epochs": 0.5}, "`epochs` must be an integer >= 1"),
        ({"macs": -5.0}, "`macs` must be"),
        ({}, "either `macs` or `relative`"),
        ({"macs": 1e4, "relative": 0.5}, "either `macs` or `relative`"),
    ],
)
def test_a_budget_that_cannot_be_met(budget, expected):
    if budget and not {"macs", "relative"} & budget.keys():
        budget["relative"] = 0.6
    with pytest.raises(ValueError, match=expected) as error:
        add_compute_budget(network(), **budget)
    assert "\n" not in str(error.value)


@on_the_host
def test_a_budget_of_another_model_is_refused():
    model, other = network(), network()
    budget = add_compute_budget(model, relative=0.6)
    before = model.pooling_layers[0].stride_weights.numpy()
    other.compile("sgd", keras.losses.SparseCategoricalCrossentropy())
    images = np.zeros((4, *other.input_shape[1:]))
    with pytest.raises(ValueError, match="must be given the model that `fit`"):
        other.fit(images, np.zeros(4), verbose=0, callbacks=[budget])
    after = model.pooling_layers[0].stride_weights.numpy()
    np.testing.assert_array_equal(after, before)


def test_training_that_ends_too_soon_says_so():
    model = chain()
    budget = add_compute_budget(model, relative=0.6, epochs=5)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    images = np.random.RandomState(0).rand(8, *model.input_shape[1:])
    told = "Training ends at .* the budget of .*epochs=5, of which 1 are done"
    with pytest.warns(UserWarning, match=told):
        model.fit(
            *(images, np.arange(8) % 3), epochs=1, verbose=0, callbacks=[budget]
        )


@on_the_host
def test_a_model_without_learned_strides_is_refused():
    frozen = diffstride.freeze(network())
    with pytest.raises(ValueError, match="DiffStride layers"):
        add_compute_budget(frozen, relative=0.5)


@on_the_host
@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("to", ["strided", "pooled"])
def test_what_will_be_hardened_is_counted(placement, to):
    model = small_resnet(
        (1, 2, 2), (16, 16, 1), 3, 1, placement, smoothness_factor=0.0
    )
    compute = ComputeModel(model, harden_to=to)
    plain = harden(model, to, verbose=False)
    assert compute.macs(compute.strides()) == model_cost(plain).macs
    assert compute.macs(compute.strides()) < model_cost(model).macs


@on_the_host
def test_sizes_are_moved_alone():
    compute = ComputeModel(network((1.5, 2.1, 1.3)))
    strides = compute.strides()
    steps = [np.float32([0.1, 0.2]), np.zeros(2), np.float32([-0.1, 0.0])]
    moved = compute.with_sizes_moved(strides, steps)
    for factor, step in zip(
        np.cumprod(moved, axis=0) / np.cumprod(strides, axis=0),
        steps,
        strict=True,
    ):
        np.testing.assert_allclose(factor, np.exp(step), rtol=1e-5)
    # One stride for both axes follows their mean.
    shared = ComputeModel(network((1.5, 2.1, 1.3), shared_stride=True))
    moved = shared.with_sizes_moved(shared.strides(), steps)
    np.testing.assert_allclose(moved[0], [1.5 * np.exp(0.15)], rtol=1e-5)


@on_the_host
@pytest.mark.parametrize("ramp", ["outer", "inner", "straight_through"])
@pytest.mark.parametrize("smoothness", [0.0, 1.0])
@pytest.mark.parametrize("shared", [False, True])
def test_strides_end_where_maps_do(ramp, smoothness, shared):
    arguments = {"ramp": ramp, "smoothness_factor": smoothness}
    compute = ComputeModel(
        network((1.5, 2.0, 2.0), shared_stride=shared, **arguments)
    )
    strides = [np.float32([1.5, 90.0]), np.float32([3, 3]), np.float32([7, 65])]
    if shared:
        strides = [each[-1:] for each in strides]
    kept = compute.within_maps(strides)
    assert kept[0][-1] == 14  # The input has 14 x 14.
    assert kept[-1][-1] < 14
    assert shared or kept[0][0] == 1.5
    for place in range(3):
        assert compute.input_sizes(kept, place) == compute.input_sizes(
            strides, place
        )
    assert compute.macs(kept) == compute.macs(strides)


@on_the_host
@pytest.mark.parametrize("ramp", ["outer", "inner", "straight_through"])
def test_maps_may_shrink_to_a_sample(ramp):
    arguments = {"ramp": ramp, "keep_parity": False, "smoothness_factor": 0.0}
    two, one = (
        ComputeModel(
            network((1, 2, 2), smallest_size=smallest, **arguments),
            harden_to="pooled",
        )
        for smallest in (2, 1)
    )
    assert one.limits()[1] == two.limits()[1]
    assert one.limits()[0] < two.limits()[0]
    small = one.within_maps([np.float32([14.0, 90.0])] * 3)
    assert one.macs(small) == one.limits()[0]
    assert one.input_sizes(small, 1) == (1, 1)
    np.testing.assert_array_equal(small[0], [14, 14])


@on_the_host
def test_training_takes_strides_back_into_their_maps():
    model = network((1, 2, 2))
    budget = add_compute_budget(model, relative=1.0)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    budget.set_model(model)
    budget.set_params({"steps": 1, "epochs": 2})
    budget.on_train_begin()
    last = model.pooling_layers[-1]
    last.stride_weights.assign([2.0, 65.0])
    budget.on_epoch_begin(0)
    budget.on_train_batch_end(0)
    assert keras.ops.convert_to_numpy(last.stride_weights)[1] <= 14


@on_the_host
def test_own_shares_are_what_a_size_costs():
    model = small_resnet(
        (1, 2, 2), (32, 32, 1), 3, 1, "before", smoothness_factor=0.0
    )
    compute = ComputeModel(model, harden_to="strided")
    strides = [np.float32([s, s]) for s in (1, 2, 2)]
    shares = compute.own_shares(strides)
    # Of each axis; the dense layer is what is left.
    assert np.sum(shares) == pytest.approx(2, abs=0.04)
    none, double = np.zeros(2), np.full(2, -np.log(2))
    larger = compute.with_sizes_moved(strides, [none, double, none])
    growth = compute.macs(larger) / compute.macs(strides) - 1
    assert growth == pytest.approx(3 * shares[1][0], rel=0.3)
    # One stride for both axes costs what they do.
    model.pooling_layers[1].shared_stride = True
    strides[1] = strides[1][:1]
    shared = compute.own_shares(strides)
    np.testing.assert_allclose(shared[1], [shares[1].sum()])
    np.testing.assert_allclose(shared[2], shares[2])


@on_the_host
def test_what_gets_no_gradient_stays():
    """Computation moves between the others, as if it were not there."""
    before = [np.array(each) for each in [(2, 3), (2, 2), (2, 2), (4, 1)]]
    after = [before[0] + [0.1, 0.3], before[1] + 0.1, *before[2:]]
    moves = moves_of(before, after, [0.5, 0.0, 1.0, 1.0], [1.0] * 4)
    np.testing.assert_allclose(
        np.concatenate(moves),
        [0.4, 1.8, *[np.nan] * 5, 0],  # The last is at its limit.
    )
    costs = [np.full(2, share) for share in (0.1, 0.2, 0.3, 0.2)]
    direction = _Direction(costs)
    direction.step([np.ones(2), np.ones(2), np.ones(2), np.ones(2)], 0.1)
    steps = direction.step(moves, 0.1)
    assert not np.concatenate(steps)[2:7].any()
    assert steps[0].any() and steps[3][1]
    led_only = _Direction(costs).step([np.full(2, np.nan)] * 4, 0.1)
    assert not np.any(led_only)


@on_the_host
@pytest.mark.parametrize("late", [8.0, 0.1])
def test_what_gets_its_gradient_late_does_not_outweigh_the_others(late):
    costs = np.array([0.2, 0.3, 0.3, 0.2])
    at_once, from_two = _Direction([costs]), _Direction([costs])
    for window in range(12):
        moves = 1e-3 * np.array([3, 1, 0.5, late])
        (expected,) = at_once.step([moves], 1.0)
        if window == 0:
            moves[3] = np.nan
        (found,) = from_two.step([moves], 1.0)
    np.testing.assert_array_equal(np.sign(found), np.sign(expected))
    np.testing.assert_allclose(found, expected, atol=0.35)


@on_the_host
@pytest.mark.parametrize("optimizer, factor", [("sgd", 0.1), ("adam", 1.0)])
def test_what_gradients_were_multiplied_by(optimizer, factor):
    """Adam and its like divide it out."""
    model = network(stride_lr_multiplier=0.1)
    first, second, third = model.pooling_layers
    model.compile(optimizer)
    second.stride_lr_multiplier = 0.0
    third.stride_weights.trainable = False
    factors = [
        gradient_factor(model.optimizer, layer)
        for layer in (first, second, third)
    ]
    assert factors == [factor, 0, 0]


@on_the_host
@pytest.mark.parametrize("scale", [1e-6, 1.0])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_steps_end_where_a_size_is_worth_what_it_costs(scale, noise):
    """Loss: worth * exp(-size). Cost: price * exp(2 * size), of a fixed sum."""
    worth = np.array([3.0, 1.0, 0.5, 2.0, 1.0, 1.0])
    price = np.array([1.0, 4.0, 1.0, 1.0, 0.2, 1.0])
    inputs = np.array([1.5, 3.0, 12.0, 2.0, 6.0, 4.0])
    rates = np.array([1.0, 1.0, 0.1, 1.0, 10.0, 1.0])  # Of the gradient.
    random = np.random.RandomState(0)
    sizes, steps_an_epoch, epochs = np.zeros(6), 30, 20  # In logarithms.
    for step in range(epochs * steps_an_epoch):
        costs = price * np.exp(2 * sizes)
        if step % steps_an_epoch == 0:
            direction = _Direction(np.split(costs / costs.sum(), 6))
        gradient = worth * np.exp(-sizes) + noise * random.normal(size=6)
        strides = inputs * np.exp(-sizes)
        # What SGD does: it knows the gradient in the stride, not its logarithm.
        after = strides - scale * 1e-2 * rates * gradient / strides
        done = step / (epochs * steps_an_epoch)
        pace = 6 * done * (1 - done) * 3.0 / (epochs * steps_an_epoch)
        before, after = np.split(strides, 6), np.split(after, 6)
        moved = direction.step(moves_of(before, after, rates, [1.0] * 6), pace)
        sizes -= np.concatenate(moved)
        sizes -= 0.5 * np.log((price * np.exp(2 * sizes)).sum() / price.sum())
    ratio = np.log(worth / price) - 3 * sizes
    assert np.ptp(ratio) < (0.6 if noise else 0.1)
    assert np.ptp(np.log(worth / price)) > 2.5
