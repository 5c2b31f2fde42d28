"""How long OpenMP's threads spin while they wait for each other, before they sleep."""

import os

# Looks at what they wait for. With the library's own 300,000, a training on two cores beside one other busy process
# takes many times as long a step: a thread that spins holds the core that the one it waits for needs. With none at all
# (OMP_WAIT_POLICY=PASSIVE) a step takes a third longer where nothing else runs; with these it takes no longer there.
SPINS = "5000"


def spin_briefly() -> None:
    """Set it for this process and its children, unless the user has; GNU's library reads it once, as torch is loaded.

    Its variable is GOMP_SPINCOUNT (GNU libgomp's manual, Environment Variables).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
