#!/usr/bin/env bash
# The twelve checks of README.md, on the GPU of this machine. Needs no network and no environment of its own.
#
#   bash tests/gpu/run.sh [--wheels FOLDER] [--out FOLDER] [--seconds 480] [--rehearse]
#
# PYTHON names the Python that has torch. --wheels, which comes first: install that folder's packages for this run alone.
set -euo pipefail
cd "$(dirname "$0")/../.."
python=${PYTHON:-python3}
if [ "${1:-}" = --wheels ]; then
    packages=$(mktemp -d)
    trap 'rm -rf "$packages"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$packages" "$2"/*.whl
    export PYTHONPATH="$packages${PYTHONPATH:+:$PYTHONPATH}"
    shift 2
fi
export PYTHONPATH="recipes:tests/gpu${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
# Otherwise a question such as torch.cuda.is_available(), asked while importing, spoils the GPU for forked processes.
export PYTORCH_NVML_BASED_CUDA_CHECK=1
"$python" tests/gpu/first_hour.py "$@"
