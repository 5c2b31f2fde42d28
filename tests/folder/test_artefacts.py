"""Hostile and damaged pipeline folders are refused in one sentence before anything is built of them."""

import json
import resource
import shutil
from pathlib import Path

import pytest
import torch
from factories import text_pipeline
from safetensors.torch import load_file, save_file

from attndiff.errors import UserError
from attndiff.folder.open import load


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("artefacts") / "sound"
    text_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "model")
    return tmp_path / "model"


def change(path, **settings):
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


LEVEL = {"width": 16, "depth": 1}
CONFIGS = {
    "huge widths": ({"levels": [{"width": 10**9, "depth": 1}]}, r"levels\.0\.width is 1000000000, where 1048576"),
    "many parameters": ({"levels": [{"width": 2**20, "depth": 30}]}, r"where the config asks for"),
    "endless depth": ({"levels": [{"width": 16, "depth": 10**7}]}, r"depth is 10000000"),
    "endless levels": ({"levels": [LEVEL] * 1000}, r"levels has 1000 entries"),
    "negative width": ({"levels": [{"width": -4}]}, r"levels"),
    "truth for a number": ({"patch_size": True}, r"patch_size: .*integer"),
    "text for a number": ({"patch_size": "2"}, r"patch_size: .*integer"),
    "number for a list": ({"levels": 3}, r"levels: "),
    "not a number": ({"dropout": float("nan")}, r"dropout is nan"),
    "unknown setting": ({"eval": "print(1)"}, r"eval: Extra inputs are not permitted"),
    "dunder": ({"levels": [{**LEVEL, "__class__": "x"}]}, r"levels\.0\.__class__"),
    "unknown kind of attention": ({"levels": [{**LEVEL, "attention": "all"}]}, r"attention must be"),
    "division by zero": ({"head_dim": 0}, r"config\.json makes no AttentionUNet2DModel|head_dim"),
    "another network": ({"in_channels": 5}, r"stem\.weight is .*, where the config asks for"),
}


@pytest.mark.parametrize("mistake", CONFIGS)
def test_configs(folder, mistake):
    settings, sentence = CONFIGS[mistake]
    change(folder / "unet/config.json", **settings)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, hard))  # a gigabyte more than now
    try:
        with pytest.raises(UserError, match=sentence):
            load(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (["subprocess", "Popen"], r"scheduler is a subprocess\.Popen, which is no part of a pipeline"),
        (["os", "system"], r"scheduler is a os\.system"),
        (["diffusers", "FlowMatchEulerDiscreteScheduler", "x"], r"scheduler must be a library and a class"),
        ([["diffusers"], "DDIMScheduler"], r"scheduler must be a library and a class"),
    ],
    ids=str,
)
def test_classes_from_elsewhere(folder, entry, sentence):
    change(folder / "model_index.json", scheduler=entry)
    with pytest.raises(UserError, match=sentence):
        load(folder)


def test_entries_that_look_private_are_looked_at_too(folder):
    change(folder / "model_index.json", _more=[["x"], ["y"]])
    with pytest.raises(UserError, match="_more must be a library and a class"):
        load(folder)


def test_an_index_that_names_its_class_alone_opens(folder):
    change(folder / "model_index.json", _class_name=["AttnDiffPipeline"])
    assert load(folder).unet is not None


def test_json_nested_without_end(folder):
    (folder / "unet/config.json").write_text('{"levels": ' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(UserError, match=r"config\.json is damaged"):
        load(folder)


WEIGHTS = {
    "a tensor left out": (lambda state: state.pop("head.bias"), r"head\.bias is absent, where the config asks for"),
    "a tensor too many": (
        lambda s: s.update(extra=torch.zeros(2)),
        r"extra is \[2\], where .* asks for nothing",
    ),
    "another shape": (lambda s: s.update({"head.bias": torch.zeros(5)}), r"head\.bias is \[5\], where"),
    "not a number": (lambda s: s["head.bias"].fill_(float("nan")), r"head\.bias holds numbers that are not finite"),
    "infinite": (lambda s: s["head.bias"].fill_(float("inf")), r"head\.bias holds numbers that are not finite"),
}


@pytest.mark.parametrize("mistake", WEIGHTS)
def test_weights_that_are_not_the_networks(folder, mistake):
    spoil, sentence = WEIGHTS[mistake]
    (file,) = (folder / "unet").glob("*.safetensors")
    state = load_file(file)
    spoil(state)
    save_file(state, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=sentence):
        load(folder)


def test_every_flipped_byte_of_a_header_is_refused_or_harmless(folder):
    """Refused in a sentence, or opened with the very same weights: never others, never an unnamed error."""
    (file,) = (folder / "condition_encoder").glob("*.safetensors")
    whole, expected = file.read_bytes(), load(folder).condition_encoder.state_dict()
    header = 8 + int.from_bytes(whole[:8], "little")
    refused = 0
    for place in range(0, header, 7):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        try:
            opened = load(folder).condition_encoder.state_dict()
        except UserError:
            refused += 1
        else:
            assert opened.keys() == expected.keys() and all(torch.equal(opened[k], expected[k]) for k in expected)
    assert refused > 100
