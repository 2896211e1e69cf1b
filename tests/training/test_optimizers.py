# SPDX-License-Identifier: Apache-2.0
"""The optimizers take torch's steps, or none; Muon on any number of processes, bit for bit."""

import math
import multiprocessing

import pytest
import torch
from host_waits import Waits
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from training.muon import ShardedMuon, divide, equal_shapes
from training.optimizers import step_where


# Wide, tall and square; 34 rows do not divide by four, and three leave a process without one.
SHAPES = [(32, 96), (34, 34), (96, 32), (32, 96), (3, 64), (34, 34), (32, 96)]
OPTIONS = {"lr": 0.1, "weight_decay": 0.1}
STEPS = 4
HARMED = (0, 2)  # steps with NaN in the gradient, which are not taken


def matrices() -> list[nn.Parameter]:
    torch.manual_seed(0)
    return [nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def gradients(step: int) -> list[torch.Tensor]:
    torch.manual_seed(1 + step)
    return [torch.randn(shape) for shape in SHAPES]


def stepped_by_torch() -> list[list[torch.Tensor]]:
    """Return the weights and the momenta after the steps that are taken."""
    parameters = matrices()
    optimizer = torch.optim.Muon(parameters, adjust_lr_fn="match_rms_adamw", **OPTIONS)
    for step in range(STEPS):
        for parameter, gradient in zip(parameters, gradients(step), strict=True):
            parameter.grad = gradient
        if step not in HARMED:
            optimizer.step()
    return [[p.detach(), optimizer.state[p]["momentum_buffer"]] for p in parameters]


def stepped_in_parts(mesh, placements) -> tuple[list[list[torch.Tensor]], list[str]]:
    """Return the same of ShardedMuon, whole, and what the host waited for."""

    def part(tensor: torch.Tensor) -> torch.Tensor:
        return tensor if mesh is None else distribute_tensor(tensor, mesh, placements)

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor

    parameters = [nn.Parameter(part(parameter.detach())) for parameter in matrices()]
    optimizer = ShardedMuon(parameters, **OPTIONS)
    with Waits() as waits:
        for step in range(STEPS):
            for parameter, gradient in zip(parameters, gradients(step), strict=True):
                parameter.grad = part(gradient * (math.nan if step in HARMED else 1.0))
            step_where([optimizer], torch.tensor(step not in HARMED))
    assert all(list(optimizer.state[p]) == ["momentum_buffer"] for p in parameters)
    return [[whole(p).detach(), whole(optimizer.state[p]["momentum_buffer"])] for p in parameters], waits.found


def same_bits(expected: list, found: list) -> bool:
    return all(torch.equal(a, b) for pair in zip(expected, found, strict=True) for a, b in zip(*pair, strict=True))


def step_as(rank: int, store: str, expected: list, answers) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=4)
    forms = {
        "ddp": (None, ()),
        "fsdp2": (init_device_mesh("cpu", (4,)), (Shard(0),)),
        "two machines": (init_device_mesh("cpu", (2, 2)), (Replicate(), Shard(0))),
    }
    answers.put({name: same_bits(expected, stepped_in_parts(*form)[0]) for name, form in forms.items()})
    distributed.destroy_process_group()


def test_muon_on_one_process_takes_torchs_steps_bit_for_bit_or_none_and_the_host_never_waits():
    found, waits = stepped_in_parts(None, ())
    assert same_bits(stepped_by_torch(), found) and waits == []


@pytest.mark.parametrize(
    ("waits_for", "call"),
    [
        ("_local_scalar_dense", lambda ones: bool(ones[0])),
        ("index", lambda ones: ones[ones > 0]),
        ("to in <lambda>", lambda ones: ones.to("cpu")),
        ("tolist in <lambda>", lambda ones: ones.tolist()),
        ("tensor in <lambda>", lambda ones: torch.tensor([1.0], device=ones.device)),
        (None, lambda ones: ones.to(torch.device("cpu"), non_blocking=True)),
        ("to in <lambda>", lambda ones: ones[::2].to(torch.device("cpu"), non_blocking=True)),
        (None, lambda ones: ones[ones.long()].to(torch.float64).add_(1)),
    ],
)
def test_what_lists_waits_lists_them_and_nothing_else(waits_for, call):
    ones = torch.ones(3)
    with Waits() as waits:
        call(ones)
    assert waits.found == ([] if waits_for is None else [waits_for])


def test_adamw_steps_as_it_does_alone_or_leaves_no_trace_and_the_host_never_waits():
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 6)) for _ in range(2)]
    layers[1].load_state_dict(layers[0].state_dict())
    alone, watched = (torch.optim.AdamW(layer.parameters(), lr=0.1, fused=True) for layer in layers)
    for step, harmed in enumerate((True, False, False, True, False)):
        for one, other in zip(*(layer.parameters() for layer in layers), strict=True):
            one.grad = torch.randn_like(one)
            other.grad = one.grad * (math.nan if harmed else 1.0)
        if not harmed:
            alone.step()
        with Waits() as waits:
            step_where([watched], torch.tensor(not harmed))
        assert waits.found == []
        for one, other in zip(*(layer.parameters() for layer in layers), strict=True):
            assert torch.equal(one, other), step
            for name, value in alone.state.get(one, {}).items():
                assert torch.equal(value, watched.state[other][name])


def test_four_processes_take_the_steps_of_one_bit_for_bit_under_ddp_fsdp2_and_on_two_machines(tmp_path):
    context = multiprocessing.get_context("fork")
    answers, expected = context.Queue(), stepped_by_torch()
    children = [
        context.Process(target=step_as, args=(r, str(tmp_path / "store"), expected, answers)) for r in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    assert [answers.get(timeout=10) for _ in children] == [{"ddp": True, "fsdp2": True, "two machines": True}] * 4


@pytest.mark.parametrize("num_processes", [1, 2, 8, 64, 200])
def test_each_matrix_has_one_owner_and_the_work_is_even(num_processes):
    shapes = [(1024, 1024), (512, 1024), (512, 1024), (1024, 1024), (2816, 1024), (2816, 1024), (1024, 2816)] * 24
    owned = divide(shapes, num_processes)
    assert sorted(k for each in owned for k in each) == list(range(168))
    costs = [sum(min(shapes[k]) ** 2 * (2 * max(shapes[k]) + min(shapes[k])) for k in each) for each in owned]
    most, even = max(costs), max(sum(costs) / num_processes, 1024**2 * (2 * 2816 + 1024))
    assert most <= 1.34 * even
    for each in owned:  # a shape's matrices are neighbours, so that one product takes them
        runs = list(equal_shapes([shapes[k] for k in each], 1 << 62))
        assert len(runs) == len({shapes[k] for k in each}) and sum(last - first for first, last in runs) == len(each)


def test_a_product_takes_no_more_elements_than_its_limit_but_at_least_one_matrix():
    assert list(equal_shapes([(4, 4)] * 5 + [(8, 8)] * 2 + [(4, 4)], 32)) == [
        (0, 2),
        (2, 4),
        (4, 5),
        (5, 6),
        (6, 7),
        (7, 8),
    ]
