# SPDX-License-Identifier: Apache-2.0
"""Scoring benchmark tasks while training, on the items that `eval/run_eval.py --export_requests` wrote.

An item of <run.output_dir>/benchmarks/<task>.jsonl has a context, choices and the number of the right choice (gold).
Each choice is a request: its likelihood after the context is scored, without examples, as eval/ does at the end.
"""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase

from mixture.labels import IGNORED_LABEL
from recipe_config import RecipeError
from training.validation import pad_rows, send, shared_batches, with_positions


@dataclass
class BenchmarkRows:
    """The requests of one task, packed into rows as documents are.

    Attributes:
        choices: the request numbers of each item.
        gold: the request number of each item's right choice.
        gold_bytes: UTF-8 bytes of all right choices together.
        baseline: the accuracy of guessing or of the best constant answer, whichever is higher.
        input_ids, labels: int64, (num_rows, sequence_length); only the tokens of choices are labels.
        owners: int64, same shape: the request that each label belongs to.
    """

    choices: list[range]
    gold: list[int]
    gold_bytes: int
    baseline: float
    input_ids: np.ndarray
    labels: np.ndarray
    owners: np.ndarray


def describe_missing(folder: Path, names: list[str]) -> list[str]:
    """Return a note that names the tasks whose items were not exported, or none."""
    missing = [name for name in names if not (folder / f"{name}.jsonl").is_file()]
    if not missing:
        return []
    return [
        f"training.eval_tasks: {', '.join(missing)} will not be scored, since {folder} lacks their items; "
        "recipes/run_recipe.py writes them, and so does eval/run_eval.py --export_requests"
    ]


def load_benchmarks(
    folder: Path,
    names: list[str],
    max_items: int,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    packed: bool,
) -> dict[str, BenchmarkRows]:
    """Read the tasks whose items were exported, without the items that are too long for a sequence.

    Args:
        folder: contains <task>.jsonl.
        names: the tasks.
        max_items: most items of a task, spread evenly over it.
        tokenizer: the model's.
        sequence_length: most tokens of a row.
        packed: several requests share a row of that length; right only where documents do not see each other.
            Otherwise each request has a row, whose length is the longest request's, rounded up to a power of two.

    Raises: RecipeError: a file does not hold such items.
    """
    loaded, baselines = {}, {}
    for name in names:
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            continue
        try:
            items = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            spread = np.linspace(0, len(items) - 1, min(len(items), max_items)).astype(int)
            encoded = [(items[index], encode_item(items[index], tokenizer, sequence_length)) for index in spread]
            if not items:
                raise ValueError("no item")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RecipeError(
                f"training.eval_tasks: {path} does not hold items with context, choices and gold: {error!r}; "
                "write it with eval/run_eval.py --export_requests"
            ) from error
        kept = [(item, found) for item, found in encoded if found is not None]
        if kept:
            baselines[name] = baseline_accuracy([item for item, _ in kept])
            loaded[name] = [found for _, found in kept]
    if not packed:
        lengths = [len(tokens) - 1 for items in loaded.values() for requests, _, _ in items for tokens, _ in requests]
        sequence_length = min(sequence_length, 1 << (max(lengths, default=1) - 1).bit_length())
    return {
        name: pack_rows(items, baselines[name], tokenizer.bos_token_id, sequence_length, packed)
        for name, items in loaded.items()
    }


def chance_accuracy(num_choices: Iterable[int]) -> float:
    """Return the accuracy of guessing; no guess finds a continuation that has no other choice."""
    return float(np.mean([1 / number if number > 1 else 0.0 for number in num_choices]))


def baseline_accuracy(items: list[dict]) -> float:
    """Return the accuracy of guessing or of one answer to every item, whichever is higher, as eval/ does at the end.

    An answer counts if all items have it at the same place among their choices, as in yes and no, or A to D.
    """
    texts = [[choice.strip() for choice in item["choices"]] for item in items]
    constant = [
        sum(item["gold"] == place for item in items) / len(items)
        for place, column in enumerate(zip(*texts, strict=False))
        if len(set(column)) == 1 and min(map(len, texts)) > 1
    ]
    return max([chance_accuracy(map(len, texts)), *constant])


