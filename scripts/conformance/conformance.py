"""Run diffusers' own tests for models and pipelines against attndiff's classes.

    git clone --depth 1 --branch v0.42.1 --filter=blob:none --sparse https://github.com/huggingface/diffusers checkout
    git -C checkout sparse-checkout set tests
    python scripts/conformance/conformance.py checkout/tests

The tag is that of the installed diffusers, which is what runs: of the checkout only the folder of tests is read.
Options of pytest may follow the folder.
"""

import importlib
import os
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


def main() -> int:
    """Run the cases on a folder of tests, the first argument; the result is pytest's exit status."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1]).resolve()
    if folder.name != "tests" or not (folder / "models" / "testing_utils").is_dir():
        sys.exit(f"{folder} is not the tests folder of a diffusers checkout; give its path, which ends in 'tests'.")
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs the Hub
    # diffusers' tests import each other as the package "tests"; ours are plain modules.
    sys.path[:0] = [str(folder.parent), str(REPOSITORY / "tests")]
    importlib.import_module("tests.testing_utils")
    options = ["-c", os.devnull, "--rootdir", str(REPOSITORY), "-p", "no:cacheprovider", "-W", "ignore", "-q", "-rsf"]
    return pytest.main([str(Path(__file__).with_name("conformance_cases.py")), *options, *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
