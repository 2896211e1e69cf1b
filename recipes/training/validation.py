# SPDX-License-Identifier: Apache-2.0
"""Scoring the validation text on all processes, in batches of training's shape, so that nothing new is compiled."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from mixture.batches import document_positions
from mixture.document_borders import cumulative_lengths
from mixture.labels import IGNORED_LABEL
from mixture.validation_text import ValidationText


def shared_batches(num_rows: int, batch_size: int, accelerator: Accelerator) -> Iterator[slice]:
    """Yield the rows of each batch of this process; every process has as many, and the last may be empty."""
    rounds = -(-num_rows // (batch_size * accelerator.num_processes))
    for number in range(accelerator.process_index, rounds * accelerator.num_processes, accelerator.num_processes):
        yield slice(number * batch_size, (number + 1) * batch_size)


def pad_rows(rows: np.ndarray, batch_size: int, value: int) -> Tensor:
    """Append rows of a value up to the batch size: batches of one shape compile to one graph."""
    return F.pad(torch.from_numpy(rows), (0, 0, 0, batch_size - len(rows)), value=value)


def with_positions(input_ids: Tensor, bos_token_id: int, device: torch.device) -> dict[str, Tensor]:
    """Return token ids, their document_positions and cumulative_lengths, as SummedLoss takes them, on the device."""
    positions = document_positions(input_ids.numpy(), bos_token_id)
    inputs = {
        "input_ids": input_ids,
        "position_ids": torch.from_numpy(positions),
        "cumulative_lengths": cumulative_lengths(positions, padded=True),
    }
    return {name: send(tensor, device) for name, tensor in inputs.items()}


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor on a device. A GPU copies it from pinned memory while the host readies the next batch."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@torch.no_grad()
def score_validation(
    model: nn.Module,
    texts: dict[str, ValidationText],
    batch_size: int,
    accelerator: Accelerator,
    stop: Callable[[], bool],
) -> dict[str, float] | None:
    """Score the validation text of each source.

    Returns: eval/loss/<source> (nats per token), eval/bits_per_byte/<source>, and eval/bits_per_byte over all bytes;
        None where `stop`, called before each batch, returned True.
    """
    model.eval()
    metrics, all_nats, all_bytes = {}, 0.0, 0
    for name, text in texts.items():
        nats = torch.zeros((), dtype=torch.float64, device=accelerator.device)
        for rows in shared_batches(len(text.input_ids), batch_size, accelerator):
            if stop():
                model.train()
                return None
            input_ids = pad_rows(text.input_ids[rows], batch_size, text.bos_token_id)
            labels = send(pad_rows(text.labels[rows], batch_size, IGNORED_LABEL), accelerator.device)
            inputs = with_positions(input_ids, text.bos_token_id, accelerator.device)
            nats += model(**inputs, labels=labels)[1].double()
        total_nats = accelerator.reduce(nats).item()
        metrics[f"eval/loss/{name}"] = total_nats / int((text.labels != IGNORED_LABEL).sum())
        metrics[f"eval/bits_per_byte/{name}"] = total_nats / math.log(2) / text.num_bytes
        all_nats, all_bytes = all_nats + total_nats, all_bytes + text.num_bytes
    model.train()
    return metrics | {"eval/bits_per_byte": all_nats / math.log(2) / all_bytes}
