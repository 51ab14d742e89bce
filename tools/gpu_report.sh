#!/usr/bin/env bash
# Measure and test everything on this machine's GPU, with the Python environment that is active (PYTHON, default:
# python). Nothing is installed or downloaded.
#   tools/gpu_report.sh [OUT_DIR] [--limit SECONDS] [--rehearse]
set -euo pipefail
TOOLS=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$TOOLS/..${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON:-python}" "$TOOLS/gpu_report.py" "$@"
