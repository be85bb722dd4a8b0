r"""Trains a network as a gin config says.

    python -m diffstride.main --gin_config=cifar10.gin \
        --gin_bindings="resnet.Resnet.pooling_cls = @pooling.DiffStride"
"""

import os
import pathlib
import signal
import sys
from logging import WARNING, Formatter
from typing import Any

from diffstride.startup import quiet_libraries

if (
    __name__ == "__main__"
    and signal.getsignal(signal.SIGINT) == signal.default_int_handler
):
    # It ends the process without a word until `main` has more to say.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
with quiet_libraries(exits=__name__ == "__main__"):
    import tensorflow_datasets as tfds
    from absl import app, flags, logging

    from diffstride import config, devices, hosts
    from diffstride.errors import UserError, run_reporting_errors

    devices.find()

_CONFIG = flags.DEFINE_multi_string(
    "gin_config",
    [],
    "Config file: a path, or the name of one that comes with DiffStride. May be"
    " given several times.",
)
_BINDINGS = flags.DEFINE_multi_string(
    "gin_bindings",
    [],
    "A setting that overrides the config, such as 'train.num_epochs = 3'. May "
    "be given several times.",
)
_WORKDIR = flags.DEFINE_string(
    "workdir",
    None,
    "Where the run is kept. Default: what the config says, or else exp/ and the"
    " name of the config.",
)
_SEED = flags.DEFINE_integer("seed", None, "Seed of the run.")
_DATA_DIR = flags.DEFINE_string(
    "data_dir", None, "Where TFDS data lies. Default: TFDS's own choice."
)
_ALLOW_IMPORTS = flags.DEFINE_bool(
    "allow_imports",
    False,
    "Whether configs may import, with which they can run any program.",
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Whether this is one of several processes that train together, on JAX.",
)
flags.DEFINE_bool(
    "debug",
    False,
    "Whether an unexpected error shows where it comes from.",
    allow_override=True,  # `prepare` has it too.
)


def main(argv: list[str]) -> int:
    """Loads the config and trains."""
    if len(argv) > 1:
        raise UserError(
            f"Unexpected argument: {argv[1]}. Flags look like "
            "--gin_config=cifar10.gin"
        )
    if not _CONFIG.value:
        raise UserError("--gin_config is required, such as cifar10.gin")
    if _DISTRIBUTED.value:
        hosts.join()
    default_workdir = f"exp/{pathlib.Path(_CONFIG.value[0]).stem}"
    bindings = list(_BINDINGS.value)
    for name, flag in (
        ("train.workdir", _WORKDIR),
        ("train.seed", _SEED),
        ("data.load_datasets.data_dir", _DATA_DIR),
        ("data.load_audio.data_dir", _DATA_DIR),
    ):
        if flag.value is not None:
            bindings.append(f"{name} = {flag.value!r}")
    config.load(
        _CONFIG.value,
        bindings,
        _ALLOW_IMPORTS.value,
        defaults={"train.train.workdir": default_workdir},
    )
    workdir = pathlib.Path(os.path.expanduser(config.workdir()))

    def settings() -> str:
        text = config.operative()
        for sentence in config.unused(bindings, text):
            logging.warning("warning: %s", sentence)
        return text

    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.addFilter(_is_worth_reading)
    handler.setFormatter(Formatter("%(message)s"))
    try:
        config.run_training(config_fn=settings, differing_fn=config.differing)
    except UserError as error:
        message = config.located(str(error), _CONFIG.value, bindings)
        raise UserError(message) from error
    except KeyboardInterrupt as stop:
        raise type(stop)(_how_to_go_on(workdir)) from stop
    return 0


def _how_to_go_on(workdir: pathlib.Path) -> str:
    rows = workdir / "metrics.jsonl"
    done = rows.read_text().count("\n") if rows.exists() else 0
    if not done:
        return "The same command starts again."
    return f"The same command goes on after epoch {done}, in {workdir}."


def _is_worth_reading(record: Any) -> bool:
    """Leaves out what other libraries say for their own information."""
    ours = str(pathlib.Path(__file__).parent)
    return record.levelno >= WARNING or record.pathname.startswith(ours)


if __name__ == "__main__":
    app.run(hosts.failing_together(run_reporting_errors(main)))
