#!/usr/bin/env bash
# Quantizes the network of the config.yaml beside this file. Arguments replace its settings:
#   bash run.sh data.path=/data/imagenet process.device=cuda:1
here="$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd)"
python="${QDROP_PYTHON:-python}"
if ! "$python" -c 'import sys, importlib.util as u; sys.exit(not u.find_spec("qdrop"))' > /dev/null; then
    echo "$python cannot import qdrop; install it first: pip install -e ${here%/exp/*}" >&2
    exit 1
fi
exec "$python" -m qdrop.solver.main_imagenet --config "$here/config.yaml" "$@"
