#!/usr/bin/env bash
# From a bare Python to the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets,test

export TF_CPP_MIN_LOG_LEVEL=3
# The layers know nothing of TensorFlow: the goldens, on another backend.
KERAS_BACKEND=jax python -m pytest -q -n 2 tests/test_goldens.py
python -m pytest -q -n 2 "$@"
