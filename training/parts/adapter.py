"""An adapter (LoRA) on the network, trained in the place of its weights."""

from peft import LoraConfig

from attndiff.training.heads.denoising import DenoisingModel

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def add_adapter(model: DenoisingModel, rank: int) -> None:
    """Freeze a model and put an adapter of a rank on the attention of its network."""
    model.requires_grad_(False)
    model.unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS))
