"""Sizes held for a step, and what fails without."""

import contextlib
import functools

import keras
import numpy as np
import pytest
from keras import ops
from maps import BACKEND, JAX, array, images, slow_unless
from models import (
    XLA,
    learned,
    nested,
    outputs_of,
    resnet_inside,
    sequential,
    shared_at_two_sizes,
    small,
)

from diffstride import DiffStride, static_sizes
from diffstride.static import Retracer

only_jax = pytest.mark.skipif(BACKEND != "jax", reason="about jax.jit")
only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="about tf.function"
)
not_torch = pytest.mark.skipif(
    BACKEND == "torch", reason="torch runs eagerly: nothing is compiled"
)
DYNAMIC = {"run_eagerly": True} if JAX else {"jit_compile": False}


@contextlib.contextmanager
def compilations(note):
    """Calls `note` whenever JAX compiles a training step."""
    if BACKEND != "jax":
        yield
        return
    import jax

    def listen(event, duration, **kwargs):
        step = kwargs.get("fun_name") == "jit(train_step)"
        if step and event.endswith("backend_compile_duration"):
            note()

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


class TestCompilations:
    """Losses are those of dynamic sizes; each tuple of sizes compiles once."""

    def train(self, ramp, steps, turns, multiplier, static):
        """Returns losses, sizes, and when the step was traced and compiled.

        Where sizes are new to it a static loss is compared to an eager one.
        """
        layer = DiffStride(
            (1.5, 2.0),
            2.0,
            ramp=ramp,
            norm="forward",
            stride_lr_multiplier=multiplier,
        )
        step, sizes, losses, traced, compiled = 0, [], [], [], []

        def watch(_):
            if layer.cached is not None:
                traced.append(step)

        model = small(layer, watch=watch)
        if static:
            static_sizes(model)
        model.compile(
            keras.optimizers.SGD(0.02), "mse", **(XLA if static else DYNAMIC)
        )
        assert model.jit_compile == static
        x = images(4, 12, 12, 1)
        # Targets go up and down, and the strides with them.
        targets = np.where(np.arange(steps) * turns // steps % 2, 1.0, 0.1)
        with compilations(lambda: compiled.append(step)):
            for target in targets:
                y = np.full((4, 1), target, "float32")
                strides = array(layer.stride_weights)
                now = layer.output_sizes((12, 12), strides)
                if static and now not in sizes:
                    eager = np.mean(np.square(outputs_of(model, x) - y))
                else:
                    eager = None
                sizes.append(now)
                losses.append(float(model.train_on_batch(x, y)))
                assert eager is None or abs(losses[-1] - eager) < 1e-4
                step += 1
        if static:  # What is counted is what happens.
            assert model.train_function.compiled == len(traced)
        return losses, sizes, traced, sorted(set(compiled))

    @not_torch
    @pytest.mark.parametrize(
        "ramp, steps, turns, multiplier",
        [
            ("outer", 40, 4, 200),
            pytest.param("outer", 300, 6, 40, marks=pytest.mark.slow),
            pytest.param("inner", 60, 6, 40, marks=pytest.mark.slow),
            pytest.param("straight_through", 60, 6, 40, marks=pytest.mark.slow),
        ],
    )
    def test_losses_and_compilations(self, ramp, steps, turns, multiplier):
        run = functools.partial(self.train, ramp, steps, turns, multiplier)
        losses, sizes, traced, compiled = run(static=True)
        if not JAX or steps > 40:  # Eagerly, JAX takes long.
            expected, expected_sizes, *_ = run(static=False)
            np.testing.assert_allclose(losses, expected, rtol=0, atol=1e-4)
            assert sizes == expected_sizes
        changes = sum(sizes[i] != sizes[i - 1] for i in range(1, steps))
        # Some sizes came back, and were not compiled again.
        assert changes >= 3 and len(set(sizes)) < changes + 1
        assert traced == sorted(sizes.index(each) for each in set(sizes))
        if BACKEND == "jax":
            assert compiled == traced

    @only_tensorflow
    def test_dynamic_sizes_are_traced_once(self):
        # The claim of the default on TensorFlow: nothing is traced again.
        layer, traced = DiffStride(1.5, 2.0), []
        model = small(layer, watch=traced.append)
        model.compile("sgd", "mse")
        x, y = images(4, 12, 12, 1), np.ones((4, 1))
        model.train_on_batch(x, y)
        first, sizes = len(traced), set()
        for stride in (1.5, 1.2, 2.0, 4.0, 1.5):
            layer.stride_weights.assign([stride, stride])
            sizes.add(layer.output_sizes((12, 12), array(layer.stride_weights)))
            expected = np.mean(np.square(outputs_of(model, x) - y))
            # An eager call runs the probe, too.
            traced.pop()
            loss = model.train_on_batch(x, y)
            np.testing.assert_allclose(loss, expected, rtol=1e-4)
        assert len(sizes) >= 3
        assert len(traced) == first


@pytest.mark.parametrize(
    "shared_stride, trainable",
    [
        (False, True),
        pytest.param(True, False, marks=() if JAX else pytest.mark.slow),
    ],
)
def test_everything_that_keras_does_with_a_model(shared_stride, trainable):
    layer = DiffStride(
        1.5, 2.0, shared_stride=shared_stride, stride_lr_multiplier=30
    )
    model = static_sizes(small(layer))
    layer.trainable = trainable
    model.compile(keras.optimizers.SGD(0.01), "mse", **XLA)
    x, y = images(8, 12, 12, 1), np.ones((8, 1), "float32")
    history = model.fit(
        x, y, batch_size=4, epochs=2, verbose=0, validation_data=(x[:4], y[:4])
    ).history
    expected = np.mean(np.square(outputs_of(model, x[:4]) - 1))
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-4)
    assert np.all(array(layer.stride_weights) == 1.5) != trainable
    layer.stride_weights.assign(np.full(2 - shared_stride, 3.0))
    expected = outputs_of(model, x)
    losses = np.square(expected - 1)
    loss, first = np.mean(losses), np.mean(losses[:4])
    for actual, wanted in (
        (model.predict(x, batch_size=4, verbose=0), expected),
        (model.predict_on_batch(x[:4]), expected[:4]),
        (model.evaluate(x, y, batch_size=4, verbose=0), loss),
        (model.test_on_batch(x[:4], y[:4]), first),
        (model.train_on_batch(x[:4], y[:4]), first),
    ):
        np.testing.assert_allclose(actual, wanted, rtol=1e-4, atol=1e-5)
    assert layer.cached is None


