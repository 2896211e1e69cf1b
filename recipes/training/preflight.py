# SPDX-License-Identifier: Apache-2.0
"""`pretrain.py --dry_run`: the plan of a run, and checks for mistakes that raise no error.

Each check runs the parts that training uses, on this machine, uncompiled, on a few sequences of the training text.
preflight.json has the plan and, of each check, {"name", "passed", "found", "expected"}; the report shows them.
"""

import copy
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from atomic_files import write_json
from mixture.batches import MicroBatches, document_positions
from mixture.labels import IGNORED_LABEL
from mixture.phases import make_mixture, schedule_phases
from model.continued import with_shape_of
from model.llama import count_module_parameters
from model.summed_loss import SummedLoss, build_summed_loss
from planning.devices import machine_memory_bytes, stated_utilisation
from planning.memory import count_teachers, memory_by_part
from planning.model_shape import count_parameters, training_flops_per_token
from planning.scarce_text import FORWARD_FRACTION
from recipe_config import Model, Recipe, RecipeError, Training
from recorded_files import recording
from training.compilation import decide_compilation
from training.inputs import check_inputs, read_inputs
from training.optimizers import build_optimizers
from training.parallelism import memory_strategy
from training.schedule import accumulation_steps, learning_rate_at
from training.teacher_checks import refuse_changed_teachers
from training.utilisation import peak_flops
from vocabulary.document_ends import adds_at_most_bos


CHECKED_SEQUENCES, CHECKED_TOKENS = 8, 256  # more would not change what is checked
OVERFIT_STEPS = 40
BORDERS, BORDER_BATCHES = 8, 512  # look for so many document borders, in at most so many batches
FIRST_LOSS_TOLERANCE = 0.3  # nats per token
ACCUMULATION_TOLERANCE, MIXED_ACCUMULATION_TOLERANCE = 1e-3, 2e-2  # of a gradient's norm, in fp32 and under autocast


