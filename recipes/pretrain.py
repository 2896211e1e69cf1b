# SPDX-License-Identifier: Apache-2.0
"""Stage 4: pretrain a Llama-style model on the mixture, from scratch or continued, on one or many devices.

In:   <run.output_dir>/tokens/ and tokenizer/; model.* and training.* of the recipe.
Out:  <run.output_dir>/model/ (loads with AutoModelForCausalLM) and checkpoints/;
      metrics.jsonl (numbers over time), chronicle.jsonl and chronicle.md (the event log), status.json (how the run
      stands, or how it ended), training.json (summary), samples.jsonl, recipe.yaml (resolved), environment.json.

    accelerate launch --config_file accelerate_configs/cpu.yaml recipes/pretrain.py \\
        --config recipes/legal/quickstart.yaml
    accelerate launch --config_file accelerate_configs/ddp.yaml --num_processes 8 recipes/pretrain.py \\
        --config recipes/legal/base.yaml

The same command resumes from the newest checkpoint. A signal to leave has a checkpoint saved first; see
recovery/preemption.py. The recipe states the batch in tokens, and what a process reads follows from the step alone, so
the experiment is the same on any number of processes.
"""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

from atomic_files import discard, write_json
from child_processes import EXIT_STOPPED
from mixture.phases import schedule_phases
from mixture.skips import describe_changes, extend_skips
from model.attention import is_causal
from model.continued import loaded_commit, with_shape_of
from model.llama import ContextWindow, count_module_parameters
from model.summed_loss import SummedLoss, build_summed_loss
from publishing.repositories import check_repositories
from publishing.revision_queue import queue_revision
from recipe_config import Recipe, RecipeError
from recipe_loading import parse_command_line, run_command, silence_transformers
from recorded_files import OF_TRAINING, record_run_files
from recovery import resuming
from recovery.agreement import from_main, held_run, refuse_differences
from recovery.checkpoints import Checkpoints, estimate_save_seconds, refuse_full_disk
from recovery.chronicle import Chronicle, RunStatus
from recovery.liveness import Liveness
from recovery.preemption import Preemption
from recovery.stored_tensors import list_checkpoints, load_state, newest_checkpoint
from recovery.weights import checksum_frozen
from run_folder import is_finished, new_output
from training import record
from training.accelerators import check_devices, explain_out_of_memory, make_accelerator
from training.benchmarks import describe_missing
from training.compilation import decide_compilation
from training.evaluation import Evaluation
from training.optimizers import build_optimizers, count_in_muon
from training.parallelism import refuse_combinations, round_as_one_process, wrap_layers
from training.preflight import dry_run, explain_little_memory
from training.prepared import PreparedModel
from training.progress import Progress, describe_phases, describe_plan
from training.schedule import learning_rate_at
from training.stability import Decision, StabilityMonitor, Verdict, explain_abort, rolled_back
from training.step import StepGradient
from training.text import TrainingText, leaves_out
from training.zero_stage3 import ZeroStage3Model


