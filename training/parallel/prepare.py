"""From a head to one that all processes train together, compiled or not."""

import torch
from accelerate import Accelerator
from torch import nn

from attndiff.training.config import OptimConfig
from attndiff.training.optim import make_optimizers
from attndiff.training.parallel.gradients import Gradients
from attndiff.training.parallel.layout import ParallelLayout
from attndiff.training.parallel.sharding import shard
from attndiff.training.parallel.zero import ZeroGradients


def compile_module(module: nn.Module, layout: ParallelLayout, shapes: int) -> None:
    """Compile a head in place, or block by block where hooks have to run between the blocks.

    Args:
        module: A `Head`, not yet shared out.
        layout: How it is going to be shared out.
        shapes: How many shapes of images there are. One graph is made for each: inductor (torch 2.13) fails on a graph
            for any shape, and by default 8 are the limit.
    """
    limits = torch._dynamo.config
    limits.recompile_limit = max(limits.recompile_limit, shapes)
    hooked = layout.shared_out  # DeepSpeed's hooks break the module's graph, FSDP2's also a block's
    for part in module.blocks() if hooked else [module]:
        part.compile(fullgraph=not hooked, dynamic=False)


def make_gradients(
    module: nn.Module, config: OptimConfig, layout: ParallelLayout, accelerator: Accelerator
) -> Gradients:
    """Share a module out as the layout says, in place; the optimizers come with its gradients."""
    if layout.zero:
        (optimizer,) = make_optimizers(module, config)
        bfloat16 = accelerator.mixed_precision == "bf16"
        return ZeroGradients(module, optimizer, config, layout.micro_batch, bfloat16)
    model = shard(module, accelerator.device) if layout.sharded else accelerator.prepare(module)
    return Gradients(accelerator, model, make_optimizers(module, config), config.clip)
