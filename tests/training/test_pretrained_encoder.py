"""A frozen pretrained text encoder, here small and random: trained with, saved and opened by stock diffusers."""

import pytest
import torch
from diffusers import DiffusionPipeline
from factories import pretrained_text_pipeline
from runs import FOOD, settings
from safetensors.torch import load_file

import attndiff
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory):
    """A text encoder with its tokenizer, as `transformers` stores them."""
    folder = tmp_path_factory.mktemp("encoder")
    pipe = pretrained_text_pipeline(max_length=12)
    pipe.text_encoder.save_pretrained(folder)
    pipe.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pipeline_folder(encoder_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "pretrained"
    condition = {"kind": "text", "pretrained": str(encoder_folder), "max_length": 12}
    return Trainer(make_config(settings(out, condition__=condition, data__=FOOD, optim__steps=3))).run()


def test_the_encoder_is_saved_frozen_under_its_own_class(encoder_folder, pipeline_folder):
    before = load_file(encoder_folder / "model.safetensors")
    after = load_file(pipeline_folder / "text_encoder" / "model.safetensors")
    shared = [key for key in after if key in before]
    assert shared and all(torch.equal(before[key], after[key]) for key in shared)
    index = attndiff.AttnDiffPipeline.load_config(pipeline_folder)
    assert index["text_encoder"][0] == "transformers"


def test_stock_diffusers_gives_the_same_pixels(pipeline_folder):
    def sample(pipe):
        return pipe("pizza", num_inference_steps=2, output_type="pt", generator=torch.Generator().manual_seed(0)).images

    stock = DiffusionPipeline.from_pretrained(pipeline_folder, trust_remote_code=True)
    assert torch.equal(sample(attndiff.load(pipeline_folder)), sample(stock))
