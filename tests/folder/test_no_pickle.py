"""No pickle is read on any way in: opening a model, sampling it, training on from it, resuming a run."""

import json
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

from runs import settings, train

NAMES = ("pytorch_model.bin", "diffusion_pytorch_model.bin", "optimizer.bin", "random_states_0.pkl", "rng_state.pth")
WATCHES = """
import json, sys

found = []


def watch(event, arguments):
    if event == "pickle.find_class":
        found.append(".".join(map(str, arguments)))
    elif event == "open" and str(arguments[0]).endswith((".bin", ".pkl", ".pth", ".pt")):
        found.append(str(arguments[0]))


request = json.loads(sys.argv[1])
if request["control"]:
    import pickle

    sys.addaudithook(watch)
    pickle.loads(open(request["control"], "rb").read())
else:
    import attndiff
    from attndiff.training.config import make_config
    from attndiff.training.run.loop import Trainer

    sys.addaudithook(watch)
    attndiff.load(request["pipeline"])("pizza, noto", num_inference_steps=1)
    for config in request["configs"]:
        Trainer(make_config(config)).run()
print(json.dumps(found))
"""


def watched(**request) -> list[str]:
    """What a process opened and unpickled."""
    request = {"control": None, "pipeline": None, "configs": [], **request}
    command = [sys.executable, "-c", WATCHES, json.dumps(request)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_pickles_beside_everything_are_left_alone(tmp_path):
    pipeline = tmp_path / "pipeline"
    train(tmp_path / "run")
    shutil.move(tmp_path / "run/pipeline", pipeline)
    shutil.rmtree(max((tmp_path / "run/checkpoints").glob("step_*")))
    for folder in {path.parent for path in tmp_path.rglob("*.safetensors")}:
        for name in NAMES:
            (folder / name).write_bytes(pickle.dumps(Path("x")))
    resumed, started = settings(tmp_path / "run"), settings(tmp_path / "next", model__init_from=str(pipeline))
    assert watched(pipeline=str(pipeline), configs=[resumed, started]) == []
    assert (tmp_path / "run/pipeline/model_index.json").is_file()


def test_the_watch_sees_pickles(tmp_path):
    file = tmp_path / "optimizer.bin"
    file.write_bytes(pickle.dumps(Path("x")))
    assert str(file) in watched(control=str(file)) and any("Path" in name for name in watched(control=str(file)))
