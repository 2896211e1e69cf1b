# SPDX-License-Identifier: Apache-2.0
"""The first screen: what was trained, whether it is any good, what went wrong, what to do next.

Reads what the other sections show, and recipe.yaml and status.json. It judges by what was measured and says what was
not: no file, no sentence.
"""

import shlex
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from compare import bits as bits_of
from compare import compare_items
from figure_style import COLORS, HATCHES, WIDTH
from run_files import STAGE_FILES, RunFiles, Section
from sections.benchmarks import against, baseline_of, compared_with, first_metric, read_baselines
from sections.tokenizer import BASELINE, OURS, tokenizer_names
from wording import count, duration, heading, model_name, plain, rounded


XZ_NAMES = {
    "xz_documents": "xz of each document alone",
    "xz_stream": "xz of the text as one stream",
    "xz_primed": "xz that holds the training text",
}
MAX_PARTS = 4  # sources that are judged one by one; where there are more, domains are
MAX_TEXTS = 3  # warnings that are quoted
MUCH_DROPPED_FRACTION = 0.5
EXAMPLE_BASELINE = "HuggingFaceTB/SmolLM2-135M"


@dataclass
class Verdict:
    """How the model does on one source or domain.

    Attributes:
        level: "good", "mixed", "bad", or "unknown" where nothing was compared.
        label: the same in words.
        text: the sentences with the numbers.
    """

    name: str
    level: str
    label: str
    text: str


def build(run: RunFiles) -> Section | None:
    if not any(map(run.has, STAGE_FILES)):
        return None
    results = run.json("eval/results.json")
    part, baselines = judged_part(results), read_baselines(run)
    measured = results["bits_per_byte"][part] if results else {}
    compared = {name: others(part, name, entry, baselines) for name, entry in measured.items()}
    verdicts = [
        judge(name, entry, compared[name], paired_intervals(run, results, part, name, baselines))
        for name, entry in measured.items()
    ]
    also = [*task_sentences(results), *tokenizer_sentences(run.json("tokenizer/report.json"), run.yaml("recipe.yaml"))]
    values = {
        "facts": list_facts(run.json("training.json")),
        "trained": describe_training(run.json("training.json"), run.yaml("recipe.yaml")),
        "verdicts": verdicts,
        "also": also,
        "problems": find_problems(run),
        "next_steps": list_next_steps(run, verdicts, baselines),
    }
    figures = {}
    if measured:
        text = (
            "Bits per byte of held-out text: the better a model predicts it, the fewer. xz is a text compressor. "
            "The black line is the model's 95 % interval; a compressor's score inside it counts as level. Another "
            "model is compared document by document"
        )
        figures["overview"] = (baselines_figure(measured, compared), text)
    return Section(run.folder.resolve().name, values, figures, summarise(values))


# What was trained


def list_facts(training: dict | None) -> dict[str, str]:
    """Return the few numbers that stand in large type."""
    if training is None:
        return {}
    return {
        "parameters": rounded(training["parameters"]["total"]),
        "tokens seen": rounded(training["tokens_seen"]),
        "optimizer steps": count(training["max_steps"]),
        "training time": duration(training["seconds"]),
    }


def describe_training(training: dict | None, recipe: dict | None) -> str:
    if training is None:
        return "No finished training is recorded in this folder."
    base = ((recipe or {}).get("model") or {}).get("from_pretrained")
    origin = f"that continues {model_name(base)}, trained" if base else "trained from scratch" if recipe else "trained"
    mixture = training.get("mixture") or {}
    shares = join([f"{100 * entry['delivered_fraction']:.0f} % {name}" for name, entry in mixture.items()])
    seen = sum(entry["bytes_seen"] for entry in mixture.values())
    text = f" on {rounded(seen)} bytes of text, {shares}" if mixture else ""
    processes = f"{training['num_processes']} process{'' if training['num_processes'] == 1 else 'es'}"
    return f"A language model {origin}{text}, by {processes} ({training['device']})."


# Is it any good?


def judged_part(results: dict | None) -> str:
    """Return which held-out scores are judged: "sources", or "domains" where there are many sources.

    A source may have the name of a domain, so what is compared has to be of the same part.
    """
    return "domains" if results and len(results["bits_per_byte"]["sources"]) > MAX_PARTS else "sources"


