"""What training asks of a backend: devices, determinism, compilation.

All else is Keras's. On each backend TensorFlow reads the data, and writes what
TensorBoard shows.
"""

import contextlib
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
from absl import logging

from diffstride import hosts
from diffstride.environment import accelerators
from diffstride.errors import ConfigError

_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"
_STEP = re.compile(r"\b(train|test)_step\b")  # As Keras names them.


def find() -> None:
    """Finds the GPUs of this machine, and keeps TensorFlow off those of others.

    Where it only reads data it would take a GPU's memory from the backend.
    """
    import tensorflow as tf

    if keras.backend.backend() == "tensorflow":
        tf.config.list_physical_devices()
        return
    with contextlib.suppress(RuntimeError):  # It is at work already.
        tf.config.set_visible_devices([], "GPU")


def set_up(deterministic: bool) -> None:
    """Sets what holds for the whole process, before anything is computed."""
    find()
    if deterministic:
        _make_deterministic()
    backend = keras.backend.backend()
    if backend == "jax":
        _keep_compilations()
    # XLA chooses layouts by itself.
    first = backend != "jax" and accelerators()
    keras.config.set_image_data_format(
        "channels_first" if first else "channels_last"
    )


def check_compiling(jit_compile: bool, deterministic: bool) -> None:
    """Refuses what a backend cannot compile. JAX compiles everything anyway.

    Raises:
        ConfigError: in one line.
    """
    backend = keras.backend.backend()
    if jit_compile and backend == "torch":
        raise ConfigError(
            "`jit_compile` must be False on torch, which runs learned strides "
            "eagerly. Received: jit_compile=True"
        )
    if jit_compile and deterministic and backend == "tensorflow":
        raise ConfigError(
            "`deterministic` must be False with `jit_compile=True`: not all of "
            "XLA's operations are. Received: deterministic=True"
        )


def _make_deterministic() -> None:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.experimental.enable_op_determinism()
    elif backend == "jax":
        # Read when JAX finds its devices. On CPUs it has no effect.
        flags = os.environ.get("XLA_FLAGS", "")
        if "xla_gpu_deterministic_ops" not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} {_DETERMINISTIC}".strip()
    else:
        import torch

        # Read when cuBLAS is first used. Without it torch refuses products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def _keep_compilations() -> None:
    """Has JAX keep on disk what it compiles, unless the user says where.

    A run that is taken up again, and all runs of a sweep, need it again.
    """
    import jax

    if not jax.config.jax_compilation_cache_dir:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        folder = pathlib.Path(base).expanduser() / "diffstride" / "jax"
        with contextlib.suppress(OSError):  # It is not worth a run.
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where a network is trained.

    Attributes:
        making: gives a context for making and compiling a model.
        running: gives a context for all that computes.
    """

    making: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    )
    running: Callable[[], contextlib.AbstractContextManager] = (
        contextlib.nullcontext
    )


def place(names: Sequence[str] | None) -> Placement:
    """Chooses where to train.

    Args:
        names: of devices, such as `"GPU:0"`. By default all GPUs on TensorFlow,
            the device that the backend takes by itself on others.

    Raises:
        ConfigError: if one is not there, or they are more than the backend can
            train on from one process.
    """
    backend = keras.backend.backend()
    if hosts.count() > 1:
        if names is not None:
            raise ConfigError(
                "`devices` must be left out with --distributed: each process "
                f"takes all that it has. Received: devices={list(names)}"
            )
        scope = hosts.SharedBatches().scope
        return Placement(scope, scope)
    here = _devices()
    chosen = [name.upper().removeprefix("/DEVICE:") for name in names or ()]
    if not {*chosen} <= {*here} or len({*chosen}) < len(chosen):
        raise ConfigError(
            "`devices` must be among those of this machine, each once: "
            f"{', '.join(here)}. Received: devices={list(names or ())}"
        )
    if backend == "tensorflow":
        gpus = [name for name in here if name.startswith("GPU:")]
        return _strategy(gpus if names is None else chosen)
    if len(chosen) > 1:
        raise ConfigError(
            f"`devices` must be one device on {backend}, which trains on one "
            "from one process; TensorFlow takes several. Received: "
            f"devices={list(names or ())}"
        )
    others = [name for name in here if not name.startswith("CPU:")]
    if names is None and len(others) > 1:
        logging.warning(
            "warning: this run uses one device of %s: on %s a process trains "
            "on one",
            ", ".join(others),
            backend,
        )
    if not chosen:
        return Placement()
    name = chosen[0].lower()
    if backend == "torch":
        name = name.replace("cpu:0", "cpu")  # As torch calls it by default.
    return Placement(running=functools.partial(keras.device, name))


def _devices() -> list[str]:
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        found = [device.name for device in tf.config.list_logical_devices()]
        return [name.removeprefix("/device:") for name in found]
    if backend == "jax":
        import jax

        found = jax.local_devices()
        if found[0].platform != "cpu":
            with contextlib.suppress(RuntimeError):  # JAX_PLATFORMS leaves out.
                found = [*jax.local_devices(backend="cpu"), *found]
        return [f"{each.platform.upper()}:{each.id}" for each in found]
    return ["CPU:0", *(f"GPU:{i}" for i in range(len(accelerators())))]


def _strategy(names: Sequence[str]) -> Placement:
    import tensorflow as tf

    if len(names) > 1:
        return Placement(tf.distribute.MirroredStrategy(list(names)).scope)
    if names:
        return Placement(tf.distribute.OneDeviceStrategy(names[0]).scope)
    return Placement(tf.distribute.get_strategy().scope)


def compilations() -> tuple[int, float] | None:
    """Counts what JAX has compiled in this process, for steps of models.

    Returns:
        How many steps of training and testing since the first call, and the
        seconds that tracing and compiling took, or reading of what was kept.
        `None` on other backends.
    """
    return _compiled()() if keras.backend.backend() == "jax" else None


@functools.cache
def _compiled() -> Callable[[], tuple[int, float]]:
    import jax

    count, total = 0, 0.0

    def listen(event: str, seconds: float, **about: Any) -> None:
        nonlocal count, total
        name = about.get("fun_name", "")
        if event.startswith("/jax/core/compile/") and _STEP.search(name):
            count += event.endswith("/backend_compile_duration")
            total += seconds

    jax.monitoring.register_event_duration_secs_listener(listen)
    return lambda: (count, total)
