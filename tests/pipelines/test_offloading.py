"""What diffusers and accelerate hook into our modules leaves the results right."""

import pytest
import torch
from accelerate import cpu_offload
from factories import class_pipeline, tiny_encoder, tiny_unet

from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline


def run_unet(unet):
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(2, 3, 16, 16, generator=generator)
    tokens = torch.randn(2, 4, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(sample, torch.tensor([0.1, -0.2]), tokens).sample


def test_layerwise_casting_keeps_the_output_close():
    unet = tiny_unet(conditional=True).eval()
    expected = run_unet(unet)
    unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert torch.allclose(run_unet(unet), expected, atol=0.1 * expected.abs().max().item())


def test_sequential_offloading_changes_nothing():
    unet, encoder = tiny_unet(conditional=True).eval(), tiny_encoder(num_classes=3).eval()
    labels = torch.tensor([0, 2])
    with torch.no_grad():
        expected, tokens = run_unet(unet), encoder(class_labels=labels).tokens
        for module in (unet, encoder):
            cpu_offload(module, execution_device=torch.device("cpu"))
        assert torch.equal(run_unet(unet), expected)
        assert torch.equal(encoder(class_labels=labels).tokens, tokens)


def test_prompts_can_be_encoded_without_the_network():
    whole = class_pipeline()
    expected = whole.encode_prompt(class_labels=1)
    alone = AttnDiffPipeline(None, None, condition_encoder=whole.condition_encoder, data=whole.config.data)
    assert torch.equal(alone.encode_prompt(class_labels=1)[0], expected[0])


def test_guidance_without_an_encoder_asks_for_its_embeds():
    whole = class_pipeline()
    tokens, mask, *_ = whole.encode_prompt(class_labels=1)
    bare = AttnDiffPipeline(whole.unet, whole.scheduler, data=whole.config.data)
    with pytest.raises(ValueError, match="negative_prompt_embeds"):
        bare(prompt_embeds=tokens, prompt_attention_mask=mask, guidance_scale=2.0)
