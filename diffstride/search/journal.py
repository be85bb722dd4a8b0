"""What a search has decided, in order, so that it can be done over.

Optuna's samplers draw from a generator that no storage keeps. A search that
goes on therefore asks, reports and tells all over again, in the order of this
file, and so comes to the same sampler and the same trials.
"""

import json
import os
import pathlib
from typing import Any

from diffstride.errors import UserError
from diffstride.files import read_lines, replace_lines, writing

_EVENT = {
    **{"search?": dict, "trial?": int, "settings?": dict},
    **{"epoch?": int, "accuracy?": float, "loss?": float},
    "state?": str,
}


class Journal:
    """Events of a search, a JSON line each.

    Args:
        path: the file; `None` keeps nothing.
        search: what makes this search the one that it is.
    """

    def __init__(self, path: pathlib.Path | None, search: dict[str, Any]):
        self._path = path
        self.events: list[dict[str, Any]] = []
        if path is None:
            return
        remedy = "Remove the folder to search again"
        found = read_lines(path, _EVENT, remedy, may_be_cut=True)
        self.events = found[1:]
        if self.events:  # Before the first trial a search may still change.
            _check(path, found[0].get("search"), search)
        # Without a last line that was cut short.
        replace_lines(path, [{"search": search}, *self.events])

    def write(self, **event: Any) -> None:
        """Adds an event, before anything follows from it."""
        if self._path is None:
            return
        with writing(self._path), self._path.open("a") as file:
            file.write(json.dumps(event) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _check(path: pathlib.Path, found: Any, expected: dict[str, Any]) -> None:
    found = found or {}
    differing = [
        f"{key}: {found.get(key)!r}, now {value!r}"
        for key, value in expected.items()
        if found.get(key) != value
    ]
    if differing:
        raise UserError(
            f"{path} is of another search; choose another --workdir. "
            f"Differing: {'; '.join(differing)}"
        )
