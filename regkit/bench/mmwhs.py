"""MM-WHS 2017: hearts of 20 people in CT and of 20 others in MR, with seven structures.

The folder has ``ct_train/ct_train_1001_image.nii.gz`` to 1020, ``_label.nii.gz`` beside each, and the same in
``mr_train``. No two images are of one person, and which are paired was never published; here a file says it
by a seed (``mmwhs_pairing.json`` beside this module, or one's own):

=========== ==========================================================================================
seed        of all that is drawn
held_out    MR and as many CT subjects that are set aside for tuning and never paired
pairs       how many of the pairs of the others, each subject as often as any other, give or take one;
            null for every MR with every CT
spacing_mm  cubic voxels on which all images are registered and measured
=========== ==========================================================================================
"""

from __future__ import annotations

import hashlib
import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from regkit.bench.dataset import Case, Dataset, Request, Side
from regkit.bench.dataset_files import check_labelled, check_present, choose_names, data_folder, read_object
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid
from regkit.io.atomic import make_folder
from regkit.io.images import MIN_VOXELS, load_image, load_labels
from regkit.io.outputs import save_image
from regkit.ops.resample import Source

SUBJECTS = tuple(range(1001, 1021))
"""Of each modality; the numbers of one say nothing of the other."""
LABELS = {
    500: "left ventricle", 600: "right ventricle", 420: "left atrium", 550: "right atrium",
    205: "left ventricular myocardium", 820: "ascending aorta", 850: "pulmonary artery",
}  # fmt: skip
STRAY, MEANT = 421, 420  # a slip in the published label maps
_TITLE = "MM-WHS 2017"
_SOURCE = "https://zmic.org.cn, after registration there"
_FILE = re.compile(r"(?:[^\s,]*/)?(ct|mr)_train_(\d{4})_(?:image|label)(?:\.nii\.gz)?")
_PAIRING = Path(__file__).with_name("mmwhs_pairing.json")


@dataclass(frozen=True)
class Pairing:
    """Which subjects are paired, and on which voxels; as in the module's description."""

    seed: int
    held_out: int
    pairs: int | None
    spacing_mm: float

    @classmethod
    def read(cls, path: Path) -> Pairing:
        """The pairing that a file says.

        Raises:
            RegkitError: if it cannot be read, lacks a key, or has one that is unknown or out of range.
        """
        values = read_object(path, "pairing")
        names = list(cls.__dataclass_fields__)
        if set(values) != set(names):
            wrong = [f"lacks '{k}'" for k in names if k not in values]
            wrong += [f"has the unknown key '{k}'" for k in values if k not in names]
            raise RegkitError(f"pairing '{path}' {' and '.join(wrong)}; it has {', '.join(names)}")

        def whole(key: str, low: int, high: float) -> int:
            value = values[key]
            if type(value) is not int or not low <= value <= high:
                limits = f"from {low} to {high}" if math.isfinite(high) else f"of {low} or more"
                null = ", or null for all" if key == "pairs" else ""
                raise RegkitError(
                    f"pairing '{path}': {key} must be a whole number {limits}{null}, not {value!r}"
                )
            return value

        seed, held_out = whole("seed", 0, math.inf), whole("held_out", 0, len(SUBJECTS) - 1)
        pairs = None if values["pairs"] is None else whole("pairs", 1, (len(SUBJECTS) - held_out) ** 2)
        spacing: Any = values["spacing_mm"]
        if type(spacing) not in (int, float) or not 0.5 <= spacing <= 10:
            raise RegkitError(
                f"pairing '{path}': spacing_mm must be a number from 0.5 to 10, not {spacing!r}"
            )
        return cls(seed, held_out, pairs, float(spacing))

    def draw(self) -> list[tuple[int, int]]:
        """MR and CT subject of each pair, sorted."""
        random = np.random.default_rng(self.seed)
        # In random order; the last ones are held out.
        mr, ct = (random.permutation(SUBJECTS)[: len(SUBJECTS) - self.held_out].tolist() for _ in range(2))
        n = len(mr)
        # Round by round, in which every subject has one partner, another in each round.
        every = [(mr[i], ct[(i + shift) % n]) for shift in range(n) for i in range(n)]
        return sorted(every[: self.pairs])


