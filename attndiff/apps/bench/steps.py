"""The pieces of work that are timed: a training step, a network call, a guided sampling."""

from collections.abc import Callable

import torch

from attndiff.apps.bench.network import Network, make_batch
from attndiff.apps.bench.timing import Step, seconds_of
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.heads.denoising import CONDITION_KEYS, DenoisingModel

GUIDANCE = 3.0
MATMUL_SIDE = {"cpu": 1024, "cuda": 8192}


def autocast(device: str, precision: str) -> torch.autocast:
    """bfloat16 autocast, or nothing for float32."""
    return torch.autocast(device, dtype=torch.bfloat16, enabled=precision == "bfloat16")


def network_batch(network: Network, count: int, size: int, device: str) -> dict[str, torch.Tensor]:
    """A batch in the memory layout of the network's form."""
    batch = make_batch(count, size, device)
    if network.form != "default":
        for key in ("images", "noise"):
            batch[key] = batch[key].to(memory_format=torch.channels_last)
    return batch


def training_step(model: DenoisingModel, batch: dict, device: str, precision: str) -> Step:
    """Forward and backward pass, gradient clipping and AdamW step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> None:
        with autocast(device, precision):
            loss = model(batch).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def forward_pass(model: DenoisingModel, batch: dict, device: str, precision: str) -> Step:
    """One call of the network, the condition already encoded."""
    call = network_call(model, batch, device, precision, guided=False)
    coordinate = torch.zeros((), device=device)

    @torch.no_grad()
    def step() -> torch.Tensor:
        with autocast(device, precision):
            return call(batch["noise"], coordinate)

    return step


def sampling(model: DenoisingModel, batch: dict, device: str, precision: str, steps: int) -> Step:
    """Images from noise with classifier-free guidance by Euler steps, the encoding of the captions included."""
    sigmas = torch.linspace(1, 0, steps + 1, device=device)
    coordinates = model.objective.coordinate(sigmas)

    @torch.no_grad()
    def sample() -> torch.Tensor:
        with autocast(device, precision):
            call = network_call(model, batch, device, precision, guided=True)
            x = batch["noise"]
            for i in range(steps):
                good, plain = call(torch.cat([x, x]), coordinates[i]).float().chunk(2)
                x = x + (sigmas[i + 1] - sigmas[i]) * (plain + GUIDANCE * (good - plain))
        return x

    return sample


@torch.no_grad()
def network_call(model: DenoisingModel, batch: dict, device: str, precision: str, guided: bool) -> Callable:
    """The network as a function of images and one noise coordinate, as a pipeline calls it.

    The condition is encoded once; attndiff's network also keeps its keys and values, as its pipeline does.
    """
    streams = {key: batch[key] for key in CONDITION_KEYS if key in batch}
    drop = batch["drop"]
    model.eval()  # a network may do more in training, such as setting its weights' magnitude
    if guided:
        streams = {key: torch.cat([value, value]) for key, value in streams.items()}
        drop = torch.cat([drop, torch.ones_like(drop)])
    with autocast(device, precision):
        encoded = model.condition_encoder(**streams, drop=drop)
        condition = {"encoder_attention_mask": encoded.mask, "pooled_projections": encoded.pooled}
        if isinstance(model.unet, AttentionUNet2DModel):
            tokens = encoded.tokens
            cache = model.unet(None, encoder_hidden_states=tokens, return_condition_cache=True)
            condition["condition_cache"] = cache
        else:
            condition["encoder_hidden_states"] = encoded.tokens

    def call(x: torch.Tensor, coordinate: torch.Tensor) -> torch.Tensor:
        return model.unet(x, coordinate.expand(len(x)), **condition).sample

    return call


def matmul_rate(device: str, precision: str, repeats: int = 30) -> float:
    """FLOP/s of a large square matrix product at its best: what the hardware can do, near enough."""
    side = MATMUL_SIDE[device]
    a, b = (torch.randn(side, side, device=device, dtype=getattr(torch, precision)) for _ in range(2))
    return 2.0 * side**3 / min(seconds_of(lambda: a @ b, device) for _ in range(repeats))
