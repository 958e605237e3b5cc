"""Warp and matrix files: pure converters between a file of some other tool's and a displacement field.

========== =================== ======================================================================
format     suffix              content
========== =================== ======================================================================
itk        .nii .nii.gz        5-D NIfTI (X, Y, Z, 1, 3), intent 1007 (VECTOR), LPS mm: what ITK, ANTs and
                               SimpleITK write and read; .mha .mhd .nrrd .nhdr hold the same vector image
dispvect   .nii .nii.gz        5-D NIfTI, intent 1006 (DISPVECT), RAS mm: NIfTI by the letter (ITK >= 5.4)
h5         .h5                 ITK composite transform of one displacement field, float64
l2r        .npz .nii .nii.gz   Learn2Reg: (X, Y, Z, 3) voxels, without geometry of its own
========== =================== ======================================================================

All hold the resampling ("pull") transform, fixed point -> moving point, as float32 unless said. Fields and
matrices of further tools are read as well: :mod:`regkit.io.foreign`.
"""

from __future__ import annotations

import os
import warnings
import zipfile
from collections.abc import Sequence
from functools import reduce
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
import torch

from regkit.core.errors import FormatError, InputError, RegkitError, UsageError, reason
from regkit.core.geometry import Float64, Grid, affine_transform, slab_index, transform_points
from regkit.io import foreign, guard
from regkit.io.atomic import atomic_path
from regkit.io.displacement import DisplacementField
from regkit.io.headers import check_matlab, quirks
from regkit.io.nifti import open_nifti
from regkit.io.outputs import check_output, save_field, save_frames
from regkit.runtime.memory import check_fits_memory

_NIFTI = (".nii", ".nii.gz")
_READ_NIFTI = (*_NIFTI, ".hdr", ".hdr.gz", ".img", ".img.gz")
_VECTOR_IMAGE = (".mha", ".nrrd")
_READ_VECTOR_IMAGE = (*_VECTOR_IMAGE, ".mhd", ".nhdr")
_TRANSFORM = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
LINEAR_SUFFIXES = (".tfm", ".txt", ".mat")
"""Endings of files that hold a linear transform, and no displacement field."""
_READ_TRANSFORM = (*_TRANSFORM, ".lta")
OTHERS = {
    ".m3z": "a morph of FreeSurfer: 'mri_warp_convert --outitk' writes a field",
    ".mif": "of MRtrix: 'warpconvert' writes a field",
    ".xfm": "a transform of MNI: 'lta_convert' or 'xfm2lta' writes an .lta",
    ".head": "of AFNI: '3dAFNItoNIFTI' writes NIfTI",
    ".brik": "of AFNI: '3dAFNItoNIFTI' writes NIfTI",
    ".1d": "a matrix of AFNI: 'cat_matvec' and c3d_affine_tool bring it to ITK",
}
"""Endings of warps and transforms that are refused by name, and what to do about them."""
_SUFFIXES = {
    "itk": (*_NIFTI, *_VECTOR_IMAGE),
    "dispvect": _NIFTI,
    "h5": (".h5",),
    "l2r": (".npz", *_NIFTI),
}
_DISPVECT, _VECTOR = 1006, 1007  # NIfTI's codes
_INTENTS = (_DISPVECT, _VECTOR)
_LPS_RAS = np.array([-1, -1, 1], dtype=np.float32)


class NotLinearError(FormatError):
    """A transform was read where a linear one is needed."""


def write_warp(warp: DisplacementField, path: str | Path, format: str | None = None) -> None:
    """Write a warp.

    Args:
        format: ``itk``, ``dispvect``, ``h5`` or ``l2r``; without it the suffix decides: .h5 is ``h5``,
            .npz is ``l2r``, all else is ``itk``.

    Raises:
        RegkitError: if the format is unknown or does not go with the suffix, the file cannot be written, or
            ``l2r`` is asked of a warp that does not know its moving grid.
    """
    if format is not None and format not in _SUFFIXES:
        raise UsageError(f"warp format '{format}' is unknown: use one of {', '.join(_SUFFIXES)}")
    every = tuple(dict.fromkeys(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))
    path = check_output(path, every if format is None else _SUFFIXES[format])
    format = format or {".h5": "h5", ".npz": "l2r"}.get(path.suffix, "itk")
    if format == "itk":
        save_field(warp.field, warp.grid, path)
    elif format == "dispvect":
        save_field(warp.field * _LPS_RAS, warp.grid, path, _DISPVECT)
    elif format == "h5":
        _write_transform(sitk.CompositeTransform([warp.to_sitk()]), path)
    elif path.suffix == ".npz":
        displacement = to_learn2reg(warp)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, displacement)
    else:
        save_frames(to_learn2reg(warp).T, warp.grid, 1.0, path)


