#!/usr/bin/env bash
# Runs a command of qdrop on a config, with the interpreter that python_env.sh finds or makes; then come settings:
#   bash exp/run.sh quantize exp/w2a4/res18/config.yaml data.path=/data/imagenet
# The run.sh in each folder here calls it with the config.yaml beside itself.
set -euo pipefail
root=$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
if [ $# -lt 2 ]; then
    echo "usage: bash ${BASH_SOURCE[0]} quantize|compare CONFIG [key=value ...]" >&2
    exit 2
fi
command=$1 config=$2
shift 2
source "$root/python_env.sh"
use_python "$root/requirements.txt"
exec "$python" -m qdrop "$command" --config "$config" "$@"
