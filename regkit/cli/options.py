"""Options that several commands share, spelled and explained once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from regkit.core.errors import RegkitError

if TYPE_CHECKING:
    from regkit.core.settings import Settings

KNOWN = "What is known about the images"
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist already.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Say what each stage found and took.")]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE.log", help="Append what -v says, with the time, and all warnings."),
]
Strict = Annotated[
    bool,
    typer.Option(
        help="End with exit code 3 where the verdict is FAIL, or the warp not right; outputs are written."
    ),
]
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
        help="A warp: ITK field (.nii.gz .mha .nrrd), ITK transform (.h5 .tfm .mat .txt), Learn2Reg (.npz), "
        "or a file of SPM, FSL, NiftyReg, AFNI, FreeSurfer or elastix (docs/formats.md).",
    ),
]
ChainFile = Annotated[
    Path,
    typer.Argument(
        metavar="WARP",
        show_default=False,
        help="A warp or linear transform (docs/formats.md). inverse:FILE is its inverse; a plain matrix is "
        "named fsl:FILE, ras:FILE or lps:FILE.",
    ),
]
WarpSpacing = Annotated[
    float | None,
    typer.Option(
        metavar="MM",
        min=0.01,
        show_default=False,
        help="Write warps with voxels of this size, for smaller files; what that costs is told. Apply them "
        "with --reference. Default: the voxels of the image.",
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
FixedSeries = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|UID", help="Which DICOM series of the fixed image's folder; 'regkit info' lists them."
    ),
]
MovingSeries = Annotated[
    str | None,
    typer.Option(metavar="NUMBER|UID", help="Which DICOM series of the moving image's folder."),
]
FixedLandmarks = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=KNOWN,
        help="Points of the fixed image (.csv .fcsv .mrk.json), each of which belongs to the one in the same "
        "row of --moving-landmarks. They pull; they are not met exactly.",
    ),
]
MovingLandmarks = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=KNOWN, help="Points of the moving image."),
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
Anatomies = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        show_default=False,
        help="Whole label maps (.nii.gz) to draw bodies of, and anatomies.json, which names their labels. "
        "May be given several times.",
    ),
]

# How to register, for the commands that do.
FEATURES = ("mind", "network", "network+mind")
INITS = ("auto", "none", "centre", "rigid", "affine")
PresetName = Literal["default", "fast", "accurate", "linear", "rigid"]
_METHOD = "Method"
Init = Annotated[
    str,
    typer.Option(
        metavar="|".join((*INITS, "FILE")),
        rich_help_panel=_METHOD,
        help="Where to start. auto: searched for, then rigid and affine where they help. "
        "none: the headers. centre: image centres. rigid: auto without affine. affine: auto that ends "
        "with affine. FILE: a linear transform, fixed point -> moving point, of ITK (.tfm .mat .txt .h5) "
        "or of another tool (docs/formats.md).",
    ),
]
Features = Annotated[
    str,
    typer.Option(
        metavar="|".join(FEATURES),
        rich_help_panel=_METHOD,
        help="What the images are compared on after the linear start.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_METHOD,
        help="Weights of the network, .safetensors or .pth, in place of those that come with regkit.",
    ),
]
_PRESET_HELP = "Accuracy against time; 'linear' and 'rigid' stop before deforming. See 'regkit presets'."
Preset = Annotated[
    PresetName,
    typer.Option(
        rich_help_panel=_METHOD,
        help=_PRESET_HELP,
    ),
]
ChosenPreset = Annotated[
    PresetName | None,
    typer.Option(
        show_default="default",
        rich_help_panel=_METHOD,
        help=_PRESET_HELP,
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE.yaml",
        rich_help_panel=_METHOD,
        help="Settings, as 'regkit presets show NAME' prints them.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=_METHOD,
        help="One setting, such as search_range=16. May be given several times.",
    ),
]
CtWindow = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        show_default=False,
        rich_help_panel=_METHOD,
        help="Range of HU that counts. Default: -450 450, and -950 450 where both images are CT.",
    ),
]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(rich_help_panel=_METHOD, help="Where to compute.")
]
Threads = Annotated[
    int | None, typer.Option(min=1, rich_help_panel=_METHOD, help="CPU threads. Default: all.")
]
Memory = Annotated[
    float | None,
    typer.Option(
        metavar="GB",
        min=0.1,
        show_default=False,
        rich_help_panel=_METHOD,
        help="Memory to stay below, by a coarser working grid if need be. Default: all there is.",
    ),
]
Seed = Annotated[int, typer.Option(min=0, rich_help_panel=_METHOD, help="Of all that is drawn at random.")]


def chosen_settings(
    preset: str | None, config: Path | None, assignments: Sequence[str] | None
) -> tuple[str, dict[str, Any], Settings]:
    """What ``--preset``, ``--config`` and ``--set`` ask for.

    ``--set`` goes before the file, and the file before the preset: that of ``--preset``, else its own.

    Returns:
        The preset, the values that replace its own, and the settings that they make.

    Raises:
        RegkitError: naming the key and what is allowed.
    """
    from regkit.core.configuration import read_assignments, read_yaml
    from regkit.core.settings import changed_settings

    changes: dict[str, Any] = {}
    if config is not None:
        changes = read_yaml(config)
        named = str(changes.pop("preset", "default"))
        try:
            changed_settings(named, changes)
        except RegkitError as error:
            raise type(error)(f"'{config}': {error}") from error
        preset = preset or named
    changes |= read_assignments(assignments or ())
    return preset or "default", changes, changed_settings(preset or "default", changes)


def start_file(init: str) -> Path | None:
    """The file that ``--init`` names; None where it names a way to start."""
    if init in INITS:
        return None
    from regkit.io.foreign import split_convention

    file = split_convention(Path(init))[1]
    if not os.path.isfile(file):
        raise typer.BadParameter(f"'{init}' is none of {', '.join(INITS)}, and no file", param_hint="--init")
    return file
