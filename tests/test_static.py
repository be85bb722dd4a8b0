"""Sizes held for a step, sizes frozen for good, and what fails without."""

import contextlib

import keras
import numpy as np
import pytest
from keras import ops

from diffstride import (
    DiffStride,
    DiffStride1D,
    FixedSpectralPooling,
    freeze,
    static_sizes,
)
from diffstride.pooling import BaseDiffStride
from diffstride.resnet import ResidualLayer, Resnet, ResnetBlock
from diffstride.static import Retracer

BACKEND = keras.backend.backend()
only_jax = pytest.mark.skipif(BACKEND != "jax", reason="about jax.jit")
only_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="about tf.function"
)
not_torch = pytest.mark.skipif(
    BACKEND == "torch", reason="torch runs eagerly: nothing is compiled"
)
XLA = {"jit_compile": BACKEND != "torch"}
DYNAMIC = {"run_eagerly": True} if BACKEND == "jax" else {"jit_compile": False}
RAMPS = ("outer", "inner", "straight_through")


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def array(x):
    return ops.convert_to_numpy(x)


def learned(model):
    return [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, BaseDiffStride)
    ]


def outputs_of(model, x):
    """Of an eager call, whose sizes follow the strides on every backend."""
    return array(model(x, training=False))


class Probe(keras.layers.Layer):
    """Calls a function of its input whenever its Python runs."""

    def __init__(self, watch):
        super().__init__()
        self.watch = watch

    def call(self, inputs):
        self.watch(inputs)
        return inputs


