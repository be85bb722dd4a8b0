"""What candidates cost: asked of a process that counts, and remembered."""

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from diffstride.errors import UserError
from diffstride.files import read_lines, replace_lines, writing
from diffstride.search.study import Cost
from diffstride.sweep.grid import Run

_COUNTED = {
    **{"run": str, "macs": int, "epochs": int, "validates": bool},
    "flags?": [str],
}


class Counter:
    """Counts by `diffstride.counting`, which is started when it is needed.

    Args:
        command_fn: gives the command of `diffstride.main` for a run.
        path: file of what was counted before.
        log: where the process writes what is no answer.
    """

    def __init__(
        self,
        command_fn: Callable[[Run], list[str]],
        path: pathlib.Path,
        log: pathlib.Path,
    ):
        self._command_fn = command_fn
        self._path = path
        self._log = log
        self._process: subprocess.Popen | None = None
        rows = read_lines(path, _COUNTED, "Remove it", may_be_cut=True)
        replace_lines(path, rows)
        self._known = {
            (row["run"], tuple(row.get("flags", ()))): row for row in rows
        }

    def cost(self, run: Run, validates: bool) -> Cost:
        """Counts what a run costs.

        Raises:
            UserError: if it cannot be built, or has no validation split though
                it is to be one that `validates`.
        """
        flags = self._flags(run)
        row = self._known.get((run.name, tuple(flags)))
        if row is None:
            row = {"run": run.name, "flags": flags, **self._ask(run, flags)}
            with writing(self._path), self._path.open("a") as file:
                file.write(json.dumps(row) + "\n")
            self._known[run.name, tuple(flags)] = row
        if validates and not row["validates"]:
            raise UserError(
                "Trials must not be selected by the images that they are "
                "tested on, and this config validates on no others. Pass "
                '--gin_bindings="data.load_datasets.train_split = '
                "'train[:90%]'\" and --gin_bindings=\""
                "data.load_datasets.validation_split = 'train[90%:]'\", "
                "or --select=test to do it all the same"
            )
        return Cost(row["macs"], row["epochs"], row.get("images"))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process.stdin.close()
            self._process.stdout.close()

    def _flags(self, run: Run) -> list[str]:
        """The flags of training, less what is of this run."""
        of_run = {f"--gin_bindings={binding}" for binding in run.bindings}
        return [
            flag
            for flag in self._command_fn(run)[3:]
            if flag not in of_run
            and not flag.startswith(("--workdir=", "--seed="))
        ]

    def _ask(self, run: Run, flags: list[str]) -> dict[str, Any]:
        if self._process is None:
            self._process = self._start(flags)
        try:
            print(json.dumps(run.bindings), file=self._process.stdin)
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:  # It has ended.
            line = ""
        answer = json.loads(line) if line else {"error": "it ended"}
        if "error" in answer:
            raise UserError(
                f"The cost of {run.name} cannot be counted: {answer['error']} "
                f"({self._log})"
            )
        return answer

    def _start(self, flags: list[str]) -> subprocess.Popen:
        with writing(self._log), self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", "diffstride.counting", *flags],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=os.environ,
                process_group=0,  # Control-C is for the parent to deal with.
            )
