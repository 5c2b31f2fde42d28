"""Speed, memory and quality beside other diffusion networks; the same as `attndiff bench`."""

import sys

from attndiff.apps.cli import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
