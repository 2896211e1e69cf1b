# SPDX-License-Identifier: Apache-2.0
"""What Accelerate's forms of parallelism need here, and which of them are refused."""

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.distributed.fsdp import MixedPrecisionPolicy

from recipe_config import RecipeError, Training


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
