"""Runs of the real trainer on a handful of real images, with the tiny preset."""

import json
import re
import shutil

import pytest
import torch
from commands import make_images
from forked import forked
from runs import ACTIVITIES, close, losses, settings, train, weights
from safetensors.torch import load_file

from attndiff.errors import UserError
from attndiff.folder.open import load
from attndiff.training.config import make_config
from attndiff.training.export import export_checkpoint
from attndiff.training.run.loop import Trainer


@pytest.fixture(scope="module")
def text_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "text"
    train(out, log__snapshot_every=1)
    return out


def test_a_run_leaves_everything_a_user_needs(text_run):
    for name in (
        "config.yaml",
        "log.jsonl",
        "loss_curve.png",
        "samples/step_00000006.png",
        "pipeline/model_index.json",
    ):
        assert (text_run / name).stat().st_size > 0, name
    entries = [json.loads(line) for line in (text_run / "log.jsonl").read_text().splitlines()]
    validation = [entry for entry in entries if "raw" in entry][-1]
    assert set(validation) == {"step", "images", "raw", "ema_0.050", "ema_0.100"}
    assert len(validation["raw"]["per_level"]) == 8
    assert {"images_per_second", "tflops", "lr"} <= set(entries[0])
    saved = {entry["step"]: entry["checkpoint_seconds"] for entry in entries if "checkpoint_seconds" in entry}
    assert list(saved) == [3, 6] and min(saved.values()) > 0


def test_a_stopped_run_ends_bit_identical(text_run, tmp_path):
    """Stop after step 3 by dropping what came later, as a kill would, and run again."""
    out = tmp_path / "stopped"
    shutil.copytree(text_run, out)
    shutil.rmtree(out / "checkpoints" / "step_00000006")
    values = settings(out)
    stored = json.loads((out / "config.json").read_text()) | {"out": str(out)}
    (out / "config.json").write_text(json.dumps(stored))
    (out / "log.jsonl").write_text("")
    Trainer(make_config(values)).run()
    assert losses(out) == losses(text_run)[3:]
    mine, theirs = weights(out), weights(text_run)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_run_goes_on_from_the_checkpoint_of_any_step(tmp_path):
    """A run that saves at each step, cut where it had none yet and after every one; an epoch ends inside the third."""
    data = {"path": str(make_images(tmp_path / "images")), "size": 16, "caption_column": "text"}
    changes = {"data__": data, "optim__steps": 4, "optim__batch_size": 4, "optim__micro_batch": 2}
    changes |= {"log__checkpoint_every": 1, "log__keep": 9, "log__prompts": ["red apple"]}
    whole = tmp_path / "whole"
    train(whole, **changes)
    assert len(losses(whole)) == 4
    for step in range(4):
        cut = shutil.copytree(whole, tmp_path / f"cut_{step}")
        stored = json.loads((cut / "config.json").read_text()) | {"out": str(cut)}
        (cut / "config.json").write_text(json.dumps(stored))
        for checkpoint in sorted((cut / "checkpoints").glob("step_*"))[step:]:
            shutil.rmtree(checkpoint)
        (cut / "log.jsonl").write_text("")
        train(cut, **changes)
        assert losses(cut) == losses(whole)[step:]
        mine, theirs = weights(cut), weights(whole)
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("section", "dropped"),
    [("model__unet", "dropout"), ("model__encoder", "dropout"), ("model__encoder", "token_dropout")],
)
def test_dropout_inside_the_networks_and_accumulation_resume_bit_identical(tmp_path, section, dropped):
    changes = {section: {dropped: 0.3}, "optim__micro_batch": 4, "log__validate_every": 6}
    changes |= {"condition__grounding_steps": 0}  # which would have the encoder stay as it is, without dropout
    train(tmp_path / "whole", **changes)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000006")
    log = (tmp_path / "cut/log.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut/log.jsonl").write_text("".join(log[:3]) + log[3][:20])  # killed in the middle of a line
    torch.rand(7)  # another process would have another state of the global generator
    train(tmp_path / "cut", **changes)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    mine, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[key], theirs[key]) for key in theirs)
    train(tmp_path / "none", **changes | {section: {dropped: 0.0}})
    assert losses(tmp_path / "none")[1:] != losses(tmp_path / "whole")[1:]


def test_workers_and_micro_batches_do_not_change_what_is_learned(text_run, tmp_path):
    train(tmp_path / "run", optim__workers=2, optim__micro_batch=4)
    ours = [float.fromhex(x) for x in losses(tmp_path / "run")]
    theirs = [float.fromhex(x) for x in losses(text_run)]
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_two_processes_have_the_losses_of_one(text_run, tmp_path):
    assert close(forked(settings(tmp_path / "run")), text_run)


def test_gradient_checkpointing_changes_nothing(text_run, tmp_path):
    train(tmp_path / "run", optim__gradient_checkpointing=True)
    assert losses(tmp_path / "run") == losses(text_run)