def _cases(request: Request) -> list[Case]:
    directions = choose_names(request.directions, DATASET.directions, DATASET.default_directions, "direction")
    data = data_folder(request, _TITLE, _SOURCE)
    pairing = Pairing.read(request.pairing or _PAIRING)
    drawn = {f"mr{mr}-ct{ct}": (("mr", mr), ("ct", ct)) for mr, ct in pairing.draw()}
    requested: list[str] = []
    for name in (_FILE.sub(r"\1\2", name) for name in request.pairs):
        requested += [pair for pair in drawn if name in pair.split("-")] or [name]
    names = choose_names(requested, list(drawn), len(drawn), "pair by this pairing named")
    subjects = sorted({subject for name in names for subject in drawn[name]})
    files = [path for subject in subjects for path in _files(data, *subject)]
    check_present(files, data, f"unpack all of ct_train and mr_train, which are available from {_SOURCE}")
    folder = request.scratch / f"mmwhs-{pairing.spacing_mm:g}mm"
    make_folder(folder)
    sides = {subject: _prepared(data, folder, *subject, pairing.spacing_mm) for subject in subjects}
    cases = []
    for name in names:
        mr, ct = (sides[subject] for subject in drawn[name])
        ends = {"mr2ct": (ct, mr), "ct2mr": (mr, ct)}
        cases += [Case(name, direction, *ends[direction], dict(LABELS)) for direction in directions]
    return cases


def _files(data: Path, modality: str, subject: int) -> tuple[Path, Path]:
    stem = data / f"{modality}_train" / f"{modality}_train_{subject}"
    return stem.with_name(f"{stem.name}_image.nii.gz"), stem.with_name(f"{stem.name}_label.nii.gz")


def _prepared(data: Path, folder: Path, modality: str, subject: int, spacing: float) -> Side:
    """A subject on cubic voxels, made unless it is there."""
    image_file, label_file = _files(data, modality, subject)
    # Of other files, other ones are made.
    source = hashlib.sha256(
        repr(
            [(p.absolute(), p.stat().st_size, p.stat().st_mtime_ns) for p in (image_file, label_file)]
        ).encode()
    ).hexdigest()[:8]
    image, labels = (folder / f"{modality}_{subject}_{source}_{what}.nii.gz" for what in ("image", "label"))
    if not (image.is_file() and labels.is_file()):
        volume = load_image(image_file, "image")
        structures = load_labels(label_file, "labels", volume.grid)
        structures = replace(structures, array=np.where(structures.array == STRAY, MEANT, structures.array))
        check_labelled(structures, label_file, LABELS)
        known = np.isin(structures.array, list(LABELS))
        values = np.where(known, structures.array, 0).astype(np.uint16)
        grid = cubic(volume.grid, spacing)
        smooth = Source(torch.from_numpy(volume.array), None, volume.grid).smoothed_for(spacing)
        for array, interpolator, path in (
            (values, sitk.sitkNearestNeighbor, labels),
            (smooth.image.numpy(), sitk.sitkLinear, image),
        ):
            before, border = volume.grid.to_sitk(array), float(array.min())
            save_image(sitk.Resample(before, grid.blank(), sitk.Transform(), interpolator, border), path)
    return Side(image, labels)


def cubic(grid: Grid, spacing: float) -> Grid:
    """Cubic voxels on the axes and over the field of view of a grid, to half a voxel."""
    size = np.maximum(np.round(grid.extent / spacing), MIN_VOXELS).astype(int)
    direction: Float64 = np.reshape(grid.direction, (3, 3))
    origin = grid.centre - direction @ ((size - 1) / 2 * spacing)
    return Grid(tuple(size), (spacing,) * 3, tuple(origin), grid.direction)


DATASET = Dataset(
    name="mmwhs",
    title="MM-WHS 2017: MR and CT of different people, heart, 7 structures",
    source=_SOURCE,
    directions=("mr2ct", "ct2mr"),
    default_directions=1,
    cases=_cases,
    note=(
        "MR and CT are of different people, and which of them the paper of anatomix paired is not published. "
        "Here a seed sets subjects of both aside and draws pairs of the others so that each serves equally "
        "often: unless another pairing was given, 5 MR and 5 CT of 20 each are set aside and 15 pairs drawn "
        "by seed 0. All volumes are brought to cubic voxels (2 mm unless the pairing says otherwise) on "
        "their own axes and field of view: images smoothed to suit and linearly, labels by nearest "
        "neighbour, a stray 421 as 420. So the numbers can be compared with each other, but "
        "with published ones only roughly."
    ),
)
