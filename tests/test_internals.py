"""Private names of Keras and TensorFlow: are they there, do they still do it.

Each failure says what has gone and where to look for a substitute. All of them
are in `diffstride/internals.py`, which is the one module to change.
"""

import pathlib
import re

import keras
import numpy as np
import pytest
from maps import BACKEND

import diffstride
from diffstride import DiffStride

GONE = (
    "{name} has gone from {library}, or does something else. `{function}` in "
    "diffstride/internals.py uses it to {purpose}. {substitute}"
)


def test_symbolic_scope():
    message = GONE.format(
        name="`keras.src.backend.common.symbolic_scope.in_symbolic_scope`",
        library="Keras",
        function="in_symbolic_scope",
        purpose="tell a run for shapes from a run on data",
        substitute="Look for what `backend.compute_output_spec` of "
        "keras/src/backend/jax/core.py enters around the function it traces.",
    )
    try:
        from diffstride.internals import in_symbolic_scope
    except ImportError as error:
        pytest.fail(f"{message} ({error})")
    met = []

    class Asks(keras.layers.Layer):
        def call(self, x):
            met.append(in_symbolic_scope())
            return x

    layer = Asks()
    layer(keras.Input((3,)))
    layer(np.zeros((1, 3), "float32"))
    # Keras may trace several times for shapes; the last call is on data.
    assert met[0] and not met[-1], message


def test_flatten_layers():
    message = GONE.format(
        name="`keras.layers.Layer._flatten_layers`",
        library="Keras",
        function="sublayers",
        purpose="list a layer and all layers in it, the outer ones first",
        substitute="Look in keras/src/layers/layer.py for what `Layer.weights` "
        "walks through, or walk `Layer._layers`; of models, `Model.layers`.",
    )
    from diffstride.internals import sublayers

    pooling = DiffStride()
    inner = keras.Sequential([keras.Input((8, 8, 1)), pooling])
    wrapper = keras.layers.TimeDistributed(inner)
    model = keras.Sequential([keras.Input((2, 8, 8, 1)), wrapper])
    try:
        found = list(sublayers(model))
    except AttributeError as error:
        pytest.fail(f"{message} ({error})")
    kept = [x for x in found if not isinstance(x, keras.layers.InputLayer)]
    assert [id(x) for x in kept] == [
        id(x) for x in (model, wrapper, inner, pooling)
    ], message


@pytest.mark.skipif(BACKEND != "tensorflow", reason="about graphs of it")
@pytest.mark.parametrize("inside", [False, True])
def test_xla_context(inside):
    import tensorflow as tf

    from diffstride.internals import in_xla

    met = []

    def ask(x):
        met.append(in_xla(x))
        return x

    def wrapped():
        # A graph within a graph: `outer_graph` leads out of the inner one.
        asked = tf.function(ask) if inside else ask
        return lambda x: asked(x)

    x = tf.constant(1.0)
    ask(x)
    tf.function(wrapped())(x)
    tf.function(wrapped(), jit_compile=True)(x)
    assert met == [False, False, True], GONE.format(
        name="`Graph._get_control_flow_context().IsXLAContext()`, its "
        "`outer_context`, or `FuncGraph.outer_graph`",
        library="TensorFlow",
        function="in_xla",
        purpose="say in time, and in words, that XLA cannot compile a layer "
        "whose sizes are learned",
        substitute="Look in tensorflow/python/eager/polymorphic_function for "
        "what `jit_compile` enters; without a substitute let it return False, "
        "and XLA's own error will have to do.",
    )


