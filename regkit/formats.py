"""Warp and matrix files: pure converters between a file of some other tool's and a :class:`Warp`.

========== =================== ======================================================================
format     suffix              content
========== =================== ======================================================================
itk        .nii .nii.gz        5-D NIfTI (X, Y, Z, 1, 3), intent 1007 (VECTOR), LPS mm: what ITK, ANTs and
                               SimpleITK write and read; .mha and .nrrd hold the same vector image
dispvect   .nii .nii.gz        5-D NIfTI, intent 1006 (DISPVECT), RAS mm: NIfTI by the letter (ITK >= 5.4)
h5         .h5                 ITK composite transform of one displacement field, float64
l2r        .npz .nii .nii.gz   Learn2Reg: (X, Y, Z, 3) voxels, without geometry of its own
========== =================== ======================================================================

All hold the resampling ("pull") transform, fixed point -> moving point, as float32 unless said.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from regkit.atomic import atomic_path
from regkit.errors import RegkitError, reason
from regkit.geometry import Float64, Grid, affine_transform, slab_index, transform_points
from regkit.outputs import check_output, save_field
from regkit.warp import Warp

_NIFTI = (".nii", ".nii.gz")
_VECTOR_IMAGE = (".mha", ".nrrd")
_TRANSFORM = (".h5", ".hdf5", ".tfm", ".txt", ".mat")
_SUFFIXES = {
    "itk": (*_NIFTI, *_VECTOR_IMAGE),
    "dispvect": _NIFTI,
    "h5": (".h5",),
    "l2r": (".npz", *_NIFTI),
}
_DISPVECT, _VECTOR = 1006, 1007  # NIfTI intent codes
_LPS_RAS = np.array([-1, -1, 1], dtype=np.float32)
_DAMAGE = (OSError, EOFError, ValueError, zlib.error, zipfile.BadZipFile, ImageFileError, HeaderDataError)


def write_warp(warp: Warp, path: str | Path, format: str | None = None) -> None:
    """Write a warp.

    Args:
        format: ``itk``, ``dispvect``, ``h5`` or ``l2r``; without it the suffix decides: .h5 is ``h5``,
            .npz is ``l2r``, all else is ``itk``.

    Raises:
        RegkitError: if the format is unknown or does not go with the suffix, the file cannot be written, or
            ``l2r`` is asked of a warp that does not know its moving grid.
    """
    if format is not None and format not in _SUFFIXES:
        raise RegkitError(f"warp format '{format}' is unknown: use one of {', '.join(_SUFFIXES)}")
    every = tuple(dict.fromkeys(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes))
    path = check_output(path, every if format is None else _SUFFIXES[format])
    format = format or {".h5": "h5", ".npz": "l2r"}.get(path.suffix, "itk")
    if format == "itk":
        save_field(warp.field, warp.grid, path)
    elif format == "dispvect":
        ras = warp.field.transpose(2, 1, 0, 3) * _LPS_RAS
        _write_nifti(ras[:, :, :, None], warp.grid, path, "displacement vector")
    elif format == "h5":
        _write_transform(sitk.CompositeTransform([warp.to_sitk()]), path)
    elif path.suffix == ".npz":
        displacement = to_learn2reg(warp)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, displacement)
    else:
        _write_nifti(to_learn2reg(warp), warp.grid, path, None)


def read_warp(path: str | Path, fixed: Grid | None = None, moving: Grid | None = None) -> Warp:
    """Read a warp of any format; what it is shows in the suffix and the header.

    Args:
        fixed: the fixed image's grid. Learn2Reg files and transforms without a field need it; a file
            with a grid of its own is sampled on it where it differs (as by ITK: no displacement beyond
            the file's grid).
        moving: the moving image's grid. Learn2Reg files need it; otherwise it is kept for the inverse.

    Returns:
        A warp on ``fixed`` where given, else on the file's grid.

    Raises:
        RegkitError: if the file is missing, damaged, ambiguous or no warp, or needs a grid not given.
    """
    path = Path(path)
    suffix = _suffix(path)
    _require_file(path)
    try:
        if suffix in _NIFTI:
            warp = _read_nifti(path, fixed, moving)
        elif suffix in _VECTOR_IMAGE:
            warp = _read_vector_image(path, moving)
        elif suffix == ".npz":
            warp = from_learn2reg(_read_npz(path), fixed, moving)
        elif suffix in _TRANSFORM:
            warp = _from_transform(_read_transform(path), fixed, moving)
        else:
            known = ", ".join((*_NIFTI, *_VECTOR_IMAGE, ".npz", *_TRANSFORM))
            raise RegkitError(f"'{suffix}' is no suffix of a warp: give one of {known}")
    except RegkitError as error:
        raise RegkitError(f"{path}: {error}") from None
    if fixed is None:
        return warp
    if warp.grid.same_as(fixed):
        return Warp(warp.field, fixed, moving)  # the caller's grid, without the header's rounding
    return Warp.from_transform(warp.to_sitk(), fixed, moving)


def to_learn2reg(warp: Warp) -> npt.NDArray[np.float32]:
    """Learn2Reg's array: d = moving.world_to_index(T(fixed.index_to_world(i))) - i, in voxels.

    That is what makes ``scipy.ndimage.map_coordinates(moving, i + d)`` right for fixed and moving arrays
    of any two grids; the challenge itself has both on one.

    Returns:
        (X, Y, Z, 3); component 0 moves along array axis 0, in nibabel's order.

    Raises:
        RegkitError: if the warp does not know its moving grid.
    """
    if warp.moving_grid is None:
        raise RegkitError(
            "a Learn2Reg warp counts voxels of the moving image: give that image too (--moving)"
        )
    there = warp.moving_grid.world_to_index
    result = np.empty((*warp.grid.size, 3), dtype=np.float32)
    for z in range(warp.grid.shape[0]):
        index = slab_index(warp.grid, z, z + 1)
        target = transform_points(warp.grid.index_to_world, index) + warp.field[z : z + 1]
        result[:, :, z] = (transform_points(there, target) - index)[0].swapaxes(0, 1)
    return result


def from_learn2reg(displacement: np.ndarray, fixed: Grid | None, moving: Grid | None) -> Warp:
    """The inverse of :func:`to_learn2reg`.

    Args:
        displacement: (X, Y, Z, 3), voxels.

    Raises:
        RegkitError: if a grid is missing, or the array does not fit the fixed one.
    """
    if fixed is None or moving is None:
        raise RegkitError("a Learn2Reg warp has no geometry: give both images too (--fixed and --moving)")
    shape = displacement.shape
    if shape != (*fixed.size, 3):
        if len(shape) == 4 and shape[0] == 3:
            raise RegkitError(
                f"shape {shape} is the half-resolution layout of Learn2Reg 2020/21 (3, X/2, Y/2, Z/2); "
                f"bring it to full resolution as {(*fixed.size, 3)} first"
            )
        raise RegkitError(f"a Learn2Reg warp for this fixed image has shape {(*fixed.size, 3)}, got {shape}")
    field = np.empty((*fixed.shape, 3), dtype=np.float32)
    for z in range(fixed.shape[0]):
        index = slab_index(fixed, z, z + 1)
        target = transform_points(moving.index_to_world, index + displacement[:, :, z].swapaxes(0, 1)[None])
        field[z] = (target - transform_points(fixed.index_to_world, index))[0]
    return Warp(field, fixed, moving)


def read_linear(path: str | Path) -> Float64:
    """The 4x4 LPS matrix, fixed point -> moving point, of a linear ITK transform (.tfm, .txt, .mat, .h5).

    Any linear type and composites of them, in ITK's order.

    Raises:
        RegkitError: if the file is missing, damaged, not 3-D, not linear or not invertible.
    """
    path = Path(path)
    _require_file(path)
    if _suffix(path) not in _TRANSFORM:
        raise RegkitError(f"{path}: a linear transform is read from {', '.join(_TRANSFORM)}")
    try:
        transform = _read_transform(path)
    except RegkitError as error:
        raise RegkitError(f"{path}: {error}") from None
    if not transform.IsLinear():
        raise RegkitError(
            f"{path}: holds a {transform.GetName()}, which is not linear; give a rigid or affine transform"
        )
    # Asking where four points go needs no case per transform type. 1000 mm keep rounding out of the matrix.
    origin = np.array(transform.TransformPoint((0.0, 0.0, 0.0)))
    matrix = np.eye(4)
    matrix[:3, 3] = origin
    for axis in range(3):
        point = np.zeros(3)
        point[axis] = 1000.0
        matrix[:3, axis] = (np.array(transform.TransformPoint(point.tolist())) - origin) / 1000.0
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
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise RegkitError(f"{path}: no such file")


def checked_matrix(matrix: Float64, name: str) -> Float64:
    """The matrix itself if it is an invertible affine 4x4; RegkitError naming it otherwise."""
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all() or not np.allclose(matrix[3], (0, 0, 0, 1)):
        raise RegkitError(f"{name}: not an affine 4x4 matrix of finite numbers")
    if np.linalg.cond(matrix[:3, :3]) > 1e8:
        raise RegkitError(f"{name}: the matrix is singular, so no image can be resampled through it")
    return matrix


def _write_nifti(array: np.ndarray, grid: Grid, path: Path, intent: str | None) -> None:
    image = nib.Nifti1Image(array, None)
    image.set_sform(grid.ras_affine, code=1)
    image.set_qform(grid.ras_affine, code=1)
    image.header.set_xyzt_units("mm", "sec")
    if intent:
        image.header.set_intent(intent)
    with atomic_path(path) as temporary:
        nib.save(image, temporary)


def _write_transform(transform: sitk.Transform, path: Path) -> None:
    with atomic_path(path) as temporary:
        try:
            sitk.WriteTransform(transform, str(temporary))
        except RuntimeError as error:
            raise RegkitError(f"could not write '{path}' ({reason(error)}); is the disk full?") from None


def _read_nifti(path: Path, fixed: Grid | None, moving: Grid | None) -> Warp:
    try:
        image: Any = nib.load(path)
    except _DAMAGE as error:
        raise RegkitError(f"cannot be read as NIfTI ({reason(error)})") from None
    shape, intent = tuple(image.shape), int(image.header["intent_code"])
    has_intent = intent in (_VECTOR, _DISPVECT)
    if len(shape) == 5 and shape[3:] == (1, 3):
        if not has_intent:
            raise RegkitError(
                f"a 5-D field with intent code {intent}, which does not tell LPS from RAS vectors: "
                "set it to 1007 if they are LPS mm (ITK, ANTs) or to 1006 if they are RAS mm"
            )
        field = _nifti_values(image)[:, :, :, 0].transpose(2, 1, 0, 3)
        return Warp(field * _LPS_RAS if intent == _DISPVECT else field, _itk_grid(path), moving)
    if len(shape) == 4 and 3 in (shape[0], shape[3]):
        if has_intent:
            raise RegkitError(
                f"a 4-D field of shape {shape} with intent code {intent}: ITK's fields are 5-D, "
                "(X, Y, Z, 1, 3), and Learn2Reg's have intent 0; correct whichever is wrong"
            )
        return from_learn2reg(_nifti_values(image), fixed, moving)
    raise RegkitError(
        f"an image of shape {shape}, not a warp: those have shape (X, Y, Z, 1, 3) or (X, Y, Z, 3)"
    )


def _nifti_values(image: Any) -> npt.NDArray[np.float32]:
    # By nibabel, because ITK fills the missing end of a truncated file without a word.
    try:
        return np.asarray(image.dataobj, dtype=np.float32)
    except _DAMAGE as error:
        raise RegkitError(f"is truncated or damaged ({reason(error)})") from None


def _itk_grid(path: Path) -> Grid:
    """The grid as ITK takes it from the header, by which the images themselves are read, too."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
        raise RegkitError(f"cannot be read as a field ({reason(error)})") from None
    return Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _read_vector_image(path: Path, moving: Grid | None) -> Warp:
    if path.suffix.lower() == ".nrrd":
        _check_nrrd_header(path)
    try:
        image = sitk.ReadImage(str(path))
    except RuntimeError as error:
        raise RegkitError(f"cannot be read as an image ({reason(error)})") from None
    dimension, components = image.GetDimension(), image.GetNumberOfComponentsPerPixel()
    if dimension != 3 or components != 3:
        raise RegkitError(
            f"a {dimension}-D image of {components} component(s), not a warp: those are 3-D with 3"
        )
    return Warp(sitk.GetArrayFromImage(image).astype(np.float32, copy=False), Grid.from_sitk(image), moving)


def _check_nrrd_header(path: Path) -> None:
    """Refuse the two NRRD fields that ITK reads without a word and that mean something else."""
    with path.open("rb") as file:
        lines = file.read(1 << 16).split(b"\n\n")[0].decode("latin-1").lower().splitlines()
    fields = dict(
        line.replace(":=", ":", 1).split(":", 1) for line in lines if ":" in line and line[0] != "#"
    )
    space = fields.get("space", "left-posterior-superior").strip()
    if space not in ("left-posterior-superior", "lps"):
        raise RegkitError(
            f"its space is '{space}', but only vectors in left-posterior-superior are understood"
        )
    # 3D Slicer marks the fields that carry moving points to fixed ones so (PR #8757).
    if fields.get("displacement field type", "resampling").strip() != "resampling":
        raise RegkitError(
            "a 'modeling' displacement field; save the resampling transform (its inverse) instead"
        )


def _read_npz(path: Path) -> npt.NDArray[np.float32]:
    try:
        # Opened here, because np.load leaves a file open that turns out to be damaged.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            if len(archive.files) != 1:
                raise RegkitError(f"a Learn2Reg .npz holds exactly one array, got {len(archive.files)}")
            return archive[archive.files[0]].astype(np.float32)
    except RegkitError:
        raise
    except (*_DAMAGE, TypeError, AttributeError) as error:  # np.load gives a bare array of an .npy
        raise RegkitError(f"cannot be read as .npz ({reason(error)})") from None


def _read_transform(path: Path) -> sitk.Transform:
    try:
        transform = sitk.ReadTransform(str(path))
    except RuntimeError as error:
        raise RegkitError(f"cannot be read as an ITK transform ({reason(error)})") from None
    if transform.GetDimension() != 3:
        raise RegkitError(f"a {transform.GetDimension()}-D transform, but 3-D is needed")
    return transform


def _from_transform(transform: sitk.Transform, fixed: Grid | None, moving: Grid | None) -> Warp:
    if isinstance(transform, sitk.CompositeTransform):  # in a file never one in another
        parts = [transform.GetNthTransform(n).Downcast() for n in range(transform.GetNumberOfTransforms())]
    else:
        parts = [transform]
    # ITK applies the last part first, so that one's field lies over the fixed image.
    first = parts[-1] if parts else None
    if isinstance(first, sitk.DisplacementFieldTransform):
        field = first.GetDisplacementField()
        if len(parts) == 1:
            return Warp(sitk.GetArrayFromImage(field).astype(np.float32), Grid.from_sitk(field), moving)
        fixed = fixed or Grid.from_sitk(field)
    if fixed is None:
        raise RegkitError("an ITK transform without a grid of its own: give the fixed image too (--fixed)")
    return Warp.from_transform(transform, fixed, moving)
