# SPDX-License-Identifier: Apache-2.0
"""Which steps are taken: not those whose loss or gradient is not finite, nor those that stand out as spikes.

A step is judged on the device, before the optimizer steps, by the loss over all processes and the gradient's norm, so
that all processes judge alike and none waits for its device. A spike is more than `max_sigmas` standard deviations
above the mean of the last `window_steps`, after OLMo-core's SkipStepOptimizer. The host reads a verdict one step
later, counts, and decides what the policy in the recipe says: go on, go back to an earlier checkpoint and pass over
the data around the spikes (PaLM, https://huggingface.co/papers/2204.02311, section 5.1), or stop. All of it is a
function of the steps before, so a run that is resumed decides as it would have.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recipe_config import Stability


@dataclass(frozen=True)
class Verdict:
    """What became of a step. kind: taken, spike (skipped) or not_finite (skipped)."""

    step: int
    kind: str
    loss: float
    grad_norm: float

    def describe(self) -> str:
        what = "not finite" if self.kind == "not_finite" else "a spike"
        return f"step {self.step} is {what} (loss {self.loss:.4g}, gradient norm {self.grad_norm:.4g}) and was skipped"


@dataclass(frozen=True)
class Decision:
    """What follows from the verdicts. action: rollback, with the steps to pass over, or abort, with the reason."""

    action: str
    reason: str
    steps: tuple[int, ...]
    first: int = 0
    last: int = 0


class StabilityMonitor:
    """Judges the steps of a run.

    Args:
        settings: training.stability of the recipe.
        device: of the losses that are judged.
        state: what `state()` returned in the checkpoint that the run goes on from, or None.
    """

    def __init__(self, settings: Stability, device: torch.device, state: dict | None = None):
        state = state or {"window": [], "skipped": {"spike": 0, "not_finite": 0}, "recent": [], "unread": []}
        self.settings, self.skipped = settings, dict(state["skipped"])
        self.recent = [Verdict(**verdict) for verdict in state["recent"]]  # skipped steps that still count
        # Row k holds (loss, gradient norm) of one of the last steps; nothing but NaN where there was none yet.
        self.window = torch.full((settings.window_steps, 2), math.nan, dtype=torch.float64, device=device)
        if state["window"]:
            self.window[-len(state["window"]) :] = torch.tensor(state["window"], dtype=torch.float64)
        # Verdicts that the host has not read: (step, values, when they have arrived).
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
            # A spike goes into the window too, as high as is normal: a level that stays, as after new data does,
            # is the new normal after a while, and a single step does not hide the next.
            moved = torch.cat([self.window[1:], torch.minimum(now, highest)[None]])
            self.window = torch.where(finite, moved, self.window)
        verdict = torch.cat([torch.stack([ok, finite]).double(), now])
        copied = verdict.to("cpu", non_blocking=True)
        event = None
        if verdict.is_cuda:
            event = torch.Event(verdict.device)
            event.record()
        self.unread.append((step, copied, event))
        return ok

    def forget(self) -> None:
        """Begin the statistics anew, as where a phase changes the data."""
        self.window.fill_(math.nan)

    def settle(self, last: bool = False) -> list[Verdict]:
        """Return the verdicts that were not read yet, but for the newest; with `last`, that one too."""
        keep = 0 if last else 1
        unread, self.unread = self.unread[: len(self.unread) - keep], self.unread[len(self.unread) - keep :]
        verdicts = []
        for step, values, event in unread:
            if event is not None:
                event.synchronize()  # of a step ago
            ok, finite, loss, grad_norm = values.tolist()
            verdicts.append(Verdict(step, "taken" if ok else "spike" if finite else "not_finite", loss, grad_norm))
        return verdicts

    def decide(self, verdict: Verdict, rollbacks: int) -> Decision | None:
        """Count a verdict, and return what is to be done beside skipping its step.

        Args: rollbacks: how often the run went back so far.
        """
        self.recent = [v for v in self.recent if v.step > verdict.step - self.settings.window_steps]
        if verdict.kind == "taken":
            return None
        self.skipped[verdict.kind] += 1
        self.recent.append(verdict)
        row = [v.step for v in self.recent if v.kind == "not_finite"]
        most = self.settings.max_nonfinite_steps
        if verdict.kind == "not_finite" and row[-most:] == list(range(verdict.step - most + 1, verdict.step + 1)):
            reason = f"{most} steps after each other have a loss or gradient that is not finite"
            return Decision("abort", reason, tuple(row[-most:]))
        spikes, rollback = [v.step for v in self.recent], self.settings.rollback
        if rollback is None or len(spikes) < rollback.after_skips:
            return None
        reason = f"{len(spikes)} of the last {self.settings.window_steps} steps were skipped"
        if rollbacks >= rollback.max_rollbacks:
            return Decision("abort", f"{reason}, and the run went back {rollbacks} times already", tuple(spikes))
        first, last = max(1, spikes[0] - rollback.skip_before), spikes[-1] + rollback.skip_after
        return Decision("rollback", reason, tuple(spikes), first, last)

    def state(self) -> dict:
        """Return the state as JSON values, which are exact for what is in it."""
        window = self.window[~self.window[:, 0].isnan()].tolist()
        unread = [[step, values.tolist()] for step, values, _ in self.unread]
        recent = [vars(verdict) for verdict in self.recent]
        return {"window": window, "skipped": dict(self.skipped), "recent": recent, "unread": unread}
