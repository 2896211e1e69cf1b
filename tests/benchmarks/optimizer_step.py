# SPDX-License-Identifier: Apache-2.0
"""The host's time for a step of Muon, of torch.optim.Muon and of ours, on one process, under DDP and under FSDP2.

    PYTHONPATH=recipes python tests/benchmarks/optimizer_step.py --processes 2

The matrices are those of a Llama of 24 layers, so narrow that launching takes all of the time, as it does for the host
of a GPU. Both sides step in turn; the fastest step of each counts.
"""

import argparse
import tempfile
import time
from pathlib import Path

import torch
from torch import distributed, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from training.muon import ShardedMuon


def step_seconds(form: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the seconds of a step of torch's Muon and of ours."""
    wide = 2 * options.width
    shapes = [(options.width, options.width)] * 4 + [(wide, options.width)] * 2 + [(options.width, wide)]
    mesh = init_device_mesh("cpu", (distributed.get_world_size(),)) if form == "FSDP2" else None
    sides = {}
    for name, build in (("torch", torch.optim.Muon), ("ours", ShardedMuon)):
        torch.manual_seed(0)
        tensors = [torch.randn(shape) for shape in shapes * options.layers]
        if mesh is not None:
            tensors = [distribute_tensor(tensor, mesh, [Shard(0)]) for tensor in tensors]
        parameters = [nn.Parameter(tensor) for tensor in tensors]
        for parameter in parameters:
            parameter.grad = parameter.detach().clone()
        sides[name] = build(parameters, lr=1e-3, weight_decay=0.1)
    best = dict.fromkeys(sides, float("inf"))
    for _ in range(options.rounds):
        for name, optimizer in sides.items():
            if distributed.is_initialized():
                distributed.barrier()
            started = time.perf_counter()
            optimizer.step()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def work(rank: int, num_processes: int, form: str, store: str, options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if num_processes > 1 or form != "one process":
        distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_processes)
    best = step_seconds(form, options)
    if rank == 0:
        torchs, ours = best["torch"], best["ours"]
        print(f"{form},{num_processes},{1e3 * torchs:.1f},{1e3 * ours:.1f},{ours / torchs:.2f}", flush=True)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--layers", type=int, default=24, help="of seven matrices each")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print("form,processes,torch ms,ours ms,ratio")
    for form, processes in (
        ("one process", 1),
        ("DDP", options.processes),
        ("FSDP2", 1),
        ("FSDP2", options.processes),
    ):
        with tempfile.TemporaryDirectory() as folder:
            arguments = (processes, form, str(Path(folder) / "store"), options)
            multiprocessing.spawn(work, arguments, nprocs=processes)


if __name__ == "__main__":
    main()
