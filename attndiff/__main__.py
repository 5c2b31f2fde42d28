"""``python -m attndiff`` and ``accelerate launch -m attndiff`` are the command ``attndiff``."""

from attndiff.apps.cli import main

if __name__ == "__main__":
    main()
