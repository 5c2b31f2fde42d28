"""The folder of a saved pipeline opens three ways with the same pixels, and runs no code unless it is told to."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from doors import CALLS, HELPER
from factories import (
    autoguided_pipeline,
    class_pipeline,
    pretrained_text_pipeline,
    unconditional_pipeline,
)
from without_attndiff import sample

import attndiff
from attndiff.errors import UserError
from attndiff.folder.code_bundle import bundle_component
from attndiff.folder.code_names import CODE_FILE, code_hash
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.pipelines.pipeline_attndiff import AttnDiffPipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A saved pipeline of every kind; the text one has a guide with an encoder."""
    root = tmp_path_factory.mktemp("saved")
    makers = {
        "text": autoguided_pipeline,
        "class": class_pipeline,
        "unconditional": unconditional_pipeline,
        "pretrained": pretrained_text_pipeline,
    }
    for name, make in makers.items():
        make().save_pretrained(root / name)
    return {name: root / name for name in makers}


@pytest.fixture(scope="module")
def expected(folders) -> dict[str, np.ndarray]:
    makers = {"class": class_pipeline, "unconditional": unconditional_pipeline, "pretrained": pretrained_text_pipeline}
    pipelines = {name: make() for name, make in makers.items()}
    pipelines["text"] = autoguided_pipeline()
    return {name: sample(pipelines[name], CALLS[name]) for name in CALLS}


