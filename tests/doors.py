"""What saved pipelines of every kind are called with, and who opens them where attndiff is not installed."""

import json
import os
import subprocess
import sys
from pathlib import Path

CALLS = {
    "text": {"prompt": ["red apple, flat", "rocket"]},
    "class": {"class_labels": ["owl", "cat"]},
    "unconditional": {},
    "pretrained": {"prompt": ["blue heart", "cat face"]},
}
HELPER = Path(__file__).with_name("without_attndiff.py")

OPENS = """
import json, sys
*folders, code = sys.argv[1:]
sys.modules["attndiff"] = None  # as if it were not installed
from diffusers import DiffusionPipeline
for folder in folders:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    exec(code)
del sys.modules["attndiff"]  # it is, and nothing of it was imported before
import attndiff
for folder in folders:
    pipe = attndiff.load(folder)
    exec(code)
"""


def elsewhere(code: str, *folders: Path) -> list:
    """What ``code`` prints as JSON of every ``pipe`` that a fresh process opens, without attndiff, then with it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", OPENS, *map(str, folders), code]
    done = subprocess.run(command, env=environment, cwd=HELPER.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]
