# SPDX-License-Identifier: Apache-2.0
"""Stage 4: pretrain a Llama-style model from scratch on the mixture, on one or many devices.

In:   <run.output_dir>/tokens/ and tokenizer/, model.* and training.* of the recipe.
Out:  <run.output_dir>/model/ (loads with AutoModelForCausalLM), checkpoints/, metrics.jsonl, training.json,
      recipe.yaml (resolved) and environment.json.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/pretrain.py \\
        --config recipes/legal/quickstart.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/pretrain.py \\
        --config recipes/legal/base.yaml

Started again, it goes on from the newest checkpoint. The recipe states the batch in tokens, so it is the same
experiment on any number of processes: what a process reads follows from the step alone.
"""

import json
import math
import os
import shutil
import sysconfig
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, set_seed
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from checkpointing import (
    check_replicas,
    gather_tensors,
    list_checkpoints,
    load_state,
    newest_checkpoint,
    restore_tensors,
    save_checkpoint,
)
from mixture_shares import make_mixture, resolve_for_run, resolve_shares, schedule_phases
from publishing.repositories import check_repositories
from publishing.revision_queue import queue_revision
from recipe_config import Recipe, RecipeError, Training
from recipe_loading import parse_command_line, run_command
from run_folder import (
    STAGES,
    StaleStageError,
    compare,
    input_hashes,
    is_finished,
    new_output,
    read_record,
    require,
    write_json,
)
from token_mixture import (
    IGNORED_LABEL,
    TokenMixture,
    TokenShards,
    ValidationText,
    document_positions,
    token_byte_lengths,
)
from training_batches import MicroBatches, SkippedDocuments, describe_changes, extend_skips, is_skipped, read_batches
from training_length import SPEED_STEPS, fit_to_corpus, limit_repetitions, plan_steps, warmup_length
from training_record import (
    append_metrics,
    cut_metrics,
    delivered,
    describe_delivered,
    describe_phases,
    print_plan,
    summarize,
    write_run_files,
)


class SummedLoss(nn.Module):
    """The module that is trained: a causal language model and its loss in one forward pass.

    Accelerate wraps the module it prepares; calling parts of a wrapped model skips DDP's gradient average without an
    error and fails under FSDP2, so the loss is computed in here.
    """

    def __init__(self, language_model: LlamaForCausalLM, compiled: bool):
        super().__init__()
        self.language_model = language_model
        self.compute = torch.compile(self._compute) if compiled else self._compute

    def forward(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
        """Return the sum of the token losses (nats) over all labels that are not IGNORED_LABEL.

        Args: three int64 tensors (batch_size, sequence_length); labels are the tokens that follow, not shifted again.
        """
        return self.compute(input_ids, position_ids, labels)

    def _compute(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor) -> Tensor:
        # Without a cache and without an attention mask, transformers reads the borders of the documents off
        # position_ids; with either, documents would see each other.
        hidden = self.language_model.model(
            input_ids=input_ids, position_ids=position_ids, use_cache=False
        ).last_hidden_state  # (batch_size, sequence_length, hidden_size)
        logits = self.language_model.lm_head(hidden).float()  # (batch_size, sequence_length, vocab_size)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum")


def build_model(recipe: Recipe, vocab_size: int, eos_token_id: int) -> LlamaForCausalLM:
    """Build the model with its initial weights, in fp32."""
    shape = recipe.model.model_dump(exclude={"rope_theta"})
    config = LlamaConfig(
        **{name: value for name, value in shape.items() if value is not None},
        vocab_size=vocab_size,
        max_position_embeddings=recipe.training.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.model.rope_theta},
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=None,
        attention_dropout=0.0,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # Each layer adds to the residual stream twice; scaled so, its variance does not grow with depth (GPT-2, section
    # 2.3). transformers leaves this out for Llama.
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


def count_parameters(model: LlamaForCausalLM) -> dict[str, int]:
    """Count parameters: in all, in the input embedding (the projection too when tied), and the rest."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    return {"total": total, "embedding": embedding, "non_embedding": total - embedding}


def build_optimizers(model: SummedLoss, training: Training) -> list[torch.optim.Optimizer]:
    """Make AdamW, or Muon for the layers' matrices and AdamW for the rest. Gains of the norms never decay."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_layers = {name for name, parameter in named.items() if ".layers." in name and parameter.ndim == 2}
    muon = in_layers if training.optimizer == "muon" else set()
    decayed = [parameter for name, parameter in named.items() if name not in muon and parameter.ndim == 2]
    gains = [parameter for name, parameter in named.items() if parameter.ndim < 2]
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": gains, "weight_decay": 0.0}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
    if not muon:
        return [adamw]
    # match_rms_adamw scales an update as AdamW's would be, so that one learning rate serves both (Moonlight,
    # https://huggingface.co/papers/2502.16982, section 2.2).
    matrices = [parameter for name, parameter in named.items() if name in muon]
    options = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    return [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options), adamw]


