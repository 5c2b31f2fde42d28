"""What earlier versions wrote is read as it was then, and what later ones will write is refused."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import TESTS
from runs import losses

from attndiff.errors import UserError
from attndiff.folder.open import load
from attndiff.training.config import load_config, make_config
from attndiff.training.run.loop import Trainer

FORMATS = sorted((TESTS / "fixtures").glob("format_*"))


def resumed(fixture: Path, out: Path) -> Path:
    """A run of that time, in a folder of its own."""
    shutil.copytree(fixture / "run", out)
    return out


@pytest.mark.parametrize("fixture", FORMATS, ids=lambda f: f.name)
def test_a_run_goes_on_as_it_would_have(fixture, tmp_path):
    out = resumed(fixture, tmp_path / "run")
    Trainer(load_config(fixture / "config.yaml", [f"out={out}"])).run()
    expected = json.loads((fixture / "expected.json").read_text())
    ours = [float.fromhex(loss) for loss in losses(out)]
    assert ours[-len(expected) :] == pytest.approx(
        list(expected.values()), rel=1e-3
    )  # other processors round otherwise


@pytest.mark.parametrize("fixture", FORMATS, ids=lambda f: f.name)
def test_a_pipeline_gives_the_sample_that_it_gave(fixture):
    image = load(fixture / "pipeline")(
        "pizza, noto", num_inference_steps=4, generator=torch.Generator().manual_seed(1)
    ).images[0]
    then = np.asarray(Image.open(fixture / "sample.png").convert("RGB"), int)
    assert np.abs(np.asarray(image, int) - then).max() <= 2


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    out = resumed(FORMATS[-1], tmp_path / "run")
    (folder,) = (out / "checkpoints").iterdir()
    progress = json.loads((folder / "progress.json").read_text()) | {"format_version": 99}
    (folder / "progress.json").write_text(json.dumps(progress))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["progress.json"] = hashlib.sha256((folder / "progress.json").read_bytes()).hexdigest()
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="checkpoint of format 99, and this attndiff reads 1"):
        Trainer(load_config(FORMATS[-1] / "config.yaml", [f"out={out}"])).run()


def test_a_config_of_a_later_format_is_refused(tmp_path):
    values = json.loads((FORMATS[-1] / "run/config.json").read_text()) | {"format_version": 99}
    with pytest.raises(UserError, match="format_version is 99, and this attndiff reads 1"):
        make_config(values)
