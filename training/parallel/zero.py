"""DeepSpeed's ZeRO (arXiv 1910.02054), stages 1 and 2: every process has a share of moments and gradients.

Asked for by Accelerate's own setting (``accelerate launch --config_file training/launch/deepspeed.yaml``), done by
DeepSpeed's engine: Accelerate's wrapper of it takes the step within the backward pass, before anyone can look at the
gradients, and none without a GPU. What DeepSpeed flattens is one AdamW; Muon takes matrices. Stage 3 shards what FSDP2
does (`attndiff.training.parallel.sharding`).
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from attndiff.errors import UserError
from attndiff.training.config import OptimConfig
from attndiff.training.parallel.gradients import Gradients

PREFIX = "ACCELERATE_DEEPSPEED_"
Moments = dict[nn.Parameter, dict[str, torch.Tensor]]


def zero_stage(config: OptimConfig) -> int:
    """The stage asked for.

    Raises:
        UserError: If DeepSpeed is not installed, or the launcher or the run asks for what is not done.
    """
    try:
        import deepspeed  # noqa: F401 - asked for here, so that it is missed before anything is computed
    except ImportError:
        raise UserError("the launcher asks for DeepSpeed, which is not installed: pip install deepspeed.") from None
    given = {name: os.environ.get(PREFIX + name, "none").lower() for name in ("ZERO_STAGE", "CONFIG_FILE")}
    offload = [os.environ.get(f"{PREFIX}OFFLOAD_{what}_DEVICE", "none").lower() for what in ("OPTIMIZER", "PARAM")]
    if given["CONFIG_FILE"] != "none":
        raise UserError("DeepSpeed's own config file is not read; launch with training/launch/deepspeed.yaml.")
    if given["ZERO_STAGE"] not in ("none", "1", "2") or set(offload) != {"none"}:
        raise UserError(
            "of DeepSpeed, zero_stage 1 and 2 without offloading are done; to share out the weights too, launch with "
            "training/launch/fsdp2.yaml."
        )
    if config.optimizer != "adamw":
        raise UserError(
            f"optim.optimizer: DeepSpeed flattens what it shares out, and {config.optimizer} takes whole matrices; set "
            "optim.optimizer=adamw, or launch with training/launch/fsdp2.yaml."
        )
    return 2 if given["ZERO_STAGE"] == "none" else int(given["ZERO_STAGE"])


class ZeroGradients(Gradients):
    """Gradients and moments that DeepSpeed shares out.

    Args:
        module: The module, on its device; it keeps its parameters, which become views of DeepSpeed's flat ones.
        optimizer: The one AdamW of all its trained parameters; it keeps its groups, with flat parameters.
        config: For the norm at which gradients are clipped and the optimizer that goes with it.
        micro_batch: Images of a pass; only DeepSpeed's own messages say so.
        bfloat16: Whether passes compute in it; weights, sums and moments are float32.
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        config: OptimConfig,
        micro_batch: int,
        bfloat16: bool,
    ):
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        deepspeed.init_distributed(torch.distributed.get_backend(), auto_mpi_discovery=False, verbose=False)
        settings = {
            "train_micro_batch_size_per_gpu": micro_batch,
            "gradient_accumulation_steps": 1,  # which pass is the last one is said before each
            "gradient_clipping": config.clip,
            "zero_optimization": {"stage": zero_stage(config)},
            "zero_allow_untested_optimizer": True,
            "torch_autocast": {"enabled": bfloat16, "dtype": "bfloat16", "lower_precision_safe_modules": []},
        }
        engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=settings)
        self.model, self.zero, self.adamw, self.optimizers = engine, engine.optimizer, optimizer, [optimizer]
        self.trained = [p for p in module.parameters() if p.requires_grad]

    @contextmanager
    def passing(self, last: bool) -> Iterator[None]:
        self.model.set_gradient_accumulation_boundary(last)
        yield

    def backward(self, loss: torch.Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)

    def clipped_norm(self) -> torch.Tensor:
        """The norm ``()`` of all gradients together, the same on every process; applying them clips them."""
        norm = float(self.zero.scaled_global_norm())
        # DeepSpeed says -1 of what is not finite.
        return torch.tensor(norm if norm >= 0 else float("nan"), dtype=torch.float64)

    def apply(self) -> None:
        self.model.step()

    def drop(self) -> None:
        self.zero.zero_grad(set_to_none=True)

    def of(self, parameter: nn.Parameter) -> torch.Tensor | None:
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)

    def moments(self) -> Moments:
        """AdamW's state by parameter, each as a whole, in main memory; all processes ask together."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state = self.adamw.state.get(self._flat(), {})
        return {
            p: {
                key: value.clone() if key == "step" else safe_get_full_optimizer_state(p, key).cpu()
                for key, value in state.items()
            }
            for p in self.trained
        }

    def restore(self, moments: Moments) -> None:
        """Take over the weights, which have been restored, and put back what `moments` gave."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state, safe_set_full_optimizer_state

        self.zero.refresh_fp32_params()
        flat = self._flat()
        for key, value in next(iter(moments.values())).items():
            self.adamw.state[flat][key] = value.clone() if key == "step" else torch.zeros_like(flat.detach())
        lazy_init_hp_params_optimizer_state(self.trained, flat, self.adamw.state)
        for parameter, entries in moments.items():
            for key, value in entries.items():
                if key != "step":
                    safe_set_full_optimizer_state(parameter, value.to(parameter.device), key)

    def _flat(self) -> torch.Tensor:
        """This process's share of all trained parameters."""
        (flat,) = self.adamw.param_groups[0]["params"]
        return flat
