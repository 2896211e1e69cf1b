# SPDX-License-Identifier: Apache-2.0
"""Forms of parallelism: the combinations that are refused, FSDP2's rounding, and what is divided."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy

from model.families import layers
from model.summed_loss import SummedLoss
from recipe_config import RecipeError, Training


def refuse_combinations(training: Training, lora: bool, accelerator: Accelerator) -> None:
    """Refuse combinations that Accelerate would run and lose work without an error.

    Raises: RecipeError: each combination, with the reason and what to use.
    """
    problems, parallelism = [], accelerator.parallelism_config
    if accelerator.mixed_precision not in ("no", "bf16"):
        problems.append(
            f"mixed_precision: {accelerator.mixed_precision} is not trained in: fp16's gradient scaler overrules the "
            "choice to skip a step, and no checkpoint holds it; set bf16, or no on a GPU older than Ampere"
        )
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage != 3:
            problems.append(
                f"DeepSpeed with zero_stage {stage}: a step would be judged without its gradients, which DeepSpeed "
                "keeps to itself; set zero_stage: 3, or use accelerate_configs/ddp.yaml"
            )
        if training.optimizer == "muon":
            problems.append(
                "training.optimizer=muon under DeepSpeed: Accelerate keeps only the last of Muon and its AdamW, and "
                "the layers would not be trained; set training.optimizer: adamw, or use fsdp2.yaml"
            )
        if training.average is not None:
            problems.append(
                "training.average under DeepSpeed: it keeps the weights to itself, so they cannot be averaged; leave "
                "it out, or use accelerate_configs/fsdp2.yaml"
            )
        if training.distillation is not None:
            problems.append(
                "training.distillation under DeepSpeed, which would divide the teachers too: use "
                "accelerate_configs/fsdp2.yaml"
            )
        offload = accelerator.state.deepspeed_plugin.deepspeed_config["zero_optimization"]
        if any(
            (offload.get(key) or {}).get("device") not in (None, "none")
            for key in ("offload_optimizer", "offload_param")
        ):
            problems.append(
                "DeepSpeed with offloading: a step would be judged without its gradients; set offload_*_device: none"
            )
    if accelerator.distributed_type == DistributedType.FSDP and accelerator.state.fsdp_plugin.fsdp_version != 2:
        problems.append(
            "fsdp_version: 1, whose flattened parameters are neither Muon's matrices nor what checkpoints read: set "
            "fsdp_version: 2, or use accelerate_configs/fsdp2.yaml"
        )
    elif accelerator.distributed_type == DistributedType.FSDP and isinstance(
        accelerator.state.fsdp_plugin.cpu_offload, CPUOffloadPolicy
    ):
        problems.append(
            "fsdp_offload_params: true keeps gradients in the machine's memory, and a step is judged on the GPU: set "
            "fsdp_offload_params: false and use more GPUs, or training.gradient_checkpointing: true and a smaller "
            "training.per_device_train_batch_size"
        )
    if lora and accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED):
        problems.append(
            "model.lora under FSDP2 or DeepSpeed: adapters are merged into whole weights at the end, which no process "
            "holds; use accelerate_configs/ddp.yaml"
        )
    if parallelism is not None and parallelism.cp_enabled and training.document_masking:
        problems.append(
            "training.document_masking with context parallelism: Accelerate drops the mask, and documents would see "
            "each other; set parallelism_config_cp_size: 1"
        )
    elif parallelism is not None and parallelism.non_dp_dim_names:
        problems.append(
            f"parallelism_config with {', '.join(parallelism.non_dp_dim_names)}: its processes need the same batch, "
            "but each reads its own; divide the model by parallelism_config_dp_shard_size instead"
        )
    if problems:
        raise RecipeError(*problems)


def round_as_one_process(model: SummedLoss, accelerator: Accelerator) -> None:
    """Have FSDP2 compute in bf16 where one process and DDP do, and in fp32 where they do.

    They run under autocast: the hidden states between layers, the rotary embeddings, the loss and all sums stay fp32.
    FSDP2 gathers weights in bf16, and Accelerate would have it round all of these too, and runs without autocast.
    """
    if accelerator.distributed_type != DistributedType.FSDP or accelerator.mixed_precision != "bf16":
        return
    # Gradients are summed in fp32, and what a layer is given is not cast.
    policy = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)
    accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    embedding = model.language_model.get_input_embeddings()
    embedding.register_forward_hook(lambda module, inputs, hidden: hidden.float())
    model.forward = torch.autocast(accelerator.device.type, torch.bfloat16)(model.forward)


def wrap_layers(model: SummedLoss, accelerator: Accelerator) -> None:
    """Set FSDP2 to gather this model layer by layer, whatever the class that the configuration file names."""
    if accelerator.distributed_type == DistributedType.FSDP:
        classes = {type(layer).__name__ for layer in layers(model.language_model)}
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(classes)


def memory_strategy(accelerator: Accelerator) -> tuple[str, int]:
    """Return an accelerator's key of planning.memory.STRATEGIES, and over how many devices it divides."""
    num_processes, parallelism = accelerator.num_processes, accelerator.parallelism_config
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        return "deepspeed_zero3.yaml", num_processes
    if accelerator.distributed_type == DistributedType.FSDP:
        divided = parallelism is not None and parallelism.dp_shard_size > 1
        return "fsdp2.yaml", parallelism.dp_shard_size if divided else num_processes
    return "ddp.yaml" if num_processes > 1 else "single_gpu.yaml", num_processes
