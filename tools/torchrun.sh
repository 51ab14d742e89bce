#!/usr/bin/env bash
# What dist_train.sh and dist_test.sh share: torchrun.sh SCRIPT GPUS ARGUMENTS...
# The set-up is checked once, in this process, so that an error is printed once instead of by every worker.
set -euo pipefail
SCRIPT=$1 GPUS=$2
shift 2
TOOLS=$(cd "$(dirname "$0")" && pwd)
NNODES=${NNODES:-1}
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

WORLD_SIZE=$((NNODES * GPUS)) LOCAL_WORLD_SIZE=$GPUS python "$TOOLS/$SCRIPT" "$@" --check

if [[ $NNODES == 1 && -z ${PORT:-} ]]; then
    RENDEZVOUS=(--standalone)  # any free port
else
    RENDEZVOUS=(--nnodes="$NNODES" --node_rank="${NODE_RANK:-0}" --master_addr="${MASTER_ADDR:-127.0.0.1}"
                --master_port="${PORT:-29500}")
fi
exec python -m wsbcn.torchrun "${RENDEZVOUS[@]}" --nproc_per_node="$GPUS" "$TOOLS/$SCRIPT" "$@" --launcher pytorch
