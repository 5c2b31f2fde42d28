"""Settings: typed, from YAML and overrides, stored resolved, and mistakes answered in one sentence."""

from math import inf

import pytest
import yaml

from attndiff.errors import UserError
from attndiff.nn.decoder import TextDecoderModel
from attndiff.nn.encoder import ConditionEncoder
from attndiff.nn.presets import PRESETS
from attndiff.nn.unet import AttentionUNet2DModel
from attndiff.training.build import build
from attndiff.training.config import RECIPES, load_config, make_config, store_config
from attndiff.training.run.loop import Trainer
from attndiff.training.settings.networks import check_network_settings
from attndiff.training.settings.trackers import TRACKERS, check_installed

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


AS_TYPED = ["exp #2", "[2024] set", "a: b", "2024", "2024-05-01", "null", "yes", "010", "1:30", "1e3", "-"]
AS_TYPED += ["{a", "'b", '"c', "@d", "*.tar", "&e", "%f", "!g", "`h", " i "]


@pytest.mark.parametrize("text", AS_TYPED)
def test_a_text_arrives_as_it_was_typed(tmp_path, text):
    keys = ("out", "data.path", "data.image_column", "model.preset")
    with pytest.raises(UserError) as error:
        load_config(write(tmp_path, MINIMAL), [f"{key}={text}" for key in keys])
    assert f"model.preset {text!r} is unknown" in str(error.value)
    config = load_config(write(tmp_path, MINIMAL), [f"{key}={text}" for key in keys[:3]])
    assert (config.out, config.data.path, config.data.image_column) == (text, text, text)


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("data.background=#008080", "#008080"),
        ("data.caption_column=null", None),
        ("data.caption_column=", None),
        ("data.caption_column=5", "5"),
        ("data.caption_column='text'", "'text'"),
        ("data.channels=5", 5),
        ("data.channels=LA", "LA"),
        ("data.validation=0.25", 0.25),
        ("data.validation=[2] held out", "[2] held out"),
        ("data.validation=-", "-"),
        ("data.stream=yes", True),
        ("data.size=016", 16),
        ("data.max_aspect=2e0", 2.0),
        ("data.class_names=[2024, no, 010, 1:30]", ["2024", "no", "010", "1:30"]),
        ("data.columns={depth: image}", {"depth": "image"}),
        ("data.columns.depth=mask", {"depth": "mask"}),
        ("data.where={2024: [010, 1:30, 2024-05-01, 7, 0.5]}", {"2024": ["010", "1:30", "2024-05-01", 7, 0.5]}),
        ("data.exclude=[{2024: 7}]", [{"2024": 7}]),
        ("optim.clip=.inf", inf),
        ("task={name: upscale, at_once: 1}", 1.0),
    ],
)
def test_a_value_is_read_as_what_the_setting_is(tmp_path, override, value):
    config = load_config(write(tmp_path, MINIMAL), [override])
    section, _, name = override.partition("=")[0].partition(".")
    found = getattr(getattr(config, section), name.split(".")[0] or "at_once")
    assert found == value and type(found) is type(value)


def test_a_file_gives_texts_as_they_were_written(tmp_path):
    file = tmp_path / "config.yaml"
    file.write_text(
        "out: 010\ndata: {path: 2024, validation: 2024-05-01, caption_column: on, label_column: null}\n"
        "optim: &optim {steps: 0020, minutes: ~}\nlog: {prompts: [1:30, yes, 'null', 1e3, two words]}\n"
        "condition: {<<: {kind: class, dropout: 0.5}, dropout: .25}\n"
    )
    config = load_config(file)
    data = config.data
    assert (config.out, data.path, data.validation) == ("010", "2024", "2024-05-01")
    assert (data.caption_column, data.label_column, config.optim.steps) == ("on", None, 20)
    assert config.log.prompts == ["1:30", "yes", "null", "1e3", "two words"]
    assert (config.condition.kind, config.condition.dropout) == ("class", 0.25)
    store_config(config, tmp_path / "stored.yaml")
    assert load_config(tmp_path / "stored.yaml") == config


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 1\nout: b\n", "out is given twice, in lines 1 and 5"),
        ("model:\n  unet: {levels: [{width: 8, width: 16}]}\n", "width is given twice, in line 5"),
        ("data: {path: other}\n", "data is given twice, in lines 2 and 4"),
    ],
)
def test_a_key_given_twice_in_a_file_is_refused(tmp_path, text, words):
    file = tmp_path / "config.yaml"
    file.write_text("out: a\ndata: {path: somewhere}\noptim: {steps: 5}\n" + text)
    with pytest.raises(UserError, match=f"config.yaml: {words}"):
        load_config(file)


