# SPDX-License-Identifier: Apache-2.0
"""The verdict: pretrain from scratch, continue an open model, or adapt one with LoRA."""

import math

from planning.available_text import Text
from planning.known_models import OPEN_MODELS
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, LAWS
from planning.scarce_text import FORWARD_FRACTION, MANY_EPOCHS, MEMBERS, USUAL_EPOCHS


ENOUGH_FRACTION = 0.9  # of the budget: less is a text that limits the run


def decide(flops: float, parameters: float, text: Text, loss: float | None) -> dict:
    """Return the choice, its reason, and the numbers behind it.

    Where the text is enough for no model of the size of any open one, one of these is continued: the best whose size
    the budget alone would allow.

    The baseline is the best open model that costs no more to run. From scratch, if the law predicts a lower loss for
    the plan than for the baseline. Otherwise continued pretraining, if the budget pays for one pass of the baseline
    over the domain's text; else LoRA.

    Args:
        flops: the budget.
        parameters: of the planned model.
        text: the available text.
        loss: of the plan, by the law `besiroglu` (nats per token); None where it is not predicted.
    """
    law, smallest = LAWS["besiroglu"], min(OPEN_MODELS, key=lambda model: model.parameters)
    bases = [model for model in OPEN_MODELS if model.parameters <= 1.25 * parameters]
    not_enough_text = not bases and law.optimum(flops)[0] >= smallest.parameters
    if not_enough_text:
        bases = [model for model in OPEN_MODELS if model.parameters <= law.optimum(flops)[0]]
    if not bases:
        return {
            "choice": "from scratch",
            "reason": f"no open model of this size is known to this table; the smallest is {smallest.name} with "
            f"{smallest.parameters:.3g} parameters. If your machine can run that one, compare with it.",
        }
    base = min(bases, key=lambda model: law.loss(model.parameters, model.tokens))
    base_loss = law.loss(base.parameters, base.tokens)
    base_flops, reading = (
        FLOPS_PER_PARAMETER_AND_TOKEN * base.parameters * tokens for tokens in (base.tokens, text.domain_tokens)
    )
    numbers = {
        "choice": "continued pretraining" if reading <= flops else "LoRA",
        "base": base.name,
        "base_parameters": base.parameters,
        "base_tokens": base.tokens,
        "flops_to_read_the_domain_once_with_base": reading,
        "not_enough_text": not_enough_text,
    }
    if not_enough_text:
        return numbers | {
            "reason": "there is not enough text to pretrain: all of it, as often as it may be read, is "
            f"{text.most_tokens():.3g} tokens, and {smallest.name}, the smallest open model, read "
            f"{smallest.tokens:.3g}. To read the domain's text once with {base.name} takes {reading / flops:.1%} of "
            "the budget.",
        }
    if loss is None:
        return numbers | {
            "reason": f"no loss is predicted for so small a run; the budget is {flops:.1e} FLOPs, and {base.name} was "
            f"trained with {base_flops:.1e}.",
        }
    low, high = flops, 1e32
    for _ in range(200):  # the loss of the frontier falls with compute
        middle = math.sqrt(low * high)
        low, high = (middle, high) if law.loss(*law.optimum(middle)) > base_loss else (low, middle)
    numbers |= {"base_loss_by_law": base_loss, "plan_loss_by_law": loss, "budget_multiple_to_match": high / flops}
    ahead = f"by the law {loss:.3f} nats per token against {base_loss:.3f} for {base.name}"
    if loss <= base_loss:
        return numbers | {
            "choice": "from scratch",
            "reason": f"the plan ends ahead of the best open model that costs no more to run: {ahead}. With less than "
            f"about {base_flops:.1e} FLOPs, or much less text, that would change.",
        }
    if reading > flops:
        return numbers | {
            "reason": f"from scratch would end behind an open model ({ahead}), and reading the domain's "
            f"{text.domain_tokens:.2g} tokens once with {base.name} takes {reading:.1e} FLOPs, more than the budget's "
            f"{flops:.1e}. Adapt {base.name} with LoRA on a part of the text; {reading / flops:.1f} times the budget "
            "would pay for continued pretraining.",
        }
    return numbers | {
        "reason": f"from scratch would end behind an open model ({ahead}); it would take {high / flops:.0f} times "
        f"the budget, and the text for it, to catch up. {base.name} reads the domain's text once for "
        f"{reading / flops:.0%} of the budget. Reasons for from scratch all the same: a tokenizer for the domain, "
        "a licence or a provenance that no open model has, or text so far from the web that the base knows little of "
        "it; compare in bits per byte.",
    }


