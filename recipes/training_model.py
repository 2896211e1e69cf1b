# SPDX-License-Identifier: Apache-2.0
"""What pretrain.py trains: the module with its loss, its first weights, its optimizers; and what is refused."""

import math
import os
import shutil
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils import is_flash_attn_2_available

from chunked_loss import chunked_loss, token_scores
from continued_model import load_model, with_shape_of
from recipe_config import Recipe, RecipeError, Training


class SummedLoss(nn.Module):
    """The module that is trained: a causal language model and its loss in one forward pass.

    Accelerate wraps the module it prepares; calling parts of a wrapped model skips DDP's gradient average without an
    error and fails under FSDP2, so the loss is computed in here.

    Args:
        language_model: with weights.
        compiled: by torch.compile: the layers in one graph, or with `by_layer` in one each, as FSDP2 needs it, which
            fetches weights between them; and the loss.
        document_masking: documents do not see each other; their borders are read off position_ids.
        z_loss: see chunked_loss.
    """

    def __init__(
        self,
        language_model: LlamaForCausalLM,
        compiled: bool,
        *,
        by_layer: bool = False,
        document_masking: bool = True,
        z_loss: float = 0.0,
    ):
        super().__init__()
        self.language_model, self.compiled, self.z_loss = language_model, compiled, z_loss
        self.document_masking = document_masking
        body = language_model.model
        for module in (body.layers if by_layer else [body]) if compiled else []:
            module.compile(dynamic=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor, labels: Tensor, by_token: bool = False) -> Tensor:
        """Return two sums over all labels that are not IGNORED_LABEL: what is minimised, and its nats.

        Args:
            input_ids: int64, (batch_size, sequence_length), as the other two.
            position_ids: see document_positions.
            labels: the tokens that follow, not shifted again.
            by_token: return what token_scores does of each label instead, (2, batch_size, sequence_length); this is
                not differentiated, but as much a forward pass of the module that Accelerate wraps.
        """
        if self.language_model.config._attn_implementation == "flash_attention_2":
            # It finds the borders of documents in a single row only; each row begins at position 0, so stays apart.
            input_ids, position_ids = input_ids.view(1, -1), position_ids.view(1, -1)
        # Without a cache and without an attention mask, transformers reads the borders of the documents off
        # position_ids; with either, documents would see each other.
        hidden = self.language_model.model(
            input_ids=input_ids, position_ids=position_ids if self.document_masking else None, use_cache=False
        ).last_hidden_state  # (batch_size, sequence_length, hidden_size)
        weight = self.language_model.lm_head.weight
        if by_token:
            return token_scores(hidden.flatten(0, 1), weight, labels.flatten()).view(2, *labels.shape)
        return torch.stack(chunked_loss(hidden.flatten(0, 1), weight, labels.flatten(), self.z_loss, self.compiled))


def build_model(recipe: Recipe, vocab_size: int, eos_token_id: int) -> LlamaForCausalLM:
    """Build the model with its initial weights, in fp32."""
    shape = recipe.model.model_dump(exclude={"rope_theta", "scaled_residual_init"})
    config = LlamaConfig(
        **{name: value for name, value in shape.items() if value is not None},
        vocab_size=vocab_size,
        max_position_embeddings=recipe.training.sequence_length,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.model.rope_theta},
        bos_token_id=eos_token_id,
        eos_token_id=eos_token_id,
        pad_token_id=None,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    # Each layer adds to the residual stream twice; scaled so, its variance does not grow with depth (GPT-2, section
    # 2.3). transformers leaves this out for Llama.
    with torch.no_grad():
        for name, parameter in model.named_parameters() if recipe.model.scaled_residual_init else ():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.mul_(1 / math.sqrt(2 * config.num_hidden_layers))
    return model


@dataclass(frozen=True)
class Context:
    """How far a model sees: what a phase may raise.

    Attributes:
        sequence_length: of training (tokens).
        max_position_embeddings, rope_parameters: LlamaConfig's.
    """

    sequence_length: int
    max_position_embeddings: int
    rope_parameters: dict

    @staticmethod
    def of(model: LlamaForCausalLM, training: Training) -> "Context":
        """Return that of a model before the first phase."""
        config = model.config
        return Context(training.sequence_length, config.max_position_embeddings, dict(config.rope_parameters))

    def in_phase(self, phase: dict) -> "Context":
        """Return that of a phase, as mixture_shares.schedule_phases gives it."""
        length = phase.get("sequence_length", self.sequence_length)
        rope_parameters = phase.get("rope_parameters", self.rope_parameters)
        return Context(length, max(length, self.max_position_embeddings), rope_parameters)

    def apply(self, model: LlamaForCausalLM) -> None:
        """Set it in a model, whose config then says so to whoever loads the export."""
        config = model.config
        config.max_position_embeddings = self.max_position_embeddings
        if config.rope_parameters != self.rope_parameters:
            config.rope_parameters = dict(self.rope_parameters)
            device = model.model.rotary_emb.inv_freq.device
            model.model.rotary_emb = LlamaRotaryEmbedding(config).to(device)


