"""Calls that are timed: of a layer on each backend, and steps of a network."""

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
from contenders import Contender
from keras import ops
from timing import BACKEND, on_gpu

from diffstride import resampling
from diffstride.resnet import resnet18
from diffstride.static import Retracer


class LayerCall:
    """A new layer on one input; each call waits for the result.

    Args:
        contender: the layer.
        x: its input.
        backward: whether to compute gradients, of the input and the trainable
            variables, instead of the output.
    """

    def __init__(self, contender: Contender, x: Any, backward: bool):
        layer = contender.make()
        layer.build(x.shape)
        make = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
        self.low_rank_size = contender.low_rank_size
        self.compile = functools.partial(
            make[BACKEND], layer, backward, contender.jit
        )
        self.held = [layer] if contender.static else []
        self.retracer = Retracer(self.held, self.compile)
        self.values = [
            [v.value for v in layer.trainable_variables],
            [v.value for v in layer.non_trainable_variables],
            x,
        ]

    def __call__(self) -> None:
        """Computes."""
        _wait(self._run(self.retracer))

    def allotted(self) -> int:
        """Returns the bytes of temporary values and outputs, on JAX."""

        def analyse(*values: Any) -> int:
            found = self.compile().lower(*values).compile().memory_analysis()
            return found.temp_size_in_bytes + found.output_size_in_bytes

        return self._run(Retracer(self.held, lambda: analyse))

    def _run(self, retracer: Retracer) -> Any:
        strides = [ops.convert_to_numpy(x.stride_weights) for x in self.held]
        with _low_rank_from(self.low_rank_size):
            return retracer(strides, *self.values)


def network(pooling: Any, data_format: str) -> keras.Model:
    """Builds and compiles a ResNet-18 for images of 32 x 32.

    Args:
        pooling: the pooling class.
        data_format: `"channels_last"` or `"channels_first"`.
    """
    first = data_format == "channels_first"
    model = resnet18(pooling_cls=pooling, channels_first=first)
    model.build((None, 3, 32, 32) if first else (None, 32, 32, 3))
    model.compile(
        # At stride 2 sizes lie on an edge, where the least move of a stride
        # changes them by 2. Rate 0 costs as much and keeps all networks at the
        # sizes they are compared at.
        keras.optimizers.SGD(0.0, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    return model


def network_calls(
    model: keras.Model, x: np.ndarray, y: np.ndarray, burst: int = 1
) -> dict[str, Callable]:
    """Returns functions that run a network forward, and train it.

    Args:
        model: the network.
        x: images of `burst` batches.
        y: their labels.
        burst: number of steps in a call. With more than one, time passes
            without waiting for each, as in real training.

    Returns:
        `"forward"` and `"step"`, which return the seconds they took.
    """
    if burst == 1:
        calls = {
            "forward": (_timed, model.predict_on_batch, x),
            "step": (_timed, model.train_on_batch, x, y),
        }
        return {key: functools.partial(*call) for key, call in calls.items()}
    settings = {"batch_size": len(x) // burst, "verbose": 0}
    fit = functools.partial(model.fit, x, y, shuffle=False, **settings)
    predict = functools.partial(model.predict, x, **settings)
    return {
        "forward": functools.partial(_clocked, predict),
        "step": functools.partial(_clocked, fit),
    }


class _Clock(keras.callbacks.Callback):
    """Times what Keras does between its first step and its last one."""

    def _start(self, logs: dict | None = None) -> None:
        self._begin = time.perf_counter()

    def _stop(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self._begin

    on_train_begin = on_predict_begin = _start
    on_train_end = on_predict_end = _stop


def _clocked(method: Callable) -> float:
    clock = _Clock()
    method(callbacks=[clock])
    return clock.seconds


def _timed(method: Callable, *args: Any) -> float:
    begin = time.perf_counter()
    method(*args)
    return time.perf_counter() - begin


def _tensorflow(layer: Any, backward: bool, jit: bool) -> Callable:
    import tensorflow as tf

    def compute(trainable: list, fixed: list, x: Any) -> Any:
        if not backward:
            return layer(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = _loss(layer(x))
        return tape.gradient(loss, [x, *trainable])

    return tf.function(compute, jit_compile=jit)


def _jax(layer: Any, backward: bool, jit: bool) -> Callable:
    import jax

    def forward(*values: Any) -> Any:
        return layer.stateless_call(*values)[0]

    def loss(*values: Any) -> Any:
        return _loss(forward(*values))

    return jax.jit(jax.grad(loss, argnums=(0, 2)) if backward else forward)


def _torch(layer: Any, backward: bool, jit: bool) -> Callable:
    import torch

    def compute(trainable: list, fixed: list, x: Any) -> None:
        if backward:
            x = x.detach().requires_grad_(True)
            torch.autograd.grad(_loss(layer(x)), [x, *trainable])
        else:
            with torch.no_grad():
                layer(x)

    return compute


def _wait(results: Any) -> None:
    if BACKEND == "jax":
        import jax

        jax.block_until_ready(results)
    elif on_gpu() and BACKEND == "tensorflow":
        import tensorflow as tf

        tf.test.experimental.sync_devices()
    elif on_gpu():
        import torch

        torch.cuda.synchronize()


@contextlib.contextmanager
def _low_rank_from(size: int) -> Iterator[None]:
    kept = resampling.LOW_RANK_SIZE
    resampling.LOW_RANK_SIZE = size
    try:
        yield
    finally:
        resampling.LOW_RANK_SIZE = kept


def _loss(y: Any) -> Any:
    y = ops.cast(y, "float32")
    return ops.sum(y * y)
