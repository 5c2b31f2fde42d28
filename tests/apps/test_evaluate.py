"""An evaluation from end to end, through the command line and in the training loop."""

import json
import subprocess
from types import SimpleNamespace

import pytest
import torch
from commands import attndiff, make_images
from factories import class_pipeline, make_vae, text_pipeline, unconditional_pipeline
from PIL import Image
from places import TRAIN
from runs import TORCHRUN

from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.subset import Subset
from attndiff.errors import UserError
from attndiff.metrics.controls import CONTROLS
from attndiff.metrics.near_copies import near_copies, training_pool
from attndiff.metrics.reference import Reference, model_settings, open_reference
from attndiff.metrics.samples import sample_pixels
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer

METRICS = {"frechet_distance", "kernel_distance", "precision", "recall", "density", "coverage"}
COUNT = 264  # images a part: 132 on each side if halved


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("place")
    text_pipeline().save_pretrained(root / "text")
    class_pipeline(("a", "b")).save_pretrained(root / "class")
    unconditional_pipeline().save_pretrained(root / "none")
    unconditional_pipeline(1, data={"channels": ["L"], "size": [16, 16]}).save_pretrained(root / "grey")
    make_images(root / "whole", count=COUNT)
    make_images(root / "parts/train", count=COUNT)
    make_images(root / "parts/validation", count=130)
    make_images(root / "few", count=40)
    make_images(root / "silent", captions=False, count=40)
    (root / "notes.txt").write_text("years of work")
    return root


def reference(place, path: str = "whole", pipeline=None) -> Reference:
    pipeline = pipeline or unconditional_pipeline()
    return open_reference(DataConfig(path=str(place / path), size=16), pipeline)


# The real images


def test_a_validation_part_is_what_samples_are_compared_with(place):
    found = reference(place, "parts")
    assert (len(found.train), len(found.test), found.halves) == (COUNT, 130, False)
    test, others, rest = found.choose(100, seed=0)
    assert (len(test), len(others), len(rest)) == (100, 100, COUNT - 100)
    assert not set(others.indices) & set(rest.indices)