def others(part: str, name: str, entry: dict, baselines: dict[str, dict]) -> dict[str, float]:
    """Return the bits per byte of everything else that was measured on the same text, {what: bits}.

    Args: part: from judged_part.
    """
    found = {}
    for model, results in baselines.items():
        same = results["bits_per_byte"].get(part, {}).get(name)
        if same:
            found[model] = same["bits_per_byte"]
    return found | {text: entry[kind] for kind, text in XZ_NAMES.items() if entry.get(kind) is not None}


def paired_intervals(
    run: RunFiles, results: dict, part: str, name: str, baselines: dict[str, dict]
) -> dict[str, list[float] | None]:
    """Return the 95 % interval of how many more bits per byte each baseline needs, {model: interval}.

    Both predict the same documents, so that what is hard for both adds nothing to the interval. One family has none.

    Args: part: from judged_part.
    """
    scored = results["bits_per_byte"]["sources"]
    sources = [source for source, entry in scored.items() if entry["domain"] == name] if part == "domains" else [name]
    found = {}
    for model, other in baselines.items():
        documents = [
            {
                (source, document["id"]): document
                for source in sources
                for document in run.lines(f"{folder}/items/documents.{source}.jsonl")
            }
            for folder in ("eval", other["folder"])
        ]
        if compared := compare_items(documents, f"documents.{name}", bits_of, 0):
            found[model] = compared["against_first"][1]["interval"]
    return found


def judge(name: str, entry: dict, compared: dict[str, float], paired_with: dict[str, list[float] | None]) -> Verdict:
    """Compare a score with each baseline: neither is better where the 95 % interval of the difference holds 0.

    Nothing is said of a difference without an interval.

    Args: paired_with: from paired_intervals; for the others the score's own interval decides.
    """
    bits = entry["bits_per_byte"]
    own = entry["confidence_interval"]
    interval = f" (95 % interval {own[0]:.2f} to {own[1]:.2f})" if own else ""
    text = [f"On held-out text the model needs {bits:.2f} bits per byte{interval}."]
    groups = {"beaten": [], "equal": [], "ahead": [], "unknown": []}
    for what, value in compared.items():
        paired = paired_with.get(what)
        differs = paired or (own and what not in paired_with and [value - own[1], value - own[0]])
        group = "unknown" if not differs else "beaten" if differs[0] > 0 else "ahead" if differs[1] < 0 else "equal"
        difference = f", the difference {paired[0]:.2f} to {paired[1]:.2f}" if paired else ""
        groups[group].append(f"{what} ({value:.2f}{difference})")
    if groups["beaten"]:
        text.append(f"It beats {join(groups['beaten'])}.")
    if groups["equal"]:
        text.append(f"It is level with {join(groups['equal'])}.")
    if groups["ahead"]:
        text.append(f"It does not yet beat {join(groups['ahead'], 'or')}.")
    if groups["unknown"]:
        text.append(f"One document, or one family of them, cannot tell it from {join(groups['unknown'], 'or')}.")
    if not compared:
        return Verdict(name, "unknown", "No baseline was measured", " ".join([*text, "Nothing was compared with it."]))
    if len(groups["unknown"]) == len(compared):
        level, label = "unknown", "Too few documents to compare"
    elif len(groups["beaten"]) == len(compared):
        level, label = "good", f"Better than {'every baseline' if len(compared) > 1 else 'the baseline'} measured"
    elif groups["beaten"]:
        level, label = "mixed", f"Better than {len(groups['beaten'])} of {len(compared)} baselines"
    else:
        level, label = "bad", "Better than no baseline measured"
    return Verdict(name, level, label, " ".join(text))


def join(parts: list[str], word: str = "and") -> str:
    return f" {word} ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def task_sentences(results: dict | None) -> list[str]:
    """Say of each task outside groups, of each group and of each part of one, how it differs from its baseline."""
    if not results:
        return []
    tasks = {name: task for name, task in results["tasks"].items() if not task.get("groups")}
    scores = {
        name: task["metrics"][first_metric(task)] | {"metric": first_metric(task)} for name, task in tasks.items()
    }
    groups = results.get("groups", {}) | results.get("group_parts", {})
    scores |= {name: group | {"metric": group["score"]} for name, group in groups.items()}
    known = {name: score for name, score in scores.items() if baseline_of(score) is not None and score.get("interval")}
    if len(known) > MAX_PARTS:
        return [count_verdicts([against(score) for score in known.values()])]
    return [
        f"{name}: {score['metric']} of {score['value']:.3f} {compared_with(score)}" for name, score in known.items()
    ]


