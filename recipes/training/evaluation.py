# SPDX-License-Identifier: Apache-2.0
"""The evaluation of a model while it trains: validation text, benchmark tasks, samples and a look inside.

All of it runs in memory, by the prepared model, on all processes.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from mixture.order import TokenMixture
from mixture.validation_text import ValidationText
from model.attention import eager
from model.probe import find_warnings, make_probe_batch, probe
from recipe_config import Recipe
from recovery.chronicle import Chronicle
from training.benchmarks import load_benchmarks, score_benchmarks
from training.prepared import PreparedModel
from training.progress import Progress, describe_shares, total_seen
from training.record import append_lines, shares_so_far
from training.text import TrainingText
from training.validation import score_validation, with_positions


SAMPLE_TOKENS = 32  # written after a prompt


class Evaluation:
    """The evaluation of a run, on the same text, items, prompts and probe each time.

    Args:
        recipe: of the run.
        text: of the run.
        mixture: the order of the text, whose first sequences are probed.
        prepared: the model.
        accelerator, progress, chronicle: of the run.

    Attributes:
        texts: the validation text of each source, in sequences of the phase's length; see enter_phase.
        batch_size: sequences of that length in a batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        text: TrainingText,
        mixture: TokenMixture,
        prepared: PreparedModel,
        accelerator: Accelerator,
        progress: Progress,
        chronicle: Chronicle,
    ):
        self.text, self.model, self.accelerator, self.training = text, prepared.module, accelerator, text.training
        self.average, self.teachers = prepared.average, accelerator.unwrap_model(prepared.module).teachers
        self.progress, self.chronicle = progress, chronicle
        self.prompts, self.run = recipe.evaluation.prompts, Path(recipe.run.output_dir)
        # Tasks keep the length of the first phase, so no later phase compiles anything for them.
        self.benchmarks = load_benchmarks(
            self.run / "benchmarks",
            self.training.eval_tasks,
            self.training.max_eval_items,
            text.tokenizer,
            self.training.sequence_length,
            packed=self.training.document_masking,
        )
        self.batch_tokens = self.training.per_device_train_batch_size * self.training.sequence_length
        self.probe_batch = make_probe_batch(mixture, accelerator.device)
        self.texts: dict[str, ValidationText] = {}
        self.batch_size = 0

    def enter_phase(self, sequence_length: int) -> None:
        """Lay the validation text out in sequences of a phase's length."""
        limit = self.training.max_eval_bytes
        self.texts = {
            name: ValidationText(self.text.shards.folder, name, sequence_length, limit) for name in self.text.shares
        }
        self.batch_size = self.batch_tokens // sequence_length

    def evaluate(self, state: dict, mixture: TokenMixture, stop: Callable[[], bool]) -> None:
        """Score the model and look inside it, and log what was found; interrupted, it stays due.

        Args:
            state: of the run; gets `evaluation_due`, and `probe` to compare the next probe with.
            mixture: that the run reads.
            stop: called before each batch, returns the same on all processes; True interrupts the scoring.
        """
        scores = self.score(stop)
        if scores is not None and state["step"] == state["max_steps"]:
            scores = self.score_others(scores, stop)
        state["evaluation_due"] = scores is None
        if scores is None:
            return
        self.write_samples(state["step"])
        inside = probe(self.model, *self.probe_batch)
        shares = shares_so_far(mixture, state)
        by_source = {f"data/{key}/{name}": value for name, part in shares.items() for key, value in part.items()}
        self.progress.log({"step": state["step"], **total_seen(state), **scores, **inside, **by_source})
        self.chronicle.note("evaluation", state["step"], "its numbers are in metrics.jsonl")
        for warning in find_warnings(inside, state.get("probe")):
            self.chronicle.note("warning", state["step"], warning)
        state["probe"] = inside
        self.progress.say(f"step {state['step']:,}: {describe_shares(shares)}")

    def score(self, stop: Callable[[], bool]) -> dict[str, float] | None:
        """Return the scores of the validation text and the tasks; None where `stop` interrupted them."""
        scores = score_validation(self.model, self.texts, self.batch_size, self.accelerator, stop)
        if scores is None:
            return None
        bos = self.text.tokenizer.bos_token_id
        on_tasks = score_benchmarks(self.model, self.benchmarks, self.batch_tokens, bos, self.accelerator, stop)
        return None if on_tasks is None else scores | on_tasks

    def score_others(self, scores: dict[str, float], stop: Callable[[], bool]) -> dict[str, float] | None:
        """Add to the last scores those of the averaged weights, as average/*, and of the teachers, as teachers/*."""
        if self.average:
            with self.average.applied():
                averaged = self.score(stop)
            scores = averaged and scores | renamed(averaged, "average/")
        for teachers in self.teachers if scores else ():
            with self.accelerator.autocast():
                of_teachers = score_validation(teachers, self.texts, self.batch_size, self.accelerator, stop)
            scores = of_teachers and scores | renamed(of_teachers, "teachers/")
        return scores

    def write_samples(self, step: int) -> None:
        """Continue the prompts, and append the continuations to samples.jsonl."""
        length, device = self.training.sequence_length, self.accelerator.device
        texts = continue_prompts(self.model, self.text.tokenizer, self.prompts, length, device)
        if self.accelerator.is_main_process:
            pairs = zip(self.prompts, texts, strict=True)
            lines = [{"step": step, "prompt": prompt, "text": text} for prompt, text in pairs]
            append_lines(self.run / "samples.jsonl", lines)


def renamed(scores: dict[str, float], prefix: str) -> dict[str, float]:
    return {prefix + name.removeprefix("eval/"): score for name, score in scores.items()}


@torch.no_grad()
def continue_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    sequence_length: int,
    device: torch.device,
) -> list[str]:
    """Return the greedy continuation of each prompt; every process must pass the same prompts.

    There is no cache of keys and values: each token costs a forward pass over all texts, uncompiled. A model that
    FSDP2 prepared offers nothing but its forward pass.
    """
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    room = max(sequence_length // 2, sequence_length - 1 - SAMPLE_TOKENS)
    encoded = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in prompts]
    texts = [[bos, *ids[-room:]] for ids in encoded]
    starts = [len(ids) for ids in texts]
    model.eval()
    with eager(getattr(model, "module", model).language_model):
        for _ in range(min(SAMPLE_TOKENS, sequence_length - max(starts, default=0)) if texts else 0):
            longest = max(map(len, texts))
            input_ids = torch.tensor([ids + [eos] * (longest - len(ids)) for ids in texts])
            inputs = with_positions(input_ids, bos, device)
            nothing = torch.zeros_like(inputs["input_ids"])
            likeliest = model(**inputs, labels=nothing, by_token=True)[1].long().tolist()
            for ids, row, start in zip(texts, likeliest, starts, strict=True):
                if len(ids) == start or ids[-1] != eos:  # else it has ended
                    ids.append(row[len(ids) - 1])
    model.train()
    return [tokenizer.decode(ids[start:], skip_special_tokens=True) for ids, start in zip(texts, starts, strict=True)]
