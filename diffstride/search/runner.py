"""Makes the trials of a search: from a table, from its folder, or by training.

Whatever answers a trial, its accuracies are reported epoch by epoch, so that a
table gives the trials that training would have given.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from diffstride.errors import UserError
from diffstride.files import make_folder, read_ours, replace_lines
from diffstride.formatting import human
from diffstride.runs import read_records
from diffstride.search.costs import Counter
from diffstride.search.study import Cost, Study, Trial
from diffstride.sweep.grid import Run
from diffstride.sweep.runner import POLL_SECONDS, Machines, Process, Sweep

SELECT = ("validation", "test")


@dataclasses.dataclass
class Answers:
    """Where a search learns what a run costs, and what it reaches.

    Attributes:
        sweep: says what makes a run, and where its workdir is.
        select: accuracy that trials are compared by, one of `SELECT`.
        table: records of runs already made, as `read_table` returns them.
        images: images of an epoch, for records that do not tell.
        counter: counts what is not in the table; `None` to leave it out.
        trains: whether what is not in the table can be made.
    """

    sweep: Sweep
    select: str
    table: dict[str, dict[str, Any]]
    images: int | None = None
    counter: Counter | None = None
    trains: bool = True

    def made(self, run: Run) -> dict[str, Any] | None:
        """Returns the record of a run that is in the table."""
        return self.table.get(_key(self.sweep.identity(run)))

    def cost(self, run: Run) -> Cost | None:
        """Returns the cost of a run; `None` if it cannot be had."""
        if record := self.made(run):
            summary = record["summary"]
            epochs = int(summary.get("epochs") or len(record["epochs"]))
            images = summary.get("images_per_epoch") or self.images
            return Cost(summary["cost"]["macs"], epochs, images)
        if self.counter is None:
            return None
        cost = self.counter.cost(run, self.select == "validation")
        return cost._replace(images=cost.images or self.images)

    def can_make(self, run: Run) -> bool:
        """Tells whether there is, or can be, a record of a run."""
        return self.trains or self.made(run) is not None

    def look(self, trial: Trial) -> tuple[str, dict[str, Any] | None]:
        """Returns the state of a run, and its record if it has one."""
        if record := self.made(trial.run):
            return "finished", record
        return self.sweep.look(trial.run)

    def accuracies(self, record: dict[str, Any]) -> tuple[float, float]:
        """Returns what a finished run is compared by, and its test accuracy."""
        summary = record["summary"]
        test = summary["test_accuracy"]
        if self.select == "test":
            return test, test
        validation = summary.get("validation_accuracy")
        if validation is None:
            raise UserError(
                f"The run {record['name']} has no validation_accuracy, and "
                "trials must not be selected by the images that they are "
                "tested on. Make it with data.load_datasets.validation_split, "
                "or pass --select=test to do it all the same"
            )
        return validation, test


def read_table(
    paths: Sequence[pathlib.Path], sweep: Sweep
) -> dict[str, dict[str, Any]]:
    """Reads the records of finished runs, by what makes them what they are."""
    for path in paths:
        if not path.is_file():
            raise UserError(
                f"--table must be a .jsonl file of records. Received: {path}"
            )
    records = [record for path in paths for record in read_records(path)]
    common = (sweep.gin_config, sweep.bindings)
    table = {}
    for record in records:
        bindings = (record.get("bindings") or [])[: len(sweep.bindings)]
        if record.get("summary") and (record["gin_config"], bindings) == common:
            if "macs" not in (record["summary"].get("cost") or {}):
                raise UserError(f"{record['name']} of --table tells no cost")
            table[_key(record)] = record
    if paths and not table:
        first = records[0] if records else {}
        raise UserError(
            f"--table={paths[0]} has no run with the config and the bindings "
            f"of this search, {common[0]} and {common[1]}. Its first is of "
            f"{first.get('gin_config')} and {first.get('bindings')}"
        )
    return table


def _key(record: dict[str, Any]) -> str:
    keys = ("settings", "gin_config", "bindings")
    return json.dumps([record.get(key) for key in keys], sort_keys=True)


@dataclasses.dataclass
class Search:
    """Makes trials until there are `count` of them.

    Attributes:
        study: proposes trials.
        answers: knows or makes what they reach.
        count: number of trials, those that are given up included.
        output: file of the records of all ended trials, JSON lines.
        tell: prints a line.
    """

    study: Study
    answers: Answers
    count: int
    output: pathlib.Path | None = None
    tell: Callable[[str], Any] = print
    _processes: dict[str, Process] = dataclasses.field(default_factory=dict)
    _errors: dict[str, str] = dataclasses.field(default_factory=dict)

    def make(
        self, machines: Machines, check: Callable[[], None]
    ) -> dict[str, str]:
        """Makes all trials; returns name and error of each that failed.

        `check` may raise, to end the search and its runs.
        """
        self._check_output()
        active = [t for t in self.study.trials if t.state == "running"]
        is_exhausted = False
        try:
            while True:
                check()
                ended = [t for t in active if self._advance(t, machines)]
                for trial in ended:
                    active.remove(trial)
                    self._write_output()
                    self.tell(self._line(trial))
                has_room = len(active) < machines.jobs
                is_short = len(self.study.trials) < self.count
                if has_room and is_short and not is_exhausted:
                    trial = self.study.propose()
                    is_exhausted = trial is None
                    active += [trial] if trial else []
                elif not active:
                    promoted = self.study.promote()
                    if promoted is None:
                        self._write_output()  # It may have been stopped before.
                        return self._errors
                    active.append(promoted)
                elif not ended:
                    machines.wait(POLL_SECONDS)
        finally:
            for process in self._processes.values():
                process.kill()

    def records(self) -> list[dict[str, Any]]:
        """Returns the record of each trial that has ended, in their order."""
        rows = []
        for trial in self.study.trials:
            _, record = self.answers.look(trial)
            if trial.state == "running" or record is None:
                continue
            if trial.state == "pruned":
                kept = record["epochs"][: len(trial.accuracies)]
                record = {**record, "summary": None, "epochs": kept}
            rows.append({**record, "trial": trial.number})
        return rows

    def _advance(self, trial: Trial, machines: Machines) -> bool:
        """Reports what is new of a trial; tells whether it has ended."""
        process = self._processes.get(trial.run.name)
        has_ended, error = False, None
        if process is not None:
            # Before looking, so that what is seen then is all there will be.
            has_ended, error = self.answers.sweep.outcome(trial.run, process)
        state, record = self.answers.look(trial)
        for row in record["epochs"][len(trial.accuracies) :] if record else []:
            if not trial.is_given_up:
                self.study.report(trial, row["val_accuracy"], row.get("loss"))
        if trial.is_given_up:
            self._give_up(trial, process)
            return True
        if error:
            del self._processes[trial.run.name]
            self._errors[trial.run.name] = error
            self.study.fail(trial)
            return True
        if state == "finished" and (process is None or has_ended):
            self._processes.pop(trial.run.name, None)
            self.study.finish(trial, *self.answers.accuracies(record))
            return True
        if process is None:
            started = self.answers.sweep.start(trial.run, machines)
            self._processes[trial.run.name] = started
        return False

    def _give_up(self, trial: Trial, process: Process | None) -> None:
        if process is not None:
            process.stop()
            del self._processes[trial.run.name]
        if not self.answers.made(trial.run):
            epochs = len(trial.accuracies)
            self.answers.sweep.record(trial.run, pruned_after=epochs)
        self.study.prune(trial)

    def _line(self, trial: Trial) -> str:
        number = f"{trial.number + 1:{len(str(self.count))}}"
        start = f"[{number}/{self.count}] {trial.run.name}, "
        start += f"{human(trial.cost.macs)} MACs: "
        if trial.state == "failed":
            return start + f"failed: {self._errors[trial.run.name]}"
        if trial.state == "pruned" and trial.losses:
            epochs = f"after {len(trial.losses)} epochs"
            return start + f"training loss {trial.losses[-1]:.4f} {epochs}"
        if trial.state == "pruned":
            return start + f"given up after epoch {len(trial.accuracies)}"
        accuracies = f"test {100 * trial.test:.2f} %"
        if self.answers.select == "validation":
            accuracies = (
                f"validation {100 * trial.validation:.2f} %, {accuracies}"
            )
        return start + accuracies

    def _check_output(self) -> None:
        """Refuses to write over what is not of this search."""
        if self.output is None:
            return
        found = read_ours(
            self.output, "--output", "the records of this search", read_records
        )
        ours = {trial.run.name for trial in self.study.trials}
        for record in found or []:
            if "trial" not in record or record["name"] not in ours:
                raise UserError(
                    f"--output={self.output} holds the run {record['name']}, "
                    "which is not of this search. Choose another --output"
                )

    def _write_output(self) -> None:
        if self.output is not None:
            make_folder(self.output.parent, "--output")
            replace_lines(self.output, self.records())
