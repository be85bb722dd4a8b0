#!/usr/bin/env bash
# From a bare Python to a network with learned strides, trained on real digits.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets

python -m diffstride.main --gin_config=digits.gin "$@"
