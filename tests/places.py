"""Where the sources lie, so that tests run from any folder."""

from pathlib import Path

TESTS = Path(__file__).parent
ROOT = TESTS.parent
TRAIN = str(ROOT / "training/train.py")  # as a launcher is given it
