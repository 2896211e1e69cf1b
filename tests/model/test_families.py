# SPDX-License-Identifier: Apache-2.0
"""Each family of models that can be continued: its loss, its documents, its optimizers, its layers and its export."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from host_waits import Waits
from peft import inject_adapter_in_model
from small_models import FAMILY_CONFIGS, small_model
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from mixture.batches import document_positions
from model.attention import choose_attention, why_not_varlen
from model.continued import load_config, load_model, load_weights, lora_config, merge_adapters, with_shape_of
from model.dropout import add_dropout
from model.families import FAMILIES, attention, attention_dropout, feed_forward, layers, projections
from model.llama import ContextWindow, count_module_parameters
from model.probe import probe
from model.summed_loss import SummedLoss
from planning.model_shape import count_parameters
from publishing.release_checks import check_tensors
from recipe_config import Lora, Model, Phase, RecipeError, Training
from training.optimizers import build_optimizers
from training.parallelism import wrap_layers


LENGTH, VOCABULARY = 24, 96
CPU = SimpleNamespace(device=torch.device("cpu"), mixed_precision="no")
# Those that differ most from each other; --all runs the others too.
OFTEN = ("mistral", "olmo3", "gemma2", "gpt2", "gpt_neox", "granite")
EVERY = pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.long) for name in FAMILY_CONFIGS]
)


def batch(seed: int = 0) -> list[torch.Tensor]:
    """Return input_ids, position_ids and labels of two rows of three documents; token 1 begins one."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, VOCABULARY, (2, LENGTH + 1), generator=generator)
    tokens[:, [0, 7, 15]] = 1
    input_ids, labels = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    return [input_ids, torch.from_numpy(document_positions(input_ids.numpy(), 1)), labels]


def training(**settings) -> Training:
    defaults = {"sequence_length": LENGTH, "tokens_per_step": LENGTH, "max_tokens": LENGTH, "learning_rate": 1e-3}
    return Training(**defaults | settings)


def test_every_family_is_tested():
    assert FAMILY_CONFIGS.keys() == FAMILIES.keys()


@EVERY
def test_the_chunked_loss_and_its_gradients_are_those_of_the_model_itself(family):
    model = small_model(family)
    choose_attention(model, training(), CPU)
    input_ids, positions, labels = batch()
    loss, nats = SummedLoss(model, compiled=False)(input_ids, positions, labels)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    scores = model(input_ids=input_ids, position_ids=positions, use_cache=False).logits
    expected = F.cross_entropy(scores.flatten(0, 1).float(), labels.flatten(), reduction="sum")
    expected.backward()
    assert nats.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-3, atol=1e-5), name
    by_token = SummedLoss(model, compiled=False)(input_ids, positions, labels, by_token=True)
    assert by_token[0].sum().item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(by_token[1].long(), scores.argmax(-1))


@EVERY
@pytest.mark.parametrize("name", ["auto", "varlen"])
def test_documents_do_not_see_each_other(family, name):
    """A document gets the hidden states that it has alone, so the windows that slide stay inside it too."""
    model = small_model(family)
    if name == "varlen" and getattr(model.config, "attn_logit_softcapping", None):
        with pytest.raises(RecipeError, match="no soft-capped attention"):
            choose_attention(model, training(attn_implementation=name), CPU)
        return
    choose_attention(model, training(attn_implementation=name), CPU)
    module = SummedLoss(model.eval(), compiled=False)
    input_ids, positions, _ = batch()
    with torch.no_grad():
        together = module.hidden_states(input_ids, positions)
        for start, end in ((0, 7), (7, 15), (15, LENGTH)):
            alone = model.base_model(input_ids=input_ids[:, start:end], use_cache=False) if name == "auto" else None
            if alone is None:
                part = slice(start, end)
                alone_states = module.hidden_states(input_ids[:, part], positions[:, part])
            else:
                alone_states = alone.last_hidden_state
            assert torch.allclose(together[:, start:end], alone_states, atol=1e-4), (start, end)


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("window", [1, 3, 5, 14])
@pytest.mark.parametrize("family", ["mistral", "olmo3", "gemma3_text"])
def test_a_window_that_slides_without_a_mask_gives_the_losses_and_gradients_of_one_with_a_mask(family, window, masked):
    found = []
    for name in ("sdpa", "varlen"):
        model = small_model(family, sliding_window=window)
        choose_attention(model, training(attn_implementation=name, document_masking=masked), CPU)
        loss, nats = SummedLoss(model, compiled=False, document_masking=masked)(*batch())
        loss.backward()
        found.append((nats.item(), {name: one.grad for name, one in model.named_parameters()}))
    (expected, gradients), (nats, own) = found
    assert nats == pytest.approx(expected, rel=1e-6)
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-3, atol=1e-5), name


