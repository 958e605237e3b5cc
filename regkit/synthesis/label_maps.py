"""Whole label maps as anatomies to learn from: bent, turned, scaled, their parts displaced or missing.

A folder holds the maps and ``anatomies.json``, which says of every label which structure it is part of and
of what tissue it is (docs/pretraining.md). Reading the maps needs SimpleITK, nibabel and scipy.
"""

from __future__ import annotations

import difflib
import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import RegkitError
from regkit.core.jsontext import read_json
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.contrasts import NUMBERS, anatomy_of
from regkit.synthesis.noise import Rng, smooth_noise
from regkit.synthesis.pose import posed, sides
from regkit.synthesis.structures import STRUCTURES
from regkit.synthesis.tissues import TISSUES

if TYPE_CHECKING:
    from regkit.io.images import Volume

LEGEND = "anatomies.json"
"""The file beside the maps that says what their labels are."""

_MAX_LABELS = 255
_TURN = 20.0  # degrees
_MARGIN = 1.2  # an anatomy is so much larger than its map: bent and turned, bodies still lie within it
_STRUCTURE_NUMBERS = {name: number for number, name in STRUCTURES.items()}
_ALONE, _MISSING = 0.2, 0.3  # probabilities
_MAX_DISPLACED = 5  # structures of an anatomy
_MAX_MISSING = 0.04  # share of the body: what is larger is never missing


@dataclass(frozen=True)
class Legend:
    """What the labels of maps are, their ids numbered anew from 0.

    Args:
        ids: in the files, rising; number k stands for ``ids[k]``.
        structures: (labels,) uint8, numbers of :data:`regkit.synthesis.structures.STRUCTURES`, 0 if of none.
        tissues: of each label, numbers of :data:`regkit.synthesis.tissues.TISSUES`; several are mixed.
        alone: (labels,) bool, what remains where an image shows some structures alone; nothing if none.
        source: who made the maps, and under which licence.
    """

    ids: npt.NDArray[np.int64]
    structures: npt.NDArray[np.uint8]
    tissues: tuple[tuple[int, ...], ...]
    alone: npt.NDArray[np.bool_]
    source: str


