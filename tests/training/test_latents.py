"""Training in the latents of a frozen autoencoder: a small random one, on real images."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import attndiff as command
from commands import make_config as write_config
from commands import make_images, tree
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline
from factories import make_vae, unconditional_pipeline
from runs import FOOD, losses, settings, weights
from safetensors.torch import load_file, save_file

import attndiff
from attndiff.data.config import DataConfig
from attndiff.data.image_set import ImageSet
from attndiff.data.order.draw import draw
from attndiff.errors import UserError
from attndiff.folder.shipped import bundled_data
from attndiff.training import latents as module
from attndiff.training.batches import DrawnDataset
from attndiff.training.config import make_config
from attndiff.training.evaluation.samples import sample_row
from attndiff.training.export import export_checkpoint
from attndiff.training.latents import LatentSet, encode, open_vae
from attndiff.training.run.loop import Trainer
from attndiff.training.stopping import LOCK, locked

SIDE = 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A saved autoencoder."""
    path = tmp_path_factory.mktemp("autoencoder") / "tiny-vae"
    make_vae().save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def images():
    return ImageSet(DataConfig(**{**FOOD, "path": str(bundled_data("emoji32")), "size": SIDE}))


def train(out, folder, **changes) -> Path:
    values = settings(out, data__size=SIDE, model__vae=str(folder))
    values["optim"] |= {"steps": 4}
    values["log"] |= {"sample_every": 4, "checkpoint_every": 2, "validate_every": 4}
    for key, value in changes.items():
        section, name = key.split("__")
        values[section] |= {name: value}
    Trainer(make_config(values)).run()
    return out


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "latent", folder)


@pytest.fixture
def encodes(monkeypatch) -> list[int]:
    """Sizes of the batches that are encoded from here on."""
    sizes, stock = [], AutoencoderKL.encode
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, x: sizes.append(len(x)) or stock(self, x))
    return sizes


def restart(run: Path, out: Path) -> Path:
    """A copy of a run as a kill after step 2 would have left it."""
    shutil.copytree(run, out)
    shutil.rmtree(out / "checkpoints" / "step_00000004")
    stored = json.loads((out / "config.json").read_text()) | {"out": str(out)}
    (out / "config.json").write_text(json.dumps(stored))
    (out / "log.jsonl").write_text("")
    return out


def same(first: dict, second: dict) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# A run and what it leaves


