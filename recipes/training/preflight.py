# SPDX-License-Identifier: Apache-2.0
"""`pretrain.py --dry_run`: what will be trained, and checks for mistakes that no error message reports.

Each check runs the parts that training uses, on this machine, uncompiled, on a few sequences of the training text. It
is written to preflight.json as {"name", "passed", "found", "expected"}, which the report shows.
"""

import copy
import math
import os
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from atomic_files import write_json
from mixture.batches import MicroBatches, document_positions
from mixture.fitting import decide_length
from mixture.labels import IGNORED_LABEL
from mixture.phases import make_mixture, schedule_phases
from mixture.shards import TokenShards, token_byte_lengths
from mixture.skips import SkippedDocuments
from model.continued import with_shape_of
from model.summed_loss import build_summed_loss, find_missing_compiler
from planning.devices import UTILISATION_FRACTION
from planning.memory import memory_by_part
from planning.model_shape import count_parameters, training_flops_per_token
from recipe_config import Recipe, RecipeError, Training
from run_folder import require
from training.optimizers import build_optimizers
from training.schedule import accumulation_steps, learning_rate_at
from training.utilisation import peak_flops


CHECKED_TOKENS = 256  # of a sequence; what is checked does not depend on more
OVERFIT_STEPS = 40
BORDERS, BORDER_BATCHES = 8, 512  # as many are looked at, in at most so many batches