def describe_verdict(plan: dict, text: Text) -> list[str]:
    """Return the verdict in three sentences: what to do, what the budget pays for, and whether the text is enough.

    Args: plan: plan.json's content, but for these sentences.
    """
    budget, cost, text_of_plan = plan["budget"], plan["cost"]["expected"], plan["text"]
    used, ratio = plan["budget_used_fraction"], plan["tokens_per_parameter"]["total"]
    money = f" and {cost['money']:,.{0 if cost['money'] >= 10 else 2}f} {budget['currency']}" if cost["money"] else ""
    trainings = plan["flops"]["trainings"]
    others = (
        f", with the models that it learns from ({trainings:.3g} times that of one model)" if trainings > 1 else ""
    )
    second = (
        f"From scratch, {describe_budget(budget)} pays for {describe_number(plan['parameters']['total'])} parameters "
        f"on {describe_number(plan['tokens'])} tokens, which take {describe_hours(cost['hours'])} of "
        f"{budget['num_devices']} x {budget['device']}{money}{others}."
    )
    third = (
        f"The text is enough: it is read {text_of_plan['domain_epochs']:.2g} times, and each parameter gets "
        f"{ratio:.3g} tokens."
    )
    if used < ENOUGH_FRACTION:
        part = f"{used:.0%}" if used >= 0.01 else "less than 1%"
        ways = [
            f"give the domain less than {text.min_domain_share:.0%} of the text (plan.min_domain_share)",
            f"spend less ({describe_hours(cost['device_hours'])} of one device)",
            "or continue an open model",
        ]
        if 2 * text.max_repetitions <= USUAL_EPOCHS:
            often = f"data.max_repetitions={2 * text.max_repetitions:g}"
            ways.insert(0, f"read it more often ({often} makes the run twice as long, at a lower gain)")
        elif text.max_repetitions < MANY_EPOCHS:
            ways.insert(0, f"read it {MANY_EPOCHS} times with the decay and dropout of recipes/custom/scarce.yaml")
        elif trainings == 1 and used * (1 + MEMBERS + MEMBERS * FORWARD_FRACTION) <= 1:
            ways.insert(0, f"learn from {MEMBERS} models of its kind as recipes/custom/scarce.yaml does")
        third = (
            f"The text can use {part} of the budget: it is read {text_of_plan['domain_epochs']:.2g} times, and each "
            f"parameter gets {ratio:.3g} tokens, where 20 are usual. {'Three' if len(ways) == 3 else 'Four'} ways "
            f"out: {', '.join(ways)}."
        )
    return [describe_choice(plan["verdict"]), second, third]


def describe_choice(verdict: dict) -> str:
    """Return what to do, with the losses that decide it."""
    choice, base = verdict["choice"], verdict.get("base")
    instead = f"Adapt {base} with LoRA" if choice == "LoRA" else f"Continue {base}"
    if verdict.get("not_enough_text"):
        return f"There is not enough text to pretrain a model from scratch. {instead}."
    if base is None:
        return "Pretrain from scratch: no open model is as small as what this budget pays for."
    if "plan_loss_by_law" not in verdict:
        return f"{instead}: so small a run from scratch would stay far behind it."
    losses = f"{verdict['plan_loss_by_law']:.2f} nats per token against {verdict['base_loss_by_law']:.2f}"
    if choice == "from scratch":
        return f"Pretrain from scratch: the laws predict {losses} for {base}, the best open model of that size."
    return (
        f"{instead} instead of pretraining from scratch, for which the laws predict {losses}: to catch up would take "
        f"{verdict['budget_multiple_to_match']:.2g} times the budget, and the text for it."
    )


def describe_budget(budget: dict) -> str:
    """Return the budget as it was stated, with its unit."""
    amount = budget["amount"]
    return {
        "flops": f"a budget of {amount:.3g} FLOPs",
        "device_hours": f"a budget of {amount:,.4g} device-hours",
        "hours": f"a budget of {describe_hours(amount)}",
        "money": f"a budget of {amount:,.4g} {budget['currency']}",
    }[budget["kind"]]


def describe_hours(hours: float) -> str:
    """Return a duration in the largest unit that it has at least two of."""
    for unit, name in ((24, "days"), (1, "hours"), (1 / 60, "minutes")):
        if hours >= 2 * unit:
            return f"{hours / unit:,.3g} {name}"
    return f"{hours * 3600:.3g} seconds"


def describe_number(number: float) -> str:
    for unit, name in ((1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:,.0f}"
