"""Writing captions: a run, its folder through every door, what a call is refused, and captions beside a folder."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from commands import attndiff as command
from doors import elsewhere
from forked import forked
from PIL import Image
from runs import FOOD, close, cut, losses, settings, train, weights

import attndiff
from attndiff.errors import UserError
from attndiff.training.build import build
from attndiff.training.config import make_config
from attndiff.training.heads.captioning import NO_TARGET, following
from attndiff.training.run.loop import Trainer

CAPTION = {"task__": {"name": "caption"}}
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 30), "blue": (30, 30, 220), "yellow": (230, 220, 30)}
PLACES = {"on the left": (0, 4), "on the right": (12, 4), "at the top": (6, 0), "at the bottom": (6, 12)}


def drawing(colour: str, place: str, shade: int = 0) -> Image.Image:
    """A square of a colour, 4 px, on a ground of some grey."""
    image = Image.new("RGB", (16, 16), (255 - shade,) * 3)
    image.paste(Image.new("RGB", (4, 4), COLOURS[colour]), PLACES[place])
    return image


def squares(folder, times: int) -> None:
    """Squares of all colours in all places, on grounds of several greys, with captions beside them."""
    folder.mkdir(parents=True)
    for colour in COLOURS:
        for place in PLACES:
            for i in range(times):
                name = f"{colour} {place} {i}"
                drawing(colour, place, 9 * i).save(folder / f"{name}.png")
                (folder / f"{name}.txt").write_text(f"a {colour} square {place}")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of squares, long enough to know them."""
    folder = tmp_path_factory.mktemp("caption")
    squares(folder / "squares", times=6)
    data = {"path": str(folder / "squares"), "size": 16, "caption_column": "text", "validation": 0.3}
    optim = {"steps": 160, "batch_size": 16, "warmup": 5, "precision": "fp32", "lr": 0.02, "adamw_lr": 0.01}
    train(folder / "run", **CAPTION, data__=data, optim__=optim, log__validate_every=80, log__checkpoint_every=80)
    return folder / "run"


@pytest.fixture(scope="module")
def pipeline(run):
    pipe = attndiff.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_it_writes_what_it_sees(pipeline):
    asked = [(colour, place) for colour in COLOURS for place in PLACES]
    output = pipeline([drawing(*one, shade=4) for one in asked])
    wanted = [f"a {colour} square {place}" for colour, place in asked]
    right = sum(said == real for said, real in zip(output.captions, wanted, strict=True))
    assert right >= 14, output.captions
    assert output.generated_text == output.captions


def test_where_it_looks_adds_up_to_the_image(pipeline):
    output = pipeline(drawing("red", "on the left"), output_attention_maps=True)
    (tokens,), (maps,) = output.tokens, output.attention_maps
    assert maps.shape == (len(tokens), 8, 8) and not maps[0].any()
    assert torch.allclose(maps[1:].sum((1, 2)), torch.ones(len(tokens) - 1), atol=1e-5)


def test_a_run_ends_as_a_folder_with_a_card(run):
    card = (run / "pipeline/README.md").read_text()
    assert "A Transformer that writes captions of images" in card and "pipeline_tag: image-to-text" in card
    assert "caption = pipe(image).captions[0]" in card and "Nats per token" in card
    assert 'text_decoder = TextDecoderModel.from_pretrained(MODEL, subfolder="text_decoder")' in card
    assert "noise" not in card and "guidance 3" not in card
    assert {"grid.png", "loss_curve.png", "attention.png"} <= {path.name for path in (run / "pipeline").iterdir()}
    entry = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if '"raw"' in line][-1]
    assert entry["raw"]["loss"] < 0.3


def test_a_run_that_goes_on_ends_as_one_that_was_not_interrupted(tmp_path):
    train(tmp_path / "whole", **CAPTION, model__text_decoder={"dropout": 0.2})
    rest = cut(tmp_path / "whole", tmp_path / "rest")
    Trainer(make_config(settings(rest, **CAPTION, model__text_decoder={"dropout": 0.2}))).run()
    ours, theirs = weights(rest), weights(tmp_path / "whole")
    assert losses(rest) == losses(tmp_path / "whole")[3:]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_other_micro_batches_change_nothing(tmp_path):
    train(tmp_path / "whole", **CAPTION)
    train(tmp_path / "parts", **CAPTION, optim__micro_batch=2)
    assert close(tmp_path / "whole", tmp_path / "parts")


