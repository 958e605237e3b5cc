"""Which image goes with which label map, by name, and which of them are trained on."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from regkit.core.errors import RegkitError

# What regkit reads and data sets come in; the longest first.
_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")
# What names end in to tell an image from its label map: nnU-Net's channel, BIDS' last entity, and words.
_OF_IMAGE = re.compile(
    r"[_-](0000|[A-Za-z0-9]*(T1|T2|FLAIR|PD)[A-Za-z0-9]*|image|img|ct|mr|mri)$", re.IGNORECASE
)
_OF_LABELS = re.compile(r"[_-](labels?|seg|segmentation|mask|dseg|gt)$", re.IGNORECASE)


@dataclass(frozen=True)
class Labelled:
    """An image and the label map on its grid.

    Args:
        name: what both files are named after.
    """

    name: str
    image: Path
    labels: Path


def labelled_files(images: Path, labels: Path) -> list[Labelled]:
    """The images of a folder, each with the label map of its name in another or the same folder.

    Names match when they are equal without their endings: the file type, and what tells one kind from the
    other (``_0000``, ``_T2w``, ``_image``; ``_seg``, ``_labels``, ``_dseg``, ``_mask``, ...). Label maps
    without an image are left out, and so are hidden files.

    Returns:
        In the order of their names.

    Raises:
        RegkitError: if a folder is missing or empty, an image has no label map, or two have one name.
    """
    same = images.resolve() == labels.resolve()
    maps, pictures = _volumes(labels, "label maps"), _volumes(images, "images")
    if same:
        maps = [path for path in maps if _OF_LABELS.search(_stem(path))]
        if not maps:
            raise RegkitError(f"no label map in '{labels}': where images lie beside them, name them NAME_seg")
        pictures = [path for path in pictures if path not in maps]
        if not pictures:
            raise RegkitError(f"no image in '{images}'")
    return match_files(pictures, maps)


def match_files(images: Sequence[Path], labels: Sequence[Path]) -> list[Labelled]:
    """Each image with the label map of its name, as :func:`labelled_files` says.

    Raises:
        RegkitError: if an image has no label map, or two have one name.
    """
    of_name: dict[str, list[Path]] = {}
    for path in labels:
        stem = _stem(path)
        for key in {stem, _OF_LABELS.sub("", stem)}:
            of_name.setdefault(key, []).append(path)
    pairs, lonely = [], []
    for image in images:
        stem = _stem(image)
        keys = dict.fromkeys((stem, _OF_IMAGE.sub("", stem)))
        name, matches = next(((key, of_name[key]) for key in keys if key in of_name), (stem, []))
        if len(matches) > 1:
            raise RegkitError(
                f"two label maps fit the image '{image}': '{matches[0].name}' and '{matches[1].name}'"
            )
        if matches:
            pairs.append(Labelled(name, image, matches[0]))
        else:
            lonely.append(image)
    if lonely:
        raise RegkitError(
            f"{len(lonely)} of {len(images)} images have no label map, such as '{lonely[0]}': expected "
            f"{_stem(lonely[0])}.nii.gz or {_stem(lonely[0])}_seg.nii.gz among the label maps"
        )
    twice = [name for name, count in Counter(case.name for case in pairs).items() if count > 1]
    if twice:
        raise RegkitError(f"two images are named '{twice[0]}', and one label map fits both")
    return sorted(pairs, key=lambda case: case.name)


def split(
    cases: Sequence[Labelled], shots: int | None, validation: int | None, seed: int
) -> tuple[list[Labelled], list[Labelled]]:
    """Draw what is trained on and what is held out to validate on; no case is in both.

    A seed holds out the same cases for any number of shots that leaves room, and more shots add to fewer.

    Args:
        shots: how many to train on; by default all that are not validated on.
        validation: how many to validate on; by default a fifth of all, at most four, and no more than
            ``shots`` leaves.

    Raises:
        RegkitError: if there are not so many.
    """
    count = len(cases)
    if validation is None:
        room = count - (shots if shots is not None else 1)
        validation = max(0, min(4, max(1, count // 5), room))
    if shots is None:
        shots = count - validation
    if validation < 0:
        raise RegkitError(f"volumes to validate on must be at least 0, got {validation}")
    if shots < 1:
        raise RegkitError(f"at least one volume must be trained on, but {validation} of {count} are held out")
    if shots + validation > count:
        raise RegkitError(
            f"there are {count} labelled volumes, too few for {shots} to train on and {validation} to "
            "validate on"
        )
    order = np.random.default_rng([seed, 0]).permutation(count)
    drawn = [cases[k] for k in order]
    return (
        sorted(drawn[:shots], key=lambda case: case.name),
        sorted(drawn[count - validation :], key=lambda case: case.name),
    )


def _volumes(folder: Path, what: str) -> list[Path]:
    if not folder.is_dir():
        raise RegkitError(f"the folder of {what} '{folder}' does not exist")
    volumes = [path for path in sorted(folder.iterdir()) if _is_volume(path)]
    if not volumes:
        raise RegkitError(f"no {what} in '{folder}': expected files that end in {', '.join(_SUFFIXES)}")
    return volumes


def _is_volume(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".") and path.name.lower().endswith(_SUFFIXES)


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in _SUFFIXES if path.name.lower().endswith(suffix)), None)
    if suffix is None:
        raise RegkitError(f"'{path}' is not a volume: expected a name that ends in {', '.join(_SUFFIXES)}")
    return path.name[: -len(suffix)]
