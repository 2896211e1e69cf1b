# SPDX-License-Identifier: Apache-2.0
"""Fill the two forms that European law asks of providers of general-purpose models, from a run's own records.

- The public summary of training content: the Commission's template of 24 July 2025, C(2025) 8311 of 5 December 2025,
  for Article 53(1)(d) of Regulation (EU) 2024/1689.
- The model documentation form of the Code of Practice, Transparency chapter, Measure 1.1, for Article 53(1)(a), (b).

A field that records hold is filled and names its file. A field that only a person can write is None until the answers
give it. Questions are shortened; the numbers are those of the templates.
"""

from dataclasses import dataclass
from pathlib import Path

from atomic_files import file_sha256, read_json
from corpus.data_card import origin, split_names, sum_kept
from publishing.base_model import Base, find_base, find_teachers
from publishing.local_paths import shorten_paths
from recipe_config import Recipe, RecipeError
from sources.units import is_hub_dataset


# Commission guidelines C(2025) 7719 of 19 November 2025: a model trained with more operations that writes text is
# presumed to be of general purpose; who modifies one is its provider from a third of its training's operations on.
GENERAL_PURPOSE_FLOPS, MODIFIER_FRACTION = 1e23, 1 / 3
TEXT_SIZES = ((1e9, "less than 1 billion tokens"), (1e13, "1 billion to 10 trillion tokens"))  # of the template
FORMS = {"training_summary": "Public summary of training content", "model_documentation": "Model documentation"}


@dataclass(frozen=True)
class Field:
    """One field of a form.

    Attributes:
        number: of the template, with a letter where a number asks for several things.
        question: what it asks for.
        answer: from the records or a person; None: a person has to write it.
        source: where the answer is from; None without one.
    """

    number: str
    question: str
    answer: str | None = None
    source: str | None = None


def from_recipe(number: str, question: str, answer: str | None) -> Field:
    """Return a field that the recipe answers, or a person where it does not."""
    return Field(number, question, answer, answer and "recipe.yaml")


class Records:
    """The records of a finished run.

    Raises: RecipeError: a stage has not run.
    """

    def __init__(self, recipe: Recipe):
        run = Path(recipe.run.output_dir)
        needed = ("documents/stats.json", "tokens/manifest.json", "training.json", "model/config.json")
        if missing := [name for name in needed if not (run / name).exists()]:
            raise RecipeError(f"{run}: {', '.join(missing)} missing; finish recipes/run_recipe.py first")
        self.run, self.recipe, self.shown = run, recipe, shorten_paths(recipe)
        self.stats, self.manifest, self.training, self.config = (read_json(run / name) for name in needed)
        self.base: Base | None = find_base(recipe)
        self.weights = {path.name: file_sha256(path) for path in sorted((run / "model").glob("*.safetensors"))}
        self.name = recipe.hub.repo_id or run.absolute().name
        self.unique_tokens = sum(source["train"]["tokens"] for source in self.manifest["sources"].values())
        self.kept = sum_kept(self.stats, ["train"])


def fill_training_summary(records: Records) -> dict[str, list[Field]]:
    """Return section -> its fields."""
    recipe, stats = records.recipe, records.stats["sources"]
    size = next((name for most, name in TEXT_SIZES if records.unique_tokens < most), "more than 10 trillion tokens")
    public = [source for source in records.shown.data.sources if is_hub_dataset(source) or source.url]
    private = [source for source in records.shown.data.sources if source not in public]
    dates = [entry["last_date"] for entry in stats.values() if entry.get("last_date")]
    return {
        "1 General information": [
            Field("version", "Version of the summary"),
            Field("updated", "Last update"),
            Field("1.1a", "Provider: name and contact"),
            Field("1.1b", "Authorised representative in the Union: name and contact, where there is one"),
            Field("1.2a", "Versioned model name", f"{records.name}, {describe_weights(records)}", "model/"),
            Field("1.2b", "Models it depends on", describe_models(records), "recipe.yaml"),
            Field("1.2c", "Date of placement on the Union market"),
            Field("1.3a", "Modality of the training data", "text", "documents/stats.json"),
            Field("1.3b", "Size", f"{size} ({records.unique_tokens:,} different ones)", "tokens/manifest.json"),
            Field("1.3c", "Types of content"),
            Field("1.3d", "Latest date of data acquisition"),
            Field("1.3e", "Linguistic characteristics", describe_languages(recipe), "recipe.yaml"),
            Field("1.3f", "Other characteristics", describe_text(records, dates), "documents/stats.json"),
        ],
        "2 List of data sources": [
            Field("2.1a", "Publicly available datasets", list_sources(public, records) or "none", "recipe.yaml"),
            Field("2.2.1", "Datasets licensed commercially from rightsholders"),
            Field("2.2.2", "Other private datasets from third parties"),
            Field("2.3a", "Data crawled or scraped by the provider or for it: crawlers, period, kinds of sites"),
            Field("2.3b", "Most relevant domain names that were crawled"),
            Field("2.4", "User data: from interactions with the model or with other services of the provider"),
            Field("2.5", "Synthetic data made by the provider or for it, and by which models"),
            from_recipe("2.6", "Other sources", None if private else "none: every source of the recipe is under 2.1"),
        ],
        "3 Data processing": [
            Field("3.1a", "Signatory of the Code of Practice; measures to respect reservations of rights (opt-outs)"),
            Field("3.2", "Measures to avoid or remove illegal content"),
            Field("3.3", "Other information", describe_processing(records), "documents/stats.json, recipe.yaml"),
        ],
    } | ({"Sources that a person has to assign to 2.2 to 2.6": [unassigned(private, records)]} if private else {})