def test_data_without_parts_are_halved(place):
    found = reference(place)
    assert found.halves and (len(found.train), len(found.test)) == (COUNT // 2, COUNT // 2)
    assert not set(found.train.indices) & set(found.test.indices)
    assert reference(place).test.indices == found.test.indices


def test_a_test_part_comes_before_a_validation_part(tmp_path):
    for part, count in {"train": 9, "validation": 3, "test": 4}.items():
        make_images(tmp_path / part, count=count)
    config = DataConfig(path=str(tmp_path), size=16)
    assert len(open_reference(config, unconditional_pipeline()).test) == 4
    named = DataConfig(path=str(tmp_path), size=16, validation=str(tmp_path / "validation"))
    assert len(open_reference(named, unconditional_pipeline()).test) == 3


def test_conditions_are_those_of_the_real_images(place):
    text = reference(place, pipeline=text_pipeline())
    assert set(PROMPTS["text"].of_all(text.test)) == {"red apple", "blue heart", "green house", "yellow star"}
    classes = reference(place, pipeline=class_pipeline(("b", "a")))
    names = [classes.test.images.name(i)[0] for i in classes.test.indices]
    assert PROMPTS["class"].of_all(classes.test) == [["b", "a"].index(name) for name in names]


def test_a_sample_does_not_depend_on_those_beside_it():
    pipeline = class_pipeline()
    several = sample_pixels(pipeline, [0, 1, 2], [5, 6, 7], 2, 1.5)
    alone = sample_pixels(pipeline, [1], [6], 2, 1.5)
    assert several.shape == (3, 3, 16, 16) and several.min() >= -1 and several.max() <= 1
    assert torch.allclose(several[1:2], alone, atol=2 / 255 + 1e-6)
    levels = (several + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)


def test_model_settings_read_images_as_the_model_draws_them():
    assert model_settings(unconditional_pipeline()) == {"size": 16, "channels": "RGB"}
    bands = {"channels": [f"band{i}" for i in range(5)], "bit_depth": 16, "value_range": [0, 65535], "size": [16, 16]}
    assert model_settings(unconditional_pipeline(5, data=bands)) == {"size": 16, "channels": 5}


# Copies


@pytest.fixture(scope="module")
def emoji():
    """Real images with a held-out part, each of its own."""
    config = DataConfig(path="emoji32", size=16, where={"style": ["noto"]})
    from attndiff.folder.shipped import bundled_data

    config.path = str(bundled_data("emoji32"))
    return open_reference(config, unconditional_pipeline())


def test_copies_are_found_and_held_out_images_are_none(emoji):
    pool = training_pool(emoji)
    copies = near_copies(Subset(emoji.train, range(7, 27)).tensor(), emoji, pool)
    assert copies.share == 1 and copies.indices.tolist() == list(range(7, 27))
    held_out = near_copies(Subset(emoji.test, range(len(emoji.test))).tensor(), emoji, pool)
    assert held_out.share == held_out.floor == pytest.approx(0.05, abs=0.015)
    assert held_out.to_json()["training_images"] == len(emoji.train)


def test_of_two_halves_both_are_searched(emoji):
    halves = Reference("x", Subset(emoji.train, range(60)), Subset(emoji.train, range(60, 120)), True)
    pool = training_pool(halves)
    found = near_copies(halves.test.tensor(), halves, pool)
    assert len(pool) == 120 and found.share == 1
    assert found.floor == pytest.approx(0.05, abs=0.02) and found.threshold > 0


# The command


def test_evaluate_reports_every_number_with_its_floor(place, tmp_path):
    arguments = ["evaluate", place / "class", "--data", place / "parts", "--json", tmp_path / "new/out.json"]
    result = attndiff(*arguments, "--steps", 1, "--guidance", 1, "--seed", 3, "--pictures", tmp_path / "pictures")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "new/out.json").read_text())
    gains = {"class_gain", "class_gain_over_other_classes"}
    others = {"own_class", "extractor_accuracy", "near_copies", "held_out_error_ratio"}
    assert set(report) == METRICS | gains | others
    for name, entry in report.items():
        assert isinstance(entry["value"], float) and isinstance(entry["floor"], float), name
        assert entry["n"] > 0 and entry["extractor"] and entry["reference"], name
        assert (entry["steps"], entry["guidance"], entry["seed"]) == (1, 1.0, 3)
        assert name in result.out
    assert all(report[name]["n"] == 130 for name in METRICS)
    assert all(report[name]["extractor"].startswith("attndiff-classifier:classes") for name in METRICS)
    assert all(set(report[name]["controls"]) == set(CONTROLS) for name in METRICS)
    own = report["own_class"]
    assert own["judges"] and own["floor"] > 0.9 and own["controls"]["other_classes"] < 0.1 < own["chance"]
    assert own["interval"][0] <= own["value"] <= own["interval"][1] < own["floor"]
    # An untrained model draws noise, and the classifier sees that it does.
    assert report["frechet_distance"]["value"] > 3 * report["frechet_distance"]["floor"]
    assert report["coverage"]["value"] < report["coverage"]["floor"]
    assert report["near_copies"]["value"] == 0
    ratio = report["held_out_error_ratio"]
    assert len(ratio["noise_over_signal"]) == len(ratio["training"]) == len(ratio["held_out"]) == 8
    gain = report["class_gain"]
    assert gain["noise_over_signal"] == [2, 4, 8, 16] and gain["n"] == gain["training"]["n"] == 130
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    assert gain["by_heart"] == pytest.approx(gain["floor"] - gain["value"])
    for picture in ("samples.png", "neighbours.png", "error_by_noise.png"):
        assert Image.open(tmp_path / "pictures" / picture).width > 300


