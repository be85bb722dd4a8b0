"""Optuna's part of a search: what is tried next, and what is given up."""

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any, NamedTuple

from diffstride.errors import UserError
from diffstride.formatting import human
from diffstride.runs import PASSES
from diffstride.search.journal import Journal
from diffstride.search.space import Space
from diffstride.sweep.grid import Run

SAMPLERS = ("tpe", "random")
PRUNERS = ("none", "median", "halving")
# A sampler that proposes what is known this often in a row has settled; a
# candidate that is not known is then drawn for it.
_MOST_REPEATS = 20
_MOST_REJECTED = 2000


class Cost(NamedTuple):
    """What a candidate costs.

    Attributes:
        macs: multiply-accumulates of an image, forward.
        epochs: epochs of a whole run.
        images: images of an epoch, or `None` if nobody knows.
    """

    macs: int
    epochs: int
    images: int | None


class Options(NamedTuple):
    """How to search.

    Attributes:
        sampler: one of `SAMPLERS`.
        pruner: one of `PRUNERS`.
        seed: seed of the sampler.
        budget: most multiply-accumulates that a candidate may have.
        at_least: fewest of them.
        short_epochs: epochs that each candidate trains for, all but the one
            with the least training loss then; `None` for whole runs.
    """

    sampler: str = "tpe"
    pruner: str = "none"
    seed: int = 0
    budget: float = math.inf
    at_least: float = 0.0
    short_epochs: int | None = None


@dataclasses.dataclass
class Trial:
    """A candidate that trains, or has.

    Attributes:
        number: its place among the trials, from 0.
        run: what is trained.
        cost: what it costs.
        asked: what Optuna knows it as.
        accuracies: what it was reported to reach, epoch by epoch.
        losses: training losses of these epochs, if they are what counts.
        is_given_up: whether the pruner, or a short training, has had enough.
        is_promoted: whether it was chosen to train to the end after all.
        state: `"running"`, `"finished"`, `"pruned"` or `"failed"`.
        validation: accuracy by which trials are compared, once finished.
        test: accuracy on the test split, once finished.
    """

    number: int
    run: Run
    cost: Cost
    asked: Any
    accuracies: list[float] = dataclasses.field(default_factory=list)
    losses: list[float] = dataclasses.field(default_factory=list)
    is_given_up: bool = False
    is_promoted: bool = False
    state: str = "running"
    validation: float | None = None
    test: float | None = None

    @property
    def training_macs(self) -> float | None:
        """Multiply-accumulates of its training until now."""
        if self.cost.images is None:
            return None
        epochs = len(self.accuracies)
        return PASSES * self.cost.macs * self.cost.images * epochs


