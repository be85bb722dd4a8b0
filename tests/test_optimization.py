import keras
import numpy as np
import pytest
from keras import ops, optimizers
from maps import BACKEND, array

from diffstride import (
    DiffStride,
    exclude_strides_from_weight_decay,
    static_sizes,
)
from diffstride.optimization import optimizer_findings, strides_apart
from diffstride.resnet import Resnet

slow_on_jax = pytest.mark.skipif(BACKEND == "jax", reason="slow on JAX")
needs_multi = pytest.mark.skipif(
    not hasattr(optimizers, "MultiOptimizer"), reason="a later Keras"
)


def chain(*names, more=(), **kwargs):
    return keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(1, 1, use_bias=False, name="conv"),
            *(DiffStride(2.0, 2.0, name=name, **kwargs) for name in names),
            *more,
        ]
    )


def decays(optimizer, model):
    """Paths of what an optimizer moves although no gradient does."""
    variables = model.trainable_variables
    before = [array(variable) for variable in variables]
    optimizer.build(variables)
    optimizer.apply([ops.zeros(v.shape) for v in variables])
    return {
        variable.path.removeprefix(f"{model.name}/")
        for variable, value in zip(variables, before, strict=True)
        if not np.array_equal(array(variable), value)
    }


def multi(default, other, pattern=".*/strides"):
    return optimizers.MultiOptimizer(
        optimizers.OptimizerMap(default, {pattern: other})
    )


OPTIMIZERS = {
    "SGD": lambda: optimizers.SGD(0.1, weight_decay=0.1),
    "AdamW": lambda: optimizers.AdamW(0.1, weight_decay=0.1),
    "Lion": lambda: optimizers.Lion(0.1, weight_decay=0.1),
    "RMSprop": lambda: optimizers.RMSprop(0.1, weight_decay=0.1),
    "Nadam": lambda: optimizers.Nadam(0.1, weight_decay=0.1),
    "Adafactor": lambda: optimizers.Adafactor(0.1, weight_decay=0.1),
    "Muon": lambda: optimizers.Muon(0.1, adam_weight_decay=0.1),
    "LossScaleOptimizer": lambda: optimizers.LossScaleOptimizer(
        optimizers.AdamW(0.1, weight_decay=0.1)
    ),
    "MultiOptimizer": lambda: multi(
        optimizers.AdamW(0.1), optimizers.SGD(), "none"
    ),
}
MARKS = {
    "MultiOptimizer": needs_multi,
    "LossScaleOptimizer": pytest.mark.skipif(
        BACKEND == "jax", reason="Keras has no eager step of it there"
    ),
}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=MARKS.get(name, ()), id=name)
        for name, make in OPTIMIZERS.items()
    ],
)
def test_strides_are_excluded_and_nothing_else(make):
    model = chain("first", "second")
    model.compile(make(), "mse")
    (finding,) = optimizer_findings(model)
    assert "weight decay" in finding and "\n" not in finding
    assert "first" in finding and "second" in finding
    assert decays(make(), model) == {
        "conv/kernel",
        "first/strides",
        "second/strides",
    }
    assert exclude_strides_from_weight_decay(make(), model) is not None
    model = chain("first", "second")
    optimizer = exclude_strides_from_weight_decay(make(), model)
    model.compile(optimizer, "mse")
    assert optimizer_findings(model) == []
    assert decays(optimizer, model) == {"conv/kernel"}


@needs_multi
def test_strides_learn_at_a_rate_of_their_own():
    model = chain("first", "second")
    optimizer = strides_apart(optimizers.SGD(0.25), optimizers.SGD(0.5))
    before = [array(variable) for variable in model.trainable_variables]
    optimizer.build(model.trainable_variables)
    optimizer.apply([ops.ones(v.shape) for v in model.trainable_variables])
    for variable, value in zip(model.trainable_variables, before, strict=True):
        moved = 0.5 if variable.path.endswith("strides") else 0.25
        np.testing.assert_allclose(value - array(variable), moved, rtol=1e-5)


def test_a_keras_without_the_like_is_one_line(monkeypatch):
    monkeypatch.delattr(optimizers, "MultiOptimizer", raising=False)
    with pytest.raises(ValueError, match="needs a Keras that has") as caught:
        strides_apart(optimizers.Adam(), optimizers.Adam())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "before",
    [
        {"var_names": ["bias"]},
        {"var_names": ["bias", "none"]},
        {"var_list": "head/bias"},
        {"var_list": "head/bias", "var_names": ["none"]},
    ],
)
def test_what_was_excluded_before_stays_so(before):
    model = chain("it", more=[keras.layers.Dense(1, name="head")])
    model.layers[-1].bias.assign([1.0])
    if "var_list" in before:
        before = {**before, "var_list": [model.layers[-1].bias]}
    optimizer = optimizers.SGD(0.1, weight_decay=0.1)
    optimizer.exclude_from_weight_decay(**before)
    for _ in range(2):
        exclude_strides_from_weight_decay(optimizer, model)
    assert decays(optimizer, model) == {"conv/kernel", "head/kernel"}


