"""Model FLOP utilisation of the real training loop: data, averages and optimizer included."""

import statistics
import tempfile
from pathlib import Path

from attndiff.apps.bench.steps import matmul_rate
from attndiff.training.config import load_config
from attndiff.training.run.loop import Trainer
from attndiff.training.run.progress import read_log

LOG_EVERY = 10
NAMES = {"float32": "fp32", "bfloat16": "bf16"}


def measure_loop(preset: str, count: int, steps: int, precision: str, device: str, overrides: tuple = ()) -> dict:
    """Train a preset on the bundled images for some steps, compiled on CUDA, and relate its FLOP/s to a matrix product.

    Args:
        preset: Of attndiff.
        count: Images a step.
        steps: Of the run; the first half of the logged rates are left out, compilation being among them.
        precision: ``"float32"`` or ``"bfloat16"``.
        device: ``"cpu"`` or ``"cuda"``.
        overrides: Further ``KEY=VALUE`` settings.

    Returns:
        Median ``images_per_second`` and ``flop_per_second`` (three forward passes an image), the matrix product's
        ``matmul_flop_per_second``, and ``share_of_matmul``, the ratio of the two.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        settings = [
            f"out={out}",
            f"model.preset={preset}",
            f"optim.steps={steps}",
            f"optim.batch_size={count}",
            f"optim.precision={NAMES[precision]}",
            f"optim.compile={str(device == 'cuda').lower()}",
            f"optim.workers={8 if device == 'cuda' else 0}",
            f"log.every={min(LOG_EVERY, max(1, steps // 4))}",
            f"log.validate_every={steps}",
            f"log.sample_every={10 * steps}",
            f"log.checkpoint_every={10 * steps}",
            "log.tracker=null",
            "condition.grounding_steps=0",
        ]
        Trainer(load_config("emoji-xs", [*settings, *overrides])).run()
        entries = read_log(out / "log.jsonl")[0]
    settled = entries[len(entries) // 2 :]
    rate = matmul_rate(device, precision)
    flops = 1e12 * statistics.median(entry["tflops"] for entry in settled)
    return {
        "images_per_second": statistics.median(entry["images_per_second"] for entry in settled),
        "flop_per_second": flops,
        "matmul_flop_per_second": rate,
        "share_of_matmul": flops / rate,
    }
