"""``python -m attndiff.cli``."""

from attndiff.cli import main

main()
