r"""Counts what networks of a config cost, without training them.

    echo '["resnet.Resnet.strides = [1, 2, 2, 2]"]' | \
        python -m diffstride.counting --gin_config=fashion_mnist.gin

Each line of the input is a JSON list of further bindings, each line of the
output what they cost, or an `error`. A process answers any number of them.
"""

import argparse
import json
import os
import sys
from typing import Any, TextIO

from diffstride.startup import quiet_libraries

if __name__ == "__main__":
    # One image is cheap to count, and the runs have a GPU for themselves.
    os.environ.update(CUDA_VISIBLE_DEVICES="-1", JAX_PLATFORMS="cpu")
with quiet_libraries(exits=__name__ == "__main__"):
    from diffstride import config, data, resnet
    from diffstride.cost import model_cost
    from diffstride.errors import UserError, as_config_errors
    from diffstride.networks import make_network


def main(argv: list[str]) -> None:
    """Answers lines of standard input until it ends."""
    args = _arguments(argv[1:])
    # Nothing but answers is to reach whoever reads them.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    answer(args, sys.stdin, answers)


def answer(args: argparse.Namespace, asked: TextIO, answers: TextIO) -> None:
    """Writes a line for each line that is asked."""
    bindings = list(args.gin_bindings)
    if args.data_dir is not None:
        bindings += [
            f"data.load_{kind}.data_dir = {args.data_dir!r}"
            for kind in ("datasets", "audio")
        ]
    datasets = None
    for line in asked:
        given = [*bindings, *json.loads(line)]
        try:
            config.load(args.gin_config, given, args.allow_imports)
            with as_config_errors():
                training = config.training()
                if datasets is None:  # Candidates do not differ in it.
                    load = training.get("load_data_fn", data.load_datasets)
                    datasets = load(seed=0)
                reply = _count(training, datasets)
        except UserError as error:
            text = config.located(str(error), args.gin_config, given)
            reply = {"error": text}
        print(json.dumps(reply), file=answers, flush=True)


def _count(training: dict[str, Any], datasets: data.Datasets) -> dict[str, Any]:
    model_cls = training.get("model_cls", resnet.resnet18)
    shape = datasets.image_shape
    model = make_network(model_cls, datasets.num_classes, shape)
    model.build((None, *shape))
    return {
        "macs": model_cost(model, shape).macs,
        "images": datasets.images_per_epoch,
        "epochs": training.get("num_epochs", 1),
        "validates": datasets.validation is not None,
    }


def _arguments(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m diffstride.counting",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--gin_config", action="append", required=True)
    add("--gin_bindings", action="append", default=[])
    add("--data_dir")
    add("--allow_imports", action="store_true")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main(sys.argv)
