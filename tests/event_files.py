"""Reads what TensorBoard shows."""

import pathlib

import tensorflow as tf


def scalars(directory):
    """Folder, name, step and value of all scalars of event files, in order."""
    for path in sorted(pathlib.Path(directory).rglob("events.*")):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars":
                    number = float(tf.make_ndarray(value.tensor))
                    yield path.parent.name, value.tag, event.step, number
