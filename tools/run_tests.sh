#!/usr/bin/env bash
# Make the environment, lint, test. Arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/tools/environment.sh"
environment "$ROOT"
cd "$ROOT"
# For the torch that is there, not another one
pip install --quiet -r requirements/tests.txt -r "requirements/${STACK:-onedl}-pretrain.txt" \
    --constraint <(pip freeze | grep '^torch==')
# CUDA builds of torch depend on Triton. The CPU build does not, but the tests need Triton's interpreter.
python -c 'import triton' 2> /dev/null || pip install --quiet --no-deps 'triton>=3.7.1'
ruff check .
python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal "$@"
