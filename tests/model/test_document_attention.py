# SPDX-License-Identifier: Apache-2.0
"""Attention without a mask: the same losses as with one, borders and positions, one compilation."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from small_models import small_model
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention import varlen
from transformers import LlamaConfig, LlamaForCausalLM

import pretrain
import tokenize_corpus
import train_tokenizer
from mixture.batches import document_positions
from mixture.document_borders import cumulative_lengths
from model import attention, document_attention
from model.attention import choose_attention
from model.summed_loss import SummedLoss
from recipe_config import RecipeError, Training


LENGTH = 64
CPU = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no")


def make_model(name: str, *, masked=True, key_value_heads=4, compiled=False, **config) -> SummedLoss:
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    shape |= {"num_key_value_heads": key_value_heads, "vocab_size": 384, "max_position_embeddings": LENGTH} | config
    model = LlamaForCausalLM(LlamaConfig(**shape))
    training = Training(max_tokens=1000, sequence_length=LENGTH, attn_implementation=name, document_masking=masked)
    choose_attention(model, training, CPU)
    return SummedLoss(model, compiled, document_masking=masked)


def make_batch(ends: list[list[int]], seed: int = 0) -> dict[str, torch.Tensor]:
    """Return a batch with end-of-text tokens at the given places of each row."""
    tokens = torch.randint(1, 384, (len(ends), LENGTH + 1), generator=torch.Generator().manual_seed(seed))
    for row, places in enumerate(ends):
        tokens[row, places] = 0
    input_ids = tokens[:, :-1].contiguous()
    positions = document_positions(input_ids.numpy(), 0)
    return {
        "input_ids": input_ids,
        "position_ids": torch.from_numpy(positions),
        "labels": tokens[:, 1:].contiguous(),
        "cumulative_lengths": cumulative_lengths(positions),
    }


BATCHES = {
    "a border in the middle": [[20], [33, 50]],
    "no border": [[], []],
    "at both ends of a row": [[0], [LENGTH - 1]],
    "documents of one token": [[5, 6, 7, 8], list(range(LENGTH))],
}


@pytest.mark.parametrize("ends", BATCHES.values(), ids=BATCHES)
@pytest.mark.parametrize("key_value_heads", [4, 2, 1])
@pytest.mark.parametrize("masked", [True, False])
def test_loss_and_gradients_are_those_of_attention_with_a_mask(masked, key_value_heads, ends):
    batch, found = make_batch(ends), []
    for name in ("sdpa", "varlen"):
        model = make_model(name, masked=masked, key_value_heads=key_value_heads)
        minimised, nats = model(**batch)
        minimised.backward()
        found.append((nats.item() / batch["labels"].numel(), [one.grad for one in model.parameters()]))
    (masked_loss, masked_gradients), (loss, gradients) = found
    assert abs(loss - masked_loss) < 1e-5
    for one, other in zip(masked_gradients, gradients, strict=True):
        assert (one - other).norm() < 1e-5 * one.norm() + 1e-7


def test_in_bf16_it_rounds_as_attention_with_a_mask_does_and_never_computes_in_fp32(monkeypatch):
    batch, losses, taken = make_batch(BATCHES["a border in the middle"]), [], []
    operator = document_attention.cpu_operator()

    def recorded(query, key, value, *rest):  # the rotation makes query and key fp32 under autocast
        taken.extend([query.dtype, key.dtype, value.dtype])
        return operator(query, key, value, *rest)

    monkeypatch.setattr(document_attention, "cpu_operator", lambda: recorded)
    for name in ("sdpa", "varlen"):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(make_model(name)(**batch)[1].item() / batch["labels"].numel())
    assert abs(losses[0] - losses[1]) < 2e-3 and set(taken) == {torch.bfloat16}


@pytest.mark.parametrize("masked", [True, False])
def test_no_mask_is_made_and_changing_a_document_moves_the_next_only_without_masking(masked):
    model, masks = make_model("varlen", masked=masked), []
    layer = model.language_model.model.layers[0]
    layer.register_forward_pre_hook(lambda *given: masks.append(given[2]["attention_mask"]), with_kwargs=True)
    batch = make_batch([[20], [20]])
    changed = batch["input_ids"].clone()
    changed[:, :20] = changed[:, :20] % 383 + 1
    before, after = (
        model.hidden_states(inputs, batch["position_ids"], batch["cumulative_lengths"])
        for inputs in (batch["input_ids"], changed)
    )
    moved = (before - after).abs().amax((0, 2))
    assert masks == [None, None] and (moved[:20] > 0).all()
    assert (moved[20:] == 0).all() if masked else (moved[21:] > 0).all()


def test_cumulative_lengths_have_one_shape_whatever_the_borders_and_double_where_it_is_too_short():
    positions = np.arange(4096).reshape(2, 2048) % 2048
    rows = cumulative_lengths(positions)
    assert rows.dtype == torch.int32 and rows.tolist() == [0, 2048, *[4096] * (2 + 4096 // 128 - 1)]
    positions[0, 100:] = np.arange(1948)
    borders = cumulative_lengths(positions)
    assert borders[:4].tolist() == [0, 100, 2048, 4096] and borders.shape == rows.shape
    positions[1] = 0  # each token a document
    short = cumulative_lengths(positions)
    assert short[:2050].tolist() == [0, 100, *range(2048, 4096)] and set(short[2050:].tolist()) == {4096}
    assert len(short) - 1 == 64 * (len(rows) - 1)


def test_padding_is_one_document_in_each_row_and_the_next_document_stays_apart():
    positions = document_positions(np.array([[5, 6, 0, 0, 0, 0, 7, 8], [0, 0, 0, 0, 0, 0, 0, 0]]), 0)
    assert cumulative_lengths(positions)[:13].tolist() == [0, 2, 3, 4, 5, 8, 9, 10, 11, 12, 13, 14, 15]
    assert cumulative_lengths(positions, padded=True).tolist() == [0, 2, 5, 8, 16]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_compiles_once_without_a_break_whatever_the_borders(checkpointing):
    torch.compiler.reset()
    counter = CompileCounterWithBackend("aot_eager")
    eager, model = make_model("varlen", key_value_heads=2), make_model("varlen", key_value_heads=2)
    if checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
    body = model.language_model.model
    for module in body.layers if checkpointing else [body]:
        module.compile(backend=counter, dynamic=False, fullgraph=True)

    def compare(ends: list[list[int]], seed: int) -> None:
        batch, gradients = make_batch(ends, seed), []
        for one in (eager, model):
            one.train()
            one.zero_grad()
            one(**batch)[0].backward()
            gradients.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters()]))
        assert (gradients[0] - gradients[1]).norm() < 1e-5 * gradients[0].norm()

    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed, ends in enumerate(([[20], []], [[], []], [[], [60]])):
            compare(ends, seed)
    assert counter.frame_count == 1
    compare([[20, 30], [33, 40]], 3)  # more documents than there is room for
    assert counter.frame_count == 2


def test_phases_of_longer_sequences_and_evaluations_train_as_with_a_mask(tokenized_run, tmp_path):
    phase = {"start_fraction": 0.5, "shares": {"law": 0.6, "web": 0.4}, "sequence_length": 64}
    overrides = [f"--data.phases={json.dumps([phase])}", "--model.num_key_value_heads=1"]
    overrides += ["--training.max_tokens=2048", "--training.eval_steps=4"]
    losses, scores = [], []
    for name in ("sdpa", "varlen"):
        run = tokenized_run.copy(tmp_path / name)
        for stage in (train_tokenizer, tokenize_corpus):  # phases decide the tokenizer's sample too
            stage.main(run.argv(*overrides, "--overwrite"))
        pretrain.main(run.argv(*overrides, f"--training.attn_implementation={name}"))
        losses.append(run.losses())
        scores.append([line["eval/bits_per_byte"] for line in run.metrics() if "eval/bits_per_byte" in line])
    assert len(losses[0]) == 8 and max(abs(losses[0][step] - losses[1][step]) for step in range(1, 9)) < 1e-5
    assert len(scores[0]) == 2 and scores[0] == pytest.approx(scores[1], abs=1e-5)


def gpu(precision="bf16", capability=(9, 0), monkeypatch=None):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "a GPU")
    return SimpleNamespace(device=torch.device("cuda"), mixed_precision=precision)


@pytest.mark.parametrize(
    ("precision", "capability", "config", "reason"),
    [
        ("bf16", (8, 0), {}, None),
        ("bf16", (9, 0), {}, None),
        ("no", (9, 0), {}, "computes in bf16, and mixed_precision is no"),
        ("bf16", (7, 5), {}, "needs an Ampere GPU or a newer one, and this is a GPU"),
        ("bf16", (9, 0), {"attention_dropout": 0.1}, "has no dropout, and model.attention_dropout is 0.1"),
        ("bf16", (9, 0), {"head_dim": 12}, "multiple of 8 up to 256, and the model's are 12 wide"),
    ],
)
def test_auto_is_varlen_on_a_gpu_that_has_the_kernel_and_varlen_is_refused_elsewhere(
    precision, capability, config, reason, monkeypatch
):
    accelerator = gpu(precision, capability, monkeypatch)
    model = make_model("sdpa", **config).language_model
    training = Training(max_tokens=1000, sequence_length=LENGTH)
    assert training.attn_implementation == "auto"
    choose_attention(model, training, accelerator)
    assert model.config._attn_implementation == ("varlen" if reason is None else "sdpa")
    explicit = training.model_copy(update={"attn_implementation": "varlen"})
    if reason is None:
        choose_attention(model, explicit, accelerator)
    else:
        with pytest.raises(RecipeError, match=f"{reason}; use auto"):
            choose_attention(model, explicit, accelerator)


def test_on_a_processor_auto_is_varlen_for_long_masked_sequences_else_sdpa_and_flex_attention_is_refused():
    long, model = {"max_tokens": 10_000, "sequence_length": 2048}, make_model("sdpa").language_model
    for options, name in (({}, "varlen"), ({"document_masking": False}, "sdpa_causal")):
        choose_attention(model, Training(**long, **options), CPU)
        assert model.config._attn_implementation == name
    model = make_model("sdpa", attention_dropout=0.1).language_model
    choose_attention(model, Training(**long), CPU)
    assert model.config._attn_implementation == "sdpa"
    assert make_model("auto").language_model.config._attn_implementation == "sdpa"
    assert make_model("auto", masked=False).language_model.config._attn_implementation == "sdpa_causal"
    with pytest.raises(RecipeError, match="flex_attention needs a GPU and this is cpu; use auto"):
        make_model("flex_attention")


@pytest.mark.parametrize(
    ("precision", "longest", "name"), [("bf16", 256, "eager"), ("bf16", 512, "sdpa"), ("no", 256, "sdpa")]
)
def test_on_a_processor_auto_keeps_the_scores_of_short_sequences_in_bf16(precision, longest, name):
    model, training = make_model("sdpa").language_model, Training(max_tokens=1000, sequence_length=256)
    on_cpu = SimpleNamespace(device=torch.device("cpu"), mixed_precision=precision)
    choose_attention(model, training, on_cpu, longest)
    assert model.config._attn_implementation == name


@pytest.mark.parametrize("grouped", [True, False])
def test_on_a_gpu_torchs_kernel_gets_packed_tokens_causal_and_grouped(grouped, monkeypatch):
    """With torch's function replaced by one that computes the same on a processor, and the device by one like it."""
    calls = []
    names = ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]

    def recorded(*given, **options):
        calls.append(dict(zip(names, given, strict=True)) | options)
        query, key, value, lengths = given[:4]
        return torch.empty_like(query)

    def newer(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size, enable_gqa=False): ...
    def older(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, scale, window_size): ...

    recorded.__signature__ = document_attention.inspect.signature(newer if grouped else older)
    monkeypatch.setattr(document_attention, "varlen_attn", recorded)
    model = make_model("varlen", key_value_heads=2).to("meta")
    batch = {name: tensor.to("meta") for name, tensor in make_batch([[20], [33]]).items()}
    model.hidden_states(batch["input_ids"], batch["position_ids"], batch["cumulative_lengths"])
    assert len(calls) == 2
    one = calls[0]
    assert one["query"].shape == (2 * LENGTH, 4, 16) and one["key"].shape == one["value"].shape == (2 * LENGTH, 2, 16)
    assert one["cu_seq_q"] is one["cu_seq_k"] and one["max_q"] == one["max_k"] == LENGTH
    assert one["window_size"] == (-1, 0) and one["scale"] == 16**-0.5
    assert one.get("enable_gqa") is (True if grouped else None)
    accepted = document_attention.inspect.signature(varlen.varlen_attn).parameters
    assert {*names, "scale", "window_size"} <= set(accepted)  # of the torch that is installed