def small(layer=None, size=(12, 12), watch=None):
    """A convolution, a pooling, a head. Weights are alike on all backends."""
    inputs = keras.Input((*size, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
    x = (layer or DiffStride((1.5, 2.0), 2.0))(x)
    if watch is not None:
        x = Probe(watch)(x)
    x = keras.layers.GlobalAveragePooling2D()(ops.square(x))
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    generator = np.random.default_rng(1)
    for variable in model.trainable_variables:
        if variable.name == "kernel":
            variable.assign(generator.uniform(-0.2, 0.6, variable.shape))
    return model


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

    def train(self, ramp, steps, static):
        """Returns losses, sizes, and when the step was traced and compiled."""
        layer = DiffStride(
            (1.5, 2.0), 2.0, ramp=ramp, norm="forward", stride_lr_multiplier=40
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
        targets = np.where(np.arange(steps) * 6 // steps % 2, 1.0, 0.1)
        with compilations(lambda: compiled.append(step)):
            for target in targets:
                y = np.full((4, 1), target, "float32")
                strides = array(layer.stride_weights)
                sizes.append(layer.output_sizes((12, 12), strides))
                losses.append(float(model.train_on_batch(x, y)))
                step += 1
        return losses, sizes, traced, sorted(set(compiled))

    @not_torch
    @pytest.mark.parametrize(
        "ramp, steps",
        [("outer", 300), ("inner", 60), ("straight_through", 60)],
    )
    def test_losses_and_compilations(self, ramp, steps):
        expected, expected_sizes, *_ = self.train(ramp, steps, static=False)
        losses, sizes, traced, compiled = self.train(ramp, steps, static=True)
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


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("shared_stride", [True, False])
def test_everything_that_keras_does_with_a_model(shared_stride, trainable):
    layer = DiffStride(
        1.5, 2.0, shared_stride=shared_stride, stride_lr_multiplier=30
    )
    model = static_sizes(small(layer))
    layer.trainable = trainable
    model.compile(keras.optimizers.SGD(0.01), "mse", **XLA)
    x, y = images(20, 12, 12, 1), np.ones((20, 1), "float32")
    # The last batch has 4 images.
    history = model.fit(
        x, y, batch_size=8, epochs=2, verbose=0, validation_data=(x[:9], y[:9])
    ).history
    expected = np.mean(np.square(outputs_of(model, x[:9]) - 1))
    np.testing.assert_allclose(history["val_loss"][-1], expected, rtol=1e-4)
    assert np.all(array(layer.stride_weights) == 1.5) != trainable
    for stride in (1.3, 3.0, 1.3):
        layer.stride_weights.assign(np.full(2 - shared_stride, stride))
        expected = outputs_of(model, x)
        loss = np.mean(np.square(expected - 1))
        close = {"rtol": 1e-4, "atol": 1e-5}
        for actual in (
            model.predict(x, batch_size=8, verbose=0),
            model.predict_on_batch(x),
        ):
            np.testing.assert_allclose(actual, expected, **close)
        for actual in (
            model.evaluate(x, y, batch_size=8, verbose=0),
            model.test_on_batch(x, y),
            model.train_on_batch(x, y),
        ):
            np.testing.assert_allclose(actual, loss, **close)
    assert layer.cached is None


def unknown_size(layer):
    inputs = keras.Input((None, None, 1))
    x = keras.layers.GlobalAveragePooling2D()(ops.square(layer(inputs)))
    return keras.Model(inputs, x)


@only_jax
def test_images_of_changing_size():
    layer = DiffStride(1.5, 2.0)
    model = static_sizes(unknown_size(layer))
    model.compile("sgd", "mse")
    for stride in (1.5, 3.0, 1.6):
        layer.stride_weights.assign([stride, stride])
        for size in ((12, 12), (16, 10), (9, 12)):
            x = images(2, *size, 1)
            np.testing.assert_allclose(
                model.predict(x, verbose=0), outputs_of(model, x), atol=1e-5
            )


@only_tensorflow
def test_a_size_that_is_not_known_is_refused():
    import tensorflow as tf

    def batches():
        for size in (12, 16):
            yield images(2, size, size, 1)

    data = tf.data.Dataset.from_generator(
        batches, output_signature=tf.TensorSpec((None, None, None, 1))
    )
    model = static_sizes(unknown_size(DiffStride(1.5)))
    model.compile("sgd", "mse", **XLA)
    with pytest.raises(ValueError, match="needs inputs of known size at"):
        model.predict(data, verbose=0)
    # Without `static_sizes` they are welcome.
    model = unknown_size(DiffStride(1.5))
    assert model.predict(data, verbose=0).shape == (4, 1)


def shared_at_two_sizes():
    layer = DiffStride((1.4, 1.6), 2.0, stride_lr_multiplier=30, name="shared")
    inputs = keras.Input((16, 12, 1))
    x = layer(inputs)
    y = layer(keras.layers.AveragePooling2D(2)(inputs))
    y = DiffStride(1.5, 1.0, ramp="inner", name="other")(y)
    x, y = keras.layers.GlobalAveragePooling2D()(ops.square(x)), ops.square(y)
    y = keras.layers.GlobalAveragePooling2D()(y)
    return keras.Model(inputs, keras.layers.Add()([x, y]))


def nested():
    inner = keras.Sequential(
        [
            keras.Input((16, 12, 2)),
            DiffStride((1.4, 1.6), 2.0),
            keras.layers.ReLU(),
        ],
        name="inner",
    )
    inputs = keras.Input((16, 12, 1))
    x = keras.layers.Conv2D(2, 3, padding="same")(inputs)
    x = keras.layers.GlobalAveragePooling2D()(inner(x))
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def sequential():
    return keras.Sequential(
        [
            keras.Input((16, 12, 1)),
            DiffStride((1.4, 1.6), 2.0, shared_stride=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            DiffStride(1.5, 1.0, ramp="straight_through", shared_stride=True),
            keras.layers.GlobalAveragePooling2D(),
        ]
    )


def resnet():
    model = Resnet(
        [2, 4], [1.5, (1.5, 2)], pooling_cls=DiffStride, num_layers=1
    )
    model.build((None, 16, 12, 1))
    return model


def residual():
    inputs = keras.Input((16, 12, 1))
    x = ResidualLayer(2, strides=1.5, pooling_cls=DiffStride, project=True)(
        inputs
    )
    x = ResnetBlock(4, (1.5, 2), num_layers=1, pooling_cls=DiffStride)(x)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def resnet_inside():
    inputs = keras.Input((16, 12, 1))
    return keras.Model(inputs, resnet()(inputs))


MODELS = [
    shared_at_two_sizes,
    nested,
    sequential,
    resnet,
    residual,
    resnet_inside,
]


@pytest.mark.parametrize("build", [shared_at_two_sizes, nested, resnet_inside])
def test_models_of_all_kinds_train_and_predict(build):
    # The first step's loss is that of an eager call; then strides change.
    model = static_sizes(build())
    model.compile(keras.optimizers.SGD(0.0), "mse", **XLA)
    x = images(4, 16, 12, 1)
    for stride in (None, 3.0):
        if stride is not None:
            for layer in learned(model):
                layer.stride_weights.assign(
                    np.full(layer.stride_weights.shape, stride)
                )
        expected = outputs_of(model, x)
        np.testing.assert_allclose(
            model.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
        )
        assert np.isfinite(model.train_on_batch(x, np.ones_like(expected)))
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
    assert model.predict_function.retracer.compiled == len(sizes)


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
    assert not hasattr(model.train_function, "retracer")


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
        np.testing.assert_allclose(
            tf.function(lambda x: model(x))(x), outputs_of(model, x), atol=1e-5
        )

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


def one_dimensional():
    inputs = keras.Input((30, 2))
    x = DiffStride1D(1.7, 2.0, ramp="inner")(inputs)
    return keras.Model(inputs, keras.layers.Conv1D(3, 3)(x))


def small_of(ramp):
    return lambda: small(DiffStride((1.4, 1.8), 2.0, ramp=ramp), (16, 12))


class Composed(keras.layers.Layer):
    """Keeps a DiffStride where `freeze` cannot reach it."""

    def __init__(self, inside=None, **kwargs):
        super().__init__(**kwargs)
        config = inside or {"strides": 2.0, "name": "inside"}
        self.inside = DiffStride.from_config(config)

    def build(self, input_shape):
        self.inside.build(input_shape)

    def call(self, inputs):
        return self.inside(inputs)


class Helpful(Composed):
    """The same, with what `freeze` asks for."""

    def get_config(self):
        return {**super().get_config(), "inside": self.inside.get_config()}


class OwnModel(keras.Model):
    def __init__(self):
        super().__init__()
        self.inside = DiffStride(2.0)

    def call(self, inputs):
        return self.inside(inputs)


class TestFreeze:
    def frozen(self, build):
        """Returns a model after some training, its frozen form, images."""
        model = build()
        for i, layer in enumerate(learned(model)):
            # On no grid, and on none of which rounding could move a size.
            layer.stride_weights.assign(
                np.linspace(1.37, 2.13 + 0.1 * i, layer.stride_weights.shape[0])
            )
        x = images(
            4, *(model.input_shape[1:] if build is not resnet else (16, 12, 1))
        )
        # Batch statistics are weights, too.
        model(x, training=True)
        return model, freeze(model), x

    @pytest.mark.parametrize(
        "build",
        [
            *MODELS,
            one_dimensional,
            *(pytest.param(small_of(ramp), id=ramp) for ramp in RAMPS),
        ],
    )
    def test_a_frozen_model_is_the_same_model(self, build, tmp_path):
        model, frozen, x = self.frozen(build)
        assert learned(model) and len(learned(frozen)) == len(learned(model))
        expected = outputs_of(model, x)
        np.testing.assert_allclose(
            outputs_of(frozen, x), expected, rtol=1e-6, atol=1e-6
        )
        for layer, original in zip(
            learned(frozen), learned(model), strict=True
        ):
            assert layer.frozen and not layer.trainable_variables
            assert not original.frozen and original.trainable_variables
            np.testing.assert_array_equal(
                array(layer.stride_weights), array(original.stride_weights)
            )
        assert frozen.count_params() == model.count_params()
        assert not frozen.compiled
        # It compiles like any other, and needs no `static_sizes`.
        frozen.compile("sgd", "mse", **XLA)
        np.testing.assert_allclose(
            frozen.predict(x, verbose=0), expected, rtol=1e-4, atol=1e-5
        )
        frozen.save(tmp_path / "model.keras")
        loaded = keras.models.load_model(tmp_path / "model.keras")
        assert all(layer.frozen for layer in learned(loaded))
        np.testing.assert_allclose(
            outputs_of(loaded, x), expected, rtol=1e-6, atol=1e-6
        )

    def test_static_shapes_are_known(self):
        model = keras.Sequential(
            [keras.Input((16, 12, 1)), DiffStride((1.4, 1.8), 2.0)]
        )
        assert model.output_shape == (None, None, None, 1)
        frozen = freeze(model)
        shape = outputs_of(model, images(1, 16, 12, 1)).shape[1:]
        assert frozen.output_shape == (None, *shape)
        for layer in learned(frozen):
            assert layer.compute_output_shape((2, 16, 12, 1)) == (2, *shape)
            assert layer.compute_output_shape((2, None, 12, 1))[1] is None
        head = keras.Sequential(
            [frozen, keras.layers.Flatten(), keras.layers.Dense(3)]
        )
        head.build((None, 16, 12, 1))
        assert head.layers[-1].kernel.shape == (np.prod(shape), 3)
        assert head.predict(images(2, 16, 12, 1), verbose=0).shape == (2, 3)

    @pytest.mark.parametrize("build", [shared_at_two_sizes, nested, residual])
    def test_the_summary_shows_sizes(self, build):
        def summary(model):
            lines = []
            model.summary(print_fn=lambda line, **_: lines.append(line))
            return "\n".join(lines)

        model, frozen, _ = self.frozen(build)
        assert "(None, None" in summary(model)
        assert "(None, None" not in summary(frozen)

    def test_fine_tuning_leaves_the_strides(self):
        _, frozen, x = self.frozen(sequential)
        before = [array(v) for v in frozen.trainable_variables]
        strides = [array(a.stride_weights) for a in learned(frozen)]
        frozen.compile(keras.optimizers.SGD(0.1), "mse", **XLA)
        frozen.fit(x, np.ones((4, 1)), epochs=2, verbose=0)
        after = [array(v) for v in frozen.trainable_variables]
        assert not np.allclose(before[0], after[0])
        for layer, value in zip(learned(frozen), strides, strict=True):
            np.testing.assert_array_equal(array(layer.stride_weights), value)

    def test_a_compiled_model(self):
        # Whatever it was compiled with; a function of one's own included.
        model = small()
        model.compile("sgd", lambda a, b: ops.mean(ops.square(a - b)))
        assert not freeze(model).compiled

    def test_weights_of_other_strides_are_refused(self, tmp_path):
        model, frozen, _ = self.frozen(small_of("outer"))
        path = tmp_path / "model.weights.h5"
        model.save_weights(path)
        frozen.load_weights(path)
        learned(model)[0].stride_weights.assign([3.0, 3.0])
        model.save_weights(path)
        with pytest.raises(ValueError, match="weights were saved with strides"):
            frozen.load_weights(path)

    def test_a_model_that_is_not_built(self):
        with pytest.raises(ValueError, match="needs a built model"):
            freeze(Resnet([4, 8], [1, 2], pooling_cls=DiffStride))

    def test_layers_of_ones_own(self):
        inputs = keras.Input((12, 12, 1))
        x = images(2, 12, 12, 1)
        model = keras.Model(inputs, Composed(name="composed")(inputs))
        with pytest.raises(
            ValueError, match=r"cannot reach .*inside"
        ) as caught:
            freeze(model)
        assert "serialize_keras_object" in str(caught.value)
        model = keras.Model(inputs, Helpful()(inputs))
        learned(model)[0].stride_weights.assign([1.3, 1.7])
        frozen = freeze(model)
        assert learned(frozen)[0].frozen
        np.testing.assert_allclose(
            outputs_of(frozen, x), outputs_of(model, x), atol=1e-6
        )

    def test_models_of_ones_own(self):
        model = OwnModel()
        model(images(2, 12, 12, 1))
        with pytest.raises(ValueError, match="cannot reach"):
            freeze(model)

    def test_a_frozen_model_may_be_frozen_again(self):
        _, frozen, x = self.frozen(small_of("outer"))
        np.testing.assert_array_equal(
            outputs_of(freeze(frozen), x), outputs_of(frozen, x)
        )

    def test_fixed_layers_stay_what_they_are(self):
        inputs = keras.Input((12, 12, 1))
        model = keras.Model(inputs, FixedSpectralPooling((2, 2.5))(inputs))
        x = images(2, 12, 12, 1)
        np.testing.assert_array_equal(
            outputs_of(freeze(model), x), outputs_of(model, x)
        )

    @only_tensorflow
    @pytest.mark.parametrize("build", [nested, resnet])
    def test_export(self, build, tmp_path):
        import tensorflow as tf

        model, frozen, x = self.frozen(build)
        outputs_of(frozen, x)  # Keras exports what has been called.
        frozen.export(tmp_path / "model", verbose=False)
        loaded = tf.saved_model.load(tmp_path / "model")
        np.testing.assert_allclose(
            array(loaded.serve(x)), outputs_of(model, x), rtol=1e-5, atol=1e-5
        )