def read_warp(path: str | Path, fixed: Grid | None = None, moving: Grid | None = None) -> DisplacementField:
    """Read a warp of any format; what it is shows in the suffix and the header.

    Args:
        fixed: the fixed image's grid. Learn2Reg files and transforms without a field need it; a file
            with a grid of its own is sampled on it where it differs (as by ITK: no displacement beyond
            the file's grid).
        moving: the moving image's grid. Learn2Reg files need it; otherwise it is kept for the inverse.

    A name may say what a plain 4x4 matrix means: ``fsl:flirt.mat``, ``ras:aladin.txt``, ``lps:matrix.txt``.

    Returns:
        A warp on ``fixed`` where given, else on the file's grid.

    Raises:
        RegkitError: if the file is missing, damaged, ambiguous or no warp, or needs a grid not given.
    """
    convention, path = foreign.split_convention(Path(path))
    suffix = _suffix(path)
    _require_file(path)
    try:
        if suffix in _READ_NIFTI:
            warp = _read_nifti(path, fixed, moving)
        elif suffix in _READ_VECTOR_IMAGE:
            warp = _read_vector_image(path, moving)
        elif suffix == ".npz":
            warp = from_learn2reg(_read_npz(path), fixed, moving)
        elif suffix in _READ_TRANSFORM:
            warp = _read_transform(path, convention, fixed, moving)
        elif suffix in OTHERS:
            raise FormatError(f"is {OTHERS[suffix]}")
        else:
            known = ", ".join((*_READ_NIFTI, *_READ_VECTOR_IMAGE, ".npz", *_READ_TRANSFORM))
            raise FormatError(f"'{suffix}' is not a suffix of a warp: give one of {known}")
    except RegkitError as error:
        raise type(error)(f"{path}: {error}") from error
    if fixed is None:
        return warp
    if warp.grid.same_as(fixed):
        # The caller's grid, without the header's rounding.
        return DisplacementField(warp.field, fixed, moving)
    return DisplacementField.from_transform(warp.to_sitk(), fixed, moving)


def to_learn2reg(warp: DisplacementField) -> npt.NDArray[np.float32]:
    """Learn2Reg's array: d = moving.world_to_index(T(fixed.index_to_world(i))) - i, in voxels.

    That is what makes ``scipy.ndimage.map_coordinates(moving, i + d)`` right for fixed and moving arrays
    of any two grids; the challenge itself has both on one.

    Returns:
        (X, Y, Z, 3); component 0 moves along array axis 0, in nibabel's order.

    Raises:
        RegkitError: if the warp does not know its moving grid.
    """
    if warp.moving_grid is None:
        raise FormatError(
            "a Learn2Reg warp counts voxels of the moving image: give that image too (--moving)"
        )
    there = warp.moving_grid.world_to_index
    result = np.empty((*warp.grid.size, 3), dtype=np.float32)
    for z in range(warp.grid.shape[0]):
        index = slab_index(warp.grid, z, z + 1)
        target = transform_points(warp.grid.index_to_world, index) + warp.field[z : z + 1]
        result[:, :, z] = (transform_points(there, target) - index)[0].swapaxes(0, 1)
    return result


