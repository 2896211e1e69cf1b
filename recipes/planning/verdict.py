# SPDX-License-Identifier: Apache-2.0
"""The verdict: pretrain from scratch, continue an open model, or adapt one with LoRA."""

import math

from planning.available_text import Text
from planning.known_models import OPEN_MODELS
from planning.scaling_laws import FLOPS_PER_PARAMETER_AND_TOKEN, LAWS


def decide(flops: float, parameters: float, text: Text, loss: float) -> dict:
    """Return the choice, its reason, and the numbers behind it.

    The baseline is the best open model that costs no more to run. From scratch, if the law predicts a lower loss for
    the plan than for the baseline. Otherwise continued pretraining, if the budget pays for one pass of the baseline
    over the domain's text; else LoRA.

    Args:
        flops: the budget.
        parameters: of the planned model.
        text: the available text.
        loss: of the plan, by the law `besiroglu` (nats per token).
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
        f"{reading / flops:.0%} of the budget. Reasons for from scratch all the same: a tokenizer for the domain, "
        "a licence or a provenance that no open model has, or text so far from the web that the base knows little of "
        "it; compare in bits per byte.",
    }
