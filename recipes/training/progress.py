# SPDX-License-Identifier: Apache-2.0
"""How far training is: its clock, the counts for the next line of metrics.jsonl, and the progress bar.

Where standard error is no terminal, as in a scheduler's log, there is no bar; each logging step prints a line.
"""

import math
import platform
import statistics
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from tqdm import tqdm

from model.continued import with_shape_of
from recipe_config import Recipe, Training
from training.record import append_lines
from training.schedule import SPEED_STEPS, plan_steps
from training.text import TrainingText
from training.utilisation import Utilisation, measure_utilisation, peak_flops, peak_memory_bytes


LAG = 1.5  # times the median of the processes' own seconds
LAG_LINES = 3  # of metrics.jsonl, one after the other, before a warning


class OwnSeconds:
    """How long this process computes in a step before it waits for others: its batches and forward passes.

    On a GPU events measure it, so that nothing waits. Under FSDP2 a forward pass waits for the others' weights too.

    Args: module: the prepared model.  device: that it is on.
    """

    def __init__(self, module: torch.nn.Module, device: torch.device):
        self.device, self.steps = device, []
        module.register_forward_hook(lambda *_: self.note_forward())

    def mark(self) -> float | torch.Event:
        """Return a point in time: on the clock, or among the device's work."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def note_forward(self) -> None:
        self.last_forward = self.mark()

    def start_step(self) -> None:
        self.started = self.last_forward = self.mark()

    def end_step(self) -> None:
        self.steps.append((self.started, self.last_forward))

    def mean(self) -> float:
        """Return the mean of the steps since the last call; waits for the device."""
        if self.device.type == "cpu":
            seconds = [end - start for start, end in self.steps]
        else:
            for _, end in self.steps:
                end.synchronize()
            seconds = [start.elapsed_time(end) / 1000 for start, end in self.steps]
        self.steps = []
        return sum(seconds) / max(1, len(seconds))


class Progress:
    """The clock, the counts and the progress bar of a run.

    Args:
        recipe: of the run.
        text: of the run.
        accelerator: of the run.
        state: of the run, at the step that training starts from.
        module: the prepared model.

    Attributes:
        started: the clock (time.perf_counter) when training started, moved back by the seconds before a resume.
        step_ended: the clock at the ends of this process's first steps, which training.max_seconds is planned with.
        utilisation: of the phase; see enter_phase.
        grad_norm: of the last step.
        teachers: the shapes of the models that the run learns from.
    """

    def __init__(
        self, recipe: Recipe, text: TrainingText, accelerator: Accelerator, state: dict, module: torch.nn.Module
    ):
        self.run, self.recipe, self.training = Path(recipe.run.output_dir), recipe, text.training
        self.vocab_size = len(text.tokenizer)
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process
        self.peak_flops = peak_flops(accelerator.device) if self.is_main else None  # takes a second on a CPU
        self.utilisation: Utilisation | None = None
        self.started = self.logged_at = time.perf_counter()
        self.logged_steps = state["trained_steps"]
        self.step_ended: list[float] = []
        # Since the last line of metrics.jsonl: nats, bytes and tokens that counted; bytes and tokens read, by source.
        self.sums = self.unlogged(state)
        self.seen = torch.zeros((len(state["bytes_seen"]), 2), dtype=torch.int64, device=accelerator.device)
        self.grad_norm = torch.zeros((), device=accelerator.device)
        self.prints_lines = self.is_main and not sys.stderr.isatty()
        as_loaded = recipe.model.model_copy(update={"from_pretrained": "the teacher's folder"})
        self.teachers = [
            with_shape_of(as_loaded, teacher.language_model.config)
            for teachers in accelerator.unwrap_model(module).teachers
            for teacher in teachers.models
        ]
        self.own_seconds = OwnSeconds(module, accelerator.device)
        self.lagging: tuple[int | None, int] = (None, 0)  # the slowest process, and for how many lines
        self.bar = tqdm(
            total=state["max_steps"],
            initial=state["step"],
            desc="pretrain",
            unit=" steps",
            leave=False,
            disable=not self.is_main or self.prints_lines,
        )

    def unlogged(self, state: dict) -> Tensor:
        """Return the sums at a state: of a checkpoint that a signal had saved between two lines, not zeros."""
        sums = state.get("unlogged", [0.0, 0.0, 0.0])  # absent from earlier checkpoints
        return torch.tensor(sums, dtype=torch.float64, device=self.accelerator.device)

    def enter_phase(self, sequence_length: int, causal: bool) -> None:
        """Count the FLOPs of a token in sequences of a phase's length; `causal` as in measure_utilisation."""
        self.utilisation = measure_utilisation(
            self.recipe.model,
            self.vocab_size,
            sequence_length,
            self.peak_flops,
            self.accelerator.num_processes,
            recomputed=self.training.gradient_checkpointing,
            causal=causal,
            teachers=self.teachers,
        )

    def start(self, state: dict) -> None:
        """Start the trackers and the clock."""
        # A resumed run stays one run where the tracker would start another.
        name = tracker_name(self.run)
        options = {"trackio": {"name": name, "resume": "allow"}}
        self.accelerator.init_trackers(name, init_kwargs=options)
        self.started = time.perf_counter() - state["seconds"]
        self.restart_clock(state)

    def seconds(self) -> float:
        """Return how long the run has trained, resumed parts included."""
        return time.perf_counter() - self.started

    def restart_clock(self, state: dict) -> None:
        """Measure the speed of training from here on."""
        self.logged_at, self.logged_steps = time.perf_counter(), state["trained_steps"]

    def count_step(self, seen: Tensor, sums: Tensor, grad_norm: Tensor) -> None:
        """Add a step to the next line of metrics.jsonl.

        Args:
            seen: bytes and tokens of each source that this process read.
            sums: nats, bytes and tokens of the labels that count, over all processes; zeros if the step was skipped.
            grad_norm: norm of its gradient before clipping.
        """
        self.seen.add_(seen)
        self.sums.add_(sums)
        self.grad_norm = grad_norm

    def forget_steps(self, state: dict) -> None:
        """Return the bar to the step of a rollback, and leave out what was counted since the last line."""
        self.bar.n = state["step"]
        self.sums = self.unlogged(state)
        self.seen.zero_()
        self.restart_clock(state)

    def plan_steps(self, state: dict) -> int | None:
        """Return how many steps training.max_seconds allows, the same on all processes; None before it is known."""
        self.step_ended.append(time.perf_counter())
        if len(self.step_ended) < SPEED_STEPS.stop:
            return None
        left_seconds = self.training.max_seconds - (self.step_ended[-1] - self.started)
        steps = plan_steps(self.step_ended, state["step"], left_seconds, state["max_steps"], self.training)
        self.bar.total = broadcast_object_list([steps])[0]
        return self.bar.total

    def log_steps(self, state: dict, learning_rate: float, skipped_steps: int) -> str | None:
        """Write a line of metrics.jsonl about the steps since the last, and add what they read to the state.

        Returns: a warning, the same on all processes, if one of them is slower than the others, for the first time.
        """
        own = self.gather_own_seconds()
        self.add_seen(state)
        nats, num_bytes, num_tokens = self.sums.tolist()
        if num_tokens:  # data.skip may have left none
            processed_tokens = (state["trained_steps"] - self.logged_steps) * self.training.tokens_per_step
            speed = processed_tokens / (time.perf_counter() - self.logged_at)
            record = {
                "step": state["step"],
                "train/loss": nats / num_tokens,
                "train/bits_per_byte": nats / math.log(2) / max(1, num_bytes),
                "train/grad_norm": self.grad_norm.item(),
                "train/learning_rate": learning_rate,
                "train/skipped_steps": skipped_steps,
                "train/tokens_per_second": speed,
                "train/seconds": self.seconds(),
                "train/peak_memory_bytes": peak_memory_bytes(self.accelerator.device),
            }
            record |= self.utilisation.record(speed) | total_seen(state)
            record |= {"train/own_seconds": own} if own else {}
            self.log(record)
            self.bar.set_postfix_str(describe_step(record), refresh=False)
            if self.prints_lines:
                left = (state["max_steps"] - state["step"]) * self.training.tokens_per_step / speed
                last = f"{state['max_steps']:,}"
                step = f"step {state['step']:>{len(last)},}/{last}, {tqdm.format_interval(left)} left"
                self.bar.write(f"pretrain: {step}: {describe_step(record)}", file=sys.stderr)
        self.sums.zero_()
        return self.find_lag(own)

    def add_seen(self, state: dict) -> None:
        """Add what was read since the last call to the state; every process must call it."""
        counts = self.accelerator.reduce(self.seen).tolist()
        for name, (num_bytes, num_tokens) in zip(state["bytes_seen"], counts, strict=True):
            state["bytes_seen"][name] += num_bytes
            state["tokens_seen"][name] += num_tokens
        self.seen.zero_()

    def gather_own_seconds(self) -> list[float]:
        """Return OwnSeconds.mean of every process; empty where there is only one."""
        mean = self.own_seconds.mean()
        if self.accelerator.num_processes == 1:
            return []
        return self.accelerator.gather(torch.tensor([mean], device=self.accelerator.device)).tolist()

    def find_lag(self, own: list[float]) -> str | None:
        """Return a warning at the LAG_LINES-th line in a row in which a process computed for longer than the rest."""
        if not own:
            return None
        slowest, median = own.index(max(own)), statistics.median_low(own)
        process, lines = self.lagging
        lines = lines + 1 if process == slowest else 1
        self.lagging = (slowest, lines) if own[slowest] > LAG * median else (None, 0)
        if self.lagging != (slowest, LAG_LINES):
            return None
        host = gather_object([platform.node()])[slowest]
        return (
            f"process {slowest} on {host} computes for {own[slowest]:.3g} s of each step before it waits for others, "
            f"whose median is {median:.3g} s; all train at its speed"
        )

    def log(self, record: dict) -> None:
        """Append a line to metrics.jsonl, and hand it to the trackers."""
        if self.is_main:
            append_lines(self.run / "metrics.jsonl", [record])
        values = {name: value for name, value in record.items() if name != "step" and not isinstance(value, list)}
        self.accelerator.log(values, step=record["step"])

    def note_compiling(self) -> None:
        """Show that what follows compiles, for seconds to minutes."""
        self.bar.set_description("pretrain: compiling")
        if self.prints_lines:
            self.bar.write("pretrain: compiling", file=sys.stderr)

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self.is_main:
            self.bar.write(f"pretrain: {text}")


