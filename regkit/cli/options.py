"""Options that several commands share, spelled and explained once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist already.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
LabelNames = Annotated[
    Path | None,
    typer.Option(
        metavar="JSON", help='Which labels to score and their names: {"1": "liver"}. Default: all labels.'
    ),
]
WarpFile = Annotated[
    Path,
    typer.Argument(
        metavar="WARP",
        show_default=False,
        help="A warp: ITK field (.nii.gz .mha .nrrd), ITK transform (.h5 .tfm .mat .txt), Learn2Reg (.npz).",
    ),
]
FixedGrid = Annotated[
    Path | None,
    typer.Option(
        "--fixed", metavar="IMAGE", help="The fixed image, for a warp file that holds no grid of its own."
    ),
]
MovingGrid = Annotated[
    Path | None,
    typer.Option("--moving", metavar="IMAGE", help="The moving image, for a warp in voxels (Learn2Reg)."),
]
Templates = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        show_default=False,
        help="Templates of shapes: an .npz archive, or a folder of label maps (SUBJECT/STRUCTURE.nii.gz or "
        "SUBJECT.nii.gz). May be given several times.",
    ),
]
