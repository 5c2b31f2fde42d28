"""Muon over stacked matrices: torch's own within rounding, with its state; and the rates of an encoder."""

import pytest
import torch
from runs import cut, losses, settings, train, weights
from torch import nn

from attndiff.training import muon
from attndiff.training.config import OptimConfig, make_config
from attndiff.training.muon import Muon, orthogonalised
from attndiff.training.optim import make_optimizers, set_lr
from attndiff.training.run.loop import Trainer

SHAPES = [(8, 8), (24, 8), (8, 8), (8, 40), (24, 8), (8, 8)]
SETTINGS = {"lr": 0.02, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}


def matrices(seed: int) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, parameters: list, first: int, last: int) -> None:
    for step in range(first, last):
        for parameter, grad in zip(parameters, matrices(100 + step), strict=True):
            parameter.grad = grad.detach()
        optimizer.step()


@pytest.mark.parametrize("at_once", [1, 130, 1 << 20])
def test_it_is_torchs_within_rounding(monkeypatch, at_once):
    monkeypatch.setattr(muon, "AT_ONCE", at_once)
    mine, theirs = matrices(0), matrices(0)
    steps(Muon(mine, **SETTINGS), mine, 0, 5), steps(torch.optim.Muon(theirs, **SETTINGS), theirs, 0, 5)
    for a, b, before in zip(mine, theirs, matrices(0), strict=True):
        assert (a - b).norm() < 0.02 * (b - before).norm()


def test_a_matrix_without_a_gradient_stays():
    parameters = matrices(0)
    optimizer = Muon(parameters, **SETTINGS)
    for parameter in parameters[1:]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    same = [torch.equal(a, b) for a, b in zip(parameters, matrices(0), strict=True)]
    assert same == [True, *[False] * 5] and parameters[0] not in optimizer.state


def test_it_goes_on_from_its_own_state_and_from_torchs():
    whole, cut, theirs = matrices(0), matrices(0), matrices(0)
    optimizer = Muon(whole, **SETTINGS)
    steps(optimizer, whole, 0, 4)
    first = Muon(cut, **SETTINGS)
    steps(first, cut, 0, 2)
    second = Muon(cut, **SETTINGS)
    second.load_state_dict(first.state_dict())
    steps(second, cut, 2, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, cut, strict=True))
    torchs = torch.optim.Muon(theirs, **SETTINGS)
    torchs.load_state_dict(first.state_dict())
    steps(torchs, theirs, 2, 3)


def test_singular_values_come_near_to_one():
    wide = torch.randn(3, 16, 64, generator=torch.Generator().manual_seed(0))
    for given in (wide, wide.mT):
        values = torch.linalg.svdvals(orthogonalised(given, (3.4445, -4.7750, 2.0315), 5, 1e-7).float())
        assert values.min() > 0.6 and values.max() < 1.3
    assert not orthogonalised(torch.zeros(1, 4, 4), (3.4445, -4.7750, 2.0315), 5, 1e-7).any()


def test_the_encoder_may_learn_at_rates_of_its_own():
    config = OptimConfig(lr=4e-3, adamw_lr=1e-3, encoder_rate=0.1)
    module = nn.ModuleDict({"unet": nn.Linear(4, 4), "condition_encoder": nn.Linear(4, 4)})
    optimizers = make_optimizers(module, config)
    set_lr(optimizers, 0.5)
    rates = {p: group["lr"] for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    found = {name: rates[p] for name, p in module.named_parameters()}
    assert found == pytest.approx(
        {
            "unet.weight": 2e-3,
            "unet.bias": 5e-4,
            "condition_encoder.weight": 2e-4,
            "condition_encoder.bias": 5e-5,
        }
    )


def test_a_run_whose_encoder_has_a_rate_of_its_own_resumes_bit_identical(tmp_path):
    optim = {**settings(tmp_path)["optim"], "encoder_rate": 0.1}
    train(tmp_path / "whole", optim__=optim)
    rest = cut(tmp_path / "whole", tmp_path / "rest")
    Trainer(make_config(settings(rest, optim__=optim))).run()
    ours, theirs = weights(rest), weights(tmp_path / "whole")
    assert losses(rest) == losses(tmp_path / "whole")[3:] and all(
        torch.equal(ours[name], theirs[name]) for name in theirs
    )
