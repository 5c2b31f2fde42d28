"""Sharding (FSDP2): every process trains a share of the weights, with its gradients, moments and averages.

Asked for by Accelerate's own setting (``accelerate launch --config_file training/launch/fsdp2.yaml``), done by torch's
`fully_shard`: Accelerate shards on GPUs only, and what runs there should be what the tests run on a CPU.

Validation, sample grids and pipelines take the whole weights, in a replica that all processes fill together: a device
is spared gradients, moments and averages, some five times the weights, and has to hold the weights.
"""

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor


def shard(module: nn.Module, device: torch.device) -> nn.Module:
    """Shard a module in place over all processes, block by block.

    Args:
        module: A `Head` with the same weights on every process.
        device: Of this process.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for part in module.modules():
        if getattr(part, "is_cross_attention", False):  # asked for keys and values before its block is called
            fully_shard(part, mesh=mesh)
            register_fsdp_forward_method(part, "key_value")
    for block in module.blocks():
        fully_shard(block, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def reshard(module: nn.Module) -> None:
    """Let go of the whole weights that a forward pass without a backward one leaves in the place of the shares."""
    for part in module.modules():
        if isinstance(part, FSDPModule):
            part.reshard()


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All of a tensor; of a sharded one, all processes ask together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered_on_host(tensor: torch.Tensor) -> torch.Tensor:
    """All of a sharded tensor, in main memory; all processes ask together. Another tensor is given back as it is."""
    return whole(tensor).cpu() if isinstance(tensor, DTensor) else tensor


def like(value: torch.Tensor, sharded: torch.Tensor) -> torch.Tensor:
    """A whole tensor, placed and cut as another is."""
    value = value.to(sharded.device)
    if isinstance(sharded, DTensor):
        return distribute_tensor(value, sharded.device_mesh, sharded.placements)
    return value
