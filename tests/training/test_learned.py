"""What a run learned from its data is learned once: whatever becomes of the data, the model is what was trained."""

import json
import shutil
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from commands import attndiff, make_images, tree
from PIL import Image
from places import TESTS
from runs import losses

from attndiff.errors import UserError
from attndiff.folder.open import load
from attndiff.training.config import load_config, make_config
from attndiff.training.export import export_checkpoint
from attndiff.training.run import loop
from attndiff.training.run.loop import Trainer
from attndiff.training.state import learned as module
from attndiff.training.state import resume
from attndiff.training.state.learned import Learned, learned_digest, read_learned, write_learned

FORMAT_1 = TESTS / "fixtures/format_1"
NOTHING_CHANGES = ("tokenizer", "unet", "condition_encoder", "scheduler", "model_index.json")
COLUMNS = {"text": {"caption_column": "text"}, "class": {"label_column": "label"}}


def settings(data: Path, out: Path, kind: str = "text", **sections: dict) -> dict:
    values = {
        "out": str(out),
        "data": {"path": str(data), "size": 16, **COLUMNS[kind]},
        "condition": {"kind": kind, "vocab_size": 400, "max_length": 8},
        "model": {"preset": "tiny"},
        "optim": {"steps": 2, "batch_size": 4, "warmup": 1, "precision": "fp32", "ema": [0.1]},
        "log": {"every": 1, "checkpoint_every": 1, "snapshot_every": 1, "tracker": None},
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return values


def edit(data: Path) -> None:
    """Other words, other colours and another class for the images of a run."""
    for file in data.rglob("*.txt"):
        file.write_text(f"a walrus in a purple waistcoat, quite unlike {file.stem}")
    for file in data.rglob("*.png"):
        Image.fromarray(255 - np.asarray(Image.open(file)) // 3).save(file)
    shutil.copytree(data / "b", data / "0 before all others")


@pytest.fixture(scope="module", params=list(COLUMNS))
def finished(request, tmp_path_factory) -> Path:
    """A folder with ``data`` and a finished ``run`` on them."""
    root = tmp_path_factory.mktemp(request.param)
    data = make_images(root / "data", count=24)
    Trainer(make_config(settings(data, root / "run", request.param))).run()
    return root


def copied(finished: Path, to: Path) -> tuple[Path, Path]:
    """Data and run of `finished` in a place where they may be spoilt, the run pointing to the data beside it."""
    shutil.copytree(finished, to, dirs_exist_ok=True)
    stored = json.loads((to / "run/config.json").read_text())
    stored["data"]["path"], stored["out"] = str(to / "data"), str(to / "run")
    (to / "run/config.json").write_text(json.dumps(stored))
    return to / "data", to / "run"


def tokenizer_of(folder: Path) -> dict:
    """The whole tokenizer of a pipeline folder, but for how it padded the last text that it was given."""
    return json.loads((folder / "tokenizer/tokenizer.json").read_text()) | {"padding": None, "truncation": None}


def trained(folder: Path) -> dict:
    """Hashes of all of a pipeline folder but the card and its pictures, and the tokenizer itself."""
    found = {name: digest for name, digest in tree(folder).items() if name.startswith(NOTHING_CHANGES)}
    if found.pop("tokenizer/tokenizer.json", None):
        found["tokenizer"] = tokenizer_of(folder)
    return found


def pixels(folder: Path) -> np.ndarray:
    pipeline = load(folder)
    arguments = ["blue heart"] if pipeline.tokenizer else []
    labels = {} if pipeline.tokenizer else {"class_labels": ["b"]}
    generator = torch.Generator().manual_seed(1)
    return pipeline(*arguments, **labels, num_inference_steps=2, generator=generator, output_type="np").images


def test_checkpoints_name_what_was_learned_before_step_1(finished):
    run = finished / "run"
    known = read_learned(run)
    for checkpoint in (run / "checkpoints").iterdir():
        assert json.loads((checkpoint / "progress.json").read_text())["learned"] == known.digest
    index = json.loads((run / "pipeline/model_index.json").read_text())
    assert known.objective == index["objective"] and known.data == index["data"]
    assert known.images == 23 and known.held_out == 1


def test_an_export_is_the_model_that_the_run_made(finished, tmp_path):
    assert trained(export_checkpoint(finished / "run", tmp_path)) == trained(finished / "run/pipeline")
    assert "neighbours.png" in (tmp_path / "README.md").read_text()


def test_edited_data_do_not_change_what_is_exported(finished, tmp_path):
    data, run = copied(finished, tmp_path)
    edit(data)
    result = attndiff("export", run, tmp_path / "exported")
    assert result.code == 0 and "the data are not those that it was trained on" in result.out, result.err
    assert trained(tmp_path / "exported") == trained(finished / "run/pipeline")
    assert np.array_equal(pixels(tmp_path / "exported"), pixels(finished / "run/pipeline"))
    card = (tmp_path / "exported/README.md").read_text()
    assert "are not those that it was trained on any more when this folder was written" in card
    assert not (tmp_path / "exported/neighbours.png").exists() and "neighbours.png" not in card


def test_a_run_whose_data_are_gone_is_exported(finished, tmp_path):
    data, run = copied(finished, tmp_path)
    shutil.rmtree(data)
    assert trained(export_checkpoint(run, tmp_path / "exported")) == trained(finished / "run/pipeline")
    card = (tmp_path / "exported/README.md").read_text()
    assert "The training images could not be opened when this folder was written" in card
    assert "| training images | 23 |" in card
    shutil.rmtree(run / "checkpoints/step_00000002")
    shutil.rmtree(run / "pipeline")
    export_checkpoint(run, tmp_path / "unfinished")
    rebuilt = export_checkpoint(run, tmp_path / "rebuilt", sigma_rel=0.1)
    whole = trained(finished / "run/pipeline")
    for folder in (tmp_path / "unfinished", rebuilt):
        ours = trained(folder)
        assert ours.keys() >= {name for name in whole if ".ema" not in name and ".raw" not in name}
        assert all(ours[name] == whole[name] for name in ("tokenizer", "model_index.json") if name in whole)


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_run_does_not_go_on_with_anything_else(finished, tmp_path, damage):
    _, run = copied(finished, tmp_path)
    shutil.rmtree(run / "checkpoints/step_00000002")
    file = run / "learned/learned.json"
    if damage == "missing":
        shutil.rmtree(run / "learned")
    else:
        file.write_text(file.read_text().replace('"sigma_data": 0', '"sigma_data": 1'))
    before = tree(run)
    words = {"changed": r"learned is not what the weights", "missing": r"learned is missing: .*; put it back"}[damage]
    with pytest.raises(UserError, match=words):
        Trainer(make_config(json.loads((run / "config.json").read_text()))).run()
    with pytest.raises(UserError, match=words):
        export_checkpoint(run, tmp_path / "exported")
    assert tree(run) == before


# Written whole or not at all


class Crash(BaseException):
    """The process dies here."""


def dying(monkeypatch, until: int | None) -> list[str]:
    """Count the operations on the disk of writing ``learned/``, and die before the given one."""
    done = []

    def watched(owner, name: str) -> None:
        inner = getattr(owner, name)

        def operation(*arguments, **settings):
            if until is not None and len(done) == until:
                raise Crash
            done.append(name)
            return inner(*arguments, **settings)

        monkeypatch.setattr(owner, name, operation)

    for owner, name in ((module.Path, "mkdir"), (module.Path, "write_text"), (module, "sync"), (module.Path, "rename")):
        watched(owner, name)
    return done


def test_a_crash_at_any_operation_leaves_it_whole_or_absent(tmp_path, monkeypatch):
    def write(run: Path, until: int | None) -> list[str]:
        run.mkdir(exist_ok=True)
        with monkeypatch.context() as patched, suppress(Crash):
            done = dying(patched, until)
            write_learned(Learned(data={"class_names": None}, images=3, held_out=1), run)
        return done

    every = write(tmp_path / "all", None)
    assert every == ["mkdir", "write_text", "sync", "sync", "rename", "sync"]
    whole = tree(tmp_path / "all")
    for until in range(len(every)):
        run = tmp_path / str(until)
        write(run, until)
        published = until > every.index("rename")
        assert (run / "learned").exists() == published
        if published:
            assert read_learned(run).images == 3
        write(run, None)
        assert tree(run) == whole


def test_a_run_killed_while_it_writes_what_it_learned_goes_on(finished, tmp_path, monkeypatch):
    data, run = copied(finished, tmp_path)
    shutil.rmtree(run)
    kind = json.loads((finished / "run/config.json").read_text())["condition"]["kind"]
    config = make_config(settings(data, run, kind))

    def die(learned, out):
        with monkeypatch.context() as patched:
            dying(patched, 3)
            write_learned(learned, out)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "write_learned", die)
        with pytest.raises(Crash):
            Trainer(config).run()
    assert (run / module.PARTIAL).is_dir() and not (run / module.FOLDER).exists()
    Trainer(config).run()
    assert losses(run) == losses(finished / "run") and trained(run / "pipeline") == trained(finished / "run/pipeline")
    assert learned_digest(run) == learned_digest(finished / "run") and not (run / module.PARTIAL).exists()


# Streams, whose images no fingerprint guards


def test_a_stream_that_goes_on_reads_with_the_words_it_began_with(tmp_path):
    pictures = [file.read_bytes() for file in sorted(make_images(tmp_path / "images", count=24).rglob("*.png"))]

    def write_shards(caption: str) -> Path:
        (tmp_path / "data").mkdir(exist_ok=True)
        for i in range(3):
            rows = [
                {"image": picture, "text": f"{caption} {j}"} for j, picture in enumerate(pictures[8 * i : 8 * i + 8])
            ]
            pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"data/{i}.parquet")
        return tmp_path / "data"

    values = settings(write_shards("red apple"), tmp_path / "run")
    values["data"] |= {"stream": True, "shuffle_buffer": 4}
    Trainer(make_config(values)).run()
    run = tmp_path / "run"
    shutil.rmtree(run / "checkpoints/step_00000002")
    before, known = tokenizer_of(run / "pipeline"), read_learned(run)
    write_shards("a walrus in a purple waistcoat")
    trainer = Trainer(make_config(values))
    assert trainer.parts.model.objective.to_config() == known.objective
    trainer.run()
    assert tokenizer_of(run / "pipeline") == before and read_learned(run).digest == known.digest
    result = attndiff("export", run, tmp_path / "exported")
    assert result.code == 0 and "the data are not those" in result.out, result.err
    assert trained(tmp_path / "exported") == trained(run / "pipeline")