def unknown_size(layer):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(ops.square(layer(inputs)))
    return keras.Model(inputs, x)


def batches():
    """Batches of two sizes, and of two numbers of images."""
    for size in (12, 9, 12, 9):
        x = images(2 + size % 2, size, size, 1)
        yield x, np.ones((len(x), 1), "float32")


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return list(batches())[index]


def as_tensorflow():
    import tensorflow as tf

    data = [tf.TensorSpec((None, None, None, 1)), tf.TensorSpec((None, 1))]
    return tf.data.Dataset.from_generator(batches, output_signature=tuple(data))


def of_unknown_rank():
    import tensorflow as tf

    data = [tf.TensorSpec(None), tf.TensorSpec((None, 1))]
    return tf.data.Dataset.from_generator(batches, output_signature=tuple(data))


def varying(layer):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(ops.square(layer(inputs)))
    return keras.Model(inputs, x)


@pytest.mark.parametrize(
    "data", [as_tensorflow, of_unknown_rank, batches, Batches]
)
def test_batches_of_varying_size(data):
    if BACKEND != "tensorflow" and data is not as_tensorflow:
        pytest.skip("about the trainer of TensorFlow")
    layer = DiffStride(1.5, 2.0)
    model = static_sizes(varying(layer))
    compiled = XLA if data is as_tensorflow else {}
    model.compile(keras.optimizers.SGD(0.0), "mse", **compiled)
    losses = []
    model.fit(
        data(),
        verbose=0,
        callbacks=[
            keras.callbacks.LambdaCallback(
                on_train_batch_end=lambda _, logs: losses.append(logs["loss"])
            )
        ],
    )
    assert len(losses) == 4
    squares = [np.square(outputs_of(model, x) - y) for x, y in batches()]
    np.testing.assert_allclose(
        losses[-1], np.mean(np.concatenate(squares)), rtol=1e-4
    )
    if BACKEND == "tensorflow":
        assert model.train_function.compiled == 2


