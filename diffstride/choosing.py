"""What integer strides are chosen by in a run: losses, kept with the run."""

import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np

from diffstride import data, files, hosts
from diffstride.cost import model_cost
from diffstride.profiling import pooling_states, profile

_EXAMPLES = 256  # What a loss is measured on, or a batch more.
_LARGEST_LOSS = 1e300


class Losses:
    """Losses by what they are of, in a file, so that none is measured twice.

    A run that is taken up again thereby decides as it did, on another machine
    as well.

    Args:
        path: file that is written.
        of: what they are of: `"sizes"` or `"strides"`, a list for each layer.
        read_from: file that is read, if not that one.
    """

    def __init__(
        self,
        path: pathlib.Path,
        of: str,
        read_from: pathlib.Path | None = None,
    ):
        self._path = path
        self._of = of
        remedy = "Remove it, and losses are measured again"
        shape = {of: [[int]], "loss?": float}
        rows = files.read_lines(read_from or path, shape, remedy)
        self._known = {_key(row[of]): row.get("loss") for row in rows}

    def __call__(
        self, of: Sequence[Sequence[int]], measure: Callable[[], float]
    ) -> float:
        """Returns a loss, and measures it if it is not known.

        One that is not finite stands for infinity.
        """
        key = _key(of)
        if key not in self._known:
            value = measure()
            small = abs(value) < _LARGEST_LOSS
            self._known[key] = value if small else None
            rows = [
                {self._of: known, "loss": loss}
                for known, loss in self._known.items()
            ]
            files.replace_lines(self._path, rows)
        value = self._known[key]
        return math.inf if value is None else value


def loss_at_sizes(
    model: keras.Model, datasets: data.Datasets, losses: Losses
) -> Callable[[], float]:
    """Makes a function that measures a model at the sizes that its maps have.

    Args:
        model: the network that has learned strides.
        datasets: what it was trained on.
        losses: by sizes of maps.
    """
    measure = training_loss(model, datasets)

    def loss() -> float:
        states = pooling_states(profile(model, datasets.image_shape))
        return losses([state.output_size for state in states], measure)

    return loss


def training_loss(
    model: keras.Model, datasets: data.Datasets
) -> Callable[[], float]:
    """Makes a function that measures a model on some training data, as it is.

    By the statistics of each batch, as its maps may have other sizes than those
    that it has been trained with. It leaves nothing changed.
    """
    with datasets.reading():
        batches, examples = [], 0
        for batch in datasets.epochs(0, 1):
            batches.append(keras.tree.map_structure(np.asarray, batch))
            examples += len(keras.tree.flatten(batches[-1])[0])
            if examples > _EXAMPLES:
                break

    def measure() -> float:
        changing = model.non_trainable_variables
        kept = [keras.ops.copy(variable) for variable in changing]
        losses = []
        try:
            for x, y in batches:
                loss = model.compute_loss(x, y, model(x, training=True))
                # Without its gradient, which torch would keep for all batches.
                losses.append(keras.ops.convert_to_numpy(loss))
        finally:
            for variable, value in zip(changing, kept, strict=True):
                variable.assign(value)
        return float(np.mean(losses))

    return measure


class Trials:
    """Short trainings of plain networks, which strides are chosen by at last.

    Each is what the first epochs of the network would be, were it chosen.

    Args:
        readied: makes a network that is trained of one that is not compiled.
        datasets: what it is trained on.
        first_epoch: number of the first epoch.
        epochs: how many.
        seed: of all that is drawn, if weights are.
        losses: by strides.

    Attributes:
        rows: of each network its strides, its loss, `None` if that was not
            finite, and its multiply-accumulates.
    """

    def __init__(
        self,
        readied: Callable[[keras.Model], keras.Model],
        datasets: data.Datasets,
        first_epoch: int,
        epochs: int,
        seed: int,
        losses: Losses,
    ):
        self.rows: list[dict[str, Any]] = []
        self._readied = readied
        self._datasets = datasets
        self._first_epoch = first_epoch
        self._epochs = epochs
        self._seed = seed
        self._losses = losses

    def __call__(
        self, plain: keras.Model, strides: Sequence[tuple[int, ...]]
    ) -> float:
        """Returns the mean loss of the last epoch, infinite if it is no number.

        Args:
            plain: a network that is not compiled.
            strides: its strides, in the order of poolings.
        """
        loss = self._losses(strides, lambda: self._trained(plain))
        # Whether it was known or not, the run is to go on alike.
        keras.utils.set_random_seed(self._seed)
        cost = model_cost(plain, self._datasets.image_shape)
        self.rows.append(
            {
                "strides": [list(each) for each in strides],
                "loss": loss if math.isfinite(loss) else None,
                "macs": cost.macs,
                "epochs": self._epochs,
            }
        )
        if hosts.leads():
            named = ", ".join("x".join(map(str, each)) for each in strides)
            print(f"trial {len(self.rows)}: strides {named}, loss {loss:.4f}")
        return loss

    def _trained(self, plain: keras.Model) -> float:
        keras.utils.set_random_seed(self._seed)
        network = self._readied(plain)
        first, last = self._first_epoch, self._first_epoch + self._epochs
        history = hosts.fit(
            *(network, self._datasets, first, last),
            verbose=0,
            callbacks=[keras.callbacks.TerminateOnNaN()],
        )
        losses = history.history["loss"]
        return losses[-1] if len(losses) == self._epochs else math.inf


def _key(of: Sequence[Sequence[int]]) -> tuple:
    return tuple(tuple(map(int, each)) for each in of)
