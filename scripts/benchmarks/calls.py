"""Calls that are timed: of a layer on each backend, and steps of a network."""

import functools
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from contenders import Contender
from keras import ops
from timing import BACKEND, on_gpu

from diffstride import fourier, resampling
from diffstride.resnet import resnet18
from diffstride.static import Retracer


class LayerCall:
    """A new layer on one input, forward, or its gradients, forward + backward.

    Each call waits for the result, and returns the seconds it took.
    """

    def __init__(self, contender: Contender, x: Any, backward: bool):
        layer = contender.make()
        layer.build(x.shape)
        make = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}
        self._sizes = (contender.low_rank_size, contender.fft_size)
        self._compute = make[BACKEND](layer, backward, contender.jit)
        self._held = [layer] if contender.static else []
        self._retracer = Retracer(self._held, lambda: self._compute)
        self._values = [
            [v.value for v in layer.trainable_variables],
            [v.value for v in layer.non_trainable_variables],
            x,
        ]

    def __call__(self) -> float:
        """Computes."""
        begin = time.perf_counter()
        _wait(self._run(self._retracer))
        return time.perf_counter() - begin

    def allotted(self) -> int:
        """Returns the bytes of temporary values and outputs, on JAX."""

        def analyse(*values: Any) -> int:
            found = self._compute.lower(*values).compile().memory_analysis()
            return found.temp_size_in_bytes + found.output_size_in_bytes

        return self._run(Retracer(self._held, lambda: analyse))

    def _run(self, retracer: Retracer) -> Any:
        strides = [ops.convert_to_numpy(x.stride_weights) for x in self._held]
        usual = resampling.LOW_RANK_SIZE, fourier.FFT_SIZE
        resampling.LOW_RANK_SIZE, fourier.FFT_SIZE = self._sizes
        try:
            return retracer(strides, *self._values)
        finally:
            resampling.LOW_RANK_SIZE, fourier.FFT_SIZE = usual


def network(arguments: dict[str, Any], data_format: str) -> keras.Model:
    """Builds and compiles a ResNet-18 for images of 32 x 32."""
    first = data_format == "channels_first"
    model = resnet18(**arguments, channels_first=first)
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
) -> dict[str, Callable[[], float]]:
    """Returns functions that run a network `"forward"`, and train a `"step"`.

    They return the seconds they took for all of `x`, which is `burst` batches.
    With more than one, nothing waits for each step, as in real training.
    """
    if burst == 1:
        forward = functools.partial(_timed, model.predict_on_batch, x)
        step = functools.partial(_timed, model.train_on_batch, x, y)
    else:
        settings = {"batch_size": len(x) // burst, "verbose": 0}
        forward = functools.partial(_clocked, model.predict, x, **settings)
        step = functools.partial(
            _clocked, model.fit, x, y, shuffle=False, **settings
        )
    return {"forward": forward, "step": step}


def _timed(method: Callable, *args: Any) -> float:
    begin = time.perf_counter()
    method(*args)
    return time.perf_counter() - begin


def _clocked(method: Callable, *args: Any, **settings: Any) -> float:
    clock = _Clock()
    method(*args, callbacks=[clock], **settings)
    return clock.seconds


class _Clock(keras.callbacks.Callback):
    """Times what Keras does between its first step and its last one."""

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._begin = time.perf_counter()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self._begin

    on_predict_begin, on_predict_end = on_train_begin, on_train_end


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


def _loss(y: Any) -> Any:
    y = ops.cast(y, "float32")
    return ops.sum(y * y)