@not_torch
def test_other_steps_on_batches_of_varying_size():
    layer = DiffStride(1.5, 2.0)
    model = static_sizes(varying(layer))
    model.compile(keras.optimizers.SGD(0.0), "mse")
    for x, y in list(batches())[:2]:
        expected = outputs_of(model, x)
        for predicted in (
            model.predict(x, verbose=0),
            model.predict_on_batch(x),
        ):
            np.testing.assert_allclose(predicted, expected, atol=1e-5)
        loss = np.mean(np.square(expected - y))
        for step in (model.train_on_batch, model.test_on_batch):
            np.testing.assert_allclose(step(x, y), loss, rtol=1e-4)


@only_tensorflow
@pytest.mark.parametrize("frozen", [False, True])
def test_functions_of_ones_own_without_sizes(frozen):
    import tensorflow as tf

    layer = DiffStride(1.5, 2.0, frozen=frozen)
    model = varying(layer)
    x = images(2, 12, 12, 1)
    signature = [tf.TensorSpec((None, None, None, 1))]
    run = tf.function(model, input_signature=signature, jit_compile=frozen)
    expected = outputs_of(model, x)
    if frozen:  # Strides are constants, and XLA knows the size of what comes.
        np.testing.assert_allclose(array(run(x)), expected, atol=1e-5)
        return
    retracer = Retracer([layer], lambda: run)
    with pytest.raises(ValueError, match="needs inputs of known size at"):
        retracer([array(layer.stride_weights)], x)


def test_a_model_inside_of_another():
    # To compile the gradients of a ResNet takes long.
    model = static_sizes(resnet_inside())
    model.compile("sgd", "mse", **XLA)
    for layer in learned(model):
        layer.stride_weights.assign(np.full(layer.stride_weights.shape, 3.0))
    x = images(4, 16, 12, 1)
    np.testing.assert_allclose(
        model.predict(x, verbose=0), outputs_of(model, x), rtol=1e-4, atol=1e-5
    )
    assert all(layer.cached is None for layer in learned(model))


@not_torch
def test_a_shared_layer_is_held_at_each_of_its_sizes():
    model = static_sizes(shared_at_two_sizes())
    model.compile("sgd", "mse", **XLA)
    layer, other = model.get_layer("shared"), model.get_layer("other")
    x, sizes = images(2, 16, 12, 1), set()
    # At 1.9 the small map alone has another size, at 1.75 neither.
    for stride in (1.7, 1.75, 1.9, 1.7, 3.0):
        strides = np.float32([stride, stride])
        layer.stride_weights.assign(strides)
        small_size = layer.output_sizes((8, 6), strides)
        sizes.add(
            (
                layer.output_sizes((16, 12), strides),
                small_size,
                other.output_sizes(small_size, array(other.stride_weights)),
            )
        )
        np.testing.assert_allclose(
            model.predict(x, verbose=0), outputs_of(model, x), atol=1e-5
        )
    assert model.predict_function.compiled == len(sizes)
    assert layer.cached is other.cached is None


@not_torch
@pytest.mark.slow  # To compile its gradients takes long.
def test_a_shared_layer_trains():
    model = static_sizes(shared_at_two_sizes())
    model.compile("sgd", "mse", **XLA)
    x = images(2, 16, 12, 1)
    loss = np.mean(np.square(outputs_of(model, x) - 1))
    found = model.train_on_batch(x, np.ones((2, 1)))
    np.testing.assert_allclose(found, loss, rtol=1e-4)


@slow_unless(BACKEND != "tensorflow")
def test_half_precision():
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = static_sizes(small())
    finally:
        keras.config.set_dtype_policy(policy)
    model.compile(keras.optimizers.SGD(0.01), "mse", **XLA)
    x, y = images(8, 12, 12, 1), np.ones((8, 1))
    loss = model.fit(x, y, batch_size=4, epochs=2, verbose=0).history["loss"]
    assert np.all(np.isfinite(loss))
    np.testing.assert_allclose(
        model.predict(x, verbose=0), outputs_of(model, x), rtol=0.05, atol=0.05
    )