def test_two_processes_train_as_one(tmp_path):
    train(tmp_path / "one", **CAPTION, optim__steps=3)
    assert close(forked(settings(tmp_path / "two", **CAPTION, optim__steps=3)), tmp_path / "one")


def test_the_next_command_is_the_one_that_writes(tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings(tmp_path / "run", **CAPTION, optim__steps=1)))
    done = command("train", config.rename(tmp_path / "config.yaml"))
    assert done.code == 0 and f"attndiff caption {tmp_path / 'run/pipeline'} FOLDER" in done.out, done.err


def test_memory_can_be_saved(tmp_path):
    train(tmp_path / "plain", **CAPTION)
    train(tmp_path / "saving", **CAPTION, optim__gradient_checkpointing=True)
    assert losses(tmp_path / "plain") == losses(tmp_path / "saving")


def test_every_door_gives_the_same_captions(run, pipeline, tmp_path):
    images = [drawing("red", "at the top"), drawing("blue", "on the right")]
    for i, image in enumerate(images):
        image.save(tmp_path / f"{i}.png")
    ours = pipeline(images, num_beams=2).captions
    pipeline.save_pretrained(tmp_path / "again")
    opened = attndiff.load(tmp_path / "again")
    assert opened(images, num_beams=2).captions == ours
    code = (
        "from PIL import Image\n"
        f"images = [Image.open({str(tmp_path)!r} + f'/{{i}}.png') for i in range(2)]\n"
        "print(json.dumps(pipe(images, num_beams=2).captions))"
    )
    assert elsewhere(code, run / "pipeline") == [ours, ours]


def test_an_image_has_the_same_caption_alone_and_among_others_in_any_form(pipeline):
    images = [drawing("red", "at the top"), drawing("blue", "on the right"), drawing("green", "on the left")]
    together = pipeline(images).captions
    assert [pipeline(image).captions[0] for image in images] == together
    array = np.stack([np.asarray(image) for image in images]).astype(np.float32) / 255
    assert pipeline(array).captions == together
    assert pipeline(torch.from_numpy(array).permute(0, 3, 1, 2)).captions == together
    large = [image.resize((64, 64), Image.Resampling.NEAREST) for image in images]
    assert pipeline([large[0], images[1], large[2].convert("RGBA")]).captions == together


def test_what_is_drawn_follows_from_its_generator(pipeline):
    image = drawing("yellow", "at the top")
    draw = partial(pipeline, [image] * 12, num_beams=1, do_sample=True, temperature=3.0)
    state = torch.get_rng_state()
    one, again, other = (draw(generator=torch.Generator().manual_seed(seed)).captions for seed in (1, 1, 2))
    assert one == again != other and len(set(one)) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompt_is_how_captions_begin(pipeline):
    (caption,) = pipeline(drawing("red", "on the left"), prompt="a blue").captions
    assert caption.startswith("a blue square")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1, not 0"),
        ({"max_new_tokens": 100}, "this model has learned captions of 23 more tokens at most, not 100"),
        ({"num_beams": 0}, "num_beams must be a whole number from 1"),
        ({"temperature": 0}, "temperature must be above 0, such as 0.7, not 0; do_sample=False draws none"),
        ({"temperature": -1.0}, "temperature must be above 0"),
        ({"top_p": 2}, "top_p must be above 0 and at most 1"),
        ({"prompt": "red " * 30}, "captions of this model have 24 at most: shorten it"),
        ({"prompt": 3}, "prompt must be a text, with which all captions begin, not int"),
        ({"image": []}, "image is an empty list"),
        ({"image": np.zeros((16, 16, 5), np.float32)}, "image has the shape"),
        ({"image": "picture.png"}, "image must be pictures, arrays or tensors"),
        ({"generate_kwargs": {"num_beans": 3}}, "generate_kwargs: .*num_beans"),
        ({"generator": 3}, "generator must be a torch.Generator, not int"),
    ],
)
def test_what_a_call_cannot_be_asked_for(pipeline, wrong, sentence):
    with pytest.raises(ValueError, match=sentence):
        pipeline(**{"image": drawing("red", "on the left"), **wrong})


