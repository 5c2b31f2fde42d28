"""The demo: what visitors may ask for, how many at once, and what they can read."""

import os
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from commands import attndiff
from factories import (
    caption_pipeline,
    class_pipeline,
    inpaint_pipeline,
    raster_pipeline,
    segment_pipeline,
    text_pipeline,
    unconditional_pipeline,
    upscale_pipeline,
)

pytest.importorskip("gradio", reason='gradio is not installed: pip install "attndiff[demo]"')
import gradio_client
from PIL import Image

from attndiff.apps import demo
from attndiff.apps.applying import page as making
from attndiff.apps.captioning import page
from attndiff.errors import UserError
from attndiff.tasks.prompts import prompt_of

SOUND = {"prompt": "red apple", "images": 2, "steps": 2, "guidance": 2.0, "seed": 0, "attention": False}
SEARCH = {"beams": 2, "draws": False, "temperature": 1.0, "seed": 0}
SECRET = "nobody's business"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Of a page that is served from a folder with a secret in it."""
    folder, before = tmp_path_factory.mktemp("served"), os.getcwd()
    (folder / "token.txt").write_text(SECRET)
    os.chdir(folder)
    page = demo.build(text_pipeline(), "tiny")
    yield demo.serve(page, None)
    page.close()
    os.chdir(before)


@pytest.fixture(scope="module")
def client(address):
    return gradio_client.Client(address, verbose=False)


def test_a_model_that_draws_value_after_value_has_one_number_of_steps():
    pipeline = raster_pipeline()
    page = demo.build(pipeline, "tiny").config
    steps = next(part["props"] for part in page["components"] if part["props"].get("label") == "steps")
    assert steps["value"] == pipeline.own_defaults()[0] <= steps["maximum"]
    asked = {**SOUND, "steps": steps["value"]}
    images, maps = demo.draw(pipeline, **asked)
    assert len(images) == 2 and maps == []
    with pytest.raises(UserError, match="num_inference_steps: this model takes 16"):
        demo.draw(pipeline, **{**asked, "steps": 5})


def test_a_model_that_writes_has_a_page_and_writes():
    pipeline, picture = caption_pipeline(), Image.new("RGB", (40, 20), "red")
    assert page.build_writing(pipeline, "tiny").config["title"] == "tiny"
    caption, looked = page.write(pipeline, picture, beams=2, draws=False, temperature=1.0, seed=0)
    assert caption == pipeline(picture, num_beams=2).captions[0] and looked.width > 192
    drawn = [page.write(pipeline, picture, 4, True, 2.0, seed)[0] for seed in (0, 0, 1, 2, 3)]
    assert drawn[0] == drawn[1] and len(set(drawn)) > 1
    wrong = {"image: give one": {"picture": None}, "beams: give a whole number from 1 to 16": {"beams": 0}}
    wrong |= {"temperature: give a number": {"temperature": "hot"}, "at most 4096 pixels": {"picture": large()}}
    wrong |= {"seed: give a whole number": {"seed": -1}, "mode I;16": {"picture": Image.new("I;16", (8, 8))}}
    for sentence, change in wrong.items():
        with pytest.raises(UserError, match=sentence):
            page.write(**{"pipeline": pipeline, "picture": picture, **SEARCH, **change})


@pytest.mark.parametrize("kind", [upscale_pipeline, inpaint_pipeline, segment_pipeline])
def test_a_model_that_makes_pictures_of_pictures_has_a_page_and_makes_them(kind):
    pipeline, picture, mask = kind(), Image.new("RGB", (20, 12), "red"), Image.new("L", (20, 12), 255)
    title = making.build_making(pipeline, "tiny").config["title"]
    asked = {"picture": picture, "mask": mask, "prompt": "", "steps": 2, "seed": 0}
    first, again = (making.make(pipeline, **asked) for _ in range(2))
    assert title == "tiny" and [one.tobytes() for one in first] == [one.tobytes() for one in again]
    assert len(first) == (2 if kind is segment_pipeline else 1) and first[0].width > 100
    wrong = {"image: give one": {"picture": None}, "image: give one of at most 4096": {"picture": large()}}
    wrong |= {"steps: give a whole number": {"steps": 0}, "seed: give a whole number": {"seed": -1}}
    wrong |= {"mask_image: give one": {"mask": None}} if kind is inpaint_pipeline else {}
    for sentence, change in wrong.items():
        with pytest.raises(UserError, match=sentence):
            making.make(pipeline, **{**asked, **change})


def large() -> Image.Image:
    return Image.new("1", (5000, 3))


@pytest.mark.parametrize("make", [text_pipeline, class_pipeline, unconditional_pipeline])
def test_every_kind_of_model_has_a_page_and_draws(make):
    pipeline = make()
    assert demo.build(pipeline, "tiny").config["title"] == "tiny"
    asked = {**SOUND, "prompt": {"class": "0"}.get(prompt_of(pipeline).name, SOUND["prompt"]), "attention": True}
    images, maps = demo.draw(pipeline, **asked)
    assert len(images) == 2 and {image.size for image in images} == {(192, 192)}
    assert len(maps) == (0 if prompt_of(pipeline).name == "none" else 2)
    assert images[0].tobytes() != images[1].tobytes()
    again, none = demo.draw(pipeline, **{**asked, "images": 1, "attention": False})
    assert again[0].tobytes() == images[0].tobytes() and none == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 10**9),
        ("steps", 0),
        ("steps", 2.5),
        ("images", 10**5),
        ("images", True),
        ("guidance", float("nan")),
        ("guidance", float("inf")),
        ("guidance", "3"),
        ("seed", -1),
        ("seed", None),
        ("prompt", "x" * 10**5),
        ("prompt", ["red apple"]),
        ("prompt", "\ud800"),
    ],
)
def test_what_no_call_may_ask_for_is_refused_by_name(name, value):
    with pytest.raises(UserError, match=name):
        demo.draw(text_pipeline(), **{**SOUND, name: value})


def test_the_page_draws(client):
    images, maps = client.predict(*{**SOUND, "attention": True}.values(), api_name="/draw")
    assert len(images) == 2 and len(maps) == 2


@pytest.mark.parametrize("change", [{"steps": 10**9}, {"guidance": 1e9}, {"prompt": "x" * 10**5}, {"images": -3}])
def test_the_page_answers_absurd_calls_with_an_error(client, change):
    with pytest.raises(Exception, match=r"minimum|maximum|number from|characters|length"):
        client.predict(*{**SOUND, **change}.values(), api_name="/draw")


def test_many_calls_at_once_are_drawn_in_turn_or_turned_away(client):
    def call(seed: int) -> str:
        try:
            images, _ = client.predict(*{**SOUND, "seed": seed}.values(), api_name="/draw")
            return f"{len(images)} images"
        except Exception as error:
            return str(error)

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(call, range(50)))
    drawn = [answer for answer in answers if answer == "2 images"]
    assert len(drawn) >= demo.WAITING // 2
    assert all("queue" in answer.lower() for answer in answers if answer not in drawn), set(answers)


def test_two_visitors_who_draw_the_same_read_files_of_their_own(client):
    answers = [client.predict(*SOUND.values(), api_name="/draw")[0] for _ in range(2)]
    first, second = ([entry["image"] for entry in answer] for answer in answers)
    addresses = [entry["path"] if isinstance(entry, dict) else entry for entry in first + second]
    assert len(set(addresses)) == 4
    assert [Path(a).read_bytes() for a in addresses[:2]] == [Path(a).read_bytes() for a in addresses[2:]]


@pytest.mark.parametrize("path", ["token.txt", "{cwd}/token.txt", "../token.txt", "/etc/passwd", "%2e%2e/token.txt"])
def test_no_file_can_be_read_but_the_pages_own(address, path):
    for prefix in ("gradio_api/file=", "file=", "static/", "assets/", "gradio_api/file/"):
        try:
            with urllib.request.urlopen(address + prefix + path.format(cwd=os.getcwd())) as answer:
                content = answer.read().decode(errors="replace")
        except urllib.error.HTTPError as error:
            assert error.code in (400, 403, 404, 405)
            continue
        assert SECRET not in content and "root:" not in content


def test_the_page_is_for_this_machine_alone(address):
    assert address.startswith("http://127.0.0.1:")


def test_a_taken_port_and_an_absent_model_are_one_sentence(address, tmp_path):
    port = address.rstrip("/").rpartition(":")[2]
    result = attndiff("demo", "emoji-xs-student", "--port", port)
    assert result.code == 2 and f"--port {port}" in result.err and result.err.count("\n") == 1
    result = attndiff("demo", tmp_path / "nothing")
    assert result.code == 2 and "nothing" in result.err and result.err.count("\n") == 1