@not_torch
def test_several_steps_per_execution_are_refused():
    model = static_sizes(small())
    model.compile("sgd", "mse", steps_per_execution=2)
    with pytest.raises(ValueError, match="`steps_per_execution` must be 1"):
        model.fit(images(4, 12, 12, 1), np.ones((4, 1)), verbose=0)


def test_dynamic_again():
    x, y = images(4, 12, 12, 1), np.ones((4, 1))
    model = small()
    kept = set(vars(model))
    static_sizes(model)
    model.compile("sgd", "mse", **XLA)
    model.fit(x, y, verbose=0)
    static_sizes(model, False)
    assert not any(name.startswith("make_") for name in set(vars(model)) - kept)
    model.compile("sgd", "mse")
    if BACKEND == "jax":
        with pytest.raises(NotImplementedError, match="static_sizes"):
            model.fit(x, y, verbose=0)
        return
    model.fit(x, y, verbose=0)
    assert not model.jit_compile
    assert not hasattr(model.train_function, "retracers")


@pytest.mark.skipif(BACKEND != "torch", reason="about torch")
def test_on_torch_there_is_nothing_to_do():
    model = small()
    kept = dict(vars(model))
    assert static_sizes(model) is model
    assert vars(model) == kept


@not_torch
def test_static_sizes_of_a_model_that_was_trained_are_its_own():
    # Functions made before, of the same methods, must not be used again.
    x, y = images(4, 12, 12, 1), np.ones((4, 1))
    first = static_sizes(small())
    first.compile("sgd", "mse", **XLA)
    first.fit(x, y, verbose=0)
    learned(first)[0].stride_weights.assign([3.0, 3.0])
    first.compile("sgd", "mse", **XLA)
    expected = np.mean(np.square(outputs_of(first, x) - y))
    np.testing.assert_allclose(first.train_on_batch(x, y), expected, rtol=1e-4)


