# SPDX-License-Identifier: Apache-2.0
"""Run every stage of a recipe in order: what is finished is skipped, what was interrupted goes on.

    plan -> requests -> prepare -> tokenizer -> tokenize -> pretrain -> evaluate -> report -> publish

The plan is made for recipes with a budget in `plan`: before everything else where the recipe says how much text
there is, and for the report, with the run in its charts. It is advice: where it cannot be made, the run goes on. The
requests are what the benchmarks ask: prepare keeps it out (data.decontamination), training is scored on it
(training.eval_tasks).

In:   one or more YAML files; the machine is described by a file of accelerate_configs/.
Out:  everything in <run.output_dir>; see the docstring of each stage's script.

    python recipes/run_recipe.py --config recipes/legal/quickstart.yaml
    python recipes/run_recipe.py --config recipes/legal/base.yaml \\
        --accelerate_config accelerate_configs/ddp.yaml --num_processes 8
    python recipes/run_recipe.py --config recipes/custom/base.yaml --run.output_dir=runs/mine \\
        --data.sources='[{"name": "mine", "path": "my_texts"}]'

Nothing is uploaded unless hub.repo_id is set. --overwrite makes anew what is out of date.
"""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import cache
from pathlib import Path

from ruamel.yaml import YAML

from atomic_files import hash_items
from publishing.repositories import check_repositories
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from run_folder import is_finished, new_output, record_stage
from sources.units import list_all_units
from stages import ROOT, STAGES, exported_tasks, has_script, output_folder


# What is left out without its script, and what then is lacking, which is said before work starts.
OPTIONAL = {
    "plan": "nothing is planned",
    "requests": "the text is not checked against the benchmarks, nor are these scored while training",
    "evaluate": "nothing is evaluated",
    "report": "there is no report",
}


def has_gpu() -> bool:
    """Return whether torch sees a GPU, asked in a process of its own: importing torch here would take seconds."""
    code = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@cache
def has_fast_bf16() -> bool:
    """Return whether the processor multiplies faster in bf16 than in fp32, measured in a process of its own.

    Its flags do not tell: with AMX bf16 is many times faster, AVX512-BF16 alone was seen at half the rate of fp32.
    """
    code = "import sys; from planning.devices import measure_products as m; r = m(); sys.exit(r['bf16'] <= r['fp32'])"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT / "recipes", check=False).returncode == 0


