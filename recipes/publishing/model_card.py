# SPDX-License-Identifier: Apache-2.0
"""Render the model card, README.md of a release, from model_card.md and the files of the release.

In:   a release folder with the model's config.json and the records of the run; hub.* and the sources of the recipe.
Out:  README.md in it. Every number in it is in one of those files.
"""

import json
import re
from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path
from textwrap import shorten

from transformers import AutoConfig, AutoTokenizer

from atomic_files import file_sha256, read_json_lines
from card_text import render_card
from corpus.data_card import LICENCE_KINDS, strictest_licence
from corpus.personal_data import searched_kinds
from publishing.base_licence import terms_along
from publishing.base_model import Base, find_licensors, public_name
from publishing.notice import SHOWN_PACKAGES
from publishing.release_checks import read_tensor_shapes
from recipe_config import Recipe
from sources.units import is_hub_dataset


RECORDS = (
    "config",
    "data_stats",
    "decontamination",
    "tokenizer_report",
    "training",
    "results",
    "plan",
    "environment",
    "audit",
    "gguf",
)
FAMILY_STYLES = {"llama": "Llama-style", "qwen3": "Qwen3-style"}  # the shapes of models from scratch
MOST_TASKS = 10  # a larger group is listed by its average only
PROMPT = "In general, the"
# Groups of benchmark items in results.json, as the card names them.
OVERLAP_GROUPS = {
    "clean": "clean",
    "overlapping": "overlapping with the text",
    "not_checkable": "too short or common to be checked",
    "unchecked": "not checked against the text",
}


