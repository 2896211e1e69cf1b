# SPDX-License-Identifier: Apache-2.0
"""The plan as a table for the terminal."""

import textwrap

from planning.scarce_text import MEASURED_ON
from planning.verdict import describe_hours


def describe(plan: dict) -> str:
    """Return plan.json's content as a table for the terminal."""
    budget, text, training = plan["budget"], plan["text"], plan["training"]
    model, counts, cost, loss = plan["model"], plan["parameters"], plan["cost"], plan["loss"]
    heads = f"{model['num_attention_heads']} heads"
    if "num_key_value_heads" in model:
        heads += f" ({model['num_key_value_heads']} for keys and values)"
    expected, least, most = cost["expected"], cost["least"], cost["most"]
    rows = [
        *(
            ("verdict" if number == 0 else "", sentence)
            for number, sentence in enumerate(plan["verdict"]["sentences"])
        ),
        ("", plan["verdict"]["reason"]),
        ("budget", f"{budget['kind']} {budget['amount']:,g}: {budget['model_flops']:.3g} model FLOPs"),
        ("devices", f"{budget['num_devices']} x {budget['device']} ({budget['device_source']})"),
        ("", f"{budget['utilisation_fraction']:.0%} of the peak"),
        (
            "available text",
            f"{size(text['domain_bytes'])} {text['domain']}, {size(text['general_bytes'])} other; "
            f"{text['bytes_per_token']:.2f} bytes a token",
        ),
        *((f"law {name}", describe_law(law, name == plan["law"])) for name, law in plan["laws"].items()),
        (
            "model",
            f"{counts['total']:,} parameters ({counts['non_embedding']:,} without the embedding): "
            f"{model['num_hidden_layers']} layers, {model['hidden_size']} wide, {heads}, "
            f"feed-forward {model['intermediate_size']}, vocabulary {plan['vocab_size']:,}"
            + (", tied" if model["tie_word_embeddings"] else ""),
        ),
        (
            "tokens",
            f"{plan['tokens']:.4g} = {size(plan['bytes'])}, {plan['tokens_per_parameter']['total']:.1f} a parameter "
            f"({plan['tokens_per_parameter']['non_embedding']:.1f} without the embedding)",
        ),
        (
            "mixture",
            f"{text['domain_share']:.1%} {text['domain']} ({text['domain_epochs']:.2f} times), other "
            f"{text['general_epochs']:.2f} times; {text['worth_tokens']:.4g} effective tokens",
        ),
        (
            "training",
            f"{training['steps']:,} steps of {training['tokens_per_step']:,} tokens, learning rate "
            f"{training['learning_rate']:g}, weight decay {training['weight_decay']:g}, dropout "
            f"{training['dropout'] or 0:g}, warm-up {training['warmup_steps']:,} steps ({training['source']})",
        ),
        *describe_memory(plan["memory"]),
        *(
            [("models", f"with those that it learns from {plan['flops']['trainings']:.3g} times the compute of one")]
            if plan["flops"]["trainings"] > 1
            else []
        ),
        (
            "time",
            f"{expected['hours']:,.3g} h on the clock ({least['hours']:,.3g} to {most['hours']:,.3g}), "
            f"{expected['device_hours']:,.4g} device-hours",
        ),
        (
            "cost",
            "set plan.price_per_device_hour"
            if expected["money"] is None
            else f"{expected['money']:,.0f} {budget['currency']} ({least['money']:,.0f} to {most['money']:,.0f}), at "
            f"{budget['price_per_device_hour']:g} an hour of one device",
        ),
        (
            "energy",
            "unknown for this device"
            if expected["kilowatt_hours"] is None
            else f"{expected['kilowatt_hours']:,.3g} kWh ({least['kilowatt_hours']:,.3g} to "
            f"{most['kilowatt_hours']:,.3g})",
        ),
        (
            "predicted loss",
            f"{loss['nats_per_token']:.3f} ({loss['interval'][0]:.3f} to {loss['interval'][1]:.3f}) {loss['meaning']}"
            if loss["interval"]
            else loss["meaning"],
        ),
        *(
            (
                key.replace("with_", "").replace("_", " "),
                f"{loss[key]['nats_per_token']:.3f} with {loss[key]['parameters']:.3g} parameters and "
                f"{loss[key]['tokens']:.3g} tokens",
            )
            for key in ("with_half_the_budget", "with_twice_the_budget")
            if loss[key]["nats_per_token"]
        ),
        *describe_ways(plan),
        *(("assumed", one) for one in plan["assumptions"]),
        *(("warning", one) for one in plan["warnings"]),
    ]
    width = max(len(name) for name, _ in rows)
    lines = []
    for name, value in rows:
        wrapped = textwrap.wrap(value, 118 - width)
        lines += [f"{name if number == 0 else '':{width}}  {line}" for number, line in enumerate(wrapped)]
    return "\n".join(lines)


def describe_law(law: dict, followed: bool) -> str:
    ratio = law["tokens"] / law["parameters"]
    return (
        f"{law['parameters']:.4g} parameters ({law['counts']}), {law['tokens']:.4g} tokens, {ratio:.1f} a parameter"
        + (" <- followed" if followed else "")
    )


def describe_ways(plan: dict) -> list[tuple[str, str]]:
    """Return a row for each way to train on little text; none where the text is enough."""
    hours_per_flop = plan["cost"]["expected"]["device_hours"] / plan["flops"]["training"]
    rows = []
    for way in plan.get("scarce_text", []):
        low, high = way["equal_to"]
        factor = f"{low:g}" if low == high else f"{low:g} to {high:g}"
        hours = describe_hours(hours_per_flop * way["flops"])
        take = " <- take" if way["take"] else ""
        rows.append(("little text", f"{way['way']}: {hours}, equal to {factor} times the text; {way['keys']}{take}"))
    if rows:
        rows.append(("little text", f"these factors: {MEASURED_ON}; recipes/experiments/README.md#little-text"))
    return rows


def describe_memory(memory: dict) -> list[tuple[str, str]]:
    rows = []
    for one in memory["strategies"]:
        used = [(name.replace("_", " "), number) for name, number in one["bytes"].items() if number]
        parts = ", ".join(f"{name} {number / 1e9:.2f}" for name, number in used)
        name = one["accelerate_config"].removesuffix(".yaml")
        recomputed = " + activation checkpointing" if one["activation_checkpointing"] else ""
        batch = one["per_device_train_batch_size"]
        fits = f"batch {batch} a device" if batch else "does not fit"
        chosen = " <- chosen" if one == memory["chosen"] else ""
        rows.append(("memory", f"{name}{recomputed}: {fits}; GB: {parts}{chosen}"))
    return rows


def size(num_bytes: float) -> str:
    """Format an amount of text with its largest decimal unit."""
    for unit, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB")):
        if num_bytes >= unit:
            return f"{num_bytes / unit:.4g} {name}"
    return f"{num_bytes / 1e3:.4g} kB"
