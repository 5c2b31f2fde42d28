"""Drawing value after value: a run, its folder through every door, what a call is refused, and the likelihood."""

import io
import json

import numpy as np
import pytest
import torch
from commands import attndiff as command
from doors import elsewhere
from PIL import Image
from runs import ACTIVITIES, FOOD, cut, losses, settings, train, weights

import attndiff
from attndiff.apps.data_settings import data_config
from attndiff.apps.likelihood import likelihood, webp_bits
from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.reference import model_settings, open_reference
from attndiff.training.build import build
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

SIDE = 8  # px: every value of an image is a call of the network
RASTER = {"task__": {"name": "raster"}, "data__": {**FOOD, "size": SIDE}}
PROMPTS = ["pizza, noto", "red apple, noto"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("raster") / "run"
    train(out, **RASTER)
    return out


@pytest.fixture(scope="module")
def pipeline(run):
    pipe = attndiff.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeds(n: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(n)]


def test_a_run_ends_as_a_folder_with_a_card(run):
    card = (run / "pipeline/README.md").read_text()
    assert "A Transformer that draws an image value after value" in card and "bits per dimension" in card
    assert 'transformer = PixelTransformerModel.from_pretrained(MODEL, subfolder="transformer")' in card
    assert "noise over signal" not in card and "diffusion" not in card.partition("## Use")[0]
    assert {"grid.png", "loss_curve.png", "neighbours.png"} <= {path.name for path in (run / "pipeline").iterdir()}
    entry = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"raw"' in line][-1]
    assert entry["raw"]["loss"] < 8 and "x0_error" not in entry["raw"]


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(run, tmp_path):
    rest = cut(run, tmp_path / "rest")
    Trainer(make_config(settings(rest, **RASTER))).run()
    ours, theirs = weights(rest), weights(run)
    assert losses(rest) == losses(run)[3:] and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_begins_with_the_weights_of_another(run, tmp_path):
    earlier = {"model__": {"preset": "tiny", "init_from": str(run / "pipeline")}}
    parts = build(make_config(settings(tmp_path / "more", **RASTER, **earlier)))
    theirs = attndiff.load(run / "pipeline").transformer.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in parts.model.transformer.state_dict().items())


def test_every_door_gives_the_same_images(run, pipeline, tmp_path):
    given = {"prompt": PROMPTS, "guidance_scale": 2.0}
    ours = pipeline(**given, generator=seeds(2), output_type="np").images
    again = tmp_path / "again"
    pipeline.save_pretrained(again)
    opened = attndiff.load(again)
    opened.set_progress_bar_config(disable=True)
    assert np.array_equal(ours, opened(**given, generator=seeds(2), output_type="np").images)
    code = (
        "import torch\npipe.set_progress_bar_config(disable=True)\n"
        "seeds = [torch.Generator().manual_seed(i) for i in range(2)]\n"
        f"print(json.dumps(pipe(**{given!r}, generator=seeds, output_type='np').images.tolist()))"
    )
    for images in elsewhere(code, run / "pipeline"):
        assert np.abs(np.asarray(images) - ours).max() < 1e-6


