"""Starting up without the noise of native libraries. Imports no framework."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Holds back what goes to the file descriptor of stderr in the block.

    TensorFlow's libraries write there while they are loaded, before they know
    of `TF_CPP_MIN_LOG_LEVEL`; on a machine without a GPU this includes a CUDA
    error that reads like a failure. A block that fails shows all of it. Who has
    set `TF_CPP_MIN_LOG_LEVEL` sees all that it lets through.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ:
        yield
        return
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held_back:
        os.dup2(held_back.fileno(), 2)
        try:
            yield
        except BaseException:
            held_back.seek(0)
            os.write(kept, held_back.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