@pytest.mark.parametrize("borders", [True, False])
@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "olmo3", "gemma2", "gpt_neox"])
def test_a_mask_made_beforehand_is_that_of_transformers_and_the_host_waits_for_nothing(family, masked, borders):
    """A batch whose rows are one document each gets a mask too, so that all batches are of one form."""
    input_ids, positions, labels = batch()
    positions = positions if borders else torch.arange(LENGTH).repeat(2, 1)
    model, found = small_model(family), []
    attention = "eager" if family == "gemma2" else "sdpa"
    model.set_attn_implementation(attention)
    for makes_masks in (False, True):
        module, masks = SummedLoss(model, compiled=False, document_masking=masked), []
        module.makes_masks = makes_masks

        def keep(_, given, named, masks=masks):
            masks.append(named["attention_mask"])

        hooks = [layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in layers(model)]
        model.zero_grad()
        with Waits() as waits:
            loss, nats = module(input_ids, positions, labels)
        loss.backward()
        gradients = {name: one.grad for name, one in model.named_parameters()}
        found.append((nats.item() / labels.numel(), gradients, masks, waits.found))
        for hook in hooks:
            hook.remove()
    (expected, gradients, theirs, waited), (nats, own, masks, waits) = found
    assert nats == pytest.approx(expected, abs=1e-6) and waited and not waits
    for name, gradient in gradients.items():
        assert torch.allclose(own[name], gradient, rtol=1e-4, atol=1e-5), name
    assert all(mask.shape == (2, 1, LENGTH, LENGTH) for mask in masks) and len(masks) == len(theirs)
    assert all(other is None or torch.equal(mask, other) for mask, other in zip(masks, theirs, strict=True))
    assert any(other is None for other in theirs) == (
        attention == "sdpa" and family != "mistral" and not (masked and borders)
    )


@pytest.mark.parametrize("family", ["mistral", "olmo3"])
def test_a_window_slides_where_documents_may_see_each_other_too(family):
    model = small_model(family).eval()
    choose_attention(model, training(document_masking=False), CPU)
    module = SummedLoss(model, compiled=False, document_masking=False)
    input_ids, positions, _ = batch()
    other = input_ids.clone()
    other[:, 0] += 5
    with torch.no_grad():
        states, expected = module.hidden_states(input_ids, positions), model.base_model(input_ids, use_cache=False)
    assert torch.allclose(states, expected.last_hidden_state, atol=1e-5)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        plain = model.base_model(input_ids, use_cache=False).last_hidden_state
    assert torch.allclose(states, plain, atol=1e-4)


def test_soft_capped_attention_is_refused_where_it_would_be_left_out():
    with pytest.raises(RecipeError, match="sdpa has no soft-capped attention"):
        choose_attention(small_model("gemma2"), training(attn_implementation="sdpa"), CPU)


@EVERY
def test_every_weight_is_in_the_right_group_of_the_optimizers(family):
    module = SummedLoss(small_model(family), compiled=False)
    muon, adamw = build_optimizers(module, training(optimizer="muon", weight_decay=0.1))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    by_group = [{names[id(p)] for p in group["params"]} for group in (*muon.param_groups, *adamw.param_groups)]
    matrices, decayed, gains = by_group
    assert sorted(matrices | decayed | gains) == sorted(names.values())
    assert len(matrices) + len(decayed) + len(gains) == len(names), "each once"
    assert len(matrices) == len(projections(module.language_model)), "every projection of the layers, biases aside"
    assert all(name.endswith((".bias", "norm.weight", "ln_1.weight", "ln_2.weight", "ln_f.weight")) for name in gains)
    assert adamw.param_groups[1]["weight_decay"] == 0


