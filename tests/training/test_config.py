"""Settings: typed, from YAML and overrides, stored resolved, and mistakes answered in one sentence."""

import pytest
import yaml

from attndiff.errors import UserError
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.config import RECIPES, load_config, make_config, store_config
from attndiff.training.settings.networks import check_network_settings

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
        ("optim.lr={", ["optim.lr", "YAML"]),
        ("objective.name=flaw", ["objective.name", "flow", "flaw"]),
        ("objective.noise=2", ["objective.noise", "objective.noise_"]),
        ("objective.noise_std=wide", ["objective.noise_std", "number", "wide"]),
        ("objective.noise_std=0", ["objective.noise_std", "greater than 0"]),
        ("objective.sigma_data=.nan", ["objective.sigma_data"]),
        ("objective.noise_mean=[1]", ["objective.noise_mean", "number"]),
        ("objective=flow", ["objective", "section"]),
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


def test_numbers_without_a_dot_are_numbers(tmp_path):
    """YAML 1.1 reads them as text; a stored text that looks like one stays a text."""
    file = write(tmp_path, MINIMAL)
    file.write_text(file.read_text() + "\nobjective: {sigma_data: 5e-1}\n", encoding="utf-8")
    overrides = [
        "objective.noise_std=2e0",
        "model.unet.dropout=1e-1",
        "data.max_aspect=2e0",
        "data.where={code: ['1e5']}",
    ]
    config = load_config(file, overrides)
    assert config.objective.model_dump() == {"sigma_data": 0.5, "noise_std": 2.0}
    assert config.model.unet == {"dropout": 0.1} and config.data.max_aspect == 2.0
    store_config(config, tmp_path / "stored.yaml")
    assert load_config(tmp_path / "stored.yaml").data.where == {"code": ["1e5"]}


def test_an_objective_is_stored_as_it_was_given():
    """So what is not given is measured again, or is the earlier model's, when the stored config is read."""
    for given in ({"name": "flow"}, {"noise_std": 2.0}, {"name": "edm", "min_snr_gamma": None}):
        stored = make_config(MINIMAL | {"objective": given}).model_dump(mode="json")
        assert stored["objective"] == given
        assert make_config(stored).objective.model_dump() == given
    assert make_config(MINIMAL).objective.model_dump() == {"name": "flow"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"dropout": "much"}, ["model.unet.dropout", "number", "'much'"]),
        ({"head_dim": 8.5}, ["model.unet.head_dim", "integer", "8.5"]),
        ({"head_dims": 8}, ["model.unet.head_dims", "head_dim?"]),
        ({"seamless": "yes, please"}, ["model.unet.seamless", "boolean"]),
        ({"levels": [{"width": "wide"}]}, ["model.unet.levels[0].width", "integer", "'wide'"]),
        ({"levels": [{"widht": 8}]}, ["model.unet.levels[0].widht", "width?"]),
    ],
)
def test_a_networks_settings_are_checked_by_its_signature(settings, words):
    with pytest.raises(UserError) as error:
        check_network_settings(AttentionUNet2DModel, settings, "model.unet")
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_pass_that_check(preset):
    check_network_settings(AttentionUNet2DModel, PRESETS[preset]["unet"], "model.unet")
    check_network_settings(ConditionEncoder, PRESETS[preset]["encoder"], "model.encoder")
