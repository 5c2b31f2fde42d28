"""Weights in shards beside an index open as one file does, and nothing is left of them where one file replaces them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from doors import CALLS
from factories import make_vae, pretrained_text_pipeline, unconditional_pipeline
from safetensors.torch import load_file, save_file
from without_attndiff import sample

import attndiff
from attndiff.errors import UserError
from attndiff.folder.weights import same_weights
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline

INDEX = "unet/diffusion_pytorch_model.safetensors.index.json"
SHARDED, WHOLE = {"max_shard_size": "10KB"}, {}


@pytest.fixture(scope="module")
def pipeline() -> AttnDiffPipeline:
    """With networks of ours, of diffusers and of transformers; told to read captions."""
    made = pretrained_text_pipeline()
    made.register_modules(guide=unconditional_pipeline().unet)
    return made


@pytest.fixture(scope="module")
def sound(pipeline, tmp_path_factory) -> Path:
    """In shards, all of its parts."""
    folder = tmp_path_factory.mktemp("shards") / "sound"
    pipeline.save_pretrained(folder, **SHARDED)
    for part in ("unet", "condition_encoder", "text_encoder", "guide"):
        assert len(list((folder / part).glob("*-00001-of-*.safetensors"))) == 1
    return folder


@pytest.fixture
def folder(sound, tmp_path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def weights(pipeline) -> dict[str, torch.Tensor]:
    parts = {name: part for name, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
    return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}


def assert_same(opened, pipeline) -> None:
    got, expected = weights(opened), weights(pipeline)
    assert got.keys() == expected.keys() and all(torch.equal(got[key], expected[key]) for key in expected)


DOORS = {
    "attndiff.load": attndiff.load,
    "its own class": AttnDiffPipeline.from_pretrained,
    "diffusers": lambda folder, **wishes: DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **wishes),
}


@pytest.mark.parametrize("variant", [None, "bf16"])
@pytest.mark.parametrize("door", DOORS)
def test_shards_open(pipeline, tmp_path, door, variant):
    wishes = {"variant": variant} if variant else {}
    pipeline.save_pretrained(tmp_path, **SHARDED, **wishes)
    opened = DOORS[door](tmp_path, **wishes)
    assert_same(opened, pipeline)
    np.testing.assert_array_equal(sample(opened, CALLS["pretrained"]), sample(pipeline, CALLS["pretrained"]))


def altered(pipeline) -> AttnDiffPipeline:
    """The same with other weights."""
    other = AttnDiffPipeline.from_pipe(pipeline)
    other.register_modules(**{name: shifted(getattr(other, name)) for name in ("unet", "text_encoder")})
    return other


@torch.no_grad()
def shifted(module: torch.nn.Module) -> torch.nn.Module:
    made = type(module)(module.config) if hasattr(module.config, "to_dict") else type(module).from_config(module.config)
    made.load_state_dict(
        {key: value + 1 if value.is_floating_point() else value for key, value in module.state_dict().items()}
    )
    return made.eval()


@pytest.mark.parametrize("variant", [None, "bf16"])
@pytest.mark.parametrize(("first", "then"), [(SHARDED, WHOLE), (WHOLE, SHARDED), ({"max_shard_size": "20KB"}, SHARDED)])
def test_what_is_saved_last_is_all_there_is(pipeline, tmp_path, first, then, variant):
    wishes, other = {"variant": variant} if variant else {}, altered(pipeline)
    pipeline.save_pretrained(tmp_path / "twice", **first, **wishes)
    for folder in ("twice", "once"):
        other.save_pretrained(tmp_path / folder, **then, **wishes)
    twice, once = ({str(p.relative_to(tmp_path / f)) for p in (tmp_path / f).rglob("*")} for f in ("twice", "once"))
    assert twice == once
    for door in DOORS.values():
        assert_same(door(tmp_path / "twice", **wishes), other)


def test_a_variant_is_saved_beside_others(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    before = {path.name for path in (tmp_path / "unet").iterdir()}
    altered(pipeline).save_pretrained(tmp_path, variant="bf16", **SHARDED)
    altered(pipeline).save_pretrained(tmp_path, variant="bf16")
    assert {path.name for path in (tmp_path / "unet").iterdir()} - before == {
        "diffusion_pytorch_model.bf16.safetensors"
    }
    assert_same(attndiff.load(tmp_path), pipeline)


@pytest.mark.parametrize(
    "file",
    ["m.bf16.safetensors", "m.safetensors.index.bf16.json", "m.bf16-00003-of-00004.safetensors"],
)
def test_all_names_of_a_variant_are_known_by_one(file):
    names = ["m.bf16.safetensors", "m.safetensors.index.bf16.json", "m.bf16-?????-of-?????.safetensors"]
    assert same_weights(file) == names


def change_index(folder: Path, change) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def shard(folder: Path, number: int) -> Path:
    return sorted((folder / "unet").glob("*-of-*.safetensors"))[number]


def change_shard(file: Path, change) -> None:
    state = load_file(file)
    change(state)
    save_file(state, file, metadata={"format": "pt"})


def repeat_tensor(folder: Path) -> None:
    key, value = next(iter(load_file(shard(folder, 0)).items()))
    change_shard(shard(folder, 1), lambda state: state.update({key: value}))


def lead_out(folder: Path) -> None:
    shutil.move(shard(folder, 0), folder.parent / "outside.safetensors")
    change_index(folder, lambda index: index["weight_map"].update({"head.bias": "../../outside.safetensors"}))


DAMAGES = {
    r"00001-of-.* is missing, and .*\.index\.json names it": lambda folder: shard(folder, 0).unlink(),
    "is a shard that no index names": lambda folder: shutil.copy(
        shard(folder, 0), folder / "unet/diffusion_pytorch_model-00007-of-00007.safetensors"
    ),
    "shard that no index": lambda folder: (folder / INDEX).unlink(),
    r"00002-of-.* is in .*00001-of-.*, too": repeat_tensor,
    "extra should be in no file and is in": lambda folder: change_shard(
        shard(folder, 0), lambda state: state.update(extra=torch.zeros(2))
    ),
    r"should be in .* and is in none": lambda folder: change_shard(shard(folder, 0), lambda state: state.popitem()),
    "head.bias should be in no file": lambda folder: change_index(
        folder, lambda index: index["weight_map"].pop("head.bias")
    ),
    "must name a safetensors file beside it for each tensor": lead_out,
    "must name a safetensors file beside it": lambda folder: change_index(folder, lambda index: index.pop("metadata")),
    "must name a safetensors file": lambda folder: change_index(folder, lambda index: index.update(weight_map=[])),
    r"index\.json is damaged": lambda folder: (folder / INDEX).write_text("{"),
    r"00001-of-.* is damaged": lambda folder: shard(folder, 0).write_bytes(b"not weights at all"),
    "holds numbers that are not finite": lambda folder: change_shard(
        shard(folder, 1), lambda state: next(iter(state.values())).fill_(float("nan"))
    ),
}  # fmt: skip


@pytest.mark.parametrize("sentence", DAMAGES)
def test_damaged_shards_are_named(folder, sentence):
    DAMAGES[sentence](folder)
    with pytest.raises(UserError, match=sentence) as caught:
        attndiff.load(folder)
    assert "\n" not in str(caught.value)


def test_shards_that_are_not_the_networks_are_named(folder):
    """Sound by their index, which lacks what the config asks for."""
    key = next(iter(load_file(shard(folder, 1))))
    change_shard(shard(folder, 1), lambda state: state.pop(key))
    change_index(folder, lambda index: index["weight_map"].pop(key))
    with pytest.raises(UserError, match=f"{key} is absent, where the config asks for"):
        attndiff.load(folder)


@pytest.mark.parametrize("part", ["text_encoder", "vae"])
def test_shards_of_other_libraries_are_looked_at_too(pipeline, tmp_path, part):
    made = pipeline if part == "text_encoder" else unconditional_pipeline(vae=make_vae())
    made.save_pretrained(tmp_path, max_shard_size="4KB")
    sorted((tmp_path / part).glob("*-of-*.safetensors"))[0].unlink()
    with pytest.raises(UserError, match=rf"{part}/.*-00001-of-.* is missing, and .*\.index\.json names it"):
        attndiff.load(tmp_path)
