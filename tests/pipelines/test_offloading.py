"""What diffusers and accelerate hook into our modules leaves the results right."""

import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import ModelHook, add_hook_to_module
from factories import caption_pipeline, class_pipeline, raster_pipeline, tiny_encoder, tiny_unet

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


def test_networks_called_by_their_parts_are_offloaded_too():
    """Sequentially on this device: every weight is there only while what owns it is called."""
    writing, drawing = caption_pipeline(), raster_pipeline()
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    captions = writing(images).captions
    chance = torch.Generator().manual_seed(0)
    drawn = drawing("red apple", generator=chance, output_type="pt").images
    for module in (writing.text_decoder, writing.condition_encoder, writing.unet, drawing.transformer):
        cpu_offload(module, execution_device=torch.device("cpu"))
    assert writing(images).captions == captions and any(captions)
    assert torch.equal(drawing("red apple", generator=chance.manual_seed(0), output_type="pt").images, drawn)


def test_a_whole_network_is_brought_before_its_parts_are_called():
    """As `enable_model_cpu_offload` hooks it: on the way to its first use, once."""
    brought = []

    class Bringing(ModelHook):
        def pre_forward(self, module, *args, **kwargs):
            brought.append(module)
            return args, kwargs

    writing, drawing = caption_pipeline(), raster_pipeline()
    asked = {writing.text_decoder: writing, drawing.transformer: drawing}
    for module in asked:
        add_hook_to_module(module, Bringing())
        module.key_values = _only_after(brought, module, module.key_values)
    writing(torch.rand(1, 3, 16, 16))
    drawing("red apple")
    assert {id(module) for module in brought} == {id(module) for module in asked}


def _only_after(brought: list, module: torch.nn.Module, call):
    def checked(*args):
        assert any(one is module for one in brought)
        return call(*args)

    return checked


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