def write_card(recipe: Recipe, folder: Path, base: Base | None, teachers: Sequence[Base] = ()) -> None:
    """Render model_card.md from the files of a release into its README.md.

    Args:
        recipe: of the run, with the paths as published.
        folder: the release.
        base: the model that training continued from; None where it started from scratch.
        teachers: models of others that it learned from.
    """
    paths = {name: folder / f"{name}.json" for name in RECORDS}
    files = {name: json.loads(p.read_text(encoding="utf-8")) if p.exists() else None for name, p in paths.items()}
    for source in recipe.data.sources:  # from the recipe, since a licence may be corrected after training
        files["data_stats"]["sources"][source.name] |= {"license": source.license, "url": source.url}
    validation_score = f"{recipe.scored_as()}/bits_per_byte"
    validation = [line for line in read_json_lines(folder / "metrics.jsonl") if validation_score in line]
    events = read_json_lines(folder / "chronicle.jsonl")
    title = Path(recipe.hub.repo_id or recipe.run.output_dir).absolute().name
    weights = sorted(folder.glob("*.safetensors"))
    shape = describe_shape(folder)
    tokenizer = describe_tokenizer(recipe, folder, files["config"], files["tokenizer_report"])
    strictest = strictest_licence(recipe)
    card = render_card(
        Path(__file__).with_suffix(".md"),
        describe_for_hub(recipe, title, files["results"], base, shape["type"]),
        title=title,
        recipe=recipe,
        figures=sorted(path.stem for path in folder.glob("figures/*.png")),
        has_report=(folder / "report.html").exists(),
        validation=validation[-1] if validation else None,
        validation_score=validation_score,
        strictest=strictest,
        meaning=LICENCE_KINDS[strictest][0],
        actions=searched_kinds(recipe.data.personal_data, files["data_stats"]),
        overlap_groups=OVERLAP_GROUPS,
        against=compare_with_baseline,
        folded=(folded := fold_tasks(files["results"])),
        scored=first_scores(files["results"], folded),
        public_name=public_name,
        checked=sum_checked(files["decontamination"], folded),
        base=base,
        teachers=teachers,
        licensors=find_licensors(base, teachers),
        terms=terms_along(base, teachers),
        shape=shape,
        tokenizer=tokenizer,
        num_parameters=sum(prod(shape) for path in weights for shape in read_tensor_shapes(path).values()),
        recipe_path=f"{title}/recipe.yaml" if recipe.hub.repo_id else "recipe.yaml",
        citation_key=re.sub(r"[^\w.-]", "-", title),
        completion=json.dumps({"model": recipe.hub.repo_id or ".", "prompt": tokenizer["prompt"], "max_tokens": 40}),
        weights={path.name: file_sha256(path) for path in weights},
        there={path.relative_to(folder).as_posix() for path in folder.rglob("*")},
        has_dates=any(source.get("dated_documents") for source in files["data_stats"]["sources"].values()),
        happened=Counter(entry["event"] for entry in events),
        notes=list(dict.fromkeys(entry["text"] for entry in events if entry["event"] == "note")),
        packages={name: version_of(files["environment"], name) for name in SHOWN_PACKAGES}
        if files["environment"]
        else {},
        **files,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")


def fold_tasks(results: dict | None) -> dict[str, str]:
    """Return {task: group} for the tasks of large groups, which the card lists by their average only."""
    tasks = results["tasks"] if results else {}
    sizes = Counter(group for task in tasks.values() for group in task.get("groups", []))
    largest = {name: max(task.get("groups", []), key=sizes.get, default=None) for name, task in tasks.items()}
    return {name: group for name, group in largest.items() if sizes[group] > MOST_TASKS}


def first_scores(results: dict | None, folded: dict[str, str]) -> dict[str, float]:
    """Return the first score of each task and the mean of each group, without tasks that a group stands for."""
    if results is None:
        return {}
    tasks = {name: task for name, task in results["tasks"].items() if name not in folded}
    scores = {name: task["metrics"][task.get("score") or next(iter(task["metrics"]))] for name, task in tasks.items()}
    scores |= results.get("groups", {})
    return {name: score["value"] for name, score in scores.items()}


def compare_with_baseline(score: dict, chance: float | None = None) -> dict[str, str]:
    """Compare a score with the better of guessing and the best constant answer, by its 95 % interval.

    Args:
        score: of a task or a group, an entry of results.json.
        chance: of the task, for results of format 1, whose scores have neither chance nor constant answers.

    Returns: {"chance", "constant" (with the answer, if there is one), "baseline", "verdict"}, each for a table's cell.
    """
    chance, constant = score.get("chance", chance), score.get("constant")
    baseline = score.get("baseline", chance)
    answer = f' ("{shorten(score["constant_answer"], 40)}")' if score.get("constant_answer") is not None else ""
    verdict = "not comparable"
    if baseline is not None:
        error = 1.96 * score.get("stderr", 0)
        low, high = score.get("interval") or (score["value"] - error, score["value"] + error)
        verdict = "above" if score["value"] > baseline else "below" if score["value"] < baseline else "level"
        verdict += ", within noise" if low <= baseline <= high else ""
    return {
        "chance": "none" if chance is None else f"{chance:.3f}",
        "constant": "none" if constant is None else f"{constant:.3f}{answer}",
        "baseline": "none" if baseline is None else f"{baseline:.3f}",
        "verdict": verdict,
    }


def sum_checked(decontamination: dict | None, folded: dict[str, str]) -> dict[str, dict[str, int]]:
    """Return the counts of decontamination.json by benchmark, with the tasks of a folded group added up."""
    rows: dict[str, Counter] = {}
    for name, task in (decontamination["tasks"] if decontamination else {}).items():
        row = rows.setdefault(folded.get(name, name), Counter())
        row.update({"documents": sum(removed["documents"] for removed in task["removed"].values())})
        row.update({key: task[key] for key in ("items", "checkable", "overlapping_items")})
        row.update({"left": task["overlapping_items_after_removal"]})
    return rows


def version_of(environment: dict, package: str) -> str | None:
    """Return an installed package's version without a local part such as `+cpu`."""
    return (environment["packages"].get(package) or "").partition("+")[0] or None


def describe_shape(folder: Path) -> dict:
    """Return the shape of a release's model, whatever its family's config calls the parts."""
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    heads, architecture = config.num_attention_heads, (config.architectures or [config.model_type])[0]
    return {
        "type": config.model_type,
        "family": FAMILY_STYLES.get(config.model_type, architecture.removesuffix("ForCausalLM")),
        "layers": config.num_hidden_layers,
        "width": config.hidden_size,
        "feed_forward": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        "heads": heads,
        "head_width": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "key_value_heads": getattr(config, "num_key_value_heads", None) or heads,
        "tied": config.tie_word_embeddings,
        "context": config.max_position_embeddings,
    }


def describe_tokenizer(recipe: Recipe, folder: Path, config: dict, report: dict) -> dict:
    """Return facts about a release's tokenizer.

    Returns: {"algorithm": BPE or Unigram, "spelling": how it spells bytes, "taken": name of the model it is from or
        None, "new_tokens": how many were added to that one, "names": {name in tokenizer_report.json: name in the
        card}, "start": the token that every document starts with in training, "adds": None, "start" or "other": what
        encoding puts before a text, "prompt": a prompt as in training, "has_chat_template": bool}
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    start = tokenizer.convert_ids_to_tokens(config["bos_token_id"])
    first = next((number for number in tokenizer("a").input_ids if number in tokenizer.all_special_ids), None)
    adds = None if first is None else "start" if first == config["bos_token_id"] else "other"
    taken = recipe.tokenizer.from_pretrained or recipe.model.from_pretrained
    taken = taken and public_name(taken)
    names = {name: name for name in report["bytes_per_token"]}
    if taken:
        names |= {"domain tokenizer": f"tokenizer of {taken}"}
    if taken and recipe.tokenizer.extend_by:
        names |= {"domain tokenizer": "extended tokenizer", "general tokenizer": f"tokenizer of {taken}"}
    return {
        "algorithm": (model := json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"])["type"],
        "spelling": "SentencePiece-style, with a token for each single byte,"
        if model.get("byte_fallback")
        else "Byte-level",
        "taken": taken,
        "new_tokens": recipe.tokenizer.extend_by if taken else None,
        "names": names,
        "start": start,
        "adds": adds,
        "plain_prompt": PROMPT,
        "prompt": PROMPT if adds == "start" else f"{start}{PROMPT}",
        "has_chat_template": tokenizer.chat_template is not None,
    }


def describe_for_hub(recipe: Recipe, title: str, results: dict | None, base: Base | None, kind: str) -> dict:
    """Return the card's front matter, by which the Hub shows, filters and compares models."""
    data = {
        "license": recipe.hub.shown_license,
        "language": recipe.hub.language,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["pretraining", *dict.fromkeys(source.label for source in recipe.data.sources), kind],
    }
    if base and base.hub_id():
        data["base_model"] = base.hub_id()
    if hub_datasets := [source.path for source in recipe.data.sources if is_hub_dataset(source)]:
        data["datasets"] = hub_datasets
    measured = []
    if results is not None:
        split = results["settings"]["split"]
        measured += [
            (f"{name} ({split} split)", name, [{"type": "bits_per_byte", "value": entry["bits_per_byte"]}])
            for name, entry in results["bits_per_byte"]["sources"].items()
        ]
        measured += [
            (name, name, [{"type": metric, "value": score["value"]} for metric, score in task["metrics"].items()])
            for name, task in results["tasks"].items()
            if name not in fold_tasks(results)
        ]
        measured += [
            (f"{name} (mean of {group['num_tasks']} tasks)", name, [{"type": group["score"], "value": group["value"]}])
            for name, group in results.get("groups", {}).items()
        ]
    if measured:
        entries = [
            {"task": {"type": "text-generation"}, "dataset": {"name": name, "type": kind}, "metrics": metrics}
            for name, kind, metrics in measured
        ]
        data["model-index"] = [{"name": title, "results": entries}]
    return data
