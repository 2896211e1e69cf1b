# SPDX-License-Identifier: Apache-2.0
"""Stage 4: pretrain a Llama-style model on the mixture, from scratch or going on, on one or many devices.

In:   <run.output_dir>/tokens/ and tokenizer/, model.* and training.* of the recipe.
Out:  <run.output_dir>/model/ (loads with AutoModelForCausalLM), checkpoints/, metrics.jsonl, samples.jsonl,
      training.json, recipe.yaml (resolved), environment.json, status.json (how it ended) and chronicle.md (what
      happened to it).

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/pretrain.py \\
        --config recipes/legal/quickstart.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/pretrain.py \\
        --config recipes/legal/base.yaml

Started again, it goes on from the newest checkpoint; asked to leave by a signal, it saves one first (preemption.py).
The recipe states the batch in tokens, so it is the same experiment on any number of processes: what a process reads
follows from the step alone.
"""

import math
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, set_seed
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer

from checkpointing import (
    Checkpoints,
    list_checkpoints,
    load_state,
    load_tensors,
    newest_checkpoint,
    refuse_full_disk,
)
from chronicle import Chronicle
from continued_model import load_model, merge_adapters, with_shape_of
from document_ledger import documents_of_step
from mixture_shares import make_mixture, schedule_phases
from model_probe import find_warnings, make_probe_batch, probe
from preemption import EXIT_PREEMPTED, Preemption, RunStatus
from preflight import describe_plan, run_checks, show_preflight
from prepared_model import PreparedModel
from process_agreement import from_main, held_run, refuse_differences
from publishing.repositories import check_repositories
from publishing.revision_queue import queue_revision
from recipe_config import Recipe, RecipeError, Training
from recipe_loading import parse_command_line, run_command
from resuming import check_state, choose_checkpoint, describe_identity, fresh_state, set_aside_later, start_again
from run_folder import (
    is_finished,
    new_output,
    read_record,
    require,
    write_json,
)
from token_mixture import (
    TokenMixture,
    TokenShards,
    ValidationText,
    token_byte_lengths,
)
from training_batches import MicroBatches, SkippedDocuments, describe_changes, extend_skips, is_skipped, read_batches
from training_evaluation import continue_prompts, evaluate, load_benchmarks, score_benchmarks
from training_length import SPEED_STEPS, accumulation_steps, decide_length, learning_rate_at, plan_steps
from training_model import (
    Context,
    SummedLoss,
    build_model,
    build_optimizers,
    choose_attention,
    count_parameters,
    find_missing_compiler,
    keep_sums_in_fp32,
    refuse_combinations,
)
from training_record import (
    append_lines,
    cut_records,
    delivered,
    describe_delivered,
    describe_phases,
    describe_step,
    print_plan,
    summarize,
    write_run_files,
)
from training_stability import Decision, StabilityMonitor, in_rollback
from utilisation import measure_utilisation, peak_flops, peak_memory_bytes
from zero_stage3 import ZeroStage3Model