@EVERY
def test_fsdp2_gathers_each_layer_on_its_own(family):
    module = SummedLoss(small_model(family), compiled=False)
    plugin = SimpleNamespace(
        auto_wrap_policy=transformer_auto_wrap_policy, transformer_cls_names_to_wrap=["LlamaDecoderLayer"]
    )
    wrap_layers(module, SimpleNamespace(distributed_type="FSDP", state=SimpleNamespace(fsdp_plugin=plugin)))
    policy = fsdp2_prepare_auto_wrap_policy(plugin, module)
    assert [part for part in module.modules() if policy(part)] == list(layers(module.language_model))


@EVERY
def test_dropout_zeroes_a_part_of_the_embeddings_and_of_each_output_of_attention_and_feed_forward(family):
    model, inputs = small_model(family), dict(zip(("input_ids", "position_ids"), batch(), strict=False))
    parts = [part for layer in layers(model) for part in (attention(layer), feed_forward(layer))]
    parts.append(model.get_input_embeddings())
    plain, dropped = [], []

    def note(outputs: list) -> None:
        for part in parts:
            part.register_forward_hook(lambda *given: outputs.append(given[-1]))

    note(plain)
    add_dropout(model, 0.25)
    note(dropped)
    for training in (False, True):
        plain.clear(), dropped.clear()
        with torch.no_grad():
            model.train(training)(**inputs, use_cache=False)
        assert len(plain) == len(dropped) == 5
        for before, after in zip(plain, dropped, strict=True):
            if isinstance(before, tuple):
                assert isinstance(after, tuple) and before[1:] == after[1:]
                before, after = before[0], after[0]
            kept = after != 0
            torch.testing.assert_close(after[kept], (before / 0.75 if training else before)[kept])
            # Of 1,536 values; 0.05 is 4.5 standard deviations.
            assert 1 - kept.float().mean() == pytest.approx(0.25 if training else 0.0, abs=0.05)


@EVERY
def test_the_probe_looks_into_every_layer(family):
    module = SummedLoss(small_model(family), compiled=False)
    values = probe(module, *batch())
    assert all(torch.tensor(list(values.values())).isfinite()) and values["probe/hidden_rms_last"] > 0
    input_ids, positions, _ = batch()
    module.eval()
    with torch.no_grad():
        scores = module.language_model(input_ids=input_ids, position_ids=positions, use_cache=False).logits
    assert values["probe/logit_max"] == pytest.approx(scores.abs().max().item(), rel=1e-3)


@EVERY
def test_the_export_has_the_logits_of_training_and_is_what_a_release_may_be(family, tmp_path):
    base = small_model(family)
    base.save_pretrained(tmp_path / "base")
    settings = Model(from_pretrained=str(tmp_path / "base"))
    tokenizer = range(VOCABULARY - 6)  # a vocabulary padded beyond the tokenizer
    model = load_model(settings, tokenizer, tmp_path, LENGTH)
    input_ids, positions, labels = batch()
    loss, _ = SummedLoss(model, compiled=False)(input_ids, positions, labels)
    loss.backward()
    for parameter in model.parameters():
        parameter.data -= 1e-3 * parameter.grad
    model.save_pretrained(tmp_path / "export")
    (tmp_path / "export" / "tokenizer_config.json").write_text("{}")
    check_tensors(tmp_path / "export")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    with torch.no_grad():
        trained, exported = (one.eval()(input_ids=input_ids, use_cache=False).logits for one in (model, again))
    assert torch.equal(trained, exported)
    assert again.config.tie_word_embeddings == base.config.tie_word_embeddings