@pytest.mark.parametrize(("model", "task"), [("text", "captions"), ("none", "classes")])
def test_evaluate_twice_gives_the_same(place, tmp_path, model, task):
    """Data without a held-out part; the text model's is given without classes."""
    data = place / "whole"
    if task == "captions":
        data = tmp_path / "flat"
        data.mkdir()
        for path in [*(place / "whole").rglob("*.png"), *(place / "whole").rglob("*.txt")]:
            (data / path.name).write_bytes(path.read_bytes())
    numbers = []
    for name in ("one.json", "two.json"):
        result = attndiff("evaluate", place / model, "--data", data, "--json", tmp_path / name, "--steps", 1)
        assert result.code == 0, result.err
        numbers.append(json.loads((tmp_path / name).read_text()))
    assert "halved" in result.out
    assert numbers[0] == numbers[1]
    assert numbers[0]["recall"]["n"] == COUNT // 2
    assert f":{task}" in numbers[0]["recall"]["extractor"]
    if model == "text":  # four captions are classes; the judge is the extractor
        assert next(iter(numbers[0])) == "own_caption_first" and numbers[0]["own_caption_first"]["among"] == 4
    assert numbers[0]["near_copies"]["n"] == (100 if model == "text" else COUNT // 2)
    assert not {"held_out_error_ratio", "caption_gain"} & set(numbers[0])


def test_kinds_of_held_out_images_are_told_apart(place, tmp_path):
    arguments = ["evaluate", place / "text", "--data", place / "parts", "--json", tmp_path / "out.json", "--steps", 1]
    result = attndiff(*arguments, "--by", "label", "--within", "label")
    assert result.code == 0, result.err
    report = json.loads((tmp_path / "out.json").read_text())
    for name in ("own_caption_first", "caption_gain", "caption_gain_over_other_captions"):
        for kind in ("a", "b"):
            assert report[f"{name}_of_{kind}"]["n"] == 65 and f"{name}_of_{kind}" in result.out
            assert report[f"{name}_of_{kind}"]["value"] != report[name]["value"]
    assert (report["caption_gain"]["by"], report["caption_gain"]["within"]) == ("label", "label")
    assert report["caption_gain"]["training"] == report["caption_gain_of_a"]["training"]


MISTAKES = {
    # What is wrong: (arguments, words the sentence has to have)
    "no data": (["{root}/text"], ["--data"]),
    "absent model": (["{root}/nowhere", "--data", "{root}/whole"], ["nowhere"]),
    "absent data": (["{root}/text", "--data", "{root}/nowhere"], ["nowhere"]),
    "too few images": (["{root}/none", "--data", "{root}/few"], ["20 images", "128 features", "129"]),
    "n too small": (["{root}/none", "--data", "{root}/whole", "--n", "20"], ["--n", "20 images", "129"]),
    "n of no images": (["{root}/none", "--data", "{root}/whole", "--n", "0"], ["--n 0"]),
    "n beyond the data": (["{root}/none", "--data", "{root}/whole", "--n", "500"], ["--n 500", "132"]),
    "too few for Inception": (
        ["{root}/none", "--data", "{root}/whole", "--extractor", "inception"],
        ["132 images", "2049"],
    ),
    "unknown extractor": (["{root}/none", "--data", "{root}/whole", "--extractor", "dino"], ["dino", "classifier"]),
    "extractor that is no model": (
        ["{root}/none", "--data", "{root}/whole", "--extractor", "{root}/few"],
        ["--extractor", "few"],
    ),
    "other channels than the model": (["{root}/none", "channels=L", "--data", "{root}/whole"], ["channels=L", "3"]),
    "other size than the model": (["{root}/none", "size=32", "--data", "{root}/whole"], ["size=32", "16"]),
    "text model without captions": (["{root}/text", "--data", "{root}/silent"], ["caption", "caption_column"]),
    "class model without its classes": (["{root}/class", "--data", "emoji32"], ["a, b", "label_column"]),
    "unknown setting": (["{root}/none", "sise=16", "--data", "{root}/whole"], ["sise", "size"]),
    "kinds by no column": (["{root}/text", "--data", "{root}/parts", "--by", "stile"], ["--by stile", "label"]),
    "captions within no column": (["{root}/text", "--data", "{root}/parts", "--within", "x"], ["--within x", "label"]),
    "captions within themselves": (
        ["{root}/text", "--data", "{root}/parts", "--within", "text"],
        ["--within text", "no two different captions"],
    ),
    "kinds where nothing is told": (["{root}/none", "--data", "{root}/parts", "--by", "label"], ["--by label"]),
    "zero steps": (["{root}/none", "--data", "{root}/whole", "--steps", "0"], ["num_inference_steps"]),
    "negative seed": (["{root}/none", "--data", "{root}/whole", "--seed", "-1"], ["seed"]),
    "numbers into a folder": (["{root}/none", "--data", "{root}/whole", "--json", "{root}/few"], ["--json", "few"]),
    "numbers inside a file": (
        ["{root}/none", "--data", "{root}/whole", "--json", "{root}/notes.txt/x.json"],
        ["notes.txt"],
    ),
    "pictures in a file": (["{root}/none", "--data", "{root}/whole", "--pictures", "{root}/notes.txt"], ["notes.txt"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(place, mistake, monkeypatch):
    monkeypatch.setattr("attndiff.apps.evaluate.sample_pixels", lambda *_, **__: pytest.fail("sampled before checking"))
    arguments, words = MISTAKES[mistake]
    result = attndiff("evaluate", *[argument.replace("{root}", str(place)) for argument in arguments])
    assert result.code == 2
    assert result.err.startswith("error: ") and result.err.count("\n") == 1 and len(result.err) < 500, result.err
    assert all(word in result.err for word in words), result.err


# In the training loop


def run_settings(place, out, **log) -> dict:
    return {
        "out": str(out),
        "data": {"path": str(place / "parts"), "size": 16, "label_column": "label"},
        "condition": {"kind": "class"},
        "model": {"preset": "tiny"},
        "optim": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32"},
        "log": {"every": 1, "tracker": None, "evaluate_every": 1, **log},
    }


def entries(out) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def run(place, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    Trainer(make_config(run_settings(place, out))).run()
    return out


def test_a_run_logs_distances_at_intervals(run):
    found = [entry for entry in entries(run) if "distances" in entry]
    assert [entry["step"] for entry in found] == [1, 2]
    for entry in found:
        assert set(entry["distances"]) == {"weights", "frechet_distance", "kernel_distance"}
        assert entry["distances"]["weights"] == "ema_0.100"
        for metric in ("frechet_distance", "kernel_distance"):
            assert {"value", "n", "extractor", "floor", "controls", "judges"} <= set(entry["distances"][metric])
            assert entry["distances"][metric]["n"] == 130
    assert found[0]["distances"]["frechet_distance"]["value"] != found[1]["distances"]["frechet_distance"]["value"]
    assert (run / "loss_curve.png").is_file() and (run / "pipeline/model_index.json").is_file()


def test_measuring_does_not_change_what_is_learned(place, run, tmp_path):
    Trainer(make_config(run_settings(place, tmp_path / "plain", evaluate_every=None))).run()
    with_, without = ([e["loss"] for e in entries(out) if "loss" in e] for out in (run, tmp_path / "plain"))
    assert with_ == without


def test_processes_share_the_drawing(place, tmp_path):
    """Three processes of which each knows its own share only, and what gathering brings together."""
    trainer = Trainer(make_config(run_settings(place, tmp_path / "run")))
    alone = trainer.distances._sample()
    shares = []

    def play(rank: int, gather) -> torch.Tensor:
        trainer.distances.accelerator = SimpleNamespace(
            process_index=rank, num_processes=3, device=torch.device("cpu"), gather=gather
        )
        return trainer.distances._sample()

    for rank in range(3):
        play(rank, lambda drawn: shares.append(drawn) or torch.cat([drawn] * 3))
    assert [len(share) for share in shares] == [44, 44, 44]  # of 130, two drawn twice
    together = play(0, lambda _: torch.cat(shares))
    assert together.shape == alone.shape
    assert torch.allclose(together, alone, atol=2 / 255 + 1e-6)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Images that are all alike, of which nothing can be learned."""
    folder = tmp_path_factory.mktemp("alike")
    for part in ("train", "validation"):
        (folder / part).mkdir()
        for i in range(130):
            Image.new("RGB", (16, 16), "red").save(folder / part / f"{i}.png")
    return folder


def test_where_nothing_can_be_learned_the_rest_is_measured_and_the_reason_said(place, alike, tmp_path):
    out = tmp_path / "out.json"
    result = attndiff("evaluate", place / "none", "--data", alike, "--json", out, "--steps", 1)
    assert result.code == 0, result.err
    report = json.loads(out.read_text())
    assert set(report) == {"extractor_accuracy", "near_copies", "held_out_error_ratio"}
    assert "learned nothing" in report["extractor_accuracy"]["refused"]
    assert "learned nothing" in result.out.splitlines()[-2]


def test_a_run_goes_on_where_distances_cannot_be_measured(place, alike, tmp_path):
    settings = run_settings(place, tmp_path / "run")
    settings |= {"data": {"path": str(alike), "size": 16}, "condition": {"kind": "none"}}
    Trainer(make_config(settings)).run()
    found = [entry["distances"] for entry in entries(tmp_path / "run") if "distances" in entry]
    assert len(found) == 2 and all("learned nothing" in one["refused"] for one in found)
    assert (tmp_path / "run/pipeline/model_index.json").is_file()


@pytest.mark.slow
def test_two_processes_measure_as_one(place, run, tmp_path):
    config = tmp_path / "config.json"
    config.write_text(json.dumps(run_settings(place, tmp_path / "run")))
    done = subprocess.run([*TORCHRUN, TRAIN, str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    ours, theirs = ([e["distances"] for e in entries(out) if "distances" in e] for out in (tmp_path / "run", run))
    assert len(ours) == len(theirs) == 2
    for mine, other in zip(ours, theirs, strict=True):
        assert mine["frechet_distance"]["value"] == pytest.approx(other["frechet_distance"]["value"], rel=0.01)
        assert mine["frechet_distance"]["floor"] == pytest.approx(other["frechet_distance"]["floor"], rel=1e-3)


def test_a_run_with_too_few_held_out_images_is_refused_at_once(place, tmp_path):
    values = run_settings(place, tmp_path / "run")
    values["data"] |= {"path": str(place / "few"), "validation": 0.3}
    with pytest.raises(UserError, match=r"log\.evaluate_every needs at least 129 held-out"):
        Trainer(make_config(values))
    assert not (tmp_path / "run").exists()


def test_a_subset_is_a_set(place):
    images = ImageSet(DataConfig(path=str(place / "few"), size=16, label_column="label", caption_column="text"))
    some = Subset(images, [5, 2])
    assert len(some) == 2 and some[1]["caption"] == images[2]["caption"]
    assert some.labels().tolist() == [images[5]["label"], images[2]["label"]]
    assert torch.equal(some.tensor()[0], torch.from_numpy(images[5]["image"]))
    assert some.tensor(side=4).shape == (2, 3, 4, 4)


def test_a_run_on_latents_is_measured_in_pixels(place, tmp_path):
    make_vae().save_pretrained(tmp_path / "vae")
    values = run_settings(place, tmp_path / "run")
    values["model"]["vae"] = str(tmp_path / "vae")
    trainer = Trainer(make_config(values))
    assert trainer.train_set[(0, 0)]["images"].shape == (4, 8, 8)
    assert trainer.distances.test.tensor().shape == (130, 3, 16, 16)


def test_shapes_and_distances_do_not_go_together(place, tmp_path):
    values = run_settings(place, tmp_path / "run")
    values["data"] |= {"max_aspect": 2.0, "bucket_multiple": 4}
    with pytest.raises(UserError, match=r"log\.evaluate_every does not go together with data\.max_aspect"):
        Trainer(make_config(values))
