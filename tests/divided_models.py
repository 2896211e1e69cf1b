# SPDX-License-Identifier: Apache-2.0
"""Accelerators under which each process holds a part of the model, on processors.

Without a GPU, Accelerate takes FSDP and DeepSpeed for DDP whatever it is told, so it is told once more.
"""

from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin


def told_again(kind: DistributedType, **options) -> Accelerator:
    made = Accelerator(**options)
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = kind
    return made


def fsdp2(**options) -> Accelerator:
    made = told_again(DistributedType.FSDP, **options)
    made.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    if made.mixed_precision == "bf16":
        made.state.fsdp_plugin.set_mixed_precision("bf16")  # as Accelerate does where it takes FSDP for FSDP
    return made


def replicated_fsdp2(**options) -> Accelerator:
    """Four processes in two groups; each group holds the model once, divided."""
    made = fsdp2(**options)
    made.state.parallelism_config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    made.state.device_mesh = made.parallelism_config.get_device_mesh("cpu")
    return made


def zero_stage3(**options) -> Accelerator:
    made = told_again(DistributedType.DEEPSPEED, **options)
    plugin = made.state.deepspeed_plugins = DeepSpeedPlugin()  # of what the launcher hands on
    plugin.set_mixed_precision(made.mixed_precision)
    plugin.select(_from_accelerator_state=True)
    return made
