"""Several tasks of one network: what `compile` takes, what is logged."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import keras

# Besides Keras's own losses of outputs, which are means over batches, of
# unequal ones too; these are means over examples, and take their place.
_LOSS = "cross_entropy"


def objectives(tasks: Sequence[str], label_smoothing: float) -> dict[str, Any]:
    """Returns losses and metrics as arguments of `compile`.

    The loss of several tasks is the mean of theirs. Sample weights, one for
    each task, say which task an example is of.

    Args:
        tasks: names of the model's outputs; none for a model with one output.
        label_smoothing: share of the label that is spread over all classes.
    """
    # By its name a metric would be made in the first step, which TensorFlow
    # would then trace again.
    accuracy = keras.metrics.CategoricalAccuracy
    how = {"from_logits": True, "label_smoothing": label_smoothing}
    if not tasks:
        loss = keras.losses.CategoricalCrossentropy(**how)
        return {"loss": loss, "metrics": [accuracy("accuracy")]}
    return {
        "loss": {
            task: keras.losses.CategoricalCrossentropy(**how) for task in tasks
        },
        "loss_weights": {task: 1 / len(tasks) for task in tasks},
        "weighted_metrics": {
            task: [
                accuracy("accuracy"),
                keras.metrics.CategoricalCrossentropy(name=_LOSS, **how),
            ]
            for task in tasks
        },
    }


def with_means(
    logs: Mapping[str, float], tasks: Sequence[str]
) -> dict[str, float]:
    """Returns logs with the mean accuracy of tasks, and the loss of each.

    Args:
        logs: what Keras reports of an epoch or a test.
        tasks: names of the tasks; none for a model with one output.
    """
    logs = dict(logs)
    for prefix in ("", "val_"):
        if not tasks or f"{prefix}{tasks[0]}_{_LOSS}" not in logs:
            continue
        for task in tasks:
            logs[f"{prefix}{task}_loss"] = logs.pop(f"{prefix}{task}_{_LOSS}")
        logs[f"{prefix}accuracy"] = statistics.fmean(
            logs[f"{prefix}{task}_accuracy"] for task in tasks
        )
    return logs
