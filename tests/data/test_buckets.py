"""Aspect-ratio buckets: which shape an image gets, which batches there are, and training on several shapes."""

import json
import shutil
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from commands import attndiff
from golden import encode
from PIL import Image
from safetensors.torch import load_file

from attndiff.data.buckets import bucket_shapes
from attndiff.data.config import DataConfig
from attndiff.data.doctor import diagnose
from attndiff.data.geometry import nearest_shape
from attndiff.data.image_set import ImageSet
from attndiff.data.order.batches import BatchSampler
from attndiff.data.order.bucket_batches import BucketSampler
from attndiff.data.pixels.normalize import Normalizer
from attndiff.folder.open import load
from attndiff.training.build import build
from attndiff.training.config import make_config
from attndiff.training.run.loop import Trainer
from attndiff.training.run.progress import read_log

SHAPES = bucket_shapes(32, 2.0, 8)
SIZES = [1, 7, 40, 23]
BATCH = 8


def buckets() -> list[np.ndarray]:
    """Sample ids of four buckets, mixed as they are in data."""
    order = np.random.default_rng(0).permutation(sum(SIZES))
    return [np.sort(part) for part in np.split(order, np.cumsum(SIZES)[:-1])]


def whole(end_step: int, **options) -> list[list[tuple[int, int]]]:
    return list(BucketSampler(buckets(), BATCH, 1, **{"seed": 3, "end_step": end_step, **options}))


# Shapes


def test_shapes_of_known_sizes():
    assert SHAPES == [(24, 40), (32, 32), (40, 24)]
    assert bucket_shapes(64, 1.7, 8) == [(48, 80), (56, 72), (64, 64), (72, 56), (80, 48)]
    assert bucket_shapes(16, 4, 4)[0] == (8, 32)


@pytest.mark.parametrize(("size", "max_aspect", "multiple"), [(32, 4, 8), (64, 2.0, 8), (256, 3, 8), (512, 1.6, 64)])
def test_no_shape_is_larger_than_the_square_and_none_much_smaller(size, max_aspect, multiple):
    shapes = bucket_shapes(size, max_aspect, multiple)
    assert len(set(shapes)) == len(shapes) >= 3
    for height, width in shapes:
        assert height % multiple == width % multiple == 0
        assert (1 - multiple / size) * size**2 < height * width <= size**2
        assert max(height, width) / min(height, width) <= max_aspect
        assert (width, height) in shapes


@pytest.mark.parametrize(
    ("width", "height", "shape"),
    [
        (640, 480, (24, 40)),
        (480, 640, (40, 24)),
        (1000, 900, (32, 32)),
        (5000, 100, (24, 40)),
        (1, 1, (32, 32)),
    ],
)
def test_nearest_shape(width, height, shape):
    assert nearest_shape(height, width, SHAPES) == shape


def test_images_are_cropped_to_the_middle_of_their_shape():
    normalizer = Normalizer(32, shapes=SHAPES)
    noise = np.random.default_rng(0).integers(0, 256, (24, 44, 3), dtype=np.uint8)
    result = normalizer.normalize(encode(noise))
    np.testing.assert_array_equal(result.levels, noise[:, 2:42].transpose(2, 0, 1))
    assert result.notes == ["cropped to 40x24"] and result.geometry.cropped == pytest.approx(4 / 44)
    result = normalizer.normalize(encode(noise[:, :40].repeat(2, 0).repeat(2, 1)))
    assert result.levels.shape == (3, 24, 40) and result.notes == ["resized down"] and result.geometry.cropped == 0
    tall = np.random.default_rng(0).integers(0, 256, (90, 50, 4), dtype=np.uint8)
    result = Normalizer(32, "RGBA", shapes=SHAPES).normalize(encode(tall))
    assert result.levels.shape == (4, 40, 24) and result.notes == ["resized down", "cropped to 24x40"]
    assert result.geometry.cropped == pytest.approx(1 - (50 * 40 / 24) / 90)


# Order


