"""Campaigns of equal time: how long a run is, what is kept of it, and what is chosen of arms that were measured."""

import json
import math
from functools import partial

import attention_choice
import attention_report
import equal_time
import numpy as np
import pandas as pd
import pytest
import torch
import words
from equal_time import Campaign, Trial
from of_words import report as words_report
from of_words.aligned import AlignedModel
from of_words.emoji import rows_of_emoji
from of_words.vectors import save_word_vectors
from PIL import Image
from transformers import AutoTokenizer

from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.level import Level
from attndiff.training.build import Parts, build, build_without_data
from attndiff.training.config import TrainConfig, load_config
from attndiff.training.parts.grounding import BATCH, GroundingLoop

WORDS = {
    "a red one": (220, 30, 30),
    "a blue one": (30, 30, 220),
    "a green one": (30, 200, 30),
    "a grey one": (128,) * 3,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """48 images of one colour that their captions name."""
    path = tmp_path_factory.mktemp("coloured")
    rng = np.random.default_rng(0)
    for i in range(48):
        caption, colour = [*WORDS.items()][i % len(WORDS)]
        pixels = np.clip(rng.normal(colour, 12, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i:02}.png")
        (path / f"{i:02}.txt").write_text(caption, encoding="utf-8")
    return path


def config_of(folder, *settings) -> TrainConfig:
    fixed = [f"data.path={folder}", "data.size=16", "data.caption_column=text", "data.validation=0.25"]
    own = ["data.where=null", "data.exclude=null", "model.preset=tiny", "optim.batch_size=8", "optim.compile=false"]
    return load_config("emoji-xs", [*fixed, *own, "optim.steps=1000", *settings])


class Made:
    """Makes trials on the folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, trial: Trial, opened: Parts | None) -> tuple[TrainConfig, Parts]:
        config = config_of(self.folder, f"seed={trial.seed}", f"optim.lr={trial.lr}")
        parts = build(config) if opened is None else build_without_data(config, opened.learned)
        if opened is not None:
            parts.images, parts.validation = opened.images, opened.validation
        return config, parts


def test_a_campaign_trains_what_is_missing_and_keeps_what_it_has(folder, tmp_path, monkeypatch):
    out = tmp_path / "found.json"
    trials = [Trial("one", "colours", 4e-3, 0, 0.05), Trial("other", "colours", 4e-3, 0, 0.05)]
    campaign = Campaign(out, Made(folder), attention_choice.measure, workers=1, rounds=4)
    campaign.time_steps(trials)
    seconds = campaign.found["step_seconds"]
    assert set(seconds) == {"one | colours", "other | colours"} and all(value > 0 for value in seconds.values())
    campaign.found["runs"][trials[1].key] = {"error": 7.0}
    first, second = campaign.run(trials)
    assert second == {"error": 7.0}, "what is known is not run again"
    assert first["steps"] == round(3 / seconds["one | colours"]) and 0 < first["error"] < 1 and first["memory"] > 0
    again = Campaign(out, None, None)  # makes nothing
    assert again.run(trials) == [first, second] and again.found == json.loads(out.read_text(encoding="utf-8"))


def test_an_arm_that_comes_later_is_timed_beside_an_earlier_one_on_a_machine_of_another_speed(tmp_path, monkeypatch):
    first, second, third = (Trial(name, "colours", 4e-3, 0, 1) for name in ("first", "second", "third"))
    campaign = Campaign(tmp_path / "found.json", None, None)
    campaign.found["step_seconds"] = {"first | colours": 0.5, "second | colours": 0.7}
    asked = []

    def slower(trials, make, rounds):
        asked.extend(trials)
        return {"first | colours": 1.0, "third | colours": 1.6}

    monkeypatch.setattr(equal_time, "step_seconds", slower)
    campaign.time_steps([first, second, third])
    assert asked == [first, third]
    known = {"first | colours": 0.5, "second | colours": 0.7, "third | colours": pytest.approx(0.8)}
    assert Campaign(tmp_path / "found.json", None, None).found["step_seconds"] == known
    campaign.time_steps([third, first])
    assert len(asked) == 2, "what is known is not measured again"


def test_a_campaign_goes_on_from_its_report(tmp_path):
    seconds = {f"{arm} | {data}": 0.5 for arm in ("as the preset", "16: windows") for data in ("icons", "emoji")}
    hardware = {"machine": "a machine", "torch": "torch", "date": "today", "command": "command"}
    found = {"hardware": hardware, "step_seconds": seconds, "runs": attention_runs()}
    out = tmp_path / "attention.json"
    write = partial(
        attention_report.write_report,
        command="measure",
        data=attention_choice.DATA,
        batches=attention_choice.BATCHES,
    )
    trials = [Trial.of_key(key) for key in found["runs"]]
    first = Campaign(out, None, None, report=write)  # makes nothing
    first.found = found | {"runs": {}}
    first.write()
    for key, run in found["runs"].items():  # as they come in
        first.found["runs"][key] = run
        first.write()
    again = Campaign(out, None, None)
    again.time_steps(trials)
    assert again.run(trials) == [*found["runs"].values()]
    assert again.found["chosen"] == {"32 px": "16: windows"} and out.with_suffix(".md").is_file()


def test_equal_runs_give_equal_errors_and_a_loss_that_is_not_finite_ends_a_run(folder):
    trial = Trial("one", "colours", 4e-3, 0, 1)
    threads = torch.get_num_threads()
    try:
        same = [equal_time.train(trial, 6, Made(folder), attention_choice.measure)["error"] for _ in range(2)]
        lost = equal_time.train(Trial("one", "colours", 1e30, 0, 1), 6, Made(folder), attention_choice.measure)
    finally:
        torch.set_num_threads(threads)
    assert same[0] == same[1]
    assert lost == {"error": math.inf, "steps": 6}


def test_a_trial_is_read_back_from_its_name():
    trial = Trial("16: windows, gated", "icons", 4e-3, 1, 7.5)
    assert Trial.of_key(trial.key) == trial


# Attention


@pytest.mark.parametrize("size", attention_choice.SIZES)
def test_every_arm_is_a_network_that_differs_from_the_preset_in_what_it_says(size):
    arms = attention_choice.SIZES[size]
    levels = {name: attention_choice.levels_of(changes) for name, changes in arms.items()}
    for of_arm in levels.values():
        assert [Level(**level).width for level in of_arm] == [96, 256, 288]
    assert len({json.dumps(of_arm) for of_arm in levels.values()}) == len(arms)


def measured(errors: list[float], minutes: float = 20) -> dict:
    return {"errors": errors, "spread": max(errors) - min(errors) if len(errors) > 1 else None, "minutes": minutes}


@pytest.mark.parametrize(
    ("errors", "beats"),
    [
        ({"icons": [0.08, 0.081], "emoji": [0.05, 0.051]}, True),
        ({"icons": [0.08, 0.091], "emoji": [0.05, 0.051]}, False),  # within the seeds
        ({"icons": [0.08, 0.081], "emoji": [0.07, 0.071]}, False),  # worse on the other data
        ({"icons": [0.08, 0.081]}, False),  # not measured there
        ({"icons": [0.08], "emoji": [0.05]}, False),  # one seed
    ],
)
def test_an_arm_wins_by_more_than_the_seeds_differ_on_all_data(errors, beats):
    preset = {"icons": measured([0.09, 0.0905]), "emoji": measured([0.06, 0.0605])}
    ours = {name: measured(of) for name, of in errors.items()}
    assert attention_report.beats(ours, preset) is beats


def attention_runs() -> dict:
    """Runs of two arms: a short one each, and long ones at three rates and on a second seed."""
    runs = {}
    for arm, better in (("as the preset", 0.0), ("16: windows", 0.01)):
        runs[Trial(arm, "icons", 4e-3, 0, 8).key] = {"error": 0.12 - better}
        for data, base in (("icons", 0.09), ("emoji", 0.06)):
            for lr, worse in ((2e-3, 0.002), (4e-3, 0.0), (8e-3, 0.004)):
                runs[Trial(arm, data, lr, 0, 20).key] = {"error": base - better + worse}
            runs[Trial(arm, data, 4e-3, 1, 20).key] = {"error": base - better + 0.001}
    return {key: {**run, "memory": 2**20, "steps": 9, "parameters": 5} for key, run in runs.items()}


def test_attention_is_reported_with_its_choice_a_page_and_a_picture(tmp_path):
    seconds = {f"{arm} | {data}": 0.5 for arm in ("as the preset", "16: windows") for data in ("icons", "emoji")}
    hardware = {"machine": "a machine", "torch": "torch", "date": "today", "command": "command"}
    found = {"hardware": hardware, "step_seconds": seconds, "runs": attention_runs()}
    out = tmp_path / "attention.json"
    attention_report.write_report(found, out, "measure", attention_choice.DATA, attention_choice.BATCHES)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["chosen"] == {"32 px": "16: windows"} and report["hardware"]["command"] == "measure"
    arm = report["arms"]["32 px: 16: windows"]
    assert arm["error"] == pytest.approx(0.0805) and arm["spread"] == pytest.approx(0.001)
    assert (arm["lr"], arm["images_per_second"], arm["screened"]) == (4e-3, 64, pytest.approx(0.11))
    page = out.with_suffix(".md").read_text(encoding="utf-8")
    assert (
        "| 16: windows | 0.1100 | 0.0800, 0.0810 (rate 0.004) |  | 0.0500, 0.0510 (rate 0.004) | 64.0 | 1 MB |" in page
    )
    assert Image.open(out.with_suffix(".png")).width > 400


# Words


def test_an_encoder_that_is_grounded_tells_captions_apart(folder):
    config = config_of(folder)
    parts = build(config)
    loop = GroundingLoop(parts.model.condition_encoder, parts.images, parts.conditioning, config.optim, 0)
    images = torch.stack([torch.from_numpy(row["image"]) for row in list(parts.images)[:BATCH]])
    tokens = parts.conditioning.tokens([*WORDS])
    own = torch.tensor([[*WORDS].index(row["caption"][0]) for row in parts.images])
    grounding = loop.run(60)
    with torch.no_grad():
        said = (grounding.image(images) @ grounding.condition(tokens).T).argmax(1)
    assert (said == own).float().mean() > 0.9, "chance is a quarter"
    assert isinstance(loop.grounding.encoder, ConditionEncoder)
    assert loop.grounding.encoder is parts.model.condition_encoder, "the run's own encoder has learned"


def test_an_aligned_head_draws_the_middle_towards_what_is_seen(folder):
    config = config_of(folder)
    parts = build(config)
    towards = torch.nn.functional.normalize(torch.randn(5, generator=torch.Generator().manual_seed(0)), dim=0)
    head = AlignedModel(parts.model, lambda images: towards.expand(len(images), -1), 5, weight=0.5)
    parts.model = head
    loop = equal_time.Loop(config, parts)
    batch = next(loop.batches)
    with torch.no_grad():
        plain = super(AlignedModel, head).forward(batch)
        before = (head(batch) - plain).mean()
    for _ in range(40):
        loop.step()
    with torch.no_grad():
        after = (head(batch) - super(AlignedModel, head).forward(batch)).mean()
    assert 0.2 < before < 1 and after < 0.1 * before


def test_word_vectors_are_opened_as_a_frozen_encoder(folder, tmp_path):
    package = tmp_path / "package" / "data"
    package.mkdir(parents=True)
    vectors = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    np.save(package / "glove_6B_50d_emb.npy", vectors)
    pd.DataFrame({"index": ["a", "red", "blue", "one"]}).to_parquet(package / "glove_6B_index.parquet")
    save_word_vectors(tmp_path / "package", tmp_path / "vectors")
    ids = AutoTokenizer.from_pretrained(tmp_path / "vectors")(["A red thing"])["input_ids"][0]
    assert ids == [2, 3, 1], "the first two are for padding and for unknown words"
    parts = build(config_of(folder, f"condition.pretrained={tmp_path / 'vectors'}"))
    encoder = parts.conditioning.text_encoder
    states = encoder(torch.tensor([ids])).last_hidden_state[0]
    normal = (vectors - vectors.mean(1, keepdims=True)) / vectors.std(1, keepdims=True)
    torch.testing.assert_close(states[:2], torch.from_numpy(normal[:2]), atol=1e-4, rtol=1e-4)
    assert not states[2].any() and not any(p.requires_grad for p in encoder.parameters())


def test_emoji_are_held_out_by_what_is_known_of_them(tmp_path):
    styles = ["noto", "twemoji", "fluent_3d", "openmoji", "openmoji_line"]
    rows = [(thing, style) for thing in ("cat", "dog") for style in styles] + [("rare cup", "noto")]
    write_rows(tmp_path / "data" / "train.parquet", rows)
    write_rows(tmp_path / "data" / "more_styles.parquet", [("cat", "blob"), ("new hat", "blob")])
    write_rows(tmp_path / "data" / "validation.parquet", [("new hat", "noto"), ("new hat", "openmoji_line")])
    rows_of_emoji(tmp_path / "data", tmp_path / "out", words.IMAGES["emoji"])
    train, held_out = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("train", "validation"))
    kinds = {kind: list(rows["caption"]) for kind, rows in held_out.groupby("held_out")}
    assert kinds["family"] == ["new hat, noto"]
    assert {caption.split(", ")[0] for caption in kinds["set"]} == {"cat", "dog"} and len(kinds["set"]) == 2
    assert len(train) == 10 - 2 and not set(train["caption"]) & set(held_out["caption"])
    assert not train["caption"].str.contains("line|new hat").any() and "cat, fluent 3d" in {
        *train["caption"],
        *kinds["set"],
    }


def test_few_emoji_are_those_of_some_styles_and_their_things_are_known_from_the_others(tmp_path):
    styles = ["noto", "fluent_3d", "fluent_flat", "openmoji"]
    rows = [(thing, style) for thing in ("cat", "dog") for style in styles] + [("rare cup", "noto")]
    write_rows(tmp_path / "data" / "train.parquet", rows)
    write_rows(tmp_path / "data" / "more_styles.parquet", [("cat", "blob")])
    write_rows(tmp_path / "data" / "validation.parquet", [("new hat", "noto"), ("new hat", "openmoji")])
    rows_of_emoji(tmp_path / "data", tmp_path / "out", words.IMAGES["few emoji"])
    train, held_out = (pd.read_parquet(tmp_path / "out" / f"{name}.parquet") for name in ("train", "validation"))
    assert set(train["style"]) | set(held_out["style"]) == {"noto", "fluent 3d", "fluent flat"}
    of_set = held_out[held_out["held_out"] == "set"]["caption"].str.split(", ").str[0]
    assert sorted(of_set) == ["cat", "dog"] and len(train) == 6 - 2 + 1
    assert list(held_out[held_out["held_out"] == "family"]["caption"]) == ["new hat, noto"]


def write_rows(path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    table = pd.DataFrame(rows, columns=["caption", "style"])
    table.assign(image=[b""] * len(rows), family=table["caption"]).to_parquet(path)


def words_runs(gain: float) -> dict:
    """Runs of today's at two lengths and of an arm that has three minutes of contrast before its 12."""
    runs = {}
    for seed in (0, 1):
        runs[Trial("today", "icons", 4e-3, seed, 15).key] = 0.03 + 0.001 * seed
        runs[Trial("today", "icons", 4e-3, seed, 30).key] = 0.05 + 0.001 * seed
        runs[Trial("grounded", "icons", 4e-3, seed, 12).key] = gain + 0.001 * seed
    shares = {"own_caption_set": 0.1, "own_caption_set_real": 0.5, "steps": 10}
    return {key: {**{of: {"value": value} for of in words_report.GAINS}, **shares} for key, value in runs.items()}


@pytest.mark.parametrize(
    ("gain", "settings", "chosen"),
    [(0.052, ["grounded"], "grounded"), (0.0505, ["grounded"], "today"), (0.052, [], "today")],
)
def test_what_gains_in_half_the_time_what_today_does_is_chosen_if_it_is_a_setting(gain, settings, chosen, tmp_path):
    hardware = {"machine": "a machine", "torch": "torch", "date": "today", "command": "command"}
    out = tmp_path / "words.json"
    before = {name: arm.contrast_minutes for name, arm in words.ARMS.items()}
    found = {"hardware": hardware, "runs": words_runs(gain)}
    for runs in ({}, found["runs"]):
        words_report.write_report(found | {"runs": runs}, out, "measure", words.IMAGES["icons"], before, settings)
    report = json.loads(out.read_text(encoding="utf-8"))
    assert report["chosen"] == chosen
    assert set(report["arms"]) == {"today, 15 min", "today, 30 min", "grounded, 15 min"}
    assert report["arms"]["grounded, 15 min"]["gain_set"] == pytest.approx(gain + 0.0005)
    assert "## 15 minutes" in out.with_suffix(".md").read_text(encoding="utf-8")
    assert out.with_suffix(".png").is_file()
