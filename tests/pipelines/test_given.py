"""Tensors that a call is given, or that its callback gives back: embeds with their masks, latents, the guidance."""

import numpy as np
import pytest
import torch
from factories import HIDDEN, class_pipeline, student_pipeline, text_pipeline, unconditional_pipeline
from PIL import Image

from attndiff.pipelines.call.images import as_mask, as_pixels
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline

NAN, INFINITE = float("nan"), float("inf")
NOISE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
EMBEDS = torch.randn(2, 4, HIDDEN, generator=torch.Generator().manual_seed(1))
MASK = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
ADDITIVE = torch.zeros(2, 4).masked_fill(~MASK, -INFINITE)


@pytest.fixture(scope="module")
def text() -> AttnDiffPipeline:
    return text_pipeline()


def latents_of(pipeline, **arguments) -> torch.Tensor:
    arguments = {"latents": NOISE, "num_inference_steps": 3, "output_type": "latent", **arguments}
    return pipeline(**arguments).images


TOKENS = {
    "another width": (EMBEDS[..., 1:], r"embeds must have the shape \(.*, tokens, 16\) .*, not \(2, 4, 15\)"),
    "no rows": (EMBEDS[0], r"embeds must have the shape .*, not \(4, 16\)"),
    "no tokens": (EMBEDS[:, :0], r"embeds must have the shape .*, not \(2, 0, 16\)"),
    "a list": (EMBEDS.tolist(), "embeds must be a floating-point tensor of condition tokens, not a list of list"),
    "whole numbers": (EMBEDS.long(), r"embeds must be a floating-point tensor of condition tokens, not torch\.int64"),
    "not a number": (EMBEDS * NAN, "embeds must be condition tokens, and holds numbers that are not finite"),
    "infinite": (EMBEDS / 0, "embeds must be condition tokens, and holds numbers that are not finite"),
}
MASKS = {
    "shorter": (MASK[:, :2], r"attention_mask must have the shape \(2, 4\), .*, not \(2, 2\)"),
    "longer": (MASK.repeat(1, 2), r"attention_mask must have the shape \(2, 4\), .*, not \(2, 8\)"),
    "of another batch": (MASK[:1], r"attention_mask must have the shape \(2, 4\), .*, not \(1, 4\)"),
    "of no row": (MASK[0], r"attention_mask must have the shape \(2, 4\), .*, not \(4,\)"),
    "a list": (MASK.tolist(), "attention_mask must be a tensor, true for tokens that count"),
    "all false": (MASK & False, "attention_mask leaves a row without a token that counts"),
    "one row all false": (MASK * torch.tensor([[True], [False]]), "attention_mask leaves a row without a token"),
    "additive": (ADDITIVE, "attention_mask must be true or 1 for tokens that count and false or 0"),
    "additive of large numbers": (ADDITIVE.clamp(min=-1e4), "attention_mask must be true or 1"),
    "additive of zeros": (torch.zeros(2, 4), "attention_mask leaves a row without a token that counts"),
    "not a number": (ADDITIVE * NAN, "attention_mask must be true or 1"),
}
LATENTS = {
    "not a number": (NOISE * NAN, "latents must be .*, and holds numbers that are not finite"),
    "infinite": (NOISE / 0, "latents must be .*, and holds numbers that are not finite"),
    "beyond float32": (NOISE.double() * 1e300, "latents must be .*, and holds numbers that are not finite"),
    "another size": (NOISE[..., :8], r"latents must have the shape \(2, 3, 16, 16\) .*, not \(2, 3, 16, 8\)"),
    "another batch": (NOISE[:1], r"latents must have the shape \(2, 3, 16, 16\)"),
    "whole numbers": (NOISE.long(), r"latents must be a floating-point tensor of .*, not torch\.int64"),
    "a list": (NOISE.tolist(), "latents must be a floating-point tensor of .*, not a list of list"),
}
GIVEN = [("embeds", *case) for case in TOKENS.values()]
GIVEN += [("attention_mask", *case) for case in MASKS.values()]
IDS = [f"{name}: {case}" for name, cases in (("embeds", TOKENS), ("mask", MASKS)) for case in cases]