def dry_run(recipe: Recipe, accelerator: Accelerator) -> None:
    """Build everything, print the plan and check it on this machine; writes nothing but preflight.json.

    Raises: RecipeError: a check failed.
    """
    tokens, tokenizer_folder = require(recipe, "tokenize"), require(recipe, "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    shards = TokenShards(tokens, [source.name for source in recipe.data.sources], recipe.training.sequence_length)
    training, shares, notes = decide_length(recipe, shards)
    micro_steps = accumulation_steps(training, accelerator.num_processes)
    phases = schedule_phases(recipe.data, shares, training.max_steps)
    mixture = make_mixture(shards, phases, training.tokens_per_step // training.sequence_length, recipe.run.seed)
    skipped, byte_lengths = SkippedDocuments(shards, recipe.data.skip.documents), token_byte_lengths(tokenizer_folder)
    batches = MicroBatches(mixture, skipped, byte_lengths, training.per_device_train_batch_size, 0, 1)
    set_seed(recipe.run.seed)
    model = build_summed_loss(recipe, training, tokenizer, tokenizer_folder, accelerator, compiled=False)
    recipe.model = with_shape_of(recipe.model, model.language_model.config)
    model.to(accelerator.device)
    plan = describe_plan(recipe, training, phases, len(tokenizer), micro_steps, accelerator, find_missing_compiler())
    rates = [learning_rate_at(step, training.max_steps, training) for step in plan["learning_rate_steps"]]
    plan |= {"mixture": phases[0]["shares"], "learning_rates": rates, "notes": notes}
    from_scratch = recipe.model.from_pretrained is None
    checks = run_checks(
        model, build_optimizers(model, training), batches, tokenizer, training, rates, from_scratch=from_scratch
    )
    show_preflight(plan, checks, accelerator)
    if accelerator.is_main_process:
        write_json(Path(recipe.run.output_dir) / "preflight.json", {"plan": plan, "checks": checks})
    failed = [check for check in checks if not check["passed"]]
    if failed:
        raise RecipeError(*(f"{one['name']}: {one['found']}; expected {one['expected']}" for one in failed))


def describe_plan(
    recipe: Recipe,
    training: Training,
    phases: list[dict],
    vocab_size: int,
    micro_steps: int,
    accelerator: Accelerator,
    missing_compiler: str | None,
) -> dict:
    """Return what will be trained, on what, and what it takes, as JSON values; units are in the keys."""
    model, num_processes = recipe.model, accelerator.num_processes
    counts = count_parameters(model, vocab_size)
    tokens = training.max_steps * training.tokens_per_step
    lengths = [phase.get("sequence_length", training.sequence_length) for phase in phases]
    ends = [*(phase["after_step"] for phase in phases[1:]), training.max_steps]
    flops = sum(
        training_flops_per_token(model, vocab_size, length) * (end - phase["after_step"]) * training.tokens_per_step
        for phase, length, end in zip(phases, lengths, ends, strict=True)
    )
    longest = max(lengths)
    peak = peak_flops(accelerator.device)
    memory = memory_by_part(
        model,
        vocab_size,
        longest,
        training.per_device_train_batch_size * training.sequence_length // longest,
        checkpointing=training.gradient_checkpointing,
        compiled=training.torch_compile and missing_compiler is None,
        muon=training.optimizer == "muon",
        compute_bytes=4 if accelerator.mixed_precision == "no" else 2,
    )
    if accelerator.device.type == "cuda":
        available_bytes = torch.cuda.get_device_properties(accelerator.device).total_memory
    else:
        available_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    seconds = peak and flops / (peak * num_processes * UTILISATION_FRACTION)
    last = training.max_steps
    return {
        "parameters": counts,
        "tokens": tokens,
        "tokens_per_parameter": tokens / counts["total"],
        "steps": last,
        "tokens_per_step": training.tokens_per_step,
        "micro_steps": micro_steps,
        "num_processes": num_processes,
        "flops": flops,
        "memory_bytes": memory,
        "memory_available_bytes": available_bytes,
        "seconds": seconds,
        "seconds_assume_utilisation_fraction": UTILISATION_FRACTION,
        "files": [str(Path(recipe.run.output_dir) / name) for name in ("tokens", "tokenizer", "checkpoints", "model")],
        "learning_rate_steps": sorted({max(1, round(last * tenth / 9)) for tenth in range(10)}),
        "compiled": training.torch_compile and missing_compiler is None,
    }


def run_checks(
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    batches: MicroBatches,
    tokenizer: PreTrainedTokenizerBase,
    training: Training,
    rates: list[float],
    *,
    from_scratch: bool = True,
) -> list[dict]:
    """Run all checks.

    Args:
        model: SummedLoss with its initial weights, on the device, not prepared.
        optimizers: of it.
        batches: of one process.
        tokenizer: of the run.
        training: the settings to train with.
        rates: learning rates over the whole run.
        from_scratch: the weights know nothing yet.
    """
    checks, device = [], next(model.parameters()).device
    vocab_size, eos_token_id = len(tokenizer), tokenizer.eos_token_id

    def check(name: str, passed: bool, found: str, expected: str) -> None:
        checks.append({"name": name, "passed": bool(passed), "found": found, "expected": expected})

    # Eight sequences of the training text.
    needed = -(-8 // batches.batch_size)
    items = [batches[k] for k in range(needed)]
    inputs, positions, labels = (
        torch.cat([item[key] for item in items])[:8, :CHECKED_TOKENS].to(device)
        for key in ("input_ids", "position_ids", "labels")
    )
    model.eval()  # no dropout: the same twice
    scored = int((labels != IGNORED_LABEL).sum())

    with torch.no_grad():
        first = model(inputs, positions, labels)[1].item() / max(1, scored)
    uniform = math.log(vocab_size)
    if from_scratch:
        right, text = abs(first - uniform) < 0.5, f"near ln({vocab_size:,}) = {uniform:.3f}: the model knows nothing"
    else:
        right, text = first < uniform, f"below ln({vocab_size:,}) = {uniform:.3f}: the model knows something"
    check("first loss", right, f"{first:.3f} nats per token", text)

    kept = labels[:, :-1] != IGNORED_LABEL
    shifted = (labels[:, :-1] == inputs[:, 1:])[kept].all().item()
    found = "each label is the next input" if shifted else "labels are not the next inputs"
    check("label shift", shifted, found, "each label is the next input")

    highest = max(int(inputs.max()), int(labels.max()))
    check("token ids", highest < vocab_size, f"highest {highest:,}", f"below the vocabulary's {vocab_size:,}")

    # A document begins with the end of text before it; long documents leave few borders, so they are looked for.
    begun = misplaced = looked = 0
    while begun < BORDERS and looked < BORDER_BATCHES:
        item = batches[looked]
        begins = item["input_ids"][:, 1:] == eos_token_id
        begun += int(begins.sum())
        misplaced += int(((item["position_ids"][:, 1:] == 0) != begins).sum())
        looked += 1
    text = f"{begun} documents begin within {looked * batches.batch_size} sequences, {misplaced} misplaced"
    expected = "some, and a position of 0 at each end of text and nowhere else"
    check("document borders", begun and not misplaced, text, expected)
    start = tokenizer("text", add_special_tokens=True).input_ids
    found = f"begin of text {tokenizer.bos_token_id}, end of text {eos_token_id}, added by the tokenizer: "
    found += str([token for token in start if token in tokenizer.all_special_ids] or "none")
    alone = not any(token in tokenizer.all_special_ids for token in start)
    check("special tokens", eos_token_id is not None and alone, found, "an end of text, and none added while encoding")

    row = inputs[:1].clone()
    row[row == eos_token_id] = (eos_token_id + 1) % vocab_size
    border = row.shape[1] // 2
    row[:, border - 1] = eos_token_id
    both = torch.from_numpy(document_positions(row.cpu().numpy(), eos_token_id)).to(device)
    other = row.clone()
    other[:, : border - 1] = (other[:, : border - 1] + 1) % vocab_size
    other[other == eos_token_id] = (eos_token_id + 1) % vocab_size
    other[:, border - 1] = eos_token_id
    moved = largest_change(model, row, other, both, slice(border, None))
    within = largest_change(model, row, other, both, slice(0, border - 1))
    text = f"the second document moves by {moved:.2g}, the changed first by {within:.2g}"
    if training.document_masking:
        check("documents apart", moved == 0 < within, text, "0 in the second: documents do not see each other")
    else:
        check("documents apart", moved > 0, text, "above 0: training.document_masking is off")

    whole = gradients(model, [(inputs, positions, labels)])
    parts = gradients(model, list(zip(*(tensor.split(1) for tensor in (inputs, positions, labels)), strict=True)))
    apart = max(
        (one - other).norm().item() / (one.norm().item() + 1e-12) for one, other in zip(whole, parts, strict=True)
    )
    text = "at most 0.001: how a step is cut into micro-steps does not matter"
    check("accumulation", apart < 1e-3, f"8 by 1 and 1 by 8 sequences differ by {apart:.1e} of a gradient", text)

    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    held = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in model.parameters() if parameter.requires_grad}
    gains = sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"] if p.ndim < 2)
    matrices = sum(p.numel() for group in groups if not group["weight_decay"] for p in group["params"] if p.ndim >= 2)
    complete = sorted(held) == sorted(trained)
    text = f"{gains:,} gains decay, {matrices:,} of matrices do not; " + ("" if complete else "not ")
    right = complete and (training.decay_gains or not gains) and (not matrices or not training.weight_decay)
    expected = "matrices decay, gains " + ("too" if training.decay_gains else "do not") + ", none is missing"
    check("decay groups", right, f"{text}every weight is in one group", expected)

    before, after = overfit(model, inputs[:1], positions[:1], labels[:1])
    text = f"{before:.3f} to {after:.3f} nats per token in {OVERFIT_STEPS} steps"
    check("one batch is learned", after < before / 2, text, "at most half")

    shown = ", ".join(f"{rate:.2e}" for rate in rates)
    peak = max(rates) <= training.learning_rate and min(rates) >= 0
    text = f"between 0 and {training.learning_rate:g}, lowest at the ends"
    check("learning rate", peak and rates[-1] <= max(rates), shown, text)
    return checks


@torch.no_grad()
def largest_change(model: nn.Module, row: Tensor, other: Tensor, positions: Tensor, where: slice) -> float:
    """Return how much hidden states at most change, within `where`, when one sequence takes the place of another."""
    body = model.language_model.model
    options = {"position_ids": positions if model.document_masking else None, "use_cache": False}
    before, after = (body(input_ids=tokens, **options).last_hidden_state[:, where] for tokens in (row, other))
    return (before - after).abs().max().item()


def gradients(model: nn.Module, batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """Return the gradients of the summed loss over batches, and leave none behind."""
    model.zero_grad()
    for batch in batches:
        model(*batch)[0].backward()
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    model.zero_grad()
    return found


def overfit(model: nn.Module, *batch: Tensor) -> tuple[float, float]:
    """Train a copy of a model on one batch; return the loss before and after."""
    learner = copy.deepcopy(model)
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    scored, losses = max(1, int((batch[2] != IGNORED_LABEL).sum())), []
    for _ in range(OVERFIT_STEPS + 1):
        optimizer.zero_grad()
        minimised, nats = learner(*batch)
        losses.append(nats.item() / scored)
        (minimised / scored).backward()
        optimizer.step()
    return losses[0], losses[-1]


def show_preflight(plan: dict, checks: list[dict], accelerator: Accelerator) -> None:
    """Print a plan and its checks."""
    parameters, memory = plan["parameters"], plan["memory_bytes"]
    parts = ("embedding", "projection", "attention", "feed_forward", "norms")
    lines = [
        f"{parameters['total']:,} parameters: " + ", ".join(f"{parameters[part]:,} {part}" for part in parts),
        f"{plan['tokens']:,} tokens, {plan['tokens_per_parameter']:.1f} per parameter, in {plan['steps']:,} steps of "
        f"{plan['tokens_per_step']:,} = {plan['micro_steps']} micro-steps on {plan['num_processes']} processes",
        f"{plan['flops']:.3g} FLOPs, "
        + ("device's peak unknown" if plan["seconds"] is None else f"about {plan['seconds'] / 60:,.1f} minutes")
        + f" at {plan['seconds_assume_utilisation_fraction']:.0%} of the peak",
        f"memory of a process {sum(memory.values()) / 1e9:.2f} of {plan['memory_available_bytes'] / 1e9:.1f} GB: "
        + ", ".join(f"{size / 1e9:.2f} {part}" for part, size in memory.items()),
        "mixture by bytes: " + ", ".join(f"{share:.1%} {name}" for name, share in plan["mixture"].items()),
        "files: " + ", ".join(plan["files"]),
        *(f"note: {note}" for note in plan["notes"]),
        *(
            f"{'ok    ' if check['passed'] else 'FAILED'} {check['name']}: {check['found']} ({check['expected']})"
            for check in checks
        ),
    ]
    for line in lines:
        accelerator.print(f"preflight: {line}")
