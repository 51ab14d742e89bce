#!/usr/bin/env bash
# Train in several processes, one per GPU (or, on a machine without any, on the CPU over gloo).
#   tools/dist_train.sh CONFIG GPUS [arguments of train.py]
# Several nodes: NNODES, NODE_RANK, MASTER_ADDR and PORT in the environment of each.
set -euo pipefail
if [[ $# -lt 2 || ! $2 =~ ^[1-9][0-9]*$ ]]; then
    echo "usage: tools/dist_train.sh CONFIG GPUS [arguments of train.py]" >&2
    exit 2
fi
CONFIG=$1 GPUS=$2
exec bash "$(dirname "$0")/torchrun.sh" train.py "$GPUS" "$CONFIG" "${@:3}"
