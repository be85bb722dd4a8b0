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
python -m pip install --quiet --editable ".[$1]"