def code_files(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*.py")}


@pytest.mark.parametrize("kind", CALLS)
def test_first_door(kind, folders, expected):
    for pipeline in (AttnDiffPipeline.from_pretrained(folders[kind]), attndiff.load(folders[kind])):
        assert type(pipeline) is AttnDiffPipeline and type(pipeline.unet) is AttentionUNet2DModel
        np.testing.assert_array_equal(sample(pipeline, CALLS[kind]), expected[kind])


def test_second_door_without_attndiff(folders, expected, tmp_path):
    """One process that cannot import attndiff opens, samples, saves and opens again; see the helper's own checks."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    request = {"folders": {name: str(path) for name, path in folders.items()}, "calls": CALLS, "out": str(tmp_path)}
    command = [sys.executable, str(HELPER), json.dumps(request)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    for complaint in ("Expected types", "pip install", "not expected"):
        assert complaint not in done.stderr
    for kind in CALLS:
        with np.load(tmp_path / f"{kind}.npz", allow_pickle=False) as got:
            for door, pixels in got.items():
                np.testing.assert_array_equal(pixels, expected[kind], err_msg=door)
        saved_again = tmp_path / f"{kind}-again"
        assert code_files(saved_again) == code_files(folders[kind])
        np.testing.assert_array_equal(sample(attndiff.load(saved_again), CALLS[kind]), expected[kind])


def test_third_door(folders):
    unet = AttentionUNet2DModel.from_pretrained(folders["text"], subfolder="unet")
    whole = AttnDiffPipeline.from_pretrained(folders["text"])
    x, tokens = torch.randn(1, 3, 16, 16), torch.randn(1, 4, 16)
    level = torch.zeros(1)
    assert torch.equal(unet(x, level, tokens).sample, whole.unet(x, level, tokens).sample)


def test_saving_again_gives_the_same_folder(folders, tmp_path):
    AttnDiffPipeline.from_pretrained(folders["text"]).save_pretrained(tmp_path)
    for file in folders["text"].rglob("*"):
        if file.is_file() and file.name != "tokenizer_config.json":  # transformers adds how it was opened
            assert (tmp_path / file.relative_to(folders["text"])).read_bytes() == file.read_bytes(), file


def index_of(folder: Path) -> dict:
    return json.loads((folder / "model_index.json").read_text())


def change_index(folder: Path, copy: Path, **changes) -> Path:
    """A copy of a folder with other entries in its index; None takes one out."""
    shutil.copytree(folder, copy)
    index = {key: value for key, value in (index_of(folder) | changes).items() if value is not None}
    (copy / "model_index.json").write_text(json.dumps(index))
    return copy


@pytest.mark.parametrize("stored", [["pipeline_attndiff_0123456789ab", "AttnDiffTimeTravelPipeline"], "AttnDiffElse"])
def test_a_pipeline_that_this_attndiff_does_not_have_is_refused(stored, folders, tmp_path):
    folder = change_index(folders["text"], tmp_path / "newer", _class_name=stored, _attndiff_version="9.9")
    name = stored[-1] if isinstance(stored, list) else stored
    sentence = f"holds an {name}, which attndiff 9.9 wrote; this is attndiff {attndiff.__version__}"
    with pytest.raises(UserError, match=re.escape(sentence)):
        attndiff.load(folder)
    with pytest.raises(ValueError, match=f"holds {name}, not AttnDiffPipeline; open it with attndiff.load"):
        AttnDiffPipeline.from_pretrained(folder)


def test_load_opens_every_folder_with_its_own_class_and_no_class_anothers(folders, tmp_path, monkeypatch):
    class AttnDiffOtherPipeline(AttnDiffPipeline):
        pass

    monkeypatch.setattr(attndiff, "PIPELINES", (*attndiff.PIPELINES, "AttnDiffOtherPipeline"))
    monkeypatch.setattr(attndiff, "AttnDiffOtherPipeline", AttnDiffOtherPipeline, raising=False)
    other = change_index(folders["text"], tmp_path / "other", _class_name="AttnDiffOtherPipeline")
    assert type(attndiff.load(other)) is AttnDiffOtherPipeline
    assert type(attndiff.load(folders["text"])) is AttnDiffPipeline
    for cls, folder in ((AttnDiffPipeline, other), (AttnDiffOtherPipeline, folders["text"])):
        with pytest.raises(ValueError, match=f"not {cls.__name__}; open it with attndiff.load"):
            cls.from_pretrained(folder)


def test_a_folder_says_which_attndiff_wrote_it(folders, tmp_path):
    assert index_of(folders["text"])["_attndiff_version"] == attndiff.__version__
    earlier = change_index(folders["class"], tmp_path / "earlier", _attndiff_version=None, _attndiff_format=None)
    assert attndiff.load(earlier).unet is not None and AttnDiffPipeline.from_pretrained(earlier).unet is not None
    later = change_index(folders["class"], tmp_path / "later", _attndiff_version="9.9", _attndiff_format=2)
    for open_it in (attndiff.load, AttnDiffPipeline.from_pretrained):
        with pytest.raises(ValueError, match=r"of format 2, which attndiff 9\.9 wrote, and this attndiff reads 1"):
            open_it(later)


def test_stock_scheduler_can_be_swapped_at_opening(folders):
    scheduler = FlowMatchEulerDiscreteScheduler(shift=2.0)
    assert AttnDiffPipeline.from_pretrained(folders["class"], scheduler=scheduler).scheduler is scheduler


@pytest.fixture
def trapped(folders, tmp_path) -> tuple[Path, Path]:
    """A folder whose code files write a canary when they are run, and the canary's path."""
    folder, canary = tmp_path / "trapped", tmp_path / "canary"
    shutil.copytree(folders["text"], folder)
    for file in folder.rglob("*.py"):
        file.write_text(file.read_text() + f"\nopen({str(canary)!r}, 'a').write({file.name!r})\n")
    for name in ("attndiff.unet.py", "attndiff.py", "None.py", "pipeline.py"):
        for place in (folder, folder / "unet"):
            (place / name).write_text(f"open({str(canary)!r}, 'a').write('extra')\n")
    return folder, canary


def test_nothing_runs_unless_trusted(trapped, monkeypatch, tmp_path):
    folder, canary = trapped
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(folder)
    for name in ("attndiff.unet.py", "None.py"):  # names that diffusers itself would take for code of the folder
        for open_it in (attndiff.load, AttnDiffPipeline.from_pretrained):
            with pytest.raises(ValueError, match="custom code"):
                open_it(folder)
        for place in (folder, folder / "unet"):
            (place / name).unlink()
    for trust in (False, True):
        assert AttnDiffPipeline.from_pretrained(folder, trust_remote_code=trust).unet is not None
        assert attndiff.load(folder, trust_remote_code=trust).unet is not None
    AttentionUNet2DModel.from_pretrained(folder, subfolder="unet")
    assert not canary.exists()
    DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert canary.exists()


def test_code_of_another_model_is_never_run(folders, tmp_path):
    folder, canary = tmp_path / "other", tmp_path / "canary"
    shutil.copytree(folders["text"], folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["text_encoder"] = ["evil", "EvilEncoder"]
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "text_encoder").mkdir()
    (folder / "text_encoder" / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n")
    with pytest.raises(UserError, match=r"text_encoder is a evil\.EvilEncoder, which is no part of a pipeline"):
        attndiff.load(folder, trust_remote_code=True)
    assert not canary.exists()


@pytest.mark.parametrize("cls", [AttnDiffPipeline, AttentionUNet2DModel, ConditionEncoder])
def test_code_file_stands_alone(cls):
    name, source = bundle_component(cls)
    assert CODE_FILE.fullmatch(name)[2] == code_hash(source)
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    ours = imported - sys.stdlib_module_names
    assert ours <= {"torch", "diffusers", "transformers", "numpy", "PIL", "huggingface_hub"}
    assert not re.search(r"^\s*(from|import)\s+(attndiff|\.)", source, flags=re.MULTILINE)


def test_clashing_names_are_refused(tmp_path, monkeypatch):
    (tmp_path / "clashing.py").write_text(
        "from attndiff.nn.rope import rotate\n\n\ndef rotate(): ...\n\n\nclass C: ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import clashing

    with pytest.raises(ValueError, match="rotate is defined differently"):
        bundle_component(clashing.C)


def test_saving_replaces_old_code_and_keeps_other_files(tmp_path):
    (tmp_path / "unet").mkdir()
    for name in ("unet/unet_0123456789ab.py", "notes.py"):
        (tmp_path / name).write_text("")
    unconditional_pipeline().save_pretrained(tmp_path)
    assert {p.name for p in tmp_path.rglob("*.py")} == {
        "notes.py", bundle_component(AttnDiffPipeline)[0], bundle_component(AttentionUNet2DModel)[0]
    }  # fmt: skip


def test_no_pickle_and_no_paths(tmp_path, folders):
    with pytest.raises(ValueError, match="pickle"):
        unconditional_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    AttnDiffPipeline.from_pretrained(folders["pretrained"]).save_pretrained(tmp_path)
    for file in tmp_path.rglob("*"):
        assert file.suffix in ("", ".json", ".safetensors", ".py"), file
        if file.suffix == ".json":
            assert str(folders["pretrained"].parent) not in file.read_text(), file


def test_half_precision_and_variants(folders, tmp_path, expected):
    pipeline = AttnDiffPipeline.from_pretrained(folders["text"])
    pipeline.unet.to(torch.bfloat16)
    pipeline.guide.to(torch.bfloat16)
    mixed = sample(pipeline, CALLS["text"])
    assert pipeline.unet.dtype is torch.bfloat16 and pipeline.condition_encoder.dtype is torch.float32
    assert 0 < np.abs(mixed - expected["text"]).mean() < 0.02
    opened = attndiff.load(folders["text"], dtype={"unet": torch.bfloat16, "default": torch.float32})
    assert (opened.unet.dtype, opened.guide.dtype) == (torch.bfloat16, torch.float32)
    pipeline.to(dtype=torch.bfloat16)
    pipeline.save_pretrained(tmp_path, variant="bf16")
    opened = attndiff.load(tmp_path, variant="bf16", dtype=torch.bfloat16)
    assert {opened.unet.dtype, opened.condition_encoder.dtype} == {torch.bfloat16}
    np.testing.assert_array_equal(sample(opened, CALLS["text"]), sample(pipeline, CALLS["text"]))
    again = AttnDiffPipeline.from_pipe(opened)
    assert again.unet is opened.unet and again.unet.dtype is torch.bfloat16


def damage_nothing(folder: Path) -> None:
    shutil.rmtree(folder)


def damage_index(folder: Path) -> None:
    index = folder / "model_index.json"
    index.write_text(index.read_text()[:40])


def damage_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('{"levels": [')


def damage_weights(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def damage_header(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not weights at all")


def lose_weights(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()


def lose_part(folder: Path) -> None:
    shutil.rmtree(folder / "condition_encoder")


def become_another(folder: Path) -> None:
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')


def lose_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


DAMAGES = {
    damage_nothing: "no such folder",
    damage_index: "model_index.json is damaged",
    damage_config: "config.json is damaged",
    damage_weights: "diffusion_pytorch_model.safetensors is damaged",
    damage_header: "diffusion_pytorch_model.safetensors is damaged",
    lose_weights: "diffusion_pytorch_model.safetensors",
    lose_part: "its folder condition_encoder is missing",
    become_another: "holds a StableDiffusionPipeline",
    lose_index: "has no model_index.json",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_named(damage, folders, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(folders["text"], folder)
    damage(folder)
    with pytest.raises(UserError, match=re.escape(DAMAGES[damage])) as caught:
        attndiff.load(folder)
    assert "\n" not in str(caught.value)
