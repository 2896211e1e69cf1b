# SPDX-License-Identifier: Apache-2.0
"""The plan: size, tokens, training, memory, cost, loss and verdict for one budget and the available text."""

import math
from collections.abc import Iterator

from scipy.optimize import minimize_scalar

from planning.available_text import NotEnoughText, Text, read_text
from planning.budget import count_trainings, plan_cost, read_budget
from planning.devices import Device
from planning.memory import STRATEGIES, count_teachers, largest_batch, memory_by_part
from planning.model_shape import choose_shape, count_parameters, training_flops_per_token
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
from planning.scarce_text import compare_ways
from planning.training_rules import LEAST_STEPS, rule_learning_rate, rule_regularisation, rule_tokens_per_step
from planning.verdict import decide, describe_verdict
from recipe_config import Model, Recipe, RecipeError


FITTED_FLOPS = 1e17  # the laws were fitted on this and more
NOT_PREDICTED = "not predicted: the laws were fitted on runs of 1e17 FLOPs and more"
LEAST_TOKENS = 256 * LEAST_STEPS
# Of a run that its text limits; a larger model would gain little. BloombergGPT, whose text ended first, has 11.
LEAST_TOKENS_PER_PARAMETER = 10
FITTED_VOCABULARY_PARAMETERS = 33e6  # the vocabulary law too


def make_plan(recipe: Recipe, device: Device) -> dict:
    """Make the plan; return plan.json's content.

    Raises: RecipeError: the budget or the text cannot be planned.
    """
    if recipe.model.from_pretrained is not None:
        raise RecipeError(
            f"model.from_pretrained={recipe.model.from_pretrained}: its size is given, and a plan is of a new model; "
            "plan without it to see what from scratch would take, and set training.max_tokens yourself"
        )
    settings, assumptions = recipe.plan, []
    budget = read_budget(recipe, device, assumptions)
    text, bytes_per_token, domain = read_text(recipe, settings, assumptions)
    trainings, law = count_trainings(recipe.training), LAWS[settings.law]
    flops = budget["model_flops"] / trainings  # of one model; those that it learns from have the rest

    refuse_too_little(text, domain)
    size, tokens_by_law = choose_size(settings.law, flops, text)
    vocab_size = recipe.tokenizer.vocab_size if settings.vocab_size is None else settings.vocab_size
    choose_vocabulary = vocab_size == "choose"
    model, vocab_size = choose_shape(size, law.counts, None if choose_vocabulary else vocab_size)
    counts = count_parameters(model, vocab_size)
    flops_per_token = training_flops_per_token(model, vocab_size, recipe.training.sequence_length)

    most = min(flops / flops_per_token, text.most_tokens())
    training = plan_training(recipe, counts, most, flops)
    epochs = text.split(most)[0] / text.domain_tokens
    training |= rule_regularisation(epochs, most / counts["total"], recipe.training)
    tokens = float(training["max_tokens"])
    all_flops = trainings * flops_per_token * tokens
    loss = plan_loss(text, size, tokens_by_law)
    plan = {
        "format": 1,
        "budget": budget
        | {"device": settings.device, "num_devices": settings.devices, "device_source": device.source},
        "law": settings.law,
        "laws": describe_laws(flops),
        "text": describe_mixture(text, bytes_per_token, domain, tokens),
        "model": model.model_dump(exclude_none=True, exclude={"rope_theta", "rms_norm_eps", "initializer_range"}),
        "vocab_size": vocab_size,
        "parameters": counts,
        "tokens": tokens,
        "bytes": tokens * mixture_bytes_per_token(text, bytes_per_token, tokens),
        "tokens_per_parameter": {name: tokens / counts[name] for name in ("total", "non_embedding", "multiplying")},
        "flops": {
            "training": all_flops,
            "trainings": trainings,
            "per_token": flops_per_token,
            "six_n_d": 6 * counts["total"] * tokens,
        },
        "training": training,
        "memory": plan_memory(
            recipe, model, vocab_size, device, training["tokens_per_step"] // training["sequence_length"]
        ),
        "cost": plan_cost(settings, device, budget, all_flops),
        "budget_used_fraction": flops_per_token * tokens / flops,
        "scarce_text": compare_ways(text, flops_per_token, budget["model_flops"]),
        "loss": loss
        | {
            "with_half_the_budget": plan_other_budget(settings.law, 0.5 * flops, text),
            "with_twice_the_budget": plan_other_budget(settings.law, 2.0 * flops, text),
        },
        "verdict": decide(budget["model_flops"], counts["total"], text, loss["nats_per_token"]),
        "assumptions": assumptions,
    }
    plan["verdict"]["sentences"] = describe_verdict(plan, text)
    extrapolated = choose_vocabulary and size < FITTED_VOCABULARY_PARAMETERS
    return plan | {"warnings": list(find_warnings(plan, text, settings.recomputation_factor, extrapolated))}


