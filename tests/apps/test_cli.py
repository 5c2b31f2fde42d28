"""Commands as a user types them, in process and on tiny models."""

import importlib.metadata
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import tifffile
import yaml
from commands import WORDS, Result, attndiff, make_config, make_images
from factories import class_pipeline, text_pipeline, unconditional_pipeline
from PIL import Image
from places import ROOT

from attndiff.apps.cli import app, main
from attndiff.pipelines import base
from attndiff.progress import SETTINGS
from attndiff.training.config import make_config as make_config_of

COMMANDS = [
    "quickstart",
    "sample",
    "train",
    "distill",
    "apply",
    "caption",
    "evaluate",
    "doctor",
    "export",
    "push",
    "demo",
    "bench",
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Tiny pipeline folders by kind."""
    root = tmp_path_factory.mktemp("models")
    bands = {"channels": ["b1", "b2", "b3", "b4", "b5"], "bit_depth": 16, "value_range": [0, 4000]}
    pipelines = {
        "text": text_pipeline(),
        "class": class_pipeline(),
        "none": unconditional_pipeline(),
        "bands": unconditional_pipeline(5, data={**bands, "class_names": None, "size": [16, 16]}),
    }
    for name, pipeline in pipelines.items():
        pipeline.save_pretrained(root / name)
    return root


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run of two steps, and what the command said."""
    root = tmp_path_factory.mktemp("trained")
    config = make_config(root / "config.yaml", make_images(root / "images"), root / "run")
    return root / "run", attndiff("train", config, "optim.steps=3")


def test_help_lists_every_command_and_no_other():
    result = attndiff("--help")
    assert result.code == 0
    names = {command.callback.__name__ for command in app.registered_commands}
    assert names == set(COMMANDS)
    assert all(name in result.out for name in names)


def test_the_version_is_told():
    assert attndiff("--version") == Result(0, f"attndiff {importlib.metadata.version('attndiff')}\n", "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command):
    assert attndiff(command, "--help").code == 0


def test_ctrl_c_ends_with_130(monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("attndiff.data.doctor.diagnose", interrupted)
    with pytest.raises(SystemExit) as exit_:
        main(["doctor", "somewhere"])
    assert exit_.value.code == 130


def test_a_bug_stays_a_traceback(monkeypatch):
    def broken(*_):
        raise ValueError("not the user's fault")

    monkeypatch.setattr("attndiff.data.doctor.diagnose", broken)
    with pytest.raises(ValueError, match="not the user's fault"):
        main(["doctor", "somewhere"])


def test_sampling_text_writes_a_grid_that_the_seed_decides(models, tmp_path):
    options = ("--steps", 2, "--count", 2)
    grids = {name: tmp_path / f"new/{name}.png" for name in "abc"}
    for name, seed in {"a": 1, "b": 1, "c": 2}.items():
        result = attndiff("sample", models / "text", *WORDS[:3], "--out", grids[name], "--seed", seed, *options)
        assert result.code == 0, result.err
    a, b, c = (np.asarray(Image.open(path)) for path in grids.values())
    assert a.shape[1] > 3 * 96 and a.shape[0] > 2 * 96
    assert (a == b).all() and (a != c).any()


def test_a_model_samples_nearly_the_same_in_half_precision(models, tmp_path):
    pictures = {}
    for precision in ("fp32", "bf16"):
        out = tmp_path / precision
        result = attndiff("sample", models / "text", *WORDS[:2], "--out", tmp_path / "g.png", "--steps", 2,
                          "--images", out, "--precision", precision)  # fmt: skip
        assert result.code == 0, result.err
        pictures[precision] = np.stack([np.asarray(Image.open(path), int) for path in sorted(out.iterdir())])
    apart = np.abs(pictures["fp32"] - pictures["bf16"])
    assert 0 < apart.mean() < 3
    refused = attndiff("sample", models / "text", WORDS[0], "--out", tmp_path / "h.png", "--precision", "fp8")
    assert refused.code != 0 and "--precision='fp8' is unknown" in refused.err and not (tmp_path / "h.png").exists()


def test_every_image_has_a_seed_of_its_own(models, tmp_path):
    attndiff("sample", models / "text", *WORDS[:2], "--out", tmp_path / "g.png", "--steps", 2, "--seed", 5,
             "--images", tmp_path / "both")  # fmt: skip
    attndiff("sample", models / "text", WORDS[1], "--out", tmp_path / "g.png", "--steps", 2, "--seed", 6,
             "--images", tmp_path / "second")  # fmt: skip
    together, alone = (np.asarray(Image.open(tmp_path / n), int) for n in ("both/0001.png", "second/0000.png"))
    assert abs(together - alone).max() <= 1


def test_sampling_classes_by_name_and_number(models, tmp_path):
    paths = []
    for name, prompts in {"names": ["dog", "owl"], "numbers": ["1", "2"]}.items():
        paths.append(tmp_path / f"{name}/0001.png")
        result = attndiff(
            "sample", models / "class", *prompts, "--steps", 2, "--out", tmp_path / "g.png", "--images", tmp_path / name
        )
        assert result.code == 0, result.err
    by_name, by_number = (np.asarray(Image.open(path)) for path in paths)
    assert (by_name == by_number).all()


def test_sampling_without_condition_makes_as_many_as_asked(models, tmp_path):
    result = attndiff(
        "sample", models / "none", "--steps", 2, "--count", 9, "--out", tmp_path / "g.png", "--images", tmp_path / "all"
    )
    assert result.code == 0, result.err
    assert len(list((tmp_path / "all").glob("*.png"))) == 9


def test_other_sizes(models, tmp_path):
    result = attndiff(
        "sample", models / "none", "--steps", 1, "--count", 1, "--size", "24x32", "--out", tmp_path / "g.png",
        "--images", tmp_path / "all",
    )  # fmt: skip
    assert result.code == 0, result.err
    assert Image.open(tmp_path / "all/0000.png").size == (32, 24)


def test_bands_are_written_in_the_units_of_the_data(models, tmp_path):
    result = attndiff(
        "sample",
        models / "bands",
        "--steps",
        2,
        "--count",
        2,
        "--out",
        tmp_path / "g.png",
        "--images",
        tmp_path / "all",
    )
    assert result.code == 0, result.err
    image = tifffile.imread(tmp_path / "all/0000.tif")
    assert image.shape == (16, 16, 5) and image.dtype == np.uint16 and 255 < image.max() <= 4000
    assert Image.open(tmp_path / "g.png").mode == "RGB"


def test_attention_maps_are_pictures_and_change_no_pixel(models, tmp_path):
    arguments = ("sample", models / "text", *WORDS[:2], "--steps", 2, "--out")
    plain = attndiff(*arguments, tmp_path / "plain.png")
    looked = attndiff(*arguments, tmp_path / "looked.png", "--attention-maps", tmp_path / "maps")
    assert plain.code == looked.code == 0, looked.err
    assert (tmp_path / "plain.png").read_bytes() == (tmp_path / "looked.png").read_bytes()
    pictures = sorted((tmp_path / "maps").glob("*.png"))
    assert len(pictures) == 2 and Image.open(pictures[0]).width > 2 * 144


def test_the_home_folder_is_meant_in_every_argument_that_is_a_path(models, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "images", count=4), (tmp_path / "none").symlink_to(models / "none")
    make_config(tmp_path / "config.yaml", "~/images", "~/run")
    answers = [
        attndiff("doctor", "~/images", "size=16", "--json=~/new/report.json"),
        attndiff("doctor", "~/config.yaml"),
        attndiff("train", "~/config.yaml", "--dry-run"),
        attndiff("sample", "~/none", "--steps=1", "--count=1", "--out=~/new/g.png", "--images=~/all"),
        attndiff("push", "~/none", "some/name"),
        attndiff("export", "~/none", "~/exported"),
    ]
    assert [answer.code for answer in answers] == [0, 0, 0, 0, 2, 2], [answer.err for answer in answers]
    assert all(f"{tmp_path}/none" in answer.err for answer in answers[-2:])
    assert not (tmp_path / "~").exists()
    assert all((tmp_path / name).is_file() for name in ("new/report.json", "new/g.png", "all/0000.png"))


def test_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    images = make_images(tmp_path / "images")
    config = make_config(tmp_path / "config.yaml", images, tmp_path / "run")
    before = sorted(tmp_path.rglob("*"))
    result = attndiff("train", config, "--dry-run")
    assert result.code == 0, result.err
    assert all(word in result.out for word in ("parameters", "forward", "state", "steps", "time"))
    assert sorted(tmp_path.rglob("*")) == before


def test_training_ends_with_a_pipeline_and_the_next_command(trained, tmp_path):
    run, result = trained
    assert result.code == 0, result.err
    assert f"pipeline folder: {run / 'pipeline'}" in result.out and "best weights" in result.out
    assert json.loads((run / "config.json").read_text())["optim"]["steps"] == 3
    command = next(line for line in result.out.splitlines() if line.startswith("next:"))
    assert f"attndiff sample {run / 'pipeline'} 'red apple'" in command
    sampled = attndiff("sample", run / "pipeline", "red apple", "--steps", 1, "--out", tmp_path / "g.png")
    assert sampled.code == 0, sampled.err


def test_export_packages_a_checkpoint(trained, tmp_path):
    run, _ = trained
    result = attndiff("export", run, tmp_path / "exported")
    assert result.code == 0, result.err
    folder = result.out.split("pipeline folder: ")[1].strip()
    sampled = attndiff("sample", folder, "red apple", "--steps", 1, "--out", tmp_path / "g.png")
    assert sampled.code == 0, sampled.err


def test_doctor_names_what_it_drops(tmp_path):
    images = make_images(tmp_path / "images")
    (images / "a/broken.png").write_bytes(b"\x89PNG no more")
    (images / "a/broken.txt").write_text("red apple")
    result = attndiff("doctor", images, "size=16", "caption_column=text", "--json", tmp_path / "new/report.json")
    assert result.code == 0, result.err
    assert "12 of 13" in result.out and "broken.png" in result.out
    assert json.loads((tmp_path / "new/report.json").read_text())["usable"] == 12


def test_doctor_takes_a_training_config(tmp_path):
    config = make_config(tmp_path / "config.yaml", make_images(tmp_path / "images"), tmp_path / "run")
    result = attndiff("doctor", config)
    assert result.code == 0, result.err
    assert "3 x 16 x 16" in result.out


def test_doctor_without_data_checks_the_environment(tmp_path):
    result = attndiff("doctor", "--json", tmp_path / "environment.json")
    assert result.code == 0
    found = json.loads((tmp_path / "environment.json").read_text())
    assert found["packages"]["torch"] and found["cpu"]["cores"] >= 1
    assert found["packages"]["torch"] in result.out and "is used" in result.out


def test_the_readme_shows_commands_and_a_config_that_work():
    text = (ROOT / "README.md").read_text()
    shown = set(re.findall(r"^(?:    |\| `)attndiff (\w+)", text, re.MULTILINE))
    assert shown == {command.callback.__name__ for command in app.registered_commands}
    config = make_config_of(yaml.safe_load(re.search(r"```yaml\n(.*?)```", text, re.DOTALL)[1]))
    assert config.condition.kind == "text" and config.optim.minutes


def test_guidance_of_a_model_without_condition_is_said_to_have_no_effect(models, tmp_path):
    def told(*options: str) -> str:
        command = [sys.executable, "-m", "attndiff", "sample", models / "none", "--out", tmp_path / "a.png", *options]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stderr

    # Of two rows, each a call, one is told.
    assert told("--guidance", "5", "--count", "9", "--steps", "1").count("guidance_scale has no effect") == 1
    assert "guidance_scale" not in told("--steps", "1")


def test_a_run_without_condition_asks_for_no_guidance(tmp_path, caplog):
    base.logger.warning_once.cache_clear()  # other tests may have been told
    data = {"caption_column": None}
    config = make_config(
        tmp_path / "a.yaml", make_images(tmp_path / "images"), tmp_path / "run", data=data, condition={"kind": "none"}
    )
    assert attndiff("train", config).code == 0
    assert (tmp_path / "run/pipeline/neighbours.png").is_file() and "guidance_scale" not in caplog.text


def test_an_export_shows_what_it_is_doing(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "delay", 0)
    monkeypatch.setitem(SETTINGS, "mininterval", 0)
    result = attndiff("export", trained[0], tmp_path / "pipeline")
    assert result.code == 0, result.err
    doing = ["Writing weights", "Loss on training images", "Sampling for the card", "Reading training images"]
    for words in (*doing, "Looking for near copies", "Sampling to see where words act"):
        time_left, speed = r"<[\d:?]+", r"[\d.?]+ ?(s/)?[a-z]+(/s)?"
        assert re.search(rf"{words}: +\d+%[^\r]*\[[\d:]+{time_left}, +{speed}\]", result.err), words


def test_a_short_export_shows_no_bar(trained, tmp_path, monkeypatch):
    monkeypatch.setitem(SETTINGS, "delay", 3600)
    result = attndiff("export", trained[0], tmp_path / "pipeline")
    assert result.code == 0 and "%" not in result.err
    assert "writing the pipeline folder and its card" in trained[1].err
