"""Which images are trained on, which are held out, and that each is decoded once."""

import pytest
import torch
from accelerate import Accelerator
from commands import make_images

from attndiff.data.cells import class_order
from attndiff.data.config import DataConfig
from attndiff.data.parts import open_parts
from attndiff.data.pixels.normalize import Normalizer
from attndiff.data.streams.encoded import EncodedImages
from attndiff.errors import UserError
from attndiff.tasks.prompts import PROMPTS
from attndiff.training.evaluation.validation import AT_MOST, validate


@pytest.fixture
def decoded(monkeypatch):
    """Names of the images that were decoded, in order."""
    names, normalize = [], Normalizer.normalize

    def counted(self, source, name=None):
        names.append(name)
        return normalize(self, source, name)

    monkeypatch.setattr(Normalizer, "normalize", counted)
    return names


@pytest.mark.parametrize("validation", [None, 0.3])
def test_every_image_is_decoded_once(tmp_path, decoded, validation):
    path = make_images(tmp_path / "images", count=20)
    rest, held_out, _ = open_parts(DataConfig(path=str(path), size=16, validation=validation, label_column="label"))
    assert len(decoded) == len(set(decoded)) == 20 == len(rest) + len(held_out)
    assert rest.class_names == held_out.class_names == ["a", "b"]


def test_data_too_small_to_be_divided_is_both_parts(tmp_path):
    images, held_out, (note,) = open_parts(DataConfig(path=str(make_images(tmp_path / "images", count=1)), size=16))
    assert images is held_out and len(images) == 1 and "too few" in note


class Folders:
    """Held-out samples that note who was looked at: 300 of each of three classes, one after the other."""

    def __init__(self):
        self.seen = []
        self.conditioning = self

    def __len__(self):
        return 900

    def __getitem__(self, key):
        self.seen.append(key[0])
        return {"images": torch.zeros(3, 8, 8)}

    def embed(self, batch):
        return batch


class Zero(torch.nn.Module):
    """A head that measures nothing but zeros."""

    denoises = True
    keeps_best = False

    def measured_at(self):
        return [-1.0, 0.0, 1.0]

    def measures(self, batch, normal):
        zeros = torch.zeros(len(batch["images"]))
        return {"loss": zeros, "denoised": batch["images"]}

    def noise_over_signal(self, normals):
        return normals.exp()


def test_held_out_losses_look_at_all_folders_alike():
    samples = Folders()
    assert validate(Zero(), samples, Accelerator(cpu=True)).n == AT_MOST == len(set(samples.seen))
    counts = torch.bincount(torch.tensor(samples.seen) // 300).tolist()
    assert len(counts) == 3 and max(counts) - min(counts) <= 1


@pytest.mark.parametrize(
    ("names", "value", "number"),
    [(["1", "2", "3"], 1, 0), (["1", "2", "3"], 3, 2), (["even", "odd"], 1, 1), (["b", "a"], "a", 1)],
)
def test_a_stream_takes_a_number_for_the_class_of_that_name(names, value, number):
    config = DataConfig(path="stream", size=16, label_column="kind", stream=True, class_names=names)
    assert EncodedImages([("row", {"kind": value})], config, names)[0]["label"] == number


def test_a_number_that_names_no_class_is_refused():
    config = DataConfig(path="stream", size=16, label_column="kind", stream=True, class_names=["1", "2", "3"])
    with pytest.raises(UserError, match="class 0 is not one of the 3"):
        EncodedImages([("row", {"kind": 0})], config, ["1", "2", "3"])[0]["label"]


def test_digits_of_other_scripts_are_names():
    assert class_order(["²", "10", "9"]) == ["10", "9", "²"]
    assert class_order(["10", "9", "-1"]) == ["-1", "9", "10"]


def test_a_prompt_of_digits_of_other_scripts_is_a_name():
    class Classes:
        config = type("Config", (), {"data": {"class_names": ["²", "b"]}})

    assert PROMPTS["class"].read(Classes(), ["²", "1"]) == {"class_labels": ["²", 1]}
