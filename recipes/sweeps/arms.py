# SPDX-License-Identifier: Apache-2.0
"""The file of compare_arms.py, and the recipe of each of its runs: size x budget x domain bytes x arm x seed."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from planning.model_shape import count_parameters
from recipe_config import Name, Positive, PositiveFloat, Recipe, RecipeError, Section
from recipe_loading import merge, validate
from sweeps.runs import Run, hash_settings, read_experiment, state_pretokenization


BASE_PREFIX = "base:"  # `from_pretrained: base:general` is the model of the base `general`
ARM_PREFIX = "arm:"  # `teachers: ["arm:usual"]` are the models of the arm `usual` on as many domain bytes
FORWARD_AND_BACKWARD, FORWARD_ONLY_WEIGHTS = 6, 4  # FLOPs a token, for a trained and for a frozen parameter


class Experiment(Section):
    """The file that --config names."""

    results: str
    """Folder for runs.csv and the figure, beside the file."""
    flops: list[PositiveFloat] = []
    """Budgets: compute of each run, without that of its base model, its teachers and their forward passes."""
    sizes: dict[Name, dict] = {}
    """In place of flops: name -> {flops, and what is laid over the recipe, such as model}."""
    domain_bytes: list[Positive] = []
    """Training bytes of each source whose domain is not general. Empty: all."""
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    """Seeds of the weights and the order. An arm may have `seeds` of its own."""
    x: str
    """Column on the figure's horizontal axis, or `arm` for a row of points an arm."""
    usual_arm: Name | None = None
    """The arm whose curve over domain_bytes tells what text the others are worth: factors.csv. None: no such file."""
    bases: dict[Name, dict] = {}
    """Models that arms continue: name -> {flops, and what is laid over the recipe}."""
    arms: Annotated[dict[Name, dict], Field(min_length=2)]
    """Name -> what is laid over the recipe; and `at`, a list of {domain_bytes, flops, seeds}: where in the grid it is
    trained. Without it, everywhere."""
    recipe: dict
    """The recipe that all share, without training.max_tokens."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if bool(self.flops) == bool(self.sizes):
            yield "flops", "give either flops or sizes, which have their own"
        for name, over in self.sizes.items():
            if not isinstance(over.get("flops"), (int, float)):
                yield f"sizes.{name}.flops", "missing; the compute of each run of this size"
        if self.x == "domain_bytes" and not self.domain_bytes:
            yield "x", "domain_bytes is the axis, but there are none; list some, or choose another column"
        if self.usual_arm is not None and self.usual_arm not in self.arms:
            yield "usual_arm", f"no arm {self.usual_arm!r}; there are {', '.join(self.arms)}"
        if self.usual_arm is not None and len(self.domain_bytes) < 2:
            yield "usual_arm", "a curve needs two or more domain_bytes; list some, or leave this out"


@dataclass(frozen=True)
class ArmRun(Run):
    """One run of an arm, or of a base.

    Attributes:
        arm, size, domain_bytes: its place in the grid; size is None for the recipe's own, domain_bytes for all text.
        base: the base that it continues or takes the tokenizer of.
        documents: folder of its documents, which all arms share whose own `data` states no more than shares.
        teachers: runs whose models it learns from.
    """

    arm: str
    size: str | None = None
    domain_bytes: int | None = None
    base: str | None = None
    documents: str = "documents-all"
    teachers: tuple["ArmRun", ...] = ()

    @property
    def name(self) -> str:
        limit = "" if self.domain_bytes is None else f", {self.domain_bytes / 1e6:g} MB of domain text"
        size = "" if self.size is None else f"{self.size}, "
        return f"{self.arm}, {size}{self.flops:.3g} FLOPs{limit}, seed {self.recipe.run.seed}"

    @property
    def key(self) -> str:
        """The key of its row: the hash of what is stated of the recipe, which names its base by folder and key."""
        not_deciding = {"run": {"output_dir"}, "hub": True, "plan": True}
        stated = self.recipe.model_dump(exclude_unset=True, exclude=not_deciding)
        return hash_settings(state_pretokenization(stated, self.recipe))


def load_experiment(path: Path) -> tuple[Experiment, dict[str, ArmRun], list[ArmRun]]:
    """Read the file and make the recipe of every base and every run.

    Raises: RecipeError: every problem of the experiment, or of a recipe in it.
    """
    experiment, _ = read_experiment(path, Experiment)
    bases: dict[str, ArmRun] = {}
    runs: list[ArmRun] = []
    for name, over in experiment.bases.items():
        values = lay_over(experiment.recipe, without(over, "flops"), {"run": {"seed": experiment.seeds[0]}})
        bases[name] = ArmRun(make_recipe(values, over["flops"], f"{path}: bases.{name}"), over["flops"], name)
    sizes = experiment.sizes or {None: {}}  # None: the recipe's own
    places = [
        (size, flops, limit)
        for size, of_size in sizes.items()
        for flops in experiment.flops or [of_size["flops"]]
        for limit in experiment.domain_bytes or [None]
    ]
    for arm, over in experiment.arms.items():
        for size, flops, limit in places:
            for seed in seeds_at(experiment, over, flops, limit):
                layers = without(sizes[size], "flops"), without(over, "seeds", "at"), {"run": {"seed": seed}}
                values = lay_over(experiment.recipe, *layers)
                limit_domain(values, limit)
                base = name_base(values, bases, f"{path}: arms.{arm}")
                teachers = name_teachers(values, runs, (size, limit), f"{path}: arms.{arm}")
                recipe = make_recipe(values, flops, f"{path}: arms.{arm}")
                own = f"-{arm}" if without(over.get("data", {}), "shares", "repack") else ""
                documents = f"documents-{limit or 'all'}{own}"
                runs.append(ArmRun(recipe, flops, arm, size, limit, base, documents, teachers))
    return experiment, bases, runs


def seeds_at(experiment: Experiment, arm: dict, flops: float, domain_bytes: int | None) -> list[int]:
    """Return the seeds of an arm at a place of the grid; none where its `at` leaves the place out."""
    seeds = arm.get("seeds", experiment.seeds)
    if "at" not in arm:
        return seeds
    place = {"flops": flops, "domain_bytes": domain_bytes}
    chosen = [one for one in arm["at"] if all(one.get(key, value) == value for key, value in place.items())]
    return list(dict.fromkeys(seed for one in chosen for seed in one.get("seeds", seeds)))


def without(values: dict, *keys: str) -> dict:
    return {name: value for name, value in values.items() if name not in keys}


def lay_over(recipe: dict, *layers: dict) -> dict:
    """Return a recipe's values with layers over them; data.shares {source: share} sets the shares of its sources."""
    values = recipe
    for layer in layers:
        values = merge(values, layer)
    shares = values["data"].get("shares", {})
    sources = [
        {**source, "share": shares[source["name"]]} if source["name"] in shares else dict(source)
        for source in values["data"]["sources"]
    ]
    return values | {"data": {**without(values["data"], "shares"), "sources": sources}}