def describe_laws(flops: float) -> dict[str, dict]:
    """Return each law's optimum for what the budget pays for of one model."""
    return {
        name: dict(zip(("parameters", "tokens"), law.optimum(flops), strict=True))
        | {"source": law.source, "counts": law.counts}
        for name, law in LAWS.items()
    }


def describe_mixture(text: Text, bytes_per_token: dict[str, float], domain: str, tokens: float) -> dict:
    """Return the available text, and what a run of so many tokens takes of it.

    `worth_tokens`, as plan.json names it, are the effective tokens.
    """
    domain_part, general_part = text.split(tokens)
    return {
        "domain": domain,
        "domain_bytes": text.domain_tokens * bytes_per_token["domain"],
        "general_bytes": text.general_tokens * bytes_per_token["general"],
        "bytes_per_token": mixture_bytes_per_token(text, bytes_per_token, tokens),
        "domain_bytes_per_token": bytes_per_token["domain"],
        "general_bytes_per_token": bytes_per_token["general"],
        "max_repetitions": text.max_repetitions,
        "min_domain_share": text.min_domain_share,
        "domain_share": domain_part / tokens,
        "domain_epochs": domain_part / text.domain_tokens,
        "general_epochs": general_part / text.general_tokens if text.general_tokens else 0.0,
        "worth_tokens": text.effective_tokens(tokens)[0],
    }


def mixture_bytes_per_token(text: Text, bytes_per_token: dict[str, float], tokens: float) -> float:
    """Return the mean bytes per token of a run of so many tokens."""
    domain, general = bytes_per_token["domain"], bytes_per_token["general"]
    return general + text.split(tokens)[0] / tokens * (domain - general)


def find_warnings(plan: dict, text: Text, recomputation_factor: float, extrapolated: bool) -> Iterator[str]:
    """Yield what makes the plan uncertain or impossible; `extrapolated`: by the vocabulary law."""
    budget, training, memory, most = plan["budget"], plan["training"], plan["memory"], text.most_tokens()
    flops = budget["model_flops"] / plan["flops"]["trainings"]
    affordable = flops / plan["flops"]["per_token"]
    if flops < FITTED_FLOPS:
        yield f"{flops:.1e} FLOPs are below what any of these laws was fitted on (1e17 and more): no loss is predicted"
    if extrapolated:
        yield "the vocabulary law was fitted from 33e6 parameters on; for this size it is an extrapolation"
    if most < affordable:
        yield (
            f"the text limits the run: at {text.min_domain_share:.0%} {plan['text']['domain']} and at most "
            f"{text.max_repetitions:g} repetitions it lasts for {most:.3g} tokens, where the budget would pay for "
            f"{affordable:.3g} with this model"
        )
    if not OLMO_PARAMETERS[0] <= plan["parameters"]["multiplying"] <= OLMO_PARAMETERS[1]:
        yield (
            "the rule for batch and learning rate was made for 60M to 7B parameters and is extrapolated here; try "
            "other learning rates on a short run first"
        )
    if training["steps"] < LEAST_STEPS:
        yield f"{training['steps']} steps are hardly a training run; the budget is very small"
    if memory["chosen"] is None:
        needed = memory["strategies"][-1]["bytes"]["total"]
        yield (
            f"the model fits no {budget['device']} even divided over {budget['num_devices']} with activation "
            f"checkpointing: {needed / 1e9:.0f} GB a device against {memory['device_bytes'] / 1e9:.0f}; take more or "
            "larger devices"
        )
    elif memory["chosen"]["activation_checkpointing"] and recomputation_factor == 1:
        yield "it fits with activation checkpointing only; plan again with plan.recomputation_factor: 1.33"


