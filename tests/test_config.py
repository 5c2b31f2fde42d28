"""Settings: typed, from YAML and overrides, stored resolved, and mistakes answered in one sentence."""

import pytest
import yaml

from attndiff.errors import UserError
from attndiff.training.config import RECIPES, load_config, make_config, store_config

MINIMAL = {"out": "runs/x", "data": {"path": "somewhere"}, "optim": {"steps": 5}}


def write(tmp_path, values):
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def test_overrides_are_typed_and_nested(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["optim.lr=0.5", "data.size=16", "data.where={style: [noto]}"])
    assert config.optim.lr == 0.5 and config.data.size == 16
    assert config.data.where == {"style": ["noto"]}


def test_the_stored_config_is_the_same_config(tmp_path):
    config = load_config(write(tmp_path, MINIMAL), ["optim.lr=0.25"])
    store_config(config, tmp_path / "stored.yaml")
    assert load_config(tmp_path / "stored.yaml") == config


@pytest.mark.parametrize("recipe", sorted(p.stem for p in RECIPES.glob("*.yaml")))
def test_every_bundled_recipe_is_valid(recipe):
    assert load_config(recipe).out.startswith("runs/")


@pytest.mark.parametrize(
    "override, words",
    [
        ("optim.lrr=1", ["optim.lrr", "optim.lr?"]),
        ("optm.lr=1", ["optm", "optim?"]),
        ("data.pth=x", ["data.pth", "data.path?"]),
        ("optim.lr=fast", ["optim.lr", "number"]),
        ("optim.batch_size=0", ["optim.batch_size", "greater than or equal to 1"]),
        ("optim.minutes=3", ["optim.steps", "optim.minutes"]),
        ("model.preset=huge", ["model.preset", "huge", "xs"]),
        ("optim.lr", ["optim.lr", "KEY=VALUE"]),
        ("format_version=99", ["format_version", "99"]),
        ("data.channels=RGBX", ["channels", "RGBX"]),
        ("optim.ema=[0.5]", ["optim.ema"]),
        ("data=5", ["data"]),
    ],
)
def test_a_wrong_setting_is_one_sentence(tmp_path, override, words):
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, MINIMAL), [override])
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_missing_sections_are_named():
    with pytest.raises(UserError, match="data"):
        make_config({"out": "x", "optim": {"steps": 1}})