@pytest.mark.parametrize(
    "text", ["? [a]\n: b\n", "log: {prompts: &a [*a]}\n", "out: !!python/name:os.system\n", "a: b: c\n"]
)
def test_a_file_that_is_no_plain_yaml_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"config\.yaml is not valid YAML"):
        load_config(tmp_path / "config.yaml")


def test_a_key_typed_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"optim\.lr is given twice"):
        load_config(write(tmp_path, MINIMAL), ["optim.lr=1", "seed=2", "optim.lr=1"])
    with pytest.raises(UserError, match="path is given twice, in line 1"):
        load_config(write(tmp_path, MINIMAL), ["data={path: a, path: b}"])


def test_the_home_folder_is_meant_wherever_a_path_is(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = ("out", "data.path", "data.validation", "condition.pretrained", "model.vae")
    overrides = [f"{key}=~/x" for key in keys]
    write(tmp_path, MINIMAL)
    config = load_config("~/config.yaml", overrides)
    names = (config.out, config.data.path, config.data.validation, config.condition.pretrained, config.model.vae)
    assert set(names) == {f"{tmp_path}/x"}
    assert load_config("~/config.yaml", ["model.init_from=~/x"]).model.init_from == f"{tmp_path}/x"


def test_trackers_are_those_of_accelerate():
    from accelerate.utils import LoggerType

    assert set(TRACKERS) <= set(map(str, LoggerType.list()))
    for tracker in (None, "tensorboard", "all"):
        check_installed(tracker)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(TRACKERS, "wandb", (("no_such_module",), "wandb"))
    values = MINIMAL | {"out": str(tmp_path / "run"), "log": {"tracker": "wandb"}}
    with pytest.raises(UserError, match=r"log\.tracker wandb is not installed: pip install wandb"):
        Trainer(make_config(values))
    assert not any(tmp_path.iterdir())


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
        ("out=", ["out", "no path"]),
        ("log.tracker=tensorbord", ["tracker", "did you mean 'tensorboard'"]),
        ("optim.minutes=1:30", ["optim.minutes", "number", "1:30"]),
        ("optim.steps=true", ["optim.steps", "number", "True"]),
        ("optim.ema=[true]", ["optim.ema", "number", "True"]),
        ("data.size=true", ["data.size", "number", "True"]),
        ("optim.lr=.inf", ["optim.lr", "finite"]),
        ("optim.lr=nan", ["optim.lr", "finite"]),
        ("log.guidance_scale=.inf", ["log.guidance_scale", "finite"]),
        ("data.max_aspect=.inf", ["data.max_aspect", "finite"]),
        ("task={name: upscale, at_once: true}", ["task", "at_once", "number"]),
        ("task={name: inpaint, hole_weight: .inf}", ["task", "hole_weight", "finite"]),
        ("task={name: upscale, scael: 2}", ["task.scael", "task.scale?"]),
        ("seed=4294967296", ["seed", "4294967296"]),
        ("data.background=5", ["data", "background", "'5'", "colour"]),
        ("data.pth=[2024] set", ["data.pth", "data.path?"]),
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
        ({"dropout": True}, ["model.unet.dropout", "number", "True"]),
        ({"dropout": inf}, ["model.unet.dropout", "finite"]),
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
    for encoder in ("encoder", "image_encoder"):
        check_network_settings(ConditionEncoder, PRESETS[preset][encoder], "model.encoder")
    check_network_settings(TextDecoderModel, PRESETS[preset]["text_decoder"], "model.text_decoder")


def test_a_networks_settings_are_checked_before_the_data_is_read():
    values = MINIMAL | {"data": {"path": "no/such/folder"}}
    for section, setting in (("unet", "widht"), ("encoder", "hidden")):
        with pytest.raises(UserError, match=rf"model\.{section}\.{setting}"):
            build(make_config(values | {"model": {section: {setting: 3}}}))


def test_a_batch_is_divided_before_the_data_is_read(tmp_path):
    values = {"out": str(tmp_path / "run"), "data": {"path": "no/such/folder"}}
    with pytest.raises(UserError, match=r"optim\.batch_size 8 must be a multiple of optim\.micro_batch 3"):
        Trainer(make_config(values | {"optim": {"steps": 5, "batch_size": 8, "micro_batch": 3}}))
