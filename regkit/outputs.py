"""Files out: each is complete or absent, and what cannot be written is refused before any work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import nibabel
import SimpleITK as sitk
from isal import igzip
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from regkit.atomic import atomic_path
from regkit.errors import RegkitError, reason

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""Endings of the image files regkit writes; it reads more."""


def check_output(path: str | os.PathLike[str], suffixes: Sequence[str]) -> Path:
    """Check before any work that a result can be written.

    Args:
        suffixes: the endings allowed, such as :data:`IMAGE_SUFFIXES`.

    Raises:
        RegkitError: if the ending is unknown, or the folder is missing or not writable.
    """
    path = Path(path)
    if not any(path.name.endswith(s) and path.name != s for s in suffixes):
        raise RegkitError(f"cannot write '{path}': the name must end in {' or '.join(suffixes)}")
    if path.is_dir():
        raise RegkitError(f"cannot write '{path}': it is a folder; give the name of a file")
    if not path.parent.is_dir():
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
        if path.name.endswith(".nii.gz"):
            plain = temporary.with_suffix("")
            try:
                _write(image, plain, path)
                _compress(plain, temporary)
            finally:
                with suppress(OSError):
                    plain.unlink()
        else:
            _write(image, temporary, path)


def _write(image: sitk.Image, temporary: Path, path: Path) -> None:
    try:
        sitk.WriteImage(image, str(temporary), temporary.suffix != ".nii")
    except RuntimeError as error:
        raise RegkitError(f"could not write '{path}' ({reason(error)}); is the disk full?") from error
    if not _is_complete(temporary, image):
        raise RegkitError(f"could not write all of '{path}'; is the disk full?")


def _compress(plain: Path, compressed: Path) -> None:
    """Gzip without a name or a time, so that the same image gives the same file."""
    with (
        open(plain, "rb") as source,
        open(compressed, "wb") as sink,
        igzip.IGzipFile("", "wb", 1, sink, mtime=0) as stream,
    ):
        shutil.copyfileobj(source, stream, 1 << 20)


def _is_complete(path: Path, image: sitk.Image) -> bool:
    """Whether a file just written holds all bytes of the image.

    ITK's NIfTI writer, and its NRRD writer for the last few bytes, ignore that the disk is full.
    """
    size = image.GetNumberOfPixels() * image.GetNumberOfComponentsPerPixel() * image.GetSizeOfPixelComponent()
    if path.name.endswith((".nii", ".nii.gz")):
        try:
            written: Any = nibabel.load(path)
            size += written.dataobj.offset
        except (OSError, EOFError, ImageFileError, HeaderDataError):
            return False
    with open(path, "rb") as stream:
        if stream.read(2) == b"\x1f\x8b" or path.suffix == ".nrrd":
            # gzip ends in its uncompressed size modulo 2^32 (RFC 1952).
            stream.seek(-4, os.SEEK_END)
            return int.from_bytes(stream.read(4), "little") == size % 2**32
        # MetaImage reports its own failures, and its compressed size cannot be foretold.
        return path.suffix == ".mha" or stream.seek(0, os.SEEK_END) >= size
