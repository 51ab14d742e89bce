#!/usr/bin/env bash
# Train under Slurm, one task per GPU.
#   tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]
# GPUS (16), GPUS_PER_NODE (8), CPUS_PER_TASK (5) and SRUN_ARGS in the environment.
set -euo pipefail
if [[ $# -lt 3 ]]; then
    echo "usage: tools/slurm_train.sh PARTITION JOB_NAME CONFIG [arguments of train.py]" >&2
    exit 2
fi
PARTITION=$1 JOB_NAME=$2 CONFIG=$3
GPUS=${GPUS:-16}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
TOOLS=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"

# shellcheck disable=SC2086  (SRUN_ARGS is a list of words)
exec srun -p "$PARTITION" --job-name="$JOB_NAME" --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" \
    --ntasks-per-node="$GPUS_PER_NODE" --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 ${SRUN_ARGS:-} \
    python -u "$TOOLS/train.py" "$CONFIG" --launcher slurm "${@:4}"