def from_learn2reg(displacement: np.ndarray, fixed: Grid | None, moving: Grid | None) -> DisplacementField:
    """The inverse of :func:`to_learn2reg`.

    Args:
        displacement: (X, Y, Z, 3), voxels.

    Raises:
        RegkitError: if a grid is missing, or the array does not fit the fixed one.
    """
    if fixed is None or moving is None:
        raise FormatError("a Learn2Reg warp has no geometry: give both images too (--fixed and --moving)")
    shape = displacement.shape
    if shape != (*fixed.size, 3):
        if len(shape) == 4 and shape[0] == 3:
            raise FormatError(
                f"shape {shape} is the half-resolution layout of Learn2Reg 2020/21 (3, X/2, Y/2, Z/2); "
                f"bring it to full resolution as {(*fixed.size, 3)} first"
            )
        raise FormatError(f"a Learn2Reg warp for this fixed image has shape {(*fixed.size, 3)}, got {shape}")
    field = np.empty((*fixed.shape, 3), dtype=np.float32)
    for z in range(fixed.shape[0]):
        index = slab_index(fixed, z, z + 1)
        target = transform_points(moving.index_to_world, index + displacement[:, :, z].swapaxes(0, 1)[None])
        field[z] = (target - transform_points(fixed.index_to_world, index))[0]
    return DisplacementField(field, fixed, moving)


def is_transform(path: str | Path) -> bool:
    """Whether a name is one of a file that may hold a linear transform."""
    convention, path = foreign.split_convention(Path(path))
    return convention is not None or _suffix(path) in _READ_TRANSFORM


def read_linear(path: str | Path, fixed: Grid | None = None, moving: Grid | None = None) -> Float64:
    """The 4x4 LPS matrix, fixed point -> moving point, of a linear transform.

    Any linear type of ITK (.tfm, .txt, .mat, .h5) and composites of them, in ITK's order; FreeSurfer's .lta,
    elastix' parameters, and plain matrices by a name such as ``fsl:flirt.mat``, ``ras:aladin.txt`` or
    ``lps:matrix.txt`` (:func:`regkit.io.foreign.text_matrix`).

    Args:
        fixed, moving: the images' grids, which a matrix of FSL's needs.

    Raises:
        RegkitError: if the file is missing, damaged, not 3-D, not linear or not invertible.
    """
    convention, path = foreign.split_convention(Path(path))
    _require_file(path)
    if _suffix(path) not in _READ_TRANSFORM:
        raise FormatError(f"{path}: a linear transform is read from {', '.join(_READ_TRANSFORM)}")
    try:
        matrix = None
        if not _is_hdf5(path):
            matrix = foreign.text_matrix(path, convention, fixed, moving)
        if matrix is None:
            matrix = _linear(_read_parts(path))
    except RegkitError as error:
        raise type(error)(f"{path}: {error}") from error
    return checked_matrix(matrix, str(path))


def write_linear(matrix: npt.ArrayLike, path: str | Path) -> None:
    """Write a 4x4 LPS matrix, fixed point -> moving point, as an ITK affine transform.

    Raises:
        RegkitError: if the matrix is not an invertible affine 4x4, or the suffix not one of ITK's.
    """
    path = check_output(path, _TRANSFORM)
    checked = checked_matrix(np.asarray(matrix, dtype=np.float64), "the matrix to write")
    _write_transform(affine_transform(checked), path)


def _suffix(path: Path) -> str:
    name = path.name.lower()
    packed = (".nii.gz", ".hdr.gz", ".img.gz")
    return name[-7:] if name.endswith(packed) else Path(name).suffix


def _require_file(path: Path) -> None:
    if not os.path.isfile(path):  # of names that no system allows it says no
        raise InputError(f"{path}: no such file")


