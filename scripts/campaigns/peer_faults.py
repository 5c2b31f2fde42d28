"""Faults of other trainers' checkpoints, reproduced with the installed versions, beside what attndiff does.

    python scripts/campaigns/peer_faults.py --json model_cards/peer_faults.json

Each takes seconds: a model of a few weights, a dataset of a few numbers, and the library's own functions as its
documentation uses them. What attndiff does in the same place is tested in tests/README.md's table.
"""

import argparse
import json
import tempfile
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import accelerate
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import ProjectConfiguration, set_seed
from torch.utils.data import DataLoader

SAMPLES, BATCH, SAVED_AT = 12, 2, 3  # the checkpoint is after batch 3 of 6, in the second epoch


def fresh(seed: int = 0, **settings):
    """A new process's accelerator, model, optimizer and shuffled loader."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, **settings)
    set_seed(seed)
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    loader = DataLoader(torch.arange(SAMPLES, dtype=torch.float32)[:, None], batch_size=BATCH, shuffle=True)
    return accelerator, *accelerator.prepare(model, optimizer, loader)


def step(accelerator, model, optimizer, batch: torch.Tensor) -> list[int]:
    """Train on a batch; the samples in it."""
    accelerator.backward(model(batch + torch.randn_like(batch)).square().mean())
    optimizer.step()
    optimizer.zero_grad()
    return batch.flatten().int().tolist()


def mid_epoch_resume(folder: Path) -> tuple[bool, str]:
    """`save_state` in the middle of the second epoch, `load_state` and `skip_first_batches` in a new process."""
    accelerator, model, optimizer, loader = fresh()
    for epoch in range(2):
        seen = []
        for i, batch in enumerate(loader):
            seen.append(step(accelerator, model, optimizer, batch))
            if epoch == 1 and i + 1 == SAVED_AT:
                accelerator.save_state(folder / "state")
    accelerator, model, optimizer, loader = fresh()
    accelerator.load_state(folder / "state")
    resumed = [
        step(accelerator, model, optimizer, b) for b in accelerator.skip_first_batches(loader, num_batches=SAVED_AT)
    ]
    same = resumed == seen[SAVED_AT:]
    again = len({s for batch in resumed for s in batch} & {s for batch in seen[:SAVED_AT] for s in batch})
    return not same, f"goes on with {resumed} instead of {seen[SAVED_AT:]}; {again} samples of the epoch come twice"


def missing_random_state(folder: Path) -> tuple[bool, str]:
    """A checkpoint whose file of random states is gone."""
    accelerator, *_ = fresh()
    accelerator.save_state(folder / "state")
    (folder / "state/random_states_0.pkl").unlink()
    accelerator, *_ = fresh(1)
    try:
        accelerator.load_state(folder / "state")
    except Exception as error:
        return False, f"raises {type(error).__name__}"
    return True, "is loaded without an error; noise and order differ from there"


def damaged_optimizer(folder: Path) -> tuple[bool, str]:
    """A checkpoint whose optimizer file is cut short."""
    accelerator, model, optimizer, loader = fresh()
    for batch in loader:
        step(accelerator, model, optimizer, batch)
    accelerator.save_state(folder / "state")
    file = folder / "state/optimizer.bin"
    file.write_bytes(file.read_bytes()[:-100])
    accelerator, model, *_ = fresh(1)
    before = model.weight.item()
    try:
        accelerator.load_state(folder / "state")
    except Exception as error:
        changed = model.weight.item() != before
        return changed, f"raises {type(error).__name__}, with the model's weights replaced already"
    return True, "is loaded without an error"


def crash_in_a_save(folder: Path) -> tuple[bool, str]:
    """A crash between the files of `save_state`, which the newest folder does not show."""
    naming = ProjectConfiguration(str(folder), automatic_checkpoint_naming=True)
    accelerator, *_ = fresh(project_config=naming)
    accelerator.save_state()
    with patch("torch.save", side_effect=KeyboardInterrupt), suppress(KeyboardInterrupt):
        accelerator.save_state()
    newest = max((folder / "checkpoints").iterdir())
    left = f"leaves {newest.name} with {sorted(file.name for file in newest.iterdir())}"
    accelerator, *_ = fresh(project_config=naming)
    try:
        accelerator.load_state()
    except Exception as error:
        return True, f"{left}, which is taken for the newest and raises {type(error).__name__}"
    return False, f"{left}, and the one before is loaded"


FAULTS = {
    "resume in the middle of an epoch": mid_epoch_resume,
    "file of random states missing": missing_random_state,
    "optimizer file damaged": damaged_optimizer,
    "crash in the middle of a save": crash_in_a_save,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = {}
    for name, fault in FAULTS.items():
        with tempfile.TemporaryDirectory() as folder:
            reproduced, how = fault(Path(folder))
        found[name] = {"reproduced": reproduced, "how": how}
        print(f"{name}: {'reproduced' if reproduced else 'NOT reproduced'}: {how}")
    report = {"accelerate": accelerate.__version__, "torch": torch.__version__, "faults": found}
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