def test_class_labels_and_no_condition(tmp_path):
    train(tmp_path / "class", data__=ACTIVITIES, condition__={"kind": "class"}, log__prompts=[])
    index = json.loads((tmp_path / "class" / "pipeline" / "model_index.json").read_text())
    assert index["data"]["class_names"] == ["fluent 3d", "fluent flat", "noto", "twemoji"]
    train(tmp_path / "none", condition__={"kind": "none"}, log__prompts=[])
    assert not (tmp_path / "none" / "pipeline" / "condition_encoder").exists()


def test_init_from_starts_where_the_earlier_model_ended(text_run, tmp_path):
    train(tmp_path / "next", model__init_from=str(text_run / "pipeline"))
    first = float.fromhex(losses(tmp_path / "next")[0])
    assert first < float.fromhex(losses(text_run)[0])


def test_init_from_lists_what_does_not_fit(text_run, tmp_path):
    changes = {"data__": ACTIVITIES, "condition__": {"kind": "class"}, "log__prompts": []}
    trainer = Trainer(make_config(settings(tmp_path / "x", model__init_from=str(text_run / "pipeline"), **changes)))
    assert any("class_embedding" in note for note in trainer.parts.notes)
    assert not any("unet." in note for note in trainer.parts.notes)


def test_an_adapter_moves_only_its_own_weights(text_run, tmp_path):
    train(tmp_path / "lora", model__init_from=str(text_run / "pipeline"), model__lora_rank=2, log__validate_every=6)
    before = load_file(next((text_run / "pipeline" / "unet").glob("*model.safetensors")))
    state = weights(tmp_path / "lora")
    assert any("lora_A" in key for key in state)
    frozen = [key for key in before if "weights/unet." + key in state]
    assert frozen and all(torch.equal(before[key], state["weights/unet." + key]) for key in frozen)


def test_a_pipeline_trained_by_an_adapter_opens_like_any_other(text_run, tmp_path):
    trainer = Trainer(
        make_config(settings(tmp_path / "lora", model__init_from=str(text_run / "pipeline"), model__lora_rank=2))
    )
    folder = trainer.run()
    opened = load(folder)
    x, level = torch.randn(1, 3, 16, 16), torch.zeros(1)
    tokens = torch.randn(1, 4, opened.unet.config.cross_attention_dim)
    base = load(text_run / "pipeline").unet
    plain = base(x, level, tokens).sample
    base.load_lora_adapter(folder / "adapter", prefix=None, weight_name="pytorch_lora_weights.safetensors")
    adapted = base(x, level, tokens).sample
    torch.testing.assert_close(opened.unet(x, level, tokens).sample, adapted)
    assert not torch.allclose(plain, adapted)


def test_another_config_in_the_same_folder_is_refused(text_run):
    with pytest.raises(UserError, match=r"optim.lr: 0.002 then, 0.1 now"):
        train(text_run, optim__lr=0.1)


def test_a_setting_that_the_stored_config_does_not_know_is_compared(text_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(text_run, run)
    stored = json.loads((run / "config.json").read_text())
    del stored["optim"]["weight_decay"]
    (run / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"optim\.weight_decay: 0\.0 then, 0\.1 now"):
        train(run, optim__weight_decay=0.1)
    with pytest.raises(UserError, match=r"objective\.name: 'flow' then, 'v' now"):
        train(run, objective__name="v")


def test_a_non_finite_loss_stops_with_its_place_named(tmp_path):
    trainer = Trainer(make_config(settings(tmp_path / "run")))
    with torch.no_grad():
        trainer.parts.model.unet.stem.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(
        UserError, match=r"stopped: step 6: loss nan, .*8 of 8 samples not finite.*output in unet\.stem.*in a row: 6"
    ):
        trainer.run()
    entries = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "skipped" in entry] == [1, 2, 3, 4, 5, 6]
    assert not (tmp_path / "run/checkpoints").exists()


def test_a_gradient_alone_that_is_not_finite_is_named(tmp_path):
    trainer = Trainer(make_config(settings(tmp_path / "run", optim__max_skips=0)))
    trainer.parts.model.unet.stem.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(
        UserError,
        match=r"0 of 8 samples not finite.*finite but for gradients, first in condition_encoder\.norm_out\.weight",
    ):
        trainer.run()