class Pretraining:
    """One process of a training run.

    Attributes:
        state: everything that a checkpoint holds beside tensors, as JSON values; see resuming.fresh_state.
        mixture, batches: the order of the training text, and this process's micro-batches after state["step"].
        notes: what the user should know at the start; printed, and written to the chronicle.
    """

    def __init__(
        self,
        recipe: Recipe,
        accelerator: Accelerator,
        status: RunStatus,
        preemption: Preemption,
        liveness: Liveness,
        overwrite: bool = False,
    ):
        self.recipe, self.accelerator, self.status, self.preemption = recipe, accelerator, status, preemption
        self.liveness = liveness
        self.run, self.is_main = Path(recipe.run.output_dir), accelerator.is_main_process

        # Data
        self.text = text = TrainingText(recipe, accelerator)
        self.training, self.notes = text.training, text.notes

        # Model
        set_seed(recipe.run.seed)  # the same weights on every process and every number of them
        self.compiled, note = decide_compilation(self.training, accelerator)
        self.notes += [note] if note else []
        tokenizer, folder = text.tokenizer, text.tokenizer_folder
        model = build_summed_loss(recipe, self.training, tokenizer, folder, accelerator, self.compiled)
        recipe.model = with_shape_of(recipe.model, model.language_model.config)
        self.language_model, self.parameters = model.language_model, count_module_parameters(model.language_model)
        self.prepared = self.prepare(model)
        size = refuse_full_disk(
            self.run,
            self.training.save_total_limit,
            self.parameters,
            accelerator,
            averaged=self.training.average is not None,
            in_muon=count_in_muon(self.prepared.optimizers),
        )
        self.time_to_save = preemption.allow(estimate_save_seconds(self.run, size, accelerator))
        self.printed_seconds = preemption.save_seconds

        # Resume
        self.notes += describe_missing(self.run / "benchmarks", self.training.eval_tasks)
        checkpoint, notes, missing = from_main(accelerator, lambda: resuming.choose_checkpoint(recipe, overwrite))
        lost = f"is missing, so it starts again and lacks what it held up to {checkpoint and checkpoint.name}"
        self.notes += [*notes, *(f"{name} {lost}" for name in missing)]
        self.chronicle = Chronicle(self.run, self.is_main)
        self.state = self.resume(checkpoint, missing)
        self.saved_step = None if checkpoint is None else self.state["step"]
        self.report_start(checkpoint)

        # Loop
        self.mixture = text.mix(self.state)
        self.batches = text.read(self.mixture, self.state)
        self.monitor = StabilityMonitor(self.training.stability, accelerator.device, self.state["stability"])
        # The newest step that this process computed, and its own values; the skipped steps that were computed twice.
        self.computed_here: tuple[int | None, Tensor | None] = (None, None)
        self.repeated: set[int] = set()
        self.checkpoints = Checkpoints(
            self.run / "checkpoints",
            self.training.save_total_limit,
            self.training.keep_every_steps,
            resuming.describe_identity(self.state, accelerator.num_processes),
            accelerator,
            self.note_saved,
            recipe.run.timeout_seconds,
        )
        self.progress = Progress(recipe, text, accelerator, self.state, self.prepared.module)
        self.gradient = StepGradient(recipe, text, self.prepared, accelerator, self.progress)
        self.evaluation = Evaluation(
            recipe, text, self.mixture, self.prepared, accelerator, self.progress, self.chronicle
        )
        self.first_context = ContextWindow.of(self.language_model, self.training)
        self.enter_phase(self.state["step"])

    def prepare(self, model: SummedLoss) -> PreparedModel:
        """Build the optimizers, and have Accelerate prepare them and the model."""
        optimizers = build_optimizers(model, self.training)
        if self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            return ZeroStage3Model(model, optimizers, self.accelerator, self.training.per_device_train_batch_size)
        round_as_one_process(model, self.accelerator)
        wrap_layers(model, self.accelerator)
        return PreparedModel(model, optimizers, self.accelerator, self.training.average)

    def resume(self, checkpoint: Path | None, missing: list[str]) -> dict:
        """Load the weights of a checkpoint, if there is one, and return the state to train from.

        Args: missing: files that start again, though the checkpoint knows how they began.
        """
        recipe, num_processes = self.recipe, self.accelerator.num_processes
        state = resuming.fresh_state(recipe, self.training, self.text.shares)
        attention = self.language_model.config._attn_implementation
        computing = record.describe_computing(self.accelerator, self.training, self.compiled, attention)
        if checkpoint is None:
            resuming.follow_computing(state, computing)
            state["frozen_weights"] = checksum_frozen(self.language_model)
            state["base_commit"] = loaded_commit(recipe.model)  # the head may have moved when the run is resumed
            self.chronicle.note("start", 0, f"{self.parameters['total']:,} parameters on {num_processes} processes")
            for note in self.notes:
                self.chronicle.note("note", 0, note)
            return state
        state, changes = resuming.check_state(checkpoint, state)
        self.prepared.restore(checkpoint)
        frozen = checksum_frozen(self.language_model)
        if state.setdefault("frozen_weights", frozen) != frozen:
            raise RecipeError(
                f"{checkpoint}: its adapters were trained on other weights than those that "
                f"model.from_pretrained={recipe.model.from_pretrained!r} has now; restore them, or set model.revision"
            )
        skip, earlier = recipe.data.skip, list_checkpoints(self.run / "checkpoints")
        if recipe.run.resume == "auto":
            resuming.refuse_other_precision(checkpoint, state, computing)
        if self.is_main:  # nothing is refused from here on
            resuming.forget_beginnings(self.run, missing)
        changes += resuming.follow_computing(state, computing)
        changes += describe_changes(state["skips"], skip, state["step"], earlier)
        state["skips"] = extend_skips(state["skips"], skip, state["step"])
        text = f"from {checkpoint} on {num_processes} processes"
        self.chronicle.note("resume", state["step"], text)
        for event, texts in (("note", self.notes), ("config_change", changes)):
            for text in texts:
                self.chronicle.note(event, state["step"], text)
        self.notes += changes
        return state

    def report_start(self, checkpoint: Path | None) -> None:
        """Print what will be trained, write the run's files, and drop what is later than the checkpoint."""
        state = self.state
        self.status.update(step=state["step"], max_steps=state["max_steps"], checkpoint=checkpoint and str(checkpoint))
        if self.is_main:
            for note in self.notes:
                print(f"pretrain: note: {note}")
            print(describe_plan(self.accelerator, self.training, self.parameters, state, checkpoint))
            print(f"pretrain: {self.time_to_save}")
            record.write_run_files(self.recipe, self.run, state["computing"][-1])
            record_run_files(self.run, ("recipe.yaml", "environment.json"))
            record.truncate_records(self.run, state["step"], checkpoint)
            resuming.set_aside_later(self.run / "checkpoints", state["step"])

    def enter_phase(self, step: int) -> None:
        """Set the sequence length of a step's phase in everything that depends on it."""
        phase = [phase for phase in self.state["phases"] if phase["after_step"] < max(1, step)][-1]
        context = self.first_context.in_phase(phase)
        context.apply(self.language_model)
        self.evaluation.enter_phase(context.sequence_length)
        self.progress.enter_phase(context.sequence_length, is_causal(self.language_model))
        self.evaluation_compiles = self.compiled
        if self.compiled:
            self.progress.note_compiling()

    def evaluate(self) -> None:
        """Evaluate the model; the first time in a phase compiles it without gradients."""
        if self.evaluation_compiles:
            self.progress.note_compiling()
        self.evaluation_compiles = False
        self.evaluation.evaluate(self.state, self.mixture, self.preemption.requested)
        self.progress.bar.set_description("pretrain")

    def train(self) -> dict:
        """Train to the end, export the model, and return the content of training.json."""
        training, progress = self.training, self.progress
        progress.start(self.state)
        self.prepared.module.train()
        if self.state["evaluation_due"]:
            self.evaluate()
        self.arrange_buckets()
        while self.state["step"] < self.state["max_steps"]:
            if self.preemption.requested():
                self.leave()
            step = self.state["step"] + 1
            if step - 1 in (phase["after_step"] for phase in self.state["phases"][1:]):
                self.enter_phase(step)
                self.monitor.forget()
            learning_rate = learning_rate_at(step, self.state["max_steps"], training)
            learning_rate *= self.state["learning_rate_factor"]
            self.prepared.set_learning_rate(learning_rate)
            left_out = leaves_out(self.state, step)
            if not left_out:
                started = time.monotonic()
                self.train_step(step)
                self.preemption.note_step(time.monotonic() - started)
                self.state["trained_steps"] += 1
            self.prepared.add_to_average(step, self.state)
            self.state["step"] = step
            self.preemption.anything_to_save = True
            self.checkpoints.check()
            progress.bar.set_description("pretrain", refresh=False)
            progress.bar.update()
            if (rollback := self.follow_policy(last=step == self.state["max_steps"])) is not None:
                self.roll_back(rollback)
                continue
            if training.max_seconds and "planned_steps" not in self.state and not left_out:
                self.plan_length()
            done = step == self.state["max_steps"]
            evaluating, saving = (done or step % every == 0 for every in (training.eval_steps, training.save_steps))
            logging = step == 1 or step % training.logging_steps == 0 or evaluating or saving
            skipped_steps = sum(self.monitor.skipped.values())
            if logging and (warning := progress.log_steps(self.state, learning_rate, skipped_steps)):
                self.chronicle.note("warning", step, warning)
                progress.say(f"note: {warning}")
            if logging:
                self.allow_for_slow_saves()
            if evaluating:
                self.evaluate()
            if saving and not self.state["evaluation_due"]:
                self.save()
            if logging:  # evaluation and saving do not count as training
                progress.restart_clock(self.state)
        if self.state["evaluation_due"]:  # a signal interrupted the last evaluation
            self.leave()
        self.checkpoints.finish()
        progress.bar.close()
        return self.export()

    def arrange_buckets(self) -> None:
        """Have DDP arrange its buckets of gradients, as it does after its first backward pass, before a step counts.

        The order in which more than two processes' gradients are added, and so their last bit, depends on it: the
        first step after a resume would differ from that of a run that was not stopped.
        """
        several = self.accelerator.num_processes > 2 and isinstance(self.prepared.module, DistributedDataParallel)
        if several and self.state["step"] < self.state["max_steps"]:
            batch = next(self.batches)
            read = {name: batch[name].to(self.accelerator.device) for name in batch if name not in ("seen", "scored")}
            self.prepared.add_gradients(read, 1.0, last=True)
            self.prepared.clear_gradients()
            self.batches = self.text.read(self.mixture, self.state)

    def train_step(self, step: int) -> None:
        """Train on the micro-batches of a step, with the learning rate that is set."""
        self.liveness.step = step
        computed = self.gradient.compute(step, self.batches)
        # The weights are still those of the step before, if that was skipped. A GPU computes meanwhile.
        if skipped := self.newest_skipped():
            self.compute_again(skipped)
            self.batches = self.text.read(self.mixture, self.state)
            computed = self.gradient.compute(step, self.batches)
        ok = self.monitor.judge(step, computed.loss, computed.grad_norm)
        self.prepared.step(ok)
        self.progress.count_step(computed.seen, torch.where(ok, computed.sums, 0.0), computed.grad_norm)
        self.computed_here = (step, computed.own)
        phases_end = (phase["after_step"] for phase in self.state["phases"][1:])
        if (step == self.state["max_steps"] or step in phases_end) and (skipped := self.newest_skipped()):
            self.compute_again(skipped)  # now: no step of the same form follows

    def newest_skipped(self) -> Verdict | None:
        """Return the verdict on the step before if it was skipped, and computed since the start, and not yet again."""
        step, _ = self.computed_here
        return self.monitor.newest_skipped() if step is not None and step not in self.repeated else None

    def compute_again(self, verdict: Verdict) -> None:
        """Compute a skipped step a second time, which refuses a device that gives another result."""
        batches = self.text.read(self.mixture, self.state | {"step": verdict.step - 1})
        self.gradient.compute_again(verdict, self.computed_here[1], batches)
        self.repeated.add(verdict.step)

    def follow_policy(self, last: bool) -> Decision | None:
        """Note which steps were skipped, and return the rollback that the policy decides on, if any.

        Raises: FloatingPointError: the policy stops training.
        """
        for verdict in self.monitor.read_verdicts(last):
            decision = self.monitor.decide(verdict, len(self.state["rollbacks"]))
            if verdict.kind != "taken":
                text = verdict.describe(repeated=verdict.step in self.repeated)
                self.chronicle.note("skip", verdict.step, text)
                self.progress.say(text)
            if decision is not None and decision.action == "rollback":
                return decision
            if decision is not None:
                raise FloatingPointError(explain_abort(decision, self.mixture, self.text.sequences_per_step, self.run))
        return None

    def roll_back(self, decision: Decision) -> None:
        """Return to the newest checkpoint before the steps that the policy skips."""
        self.checkpoints.finish()
        folder, left_at = self.run / "checkpoints", self.state["step"]
        checkpoint, _ = from_main(self.accelerator, lambda: newest_checkpoint(folder, below=decision.first))
        if checkpoint is None:
            raise RecipeError(f"{decision.reason}, and no checkpoint is from before step {decision.first}")
        self.state = rolled_back(self.state, load_state(checkpoint), decision, self.training.stability)
        self.state["seconds"] = self.progress.seconds()
        self.saved_step = self.state["step"]
        self.prepared.restore(checkpoint)
        self.monitor = StabilityMonitor(self.training.stability, self.accelerator.device, self.state["stability"])
        self.computed_here = (None, None)
        self.mixture = self.text.mix(self.state)
        self.batches = self.text.read(self.mixture, self.state)
        self.enter_phase(self.state["step"])
        self.accelerator.wait_for_everyone()
        if self.is_main:
            record.truncate_records(self.run, self.state["step"], checkpoint)
            resuming.set_aside_later(folder, self.state["step"])
        text = decision.describe_rollback(checkpoint.name, self.state["learning_rate_factor"])
        self.chronicle.note("rollback", left_at, text, **self.state["rollbacks"][-1])
        self.progress.say(text)
        self.progress.forget_steps(self.state)

    def plan_length(self) -> None:
        """Once the first steps have given the speed, set the length that training.max_seconds allows."""
        state, training = self.state, self.training
        if (planned := self.progress.plan_steps(state)) is None:
            return
        state["planned_steps"] = state["max_steps"] = planned
        if planned < training.max_steps:
            note = f"training.max_seconds={training.max_seconds:g} gives {planned:,} steps, "
            note += f"not the {training.max_steps:,} of training.max_tokens"
            self.chronicle.note("note", state["step"], note)
            self.progress.say(f"note: {note}")
        if self.recipe.data.phases:
            shares = state["phases"][0]["shares"]
            state["phases"] = schedule_phases(self.recipe.data, shares, planned, state["step"])
            self.mixture = self.text.mix(state)
            self.batches = self.text.read(self.mixture, state)
            if self.is_main:
                self.progress.bar.write(describe_phases(state["phases"]))

    def save(self) -> None:
        """Save a checkpoint; its files are written while training continues."""
        self.state |= {"seconds": self.progress.seconds(), "stability": self.monitor.state()}
        self.state["unlogged"] = self.progress.sums.tolist()
        self.progress.bar.set_description("pretrain: saving")
        self.checkpoints.save(self.state["step"], self.prepared.gather(), self.state)
        self.progress.bar.set_description("pretrain")
        self.saved_step = self.state["step"]
        self.status.update(step=self.saved_step)

    def allow_for_slow_saves(self) -> None:
        """Have all processes allow for the slowest save so far; the estimate is of a small file, which caches take."""
        text = self.preemption.allow(from_main(self.accelerator, lambda: self.preemption.slowest_save))
        if self.preemption.save_seconds > self.printed_seconds + 1:
            self.printed_seconds = self.preemption.save_seconds
            self.progress.say(f"note: {text}")

    def note_saved(self, step: int, folder: Path, seconds: float) -> None:
        """Note that a checkpoint is complete, and queue it for the Hub."""
        self.preemption.slowest_save = max(self.preemption.slowest_save, seconds)
        self.chronicle.note("save", step, f"{folder.name}, copied and written in {seconds:.1f} s")
        self.status.update(checkpoint=str(folder), checkpoint_step=step)
        if problem := queue_revision(self.recipe, folder, self.language_model.config):
            self.chronicle.note("warning", step, problem)
            self.progress.say(f"note: {problem}")

    def leave(self) -> None:
        """Save a checkpoint if the last is older than the state, and end this process."""
        self.progress.bar.close()
        step, signal_name = self.state["step"], self.preemption.signal_name or "a signal to another process"
        if self.saved_step != step or self.state["evaluation_due"]:
            self.progress.add_seen(self.state)  # of the steps since the last line of metrics.jsonl
            self.save()
        self.checkpoints.finish()
        self.chronicle.note("preemption", step, f"{signal_name}; saved")
        self.preemption.leave(f"{signal_name}; saved at step {step}")

    def export(self) -> dict:
        """Write the model and training.json, whose content is returned."""
        accelerator, state = self.accelerator, self.state
        mixture = record.summarize_mixture(self.mixture, self.text.byte_lengths, state)
        model = accelerator.unwrap_model(self.prepared.module)
        summary = record.summarize(self.recipe, self.training, model, self.parameters, state)
        summary |= record.describe_device(accelerator) | {"compiled": self.compiled}
        summary |= {"phases": state["phases"], "computing": state["computing"], "mixture": mixture}
        if state.get("base_commit"):
            summary["base_commit"] = state["base_commit"]
        accelerator.wait_for_everyone()  # nothing is refused from here on
        if self.is_main:
            write_json(self.run / "training.json", summary)
            text = f"{summary['tokens_seen']:,} tokens in {summary['seconds']:.0f} s"
            self.chronicle.note("finish", state["step"], text)
            # Before the model is there: no kill leaves a finished run without a record.
            record_run_files(self.run, tuple({*OF_TRAINING} - {"status.json"}))
            checkpoint, tokenizer = self.run / "checkpoints" / f"step_{state['step']:08d}", self.text.tokenizer
            # Of the longest phase, or of the base: AutoTokenizer truncates at it if asked to truncate.
            tokenizer.model_max_length = self.language_model.config.max_position_embeddings
            with new_output(self.recipe, "pretrain") as output:
                self.prepared.export(output, checkpoint, tokenizer)
                if self.training.average is None and (earlier := self.run / "model_final").exists():
                    discard(earlier)  # of a model with averaged weights, which this one replaces
        return summary

    def close(self) -> None:
        """Wait for the thread that writes a checkpoint: it must not write after the run folder is unlocked."""
        self.checkpoints.wait()