def choose_attention(model: LlamaForCausalLM, training: Training, accelerator: Accelerator) -> None:
    """Set the attention function of training.attn_implementation.

    Raises: RecipeError: it does not run here, with what does.
    """
    wanted, device = training.attn_implementation, accelerator.device.type
    if wanted != "sdpa" and device == "cpu":
        raise RecipeError(f"training.attn_implementation={wanted} needs a GPU and this is {device}; use sdpa")
    if wanted == "flash_attention_2" and not is_flash_attn_2_available():
        raise RecipeError("training.attn_implementation=flash_attention_2 needs: pip install flash-attn; or use sdpa")
    if wanted == "sdpa" and not training.document_masking:
        # Under torch.compile transformers builds the mask of the borders whether there are any or not. For a function
        # that it knows no mask of, it makes none, and SDPA's causal kernel skips the half above the diagonal.
        AttentionInterface.register("sdpa_causal", sdpa_attention_forward)
        wanted = "sdpa_causal"
    model.set_attn_implementation(wanted)


def build_summed_loss(
    recipe: Recipe,
    training: Training,
    tokenizer: PreTrainedTokenizerBase,
    tokenizer_folder: Path,
    accelerator: Accelerator,
    compiled: bool,
) -> SummedLoss:
    """Build what is trained, as the recipe says; of a model that is gone on from, recipe.model gets the shape."""
    if recipe.model.from_pretrained is None:
        language_model = build_model(recipe, len(tokenizer), tokenizer.eos_token_id)
    else:
        language_model = load_model(recipe.model, tokenizer, tokenizer_folder, training.sequence_length)
        recipe.model = with_shape_of(recipe.model, language_model.config)
    choose_attention(language_model, training, accelerator)
    if training.gradient_checkpointing:
        language_model.gradient_checkpointing_enable({"use_reentrant": False})
    return SummedLoss(
        language_model,
        compiled,
        by_layer=accelerator.distributed_type == DistributedType.FSDP,
        document_masking=training.document_masking,
        z_loss=training.z_loss,
    )


def find_missing_compiler() -> str | None:
    """Return what torch.compile lacks on this machine, with the package that brings it, or None."""
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        return "no C++ compiler (g++) is on the PATH; install it with: apt-get install g++"
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.exists():
        return f"{header} is missing; install it with: apt-get install python3-dev"
    return None


def refuse_combinations(training: Training, lora: bool, accelerator: Accelerator) -> None:
    """Refuse what Accelerate would run and lose work in silence.

    Raises: RecipeError: with the reason and what to use.
    """
    problems, parallelism = [], accelerator.parallelism_config
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage != 3:
            problems.append(
                f"DeepSpeed with zero_stage {stage}: its gradients are elsewhere, and steps would be judged without "
                "them; set zero_stage: 3, or take accelerate_configs/ddp.yaml"
            )
        if training.optimizer == "muon":
            problems.append(
                "training.optimizer=muon under DeepSpeed: of Muon and the AdamW beside it Accelerate keeps only the "
                "last, and the layers would not be trained; set training.optimizer: adamw, or take fsdp2.yaml"
            )
        offload = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        if any(
            (offload.get(key) or {}).get("device") not in (None, "none")
            for key in ("offload_optimizer", "offload_param")
        ):
            problems.append("DeepSpeed with offloading: its gradients are elsewhere; set offload_*_device: none")
    if lora and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        problems.append(
            "model.lora under FSDP2 or DeepSpeed: adapters are merged into whole weights at the end, and no process "
            "holds those; use accelerate_configs/ddp.yaml"
        )
    if parallelism is not None and parallelism.cp_enabled and training.document_masking:
        problems.append(
            "training.document_masking with context parallelism: Accelerate drops the mask, and documents would see "
            "each other; set parallelism_config_cp_size: 1"
        )
    elif parallelism is not None and parallelism.non_dp_dim_names:
        problems.append(
            f"parallelism_config with {', '.join(parallelism.non_dp_dim_names)}: its processes need the same batch, "
            "and here each reads its own; divide the model by parallelism_config_dp_shard_size instead"
        )
    if problems:
        raise RecipeError(*problems)


def keep_sums_in_fp32(accelerator: Accelerator) -> None:
    """Have FSDP2 compute in bf16 but add gradients up, and return the summed loss, in fp32.

    Accelerate's policy rounds both to bf16: of a loss that is summed over thousands of tokens two digits are left.
    """
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.mixed_precision == "bf16":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        accelerator.state.fsdp_plugin.mixed_precision_policy = policy


def count_parameters(model: LlamaForCausalLM) -> dict[str, int]:
    """Count parameters: in all, in the input embedding (the projection too when tied), the rest, and the trained."""
    total = sum(parameter.numel() for parameter in model.parameters())
    embedding = model.get_input_embeddings().weight.numel()
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return {"total": total, "embedding": embedding, "non_embedding": total - embedding, "trained": trained}


def build_optimizers(model: SummedLoss, training: Training) -> list[torch.optim.Optimizer]:
    """Make AdamW, or Muon for the layers' matrices and AdamW for the rest."""
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    in_layers = {name for name, parameter in named.items() if ".layers." in name and parameter.ndim == 2}
    muon = in_layers if training.optimizer == "muon" else set()
    decayed = [parameter for name, parameter in named.items() if name not in muon and parameter.ndim == 2]
    gains = [parameter for name, parameter in named.items() if parameter.ndim < 2]
    gain_decay = training.weight_decay if training.decay_gains else 0.0
    adamw = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": training.weight_decay}, {"params": gains, "weight_decay": gain_decay}],
        lr=training.learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
    if not muon:
        return [adamw]
    # match_rms_adamw scales an update as AdamW's would be, so that one learning rate serves both (Moonlight,
    # https://huggingface.co/papers/2502.16982, section 2.2).
    matrices = [parameter for name, parameter in named.items() if name in muon]
    options = {"lr": training.learning_rate, "weight_decay": training.weight_decay}
    return [torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **options), adamw]