def test_an_image_is_the_same_alone_and_among_others(pipeline):
    together = pipeline(PROMPTS, generator=seeds(2), output_type="pt").images
    alone = pipeline(PROMPTS[1], generator=seeds(2)[1], output_type="pt").images
    assert torch.equal(together[1], alone[0]) and together.shape == (2, 3, SIDE, SIDE)
    both = pipeline(PROMPTS[0], num_images_per_prompt=2, generator=seeds(2), output_type="pt").images
    assert torch.equal(both[0], together[0]) and not torch.equal(both[0], both[1])
    assert ((together * 255).round() / 255 - together).abs().max() < 1e-6  # values of files


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"height": 32}, "height: this model draws images of 8 pixels a side; leave it out"),
        ({"num_inference_steps": 20}, "num_inference_steps: this model takes 64, one a patch; leave it out"),
        ({"temperature": 0}, "temperature must be above 0, such as 0.7, not 0"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"output_type": "latent"}, "output_type can be pil, np, pt"),
        ({"output_attention_maps": True}, "output_attention_maps: this kind of model has none"),
        ({"generator": [torch.Generator()] * 3}, "generator is a list of 3 for 1 images"),
        ({"class_labels": 1}, "this model has no classes"),
        ({"guidance_scale": float("nan")}, "guidance_scale must be a finite number"),
    ],
)
def test_what_a_call_cannot_be_asked_for(pipeline, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline("pizza, noto", **wrong)


@pytest.mark.parametrize(
    ("changes", "arguments", "mode"),
    [
        ({"data__": {**ACTIVITIES, "size": SIDE}, "condition__": {"kind": "class"}}, {"class_labels": ["noto"]}, "RGB"),
        ({"condition__": {"kind": "none"}, "data__channels": "RGBA"}, {}, "RGBA"),
        ({"condition__": {"kind": "none"}, "data__channels": "L"}, {}, "L"),
    ],
)
def test_every_kind_of_condition_and_of_image(tmp_path, changes, arguments, mode):
    train(tmp_path / "run", **{**RASTER, **changes}, optim__steps=1, log__prompts=[])
    pipe = attndiff.load(tmp_path / "run/pipeline")
    pipe.set_progress_bar_config(disable=True)
    (image,) = pipe(**arguments, generator=seeds(1)[0]).images
    assert image.mode == mode and image.size == (SIDE, SIDE)


def test_it_is_sampled_from_the_command_line(run, tmp_path):
    out = ["--out", tmp_path / "grid.png"]
    assert command("sample", run / "pipeline", "pizza, noto", "--count", 2, *out).code == 0
    assert Image.open(tmp_path / "grid.png").width > SIDE
    refused = command("sample", run / "pipeline", "pizza, noto", "--steps", 3, *out)
    assert refused.code == 2 and "this model takes 64" in refused.err


# Likelihood


def test_the_floor_is_a_file_of_all_images():
    images = build(make_config(settings("x", **RASTER))).images
    some = Subset(images, range(7))
    sheet = Image.new("RGB", (3 * SIDE, 3 * SIDE))
    for i, one in enumerate(some.tensor()):
        pixels = ((one.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy()
        sheet.paste(Image.fromarray(pixels), (i % 3 * SIDE, i // 3 * SIDE))
    file = io.BytesIO()
    sheet.save(file, "WEBP", lossless=True, quality=100, method=6, exact=True)
    assert webp_bits(some) == 8 * len(file.getvalue()) / (7 * 3 * SIDE * SIDE)


def test_likelihood_is_that_of_the_head(run, pipeline):
    config = data_config("emoji32", ["caption_column=captions", 'where={"style": ["noto"]}'], model_settings(pipeline))
    found = likelihood(pipeline, open_reference(config, pipeline), seed=0)["bits_per_value"]
    assert 7 < found["value"] < 8 and 7 < found["training"] < 8 and 1 < found["floor"] < 6 and found["n"] > 50
    fresh = build(make_config(settings("x", **RASTER)))
    held_out = [fresh.validation[i]["image"] for i in range(4)]
    batch = {"images": torch.from_numpy(np.stack(held_out)), "drop": torch.ones(4, dtype=torch.bool)}
    tokens = fresh.conditioning.tokens(["pizza"] * 4)
    assert fresh.model({**batch, **tokens}).tolist() == pytest.approx([8.0] * 4)  # all values are equally likely


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"data__": {**FOOD, "size": 32, "max_aspect": 2.0}},
            "goes together with no data.max_aspect or model.lora_rank",
        ),
        ({"data__": {**FOOD, "stream": True, "validation": None}}, "goes together with no model.vae, distill or"),
        (
            {"model__init_from": "emoji-xs"},
            "model.init_from emoji-xs is of another kind .*: what is gone on with is a transformer",
        ),
        ({"model__transformer": {"hiden_size": 3}}, "unknown key model.transformer.hiden_size; did you mean hidden"),
        ({"model__transformer": {"patch_size": 3}}, "model.transformer: patches of 3 do not divide images of 8"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(make_config(settings("x", **{**RASTER, **changes})))


def test_images_of_sixteen_bits_are_refused(tmp_path):
    for i in range(12):
        Image.fromarray(np.full((16, 16), 1000 * i, np.uint16)).save(tmp_path / f"{i}.png")
    data = {"path": str(tmp_path), "size": 16, "channels": "L", "validation": 0.3}
    with pytest.raises(UserError, match="images of 8 bits a channel, and these have 16: convert them"):
        build(make_config(settings("x", **{**RASTER, "data__": data}, condition__={"kind": "none"})))
