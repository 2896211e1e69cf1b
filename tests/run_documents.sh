#!/usr/bin/env bash
# The tests of .docx, .pdf and other documents, whose libraries are optional: tests/run.sh skips them where these are
# missing. They run in .venv/documents, which has recipes/requirements-documents.txt and sees the packages of .venv.
#
#   bash tests/run_documents.sh    1 minute on 2 cores; arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")/.."
bash recipes/quickstart.sh --install_only
documents=.venv/documents list=recipes/requirements-documents.txt
if ! cmp -s "$list" "$documents/installed.txt"; then
  .venv/bin/python -m venv "$documents"
  packages='import sysconfig; print(sysconfig.get_path("purelib"))'
  echo "import site; site.addsitedir('$(.venv/bin/python -c "$packages")')" \
    > "$("$documents/bin/python" -c "$packages")/of_the_project.pth"
  "$documents/bin/python" -m pip install --quiet --disable-pip-version-check -r "$list" -c recipes/constraints.txt
  cp "$list" "$documents/installed.txt"
fi
# Without one of the libraries the tests would be skipped.
PYTHONPATH=recipes "$documents/bin/python" -c '
from importlib import import_module
from sources.file_kinds import DOCUMENTS
for module in {module for modules in DOCUMENTS.values() for module in modules}:
    import_module(module)'
export HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 TOKENIZERS_PARALLELISM=false
exec "$documents/bin/python" -m pytest --numprocesses 2 tests/sources/test_documents.py "$@"
