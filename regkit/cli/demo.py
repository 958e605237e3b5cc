"""``regkit demo``: a registration to look at, with nothing but the package."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.console import print_json, progress
from regkit.cli.files import check_outputs
from regkit.cli.options import AsJson, Overwrite, Quiet
from regkit.cli.report import print_registration, print_verdict
from regkit.core.choices import PresetName
from regkit.core.errors import RegkitError


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write to. Made if missing.")
    ] = Path("regkit-demo"),
    seed: Annotated[
        int, typer.Option(min=0, help="Another seed makes another patient and another true warp.")
    ] = 0,
    preset: Annotated[PresetName, typer.Option(help="As for 'regkit register'.")] = "default",
    overwrite: Overwrite = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Paint a CT and an MR of a trunk with a known warp between them, and register them."""
    from regkit.demo import FILES, run_demo

    try:
        output.mkdir(exist_ok=True)
    except FileNotFoundError as error:
        raise RegkitError(f"cannot make the folder '{output}': create '{output.parent}' first") from error
    except OSError as error:
        raise RegkitError(
            f"cannot make the folder '{output}': {error.strerror or error}; give another with --output"
        ) from error
    check_outputs(
        ((output / name, ("".join(Path(name).suffixes),)) for name in FILES.values()), (), overwrite
    )
    with progress(quiet) as report:
        demo = run_demo(output, seed=seed, preset=preset, progress=report)
    if as_json:
        print_json(demo.to_dict())
        return
    if quiet:
        return
    tre = demo.landmarks.to_dict()
    typer.echo(f"phantom CT onto phantom MR, seed {seed}\n")
    print_registration(
        demo.registration,
        [
            ("TRE before", f"{tre['tre_before_mm']['mean']:.2f} mm, mean of {tre['count']} landmarks"),
            ("TRE after", f"{tre['tre_mm']['mean']:.2f} mm (largest {tre['tre_mm']['max']:.2f} mm)"),
        ],
    )
    print_verdict(demo.registration.verdict)
    typer.echo(
        f"\npicture: {output / 'demo.png'}\nall files: {output}\n\nThe same by hand:\n\n{demo.command}"
    )