@pytest.mark.parametrize("used", [True, False])
def test_use_weight_decay(used):
    message = GONE.format(
        name="`keras.Optimizer._use_weight_decay`, or "
        "`_exclude_from_weight_decay` or `_exclude_from_weight_decay_pattern`",
        library="Keras",
        function="uses_weight_decay` and `exclude_from_weight_decay",
        purpose="tell whether strides are decayed, and to exclude them without "
        "forgetting what was excluded before",
        substitute="Look in keras/src/optimizers/base_optimizer.py for what "
        "the method `exclude_from_weight_decay` keeps. Without a substitute "
        "call that method alone, and warn of any optimizer with decay.",
    )
    from diffstride.internals import (
        exclude_from_weight_decay,
        uses_weight_decay,
    )

    first, second, third = (keras.Variable([1.0], name=n) for n in "abc")
    optimizer = keras.optimizers.AdamW(weight_decay=0.1 * used)
    optimizer.exclude_from_weight_decay(var_list=[first], var_names=["b"])
    try:
        exclude_from_weight_decay(optimizer, keras.Variable([1.0]))
        found = [
            uses_weight_decay(optimizer, v) for v in (first, second, third)
        ]
    except AttributeError as error:
        pytest.fail(f"{message} ({error})")
    assert found == [False, False, used], message


@pytest.mark.skipif(
    not hasattr(keras.optimizers, "MultiOptimizer"), reason="a later Keras"
)
def test_optimizer_map():
    message = GONE.format(
        name="`keras.optimizers.MultiOptimizer._optimizer_map`, or "
        "`LossScaleOptimizer.inner_optimizer`",
        library="Keras",
        function="optimizer_of",
        purpose="find what updates a variable",
        substitute="Look in keras/src/optimizers/multi_optimizer.py for what "
        "`build` asks for the optimizer of a variable.",
    )
    from diffstride.internals import optimizer_of

    adam, sgd = keras.optimizers.Adam(), keras.optimizers.SGD()
    choice = keras.optimizers.OptimizerMap(adam, {"b": sgd})
    for optimizer in (
        keras.optimizers.MultiOptimizer(choice),
        keras.optimizers.LossScaleOptimizer(
            keras.optimizers.MultiOptimizer(choice)
        ),
    ):
        found = [
            optimizer_of(optimizer, keras.Variable([1.0], name=name))
            for name in "ab"
        ]
        assert found[0] is adam and found[1] is sgd, message


PRIVATE = re.compile(
    r"keras\.src|tensorflow\.python|jax\._src|torch\._C\b"
    r"|(?<!self)(?<!cls)(?<!super\(\))"
    r"\._(?:flatten_layers|layers|get_control_flow_context|trainable_variables"
    r"|non_trainable_variables|metrics|losses|tracker|saved_model|call_has|use_weight_decay|optimizer_map"
    r"|exclude_from_weight_decay)\w*"
)


def test_private_names_are_in_one_module():
    package = pathlib.Path(diffstride.__file__).parent
    found = {
        f"{path.relative_to(package)}:{number}: {line.strip()}"
        for path in sorted(package.rglob("*.py"))
        if path.name != "internals.py"
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PRIVATE.search(line)
    }
    assert not found, (
        "Private names of Keras, TensorFlow, JAX or torch belong in "
        "diffstride/internals.py, with a test in this file."
    )


def test_graph_calls():
    message = GONE.format(
        name="`Functional._nodes_by_depth`, or its nodes' `operation`, "
        "`arguments`, `outputs`, `is_input`",
        library="Keras",
        function="graph_calls",
        purpose="see which layer a functional model calls on what",
        substitute="Look in keras/src/ops/function.py for what "
        "`Function._run_through_graph` walks through.",
    )
    from diffstride.internals import graph_calls

    inputs = keras.Input((3,))
    x = keras.layers.Dense(2, name="first")(inputs)
    y = keras.layers.Dense(2, name="second")(x)
    model = keras.Model(inputs, keras.layers.Add(name="sum")([x, y]))
    try:
        calls = list(graph_calls(model))
    except AttributeError as error:
        pytest.fail(f"{message} ({error})")
    names = [operation.name for operation, *_ in calls]
    assert names == ["first", "second", "sum"], message
    assert calls[1][1][0] is x and calls[0][3] == [x], message
