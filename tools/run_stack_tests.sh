#!/usr/bin/env bash
# Test everything against a named OpenMMLab stack with compiled operators: each config trains, evaluates and resumes,
# then the whole test suite, with detection and video, runs.
#   tools/run_stack_tests.sh openmmlab|onedl [arguments of pytest]
# The environment is .venv-STACK; mmcv's operators compile for 20 minutes and more on two cores. MMACTION2 names a clone
# of MMAction2, whose wheel lacks a folder; without it, video is skipped. Results go to docs/stacks.md, pytest's output
# to work_dirs/stack_tests/STACK.txt.
set -euo pipefail
if [[ ${1:-} != openmmlab && ${1:-} != onedl ]]; then
    echo "usage: tools/run_stack_tests.sh openmmlab|onedl [arguments of pytest]" >&2
    exit 2
fi
export STACK=$1
ROOT=$(cd "$(dirname "$0")/.." && pwd)
export VENV=${VENV:-$ROOT/.venv-$STACK} OPERATORS=1
source "$ROOT/tools/environment.sh"
environment "$ROOT"
cd "$ROOT"
EXTRAS=(-r requirements/tests.txt -r "requirements/$STACK-pretrain.txt")
if [[ $STACK == openmmlab ]]; then
    EXTRAS+=(-r requirements/detection.txt -r requirements/video.txt)
else
    EXTRAS+=(-r requirements/onedl-detection.txt)  # there is no MMAction2 for it
fi
pip install --quiet "${EXTRAS[@]}" --constraint <(pip freeze | grep '^torch==')
[[ -z ${MMACTION2:-} ]] || pip install --quiet --no-deps --no-build-isolation --editable "$MMACTION2"
python -c 'import triton' 2> /dev/null || pip install --quiet --no-deps 'triton>=3.7.1'
mkdir -p work_dirs/stack_tests
python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal -m 'stack or not stack' -rs \
    --stack-table="$STACK" "${@:2}" |& tee "work_dirs/stack_tests/$STACK.txt"