def build_summed_loss(
    recipe: Recipe, training: Training, tokenizer_folder: Path, accelerator: Accelerator, compiled: bool
) -> SummedLoss:
    """Build what is trained, as the recipe says; of a model that is gone on from, recipe.model gets the shape."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    if recipe.model.from_pretrained is None:
        language_model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    else:
        language_model = load_model(recipe.model, tokenizer, tokenizer_folder, training.sequence_length)
        recipe.model = with_shape_of(recipe.model, language_model.config)
    choose_attention(language_model, training, accelerator)
    if training.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return SummedLoss(
        language_model,
        compiled,
        by_layer=accelerator.distributed_type == DistributedType.FSDP,
        document_masking=training.document_masking,
        z_loss=training.z_loss,
    )


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
    model = build_summed_loss(recipe, training, tokenizer_folder, accelerator, compiled=False).to(accelerator.device)
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


def train(
    recipe: Recipe, accelerator: Accelerator, status: RunStatus, preemption: Preemption, closing: ExitStack
) -> dict:
    """Run the stage on every process and return training.json's content.

    Args: closing: closed by the caller however training ends, before it lets go of the run.
    """
    run, is_main = Path(recipe.run.output_dir), accelerator.is_main_process
    # The processes of a machine share the reading of what they were given.
    part = (accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    tokens, tokenizer_folder = require(recipe, "tokenize", part), require(recipe, "tokenizer", part)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    data = recipe.data
    shards = TokenShards(tokens, [source.name for source in data.sources], recipe.training.sequence_length)

    training, shares, notes = decide_length(recipe, shards)
    skipped_documents = SkippedDocuments(shards, data.skip.documents)
    batch_size, num_processes = training.per_device_train_batch_size, accelerator.num_processes
    gradient_accumulation_steps = accumulation_steps(training, num_processes)
    missing = find_missing_compiler() if training.torch_compile else None
    if missing:
        notes.append(f"training runs uncompiled, at about half the speed: {missing}")

    absent = [name for name in training.eval_tasks if not (run / "benchmarks" / f"{name}.jsonl").is_file()]
    if absent:
        notes.append(
            f"training.eval_tasks: not scored, since {run / 'benchmarks'} lacks them: {', '.join(absent)}; "
            "recipes/run_recipe.py writes them, eval/run_eval.py --export_requests too"
        )

    # The model, the same on every process and every number of them.
    set_seed(recipe.run.seed)
    compiled = training.torch_compile and not missing
    if compiled and accelerator.distributed_type == DistributedType.DEEPSPEED:
        compiled = False
        notes.append("training runs uncompiled: DeepSpeed fetches weights in hooks of each module")
    model = build_summed_loss(recipe, training, tokenizer_folder, accelerator, compiled)
    language_model = model.language_model
    parameters = count_parameters(language_model)
    optimizers = build_optimizers(model, training)
    keep_sums_in_fp32(accelerator)
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        prepared: PreparedModel = ZeroStage3Model(model, optimizers, accelerator, batch_size)
    else:
        prepared = PreparedModel(model, optimizers, accelerator)
    model = prepared.module
    refuse_full_disk(run, training.save_total_limit, parameters["total"], accelerator)

    state = fresh_state(recipe, training, shares)
    checkpoint, passed_over = from_main(accelerator, lambda: choose_checkpoint(recipe))
    notes += [f"passed over {problem}" for problem in passed_over]
    chronicle = Chronicle(run, is_main)
    if checkpoint is not None:
        state, changes = check_state(checkpoint, state)
        prepared.restore(checkpoint)
        changes += describe_changes(state["skips"], data.skip, state["step"], list_checkpoints(run / "checkpoints"))
        state["skips"] = extend_skips(state["skips"], data.skip, state["step"])
        chronicle.note(
            "resume", state["step"], f"from {checkpoint} on {num_processes} processes", passed_over=passed_over
        )
        for change in changes:
            chronicle.note("config_change", state["step"], change)
        notes += changes
    else:
        chronicle.note("start", 0, f"{parameters['total']:,} parameters on {num_processes} processes")
    status.update(step=state["step"], max_steps=state["max_steps"], checkpoint=checkpoint and str(checkpoint))
    if is_main:
        for note in notes:
            accelerator.print(f"pretrain: note: {note}")
        print_plan(accelerator, training, parameters, state, checkpoint)
        write_run_files(recipe, run)
        cut_records(run, state["step"])
        set_aside_later(run / "checkpoints", state["step"])
    # Of the phase.
    texts, benchmarks, evaluation_batch_size, utilisation = {}, {}, batch_size, None
    peak = peak_flops(accelerator.device) if is_main else None  # one of the processes of a machine measures it
    own_context = Context.of(language_model, training)

    def enter_phase(step: int) -> None:
        """Ready everything that knows a sequence length for the phase that a step is in."""
        nonlocal texts, benchmarks, evaluation_batch_size, utilisation
        context = own_context.in_phase([phase for phase in state["phases"] if phase["after_step"] < max(1, step)][-1])
        context.apply(language_model)
        length = context.sequence_length
        texts = {name: ValidationText(tokens, name, length, training.max_eval_bytes) for name in shares}
        benchmarks = load_benchmarks(
            run / "benchmarks",
            training.eval_tasks,
            training.max_eval_items,
            tokenizer,
            length,
            packed=training.document_masking,
        )
        evaluation_batch_size = batch_size * training.sequence_length // length
        utilisation = measure_utilisation(
            recipe.model, len(tokenizer), length, training.gradient_checkpointing, peak, num_processes
        )

    byte_lengths = token_byte_lengths(tokenizer_folder)
    sequences_per_step = training.tokens_per_step // training.sequence_length

    def passes_over(step: int) -> bool:
        return is_skipped(state["skips"], step) or in_rollback(state["rollbacks"], step)

    def open_mixture() -> tuple[TokenMixture, Iterator[dict]]:
        mixture = make_mixture(shards, state["phases"], sequences_per_step, recipe.run.seed)
        dataset = MicroBatches(
            mixture, skipped_documents, byte_lengths, batch_size, accelerator.process_index, num_processes
        )
        steps = (step for step in count(state["step"] + 1) if not passes_over(step))
        return mixture, read_batches(dataset, steps, gradient_accumulation_steps, accelerator.device.type == "cpu")

    mixture, batches = open_mixture()

    def log(record: dict) -> None:
        if is_main:
            append_lines(run / "metrics.jsonl", [record])
        accelerator.log({name: value for name, value in record.items() if name != "step"}, step=record["step"])

    def note_saved(step: int, folder: Path, seconds: float) -> None:
        chronicle.note("save", step, f"{folder.name}, written in {seconds:.1f} s")
        status.update(checkpoint=str(folder), checkpoint_step=step)
        if problem := queue_revision(recipe, folder, language_model.config):
            chronicle.note("warning", step, problem)
            bar.write(f"pretrain: note: {problem}")

    checkpoints = Checkpoints(
        run / "checkpoints",
        training.save_total_limit,
        training.keep_every_steps,
        describe_identity(state, num_processes),
        accelerator,
        note_saved,
    )
    closing.callback(checkpoints.wait)

    def save() -> None:
        state["stability"] = monitor.state()
        checkpoints.save(state["step"], prepared.gather(), state)
        status.update(step=state["step"])

    def validate() -> None:
        """Score the validation text and the tasks, and look inside the model; cut short, it is due again."""
        scores = evaluate(model, texts, evaluation_batch_size, accelerator, preemption.requested)
        if scores is not None:
            on_tasks = score_benchmarks(
                model, benchmarks, evaluation_batch_size, tokenizer.eos_token_id, accelerator, preemption.requested
            )
            scores = None if on_tasks is None else scores | on_tasks
        state["evaluation_due"] = scores is None
        if scores is None:
            return
        prompts = recipe.evaluation.prompts
        samples = continue_prompts(model, tokenizer, prompts, training.sequence_length, accelerator.device)
        if is_main:
            lines = zip(prompts, samples, strict=True)
            append_lines(
                run / "samples.jsonl", [{"step": state["step"], "prompt": one, "text": text} for one, text in lines]
            )
        inside = probe(model, *probe_batch)
        parts = delivered(mixture, state)
        shown = {f"data/{key}/{name}": value for name, part in parts.items() for key, value in part.items()}
        seen = {f"train/{key}": sum(state[key].values()) for key in ("tokens_seen", "bytes_seen")}
        log({"step": state["step"], **seen, **scores, **inside, **shown})
        text = f"{scores['eval/bits_per_byte']:.4f} bits per byte; {describe_delivered(parts)}"
        chronicle.note("evaluation", state["step"], text)
        for warning in find_warnings(inside, state.get("probe")):
            chronicle.note("warning", state["step"], warning)
        state["probe"] = inside
        if is_main:
            bar.write(f"pretrain: step {state['step']:,}: {describe_delivered(parts)}")

    def follow(verdicts: list) -> Decision | None:
        """Write down which steps were skipped, and return what else the policy asks for.

        Raises: FloatingPointError: it asks to stop; with the documents of the steps.
        """
        for verdict in verdicts:
            decision = monitor.decide(verdict, len(state["rollbacks"]))
            if verdict.kind != "taken":
                chronicle.note("skip", verdict.step, verdict.describe())
                if is_main:
                    bar.write(f"pretrain: {verdict.describe()}")
            if decision is not None and decision.action == "rollback":
                return decision
            if decision is not None:
                documents = [
                    f"{piece['document']} ({piece['source']}, step {number})"
                    for number in decision.steps
                    for piece in documents_of_step(mixture, sequences_per_step, number)
                ]
                before = [path for number, path in list_checkpoints(run / "checkpoints") if number < decision.steps[0]]
                raise FloatingPointError(
                    f"{decision.reason}; the documents of the steps: {', '.join(dict.fromkeys(documents))}. Pass over "
                    f"them with --data.skip.steps=[[{decision.steps[0]}, {decision.steps[-1]}]] and "
                    f"{f'--run.resume={before[0]}' if before else '--overwrite'}, or start again with a lower "
                    "training.learning_rate."
                )
        return None

    def go_back(decision: Decision) -> None:
        """Go back to the newest checkpoint before the first step that is to be passed over."""
        nonlocal state, monitor, mixture, batches, saved_step, logged_at, logged_steps
        checkpoints.finish()
        earlier, _ = from_main(accelerator, lambda: newest_checkpoint(run / "checkpoints", below=decision.first))
        if earlier is None:
            raise RecipeError(f"{decision.reason}, and no checkpoint is from before step {decision.first}")
        rollbacks, factor = state["rollbacks"], state["learning_rate_factor"]
        at_step, seconds = state["step"], time.perf_counter() - started
        state = load_state(earlier) | {"seconds": seconds, "settings": state["settings"]}
        factor *= training.stability.rollback.learning_rate_factor
        entry = {"at_step": at_step, "to_step": state["step"], "skipped_steps": [decision.first, decision.last]}
        state |= {"rollbacks": [*rollbacks, entry], "learning_rate_factor": factor}
        prepared.restore(earlier)
        monitor = StabilityMonitor(training.stability, accelerator.device, state["stability"])
        mixture, batches = open_mixture()
        enter_phase(state["step"])
        accelerator.wait_for_everyone()
        if is_main:
            cut_records(run, state["step"])
            set_aside_later(run / "checkpoints", state["step"])
        said = f"{decision.reason}: back to {earlier.name}, passing over steps {decision.first} to {decision.last}"
        said += f", learning rate times {factor:g}" if factor != 1 else ""
        chronicle.note("rollback", at_step, said, **entry)
        notes.append(f"step {at_step}: {said}")
        if is_main:
            bar.write(f"pretrain: {said}")
            bar.n = state["step"]
        logged_loss.zero_()
        logged_seen.zero_()
        logged_at, logged_steps, saved_step = time.perf_counter(), state["trained_steps"], state["step"]

    def leave() -> None:
        """Save what is not saved yet, and end this process."""
        bar.close()
        signal_name = preemption.signal_name or "a signal to another process"
        if saved_step != state["step"] or state["evaluation_due"]:
            save()
        checkpoints.finish()
        chronicle.note("preemption", state["step"], f"{signal_name}; saved")
        preemption.leave(f"{signal_name} at step {state['step']}, which is saved")

    def train_step() -> Tensor:
        """Train on the next batches, with the learning rate that is set, and return the norm of the gradient."""
        seen, step_nats = torch.zeros_like(logged_seen), torch.zeros_like(logged_loss[0])
        seed_step(recipe.run.seed, step, accelerator.process_index)
        for micro_step in range(gradient_accumulation_steps):
            batch = next(batches)
            seen += batch.pop("seen").to(accelerator.device, non_blocking=True)
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            # Every token of the step weighs the same. Gradients are averaged over processes, hence the factor.
            factor, last = num_processes / training.tokens_per_step, micro_step == gradient_accumulation_steps - 1
            step_nats += prepared.add_gradients(batch, factor, last)
        logged_seen.add_(seen)
        step_loss = accelerator.reduce(torch.stack([step_nats, *seen.sum(0)]))  # nats, bytes and tokens of the step
        targets = step_loss[2].clamp(min=1)
        if skipped_documents.ranges:
            prepared.scale_gradients(training.tokens_per_step / targets)
        grad_norm = prepared.clip_grad_norm(training.max_grad_norm)
        ok = monitor.judge(step, step_loss[0] / targets, grad_norm)
        prepared.step_where(ok)
        logged_loss.add_(torch.where(ok, step_loss, 0.0))
        return grad_norm

    enter_phase(state["step"])
    # A run that goes on stays one run where the tracker would begin another.
    accelerator.init_trackers(run.name, init_kwargs={"trackio": {"name": run.name, "resume": "allow"}})
    monitor = StabilityMonitor(training.stability, accelerator.device, state["stability"])
    probe_batch = make_probe_batch(mixture, accelerator.device)
    logged_loss = torch.zeros(3, dtype=torch.float64, device=accelerator.device)  # of the steps that were taken
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
    saved_step = state["step"] if checkpoint is not None else None
    if state["evaluation_due"]:
        validate()
    while state["step"] < state["max_steps"]:
        if preemption.requested():
            leave()
        step = state["step"] + 1
        if step - 1 in (phase["after_step"] for phase in state["phases"][1:]):
            enter_phase(step)
            monitor.forget()
        learning_rate = learning_rate_at(step, state["max_steps"], training) * state["learning_rate_factor"]
        prepared.set_learning_rate(learning_rate)
        passed_over = passes_over(step)
        if not passed_over:
            grad_norm = train_step()
            state["trained_steps"] += 1
        state["step"] = step
        preemption.anything_to_save = True
        checkpoints.check()
        bar.update()
        done = step == state["max_steps"]
        if (decision := follow(monitor.settle(last=done))) is not None:
            go_back(decision)
            continue

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
            nats, step_bytes, step_tokens = logged_loss.tolist()
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
                    "train/skipped_steps": sum(monitor.skipped.values()),
                    "train/tokens_per_second": speed,
                    "train/seconds": time.perf_counter() - started,
                    "train/peak_memory_bytes": peak_memory_bytes(accelerator.device),
                }
                record |= utilisation.record(speed)
                log(record | seen)
                bar.set_postfix_str(describe_step(record | seen), refresh=False)
            logged_loss.zero_()
            logged_seen.zero_()
        if evaluating:
            validate()
        if saving and not state["evaluation_due"]:
            state["seconds"] = time.perf_counter() - started
            save()
            saved_step = step
        if logging:  # after validation and saving, which are not the speed of training
            logged_at, logged_steps = time.perf_counter(), state["trained_steps"]
    if state["evaluation_due"]:  # the signal came in the last evaluation
        leave()
    checkpoints.finish()
    bar.close()

    summary = summarize(recipe, training, mixture, byte_lengths, state, parameters, accelerator, notes, compiled)
    if is_main:
        write_json(run / "training.json", summary)
        with new_output(recipe, "pretrain") as output:
            export = accelerator.unwrap_model(model).language_model
            merge_adapters(export)
            # Of a model in parts the last checkpoint has the whole.
            last = run / "checkpoints" / f"step_{state['step']:08d}"
            export.save_pretrained(output, state_dict=load_tensors(last, "model") if prepared.in_parts else None)
            tokenizer.save_pretrained(output)
    chronicle.note("finish", state["step"], f"{summary['tokens_seen']:,} tokens in {summary['seconds']:.0f} s")
    accelerator.wait_for_everyone()
    return summary


def seed_step(seed: int, step: int, process: int) -> None:
    """Seed what a step draws, as dropout does: a function of the step, so no generator's state has to be saved."""
    torch.manual_seed((seed << 40) + (step << 16) + process & (1 << 63) - 1)


