#!/usr/bin/env bash
here=$(CDPATH='' cd -- "$(dirname -- "$0")" && pwd) # bash run.sh data.path=/data/imagenet process.device=cuda:1
exec bash "${here%/exp/*}/exp/run.sh" quantize "$here/config.yaml" "$@"
