#!/usr/bin/env bash
# Make the environment, lint, test. Arguments go to pytest.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/tools/environment.sh"
environment "$ROOT"
cd "$ROOT"
ruff check .
python -m pytest "$@"