@pytest.mark.parametrize("prefix", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(("name", "value", "sentence"), GIVEN, ids=IDS)
def test_wrong_tokens_of_a_call_are_named(text, prefix, name, value, sentence):
    arguments = {"prompt_embeds": EMBEDS} | {f"{prefix}_embeds": EMBEDS} | {f"{prefix}_{name}": value}
    with pytest.raises(ValueError, match=f"^{prefix}_{sentence}"):
        latents_of(text, **arguments)


@pytest.mark.parametrize("case", LATENTS)
def test_wrong_latents_of_a_call_are_named(text, case):
    value, sentence = LATENTS[case]
    with pytest.raises(ValueError, match=sentence):
        latents_of(text, prompt_embeds=EMBEDS, latents=value)


TOGETHER = {
    "prompt_attention_mask says which of prompt_embeds": {"prompt": ["a", "b"], "prompt_attention_mask": MASK},
    "negative_prompt_attention_mask says": {"prompt": "a", "negative_prompt_attention_mask": MASK},
    "stands for negative_prompt": {"prompt": "a", "negative_prompt": "b", "negative_prompt_embeds": EMBEDS[:1]},
    r"negative_prompt_embeds must have the shape \(2, ": {
        "prompt_embeds": EMBEDS, "negative_prompt_embeds": EMBEDS[:1]
    },
    "callback_on_step_end must be a function": {"prompt": "a", "callback_on_step_end": 3},
}  # fmt: skip


@pytest.mark.parametrize("sentence", TOGETHER)
def test_nothing_that_is_given_is_passed_over(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        latents_of(text, **TOGETHER[sentence])


def test_a_model_that_reads_nothing_is_given_nothing():
    for arguments in ({"negative_prompt_embeds": EMBEDS}, {"prompt_attention_mask": MASK}):
        with pytest.raises(ValueError, match="unconditional"):
            latents_of(unconditional_pipeline(), **arguments)
    with pytest.raises(ValueError, match="does not read text"):
        latents_of(class_pipeline(), prompt_embeds=EMBEDS, negative_prompt="a")


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float32])
def test_a_mask_of_noughts_and_ones_is_that_of_truths(text, dtype):
    expected = latents_of(text, prompt_embeds=EMBEDS, prompt_attention_mask=MASK)
    assert torch.equal(latents_of(text, prompt_embeds=EMBEDS, prompt_attention_mask=MASK.to(dtype)), expected)
    assert (latents_of(text, prompt_embeds=EMBEDS) - expected).abs().max() > 1e-4


def returning(values: dict, step: int = 0):
    """A callback that gives values back after one step."""
    return lambda pipeline, index, timestep, tensors: values if index == step else None


@pytest.mark.parametrize("prefix", ["prompt", "negative_prompt"])
@pytest.mark.parametrize(("name", "value", "sentence"), GIVEN, ids=IDS)
def test_wrong_tokens_of_a_callback_are_named(text, prefix, name, value, sentence):
    returned = {f"{prefix}_embeds": EMBEDS} | {f"{prefix}_{name}": value}
    with pytest.raises(ValueError, match=f"^{prefix}_{sentence}"):
        latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=returning(returned))


RETURNED = {
    "what callback_on_step_end returns can be latents, .*; there is no 'embeds'": {"embeds": EMBEDS},
    r"prompt_embeds must have the shape \(2, tokens": {"prompt_embeds": EMBEDS[:1]},
    "prompt_embeds must be a floating-point tensor of condition tokens, not NoneType": {"prompt_embeds": None},
    "latents: callback_on_step_end must return a tensor": {"latents": None},
    "must return the tensors that it changes by name, or None, not a list of Tensor": [NOISE],
}


@pytest.mark.parametrize("sentence", RETURNED)
def test_what_a_callback_cannot_return(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=returning(RETURNED[sentence]))


@pytest.mark.parametrize("case", LATENTS)
def test_wrong_latents_of_a_callback_are_named(text, case):
    value, sentence = LATENTS[case]
    with pytest.raises(ValueError, match=sentence):
        latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=returning({"latents": value}))


def test_latents_of_a_callback_are_gone_on_with(text):
    half = latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=returning({"latents": NOISE.double()}))
    whole = latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=returning({"latents": NOISE}))
    assert half.dtype is torch.float32 and torch.equal(half, whole)
    assert not torch.equal(whole, latents_of(text, prompt_embeds=EMBEDS))


def guided(scales: list[float]):
    """A callback that sets the guidance of every step after the first."""

    def change(pipeline, step, timestep, tensors):
        pipeline._guidance_scale = scales[min(step, len(scales) - 1)]
        return tensors

    return change