def count_verdicts(verdicts: list[str]) -> str:
    kinds = Counter("level" if "within noise" in verdict else verdict for verdict in verdicts)
    return (
        f"Of {len(verdicts)} benchmarks, {kinds['above']} are above their baseline, {kinds['level']} within noise of "
        f"it and {kinds['below']} below it."
    )


def tokenizer_sentences(report: dict | None, recipe: dict | None) -> list[str]:
    """Compare the tokenizer with one of the same size for general text or, if it was extended, the one before."""
    measured = (report or {}).get("bytes_per_token", {})
    ours, other = measured.get(OURS), measured.get(BASELINE)
    if not ours or not other:
        return []
    compared = []
    for source, size in ours.items():
        if other.get(source):
            more = other[source] / size - 1  # in tokens; both are bytes per token
            compared.append(f"{100 * abs(more):.0f} % {'more' if more > 0 else 'fewer'} tokens on {source}")
    names = tokenizer_names(recipe)
    if BASELINE in names:
        return [f"The {names[OURS]} needs {join(compared)} than the {names[BASELINE]}, which it extends."]
    return [f"The tokenizer needs {join(compared)} than one trained on general text alone."]


def baselines_figure(measured: dict[str, dict], parts: dict[str, dict[str, float]]) -> Figure:
    """Draw each score above all that `others` found for it."""
    names = list(dict.fromkeys(what for compared in parts.values() for what in compared))
    figure = Figure(figsize=(WIDTH, 0.5 + sum(0.35 + 0.27 * (1 + len(compared)) for compared in parts.values())))
    axes = figure.subplots()
    place, ticks = 0.0, {}
    for name, entry in measured.items():
        axes.text(0, place, plain(name), fontweight="bold", va="center")
        bars = {"this model": entry["bits_per_byte"]} | parts[name]
        for what, value in bars.items():
            place += 1
            index = names.index(what) + 1 if what in names else 0
            color = COLORS[0] if not index else "#c9d1d9" if what in XZ_NAMES.values() else COLORS[1]
            axes.barh(place, value, 0.72, color=color, hatch=HATCHES[0], edgecolor="white")
            end = value
            if not index and entry["confidence_interval"]:
                axes.plot(entry["confidence_interval"], [place, place], color="black", linewidth=1.5)
                end = max(entry["confidence_interval"])
            axes.annotate(
                f"{value:.2f}",
                (end, place),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontweight="normal" if index else "bold",
            )
            ticks[place] = textwrap.fill(plain(what), 32)
        place += 1.4
    axes.set_yticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    axes.margins(x=0.12)
    axes.set(xlabel="bits per byte (lower is better)", ylim=(place - 0.4, -0.7))
    return figure


# What went wrong


def find_problems(run: RunFiles) -> list[dict]:
    """Return {"level": "bad" or "note", "text"} of all that the files record, the worst first."""
    found = [*training_problems(run), *check_problems(run), *text_problems(run), *evaluation_problems(run)]
    return sorted(({"level": level, "text": text} for level, text in found), key=lambda one: one["level"] != "bad")


def training_problems(run: RunFiles):
    status = run.json("status.json") or {}
    if status.get("status", "finished") != "finished":
        where = f"at step {count(status.get('step'))} of {count(status.get('max_steps'))}"
        yield "bad", f"Training is not finished: status {status['status']} {where}; {status.get('reason')}."
    entries = run.lines("chronicle.jsonl")
    counts = Counter(entry["event"] for entry in entries)
    for event, level, one, many in (
        ("failure", "bad", "training failed once", "training failed {} times"),
        ("rollback", "bad", "training went back to a checkpoint once", "training went back to a checkpoint {} times"),
        ("skip", "note", "1 optimizer step was skipped", "{} optimizer steps were skipped"),
        ("preemption", "note", "training was interrupted once", "training was interrupted {} times"),
    ):
        if counts[event]:
            said = one if counts[event] == 1 else many.format(count(counts[event]))
            yield level, f"{said[0].upper()}{said[1:]}; see the event log."
    warnings = list(dict.fromkeys(entry["text"] for entry in entries if entry["event"] == "warning"))
    for text in warnings[:MAX_TEXTS]:
        yield "note", f"Warning in training: {text}"
    if len(warnings) > MAX_TEXTS:
        yield "note", f"{len(warnings) - MAX_TEXTS} more warnings are in the event log."
    for note in dict.fromkeys(entry["text"] for entry in entries if entry["event"] == "note"):
        yield "note", f"Training: {note}."


