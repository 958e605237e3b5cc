"""``regkit presets``: what there is to choose from, and each as a configuration file."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, get_args, get_type_hints

import typer

from regkit.cli.console import print_facts

app = typer.Typer(help="List the presets of 'regkit register', or show one as a file for --config.")


@app.callback(invoke_without_command=True)
def listed(context: typer.Context) -> None:
    """List the presets and what each is for."""
    if context.invoked_subcommand is None:
        from regkit.core.settings import SUMMARIES

        print_facts(list(SUMMARIES.items()))


@app.command("show", no_args_is_help=True)
def show(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The name of a preset.")],
) -> None:
    """Print a preset as YAML, to be changed and given to 'regkit register --config'."""
    from regkit.core.configuration import allowed_values
    from regkit.core.settings import PRESETS, SUMMARIES, Settings, preset_name

    preset = preset_name(name)
    values = asdict(PRESETS[preset])
    typer.echo(f"# {SUMMARIES[preset]}\npreset: {preset}")
    for key, hint in get_type_hints(Settings, include_extras=True).items():
        typer.echo(f"\n# {get_args(hint)[-1]}\n# {allowed_values(hint)}")
        typer.echo(f"{key}: {json.dumps(values[key])}")  # JSON is YAML
