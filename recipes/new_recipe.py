# SPDX-License-Identifier: Apache-2.0
"""Make a recipe for your own text from six questions: domain, text, machine, budget, starting point, language.

In:   the answers, as flags or at a prompt; recipes/custom, which the new recipe is a copy of.
Out:  recipes/<name>/ (or --folder) with base.yaml, data.py and README.md, all meant to be edited. Size, length and
      batch are those of the planner for this text and budget, and comments say so.

    python recipes/new_recipe.py                                           # asks the questions
    python recipes/new_recipe.py --name telecom --text my_texts            # an hour of this machine's processor
    python recipes/new_recipe.py --name telecom --text my_texts --gpus 8xh100 --hours 24
    python recipes/new_recipe.py --name telecom --text my_texts --gpus 8xh100 --money 500 --price 2.5 \\
        --model HuggingFaceTB/SmolLM2-135M --language de
"""

import argparse
import importlib.util
import json
import os
import re
import shlex
import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML

from amounts import whole_number
from corpus.language import LanguageFilter
from planning.available_text import read_text
from planning.budget import plan_cost, read_budget
from planning.devices import DEVICES, Device, find_device
from planning.model_shape import count_parameters, training_flops_per_token
from planning.plan import make_plan, plan_memory, plan_training
from planning.planned_recipe import comments_on, launch_file, settings_of_plan, summarise, write_base
from recipe_config import Name, Recipe, RecipeError, Source, refuse_missing_folder
from recipe_loading import load_recipe, run_command
from sources.readers import read_unit
from sources.row_checks import Unreadable
from sources.row_text import describe_fields
from sources.units import list_source
from stages import ROOT


CUSTOM = ROOT / "recipes" / "custom"
QUESTIONS = {
    "name": "Domain, in one word such as telecom",
    "text": "Folder or file of the text, or Hub dataset (org/name@main, or @ its commit)",
    "gpus": "GPUs, such as 8xh100, or none",
    "hours": "Hours on them, or money such as $500",
    "model": "scratch, or the model to continue (Hub id or folder)",
    "language": "Language of the text (ISO 639-1), such as en or de,fr",
}
USUAL = {"gpus": "none", "model": "scratch", "language": "en"}
# Below the compute that the planner's laws were fitted on, a small vocabulary and short sequences, as in
# legal/quickstart.yaml; above it those of legal/base.yaml.
SMALL_FLOPS = 1e17
SMALL, LARGE = {"sequence_length": 256, "vocab_size": 8_192}, {"sequence_length": 2048, "vocab_size": 32_768}
MIN_PLANNED_FLOPS = 1e14  # a quarter of an hour on two cores: for less text, a smaller model would save nothing
CONTINUED_LEARNING_RATE = 1 / 3  # of a new model's, as in experiments/scratch_or_adapt.yaml
PROBED_EXAMPLES = 1_000
HEADER = """\
yaml-language-server: $schema={schema}
{what}.
Written by new_recipe.py. What `planner` says is advice; edit it, and check with
  {check}
--help training explains the keys of a section, with unit and default."""
README = """\
# {name}

{what}

```bash
{commands}
```

The first command checks the recipe. The second runs every stage, and resumes where it was stopped. The output is in
`runs/{name}`: read `report.html` first; `model/` is the model, `release/` what can be published.

To edit:

- `base.yaml`: sources and their shares, licences, prompts, length of training.
- `data.py`: `extract_text`, which decides what of a row or file is a document.
- This page: where the text is from, who may use it, and what the model is for.
"""


def ask(options: argparse.Namespace) -> None:
    """Ask at the prompt what no flag says. Without a terminal, take the usual answers."""
    for flag, question in QUESTIONS.items():
        if getattr(options, flag) is not None or (flag == "hours" and options.money is not None):
            continue
        usual = "1" if flag == "hours" and options.gpus == "none" else USUAL.get(flag, "")
        prompt = f"{question}{f' [{usual}]' if usual else ''}: "
        answer = (input(prompt).strip() if sys.stdin.isatty() else "") or usual
        if flag == "hours" and answer.startswith("$"):
            options.money = answer
        else:
            setattr(options, flag, answer)