def unassigned(sources: list, records: Records) -> Field:
    """Return the sources without a public address, of which no record says whose they are."""
    return Field("2", "Local sources", list_sources(sources, records), "recipe.yaml, documents/stats.json")


def fill_model_documentation(records: Records) -> dict[str, list[Field]]:
    """Return section -> its fields."""
    recipe, config, training = records.recipe, records.config, records.training
    context = config["max_position_embeddings"]
    seconds, compute = training["seconds"], total_flops(records)
    where = f"{training['num_processes']} process(es) on {training['device']}"
    if members := training.get("members"):
        where += f"; before it {sum(one['seconds'] for one in members):,.0f} s for the models that it learned from"
    return {
        "1 General information": [
            Field("1.1", "Legal name of the provider"),
            Field("1.2", "Model name", records.name, "recipe.yaml"),
            Field("1.3", "Authenticity", describe_weights(records), "model/"),
            Field("1.4", "Release date"),
            Field("1.5", "Union market release date"),
            Field("1.6", "Models it depends on", describe_models(records), "recipe.yaml"),
        ],
        "2 Model properties": [
            Field("2.1", "Architecture", describe_architecture(config), "model/config.json"),
            Field("2.2", "Design: choices and reasons"),
            Field("2.3", "Input modalities and their largest size", f"text, {context:,} tokens", "model/config.json"),
            Field("2.4", "Output modalities and their largest size", f"text, {context:,} tokens", "model/config.json"),
            Field("2.5", "Parameters", f"{training['parameters']['total']:,}", "training.json"),
        ],
        "3 Distribution and licences": [
            from_recipe("3.1", "Channels", recipe.hub.repo_id and f"Hugging Face Hub, {recipe.hub.repo_id}"),
            from_recipe("3.2", "Licence", recipe.hub.license if recipe.hub.license != "other" else None),
            Field("3.3", "Other assets: data, code, documentation, and their licences"),
        ],
        "4 Use": [
            Field("4.1", "Acceptable use policy"),
            Field("4.2", "Intended and restricted uses"),
            Field("4.3", "Systems that it can be integrated into"),
            Field("4.4", "Technical means of integration", "transformers; the card has commands", "release/README.md"),
            Field("4.5", "Required hardware"),
            Field("4.6", "Required software", "the packages of environment.json", "environment.json"),
        ],
        "5 Training process": [
            Field("5.1", "Design of the training", describe_training(records), "training.json, recipe.yaml"),
            Field("5.2", "Decisions and their reasons"),
        ],
        "6 Data for training, testing and validation": [
            Field("6.1", "Type", "text", "documents/stats.json"),
            Field("6.2", "Provenance", list_sources(records.shown.data.sources, records), "documents/stats.json"),
            Field("6.3", "How it was obtained and selected, and by which rights"),
            Field("6.4", "Number of data points", describe_splits(records), "documents/stats.json"),
            Field("6.5", "Scope and characteristics", describe_languages(recipe), "recipe.yaml"),
            Field("6.6", "Curation", describe_processing(records), "documents/stats.json, recipe.yaml"),
            Field("6.7", "Measures against unsuitable sources"),
            Field("6.8", "Measures against biases that can be identified"),
        ],
        "7 Computational resources": [
            Field("7.1", "Training time", f"{seconds:,.0f} s of wall time, {where}", "training.json"),
            Field("7.2", "Operations", f"{compute:.3g} floating-point operations", "training.json"),
            Field("7.3", "How they were counted", training["flops_convention"], "training.json"),
        ],
        "8 Energy": [
            Field("8.1", "Energy of training (MWh), and how it was measured"),
            Field("8.2", "Operations of inference, and how they were measured"),
        ],
    }


def with_answers(form: dict[str, list[Field]], answers: dict[str, str]) -> dict[str, list[Field]]:
    """Return a form with the answers that a person gave, which come before those of the records.

    Raises: RecipeError: an answer's number is not of the form, or it is empty.
    """
    numbers = {field.number for fields in form.values() for field in fields}
    problems = [f"answers: {number}: the form has no such field" for number in answers if number not in numbers]
    wrong = {number: text for number, text in answers.items() if not (isinstance(text, str) and text.strip())}
    problems += [f"answers: {number}: write a text, got {text!r}" for number, text in wrong.items()]
    if problems:
        raise RecipeError(*problems)
    return {
        section: [
            Field(field.number, field.question, answers[field.number], "answers") if field.number in answers else field
            for field in fields
        ]
        for section, fields in form.items()
    }


