"""The peers' networks: as large as attndiff's, trainable, told the condition; and what is EDM2's and JiT's own."""

from collections.abc import Callable

import pytest
import torch
from bench.arms import Arm
from bench.edm2_unet import Attention, Block, EDM2UNet, MPFourier, MPLayer, mp_cat, mp_silu, mp_sum
from bench.peer_objectives import EDM2, CleanImage
from bench.peers import PEERS
from bench.pixel_transformer import CONTEXT, CONTEXT_FROM, PixelTransformer
from bench.uncertainty import UncertaintyWeighted
from torch import nn

from attndiff.apps.bench.network import Network, make_batch, parameters
from attndiff.training.heads.denoising import DenoisingModel

POOLED = 32
SMALL = {"k-diffusion image_transformer_v2": 64, "JiT": 24}  # widths; 8 for the others


def magnitude(x: torch.Tensor) -> float:
    """Root of the mean square."""
    return x.square().mean().sqrt().item()


def made(name: str) -> nn.Module:
    """A small network of a peer, no weight of which is zero: what starts at zero would hide what stands before it."""
    torch.manual_seed(0)
    try:
        network = PEERS[name].make(SMALL.get(name, 8), POOLED)
    except ImportError:
        pytest.skip(f"needs {PEERS[name].install}")
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return network


def edm2() -> EDM2UNet:
    torch.manual_seed(0)
    return EDM2UNet(32, POOLED, heads=(1, 1, 2, 2))


def jit() -> PixelTransformer:
    torch.manual_seed(0)
    return PixelTransformer(24, 2, POOLED)