class Study:
    """Asks Optuna for candidates, and tells it what became of them.

    The same seed and the same answers, in the same order, give the same trials.

    Args:
        space: what there is to choose from.
        options: how to choose.
        cost_fn: gives the cost of a run; `None` leaves the candidate out.
        can_make_fn: tells whether a run can be made, once it is known to be
            within the bounds.
        journal: keeps what happens; what is in it has happened already.
    """

    def __init__(
        self,
        space: Space,
        options: Options,
        cost_fn: Callable[[Run], Cost | None],
        can_make_fn: Callable[[Run], bool],
        journal: Journal,
    ):
        optuna = import_optuna()
        self.trials: list[Trial] = []
        self.rejected: list[int] = []
        self.left_out = 0
        self._space = space
        self._options = options
        self._cost_fn = cost_fn
        self._can_make_fn = can_make_fn
        self._journal = journal
        self._states = optuna.trial.TrialState
        self._chance = random.Random(options.seed)
        self._names: set[str] = set()
        self._seen: set[tuple] = set()
        self._choices = space.choices
        self._distributions = _distributions(space, self._choices)
        self._study = optuna.create_study(
            direction="maximize",
            sampler=_sampler(options),
            pruner=_pruner(options),
        )
        self._is_replaying = True
        for event in journal.events:
            self._replay(event)
        self._is_replaying = False

    def propose(self) -> Trial | None:
        """Returns a new trial to be made, or `None` if there is none left.

        Candidates out of the bounds are no trials, nor are those that were
        proposed before: the sampler is asked again.
        """
        repeats, rejected = 0, len(self.rejected)
        while len(self._seen) < self._space.size:
            if repeats >= _MOST_REPEATS:
                self._study.enqueue_trial(self._unseen())
            asked = self._study.ask(self._distributions)
            run = self._space.run(asked.params)
            self._seen.add(tuple(asked.params[name] for name in self._choices))
            if run.name in self._names:
                repeats += 1
                self._study.tell(asked, state=self._states.FAIL)
                continue
            self._names.add(run.name)
            cost = self._cost_fn(run)
            is_within = cost is not None and self._is_within(cost.macs, asked)
            self._check_short(cost)
            if is_within and self._can_make_fn(run):
                trial = Trial(len(self.trials), run, cost, asked)
                self._write(trial, settings=run.settings)
                self.trials.append(trial)
                return trial
            if cost is None or is_within:
                self.left_out += 1
                self._study.tell(asked, state=self._states.FAIL)
                continue
            self.rejected.append(cost.macs)
            self._study.tell(asked, state=self._states.PRUNED)
            if len(self.rejected) - rejected >= _MOST_REJECTED:
                raise self._none_within(
                    f"None of {_MOST_REJECTED} candidates in a row is"
                )
        if self.rejected and not self.trials and not self.left_out:
            raise self._none_within(
                f"None of all {len(self.rejected)} candidates is"
            )
        return None

    def _none_within(self, how_many: str) -> UserError:
        low, high = min(self.rejected), max(self.rejected)
        bounds = self._options
        return UserError(
            f"{how_many} within --at_least={bounds.at_least:g} and --budget="
            f"{bounds.budget:g}: they cost {human(low)} to {human(high)} "
            "multiply-accumulates. Move the bounds, or the ranges of strides"
        )

    def report(
        self, trial: Trial, accuracy: float, loss: float | None = None
    ) -> None:
        """Takes note of what the next epoch of a trial has reached.

        Args:
            trial: one that runs.
            accuracy: what trials are compared by.
            loss: the training loss, needed for short trainings.
        """
        epoch = len(trial.accuracies) + 1
        event = {"epoch": epoch, "accuracy": accuracy}
        short = self._options.short_epochs
        if short is not None:
            event["loss"] = loss
            trial.losses.append(math.inf if loss is None else loss)
        self._write(trial, **event)
        trial.accuracies.append(accuracy)
        if trial.is_promoted:
            return
        trial.asked.report(accuracy, epoch)
        # Whole runs are not given up.
        if epoch < trial.cost.epochs:
            trial.is_given_up = epoch == short or trial.asked.should_prune()

    def promote(self) -> Trial | None:
        """Returns the trial that is to go on after its short training.

        It has the least training loss there. `None` if it has gone on already,
        or trainings are whole.
        """
        short = self._options.short_epochs
        trained = [t for t in self.trials if short and len(t.losses) >= short]
        if not trained:
            return None
        best = min(trained, key=lambda trial: trial.losses[short - 1])
        if best.state != "pruned":
            return None
        self._write(best, state="promoted")
        best.state = "running"
        best.is_given_up, best.is_promoted = False, True
        return best

    def finish(self, trial: Trial, validation: float, test: float) -> None:
        """Takes note of what a whole run has reached."""
        values = {"accuracy": validation, "test": test}
        self._write(trial, state="finished", **values)
        trial.state = "finished"
        trial.validation, trial.test = validation, test
        if not trial.is_promoted:
            self._study.tell(trial.asked, validation)

    def prune(self, trial: Trial) -> None:
        """Takes note of a trial that was given up."""
        self._write(trial, state="pruned")
        trial.state = "pruned"
        self._study.tell(trial.asked, state=self._states.PRUNED)

    def fail(self, trial: Trial) -> None:
        """Takes note of a trial that failed, until the search is started again.

        Samplers see no difference between a trial that failed and one that
        runs, and so it may end well then.
        """
        trial.state = "failed"
        if not trial.is_promoted:
            self._study.tell(trial.asked, state=self._states.FAIL)

    def _check_short(self, cost: Cost | None) -> None:
        short = self._options.short_epochs
        if short and cost and short >= cost.epochs:
            raise UserError(
                f"--short_epochs must be less than the {cost.epochs} epochs of "
                f"a whole training. Received: --short_epochs={short}"
            )

    def _is_within(self, macs: int, asked: Any) -> bool:
        """Whether a candidate is within the bounds, which TPE learns."""
        excess = {}
        if math.isfinite(self._options.budget):
            excess["over"] = math.log(macs / self._options.budget)
        if self._options.at_least:
            excess["under"] = math.log(self._options.at_least / macs)
        for name, value in excess.items():
            asked.set_constraint(name, value)
        return all(value <= 0 for value in excess.values())

    def _unseen(self) -> dict[str, Any]:
        while True:
            chosen = {
                n: self._chance.choice(v) for n, v in self._choices.items()
            }
            if tuple(chosen.values()) not in self._seen:
                return chosen

    def _write(self, trial: Trial, **event: Any) -> None:
        if not self._is_replaying:
            self._journal.write(trial=trial.number, **event)

    def _replay(self, event: dict[str, Any]) -> None:
        if "settings" in event:
            trial = self.propose()
            found = trial and trial.run.settings
            if found != event["settings"]:
                raise UserError(
                    f"Trial {event['trial']} of this search was "
                    f"{event['settings']}, and would now be {found}. Its "
                    "sampler, or what it knows of costs, has changed; choose "
                    "another --workdir"
                )
            return
        trial = self.trials[event["trial"]]
        if event.get("state") == "finished":
            self.finish(trial, event["accuracy"], event["test"])
        elif event.get("state") == "pruned":
            self.prune(trial)
        elif event.get("state") == "promoted":
            self.promote()
        else:
            self.report(trial, event["accuracy"], event.get("loss"))


def import_optuna() -> Any:
    """Imports Optuna, or says how to get it."""
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError(
            "A search needs optuna; pip install 'diffstride[search]' brings it"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _distributions(space: Space, choices: dict[str, list]) -> dict[str, Any]:
    kinds = import_optuna().distributions
    return {
        name: kinds.CategoricalDistribution(values)
        if name in space.axes
        else kinds.IntDistribution(values[0], values[-1])
        for name, values in choices.items()
    }


def _sampler(options: Options) -> Any:
    samplers = import_optuna().samplers
    if options.sampler == "random":
        return samplers.RandomSampler(seed=options.seed)
    # A failed trial must look like one that runs, which is therefore ignored.
    return samplers.TPESampler(seed=options.seed, constant_liar=False)


def _pruner(options: Options) -> Any:
    pruners = import_optuna().pruners
    kinds = {
        "none": pruners.NopPruner,
        "median": pruners.MedianPruner,
        "halving": pruners.SuccessiveHalvingPruner,
    }
    return kinds[options.pruner]()
