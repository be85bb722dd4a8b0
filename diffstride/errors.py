"""Errors that a user can mend, told in one line and without a traceback."""

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator


class UserError(Exception):
    """What was passed, what is expected, how to fix it, in one line."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.split()))


class ConfigError(UserError, ValueError):
    """A setting that does not exist or cannot be."""


class DataError(UserError, ValueError):
    """Data that is missing, or not what was asked for."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training diverged."""


@contextlib.contextmanager
def as_config_errors() -> Iterator[None]:
    """Turns refusals of arguments, inside the block, into `ConfigError`s."""
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def run_reporting_errors(
    main: Callable[[list[str]], int],
) -> Callable[[list[str]], int]:
    """Makes a `UserError` of `main` one line on stderr and status 1."""

    @functools.wraps(main)
    def wrapper(argv: list[str]) -> int:
        try:
            return main(argv)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1

    return wrapper