def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    available = [str(tracker) for tracker in get_available_trackers()]
    if absent := set(recipe.training.report_to) - set(available):  # Accelerate leaves them out without a word
        raise RecipeError(f"training.report_to: not installed: {', '.join(sorted(absent))}; pip install them")
    accelerator = Accelerator(
        log_with=recipe.training.report_to or None,
        project_dir=recipe.run.output_dir,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=recipe.run.timeout_seconds))],
    )
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != accelerator.num_processes:
        raise SystemExit(
            f"{launched} processes were launched but Accelerate counts {accelerator.num_processes}: each would train "
            "alone. Use a file from accelerate_configs/; on CPUs launch with ACCELERATE_USE_CPU=true and ddp.yaml."
        )
    refuse_combinations(recipe.training, recipe.model.lora is not None, accelerator)
    refuse_differences(recipe, accelerator)
    if options.dry_run:
        dry_run(recipe, accelerator)
        return
    if is_finished(recipe, "pretrain", options.overwrite):
        accelerator.print(f"pretrain: nothing to do, {recipe.run.output_dir}/model is up to date")
        return
    run, is_main = Path(recipe.run.output_dir), accelerator.is_main_process
    status = RunStatus(run, is_main)
    with held_run(run, accelerator) as left_by, Preemption(status) as preemption, ExitStack() as closing:
        status.begin()
        if left_by:
            accelerator.print(f"pretrain: note: took over from {left_by}, which is gone")
        anew = options.overwrite and recipe.run.resume in ("auto", "never")  # a named checkpoint is still gone on from
        if anew and is_main and read_record(run / "model"):
            start_again(recipe)
        if recipe.hub.repo_id and is_main:
            print(check_repositories(recipe))
        accelerator.wait_for_everyone()
        preemption.connect(accelerator, recipe.run.timeout_seconds)
        try:
            summary = train(recipe, accelerator, status, preemption, closing)
        except Exception as error:
            reason = f"process {accelerator.process_index}: {type(error).__name__}: {error}"
            if preemption.signal_name or status.is_preempted():  # the others left, or their launcher ended them
                status.end("preempted", EXIT_PREEMPTED, f"{preemption.signal_name}; not saved: {reason}", alone=True)
                raise SystemExit(EXIT_PREEMPTED) from error
            Chronicle(run, is_main).note("failure", status.values.get("step", 0), reason)
            status.end("failed", 1, reason, alone=True)
            raise
        status.update(step=summary["max_steps"])
        status.end("finished", 0, "trained to the end")
    mixture = ", ".join(f"{part['delivered_fraction']:.2%} {name}" for name, part in summary["mixture"].items())
    accelerator.print(
        f"pretrain: {summary['parameters']['total']:,} parameters, {summary['tokens_seen']:,} tokens ({mixture}) in "
        f"{summary['seconds']:.0f} s, in {recipe.run.output_dir}/model"
    )
    accelerator.end_training()


if __name__ == "__main__":
    run_command(main)
