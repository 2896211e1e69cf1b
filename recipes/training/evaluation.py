# SPDX-License-Identifier: Apache-2.0
"""What is scored while training, in memory, by the prepared model, on all processes.

Validation text of each source; the items of a few benchmarks, as `eval/run_eval.py --export_requests` wrote them to
<run.output_dir>/benchmarks/<task>.jsonl; and how the model goes on from evaluation.prompts. The first two come in
batches of one shape, that of training, so that nothing is compiled for them.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from mixture.batches import document_positions
from mixture.labels import IGNORED_LABEL
from mixture.validation_text import ValidationText
from model.attention import eager
from recipe_config import RecipeError


SAMPLE_TOKENS = 32  # written after a prompt


def shared_batches(num_rows: int, batch_size: int, accelerator: Accelerator) -> Iterator[slice]:
    """Yield the rows of each batch of this process: as many batches on every process; the last may have no rows."""
    rounds = -(-num_rows // (batch_size * accelerator.num_processes))
    for number in range(accelerator.process_index, rounds * accelerator.num_processes, accelerator.num_processes):
        yield slice(number * batch_size, (number + 1) * batch_size)


def fill_up(rows: np.ndarray, batch_size: int, value: int) -> Tensor:
    """Return rows with others of a value below them, so that each batch has one shape and compiles to one graph."""
    return F.pad(torch.from_numpy(rows), (0, 0, 0, batch_size - len(rows)), value=value)


def with_positions(input_ids: Tensor, eos_token_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    positions = torch.from_numpy(document_positions(input_ids.numpy(), eos_token_id))
    return input_ids.to(device), positions.to(device)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    texts: dict[str, ValidationText],
    batch_size: int,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> dict | None:
    """Score the validation text of each source on all processes.

    Returns: eval/loss/<source> (nats per token), eval/bits_per_byte/<source>, and eval/bits_per_byte over all bytes;
        None where `stop`, asked before each batch, cut it short.
    """
    model.eval()
    metrics, all_nats, all_bytes = {}, 0.0, 0
    for name, text in texts.items():
        nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for rows in shared_batches(len(text.input_ids), batch_size, accelerator):
            if stop():
                model.train()
                return None
            input_ids = fill_up(text.input_ids[rows], batch_size, text.eos_token_id)
            labels = fill_up(text.labels[rows], batch_size, IGNORED_LABEL).to(accelerator.device)
            inputs = with_positions(input_ids, text.eos_token_id, accelerator.device)
            nats += model(*inputs, labels)[1].double()
        total_nats = accelerator.reduce(nats).item()
        metrics[f"eval/loss/{name}"] = total_nats / int((text.labels != IGNORED_LABEL).sum())
        metrics[f"eval/bits_per_byte/{name}"] = total_nats / math.log(2) / text.num_bytes
        all_nats, all_bytes = all_nats + total_nats, all_bytes + text.num_bytes
    model.train()
    return metrics | {"eval/bits_per_byte": all_nats / math.log(2) / all_bytes}


@dataclass
class BenchmarkRows:
    """The requests of one task, packed into rows as documents are.

    Attributes:
        choices: of each item, the numbers of its choices.
        gold: of each item, the number of the right one.
        gold_bytes: UTF-8 bytes of all right choices together.
        input_ids, labels: int64, (num_rows, sequence_length); only the tokens of choices are labels.
        owners: int64, of that shape: the choice that a label belongs to.
    """

    choices: list[range]
    gold: list[int]
    gold_bytes: int
    input_ids: np.ndarray
    labels: np.ndarray
    owners: np.ndarray


def load_benchmarks(
    folder: Path,
    names: list[str],
    max_items: int,
    tokenizer: PreTrainedTokenizerBase,
    sequence_length: int,
    packed: bool,
) -> dict[str, BenchmarkRows]:
    """Read tasks that were exported; one that is not there is left out, as are items that `encode_item` cannot place.

    Args:
        folder: with <task>.jsonl.
        names: of the tasks.
        max_items: of a task, spread evenly over it.
        tokenizer: the model's.
        sequence_length: tokens of a row at most.
        packed: requests fill rows of that length together, which they may where documents do not see each other.
            Otherwise each has a row of its own, as long as the longest of all needs, rounded up to a power of two.

    Raises: RecipeError: a file that holds something else.
    """
    loaded = {}
    for name in names:
        path = folder / f"{name}.jsonl"
        if not path.is_file():
            continue
        try:
            items = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
            spread = np.linspace(0, len(items) - 1, min(len(items), max_items)).astype(int)
            encoded = [encode_item(items[index], tokenizer, sequence_length) for index in spread]
            if not items:
                raise ValueError("no item")
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise RecipeError(
                f"training.eval_tasks: {path} does not hold items with context, choices and gold: {error!r}; "
                "eval/run_eval.py --export_requests writes it"
            ) from error
        kept = [item for item in encoded if item is not None]
        if kept:
            loaded[name] = kept
    if not packed:
        lengths = [len(tokens) - 1 for items in loaded.values() for requests, _, _ in items for tokens, _ in requests]
        sequence_length = min(sequence_length, 1 << (max(lengths, default=1) - 1).bit_length())
    return {name: pack_rows(items, tokenizer.eos_token_id, sequence_length, packed) for name, items in loaded.items()}


def encode_item(
    item: dict, tokenizer: PreTrainedTokenizerBase, sequence_length: int
) -> tuple[list[tuple[list[int], int]], int, int] | None:
    """Encode an item as eval/ does at the end.

    A choice's tokens begin where those of the context alone and those with a choice part, the same for all choices.

    Returns: (tokens, how many of the last are the choice's) of each choice; the right one; its bytes. None where a
        choice is longer than a sequence. Of a text that is longer the beginning is cut off.
    """

    def encode(text: str) -> list[int]:
        return tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]

    context, gold = item["context"], item["gold"]
    alone, wholes = encode(context.rstrip()), [encode(context + choice) for choice in item["choices"]]
    cut = min(min(common_length(alone, whole), len(whole) - 1) for whole in wholes)
    if cut < 0 or max(len(whole) - cut for whole in wholes) > sequence_length:
        return None
    text = context + item["choices"][gold]
    before = tokenizer.decode(wholes[gold][:cut], clean_up_tokenization_spaces=False)
    num_bytes = len(text.encode()) - len((before if text.startswith(before) else context).encode())
    requests = [([tokenizer.eos_token_id, *whole][-(sequence_length + 1) :], len(whole) - cut) for whole in wholes]
    return requests, gold, num_bytes


def common_length(first: list[int], second: list[int]) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second))
    )


def pack_rows(
    items: list[tuple[list[tuple[list[int], int]], int, int]],
    eos_token_id: int,
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
    input_ids, labels = np.full(shape, eos_token_id), np.full(shape, IGNORED_LABEL)
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
    return BenchmarkRows(choices, gold, sum(size for _, _, size in items), input_ids, labels, owners)


@torch.no_grad()
def score_benchmarks(
    model: nn.Module,
    tasks: dict[str, BenchmarkRows],
    batch_tokens: int,
    eos_token_id: int,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> dict | None:
    """Score tasks by the likelihood of their choices, without examples, on all processes, so many tokens at a time.

    Returns: of each task eval/<task>/accuracy (the likeliest choice is the right one; of a single choice, each of its
        tokens is the likeliest), gold_bits_per_byte, chance (of the accuracy) and num_items; None where `stop`, asked
        before each batch, cut it short.
    """
    model.eval()
    metrics = {}
    for name, task in tasks.items():
        # nats of each choice, and how many of its tokens are not the likeliest
        sums = torch.zeros((2, task.choices[-1].stop), dtype=torch.float64, device=accelerator.device)
        batch_size = batch_tokens // task.input_ids.shape[1]
        for rows in shared_batches(len(task.input_ids), batch_size, accelerator):
            if stop():
                model.train()
                return None
            input_ids = fill_up(task.input_ids[rows], batch_size, eos_token_id)
            labels = fill_up(task.labels[rows], batch_size, IGNORED_LABEL).to(accelerator.device)
            owners = fill_up(task.owners[rows], batch_size, 0).to(accelerator.device)
            inputs = with_positions(input_ids, eos_token_id, accelerator.device)
            nats, likeliest = model(*inputs, labels, by_token=True)
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
            f"eval/{name}/chance": sum(1 / len(n) if len(n) > 1 else 0.0 for n in task.choices) / len(right),
            f"eval/{name}/num_items": len(right),
        }
    model.train()
    return metrics


@torch.no_grad()
def continue_prompts(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    sequence_length: int,
    device: torch.device,
) -> list[str]:
    """Return what the model writes after each prompt, greedily, uncompiled; every process must ask for the same.

    Each token costs a forward pass over all texts: what is prepared with FSDP2 has only that.
    """
    eos, room = tokenizer.eos_token_id, max(sequence_length // 2, sequence_length - 1 - SAMPLE_TOKENS)
    encoded = [tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] for text in prompts]
    texts = [[eos, *ids[-room:]] for ids in encoded]
    begun = [len(ids) for ids in texts]
    model.eval()
    with eager(getattr(model, "module", model).language_model):
        for _ in range(min(SAMPLE_TOKENS, sequence_length - max(begun, default=0)) if texts else 0):
            longest = max(map(len, texts))
            input_ids = torch.tensor([ids + [eos] * (longest - len(ids)) for ids in texts])
            inputs = with_positions(input_ids, eos, device)
            likeliest = model(*inputs, torch.zeros_like(inputs[0]), by_token=True)[1].long().tolist()
            for ids, row, start in zip(texts, likeliest, begun, strict=True):
                if len(ids) == start or ids[-1] != eos:  # else it has ended
                    ids.append(row[len(ids) - 1])
    model.train()
    return [tokenizer.decode(ids[start:], skip_special_tokens=True) for ids, start in zip(texts, begun, strict=True)]