@pytest.mark.parametrize("told", [{"prompt": ["red apple", "rocket"]}, {"prompt_embeds": EMBEDS}])
def test_a_guidance_that_a_callback_raises_is_that_of_the_steps_after(text, told):
    plain, strong = (latents_of(text, guidance_scale=scale, **told) for scale in (1.0, 5.0))
    raised = latents_of(text, guidance_scale=1.0, callback_on_step_end=guided([5.0]), **told)
    lowered = latents_of(text, guidance_scale=5.0, callback_on_step_end=guided([1.0, 5.0]), **told)
    results = [plain, strong, raised, lowered]
    assert all((a - b).abs().max() > 1e-3 for i, a in enumerate(results) for b in results[:i])
    one_level = {"guidance_interval": (0.0, 0.9)}  # all but the first step
    expected = latents_of(text, guidance_scale=5.0, **one_level, **told)
    torch.testing.assert_close(raised, expected, atol=1e-5, rtol=1e-5)


def test_a_guide_leads_once_a_callback_asks_for_it():
    earlier = text_pipeline(seed=9)
    pipeline = text_pipeline(guide=earlier.unet, guide_encoder=earlier.condition_encoder)
    told = {"prompt": ["red apple", "rocket"], "guidance_scale": 1.0}
    raised = latents_of(pipeline, callback_on_step_end=guided([5.0]), **told)
    expected = latents_of(pipeline, **{**told, "guidance_scale": 5.0}, guidance_interval=(0.0, 0.9))
    torch.testing.assert_close(raised, expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="the guide encodes the condition itself; give prompt"):
        latents_of(pipeline, prompt_embeds=EMBEDS, guidance_scale=1.0, callback_on_step_end=guided([5.0]))


def test_a_guidance_that_cannot_be_is_refused_during_a_call(text):
    with pytest.raises(ValueError, match="guidance_scale must be a finite number"):
        latents_of(text, prompt_embeds=EMBEDS, callback_on_step_end=guided([NAN]))
    with pytest.raises(ValueError, match="has a guidance of 3 built in"):
        arguments = {"num_inference_steps": 2, "callback_on_step_end": guided([5.0])}
        latents_of(student_pipeline(text_pipeline), prompt_embeds=EMBEDS, **arguments)


RGB, HOLE = np.random.default_rng(0).random((2, 8, 8, 3)).astype(np.float32), np.zeros((8, 8), np.float32)
PICTURE, TORCH = Image.new("RGB", (8, 8)), torch.zeros(2, 3, 8, 8)
IMAGES = {
    "holds values outside of 0 to 1": RGB * NAN,
    "must be pictures, arrays or tensors, all of one kind, not a list of list": RGB.tolist(),
    "all of one kind, not an empty list": [],
    "all of one kind, not a list of ndarray": [RGB[0], TORCH[0]],
    "different sizes": [PICTURE, Image.new("RGB", (8, 9))],
    r"different sizes, \[\(4, 8, 3\), ": [RGB[0], RGB[0, :4]],
    r"has the shape \(0, 3, 8, 8\): it is empty": TORCH[:0],
    r"floating-point numbers from 0 to 1, not torch\.uint8": TORCH.byte(),
    "is a picture of mode I;16": Image.new("I;16", (8, 8)),
    "must hold numbers, not object": RGB.astype(object),
}


@pytest.mark.parametrize("sentence", IMAGES)
def test_wrong_images_are_named(sentence):
    with pytest.raises(ValueError, match=f"^image .*{sentence}"):
        as_pixels(IMAGES[sentence], 3)


WRONG_MASKS = {
    "holds values outside of 0 to 1": HOLE * NAN,
    "holds values outside of 0 to 1: it must be 1": HOLE - 1,
    "1 where it is to be drawn": np.full((8, 8), 7, np.uint8),
    "must be pictures, arrays or tensors": HOLE.tolist(),
    "all of one kind, not a list of Image": [Image.new("L", (8, 8)), HOLE],
    r"different sizes, \[\(8, 8\), \(9, 8\)\]": [Image.new("L", (8, 8)), Image.new("L", (9, 8))],
    r"has the shape \(1, 1, 4, 8\), and the image is 8 x 8": HOLE[:4],
    "not an empty list": [],
}


@pytest.mark.parametrize("sentence", WRONG_MASKS)
def test_wrong_masks_are_named(sentence):
    with pytest.raises(ValueError, match=f"^mask_image .*{sentence}"):
        as_mask(WRONG_MASKS[sentence], (8, 8))


def test_masks_of_every_form_are_one():
    drawn = np.zeros((8, 8), bool)
    drawn[2:5, 3:] = True
    whole, expected = drawn * np.uint8(255), torch.from_numpy(drawn).float()[None, None]
    forms = [drawn, drawn * 1.0, drawn * 1, whole, Image.fromarray(whole), torch.from_numpy(drawn)]
    assert all(
        torch.equal(as_mask(form, (8, 8)), expected) for form in [expected, *forms, *([one] for one in forms), (drawn,)]
    )
