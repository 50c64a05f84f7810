#!/usr/bin/env bash
# Lint, types, tests. Arguments go to pytest:
#   bash tests/run.sh -k plan
#   bash tests/run.sh -m slow          # the checks that take minutes
#   QDROP_DATA=/data bash tests/run.sh # also those that need real images and weights
set -euo pipefail
CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")/.."
source python_env.sh
use_python tests/requirements.txt
export OMP_NUM_THREADS=1 # the tests run side by side
"$python" -m ruff check .
"$python" -m ruff format --check .
"$python" -m mypy
exec "$python" -m pytest -n 2 --dist loadfile "$@" # a file in one process: what its tests share is made once