@dataclass(frozen=True)
class Setup:
    """The parts of a run that the checks look at.

    Attributes:
        shape: the recipe's model section.
        training: the settings to train with.
        tokenizer: of the run.
        batches: of one process.
        learning_rates: over the whole run, first and last step included.
        model: with its initial weights, on the accelerator's device, not prepared.
        optimizers: of the model.
        accelerator: its mixed precision is that of the checks.
    """

    shape: Model
    training: Training
    tokenizer: PreTrainedTokenizerBase
    batches: MicroBatches
    learning_rates: list[float]
    model: SummedLoss
    optimizers: list[torch.optim.Optimizer]
    accelerator: Accelerator

    def read_sequences(self, num_sequences: int = CHECKED_SEQUENCES) -> tuple[Tensor, Tensor, Tensor]:
        """Return input_ids, position_ids and labels of the first sequences, truncated to CHECKED_TOKENS."""
        items = [self.batches[k] for k in range(-(-num_sequences // self.batches.batch_size))]
        return tuple(
            torch.cat([item[key] for item in items])[:num_sequences, :CHECKED_TOKENS].to(self.accelerator.device)
            for key in ("input_ids", "position_ids", "labels")
        )


def dry_run(recipe: Recipe, accelerator: Accelerator) -> None:
    """Print the plan of a run and check it on this machine; write nothing but preflight.json.

    Raises: RecipeError: a check failed, or a device has too little memory for the checks.
    """
    checked = without_missing_members(recipe)
    refuse_changed_teachers(checked)
    check_inputs(recipe)
    inputs = read_inputs(recipe, accelerator.num_processes)
    training, tokenizer = inputs.training, inputs.tokenizer
    taught = training.model_copy(update={"distillation": checked.training.distillation})
    micro_steps = accumulation_steps(training, accelerator.num_processes)
    phases = schedule_phases(recipe.data, inputs.shares, training.max_steps)
    sequences_per_step = training.tokens_per_step // training.sequence_length
    mixture = make_mixture(inputs.shards, phases, sequences_per_step, recipe.run.seed)
    batch_size = training.per_device_train_batch_size
    batches = MicroBatches(mixture, inputs.skipped_documents, inputs.byte_lengths, batch_size, 0, 1, training.goldfish)
    set_seed(recipe.run.seed)
    if recipe.model.from_pretrained is None:  # before the machine's memory, which is checked too, runs out
        size = 4 * count_parameters(recipe.model, recipe.tokenizer.vocab_size)["total"]
        refuse_little_memory([(size, True)], accelerator)
    model = build_summed_loss(checked, taught, tokenizer, inputs.tokenizer_folder, accelerator, compiled=False)
    recipe.model = with_shape_of(recipe.model, model.language_model.config)
    refuse_little_memory([(each.nbytes, each.requires_grad) for each in model.parameters()], accelerator)
    model.to(accelerator.device).eval()  # without dropout, so that the same batch gives the same loss
    optimizers = build_optimizers(model, training)

    rows = model.language_model.get_input_embeddings().num_embeddings
    attention = model.language_model.config._attn_implementation
    plan = describe_plan(recipe, training, phases, rows, micro_steps, attention, accelerator)
    count_exactly(plan["parameters"], model)
    rates = [learning_rate_at(step, training.max_steps, training) for step in plan["learning_rate_steps"]]
    plan |= {"mixture": phases[0]["shares"], "learning_rates": rates, "notes": inputs.notes}
    if taught.distillation != training.distillation:
        plan["notes"] = [*inputs.notes, "the checks are without members: not all of them are there; the plan has them"]
    setup = Setup(recipe.model, training, tokenizer, batches, rates, model, optimizers, accelerator)
    checks = run_checks(setup)
    print_preflight(plan, checks, accelerator)
    if accelerator.is_main_process:
        run = Path(recipe.run.output_dir)
        with recording(run, "preflight.json"):
            write_json(run / "preflight.json", {"plan": plan, "checks": checks})
    failed = [check for check in checks if not check["passed"]]
    if failed:
        raise RecipeError(*(f"{one['name']}: {one['found']}; expected {one['expected']}" for one in failed))


def memory_available(device: torch.device) -> int:
    """Return the bytes of a GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return machine_memory_bytes()


def refuse_little_memory(sizes: list[tuple[int, bool]], accelerator: Accelerator) -> None:
    """Refuse a device that cannot hold what check_overfitting does: two models, a gradient and AdamW's two moments.

    Args: sizes: bytes of each parameter, and whether it is trained.
    Raises: RecipeError: with both sizes, and what to do.
    """
    needed = sum(size * (2 + 3 * trained) for size, trained in sizes)
    if needed > (available := memory_available(accelerator.device)):
        raise RecipeError(explain_little_memory(f"{needed / 1e9:,.1f} GB on each device, of {available / 1e9:,.1f}"))


def explain_little_memory(found: str) -> str:
    return (
        f"a dry run does not divide the model, and needs {found}: run it with fewer layers, which its checks do not "
        "depend on (--model.num_hidden_layers=2), or from a smaller base of the family (--model.from_pretrained); "
        "recipes/plan_run.py plans the memory of a new model"
    )


def without_missing_members(recipe: Recipe) -> Recipe:
    """Return a recipe that learns from no members where one is not there: not trained yet, or deleted since."""
    if all((folder / "model").exists() for folder in recipe.member_folders()):
        return recipe
    others = recipe.training.distillation.model_copy(update={"members": 0})
    training = recipe.training.model_copy(update={"distillation": others if others.teachers else None})
    return recipe.model_copy(update={"training": training})


def describe_plan(
    recipe: Recipe,
    training: Training,
    phases: list[dict],
    vocab_size: int,
    micro_steps: int,
    attention: str,
    accelerator: Accelerator,
) -> dict:
    """Return the size, length and cost of a run as JSON values; units are in the keys."""
    model, num_processes = recipe.model, accelerator.num_processes
    counts = count_parameters(model, vocab_size)
    tokens = training.max_steps * training.tokens_per_step
    lengths = [phase.get("sequence_length", training.sequence_length) for phase in phases]
    ends = [*(phase["after_step"] for phase in phases[1:]), training.max_steps]
    flops = sum(
        training_flops_per_token(model, vocab_size, length) * (end - phase["after_step"]) * training.tokens_per_step
        for phase, length, end in zip(phases, lengths, ends, strict=True)
    )
    flops *= 1 + count_teachers(training) * FORWARD_FRACTION
    longest = max(lengths)
    peak = peak_flops(accelerator.device)
    compiled, _ = decide_compilation(training, accelerator)
    strategy, num_devices = memory_strategy(accelerator)
    memory = memory_by_part(
        model,
        vocab_size,
        longest,
        training.per_device_train_batch_size * training.sequence_length // longest,
        strategy=strategy,
        num_devices=num_devices,
        checkpointing=training.gradient_checkpointing,
        compiled=compiled,
        muon=training.optimizer == "muon",
        average=training.average is not None,
        num_teachers=count_teachers(training),
        compute_bytes=4 if accelerator.mixed_precision == "no" else 2,
        device_type=accelerator.device.type,
        plain_attention=attention == "eager",
    )
    _, utilisation, _ = stated_utilisation(accelerator.device.type, attention)
    seconds = peak and flops / (peak * num_processes * utilisation)
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
        "memory_available_bytes": memory_available(accelerator.device),
        "seconds": seconds,
        "seconds_assume_utilisation_fraction": utilisation,
        "files": [str(Path(recipe.run.output_dir) / name) for name in ("tokens", "tokenizer", "checkpoints", "model")],
        "learning_rate_steps": sorted({max(1, round(last * tenth / 9)) for tenth in range(10)}),
        "compiled": compiled,
        "attention": attention,
    }


def count_exactly(counts: dict[str, int], model: SummedLoss) -> None:
    """Add what the shape of a continued model does not have, its other norms and biases, to the norms."""
    counted = count_module_parameters(model.language_model)
    total = counted["total"] - counted["adapters"]
    counts["norms"] += total - counts["total"]
    counts["total"] = total


def run_checks(setup: Setup) -> list[dict]:
    """Return the result of each check as preflight.json has it.

    The checks after "token ids" need ids that the model has rows for, so they are left out if it fails.
    """
    results = []
    for name, check in CHECKS.items():
        passed, found, expected = check(setup)
        results.append({"name": name, "passed": bool(passed), "found": found, "expected": expected})
        if check is check_token_ids and not passed:
            break
    return results


def check_token_ids(setup: Setup) -> tuple[bool, str, str]:
    """Check that every token has a row in the embedding."""
    inputs, _, labels = setup.read_sequences()
    vocab_size, highest = len(setup.tokenizer), max(int(inputs.max()), int(labels.max()))
    return highest < vocab_size, f"highest {highest:,}", f"below the vocabulary's {vocab_size:,}"


def check_first_loss(setup: Setup) -> tuple[bool, str, str]:
    """Check that new weights know nothing, or that loaded ones know something.

    The logits of new weights have a variance of hidden_size * initializer_range ** 2, since the last norm gives hidden
    states a mean square of 1. Half of it adds to the loss of uniform guesses.
    """
    inputs, positions, labels = setup.read_sequences()
    scored = int((labels != IGNORED_LABEL).sum())
    with torch.no_grad(), setup.accelerator.autocast():
        first = setup.model(inputs, positions, labels)[1].item() / max(1, scored)
    vocab_size, shape = len(setup.tokenizer), setup.shape
    uniform = math.log(vocab_size)
    found = f"{first:.3f} nats per token"
    if shape.from_pretrained is not None:
        return first < uniform, found, f"below ln({vocab_size:,}) = {uniform:.3f}: the model knows something"
    untrained = uniform + shape.hidden_size * shape.initializer_range**2 / 2
    expected = f"within {FIRST_LOSS_TOLERANCE} of ln({vocab_size:,}) + hidden_size * initializer_range^2 / 2 = "
    return abs(first - untrained) < FIRST_LOSS_TOLERANCE, found, f"{expected}{untrained:.3f}: the model knows nothing"


def check_label_shift(setup: Setup) -> tuple[bool, str, str]:
    """Check that labels are shifted by one token."""
    inputs, _, labels = setup.read_sequences()
    kept = labels[:, :-1] != IGNORED_LABEL
    shifted = (labels[:, :-1] == inputs[:, 1:])[kept].all().item()
    found = "each label is the next input" if shifted else "labels are not the next inputs"
    return shifted, found, "each label is the next input"


def check_document_borders(setup: Setup) -> tuple[bool, str, str]:
    """Check that positions begin at 0 at each token that begins a document, and nowhere else."""
    started = misplaced = looked = 0
    while started < BORDERS and looked < BORDER_BATCHES:  # long documents leave few borders
        item = setup.batches[looked]
        begins = item["input_ids"][:, 1:] == setup.tokenizer.bos_token_id
        started += int(begins.sum())
        misplaced += int(((item["position_ids"][:, 1:] == 0) != begins).sum())
        looked += 1
    sequences = looked * setup.batches.batch_size
    found = f"{started} documents begin within {sequences} sequences, {misplaced} misplaced"
    return started and not misplaced, found, "some, and a position of 0 where each begins and nowhere else"


def check_special_tokens(setup: Setup) -> tuple[bool, str, str]:
    """Check that documents have a begin and an end, and that encoding adds at most the begin."""
    tokenizer = setup.tokenizer
    encoded = tokenizer("text", add_special_tokens=True).input_ids
    added = [token for token in encoded if token in tokenizer.all_special_ids]
    ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
    found = f"begin of text {ends[0]}, end of text {ends[1]}, added by the tokenizer: {added or 'none'}"
    expected = "both, those of the token shards, and at most the begin added while encoding"
    return ends == setup.batches.mixture.shards.ends and adds_at_most_bos(tokenizer), found, expected


def check_documents_apart(setup: Setup) -> tuple[bool, str, str]:
    """Check that changing one document moves the hidden states of the next only without document masking."""
    bos_token_id, vocab_size = setup.tokenizer.bos_token_id, len(setup.tokenizer)
    not_bos = (bos_token_id + 1) % vocab_size
    row = setup.read_sequences()[0][:1].clone()
    row[row == bos_token_id] = not_bos
    border = row.shape[1] // 2
    row[:, border - 1] = bos_token_id
    other = row.clone()
    other[:, : border - 1] = (other[:, : border - 1] + 1) % vocab_size
    other[other == bos_token_id] = not_bos
    other[:, border - 1] = bos_token_id
    positions = torch.from_numpy(document_positions(row.cpu().numpy(), bos_token_id)).to(row.device)
    change = (hidden_states(setup, row, positions) - hidden_states(setup, other, positions)).abs()
    within, moved = change[:, : border - 1].max().item(), change[:, border:].max().item()
    found = f"the second document moves by {moved:.2g}, the changed first by {within:.2g}"
    if setup.training.document_masking:
        return moved == 0 < within, found, "0 in the second: documents do not see each other"
    return moved > 0, found, "above 0: training.document_masking is off"


@torch.no_grad()
def hidden_states(setup: Setup, input_ids: Tensor, positions: Tensor) -> Tensor:
    """Return the last hidden states of sequences, (batch_size, sequence_length, hidden_size)."""
    with setup.accelerator.autocast():
        return setup.model.hidden_states(input_ids, positions)


def check_accumulation(setup: Setup) -> tuple[bool, str, str]:
    """Check that the gradient does not depend on how a batch is divided into micro-steps."""
    batch = setup.read_sequences()
    whole = gradients(setup, [batch])
    parts = gradients(setup, list(zip(*(tensor.split(1) for tensor in batch), strict=True)))
    apart = max(
        (one - other).norm().item() / (one.norm().item() + 1e-12) for one, other in zip(whole, parts, strict=True)
    )
    in_fp32 = setup.accelerator.mixed_precision == "no"
    most = ACCUMULATION_TOLERANCE if in_fp32 else MIXED_ACCUMULATION_TOLERANCE
    found = f"8 by 1 and 1 by 8 sequences differ by {apart:.1e} of a gradient"
    return apart < most, found, f"at most {most}: a step's division into micro-steps does not matter"


def gradients(setup: Setup, batches: list[tuple[Tensor, Tensor, Tensor]]) -> list[Tensor]:
    """Return the gradients of the summed loss over batches, and clear them from the model."""
    setup.model.zero_grad()
    for batch in batches:
        with setup.accelerator.autocast():
            minimised, _ = setup.model(*batch)
        minimised.backward()
    found = [parameter.grad for parameter in setup.model.parameters() if parameter.grad is not None]
    setup.model.zero_grad()
    return found


def check_decay_groups(setup: Setup) -> tuple[bool, str, str]:
    """Check that every trained weight is in one group of the optimizers, and that the right ones decay."""
    training = setup.training
    groups = [group for optimizer in setup.optimizers for group in optimizer.param_groups]
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    trained = {id(parameter) for parameter in setup.model.parameters() if parameter.requires_grad}
    gains = sum(p.numel() for group in groups if group["weight_decay"] for p in group["params"] if p.ndim < 2)
    matrices = sum(p.numel() for group in groups if not group["weight_decay"] for p in group["params"] if p.ndim >= 2)
    complete = sorted(grouped) == sorted(trained)
    passed = complete and (training.decay_gains or not gains) and (not matrices or not training.weight_decay)
    found = f"{gains:,} gains decay, {matrices:,} of matrices do not; "
    found += f"{'' if complete else 'not '}every weight is in one group"
    return passed, found, f"matrices decay, gains {'too' if training.decay_gains else 'do not'}, none is missing"


def check_overfitting(setup: Setup) -> tuple[bool, str, str]:
    """Check that a copy of the model learns one sequence by heart."""
    batch = setup.read_sequences(1)
    scored = max(1, int((batch[2] != IGNORED_LABEL).sum()))
    learner, losses = copy.deepcopy(setup.model), []
    optimizer = torch.optim.AdamW([p for p in learner.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(OVERFIT_STEPS + 1):
        optimizer.zero_grad()
        with setup.accelerator.autocast():
            minimised, nats = learner(*batch)
        losses.append(nats.item() / scored)
        (minimised / scored).backward()
        optimizer.step()
    found = f"{losses[0]:.3f} to {losses[-1]:.3f} nats per token in {OVERFIT_STEPS} steps"
    return losses[-1] < losses[0] / 2, found, "at most half"


def check_learning_rate(setup: Setup) -> tuple[bool, str, str]:
    """Check that the learning rate rises to at most its peak and then falls to the end."""
    rates, training = setup.learning_rates, setup.training
    top = rates.index(max(rates))
    one_peak = rates == sorted(rates[:top]) + sorted(rates[top:], reverse=True)
    decay_fraction = 1 if training.lr_scheduler_type == "cosine" else training.decay_fraction
    level = training.min_learning_rate_fraction == 1 or decay_fraction * training.max_steps < 2
    within = min(rates) >= 0 and max(rates) <= training.learning_rate
    expected = f"between 0 and {training.learning_rate:g}, rising to one peak and below it at the end"
    passed = within and one_peak and (level or rates[-1] < max(rates))
    return passed, ", ".join(f"{rate:.2e}" for rate in rates), expected


CHECKS = {
    "token ids": check_token_ids,
    "first loss": check_first_loss,
    "label shift": check_label_shift,
    "document borders": check_document_borders,
    "special tokens": check_special_tokens,
    "documents apart": check_documents_apart,
    "accumulation": check_accumulation,
    "decay groups": check_decay_groups,
    "one batch is learned": check_overfitting,
    "learning rate": check_learning_rate,
}


def print_preflight(plan: dict, checks: list[dict], accelerator: Accelerator) -> None:
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
        + ", ".join(f"{size / 1e9:.2f} {part}" for part, size in memory.items() if size),
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
