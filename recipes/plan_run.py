# SPDX-License-Identifier: Apache-2.0
"""Stage 0: which model, on how many tokens, at what cost; and whether to pretrain at all.

In:   `plan` of the recipe (one budget, the text at hand), documents/stats.json and tokenizer/report.json where they
      are there.
Out:  <run.output_dir>/plan.json, and in plan/ planned.yaml (an overlay with the planned model and training), size.png
      and tokens.png. It is advice: no other stage reads it.

    python recipes/plan_run.py --config recipes/legal/base.yaml --plan.device_hours=2000 --plan.domain_bytes=20e9 \\
        --plan.general_bytes=19e9
    python recipes/run_recipe.py --config recipes/legal/base.yaml runs/legal-342m/plan/planned.yaml

plan.json: budget, laws (each law's optimum for the budget), text, model, vocab_size, parameters, tokens, flops,
training, memory, cost, loss, verdict, assumptions and warnings; a unit is in the key, or "meaning" says it.
"""

import json
import math
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ruamel.yaml import YAML
from scipy.optimize import minimize_scalar

from atomic_files import write_json
from planning.charts import draw_plan
from planning.devices import UTILISATION_FRACTION, UTILISATION_INTERVAL, Device, find_device
from planning.known_models import OPEN_MODELS
from planning.memory import STRATEGIES, largest_batch, memory_by_part
from planning.model_shape import choose_shape, count_parameters, training_flops_per_token
from planning.plan_table import describe
from planning.planned_recipe import planned_values
from planning.scaling_laws import (
    FLOPS_PER_PARAMETER_AND_TOKEN,
    LAWS,
    OLMO_PARAMETERS,
    REPETITION_LAW,
    LossLaw,
    deepseek_rule,
    olmo_rule,
    power_lines_weight_decay,
)
from planning.training_rules import LEAST_STEPS, rule_learning_rate, rule_tokens_per_step
from recipe_config import Model, Plan, Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from run_folder import is_finished, new_output
from stages import output_folder


BYTES_PER_TOKEN = 4.4  # a byte-level BPE of 8,192 entries trained on legal text, on other legal text
DOMAIN_SHARE = 0.5
LEAST_FLOPS, MOST_FLOPS = 1e12, 1e30


@dataclass(frozen=True)
class Text:
    """The text at hand, in tokens of the planned tokenizer.

    Attributes:
        domain_tokens, general_tokens: different ones at hand.
        min_domain_share: least share of the domain.
        max_repetitions: of any text.
    """

    domain_tokens: float
    general_tokens: float
    min_domain_share: float
    max_repetitions: float

    def most_tokens(self) -> float:
        """Return how long a run may be under both limits."""
        domain = self.max_repetitions * self.domain_tokens
        beside = domain * (1 - self.min_domain_share) / self.min_domain_share
        return domain + min(self.max_repetitions * self.general_tokens, beside)

    def split(self, tokens: float) -> tuple[float, float]:
        """Return the domain's and the other tokens of a run: as the text at hand divides, but at least the domain's
        share, and neither more often than allowed."""
        at_hand = self.domain_tokens / (self.domain_tokens + self.general_tokens)
        domain = max(self.min_domain_share, at_hand) * tokens
        domain = min(max(domain, tokens - self.max_repetitions * self.general_tokens), tokens)
        return domain, tokens - domain

    def worth(self, tokens: float) -> tuple[float, float]:
        """Return how many new tokens a run's are worth, and how many of them are different.

        The law of repetition is for one corpus; here each part of the mixture is taken for a corpus of its own.
        """
        pairs = zip(self.split(tokens), (self.domain_tokens, self.general_tokens), strict=True)
        parts = [(part, unique) for part, unique in pairs if part and unique]
        worth = sum(REPETITION_LAW.worth_tokens(part, unique) for part, unique in parts)
        return worth, sum(min(part, unique) for part, unique in parts)

    def loss(self, law: LossLaw, parameters: float, tokens: float) -> float:
        """Return a law's loss with what repeated text is worth in place of the tokens (nats per token)."""
        worth, unique = self.worth(tokens)
        return law.loss(REPETITION_LAW.worth_parameters(parameters, unique), worth)