def test_what_follows_a_token():
    ids = torch.tensor([[1, 5, 6, 0], [1, 7, 8, 9], [1, 0, 0, 0]])
    wanted = [[5, 6, 1, NO_TARGET], [7, 8, 9, 1], [1, NO_TARGET, NO_TARGET, NO_TARGET]]
    assert following(ids, ids > 0, 1).tolist() == wanted


# The features of a denoising network


@pytest.fixture(scope="module")
def denoiser(tmp_path_factory):
    out = tmp_path_factory.mktemp("denoiser") / "run"
    train(out, condition__={"kind": "none"}, log__prompts=[])
    return out / "pipeline"


def test_a_denoising_network_is_looked_through_and_goes_along(denoiser, tmp_path):
    train(tmp_path / "run", **CAPTION, model__features=str(denoiser))
    pipe, before = attndiff.load(tmp_path / "run/pipeline"), attndiff.load(denoiser)
    own, theirs = pipe.unet.state_dict(), before.unet.state_dict()
    assert all(torch.equal(own[name], theirs[name]) for name in theirs)
    assert pipe.condition_encoder.streams == ["image", "context"]
    assert not any("unet" in name for name in weights(tmp_path / "run"))
    output = pipe(drawing("red", "on the left"), output_attention_maps=True)
    assert output.attention_maps[0].shape[1:] == (8, 8)
    pipe.unet.head.weight.data.zero_()  # is not looked at
    assert pipe(drawing("red", "on the left")).captions == output.captions
    train(tmp_path / "more", **CAPTION, model__={"preset": "tiny", "init_from": str(tmp_path / "run/pipeline")})
    assert attndiff.load(tmp_path / "more/pipeline").unet is not None


def test_what_draws_does_not_begin_as_what_writes(denoiser, tmp_path):
    """Although the latter has a network that denoises."""
    train(tmp_path / "run", **CAPTION, model__features=str(denoiser), optim__steps=1)
    begun = {"preset": "tiny", "init_from": str(tmp_path / "run/pipeline")}
    with pytest.raises(UserError, match=r"is of another kind than task\.name generate trains"):
        build(make_config(settings("x", model__=begun)))
    refused = command("distill", tmp_path / "run/pipeline", "--data", "emoji32", "--out", tmp_path / "fast")
    assert refused.code == 2 and "takes no noise away" in refused.err