# Runs that kept nothing


def test_a_run_that_kept_nothing_goes_on_and_keeps_it_from_then_on(tmp_path, capsys):
    run = Path(shutil.copytree(FORMAT_1 / "run", tmp_path / "run"))
    Trainer(load_config(FORMAT_1 / "config.yaml", [f"out={run}"])).run()
    assert "began before runs kept what they learn" in capsys.readouterr().out
    progress = json.loads((run / "checkpoints/step_00000008/progress.json").read_text())
    assert progress["learned"] == read_learned(run).digest


def test_a_run_that_kept_nothing_is_exported_from_its_data_alone(tmp_path, capsys):
    run = Path(shutil.copytree(FORMAT_1 / "run", tmp_path / "run"))
    folder = export_checkpoint(run, tmp_path / "exported")
    assert "began before runs kept what they learn" in capsys.readouterr().out
    index = json.loads((folder / "model_index.json").read_text())
    then = json.loads((FORMAT_1 / "pipeline/model_index.json").read_text())
    assert (index["objective"], index["data"]) == (then["objective"], then["data"])
    stored = json.loads((run / "config.json").read_text())
    stored["data"]["where"] = {"style": ["twemoji"], "group": ["Food & Drink"]}
    (run / "config.json").write_text(json.dumps(stored))
    with pytest.raises(UserError, match=r"are not those that it was trained on, and it kept nothing"):
        export_checkpoint(run, tmp_path / "other")