def learning_rate_at(step: int, max_steps: int, training: Training) -> float:
    """Return the learning rate of optimizer step `step`, 1 to max_steps."""
    warmup_steps = warmup_length(max_steps, training)
    if step <= warmup_steps:
        return training.learning_rate * step / warmup_steps
    if training.lr_scheduler_type == "cosine":
        progress = (step - warmup_steps) / (max_steps - warmup_steps)
        height = (1 + math.cos(math.pi * progress)) / 2
    else:
        decay_steps = max(1, round(training.decay_fraction * max_steps))
        height = min(1.0, (max_steps - step + 1) / decay_steps)
    least = training.min_learning_rate_fraction
    return training.learning_rate * (least + (1 - least) * height)


def accumulation_steps(training: Training, num_processes: int) -> int:
    """Return how many micro-steps of all processes make a step.

    Raises: RecipeError: tokens_per_step is no whole number of them, with the nearest that is.
    """
    batch_size, sequence_length = training.per_device_train_batch_size, training.sequence_length
    micro_tokens = batch_size * sequence_length * num_processes
    steps, rest = divmod(training.tokens_per_step, micro_tokens)
    if rest:
        nearest = " or ".join(str(k * micro_tokens) for k in (steps, steps + 1) if k)
        raise RecipeError(
            f"training.tokens_per_step={training.tokens_per_step} is not divisible by per_device_train_batch_size * "
            f"sequence_length * num_processes = {batch_size} * {sequence_length} * {num_processes} = {micro_tokens}; "
            f"nearest: {nearest}"
        )
    return steps


def scale_gradients(model: nn.Module, factor: Tensor) -> None:
    """Multiply every gradient by a number that is on the device, without waiting for it."""
    torch._foreach_mul_([parameter.grad for parameter in model.parameters() if parameter.grad is not None], factor)


@torch.no_grad()
def evaluate(model: nn.Module, texts: dict[str, ValidationText], batch_size: int, accelerator: Accelerator) -> dict:
    """Score the validation text of each source on all processes.

    Returns: eval/loss/<source> (nats per token), eval/bits_per_byte/<source>, and eval/bits_per_byte over all bytes.
    """
    model.eval()
    metrics, all_nats, all_bytes = {}, 0.0, 0
    for name, text in texts.items():
        nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        starts = range(0, len(text.input_ids), batch_size)
        for start in starts[accelerator.process_index :: accelerator.num_processes]:
            rows = slice(start, start + batch_size)
            input_ids, labels = text.input_ids[rows], text.labels[rows]
            missing = batch_size - len(input_ids)  # filled up with rows that are not scored: one shape, one graph
            input_ids = torch.from_numpy(input_ids)
            padded = F.pad(input_ids, (0, 0, 0, missing), value=text.eos_token_id)
            labels = F.pad(torch.from_numpy(labels), (0, 0, 0, missing), value=IGNORED_LABEL)
            positions = torch.from_numpy(document_positions(padded.numpy(), text.eos_token_id))
            nats += model(*(tensor.to(accelerator.device) for tensor in (padded, positions, labels))).double()
        total_nats = accelerator.reduce(nats).item()
        metrics[f"eval/loss/{name}"] = total_nats / int((text.labels != IGNORED_LABEL).sum())
        metrics[f"eval/bits_per_byte/{name}"] = total_nats / math.log(2) / text.num_bytes
        all_nats, all_bytes = all_nats + total_nats, all_bytes + text.num_bytes
    model.train()
    return metrics | {"eval/bits_per_byte": all_nats / math.log(2) / all_bytes}


