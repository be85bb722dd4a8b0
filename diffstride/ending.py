"""How a run ends as a plain network, and what its strides are chosen by."""

import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import keras

from diffstride import data, hosts
from diffstride.choosing import Losses, Trials, loss_at_sizes
from diffstride.cost import cost_of_calls
from diffstride.errors import (
    ConfigError,
    NonFiniteLossError,
    as_config_errors,
    check_argument,
)
from diffstride.hardening import (
    TARGETS,
    Hardened,
    hardened_with_plan,
    hardening_report,
)
from diffstride.profiling import pooling_states
from diffstride.stage import axes_of, tested
from diffstride.surgery import rebuilt

HARDENED = "hardened."  # How the name of the hardened network's backup begins.
_CHOOSING = ("size", "loss", "training")


class Hardening(NamedTuple):
    """How a run ends as a plain network: arguments of `train`."""

    to: str | None
    epochs: int
    restart: bool
    by: str
    trials: int
    trial_epochs: int


def check_hardening(hardening: Hardening, num_epochs: int) -> None:
    """Refuses what a run of so many epochs cannot end as, in one line."""
    to, epochs, restart, by, trials, trial_epochs = hardening
    check_argument(
        to in (None, *TARGETS),
        f"None or one of {', '.join(map(repr, TARGETS))}",
        harden_to=repr(to),
    )
    check_argument(
        0 <= epochs < (num_epochs if to else 1),
        f"less than num_epochs={num_epochs} with `harden_to`, 0 without it",
        finetune_epochs=epochs,
    )
    check_argument(
        epochs > 0 or not restart,
        "False with `finetune_epochs=0`: nothing would train the new weights",
        restart=restart,
    )
    check_argument(
        by in _CHOOSING,
        f"one of {', '.join(map(repr, _CHOOSING))}",
        harden_by=repr(by),
    )
    check_argument(
        by == "size" or to in ("strided", "pooled"),
        "'size' unless `harden_to` is 'strided' or 'pooled'",
        harden_by=repr(by),
    )
    check_argument(trials >= 1, "at least 1", trials=trials)
    check_argument(
        by != "training" or 1 <= trial_epochs <= epochs,
        f"from 1 to finetune_epochs={epochs} with `harden_by='training'`",
        trial_epochs=trial_epochs,
    )


def hardened(
    model: keras.Model,
    hardening: Hardening,
    budget: float | None,
    datasets: data.Datasets,
    compiled: Callable[[keras.Model], keras.Model],
    seed: int,
    epochs: int,
    root: pathlib.Path,
    own: pathlib.Path,
) -> tuple[keras.Model, dict[str, Any]]:
    """Makes the plain network, and tells what that has changed."""
    readied = partial(
        _readied,
        compiled=compiled,
        source=model,
        new_weights_from=seed if hardening.restart else None,
    )
    backup = own / "backup", root / "backup"

    def losses(of: str, name: str) -> Losses:
        path, read_from = (each / f"{HARDENED}{name}.jsonl" for each in backup)
        return Losses(path, of, read_from)

    loss = trial = None
    if hardening.by != "size":
        kept = losses("sizes", "losses")
        loss = loss_at_sizes(model, datasets, kept)
    if hardening.by == "training":
        kept = losses("strides", "trials")
        trial = Trials(
            *(readied, datasets, epochs, hardening.trial_epochs, seed, kept)
        )
    # All have read what there is before the first writes.
    hosts.wait("choice of strides")
    keras.utils.set_random_seed(seed)  # Dropout draws when it is made.
    try:
        with as_config_errors(macs="budget"):
            made = hardened_with_plan(
                *(model, hardening.to, datasets.image_shape),
                *(budget, loss, trial, hardening.trials),
            )
    except ValueError as error:
        if trial and trial.rows and not any(map(_is_finite, trial.rows)):
            raise NonFiniteLossError(
                f"All {len(trial.rows)} trials of integer strides diverged. "
                "Try a lower learning rate in another --workdir; what was "
                "learned is kept."
            ) from error
        raise
    print(hardening_report(model, made, datasets.image_shape))
    compiled(made.model)
    change = _change(hardening.to, model, made, datasets)
    if trial is not None:
        change["trials"] = trial.rows
    return readied(made.model), change


def _is_finite(trial: dict[str, Any]) -> bool:
    return trial["loss"] is not None


def _readied(
    plain: keras.Model,
    compiled: Callable[[keras.Model], keras.Model],
    source: keras.Model,
    new_weights_from: int | None,
) -> keras.Model:
    """Makes a plain network ready to be trained.

    It has the source's weights and an optimizer that is as far. Or it is new
    from a seed, and so is the optimizer.
    """
    if new_weights_from is not None:
        keras.utils.set_random_seed(new_weights_from)
        return compiled(rebuilt(plain, "train"))
    if not plain.compiled:
        compiled(plain)
    steps = keras.ops.copy(source.optimizer.iterations)
    plain.optimizer.iterations.assign(steps)
    return plain


def _change(
    to: str, learned: keras.Model, made: Hardened, datasets: data.Datasets
) -> dict[str, Any]:
    """What is to be said of hardening: the network before, and just after."""
    plain, plan, calls = made
    return {
        "to": to,
        "learned": {
            **tested(learned, datasets),
            **axes_of(learned),
            "cost": cost_of_calls(learned, calls).totals(),
            "pooling": [state._asdict() for state in pooling_states(calls)],
        },
        "before_finetuning": tested(plain, datasets),
        "pooling": [
            {
                "name": step.learned.name,
                "strides": list(map(float, step.strides)),
                "input_size": list(step.input_size),
                "output_size": list(step.output_size),
            }
            for step in plan.values()
        ],
    }


def check_not_hardened(
    root: pathlib.Path, done: int, learning_epochs: int
) -> None:
    """Refuses to learn strides further when a network was made of them."""
    if done < learning_epochs and any((root / "backup").glob(f"{HARDENED}*")):
        raise ConfigError(
            f"`num_epochs` less `finetune_epochs` must be {done} in {root}, "
            "where the network was hardened after that many epochs. Received: "
            f"{learning_epochs}. Raise both, or choose another --workdir"
        )
