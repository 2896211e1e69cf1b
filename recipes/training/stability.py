# SPDX-License-Identifier: Apache-2.0
"""The stability policy: steps whose loss or gradient is not finite or spikes are skipped, and what follows from it.

1. `judge` decides on the device, before the optimizer steps, from the loss over all processes and the gradient's norm:
   all processes judge alike, and none waits for its device. A spike is more than `max_sigmas` standard deviations
   above the mean of the last `window_steps` (OLMo-core's SkipStepOptimizer).
2. `read_verdicts` gives the verdicts to the host, one step later.
3. `decide` counts them. After several skipped steps the policy of the recipe returns to an earlier checkpoint and
   skips the data around the spikes (PaLM, https://huggingface.co/papers/2204.02311, section 5.1), or stops the run.

All of it is a function of the steps before, so a resumed run decides as the uninterrupted one.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mixture.ledger import documents_of_step
from mixture.order import TokenMixture
from recipe_config import Stability
from recovery.stored_tensors import list_checkpoints


SAME_IN_ANY_ORDER = 1e-2  # relative


@dataclass(frozen=True)
class Verdict:
    """The verdict on a step. kind: taken, spike (skipped) or not_finite (skipped)."""

    step: int
    kind: str
    loss: float
    grad_norm: float

    def describe(self, repeated: bool = False) -> str:
        """Return what happened, in words; `repeated`: the step was computed again, with the same result."""
        what = "not finite" if self.kind == "not_finite" else "a spike"
        text = f"step {self.step} is {what} (loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}) and was skipped"
        cause = "the data, or the weights as they are, cause it, not a device"
        return text + (f"; it was computed a second time, with the same result: {cause}" if repeated else "")


@dataclass(frozen=True)
class Decision:
    """What the policy decides after a skipped step.

    Attributes:
        action: rollback or abort.
        reason: in words.
        steps: the skipped steps that led to it.
        first, last: the steps that a rollback skips.
    """

    action: str
    reason: str
    steps: tuple[int, ...]
    first: int = 0
    last: int = 0

    def describe_rollback(self, checkpoint: str, learning_rate_factor: float) -> str:
        slower = f", learning rate times {learning_rate_factor:g}" if learning_rate_factor != 1 else ""
        return f"{self.reason}: rolled back to {checkpoint}, skipping steps {self.first} to {self.last}{slower}"


class StabilityMonitor:
    """Judges the steps of a run and decides what follows.

    Args:
        settings: training.stability of the recipe.
        device: of the losses that are judged.
        state: what `state()` returned when the checkpoint to resume from was saved, or None.
    """

    def __init__(self, settings: Stability, device: torch.device, state: dict | None = None):
        state = state or {"window": [], "skipped": {"spike": 0, "not_finite": 0}, "recent": [], "unread": []}
        self.settings, self.skipped = settings, dict(state["skipped"])
        self.recent = [Verdict(**verdict) for verdict in state["recent"]]  # skipped steps that still count
        # Row k holds (loss, gradient norm) of one of the last steps; NaN where there was none yet.
        self.window = torch.full((settings.window_steps, 2), math.nan, dtype=torch.float64, device=device)
        if state["window"]:
            self.window[-len(state["window"]) :] = torch.tensor(state["window"], dtype=torch.float64)
        # Verdicts that the host has not read: (step, values, event of their arrival).
        self.unread: list[tuple[int, Tensor, torch.Event | None]] = [
            (step, torch.tensor(values, dtype=torch.float64), None) for step, values in state["unread"]
        ]

    def judge(self, step: int, loss: Tensor, grad_norm: Tensor) -> Tensor:
        """Return whether a step may be taken, as a bool on the device; nothing waits for it.

        Args: loss: mean over all processes, nats per token.  grad_norm: before clipping. Both 0-dim, on the device.
        """
        now = torch.stack([loss.double(), grad_norm.double()])
        finite = torch.isfinite(now).all()
        ok = finite
        if self.settings.max_sigmas is not None:
            seen = ~self.window[:, 0].isnan()
            count = seen.sum()
            values = torch.where(seen[:, None], self.window, 0.0)
            mean = values.sum(0) / count
            deviation = (torch.where(seen[:, None], values - mean, 0.0).square().sum(0) / (count - 1)).sqrt()
            enough = 2 * count >= len(self.window)
            highest = torch.where(enough, mean + self.settings.max_sigmas * deviation, math.inf)
            ok = finite & ~(now > highest).any()
            # A spike enters the window too, as the highest value that is no spike: a level that stays, as after new
            # data, becomes normal after a while, and a single step does not hide the next.
            moved = torch.cat([self.window[1:], torch.minimum(now, highest)[None]])
            self.window = torch.where(finite, moved, self.window)
        verdict = torch.cat([torch.stack([ok, finite]).double(), now])
        copied = verdict.to("cpu", non_blocking=True)
        event = None
        if verdict.device.type != "cpu":
            event = torch.Event(verdict.device)
            event.record()
        self.unread.append((step, copied, event))
        return ok

    def newest_skipped(self) -> Verdict | None:
        """Return the verdict on the newest step if that was skipped; waits until it has arrived from the device."""
        verdict = read_verdict(*self.unread[-1]) if self.unread else None
        return None if verdict is None or verdict.kind == "taken" else verdict

    def forget(self) -> None:
        """Start the statistics again, where a phase changes the data."""
        self.window.fill_(math.nan)

    def read_verdicts(self, last: bool = False) -> list[Verdict]:
        """Return the verdicts that were not read yet, except the newest; with `last`, that one too."""
        keep = 0 if last else 1
        unread, self.unread = self.unread[: len(self.unread) - keep], self.unread[len(self.unread) - keep :]
        return [read_verdict(*one) for one in unread]

    def decide(self, verdict: Verdict, rollbacks: int) -> Decision | None:
        """Count a verdict, and return what follows beside skipping its step.

        Args: rollbacks: how often the run was rolled back so far.
        """
        self.recent = [v for v in self.recent if v.step > verdict.step - self.settings.window_steps]
        if verdict.kind == "taken":
            return None
        self.skipped[verdict.kind] += 1
        self.recent.append(verdict)
        not_finite = [v.step for v in self.recent if v.kind == "not_finite"]
        most = self.settings.max_nonfinite_steps
        consecutive = list(range(verdict.step - most + 1, verdict.step + 1))
        if verdict.kind == "not_finite" and not_finite[-most:] == consecutive:
            reason = f"{most} consecutive steps have a loss or gradient that is not finite"
            return Decision("abort", reason, tuple(consecutive))
        skipped, rollback = [v.step for v in self.recent], self.settings.rollback
        if rollback is None or len(skipped) < rollback.after_skips:
            return None
        reason = f"{len(skipped)} of the last {self.settings.window_steps} steps were skipped"
        if rollbacks >= rollback.max_rollbacks:
            return Decision("abort", f"{reason}, and the run was rolled back {rollbacks} times", tuple(skipped))
        first, last = max(1, skipped[0] - rollback.skip_before), skipped[-1] + rollback.skip_after
        return Decision("rollback", reason, tuple(skipped), first, last)

    def state(self) -> dict:
        """Return the state as JSON values, which represent it exactly."""
        window = self.window[~self.window[:, 0].isnan()].tolist()
        for _, _, event in self.unread:
            if event is not None:
                event.synchronize()
        unread = [[step, values.tolist()] for step, values, _ in self.unread]
        recent = [vars(verdict) for verdict in self.recent]
        return {"window": window, "skipped": dict(self.skipped), "recent": recent, "unread": unread}


def read_verdict(step: int, values: Tensor, event: torch.Event | None) -> Verdict:
    """Return a verdict from the device, when it has arrived."""
    if event is not None:
        event.synchronize()
    ok, finite, loss, grad_norm = values.tolist()
    return Verdict(step, "taken" if ok else "spike" if finite else "not_finite", loss, grad_norm)


def is_same(first: float, second: float, exact: bool) -> bool:
    """Return whether two computations of a number agree: NaN and infinity with each other, `exact` bit by bit.

    The kernels of a GPU may add in another order, which a number that a fault has changed exceeds by far.
    """
    if not (math.isfinite(first) and math.isfinite(second)):
        return math.isfinite(first) == math.isfinite(second)
    return first == second or (not exact and math.isclose(first, second, rel_tol=SAME_IN_ANY_ORDER))


def explain_abort(decision: Decision, mixture: TokenMixture, sequences_per_step: int, run: Path) -> str:
    """Return why training stops, the documents of the skipped steps, and how to continue without them."""
    documents = [
        f"{piece['document']} ({piece['source']}, step {step})"
        for step in decision.steps
        for piece in documents_of_step(mixture, sequences_per_step, step)
    ]
    earlier = [path for step, path in list_checkpoints(run / "checkpoints") if step < decision.steps[0]]
    return (
        f"{decision.reason}; the documents of the steps: {', '.join(dict.fromkeys(documents))}. Skip the steps with "
        f"--data.skip.steps=[[{decision.steps[0]}, {decision.steps[-1]}]] and "
        f"{f'--run.resume={earlier[0]}' if earlier else '--overwrite'}, or start again with a lower "
        "training.learning_rate."
    )


def rolled_back(state: dict, earlier: dict, decision: Decision, settings: Stability) -> dict:
    """Return the state to continue with after a rollback.

    Args:
        state: of the run when the policy decided.
        earlier: of the checkpoint to return to.
        decision: the rollback, whose steps are skipped from here on.
        settings: training.stability of the recipe.
    """
    rollback = {
        "at_step": state["step"],
        "to_step": earlier["step"],
        "skipped_steps": [decision.first, decision.last],
    }
    # The steps after the checkpoint are trained again, in the way of the present period.
    periods = state.get("computing", [])
    present = [period | {"after_step": min(period["after_step"], earlier["step"])} for period in periods[-1:]]
    return earlier | {
        "computing": [period for period in periods[:-1] if period["after_step"] < earlier["step"]] + present,
        "settings": state["settings"],
        "rollbacks": [*state["rollbacks"], rollback],
        "learning_rate_factor": state["learning_rate_factor"] * settings.rollback.learning_rate_factor,
    }