def checked_matrix(matrix: Float64, name: str) -> Float64:
    """The matrix itself if it is an invertible affine 4x4; RegkitError naming it otherwise."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise FormatError(f"{name}: not an affine 4x4 matrix of finite numbers")
    if np.linalg.cond(matrix[:3, :3]) > 1e8:
        raise FormatError(f"{name}: the matrix is singular, so no image can be resampled through it")
    return matrix


def _write_transform(transform: sitk.Transform, path: Path) -> None:
    with atomic_path(path) as temporary:
        try:
            sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise FormatError(f"could not write '{path}' ({reason(error)}); is the disk full?") from error


def _read_nifti(path: Path, fixed: Grid | None, moving: Grid | None) -> DisplacementField:
    with open_nifti(path) as file:
        shape, intent = file.shape, file.intent[0]
        if len(shape) < 3 or (len(shape) < 4 and shape[0] != 3):
            raise FormatError(
                f"an image of shape {shape}, not a warp: those have shape (X, Y, Z, 1, 3) or (X, Y, Z, 3)"
            )
        grid = Grid.from_ras_affine(shape[:3], file.affine)
        _check_memory(shape)
        for doubt in file.doubts:
            warnings.warn(f"{path}: {doubt}", stacklevel=4)
        field = foreign.field_of(file, grid, moving)
        if field is not None:
            if intent in _INTENTS:
                foreign.refuse_positions(field, grid)
            return DisplacementField(field, grid, moving)
        if len(shape) == 5 and shape[3:] == (1, 3):
            raise FormatError(
                f"a 5-D field with intent code {intent}, which does not tell LPS from RAS vectors: "
                "set it to 1007 if they are LPS mm (ITK, ANTs) or to 1006 if they are RAS mm"
            )
        if len(shape) == 4 and 3 in (shape[0], shape[3]):
            if intent in _INTENTS:
                raise FormatError(
                    f"a 4-D field of shape {shape} with intent code {intent}: ITK's fields are 5-D, "
                    "(X, Y, Z, 1, 3), and Learn2Reg's have intent 0; correct whichever is wrong"
                )
            return from_learn2reg(file.read().astype(np.float32, copy=False), fixed, moving)
    raise FormatError(
        f"an image of shape {shape}, not a warp: those have shape (X, Y, Z, 1, 3) or (X, Y, Z, 3)"
    )


def _check_memory(shape: Sequence[int]) -> None:
    # The values as they stand in the file, and as float32.
    check_fits_memory(int(np.prod([float(n) for n in shape])), "the warp", 12)


def _read_vector_image(path: Path, moving: Grid | None) -> DisplacementField:
    with guard.open_image([path]) as file:
        header = file.header
        odd = quirks(path, header.format)
        _check_nrrd(odd.fields)
        if odd.scale != 1:
            raise FormatError("its grid is not in mm, and its vectors may be in that unit or not; convert it")
        dimension = len(header.size)
        if dimension != 3 or header.components != 3:
            raise FormatError(
                f"a {dimension}-D image of {header.components} component(s), not a warp: those are 3-D with 3"
            )
        _check_memory((*header.size, 3))
        for doubt in odd.doubts:
            warnings.warn(f"{path}: {doubt}", stacklevel=4)
        final, array = file.read(int(np.prod(header.size)) * 3 * 8)
    grid = Grid(final.size, final.spacing, final.origin, final.direction)  # type: ignore[arg-type]
    field = array.astype(np.float32, copy=False)
    foreign.refuse_positions(field, grid)
    return DisplacementField(field, grid, moving)


def _check_nrrd(fields: dict[str, str]) -> None:
    """Refuse the two fields of a NRRD header that ITK reads without a word and that mean something else."""
    space = fields.get("space", "left-posterior-superior").lower()
    if space not in ("left-posterior-superior", "lps"):
        raise FormatError(
            f"its space is '{space}', but only vectors in left-posterior-superior are understood"
        )
    # 3D Slicer marks the fields that carry moving points to fixed ones so (PR #8757).
    if fields.get("displacement field type", "resampling").lower() != "resampling":
        raise FormatError(
            "a 'modeling' displacement field; save the resampling transform (its inverse) instead"
        )


def _read_npz(path: Path) -> npt.NDArray[np.float32]:
    try:
        # By hand, since np.load takes the memory that a header asks for before it looks at the file's size.
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if len(names) != 1:
                raise FormatError(f"a Learn2Reg .npz holds exactly one array, got {len(names)}")
            check_fits_memory(archive.getinfo(names[0]).file_size, "its array", 3)
            with archive.open(names[0]) as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
        return np.asarray(array, dtype=np.float32)
    except RegkitError:
        raise
    except Exception as error:  # of zipfile, zlib or numpy's reader, as the damage will have it
        raise FormatError(f"cannot be read as .npz ({reason(error)})") from error


def _is_hdf5(path: Path) -> bool:
    return _suffix(path) in (".h5", ".hdf5")


def _read_parts(path: Path) -> list[guard.TransformPart]:
    if _suffix(path) == ".mat":
        check_matlab(path)
    parts = guard.read_transform(path)
    for part in parts:
        if part.dimension != 3:
            raise FormatError(f"a {part.dimension}-D transform, but 3-D is needed")
    return parts


def _linear(parts: Sequence[guard.TransformPart]) -> Float64:
    matrices = []
    for part in parts:
        if part.matrix is None:
            raise NotLinearError(
                f"holds a {part.name}, which is not linear; give a rigid or affine transform"
            )
        matrices.append(part.matrix)
    return reduce(np.matmul, matrices, np.eye(4))  # the last one acts first


def _read_transform(
    path: Path, convention: str | None, fixed: Grid | None, moving: Grid | None
) -> DisplacementField:
    matrix = None if _is_hdf5(path) else foreign.text_matrix(path, convention, fixed, moving)
    if matrix is not None:
        if fixed is None:
            raise FormatError("a matrix without a grid of its own: give the fixed image too (--fixed)")
        return DisplacementField.from_transform(
            affine_transform(checked_matrix(matrix, "its matrix")), fixed, moving
        )
    parts = _read_parts(path)
    # ITK applies the last part first, so that one's field lies over the fixed image.
    first = parts[-1] if parts else None
    if first is not None and first.name == "DisplacementFieldTransform" and first.values is not None:
        grid = _field_grid(first)
        if len(parts) == 1:
            return DisplacementField(first.values.astype(np.float32), grid, moving)
        fixed = fixed or grid
    if fixed is None:
        raise FormatError("an ITK transform without a grid of its own: give the fixed image too (--fixed)")
    transform = sitk.CompositeTransform(
        [_to_sitk(part) for part in parts] or [sitk.Transform(3, sitk.sitkIdentity)]
    )
    return DisplacementField.from_transform(transform, fixed, moving)


def _field_grid(part: guard.TransformPart) -> Grid:
    size, origin, spacing, direction = np.split(np.array(part.fixed), [3, 6, 9])
    return Grid(tuple(size), tuple(spacing), tuple(origin), tuple(direction))


def _to_sitk(part: guard.TransformPart) -> sitk.Transform:
    if part.matrix is not None:
        return affine_transform(part.matrix)
    if part.values is not None and part.name == "DisplacementFieldTransform":
        return sitk.DisplacementFieldTransform(_field_grid(part).to_sitk(part.values, vector=True))
    if part.values is not None and part.name == "BSplineTransform":
        spline = sitk.BSplineTransform(3, part.order)
        spline.SetFixedParameters(part.fixed)
        spline.SetParameters(part.values.tolist())
        return spline
    raise FormatError(f"holds a {part.name}, which is not read")


def linear_of(transform: object, name: str = "the transform") -> Float64:
    """The 4x4 LPS matrix of a linear transform in memory.

    Args:
        transform: a 4x4 matrix (array, tensor or nested lists), or a linear transform of SimpleITK.
        name: for messages.

    Raises:
        NotLinearError: if it is a transform of SimpleITK that is not linear.
        RegkitError: if it is nothing of the kind, or no invertible affine matrix.
    """
    if isinstance(transform, sitk.Transform):
        if transform.GetDimension() != 3:
            raise FormatError(f"{name} is {transform.GetDimension()}-D, but 3-D is needed")
        if not transform.IsLinear():
            raise NotLinearError(f"{name} is not linear; give a rigid or affine transform")
        origin, *ends = (
            np.array(transform.TransformPoint(p)) for p in [(0.0, 0.0, 0.0), *np.eye(3).tolist()]
        )
        matrix = np.eye(4)
        matrix[:3, :3] = np.stack([end - origin for end in ends], axis=1)
        matrix[:3, 3] = origin
        return checked_matrix(matrix, name)
    if isinstance(transform, torch.Tensor):
        transform = transform.detach().cpu().numpy()
    if not isinstance(transform, np.ndarray | list | tuple):
        raise FormatError(
            f"{name}: a {type(transform).__name__} is not a transform; give a regkit.Warp, a transform of "
            "SimpleITK or a 4x4 matrix in LPS mm"
        )
    try:
        array = np.asarray(transform, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    return checked_matrix(array, name)