def limit_domain(values: dict, max_bytes: int | None) -> None:
    """Limit the training bytes of each source whose domain is not general."""
    for source in values["data"]["sources"]:
        if max_bytes is not None and source.get("domain") != "general":
            source["max_training_bytes"] = max_bytes


def name_base(values: dict, bases: dict[str, ArmRun], where: str) -> str | None:
    """Replace `base:<name>` by the folder of that base's model or tokenizer, and return the name.

    Raises: RecipeError: no such base.
    """
    used = None
    for section, folder in (("model", "model"), ("tokenizer", "tokenizer")):
        named = values.get(section, {}).get("from_pretrained") or ""
        if named.startswith(BASE_PREFIX):
            used = named.removeprefix(BASE_PREFIX)
            if used not in bases:
                raise RecipeError(f"{where}: no base {used!r}; there are {', '.join(bases) or 'none'}")
            path = f"{values['run']['output_dir']}/runs/{bases[used].key}/{folder}"
            values[section] = {**values[section], "from_pretrained": path}
    return used


def name_teachers(values: dict, runs: list[ArmRun], place: tuple, where: str) -> tuple[ArmRun, ...]:
    """Replace `arm:<name>` by the models of that arm's runs of this size and as many domain bytes; return these runs.

    Raises: RecipeError: the arm has no such run, or does not come before this one.
    """
    distillation = values["training"].get("distillation") or {}
    named = [one for one in distillation.get("teachers", []) if one.startswith(ARM_PREFIX)]
    found: list[ArmRun] = []
    for arm in (one.removeprefix(ARM_PREFIX) for one in named):
        of_arm = [run for run in runs if run.arm == arm and (run.size, run.domain_bytes) == place]
        if not of_arm:
            raise RecipeError(f"{where}: no arm {arm!r} on as many domain bytes before this one; name another")
        found += of_arm
    if found:
        others = [one for one in distillation["teachers"] if one not in named]
        folders = [str(run.folder(run.key) / "model") for run in found]
        distillation = {**distillation, "teachers": folders + others}
        values["training"] = {**values["training"], "distillation": distillation}
    return tuple(found)


def make_recipe(values: dict, flops: float, where: str) -> Recipe:
    """Make a run's recipe, with as many tokens as its budget pays for.

    Raises: RecipeError: every problem of the recipe.
    """

    def with_steps(steps: int) -> tuple[Recipe | None, list[str]]:
        max_tokens = steps * values["training"]["tokens_per_step"]
        return validate({**values, "training": {**values["training"], "max_tokens": max_tokens}}, {})

    recipe, problems = with_steps(1)
    if recipe is not None and recipe.training.distillation is not None and recipe.training.distillation.members:
        problems = ["training.distillation.members: only run_recipe.py trains them; name an arm that comes before: "]
        problems[0] += f"`teachers: ['{ARM_PREFIX}NAME']` are its models on as many domain bytes"
    elif recipe is not None:
        tokens = flops / flops_per_token(recipe)
        recipe, problems = with_steps(max(1, round(tokens / values["training"]["tokens_per_step"])))
    if problems:
        raise RecipeError(*(f"{where}: {problem}" for problem in problems))
    return recipe


def flops_per_token(recipe: Recipe) -> float:
    """Return the training FLOPs a token: 6 for a trained parameter that multiplies, 4 for a frozen one.

    The shape is the recipe's, which in an experiment is that of its bases too; adapters are small and left out.
    """
    extra = recipe.tokenizer.extend_by or 0
    multiplying = count_parameters(recipe.model, recipe.tokenizer.vocab_size + extra)["multiplying"]
    return (FORWARD_AND_BACKWARD if recipe.model.lora is None else FORWARD_ONLY_WEIGHTS) * multiplying
