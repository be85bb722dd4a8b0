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


class _LayerCall:
    """A new layer, built for an input; each call waits for the result.

    Args:
        contender: the layer.
        x: its input.
        backward: whether to compute gradients, of the input and the trainable
            variables, instead of the output.
    """

    def __init__(self, contender: Contender, x: Any, backward: bool):
        self.contender = contender
        self.x = x
        self.backward = backward
        self.layer = contender.make()
        self.layer.build(x.shape)
        self.held = [self.layer] if contender.static else []
        self.trainable = [v.value for v in self.layer.trainable_variables]
        self.fixed = [v.value for v in self.layer.non_trainable_variables]

    def __call__(self) -> None:
        with _low_rank_from(self.contender.low_rank_size):
            self.run()

    def strides(self) -> list[np.ndarray]:
        """Returns the strides of the layer, where its sizes are held."""
        return [ops.convert_to_numpy(each.stride_weights) for each in self.held]


class _TensorFlowCall(_LayerCall):
    def __init__(self, *args: Any):
        super().__init__(*args)
        self.retracer = Retracer(self.held, self._compiled)

    def run(self) -> None:
        import tensorflow as tf

        self.retracer(self.strides(), self.x)
        if on_gpu():
            tf.test.experimental.sync_devices()

    def _compiled(self) -> Callable:
        import tensorflow as tf

        # A new function each time: TensorFlow keeps traces by function.
        return tf.function(
            lambda x: self._compute(x), jit_compile=self.contender.jit
        )

    def _compute(self, x: Any) -> Any:
        import tensorflow as tf

        if not self.backward:
            return self.layer(x)
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = _loss(self.layer(x))
        return tape.gradient(loss, [x, *self.trainable])


class _JaxCall(_LayerCall):
    def __init__(self, *args: Any):
        super().__init__(*args)
        self.retracer = Retracer(self.held, self._compiled)

    def run(self) -> None:
        import jax

        values = (self.trainable, self.fixed, self.x)
        jax.block_until_ready(self.retracer(self.strides(), *values))

    def allotted(self) -> int:
        """Returns the bytes of temporary values and outputs."""
        retracer = Retracer(self.held, lambda: self._allotted)
        with _low_rank_from(self.contender.low_rank_size):
            return retracer(self.strides(), self.trainable, self.fixed, self.x)

    def _allotted(self, *values: Any) -> int:
        memory = self._compiled().lower(*values).compile().memory_analysis()
        return memory.temp_size_in_bytes + memory.output_size_in_bytes

    def _compiled(self) -> Callable:
        import jax

        compute = self._forward
        if self.backward:
            compute = jax.grad(self._loss, argnums=(0, 2))
        # A new function each time: JAX keeps traces by function.
        return jax.jit(lambda *values: compute(*values))

    def _forward(self, trainable: list, fixed: list, x: Any) -> Any:
        return self.layer.stateless_call(trainable, fixed, x)[0]

    def _loss(self, *values: Any) -> Any:
        return _loss(self._forward(*values))


class _TorchCall(_LayerCall):
    def run(self) -> None:
        import torch

        if self.backward:
            x = self.x.detach().requires_grad_(True)
            torch.autograd.grad(_loss(self.layer(x)), [x, *self.trainable])
        else:
            with torch.no_grad():
                self.layer(self.x)
        if on_gpu():
            torch.cuda.synchronize()


layer_call = {
    "tensorflow": _TensorFlowCall,
    "jax": _JaxCall,
    "torch": _TorchCall,
}[BACKEND]


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
    """Returns functions that run a network forward, and train it for a step.

    Args:
        model: the network.
        x: images of `burst` batches.
        y: their labels.
        burst: number of steps in a call. With more than one, time passes
            without waiting for each, as in real training.

    Returns:
        `"forward"` and `"step"`, by the names of the results.
    """
    if burst == 1:
        return {
            "forward": lambda: _discard(model.predict_on_batch(x)),
            "step": lambda: _discard(model.train_on_batch(x, y)),
        }
    settings = {"batch_size": len(x) // burst, "verbose": 0}
    return {
        "forward": functools.partial(_clocked, model.predict, x, **settings),
        "step": functools.partial(
            _clocked, model.fit, x, y, shuffle=False, **settings
        ),
    }


class _Clock(keras.callbacks.Callback):
    """Times what Keras does between its first step and its last one."""

    def _start(self, logs: dict | None = None) -> None:
        self._begin = time.perf_counter()

    def _stop(self, logs: dict | None = None) -> None:
        self.seconds = time.perf_counter() - self._begin

    on_train_begin = on_predict_begin = _start
    on_train_end = on_predict_end = _stop


def _clocked(method: Callable, *args: Any, **kwargs: Any) -> float:
    clock = _Clock()
    method(*args, callbacks=[clock], **kwargs)
    return clock.seconds


def _discard(result: Any) -> None:
    """Returns nothing, so that the caller's clock counts."""


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
