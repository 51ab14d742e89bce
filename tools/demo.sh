#!/usr/bin/env bash
# From nothing to a trained network and its pictures, in minutes on two CPU cores: environment, synthetic data,
# distributed training of a small DeepLabV3 with BCN and WS, evaluation. Results: work_dirs/demo/.
set -euo pipefail
ROOT=$(cd "$(dirname "$0")/.." && pwd)
source "$ROOT/tools/environment.sh"
environment "$ROOT"
cd "$ROOT"
python tools/demo.py "$@"
