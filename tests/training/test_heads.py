"""What the loop knows of what it trains: the protocol, and no network by name."""

import ast
import inspect
from pathlib import Path

import pytest
import torch
from factories import tiny_encoder, tiny_unet
from places import ROOT
from runs import ACTIVITIES, settings
from torch import nn

from attndiff.diffusion.objectives import make_objective
from attndiff.training.batches import Batch, training_loader
from attndiff.training.config import DistillConfig, make_config
from attndiff.training.heads import Head
from attndiff.training.heads.denoising import DenoisingModel
from attndiff.training.heads.student import StudentModel
from attndiff.training.run.loop import Trainer

TRAINING = ROOT / "training"
# All that a run calls, but for the making of networks and the heads themselves.
HEADLESS = ["run", "parallel", "state", "evaluation", "export.py", "card.py", "optim.py"]
OWN = {"unet", "condition_encoder", "objective"}


def sources(name: str) -> list[Path]:
    path = TRAINING / name
    return [path] if path.is_file() else sorted(path.glob("*.py"))


@pytest.mark.parametrize("name", HEADLESS)
def test_the_loop_and_what_it_calls_name_no_network(name):
    for path in sources(name):
        attributes = {n.attr for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
        assert not attributes & OWN, path


def make_head(kind: type) -> DenoisingModel:
    model = DenoisingModel(tiny_unet(), tiny_encoder(num_classes=3), make_objective({"name": "flow"}))
    return model if kind is DenoisingModel else StudentModel(model, DistillConfig(adversarial_weight=0.1))


@pytest.mark.parametrize("kind", [DenoisingModel, StudentModel])
def test_every_head_has_all_of_the_protocol(kind):
    head = make_head(kind)
    assert isinstance(head, nn.Module)
    for name, member in vars(Head).items():
        if name.startswith("_"):
            continue
        assert hasattr(head, name), name
        if inspect.isfunction(member):
            own, asked = (inspect.signature(method).parameters for method in (getattr(kind, name), member))
            assert own.keys() == asked.keys(), name


def test_a_head_measures_at_a_level_what_it_trains_on():
    head = make_head(DenoisingModel).eval()
    generator = torch.Generator().manual_seed(0)
    images, noise = torch.randn(2, 4, 3, 16, 16, generator=generator)
    batch: Batch = {
        "images": images,
        "noise": noise,
        "normal": torch.full((4,), 0.7),
        "drop": torch.zeros(4, dtype=torch.bool),
        "class_labels": torch.arange(4) % 3,
    }
    with torch.no_grad():
        loss = head(batch)
        found = head.measures({**batch, "normal": torch.zeros(4), "drop": ~batch["drop"]}, 0.7)
    assert found.keys() == {"loss", "denoised"} and torch.equal(found["loss"], loss)
    # Of flow matching, the error of the denoised image is that of the velocity times the level squared.
    level = head.noise_levels(batch["normal"])
    torch.testing.assert_close((found["denoised"] - images).square().mean((1, 2, 3)), loss * level.square())
    torch.testing.assert_close(head.noise_over_signal(batch["normal"]), level / (1 - level))


def test_a_head_becomes_a_pipeline_of_its_components():
    head = make_head(DenoisingModel)
    components = head.components()
    pipe = head.to_pipeline("AttnDiffPipeline")
    assert {name: pipe.components[name] for name in components} == components
    plain = head.components(plain=True)
    assert plain == components  # without an adapter, no copies
    head.add_adapter(2)
    plain = head.components(plain=True)
    assert plain["condition_encoder"] is head.condition_encoder and plain["unet"] is not head.unet
    assert not any("lora" in name for name, _ in plain["unet"].named_parameters())


CLASSES = {"data__": ACTIVITIES, "condition__kind": "class"}


@pytest.mark.parametrize("changes", [{}, CLASSES, {"condition__kind": "none"}])
def test_what_a_batch_holds_is_written_down(tmp_path, changes):
    trainer = Trainer(make_config(settings(tmp_path / "run", **changes)))
    batch = next(trainer._batches(0))
    assert {"images", "noise", "normal", "drop", "ids"} <= batch.keys() <= Batch.__annotations__.keys()


def test_batches_for_cuda_lie_where_it_can_fetch_them(tmp_path, monkeypatch):
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert training_loader(trainer.config, trainer.train_set, 1, 0, 1, 0).pin_memory