def find_missing_compiler() -> str | None:
    """Return what torch.compile lacks on this machine, with the package that brings it, or None."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (g++) is on the PATH; install it with: apt-get install g++"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing; install it with: apt-get install python3-dev"
    return None


def train(recipe: Recipe, accelerator: Accelerator) -> dict:
    """Run the stage on every process and return training.json's content."""
    run, is_main = Path(recipe.run.output_dir), accelerator.is_main_process
    tokens, tokenizer_folder = require(recipe, "tokenize"), require(recipe, "tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    data, training, notes = recipe.data, recipe.training, []
    shards = TokenShards(tokens, [source.name for source in data.sources], training.sequence_length)

    # What is trained, for how long, in which pieces.
    if data.fit_to_corpus:  # then the length gives way to the shares, not they to it
        shares = resolve_shares(data, shards.train_bytes)
        training, notes = fit_to_corpus(training, shards, shares)
    else:
        shares = resolve_for_run(data, training, shards)
    training, more = limit_repetitions(training, data, shards, shares)
    notes += more
    skipped_documents = SkippedDocuments(shards, data.skip.documents)
    batch_size, num_processes = training.per_device_train_batch_size, accelerator.num_processes
    gradient_accumulation_steps = accumulation_steps(training, num_processes)
    missing = find_missing_compiler() if training.torch_compile else None
    if missing:
        notes.append(f"training runs uncompiled, at about half the speed: {missing}")

    # The model, the same on every process and every number of them.
    set_seed(recipe.run.seed)
    language_model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    parameters = count_parameters(language_model)
    model = SummedLoss(language_model, compiled=training.torch_compile and not missing)
    optimizers = build_optimizers(model, training)
    model, *optimizers = accelerator.prepare(model, *optimizers)
    plain_optimizers = [optimizer.optimizer for optimizer in optimizers]

    state = {
        "step": 0,
        "trained_steps": 0,  # without those that data.skip passes over
        "max_steps": training.max_steps,
        "sequence_length": training.sequence_length,
        "tokens_per_step": training.tokens_per_step,
        "seconds": 0.0,
        "bytes_seen": {name: 0 for name in shares},
        "tokens_seen": {name: 0 for name in shares},
        # With a time limit, no later phase begins before the length is known.
        "phases": schedule_phases(data, shares, None if training.max_seconds else training.max_steps),
        "skips": extend_skips([], data.skip, 0),
        "settings": json.loads(json.dumps(STAGES["pretrain"].settings(recipe))),
        "inputs": input_hashes(recipe, "pretrain"),
    }
    checkpoint, passed_over = find_checkpoint(recipe, accelerator)
    notes += [f"passed over {problem}" for problem in passed_over]
    if checkpoint is not None:
        state = check_state(checkpoint, state)
        restore_tensors(checkpoint, model, plain_optimizers)
        checkpoints = list_checkpoints(run / "checkpoints")
        notes += describe_changes(state["skips"], data.skip, state["step"], checkpoints)
        state["skips"] = extend_skips(state["skips"], data.skip, state["step"])
    if is_main:
        for note in notes:
            accelerator.print(f"pretrain: note: {note}")
        print_plan(accelerator, training, parameters, state, checkpoint)
        write_run_files(recipe, run)
        cut_metrics(run, state["step"])
        set_aside_later(run / "checkpoints", state["step"])
    texts = {name: ValidationText(tokens, name, training.sequence_length, training.max_eval_bytes) for name in shares}

    byte_lengths = token_byte_lengths(tokenizer_folder)
    sequences_per_step = training.tokens_per_step // training.sequence_length

    def open_mixture() -> tuple[TokenMixture, Iterator[dict]]:
        mixture = make_mixture(shards, state["phases"], sequences_per_step, recipe.run.seed)
        dataset = MicroBatches(
            mixture, skipped_documents, byte_lengths, batch_size, accelerator.process_index, num_processes
        )
        steps = (step for step in count(state["step"] + 1) if not is_skipped(state["skips"], step))
        return mixture, read_batches(dataset, steps, gradient_accumulation_steps, accelerator.device.type == "cpu")

    mixture, batches = open_mixture()

    def log(record: dict) -> None:
        if is_main:
            append_metrics(run, record)

    def save() -> None:
        check_replicas(model, accelerator)
        tensors = gather_tensors(model, plain_optimizers)
        if is_main:
            saved = save_checkpoint(run / "checkpoints", state["step"], tensors, state, training.save_total_limit)
            if problem := queue_revision(recipe, saved, language_model.config):
                bar.write(f"pretrain: note: {problem}")
        accelerator.wait_for_everyone()

    def train_step() -> Tensor:
        """Train on the next batches, with the learning rate that is set, and return the norm of the gradient."""
        seen = torch.zeros_like(logged_seen)
        for micro_step in range(gradient_accumulation_steps):
            batch = next(batches)
            seen += batch.pop("seen").to(accelerator.device, non_blocking=True)
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            # Gradients are averaged over processes once a step, not once a micro-step.
            last = micro_step == gradient_accumulation_steps - 1
            with nullcontext() if last else accelerator.no_sync(model):
                nats = model(**batch)
                # Every token of the step weighs the same. DDP averages over processes, hence the factor.
                accelerator.backward(nats * (num_processes / training.tokens_per_step))
            logged_nats.add_(nats.detach())
        logged_seen.add_(seen)
        if skipped_documents.ranges:
            targets = accelerator.reduce(seen[:, 1].sum())
            scale_gradients(model, training.tokens_per_step / targets.clamp(min=1))
        grad_norm = accelerator.clip_grad_norm_(model.parameters(), training.max_grad_norm)
        if not torch.isfinite(grad_norm):
            raise FloatingPointError(
                f"step {step}: the gradient is not finite; the weights are those of step {step - 1}, and the newest "
                f"checkpoint is in {run / 'checkpoints'}. Lower training.learning_rate or training.max_grad_norm."
            )
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return grad_norm

    logged_nats = torch.zeros((), device=accelerator.device)
    logged_seen = torch.zeros((len(shares), 2), dtype=torch.int64, device=accelerator.device)  # bytes, tokens
    started = time.perf_counter() - state["seconds"]
    step_ended = []  # of the first steps of this process, to plan training.max_seconds with
    logged_at, logged_steps = time.perf_counter(), state["trained_steps"]
    bar = tqdm(
        total=state["max_steps"],
        initial=state["step"],
        desc="pretrain",
        unit=" steps",
        leave=False,
        disable=not is_main,
    )
    model.train()
    while state["step"] < state["max_steps"]:
        step = state["step"] + 1
        learning_rate = learning_rate_at(step, state["max_steps"], training)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = learning_rate
        passed_over = is_skipped(state["skips"], step)
        if not passed_over:
            grad_norm = train_step()
            state["trained_steps"] += 1
        state["step"] = step
        bar.update()

        now = time.perf_counter()
        if training.max_seconds and "planned_steps" not in state and not passed_over:
            step_ended.append(now)
            if len(step_ended) == SPEED_STEPS.stop:
                left_seconds = training.max_seconds - (now - started)
                planned = broadcast_object_list(
                    [plan_steps(step_ended, step, left_seconds, state["max_steps"], training)]
                )
                state["planned_steps"] = state["max_steps"] = bar.total = planned[0]
                if state["max_steps"] < training.max_steps:
                    notes.append(
                        f"training.max_seconds={training.max_seconds:g} gives {state['max_steps']:,} steps, "
                        f"not the {training.max_steps:,} of training.max_tokens"
                    )
                    if is_main:
                        bar.write(f"pretrain: note: {notes[-1]}")
                if data.phases:
                    state["phases"] = schedule_phases(data, state["phases"][0]["shares"], state["max_steps"], step)
                    mixture, batches = open_mixture()
                    if is_main:
                        bar.write(describe_phases(state["phases"]))
        done = step == state["max_steps"]
        evaluating, saving = (done or step % every == 0 for every in (training.eval_steps, training.save_steps))
        logging = step == 1 or step % training.logging_steps == 0 or evaluating or saving
        if logging:
            step_seen = dict(zip(shares, accelerator.reduce(logged_seen).tolist(), strict=True))
            for name, (num_bytes, num_tokens) in step_seen.items():
                state["bytes_seen"][name] += num_bytes
                state["tokens_seen"][name] += num_tokens
            step_bytes, step_tokens = (sum(column) for column in zip(*step_seen.values(), strict=True))
            nats = accelerator.reduce(logged_nats).item()
            seen = {f"train/{key}": sum(state[key].values()) for key in ("tokens_seen", "bytes_seen")}
            if step_tokens:  # not where data.skip left nothing since the last line
                processed_tokens = (state["trained_steps"] - logged_steps) * training.tokens_per_step
                speed = processed_tokens / (time.perf_counter() - logged_at)
                record = {
                    "step": step,
                    "train/loss": nats / step_tokens,
                    "train/bits_per_byte": nats / math.log(2) / max(1, step_bytes),
                    "train/grad_norm": grad_norm.item(),
                    "train/learning_rate": learning_rate,
                    "train/tokens_per_second": speed,
                    "train/seconds": time.perf_counter() - started,
                }
                log(record | seen)
                bar.set_postfix_str(f"loss {record['train/loss']:.3f}, {speed:,.0f} tokens/s", refresh=False)
            logged_nats.zero_()
            logged_seen.zero_()
        if evaluating:
            parts = delivered(mixture, state)
            shown = {f"data/{key}/{name}": value for name, part in parts.items() for key, value in part.items()}
            log({"step": step, **seen, **evaluate(model, texts, batch_size, accelerator), **shown})
            if is_main:
                bar.write(f"pretrain: step {step:,}: {describe_delivered(parts)}")
        if saving:
            state["seconds"] = time.perf_counter() - started
            save()
        if logging:  # after validation and saving, which are not the speed of training
            logged_at, logged_steps = time.perf_counter(), state["trained_steps"]
    bar.close()

    compiled = bool(training.torch_compile and not missing)
    summary = summarize(recipe, training, mixture, byte_lengths, state, parameters, accelerator, notes, compiled)
    if is_main:
        write_json(run / "training.json", summary)
        with new_output(recipe, "pretrain") as output:
            export = accelerator.unwrap_model(model).language_model
            export.save_pretrained(output)
            tokenizer.save_pretrained(output)
    accelerator.wait_for_everyone()
    return summary


def find_checkpoint(recipe: Recipe, accelerator: Accelerator) -> tuple[Path | None, list[str]]:
    """Choose the checkpoint to go on from, once for all processes."""
    folder = Path(recipe.run.output_dir) / "checkpoints"
    found: list = [None]
    if accelerator.is_main_process:
        try:
            if recipe.run.resume in ("auto", "never"):
                found = [newest_checkpoint(folder)]
            else:
                found = [(Path(recipe.run.resume), [])]
            if recipe.run.resume == "never" and found[0][0] is not None:
                raise RecipeError(f"run.resume=never, but there is {found[0][0]}; move it away or set run.resume=auto")
        except RecipeError as error:
            found = [error]
    found = broadcast_object_list(found)[0]
    if isinstance(found, RecipeError):
        raise found
    return found


def check_state(checkpoint: Path, fresh: dict) -> dict:
    """Return a checkpoint's state if it is of the same experiment.

    Raises: StaleStageError: it was made with other settings or inputs, which are named.
    """
    state = load_state(checkpoint)
    before = state["settings"] | {"skip": fresh["settings"]["skip"]}  # it may change; see describe_changes
    changed = compare(before, fresh["settings"], "") + compare(state["inputs"], fresh["inputs"], "inputs")
    if changed:
        raise StaleStageError(
            f"{checkpoint} is of another experiment: {'; '.join(changed)}. Set another run.output_dir, restore the "
            "recipe, or run with --overwrite to start again."
        )
    return state | {"settings": fresh["settings"]}


def set_aside_later(checkpoints: Path, step: int) -> None:
    """Rename checkpoints after the step that training goes on from, or the next start would go on from them."""
    for number, later in list_checkpoints(checkpoints):
        if number > step:
            replaced = later.with_name(f"{later.name}.replaced")
            shutil.rmtree(replaced, ignore_errors=True)
            later.rename(replaced)


def start_again(recipe: Recipe) -> None:
    """Put away what an earlier training left, so that --overwrite begins at step 0."""
    run = Path(recipe.run.output_dir)
    shutil.rmtree(run / "checkpoints", ignore_errors=True)
    (run / "metrics.jsonl").unlink(missing_ok=True)


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    finished = is_finished(recipe, "pretrain", options.overwrite)
    accelerator = Accelerator()
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise SystemExit(
            f"{launched} processes were launched but Accelerate counts {accelerator.num_processes}: each would train "
            "alone. Use a file from accelerate_configs/; on CPUs launch with ACCELERATE_USE_CPU=true and ddp.yaml."
        )
    if finished:
        accelerator.print(f"pretrain: nothing to do, {recipe.run.output_dir}/model is up to date")
        return
    anew = options.overwrite and recipe.run.resume in ("auto", "never")  # a named checkpoint is still gone on from
    if anew and accelerator.is_main_process and read_record(Path(recipe.run.output_dir) / "model"):
        start_again(recipe)
    if recipe.hub.repo_id and accelerator.is_main_process:
        print(check_repositories(recipe))
    accelerator.wait_for_everyone()
    summary = train(recipe, accelerator)
    mixture = ", ".join(f"{part['delivered_fraction']:.2%} {name}" for name, part in summary["mixture"].items())
    accelerator.print(
        f"pretrain: {summary['parameters']['total']:,} parameters, {summary['tokens_seen']:,} tokens ({mixture}) in "
        f"{summary['seconds']:.0f} s, in {recipe.run.output_dir}/model"
    )
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
