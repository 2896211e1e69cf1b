# SPDX-License-Identifier: Apache-2.0
"""The runs that campaign.py attacks: tiny recipes of every kind, their commands, what an undisturbed one gives."""

import csv
import json
import os
import random
import shutil
from functools import cache
from pathlib import Path
from typing import ClassVar

import psutil
import yaml
from tiny_run import TinyRun, make_text
from warm_processes import RUN_RECIPE, Harm, start


SECONDS_A_TRY = 120
TIMEOUT_SECONDS = {1: 5, 2: 8, 4: 15}  # number of processes -> run.timeout_seconds, on a machine of two busy cores
# Stage -> its script, and how often it is attacked. All of a recipe's stages run in this order.
SCRIPTS = {
    "prepare": ("prepare_data", 9),
    "tokenizer": ("train_tokenizer", 8),
    "tokenize": ("tokenize_corpus", 8),
    "pretrain": ("pretrain", 55),
    "evaluate": ("run_eval", 6),
    "report": ("report", 5),
    "publish": ("push_to_hub", 9),
}
OUTPUTS = dict(zip(SCRIPTS, ("documents", "tokenizer", "tokens", "model", "eval", "figures", "release"), strict=True))
OUTPUTS |= {"fine-tuning": "finetuned"}
# What differs between two undisturbed runs, as it holds times, speeds or a path. The results, the text of the card and
# the numbers of metrics.jsonl are compared apart.
TIMED = {"tokenizer/speed.json", "eval/results.json", "figures/speed.png"}
TIMED |= {f"release/{name}" for name in ("figures/speed.png", "report.html", "README.md", "results.json")}
TIMED |= {f"release/{name}" for name in ("training.json", "metrics.jsonl", "chronicle.jsonl", "chronicle.md")}
TIMED |= {"release/manifest.json"}  # the hashes of these
OF_TRAINING = ("checkpoints", "metrics.jsonl", "samples.jsonl", "chronicle.jsonl", "chronicle.md", "status.json")
OF_TRAINING += ("training.json", "environment.json", "recipe.yaml", "run_files.json", "report.html", "summary.txt")
# Kind, number of processes, and whether FSDP2 divides the model. Adapters cannot be divided.
KINDS = [
    ("from scratch", 1, False),
    ("phases", 2, False),
    ("LoRA", 1, False),
    ("Unigram", 2, True),
    ("distillation", 1, False),
    ("from scratch", 4, True),
    ("continued", 1, False),
    ("experiment", 1, False),
    ("phases", 4, False),
    ("fine-tuning", 1, False),
    ("continued", 2, True),
    ("distillation", 2, True),
    ("Unigram", 4, False),
    ("LoRA", 2, False),
    ("experiment", 2, False),
    ("continued", 4, True),
]


