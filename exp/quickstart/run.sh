#!/usr/bin/env bash
# Quantizes a small network to 4, 3 and 2 bits: nothing to download but Python packages. Arguments replace
# settings of the config.yaml beside this file:
#   bash run.sh quant.recon.iters=1000
# Started again, it shows the table and draws the picture at once, from the runs it has completed in runs/ here.
set -euo pipefail
here=$(CDPATH='' cd -- "$(dirname "${BASH_SOURCE[0]}")" && pwd)
source "$here/../../python_env.sh"
use_python "$here/../../requirements.txt"
exec "$python" -m qdrop.solver.compare --config "$here/config.yaml" "$@"
