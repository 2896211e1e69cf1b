# SPDX-License-Identifier: Apache-2.0
"""Accelerators under which each process holds a part of the model, on CPUs.

Without a GPU, Accelerate sets the distributed type to DDP even if FSDP or DeepSpeed is configured, so it is set again.
"""

from accelerate import Accelerator, ParallelismConfig
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DeepSpeedPlugin, DistributedType, FullyShardedDataParallelPlugin


def accelerator_of_type(kind: DistributedType, **options) -> Accelerator:
    accelerator = Accelerator(**options)
    for shared in (PartialState._shared_state, AcceleratorState._shared_state):
        shared["distributed_type"] = kind
    return accelerator


def fsdp2(**options) -> Accelerator:
    accelerator = accelerator_of_type(DistributedType.FSDP, **options)
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        cpu_ram_efficient_loading=False,
    )
    if accelerator.mixed_precision == "bf16":
        accelerator.state.fsdp_plugin.set_mixed_precision("bf16")  # as Accelerate does for FSDP on a GPU
    return accelerator


def replicated_fsdp2(**options) -> Accelerator:
    """Four processes in two groups; each group holds the model once, divided."""
    accelerator = fsdp2(**options)
    accelerator.state.parallelism_config = ParallelismConfig(dp_replicate_size=2, dp_shard_size=2)
    accelerator.state.device_mesh = accelerator.parallelism_config.get_device_mesh("cpu")
    return accelerator


def zero_stage3(**options) -> Accelerator:
    accelerator = accelerator_of_type(DistributedType.DEEPSPEED, **options)
    plugin = accelerator.state.deepspeed_plugins = DeepSpeedPlugin()  # as the launcher's variables describe it
    # Of this type Accelerate reads its precision from the plugin, which is to get it here.
    plugin.set_mixed_precision(accelerator.state._mixed_precision)
    plugin.select(_from_accelerator_state=True)
    return accelerator