def launch_command(accelerate_config: Path | None, num_processes: str | None) -> list[str]:
    """Return the `accelerate launch` command up to the script.

    Args:
        accelerate_config: what the user chose; None takes single_gpu.yaml or cpu.yaml, and plain options where
            there is no accelerate_configs/ folder.
        num_processes: what the user chose for the launcher, or None.

    Raises: RecipeError: a file that asks for several processes in a way that Accelerate ignores.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch", "--quiet"]
    if accelerate_config is None:
        on_gpu = has_gpu()
        accelerate_config = ROOT / "accelerate_configs" / ("single_gpu.yaml" if on_gpu else "cpu.yaml")
        if not accelerate_config.exists():
            plain = ["--num_processes", "1", "--num_machines", "1", "--dynamo_backend", "no"]
            precision = "bf16" if on_gpu or has_fast_bf16() else "no"
            return [*command, *plain, "--mixed_precision", precision, *([] if on_gpu else ["--cpu"])]
    settings = YAML(typ="safe").load(accelerate_config.read_text(encoding="utf-8"))
    asked = int(num_processes or settings.get("num_processes") or 0)
    several = asked > 1 or settings.get("num_machines", 1) > 1
    ignored = [
        f"{key}: {settings[key]}"
        for key, value in (("distributed_type", "MULTI_CPU"), ("use_cpu", True))
        if settings.get(key) == value
    ]
    if several and ignored:
        raise RecipeError(
            f"{accelerate_config}: {', '.join(ignored)} with {asked} processes: Accelerate would start one and say "
            "nothing. For several CPU processes set ACCELERATE_USE_CPU=true and use accelerate_configs/ddp.yaml "
            "(distributed_type: MULTI_GPU)."
        )
    if not asked:
        raise RecipeError(f"{accelerate_config}: num_processes is not set; add --num_processes N, one for each device")
    command += ["--config_file", str(accelerate_config), "--num_processes", str(asked)]
    if "OMP_NUM_THREADS" not in os.environ:  # the launcher would choose the same, with a warning
        command += ["--num_cpu_threads_per_process", str(max(1, os.cpu_count() // asked))]
    on_cpu = settings.get("use_cpu") or os.environ.get("ACCELERATE_USE_CPU") == "true"
    if on_cpu and settings.get("mixed_precision") == "bf16" and not has_fast_bf16():
        print("run_recipe: note: this processor is faster in fp32 than in bf16; training in fp32")
        command += ["--mixed_precision", "no"]
    return command


def stage_command(recipe: Recipe, name: str, options, launch: list[str]) -> list[str]:
    """Return the command line of one stage."""
    if name == "requests":
        return requests_command(recipe)
    script, run = str(ROOT / STAGES[name].script), Path(recipe.run.output_dir)
    arguments = ["--config", *map(str, options.config), *options.overrides]
    evaluation = recipe.evaluation
    if name == "evaluate":
        command = [sys.executable, script, "--model", str(run / "model"), "--documents", str(run / "documents")]
        command += ["--output", str(run / "eval"), "--max_bytes_per_source", str(evaluation.max_bytes_per_source)]
        command += ["--batch_size", str(evaluation.batch_size), "--seed", str(recipe.run.seed)]
        command += ["--tasks", ",".join(evaluation.tasks)] if evaluation.tasks else []
        command += ["--prompts", *evaluation.prompts] if evaluation.prompts else []
        checked = run / "documents" / "decontamination.json"
        command += ["--decontamination", str(checked)] if evaluation.tasks and checked.exists() else []
        return command + (["--xz"] if evaluation.xz else [])
    if name == "report":
        return [sys.executable, script, str(run)]
    overwrite = ["--overwrite"] if options.overwrite else []
    return [*(launch if name == "pretrain" else [sys.executable]), script, *arguments, *overwrite]


def requests_command(recipe: Recipe) -> list[str]:
    """Return the command line of the stage `requests`, without the folder that it writes to, which comes last."""
    script = str(ROOT / STAGES["requests"].script)
    return [sys.executable, script, "--tasks", ",".join(exported_tasks(recipe)), "--export_requests"]


def plan_stages(recipe: Recipe) -> list[str]:
    """Return the stages that can run here, saying which cannot before any work starts.

    Raises: RecipeError: a stage without which there is no model is not there, or a source cannot be read.
    """
    wanted = list(STAGES)
    counted = recipe.plan.domain_bytes or (output_folder(recipe, "prepare") / "stats.json").exists()
    if not recipe.plan.budgets() or not counted:
        wanted.remove("plan")
    if recipe.plan.budgets():
        wanted.insert(wanted.index("report"), "plan")
    decontamination = recipe.data.decontamination
    checked = decontamination is not None and decontamination.benchmarks is None and recipe.evaluation.tasks
    if not checked and not recipe.training.eval_tasks:
        wanted.remove("requests")
    absent = [name for name in wanted if not has_script(name)]
    missing = [name for name in absent if name not in OPTIONAL]
    if missing:
        raise RecipeError(f"{', '.join(STAGES[name].script for name in missing)}: not there; copy recipes/ whole")
    if absent:
        lacking = ", ".join(OPTIONAL[name] for name in absent)
        left_out = f"{' and '.join(absent)} are left out: {lacking}"
        print(f"run_recipe: note: there is no {ROOT / 'eval'}, so {left_out}; copy it too")
    list_all_units(recipe.data.sources)
    return [name for name in wanted if name not in absent]


def run_stage(name: str, command: list[str]) -> None:
    process = subprocess.Popen(command)
    received = []

    def pass_on(number: int, _) -> None:
        received.append(signal.Signals(number).name)
        with suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)  # which every stage and launcher understands

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if status or received:
        raise SystemExit(
            f"run_recipe: {name} stopped with status {status}{f' on {received[0]}' if received else ''}; what is "
            "finished is kept, and the same command goes on from here"
        )


def note_unchecked(recipe: Recipe) -> None:
    """Say which benchmarks the documents at hand were not checked against, as the benchmarks are now."""
    report = output_folder(recipe, "prepare") / "decontamination.json"
    checked = json.loads(report.read_text(encoding="utf-8"))["settings"]["sha256"] if report.exists() else {}
    exported = {} if recipe.data.decontamination.benchmarks else hash_items(output_folder(recipe, "requests"))
    unchecked = [
        task
        for task in exported or recipe.evaluation.tasks
        if task not in checked or exported.get(task, checked[task]) != checked[task]
    ]
    if unchecked:
        more = f" and {len(unchecked) - 5} more" if len(unchecked) > 5 else ""
        print(
            f"run_recipe: note: the documents were not checked against {', '.join(unchecked[:5])}{more} as they "
            "are now, and their results will say so; --overwrite prepares the documents anew, and then all that is "
            "made from them"
        )


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(
        __doc__,
        argv,
        accelerate_config="file of accelerate_configs/ to train with; default: single_gpu.yaml or cpu.yaml",
        num_processes="processes to train with, where the file leaves it open",
    )
    run = Path(recipe.run.output_dir)
    stages = plan_stages(recipe)
    chosen = Path(options.accelerate_config) if options.accelerate_config else None
    if chosen and not chosen.exists():
        raise RecipeError(f"--accelerate_config {chosen}: no such file")
    launch = launch_command(chosen, options.num_processes) if chosen else None
    if recipe.hub.repo_id and "publish" in stages and not options.dry_run:
        print(check_repositories(recipe))  # now, and not after days of training
    done = {}
    for name in stages:
        # A stage is judged when its inputs are there: only then is it known whether they changed.
        done[name] = is_finished(recipe, name, options.overwrite)
        if name == "publish" and recipe.hub.repo_id and not options.dry_run:
            done[name] = False  # whether the Hub has the release, only the Hub knows
        if name == "prepare" and done[name] and recipe.data.decontamination and "evaluate" in stages:
            note_unchecked(recipe)
        if done[name]:
            continue
        if options.dry_run:
            print(f"run_recipe: {name} would run: {STAGES[name].script}")
            continue
        if name == "pretrain" and launch is None:
            launch = launch_command(None, None)
        command = stage_command(recipe, name, options, launch)
        if name == "requests":
            with new_output(recipe, name) as folder:
                run_stage(name, [*command, str(folder)])
            continue
        if name == "plan":
            if subprocess.run(command, check=False).returncode:
                print("run_recipe: note: there is no plan for the reason above; the run goes on")
            continue
        run_stage(name, command)
        if name in OPTIONAL:
            record_stage(recipe, name)
    if options.dry_run:
        return
    skipped = [name for name, finished in done.items() if finished]
    if len(skipped) == len(done):
        print(f"run_recipe: nothing to do, every stage in {run} is finished: {', '.join(skipped)}")
        summary = run / "summary.txt"
        if summary.exists():
            print(summary.read_text(encoding="utf-8"))
    model = output_folder(recipe, "pretrain")
    training = json.loads((run / "training.json").read_text(encoding="utf-8"))
    print(
        f"run_recipe: {training['tokens_seen']:,} tokens in {training['seconds']:.0f} s; model {model}, "
        f"card {output_folder(recipe, 'publish') / 'README.md'}"
        + (f", report {run / 'report.html'}" if (run / "report.html").exists() else "")
    )


if __name__ == "__main__":
    run_command(main)
