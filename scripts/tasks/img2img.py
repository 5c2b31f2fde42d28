"""Images drawn anew under rising strength, on one sheet.

    python scripts/tasks/img2img.py emoji-xs --out model_cards/tasks/img2img.png

The first row is what the model draws of `FROM`, the others what becomes of it, told what stands above.
"""

import argparse
from pathlib import Path

import torch

from attndiff import AttnDiffImg2ImgPipeline
from attndiff.apps.sample import open_model
from attndiff.drawn import save_picture
from attndiff.viewing import contact_sheet

FROM = ["red apple, noto", "grinning face, fluent 3d", "house, noto"]
TO = ["blue heart, noto", "cat face, fluent 3d", "rocket, fluent flat"]
STRENGTHS = (0.2, 0.4, 0.6, 0.8, 1.0)


def seeds(first: int) -> list[torch.Generator]:
    """One generator an image."""
    return [torch.Generator().manual_seed(first + i) for i in range(len(FROM))]


def main() -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pipeline folder, or the name of a bundled model")
    parser.add_argument("--out", type=Path, required=True, help="picture to write")
    options = parser.parse_args()
    source = open_model(options.model)
    anew = AttnDiffImg2ImgPipeline.from_pipe(source)
    for pipeline in (source, anew):
        pipeline.set_progress_bar_config(disable=True)
    images = source(FROM, generator=seeds(0)).images
    rows = {"image": images}
    rows |= {f"strength {share}": anew(TO, images, share, generator=seeds(9)).images for share in STRENGTHS}
    save_picture(contact_sheet(rows, TO), options.out)


if __name__ == "__main__":
    main()