@contextmanager
def collected(problems: list[str]) -> Iterator[None]:
    """Add what is wrong to the list in place of ending at it."""
    try:
        yield
    except RecipeError as error:
        problems += error.problems


def check_name(name: str) -> None:
    try:
        TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        raise RecipeError(f"--name: {name!r} is no folder's name; use lower-case letters, digits, - and _") from error
    spec = importlib.util.find_spec(name)
    if spec is not None and spec.origin is not None:  # a plain folder, such as recipes/legal, has no origin
        raise RecipeError(f"--name: {name!r} is the name of a Python module; choose another, such as {name}-texts")


def read_devices(gpus: str) -> tuple[str, int]:
    """Return the device in planning/devices.py and the number of them that `8xh100` names.

    Raises: RecipeError: no such device.
    """
    if gpus in ("none", "cpu"):
        return "cpu", 1
    number, name = re.fullmatch(r"(?:([1-9]\d*) ?x ?)?(.*)", gpus.lower()).groups()
    found = [device for device in DEVICES if name in (device, device.split("-")[0], device.removeprefix("rtx-"))]
    if not found:
        raise RecipeError(f"--gpus: {gpus!r} is neither none nor a number of {', '.join(DEVICES)}, such as 8xh100")
    return found[0], int(number or 1)


