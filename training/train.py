"""Entry point for ``accelerate launch training/train.py CONFIG.yaml [KEY=VALUE ...]``; the same as `attndiff train`."""

import sys

from attndiff.apps.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
