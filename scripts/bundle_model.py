"""Make a model that ships from a trained pipeline: half-precision weights, its card, nothing else.

    python scripts/bundle_model.py runs/emoji-xs/pipeline attndiff/assets/emoji-xs
    python scripts/bundle_model.py attndiff/assets/emoji-xs    # its code alone, as the package's modules are now
    python scripts/bundle_model.py runs/caption-sprites/pipeline model_cards/caption-sprites/model

Weights are stored as float16 and computed with in float32 wherever the folder is opened without another wish.
"""

import argparse
import shutil
from pathlib import Path

from diffusers import ModelMixin

import attndiff

MAX_PARAMETERS, MAX_BYTES = 12_000_000, 25_000_000


def main() -> None:
    """Convert, check the size limits and copy the card with its pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pipeline", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    options = parser.parse_args()
    pipe = attndiff.load(str(options.pipeline))
    if options.out is None:
        pipe.save_config(options.pipeline)  # writes the code, and the index that names it
        return
    networks = [part for part in pipe.components.values() if isinstance(part, ModelMixin)]
    parameters = sum(p.numel() for network in networks for p in network.parameters())
    for network in networks:
        network.half()
    shutil.rmtree(options.out, ignore_errors=True)
    pipe.save_pretrained(options.out)
    for file in [options.pipeline / "README.md", *options.pipeline.glob("*.png")]:
        if file.is_file():
            shutil.copy(file, options.out / file.name)
    size = sum(file.stat().st_size for file in options.out.rglob("*") if file.is_file())
    print(f"{options.out}: {parameters / 1e6:.2f} M parameters, {size / 1e6:.1f} MB")
    if parameters > MAX_PARAMETERS or size > MAX_BYTES:
        raise SystemExit(
            f"a bundled model has at most {MAX_PARAMETERS / 1e6:.0f} M parameters and {MAX_BYTES / 1e6:.0f} MB"
        )


if __name__ == "__main__":
    main()