class Attacked:
    """A recipe, a run of it that nothing disturbed, and the command that is attacked.

    Args:
        root: folder of the campaign.
        seed: of the campaign.
        number: of the recipe.

    Attributes:
        whole: the undisturbed run.
        traces: what each process of it changed, and imported.
    """

    scripts: ClassVar[dict[str, tuple[str, int]]] = SCRIPTS
    says_how_to_start_again = True  # however it ended

    def __init__(self, root: Path, seed: int, number: int):
        self.root, self.folder, draw = root, root / f"recipe-{number}", random.Random(f"{seed}/recipe/{number}")
        self.kind, self.processes, self.divided = KINDS[number % len(KINDS)]
        self.settings = draw_recipe(draw, self.kind, root)
        self.settings.append(f"--run.timeout_seconds={TIMEOUT_SECONDS[self.processes]}")
        self.whole = self.folder / "run"  # as in a try: some files hold the name
        self.launch_file = self.folder / "launch.yaml"
        self.traces = self.folder / "traces"
        self.tokens_per_step = 512 if self.kind == "phases" else 256

    def __str__(self) -> str:
        how = "FSDP2" if self.divided else "DDP" if self.processes > 1 else "alone"
        return f"{self.kind}, {self.processes} processes, {how}"

    def command(self, run: Path) -> list[str]:
        """Return the script and its arguments, for a run folder."""
        return [RUN_RECIPE, *self.launch(), *TinyRun(self.root / "texts", run).argv(*self.settings)]

    def launch(self) -> list[str]:
        return ["--accelerate_config", str(self.launch_file), "--num_processes", str(self.processes)]

    def make(self) -> None:
        """Run the command undisturbed.

        Raises: RuntimeError: it failed.
        """
        self.traces.mkdir(parents=True)
        kind = "MULTI_GPU" if self.processes > 1 else "NO"
        self.launch_file.write_text(
            f'compute_environment: LOCAL_MACHINE\ndistributed_type: "{kind}"\nnum_machines: 1\nmixed_precision: "no"\n'
        )
        self.make_inputs(self.whole)
        harm = Harm(trace=str(self.traces), watched=str(self.whole))
        self.run_whole(harm)

    def make_inputs(self, run: Path) -> None:
        """Write what the command needs in the run folder."""

    def run_whole(self, harm: Harm) -> None:
        if self.run(self.whole, self.folder / "log", harm, tuple(SCRIPTS)) != 0:
            raise RuntimeError(f"the undisturbed run of {self} failed: {tail(self.folder / 'log')}")

    def run(self, run: Path, log: Path, harm: Harm, stages: tuple[str, ...]) -> int | None:
        """Run the command to the end and return its exit code; None if it did not end."""
        process = self.start(run, log, harm, stages)
        try:
            return process.wait(SECONDS_A_TRY)
        except psutil.TimeoutExpired:
            return None

    def start(self, run: Path, log: Path, harm: Harm, stages: tuple[str, ...]) -> psutil.Process:
        os.environ.pop("CAMPAIGN_DIVIDED", None)
        if self.divided:
            os.environ["CAMPAIGN_DIVIDED"] = "1"
        return start(self.command(run), log, harm, stages)

    @cache  # noqa: B019 (lives as long as the campaign)
    def changes(self, script: str, rank: int) -> list[str]:
        """Return the changes to the run folder that a process of a script makes, in order."""
        trace = self.traces / f"{script}-{rank}"
        return trace.read_text().splitlines() if trace.exists() else []

    def seconds(self, stage: str) -> float:
        """Return how long a stage takes, with what run_recipe does before it."""
        ends = [(self.whole / OUTPUTS[name] / "stage.json").stat().st_mtime for name in SCRIPTS]
        starts = [min(path.stat().st_mtime for path in self.traces.iterdir()), *ends]
        index = list(SCRIPTS).index(stage)
        return max(0.2, ends[index] - starts[index])

    def max_steps(self) -> int:
        return max(json.loads(next(self.whole.rglob("training.json")).read_text())["max_steps"], 1)

    def stages_until(self, stage: str) -> tuple[str, ...]:
        """Return the stages that run where one is attacked: up to it, or to the training if that is later."""
        last = max(list(SCRIPTS).index(stage), list(SCRIPTS).index("pretrain"))
        return tuple(list(SCRIPTS)[: last + 1])

    def copy_before(self, stage: str, run: Path, draw: random.Random) -> None:
        """Copy the undisturbed run as it was before a stage, or where it trains several models, before one of them."""
        index = list(SCRIPTS).index(stage)
        later = [OUTPUTS[name] for name in list(SCRIPTS)[index:]]
        if index <= list(SCRIPTS).index("pretrain"):
            kept = draw.randrange(3) if stage == "pretrain" else 0
            later += [*OF_TRAINING, *("0", "1")[kept:]]
        parents = (self.whole, self.whole / "members")
        shutil.copytree(
            self.whole, run, symlinks=True, ignore=lambda folder, names: later if Path(folder) in parents else []
        )

    def find_differences(self, run: Path, stages: tuple[str, ...]) -> list[str]:
        """List in what a finished run differs from the undisturbed one."""
        found, expected = self.describe(run, stages), self.describe(self.whole, stages)
        return [f"{key} differs from the undisturbed run" for key in expected if found.get(key) != expected[key]]

    def describe(self, run: Path, stages: tuple[str, ...]) -> dict[str, object]:
        """Return what two runs of a recipe have in common: no times, and no speeds."""
        found: dict[str, object] = {}
        for stage in stages:
            record = json.loads((run / OUTPUTS[stage] / "stage.json").read_text())
            names = {f"{OUTPUTS[stage]}/{name}": file["sha256"] for name, file in record["files"].items()}
            found |= {f"names in {OUTPUTS[stage]}": sorted(names)}
            items = {name for name in names if name.startswith("eval/items/")}
            found |= {name: sha256 for name, sha256 in names.items() if name not in TIMED | items}
            found |= {name: [rounded(line) for line in (run / name).read_text().splitlines()] for name in items}
        if "pretrain" in stages:
            found |= describe_training(run)
        if "evaluate" in stages:
            found["eval/results.json"] = read_results(run / "eval")
        if "publish" in stages:
            found["release/results.json"] = read_results(run / "release")
            lines = (run / "release" / "README.md").read_text().splitlines()
            found["release/README.md"] = [line for line in lines if not line.startswith("| time |")]
        return found

    def runs_in(self, run: Path) -> list[Path]:
        """Return the run folders, for verify_run.py."""
        return [run, *(run / "members").glob("*")]


