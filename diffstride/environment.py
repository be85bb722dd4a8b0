"""What a run is made on, for its record."""

import os
import platform
from typing import Any

import keras


def environment() -> dict[str, Any]:
    """Names versions and devices."""
    backend = keras.backend.backend()
    return {
        "python": platform.python_version(),
        backend: __import__(backend).__version__,
        "keras": keras.__version__,
        "devices": accelerators() or [f"{os.cpu_count()} CPU cores"],
    }


def accelerators() -> list[str]:
    """Lists what the backend computes on beside CPUs, by its makers' names."""
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return [
            tf.config.experimental.get_device_details(gpu).get(
                "device_name", "GPU"
            )
            for gpu in tf.config.list_physical_devices("GPU")
        ]
    if backend == "jax":
        import jax

        return [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    import torch

    return [
        torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())
    ]