def check_problems(run: RunFiles):
    missing = [path for path in STAGE_FILES if not run.has(path)]
    if missing:
        listed = ", ".join(f"`{path}`" for path in missing)
        yield "bad", f"Not in this run folder, and so not reported: {listed}."
    preflight = run.json("preflight.json")
    failed = [check["name"] for check in preflight["checks"] if not check["passed"]] if preflight else []
    if failed:
        yield "bad", f"Checks before training that failed: {', '.join(failed)}."
    if preflight is None and run.has("training.json"):
        yield "note", "The checks before training were not run: `pretrain.py --dry_run`."
    documents = run.json("documents/stats.json")
    if documents is not None and not run.has("documents/decontamination.json"):
        reason = documents.get("unchecked") or "there is no `documents/decontamination.json`"
        yield "note", f"The text was not checked against benchmarks: {reason}."
    recipe = run.yaml("recipe.yaml") or {}
    if recipe.get("data") and not recipe["data"].get("personal_data"):
        yield "note", "Personal data was not looked for: the recipe does not set `data.personal_data`."
    plan = run.json("plan.json") or {}
    if plan.get("warnings"):
        yield "note", f"The plan holds {len(plan['warnings'])} warning{'s' if len(plan['warnings']) > 1 else ''}."


def text_problems(run: RunFiles):
    quarantined = len(run.lines("documents/quarantine.jsonl"))
    if quarantined:
        rows = "1 document" if quarantined == 1 else f"{count(quarantined)} documents"
        yield "note", f"{rows} could not be read; `documents/quarantine.jsonl` says which and why."
    for name, entry in (run.json("documents/stats.json") or {"sources": {}})["sources"].items():
        dropped = sum(number["bytes"] for number in entry["dropped"].values())
        if entry["bytes_in"] and dropped / entry["bytes_in"] > MUCH_DROPPED_FRACTION:
            yield "note", f"Preparation dropped {100 * dropped / entry['bytes_in']:.0f} % of the bytes of {name}."


def evaluation_problems(run: RunFiles):
    results = run.json("eval/results.json")
    if results is None:
        return
    wanted = ((run.yaml("recipe.yaml") or {}).get("evaluation") or {}).get("tasks") or []
    known = set(results["tasks"]) | {group for task in results["tasks"].values() for group in task.get("groups", [])}
    suites = {path.name for path in (Path(__file__).parent.parent / "tasks").iterdir() if path.is_dir()}
    left_out = [name for name in wanted if name not in known | suites]
    if left_out:
        yield "bad", f"The recipe lists benchmark tasks that were not run: {', '.join(left_out)}."
    for text in results.get("baselines_not_scored", {}).values():
        yield "bad", f"{text[0].upper()}{text[1:]}."
    unchecked = [name for name, task in results["tasks"].items() if "unchecked" in (task.get("by_overlap") or {})]
    if unchecked:
        yield "note", f"The training text was not checked against all items of {', '.join(unchecked)}."
    for name, task in results["tasks"].items():
        if task.get("left_out"):
            items = f"{count(task['left_out'])} of {count(task['left_out'] + task['num_items'])} items"
            yield "note", f"{items} of {name} are not scored: a continuation alone is longer than the context."
    truncated = [name for name, task in results["tasks"].items() if task.get("truncated")]
    if truncated:
        yield "note", f"Requests were longer than the context and lost their beginning: {', '.join(truncated)}."
    for name, entry in results["bits_per_byte"]["sources"].items():
        if entry.get("documents_not_restored"):
            number = count(entry["documents_not_restored"])
            yield "note", f"Bits per byte of {name} are not exact: {number} documents do not decode to their text."


# What to do next


def command(run: RunFiles, script: str, *arguments: str) -> str:
    """Return a command with the recipe that the run folder keeps, where it keeps one."""
    config = f"{run.shown_folder}/recipe.yaml" if run.has("recipe.yaml") else "YOUR_RECIPE.yaml"
    return shell(["python", script, "--config", config, *arguments])


def shell(words: list[str]) -> str:
    """Return a command line, quoted, with each option after the first on a line of its own."""
    line = "".join(f" \\\n  {word}" if word.startswith("--") else f" {word}" for word in map(shlex.quote, words))
    return line.replace(" \\\n  ", " ", 1).strip()