def test_features_alone_can_be_seen(denoiser, tmp_path):
    alone = {"image_channels": None}
    train(tmp_path / "run", **CAPTION, model__features=str(denoiser), model__encoder=alone, optim__steps=1)
    pipe = attndiff.load(tmp_path / "run/pipeline")
    assert pipe.condition_encoder.streams == ["context"]
    output = pipe(drawing("red", "on the left"), output_attention_maps=True)
    assert output.attention_maps[0].shape[1:] == (4, 4)  # the network's finest level but one


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"condition__kind": "none"}, "task.name caption learns from captions: set condition.kind=text"),
        ({"condition__": {"kind": "text", "grounding_steps": 5}}, "this run reads no captions, but writes them"),
        ({"model__features": "emoji-xs-missing"}, "no such folder"),
        ({"model__init_from": "emoji-xs"}, "is of another kind .*: what is gone on with is a text_decoder"),
        ({"model__text_decoder": {"hiden_size": 3}}, "unknown key model.text_decoder.hiden_size; did you mean hidden"),
        ({"data__": {**FOOD, "size": 17}, "model__encoder": {"image_patch_size": 2}}, "must be a multiple of 2"),
        ({"data__": {**FOOD, "size": 16, "max_aspect": 4.0}}, "goes together with no condition.pretrained"),
        ({"log__evaluate_every": 3}, "measures samples, and task.name caption draws none"),
    ],
)
def test_settings_that_do_not_go_together_are_one_sentence(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        build(make_config(settings("x", **CAPTION, **changes)))


def test_only_what_writes_looks_through_a_network(denoiser):
    with pytest.raises(UserError, match=r"model\.features is seen by what writes captions: set task.name=caption"):
        build(make_config(settings("x", model__features=str(denoiser))))


# Beside the images of a folder


@pytest.fixture
def folder(tmp_path):
    images = tmp_path / "images"
    (images / "more").mkdir(parents=True)
    drawing("red", "on the left").save(images / "one.png")
    drawing("blue", "at the top").convert("L").save(images / "two.jpg")
    drawing("green", "at the bottom").resize((64, 48)).save(images / "more/three.webp")
    return images


def test_captions_are_written_as_training_reads_them(run, folder, tmp_path):
    (folder / "two.txt").write_text("mine")
    done = command("caption", run / "pipeline", folder, "--sheet", tmp_path / "sheet.png")
    assert done.code == 0 and "2 written beside images" in done.out and "1 that were there" in done.out, done.err
    assert (folder / "one.txt").read_text() == "a red square on the left\n" and (
        folder / "two.txt"
    ).read_text() == "mine"
    assert Image.open(tmp_path / "sheet.png").width > 96
    data = {"path": str(folder), "size": 16, "caption_column": "text", "validation": 0.4}
    parts = build(make_config(settings(tmp_path / "x", data__=data)))
    assert "a red square on the left" in [
        row["caption"][0] for part in (parts.images, parts.validation) for row in part
    ]
    again = command("caption", run / "pipeline", folder, "--again", "--attention-maps", tmp_path / "maps")
    assert {path.name for path in (tmp_path / "maps").iterdir()} == {f"attention-{i:02d}.png" for i in range(3)}
    assert "3 written" in again.out and (folder / "two.txt").read_text() != "mine"


def test_folders_that_captions_are_not_written_to(run, folder, tmp_path):
    def refused(*arguments) -> str:
        result = command("caption", *arguments)
        assert result.code == 2 and result.err.count("\n") == 1
        return result.err

    assert "is no folder" in refused(run / "pipeline", tmp_path / "nowhere")
    (tmp_path / "none").mkdir()
    assert "there are no images in this folder" in refused(run / "pipeline", tmp_path / "none")
    assert "emoji-xs draws images" in refused("emoji-xs", folder)
    assert "num_beams must be a whole number from 1" in refused(run / "pipeline", folder, "--beams", 0)
    drawing("red", "on the left").save(folder / "one.jpg")
    assert "would be the caption of one.jpg and of one.png" in refused(run / "pipeline", folder)
    (folder / "metadata.csv").write_text("file_name,text\none.png,mine\n")
    assert "metadata.csv says what the images are" in refused(run / "pipeline", folder)
    assert not list(folder.rglob("*.txt"))


def test_what_draws_is_told_from_what_writes(run):
    refused = command("sample", run / "pipeline", "red")
    assert refused.code == 2 and "writes captions of images: give it a folder" in refused.err


def test_it_is_measured_beside_what_needs_no_looking(run, tmp_path):
    squares = run.parent / "squares"
    asked = ["--data", squares, "caption_column=text", "--n", 30, "--json", tmp_path / "found.json", "--by", "text"]
    assert command("evaluate", run / "pipeline", *asked, "--pictures", tmp_path / "pictures").code == 0
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["exact"]["value"] > 0.8 and found["cider_d"]["value"] > 5
    assert found["exact"]["controls"]["shuffled_images"] < 0.4
    assert found["exact"]["controls"]["best_template"] < 0.4
    assert found["copied_captions"]["value"] > 0.8
    of_kinds = [entry for name, entry in found.items() if name.startswith("exact_of_a ")]
    assert sum(entry["n"] for entry in of_kinds) == 30
    assert (tmp_path / "pictures/captions.png").is_file()
    refused = command("evaluate", run / "pipeline", "--data", squares, "--steps", 4)
    assert refused.code == 2 and "this model writes captions: leave them out" in refused.err
