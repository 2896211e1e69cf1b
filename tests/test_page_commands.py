# SPDX-License-Identifier: Apache-2.0
"""Every command that a page prints runs as printed, in the order of the pages, in a clone of its own.

What would train for long is run with --dry_run. What is not run is listed with the reason.
"""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import PAGES, command_lines
from tiny_run import ROOT, make_text


# By what a command holds: why it is not run here.
NOT_RUN = {
    r"^(bash recipes/quickstart|bash tests/run)": "CI runs both",
    r"^bash tests/gpu|tests/benchmarks|tests/corpus": "measures for minutes",
    r"^source ": "each command below runs in this environment",
    r"^(pip|apt-get|ray|vllm|transformers|RAY_ADDRESS)": "needs a network or a program of its own",
    r"^accelerate launch": "trains; tests/training/test_processes.py does",
    r"campaign": "takes its minutes; tests/run.sh gives it some seconds",
    r"slurm": "needs a scheduler; tests/corpus/test_pipeline_executor.py has a mock one",
    r"^(?!.*plan_run).*(HuggingFaceTB|(legal|finance|medical)/base\.yaml|me/|BillSum)": "needs the Hub",
    r"finetune\.py.*(my-summaries|summarise)": "needs BillSum, from the Hub",
    r"fetch_texts": "needs the repositories; tests/test_fetch_texts.py makes some",
    r"mistral|llm.smollm2": "needs a package from the package index",
    r"new_recipe|section_headings|git-doc|runs/legal-vocabulary": "asks questions, or needs a text of its own",
    r"summary_page": "needs gradio and a fine-tuned model",
    r"runs/(another|mine|legal-342m|legal-trial)\b.*(--passage|reference)": "needs a run that is trained before",
    r"fit_scaling_law": "reads runs/legal-texts, which a reader brings, and trains",
    r"eval/compare|runs/smollm2|smollm2_cpu|legal-continued|headings\.yaml": "needs what an earlier command makes",
}
DRY = "recipes/(run_recipe|prepare_data|train_tokenizer|tokenize_corpus|choose_vocabulary|compare_arms|push_to_hub)"
QUICKSTART = ROOT / "runs" / "legal-quickstart"


COMMANDS = list(dict.fromkeys(re.sub(r"\s+#\s.*", "", line).strip() for page in PAGES for line in command_lines(page)))
RUN = [command for command in COMMANDS if not any(re.search(pattern, command) for pattern in NOT_RUN)]


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Path:
    """A copy of what the repository holds, with the texts that the pages speak of and the quickstart's run."""
    folder = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not listed:
        pytest.skip("not a git checkout")
    for name in listed.splitlines():
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    (folder / "my_texts").mkdir()
    rows = [json.dumps({"text": make_text(seed, sentences=2000)}) for seed in range(60)]  # what a trial can use
    for number in range(20):
        (folder / "my_texts" / f"{number}.txt").write_text(make_text(number))
    files = ["edgar_agreements", "scotus_opinions"]
    for name in ("legal", "finance", "medical", "general"):
        (folder / "texts" / name).mkdir(parents=True)
        for file in files if name == "legal" else ["rows"]:
            (folder / "texts" / name / f"{file}.jsonl").write_text("\n".join(rows))
    for name in ("general.jsonl.gz", "path/to/general.jsonl.gz"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / name, "wt") as file:
            file.write("\n".join(rows))
    if QUICKSTART.exists():
        for name in ("legal-quickstart", "packages"):
            shutil.copytree(QUICKSTART.parent / name, folder / "runs" / name)
    return folder


def test_every_reason_not_to_run_a_command_is_of_some_command_and_most_are_run_or_need_the_hub():
    idle = [pattern for pattern in NOT_RUN if not any(re.search(pattern, command) for command in COMMANDS)]
    assert not idle, idle
    assert len(RUN) >= 15


@pytest.mark.long
@pytest.mark.parametrize("command", RUN)
def test_a_printed_command_runs(command, clone, monkeypatch):
    if "quickstart" in command and not (clone / "runs" / "legal-quickstart").exists():
        pytest.skip("needs the run that bash recipes/quickstart.sh leaves")
    if re.search(DRY, command) and "--dry_run" not in command:
        command += " --dry_run"
    environment = os.environ | {"PATH": f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", command], cwd=clone, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{shlex.quote(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