def test_the_folder_opens_and_gives_images_of_the_trained_size(run, folder, images, tmp_path, monkeypatch):
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    index = json.loads((run / "pipeline/model_index.json").read_text())
    assert index["data"] == images.describe() and index["vae"] == ["diffusers", "AutoencoderKL"]
    call = {"prompt": ["pizza, noto"], "num_inference_steps": 2, "output_type": "np"}
    pixels = []
    for pipe in (
        attndiff.AttnDiffPipeline.from_pretrained(run / "pipeline"),
        DiffusionPipeline.from_pretrained(run / "pipeline", trust_remote_code=True),
    ):
        assert (pipe.unet.config.in_channels, pipe.unet.config.sample_size) == (4, SIDE // 2)
        pixels.append(pipe(**call, generator=torch.Generator().manual_seed(0)).images)
    assert pixels[0].shape == (1, SIDE, SIDE, 3)
    np.testing.assert_array_equal(*pixels)
    variant = next((run / "pipeline/unet").glob("*.ema_*.safetensors")).name.split(".")[1]
    assert attndiff.load(run / "pipeline", variant=variant).vae is not None
    assert str(folder) not in (run / "pipeline/vae/config.json").read_text()
    assert same(load_file(run / "pipeline/vae/diffusion_pytorch_model.safetensors"), make_vae().state_dict())


def test_grids_and_the_card_show_images(run):
    parts = Trainer(make_config(json.loads((run / "config.json").read_text()))).parts
    parts.model.preview_steps = 1
    assert sample_row(parts, ["pizza, noto"], 1.0)[0].size == (SIDE, SIDE)
    card = (run / "pipeline/README.md").read_text()
    assert "| autoencoder | `tiny-vae`, frozen; an image is 4 x 16 x 16 latents |" in card
    assert "Mean squared error of the denoised latents" in card and "multiples of 8 px" in card


def test_sigma_data_is_that_of_the_latents(run, images):
    expected = encode(make_vae(), torch.from_numpy(np.stack([images[i]["image"] for i in range(len(images))])))
    index = json.loads((run / "pipeline/model_index.json").read_text())
    assert index["objective"]["sigma_data"] == pytest.approx(expected.std().item(), abs=2e-4)


def test_a_stopped_run_ends_bit_identical(run, folder, encodes, tmp_path):
    out = train(restart(run, tmp_path / "stopped"), folder)
    assert encodes == []
    assert losses(out) == losses(run)[2:] and same(weights(out), weights(run))


def test_workers_and_a_cache_on_disk_change_nothing(run, folder, monkeypatch, tmp_path):
    """Started anew, with the latents encoded again and read from disk by other processes."""
    monkeypatch.setattr(module, "CACHE_BYTES", 0)
    monkeypatch.setattr(module, "FILE_BYTES", 1 << 18)
    assert losses(train(tmp_path / "run", folder, optim__workers=2)) == losses(run)


def test_a_latent_model_brings_its_autoencoder(run, tmp_path):
    values = settings(tmp_path / "next", data__size=SIDE, model__init_from=str(run / "pipeline"))
    parts = Trainer(make_config(values)).parts
    assert same(parts.vae.state_dict(), make_vae().state_dict()) and parts.images.shape == (4, 16, 16)
    assert not any("unet." in note for note in parts.notes)


def test_export_encodes_nothing_again(run, encodes, tmp_path):
    exported = export_checkpoint(run, tmp_path / "exported")
    assert encodes == []
    assert (exported / "vae/config.json").read_bytes() == (run / "pipeline/vae/config.json").read_bytes()


# The latents


def test_the_pipeline_undoes_the_scaling(images, tmp_path):
    """Encoding and decoding gives the autoencoder's own reconstruction."""
    vae = make_vae()
    latents = LatentSet(images, vae, tmp_path)
    pixels = torch.from_numpy(np.stack([images[i]["image"] for i in range(4)]))
    with torch.no_grad():
        expected = (vae(pixels).sample / 2 + 0.5).clamp(0, 1)
    assert 0.1 < expected.mean() < 0.9  # not all of it clipped
    pipe = unconditional_pipeline(vae=vae)
    decoded = pipe.decode_latents(torch.from_numpy(np.stack([latents[i]["image"] for i in range(4)])), "pt")
    torch.testing.assert_close(decoded, expected, atol=1e-5, rtol=0)


def test_flipped_latents_are_those_of_flipped_images(images, tmp_path):
    vae = make_vae()
    latents = LatentSet(images, vae, tmp_path, mirror=True)
    dataset = DrawnDataset(latents, SimpleNamespace(sample=lambda *_: {}), seed=0, flip=0.5)
    flips = 0
    for i in range(8):
        flipped = draw(0, 3, i, latents.shape, 0.0, 0.5).flip
        pixels = torch.from_numpy(images[i]["image"])
        expected = encode(vae, (pixels.flip(-1) if flipped else pixels)[None])[0]
        torch.testing.assert_close(dataset[(i, 3)]["images"], expected, atol=1e-5, rtol=0)
        flips += flipped
        assert (latents[i].mirrored()["image"] - latents[i]["image"][..., ::-1]).std() > 0.1 * latents[i]["image"].std()
    assert 0 < flips < 8


def test_every_image_is_encoded_once(images, encodes, tmp_path):
    first = LatentSet(images, make_vae(), tmp_path)
    assert sum(encodes) == len(images)
    second = LatentSet(images, make_vae(), tmp_path)
    assert sum(encodes) == len(images)
    assert all(np.array_equal(first[i]["image"], second[i]["image"]) for i in range(len(images)))
    LatentSet(images, make_vae(), tmp_path, mirror=True)
    assert sum(encodes) == 3 * len(images)
    LatentSet(images, make_vae(scale=0.06), tmp_path)
    assert sum(encodes) == 4 * len(images)
    other = ImageSet(
        DataConfig(path=str(bundled_data("emoji32")), size=16, where={"group": ["Activities"], "style": ["noto"]})
    )
    LatentSet(other, make_vae(), tmp_path)
    assert sum(encodes) == 4 * len(images) + len(other)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def turn_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-50] ^= 1
    file.write_bytes(data)


