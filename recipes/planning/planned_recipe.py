# SPDX-License-Identifier: Apache-2.0
"""A plan as a recipe: the values that it sets, where each is from, and the YAML that states both."""

import math
import re
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.scalarint import ScalarInt

from recipe_config import Model


def planned_values(plan: dict) -> dict:
    """Return what a plan sets of a recipe: vocabulary, model and training, as sections of the YAML."""
    chosen = plan["memory"]["chosen"]
    keys = ("max_tokens", "tokens_per_step", "learning_rate", "weight_decay", "warmup_steps")
    training = {key: plan["training"][key] for key in keys}
    if plan["training"]["dropout"] is not None:
        training["dropout"] = plan["training"]["dropout"]
    training["per_device_train_batch_size"] = chosen["per_device_train_batch_size"] if chosen else 1
    if chosen is None or chosen["activation_checkpointing"]:  # what the batch was planned with
        training["gradient_checkpointing"] = True
    # The planned step is a power of two of sequences, which 6 devices could not share.
    sequences = training["per_device_train_batch_size"] * plan["budget"]["num_devices"]
    unit = sequences * plan["training"]["sequence_length"]
    training["tokens_per_step"] = max(1, round(training["tokens_per_step"] / unit)) * unit
    return {"tokenizer": {"vocab_size": plan["vocab_size"]}, "model": plan["model"], "training": training}


def settings_of_plan(plan: dict) -> dict[str, Any]:
    """Return what the plan sets of base.yaml: key -> value."""
    sections = planned_values(plan)
    usual = {key: field.get_default() for key, field in Model.model_fields.items()}
    sections["model"] = {key: value for key, value in sections["model"].items() if value != usual[key]}
    sections["training"] = {"sequence_length": plan["training"]["sequence_length"]} | sections["training"]
    return {f"{section}.{key}": value for section, values in sections.items() for key, value in values.items()}


def comments_on(plan: dict) -> dict[str, str]:
    """Return comments for base.yaml: key -> where its value is from, or what to edit."""
    continued = "from_pretrained" in plan["model"]
    size = f"{plan['parameters']['total']:,} parameters with a vocabulary of {plan['vocab_size']:,}"
    fits = f"fits {plan['budget']['device']} with {launch_file(plan)}"
    return {
        "data.sources": "edit: add license and url, and a source of general text with a share",
        "tokenizer.vocab_size": "edit: choose_vocabulary.py compares sizes on your text",
        "model": "edit: tokenizer.extend_by adds words of yours to its tokenizer" if continued else size,
        "training.sequence_length": "edit: longer for long documents",
        "training.max_tokens": f"planner: the text {plan['text']['domain_epochs']:.2g} times",
        "training.tokens_per_step": "planner: by the rule for the model's size",
        "training.learning_rate": f"planner: {'a third of a new model' if continued else 'by the same rule'}",
        "training.warmup_steps": "planner: by the same rule",
        "training.per_device_train_batch_size": f"planner: {fits}",
        "evaluation.prompts": "edit: how texts of your domain begin",
        "plan.flops": "planner: as much of the budget as the text can use",
        "plan.domain_bytes": "planner: the files, less what is held out",
    }


def launch_file(plan: dict) -> str:
    """Return the file of accelerate_configs/ that the model fits with, or where it fits with none, the best."""
    return (plan["memory"]["chosen"] or plan["memory"]["strategies"][-1])["accelerate_config"]


def write_base(template: Path, settings: dict[str, Any], comments: dict[str, str], header: str, path: Path) -> None:
    """Write a recipe with other values and comments, keeping what it says besides."""
    yaml = YAML()
    yaml.preserve_quotes, yaml.width = True, 10_000
    yaml.indent(mapping=2, sequence=4, offset=2)
    recipe = yaml.load(template.read_text(encoding="utf-8"))
    recipe.yaml_set_start_comment(header)
    recipe["model"] = CommentedMap()
    if "tokenizer.vocab_size" not in settings:
        del recipe["tokenizer"]
    for key, value in settings.items():
        section, name = key.split(".")
        grouped = isinstance(value, int) and value >= 1_000
        recipe.setdefault(section, CommentedMap())[name] = (
            ScalarInt(value, underscore=[3, False, False]) if grouped else value
        )
    for key, comment in comments.items():
        section, _, name = key.partition(".")
        mapping, name = (recipe.get(section, {}), name) if name else (recipe, section)
        if name in mapping:
            mapping.yaml_add_eol_comment(comment, name, column=0)
    stream = StringIO()
    yaml.dump(recipe, stream)
    text = re.sub(r" +# (?=planner: |edit: |[\d,]+ parameters)", "  # ", stream.getvalue())
    path.write_text(text, encoding="utf-8")


def summarise(plan: dict) -> str:
    hours = plan["cost"]["expected"]["hours"]
    time = f"{hours:.3g} h" if hours > 1 else f"{math.ceil(60 * hours)} min"
    return (
        f"{plan['parameters']['total']:,} parameters, {plan['training']['max_tokens']:,} tokens (the text "
        f"{plan['text']['domain_epochs']:.2g} times), about {time} of training"
    )
