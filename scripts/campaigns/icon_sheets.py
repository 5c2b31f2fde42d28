"""What a model of icons draws: 20 things in 10 styles, of trained rows and of both kinds of held-out ones.

    python scripts/campaigns/icon_sheets.py MODEL DATA --out model_cards/icons-xs

DATA is ``icons32``. Three sheets of 20 rows and 10 styles, of as many sets as there are; in every cell what an artist
drew, where one did, and beside it what the model draws:

- ``trained.png``: things with whose drawings in these styles it was trained;
- ``set.png``: drawings that were held out although their things are known from other sets; each style has things of
  its own;
- ``family.png``: things whose words never stood together.

Things are chosen by how many drawings there are of them, then at random; no sample is chosen.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import torch
from PIL import Image

from attndiff.apps.sample import open_model
from attndiff.data.columns import IMAGE
from attndiff.data.image_set import ImageSet, open_validation
from attndiff.data.rows import Rows
from attndiff.drawn import save_picture
from attndiff.metrics.near_copies import as_image
from attndiff.metrics.samples import sample_pixels
from attndiff.training.config import load_config
from attndiff.viewing import contact_sheet

RECIPE = Path(__file__).parents[2] / "model_cards/icons-xs/recipe.yaml"
ROWS, STYLES = 20, 10
CELL = 64
Cell = tuple[str, str]  # a concept and a style
Drawn = dict[Cell, int]  # which image


def drawings(images: Rows, kind: str) -> Drawn:
    """Where to find the drawings of a kind, one for each concept and style."""
    texts = images.texts()
    each = zip(texts["concept"], texts["style"], texts["held_out"], strict=True)
    return {(concept, style): i for i, (concept, style, of) in enumerate(each) if of == kind}


def widest_styles(images: Rows, kind: str) -> list[str]:
    """Styles that have `ROWS` rows of a kind, the widest of each set before the second of any."""
    texts = images.texts()
    each = zip(texts["style"], texts["set"], texts["held_out"], strict=True)
    counts = Counter((style, set_name) for style, set_name, of in each if of == kind)
    ranks: Counter[str] = Counter()
    ordered = []
    for (style, set_name), count in counts.most_common():
        if count >= ROWS:
            ordered.append((ranks[set_name], -count, style))
            ranks[set_name] += 1
    return [style for _, _, style in sorted(ordered)[:STYLES]]


def crossed(drawn: Drawn, styles: list[str]) -> dict[str, list[Cell]]:
    """A row for each of the things that most of the styles have."""
    having: dict[str, int] = {}
    for concept, style in drawn:
        having[concept] = having.get(concept, 0) + (style in styles)
    order = random.Random(0).sample(sorted(having), len(having))
    most = sorted(order, key=lambda concept: -having[concept])[:ROWS]
    return {concept: [(concept, style) for style in styles] for concept in sorted(most)}


def apart(drawn: Drawn, styles: list[str]) -> dict[str, list[Cell]]:
    """Rows in which every style has a thing of its own."""
    draw = random.Random(0)
    of = {style: [cell for cell in sorted(drawn) if cell[1] == style] for style in styles}
    columns = [draw.sample(cells, ROWS) for cells in of.values()]
    return {f"{row + 1}": [column[row] for column in columns] for row in range(ROWS)}


def sheet(pipeline, images: Rows, drawn: Drawn, rows: dict[str, list[Cell]]) -> Image.Image:
    """Rows of cells, each a drawing and a sample."""
    cells = [cell for row in rows.values() for cell in row]
    samples = sample_pixels(pipeline, [f"{thing}, {style}" for thing, style in cells], range(len(cells)), None, None)
    data = pipeline.config.data
    made = dict(zip(cells, (as_image(one, data) for one in samples), strict=True))

    def pair(cell: Cell) -> list:
        """What was drawn, an empty picture where nothing was, and what the model draws."""
        if cell not in drawn:
            return [Image.new("L", made[cell].size, "white"), made[cell]]
        return [as_image(torch.from_numpy(images[drawn[cell]][IMAGE.name]), data), made[cell]]

    styles = [cell[1] for cell in next(iter(rows.values()))]
    captions = [text for style in styles for text in (style, "drawn")]
    pictures = {name: [one for cell in row for one in pair(cell)] for name, row in rows.items()}
    return contact_sheet(pictures, captions, CELL, ground="white")


def main() -> None:
    """Write the three sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="pipeline folder")
    parser.add_argument("data", type=Path, help="icons32")
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    asked = parser.parse_args()
    pipeline = open_model(asked.model)
    asked.out.mkdir(parents=True, exist_ok=True)
    data = load_config(RECIPE, [f"data.path={asked.data}"]).data
    images, held_out = ImageSet(data), open_validation(data)
    trained, apart_styles = widest_styles(images, ""), widest_styles(held_out, "set")
    for name, of, kind, arranged, styles in (
        ("trained", images, "", crossed, trained),
        ("set", held_out, "set", apart, apart_styles),
        ("family", held_out, "family", crossed, trained),
    ):
        drawn = drawings(of, kind)
        save_picture(sheet(pipeline, of, drawn, arranged(drawn, styles)), asked.out / f"{name}.png")


if __name__ == "__main__":
    main()
