"""The command line, ``regkit``. Commands import torch and SimpleITK when they run, so that help is quick."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

from regkit.cli import (
    batch,
    bench,
    check,
    demo,
    doctor,
    evaluate,
    features,
    finetune,
    info,
    presets,
    pretrain,
    propagate,
    register,
    rigid,
    segment,
    series,
    synthesize,
    template,
    warps,
)
from regkit.cli.console import Commands, has_no_output
from regkit.core.version import __version__
from regkit.runtime.process import leave

app = typer.Typer(
    name="regkit",
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Registration of 3-D medical images of any two modalities. Results go to stdout, all else to "
    "stderr. Exit code 0 is success, 2 a wrong command line, 3 a result that --strict refuses, 130 an "
    "interruption, 1 any other failure.",
)
app.command("register", no_args_is_help=True)(register.command)
app.command("batch", no_args_is_help=True)(batch.command)
app.command("rigid", no_args_is_help=True)(rigid.command)
app.add_typer(presets.app, name="presets")
app.command("propagate", no_args_is_help=True)(propagate.command)
app.command("series", no_args_is_help=True)(series.command)
app.command("template", no_args_is_help=True)(template.command)
app.command("finetune", no_args_is_help=True)(finetune.command)
app.command("segment", no_args_is_help=True)(segment.command)
app.command("apply", no_args_is_help=True)(warps.apply)
app.command("jacobian", no_args_is_help=True)(warps.jacobian)
app.command("invert", no_args_is_help=True)(warps.invert)
app.command("convert", no_args_is_help=True)(warps.convert)
app.command("check", no_args_is_help=True)(check.command)
app.command("evaluate", no_args_is_help=True)(evaluate.command)
app.command("info", no_args_is_help=True)(info.command)
app.command("demo")(demo.command)
app.command("doctor")(doctor.command)
app.command("features", no_args_is_help=True)(features.command)
app.command("synthesize", no_args_is_help=True)(synthesize.command)
app.command("pretrain", no_args_is_help=True)(pretrain.command)
app.add_typer(bench.app, name="bench")


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"regkit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """The program ``regkit``."""
    if sys.stdout is None:  # it was closed, and what is written would be lost without a word
        sys.stdout = os.fdopen(os.open(os.devnull, os.O_RDONLY), "w")
    try:
        app(prog_name="regkit")
    except SystemExit as end:
        leave(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except OSError as error:  # of the help and the version, which come before any command
        if not has_no_output(error):
            raise
        typer.echo(f"error: could not write the output: {error.strerror}", err=True)
        leave(1)
    leave(0)