def encode_item(
    item: dict, tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> tuple[list[tuple[list[int], int]], int, int] | None:
    """Encode an item as eval/ does at the end.

    A token may span the border between context and choice. The choices' tokens therefore start at the first token
    in which any encoding of context and choice differs from that of the context alone.

    Returns: a (tokens, number of those that are the choice's) for each choice, the number of the right choice, and
        its UTF-8 bytes; None where a choice is longer than a sequence. A longer text loses its beginning.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    context, gold = item["context"], item["gold"]
    alone, wholes = encode(context.rstrip()), [encode(context + choice) for choice in item["choices"]]
    start = min(min(common_length(alone, whole), len(whole) - 1) for whole in wholes)
    if start < 0 or max(len(whole) - start for whole in wholes) > sequence_length:
        return None
    text = context + item["choices"][gold]
    before = tokenizer.decode(wholes[gold][:start], clean_up_tokenization_spaces=False)
    num_bytes = len(text.encode()) - len((before if text.startswith(before) else context).encode())
    requests = [([tokenizer.bos_token_id, *whole][-(sequence_length + 1) :], len(whole) - start) for whole in wholes]
    return requests, gold, num_bytes


def common_length(first: list[int], second: list[int]) -> int:
    """Return how many leading tokens two lists share."""
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def pack_rows(
    items: list[tuple[list[tuple[list[int], int]], int, int]],
    baseline: float,
    bos_token_id: int,
    sequence_length: int,
    packed: bool,
) -> BenchmarkRows:
    """Lay the requests of `encode_item` into rows, one after the other."""
    requests = [request for requests, _, _ in items for request in requests]
    places, row, used = [], 0, 0
    for tokens, _ in requests:
        if used and (not packed or used + len(tokens) - 1 > sequence_length):
            row, used = row + 1, 0
        places.append((row, used))
        used += len(tokens) - 1
    shape = (row + 1, sequence_length)
    input_ids, labels = np.full(shape, bos_token_id), np.full(shape, IGNORED_LABEL)
    owners, choices = np.zeros(shape, dtype=np.int64), []
    for number, ((tokens, length), (row, start)) in enumerate(zip(requests, places, strict=True)):
        end = start + len(tokens) - 1
        input_ids[row, start:end] = tokens[:-1]
        labels[row, end - length : end] = tokens[-length:]
        owners[row, end - length : end] = number
    first = 0
    for own, _, _ in items:
        choices.append(range(first, first + len(own)))
        first += len(own)
    gold = [numbers[right] for numbers, (_, right, _) in zip(choices, items, strict=True)]
    return BenchmarkRows(choices, gold, sum(size for _, _, size in items), baseline, input_ids, labels, owners)


@torch.no_grad()
def score_benchmarks(
    model: nn.Module,
    tasks: dict[str, BenchmarkRows],
    batch_tokens: int,
    bos_token_id: int,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Score tasks by the likelihood of their choices on all processes, `batch_tokens` tokens at a time.

    Returns: for each task eval/<task>/accuracy, chance (the accuracy of guessing), baseline (the same, or that of the
        best constant answer if it is higher), gold_bits_per_byte and num_items; None where `stop`, called before each
        batch, returned True. An item is right if its gold choice is the likeliest; one with a single choice is right
        if each token of the choice is the likeliest.
    """
    model.eval()
    metrics = {}
    for name, task in tasks.items():
        # For each request: its nats, and how many of its tokens are not the likeliest.
        sums = torch.zeros((2, task.choices[-1].stop), dtype=torch.float64, device=accelerator.device)
        batch_size = batch_tokens // task.input_ids.shape[1]
        for rows in shared_batches(len(task.input_ids), batch_size, accelerator):
            if stop():
                model.train()
                return None
            input_ids = pad_rows(task.input_ids[rows], batch_size, bos_token_id)
            labels = send(pad_rows(task.labels[rows], batch_size, IGNORED_LABEL), accelerator.device)
            owners = send(pad_rows(task.owners[rows], batch_size, 0), accelerator.device)
            inputs = with_positions(input_ids, bos_token_id, accelerator.device)
            nats, likeliest = model(**inputs, labels=labels, by_token=True)
            scored = labels != IGNORED_LABEL
            found = torch.stack([nats[scored], (likeliest != labels)[scored].to(nats.dtype)])
            sums.index_add_(1, owners[scored], found.double())
        costs, missed = accelerator.reduce(sums).tolist()
        right = [
            min(numbers, key=costs.__getitem__) == gold if len(numbers) > 1 else missed[gold] == 0
            for numbers, gold in zip(task.choices, task.gold, strict=True)
        ]
        metrics |= {
            f"eval/{name}/accuracy": sum(right) / len(right),
            f"eval/{name}/gold_bits_per_byte": sum(costs[gold] for gold in task.gold) / math.log(2) / task.gold_bytes,
            f"eval/{name}/chance": chance_accuracy(map(len, task.choices)),
            f"eval/{name}/baseline": task.baseline,
            f"eval/{name}/num_items": len(right),
        }
    model.train()
    return metrics
