"""Warps and matrices of other tools, recognised by their headers and converted to LPS mm.

Each converter states the tool's definition of what its numbers mean. What is known and not converted is
refused by name, with what the tool itself can write instead.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from regkit.core.errors import FormatError
from regkit.core.geometry import Float64, Grid, slab_index, slabs, transform_points
from regkit.io.nifti import NiftiFile

_DISPVECT, _VECTOR = 1006, 1007  # NIfTI intent codes
_FSL_FIELD = 2006
_FSL_OTHERS = {
    2007: "cubic spline coefficients of FSL's FNIRT",
    2008: "DCT coefficients of FSL's FNIRT",
    2009: "quadratic spline coefficients of FSL's FNIRT",
    2016: "cubic spline coefficients of FSL's TOPUP",
    2017: "quadratic spline coefficients of FSL's TOPUP",
    2018: "an off-resonance field of FSL's TOPUP, in Hz",
}
_NIFTYREG_OTHERS: dict[float, str] = {
    2: "a grid of spline control points",
    3: "a velocity field",
    4: "a velocity field",
    5: "a grid of velocity control points",
    6: "a grid of spline control points",
}
_FLIP_XY = np.diag([-1.0, -1.0, 1.0, 1.0])
_LPS_RAS = np.array([-1.0, -1.0, 1.0])
_MAX_TEXT = 1 << 20  # bytes of a file that holds a matrix as text
_OBLIQUE = 0.01  # of a direction's cosines: half a degree, above AFNI's own threshold of 0.01 degrees

CONVENTIONS = ("fsl", "ras", "lps")
"""Names before a plain matrix, such as ``fsl:flirt.mat``, that say what its numbers mean."""


def field_of(file: NiftiFile, grid: Grid, moving: Grid | None) -> npt.NDArray[np.float32] | None:
    """The displacements of a NIfTI file of some tool's, (z, y, x, 3), LPS mm; None if it is nobody's.

    Args:
        grid: of the file.
        moving: of the moving image, which FSL's fields need.

    Raises:
        RegkitError: if its tool is known and its numbers cannot be used; without the file's name.
    """
    code, parameter, name = file.intent
    five = len(file.shape) == 5 and file.shape[3:] == (1, 3)
    four = len(file.shape) == 4 and file.shape[3] == 3
    if code in _FSL_OTHERS:
        hint = "" if code >= 2016 else ": write the field with 'fnirtfileutils --withaff -o'"
        raise FormatError(f"holds {_FSL_OTHERS[code]}{hint}")
    afni = b"x_delta" in file.extension and b"AFNI" in file.extension and len(file.shape) in (4, 5)
    if afni and file.shape[-1] in (3, 6) and file.shape[3:-1] in ((), (1,)):
        return _afni_field(file, grid, moving)
    if not five and not four:
        return None
    if code == _FSL_FIELD:
        if moving is None:
            raise FormatError(
                "is a field of FSL's, in voxels of both images: give the moving image too (--moving)"
            )
        return _fsl_field(_vectors(file), grid, moving)
    if four and file.description.startswith(("FSL", "MRtrix")):
        tool = "FSL" if file.description.startswith("FSL") else "MRtrix"
        raise FormatError(f"is a 4-D file of {tool} without an intent that says what its numbers are")
    if not five:
        return None
    if re.search("flow field|velocity", file.description, re.IGNORECASE):
        raise FormatError(
            f"is a '{file.description}' of SPM, no warp before it is integrated: write the deformation with "
            "SPM's Deformations utility"
        )
    if name == "Mapping" or "deformation" in file.description.lower():
        return _from_positions(_vectors(file), grid)  # SPM: at each voxel the RAS mm to take the value from
    if name == "NREG_TRANS":
        if parameter == 0:
            return _from_positions(_vectors(file), grid)  # NiftyReg's deformation field: the same
        if parameter == 1:
            return _vectors(file) * _LPS_RAS.astype(np.float32)  # NiftyReg's displacements: RAS mm
        kind = _NIFTYREG_OTHERS.get(parameter, f"something of kind {parameter:g}")
        raise FormatError(f"is {kind} of NiftyReg: write the field with 'reg_transform -def'")
    if name.startswith("NREG"):
        raise FormatError(f"is a '{name}' of an old NiftyReg: write the field with 'reg_transform -def'")
    if code == _DISPVECT:
        return _vectors(file) * _LPS_RAS.astype(np.float32)
    if code == _VECTOR:
        return _vectors(file)
    return None


def _afni_field(file: NiftiFile, grid: Grid, moving: Grid | None) -> npt.NDArray[np.float32]:
    """AFNI's (3dQwarp, 3dNwarpCat): displacements in its DICOM order, which is LPS, at the base's voxels.

    Three volumes named x_delta, y_delta and z_delta, often with three more of volumes and energies
    (IW3D_to_dataset). The obliquity of either image does not count in AFNI's coordinates.
    """
    for which, image in (("its", grid), ("the moving image's", moving)):
        if image is not None and _is_oblique(image):
            raise FormatError(
                f"is a warp of AFNI, whose coordinates leave out obliquity, and {which} grid is oblique: "
                "bring it to a plumb grid first (3dWarp -deoblique)"
            )
    return _vectors(file)


def refuse_positions(field: npt.NDArray[np.float32], grid: Grid) -> None:
    """Refuse vectors that are positions: those grow as fast as the coordinates do, in LPS or RAS.

    As displacements they would double the image's size or draw it together in one point.

    Args:
        field: (z, y, x, 3), taken for LPS mm.
    """
    if min(grid.size) < 2:
        return
    index, values = _samples(field)
    if not np.isfinite(values).all():
        return
    points = transform_points(grid.index_to_world, index)
    slopes = _slopes(points, values)
    for system, signs in (("LPS", np.ones(3)), ("RAS", _LPS_RAS)):
        near = np.linalg.norm(values.mean(axis=0) - signs * points.mean(axis=0)) < np.linalg.norm(grid.extent)
        if near and np.abs(slopes - np.diag(signs)).max() < 0.3:
            raise FormatError(
                f"its vectors are not displacements but positions in {system} mm, of a tool that leaves no "
                "sign of itself; subtract the voxels' own positions"
            )


def _samples(field: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], Float64]:
    """Some 12 to 24 voxels a side of a field (z, y, x, 3): indices (x, y, z) and vectors, (n, 3) each."""
    z, y, x = (np.arange(0, n, max(1, n // 12)) for n in field.shape[:3])
    index = np.stack(np.meshgrid(x, y, z, indexing="ij"), axis=-1).reshape(-1, 3)
    return index, field[index[:, 2], index[:, 1], index[:, 0]].astype(np.float64)


def _slopes(points: Float64, values: Float64) -> Float64:
    """How values (n, 3) grow with points (n, 3), by least squares: row i by coordinate i."""
    design = np.c_[points - points.mean(axis=0), np.ones(len(points))]
    return np.asarray(np.linalg.lstsq(design, values, rcond=None)[0][:3])


def _vectors(file: NiftiFile) -> npt.NDArray[np.float32]:
    """The vectors as they stand in the file, (z, y, x, 3)."""
    array = file.read()
    if array.dtype.kind not in "iuf":
        raise FormatError(f"holds vectors of the type {array.dtype}, not of real numbers")
    with np.errstate(all="ignore"):
        array = array.astype(np.float32, copy=False)
    array = array[:, :, :, 0] if array.ndim == 5 else array
    return array[..., :3].transpose(2, 1, 0, 3)


def _from_positions(positions: npt.NDArray[np.float32], grid: Grid) -> npt.NDArray[np.float32]:
    """Displacements, LPS mm, from where each voxel goes, RAS mm."""
    field = np.empty((*grid.shape, 3), np.float32)
    for first, last in slabs(grid):
        here = transform_points(grid.index_to_world, slab_index(grid, first, last))
        field[first:last] = positions[first:last] * _LPS_RAS - here
    return field


def _fsl_field(values: npt.NDArray[np.float32], fixed: Grid, moving: Grid) -> npt.NDArray[np.float32]:
    """FSL's (applywarp): at a voxel of the reference, FSL's mm to add to come to the source's FSL mm.

    convertwarp also writes the place itself ("absolute") with the same intent; it grows as coordinates do.
    """
    to_fsl = fsl_matrix(fixed)
    positions, some = _samples(values)
    if not np.isfinite(some).all():
        raise FormatError("has values that are infinite or not a number")
    slope = float(np.trace(_slopes(transform_points(to_fsl, positions), some))) / 3
    if 0.35 < slope < 0.65:
        raise FormatError(
            "is a field of FSL's that may be relative or absolute; write it with 'convertwarp --relout'"
        )
    back = moving.index_to_world @ np.linalg.inv(fsl_matrix(moving))
    field = np.empty((*fixed.shape, 3), np.float32)
    for first, last in slabs(fixed):
        index = slab_index(fixed, first, last)
        place = values[first:last] + (0 if slope > 0.5 else transform_points(to_fsl, index))
        field[first:last] = transform_points(back, place) - transform_points(fixed.index_to_world, index)
    return field


def fsl_matrix(grid: Grid) -> Float64:
    """4x4 from index to FSL's mm: voxels times spacing, the first axis reversed where left is not stored so.

    By FSL's FLIRT FAQ: x runs from the other end where the affine has a positive determinant.
    """
    matrix = np.diag([*grid.spacing, 1.0])
    if np.linalg.det(np.reshape(grid.direction, (3, 3))) > 0:
        matrix[0, 0], matrix[0, 3] = -grid.spacing[0], (grid.size[0] - 1) * grid.spacing[0]
    return matrix


def _is_oblique(grid: Grid) -> bool:
    return bool((1 - np.abs(np.reshape(grid.direction, (3, 3))).max(axis=0) > _OBLIQUE**2).any())


def split_convention(path: Path) -> tuple[str | None, Path]:
    """A convention before the name of a file, as in ``fsl:flirt.mat``, and the file."""
    convention, sign, rest = str(path).partition(":")
    if sign and convention in CONVENTIONS and rest:
        return convention, Path(rest)
    return None, path


def text_matrix(
    path: Path, convention: str | None, fixed: Grid | None, moving: Grid | None
) -> Float64 | None:
    """The 4x4 LPS matrix, fixed point -> moving point, of a text file of some other tool's.

    Args:
        convention: of a plain matrix: ``fsl`` (FLIRT: source to reference, FSL's mm), ``ras`` (NiftyReg,
            greedy, c3d: fixed point -> moving point, RAS mm) or ``lps``.
        fixed, moving: the images' grids, which ``fsl`` needs.

    Returns:
        None if the file may be one of ITK's.

    Raises:
        RegkitError: if it is none, or one of another tool's and cannot be used; without its name.
    """
    with path.open("rb") as file:
        content = file.read(_MAX_TEXT)
    if content.startswith(b"MATLAB 5"):
        raise FormatError("is a file of MATLAB 5, such as SPM's, not of ITK; give an ITK transform")
    if b"\0" in content:
        if convention:
            raise FormatError("holds no plain 4x4 matrix of numbers")
        return None
    text = content.decode("utf-8", "replace")
    if re.search(r"^\s*\(Transform\s", text, re.MULTILINE):
        return _elastix(text, path)
    if re.search(r"^\s*type\s*=", text, re.MULTILINE) and "src volume info" in text:
        return _lta(text)
    try:
        rows = [[float(word) for word in line.split()] for line in text.splitlines() if line.strip()]
    except ValueError:
        rows = []
    if [len(row) for row in rows] not in ([4] * 4, [4] * 3):
        if convention:
            raise FormatError("holds no plain 4x4 matrix of numbers")
        if re.search(r"^\s*Transform:", text, re.MULTILINE):
            return None
        raise FormatError(
            "holds no transform: no line 'Transform: ...' of ITK's, no .lta of FreeSurfer's, no parameters "
            "of elastix' and no 4x4 matrix of numbers"
        )
    matrix = np.array([*rows, [0.0, 0.0, 0.0, 1.0]][:4])
    _check(matrix)
    if convention is None:
        raise FormatError(
            "is a plain 4x4 matrix, which does not say what its numbers mean: name it fsl:FILE (FLIRT), "
            "ras:FILE (NiftyReg, greedy, c3d: fixed to moving) or lps:FILE"
        )
    if convention == "lps":
        return matrix
    if convention == "ras":
        return _FLIP_XY @ matrix @ _FLIP_XY
    if fixed is None or moving is None:
        raise FormatError("is a matrix of FSL's, in voxels of both images: give both (--fixed and --moving)")
    # FLIRT's takes a point of the source, which moves, to the reference.
    to_fixed, to_moving = fsl_matrix(fixed), fsl_matrix(moving)
    return (
        moving.index_to_world
        @ np.linalg.inv(to_moving)
        @ np.linalg.inv(matrix)
        @ to_fixed
        @ fixed.world_to_index
    )


def _lta(text: str) -> Float64:
    """FreeSurfer's linear transform array: from the source, which moves, to the destination.

    Type 0 counts in voxels of both volumes, type 1 in RAS mm; the volumes' geometry stands in the file.
    https://surfer.nmr.mgh.harvard.edu/fswiki/LinearTransformArray
    """
    body = re.search(r"^\s*1 4 4\s*\n((?:[^\n]*\n){4})", text, re.MULTILINE)
    kind = re.search(r"^\s*type\s*=\s*(\d+)", text, re.MULTILINE)
    count = re.search(r"^\s*nxforms\s*=\s*(\d+)", text, re.MULTILINE)
    if not (body and kind and count):
        raise FormatError("is a damaged .lta: it has no matrix")
    if int(count[1]) != 1:
        raise FormatError(f"holds {count[1]} transforms; give a .lta of one")
    matrix = _numbers(body[1], 16).reshape(4, 4)
    if int(kind[1]) == 0:
        source, target = (_lta_volume(text, name) for name in ("src", "dst"))
        _check(source)
        matrix = target @ matrix @ np.linalg.inv(source)
    elif int(kind[1]) != 1:
        raise FormatError(
            f"is a .lta of type {kind[1]}; only 0 (voxels) and 1 (RAS) are read: lta_convert writes them"
        )
    _check(matrix)
    return _FLIP_XY @ np.linalg.inv(matrix) @ _FLIP_XY


def _check(matrix: Float64) -> None:
    """Refuse a 4x4 matrix that is not affine or cannot be inverted."""
    if not np.isfinite(matrix).all() or np.abs(matrix).max() > 1e12:
        raise FormatError("holds a matrix that is singular or not finite")
    if not np.allclose(matrix[3], (0, 0, 0, 1), atol=1e-6) or np.linalg.cond(matrix[:3, :3]) > 1e8:
        raise FormatError("holds a matrix that is singular or not finite, or not affine")


def _lta_volume(text: str, name: str) -> Float64:
    """Index -> RAS mm of a volume that a .lta describes."""
    block = text[text.index(f"{name} volume info") :]

    def values(field: str) -> Float64:
        match = re.search(rf"^\s*{field}\s*=([^\n]*)", block, re.MULTILINE)
        return _numbers(match[1] if match else "", 3)

    valid = re.search(r"^\s*valid\s*=\s*(\d)", block, re.MULTILINE)
    if not valid or valid[1] != "1":
        raise FormatError(f"is a .lta in voxels that does not describe its {name} volume")
    affine = np.eye(4)
    axes = np.stack([values("xras"), values("yras"), values("zras")], axis=1)
    affine[:3, :3] = axes * values("voxelsize")
    affine[:3, 3] = values("cras") - affine[:3, :3] @ (values("volume") / 2)
    return affine


def _numbers(text: str, count: int) -> Float64:
    try:
        numbers = np.array([float(word) for word in text.split()])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise FormatError(f"is damaged: {count} numbers were expected for '{' '.join(text.split())[:40]}'")
    return numbers


_ELASTIX = {
    "EulerTransform": 6, "SimilarityTransform": 7, "AffineTransform": 12, "TranslationTransform": 3,
}  # fmt: skip


def _elastix(text: str, path: Path, depth: int = 0) -> Float64:
    """elastix' linear transforms, fixed point -> moving point in LPS mm; parameters as in ITK.

    elastix manual 5.1, sections 2.6 and 4; its parameter files name the one that acts first.
    """
    fields = {
        match[1]: match[2].replace('"', "").split()
        for match in re.finditer(r"^\s*\((\w+)\s+([^\n]*?)\)\s*(?://[^\n]*)?$", text, re.MULTILINE)
    }

    def word(name: str, default: str = "") -> str:
        return (fields.get(name) or [default])[0]

    kind = word("Transform")
    if kind not in _ELASTIX:
        raise FormatError(
            f"is elastix' {kind}, which is not linear: write the field with 'transformix -def all' instead"
        )
    if word("FixedImageDimension", "3") != "3" or word("UseDirectionCosines", "true") != "true":
        raise FormatError("is a transform of elastix' that is not 3-D or ignores the images' directions")
    values = _numbers(" ".join(fields.get("TransformParameters", [])), _ELASTIX[kind]).tolist()
    centre = [0.0, 0.0, 0.0]
    if kind != "TranslationTransform":
        centre = _numbers(" ".join(fields.get("CenterOfRotationPoint", [])), 3).tolist()
    transform: sitk.Transform
    if kind == "EulerTransform":
        transform = sitk.Euler3DTransform(centre, *values[:3], values[3:])
        transform.SetComputeZYX(word("ComputeZYX") == "true")
    elif kind == "SimilarityTransform":
        transform = sitk.Similarity3DTransform()
        transform.SetFixedParameters(centre)
        transform.SetParameters(values)
    elif kind == "AffineTransform":
        transform = sitk.AffineTransform(values[:9], values[9:], centre)
    else:
        transform = sitk.TranslationTransform(3, values)
    matrix = linear_matrix(transform)
    before = word("InitialTransformParameterFileName", word("InitialTransformParametersFileName"))
    if before in ("", "NoInitialTransform"):
        return matrix
    if word("HowToCombineTransforms", "Compose") != "Compose" or depth > 8:
        raise FormatError("is a transform of elastix' that is added to another; only composed ones are read")
    # By its name alone: it lies beside this one, and a path in a file from elsewhere is not followed.
    first = path.with_name(Path(before.replace("\\", "/")).name)
    if not os.path.isfile(first):
        raise FormatError(f"is preceded by '{first.name}' (InitialTransform), which is not beside it")
    return matrix @ _elastix(first.read_text("utf-8", "replace")[:_MAX_TEXT], first, depth + 1)


def linear_matrix(transform: sitk.Transform) -> Float64:
    """The 4x4 LPS matrix of a linear transform, by where four points go: so there is no case per type."""
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis, end in enumerate(1000.0 * np.eye(3)):  # mm, which keep rounding out of the matrix
        matrix[:3, axis] = (np.array(transform.TransformPoint(end.tolist())) - origin) / 1000.0
    return matrix