def refuse_too_little(text: Text, domain: str) -> None:
    """Raise NotEnoughText where the text, repeated as often as allowed, is less than LEAST_TOKENS."""
    if text.most_tokens() < LEAST_TOKENS:
        raise NotEnoughText(
            f"There is not enough text to train anything: read {text.max_repetitions:g} times, that of {domain!r} and "
            f"what goes beside it is {text.most_tokens():,.0f} tokens, and {LEAST_STEPS} steps of one short sequence "
            f"are {LEAST_TOKENS:,}. Use an open model as it is and give it the text in its prompt, or bring more text."
        )


def choose_size(law_name: str, flops: float, text: Text) -> tuple[float, float]:
    """Return N and the tokens that the budget pays for by 6 N D, or that the text has.

    N is the law's optimum, times the factor by which repeated text makes the repetition law's optimum smaller. As a
    factor it applies to laws without a form for the loss, and it is 1 where there is enough text. Where the text ends
    before the budget, the repetition law would spend the rest on a larger model, for little gain. As BloombergGPT's
    authors did, the size stays and the rest of the budget is left, but for LEAST_TOKENS_PER_PARAMETER.
    """
    most, plain = text.most_tokens(), REPETITION_LAW.law
    free = plain.optimum(flops)[0]

    def loss(log_factor: float) -> float:
        size = free * math.exp(log_factor)
        return text.loss(plain, size, min(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size), most))

    found = minimize_scalar(loss, bounds=(-3, 0), method="bounded")
    factor = math.exp(found.x) if loss(found.x) < loss(0) else 1.0
    size = min(LAWS[law_name].optimum(flops)[0] * factor, most / LEAST_TOKENS_PER_PARAMETER)
    return size, min(flops / (FLOPS_PER_PARAMETER_AND_TOKEN * size), most)


def plan_training(recipe: Recipe, counts: dict[str, int], tokens: float, flops: float) -> dict:
    """Return batch, learning rate and warm-up by OLMo-core's rule, the recipe's regularisation, and other rules'."""
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
        "weight_decay": recipe.training.weight_decay,
        "dropout": recipe.training.dropout,
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
    """Estimate the memory of each strategy, and choose the first that the model fits with.

    Args:
        recipe: with the devices, sequence_length and optimizer.
        model: the shape.
        vocab_size: of the tokenizer.
        device: one of plan.devices.
        sequences: in a step, of all devices.

    Returns: device_bytes; strategies, each with the bytes by part and the largest batch; chosen, None if none fits.
    """
    plan, training = recipe.plan, recipe.training
    length, muon = training.sequence_length, training.optimizer == "muon"
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
            options["device_type"] = "cpu" if plan.device == "cpu" else "cuda"
            options |= {"average": training.average is not None, "num_teachers": count_teachers(training)}
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
    # The first fits without recomputation, if any does, and divides the model over devices least.
    return {"device_bytes": device.memory_bytes, "strategies": strategies, "chosen": fitting[0] if fitting else None}


def plan_loss(text: Text, parameters: float, tokens: float) -> dict:
    """Return the loss that each law predicts, with effective tokens, and the range of the laws.

    For the size and tokens of `choose_size`, before they are rounded to a shape and to steps: so a larger budget never
    has a higher loss. None where the run has fewer FLOPs than any run that the laws were fitted on.
    """
    if FLOPS_PER_PARAMETER_AND_TOKEN * parameters * tokens < FITTED_FLOPS:
        return {"nats_per_token": None, "interval": None, "by_law": {}, "meaning": NOT_PREDICTED}
    laws = {name: law for name, law in LAWS.items() if isinstance(law, LossLaw)} | {"muennighoff": REPETITION_LAW.law}
    by_law = {name: text.loss(law, parameters, tokens) for name, law in laws.items()}
    return {
        "nats_per_token": by_law["besiroglu"],
        "interval": [min(by_law.values()), max(by_law.values())],
        "by_law": by_law,
        "meaning": "nats per token of the laws' own web corpora and tokenizers; the interval is the range of the laws",
    }


def plan_other_budget(law_name: str, flops: float, text: Text) -> dict:
    """Return the size, tokens and predicted loss of another budget."""
    size, tokens = choose_size(law_name, flops, text)
    return {"parameters": size, "tokens": tokens, "nats_per_token": plan_loss(text, size, tokens)["nats_per_token"]}
