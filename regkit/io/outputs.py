"""Files out: each is complete or absent, and what cannot be written is refused before any work."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from isal import igzip_threaded

from regkit.core.errors import RegkitError, reason
from regkit.io.atomic import atomic_path
from regkit.io.provenance import KEY, version

if TYPE_CHECKING:  # they import torch, which has to wait for what regkit.runtime.process makes of the process
    from regkit.core.geometry import Grid
    from regkit.io.segments import LayeredSegmentation

NIFTI_SUFFIXES = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*NIFTI_SUFFIXES, ".nrrd", ".mha")
"""Endings of the image files regkit writes; it reads more."""
FOLDER = "/"
"""Among the endings that are allowed: a folder, for a DICOM series."""

# Of a NIfTI: the bytes before its voxels, and which of them say how many there are along x, y and z, and what
# made it.
_HEADER, _SIDES, _DESCRIPTION = 352, slice(42, 48), slice(148, 228)
_TIMES, _STEP, _INTENT = slice(48, 50), slice(92, 96), slice(68, 70)
_MAX_THREADS = 4  # that compress


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a folder: it ends in a slash, or there is one."""
    return os.fspath(path).endswith(("/", os.sep)) or os.path.isdir(path)


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Check before any work that a result can be written.

    Args:
        suffixes: the endings allowed, such as :data:`IMAGE_SUFFIXES`.

    Raises:
        RegkitError: if the ending is unknown, or the folder is missing or not writable.
    """
    if FOLDER in suffixes and is_folder(path):
        return _check_folder(Path(path))
    path = Path(path)
    if not any(path.name.endswith(s) and path.name != s for s in suffixes):
        endings = [f"{s} (a folder for DICOM)" if s == FOLDER else s for s in suffixes]
        raise RegkitError(f"cannot write '{path}': the name must end in {' or '.join(endings)}")
    if os.path.isdir(path):
        raise RegkitError(f"cannot write '{path}': it is a folder; give the name of a file")
    return _check_parent(path)


def _check_folder(path: Path) -> Path:
    if os.path.exists(path) and (not os.path.isdir(path) or os.listdir(path)):
        raise RegkitError(
            f"cannot write '{path}': there is something in it; a DICOM series gets a folder of its own, so "
            "remove it, or give another name"
        )
    return _check_parent(path)


def _check_parent(path: Path) -> Path:
    if not os.path.isdir(path.parent):
        raise RegkitError(f"cannot write '{path}': '{path.parent}' is not a folder; create it first")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise RegkitError(f"cannot write '{path}': no permission to write in the folder '{path.parent}'")
    return path


def save_image(image: sitk.Image, path: str | os.PathLike[str]) -> None:
    """Write a scalar or vector image, compressed unless the ending is .nii.

    Raises:
        RegkitError: if it cannot be written in full; nothing is left behind then.
    """
    path = check_output(path, IMAGE_SUFFIXES)
    with atomic_path(path) as temporary:
        if path.name.endswith(NIFTI_SUFFIXES):
            if image.GetDimension() != 3:
                raise RegkitError(f"cannot write '{path}': the image has {image.GetDimension()} axes, not 3")
            array = sitk.GetArrayViewFromImage(image)
            volumes = [array] if array.ndim == 3 else np.moveaxis(array, -1, 0)
            _stream_nifti(volumes, image[:1, :1, :1], temporary, path)
        else:
            _write(image, temporary, path)


def save_slicer_segmentation(segmentation: LayeredSegmentation, path: str | os.PathLike[str]) -> None:
    """Write a segmentation as 3D Slicer does (``.seg.nrrd``), with its names, colours and layers.

    Raises:
        RegkitError: as of :func:`save_image`.
    """
    from regkit.io.segments import SLICER, slicer_fields

    path = check_output(path, SLICER[:1])
    layers = segmentation.layers
    if len(layers) == 1:
        image = segmentation.grid.to_sitk(layers[0])
    else:
        image = segmentation.grid.to_sitk(np.stack(layers, axis=-1), vector=True)
    for name, value in slicer_fields(segmentation).items():
        image.SetMetaData(name, value)
    with atomic_path(path) as temporary:
        _write(image, temporary, path)
        if len(layers) > 1:  # ITK calls the axis of layers by another kind than Slicer
            temporary.write_bytes(temporary.read_bytes().replace(b"kinds: vector ", b"kinds: list ", 1))


def save_field(
    field: npt.NDArray[np.float32], grid: Grid, path: str | os.PathLike[str], intent: int | None = None
) -> None:
    """:func:`save_image` of vectors (z, y, x, 3) on a grid.

    Args:
        intent: NIfTI's code for what the vectors are; by default ITK's, 1007 (VECTOR).
    """
    path = check_output(path, IMAGE_SUFFIXES)
    with atomic_path(path) as temporary:
        if path.name.endswith(NIFTI_SUFFIXES):
            first = replace(grid, size=(1, 1, 1)).to_sitk(field[:1, :1, :1], vector=True)
            _stream_nifti(np.moveaxis(field, -1, 0), first, temporary, path, intent=intent)
        else:
            _write(grid.to_sitk(field, vector=True), temporary, path)


def save_frames(volumes: npt.NDArray[Any], grid: Grid, step: float, path: str | os.PathLike[str]) -> None:
    """:func:`save_image` of a 4-D image, as NIfTI.

    Args:
        volumes: (t, z, y, x).
        step: seconds from one to the next; 0 if unknown.
    """
    path = check_output(path, NIFTI_SUFFIXES)
    first = replace(grid, size=(1, 1, 1)).to_sitk(volumes[0, :1, :1, :1])
    with atomic_path(path) as temporary:
        _stream_nifti(volumes, sitk.JoinSeries([first] * 2), temporary, path, len(volumes), step)


def _write(image: sitk.Image, temporary: Path, path: Path) -> None:
    image.SetMetaData(KEY, version())
    try:
        sitk.WriteImage(image, str(temporary), temporary.suffix != ".nii")
    except RuntimeError as error:
        raise RegkitError(f"could not write '{path}' ({reason(error)}); is the disk full?") from error
    finally:
        image.EraseMetaData(KEY)
    if not _is_complete(temporary, image):
        raise RegkitError(f"could not write all of '{path}'; is the disk full?")


def _stream_nifti(
    volumes: Sequence[npt.NDArray[Any]] | npt.NDArray[Any],
    first: sitk.Image,
    temporary: Path,
    path: Path,
    times: int | None = None,
    step: float = 0.0,
    intent: int | None = None,
) -> None:
    """Write the NIfTI that ITK would, whose copies of it all take longer than gzip does.

    A compressed one without a name or a time, so that the same image gives the same file.

    Args:
        volumes: (z, y, x) each: components, or what follows in time.
        first: its first voxel as an image, of which ITK makes the header.
        times: how many volumes there are along the axis of time, if there is one.
        step: seconds from one to the next.
        intent: in place of ITK's.
    """
    plain = temporary.name.endswith(".nii")
    model = temporary if plain else temporary.with_suffix("")
    try:
        _write(first, model, path)
        header = bytearray(model.read_bytes()[:_HEADER])
    finally:
        model.unlink(missing_ok=True)
    header[_SIDES] = np.array(volumes[0].shape[::-1], np.int16).tobytes()
    if times is not None:
        header[_TIMES], header[_STEP] = np.int16(times).tobytes(), np.float32(step).tobytes()
    if intent is not None:
        header[_INTENT] = np.int16(intent).tobytes()
    header[_DESCRIPTION] = version().encode()[:79].ljust(80, b"\0")
    threads = min(_MAX_THREADS, sitk.ProcessObject.GetGlobalDefaultNumberOfThreads())
    stream: Any
    try:
        with (
            open(temporary, "wb") if plain else igzip_threaded.open(temporary, "wb", 1, threads=threads)
        ) as stream:
            stream.write(header)
            for volume in volumes:
                for plane in volume:
                    stream.write(np.ascontiguousarray(plane))
    except OSError as error:
        raise RegkitError(f"could not write '{path}' ({reason(error)}); is the disk full?") from error


def _is_complete(path: Path, image: sitk.Image) -> bool:
    """Whether a file just written holds all bytes of the image.

    ITK's NIfTI writer, and its NRRD writer for the last few bytes, ignore that the disk is full.
    """
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if path.suffix == ".nii":
        size += _HEADER
    with open(path, "rb") as stream:
        if path.suffix == ".nrrd":
            # gzip ends in its uncompressed size modulo 2^32 (RFC 1952).
            stream.seek(-4, os.SEEK_END)
            return int.from_bytes(stream.read(4), "little") == size % 2**32
        # MetaImage reports its own failures, and its compressed size cannot be foretold.
        return path.suffix == ".mha" or stream.seek(0, os.SEEK_END) >= size
