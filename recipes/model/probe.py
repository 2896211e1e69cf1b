# SPDX-License-Identifier: Apache-2.0
"""Statistics from inside the model, on one fixed batch, at each evaluation, uncompiled.

BloombergGPT's first failure stayed invisible in the loss for days; the gain of the first layer's norm showed it
(https://huggingface.co/papers/2303.17564, appendix C). These values are recorded:

| key | value |
|---|---|
| `probe/first_norm_gain_{mean,min,max}` | gain of the first layer's first norm |
| `probe/logit_rms`, `probe/logit_max` | root mean square and largest absolute value of the logits |
| `probe/attention_entropy_{min,mean}` | mean entropy of a layer's attention, nats: lowest layer, mean of all layers |
| `probe/attention_max` | each position's largest attention weight, averaged over a layer: highest layer |
| `probe/hidden_rms_{first,last,max}` | root mean square of a layer's output: first, last and largest |
| `probe/dead_unit_fraction` | feed-forward units near zero at every position: worst layer |
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from mixture.batches import document_positions
from mixture.order import TokenMixture
from model.attention import eager
from model.families import attention, down_projection, first_norm, layers, logits


PROBE_SEQUENCES, PROBE_TOKENS = 2, 256  # few, since eager attention holds all weights of a layer
DEAD_UNIT = 1e-6  # times the root mean square of a layer's units


def make_probe_batch(mixture: TokenMixture, device: torch.device) -> list[Tensor]:
    """Return the probe's batch: the beginnings of the first training sequences."""
    tokens = np.stack([mixture.window(index)[: PROBE_TOKENS + 1] for index in range(PROBE_SEQUENCES)])
    input_ids, labels = tokens[:, :-1].copy(), tokens[:, 1:].copy()
    positions = document_positions(input_ids, mixture.shards.ends.bos)
    return [torch.from_numpy(array).to(device) for array in (input_ids, positions, labels)]


@torch.no_grad()
def probe(model: nn.Module, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> dict[str, float]:
    """Run a batch through a prepared model and return the values in this module's docstring.

    Every process must call it with the same batch.

    Args: int64 tensors (batch_size, sequence_length) on the model's device; see SummedLoss.forward.
    """
    language_model = getattr(model, "module", model).language_model
    seen: dict[str, list[Tensor]] = {"hidden": [], "entropy": [], "greatest": [], "alive": [], "logits": []}

    def watch_attention(module, _, output) -> None:
        weights = output[1].float()  # (batch_size, num_attention_heads, sequence_length, sequence_length)
        seen["entropy"].append(-(weights * weights.clamp(min=1e-20).log()).sum(-1).mean())
        seen["greatest"].append(weights.amax(-1).mean())

    def watch_units(module, inputs) -> None:
        units = inputs[0].float().abs().flatten(0, -2).amax(0)  # (intermediate_size,)
        seen["alive"].append((units > DEAD_UNIT * units.square().mean().sqrt()).float().mean())

    def watch_logits(module, _, output) -> None:
        scores = logits(language_model, output.last_hidden_state)
        seen["logits"].append(torch.stack([rms(scores), scores.float().abs().max()]))

    def watch_hidden(module, _, output) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        seen["hidden"].append(rms(hidden))

    def watch_gain(module, _) -> None:
        # Under FSDP2 a process holds the whole weight only during the forward pass.
        seen["gain"] = [module.weight.to(torch.float32, copy=True)]

    hooks = [language_model.base_model.register_forward_hook(watch_logits)]  # the loss computes logits in chunks only
    hooks.append(first_norm(layers(language_model)[0]).register_forward_pre_hook(watch_gain))
    for layer in layers(language_model):
        hooks.append(attention(layer).register_forward_hook(watch_attention))
        hooks.append(down_projection(layer).register_forward_pre_hook(watch_units))
        hooks.append(layer.register_forward_hook(watch_hidden))
    model.eval()
    try:
        with eager(language_model):
            model(input_ids, position_ids, labels)
    finally:
        model.train()
        for hook in hooks:
            hook.remove()
    gain, hidden, entropy = seen["gain"][0], torch.stack(seen["hidden"]), torch.stack(seen["entropy"])
    values = {
        "first_norm_gain_mean": gain.mean(),
        "first_norm_gain_min": gain.min(),
        "first_norm_gain_max": gain.max(),
        "logit_rms": seen["logits"][0][0],
        "logit_max": seen["logits"][0][1],
        "attention_entropy_min": entropy.min(),
        "attention_entropy_mean": entropy.mean(),
        "attention_max": torch.stack(seen["greatest"]).max(),
        "hidden_rms_first": hidden[0],
        "hidden_rms_last": hidden[-1],
        "hidden_rms_max": hidden.max(),
        "dead_unit_fraction": 1 - torch.stack(seen["alive"]).min(),
    }
    return {
        f"probe/{name}": value for name, value in zip(values, torch.stack(list(values.values())).tolist(), strict=True)
    }


def rms(tensor: Tensor) -> Tensor:
    return tensor.float().square().mean().sqrt()


def find_warnings(values: dict[str, float], before: dict[str, float] | None) -> list[str]:
    """Return a warning for each value that looks wrong, alone or beside the previous probe's."""
    warnings = []
    broken = [name for name, value in values.items() if not math.isfinite(value)]
    if broken:
        return [f"{', '.join(broken)} not finite"]
    if values["probe/hidden_rms_max"] > 1000 * max(values["probe/hidden_rms_first"], 1e-12):
        warnings.append(f"a layer's output has grown to {values['probe/hidden_rms_max']:.3g}: an exploding layer")
    if values["probe/dead_unit_fraction"] > 0.5:
        warnings.append(f"{values['probe/dead_unit_fraction']:.0%} of a layer's feed-forward units are dead")
    if values["probe/attention_entropy_min"] < 0.01:
        warnings.append("a layer's attention has collapsed onto single positions")
    if values["probe/logit_max"] > 100:
        warnings.append(f"logits have grown to {values['probe/logit_max']:.3g}")
    for name in ("probe/first_norm_gain_mean", "probe/first_norm_gain_max", "probe/logit_rms"):
        if before and not 0.5 < (abs(values[name]) + 0.1) / (abs(before[name]) + 0.1) < 2:
            warnings.append(f"{name} went from {before[name]:.3g} to {values[name]:.3g} between two evaluations")
    return warnings
