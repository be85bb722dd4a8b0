#!/usr/bin/env bash
# From a bare Python to a network that tells instruments, with learned strides,
# trained on notes that are rendered from recorded ones.
#
#   bash scripts/notes.sh [OPTIONS OF diffstride.main]
#
#   FONTS  a folder with the soundfonts in it or below; default /usr/share
#
# On Debian the fonts are there after
#   apt install fluid-soundfont-gm musescore-general-soundfont freepats \
#     csound-soundfont timgm6mb-soundfont
# Writes into .venv and exp only, unless TFDS_DATA_DIR names another place for
# the data.
set -euo pipefail
fonts="$(realpath "${FONTS:-/usr/share}")"
cd "$(dirname "$0")/.."
. scripts/venv.sh datasets,report
# What it depends on is for playing aloud only.
python -c "import tinysoundfont" 2>/dev/null ||
  python -m pip install --quiet --no-deps tinysoundfont==0.3.7

export TFDS_DATA_DIR="${TFDS_DATA_DIR:-$PWD/exp/data}"
python -m diffstride.datasets.prepare --name=notes --files="$fonts"
python -m diffstride.main --gin_config=notes_instrument.gin "$@"
