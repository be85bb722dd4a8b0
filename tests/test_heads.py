"""Networks with a head for each task: losses, gradients, files."""

import functools

import keras
import numpy as np
import pytest
from maps import JAX, array

from diffstride import DiffStride, freeze, networks
from diffstride.audio_cnn import AudioCNN
from diffstride.hardening import harden
from diffstride.resnet import Resnet
from diffstride.tasks import objectives, with_means

CLASSES = {"pitch": 4, "family": 3}
SMOOTHING = 0.1
POOLING = functools.partial(DiffStride, smoothness_factor=1.0, norm="forward")
# What an example is of, and its class; of pitch there are more.
EXAMPLES = [("pitch", 1), ("family", 2), ("pitch", 3), ("pitch", 0)]


ONE_BACKEND = pytest.mark.skipif(JAX, reason="the same there, and slow")


def audio_cnn(**kwargs):
    model = AudioCNN(
        [2, 3],
        [(2, 2), (1, 2)],
        CLASSES,
        pooling_cls=POOLING,
        sample_rate=1000,
        mel_channels=8,
        **kwargs,
    )
    return settled(model, (600,))


def resnet():
    model = Resnet([2, 3], [1, 2], CLASSES, pooling_cls=POOLING, num_layers=1)
    return settled(model, (8, 8, 1))


def settled(model, shape):
    """Builds it, with weights that are alike on all backends."""
    model.build((None, *shape))
    generator = np.random.default_rng(3)
    for variable in model.trainable_variables:
        if variable.name in ("kernel", "beta", "bias"):
            variable.assign(generator.normal(0.2, 0.5, variable.shape))
        elif variable.name == "strides":  # Away from where sizes change.
            variable.assign(array(variable) * 1.5)
    return model


def inputs(model, *shape):
    shape = (*shape, *model.input_shape[1:])
    x = np.random.default_rng(0).normal(size=shape)
    return x.astype("float32")


def targets(examples=EXAMPLES):
    """Labels and weights for `fit`, as `load_tasks` gives them."""
    labels, weights = {}, {}
    for task, count in CLASSES.items():
        own = np.array([each == task for each, _ in examples], "float32")
        classes = [label % count for _, label in examples]
        labels[task] = np.eye(count, dtype="float32")[classes] * own[:, None]
        # So that tasks count alike, though they have not as many examples.
        weights[task] = own * len(own) / max(own.sum(), 1)
    return labels, weights


def expected(logits, examples=EXAMPLES):
    """Loss and accuracy of each task, out of its own examples alone."""
    found = {}
    for task, count in CLASSES.items():
        losses, hits = [], []
        for row, (own, label) in zip(logits[task], examples, strict=True):
            if own != task:
                continue
            shares = np.full(count, SMOOTHING / count)
            shares[label] += 1 - SMOOTHING
            row = np.float64(row)
            losses.append(shares @ (np.log(np.exp(row).sum()) - row))
            hits.append(row.argmax() == label)
        found |= {f"{task}_loss": np.mean(losses)}
        found |= {f"{task}_accuracy": np.mean(hits)}
    for metric in ("loss", "accuracy"):
        each = [found[f"{task}_{metric}"] for task in CLASSES]
        found[metric] = np.mean(each)
    return found


def logits_of(model, x, training=False):
    return {k: array(v) for k, v in model(x, training=training).items()}


def test_losses_and_accuracies_are_those_of_own_examples():
    model = audio_cnn()
    model.compile("sgd", **objectives(tuple(CLASSES), SMOOTHING))
    x = inputs(model, 4)
    found = model.test_on_batch(x, *targets(), return_dict=True)
    found = with_means(found, tuple(CLASSES))
    wanted = expected(logits_of(model, x))
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)


def test_a_step_is_that_of_a_hand_written_loss():
    """Along a direction in all weights at once, strides among them.

    A head has no gradient from examples of other tasks.
    """
    model, rate = resnet(), 1e-3
    optimizer = keras.optimizers.SGD(rate)
    model.compile(optimizer, **objectives(tuple(CLASSES), SMOOTHING))
    x = inputs(model, 4)
    variables = model.trainable_variables
    start = [array(v) for v in variables]
    generator = np.random.default_rng(1)
    direction = [generator.normal(size=v.shape) for v in variables]

    def put(step):
        for variable, value, along in zip(
            variables, start, direction, strict=True
        ):
            variable.assign(value + step * along)

    def loss(step):
        put(step)
        return expected(logits_of(model, x, training=True))["loss"]

    def moved(examples):
        put(0)
        model.train_on_batch(x, *targets(examples))
        return [
            (value - array(variable)) / rate
            for value, variable in zip(start, variables, strict=True)
        ]

    slope = (loss(1e-3) - loss(-1e-3)) / 2e-3
    found = sum(map(np.vdot, direction, moved(EXAMPLES)))
    np.testing.assert_allclose(found, slope, rtol=0.02)

    others = moved([("pitch", label) for label in range(4)])
    still = {
        variable.path
        for variable, by in zip(variables, others, strict=True)
        if not by.any()
    }
    assert not any("strides" in path for path in still)
    heads = model.layers[-1]
    assert {v.path for v in heads.get_layer("family").variables} <= still
    assert not any("conv" in path or "pitch" in path for path in still)


@ONE_BACKEND
@pytest.mark.parametrize("network", [audio_cnn, resnet])
def test_heads_are_saved_frozen_and_hardened(network, tmp_path):
    model = network()
    x = inputs(model, 2)
    wanted = logits_of(model, x)
    assert {k: v.shape for k, v in wanted.items()} == {
        "pitch": (2, 4),
        "family": (2, 3),
    }
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.num_output_classes == CLASSES
    for same in (loaded, freeze(model)):
        for task, value in logits_of(same, x).items():
            np.testing.assert_allclose(value, wanted[task], atol=1e-5)
    shape = model.input_shape[1:]
    plain = harden(model, "strided", shape, verbose=False)
    assert logits_of(plain, x).keys() == CLASSES.keys()


@ONE_BACKEND
def test_outputs_of_each_task_are_averaged_over_windows():
    model = audio_cnn()
    x = inputs(model, 2, 3)
    alone = [logits_of(model, x[:, i]) for i in range(3)]
    for task, value in logits_of(model, x).items():
        wanted = np.mean([each[task] for each in alone], axis=0)
        np.testing.assert_allclose(value, wanted, atol=1e-5)


@ONE_BACKEND
def test_a_densenet_has_heads_too():
    model = networks.densenet(
        [2], CLASSES, (8, 8, 1), num_layers=1, growth_rate=4
    )
    assert logits_of(model, inputs(model, 2))["family"].shape == (2, 3)


@pytest.mark.parametrize(
    "make, classes, said",
    [
        (AudioCNN, {"pitch": 4}, "by the names of two tasks or more"),
        (AudioCNN, {"pitch": 4, "family": 0}, "`num_output_classes['family']`"),
        (networks.application, CLASSES, "must be an integer >= 1"),
    ],
)
def test_bad_numbers_of_classes_are_refused(make, classes, said):
    with pytest.raises(ValueError) as error:
        make(num_output_classes=classes)
    assert said in str(error.value) and "\n" not in str(error.value)