class FineTuned(Attacked):
    """A model that finetune.py tunes to summarise."""

    scripts: ClassVar = {"fine-tuning": ("finetune", 1)}
    says_how_to_start_again = False

    def command(self, run: Path) -> list[str]:
        tuned = {
            "finetune.train": {"name": "cases", "path": str(self.folder / "cases.jsonl")},
            "finetune.test": {"name": "held-out", "path": str(self.folder / "held_out.jsonl"), "license": "made up"},
            "finetune.sequence_length": 128,
            "finetune.max_summary_tokens": 8,
            "finetune.lora": {"rank": 2},
            "finetune.num_train_epochs": 4,
            "finetune.examples_per_step": 8,
            "finetune.per_device_train_batch_size": 4,
            "finetune.save_steps": 3,
        }
        overrides = [f"--{key}={json.dumps(value)}" for key, value in tuned.items()]
        return ["recipes/finetune.py", *TinyRun(self.root / "texts", run).argv(*self.settings, *overrides)]

    def run_whole(self, harm: Harm) -> None:
        for name, first, number in (("cases", 0, 24), ("held_out", 500, 4)):
            rows = [{"text": make_text(first + seed, 1), "summary": "The tenant wins."} for seed in range(number)]
            (self.folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        log, made = self.folder / "log", Attacked.command(self, self.whole)
        if start(made, log, Harm(), tuple(list(SCRIPTS)[:4])).wait(SECONDS_A_TRY) != 0:
            raise RuntimeError(f"the model to tune was not made: {tail(log)}")
        super().run_whole(harm)

    def seconds(self, stage: str) -> float:
        return json.loads((self.whole / "finetuned" / "results.json").read_text())["seconds"] + 1

    def stages_until(self, stage: str) -> tuple[str, ...]:
        return (stage,)

    def copy_before(self, stage: str, run: Path, draw: random.Random) -> None:
        shutil.copytree(self.whole, run, ignore=lambda *_: ["finetuned", "finetune_checkpoints"])

    def describe(self, run: Path, stages: tuple[str, ...]) -> dict[str, object]:
        files = json.loads((run / "finetuned" / "stage.json").read_text())["files"]
        results = json.loads((run / "finetuned" / "results.json").read_text())
        measured = {
            key: results[key] for key in results if key not in ("made_from", "seconds", "resumed_from", "last_loss")
        }
        return {"model": files["model.safetensors"]["sha256"], "files": sorted(files), "results": measured}


class Experiment(Attacked):
    """An experiment of two arms, each of which trains a model; compare_arms.py makes the text and tokens first."""

    scripts: ClassVar = {name: SCRIPTS[name] for name in ("prepare", "tokenizer", "tokenize", "pretrain")}
    says_how_to_start_again = False

    def command(self, run: Path) -> list[str]:
        return ["recipes/compare_arms.py", "--config", str(run / "arms.yaml"), *self.launch()]

    def make_inputs(self, run: Path) -> None:
        run.mkdir()
        texts, chosen = self.root / "texts", random.Random(str(self.settings))
        sources = [
            {"name": "law", "path": str(texts / "law.jsonl"), "domain": "legal", "share": 0.75},
            {"name": "web", "path": str(texts / "web"), "domain": "general", "share": 0.25},
        ]
        recipe = {
            "run": {"output_dir": str(run / "runs"), "timeout_seconds": TIMEOUT_SECONDS[self.processes]},
            "data": {"sources": sources, "near_duplicates": None, "workers": 1, "max_repetitions": 100}
            | {"splits": {"validation_fraction": 0.1, "test_fraction": 0.1}},
            "tokenizer": {"vocab_size": 384},
            "model": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2},
            "training": {"sequence_length": 32, "tokens_per_step": 256, "per_device_train_batch_size": 2}
            | {"learning_rate": 1e-2, "torch_compile": False, "warmup_steps": 2, "eval_tasks": []}
            | {"save_steps": chosen.choice([2, 3]), "optimizer": chosen.choice(["adamw", "muon"])},
        }
        arms = {"cosine": {"training": {"lr_scheduler_type": "cosine"}}, "warmup-stable-decay": {}}
        settings = {"results": "results", "x": "flops", "flops": [6e8], "arms": arms, "recipe": recipe}
        (run / "arms.yaml").write_text(yaml.safe_dump(settings))

    def seconds(self, stage: str) -> float:
        return 8.0

    def stages_until(self, stage: str) -> tuple[str, ...]:
        return tuple(self.scripts)

    def copy_before(self, stage: str, run: Path, draw: random.Random) -> None:
        self.make_inputs(run)

    def describe(self, run: Path, stages: tuple[str, ...]) -> dict[str, object]:
        found: dict[str, object] = {}
        with (run / "results" / "runs.csv").open() as rows:
            for row in csv.DictReader(rows):
                found[f"row of {row['key']}"] = {key: row[key] for key in row if key != "seconds"}
        for trained in sorted((run / "runs" / "runs").iterdir()):
            record = json.loads((trained / "model" / "stage.json").read_text())
            found[f"model {trained.name}"] = record["files"]["model.safetensors"]["sha256"]
            found |= {f"{trained.name}: {key}": value for key, value in describe_training(trained).items()}
        return found

    def runs_in(self, run: Path) -> list[Path]:
        return list((run / "runs" / "runs").glob("*"))


