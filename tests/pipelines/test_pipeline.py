"""One call of the pipeline: conditions, guidance, generators, callbacks, output types, mistakes."""

import copy
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, EDMEulerScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.callbacks import SDCFGCutoffCallback
from factories import (
    autoguided_pipeline,
    class_pipeline,
    pretrained_text_pipeline,
    quiet,
    randomised,
    text_pipeline,
    tiny_encoder,
    tiny_unet,
    unconditional_pipeline,
)
from PIL import Image

from attndiff.pipelines import base
from attndiff.pipelines.call.tokenizing import tokenize
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline


@pytest.fixture(scope="module")
def text() -> AttnDiffPipeline:
    return text_pipeline()


@pytest.fixture(scope="module")
def classes() -> AttnDiffPipeline:
    return class_pipeline()


@pytest.fixture(scope="module")
def unconditional() -> AttnDiffPipeline:
    return unconditional_pipeline()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def latents_of(pipeline: AttnDiffPipeline, *args, **kwargs) -> torch.Tensor:
    kwargs = {"num_inference_steps": 3, "generator": seeded(), "output_type": "latent", **kwargs}
    return pipeline(*args, **kwargs).images


@torch.no_grad()
def by_hand(pipeline, embeds, mask, null, null_mask, scales: list[float], noise: torch.Tensor) -> torch.Tensor:
    """Euler steps of the flow, with the condition's keys computed anew at every call; ``embeds`` are one per step."""
    steps = len(scales)
    levels = torch.linspace(1, 0, steps + 1).clamp(max=1 - 1e-6)
    x, rows = noise, len(noise)
    for i, scale in enumerate(scales):
        level = levels[i]
        scaled = x / ((1 - level) ** 2 * 0.25 + level**2).sqrt()
        coordinate = ((level / (1 - level)).log().clamp(-np.log(1000), np.log(1000)) / 4).expand(rows)

        def velocity(tokens, mask, scaled=scaled, coordinate=coordinate):
            pooled = (tokens * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            return pipeline.unet(scaled, coordinate, tokens, mask, pooled).sample

        good = velocity(embeds[i], mask)
        plain = velocity(null, null_mask)
        x = x + (levels[i + 1] - level) * (plain + scale * (good - plain))
    return x


@pytest.fixture(scope="module")
def encoded(text):
    """Embeddings of two prompts and of no prompt, straight from the encoder as training does it, and start noise."""
    tokens = text.tokenizer(["red apple, flat", "rocket, flat"], padding="max_length", return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    with torch.no_grad():
        real = text.condition_encoder(ids, mask)
        null = text.condition_encoder(ids, mask, drop=torch.ones(2, dtype=torch.bool))
    return real.tokens, real.mask, null.tokens, null.mask, torch.randn(2, 3, 16, 16, generator=seeded(7))


PROMPTS = ["red apple, flat", "rocket, flat"]


def test_matches_sampling_by_hand(text, encoded):
    real, mask, null, null_mask, noise = encoded
    got = latents_of(text, PROMPTS, latents=noise, num_inference_steps=4, guidance_scale=2.5)
    expected = by_hand(text, [real] * 4, mask, null, null_mask, [2.5] * 4, noise)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    plain = by_hand(text, [real] * 4, mask, null, null_mask, [1.0] * 4, noise)
    assert (got - plain).abs().max() > 0.01


def test_guidance_interval_counts_noise(text, encoded):
    real, mask, null, null_mask, noise = encoded
    guidance = {"guidance_scale": 2.5, "guidance_interval": (0.4, 0.8)}
    got = latents_of(text, PROMPTS, latents=noise, num_inference_steps=4, **guidance)
    expected = by_hand(text, [real] * 4, mask, null, null_mask, [1, 2.5, 2.5, 1], noise)  # levels 1, 0.75, 0.5, 0.25
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_condition_is_encoded_once(text, monkeypatch):
    calls = []
    original = type(text.unet)._condition_cache
    monkeypatch.setattr(type(text.unet), "_condition_cache", lambda self, t: calls.append(1) or original(self, t))
    latents_of(text, PROMPTS, num_inference_steps=5)
    assert len(calls) == 1


def test_callback_embeddings_are_used(text, encoded):
    real, mask, null, null_mask, noise = encoded
    other = real.flip(0)

    def swap(pipeline, step, timestep, tensors):
        assert set(tensors) == {"latents", "prompt_embeds"}
        return {"prompt_embeds": other} if step == 1 else {}

    inputs = ["latents", "prompt_embeds"]
    got = latents_of(
        text,
        prompt_embeds=real,
        prompt_attention_mask=mask,
        latents=noise,
        num_inference_steps=4,
        guidance_scale=2.5,
        callback_on_step_end=swap,
        callback_on_step_end_tensor_inputs=inputs,
    )
    expected = by_hand(text, [real, real, other, other], mask, null, null_mask, [2.5] * 4, noise)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_guidance_cutoff_callback(text, encoded):
    real, mask, null, null_mask, noise = encoded
    cutoff = SDCFGCutoffCallback(cutoff_step_ratio=None, cutoff_step_index=1)
    got = latents_of(text, PROMPTS[:1], latents=noise[:1], num_inference_steps=4, callback_on_step_end=cutoff)
    one = [real[:1]] * 4, mask[:1], null[:1], null_mask[:1]
    torch.testing.assert_close(got, by_hand(text, *one, [3, 3, 1, 1], noise[:1]), atol=1e-4, rtol=1e-4)


def test_interrupt_stops(unconditional):
    seen = []

    def stop(pipeline, step, timestep, tensors):
        seen.append(step)
        pipeline._interrupt = step == 1
        return tensors

    latents_of(unconditional, num_inference_steps=5, callback_on_step_end=stop)
    assert seen == [0, 1]
    assert unconditional.num_timesteps == 5


def test_generator_list_equals_single_calls(text):
    started = []

    def noise_of(prompt, generator):
        pipeline = copy.copy(text)
        original = pipeline.prepare_latents
        pipeline.prepare_latents = lambda *args: started.append(original(*args)) or started[-1]
        return latents_of(pipeline, prompt, generator=generator)

    batch = noise_of(PROMPTS, [seeded(1), seeded(2)])
    singles = torch.cat([noise_of(PROMPTS[0], seeded(1)), noise_of(PROMPTS[1], [seeded(2)])])
    assert torch.equal(started[0], torch.cat(started[1:]))
    torch.testing.assert_close(batch, singles, atol=1e-5, rtol=0)
    assert (batch[0] - batch[1]).abs().max() > 0.1


def test_images_per_prompt_stand_side_by_side(text):
    generators = [seeded(i) for i in range(4)]
    four = latents_of(text, PROMPTS, num_images_per_prompt=2, generator=generators)
    expected = [latents_of(text, PROMPTS[i // 2], generator=seeded(i)) for i in range(4)]
    torch.testing.assert_close(four, torch.cat(expected), atol=1e-5, rtol=0)


def test_empty_prompt_and_negative_prompt(text):
    plain = latents_of(text, "red apple, flat", guidance_scale=1.0)
    nothing = latents_of(text, "", guidance_scale=3.0)
    torch.testing.assert_close(nothing, latents_of(text, "  ", guidance_scale=1.0), atol=1e-5, rtol=1e-5)
    assert (plain - nothing).abs().max() > 1e-3
    same = latents_of(text, "red apple, flat", negative_prompt="red apple, flat", guidance_scale=5.0)
    torch.testing.assert_close(same, plain, atol=1e-5, rtol=1e-5)


def test_class_names_and_numbers(classes):
    by_name = latents_of(classes, class_labels=["owl", "cat"])
    assert torch.equal(by_name, latents_of(classes, class_labels=torch.tensor([2, 0])))
    assert not torch.equal(by_name, latents_of(classes, class_labels=[2, 1]))


def test_pretrained_encoder_reads_the_prompt():
    pipeline = pretrained_text_pipeline()
    one, other = latents_of(pipeline, "red apple"), latents_of(pipeline, "blue heart")
    assert (one - other).abs().max() > 1e-4


def test_autoguidance(unconditional):
    guide = tiny_unet(seed=5)
    pipeline = AttnDiffPipeline.from_pipe(unconditional, guide=guide)
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn(1, 3, 16, 16, generator=seeded())
    one_step = {"num_inference_steps": 1, "latents": start}
    good, bad = (latents_of(p, guidance_scale=1.0, **one_step) for p in (pipeline, unconditional_pipeline()))
    assert torch.equal(good, bad)
    bad = latents_of(AttnDiffPipeline.from_pipe(unconditional, unet=guide), guidance_scale=1.0, **one_step)
    got = latents_of(pipeline, guidance_scale=2.0, **one_step)
    torch.testing.assert_close(got, bad + 2 * (good - bad), atol=1e-4, rtol=1e-4)  # one Euler step is linear


def test_autoguidance_by_an_earlier_model_is_told_the_prompt_in_its_own_terms(text):
    """One Euler step is linear in the prediction, so that guiding mixes what either model gives alone."""
    earlier = text_pipeline(seed=9)
    pipeline = quiet(AttnDiffPipeline.from_pipe(text, guide=earlier.unet, guide_encoder=earlier.condition_encoder))
    one_step = {"num_inference_steps": 1, "latents": torch.randn(2, 3, 16, 16, generator=seeded())}
    good, bad = (latents_of(p, PROMPTS, guidance_scale=1.0, **one_step) for p in (text, earlier))
    got = latents_of(pipeline, PROMPTS, guidance_scale=2.0, **one_step)
    torch.testing.assert_close(got, bad + 2 * (good - bad), atol=1e-4, rtol=1e-4)
    mismatched = quiet(AttnDiffPipeline.from_pipe(text, guide=earlier.unet))
    assert (latents_of(mismatched, PROMPTS, guidance_scale=2.0, **one_step) - got).abs().max() > 0.01
    twice = latents_of(pipeline, PROMPTS, guidance_scale=2.0, num_images_per_prompt=2, num_inference_steps=1)
    assert twice.shape[0] == 4


def test_autoguidance_by_classes(classes):
    earlier = AttnDiffPipeline.from_pipe(classes, unet=tiny_unet(conditional=True, seed=9))
    earlier.register_modules(condition_encoder=tiny_encoder(seed=9, num_classes=3))
    guide = {"guide": earlier.unet, "guide_encoder": earlier.condition_encoder}
    pipeline = quiet(AttnDiffPipeline.from_pipe(classes, **guide))
    one_step = {"num_inference_steps": 1, "latents": torch.randn(1, 3, 16, 16, generator=seeded())}
    good, bad = (latents_of(p, class_labels="owl", guidance_scale=1.0, **one_step) for p in (classes, quiet(earlier)))
    got = latents_of(pipeline, class_labels="owl", guidance_scale=3.0, **one_step)
    torch.testing.assert_close(got, bad + 3 * (good - bad), atol=1e-4, rtol=1e-4)


def unfit_guides() -> dict[str, dict]:
    """Components that cannot guide, by what is said of them."""
    narrow = tiny_unet(conditional=True)
    narrow.register_to_config(cross_attention_dim=24)
    encoder = tiny_encoder(vocab_size=300, max_length=8)
    return {
        "guide_encoder: there is no guide": {"guide_encoder": encoder},
        "attends to tokens of 24 channels, and condition_encoder makes them of 16": {"guide": narrow},
        "the guide is unconditional": {"guide": tiny_unet(), "guide_encoder": encoder},
        "its num_classes is 3, and that of condition_encoder None": {
            "guide": tiny_unet(conditional=True),
            "guide_encoder": tiny_encoder(vocab_size=300, max_length=8, num_classes=3),
        },
    }


@pytest.mark.parametrize("sentence", unfit_guides())
def test_unfit_guides_are_refused(sentence):
    pipeline = text_pipeline()
    pipeline.register_modules(**unfit_guides()[sentence])
    with pytest.raises(ValueError, match=sentence):
        latents_of(pipeline, "cat face")


def test_a_guide_with_an_encoder_needs_the_prompt_itself(text):
    pipeline = autoguided_pipeline()
    embeds, mask, *_ = text.encode_prompt(PROMPTS)
    with pytest.raises(ValueError, match="the guide encodes the condition itself; give prompt"):
        latents_of(pipeline, prompt_embeds=embeds, prompt_attention_mask=mask)
    alone = latents_of(pipeline, prompt_embeds=embeds, prompt_attention_mask=mask, guidance_scale=1.0)
    assert torch.equal(alone, latents_of(text, PROMPTS, guidance_scale=1.0))


def test_long_caption_is_cut_with_a_warning(text, caplog):
    latents_of(text, "red apple, flat red apple, flat yellow star")
    assert "yellow star" in caplog.text and "8 tokens" in caplog.text
    assert "flat red" not in caplog.text.partition("cut off")[2].partition("yellow")[0][:5]
    caplog.clear()
    latents_of(text, "red apple")
    assert not caplog.records


def test_guidance_without_a_condition_is_said_to_have_no_effect(unconditional, text, caplog):
    base.logger.warning_once.cache_clear()  # other tests may have been told
    with caplog.at_level(logging.WARNING):
        base.logger.addHandler(caplog.handler)
        plain = latents_of(unconditional)
        latents_of(unconditional, guidance_scale=1.0), latents_of(text, "red apple", guidance_scale=5.0)
        latents_of(AttnDiffPipeline.from_pipe(unconditional, guide=tiny_unet(seed=5)), guidance_scale=2.0)
        assert not caplog.records
        led = [latents_of(unconditional, guidance_scale=scale) for scale in (5.0, 2.0)]
        base.logger.removeHandler(caplog.handler)
    assert all(torch.equal(plain, one) for one in led)
    said = {id(record): record.getMessage() for record in caplog.records}
    assert len(said) == 1 and "no condition" in (sentence := said.popitem()[1])
    assert sentence.startswith("guidance_scale has no effect") and "as with guidance_scale=1" in sentence


def test_scheduler_is_left_alone(text):
    before = copy.deepcopy(text.scheduler.__dict__)
    latents_of(text, "cat face")
    for name, value in text.scheduler.__dict__.items():
        assert torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]


def test_concurrent_calls_wait_for_each_other(text):
    expected = [latents_of(text, p, guidance_scale=g) for p, g in zip(PROMPTS, (1.0, 4.0))]
    results = []
    other = threading.Thread(target=lambda: results.append(latents_of(text, PROMPTS[1], guidance_scale=4.0)))

    def start_other(pipeline, step, timestep, tensors):
        if step == 0:
            other.start()
            other.join(timeout=0.5)
            assert other.is_alive()  # it waits for this call
        return tensors

    first = latents_of(text, PROMPTS[0], guidance_scale=1.0, callback_on_step_end=start_other)
    other.join()
    assert torch.equal(first, expected[0]) and torch.equal(results[0], expected[1])


@pytest.fixture
def one_core():
    """Of several, torch takes as many for a product as are free at the moment, and its rounding depends on that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_pipelines_over_the_same_weights_run_side_by_side_in_threads(text, one_core):
    calls = [(PROMPTS[i % 2], 1.0 + i % 4) for i in range(16)]
    expected = [latents_of(text, prompt, guidance_scale=scale) for prompt, scale in calls]
    pipelines = [AttnDiffPipeline.from_pipe(text) for _ in range(8)]
    together = threading.Barrier(8)

    def work(worker: int) -> list[torch.Tensor]:
        together.wait()
        return [latents_of(pipelines[worker], p, guidance_scale=s) for p, s in calls[worker::8]]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(work, range(8)))
    for i, one in enumerate(expected):
        assert torch.equal(found[i % 8][i // 8], one)


def test_threads_that_share_a_tokenizer_pad_and_cut_alike(text):
    """A tokenizer keeps how it pads and cuts in itself, and what is said of long prompts takes it without either."""
    told = [f"{'red apple ' * (1 + i % 9)}{i}" for i in range(16)]
    expected = [tokenize(text.tokenizer, [one]) for one in told]
    together = threading.Barrier(8)

    def work(worker: int) -> bool:
        together.wait()
        found = [tokenize(text.tokenizer, [one]) for _ in range(20) for one in told[worker::8]]
        theirs = expected[worker::8] * 20
        return all(torch.equal(a, b) for pair in zip(found, theirs, strict=True) for a, b in zip(*pair, strict=True))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))


def test_copied_pipeline_works(classes):
    assert torch.equal(latents_of(copy.deepcopy(classes), class_labels=1), latents_of(classes, class_labels=1))


def test_attention_maps_leave_the_pixels(text):
    plain = latents_of(text, PROMPTS)
    output = text(PROMPTS, num_inference_steps=3, generator=seeded(), output_type="latent", output_attention_maps=True)
    assert torch.equal(output.images, plain)
    heat = output.attention_maps.averaged()
    assert heat.shape == (2, 8, 16, 16)
    torch.testing.assert_close(heat.sum(1), torch.ones(2, 16, 16))
    assert (heat[0, 1] - heat[1, 1]).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("objective", "scheduler"),
    [
        ({"name": "edm", "sigma_data": 0.5}, EDMEulerScheduler(sigma_data=0.5)),
        ({"name": "epsilon"}, DDIMScheduler(clip_sample=False, timestep_spacing="trailing")),
    ],
)
def test_other_objectives_sample(objective, scheduler):
    pipeline = unconditional_pipeline(objective=objective, scheduler=scheduler)
    latents = latents_of(pipeline, num_inference_steps=4)
    assert latents.shape == (1, 3, 16, 16) and latents.isfinite().all()


def test_non_square_and_default_sizes(unconditional):
    assert unconditional(num_inference_steps=1).images[0].size == (16, 16)
    assert unconditional(height=8, width=20, num_inference_steps=1).images[0].size == (20, 8)


def test_picture_output_types(unconditional):
    def sample(output_type):
        return unconditional(num_inference_steps=2, generator=seeded(), output_type=output_type).images

    pt, array, pil = sample("pt"), sample("np"), sample("pil")
    assert pt.shape == (1, 3, 16, 16) and pt.min() >= 0 and pt.max() <= 1
    np.testing.assert_array_equal(array, pt.permute(0, 2, 3, 1).numpy())
    assert isinstance(pil[0], Image.Image) and pil[0].mode == "RGB"
    np.testing.assert_array_equal(np.asarray(pil[0]), (array[0] * 255).round().astype(np.uint8))
    assert isinstance(unconditional(num_inference_steps=1, return_dict=False), tuple)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (4, "RGBA")])
def test_other_pictures(channels, mode):
    assert unconditional_pipeline(channels)(num_inference_steps=1).images[0].mode == mode


def test_bands_come_in_data_units():
    data = {"channels": list("ABCDE"), "bit_depth": 16, "value_range": [0, 65535], "size": [16, 16]}
    pipeline = unconditional_pipeline(5, data=data)
    call = {"num_inference_steps": 2}
    latents = pipeline(**call, generator=seeded(), output_type="latent").images
    array = pipeline(**call, generator=seeded(), output_type="np").images
    expected = ((latents.double().clamp(-1, 1) + 1) / 2 * 65535).round().permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(array, expected)
    assert array.dtype == np.uint16
    listed = pipeline(**call, generator=seeded(), output_type="pil").images
    assert isinstance(listed, list) and np.array_equal(listed[0], array[0])


def test_latent_model_is_decoded():
    make = partial(
        AutoencoderKL,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
    )
    vae = randomised(make)
    pipeline = unconditional_pipeline(4, data={"bit_depth": 8, "value_range": [0, 255], "size": [32, 32]}, vae=vae)
    assert latents_of(pipeline).shape == (1, 4, 16, 16)
    assert pipeline(num_inference_steps=1).images[0].size == (32, 32)


MISTAKES = {
    "prompt must be a text": ("text", {"prompt": 3}),
    "prompt must be a text or a list of texts, not a list of int": ("text", {"prompt": [3]}),
    r"prompt holds '\ud800', which is half of a character": ("text", {"prompt": "cat \ud800"}),
    "needs a condition: give a prompt": ("text", {}),
    "give class_labels": ("classes", {}),
    "does not read text": ("classes", {"prompt": "cat"}),
    "no classes": ("text", {"class_labels": 1}),
    "unconditional": ("unconditional", {"prompt": "cat"}),
    "stands for the whole condition": ("text", {"prompt": "cat", "prompt_embeds": torch.zeros(1, 2, 16)}),
    "guidance_scale must be a finite": ("text", {"prompt": "cat", "guidance_scale": float("nan")}),
    "num_inference_steps must be": ("text", {"prompt": "cat", "num_inference_steps": 0}),
    "num_inference_steps must be a whole number of at least 1, not -2": ("unconditional", {"num_inference_steps": -2}),
    "num_images_per_prompt": ("unconditional", {"num_images_per_prompt": 0}),
    "nearest are 16 and 20": ("unconditional", {"height": 17}),
    "the smallest is 4": ("unconditional", {"width": -8}),
    "7 is out of range; this model has the classes 0 to 2": ("classes", {"class_labels": 7}),
    "no class 'bat'; the names are cat, dog, owl": ("classes", {"class_labels": "bat"}),
    "numbers or names, not float": ("classes", {"class_labels": 1.5}),
    "latents must have the shape": ("unconditional", {"latents": torch.zeros(1, 3, 8, 8)}),
    "floating-point tensor": ("unconditional", {"latents": torch.zeros(1, 3, 16, 16, dtype=torch.int64)}),
    "a torch.Generator or a list of them, not NoneType": ("unconditional", {"generator": [None]}),
    "list of 3 for 1 images": ("unconditional", {"generator": [torch.Generator()] * 3}),
    "guidance_interval must be": ("unconditional", {"guidance_interval": (0.5, 1.5)}),
    "two rising numbers": ("unconditional", {"guidance_interval": (0.8, 0.2)}),
    "output_type can be pil, np, pt, latent; there is no 'jpg'": ("unconditional", {"output_type": "jpg"}),
    "can be latents, prompt_embeds": ("unconditional", {"callback_on_step_end_tensor_inputs": ["x"]}),
    "negative_prompt has 2 texts for 3": ("text", {"prompt": ["a"] * 3, "negative_prompt": ["b"] * 2}),
    "sigmas must be a falling list": ("unconditional", {"sigmas": [0.1, 0.5]}),
}


@pytest.mark.parametrize("message", MISTAKES)
def test_mistakes_are_named(message, request):
    fixture, arguments = MISTAKES[message]
    with pytest.raises(ValueError) as caught:
        request.getfixturevalue(fixture)(**arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unfit_scheduler_is_refused(unconditional):
    pipeline = AttnDiffPipeline.from_pipe(unconditional, scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True))
    with pytest.raises(ValueError, match="invert_sigmas"):
        pipeline(num_inference_steps=1)
