"""Any vision model of `transformers` as extractor, such as DINOv2 or CLIP, from the Hub or a folder."""

import torch
from transformers import AutoImageProcessor, AutoModel

from attndiff.errors import UserError
from attndiff.metrics.extractors.base import Extractor, rgb_levels


def hub_extractor(name: str, device: torch.device | str = "cpu") -> Extractor:
    """Open a model with its own image processor; safetensors only, and no code that comes with it is run.

    The features are the pooled output where the model has one, else the mean of its last hidden states.

    Args:
        name: Folder or Hub id.
        device: Where features are computed.

    Raises:
        UserError: If it cannot be opened, or sees no images.
    """
    try:
        processor = AutoImageProcessor.from_pretrained(name)
        model = AutoModel.from_pretrained(name, use_safetensors=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"--extractor {name}: no vision model could be opened there: {reason}") from None
    model = getattr(model, "vision_model", model).eval().requires_grad_(False).to(device)

    def features(images: torch.Tensor) -> torch.Tensor:
        pictures = list(rgb_levels(images, name).permute(0, 2, 3, 1).cpu().numpy())
        output = model(processor(images=pictures, return_tensors="pt")["pixel_values"].to(device))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            states = output.last_hidden_state
            pooled = states.mean(1) if states.ndim == 3 else states.mean((2, 3))
        return pooled.flatten(1).float().cpu()

    return Extractor(name, features)
