#!/usr/bin/env bash
# The tests that need optional packages, which tests/run.sh skips where these are missing: .docx, .pdf and other
# documents, GGUF files run by llama.cpp, a release served by transformers, Ray, DeepSpeed, Trackio and the description
# of data. They run in .venv/optional, which has tests/requirements-optional.txt and sees the packages of .venv. The
# screenshot of the report needs Chromium, which is installed where apt and its rights allow it, and skipped elsewhere.
#
#   bash tests/run_optional.sh    6 minutes on 2 cores, the installation included; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/quickstart.sh --install_only
optional=.venv/optional list=tests/requirements-optional.txt documents=recipes/requirements-documents.txt
if ! cat "$list" "$documents" | cmp -s - "$optional/installed.txt"; then
  .venv/bin/python -m venv "$optional"
  packages='import sysconfig; print(sysconfig.get_path("purelib"))'
  echo "import site; site.addsitedir('$(.venv/bin/python -c "$packages")')" \
    > "$("$optional/bin/python" -c "$packages")/of_the_project.pth"
  # gradio needs an older Pillow than .venv has. DeepSpeed compiles nothing that a processor needs, and its setup
  # imports torch, which an environment of its own would lack.
  DS_BUILD_OPS=0 "$optional/bin/python" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
    -r "$list" -c <(grep -vi "^pillow=" recipes/constraints.txt)
  cat "$list" "$documents" > "$optional/installed.txt"
fi
# Without one of the packages its tests would be skipped.
PYTHONPATH=recipes "$optional/bin/python" -c '
from importlib import import_module
from importlib.util import find_spec
from sources.file_kinds import DOCUMENTS
for module in {"fastapi", "gguf", "openai", "uvicorn", "xllamacpp"}.union(*DOCUMENTS.values()):
    import_module(module)
for module in ("ray", "deepspeed", "trackio", "gradio", "mlcroissant"):
    assert find_spec(module), module'
if ! command -v chromium > /dev/null && [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null; then
  apt-get install -qq -y chromium > /dev/null 2>&1 || echo "note: apt-get installs no chromium here"
fi
export OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
"$optional/bin/python" -m pytest --numprocesses 2 --dist loadfile tests/sources/test_documents.py \
  tests/publishing/test_gguf.py tests/test_convert_gguf.py tests/training/test_zero_stage3.py "$@"
exec "$optional/bin/python" -m pytest --numprocesses 2 --dist loadfile tests/corpus/test_pipeline_executor.py \
  tests/training/test_preflight.py tests/publishing/test_push_to_hub.py tests/eval/test_report.py \
  -k "ray or trackio or gguf or same_columns or drawn or prints or commands_serve" "$@"
