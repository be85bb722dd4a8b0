"""Errors that a user can mend, told in one line and without a traceback."""

import contextlib
import functools
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any


class UserError(Exception):
    """What was passed, what is expected, how to fix it, in one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class ConfigError(UserError, ValueError):
    """A setting that does not exist or cannot be."""


class DataError(UserError, ValueError):
    """Data that is missing, or not what was asked for."""


class NonFiniteLossError(UserError, FloatingPointError):
    """Training diverged."""


class Terminated(KeyboardInterrupt):
    """SIGTERM asked this process to end, as SIGINT does by its parent."""


def one_line(message: str) -> str:
    """Returns a message on one line, without its middle if it is long."""
    line = " ".join(message.replace("\0", "\\0").split())
    return line if len(line) <= 1000 else f"{line[:800]} ... {line[-190:]}"


def check_argument(good: bool, expected: str, **argument: Any) -> None:
    """Refuses one argument, given by its name, if it is not good."""
    ((name, value),) = argument.items()
    if not good:
        raise ConfigError(
            f"`{name}` must be {expected}. Received: {name}={value}"
        )


@contextlib.contextmanager
def as_config_errors(**settings: str) -> Iterator[None]:
    """Turns refusals of arguments, inside the block, into `ConfigError`s.

    `settings` say, by the name of an argument, what a user calls it.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        message = str(error)
        for argument, setting in settings.items():
            message = message.replace(f"`{argument}`", f"`{setting}`")
            message = message.replace(f" {argument}=", f" {setting}=")
        raise ConfigError(message) from error


def run_reporting_errors(
    main: Callable[[list[str]], int],
) -> Callable[[list[str]], int]:
    """Makes whatever ends `main` one line on stderr, and a status.

    A `UserError` says what to do. Anything else is named by its type, and
    `--debug` among the arguments of the process shows where it comes from.
    Signals give 128 and their number, as shells do.
    """

    @functools.wraps(main)
    def wrapper(argv: list[str]) -> int:
        with _signals_raise():
            try:
                return main(argv)
            except UserError as error:
                message = str(error)
            except KeyboardInterrupt as stop:
                print(f"Stopped. {stop}".strip(), file=sys.stderr)
                terminated = isinstance(stop, Terminated)
                return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
            except Exception as error:
                message = one_line(f"{type(error).__name__}: {error}")
                message += " (--debug shows where this comes from)"
                if "--debug" in sys.argv:
                    traceback.print_exc()
        print(f"error: {message}", file=sys.stderr)
        return 1

    return wrapper


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Makes SIGINT and SIGTERM exceptions, unless they are ignored."""

    def stop(number: int, frame: Any) -> None:
        raise Terminated if number == signal.SIGTERM else KeyboardInterrupt

    before = {
        number: signal.signal(number, stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) != signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
