#!/usr/bin/env bash
# From a bare Python to the whole test suite. Arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets,plot,test

export TF_CPP_MIN_LOG_LEVEL=3
# Thousands of small functions are compiled, and most are called once.
export JAX_DISABLE_MOST_OPTIMIZATIONS=1
# What one of the two processes has compiled, or an earlier run, serves the other.
export JAX_COMPILATION_CACHE_DIR="$VIRTUAL_ENV/jax_cache"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1
# The layers know nothing of TensorFlow: their tests, on the other backends.
for KERAS_BACKEND in jax torch; do
  export KERAS_BACKEND
  python -m pytest -q -n 2 --dist worksteal --durations=5 \
    tests/test_{spectral,goldens,pooling,ramps,dimensions,precision}.py \
    tests/test_{static,resnet,inspection,regularizers,cost}.py \
    tests/test_benchmark.py
done
export KERAS_BACKEND=tensorflow
python -m pytest -q -n 2 --dist worksteal --durations=10 "$@"