def test_the_setting_is_not_saved(tmp_path):
    model = static_sizes(small())
    model.compile("sgd", "mse", **XLA)
    x = images(4, 12, 12, 1)
    model.fit(x, np.ones((4, 1)), verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert not any(name.startswith("make_") for name in vars(loaded))
    np.testing.assert_allclose(
        outputs_of(loaded, x), outputs_of(model, x), atol=1e-6
    )


class Failing(keras.layers.Layer):
    fails = True

    def call(self, inputs):
        if self.fails:
            raise RuntimeError("on purpose")
        return inputs


@not_torch
def test_a_step_that_fails_leaves_nothing_behind():
    model = small()
    x, failing = images(4, 12, 12, 1), Failing()
    failing.fails = False
    outputs = failing(
        DiffStride(1.5, 1.0)(ops.reshape(model.output, (-1, 1, 1, 1)))
    )
    model = static_sizes(keras.Model(model.input, outputs))
    model.compile("sgd", "mse", **XLA)
    failing.fails = True
    with pytest.raises(RuntimeError, match="on purpose"):
        model.predict_on_batch(x)
    assert len(learned(model)) == 2
    assert all(layer.cached is None for layer in learned(model))
    if BACKEND == "jax":
        return  # Keras has lost the weights, as after any error in a step.
    failing.fails = False
    for stride in (1.5, 3.0):
        learned(model)[0].stride_weights.assign([stride, stride])
        np.testing.assert_allclose(
            model.predict_on_batch(x), outputs_of(model, x), atol=1e-5
        )


class TestForgotten:
    """Each way to compile without `static_sizes` says what is the matter."""

    x = images(4, 12, 12, 1)
    y = np.ones((4, 1), "float32")

    @only_jax
    @pytest.mark.parametrize("build", [nested, sequential])
    def test_fit(self, build):
        x = images(4, 16, 12, 1)
        for name in ("fit", "evaluate"):
            # Keras on JAX loses the weights of a model whose step failed.
            model = build()
            model.compile("sgd", "mse")
            with pytest.raises(NotImplementedError) as caught:
                getattr(model, name)(x, self.y, verbose=0)
            assert "diffstride.static_sizes(model)" in str(caught.value)
            assert "diffstride.freeze(model)" in str(caught.value)

    @only_jax
    def test_jit_of_a_function_of_the_weights(self):
        import jax

        model = small()
        values = [v.value for v in model.trainable_variables]
        run = jax.jit(lambda w, x: model.stateless_call(w, [], x)[0])
        with pytest.raises(NotImplementedError, match="static_sizes"):
            run(values, self.x)

    @only_jax
    def test_jit_of_a_function_of_the_images(self):
        # The weights are constants of the function, hence known.
        import jax

        model, layer = small(), None
        (layer,) = learned(model)
        for stride in (1.3, 3.0):
            layer.stride_weights.assign([stride, stride])
            run = jax.jit(lambda x: model(x, training=False))
            np.testing.assert_allclose(
                run(self.x), outputs_of(model, self.x), atol=1e-5
            )

    @only_tensorflow
    @pytest.mark.parametrize(
        "wrap",
        [
            lambda tf, f: tf.function(f, jit_compile=True),
            lambda tf, f: tf.function(tf.function(f), jit_compile=True),
            lambda tf, f: tf.function(tf.function(f, jit_compile=True)),
            lambda tf, f: tf.function(
                lambda x: tf.cond(
                    tf.reduce_sum(x) > 0, lambda: f(x), lambda: f(-x)
                ),
                jit_compile=True,
            ),
        ],
    )
    def test_a_function_compiled_by_xla(self, wrap):
        import tensorflow as tf

        model = small()
        x = tf.constant(self.x)
        with pytest.raises(NotImplementedError, match="static_sizes"):
            wrap(tf, lambda x: model(x))(x)

    @only_tensorflow
    def test_keras_warns_and_stays_dynamic(self):
        model = small()
        (layer,) = learned(model)
        with pytest.warns(UserWarning, match="doesn't support `jit_compile"):
            model.compile("sgd", "mse", jit_compile=True)
        assert not model.jit_compile
        for stride in (1.3, 3.0):
            layer.stride_weights.assign([stride, stride])
            expected = np.mean(np.square(outputs_of(model, self.x) - 1))
            np.testing.assert_allclose(
                model.train_on_batch(self.x, self.y), expected, rtol=1e-4
            )


class TestRetracer:
    x = images(4, 12, 12, 1)
    # The third has the first one's sizes.
    strides = ([1.3, 1.3], [3.0, 2.0], [1.31, 1.3], [3.0, 2.0])

    def loop(self, layer, make, weights):
        """Returns `step(weights)` of each stride, and compares with eager."""
        retracer = Retracer([layer], make)
        sizes = set()
        for strides in self.strides:
            layer.stride_weights.assign(strides)
            values = array(layer.stride_weights)
            sizes.add(layer.output_sizes((12, 12), values))
            expected = np.mean(np.square(outputs_of(layer, self.x)))
            loss = retracer([values], *weights())
            np.testing.assert_allclose(array(loss), expected, rtol=1e-5)
            assert layer.cached is None
        assert retracer.compiled == len(sizes) == 2

    @only_jax
    def test_in_a_loop_of_jax(self):
        import jax

        layer = DiffStride(1.5, 2.0)
        layer.build(self.x.shape)
        traced = []

        def make():
            def loss(strides, x):
                traced.append(strides)
                y, _ = layer.stateless_call([strides], [], x)
                return ops.mean(ops.square(y))

            def step(strides, x):
                return jax.value_and_grad(loss)(strides, x)[0]

            return jax.jit(step)

        self.loop(layer, make, lambda: (layer.stride_weights.value, self.x))
        assert len(traced) == 2

    @only_tensorflow
    def test_in_a_loop_of_tensorflow(self):
        import tensorflow as tf

        layer = DiffStride(1.5, 2.0)
        layer.build(self.x.shape)
        traced = []

        def make():
            @tf.function(jit_compile=True)
            def step(x):
                traced.append(x)
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(layer(x)))
                (gradient,) = tape.gradient(loss, [layer.stride_weights.value])
                with tf.control_dependencies([gradient]):
                    return tf.identity(loss)

            return step

        self.loop(layer, make, lambda: (tf.constant(self.x),))
        assert len(traced) == 2