def describe_duty(records: Records) -> str:
    """Return whether the duty applies at this compute, with the threshold and its source."""
    compute, base = total_flops(records), records.base
    threshold = GENERAL_PURPOSE_FLOPS * (MODIFIER_FRACTION if base else 1)
    basis = (
        "the operations of a modification from which on its maker is a provider: a third of the base's, of which 1e23 "
        "stands for an unknown number"
        if base
        else "the operations from which on a model that writes text is presumed to be of general purpose"
    )
    verdict = "is below" if compute < threshold else "is at or above"
    return (
        f"{compute:.3g} floating-point operations of training: this {verdict} {threshold:.2g}, {basis} "
        "(Commission guidelines C(2025) 7719). Other criteria can apply, such as whether the model is placed on the "
        "Union market. This is no legal advice."
    )


def describe_weights(records: Records) -> str:
    return "; ".join(f"{name} sha256 {sha256}" for name, sha256 in records.weights.items())


def total_flops(records: Records) -> float:
    """Return the operations of training, with those of the models that were trained for it to learn from."""
    return records.training["flops"] + records.training.get("members_flops", 0)


def describe_models(records: Records) -> str:
    """Return the base, and the models whose predictions it learned."""
    learned = records.shown.training.distillation
    if learned is None:
        return describe_base(records.base)
    members = [f"{learned.members} trained on the same text for it"] if learned.members else []
    taught = ", ".join([*members, *map(describe_base, find_teachers(records.recipe))])
    return f"{describe_base(records.base)}; it learned the predictions of {taught}"


def describe_base(base: Base | None) -> str:
    if base is None:
        return "none: trained from scratch"
    return f"{base.lineage()}, revision {base.revision or 'not pinned'}, licence {base.licence or 'not stated'}"


def describe_languages(recipe: Recipe) -> str:
    kept = f"; documents in {', '.join(recipe.data.languages.keep)} were kept" if recipe.data.languages else ""
    return f"{', '.join(recipe.hub.language)} (hub.language){kept}"


def describe_text(records: Records, dates: list[str]) -> str:
    shares = ", ".join(
        f"{name} {100 * entry['delivered_fraction']:.1f} % of the training bytes, {entry['repetitions']:.2f} passes"
        for name, entry in records.training["mixture"].items()
    )
    newest = f"; the newest dated text is of {max(dates)}" if dates else ""
    return f"{records.kept['documents']:,} documents, {records.kept['bytes']:,} bytes: {shares}{newest}"


def describe_splits(records: Records) -> str:
    counts = {split: sum_kept(records.stats, [split]) for split in split_names(records.stats)}
    return "; ".join(f"{split}: {n['documents']:,} documents, {n['bytes']:,} bytes" for split, n in counts.items())


def list_sources(sources: list, records: Records) -> str:
    """Return a sentence for each source: its origin, address, commit, licence and training text."""
    described = []
    for source in sources:
        entry = records.stats["sources"][source.name]
        train = entry["kept"].get("train", {"documents": 0, "bytes": 0})
        commit = f", commit {entry['revision']}" if entry.get("revision") else ""
        described.append(
            f"{source.name}: {origin(source)}{f', {source.url}' if source.url else ''}{commit}, licence "
            f"{source.license or 'not stated'}, {train['documents']:,} documents, {train['bytes']:,} bytes"
        )
    return "; ".join(described)


def describe_processing(records: Records) -> str:
    """Return what the recipe did to the text, and what was dropped for which reason."""
    dropped: dict[str, int] = {}
    for source in records.stats["sources"].values():
        for reason, count in source["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + count["documents"]
    data = records.recipe.data
    found = sum(sum(source["personal_data"].values()) for source in records.stats["sources"].values())
    steps = ["exact duplicates dropped"]
    steps += ["near-duplicates dropped"] if data.near_duplicates else []
    steps += [f"quality rules of the profile {data.quality.profile}"] if data.quality else []
    steps += (
        [f"personal data of the profile {data.personal_data.profile}: {found:,} found"] if data.personal_data else []
    )
    steps += ["benchmark items removed"] if records.stats.get("unchecked") is None else []
    counts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(dropped.items()))
    return f"{'; '.join(steps)}. Documents dropped: {counts or 'none'}"


def describe_architecture(config: dict) -> str:
    return (
        f"{config['architectures'][0]}, a decoder: {config['num_hidden_layers']} layers, hidden size "
        f"{config['hidden_size']}, {config['num_attention_heads']} attention heads, {config['vocab_size']:,} tokens"
    )


def describe_training(records: Records) -> str:
    training, settings = records.training, records.recipe.training
    learned = "and the mean prediction of other models " if settings.distillation else ""
    return (
        f"next-token prediction {learned}on {training['tokens_seen']:,} tokens in {training['max_steps']:,} steps of "
        f"{training['tokens_per_step']:,}, optimizer {settings.optimizer}, peak learning rate "
        f"{settings.learning_rate:g}, mixed precision {training['mixed_precision']}"
    )