def read_config(model: str) -> Any:
    """Return the configuration of the model to continue.

    Raises: RecipeError: there is no such model, or it is of no family that can be continued.
    """
    from transformers import AutoConfig  # only here: importing it takes seconds

    from model.families import refuse_other_families

    refuse_missing_folder("--model", model)
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise RecipeError(f"--model: {model!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    refuse_other_families(config, f"--model: {model!r}")
    return config


def read_place(answer: str) -> dict[str, str]:
    """Return the keys of the source that an answer to --text names; `@` and a revision make it a Hub dataset."""
    path, separator, revision = answer.rpartition("@")
    if not separator or "://" in answer or Path(answer).exists():
        return {"path": answer}
    return {"path": path, "revision": revision}


def look_at_text(answer: str) -> tuple[int, str | None]:
    """Measure the files of the text, and look for text in their first rows.

    Returns: bytes on disk, and what data.py needs before anything can be read, or None.
    Raises: RecipeError: nothing there, or nothing in it.
    """
    if not answer:
        raise RecipeError("--text: missing; give a folder, a file or a Hub dataset (org/name@main)")
    source = Source(name="text", **read_place(answer))
    try:
        listing = list_source(source)
        if not (units := listing.units):
            listing.inventory.check()
        examples = (example for unit in units for example in read_unit(source, unit))
        rows = list(islice((row for row in examples if not isinstance(row, Unreadable)), PROBED_EXAMPLES))
    except (RecipeError, OSError) as error:
        raise RecipeError(f"--text: {str(error).removeprefix('data.sources: text: ')}") from error
    if listing.inventory.left_out():
        print(listing.inventory.describe())
    num_bytes = sum(unit.size_bytes for unit in units)
    if any(str(row.get("text") or "").strip() for row in rows):
        return num_bytes, None
    row = next((row for row in rows if set(row) - {"text", "path"}), None)
    if row is None:
        raise RecipeError(f"--text: {answer}: no text in {len(units)} files; they are empty or cannot be read")
    return num_bytes, f"rows have no text in a field `text`; {describe_fields(row)} in data.sources, or edit data.py"


def plan_new(recipe: Recipe, device: Device, flops: float) -> dict:
    """Plan a new model for the budget or, where the text ends long before it, for what the text can use of it.

    Returns: plan.json's content; its budget is the part that was planned for.
    """
    while True:
        scale = SMALL if flops < SMALL_FLOPS else LARGE
        recipe.training.sequence_length, recipe.tokenizer.vocab_size = scale["sequence_length"], scale["vocab_size"]
        smaller = {"flops": flops, "hours": None, "money": None}
        if flops < SMALL_FLOPS:
            smaller["num_devices"] = 1  # minutes of one
        recipe.plan = recipe.plan.model_copy(update=smaller)
        plan = make_plan(recipe, device)
        used = plan["flops"]["training"]
        if flops <= max(MIN_PLANNED_FLOPS, 2 * used):
            return plan
        flops = float(f"{max(MIN_PLANNED_FLOPS, used):.3g}")  # as base.yaml states it


def plan_continued(recipe: Recipe, config: Any, device: Device, flops: float) -> dict:
    """Plan length and batch for a model that exists, by its config, by the planner's functions.

    Returns: the parts of plan.json that its shape does not decide.
    """
    from model.continued import with_shape_of  # only here: importing it takes seconds

    longest = (SMALL if flops < SMALL_FLOPS else LARGE)["sequence_length"]
    length = recipe.training.sequence_length = min(longest, config.max_position_embeddings)
    model, vocab_size = with_shape_of(recipe.model, config), config.vocab_size
    counts, flops_per_token = count_parameters(model, vocab_size), training_flops_per_token(model, vocab_size, length)
    budget, (text, _, _) = read_budget(recipe, device, []), read_text(recipe, recipe.plan, [])
    tokens = min(flops / flops_per_token, text.most_tokens())
    if flops_per_token * tokens < SMALL_FLOPS:
        recipe.plan.num_devices = 1
    training = plan_training(recipe, counts, tokens, flops)
    training["learning_rate"] = float(f"{training['learning_rate'] * CONTINUED_LEARNING_RATE:.2g}")
    tokens = training["max_tokens"]
    return {
        "budget": budget | {"device": recipe.plan.device, "num_devices": recipe.plan.devices},
        "text": {"domain_epochs": tokens / text.domain_tokens},
        "model": {"from_pretrained": recipe.model.from_pretrained},
        "vocab_size": vocab_size,
        "parameters": counts,
        "training": training,
        "memory": plan_memory(recipe, model, vocab_size, device, training["tokens_per_step"] // length),
        "flops": {"training": flops_per_token * tokens},
        "cost": plan_cost(recipe.plan, device, budget, flops_per_token * tokens),
    }


def settings_of_answers(
    options: argparse.Namespace, name: str, num_bytes: int, device: str, num_devices: int
) -> dict[str, Any]:
    """Return what the answers set of recipes/custom/base.yaml: key -> value."""
    settings = {
        "run.output_dir": f"runs/{name}",
        "data.sources": [{"name": name, **read_place(options.text)}],
        "plan.device": device,
        "plan.num_devices": num_devices,
        "plan.domain_bytes": num_bytes,
        "plan.general_bytes": 0,
    }
    if options.model != "scratch":
        settings |= {"model.from_pretrained": options.model, "training.optimizer": "adamw"}
    languages = options.language.split(",")
    if languages != ["en"]:  # as custom/korean.yaml
        settings |= {"data.languages": {"keep": languages}, "hub.language": list(languages)}
        settings |= {"tokenizer.pretokenization": "qwen35", "evaluation.prompts": []}
    return settings


def near(path: Path) -> str:
    """Return a path as one types it here: relative where it is below the current folder, quoted for the shell."""
    path, here = path.absolute(), Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def next_commands(python: str, folder: Path, plan: dict) -> list[str]:
    """Return the commands that check the recipe and run it."""
    run = f"{python} {near(ROOT / 'recipes' / 'run_recipe.py')} --config {near(folder / 'base.yaml')}"
    devices = plan["budget"]["num_devices"]
    launch = f" --accelerate_config {near(ROOT / 'accelerate_configs' / launch_file(plan))} --num_processes {devices}"
    return [f"{run} --dry_run", f"{run}{launch if devices > 1 else ''}"]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for flag, question in QUESTIONS.items():
        parser.add_argument(f"--{flag}", help=question)
    parser.add_argument("--money", help="budget in place of hours, such as $500")
    parser.add_argument("--price", help="price of an hour of one GPU in dollars; default: planning/devices.py")
    parser.add_argument("--folder", type=Path, help="folder to write; default: recipes/<name>")
    options = parser.parse_args(argv)
    ask(options)

    problems, num_bytes, note, device, num_devices = [], 1, None, "cpu", 1
    folder = options.folder or CUSTOM.parent / options.name
    with collected(problems):
        check_name(options.name)
    name = "unnamed" if problems else options.name
    if name == options.name and folder.exists():
        problems.append(f"--folder: {folder} exists; choose another name or --folder, or move it away")
    with collected(problems):
        num_bytes, note = look_at_text(options.text)
    with collected(problems):
        device, num_devices = read_devices(options.gpus)
    if not (options.hours or options.money):
        problems.append("--hours: missing, and no --money either")
    continued = options.model != "scratch"
    with collected(problems):
        config = read_config(options.model) if continued else None
    with collected(problems):
        LanguageFilter(options.language.split(","))
    with collected(problems):
        settings = settings_of_answers(options, name, num_bytes, device, num_devices)
        overrides = [f"--{key}={json.dumps(value)}" for key, value in settings.items()]
        budget = {"hours": options.hours, "money": options.money, "price_per_device_hour": options.price}
        overrides += [f"--plan.{key}={answer}" for key, answer in budget.items() if answer]
        recipe = load_recipe([CUSTOM / "base.yaml"], overrides)
    if problems:
        raise RecipeError(*problems)

    splits = recipe.data.splits
    held_out = [min(part * num_bytes, splits.max_bytes) for part in (splits.validation_fraction, splits.test_fraction)]
    settings["plan.domain_bytes"] = recipe.plan.domain_bytes = max(1, round(num_bytes - sum(held_out)))
    measured, notes = find_device(device), [note] if note else []
    settings |= {f"plan.{key}": whole_number(getattr(recipe.plan, key)) for key, answer in budget.items() if answer}
    asked = read_budget(recipe, measured, [])
    asked_for = f"a budget of {asked['amount']:g} USD" if options.money else f"{asked['amount']:g} h"
    asked_for += f" on {num_devices} x {device}"
    if continued:
        plan = plan_continued(recipe, config, measured, asked["model_flops"])
    else:
        plan = plan_new(recipe, measured, asked["model_flops"])
    used_fraction = plan["flops"]["training"] / asked["model_flops"]
    if used_fraction < 0.9:
        used = f"{used_fraction:.0%}" if used_fraction >= 0.01 else "less than 1%"
        advice = "" if continued else ", or continue a model that exists (--model)"
        notes.append(f"the text is too small for {asked_for}, and takes {used} of it; bring more text{advice}")
    if (plan["budget"]["model_flops"], plan["budget"]["num_devices"]) != (asked["model_flops"], num_devices):
        settings = {key: value for key, value in settings.items() if key not in ("plan.hours", "plan.money")}
        settings["plan.flops"] = YAML().load(f"{plan['budget']['model_flops']:.10g}")
        settings["plan.num_devices"] = plan["budget"]["num_devices"]
    if plan["memory"]["chosen"] is None:
        notes.append(f"the model does not fit {device}; take more or larger ones, or a smaller model of sizes/")
    settings |= settings_of_plan(plan)
    if continued:  # it has a tokenizer, and the planner plans new models only
        settings = {key: value for key, value in settings.items() if not key.startswith(("plan.", "tokenizer."))}
    elif plan["verdict"]["choice"] != "from scratch":
        notes.append(f"the planner advises {plan['verdict']['choice']}: {plan['verdict']['reason']}")

    folder.mkdir(parents=True)
    shutil.copy(CUSTOM / "data.py", folder)
    start = f"continued from {options.model}" if continued else "from scratch"
    what = f"A language model of {name} text, {start}, planned for {asked_for}"
    commands = next_commands("python", folder, plan)
    schema = os.path.relpath(CUSTOM.parent / "recipe.schema.json", folder)
    header = HEADER.format(schema=schema, what=what, check=commands[0])
    write_base(CUSTOM / "base.yaml", settings, comments_on(plan), header, folder / "base.yaml")
    page = README.format(
        name=name, what=textwrap.fill(f"{what}: {summarise(plan)}.", 119), commands="\n".join(commands)
    )
    (folder / "README.md").write_text(page, encoding="utf-8")
    load_recipe([folder / "base.yaml"])
    print(f"new_recipe: {near(folder)}: {summarise(plan)}")
    for note in notes:
        print(f"new_recipe: note: {note}")
    print("new_recipe: base.yaml and data.py there are meant to be edited; next:")
    print(*next_commands(near(Path(sys.executable)), folder, plan), sep="\n")


if __name__ == "__main__":
    run_command(main)