@EVERY
def test_the_shape_in_the_recipe_counts_the_parameters(family):
    model = small_model(family)
    shape = with_shape_of(Model(from_pretrained="x"), model.config)
    counted, exact = count_parameters(shape, VOCABULARY), count_module_parameters(model)["total"]
    left_out = sum(p.numel() for p in model.parameters() if p.ndim == 1)  # other norms, and biases
    left_out += model.config.max_position_embeddings * model.config.hidden_size if family == "gpt2" else 0
    assert 0 <= exact - counted["total"] <= left_out
    assert (shape.num_hidden_layers, shape.hidden_size) == (2, 32)


@pytest.mark.parametrize(("family", "target"), [("gpt2", "c_attn"), ("phi3", "qkv_proj"), ("gpt_neox", "dense")])
def test_adapters_start_as_nothing_and_are_merged_into_the_weights(family, target):
    model = small_model(family).eval()
    input_ids, positions, _ = batch()
    inputs = {"input_ids": input_ids, "position_ids": positions, "use_cache": False}
    with torch.no_grad():
        before = model(**inputs).logits
        inject_adapter_in_model(lora_config(Lora(rank=2, targets=[target]), model, "model.lora"), model)
        assert torch.equal(model(**inputs).logits, before)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        adapted = model(**inputs).logits
        merge_adapters(model)
        assert not torch.allclose(adapted, before) and torch.allclose(model(**inputs).logits, adapted, atol=1e-5)
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_positions_are_rotated_again_with_the_part_of_a_head_that_the_family_rotates():
    model = small_model("gpt_neox")
    context = ContextWindow.of(model, training())
    stretched = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    before = model.base_model.rotary_emb.inv_freq.clone()
    context.in_phase({"sequence_length": 2 * LENGTH, "rope_parameters": stretched}).apply(model)
    assert torch.allclose(2 * model.base_model.rotary_emb.inv_freq, before)
    small = small_model("gpt2")
    ContextWindow.of(small, training()).apply(small)
    assert small.config.max_position_embeddings == 64


@pytest.mark.parametrize("family", ["gpt2", "gemma3_text", "olmo3"])
def test_positions_that_cannot_be_stretched_are_refused(family, tmp_path):
    small_model(family).save_pretrained(tmp_path)
    phases = [Phase(start_fraction=0.5, shares={"law": 1.0}, sequence_length=128)]
    with pytest.raises(RecipeError, match="has positions that no phase can stretch beyond 64 tokens"):
        load_config(Model(from_pretrained=str(tmp_path)), LENGTH, phases)


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_dropout_of_the_recipe_is_that_of_a_continued_model(family, tmp_path):
    small_model(family).save_pretrained(tmp_path)
    settings = Model(from_pretrained=str(tmp_path), attention_dropout=0.5)
    config = load_config(settings, LENGTH)
    assert attention_dropout(config) == 0.5 and "has no dropout" in why_not_varlen(config, CPU)
    assert with_shape_of(settings, config).attention_dropout == 0.5
    model = load_weights(settings, config)
    tokens = torch.arange(1, 33)[None]
    logits = [model.train(mode)(tokens).logits for mode in (False, False, True)]
    assert torch.equal(*logits[:2]) and not torch.equal(*logits[1:])


def test_dropout_is_off_and_code_of_the_repository_is_left_out(tmp_path):
    config = AutoConfig.for_model("gpt2", n_embd=32, n_layer=1, n_head=2, attn_pdrop=0.1)
    config.auto_map = {"AutoModelForCausalLM": "modeling_gpt2.GPT2LMHeadModel"}
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(tmp_path)
    loaded = load_config(Model(from_pretrained=str(tmp_path)), LENGTH)
    assert (loaded.attn_pdrop, loaded.resid_pdrop, loaded.embd_pdrop) == (0, 0, 0) and not hasattr(loaded, "auto_map")
    config.auto_map = {"AutoModelForCausalLM": "modeling_mine.MyModel"}
    config.save_pretrained(tmp_path)
    with pytest.raises(RecipeError, match="names code of its own, MyModel"):
        load_config(Model(from_pretrained=str(tmp_path)), LENGTH)
