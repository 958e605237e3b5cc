"""Options that several commands share, spelled and explained once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regkit.core.choices import FEATURE_SETS, STARTS, DeviceName, FeatureSet, PresetName
from regkit.core.errors import RegkitError

if TYPE_CHECKING:
    from regkit.core.settings import Settings

OUTPUTS, KNOWN, WORKERS = "Outputs", "Optional inputs", "Workers"
_FIXED = typer.Argument(
    metavar="FIXED",
    show_default=False,
    help="The image that stays: NIfTI, NRRD, MetaImage, or a folder of DICOM.",
)
_MOVING = typer.Argument(metavar="MOVING", show_default=False, help="The image to bring onto it.")
FixedImage = Annotated[Path, _FIXED]
MovingImage = Annotated[Path, _MOVING]
# Where --fixed and --moving may stand in their place.
OptionalFixedImage = Annotated[Path | None, _FIXED]
OptionalMovingImage = Annotated[Path | None, _MOVING]


def _to_segment(metavar: str) -> Any:
    return typer.Argument(
        metavar=metavar,
        show_default=False,
        help="The image to segment: NIfTI, NRRD, MetaImage, or a folder of one DICOM series.",
    )


Target = Annotated[Path, _to_segment("TARGET")]
ImageToSegment = Annotated[Path, _to_segment("IMAGE")]


def _label_map(metavar: str) -> Any:
    return typer.Option(
        "--output", "-o", show_default=False, help=f"The label map of {metavar}: .nii.gz .nii .nrrd .mha."
    )


LabelMapOfTarget = Annotated[Path, _label_map("TARGET")]
LabelMapOfImage = Annotated[Path, _label_map("IMAGE")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output files.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but warnings and errors.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print what each stage found, and its time.")]
Log = Annotated[
    Path | None,
    typer.Option("--log", metavar="FILE.log", help="Append the output of -v and all warnings to this file."),
]
Strict = Annotated[
    bool,
    typer.Option(
        help="Exit with code 3 if the verdict is FAIL or the warp is wrong. Outputs are written all the same."
    ),
]
LabelNames = Annotated[
    Path | None,
    typer.Option(
        metavar="JSON", help='Labels to score, with their names: {"1": "liver"}. Default: all labels.'
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
        help="A warp or linear transform (docs/formats.md). Write inverse:FILE for its inverse, and "
        "fsl:FILE, ras:FILE or lps:FILE for a plain matrix.",
    ),
]
WarpSpacing = Annotated[
    float | None,
    typer.Option(
        metavar="MM",
        min=0.01,
        show_default=False,
        help="Write warps with voxels of this size, for smaller files. The error that this causes is "
        "printed. Apply such warps with --reference. Default: the voxels of the image.",
    ),
]
FixedGrid = Annotated[
    Path | None,
    typer.Option("--fixed", metavar="IMAGE", help="The fixed image, for a warp file without a grid."),
]
MovingGrid = Annotated[
    Path | None,
    typer.Option("--moving", metavar="IMAGE", help="The moving image, for a warp in voxels (Learn2Reg)."),
]
FixedSeries = Annotated[
    str | None,
    typer.Option(
        metavar="NUMBER|UID",
        help="The DICOM series to take from the folder of the fixed image. 'regkit info' lists them.",
    ),
]
MovingSeries = Annotated[
    str | None,
    typer.Option(metavar="NUMBER|UID", help="The DICOM series to take from the folder of the moving image."),
]
FixedLandmarks = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=KNOWN,
        help="Points in the fixed image (.csv .fcsv .mrk.json), in the order of --moving-landmarks. They "
        "guide the warp, which need not meet them exactly.",
    ),
]
MovingLandmarks = Annotated[
    Path | None,
    typer.Option(metavar="FILE", rich_help_panel=KNOWN, help="The same points in the moving image."),
]
Moved = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|FOLDER/",
        rich_help_panel=OUTPUTS,
        help="The moving image on the voxels of the fixed one; in a folder as a DICOM series.",
    ),
]
FixedMask = Annotated[
    Path | None,
    typer.Option(rich_help_panel=KNOWN, help="A mask: only these voxels of the fixed image count."),
]
MovingMask = Annotated[
    Path | None,
    typer.Option(rich_help_panel=KNOWN, help="A mask: only these voxels of the moving image count."),
]
Templates = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        show_default=False,
        help="Shape templates: an .npz archive, or a folder of label maps (SUBJECT/STRUCTURE.nii.gz or "
        "SUBJECT.nii.gz). Repeatable.",
    ),
]
Anatomies = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FOLDER",
        show_default=False,
        help="A folder of whole label maps (.nii.gz) and anatomies.json, which names their labels. "
        "Repeatable.",
    ),
]

# How to register, for the commands that do.
_METHOD = "Method"
Init = Annotated[
    str,
    typer.Option(
        metavar="|".join((*STARTS, "FILE")),
        rich_help_panel=_METHOD,
        help="The linear start. auto: search for it, then fit a rigid and an affine transform where they "
        "help. none: take the headers as they are. centre: align the image centres. rigid: auto without the "
        "affine fit. affine: another name for auto. FILE: a linear transform from fixed to moving points, "
        "of ITK (.tfm .mat .txt .h5) or of another tool (docs/formats.md).",
    ),
]
Features = Annotated[
    FeatureSet,
    typer.Option(
        parser=str,  # register() refuses an unknown name in one line, from Python as well
        metavar="|".join(FEATURE_SETS),
        rich_help_panel=_METHOD,
        help="What the images are compared on after the linear start.",
    ),
]
Weights = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        rich_help_panel=_METHOD,
        help="Network weights, .safetensors or .pth. Default: the bundled ones.",
    ),
]
_PRESET_HELP = "Trades accuracy against time. 'linear' and 'rigid' fit no deformation. See 'regkit presets'."
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
        help="A file of settings, as 'regkit presets show NAME' prints them.",
    ),
]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        rich_help_panel=_METHOD,
        help="Change one setting, such as search_range=16. Repeatable.",
    ),
]
CtWindow = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="LOW HIGH",
        show_default=False,
        rich_help_panel=_METHOD,
        help="HU range to compare. Default: -450 450, or -950 450 if both images are CT.",
    ),
]
Device = Annotated[DeviceName, typer.Option(rich_help_panel=_METHOD, help="Where to compute.")]


def _threads(help: str, panel: str | None = None) -> Any:
    return typer.Option(min=1, show_default=False, rich_help_panel=panel, help=help)


def _memory(help: str, panel: str) -> Any:
    return typer.Option(metavar="GB", min=0.1, show_default=False, rich_help_panel=panel, help=help)


Threads = Annotated[int | None, _threads("CPU threads. Default: all.", _METHOD)]
TrainingThreads = Annotated[int | None, _threads("CPU threads. Default: as many as torch takes.")]
ThreadsPerRun = Annotated[
    int | None, _threads("CPU threads of each run. Default: the cores are shared by --jobs.")
]
ThreadsPerWorker = Annotated[
    int | None, _threads("Threads of each worker. Default: the workers share the cores.", WORKERS)
]
Memory = Annotated[
    float | None,
    _memory("Memory to stay below, with a coarser working grid if need be. Default: all there is.", _METHOD),
]
MemoryOfAll = Annotated[
    float | None, _memory("Memory of all workers together; with --scheduler, of each of them.", WORKERS)
]
Seed = Annotated[int, typer.Option(min=0, rich_help_panel=_METHOD, help="Seed of the random numbers.")]


def chosen_settings(
    preset: str | None, config: Path | None, assignments: Sequence[str] | None
) -> tuple[PresetName, dict[str, Any], Settings]:
    """What ``--preset``, ``--config`` and ``--set`` ask for.

    ``--set`` goes before the file, and the file before the preset: that of ``--preset``, else its own.

    Returns:
        The preset, the values that replace its own, and the settings that they make.

    Raises:
        RegkitError: naming the key and what is allowed.
    """
    from regkit.core.configuration import read_assignments, read_yaml
    from regkit.core.settings import changed_settings, preset_name

    changes: dict[str, Any] = {}
    if config is not None:
        changes = read_yaml(config)
        file_preset = str(changes.pop("preset", "default"))
        try:
            changed_settings(file_preset, changes)
        except RegkitError as error:
            raise type(error)(f"'{config}': {error}") from error
        preset = preset or file_preset
    changes |= read_assignments(assignments or ())
    name = preset_name(preset or "default")
    return name, changes, changed_settings(name, changes)


def start_file(init: str) -> Path | None:
    """The file that ``--init`` names; None where it names a way to start."""
    if init in STARTS:
        return None
    from regkit.io.foreign import split_convention

    file = split_convention(Path(init))[1]
    if not os.path.isfile(file):
        raise typer.BadParameter(f"'{init}' is none of {', '.join(STARTS)}, and no file", param_hint="--init")
    return file
