"""``regkit synthesize``: pairs of synthetic images as the network is trained on, to look at."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from regkit.cli.console import progress
from regkit.cli.files import IMAGES, PICTURES, check_outputs
from regkit.cli.options import Anatomies, Overwrite, Quiet, Templates
from regkit.io.atomic import make_folder

if TYPE_CHECKING:
    from regkit.synthesis.pairs import Pairs

_SIZE = 96  # voxels, without a configuration


def command(
    output: Annotated[
        Path,
        typer.Option("--output", "-o", show_default=False, help="The folder to write to. Made if missing."),
    ],
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=1000, help="Number of pairs.")] = 8,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A training configuration to draw by. Default: built-in settings. They take built-in "
            "shapes, and as many templates if --templates is given, or only the label maps of --anatomies.",
        ),
    ] = None,
    templates: Templates = None,
    anatomies: Anatomies = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    size: Annotated[
        int | None,
        typer.Option(
            min=16,
            max=256,
            show_default=False,
            help=f"Voxels along each side. Default: as configured, else {_SIZE}.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw synthetic pairs: two views of a random anatomy, each with its own contrast, and their labels.

    Writes pair_000_a.nii.gz, pair_000_b.nii.gz, their labels (voxels of 1 mm) and contact-sheet.png.
    """
    make_folder(output)
    names = [
        [output / f"pair_{k:03d}_{view}{kind}.nii.gz" for view in "ab" for kind in ("", "_labels")]
        for k in range(number)
    ]
    sheet = output / "contact-sheet.png"
    check_outputs(
        [*((path, IMAGES) for of_pair in names for path in of_pair), (sheet, PICTURES)], (), overwrite
    )

    import torch

    from regkit.core.geometry import Grid
    from regkit.io.atomic import atomic_path
    from regkit.io.outputs import save_image
    from regkit.pretrain.config import Config, load_config
    from regkit.synthesis.contact_sheet import contact_sheet, middle_slices
    from regkit.synthesis.mixture import anatomies as whole_maps
    from regkit.synthesis.mixture import mixture
    from regkit.synthesis.pairs import Synthesiser

    paths = templates or []
    if config is None:
        settings = Config(templates=float(bool(paths)))
        pair_settings = _drawn(replace(settings.pairs, anatomies=float(bool(anatomies))), size or _SIZE)
    else:
        settings = load_config(config)
        pair_settings = _drawn(settings.pairs, size or settings.pairs.size)
    sources = mixture(settings.procedural, settings.templates, paths)
    maps = whole_maps(pair_settings.anatomies, anatomies or [])
    synthesiser = Synthesiser(pair_settings, sources, seed, torch.device("cpu"), maps=maps)
    grid = Grid((pair_settings.size,) * 3)
    shown = []
    with progress(quiet) as report:
        for k, files in enumerate(names):
            views = synthesiser.draw([k])
            shown.append(middle_slices(views))
            volumes = [v for view in zip(views.images, views.labels) for v in view]
            for path, volume in zip(files, volumes):
                save_image(grid.to_sitk(volume.numpy()), path)
            if report:
                report(f"pair {k + 1} of {number}", (k + 1) / number)
    with atomic_path(sheet) as temporary:
        contact_sheet(shown, temporary)
    if not quiet:
        for of_pair in names:
            typer.echo(f"wrote {of_pair[0]} and {', '.join(path.name for path in of_pair[1:])}")
        typer.echo(f"wrote {sheet}")


def _drawn(pair_settings: Pairs, size: int) -> Pairs:
    """The settings at another size: cubes, each pair of an anatomy of its own."""
    offset = min(pair_settings.offset, size // 2)
    ensembles = replace(pair_settings.ensembles, size=max(pair_settings.ensembles.size, size + offset))
    return replace(pair_settings, size=size, shapes=(), reuse=1, bank=1, offset=offset, ensembles=ensembles)