def read_json(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def read_text(recipe: Recipe, plan: Plan, assumptions: list[str]) -> tuple[Text, float, str]:
    """Put together the text at hand, from the recipe and from what earlier stages counted.

    Returns: the text, bytes per token, and the domain's name.
    Raises: RecipeError: how much text there is, is neither stated nor counted; or there is none of the domain.
    """
    run, data = Path(recipe.run.output_dir), recipe.data
    domain = plan.domain or data.sources[0].label
    labels = {source.name: source.label for source in data.sources}
    if domain not in {*labels, *labels.values()}:
        raise RecipeError(
            f"plan.domain: no source or domain {domain!r}; there are {', '.join(sorted({*labels, *labels.values()}))}"
        )
    ours = {name for name, label in labels.items() if domain in (name, label)}
    stats = read_json(run / "documents" / "stats.json")
    counted = {True: 0, False: 0}
    for name, source in (stats["sources"] if stats else {}).items():
        counted[name in ours] += source["kept"]["train"]["bytes"]
    amounts = {}
    for key, of_domain in (("domain_bytes", True), ("general_bytes", False)):
        amounts[key] = getattr(plan, key)
        if amounts[key] is None and stats is None:
            raise RecipeError(
                f"plan.{key}: missing, and there is no {run / 'documents' / 'stats.json'} yet; say how many bytes of "
                "text you have, or prepare the documents first"
            )
        amounts[key] = counted[of_domain] if amounts[key] is None else amounts[key]
    if amounts["domain_bytes"] == 0:
        raise RecipeError(
            f"{run / 'documents' / 'stats.json'}: no text of {domain!r} was kept; there is nothing to plan"
        )
    bytes_per_token = plan.bytes_per_token
    report = read_json(run / "tokenizer" / "report.json")
    if bytes_per_token is None and report:
        measured = report["bytes_per_token"]["domain tokenizer"]
        bytes_per_token = sum(measured.values()) / len(measured)
    if bytes_per_token is None:
        bytes_per_token = BYTES_PER_TOKEN
        assumptions.append(f"{BYTES_PER_TOKEN} bytes per token, until a tokenizer is trained; plan.bytes_per_token")
    share = plan.min_domain_share or data.min_shares.get(domain)
    stated = [source.share for source in data.sources if source.name in ours and source.share]
    share = share or (min(1.0, sum(stated)) if stated else DOMAIN_SHARE)
    if not amounts["general_bytes"]:
        share = 1.0
    text = Text(
        amounts["domain_bytes"] / bytes_per_token,
        amounts["general_bytes"] / bytes_per_token,
        share,
        data.max_repetitions,
    )
    return text, bytes_per_token, domain


def read_budget(plan: Plan, device: Device, assumptions: list[str]) -> dict:
    """Turn the budget into model FLOPs.

    Raises: RecipeError: there is none, or it is impossible.
    """
    budgets = plan.budgets()
    if not budgets:
        raise RecipeError("plan: no budget; set one of plan.flops, plan.device_hours, plan.hours and plan.money")
    ((kind, amount),) = budgets.items()
    low, high = (plan.utilisation_fraction,) * 2 if plan.utilisation_fraction else UTILISATION_INTERVAL
    utilisation = plan.utilisation_fraction or UTILISATION_FRACTION
    if plan.utilisation_fraction is None:
        assumptions.append(
            f"{utilisation:.0%} of the device's peak, between {low:.0%} and {high:.0%}; measure it, then set "
            "plan.utilisation_fraction"
        )
    # Model FLOPs that an hour of one device gives, without what is recomputed.
    flops_per_hour = device.peak_flops * utilisation * 3600 / plan.recomputation_factor
    if kind == "flops":
        flops = amount
    else:
        device_hours = {
            "device_hours": amount,
            "hours": amount * plan.devices,
            "money": amount / (plan.price_per_device_hour or math.inf),
        }[kind]
        flops = device_hours * (1 - plan.reserve_fraction) * flops_per_hour
    if not LEAST_FLOPS <= flops <= MOST_FLOPS:
        raise RecipeError(
            f"plan.{kind}: {amount:g} is {flops:.3g} model FLOPs; a run has between {LEAST_FLOPS:g} and {MOST_FLOPS:g}"
        )
    return {
        "kind": kind,
        "amount": amount,
        "model_flops": flops,
        "utilisation_fraction": utilisation,
        "utilisation_interval": [low, high],
        "flops_per_device_hour": flops_per_hour,
    }


def choose_size(law_name: str, flops: float, text: Text) -> float:
    """Return N: the law's own, made smaller where repetition makes the optimum of the law of repetition smaller.

    Taken as a factor, so that a law without a form for the loss can be followed too, and each is followed exactly
    where there is text enough. Where the text ends before the budget, the law of repetition would put the rest into a
    larger model, for little: as BloombergGPT's authors did, the size stays and the rest of the budget is not used.
    """
    most, plain = text.most_tokens(), REPETITION_LAW.law
    free = plain.optimum(flops)[0]

    def loss(log_factor: float) -> float:
        size = free * math.exp(log_factor)
        return text.loss(plain, size, min(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size), most))

    found = minimize_scalar(loss, bounds=(-3, 0), method="bounded")
    factor = math.exp(found.x) if loss(found.x) < loss(0) else 1.0
    return LAWS[law_name].optimum(flops)[0] * factor