def tracker_name(run: Path) -> str:
    """Return the name of a run in trackers: its folder's, of one of members/ after that of the run that learns."""
    return f"{run.parent.parent.name}-member-{run.name}" if run.parent.name == "members" else run.name


def total_seen(state: dict) -> dict[str, int]:
    """Return the tokens and bytes of all sources that training has read, as metrics.jsonl names them."""
    return {f"train/{key}": sum(state[key].values()) for key in ("tokens_seen", "bytes_seen")}


def describe_step(record: dict) -> str:
    """Return what stands beside the bar, from a line of metrics.jsonl."""
    used = record.get("train/mfu_fraction")
    return (
        f"loss {record['train/loss']:.3f}, {record['train/bits_per_byte']:.3f} bits/byte, "
        f"grad {record['train/grad_norm']:.2f}, lr {record['train/learning_rate']:.2e}, "
        f"{record['train/tokens_per_second']:,.0f} tokens/s{'' if used is None else f', {used:.0%} MFU'}, "
        f"{record['train/tokens_seen']:,} tokens"
    )


def describe_plan(
    accelerator: Accelerator, training: Training, parameters: dict[str, int], state: dict, checkpoint: Path | None
) -> str:
    """Return what will be trained, on what, and from which checkpoint."""
    micro_tokens = training.per_device_train_batch_size * training.sequence_length * accelerator.num_processes
    precision = "fp32" if accelerator.mixed_precision == "no" else accelerator.mixed_precision
    plan = (
        f"pretrain: {parameters['total']:,} parameters ({parameters['non_embedding']:,} without the embedding), "
        f"{state['max_steps']:,} steps of {training.tokens_per_step:,} tokens = "
        f"{training.per_device_train_batch_size} sequences * {training.sequence_length} tokens * "
        f"{training.tokens_per_step // micro_tokens} micro-steps * {accelerator.num_processes} processes, "
        f"{accelerator.device.type}, {precision}" + (f", from {checkpoint}" if checkpoint else "")
    )
    return f"{plan}\n{describe_phases(state['phases'])}"


def describe_phases(phases: list[dict]) -> str:
    """Return a line for each phase: its shares, and its sequence length where that is raised."""
    lines = []
    for phase in phases:
        shares = ", ".join(f"{100 * share:.2f} % {name}" for name, share in phase["shares"].items() if share)
        length = f", in sequences of {phase['sequence_length']:,} tokens" if "sequence_length" in phase else ""
        lines.append(f"pretrain: from step {phase['after_step'] + 1:,} on, {shares} (of the bytes){length}")
    return "\n".join(lines)


def describe_shares(shares: dict[str, dict[str, float]]) -> str:
    """Return what record.shares_so_far found, in words."""
    return "; ".join(
        f"{name} {100 * part['share']:.2f} % of the bytes (target {100 * part['asked']:.2f} %), "
        f"read {part['repetitions']:.1f} times"
        for name, part in shares.items()
    )
