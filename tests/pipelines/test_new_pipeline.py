"""What a pipeline of another task adds to the base: a call of its own, and channels that lie on the image."""

from functools import partial

import pytest
import torch
from factories import HIDDEN, RGB, quiet, randomised, tiny_encoder, tiny_scheduler

import attndiff
from attndiff.diffusion.objectives import make_objective
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.base import ImagePipeline
from attndiff.pipelines.call.conditioning import GivenCondition
from attndiff.pipelines.call.options import CallOptions
from attndiff.pipelines.call.output import as_output


class SourcePipeline(ImagePipeline):
    """Images of a class that follow a source image, or the single prediction of it."""

    @torch.no_grad()
    def __call__(self, class_labels, source, steps=None, guidance_scale=None, at_once=False, latents=None):
        options = CallOptions(*self.own_defaults(steps, guidance_scale), output_type="latent")
        with self.calling(options) as solver:
            given = GivenCondition(class_labels=class_labels)
            encoded = self.encode(given, 1, self.do_classifier_free_guidance, self.do_autoguidance)
            height, width = source.shape[-2:]
            latents = self.prepare_latents(len(source), height, width, None, latents, solver.noise_scale)
            if at_once:
                level = solver.level(0)
                prediction = self.guided_network(encoded, options, source)(latents, level)
                return self.objective.denoised(latents, prediction, level)
            latents, maps = self.sample(solver, latents, encoded, options, source)
            images = self.decode_latents(latents, options.output_type)
        return as_output(images, maps, return_dict=True)


def network(seed: int = 0, channels: int = 6) -> AttentionUNet2DModel:
    """Three channels of a noisy image and those of a source go in, three come out."""
    make = partial(
        AttentionUNet2DModel,
        sample_size=16,
        in_channels=channels,
        out_channels=3,
        levels=[{"width": 16, "depth": 1}, {"width": 16, "depth": 1, "attention": "global", "cross_attention": True}],
        head_dim=8,
        embedding_dim=32,
        cross_attention_dim=HIDDEN,
        pooled_dim=HIDDEN,
    )
    return randomised(make, seed)


@pytest.fixture(scope="module")
def pipeline() -> SourcePipeline:
    encoder = tiny_encoder(num_classes=3)
    return quiet(SourcePipeline(network(), tiny_scheduler(), encoder, objective={"name": "flow"}, data=RGB))


@pytest.fixture(scope="module")
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Noise and source of two images."""
    return torch.randn(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()


@torch.no_grad()
def velocity(unet, encoder, noise, source, drop: bool) -> torch.Tensor:
    """The prediction at pure noise by the parts of a pipeline, classes 1 and 2."""
    level = torch.tensor([1 - 1e-6])
    objective = make_objective({"name": "flow"})
    told = encoder(class_labels=torch.tensor([1, 2]), drop=torch.tensor([drop, drop]))
    x = torch.cat([objective.scale_input(noise, level), source], dim=1)
    return unet(x, objective.coordinate(level).expand(2), told.tokens, told.mask, told.pooled).sample


def test_the_source_is_beside_the_noise_in_both_halves_of_guidance(pipeline, images):
    noise, source = images
    good, plain = (velocity(pipeline.unet, pipeline.condition_encoder, *images, drop) for drop in (False, True))
    got = pipeline([1, 2], source, steps=1, guidance_scale=2.0, latents=noise).images
    torch.testing.assert_close(got, noise - (plain + 2 * (good - plain)), atol=1e-4, rtol=1e-4)
    other = pipeline([1, 2], -source, steps=1, guidance_scale=2.0, latents=noise).images
    assert (other - got).abs().max() > 0.01


def test_the_source_is_beside_the_noise_of_a_guide(pipeline, images):
    noise, source = images
    guide, encoder = network(seed=9), tiny_encoder(seed=9, num_classes=3)
    guided = quiet(SourcePipeline.from_pipe(pipeline, guide=guide, guide_encoder=encoder))
    good = velocity(pipeline.unet, pipeline.condition_encoder, *images, drop=False)
    bad = velocity(guide, encoder, *images, drop=False)
    got = guided([1, 2], source, steps=1, guidance_scale=2.0, latents=noise).images
    torch.testing.assert_close(got, noise - (bad + 2 * (good - bad)), atol=1e-4, rtol=1e-4)


def test_one_call_can_be_the_whole_of_it(pipeline, images):
    noise, source = images
    good = velocity(pipeline.unet, pipeline.condition_encoder, *images, drop=False)
    got = pipeline([1, 2], source, guidance_scale=1.0, at_once=True, latents=noise)
    torch.testing.assert_close(got, noise - good, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["AttnDiffUpscalePipeline", "AttnDiffInpaintPipeline"])
def test_a_class_alone_is_told_of_every_image_and_an_image_alone_shown_to_every_class(name):
    upscales = name == "AttnDiffUpscalePipeline"
    task = {"name": "upscale", "scale": 2, "residual_std": 0.3} if upscales else {"name": "inpaint"}
    unet, encoder = network(channels=6 if upscales else 7), tiny_encoder(num_classes=3)
    data = {**RGB, "class_names": ["a", "b", "c"]}
    pipe = quiet(
        getattr(attndiff, name)(unet, tiny_scheduler(), encoder, objective={"name": "flow"}, data=data, task=task)
    )
    shown = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    hole = {} if upscales else {"mask_image": torch.ones(1, 1, 8, 8)}

    def drawn(image, classes, times: int = 1) -> torch.Tensor:
        count = times * max(len(image), len(classes) if isinstance(classes, list) else 1)
        generator = [torch.Generator().manual_seed(i // times) for i in range(count)]
        told = {"class_labels": classes, "num_inference_steps": 2, "num_images_per_prompt": times, **hole}
        return pipe(image, **told, generator=generator, output_type="pt").images

    each = drawn(shown, ["b", "b"])
    torch.testing.assert_close(drawn(shown, "b"), each)
    torch.testing.assert_close(drawn(shown[:1], ["b", "a"])[0], each[0])
    torch.testing.assert_close(drawn(shown, "b", times=2)[::2], each)
    torch.testing.assert_close(drawn(shown[:1], ["b", "a"], times=2)[0], each[0])
