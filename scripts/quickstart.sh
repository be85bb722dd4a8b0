#!/usr/bin/env bash
# From a bare Python to a network with learned strides, trained on real digits.
#
#   bash scripts/quickstart.sh [OPTIONS OF diffstride.main]
#
# Writes into .venv and exp only, unless TFDS_DATA_DIR names another place for
# the data.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets,report

export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$PWD/exp/data}"
python -m diffstride.main --gin_config=digits.gin "$@"
cat <<'TEXT'

What to do next, with the folder that is named above in place of exp/digits:
  . .venv/bin/activate
  tensorboard --logdir=exp/digits/tensorboard
  python -m diffstride.report exp/digits --output=exp/report
  python -m diffstride.main --gin_config=digits.gin --workdir=exp/strided \
    --gin_bindings="resnet.Resnet.pooling_cls = None"
TEXT