def list_next_steps(run: RunFiles, verdicts: list[Verdict], baselines: dict[str, dict]) -> list[dict]:
    """Return {"text", "command"} of what is worth doing, the most urgent first."""
    steps, folder = [], run.shown_folder
    training, results = run.json("training.json"), run.json("eval/results.json")
    if any(not run.has(path) for path in STAGE_FILES):
        text = "Finish the run. Finished stages are kept, and training resumes from its last checkpoint."
        steps.append({"text": text, "command": command(run, "recipes/run_recipe.py")})
    if results and verdicts and not baselines:
        text = "Compare with a model that exists, on the same text and tasks."
        steps.append({"text": text, "command": baseline_command(run, results)})
    if training and any(one.level in ("mixed", "bad") for one in verdicts):
        steps.append(more_training(run, training))
    if training and results:
        text = "Check that every file is the one that was recorded."
        steps.append({"text": text, "command": shell(["python", "recipes/verify_run.py", folder])})
    if training and results:
        name = run.folder.resolve().name
        publish = command(run, "recipes/push_to_hub.py", f"--hub.repo_id=YOUR_NAME/{name}")
        steps.append(
            {"text": "Publish the model with its card, once the numbers above are good enough.", "command": publish}
        )
    return steps


def baseline_command(run: RunFiles, results: dict) -> str:
    """Return the command that repeats the evaluation with a baseline: the results of one command are one file.

    With other settings it would replace the scores by others.
    """
    if run.has("recipe.yaml"):
        return command(run, "recipes/run_recipe.py", f'--evaluation.baselines=["{EXAMPLE_BASELINE}"]')
    folder, settings = run.shown_folder, results["settings"]
    words = ["python", "eval/run_eval.py", "--model", f"{folder}/model", "--documents", f"{folder}/documents"]
    words += ["--output", f"{folder}/eval", "--baselines", EXAMPLE_BASELINE]
    words += ["--tasks", ",".join(settings["tasks"])] if settings.get("tasks") else []
    words += [f"--prompt={sample['prompt']}" for sample in results["samples"]]
    for name in ("split", "max_bytes_per_source", "num_fewshot", "batch_size", "dtype", "context_length", "seed"):
        words += [f"--{name}", str(settings[name])] if settings.get(name) is not None else []
    # Half the context is what no --stride means, and a baseline of another context has another half.
    if settings.get("stride") not in (None, settings["context_length"] // 2):
        words += ["--stride", str(settings["stride"])]
    if settings.get("decontamination_sha256"):
        words += ["--decontamination", f"{folder}/documents/decontamination.json"]
    sources = results["bits_per_byte"]["sources"].values()
    words += ["--xz"] if any(entry.get("xz_stream") is not None for entry in sources) else []
    return f"{shell(words)}\n{shell(['python', 'eval/report.py', folder])}"


def more_training(run: RunFiles, training: dict) -> dict:
    per_parameter = training["tokens_seen"] / training["parameters"]["total"]
    seen = f"The model has seen {per_parameter:.2g} tokens per parameter"
    repeated = max((entry["repetitions"] for entry in (training.get("mixture") or {}).values()), default=0)
    if repeated > 2:
        text = f"{seen} and its most repeated source {repeated:.1f} times: add text, then train longer."
        return {"text": text, "command": command(run, "recipes/run_recipe.py", "--data.sources=[...]")}
    wanted = [f"--run.output_dir={run.shown_folder}-longer", f"--training.max_tokens={2 * training['tokens_seen']}"]
    text = f"{seen}; about 20 are usual where the text suffices. Train twice as long."
    return {"text": text, "command": command(run, "recipes/run_recipe.py", *wanted, "--training.max_seconds=null")}


# summary.txt


def summarise(values: dict) -> list[str]:
    facts = [f"{value} {name}" for name, value in values["facts"].items()]
    lines = [
        *heading("What was trained"),
        *wrapped([values["trained"], *([", ".join(facts) + "."] if facts else [])]),
        "",
    ]
    judged = [f"{verdict.name}: {verdict.label}. {verdict.text}" for verdict in values["verdicts"]]
    lines += [*heading("Is it any good"), *wrapped([*(judged or ["Nothing was measured."]), *values["also"]]), ""]
    problems = [problem["text"] for problem in values["problems"]]
    return lines + [*heading("What went wrong"), *wrapped(problems or ["Nothing is recorded."])]


def wrapped(sentences: list[str]) -> list[str]:
    return [
        line
        for one in sentences
        for line in textwrap.wrap(f"- {plain(one)}", 100, subsequent_indent="  ", break_on_hyphens=False)
    ]
