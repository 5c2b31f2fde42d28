"""Speed, memory and quality beside other diffusion networks; ``python scripts/bench.py --help`` lists the options.

The peers are diffusers' networks and, where they are installed, those of denoising-diffusion-pytorch and k-diffusion;
what is missing is named with the command that adds it. `attndiff bench` measures attndiff alone.
"""

import sys

import typer
from bench.command import compare

from attndiff.apps.cli import run

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(compare)

if __name__ == "__main__":
    run(app, "bench.py", sys.argv[1:])
