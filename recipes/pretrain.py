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
from contextlib import ExitStack, closing
from datetime import timedelta
from itertools import count
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedType, InitProcessGroupKwargs, broadcast_object_list, set_seed
from tqdm import tqdm
from transformers import AutoTokenizer

from atomic_files import read_record, write_json
from mixture.batches import MicroBatches, read_batches
from mixture.fitting import decide_length
from mixture.ledger import documents_of_step
from mixture.phases import make_mixture, schedule_phases
from mixture.shards import TokenShards, token_byte_lengths
from mixture.skips import SkippedDocuments, describe_changes, extend_skips, in_rollback, is_skipped
from mixture.validation_text import ValidationText
from model.continued import merge_adapters
from model.llama import Context, count_parameters
from model.probe import find_warnings, make_probe_batch, probe
from model.summed_loss import build_summed_loss, find_missing_compiler
from publishing.repositories import check_repositories
from publishing.revision_queue import queue_revision
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command
from recovery.agreement import from_main, refuse_differences
from recovery.checkpoints import Checkpoints, refuse_full_disk
from recovery.chronicle import Chronicle, RunStatus
from recovery.preemption import EXIT_PREEMPTED, Preemption
from recovery.resuming import (
    check_state,
    choose_checkpoint,
    describe_identity,
    fresh_state,
    set_aside_later,
    start_again,
)
from recovery.run_lock import held_run
from recovery.stored_tensors import list_checkpoints, load_state, load_tensors, newest_checkpoint
from run_folder import is_finished, new_output, require
from training.evaluation import continue_prompts, evaluate, load_benchmarks, score_benchmarks
from training.optimizers import build_optimizers
from training.parallelism import keep_sums_in_fp32, refuse_combinations
from training.preflight import dry_run
from training.prepared import PreparedModel
from training.record import (
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
from training.schedule import SPEED_STEPS, accumulation_steps, learning_rate_at, plan_steps
from training.stability import Decision, StabilityMonitor
from training.utilisation import measure_utilisation, peak_flops, peak_memory_bytes
from training.zero_stage3 import ZeroStage3Model


class Pretraining:
    """A run on one of its processes, from the state that it begins or goes on with to the model that it writes.

    Attributes:
        state: what a checkpoint holds besides tensors, as JSON values; see resuming.fresh_state.
        mixture, batches: what training reads from the step after state["step"] on.
        texts, evaluation_batch_size, utilisation: of the phase that training is in.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator, status: RunStatus, preemption: Preemption):
        self.recipe, self.accelerator, self.status, self.preemption = recipe, accelerator, status, preemption
        self.run, self.is_main = Path(recipe.run.output_dir), accelerator.is_main_process
        # The processes of a machine share the reading of what they were given.
        part = (accelerator.local_process_index, int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        self.tokens, self.tokenizer_folder = require(recipe, "tokenize", part), require(recipe, "tokenizer", part)
        self.tokenizer = AutoTokenizer.from_pretrained(self.tokenizer_folder)
        self.byte_lengths = token_byte_lengths(self.tokenizer_folder)
        names = [source.name for source in recipe.data.sources]
        self.shards = TokenShards(self.tokens, names, recipe.training.sequence_length)
        self.training, self.shares, self.notes = decide_length(recipe, self.shards)
        self.skipped_documents = SkippedDocuments(self.shards, recipe.data.skip.documents)
        self.sequences_per_step = self.training.tokens_per_step // self.training.sequence_length
        self.gradient_accumulation_steps = accumulation_steps(self.training, accelerator.num_processes)
        self.build()
        self.begin()
        # Of one shape in every phase, so that nothing is compiled anew.
        self.benchmarks = load_benchmarks(
            self.run / "benchmarks",
            self.training.eval_tasks,
            self.training.max_eval_items,
            self.tokenizer,
            self.training.sequence_length,
            packed=self.training.document_masking,
        )
        self.checkpoints = Checkpoints(
            self.run / "checkpoints",
            self.training.save_total_limit,
            self.training.keep_every_steps,
            describe_identity(self.state, accelerator.num_processes),
            accelerator,
            self.note_saved,
            recipe.run.timeout_seconds,
        )
        self.peak_flops = peak_flops(accelerator.device) if self.is_main else None  # a machine's first measures it
        self.open_mixture()
        self.enter_phase(self.state["step"])
        self.monitor = StabilityMonitor(self.training.stability, accelerator.device, self.state["stability"])
        self.probe_batch = make_probe_batch(self.mixture, accelerator.device)
        # Since the last line of metrics.jsonl: nats, bytes and tokens of the steps taken; bytes and tokens by source.
        self.logged_loss = torch.zeros(3, dtype=torch.float64, device=accelerator.device)
        self.logged_seen = torch.zeros((len(self.shares), 2), dtype=torch.int64, device=accelerator.device)

    def build(self) -> None:
        """Build the model and its optimizers, the same on every process and every number of them."""
        recipe, accelerator, training = self.recipe, self.accelerator, self.training
        set_seed(recipe.run.seed)
        missing = find_missing_compiler() if training.torch_compile else None
        if missing:
            self.notes.append(f"training runs uncompiled, at about half the speed: {missing}")
        self.compiled = training.torch_compile and not missing
        divided_by_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.compiled and divided_by_deepspeed:
            self.compiled = False
            self.notes.append("training runs uncompiled: DeepSpeed fetches weights in hooks of each module")
        model = build_summed_loss(recipe, training, self.tokenizer, self.tokenizer_folder, accelerator, self.compiled)
        self.language_model, self.parameters = model.language_model, count_parameters(model.language_model)
        optimizers = build_optimizers(model, training)
        keep_sums_in_fp32(accelerator)
        if divided_by_deepspeed:
            batch_size = training.per_device_train_batch_size
            self.prepared: PreparedModel = ZeroStage3Model(model, optimizers, accelerator, batch_size)
        else:
            self.prepared = PreparedModel(model, optimizers, accelerator)
        self.model = self.prepared.module
        refuse_full_disk(self.run, training.save_total_limit, self.parameters["total"], accelerator)

    def begin(self) -> None:
        """Take up the state of a checkpoint, or a fresh one, and say what will be done."""
        recipe, accelerator, training = self.recipe, self.accelerator, self.training
        absent = [name for name in training.eval_tasks if not (self.run / "benchmarks" / f"{name}.jsonl").is_file()]
        if absent:
            self.notes.append(
                f"training.eval_tasks: not scored, since {self.run / 'benchmarks'} lacks them: {', '.join(absent)}; "
                "recipes/run_recipe.py writes them, eval/run_eval.py --export_requests too"
            )
        state = fresh_state(recipe, training, self.shares)
        checkpoint, passed_over = from_main(accelerator, lambda: choose_checkpoint(recipe))
        self.notes += [f"passed over {problem}" for problem in passed_over]
        self.chronicle = Chronicle(self.run, self.is_main)
        if checkpoint is not None:
            state, changes = check_state(checkpoint, state)
            self.prepared.restore(checkpoint)
            skip, earlier = recipe.data.skip, list_checkpoints(self.run / "checkpoints")
            changes += describe_changes(state["skips"], skip, state["step"], earlier)
            state["skips"] = extend_skips(state["skips"], skip, state["step"])
            text = f"from {checkpoint} on {accelerator.num_processes} processes"
            self.chronicle.note("resume", state["step"], text, passed_over=passed_over)
            for change in changes:
                self.chronicle.note("config_change", state["step"], change)
            self.notes += changes
        else:
            text = f"{self.parameters['total']:,} parameters on {accelerator.num_processes} processes"
            self.chronicle.note("start", 0, text)
        self.state, self.saved_step = state, None if checkpoint is None else state["step"]
        self.status.update(step=state["step"], max_steps=state["max_steps"], checkpoint=checkpoint and str(checkpoint))
        if self.is_main:
            for note in self.notes:
                accelerator.print(f"pretrain: note: {note}")
            print_plan(accelerator, training, self.parameters, state, checkpoint)
            write_run_files(recipe, self.run)
            cut_records(self.run, state["step"])
            set_aside_later(self.run / "checkpoints", state["step"])
        self.own_context = Context.of(self.language_model, training)

    def open_mixture(self) -> None:
        """Ready what training reads from here on."""
        state, accelerator = self.state, self.accelerator
        self.mixture = make_mixture(self.shards, state["phases"], self.sequences_per_step, self.recipe.run.seed)
        dataset = MicroBatches(
            self.mixture,
            self.skipped_documents,
            self.byte_lengths,
            self.training.per_device_train_batch_size,
            accelerator.process_index,
            accelerator.num_processes,
        )
        steps = (step for step in count(state["step"] + 1) if not self.passes_over(step))
        on_cpu = accelerator.device.type == "cpu"
        self.batches = read_batches(dataset, steps, self.gradient_accumulation_steps, on_cpu)

    def passes_over(self, step: int) -> bool:
        return is_skipped(self.state["skips"], step) or in_rollback(self.state["rollbacks"], step)

    def enter_phase(self, step: int) -> None:
        """Ready everything that knows a sequence length for the phase that a step is in."""
        training = self.training
        phase = [phase for phase in self.state["phases"] if phase["after_step"] < max(1, step)][-1]
        context = self.own_context.in_phase(phase)
        context.apply(self.language_model)
        length = context.sequence_length
        self.texts = {name: ValidationText(self.tokens, name, length, training.max_eval_bytes) for name in self.shares}
        self.evaluation_batch_size = training.per_device_train_batch_size * training.sequence_length // length
        self.utilisation = measure_utilisation(
            self.recipe.model,
            len(self.tokenizer),
            length,
            training.gradient_checkpointing,
            self.peak_flops,
            self.accelerator.num_processes,
        )

    def train(self) -> dict:
        """Train to the end, write the model, and return training.json's content."""
        state, training = self.state, self.training
        # A run that goes on stays one run where the tracker would begin another.
        options = {"trackio": {"name": self.run.name, "resume": "allow"}}
        self.accelerator.init_trackers(self.run.name, init_kwargs=options)
        self.started = time.perf_counter() - state["seconds"]
        self.step_ended: list[float] = []  # of the first steps of this process, to plan training.max_seconds with
        self.restart_clock()
        self.bar = tqdm(
            total=state["max_steps"],
            initial=state["step"],
            desc="pretrain",
            unit=" steps",
            leave=False,
            disable=not self.is_main,
        )
        self.model.train()
        if state["evaluation_due"]:
            self.validate()
        while self.state["step"] < self.state["max_steps"]:
            if self.preemption.requested():
                self.leave()
            step = self.state["step"] + 1
            if step - 1 in (phase["after_step"] for phase in self.state["phases"][1:]):
                self.enter_phase(step)
                self.monitor.forget()
            factor = self.state["learning_rate_factor"]
            learning_rate = learning_rate_at(step, self.state["max_steps"], training) * factor
            self.prepared.set_learning_rate(learning_rate)
            passed_over = self.passes_over(step)
            if not passed_over:
                self.train_step(step)
                self.state["trained_steps"] += 1
            self.state["step"] = step
            self.preemption.anything_to_save = True
            self.checkpoints.check()
            self.bar.update()
            verdicts = self.monitor.settle(last=step == self.state["max_steps"])
            if (decision := self.follow(verdicts)) is not None:
                self.go_back(decision)
                continue
            if training.max_seconds and "planned_steps" not in self.state and not passed_over:
                self.plan_length()
            done = step == self.state["max_steps"]
            evaluating, saving = (done or step % every == 0 for every in (training.eval_steps, training.save_steps))
            logging = step == 1 or step % training.logging_steps == 0 or evaluating or saving
            if logging:
                self.log_progress(learning_rate)
            if evaluating:
                self.validate()
            if saving and not self.state["evaluation_due"]:
                self.save()
            if logging:  # after validation and saving, which are not the speed of training
                self.restart_clock()
        if self.state["evaluation_due"]:  # the signal came in the last evaluation
            self.leave()
        self.checkpoints.finish()
        self.bar.close()
        return self.export()

    def train_step(self, step: int) -> None:
        """Train on the next batches, with the learning rate that is set."""
        accelerator, tokens_per_step = self.accelerator, self.training.tokens_per_step
        seen, step_nats = torch.zeros_like(self.logged_seen), torch.zeros_like(self.logged_loss[0])
        seed_step(self.recipe.run.seed, step, accelerator.process_index)
        for micro_step in range(self.gradient_accumulation_steps):
            batch = next(self.batches)
            seen += batch.pop("seen").to(accelerator.device, non_blocking=True)
            batch = {name: tensor.to(accelerator.device, non_blocking=True) for name, tensor in batch.items()}
            # Every token of the step weighs the same. Gradients are averaged over processes, hence the factor.
            factor = accelerator.num_processes / tokens_per_step
            step_nats += self.prepared.add_gradients(batch, factor, micro_step == self.gradient_accumulation_steps - 1)
        self.logged_seen.add_(seen)
        step_loss = accelerator.reduce(torch.stack([step_nats, *seen.sum(0)]))  # nats, bytes and tokens of the step
        targets = step_loss[2].clamp(min=1)
        if self.skipped_documents.ranges:
            self.prepared.scale_gradients(tokens_per_step / targets)
        self.grad_norm = self.prepared.clip_grad_norm(self.training.max_grad_norm)
        ok = self.monitor.judge(step, step_loss[0] / targets, self.grad_norm)
        self.prepared.step_where(ok)
        self.logged_loss.add_(torch.where(ok, step_loss, 0.0))

    def plan_length(self) -> None:
        """Once the first steps have shown the speed, fix the length that training.max_seconds allows."""
        state, training, now = self.state, self.training, time.perf_counter()
        self.step_ended.append(now)
        if len(self.step_ended) < SPEED_STEPS.stop:
            return
        left_seconds = training.max_seconds - (now - self.started)
        planned = [plan_steps(self.step_ended, state["step"], left_seconds, state["max_steps"], training)]
        state["planned_steps"] = state["max_steps"] = self.bar.total = broadcast_object_list(planned)[0]
        if state["max_steps"] < training.max_steps:
            self.notes.append(
                f"training.max_seconds={training.max_seconds:g} gives {state['max_steps']:,} steps, "
                f"not the {training.max_steps:,} of training.max_tokens"
            )
            self.say(f"note: {self.notes[-1]}")
        if self.recipe.data.phases:
            shares = state["phases"][0]["shares"]
            state["phases"] = schedule_phases(self.recipe.data, shares, state["max_steps"], state["step"])
            self.open_mixture()
            if self.is_main:
                self.bar.write(describe_phases(state["phases"]))

    def log_progress(self, learning_rate: float) -> None:
        """Count what was read since the last line of metrics.jsonl, and write the next."""
        state, training = self.state, self.training
        counts = self.accelerator.reduce(self.logged_seen).tolist()
        for name, (num_bytes, num_tokens) in zip(self.shares, counts, strict=True):
            state["bytes_seen"][name] += num_bytes
            state["tokens_seen"][name] += num_tokens
        nats, step_bytes, step_tokens = self.logged_loss.tolist()
        if step_tokens:  # not where data.skip left nothing since the last line
            processed_tokens = (state["trained_steps"] - self.logged_steps) * training.tokens_per_step
            speed = processed_tokens / (time.perf_counter() - self.logged_at)
            record = {
                "step": state["step"],
                "train/loss": nats / step_tokens,
                "train/bits_per_byte": nats / math.log(2) / max(1, step_bytes),
                "train/grad_norm": self.grad_norm.item(),
                "train/learning_rate": learning_rate,
                "train/skipped_steps": sum(self.monitor.skipped.values()),
                "train/tokens_per_second": speed,
                "train/seconds": time.perf_counter() - self.started,
                "train/peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
            }
            record |= self.utilisation.record(speed) | self.seen()
            self.log(record)
            self.bar.set_postfix_str(describe_step(record), refresh=False)
        self.logged_loss.zero_()
        self.logged_seen.zero_()

    def restart_clock(self) -> None:
        """Measure the speed of training from here on."""
        self.logged_at, self.logged_steps = time.perf_counter(), self.state["trained_steps"]

    def log(self, record: dict) -> None:
        if self.is_main:
            append_lines(self.run / "metrics.jsonl", [record])
        shown = {name: value for name, value in record.items() if name != "step"}
        self.accelerator.log(shown, step=record["step"])

    def say(self, text: str) -> None:
        if self.is_main:
            self.bar.write(f"pretrain: {text}")

    def seen(self) -> dict[str, int]:
        return {f"train/{key}": sum(self.state[key].values()) for key in ("tokens_seen", "bytes_seen")}

    def save(self) -> None:
        self.state |= {"seconds": time.perf_counter() - self.started, "stability": self.monitor.state()}
        self.checkpoints.save(self.state["step"], self.prepared.gather(), self.state)
        self.saved_step = self.state["step"]
        self.status.update(step=self.saved_step)

    def note_saved(self, step: int, folder: Path, seconds: float) -> None:
        """Write down that a checkpoint is in its place, and put it in line for the Hub."""
        self.chronicle.note("save", step, f"{folder.name}, written in {seconds:.1f} s")
        self.status.update(checkpoint=str(folder), checkpoint_step=step)
        if problem := queue_revision(self.recipe, folder, self.language_model.config):
            self.chronicle.note("warning", step, problem)
            self.say(f"note: {problem}")

    def validate(self) -> None:
        """Score the validation text and the tasks, and look inside the model; cut short, it is due again."""
        state, accelerator, asked_to_leave = self.state, self.accelerator, self.preemption.requested
        scores = evaluate(self.model, self.texts, self.evaluation_batch_size, accelerator, asked_to_leave)
        if scores is not None:
            batch_tokens = self.training.per_device_train_batch_size * self.training.sequence_length
            eos = self.tokenizer.eos_token_id
            on_tasks = score_benchmarks(self.model, self.benchmarks, batch_tokens, eos, accelerator, asked_to_leave)
            scores = None if on_tasks is None else scores | on_tasks
        state["evaluation_due"] = scores is None
        if scores is None:
            return
        prompts, length = self.recipe.evaluation.prompts, self.training.sequence_length
        samples = continue_prompts(self.model, self.tokenizer, prompts, length, accelerator.device)
        if self.is_main:
            lines = zip(prompts, samples, strict=True)
            lines = [{"step": state["step"], "prompt": one, "text": text} for one, text in lines]
            append_lines(self.run / "samples.jsonl", lines)
        inside = probe(self.model, *self.probe_batch)
        parts = delivered(self.mixture, state)
        shown = {f"data/{key}/{name}": value for name, part in parts.items() for key, value in part.items()}
        self.log({"step": state["step"], **self.seen(), **scores, **inside, **shown})
        text = f"{scores['eval/bits_per_byte']:.4f} bits per byte; {describe_delivered(parts)}"
        self.chronicle.note("evaluation", state["step"], text)
        for warning in find_warnings(inside, state.get("probe")):
            self.chronicle.note("warning", state["step"], warning)
        state["probe"] = inside
        self.say(f"step {state['step']:,}: {describe_delivered(parts)}")

    def follow(self, verdicts: list) -> Decision | None:
        """Write down which steps were skipped, and return what else the policy asks for.

        Raises: FloatingPointError: it asks to stop; with the documents of the steps.
        """
        for verdict in verdicts:
            decision = self.monitor.decide(verdict, len(self.state["rollbacks"]))
            if verdict.kind != "taken":
                self.chronicle.note("skip", verdict.step, verdict.describe())
                self.say(verdict.describe())
            if decision is not None and decision.action == "rollback":
                return decision
            if decision is not None:
                documents = [
                    f"{piece['document']} ({piece['source']}, step {number})"
                    for number in decision.steps
                    for piece in documents_of_step(self.mixture, self.sequences_per_step, number)
                ]
                checkpoints = list_checkpoints(self.run / "checkpoints")
                before = [path for number, path in checkpoints if number < decision.steps[0]]
                raise FloatingPointError(
                    f"{decision.reason}; the documents of the steps: {', '.join(dict.fromkeys(documents))}. Pass over "
                    f"them with --data.skip.steps=[[{decision.steps[0]}, {decision.steps[-1]}]] and "
                    f"{f'--run.resume={before[0]}' if before else '--overwrite'}, or start again with a lower "
                    "training.learning_rate."
                )
        return None

    def go_back(self, decision: Decision) -> None:
        """Go back to the newest checkpoint before the first step that is to be passed over."""
        self.checkpoints.finish()
        folder = self.run / "checkpoints"
        earlier, _ = from_main(self.accelerator, lambda: newest_checkpoint(folder, below=decision.first))
        if earlier is None:
            raise RecipeError(f"{decision.reason}, and no checkpoint is from before step {decision.first}")
        left, state = self.state, load_state(earlier)
        entry = {
            "at_step": left["step"],
            "to_step": state["step"],
            "skipped_steps": [decision.first, decision.last],
        }
        factor = left["learning_rate_factor"] * self.training.stability.rollback.learning_rate_factor
        state |= {"seconds": time.perf_counter() - self.started, "settings": left["settings"]}
        state |= {"rollbacks": [*left["rollbacks"], entry], "learning_rate_factor": factor}
        self.state, self.saved_step = state, state["step"]
        self.prepared.restore(earlier)
        self.monitor = StabilityMonitor(self.training.stability, self.accelerator.device, state["stability"])
        self.open_mixture()
        self.enter_phase(state["step"])
        self.accelerator.wait_for_everyone()
        if self.is_main:
            cut_records(self.run, state["step"])
            set_aside_later(folder, state["step"])
        said = f"{decision.reason}: back to {earlier.name}, passing over steps {decision.first} to {decision.last}"
        said += f", learning rate times {factor:g}" if factor != 1 else ""
        self.chronicle.note("rollback", left["step"], said, **entry)
        self.notes.append(f"step {left['step']}: {said}")
        self.say(said)
        self.bar.n = state["step"]
        self.logged_loss.zero_()
        self.logged_seen.zero_()
        self.restart_clock()

    def leave(self) -> None:
        """Save what is not saved yet, and end this process."""
        self.bar.close()
        step, signal_name = self.state["step"], self.preemption.signal_name or "a signal to another process"
        if self.saved_step != step or self.state["evaluation_due"]:
            self.save()
        self.checkpoints.finish()
        self.chronicle.note("preemption", step, f"{signal_name}; saved")
        self.preemption.leave(f"{signal_name}; saved at step {step}")

    def export(self) -> dict:
        """Write the model and training.json, whose content is returned."""
        recipe, accelerator, state = self.recipe, self.accelerator, self.state
        summary = summarize(
            recipe,
            self.training,
            self.mixture,
            self.byte_lengths,
            state,
            self.parameters,
            accelerator,
            self.notes,
            self.compiled,
        )
        if self.is_main:
            write_json(self.run / "training.json", summary)
            with new_output(recipe, "pretrain") as output:
                export = accelerator.unwrap_model(self.model).language_model
                merge_adapters(export)
                # Of a model in parts the last checkpoint has the whole.
                last = self.run / "checkpoints" / f"step_{state['step']:08d}"
                whole = load_tensors(last, "model") if self.prepared.in_parts else None
                export.save_pretrained(output, state_dict=whole)
                self.tokenizer.save_pretrained(output)
        text = f"{summary['tokens_seen']:,} tokens in {summary['seconds']:.0f} s"
        self.chronicle.note("finish", state["step"], text)
        accelerator.wait_for_everyone()
        return summary

    def close(self) -> None:
        """Wait for the thread that writes a checkpoint: nothing may write into a run that is let go of."""
        self.checkpoints.wait()


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
    with held_run(run, accelerator) as left_by, Preemption(status) as preemption, ExitStack() as stack:
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
            summary = stack.enter_context(closing(Pretraining(recipe, accelerator, status, preemption))).train()
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
