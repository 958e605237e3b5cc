"""Learn2Reg AbdomenMRCT: the MR and the CT of a patient, eight pairs with labels and eight without.

The folder is the archive as it unpacks: ``AbdomenMRCT_dataset.json``, ``imagesTr``, ``labelsTr``,
``masksTr``, and the same with ``Ts`` for the test pairs, whose labels are not published.
``AbdomenMRCT_0001_0000.nii.gz`` is the MR of patient 0001, ``_0001`` the CT.

A pair is asked for by its number or by the name of one of its files.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from regkit.bench.dataset import Case, Dataset, Request, Side
from regkit.bench.dataset_files import check_labelled, check_present, choose_names, data_folder, read_object
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.images import load_grid, load_labels, load_mask

SHAPE = (192, 160, 192)
"""Voxels along x, y, z of every volume; of 2 mm."""
SPLITS = ("train", "val", "test")
_NAME = "AbdomenMRCT"
_TITLE = f"Learn2Reg {_NAME}"
_SOURCE = "https://cloud.imi.uni-luebeck.de/s/yiQZfo43YBBg7zL/download/AbdomenMRCT.zip"
_TRAINING = tuple(f"{n:04d}" for n in range(1, 9))
# The official ones, for a file that does not list them.
_LISTS = {"registration_val": _TRAINING[5:], "registration_test": tuple(f"{n:04d}" for n in range(9, 17))}
_LABELS = (1, 2, 3, 4)
_MR, _CT = "0000", "0001"
_FILE = re.compile(r"(?:.*/)?AbdomenMRCT_(\d{4})_000[01](?:\.nii\.gz)?")


def _cases(request: Request) -> list[Case]:
    directions = choose_names(request.directions, DATASET.directions, DATASET.default_directions, "direction")
    root, content = open_archive(data_folder(request, _TITLE, _SOURCE), _NAME, _SOURCE)
    groups = {"all": _TRAINING, "val": _listed(content, "registration_val", root)}
    numbers: list[str] = []
    for name in request.pairs or ("all",):
        file = _FILE.fullmatch(name)
        number = file[1] if file else f"{int(name):04d}" if name.isdecimal() else name
        if name not in groups and number not in _TRAINING:
            raise RegkitError(
                f"{_TITLE} has no pair '{name}' with labels; available: {', '.join(_TRAINING)}, and for "
                "several of them: all, val"
            )
        numbers += groups.get(name, (number,))
    numbers = list(dict.fromkeys(numbers))
    labels = label_names(content, _LABELS)
    sides = {n: {kind: _side(root, "Tr", n, kind) for kind in (_MR, _CT)} for n in numbers}
    _check([[*pair.values()] for pair in sides.values()], root)
    fixed, moving = {"mr2ct": _CT, "ct2mr": _MR}, {"mr2ct": _MR, "ct2mr": _CT}
    return [
        Case(n, direction, sides[n][fixed[direction]], sides[n][moving[direction]], labels)
        for n in numbers
        for direction in directions
    ]


def submission_cases(data: Path, split: str) -> list[Case]:
    """The pairs of a submission to the challenge, in its direction: the CT moves onto the MR.

    Args:
        data: the folder of the archive.
        split: "train" (all eight with labels), "val" or "test". Labels and masks of test pairs are None
            where there are no such files.

    Raises:
        RegkitError: if the split is unknown, or a file is missing or cannot be used.
    """
    (split,) = choose_names([split], SPLITS, 0, f"split of {_TITLE}")
    root, content = open_archive(data_folder(Request(data, (), (), data), _TITLE, _SOURCE), _NAME, _SOURCE)
    numbers = _TRAINING if split == "train" else _listed(content, f"registration_{split}", root)
    suffix = "Ts" if split == "test" else "Tr"
    pairs = [[_side(root, suffix, n, kind) for kind in (_MR, _CT)] for n in numbers]
    if split == "test":
        pairs = [[_without_missing(side) for side in pair] for pair in pairs]
    _check(pairs, root)
    labels = label_names(content, _LABELS)
    return [
        Case(n, "ct2mr", fixed, moving, labels if fixed.labels and moving.labels else {})
        for n, (fixed, moving) in zip(numbers, pairs)
    ]


def open_archive(data: Path, name: str, source: str) -> tuple[Path, dict[str, Any]]:
    """Where an archive of the challenge lies, in the folder given or one below, and what its JSON says.

    Args:
        name: of the task, such as "AbdomenMRCT".
        source: where the archive is to be had, for messages.

    Raises:
        RegkitError: if it is not there, or its JSON cannot be read.
    """
    title, described = f"Learn2Reg {name}", f"{name}_dataset.json"
    for root in (data, data / name):
        if (root / described).is_file():
            return root, read_object(root / described, f"description of {title}")
    raise RegkitError(
        f"'{data}' has no {described}, nor has a folder {name} in it: this is not {title} as it unpacks; "
        f"get it from {source}"
    )


def _listed(content: dict[str, Any], key: str, root: Path) -> tuple[str, ...]:
    """The numbers of the pairs that the JSON lists."""
    if key not in content:
        return _LISTS[key]
    pattern = re.compile(r"AbdomenMRCT_(\d{4})_000\d\.nii\.gz$")
    numbers: list[str] = []
    for pair in content[key] if isinstance(content[key], list) else [None]:
        ends = [pair.get("fixed"), pair.get("moving")] if isinstance(pair, dict) else []
        of_pair = {match[1] for end in ends if isinstance(end, str) and (match := pattern.search(end))}
        if len(of_pair) != 1:
            raise RegkitError(
                f"'{root / f'{_NAME}_dataset.json'}' is damaged: '{key}' must list the two images of each "
                f"patient as {{fixed, moving}}, but there is {pair!r}; get the archive again from {_SOURCE}"
            )
        numbers += of_pair
    return tuple(numbers)


def label_names(content: dict[str, Any], labels: Sequence[int]) -> dict[int, str]:
    """What the JSON calls the labels, for all images or those of each modality, else their numbers."""
    stated = content.get("labels")
    tables = [stated, *stated.values()] if isinstance(stated, dict) else []
    names = {label: f"label {label}" for label in labels}
    for table in reversed([t for t in tables if isinstance(t, dict)]):
        names |= {n: table[str(n)] for n in labels if isinstance(table.get(str(n)), str)}
    return names


def _side(root: Path, suffix: str, number: str, kind: str) -> Side:
    name = f"AbdomenMRCT_{number}_{kind}.nii.gz"
    return Side(*(root / f"{what}{suffix}" / name for what in ("images", "labels", "masks")))


def _without_missing(side: Side) -> Side:
    labels, mask = (path if path and path.is_file() else None for path in (side.labels, side.mask))
    return Side(side.image, labels, mask)


def _check(pairs: list[list[Side]], root: Path) -> None:
    """Refuse what is missing, damaged, of another shape or without any label."""
    sides = [side for pair in pairs for side in pair]
    files = [path for side in sides for path in (side.image, side.labels, side.mask) if path]
    check_present(files, root, f"the archive seems half downloaded; get it again from {_SOURCE}")
    for pair in pairs:
        grids = [checked(side, SHAPE, _LABELS, _TITLE, _SOURCE) for side in pair]
        if not grids[0].same_as(grids[1]):
            warnings.warn(
                f"the headers of '{pair[0].image}' and '{pair[1].image}' place them on different grids: the "
                "challenge looks at voxels alone, but methods here begin from what the headers say",
                stacklevel=2,
            )


def checked(side: Side, shape: tuple[int, ...], labels: Sequence[int], title: str, source: str) -> Grid:
    """The grid of an image, whose files are looked at.

    Args:
        shape: voxels along x, y, z that it has to have.
        labels: that are scored; it has to have one of them.
        title, source: of the data set, for messages.

    Raises:
        RegkitError: if a file is damaged, of another shape or without any label.
    """
    grid = load_grid(side.image, "image")
    if grid.size != shape:
        size, expected = (" x ".join(map(str, n)) for n in (grid.size, shape))
        raise RegkitError(
            f"image '{side.image}' has {size} voxels, but those of {title} have {expected}; use the "
            f"files as they come from {source}"
        )
    if side.labels:
        check_labelled(load_labels(side.labels, "labels", grid), side.labels, dict.fromkeys(labels, ""))
    if side.mask:
        load_mask(side.mask, "mask", grid)
    return grid


DATASET = Dataset(
    name="l2r-abdomen",
    title="Learn2Reg AbdomenMRCT: MR and CT of one patient, abdomen, 4 organs",
    source=_SOURCE,
    directions=("mr2ct", "ct2mr"),
    default_directions=1,
    cases=_cases,
    note=(
        "Pairs 0001 to 0008, MR and CT of one patient, 192 x 160 x 192 voxels of 2 mm, with the masks of the "
        "challenge. `mr2ct` moves the MR onto the CT, as in the paper of anatomix; `ct2mr` is the official "
        "direction of Learn2Reg, whose validation pairs are 0006 to 0008 (`val`)."
    ),
)