def replace_by_other_tensors(file: Path) -> None:
    save_file({"latents": torch.zeros(2)}, file)


@pytest.mark.parametrize("damage", [cut, turn_a_bit, replace_by_other_tensors, Path.unlink])
def test_a_damaged_file_alone_is_encoded_again(damage, images, encodes, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FILE_BYTES", 1 << 16)  # sixteen images a file
    first = LatentSet(images, make_vae(), tmp_path)
    before = tree(tmp_path)
    encodes.clear()
    damage(first.folder / "000001.safetensors")
    second = LatentSet(images, make_vae(), tmp_path)
    assert sum(encodes) == 16 and tree(tmp_path) == before
    assert all(np.array_equal(first[i]["image"], second[i]["image"]) for i in range(len(images)))


def test_two_processes_write_what_one_does(images, encodes, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "FILE_BYTES", 1 << 16)
    monkeypatch.setattr(module, "CACHE_BYTES", 0)  # the first to come does not wait here, so it must not read yet
    LatentSet(images, make_vae(), tmp_path / "one")
    encodes.clear()
    for rank in (1, 0):
        state = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=not rank, wait_for_everyone=int)
        both = LatentSet(images, make_vae(), tmp_path / "two", state=state)
    assert sum(encodes) == len(images) and tree(tmp_path / "two") == tree(tmp_path / "one")
    copy = pickle.loads(pickle.dumps(both))
    assert np.array_equal(copy[17]["image"], both[17]["image"]) and copy[17]["caption"] == images[17]["caption"]


def test_an_image_without_finite_latents_is_named(images, tmp_path):
    vae = make_vae()
    with torch.no_grad():
        vae.quant_conv.bias.fill_(float("nan"))
    with pytest.raises(UserError, match=f"no finite latents for {images.name(0)}"):
        LatentSet(images, vae, tmp_path)
    assert tree(tmp_path) == {}


# Mistakes


