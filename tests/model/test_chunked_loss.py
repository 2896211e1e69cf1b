# SPDX-License-Identifier: Apache-2.0
"""The loss in chunks is the plain loss, in value and gradient, and never holds the logits of the batch."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from mixture.labels import IGNORED_LABEL
from model import chunked_loss, families
from planning import memory
from recipe_config import Model


ROWS, WIDTH, VOCAB = 1100, 16, 300  # an uneven last chunk


@pytest.fixture
def problem(monkeypatch):
    monkeypatch.setitem(memory.LOGITS_PER_CHUNK, "cpu", 512 * VOCAB)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(ROWS, WIDTH, generator=generator).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=generator).requires_grad_()
    labels = torch.randint(0, VOCAB, (ROWS,), generator=generator)
    labels[5:300] = IGNORED_LABEL
    return hidden, weight, labels


def plain_loss(hidden, weight, labels, z_loss):
    logits = F.linear(hidden, weight).float()
    nats = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
    return nats + z_loss * logits.logsumexp(-1)[labels != IGNORED_LABEL].square().sum(), nats


def value_and_gradients(function, hidden, weight, scale=0.25):
    hidden.grad = weight.grad = None
    minimised, nats = function()
    (minimised * scale).backward()
    return minimised.detach(), nats.detach(), hidden.grad, weight.grad


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_value_and_gradients_are_those_of_the_plain_loss(problem, z_loss):
    expected = value_and_gradients(lambda: plain_loss(*problem, z_loss), *problem[:2])
    found = value_and_gradients(lambda: chunked_loss.chunked_loss(*problem, z_loss), *problem[:2])
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(torch.stack(chunked_loss.chunked_loss(*problem, z_loss)), torch.stack(found[:2]))
    assert not problem[0].grad[5:300].any(), "what is not scored has no gradient"


def test_under_autocast_it_is_as_near_to_the_fp32_loss_as_the_plain_one(problem):
    exact = value_and_gradients(lambda: plain_loss(*problem, 0.0), *problem[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain = value_and_gradients(lambda: plain_loss(*problem, 0.0), *problem[:2])
        ours = value_and_gradients(lambda: chunked_loss.chunked_loss(*problem), *problem[:2])
    for mine, other, truth in zip(ours, plain, exact, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - truth).norm() <= 1.2 * (other - truth).norm() + 1e-6 * truth.norm()


def test_a_frozen_projection_gets_no_gradient_and_the_hidden_states_the_same(problem):
    hidden, weight, labels = problem
    chunked_loss.chunked_loss(hidden, weight, labels)[0].backward()
    both, hidden.grad, weight.grad = hidden.grad, None, None
    weight.requires_grad_(False)
    chunked_loss.chunked_loss(hidden, weight, labels)[0].backward()
    assert torch.equal(hidden.grad, both) and weight.grad is None


@pytest.mark.parametrize(("cap", "num_tokens"), [(None, VOCAB), (2.0, VOCAB), (2.0, VOCAB - 50)])
def test_learning_from_the_mean_of_two_distributions_has_the_gradient_of_both_losses(problem, cap, num_tokens):
    """The model that learns may have rows that are of no token, and the others then say nothing of these."""
    hidden, weight, labels = problem
    generator = torch.Generator().manual_seed(1)
    models = [(torch.randn(ROWS, 8, generator=generator), torch.randn(num_tokens, 8, generator=generator), None)] * 2
    models[1] = (2 * models[0][0], models[0][1], 3.0)
    soft = chunked_loss.SoftTargets(0.3, models)

    def plain():
        logits = families.capped(F.linear(hidden, weight), cap)
        target = sum(families.capped(F.linear(h, w), c).softmax(-1) for h, w, c in models) / 2
        target = F.pad(target, (0, VOCAB - num_tokens))
        of_text = F.cross_entropy(logits, labels, ignore_index=IGNORED_LABEL, reduction="sum")
        of_models = -(target * logits.log_softmax(-1)).sum(-1)[labels != IGNORED_LABEL].sum()
        return 0.7 * of_text + 0.3 * of_models, of_text

    expected = value_and_gradients(plain, hidden, weight)
    found = value_and_gradients(lambda: chunked_loss.chunked_loss(*problem, cap=cap, soft=soft), hidden, weight)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class LargestTensor(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            self.elements = max(self.elements, out.numel())
        return out


def test_no_tensor_is_as_large_as_the_logits_of_the_batch(problem):
    models = [(torch.ones(ROWS, 8), torch.ones(VOCAB, 8), None)] * 2
    for soft in (None, chunked_loss.SoftTargets(0.3, models)):
        with LargestTensor() as largest:
            chunked_loss.chunked_loss(*problem, soft=soft)[0].backward()
        assert largest.elements <= 512 * VOCAB < ROWS * VOCAB
    with LargestTensor() as largest:
        plain_loss(*problem, 0.0)[0].backward()
    assert largest.elements == ROWS * VOCAB


def test_a_gpu_gets_eight_times_the_rows_and_its_memory_is_planned_with_them():
    assert [memory.rows_per_chunk(32_768, device) for device in ("cpu", "cuda", "xpu")] == [1024, 8192, 8192]
    assert memory.rows_per_chunk(1 << 20, "cpu") == memory.LEAST_ROWS
    shape = Model(hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, num_attention_heads=16)
    parts = [memory.memory_by_part(shape, 32_768, 2048, 16, device_type=device) for device in ("cpu", "cuda")]
    assert parts[1]["logits"] - parts[0]["logits"] == 7 * 1024 * 32_768 * 2


@pytest.mark.parametrize("one_kernel", [True, False])
def test_a_product_added_in_one_kernel_gives_the_gradient_of_two(problem, monkeypatch, one_kernel):
    """torch has that kernel on GPUs only; here one is in its place that computes the same."""
    calls, addmm = [], torch.addmm

    def add_product(total, first, second, *, out_dtype, out):
        calls.append(out_dtype)
        assert out is total and first.dtype == torch.bfloat16
        return out.copy_(addmm(total, first.float(), second.float()))

    monkeypatch.setattr(chunked_loss, "adds_in_fp32", lambda *_: one_kernel)
    monkeypatch.setattr(torch, "addmm", add_product)
    exact = value_and_gradients(lambda: plain_loss(*problem, 0.0), *problem[:2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = value_and_gradients(lambda: chunked_loss.chunked_loss(*problem), *problem[:2])
    assert calls == ([torch.float32] * 3 if one_kernel else [])
    assert (found[3] - exact[3]).norm() < 0.01 * exact[3].norm() and found[3].dtype == torch.float32


def test_whether_a_gpu_has_the_kernel_is_found_by_trying(monkeypatch):
    device = torch.device("cuda")
    assert not chunked_loss.adds_in_fp32(torch.device("cpu"), torch.bfloat16)
    addmm = torch.addmm

    def adds(total, first, second, out):
        out.copy_(addmm(total, first.float(), second.float()))

    def ignores_the_sum(total, first, second, out):
        out.copy_(first.float() @ second.float())

    def is_missing(*_):
        raise NotImplementedError("no")

    def refuses(*_):
        raise RuntimeError("self and mat2")

    for kernel, has in ((adds, True), (ignores_the_sum, False), (is_missing, False), (refuses, False)):
        chunked_loss.adds_in_fp32.cache_clear()
        with monkeypatch.context() as context:
            for name in ("zeros", "ones"):
                made = getattr(torch, name)
                context.setattr(torch, name, lambda *size, made=made, device, dtype=torch.float32: made(*size))
            context.setattr(torch, "addmm", lambda *given, out_dtype, out, kernel=kernel: kernel(*given, out))
            assert chunked_loss.adds_in_fp32(device, torch.bfloat16) is has
    chunked_loss.adds_in_fp32.cache_clear()


def test_scaling_rounds_once_whatever_the_precisions():
    third = torch.tensor(1 / 3)
    gradient = torch.linspace(1, 2, 64)
    for stored, wanted in (
        (torch.float32, torch.float32),
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.bfloat16, torch.bfloat16),
    ):
        before = gradient.to(stored)
        exact = (before.double() * third.double()).to(torch.float32).to(wanted)
        found = chunked_loss.scale(before.clone(), third, wanted)
        assert found.dtype == wanted
        assert torch.allclose(found.float(), exact.float(), rtol=2**-8 if wanted == torch.bfloat16 else 1e-6, atol=0)
        assert not torch.equal(found.float(), (before.to(wanted) * third.to(torch.bfloat16)).float())
