#!/usr/bin/env bash
# The tests that need optional packages, which tests/run.sh skips where these are missing: .docx, .pdf and other
# documents, GGUF files run by llama.cpp, a release served by transformers, and Ray on two nodes of which one dies. They
# run in .venv/optional, which has tests/requirements-optional.txt and sees the packages of .venv.
#
#   bash tests/run_optional.sh    5 minutes on 2 cores; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/quickstart.sh --install_only
optional=.venv/optional list=tests/requirements-optional.txt documents=recipes/requirements-documents.txt
if ! cat "$list" "$documents" | cmp -s - "$optional/installed.txt"; then
  .venv/bin/python -m venv "$optional"
  packages='import sysconfig; print(sysconfig.get_path("purelib"))'
  echo "import site; site.addsitedir('$(.venv/bin/python -c "$packages")')" \
    > "$("$optional/bin/python" -c "$packages")/of_the_project.pth"
  "$optional/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list" -c recipes/constraints.txt
  cat "$list" "$documents" > "$optional/installed.txt"
fi
# Without one of the packages its tests would be skipped.
PYTHONPATH=recipes "$optional/bin/python" -c '
from importlib import import_module
from sources.file_kinds import DOCUMENTS
for module in {"fastapi", "gguf", "openai", "ray", "uvicorn", "xllamacpp"}.union(*DOCUMENTS.values()):
    import_module(module)'
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
exec "$optional/bin/python" -m pytest --numprocesses 2 tests/sources/test_documents.py tests/publishing/test_gguf.py \
  tests/corpus/test_pipeline_executor.py \
  tests/publishing/test_push_to_hub.py::test_the_cards_commands_serve_the_release "$@"
