# SPDX-License-Identifier: Apache-2.0
"""The Hub quickstart, started by its shell script, against a mock Hub."""

import gzip
import json
import os
import subprocess
import sys

import pytest
from mini_hub import hub_environment, start_hub
from tiny_run import RECIPES, ROOT, make_text, tiny_settings

from recipe_loading import load_recipe


def fill_hub() -> None:
    """Create small datasets under the names and commits of the recipe's sources."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    for number, source in enumerate(load_recipe([RECIPES / "legal" / "quickstart_hub.yaml"]).data.sources):
        texts = [make_text(1000 * number + seed, sentences=60) for seed in range(60)]
        lines = "".join(json.dumps({"id": index, "text": text}) + "\n" for index, text in enumerate(texts))
        files = {"data/part.jsonl.gz": gzip.compress(lines.encode())}
        if source.config:
            configs = [{"config_name": source.config, "data_files": "data/*.jsonl.gz"}]
            files["README.md"] = f"---\nconfigs: {json.dumps(configs)}\n---\n".encode()
        operations = [CommitOperationAdd(name, content) for name, content in files.items()]
        api.create_repo(source.path, repo_type="dataset")
        api.create_commit(source.path, operations, commit_message="data", repo_type="dataset")
        api.create_tag(source.path, tag=source.revision, repo_type="dataset")


@pytest.mark.skipif(not (ROOT / ".venv" / "installed.txt").exists(), reason="bash tests/run.sh makes the environment")
def test_the_quickstart_on_the_hub_runs_to_a_release(tmp_path):
    settings = [s for s in tiny_settings(tmp_path, tmp_path / "run") if not s.startswith("--data.sources")]
    settings += ["--training.sequence_length=128", "--evaluation.xz=false", "--data.family_containment=null"]
    with start_hub() as (_, endpoint):
        environment = hub_environment(endpoint, tmp_path / "home")
        code = "import test_quickstart; test_quickstart.fill_hub()"
        subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True)
        command = ["bash", str(RECIPES / "quickstart.sh"), "--hub", *settings]
        result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-3000:]
    stats = json.loads((tmp_path / "run" / "documents" / "stats.json").read_text())["sources"]
    recipe = load_recipe([RECIPES / "legal" / "quickstart_hub.yaml"])
    assert {name: s["revision"] for name, s in stats.items()} == {s.name: s.revision for s in recipe.data.sources}
    assert all(s["documents_in"] == 60 for s in stats.values())
    assert os.path.getsize(tmp_path / "run" / "release" / "model.safetensors") > 1000
    assert "datasets:" in (tmp_path / "run" / "release" / "README.md").read_text()