def plan_training(recipe: Recipe, counts: dict[str, int], tokens: float, flops: float) -> dict:
    """Return batch, learning rate and the rest by the rules, with what other rules say."""
    sequence_length = recipe.training.sequence_length
    rule, other = olmo_rule(counts["multiplying"]), deepseek_rule(flops)
    learning_rate = rule_learning_rate(counts["multiplying"])
    tokens_per_step = rule_tokens_per_step(counts["multiplying"], sequence_length, tokens)
    steps = max(1, round(tokens / tokens_per_step))
    return {
        "sequence_length": sequence_length,
        "tokens_per_step": tokens_per_step,
        "max_tokens": steps * tokens_per_step,
        "steps": steps,
        "learning_rate": learning_rate,
        "weight_decay": 0.1,
        "warmup_steps": max(1, min(steps // 20, round(rule.warmup_tokens / tokens_per_step))),
        "source": f"{rule.source}, for AdamW, and for Muon, whose updates are scaled alike; batch a power of two of "
        "sequences, warm-up at most 5 % of the steps",
        "by_other_rules": {
            other.source: {"tokens_per_step": other.tokens_per_step, "learning_rate": other.learning_rate},
            "Power Lines": {
                "weight_decay": power_lines_weight_decay(tokens_per_step, learning_rate, tokens, counts["total"])
            },
        },
    }


def plan_memory(recipe: Recipe, model: Model, vocab_size: int, device: Device, sequences: int) -> dict:
    """Find the first strategy under which the model fits, and what each holds.

    Returns: strategies (each with the bytes by part and the largest batch), chosen (None where none fits).
    """
    plan, length, muon = recipe.plan, recipe.training.sequence_length, recipe.training.optimizer == "muon"
    single = plan.devices == 1 or plan.device == "cpu"
    names = ["cpu.yaml" if plan.device == "cpu" else "single_gpu.yaml"] if single else list(STRATEGIES)[1:]
    share = max(1, sequences // plan.devices)  # a device never needs more sequences at once
    strategies = []
    for checkpointing in (False, True):
        for name in names:
            if name == "deepspeed_zero3.yaml" and muon:
                continue  # Accelerate hands DeepSpeed one optimizer of two
            kind = "single_gpu.yaml" if name == "cpu.yaml" else name
            options = {"strategy": kind, "num_devices": plan.devices, "checkpointing": checkpointing, "muon": muon}
            batch = min(share, largest_batch(device.memory_bytes, model, vocab_size, length, **options))
            parts = memory_by_part(model, vocab_size, length, max(1, batch), **options)
            strategies.append(
                {
                    "accelerate_config": name,
                    "activation_checkpointing": checkpointing,
                    "per_device_train_batch_size": batch,
                    "bytes": {**parts, "total": sum(parts.values())},
                }
            )
    fitting = [one for one in strategies if one["per_device_train_batch_size"]]
    # Without recomputation first; then the strategy that divides least, for it communicates least.
    return {"device_bytes": device.memory_bytes, "strategies": strategies, "chosen": fitting[0] if fitting else None}


def plan_loss(text: Text, parameters: float, tokens: float) -> dict:
    """Return the loss that each law with a form for it foretells, scarce text counted, and their range."""
    laws = {name: law for name, law in LAWS.items() if isinstance(law, LossLaw)} | {"muennighoff": REPETITION_LAW.law}
    by_law = {name: text.loss(law, parameters, tokens) for name, law in laws.items()}
    return {
        "nats_per_token": by_law["besiroglu"],
        "interval": [min(by_law.values()), max(by_law.values())],
        "by_law": by_law,
        "meaning": "nats per token of the laws' own web corpora and tokenizers; the interval is the range of the laws",
    }


def decide(flops: float, parameters: float, text: Text, loss: float) -> dict:
    """Say from scratch, continued pretraining or LoRA, with the numbers that decide it.

    The yardstick is the best open model that costs no more to run. If the laws give the plan a lower loss than that
    model had, from scratch stands on its own. Otherwise it starts behind: its text must make up for it. Continued
    pretraining must be able to read the domain's text once; where the budget does not even pay for that, LoRA.
    """
    law = LAWS["besiroglu"]
    bases = [model for model in OPEN_MODELS if model.parameters <= 1.25 * parameters]
    if not bases:
        smallest = min(OPEN_MODELS, key=lambda model: model.parameters)
        return {
            "choice": "from scratch",
            "reason": f"no open model of this size is known to this table; the smallest is {smallest.name} with "
            f"{smallest.parameters:.3g} parameters. If your machine can run that one, compare with it.",
        }
    base = min(bases, key=lambda model: law.loss(model.parameters, model.tokens))
    base_loss = law.loss(base.parameters, base.tokens)
    reading = FLOPS_PER_PARAMETER_AND_TOKEN * base.parameters * text.domain_tokens
    low, high = flops, 1e32
    for _ in range(200):  # the loss of the frontier falls with compute
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law.loss(*law.optimum(middle)) > base_loss else (low, middle)
    numbers = {
        "base": base.name,
        "base_parameters": base.parameters,
        "base_tokens": base.tokens,
        "base_loss_by_law": base_loss,
        "plan_loss_by_law": loss,
        "budget_multiple_to_match": high / flops,
        "flops_to_read_the_domain_once_with_base": reading,
    }
    ahead = f"by the law {loss:.3f} nats per token against {base_loss:.3f} for {base.name}"
    if loss <= base_loss:
        return numbers | {
            "choice": "from scratch",
            "reason": f"the plan ends ahead of the best open model that costs no more to run: {ahead}. With less than "
            f"about {base.parameters * base.tokens * 6:.1e} FLOPs, or much less text, that would change.",
        }
    if reading > flops:
        return numbers | {
            "choice": "LoRA",
            "reason": f"from scratch would end behind an open model ({ahead}), and reading the domain's "
            f"{text.domain_tokens:.2g} tokens once with {base.name} takes {reading:.1e} FLOPs, more than the budget's "
            f"{flops:.1e}. Adapt {base.name} with LoRA on a part of the text; {reading / flops:.1f} times the budget "
            "would pay for continued pretraining.",
        }
    return numbers | {
        "choice": "continued pretraining",
        "reason": f"from scratch would end behind an open model ({ahead}); it would take {high / flops:.0f} times "
        f"the budget, and the text for it, to catch up. {base.name} reads the domain's text once for "
        f"{reading / flops:.0%} of the budget. What speaks for from scratch all the same: a tokenizer for the domain, "
        "a licence or a provenance that no open model has, or text so far from the web that the base knows little of "
        "it; compare in bits per byte.",
    }


def make_plan(recipe: Recipe, device: Device) -> dict:
    """Make the plan; plan.json's content.

    Raises: RecipeError: for what cannot be planned.
    """
    plan, assumptions, warnings = recipe.plan, [], []
    if recipe.model.from_pretrained is not None:
        raise RecipeError(
            f"model.from_pretrained={recipe.model.from_pretrained}: its size is given, and a plan is of a new model; "
            "plan without it to see what from scratch would take, and set training.max_tokens yourself"
        )
    budget = read_budget(plan, device, assumptions)
    text, bytes_per_token, domain = read_text(recipe, plan, assumptions)
    flops = budget["model_flops"]
    if flops < 1e17:
        warnings.append(f"{flops:.1e} FLOPs are far below what any of these laws was fitted on (1e17 and more)")
    wanted = choose_size(plan.law, flops, text)
    stated = recipe.tokenizer.vocab_size if plan.vocab_size is None else plan.vocab_size
    if stated == "choose" and wanted < 33e6:
        warnings.append("the vocabulary law was fitted from 33e6 parameters on; for this size it is an extrapolation")
    model, vocab_size = choose_shape(wanted, LAWS[plan.law].counts, None if stated == "choose" else stated)
    counts = count_parameters(model, vocab_size)
    per_token = training_flops_per_token(model, vocab_size, recipe.training.sequence_length)
    affordable, most = flops / per_token, text.most_tokens()
    tokens = min(affordable, most)
    training = plan_training(recipe, counts, tokens, flops)
    tokens = float(training["max_tokens"])
    domain_part, general_part = text.split(tokens)
    if most < affordable:
        warnings.append(
            f"the text limits the run: at {text.min_domain_share:.0%} {domain} and at most {text.max_repetitions:g} "
            f"repetitions it lasts for {most:.3g} tokens, where the budget would pay for {affordable:.3g}; "
            f"{most / affordable:.0%} of the budget is used"
        )
    if not OLMO_PARAMETERS[0] <= counts["multiplying"] <= OLMO_PARAMETERS[1]:
        warnings.append(
            "the rule for batch and learning rate was made for 60M to 7B parameters; here it is carried beyond, so "
            "try other learning rates on a short run first"
        )
    if training["steps"] < LEAST_STEPS:
        warnings.append(f"{training['steps']} steps are hardly a training run; the budget is very small")
    memory = plan_memory(recipe, model, vocab_size, device, training["tokens_per_step"] // training["sequence_length"])
    if memory["chosen"] is None:
        needed = memory["strategies"][-1]["bytes"]["total"]
        warnings.append(
            f"the model fits no {plan.device} even divided over {plan.devices} with activation checkpointing: "
            f"{needed / 1e9:.0f} GB a device against {device.memory_bytes / 1e9:.0f}; take more or larger devices"
        )
    elif memory["chosen"]["activation_checkpointing"] and plan.recomputation_factor == 1:
        warnings.append("it fits with activation checkpointing only; plan again with plan.recomputation_factor: 1.33")
    parameters = counts["total"]
    loss = plan_loss(text, parameters, tokens)
    for key, factor in (("with_half_the_budget", 0.5), ("with_twice_the_budget", 2.0)):
        size = choose_size(plan.law, factor * flops, text)
        length = min(factor * flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size), most)
        loss[key] = {
            "parameters": size,
            "tokens": length,
            "nats_per_token": plan_loss(text, size, length)["nats_per_token"],
        }
    used = per_token * tokens
    return {
        "format": 1,
        "budget": budget | {"device": plan.device, "num_devices": plan.devices, "device_source": device.source},
        "law": plan.law,
        "laws": {
            name: dict(zip(("parameters", "tokens"), law.optimum(flops), strict=True))
            | {"source": law.source, "counts": law.counts}
            for name, law in LAWS.items()
        },
        "text": {
            "domain": domain,
            "domain_bytes": text.domain_tokens * bytes_per_token,
            "general_bytes": text.general_tokens * bytes_per_token,
            "bytes_per_token": bytes_per_token,
            "max_repetitions": text.max_repetitions,
            "min_domain_share": text.min_domain_share,
            "domain_share": domain_part / tokens,
            "domain_epochs": domain_part / text.domain_tokens,
            "general_epochs": general_part / text.general_tokens if text.general_tokens else 0.0,
            "worth_tokens": text.worth(tokens)[0],
        },
        "model": model.model_dump(exclude_none=True, exclude={"rope_theta", "rms_norm_eps", "initializer_range"}),
        "vocab_size": vocab_size,
        "parameters": counts,
        "tokens": tokens,
        "bytes": tokens * bytes_per_token,
        "tokens_per_parameter": {name: tokens / counts[name] for name in ("total", "non_embedding", "multiplying")},
        "flops": {"training": used, "per_token": per_token, "six_n_d": 6 * parameters * tokens},
        "training": training,
        "memory": memory,
        "cost": plan_cost(plan, device, budget, used),
        "loss": loss,
        "verdict": decide(flops, parameters, text, loss["by_law"]["besiroglu"]),
        "assumptions": assumptions,
        "warnings": warnings,
    }


def plan_cost(plan: Plan, device: Device, budget: dict, used_flops: float) -> dict:
    """Return hours, money and energy: expected, and between the two ends of the utilisation."""

    def at(utilisation: float) -> dict:
        device_hours = used_flops * plan.recomputation_factor / (device.peak_flops * utilisation * 3600)
        return {
            "device_hours": device_hours,
            "hours": device_hours / plan.devices,
            "money": device_hours * plan.price_per_device_hour if plan.price_per_device_hour else None,
            "kilowatt_hours": device_hours * device.watts / 1000 if device.watts else None,
        }

    low, high = budget["utilisation_interval"]
    return {
        "expected": at(budget["utilisation_fraction"]),
        "least": at(high),
        "most": at(low),
        "meaning": "without the reserve; energy at the devices' thermal design power, without the building's",
    }


def write_overlay(plan: dict, path: Path) -> None:
    """Write what the next stages run: the planned model, vocabulary and training as a recipe overlay."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.dump(planned_values(plan), stream)
    first = "# Written by plan_run.py; give it after the recipe: --config recipe.yaml planned.yaml\n"
    path.write_text(first + stream.getvalue(), encoding="utf-8")


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    if is_finished(recipe, "plan", options.overwrite) and not options.overwrite:
        print(f"plan_run: nothing to do, {output_folder(recipe, 'plan')} is up to date")
        return
    plan = make_plan(recipe, find_device(recipe.plan.device))
    print(describe(plan))
    if options.dry_run:
        return
    run = Path(recipe.run.output_dir)
    with new_output(recipe, "plan") as folder:
        draw_plan(plan, read_json(run / "training.json"), folder)
        write_overlay(plan, folder / "planned.yaml")
        write_json(run / "plan.json", plan)
    print(f"\nplan_run: {run / 'plan.json'}, charts and planned.yaml in {output_folder(recipe, 'plan')}")


if __name__ == "__main__":
    run_command(main)
