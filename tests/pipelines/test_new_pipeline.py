"""What a pipeline of another task adds to the base: a call of its own, and channels that lie on the image."""

from functools import partial

import pytest
import torch
from factories import HIDDEN, RGB, quiet, randomised, tiny_encoder, tiny_scheduler

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


def network(seed: int = 0) -> AttentionUNet2DModel:
    """Three channels of a noisy image and three of a source go in, three come out."""
    make = partial(
        AttentionUNet2DModel,
        sample_size=16,
        in_channels=6,
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