def record_failure(run: Path, status: RunStatus, chronicle: Chronicle | None, reason: str) -> None:
    """Record why training failed, as far as a full disk or a damaged chronicle lets it.

    Args: chronicle: of the training; None: it had not come so far.
    """
    with suppress(OSError):
        status.end("failed", 1, reason, alone=True)
    with suppress(OSError, RecipeError):
        if status.writes:
            record_run_files(run, (), forget=OF_TRAINING)  # the chronicle grows again
    with suppress(OSError, RecipeError, KeyError):
        (chronicle or Chronicle(run, status.writes)).note("failure", status.values.get("step", 0), reason)


def lost_contact(error: Exception) -> bool:
    """Return whether an error says that another process did not answer, or has ended."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


@contextmanager
def named_lost_contact() -> Iterator[None]:
    """Have a process to which another no longer answers end with a message: its own traceback explains nothing.

    Raises: RecipeError: another process ended, or did not answer.
    """
    try:
        yield
    except Exception as error:
        if not lost_contact(error):
            raise
        raise RecipeError(
            f"another process ended or does not answer ({str(error).splitlines()[0][:200]}); its reason is above, if "
            "it had one; the same command resumes from the newest checkpoint"
        ) from error


@named_lost_contact()
def main(argv: list[str] | None = None) -> None:
    recipe, options = parse_command_line(__doc__, argv)
    silence_transformers()
    accelerator = make_accelerator(recipe)
    if (note := check_devices(accelerator)) and accelerator.is_main_process:
        print(f"pretrain: note: {note}")
    refuse_combinations(recipe.training, recipe.model.lora is not None, accelerator)
    refuse_differences(recipe, accelerator)
    if options.dry_run:
        with held_run(Path(recipe.run.output_dir), accelerator):  # it records preflight.json
            try:
                dry_run(recipe, accelerator)
            except torch.OutOfMemoryError as error:
                torchs = str(error).partition(". ")[0]
                raise RecipeError(explain_little_memory(f"more than there is ({torchs})")) from error
        return
    if is_finished(recipe, "pretrain", options.overwrite):
        accelerator.print(f"pretrain: nothing to do, {recipe.run.output_dir}/model is up to date")
        return
    summary = train_locked(recipe, accelerator, options.overwrite)
    mixture = ", ".join(f"{part['delivered_fraction']:.2%} {name}" for name, part in summary["mixture"].items())
    accelerator.print(
        f"pretrain: {summary['parameters']['total']:,} parameters, {summary['tokens_seen']:,} tokens ({mixture}) in "
        f"{summary['seconds']:.0f} s, in {recipe.run.output_dir}/model"
    )
    accelerator.end_training()


def train_locked(recipe: Recipe, accelerator: Accelerator, overwrite: bool) -> dict:
    """Train while holding the run folder, record in status.json how it ended, and return training.json's content."""
    run, is_main = Path(recipe.run.output_dir), accelerator.is_main_process
    status, training = RunStatus(run, is_main), None

    def end_run(reason: str) -> None:
        """Record why, and end this process, whose main thread may wait for another for ever."""
        record_failure(run, status, training and training.chronicle, reason)
        sys.stderr.write(f"pretrain: {reason}; the same command resumes from the newest checkpoint\n")
        os._exit(1)

    def explain_end() -> str | None:
        """Return why another process died or failed; None of one that left after a signal: it had recorded that."""
        # Before the group is there, the status may be of the launch before.
        end = liveness.explain_death() or (status.read_end() if preemption.group else None)
        return None if status.is_preempted() else end

    processes = (accelerator.process_index, accelerator.num_processes)
    liveness = Liveness(run, *processes, recipe.run.timeout_seconds, end_run)
    with ExitStack() as stack:
        left_by = stack.enter_context(held_run(run, accelerator))
        stack.enter_context(liveness)
        preemption = stack.enter_context(Preemption(status, explain_end))  # it removes a file that asks to leave
        if is_main:
            record_run_files(run, (), forget=OF_TRAINING)  # they grow from here on
        status.begin()
        if left_by:
            accelerator.print(f"pretrain: note: took over from {left_by}, which no longer runs")
        if recipe.hub.repo_id and is_main:
            print(check_repositories(recipe))
        accelerator.wait_for_everyone()
        preemption.connect(accelerator, recipe.run.timeout_seconds)
        settings = recipe.training
        longest = recipe.data.longest_sequence(settings.sequence_length)
        try:
            training = Pretraining(recipe, accelerator, status, preemption, liveness, overwrite)
            settings = training.training  # the batch that fits the processes may be smaller
            summary = stack.enter_context(closing(training)).train()
        except Exception as error:
            reason = f"process {accelerator.process_index}: {type(error).__name__}: {error}"
            if isinstance(error, torch.OutOfMemoryError):
                error = RecipeError(explain_out_of_memory(error, settings, accelerator, longest))
                reason = f"process {accelerator.process_index}: {error}"
            elif lost_contact(error) and (cause := liveness.explain() or status.read_end()):
                error = RecipeError(f"{cause}; the same command resumes from the newest checkpoint")
                reason = f"{cause} (noticed by {reason.splitlines()[0][:300]})"
            # The other processes left after a signal, which a launcher also sends where one of them died.
            if (preemption.signal_name and not explain_end()) or status.is_preempted():
                status.end("preempted", EXIT_STOPPED, f"{preemption.signal_name}; not saved: {reason}", alone=True)
                raise SystemExit(EXIT_STOPPED) from error
            record_failure(run, status, training and training.chronicle, reason)
            raise error
        status.update(step=summary["max_steps"])
        status.end("finished", 0, "trained to the end")
        if is_main:
            record_run_files(run, ("status.json",))
    return summary


if __name__ == "__main__":
    run_command(main)
