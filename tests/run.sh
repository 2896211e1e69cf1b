#!/usr/bin/env bash
# Everything that must hold: lint, format, tests. Makes .venv if there is none; needs no network after that.
#
#   bash tests/run.sh                      all that is quick, 25 minutes on 2 cores
#   bash tests/run.sh --all                the long enumerations too, such as a kill at every change of a file
#   bash tests/run.sh tests/test_x.py -x   arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/quickstart.sh --install_only
.venv/bin/ruff check .
.venv/bin/ruff format --check .
# Nothing a test does may reach the network. Two processes take the tests a file at a time, so that what a file prepares
# is prepared once. Each computes on one thread: several would wait for each other.
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
[ $# -gt 0 ] || .venv/bin/python tests/campaign.py --minutes 0.25 --seed 1  # random attacks; 30 minutes by itself
exec .venv/bin/python -m pytest --numprocesses 2 --dist loadfile "$@"
