"""An encoder that learns what words look like before step 1: what it learns, when, and that a run keeps it."""

import re
import shutil

import pytest
import torch
from runs import FOOD, cut, losses, settings, train, weights
from safetensors.torch import load_file

from attndiff.apps.runs import print_plan
from attndiff.errors import UserError
from attndiff.training.build import build, build_without_data
from attndiff.training.config import make_config
from attndiff.training.parts import grounding
from attndiff.training.parts.grounding import Contrast, GroundingLoop
from attndiff.training.run.loop import Trainer
from attndiff.training.state.learned import read_learned

GROUNDED = {"kind": "text", "vocab_size": 400, "grounding_steps": 12}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of six steps after a contrast."""
    out = tmp_path_factory.mktemp("grounded") / "whole"
    train(out, condition__=GROUNDED)
    return out


def states(parts) -> tuple[dict, dict]:
    return parts.model.condition_encoder.state_dict(), parts.model.unet.state_dict()


def same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_a_grounded_encoder_keeps_its_weights_and_the_network_learns(whole):
    first = load_file(whole / "learned" / "encoder.safetensors")
    assert same(first, load_file(whole / "pipeline" / "condition_encoder" / "diffusion_pytorch_model.safetensors"))
    assert len(set(losses(whole))) == 6
    moments = {name for name in weights(whole) if "condition_encoder" in name and "exp_avg" in name}
    assert not moments


def test_the_encoder_alone_begins_with_other_weights_and_the_run_keeps_them(whole, tmp_path):
    plain = {name: value for name, value in GROUNDED.items() if name != "grounding_steps"}
    grounded, ungrounded = (
        states(build(make_config(settings(tmp_path, condition__=condition)))) for condition in (GROUNDED, plain)
    )
    assert same(grounded[1], ungrounded[1]) and not same(grounded[0], ungrounded[0])
    kept = load_file(whole / "learned" / "encoder.safetensors")
    assert same(kept, grounded[0])
    config = make_config(settings(whole, condition__=GROUNDED))
    assert same(states(build_without_data(config, read_learned(whole)))[0], kept)


def test_a_run_that_was_cut_goes_on_bit_for_bit_and_grounds_nothing_again(whole, tmp_path, monkeypatch):
    rest = cut(whole, tmp_path / "cut")
    monkeypatch.setattr(GroundingLoop, "step", lambda self: pytest.fail("a second contrast"))
    Trainer(make_config(settings(rest, condition__=GROUNDED))).run()
    assert losses(rest) == losses(whole)[3:]
    assert same(weights(whole), weights(rest))


def test_a_run_that_was_cut_before_its_first_checkpoint_begins_anew_with_the_same(whole, tmp_path):
    again = cut(whole, tmp_path / "again")
    shutil.rmtree(again / "checkpoints")
    train(again, condition__=GROUNDED)
    assert losses(again) == losses(whole)


@pytest.mark.parametrize(("rate", "learns"), [(None, False), (0.1, True)])
def test_a_run_that_starts_from_a_grounded_model_keeps_its_encoder_unless_told_otherwise(whole, tmp_path, rate, learns):
    earlier = {"preset": "tiny", "init_from": str(whole / "pipeline")}
    optim = {"steps": 6, "batch_size": 8, "encoder_rate": rate}
    config = make_config(settings(tmp_path, model__=earlier, condition__={"kind": "text"}, optim__=optim))
    encoder = build(config).model.condition_encoder
    assert encoder.config.grounded and {p.requires_grad for p in encoder.parameters()} == {learns}


def test_an_encoder_of_rate_0_stays_as_it_begins(tmp_path):
    optim = {"steps": 6, "batch_size": 8, "encoder_rate": 0}
    encoder = build(make_config(settings(tmp_path, optim__=optim))).model.condition_encoder
    assert not encoder.config.grounded and not any(p.requires_grad for p in encoder.parameters())


def test_a_contrast_leaves_the_global_generator_as_it_was(tmp_path):
    parts = build(make_config(settings(tmp_path, condition__={**GROUNDED, "grounding_steps": 0})))
    before = torch.get_rng_state()
    loop = GroundingLoop(
        parts.model.condition_encoder, parts.images, parts.conditioning, make_config(settings(tmp_path)).optim, 3
    )
    loop.run(1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("half", [False, True])
def test_images_of_several_shapes_are_contrasted_by_shape(tmp_path, half):
    config = make_config(
        settings(
            tmp_path, data__={**FOOD, "size": 32, "max_aspect": 2.0}, condition__=GROUNDED, model__={"preset": "tiny"}
        )
    )
    parts = build(config.replace(condition=config.condition.replace(grounding_steps=0)))
    loop = GroundingLoop(parts.model.condition_encoder, parts.images, parts.conditioning, config.optim, 0, half=half)
    found = [loop.step() for _ in range(3)]
    assert all(0 < loss < 10 for loss in found)


class Captioned:
    """Images that have nothing but captions, so many of which differ."""

    def __init__(self, images: int, different: int):
        self.images, self.different = images, different

    def __len__(self) -> int:
        return self.images

    def __iter__(self):
        return ({"caption": [f"thing {i % self.different}"]} for i in range(self.images))


@pytest.mark.parametrize(
    ("images", "different", "optim", "steps"),
    [
        (80_000, 50_000, {"steps": 10_000, "batch_size": 96}, 1200),  # as many as are ever worth it
        (80_000, 50_000, {"steps": 400, "batch_size": 64}, 220),  # a fifth of the time: 2.2 times the images
        (2_560, 900, {"steps": 10_000, "batch_size": 96}, 300),  # 30 visits of every image
        (80_000, 50_000, {"minutes": 10}, 240),  # a fifth of ten minutes, at half a second each
        (80_000, 50_000, {"steps": 20, "batch_size": 96}, 0),  # too few to learn anything
        (80_000, 99, {"steps": 10_000, "batch_size": 96}, 0),  # no more things than captions soon tell apart
    ],
)
def test_a_contrast_takes_what_it_is_worth_of_a_run(images, different, optim, steps, tmp_path):
    config = make_config({**settings(tmp_path), "optim": optim, "condition": {"kind": "text"}})
    contrast = Contrast(config, None, Captioned(images, different), None)
    contrast.step_seconds = 0.5
    assert contrast.steps == steps and contrast.seconds == steps / 2


def test_a_run_of_many_captions_learns_its_words_first_unless_told_otherwise(tmp_path, monkeypatch):
    monkeypatch.setattr(grounding, "LEAST", 2)
    monkeypatch.setattr(grounding, "THINGS", 10)
    optim = {"steps": 40, "batch_size": 8}  # 2.75 steps' worth
    encoders = {
        steps: build(make_config(settings(tmp_path, condition__={"grounding_steps": steps}, optim__=optim))).learned
        for steps in (None, 0)
    }
    assert encoders[None].encoder is not None and encoders[0].encoder is None


def test_a_plan_says_how_long_words_take_and_learns_none(tmp_path, capsys):
    print_plan(make_config(settings(tmp_path / "run", condition__=GROUNDED)), elastic=False)
    assert re.search(r"words +12 steps of a contrast before step 1: \d", capsys.readouterr().out)
    assert not (tmp_path / "run").exists()


def test_a_run_that_has_a_checkpoint_learns_no_words_first(tmp_path):
    config = make_config(settings(tmp_path, condition__=GROUNDED))
    assert build(config, grounds=False).learned.encoder is None


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"condition__": {"kind": "none", "grounding_steps": 5}}, "has a condition that is no text"),
        ({"model__init_from": "somewhere"}, "goes on from another model"),
        ({"data__stream": True}, "learns from a stream"),
    ],
)
def test_runs_that_cannot_have_it_say_why(changes, why, tmp_path):
    config = make_config(settings(tmp_path, **{"condition__": GROUNDED, **changes}))
    with pytest.raises(UserError, match=f"condition.grounding_steps: this run {why}"):
        build(config)