def test_a_model_that_is_not_built_is_refused():
    model = keras.Sequential([DiffStride()])
    with pytest.raises(ValueError, match="must be built"):
        exclude_strides_from_weight_decay(optimizers.SGD(), model)


def fit(model):
    # Blank images and labels: nothing has a gradient.
    x = np.zeros((2, 8, 8, 1), "float32")
    model.fit(x, array(model(x)), verbose=0)


@slow_on_jax
@pytest.mark.filterwarnings("ignore:.*weight decay:UserWarning")
def test_it_is_never_too_late():
    model = chain("pooling")
    model.compile(optimizers.SGD(0.1, weight_decay=0.1), "mse")
    strides = model.layers[-1].stride_weights
    fit(model)
    moved = array(strides)
    assert (moved < 2.0).all()
    exclude_strides_from_weight_decay(model.optimizer, model)
    fit(model)
    np.testing.assert_array_equal(array(strides), moved)


def resnet():
    model = Resnet([1, 1], [1, 2], pooling_cls=DiffStride, num_layers=1)
    model.build((None, 8, 8, 1))
    return model


# It has nothing to do on torch.
static = pytest.param(
    lambda: static_sizes(chain("it", stride_lr_multiplier=1)),
    marks=pytest.mark.skipif(BACKEND == "torch", reason="not static"),
)


@pytest.mark.parametrize("model", [resnet, static])
def test_fit_warns_if_it_was_forgotten(model, recwarn):
    model = model()
    model.compile(optimizers.AdamW(), "mse")
    with pytest.warns(UserWarning, match="before `fit`"):
        model.make_train_function()
    exclude_strides_from_weight_decay(model.optimizer, model)
    model.make_train_function()
    model.compile(optimizers.Adam(), "mse")
    model.make_train_function()
    assert not [w for w in recwarn if w.category is UserWarning]


def findings(optimizer, **arguments):
    model = chain("it", **arguments)
    model.compile(optimizer, "mse")
    return optimizer_findings(model)


@pytest.mark.parametrize(
    "name",
    ["Adam", "Lion", "RMSprop", "Nadam", "Adamax", "Adagrad", "Adafactor"],
)
def test_a_multiplier_that_is_undone_is_found(name):
    make = getattr(optimizers, name)
    (finding,) = findings(make(), stride_lr_multiplier=0.1)
    assert "`stride_lr_multiplier`" in finding and "/it" in finding
    # It is true.
    steps = []
    for factor in (1.0, 0.1):
        variable = keras.Variable([2.0])
        make().apply([ops.array([100 * factor], "float32")], [variable])
        steps.append(array(variable)[0] - 2.0)
    assert steps[1] == pytest.approx(steps[0], rel=0.1)


@pytest.mark.parametrize(
    "make",
    [
        lambda: optimizers.SGD(),
        lambda: optimizers.SGD(0.1, momentum=0.9, nesterov=True),
        lambda: optimizers.LossScaleOptimizer(optimizers.SGD()),
        pytest.param(
            lambda: multi(optimizers.AdamW(), optimizers.SGD()),
            marks=needs_multi,
        ),
    ],
)
def test_a_multiplier_that_holds_is_not_found(make):
    assert findings(make(), stride_lr_multiplier=0.1) == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"trainable": False},
        {"frozen": True},
        {"stride_lr_multiplier": 0},
        {"stride_lr_multiplier": 1},
    ],
)
def test_strides_that_the_optimizer_does_not_harm(arguments):
    assert findings(optimizers.Adam(), **arguments) == []
    assert optimizer_findings(chain("it", **arguments)) == []


@needs_multi
@slow_on_jax
def test_a_learning_rate_of_their_own_under_adam(tmp_path):
    """As docs/layers.md shows it."""
    model = static_sizes(chain("it"))
    # With a kernel that chance had made tiny the gradient would be, too.
    model.layers[0].set_weights([np.ones((1, 1, 1, 1))])
    model.compile(multi(optimizers.AdamW(1e-3), optimizers.Adam(0.1)), "mse")
    assert optimizer_findings(model) == []
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    shape = model(x).shape
    model.fit(x, np.ones(shape), verbose=0)
    strides = array(model.layers[-1].stride_weights)
    # Adam's first step is the learning rate.
    np.testing.assert_allclose(abs(strides - 2.0), 0.1, rtol=1e-2)