def inputs(count: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images, noise coordinates and pooled conditions."""
    generator = torch.Generator().manual_seed(1)
    images, pooled = (torch.randn(count, *shape, generator=generator) for shape in ((3, 32, 32), (POOLED,)))
    return images, torch.linspace(0.1, 0.9, count), pooled


def seen(network: nn.Module, kind: type[nn.Module], look: Callable) -> list:
    """What ``look(input, output)`` says of every module of a kind in one pass."""
    found = []
    hooks = [
        module.register_forward_hook(lambda module, given, out: found.append(look(given[0], out)))
        for module in network.modules()
        if isinstance(module, kind)
    ]
    with torch.no_grad():
        network(*inputs())
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("name", ["EDM2 U-Net", "JiT"])
def test_a_peer_is_as_large_as_attndiff(name):
    assert parameters(Arm("xs", peer=name)) == pytest.approx(parameters(Network("xs")), rel=0.03)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_is_told_image_noise_and_condition_and_all_of_it_learns(name):
    network = made(name)
    images, coordinate, pooled = inputs()
    tokens = torch.randn(2, 4, POOLED, generator=torch.Generator().manual_seed(2))

    def predict(images=images, coordinate=coordinate, tokens=tokens, pooled=pooled):
        return network(images, coordinate, tokens, torch.ones(2, 4, dtype=torch.bool), pooled).sample

    out = predict()
    assert out.shape == images.shape
    out.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in network.parameters())
    network.eval()
    out = predict()
    others = predict(images=-images), predict(coordinate=coordinate + 0.3), predict(tokens=-tokens, pooled=-pooled)
    for other in others:
        assert (out - other).abs().max() > 1e-3 * magnitude(out)


def test_edm2s_pieces_keep_magnitude_one():
    torch.manual_seed(0)
    a, b = torch.randn(2, 512, 8, 6, 6).unbind()
    wide = torch.randn(512, 24, 6, 6)
    for out in (mp_silu(a), mp_sum(a, b, 0.3), mp_cat(a, wide, 0.5), MPFourier(64)(torch.randn(512))):
        assert magnitude(out) == pytest.approx(1, abs=0.02)
    assert magnitude(MPLayer(8, 64, 3)(a)[..., 1:-1, 1:-1]) == pytest.approx(1, abs=0.05)
    joined = mp_cat(a, wide, 0.5)  # both parts count the same, however wide
    assert joined[:, :8].norm().item() == pytest.approx(joined[:, 8:].norm().item(), rel=0.02)


def test_edm2s_activations_start_at_magnitude_one_and_its_prediction_at_zero():
    network = edm2()
    blocks = seen(network, Block, lambda given, out: magnitude(out))
    assert len(blocks) == 15 + 2 + 19 and all(0.75 < size < 1.25 for size in blocks)
    assert not network(*inputs()).any()


def test_edm2s_weights_are_set_back_to_magnitude_one_in_training_alone():
    network = edm2()
    weights = [module.weight for module in network.modules() if isinstance(module, MPLayer)]
    nn.init.ones_(network.gain_out)
    out = network.eval()(*inputs())
    with torch.no_grad():
        for weight in weights:
            weight *= 3
    assert torch.allclose(network(*inputs()), out, atol=1e-4) and magnitude(weights[0]) > 2
    network.train()(*inputs())
    for weight in weights:
        assert torch.allclose(weight.flatten(1).square().mean(1), torch.ones(len(weight)), atol=1e-4)


def test_edm2_attends_at_16_and_8_pixels_and_once_between():
    sides = seen(edm2(), Attention, lambda given, out: out.shape[-1])
    assert sides == [16] * 3 + [8] * 3 + [4] + [8] * 4 + [16] * 4


def test_jit_starts_as_the_identity_and_predicts_zero():
    network = jit()
    images, time, pooled = inputs()
    assert not network(images, time, pooled).any()
    assert all(seen(network, type(network.blocks[0]), lambda given, out: torch.equal(given, out)))


def test_jit_puts_the_condition_in_front_of_the_patches():
    lengths = seen(jit(), type(jit().blocks[0]), lambda given, out: out.shape[1])
    assert lengths == [64] * CONTEXT_FROM + [64 + CONTEXT] * (12 - CONTEXT_FROM)
    assert jit()(torch.randn(1, 3, 16, 24), torch.zeros(1), torch.zeros(1, POOLED)).shape == (1, 3, 16, 24)


def test_jits_loss_is_the_velocitys():
    """Of ``(prediction - x) / (1 - t)``, with the divisor 0.05 at least (arXiv 2511.13720)."""
    objective, level = CleanImage(), torch.tensor([0.01, 0.3, 0.9])
    x0, noise, prediction = torch.randn(3, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    x, divisor = objective.add_noise(x0, noise, level), torch.tensor([0.05, 0.3, 0.9]).reshape(3, 1, 1, 1)
    velocity_error = ((prediction - x) / divisor - (x0 - x) / divisor).square().mean((1, 2, 3))
    error = (prediction - objective.target(x0, noise, level)).square().mean((1, 2, 3))
    assert torch.allclose(error * objective.weight(level), velocity_error, rtol=1e-4)
    assert torch.equal(objective.denoised(x, prediction, level), prediction)
    image_share = objective.coordinate(objective.draw_levels(torch.tensor([-1.0, 0.0])))
    assert torch.allclose(image_share.logit(), torch.tensor([0.0, -0.8]), atol=1e-5)


def test_edm2s_loss_is_weighted_by_the_level_and_the_uncertainty():
    """``lambda(sigma) |D - x0|^2 / exp(u) + u`` with EDM's lambda (arXiv 2206.00364, Table 1)."""
    objective = EDM2(sigma_data=0.5)
    assert torch.allclose(objective.draw_levels(torch.tensor([0.0, 1.0])).log(), torch.tensor([-0.8, 0.8]))
    model = Network("tiny").build()
    model = UncertaintyWeighted(model.unet, model.condition_encoder, objective)
    batch = make_batch(8)
    sigma = objective.draw_levels(batch["normal"])
    x = objective.add_noise(batch["images"], batch["noise"], sigma)
    wrong = objective.denoised(x, model.predict(x, sigma, batch), sigma) - batch["images"]
    weighted = wrong.square().mean((1, 2, 3)) * (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    u = model.uncertainty(sigma.log() / 4).squeeze(1)
    assert torch.allclose(model(batch), weighted / u.exp() + u, rtol=1e-3)
    assert u.std() > 0.1 and {"uncertainty.1.weight"} < {name for name, _ in model.named_parameters()}
    assert torch.allclose(DenoisingModel.forward(model, batch), weighted, rtol=1e-3)
