"""The command line: one command a file, everything heavy imported by the command that needs it."""

import sys
from typing import Annotated

import typer

import attndiff
from attndiff.apps.cli.apply import apply
from attndiff.apps.cli.bench import bench
from attndiff.apps.cli.caption import caption
from attndiff.apps.cli.demo import demo
from attndiff.apps.cli.distill import distill
from attndiff.apps.cli.doctor import doctor
from attndiff.apps.cli.evaluate import evaluate
from attndiff.apps.cli.export import export
from attndiff.apps.cli.push import push
from attndiff.apps.cli.quickstart import quickstart
from attndiff.apps.cli.sample import sample
from attndiff.apps.cli.train import train
from attndiff.apps.spinning import spin_briefly
from attndiff.data.tables.names import printable
from attndiff.errors import Stopped, UserError

# typer carries its own copy of click or depends on one, by version; both derive BadParameter from these.
UsageError, ClickException = typer.BadParameter.__mro__[1:3]

app = typer.Typer(
    name="attndiff",
    help="Train your own image model from your own images, from scratch, and open it anywhere with diffusers.",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (quickstart, sample, train, distill, apply, caption, evaluate, doctor, export, push, demo, bench):
    app.command()(command)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"attndiff {attndiff.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_print_version)
    ] = False,
) -> None:
    pass


def main(argv: list[str] | None = None) -> None:
    """Run a command; arguments without the program's name, those of the process by default."""
    spin_briefly()
    run(app, "attndiff", (sys.argv[1:] if argv is None else argv) or ["--help"])


def run(program: typer.Typer, name: str, argv: list[str]) -> None:
    """Run a program so that a mistake of the user's is one line.

    Args:
        program: What to run.
        name: As the user called it.
        argv: Arguments without the program's name.

    Raises:
        SystemExit: With code 2 after a mistake of the user's, told in one line on stderr, and 128 plus its number
            after a signal.
    """
    try:
        code = program(argv, prog_name=name, standalone_mode=False)
    except UsageError as error:
        code = _refuse(f"{error.format_message()} See {error.ctx.command_path if error.ctx else name} --help.")
    except ClickException as error:
        code = _refuse(error.format_message())
    except UserError as error:
        code = _refuse(str(error))
    except Stopped as stop:
        print(stop, file=sys.stderr)
        code = stop.code
    except PermissionError as error:
        code = _refuse(f"{error.filename}: permission denied.")
    except KeyboardInterrupt:
        code = 130
    if code:
        raise SystemExit(code)


def _refuse(sentence: str) -> int:
    """Tell the user what is wrong, in one line; the exit code."""
    print(f"error: {printable(' '.join(sentence.split()))}", file=sys.stderr)
    return 2
