"""Check whether a warp goes from one image to another and, if not, which reading of its file would.

The file is read as regkit reads it, and again in each of the ways in which warps are mistaken: its inverse,
vectors in RAS in place of LPS, in voxels in place of mm, along the grid's own axes, positions in place of
displacements, components the other way round. Each reading brings the moving image onto the fixed one at low
resolution, and the one under which MIND-SSC agrees best is named.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64, Grid, transform_points
from regkit.core.intensity import default_ct_window, is_ct, normalise, window_of
from regkit.io import foreign, guard
from regkit.io.formats import NotLinearError, is_transform, read_linear, to_learn2reg
from regkit.io.images import ImageLike, Volume, load_image
from regkit.io.nifti import SUFFIXES, open_nifti
from regkit.ops.jacobian import folding_percent
from regkit.ops.resample import Source
from regkit.solver.lowres import LowRes, Points
from regkit.warp import Inverter, Warp, contains

_CELLS = 60_000  # of the grid that readings are compared on
_FIELD_CELLS = 20_000  # of a field that is inverted
# A reading is better than another where its disagreement is less than this share of the other's.
_BETTER = 0.98
_CHANCE = 0.97  # disagreement as a share of chance, above which images have not been brought together
_SCALES = (0.3, 3.0)  # of the affine part of a map: beyond them it is no map between two images of one body

_RAS = np.array([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Interpretation:
    """One way to take the numbers of a file.

    Args:
        name: in short, for JSON.
        text: what the file would be, to follow "it is".
        advice: what to do about it.
        agreement: of the images under it: 0 is chance, 1 perfect.
        covered: share of what the fixed image shows that has a place in the moving one.
    """

    name: str
    text: str
    advice: str
    agreement: float
    covered: float


@dataclass(frozen=True)
class Check:
    """What :func:`check_warp` found out about a warp or linear transform.

    Args:
        kind: "field" or "linear".
        stated: the reading that regkit takes, or None if it refuses the file.
        best: the reading under which the images agree best.
        header: agreement of the images without a warp, as their headers place them.
        right: whether the warp is right as it is read.
        folding_percent: voxels of the field that fold, or None for a linear transform.
        in_field: share of the fixed voxels that lie on the grid of the field, or None for a linear transform.
        answer: the conclusion, in sentences.
        readings: everything that was tried, best first.
    """

    kind: str
    stated: Interpretation | None
    best: Interpretation
    header: float
    right: bool
    folding_percent: float | None
    in_field: float | None
    answer: tuple[str, ...]
    readings: tuple[Interpretation, ...]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    text: str
    advice: str
    map: Points


def check_warp(path: str | os.PathLike[str], fixed: ImageLike, moving: ImageLike) -> Check:
    """Find out whether a warp brings one image onto another and, if not, what would.

    Args:
        path: a warp or linear transform of any kind that regkit reads (docs/formats.md). The convention of a
            plain 4x4 matrix need not be named.
        fixed, moving: the images that the warp should connect.

    Raises:
        RegkitError: if a file cannot be used.
    """
    fixed_image, moving_image = load_image(fixed, "fixed image"), load_image(moving, "moving image")
    path = Path(path)
    grids = fixed_image.grid, moving_image.grid
    kind, candidates, warp, stated = _candidates(path, *grids)
    look = _look(fixed_image, moving_image)
    readings = {c.name: _tried(look, c) for c in candidates}
    header = _tried(look, _Candidate("none", "no warp", "", lambda points: points))
    order = sorted(readings.values(), key=lambda reading: -reading.agreement)
    own, best = readings.get(stated or ""), order[0]
    if own is not None and not _better(best, own):
        best = own
    folding = in_field = None
    if warp is not None:
        folding = folding_percent(warp.jacobian().array)
        points = look.grid.world_points()
        in_field = float(contains(warp.grid, points[contains(grids[0], points)]).mean())
    right = own is best and best.agreement > 1 - _CHANCE and not _better(header, best)
    answer = tuple(_answer(own, best, header, right, folding, in_field, warp, grids))
    return Check(kind, own, best, header.agreement, right, folding, in_field, answer, tuple(order))


def agreement(fixed: Volume, moving: Volume, *maps: Points) -> list[float]:
    """How well two images agree under each of some maps (:class:`Interpretation`): 0 chance, 1 perfect."""
    look = _look(fixed, moving)
    return [_tried(look, _Candidate("", "", "", one)).agreement for one in maps]


def _look(fixed: Volume, moving: Volume) -> LowRes:
    """The two images at the resolution at which readings are compared."""
    cells = min(_CELLS, fixed.array.size)
    return LowRes(*_sources(fixed, moving), float(np.prod(fixed.grid.extent) / cells) ** (1 / 3))


def _better(one: Interpretation, other: Interpretation) -> bool:
    return 1 - one.agreement < _BETTER * (1 - other.agreement)


def _answer(
    own: Interpretation | None,
    best: Interpretation,
    header: Interpretation,
    right: bool,
    folding: float | None,
    in_field: float | None,
    warp: Warp | None,
    grids: tuple[Grid, Grid],
) -> Iterator[str]:
    if right:
        yield "As it is read, the warp brings the moving image onto the fixed one."
        if not _better(best, header):
            yield "It helps little: without it the images agree about as well."
    elif best.agreement <= 1 - _CHANCE:
        yield (
            "No reading of the file brings these images together: it belongs to other images, or one of them "
            "was given another place in the world since."
        )
    elif _better(header, best) and not _better(best, header):
        yield "The images agree better without the warp than with any reading of it: it does harm here."
    elif own is None:
        yield f"The file does not say what its numbers mean. By these images it is {best.text}."
        yield best.advice
    elif own is best:
        yield "The warp as it is read is the best reading, but it does not make the images agree better."
    else:
        yield f"As it is read, the warp is wrong for these images. By what fits best it is {best.text}."
        yield best.advice
    if folding:
        yield f"It folds at {folding:.2g} % of its voxels."
    if in_field is not None and in_field < 0.98:
        yield (
            f"Its field covers {100 * in_field:.0f} % of the fixed image; beyond it SimpleITK and ANTs move "
            "nothing."
        )
        if warp is not None and warp.grid.same_as(grids[1]):
            yield "It lies on the voxels of the moving image, not on those of the fixed one."
    if best.covered < 0.5:
        yield f"Of what the fixed image shows, {100 * best.covered:.0f} % lies in the moving one."


def _tried(look: LowRes, candidate: _Candidate) -> Interpretation:
    points = look.grid.world_points()
    targets = candidate.map(points)
    agreement = covered = 0.0
    if np.isfinite(targets).all() and _plausible(points, targets):
        moved = look.through(lambda _: targets)
        shown = look.content * moved.weight
        covered = look.covered(moved)
        chance = look.chance(moved)
        if covered > 0.02 and np.isfinite(chance):
            difference = float((look.difference(moved) * shown).sum() / shown.sum()) / max(chance, 1e-9)
            # Where there is nothing to see, chance is all there is.
            agreement = covered * (1 - difference)
    return Interpretation(candidate.name, candidate.text, candidate.advice, agreement, covered)


def _plausible(points: Float64, targets: Float64) -> bool:
    """Whether the affine part of a map is one between two images of one body."""
    p, t = points.reshape(-1, 3)[::7], targets.reshape(-1, 3)[::7]
    slopes = np.linalg.lstsq(np.c_[p - p.mean(0), np.ones(len(p))], t - t.mean(0), rcond=None)[0][:3]
    scales = np.linalg.svd(slopes, compute_uv=False)
    return bool(_SCALES[0] < scales[-1] and scales[0] < _SCALES[1])


def _sources(fixed: Volume, moving: Volume) -> tuple[Source, Source]:
    """Both images normalised as for a registration without masks."""
    ct = [is_ct(volume.array) for volume in (fixed, moving)]
    sources = []
    for volume, is_hu in zip((fixed, moving), ct):
        window = window_of(volume.array, default_ct_window(ct) if is_hu else None)
        image = torch.from_numpy(normalise(volume.array, window))
        sources.append(Source(image, None, volume.grid).without_filling(volume.array))
    return sources[0], sources[1]


_LPS, _LEARN2REG = "LPS mm", "Learn2Reg"
_SWAP = (
    "Give the images the other way round, or turn the warp round: "
    "'regkit invert WARP --reference FIXED -o OUT', or inverse:WARP in 'regkit apply'."
)


def _candidates(
    path: Path, fixed: Grid, moving: Grid
) -> tuple[str, list[_Candidate], Warp | None, str | None]:
    """Kind, every way to read a file, its field if it has one, and the name of the way that regkit takes."""
    convention, file = foreign.split_convention(path)
    if is_transform(path):
        try:
            matrix, stated = read_linear(path, fixed, moving), convention or "as read"
        except NotLinearError:
            pass
        except RegkitError as error:
            if convention is not None or not os.path.isfile(file):
                raise
            try:  # a plain 4x4 matrix does not say what it means
                plain = foreign.text_matrix(file, "lps", fixed, moving)
            except RegkitError:
                plain = None
            if plain is None:
                raise error from None
            return "linear", list(_of_matrix(plain, fixed, moving, "lps")), None, None
        else:
            if convention in ("fsl", "ras"):
                plain = foreign.text_matrix(file, "lps", fixed, moving)
                if plain is not None:
                    return "linear", list(_of_matrix(plain, fixed, moving, "lps")), None, convention
            return "linear", list(_of_matrix(matrix, fixed, moving, stated)), None, stated
    try:
        warp = Warp.load(path, None, moving)
    except RegkitError as error:
        positions = _positions(file) if "positions" in str(error) else None
        if positions is None:
            warp = Warp.load(path, fixed, moving)
        else:
            return "field", list(_of_field(positions, "", moving)), None, None
    if file.suffix.lower() == ".npz" or _is_learn2reg(file):
        # As the numbers stand in the file.
        vectors = Warp(np.ascontiguousarray(to_learn2reg(warp).transpose(2, 1, 0, 3)), warp.grid)
        return "field", list(_of_field(vectors, _LEARN2REG, moving)), warp, _LEARN2REG
    return "field", list(_of_field(warp, _LPS, moving)), warp, _LPS


def _is_learn2reg(file: Path) -> bool:
    if not file.name.lower().endswith(SUFFIXES):
        return False
    with open_nifti(file) as header:
        return len(header.shape) == 4 and header.intent[0] == 0


def _positions(file: Path) -> Warp | None:
    """The vectors of a file as they stand in it; None where they cannot be read so."""
    if file.name.lower().endswith(SUFFIXES):
        with open_nifti(file) as file_header:
            vectors, affine, shape = foreign._vectors(file_header), file_header.affine, file_header.shape[:3]
        return Warp(np.ascontiguousarray(vectors), Grid.from_ras_affine(shape, affine))
    with guard.open_image([file]) as image:
        header = image.header
        final, array = image.read(int(np.prod(header.size)) * 3 * 8)
    grid = Grid(final.size, final.spacing, final.origin, final.direction)  # type: ignore[arg-type]
    return Warp(array.astype(np.float32), grid)


def _of_field(vectors: Warp, stated: str, moving: Grid) -> Iterator[_Candidate]:
    """The readings of a field.

    Args:
        vectors: as they stand in the file, taken for LPS mm, on the field's own grid.
        stated: the name of the reading that regkit takes, or "".
    """
    raw = _coarse(vectors)
    turn, sides = np.reshape(raw.grid.direction, (3, 3)), np.asarray(vectors.grid.spacing)
    here = raw.grid.world_points()
    index = transform_points(vectors.grid.world_to_index, here)
    there = moving.index_to_world
    rewrite = "Rewrite its vectors as LPS mm (intent code 1007)."
    # Name, what it is, what to do, and where it takes the voxels for its vectors v.
    ways: list[tuple[str, str, str, Callable[[Float64], Float64]]] = [
        (_LPS, "a field in LPS mm, from fixed points to moving points",
         "Save it with intent code 1007 (NIfTI), or as .mha or .nrrd.", lambda v: here + v),
        (_LEARN2REG, "a field in voxels of the moving image, as Learn2Reg's",
         "Save it as .npz, or as 4-D NIfTI with intent code 0.",
         lambda v: transform_points(there, index + v)),
        ("Learn2Reg, reversed", "a field in voxels as Learn2Reg's, with components in the order (z, y, x)",
         "Reverse the components.", lambda v: transform_points(there, index + v[..., ::-1])),
        ("RAS mm", "a field whose x and y have the other sign: RAS mm for LPS mm, or the reverse",
         "Change the sign of x and y. In NIfTI the intent code says which it is: 1006 RAS mm, 1007 LPS mm.",
         lambda v: here + v * _RAS),
        ("voxels", "a field in voxels of its own grid, not in mm",
         f"Multiply by the spacing and turn by the direction matrix. {rewrite}",
         lambda v: here + v * sides @ turn.T),
        ("voxels, reversed", "a field in voxels of its own grid, with components in the order (z, y, x)",
         f"Reverse the components, multiply by the spacing, turn by the direction matrix. {rewrite}",
         lambda v: here + v[..., ::-1] * sides @ turn.T),
        ("mm, reversed", "a field in mm with components in the order (z, y, x)",
         f"Reverse the components. {rewrite}", lambda v: here + v[..., ::-1]),
        ("mm of the grid", "a field in mm along the grid's own axes, not along the patient's",
         f"Turn its vectors by the direction matrix. {rewrite}", lambda v: here + v @ turn.T),
        ("LPS positions", "a field of positions in LPS mm, not of displacements",
         f"Subtract the position of each voxel. {rewrite}", lambda v: v),
        ("RAS positions", "a field of positions in RAS mm, not of displacements",
         f"Change the sign of x and y and subtract the position of each voxel. {rewrite}",
         lambda v: v * _RAS),
        ("voxel positions", "a field of positions in voxels of the moving image",
         f"Bring them to LPS mm by the moving image's affine, subtract the position of each voxel. {rewrite}",
         lambda v: transform_points(there, v)),
    ]  # fmt: skip
    values = raw.field.astype(np.float64)
    for name, text, advice, placed in ways:
        targets = placed(values)
        if not np.isfinite(targets).all():
            continue
        warp = Warp((targets - here).astype(np.float32), raw.grid)
        yield _Candidate(name, text, advice, warp.transform_points)
        if not _plausible(here, targets):
            continue
        also = f" Besides, it is {text}. {advice}" if name != stated else ""
        yield _Candidate(
            f"inverse of {name}",
            "the warp the other way, from MOVING to FIXED",
            _SWAP + also,
            Inverter(warp),
        )


def _coarse(warp: Warp) -> Warp:
    """Every n-th voxel of a field along each axis, so that there are few."""
    step = [1, 1, 1]
    while np.prod([-(-n // s) for n, s in zip(warp.grid.size, step)]) > _FIELD_CELLS:
        step[int(np.argmin(np.multiply(step, warp.grid.spacing)))] += 1
    x, y, z = step
    field = np.ascontiguousarray(warp.field[::z, ::y, ::x])
    spacing = tuple(np.multiply(step, warp.grid.spacing))
    return Warp(field, Grid(field.shape[2::-1], spacing, warp.grid.origin, warp.grid.direction))


def _of_matrix(matrix: Float64, fixed: Grid, moving: Grid, stated: str) -> Iterator[_Candidate]:
    """The readings of a 4x4 matrix, taken for LPS mm, fixed point to moving point."""
    flip = np.diag([-1.0, -1.0, 1.0, 1.0])
    to_fixed, to_moving = foreign.fsl_matrix(fixed), foreign.fsl_matrix(moving)
    fsl_there = moving.index_to_world @ np.linalg.inv(to_moving)
    fsl_here = to_fixed @ fixed.world_to_index
    inverse = np.linalg.inv(matrix)
    plain = stated != "as read"
    name = {"lps": "Name it lps:FILE.", "ras": "Name it ras:FILE.", "fsl": "Name it fsl:FILE."}
    rewrite = "Convert it and save it as an ITK transform."
    first = "lps" if plain else "as read"
    ways = [
        (first, "a matrix in LPS mm, fixed point to moving point", name["lps"] if plain else "", matrix),
        (f"inverse of {first}", "the matrix the other way, from MOVING to FIXED",
         "Use inverse:FILE in 'regkit apply', or give the images the other way round.", inverse),
        ("ras", "a matrix in RAS mm, fixed point to moving point", name["ras"] if plain else rewrite,
         flip @ matrix @ flip),
        ("inverse of ras", "a matrix in RAS mm, moving point to fixed point",
         f"Invert it. {name['ras'] if plain else rewrite}", flip @ inverse @ flip),
        ("fsl", "a matrix of FSL's FLIRT", name["fsl"] if plain else rewrite,
         fsl_there @ inverse @ fsl_here),
        ("inverse of fsl", "a matrix of FSL's FLIRT the other way, from FIXED to MOVING",
         f"Invert it (convert_xfm -inverse). {name['fsl'] if plain else rewrite}",
         fsl_there @ matrix @ fsl_here),
        ("voxels", "a matrix between voxel indices, fixed to moving", rewrite,
         moving.index_to_world @ matrix @ fixed.world_to_index),
        ("inverse of voxels", "a matrix between voxel indices, moving to fixed", f"Invert it. {rewrite}",
         moving.index_to_world @ inverse @ fixed.world_to_index),
    ]  # fmt: skip
    for own, text, advice, warp in ways:
        yield _Candidate(own, text, advice, partial(transform_points, warp))