@pytest.fixture(scope="module")
def place(tmp_path_factory, folder) -> Path:
    """A sound config and things that are no autoencoder."""
    root = tmp_path_factory.mktemp("place")
    make_images(root / "images")
    write_config(root / "config.yaml", root / "images", root / "run", model={"preset": "tiny", "vae": str(folder)})
    unconditional_pipeline().save_pretrained(root / "pixels")
    AutoencoderTiny(
        encoder_block_out_channels=(8,), decoder_block_out_channels=(8,), num_encoder_blocks=(1,),
        num_decoder_blocks=(1,),
    ).save_pretrained(root / "other")  # fmt: skip
    make_vae(channels=1).save_pretrained(root / "grey")
    for name in ("cut", "lacking", "torn", "pickled"):
        shutil.copytree(folder, root / name)
    cut(root / "cut/diffusion_pytorch_model.safetensors")
    state = load_file(root / "lacking/diffusion_pytorch_model.safetensors")
    del state["encoder.conv_in.weight"]
    save_file(state, root / "lacking/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
    (root / "torn/config.json").write_text("{")
    (root / "pickled/diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, root / "pickled/diffusion_pytorch_model.bin")
    return root


MISTAKES = {
    "absent": (["model.vae={root}/nowhere"], ["model.vae", "nowhere"]),
    "a bare name": (["model.vae=nowhere"], ["model.vae", "nowhere", "user/name"]),
    "a folder without one": (["model.vae={root}/images"], ["model.vae", "images", "config.json"]),
    "a pipeline without one": (["model.vae={root}/pixels"], ["model.vae", "pixels", "config.json"]),
    "of another class": (["model.vae={root}/other"], ["model.vae", "AutoencoderTiny", "AutoencoderKL"]),
    "config torn": (["model.vae={root}/torn"], ["model.vae", "torn", "JSON"]),
    "weights cut short": (["model.vae={root}/cut"], ["model.vae", "cut"]),
    "weights missing": (["model.vae={root}/lacking"], ["model.vae", "encoder.conv_in.weight"]),
    "pickled weights": (["model.vae={root}/pickled"], ["model.vae", "safetensors"]),
    "grey images": (["data.channels=L"], ["3 channels", "have 1 (L)", "data.channels"]),
    "grey autoencoder": (["model.vae={root}/grey"], ["takes 1 channels", "have 3 (R, G, B)"]),
    "size": (["data.size=20"], ["data.size 20", "multiple of 8", "4 latents of 2 pixels"]),
    "shapes": (["data.size=32", "data.max_aspect=2"], ["model.vae", "data.max_aspect"]),
    "two sources": (["model.init_from={root}/pixels"], ["model.vae", "leave one"]),
    "out": (["out={root}/config.yaml/run"], ["config.yaml", "out"]),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(place, mistake):
    overrides, words = MISTAKES[mistake]
    before = tree(place)
    result = command("train", place / "config.yaml", *[text.replace("{root}", str(place)) for text in overrides])
    assert result.code == 2 and result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert len(result.err) < 600 and all(word in result.err for word in words), result.err
    assert tree(place) == before


def test_a_run_stopped_while_encoding_can_go_on(place, tmp_path):
    overrides = [f"out={tmp_path / 'run'}", "optim.steps=1"]
    assert command("train", place / "config.yaml", *overrides, "--dry-run").code == 0
    assert {path.name for path in (tmp_path / "run").iterdir()} == {module.FOLDER, LOCK}
    assert command("train", place / "config.yaml", *overrides).code == 0


def test_nothing_is_written_into_a_folder_that_another_run_holds(place, tmp_path):
    out = tmp_path / "run"
    with locked(out):
        result = command("train", place / "config.yaml", f"out={out}")
        assert result.code == 2 and "another run is writing to" in result.err, result.err
        assert [path.name for path in out.iterdir()] == [LOCK]


def test_two_writers_of_the_same_latents_write_aside_in_different_files(tmp_path, monkeypatch):
    latents, path = np.ones((1, 1, 4, 2, 2), np.float32), tmp_path / "set/000000.safetensors"
    aside, save = [], module.save_file

    def write(tensors, partial, **settings):
        aside.append(partial)
        if len(aside) == 1:
            module.write_latents(path, latents)  # the other one, in the middle of this one's writing
        save(tensors, partial, **settings)

    monkeypatch.setattr(module, "save_file", write)
    module.write_latents(path, latents)
    assert aside[0] != aside[1] and module.is_whole(path)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_what_a_killed_writer_left_is_cleared(place, tmp_path):
    left = tmp_path / "run" / module.FOLDER / "of some images/000000.1234.partial"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    assert command("train", place / "config.yaml", f"out={tmp_path / 'run'}", "--dry-run").code == 0
    assert not left.exists()


def test_names_that_hold_an_autoencoder(folder, run, tmp_path):
    """Its own folder, in any precision, or a pipeline's."""
    make_vae().half().save_pretrained(tmp_path)
    assert open_vae(str(tmp_path)).dtype is torch.float32
    assert same(open_vae(str(folder)).state_dict(), open_vae(str(run / "pipeline")).state_dict())