def test_on_a_gpu_torchs_kernel_gets_the_window_of_the_layers_that_have_one(monkeypatch):
    windows = []

    def recorded(query, *_, window_size, **options):
        windows.append(window_size)
        return torch.empty_like(query)

    monkeypatch.setattr(document_attention, "varlen_attn", recorded)
    model = small_model("gemma3_text", layer_types=["sliding_attention", "full_attention"], sliding_window=5)
    choose_attention(model, Training(max_tokens=1000, sequence_length=LENGTH, attn_implementation="varlen"), CPU)
    module = SummedLoss(model.to("meta"), compiled=False)
    batch = {name: tensor.to("meta") for name, tensor in make_batch([[20], [33]]).items()}
    module.hidden_states(batch["input_ids"], batch["position_ids"], batch["cumulative_lengths"])
    assert windows == [(4, 0), (-1, 0)]  # tokens before and after a token's own


def test_flash_attention_3_is_used_on_hopper_where_it_is_installed_and_refused_where_it_is_broken(monkeypatch):
    used = []
    monkeypatch.setattr(attention, "activate_flash_attention_impl", used.append)
    model, training = make_model("sdpa").language_model, Training(max_tokens=1000, sequence_length=LENGTH)
    for installed, capability in ((None, (9, 0)), (object(), (8, 0)), (object(), (9, 0))):
        monkeypatch.setattr(attention, "find_spec", lambda name, found=installed: found)
        choose_attention(model, training, gpu("bf16", capability, monkeypatch))
    assert used == ["FA3"]

    def broken(name):
        raise RuntimeError("no kernels")

    monkeypatch.setattr(attention, "activate_flash_attention_impl", broken)
    with pytest.raises(RecipeError, match="flash_attn_interface .* no kernels; uninstall it"):
        choose_attention(model, training, gpu("bf16", (9, 0), monkeypatch))