def interrupted(finished: Path, to: Path) -> tuple[Path, Path, list[str]]:
    """Data, a run that stopped before its last step, and the losses that it comes to."""
    data, run = copied(finished, to)
    expected = losses(run)
    shutil.rmtree(max((run / "checkpoints").glob("step_*")))
    return data, run, expected


def test_a_run_goes_on_where_its_data_were_moved_to(finished, tmp_path):
    data, run, expected = interrupted(finished, tmp_path)
    moved = data.rename(tmp_path / "elsewhere")
    kind = json.loads((run / "config.json").read_text())["condition"]["kind"]
    Trainer(make_config(settings(moved, run, kind))).run()
    assert losses(run)[-1] == expected[-1]


def test_a_run_does_not_go_on_with_other_data(finished, tmp_path):
    _, run, _ = interrupted(finished, tmp_path)
    kind = json.loads((run / "config.json").read_text())["condition"]["kind"]
    other = make_images(tmp_path / "other", count=20)
    with pytest.raises(UserError, match="are not those that the run began with"):
        Trainer(make_config(settings(other, run, kind))).run()


def test_a_run_that_read_its_images_otherwise_is_refused_only_if_they_show_it(finished, tmp_path, monkeypatch):
    data, run, expected = interrupted(finished, tmp_path)
    kind = json.loads((run / "config.json").read_text())["condition"]["kind"]
    monkeypatch.setattr(resume, "INTAKE", module.INTAKE + 1)
    Trainer(make_config(settings(data, run, kind))).run()
    assert losses(run)[-1] == expected[-1]
    shutil.rmtree(max((run / "checkpoints").glob("step_*")))
    Image.fromarray(255 - np.asarray(Image.open(next(data.rglob("*.png"))))).save(next(data.rglob("*.png")))
    with pytest.raises(UserError, match="read its images in another way"):
        Trainer(make_config(settings(data, run, kind))).run()


def test_what_is_left_out_is_said_and_written_beside_the_run(tmp_path, capsys):
    data = make_images(tmp_path / "data", count=8)
    (data / "drawing.svg").write_text("<svg/>")
    Trainer(make_config(settings(data, tmp_path / "run"))).run()
    assert "1 file is left out (drawing.svg: .svg files are not read" in capsys.readouterr().out
    assert json.loads((tmp_path / "run/left_out.json").read_text()) == [
        ["drawing.svg", ".svg files are not read, convert it to PNG"]
    ]
