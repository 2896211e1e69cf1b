# SPDX-License-Identifier: Apache-2.0
"""The budget: from hours, money or FLOPs to model FLOPs, and from a run's FLOPs to hours, money and energy."""

import math

from planning.devices import PRICE_SOURCES, Device, planned_attention, stated_utilisation
from planning.memory import count_teachers
from planning.scarce_text import FORWARD_FRACTION
from recipe_config import Plan, Recipe, RecipeError, Training


LEAST_FLOPS, MOST_FLOPS = 1e12, 1e30


def read_budget(recipe: Recipe, device: Device, assumptions: list[str]) -> dict:
    """Convert a recipe's budget to model FLOPs, and add what that assumes to `assumptions`.

    Raises: RecipeError: there is none, or it is impossible.
    """
    plan = recipe.plan
    budgets = plan.budgets()
    if not budgets:
        raise RecipeError("plan: no budget; set one of plan.flops, plan.device_hours, plan.hours and plan.money")
    ((kind, amount),) = budgets.items()
    if plan.utilisation_fraction is None:
        attention = planned_attention(plan.device, recipe.training)
        cause, utilisation, (low, high) = stated_utilisation(plan.device, attention)
        assumptions.append(
            f"{utilisation:.0%} of the device's peak, between {low:.0%} and {high:.0%}, for {cause}; measure it, then "
            "set plan.utilisation_fraction"
        )
    else:
        utilisation = low = high = plan.utilisation_fraction
    price = find_price(plan, device, assumptions)
    if kind == "money" and price is None:
        raise RecipeError(
            f"plan.price_per_device_hour: missing; plan.money needs the price of an hour of {plan.device}, and the "
            "price list has none"
        )
    # Without recomputed activations.
    flops_per_hour = device.peak_flops * utilisation * 3600 / plan.recomputation_factor
    if kind == "flops":
        flops = amount
    else:
        device_hours = {
            "device_hours": amount,
            "hours": amount * plan.devices,
            "money": amount / (price or math.inf),
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
        "price_per_device_hour": price,
        "currency": plan.currency,
    }


def count_trainings(training: Training) -> float:
    """Return how many times the FLOPs of training one model a run takes.

    The members of training.distillation are trained first, and in each step every teacher has a forward pass.
    """
    members = training.distillation.members if training.distillation else 0
    return 1 + members + count_teachers(training) * FORWARD_FRACTION


def find_price(plan: Plan, device: Device, assumptions: list[str]) -> float | None:
    """Return the price of an hour of one device in plan.currency; None if none is stated or known."""
    if plan.price_per_device_hour is not None or plan.currency != "USD" or device.dollars_per_hour is None:
        return plan.price_per_device_hour
    assumptions.append(
        f"{device.dollars_per_hour} USD an hour of {plan.device} ({PRICE_SOURCES[plan.device]}); set "
        "plan.price_per_device_hour to yours"
    )
    return device.dollars_per_hour


def plan_cost(plan: Plan, device: Device, budget: dict, used_flops: float) -> dict:
    """Return hours, money and energy of a run: expected, and at both ends of utilisation_interval."""

    def at(utilisation: float) -> dict:
        device_hours = used_flops * plan.recomputation_factor / (device.peak_flops * utilisation * 3600)
        return {
            "device_hours": device_hours,
            "hours": device_hours / plan.devices,
            "money": device_hours * budget["price_per_device_hour"] if budget["price_per_device_hour"] else None,
            "kilowatt_hours": device_hours * device.watts / 1000 if device.watts else None,
        }

    low, high = budget["utilisation_interval"]
    return {
        "expected": at(budget["utilisation_fraction"]),
        "least": at(high),
        "most": at(low),
        "meaning": "without the reserve; energy at the devices' thermal design power, without the building's",
    }