def test_every_image_is_seen_in_every_epoch_and_none_gets_ahead_by_more_than_a_batch():
    batches = whole(100)
    place = {int(i): b for b, bucket in enumerate(buckets()) for i in bucket}
    assert all(len(batch) == BATCH and len({place[i] for i, _ in batch}) == 1 for batch in batches)
    step, seen = 0, []
    for epoch in range(6):
        due = sum(-(-(epoch + 1) * size // BATCH) for size in SIZES)
        seen += [key for batch in batches[step:due] for key in batch]
        step = due
        counts = Counter(i for i, _ in seen)
        assert min(counts[i] for i in place) == epoch + 1
        assert all(
            sum(counts[i] for i in place if place[i] == b) - (epoch + 1) * n < BATCH for b, n in enumerate(SIZES)
        )
        assert {(i, visit) for i in place for visit in range(epoch + 1)} <= set(seen)
    assert len(set(seen)) == len(seen)  # the same image has another visit each time, hence other noise


def test_batches_come_in_random_order_that_follows_the_seed():
    place = {int(i): b for b, bucket in enumerate(buckets()) for i in bucket}
    first, second = ([place[batch[0][0]] for batch in part] for part in (whole(10), whole(20)[10:]))
    assert first != sorted(first) and first != second
    assert whole(10) == whole(10) != whole(10, seed=4)


def test_processes_and_micro_batches_share_one_batch():
    ranks = [list(BucketSampler(buckets(), 2, 2, 3, rank, 2, end_step=25)) for rank in range(2)]
    for step, batch in enumerate(whole(25)):
        assert [key for rank in ranks for micro in rank[2 * step : 2 * step + 2] for key in micro] == batch


def test_any_step_can_be_the_first():
    batches = whole(40)
    for start in (1, 9, 10, 11, 39):
        assert whole(40, start_step=start) == batches[start:]


def test_without_buckets_the_order_is_what_it_has_always_been():
    assert list(BatchSampler(7, 3, 1, seed=3, end_step=4)) == [
        [(2, 0), (4, 0), (3, 0)],
        [(5, 0), (0, 0), (6, 0)],
        [(1, 0), (1, 1), (2, 1)],
        [(0, 1), (6, 1), (3, 1)],
    ]


# Training


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Wide, square and tall images."""
    folder = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for i, (height, width) in enumerate([(20, 36)] * 9 + [(24, 24)] * 6 + [(30, 18)] * 7 + [(17, 16)]):
        pixels = np.full((height, width, 3), rng.integers(0, 256, 3), np.uint8)
        pixels[4:12, 4:12] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
    return folder


def settings(folder, out, **changes) -> dict:
    data = {"path": str(folder), "size": 16, "validation": 0.2, "max_aspect": 2.0, "bucket_multiple": 4}
    values = {
        "out": str(out),
        "data": data,
        "condition": {"kind": "none"},
        "model": {"preset": "tiny"},
        "optim": {"steps": 6, "batch_size": 4, "warmup": 2, "precision": "fp32", "flip": 0.5},
        "log": {"every": 1, "validate_every": 6, "sample_every": 6, "checkpoint_every": 3, "tracker": None},
    }
    for key, value in changes.items():
        section, name = key.split("__")
        values[section][name] = value
    return values


def losses(run) -> list[float]:
    entries = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def weights(run) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / "step_00000006" / "weights.safetensors")


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "shapes"
    Trainer(make_config(settings(folder, out))).run()
    return out


def test_a_model_trained_on_three_shapes_samples_them(run):
    last = read_log(run / "log.jsonl")[1][-1]
    assert np.isfinite(last["raw"]["per_level"]).all() and "buckets" in (run / "pipeline/README.md").read_text()
    pipe = load(run / "pipeline")
    assert pipe.config.data["size"] == [16, 16]
    assert pipe(height=12, width=20, num_inference_steps=2).images[0].size == (20, 12)


def test_batches_hold_the_shapes_of_their_images(folder, run):
    trainer = Trainer(make_config(settings(folder, run)))
    shapes = {trainer.train_set[(i, 0)]["noise"].shape[1:] for i in range(len(trainer.train_set))}
    assert shapes == {(12, 20), (16, 16), (20, 12)} == set(trainer.parts.images.by_shape())
    assert trainer.plan().shape == max(trainer.parts.images.by_shape().items(), key=lambda item: len(item[1]))[0]


def test_a_stopped_run_and_other_workers_end_bit_identical(folder, run, tmp_path):
    out = tmp_path / "stopped"
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / "step_00000006")
    (out / "log.jsonl").write_text("")
    changed = settings(folder, out)
    Trainer(make_config(changed)).run()
    Trainer(make_config(settings(folder, tmp_path / "workers", optim__workers=2))).run()
    assert losses(out) == losses(run)[3:] and losses(tmp_path / "workers") == losses(run)
    for other in (out, tmp_path / "workers"):
        assert all(torch.equal(value, weights(run)[key]) for key, value in weights(other).items())


def test_compiled_once_for_each_shape(folder, tmp_path, monkeypatch):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    small = {"levels": [{"width": 16, "depth": 1}]}
    trainer = Trainer(make_config(settings(folder, tmp_path / "run", optim__compile=True, model__unet=small)))
    with torch._dynamo.config.patch(recompile_limit=1):
        trainer.run()
    assert len(graphs) == len(trainer.parts.images.by_shape()) == 3


def test_large_sets_give_the_same_buckets(folder, monkeypatch):
    config = DataConfig(path=str(folder), size=16, max_aspect=2.0, bucket_multiple=4)
    kept = ImageSet(config)
    monkeypatch.setattr("attndiff.data.image_set.CACHE_BYTES", 1000)
    lazy = ImageSet(config)
    assert kept.is_kept and not lazy.is_kept
    assert [lazy[i]["image"].shape for i in (0, 9, 15)] == [(3, 12, 20), (3, 16, 16), (3, 20, 12)]
    for shape, members in kept.by_shape().items():
        np.testing.assert_array_equal(lazy.by_shape()[shape], members)


def test_doctor_counts_buckets_and_what_is_cropped(folder):
    config = DataConfig(path=str(folder), size=16, max_aspect=2.0, bucket_multiple=4)
    report = diagnose(config)
    assert report.buckets == {"20x12": 9, "16x16": 7, "12x20": 7}
    assert report.cropped == pytest.approx((9 * (1 - 20 * 20 / 12 / 36) + (1 - 16 / 17)) / 23)
    assert "Buckets (width x height): 20x12: 9, 16x16: 7" in report.to_text() and "Cropped: 3." in report.to_text()
    squares = diagnose(DataConfig(path=str(folder), size=16))
    assert squares.buckets is None and "Buckets" not in squares.to_text() and squares.cropped > 0.25


def test_small_buckets_are_named(folder, tmp_path):
    note = build(make_config(settings(folder, tmp_path, optim__batch_size=8, data__validation=0.01))).notes[-1]
    assert "20x12: 8" in note and "a batch of 16x16, 12x20 shows images more than once" in note


# Mistakes


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.max_aspect=1"], ["max_aspect", "above 1"]),
        (["data.max_aspect=.nan"], ["max_aspect", "finite"]),
        (["data.max_aspect=wide"], ["max_aspect", "number"]),
        (["data.max_aspect=1.2"], ["max_aspect=1.2", "size=16", "1.67"]),
        (["data.bucket_multiple=0"], ["bucket_multiple=0"]),
        (["data.bucket_multiple=16"], ["max_aspect=2.0", "larger"]),
        (["data.size=20", "data.bucket_multiple=8"], ["size=20", "bucket_multiple=8"]),
        (["data.bucket_multiple=2"], ["data.bucket_multiple 2", "multiple of 4"]),
        (["data.stream=true", "data.validation=null"], ["max_aspect", "stream"]),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, overrides, words):
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps(settings(folder, tmp_path / "run")))
    result = attndiff("train", config, *overrides)
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert all(word in result.err for word in words), result.err
