"""Learn2Reg AbdomenCTCT: abdominal CT of 30 people, with 13 organs; any of them onto any other.

The folder is the archive as it unpacks: ``AbdomenCTCT_dataset.json``, ``imagesTr`` and ``labelsTr`` with
``AbdomenCTCT_0001_0000.nii.gz`` to 0030, and ``masksTr`` where there is one.

By default the seven people that others test on, 0024 to 0030, each onto each other: 42 ordered pairs. A pair
is named by both numbers, the fixed one first, as ``0024-0025``; a number alone stands for all pairs of the
test with that person, and the name of a file for its number.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from regkit.bench.dataset import Case, Dataset, Request, Side
from regkit.bench.dataset_files import check_present, choose_names, data_folder
from regkit.bench.learn2reg import checked, label_names, open_archive
from regkit.core.errors import RegkitError

SHAPE = (192, 160, 256)
"""Voxels along x, y, z of every volume; of 2 mm."""
LABELS = tuple(range(1, 14))
PEOPLE = tuple(f"{n:04d}" for n in range(1, 31))
TEST = PEOPLE[23:]
_NAME = "AbdomenCTCT"
_TITLE = f"Learn2Reg {_NAME}"
_SOURCE = "https://cloud.imi.uni-luebeck.de/s/32WaSRaTnFk2JeT/download/AbdomenCTCT.zip"
_FILE = re.compile(r"(?:[^\s,]*/)?AbdomenCTCT_(\d{4})_0000(?:\.nii\.gz)?")
_PAIR = re.compile(r"(\d{1,4})(?:-(\d{1,4}))?")
_Pair = tuple[str, str]
_TESTED = tuple((fixed, moving) for fixed in TEST for moving in TEST if fixed != moving)


def _cases(request: Request) -> list[Case]:
    (direction,) = choose_names(request.directions, DATASET.directions, 1, "direction")
    root, content = open_archive(data_folder(request, _TITLE, _SOURCE), _NAME, _SOURCE)
    pairs = list(dict.fromkeys(p for name in request.pairs or ("test",) for p in _pairs(name, content)))
    sides = {number: _side(root, number) for number in sorted({n for pair in pairs for n in pair})}
    files = [path for side in sides.values() for path in (side.image, side.labels) if path]
    check_present(files, root, f"the archive seems half downloaded; get it again from {_SOURCE}")
    for side in sides.values():
        checked(side, SHAPE, LABELS, _TITLE, _SOURCE)
    names = label_names(content, LABELS)
    return [
        Case(f"{fixed}-{moving}", direction, sides[fixed], sides[moving], names) for fixed, moving in pairs
    ]


def _pairs(name: str, content: dict[str, Any]) -> list[_Pair]:
    """The pairs that a name stands for."""
    if name == "test":
        return list(_TESTED)
    if name == "val":
        return _validation(content)
    found = _PAIR.fullmatch(_FILE.sub(r"\1", name))
    if found:
        first, second = (f"{int(n):04d}" if n else None for n in found.groups())
        if second is None and first in TEST:
            return [pair for pair in _TESTED if first in pair]
        if first in PEOPLE and second in PEOPLE and first != second:
            return [(first, second)]
    raise RegkitError(
        f"{_TITLE} has no pair '{name}'; there is FIXED-MOVING of the numbers 0001 to 0030, one number of "
        "0024 to 0030 for all its pairs among these, and the groups test, val"
    )


def _validation(content: dict[str, Any]) -> list[_Pair]:
    """The validation pairs that the JSON lists."""
    listed = content.get("registration_val")
    pairs = []
    for pair in listed if isinstance(listed, list) else [None]:
        ends = [pair.get(side) for side in ("fixed", "moving")] if isinstance(pair, dict) else []
        found = [match[1] for end in ends if isinstance(end, str) and (match := _FILE.fullmatch(end))]
        if len(found) != 2:
            raise RegkitError(
                f"'{_NAME}_dataset.json' is damaged: 'registration_val' must list pairs of images as "
                f"{{fixed, moving}}, but there is {pair!r}; get the archive again from {_SOURCE}"
            )
        pairs.append((found[0], found[1]))
    return pairs


def _side(root: Path, number: str) -> Side:
    image, labels, mask = (
        root / f"{what}Tr/{_NAME}_{number}_0000.nii.gz" for what in ("images", "labels", "masks")
    )
    return Side(image, labels, mask if mask.is_file() else None)


DATASET = Dataset(
    name="l2r-abdomen-ct",
    title="Learn2Reg AbdomenCTCT: abdominal CT of different people, 13 organs",
    source=_SOURCE,
    directions=("ct2ct",),
    default_directions=1,
    cases=_cases,
    note=(
        "Every ordered pair of the people 0024 to 0030 (42), fixed first, 192 x 160 x 256 voxels of 2 mm; "
        "`val` are the validation pairs that the archive lists. Published numbers of this split are means: "
        "Dice, HD95 in voxels and SDlogJ by the challenge's own formulas."
    ),
)
