"""A table of mistakes: each is answered by one clear sentence, and nothing is written."""

import json
import shutil

import pytest
from commands import attndiff, make_config, make_images, tree
from factories import class_pipeline, text_pipeline, unconditional_pipeline


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Models and data, sound and damaged; no command below changes a file of it."""
    root = tmp_path_factory.mktemp("place")
    text_pipeline().save_pretrained(root / "text")
    class_pipeline().save_pretrained(root / "class")
    unconditional_pipeline().save_pretrained(root / "none")
    shutil.copytree(root / "text", root / "cut")
    weights = next((root / "cut/unet").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-100])
    shutil.copytree(root / "text", root / "garbled")
    next((root / "garbled/unet").glob("*.safetensors")).write_bytes(b"not weights at all")
    shutil.copytree(root / "text", root / "partial")
    shutil.rmtree(root / "partial/unet")
    (root / "foreign").mkdir()
    (root / "foreign/model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    make_images(root / "images")
    make_images(root / "silent", captions=False)
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    for i in range(3):
        (root / f"broken/{i}.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing more")
    (root / "notes.txt").write_text("years of work")
    (root / "used").mkdir()
    (root / "used/thesis.txt").write_text("years of work")
    (root / "list.yaml").write_text("- one\n- two\n")
    (root / "torn.yaml").write_text("out: [unclosed\n")
    (root / "twice.yaml").write_text("out: a\nout: b\n")
    (root / "binary.yaml").write_bytes(bytes(range(128, 256)))
    make_config(root / "config.yaml", root / "images", root / "run")
    return root


TRAIN = {
    # What is wrong: (overrides of a sound config, words the sentence has to have)
    "unknown key": (["optim.stepz=3"], ["optim.stepz", "optim.steps"]),
    "unknown section": (["optimm.steps=3"], ["optimm", "optim"]),
    "override without a value": (["optim.steps"], ["optim.steps", "KEY=VALUE"]),
    "text for a number": (["optim.batch_size=many"], ["optim.batch_size"]),
    "number for a section": (["optim=3"], ["optim"]),
    "list for a number": (["optim.lr=[1, 2]"], ["optim.lr"]),
    "no steps at all": (["optim.steps=0"], ["optim.steps"]),
    "steps and minutes": (["optim.minutes=1"], ["optim.steps", "optim.minutes"]),
    "learning rate not a number": (["optim.lr=.nan"], ["optim.lr"]),
    "guidance not a number": (["log.guidance_scale=.nan"], ["log.guidance_scale"]),
    "batch not divisible": (["optim.micro_batch=3"], ["optim.batch_size", "4", "3"]),
    "average too wide": (["optim.ema=[0.5]"], ["optim.ema"]),
    "unknown preset": (["model.preset=huge"], ["model.preset", "huge", "xs"]),
    "unknown objective": (["objective.name=flaw"], ["objective", "flaw", "flow"]),
    "unknown condition": (["condition.kind=smell"], ["condition.kind", "text"]),
    "unknown setting of the network": (["model.unet.widht=3"], ["model.unet", "widht"]),
    "adapter on nothing": (["model.lora_rank=4"], ["model.lora_rank", "model.init_from"]),
    "image size of no network": (["data.size=17"], ["17"]),
    "image size below one": (["data.size=0"], ["size"]),
    "negative image size": (["data.size=-32"], ["size"]),
    "unknown channels": (["data.channels=RGBX"], ["channels", "RGBX"]),
    "unknown resize": (["data.resize=lanczoss"], ["resize", "lanczos"]),
    "missing folder": (["data.path={root}/nowhere"], ["nowhere"]),
    "empty folder": (["data.path={root}/empty"], ["empty", "no images"]),
    "broken images": (["data.path={root}/broken", "condition.kind=none", "data.caption_column=null"], ["broken"]),
    "no captions where text is asked": (["data.path={root}/silent"], ["caption"]),
    "no caption column where text is asked": (["data.caption_column=null"], ["caption"]),
    "no classes where classes are asked": (["condition.kind=class", "data.label_column=kind"], ["kind", "label"]),
    "missing validation folder": (["data.validation={root}/nowhere"], ["nowhere"]),
    "filter that keeps nothing": (["data.where={label: [c]}"], ["where"]),
    "filter on no column": (["data.where={labell: [a]}"], ["labell", "label"]),
    "model to begin with is absent": (["model.init_from={root}/nowhere"], ["nowhere"]),
    "model to begin with is damaged": (["model.init_from={root}/cut"], ["safetensors", "cut"]),
    "out is a file": (["out={root}/notes.txt"], ["notes.txt"]),
    "out is in use": (["out={root}/used"], ["used"]),
    "key typed twice": (["optim.lr=1", "optim.lr=2"], ["optim.lr", "twice"]),
    "unknown tracker": (["log.tracker=tensorbord"], ["tracker", "tensorbord", "tensorboard"]),
    "true for a number": (["optim.steps=true"], ["optim.steps", "number"]),
    "infinite learning rate": (["optim.lr=.inf"], ["optim.lr", "finite"]),
    "sexagesimal minutes": (["optim.steps=null", "optim.minutes=1:30"], ["optim.minutes", "1:30"]),
    "folder in brackets that is not there": (["data.path=[2024] set"], ["[2024] set"]),
    "colour of a number": (["data.background=5"], ["background", "5"]),
    "other format": (["format_version=99"], ["format_version", "99"]),
}

OTHERS = {
    # What is wrong: (command, words the sentence has to have)
    "no such command": (["trane"], ["trane", "train"]),
    "no such option": (["sample", "text", "cat", "--step", "3"], ["--step"]),
    "no model named": (["sample"], ["model", "sample --help"]),
    "option not a number": (["sample", "{root}/text", "cat", "--steps", "many"], ["--steps", "integer"]),
    "absent model": (["sample", "{root}/nowhere", "cat"], ["nowhere"]),
    "absent model, by a bare name": (["sample", "emoji-xz", "cat"], ["emoji-xz", "emoji-xs"]),
    "model is a file": (["sample", "{root}/notes.txt", "cat"], ["notes.txt"]),
    "not a pipeline": (["sample", "{root}/images", "cat"], ["images", "model_index.json"]),
    "pipeline of another kind": (["sample", "{root}/foreign", "cat"], ["StableDiffusionPipeline"]),
    "weights cut short": (["sample", "{root}/cut", "cat"], ["safetensors", "damaged"]),
    "weights that are none": (["sample", "{root}/garbled", "cat"], ["safetensors", "damaged"]),
    "part of a pipeline": (["sample", "{root}/partial", "cat"], ["unet"]),
    "zero steps": (["sample", "{root}/text", "cat", "--steps", "0"], ["num_inference_steps"]),
    "guidance not a number": (["sample", "{root}/text", "cat", "--guidance", "nan"], ["guidance"]),
    "infinite guidance": (["sample", "{root}/text", "cat", "--guidance", "inf"], ["guidance"]),
    "no images": (["sample", "{root}/text", "cat", "--count", "0"], ["num_images"]),
    "negative seed": (["sample", "{root}/text", "cat", "--seed", "-1"], ["seed"]),
    "size that does not divide": (["sample", "{root}/text", "cat", "--size", "17"], ["17", "16", "20"]),
    "size of nothing": (["sample", "{root}/text", "cat", "--size", "0"], ["--size", "0"]),
    "size in words": (["sample", "{root}/text", "cat", "--size", "big"], ["--size", "big"]),
    "no prompt": (["sample", "{root}/text"], ["PROMPT"]),
    "no class": (["sample", "{root}/class"], ["cat, dog, owl"]),
    "unknown class": (["sample", "{root}/class", "cow"], ["cow", "cat, dog, owl"]),
    "class out of range": (["sample", "{root}/class", "3"], ["3", "0 to 2"]),
    "prompt without condition": (["sample", "{root}/none", "cat"], ["unconditional"]),
    "attention without condition": (["sample", "{root}/none", "--attention-maps", "{root}/maps"], ["unconditional"]),
    "grid is a folder": (["sample", "{root}/text", "cat", "--out", "{root}/used.png/.."], ["--out"]),
    "grid is no picture": (["sample", "{root}/text", "cat", "--out", "{root}/grid.doc"], ["--out", ".png"]),
    "grid inside a file": (["sample", "{root}/text", "cat", "--out", "{root}/notes.txt/g.png"], ["notes.txt"]),
    "maps inside a file": (["sample", "{root}/text", "cat", "--attention-maps", "{root}/notes.txt"], ["notes.txt"]),
    "no such config": (["train", "{root}/nowhere.yaml"], ["nowhere.yaml"]),
    "no such recipe": (["train", "emoji-xxl"], ["emoji-xxl", "emoji-xs"]),
    "config is a list": (["train", "{root}/list.yaml"], ["list.yaml"]),
    "config is torn": (["train", "{root}/torn.yaml"], ["torn.yaml", "YAML"]),
    "config is binary": (["train", "{root}/binary.yaml"], ["binary.yaml"]),
    "doctor of nothing": (["doctor", "{root}/nowhere"], ["nowhere"]),
    "doctor of an empty folder": (["doctor", "{root}/empty"], ["empty", "no images"]),
    "doctor with an unknown setting": (["doctor", "{root}/images", "sise=16"], ["sise", "size"]),
    "doctor with an impossible size": (["doctor", "{root}/images", "size=big"], ["size", "big"]),
    "doctor with a setting typed twice": (["doctor", "{root}/images", "size=16", "size=8"], ["size", "twice"]),
    "doctor with no colour": (["doctor", "{root}/images", "background=5"], ["background", "5"]),
    "doctor with half a list": (["doctor", "{root}/images", "caption_column=[text"], ["[text", "caption_column"]),
    "doctor with a number for a column": (["doctor", "{root}/images", "label_column=5"], ["label_column", "5"]),
    "doctor with text for a number": (["doctor", "{root}/images", "shuffle_buffer=x"], ["shuffle_buffer", "x"]),
    "key twice in a config": (["train", "{root}/twice.yaml"], ["twice.yaml", "out", "lines 1 and 2"]),
    "export of no run": (["export", "{root}/images", "{root}/new"], ["images", "run"]),
    "push of nothing": (["push", "{root}/nowhere", "user/name"], ["nowhere"]),
    "push of no pipeline": (["push", "{root}/images", "user/name"], ["images"]),
    "quickstart in use": (["quickstart", "--out", "{root}/used"], ["used"]),
    "quickstart over a file": (["quickstart", "--out", "{root}/notes.txt"], ["notes.txt"]),
    "bench on an unknown device": (["bench", "--device", "gpu"], ["--device", "gpu", "cuda"]),
    "bench of no preset": (["bench", "--device", "cpu", "--preset", "huge"], ["--preset", "huge", "xs"]),
    "bench into a folder": (["bench", "--json", "{root}/used"], ["--json", "used"]),
    "bench into another file": (["bench", "--device", "cpu", "--json", "{root}/notes.txt"], ["--json", "notes.txt"]),
}


def check(place, arguments: list[str], words: list[str]) -> None:
    before = tree(place)
    result = attndiff(*[argument.replace("{root}", str(place)) for argument in arguments])
    assert result.code == 2
    assert result.err.startswith("error: ") and result.err.count("\n") == 1, result.err
    assert len(result.err) < 500 and "Traceback" not in result.err, result.err
    assert all(word in result.err for word in words), result.err
    assert tree(place) == before


@pytest.mark.parametrize("mistake", TRAIN)
def test_training(place, mistake):
    overrides, words = TRAIN[mistake]
    check(place, ["train", "{root}/config.yaml", *overrides], words)


@pytest.mark.parametrize("mistake", OTHERS)
def test_other_commands(place, mistake, monkeypatch):
    arguments, words = OTHERS[mistake]
    monkeypatch.chdir(place)
    check(place, arguments, words)


@pytest.mark.parametrize("prompt", [3, ["cat", 3], {"cat": 1}, [], b"cat"], ids=str)
def test_prompts_of_a_wrong_type(prompt):
    with pytest.raises(ValueError, match=r"^prompt must be a text or a list of texts, not "):
        text_pipeline()(prompt, num_inference_steps=1)