@dataclass(frozen=True)
class PackedMap:
    """A label map cropped to what is not 0, compressed: it takes a thirtieth of the memory.

    Args:
        labels: (Z, Y, X) uint8, packed by zlib.
        shape: of them.
        to_index: (4, 4), from LPS mm about the middle of the box to index coordinates (x, y, z).
        extent: (3,), of a box in LPS axes around it, mm.
    """

    labels: bytes
    shape: tuple[int, int, int]
    to_index: npt.NDArray[np.floating[Any]]
    extent: npt.NDArray[np.float64]

    def array(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(zlib.decompress(self.labels), np.uint8).reshape(self.shape)


class LabelMaps:
    """Label maps of one folder, to draw anatomies of.

    Args:
        legend: what their labels are.
        maps: at least one.
    """

    def __init__(self, legend: Legend, maps: Sequence[PackedMap]) -> None:
        self.legend, self.maps = legend, tuple(maps)

    def draw(self, rng: Rng, spacing: float) -> Anatomy:
        """An anatomy, axes towards the patient's head, back and left (Z, Y, X), or a box out of it.

        Args:
            rng: on the CPU.
            spacing: of the voxels, mm; where they are too small to hold the whole map, a box is drawn.
        """
        chosen = self.maps[rng.one_of(len(self.maps))]
        labels = chosen.array()
        shape = sides((_MARGIN * chosen.extent).tolist(), spacing)
        middle = _middle(labels, chosen, shape, spacing, rng)
        points = posed(rng, shape, spacing, middle, _TURN)
        displace_structures(points, labels, chosen, self.legend.structures, rng)
        labels_seen = _looked_up(labels, chosen.to_index, points)
        structures = self.legend.structures[labels_seen]
        if self.legend.alone.any() and rng.chance(_ALONE):
            remaining = self.legend.alone[labels_seen]
            labels_seen, structures = np.where(remaining, labels_seen, 0), np.where(remaining, structures, 0)
        if rng.chance(_MISSING):
            labels_seen, structures = remove_structure(labels_seen, structures, rng)
        return anatomy_of(mix_tissues(labels_seen, self.legend.tissues, spacing, rng), structures, spacing)


def load_label_maps(folder: Path) -> LabelMaps:
    """Label maps of a folder (``NAME.nii.gz``), turned the patient's way by their headers, and their legend.

    Raises:
        RegkitError: if there is no folder, map or legend, one cannot be read or used, or a label has no name.
    """
    from regkit.io.images import load_labels  # needs SimpleITK, which a bare training machine has not

    if not folder.is_dir():
        raise RegkitError(f"no folder of label maps at '{folder}'")
    files = sorted(file for file in folder.glob("*.nii*") if file.is_file())
    if not files:
        raise RegkitError(f"no label map in '{folder}': expected NAME.nii.gz files beside {LEGEND}")
    if not (folder / LEGEND).is_file():
        raise RegkitError(
            f"no {LEGEND} in '{folder}': it is to say which structure and tissue each label is "
            "(docs/pretraining.md)"
        )
    legend = load_legend(folder / LEGEND)
    return LabelMaps(legend, [packed(load_labels(file, "anatomy"), legend) for file in files])


def load_legend(path: Path) -> Legend:
    """What the labels of maps are, from JSON: ``source``, ``labels`` and perhaps ``alone``.

    Raises:
        RegkitError: naming the file and the entry, if it cannot be read or says what there is not.
    """
    content = read_json(path, "legend")
    try:
        return _legend(content)
    except ValueError as error:
        raise RegkitError(f"legend '{path}': {error}") from error


def _legend(content: Any) -> Legend:
    """ValueError says what is wrong."""
    if not isinstance(content, dict) or not isinstance(content.get("labels"), dict):
        raise ValueError('expected an object with "source" and "labels", such as {"labels": {"1": {…}}}')
    unknown = set(content) - {"source", "labels", "alone"}
    if unknown:
        raise ValueError(f'no entry "{sorted(unknown)[0]}"; available: source, labels, alone')
    source = content.get("source")
    if not isinstance(source, str) or not source.strip():
        raise ValueError('"source" must say who made the maps, and under which licence')
    of_id: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, (NUMBERS["air"],))}
    for key, value in content["labels"].items():
        if not key.isdecimal():
            raise ValueError(f'label "{key}" must be a whole number from 0')
        if not isinstance(value, dict) or "tissue" not in value or set(value) - {"structure", "tissue"}:
            raise ValueError(f'label {key} must have a "tissue" and may have a "structure", and nothing else')
        names = value["tissue"] if isinstance(value["tissue"], list) else [value["tissue"]]
        tissues = tuple(NUMBERS[_known(name, TISSUES, "tissue", key)] for name in names)
        if not tissues:
            raise ValueError(f"label {key} must be of a tissue")
        name = value.get("structure")
        number = 0 if name is None else _STRUCTURE_NUMBERS[_known(name, _STRUCTURE_NUMBERS, "structure", key)]
        of_id[int(key)] = number, tissues
    if len(of_id) > _MAX_LABELS:
        raise ValueError(f"there are {len(of_id)} labels, and may be {_MAX_LABELS}")
    alone = content.get("alone", [])
    if not isinstance(alone, list):
        raise ValueError('"alone" must be a list of structures')
    numbers = [_STRUCTURE_NUMBERS[_known(name, _STRUCTURE_NUMBERS, "structure", "alone")] for name in alone]
    ids = sorted(of_id)
    structures = np.array([of_id[label][0] for label in ids], np.uint8)
    for name, number in zip(alone, numbers):
        if number not in structures:
            raise ValueError(f'"alone" names "{name}", which no label is part of')
    return Legend(
        np.array(ids),
        structures,
        tuple(of_id[label][1] for label in ids),
        np.isin(structures, numbers),
        source,
    )


def _known(name: Any, names: Collection[str], kind: str, label: str) -> str:
    if isinstance(name, str) and name in names:
        return name
    close = difflib.get_close_matches(str(name), names, 1)
    hint = f', perhaps "{close[0]}"' if close else f"; available: {', '.join(names)}"
    location = label if label == "alone" else f"label {label}"
    raise ValueError(f'{location}: no {kind} named "{name}"{hint}')


def packed(volume: Volume, legend: Legend) -> PackedMap:
    """A label map as anatomies are drawn of it.

    Raises:
        RegkitError: if it has a label that the legend does not name.
    """
    ids = np.unique(volume.array)
    unnamed = np.setdiff1d(ids, legend.ids)
    if len(unnamed):
        shown = ", ".join(map(str, unnamed[:8].tolist())) + (", …" if len(unnamed) > 8 else "")
        raise RegkitError(
            f"the label map '{volume.name}' has labels that {LEGEND} does not name: {shown}; add them to it, "
            "or take them out of the map"
        )
    # One voxel around it, for what lies beyond the box is as at its border.
    occupied = volume.array != 0
    bounds = [np.flatnonzero(occupied.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    first = [max(0, int(b[0]) - 1) for b in bounds]
    last = [min(n, int(b[-1]) + 2) for b, n in zip(bounds, volume.array.shape)]
    part = volume.array[tuple(slice(a, b) for a, b in zip(first, last))]
    labels = np.searchsorted(legend.ids, part).astype(np.uint8)
    z, y, x = labels.shape
    size = np.array([x, y, z])
    to_world = volume.grid.index_to_world.copy()
    to_world[:3, 3] = -to_world[:3, :3] @ ((size - 1) / 2)
    corners = [to_world[:3, :3] @ (corner * size) for corner in product((-0.5, 0.5), repeat=3)]
    extent = np.ptp(corners, axis=0)
    return PackedMap(
        zlib.compress(labels.tobytes(), 6), (z, y, x), np.linalg.inv(to_world), np.asarray(extent, float)
    )


def _middle(
    labels: npt.NDArray[np.uint8], of: PackedMap, shape: tuple[int, ...], spacing: float, rng: Rng
) -> npt.NDArray[np.float64]:
    """LPS mm of the middle of a box: of a random label as far as the box stays within the map."""
    room = np.maximum(_MARGIN * of.extent - spacing * np.array(shape[::-1]), 0) / 2
    if not room.any():
        return np.zeros(3)
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=2)[1:]) + 1
    there = np.flatnonzero(labels == present[rng.one_of(len(present))])
    index = np.unravel_index(there[rng.one_of(len(there))], labels.shape)[::-1]
    place = np.linalg.inv(of.to_index)[:3] @ np.array([*index, 1.0])
    return place.clip(-room, room)


