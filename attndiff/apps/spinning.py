"""How long OpenMP's threads spin while they wait for each other, before they sleep."""

import os

# Looks at what they wait for. On two cores a training step takes as long as with the library's own 300,000 where
# nothing else runs, and half again as long beside two busy processes of lower priority, where the library's own made
# it up to fifty times as long: a thread that spins holds the core that the one it waits for needs. With none at all
# (OMP_WAIT_POLICY=PASSIVE) a step takes a third longer everywhere.
SPINS = "5000"


def spin_briefly() -> None:
    """Set it for this process and its children, unless the user has; GNU's library reads it once, as torch is loaded.

    Its variable is GOMP_SPINCOUNT (libgomp manual, 4.25).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
