#!/usr/bin/env bash
# Quantizes a small network to 4, 3 and 2 bits: nothing to download but Python packages. Arguments replace
# settings of the config.yaml beside this file:
#   bash run.sh quant.recon.iters=1000
# Started again, it shows the table and draws the picture at once, from the runs it has completed in runs/ here.
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)
exec bash "${here%/exp/*}/exp/run.sh" compare "$here/config.yaml" "$@"
