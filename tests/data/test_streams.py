"""Training on shards that are never read through: order, resume, ranks, workers, bad images and mistakes."""

import io
import json
import shutil
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

import attndiff
from attndiff.data.config import DataConfig
from attndiff.data.streams import stream as stream_module
from attndiff.data.streams.blocks import block_order, lane_count, shuffled_blocks
from attndiff.data.streams.stream import Stream
from attndiff.data.tables import opening
from attndiff.errors import UserError
from attndiff.folder.shipped import bundled_data
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer
from attndiff.training.streams import StreamSampler, open_streamed, stream_loader

SHARDS = [7, 9, 4, 8, 6]  # rows of each


@pytest.fixture(scope="session")
def emoji() -> list[dict]:
    table = pq.read_table(Path(bundled_data("emoji32")) / "train.parquet", columns=["image", "captions", "style"])
    rows = table.slice(0, sum(SHARDS)).to_pylist()
    return [{"image": row["image"], "text": f"{row['captions'][0]} {i}", "kind": i % 2} for i, row in enumerate(rows)]


def divided(rows: list[dict]) -> list[list[dict]]:
    rest = iter(rows)
    return [list(islice(rest, n)) for n in SHARDS]


def write_parquet(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    for i, shard in enumerate(divided(rows)):
        pq.write_table(pa.Table.from_pylist(shard), folder / f"part-{i}.parquet")
    return folder


def write_tars(folder: Path, rows: list[dict]) -> Path:
    folder.mkdir()
    for i, shard in enumerate(divided(rows)):
        with tarfile.open(folder / f"part-{i}.tar", "w") as tar:
            for j, row in enumerate(shard):
                files = {"webp": row["image"]["bytes"], "text": row["text"].encode(), "cls": str(row["kind"]).encode()}
                for suffix, content in files.items():
                    info = tarfile.TarInfo(f"{j:04d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


@pytest.fixture(scope="session")
def shards(tmp_path_factory, emoji) -> Path:
    return write_parquet(tmp_path_factory.mktemp("data") / "parquet", emoji)


@pytest.fixture(scope="session")
def tars(tmp_path_factory, emoji) -> Path:
    return write_tars(tmp_path_factory.mktemp("data") / "tars", emoji)


def settings(path: Path, out: Path, data: dict | None = None, **sections: dict) -> dict:
    values = {
        "out": str(out),
        "data": {"path": str(path), "stream": True, "size": 16, "caption_column": "text", "shuffle_buffer": 16}
        | (data or {}),
        "condition": {"kind": "text", "vocab_size": 300, "max_length": 8},
        "model": {"preset": "tiny"},
        "optim": {"steps": 10, "batch_size": 8, "warmup": 1, "precision": "fp32", "flip": 0.5, "ema": [0.1]},
        "log": {
            "every": 1,
            "validate_every": 100,
            "sample_every": 100,
            "checkpoint_every": 5,
            "prompts": ["pizza"],
            "tracker": None,
        },
    }
    for name, section in sections.items():
        values[name] = {**values[name], **section}
    return values


def opened(path: Path, out: Path, **data):
    config = make_config(settings(path, out, data))
    return open_streamed(config.data, config)


def rows_of(images, steps: int, rank: int = 0, world: int = 1, start: int = 0, accumulation: int = 1) -> list:
    """``(place, epoch, caption)`` of what one rank meets."""
    sampler = StreamSampler(images, 8 // world // accumulation, accumulation, 0, rank, world, start, steps)
    return [(row.place, row.epoch, row.named[1]["text"]) for batch in sampler for row in batch]


@pytest.mark.parametrize("kind, image_column", [("shards", "image"), ("tars", "webp")])
def test_every_epoch_meets_each_training_row_once_in_another_order(kind, image_column, request, tmp_path, emoji):
    images, validation, notes = opened(request.getfixturevalue(kind), tmp_path, image_column=image_column)
    held_out = {validation[i]["caption"][0] for i in range(len(validation))}
    training = [row["text"] for row in emoji if row["text"] not in held_out]
    assert held_out and len(training) == len(emoji) - len(held_out)
    assert {images[i]["caption"][0] for i in range(len(images))} == set(training)
    assert any(f"{len(held_out)} in all, are held out" in note for note in notes)
    met = rows_of(images, steps=20)
    for epoch in (0, 1):
        assert Counter(text for _, e, text in met if e == epoch) == Counter(training)
    orders = [[text for _, e, text in met if e == epoch] for epoch in (0, 1)]
    assert orders[0] != orders[1] and orders[0] != training
    assert [place for place, _, _ in met] == list(range(160))


def test_any_step_can_be_taken_up_with_and_without_what_was_learnt(shards, tmp_path):
    images, _, _ = opened(shards, tmp_path / "run")
    met = rows_of(images, steps=16)
    for start in (3, 12):
        resumed, _, _ = opened(shards, tmp_path / "run")
        assert all(resumed.ledger.rows(shard) is not None for shard in range(len(SHARDS)))
        assert rows_of(resumed, 16, start=start) == met[8 * start :]
        ignorant, _, _ = opened(shards, tmp_path / f"new{start}")
        assert rows_of(ignorant, 16, start=start) == met[8 * start :]


def test_passed_shards_are_not_read_again(shards, tmp_path, monkeypatch):
    images, _, _ = opened(shards, tmp_path)
    met = rows_of(images, steps=10)
    read = []
    shard = Stream.shard
    monkeypatch.setattr(Stream, "shard", lambda self, number, *rest: read.append(number) or shard(self, number))
    assert rows_of(images, 10, start=9) == met[72:]
    lanes = lane_count(8, len(SHARDS))
    assert len(read) <= 2 * lanes  # of the 5 shards of each of 3 epochs


@pytest.mark.parametrize("world, accumulation", [(2, 1), (4, 2), (8, 1)])
def test_ranks_are_disjoint_and_together_the_one_process_batch(world, accumulation, shards, tmp_path):
    images, _, _ = opened(shards, tmp_path)
    alone = rows_of(images, 6)
    ranks = [set(rows_of(images, 6, rank, world, accumulation=accumulation)) for rank in range(world)]
    assert sum(map(len, ranks)) == len(set.union(*ranks)) and sorted(set.union(*ranks)) == alone


def test_a_row_group_is_a_shard(emoji, tmp_path):
    pq.write_table(pa.Table.from_pylist(emoji), tmp_path / "one.parquet", row_group_size=8)
    images, _, _ = opened(tmp_path / "one.parquet", tmp_path / "out")
    assert images.stream.shards == 5
    assert [row["text"] for _, row in images.stream.shard(3)] == [row["text"] for row in emoji[24:32]]


def test_the_head_is_picked_over_the_data_and_ends(shards, monkeypatch):
    stream = Stream(DataConfig(path=str(shards), caption_column="text"))
    assert [len(rows) for rows in stream.head(8).values()] == [1] * len(SHARDS)
    monkeypatch.setattr(stream_module, "HEAD_SHARDS", (1, 2))
    heads = stream.head(1000)
    assert len(heads) == 2 and all(len(rows) == SHARDS[shard] for shard, rows in heads.items())


def test_ranks_read_shards_of_their_own(shards, tmp_path, monkeypatch):
    images, _, _ = opened(shards, tmp_path)
    assert lane_count(8, len(SHARDS)) == 4
    shard = Stream.shard
    read = {0: [], 1: []}
    for rank in read:
        monkeypatch.setattr(Stream, "shard", lambda self, n, *rest, rank=rank: read[rank].append(n) or shard(self, n))
        rows_of(images, 1, rank, 2)
    assert read[0] and read[1] and not set(read[0]) & set(read[1])


def test_lanes():
    assert [lane_count(96, n) for n in (1, 5, 7, 100)] == [1, 4, 6, 8]
    assert lane_count(7, 100) == 7 and lane_count(11, 100) == 1


def test_shuffled_blocks_hold_no_more_than_their_size():
    taken = []
    order = lambda block, size: block_order(0, 0, 0, block, size)  # noqa: E731
    rows = shuffled_blocks((taken.append(i) or i for i in range(50)), 8, 0, order)
    given = []
    for row in rows:
        given.append(row)
        assert len(taken) - len(given) < 8
    assert sorted(given) == list(range(50)) and given[:8] != sorted(given[:8])
    assert {*given[:8]} == set(range(8))


def batches(path: Path, out: Path, rank: int = 0, world: int = 1, data: dict | None = None, **optim) -> list[dict]:
    out = out / f"{rank}{world}{optim}"
    trainer = Trainer(make_config(settings(path, out, data, optim={"steps": 3, **optim})))
    return list(stream_loader(trainer.config, trainer.train_set, 1, rank, world, 0))


def assert_same(ours: list[dict], theirs: list[dict]) -> None:
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.keys() == other.keys() and all(torch.equal(mine[key], other[key]) for key in other)


def test_workers_and_processes_change_no_bit_of_a_batch(shards, tmp_path):
    alone = batches(shards, tmp_path)
    assert set(alone[0]) >= {"images", "noise", "normal", "drop", "input_ids"} and "skipped" not in alone[0]
    assert_same(batches(shards, tmp_path, workers=2), alone)
    halves = zip(*(batches(shards, tmp_path, rank, 2) for rank in (0, 1)), strict=True)
    assert_same([{key: torch.cat([a[key], b[key]]) for key in a} for a, b in halves], alone)
    assert len({batch["noise"].sum().item() for batch in alone}) == 3


@pytest.fixture(scope="module")
def run(shards, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    Trainer(make_config(settings(shards, out))).run()
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").glob("step_*"))
    return {f"{f.stem}/{k}": v for f in newest.glob("*.safetensors") for k, v in load_file(f).items()}


def test_a_run_ends_with_a_pipeline_that_opens(run):
    image = attndiff.load(run / "pipeline")("pizza", num_inference_steps=1).images[0]
    assert image.size == (16, 16)
    card = (run / "pipeline" / "README.md").read_text()
    assert "| training images | a stream |" in card and "80 of a stream" in card and "are held out" in card


def test_a_stopped_run_ends_bit_identical(run, shards, tmp_path):
    """Stop after step 5, in the second epoch, by dropping what came later, as a kill would; with torn notes, too."""
    out = tmp_path / "stopped"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / "step_00000010")
    ledger = out / "stream.jsonl"
    ledger.write_text(ledger.read_text()[:-4])
    Trainer(make_config(settings(shards, out))).run()
    mine, theirs = weights(out), weights(run)
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in theirs)


def test_a_tar_of_classes_trains(tars, tmp_path):
    data = {"image_column": "webp", "caption_column": None, "label_column": "cls", "class_names": ["even", "odd"]}
    values = settings(
        tars, tmp_path / "run", data, condition={"kind": "class"}, optim={"steps": 2}, log={"prompts": []}
    )
    folder = Trainer(make_config(values)).run()
    assert json.loads((folder / "model_index.json").read_text())["data"]["class_names"] == ["even", "odd"]


def spoil(rows: list[dict], *places: int) -> list[dict]:
    """The same rows with images cut short."""
    cut = {"bytes": rows[0]["image"]["bytes"][:60], "path": None}
    return [{**row, "image": cut} if i in places else row for i, row in enumerate(rows)]


def test_bad_images_are_left_out_alike_every_time(shards, emoji, tmp_path):
    bad = write_parquet(tmp_path / "bad", spoil(emoji, 3, 18))
    sound, first = batches(shards, tmp_path / "a"), batches(bad, tmp_path / "b")
    assert_same(batches(bad, tmp_path / "c", workers=2), first)
    replaced = [(a["images"] != b["images"]).flatten(1).any(1) for a, b in zip(sound, first, strict=True)]
    skipped = opened(bad, tmp_path / "b" / "01{}")[0].skipped
    assert 1 <= sum(int(r.sum()) for r in replaced) == len(skipped) <= 2
    assert all("shard" in line and "cannot be read" in line for line in skipped)
    with pytest.raises(UserError, match=r"shard \d row \d: cannot be read"):
        batches(bad, tmp_path / "d", data={"on_error": "raise"})


def test_filters_and_globs(shards, tmp_path):
    images, _, notes = opened(f"{shards}/part-[01].parquet", tmp_path, where={"kind": [1]})
    assert images.stream.shards == 2 and any("too few images to hold any out" in note for note in notes)
    assert len(images) == 8 and {images.cells(i)["kind"] for i in range(len(images))} == {1}


ODD_FOLDERS = ["set [v2]", "a::b", "what? *all*", "run:1", "50% #2"]


@pytest.fixture
def odd(request, tmp_path, monkeypatch) -> Path:
    """A folder whose name would be something else to a shell, a glob or `datasets`; what `datasets` keeps lies here."""
    monkeypatch.setattr("datasets.config.HF_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache/datasets")
    (tmp_path / request.param).mkdir()
    return tmp_path / request.param


@pytest.mark.parametrize("odd", ODD_FOLDERS, indirect=True)
def test_a_path_that_exists_is_no_pattern(odd, emoji, monkeypatch):
    tars, parquet = write_tars(odd / "tars", emoji), write_parquet(odd / "parquet", emoji)
    monkeypatch.chdir(odd.parent)
    for path, column in ((tars, "webp"), (parquet, "image")):
        name = path.relative_to(odd.parent)
        only, pattern = next(name.glob("part-1.*")), f"{name}/part-[13].*"
        found = [
            Stream(DataConfig(path=str(p), size=16, stream=True, image_column=column)) for p in (name, only, pattern)
        ]
        assert [stream.shards for stream in found] == [5, 1, 2]
        assert [len(list(stream.shard(stream.shards - 1))) for stream in found] == [6, 9, 8]


@pytest.mark.parametrize("odd", ODD_FOLDERS, indirect=True)
def test_large_parquet_may_lie_in_any_folder(odd, emoji, monkeypatch):
    parquet = write_parquet(odd / "parquet", emoji)
    monkeypatch.setattr(opening, "MEMORY_BYTES", 10)
    for path, rows in ((parquet, sum(SHARDS)), (parquet / "part-2.parquet", SHARDS[2])):
        assert len(opening.Source(str(path), "image").table("train", whole=True)) == rows


def test_a_validation_part_or_path_of_its_own_is_taken(emoji, tmp_path):
    folder = tmp_path / "parts"
    folder.mkdir()
    for name, part in (("train-0", emoji[:20]), ("validation-0", emoji[20:])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    images, validation, _ = opened(folder, tmp_path / "a")
    assert len(images) == 20 and len(validation) == len(emoji) - 20
    images, validation, _ = opened(folder / "train-0.parquet", tmp_path / "b", validation=f"{folder}/v*.parquet")
    assert len(images) == 20 and validation[0]["caption"] == [emoji[20]["text"]]


def test_changed_shards_are_noticed(shards, emoji, tmp_path):
    images, _, _ = opened(shards, tmp_path / "run")
    rows_of(images, 6)
    copy = shutil.copytree(shards, tmp_path / "copy")
    for file in copy.iterdir():
        pq.write_table(pq.read_table(file).slice(0, 3), file)
    with pytest.raises(UserError, match=r"shard \d had \d rows and has \d now"):
        rows_of(opened(copy, tmp_path / "run")[0], 6)
    next(copy.iterdir()).unlink()
    with pytest.raises(UserError, match="began with 5 shards of data and finds 4 now"):
        opened(copy, tmp_path / "run")


def test_a_broken_shard_is_named(shards, tars, tmp_path):
    copy = shutil.copytree(tars, tmp_path / "tars")
    last = copy / "part-4.tar"
    last.write_bytes(last.read_bytes()[:5200])  # within an image
    with pytest.raises(UserError, match="shard 4 cannot be read"):
        opened(copy, tmp_path / "a", image_column="webp")
    copy = shutil.copytree(shards, tmp_path / "parquet")
    (copy / "part-0.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"cannot be read as \.parquet files"):
        opened(copy, tmp_path / "b")


MISTAKES = {
    # What is wrong: (settings of data, words the sentence has to have)
    "empty folder": ({"path": "{root}/empty"}, ["empty", "parquet", ".tar"]),
    "pattern of nothing": ({"path": "{root}/*.tar"}, ["*.tar"]),
    "nothing there": ({"path": "{root}/no/where"}, ["no/where", "check the path"]),
    "two kinds": ({"path": "{root}/two"}, ["both parquet and .tar"]),
    "missing image column": ({"image_column": "picture"}, ["picture", "image_column", "image, text, kind"]),
    "missing caption column": ({"caption_column": "texts"}, ["did you mean 'text'"]),
    "no captions where text is asked": ({"caption_column": None}, ["data.caption_column"]),
    "empty captions": ({"caption_column": "blank"}, ["blank", "empty"]),
    "classes without names": ({"label_column": "kind"}, ["kind", "data.class_names", "ClassLabel"]),
    "too few names": ({"label_column": "kind", "class_names": ["even"]}, ["class 1", "1 classes"]),
    "filter that keeps nothing": ({"where": {"kind": [7]}}, ["where", "7"]),
    "a fraction": ({"validation": 0.1}, ["validation", "fraction"]),
    "no buffer": ({"shuffle_buffer": 0}, ["shuffle_buffer"]),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory, emoji) -> Path:
    root = tmp_path_factory.mktemp("place")
    (root / "empty").mkdir()
    write_parquet(root / "data", [{**row, "blank": ""} for row in emoji])
    (root / "two").mkdir()
    (root / "two/a.tar").touch()
    (root / "two/a.parquet").touch()
    return root


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_one_sentence(mistake, place):
    data, words = MISTAKES[mistake]
    data = {"path": "{root}/data", **data}
    data["path"] = data["path"].replace("{root}", str(place))
    with pytest.raises(UserError) as caught:
        Trainer(make_config(settings(place, place / "out", data)))
    sentence = str(caught.value)
    assert all(word in sentence for word in words) and "\n" not in sentence, sentence
    assert not (place / "out").exists()
