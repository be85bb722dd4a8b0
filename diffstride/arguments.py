"""What constructors accept: numbers, booleans, choices, one for each axis.

Values come from Python, numpy, a backend, gin and JSON. Each function returns
plain Python values, or raises a `ValueError` that says what was received.
"""

import reprlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

LARGEST = float(np.finfo("float32").max)
# float32 counts samples and frequency bins one by one up to here.
LARGEST_COUNT = 2**24

AXES = {1: "steps", 2: "height, width", 3: "depth, height, width"}


def refusal(name: str, expected: str, value: Any) -> ValueError:
    """Returns the error for an argument that is not what is expected."""
    received = " ".join(reprlib.repr(value).split())
    return ValueError(
        f"`{name}` must be {expected}. Received: {name}={received}"
    )


def number(
    name: str, value: Any, least: float = 0, most: float = LARGEST, of: str = ""
) -> float:
    """Returns a number within bounds, finite in float32; `of` is its unit."""
    given = plain(value)
    if not _is_number(given, least, most):
        most = f" and <= {most}" if most < LARGEST else ""
        raise refusal(name, f"a finite number >= {least}{most}{of}", value)
    return given


def share(name: str, value: Any) -> float:
    """Returns a number above 0, up to 1."""
    given = plain(value)
    if not _is_number(given, 0, 1) or not given:
        raise refusal(name, "a number above 0 and at most 1", value)
    return float(given)


def integer(name: str, value: Any, least: int = 1) -> int:
    """Returns an integer; floats that are one will do."""
    given = plain(value)
    if not _is_integer(given, least):
        raise refusal(name, f"an integer >= {least}", value)
    return int(given)


def optional_integer(name: str, value: Any, least: int = 1) -> int | None:
    """Returns an integer, or `None`."""
    return None if value is None else integer(name, value, least)


def classes(name: str, value: Any) -> int | dict[str, int]:
    """Returns a number of classes, or one for each task by its name."""
    if not isinstance(value, Mapping):
        return integer(name, value)
    if len(value) < 2 or not all(isinstance(task, str) for task in value):
        expected = "an integer, or integers by the names of two tasks or more"
        raise refusal(name, expected, dict(value))
    return {task: integer(f"{name}[{task!r}]", n) for task, n in value.items()}


def boolean(name: str, value: Any) -> bool:
    """Returns a boolean; 0 and 1 will do."""
    given = plain(value)
    if not isinstance(given, (bool, int)) or given not in (0, 1):
        raise refusal(name, "True or False", value)
    return bool(given)


def choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Returns one of several texts."""
    if not isinstance(value, str) or value not in choices:
        raise refusal(name, f"one of {choices}", value)
    return str(value)


def data_format(value: Any) -> str:
    """Returns a data format, that of Keras for `None`."""
    if value is None:
        return keras.config.image_data_format()
    return choice("data_format", value, ("channels_last", "channels_first"))


def strides(name: str, value: Any, rank: int) -> tuple[float, ...]:
    """Returns the stride of each axis, from a number or one for each."""
    several = {1: "a sequence of one", 2: "a pair of them"}
    expected = (
        f"a number >= 1 or {several.get(rank, f'{rank} of them')}, for "
        f"({AXES[rank]}), up to {LARGEST_COUNT}"
    )

    def accepts(stride: Any) -> bool:
        return _is_number(stride, 1, LARGEST_COUNT)

    return tuple(map(float, _each(name, value, rank, expected, accepts)))


def integers(name: str, value: Any, rank: int = 2) -> tuple[int, ...]:
    """Returns an integer >= 1 for each axis, from one or one for each."""
    expected = "an integer >= 1 or a pair of them"
    return tuple(map(int, _each(name, value, rank, expected, _is_integer)))


def limits(
    lower_name: str, lower: Any, upper_name: str, upper: Any
) -> tuple[float | None, float | None]:
    """Returns the limits of a stride, of which each may be `None`."""
    if lower is not None:
        lower = number(lower_name, lower, 1, LARGEST_COUNT, ", or None")
    if upper is not None:
        upper = number(upper_name, upper, 1, of=", or None")
        if lower is not None and upper < lower:
            expected = f"at least `{lower_name}` ({lower})"
            raise refusal(upper_name, expected, upper)
    return lower, upper


def _each(
    name: str, value: Any, rank: int, expected: str, accepts: Callable
) -> tuple:
    given = plain(value)
    each = [given] * rank if accepts(given) else given
    text = (str, bytes, bytearray, memoryview)
    if not isinstance(each, Sequence) or isinstance(each, text):
        raise refusal(name, expected, value)
    each = tuple(map(plain, each))
    if len(each) != rank or not all(map(accepts, each)):
        raise refusal(name, expected, value)
    return each


def plain(value: Any) -> Any:
    """Returns numbers, and lists of them, for arrays and their scalars."""
    if hasattr(value, "dtype") and hasattr(value, "shape"):
        return keras.ops.convert_to_numpy(value).tolist()
    return value


def _is_number(value: Any, least: float, most: float = LARGEST) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and least <= value <= most
    )


def _is_integer(value: Any, least: int = 1) -> bool:
    return _is_number(value, least, LARGEST_COUNT) and value == int(value)
