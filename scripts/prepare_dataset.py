#!/usr/bin/env python3
"""Builds a TFDS data set from files on disk; see diffstride.datasets.prepare.

    python scripts/prepare_dataset.py --name=fashion_mnist \
        --files=/usr/share/datasets/fashion-mnist --data_dir=DIR
"""

from absl import app

from diffstride.datasets import prepare
from diffstride.errors import run_reporting_errors

if __name__ == "__main__":
    app.run(run_reporting_errors(prepare.main))
