# Makes and activates the virtual environment, and installs the checkout in it.
# To be sourced: `. scripts/venv.sh EXTRAS`, from the root of the checkout.
#
#   PYTHON           the Python to use, >= 3.11; default python3
#   DIFFSTRIDE_VENV  the virtual environment; default .venv

python="${PYTHON:-python3}"
venv="${DIFFSTRIDE_VENV:-.venv}"
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: $python is not Python >= 3.11. Name another with PYTHON=..." >&2
  exit 1
fi
[ -f "$venv/bin/activate" ] || "$python" -m venv "$venv"
. "$venv/bin/activate"
# What was installed from here, for these extras and requirements, is not
# installed again: a second start needs no network.
wanted="$PWD $1 $(cat setup.py pyproject.toml | cksum)"
if [ "$(cat "$venv/installed.$1" 2>/dev/null)" != "$wanted" ]; then
  echo "Installing DiffStride and what it needs (TensorFlow, ...) into $venv." \
    "This takes minutes."
  python -m pip install --editable ".[$1]" |
    sed -un -e 's/^Collecting \([^ ]*\).*/  \1/p' -e '/^Installing/p'
  echo "$wanted" > "$venv/installed.$1"
fi