def attacked_run(root: Path, seed: int, number: int) -> Attacked:
    """Return the run that a number stands for."""
    kinds = {"fine-tuning": FineTuned, "experiment": Experiment}
    return kinds.get(KINDS[number % len(KINDS)][0], Attacked)(root, seed, number)


def draw_recipe(draw: random.Random, kind: str, root: Path) -> list[str]:
    """Return overrides of a tiny recipe."""
    settings = {
        "run.seed": draw.randrange(1000),
        "data.near_duplicates": draw.choice([None, {}]),
        "tokenizer.vocab_size": draw.choice([320, 352, 384]),
        "model.hidden_size": draw.choice([32, 48]),
        "model.num_hidden_layers": draw.choice([1, 2]),
        "training.max_tokens": 256 * draw.choice([10, 12, 16]),
        "training.optimizer": draw.choice(["adamw", "muon"]),
        "training.learning_rate": 3e-3,
        "training.warmup_steps": 2,
        "training.save_steps": draw.choice([2, 3, 4]),
        "training.eval_steps": draw.choice([3, 5, 8]),
        "training.save_total_limit": draw.choice([2, 3]),
        "training.document_masking": draw.choice([True, False]),
    }
    if kind in ("LoRA", "continued"):
        settings |= {"model.from_pretrained": str(root / "base"), "training.optimizer": "adamw"}
    if kind == "LoRA":
        settings["model.lora"] = {"rank": 2, "targets": ["q_proj", "down_proj"]}
    if kind == "fine-tuning":
        settings["training.sequence_length"] = 128
    if kind == "distillation":
        settings["training.distillation"] = {"members": 2}
        settings["training.max_tokens"] = 256 * 8  # three times
    if kind == "Unigram":
        settings |= {"tokenizer.algorithm": "unigram", "tokenizer.pad_vocabulary": True}
    if kind == "phases":
        settings |= {"model.attention_dropout": 0.1, "training.tokens_per_step": 512}
        settings["training.max_tokens"] *= 2
        settings["data.phases"] = [
            {"start_fraction": 0.6, "shares": {"law": 0.3, "web": 0.7}, "sequence_length": 64}
            | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}
        ]
    return [f"--{key}={json.dumps(value)}" for key, value in settings.items()]


def read_results(folder: Path) -> dict:
    """Return the results of an evaluation without the path of the model."""
    return rounded((folder / "results.json").read_text()) | {"model": None}


def rounded(text: str) -> dict:
    """Return JSON with 7 digits: where memory is short, a library may take another kernel, which rounds otherwise."""
    return json.loads(text, parse_float=lambda number: float(f"{float(number):.7g}"))


def describe_training(run: Path) -> dict[str, object]:
    """Return what the log of a training says, without times and speeds."""
    found: dict[str, object] = {}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for key in ("train/loss", "train/grad_norm", "train/learning_rate", "train/bytes_seen", "eval/bits_per_byte"):
        found[f"metrics.jsonl {key}"] = [(line["step"], line[key]) for line in lines if key in line]
    samples = [json.loads(line) for line in (run / "samples.jsonl").read_text().splitlines()]
    found["samples.jsonl"] = samples
    return found


def make_base(folder: Path) -> None:
    """Write the model that others continue from."""
    from small_models import small_model
    from small_tokenizers import llama3

    tokenizer = llama3()
    small_model("llama", vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")


def tail(log: Path) -> str:
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-3:])[-600:]
