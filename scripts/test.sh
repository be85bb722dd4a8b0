#!/usr/bin/env bash
# From a bare Python to the whole test suite, on three backends.
#
#   bash scripts/test.sh            all that must hold on a change
#   bash scripts/test.sh -m slow    the long evidence instead
#
# Options go to each of the three calls of pytest. To run single files, call
# pytest itself, with KERAS_BACKEND set.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets,report,test

export TF_CPP_MIN_LOG_LEVEL=3
# Two processes share two cores.
export OMP_NUM_THREADS=1
# Thousands of small functions are compiled, and most are called once.
export JAX_DISABLE_MOST_OPTIMIZATIONS=1
# What one of the two processes has compiled, or an earlier run, serves the other.
export JAX_COMPILATION_CACHE_DIR="$VIRTUAL_ENV/jax_cache"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
export JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES=-1

# What runs on each backend: the tests of the library, which does not know
# TensorFlow, and of what the harness asks of a backend.
library=(
  tests/test_heads.py
  tests/test_{masks,resampling,goldens,pooling,ramps,dimensions,precision}.py
  tests/test_{size_step,static,surgery,resnet,profiling,budget,cost,internals}.py
  tests/test_{arguments,benchmark,diagnostics,optimization,resizing}.py
  tests/test_{compute,hardening,long_signals,rivals,schedule,audio_cnn}.py
  tests/test_{conversion,branches,policies,recalibration,export}.py
  tests/test_backends.py
)

run() {
  echo "== $1"
  KERAS_BACKEND="$1" python -m pytest -q -n 2 --dist worksteal \
    --durations=5 "${@:2}" || [ $? -eq 5 ] # 5: none is selected there.
}

run jax "${library[@]}" tests/test_hosts.py "$@"
run torch "${library[@]}" "$@"
# And with them all other tests of harness and tools.
run tensorflow "$@"
