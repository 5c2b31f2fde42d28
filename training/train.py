"""Entry point for ``accelerate launch training/train.py CONFIG.yaml [KEY=VALUE ...]``; the same as `attndiff train`."""

import sys
from pathlib import Path

# Python looks for modules in a script's folder first, and would take this one's for anybody's `config` or `card`.
sys.path[:] = [place for place in sys.path if Path(place).resolve() != Path(__file__).resolve().parent]

from attndiff.apps.cli import main  # noqa: E402

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
