"""Pairs of one's own: a folder with a folder for each pair, described by its ``manifest.json``.

For example, with paths relative to the manifest::

    {
      "fixed": "mr.nii.gz",
      "moving": "ct.nii.gz",
      "fixed_labels": "mr_labels.nii.gz",
      "moving_labels": "ct_labels.nii.gz",
      "labels": {"1": "liver", "2": "spleen"},
      "landmarks": null,
      "fixed_mask": null,
      "moving_mask": null
    }

Only the images must be there; what is null or not named is taken as absent. Label maps lie on the voxels of
their image, numbered alike on both sides; ``labels`` says which are scored. ``landmarks`` is a CSV with
columns fx,fy,fz,mx,my,mz, LPS mm. A pair with neither is measured by what needs none: folding, SDlogJ and
how well the images agree. Other keys, such as where the data are from, are for the reader. A pair is asked
for by the name of its folder, or of a file in it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from regkit.bench.dataset import Case, Dataset, Request, Side
from regkit.bench.dataset_files import check_labelled, choose_names, data_folder, read_object
from regkit.core.errors import RegkitError
from regkit.io.images import load_grid, load_labels, load_mask
from regkit.io.points import read_pairs

MANIFEST = "manifest.json"
DIRECTIONS = ("given", "exchanged")
_FILES = ("fixed", "moving", "fixed_labels", "moving_labels", "landmarks", "fixed_mask", "moving_mask")
_SOURCE = "your own images, described as in the documentation of regkit.bench.openpairs"


def _cases(request: Request) -> list[Case]:
    return load_pairs(data_folder(request, "open-pairs", _SOURCE), request, default_directions=2)


def load_pairs(data: Path, request: Request, default_directions: int) -> list[Case]:
    """The cases of a folder of pairs, after a check of every file.

    Args:
        data: the folder; that of the request is not looked at.

    Raises:
        RegkitError: if there is no pair, one asked for is unknown, or a manifest or a file cannot be used.
    """
    directions = choose_names(request.directions, DIRECTIONS, default_directions, "direction")
    known = sorted(path.parent.name for path in data.glob(f"[!.]*/{MANIFEST}"))
    if not known:
        hint = "the folder above it" if (data / MANIFEST).is_file() else "a folder whose folders have one"
        raise RegkitError(f"no folder in '{data}' has a {MANIFEST}; give {hint}")
    cases = []
    requested = [next((part for part in reversed(Path(p).parts) if part in known), p) for p in request.pairs]
    for name in choose_names(requested, known, len(known), f"pair in '{data}' named"):
        case = _read(data / name)
        cases += [case if direction == "given" else _exchanged(case) for direction in directions]
    return cases


def _exchanged(case: Case) -> Case:
    return Case(case.name, "exchanged", case.moving, case.fixed, case.labels, case.landmarks, exchanged=True)


def _read(folder: Path) -> Case:
    path = folder / MANIFEST
    manifest = read_object(path, "manifest")
    files: dict[str, Path | None] = {}
    for key in _FILES:
        value = manifest.get(key)
        if not (isinstance(value, str) and value) and (value is not None or key in ("fixed", "moving")):
            raise RegkitError(f"manifest '{path}': '{key}' must be the name of a file, not {value!r}")
        files[key] = None if value is None else folder / value
        if value is not None and not os.path.isfile(folder / value):
            raise RegkitError(f"manifest '{path}': its {key}, '{folder / value}', does not exist")
    labels = _labels(manifest.get("labels") or {}, path)
    if (files["fixed_labels"] is None) != (files["moving_labels"] is None):
        raise RegkitError(f"manifest '{path}' has a label map of one side; give both or null for both")
    if not labels and files["fixed_labels"]:
        raise RegkitError(f"manifest '{path}' has label maps but no labels; name those that are scored")
    if labels and not files["fixed_labels"]:
        raise RegkitError(f"manifest '{path}' names labels but no label maps; give both maps or no labels")
    sides = []
    for role in ("fixed", "moving"):
        image = files[role]
        assert image is not None
        sides.append(Side(image, files[f"{role}_labels"], files[f"{role}_mask"]))
        _check(sides[-1], role, labels)
    if files["landmarks"]:
        read_pairs(files["landmarks"])
    return Case(folder.name, "given", sides[0], sides[1], labels, files["landmarks"])


def _labels(value: Any, path: Path) -> dict[int, str]:
    labels = {}
    for label, name in value.items() if isinstance(value, dict) else [(None, None)]:
        if not (isinstance(label, str) and label.isdecimal() and int(label) and isinstance(name, str)):
            raise RegkitError(
                f"manifest '{path}': 'labels' must be an object of labels above 0 and their names, such as "
                '{"1": "liver"}'
            )
        labels[int(label)] = name
    return labels


def _check(side: Side, role: str, labels: dict[int, str]) -> None:
    grid = load_grid(side.image, f"{role} image")
    if side.labels:
        check_labelled(load_labels(side.labels, f"{role} labels", grid), side.labels, labels)
    if side.mask:
        load_mask(side.mask, f"{role} mask", grid)


DATASET = Dataset(
    name="open-pairs",
    title="pairs of your own, each in a folder with a manifest.json",
    source=_SOURCE,
    directions=DIRECTIONS,
    default_directions=2,
    cases=_cases,
    note=(
        "Every pair as its manifest has it (`given`) and with fixed and moving image exchanged "
        "(`exchanged`), on the voxels that the files have."
    ),
)