@pytest.mark.parametrize(
    ("factor", "changes", "reason"),
    [
        (float("nan"), {}, "1 of 8 samples not finite; the worst: {} (.*first non-finite output in the batch's images"),
        (1e6, {"optim__skip_above": 1e3}, "0 of 8 samples not finite; the worst: {} (.*; above 1000"),
    ],
    ids=["not finite", "too large"],
)
def test_a_poisoned_sample_costs_its_step_and_nothing_else(tmp_path, factor, changes, reason):
    """The weights, moments and averages of the step before go on, and a resumed run skips alike."""

    def poisoned(out):
        trainer = Trainer(make_config(settings(out, **changes)))
        inner = trainer.train_set.sample

        def sample(row, visit, sample_id):
            drawn = inner(row, visit, sample_id)
            return {**drawn, "images": drawn["images"] * factor} if (sample_id, visit) == bad else drawn

        trainer.train_set.sample = sample
        return trainer

    bad = next(iter(Trainer(make_config(settings(tmp_path / "look")))._batches(4)))["ids"][0].item(), 0
    trainer = poisoned(tmp_path / "whole")
    before = {}
    inner = trainer._skip

    def skip(state, *arguments):
        before.update({name: p.detach().clone() for name, p in trainer.parts.model.named_parameters()})
        inner(state, *arguments)
        assert all(torch.equal(before[name], p) for name, p in trainer.parts.model.named_parameters())
        assert all(p.grad is None for p in trainer.parts.model.parameters())

    trainer._skip = skip
    trainer.run()
    entries = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    (skipped,) = [entry for entry in entries if "skipped" in entry]
    assert before and skipped["step"] == 5 and re.search(reason.replace("(", r"\(").format(bad[0]), skipped["skipped"])
    assert all(entry["gradient_norm"] < 1e3 for entry in entries if "loss" in entry)
    assert [entry["step"] for entry in entries if "loss" in entry] == [1, 2, 3, 4, 6]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/step_00000006")
    poisoned(tmp_path / "cut").run()
    mine, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(mine[key], theirs[key]) and mine[key].isfinite().all() for key in theirs)


HOSTILE_CAPTIONS = {
    "empty": "",
    "blank": " \t\n",
    "100 kB": "word " * 20_000,
    "no spaces": "x" * 100_000,
    "emoji": "\U0001f600\U0001f469\u200d\U0001f467" * 20,
    "right to left": "\u202e\u05e9\u05dc\u05d5\u05dd",
    "NUL": "a\0b",
    "composed": "caf\u00e9",
    "decomposed": "cafe\u0301",
    "byte order mark": "\ufeffcat",
    "control characters": "\x1b[31mcat\x7f",
    "special tokens": "<pad> <s> <pad>",
}


def test_captions_of_every_kind_are_learned_from(tmp_path):
    """What a caption file or a column may hold; a caption without words is none, and the two forms of é are one."""
    folder = make_images(tmp_path / "images", captions=False, count=len(HOSTILE_CAPTIONS))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    rows = [{"file_name": name, "text": text} for name, text in zip(names, HOSTILE_CAPTIONS.values(), strict=True)]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = {"path": str(folder), "size": 16, "caption_column": "text"}
    trainer = Trainer(make_config(settings(tmp_path / "run", data__=data)))
    sets = trainer.parts.images, trainer.parts.validation
    captions = [images[i]["caption"][0] for images in sets for i in range(len(images))]
    assert captions.count("") == 2 and " \t\n" not in captions
    both_forms = [HOSTILE_CAPTIONS[form] for form in ("composed", "decomposed")]
    first, second = trainer.parts.conditioning.tokens(both_forms)["input_ids"]
    assert torch.equal(first, second)
    trainer.run()
    assert len(losses(tmp_path / "run")) == 6


@pytest.mark.parametrize("count", [1, 3])
def test_fewer_images_than_a_batch_has(tmp_path, count):
    data = {"path": str(make_images(tmp_path / "images", count=count)), "size": 16, "caption_column": "text"}
    trainer = Trainer(make_config(settings(tmp_path / "run", data__=data)))
    seen = next(iter(trainer._batches(0)))["ids"].tolist()
    assert len(seen) == 8 and set(seen) == set(range(len(trainer.train_set)))
    trainer.run()
    assert len(losses(tmp_path / "run")) == 6


def test_export_of_an_unfinished_run(text_run, tmp_path):
    folder = export_checkpoint(text_run, tmp_path / "exported")
    assert (folder / "model_index.json").is_file()


def test_an_average_of_another_width_is_rebuilt(text_run, tmp_path):
    folder = export_checkpoint(text_run, tmp_path / "rebuilt", sigma_rel=0.1)
    rebuilt = load_file(next((folder / "unet").glob("*.safetensors")))
    kept = {
        k.removeprefix("ema_0.100/unet."): v for k, v in weights(text_run).items() if k.startswith("ema_0.100/unet.")
    }
    assert all(torch.allclose(rebuilt[key], kept[key], atol=1e-4) for key in kept)


def test_timing_a_step_changes_nothing(tmp_path):
    trainer = Trainer(make_config(settings(tmp_path / "run", optim__weight_decay=0.1)))
    before = {name: p.clone() for name, p in trainer.parts.model.named_parameters()}
    plan = trainer.plan()
    assert plan.optimizer_seconds > 0 and plan.step_seconds > plan.pass_seconds > 0
    for name, parameter in trainer.parts.model.named_parameters():
        assert torch.equal(parameter, before[name]) and parameter.grad is None, name
