"""Starting up without the noise of native libraries. Imports no framework."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator

from diffstride.errors import one_line


@contextlib.contextmanager
def quiet_libraries(exits: bool = False) -> Iterator[None]:
    """Holds back what goes to the file descriptor of stderr in the block.

    TensorFlow's libraries write there while they are loaded, before they know
    of `TF_CPP_MIN_LOG_LEVEL`; on a machine without a GPU this includes a CUDA
    error that reads like a failure. Who has set `TF_CPP_MIN_LOG_LEVEL` sees all
    that it lets through.

    Args:
        exits: whether a block that fails ends the process in one line. If not,
            or with `--debug`, it shows all that was held back.
    """
    exits = exits and "--debug" not in sys.argv
    try:
        if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
            yield
        else:
            with _held_back(shown_on_failure=not exits):
                yield
    except Exception as error:
        if not exits:
            raise
        name = type(error).__name__
        sys.exit(f"error: {one_line(f'{name}: {error}')} (--debug shows more)")


@contextlib.contextmanager
def _held_back(shown_on_failure: bool) -> Iterator[None]:
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except Exception:
            if shown_on_failure:
                held_back.seek(0)
                os.write(kept, held_back.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