def displace_structures(
    points: npt.NDArray[np.float32],
    labels: npt.NDArray[np.uint8],
    of: PackedMap,
    structures: npt.NDArray[np.uint8],
    rng: Rng,
) -> None:
    """Move and resize some structures against the rest, what is around them following; in place."""
    numbers = np.setdiff1d(structures[np.unique(labels)], [0])
    count = int(rng.scalars.integers(min(_MAX_DISPLACED, len(numbers)) + 1))
    to_world = np.linalg.inv(of.to_index)[:3]
    for number in rng.scalars.choice(numbers, count, replace=False) if count else ():
        index = np.argwhere((structures == number)[labels])[::7, ::-1]
        places = index @ to_world[:, :3].T + to_world[:, 3]
        centre, reach = places.mean(0), float(np.sqrt(places.var(0).mean())) + 4
        # The map stays one to one: displacements change by less than their distance.
        shift = rng.scalars.normal(0, 0.12, 3) * min(reach, 25)
        growth = float(np.clip(rng.scalars.normal(0, 0.12), -0.3, 0.3))
        away = points - centre.reshape(3, 1, 1, 1).astype(np.float32)
        near = np.exp(np.square(away).sum(0) * np.float32(-0.5 / reach**2))
        away *= np.float32(growth)
        away += shift.reshape(3, 1, 1, 1).astype(np.float32)
        points += away * near


def _looked_up(
    labels: npt.NDArray[np.uint8], to_index: npt.NDArray[np.floating[Any]], points: npt.NDArray[np.float32]
) -> npt.NDArray[np.uint8]:
    """The nearest label at each point (3, Z, Y, X), LPS mm; beyond the map that at its border."""
    flat = np.zeros(points.shape[1:], np.int32)
    for row, n, stride in zip(to_index, labels.shape[::-1], np.array(labels.strides)[::-1]):
        x, y, z = points
        along = np.float32(row[0]) * x + np.float32(row[1]) * y
        along += np.float32(row[2]) * z + np.float32(row[3])
        flat += np.rint(along).clip(0, n - 1).astype(np.int32) * np.int32(stride)
    return labels.reshape(-1)[flat]


def remove_structure(
    labels: npt.NDArray[np.uint8], structures: npt.NDArray[np.uint8], rng: Rng
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """Without a small structure: what lies around it fills its place."""
    from scipy.ndimage import distance_transform_edt

    sizes = np.bincount(structures.ravel(), minlength=2)
    sizes[0] = 0
    small = np.flatnonzero((sizes > 0) & (sizes < _MAX_MISSING * sizes.sum()))
    if not len(small):
        return labels, structures
    gone = structures == small[rng.one_of(len(small))]
    extents = [np.flatnonzero(gone.any(axis=tuple({0, 1, 2} - {axis}))) for axis in range(3)]
    box = tuple(slice(max(0, int(w[0]) - 1), int(w[-1]) + 2) for w in extents)
    if gone[box].all():
        return labels, structures
    nearest = distance_transform_edt(gone[box], return_distances=False, return_indices=True)
    labels, structures = labels.copy(), structures.copy()
    labels[box], structures[box] = labels[box][tuple(nearest)], structures[box][tuple(nearest)]
    return labels, structures


def mix_tissues(
    labels: npt.NDArray[np.uint8], tissues: Sequence[Sequence[int]], spacing: float, rng: Rng
) -> npt.NDArray[np.uint8]:
    """The tissue of each voxel: where a label has several, they take turns over some millimetres."""
    max_tissues = max(map(len, tissues))
    table = np.zeros((len(tissues), max_tissues), np.uint8)
    for row, of_label in zip(table, tissues):
        row[:] = [of_label[k * len(of_label) // max_tissues] for k in range(max_tissues)]
    if max_tissues == 1:
        return table[labels, 0]
    scale = float(np.exp(rng.uniform(np.log(4), np.log(20)))) / spacing
    noise = smooth_noise(rng, 1, labels.shape, max(scale, 2.0))[0].numpy()
    ends = [NormalDist().inv_cdf(k / max_tissues) for k in range(1, max_tissues)]
    kind = np.digitize(noise, np.array(ends) + rng.scalars.normal(0, 0.6))
    return table[labels, kind]
