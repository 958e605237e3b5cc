"""NIfTI-1, NIfTI-2, Analyze and MGH/MGZ: headers checked and placed here, voxels by nibabel.

ITK does not read all of them, fills the missing end of a truncated one without a word, mirrors those of
negative pixdim, and never returns from some that are damaged. The place in the world is the one that ITK
gives a file that both can read (tests hold them against each other), so that results fit in ANTs and Slicer.

NIfTI: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h
MGH: https://surfer.nmr.mgh.harvard.edu/fswiki/FsTutorial/MghFormat
"""

from __future__ import annotations

import contextlib
import math
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
from isal import igzip
from nibabel.arrayproxy import ArrayProxy

from regkit.core.errors import FormatError, RegkitError, reason

Float64 = npt.NDArray[np.float64]

_SINGLE, _PAIR, _MGH = (".nii", ".nii.gz"), (".hdr", ".hdr.gz", ".img", ".img.gz"), (".mgh", ".mgz")
SUFFIXES = (*_SINGLE, *_PAIR, *_MGH)
"""Endings of the files that are read here."""

_MM = {1: 1000.0, 2: 1.0, 3: 0.001}  # by NIfTI's code of the unit of space
_SECONDS = {8: 1.0, 16: 1e-3, 24: 1e-6}  # by NIfTI's code of the unit of time
_MAX_GZIP_RATIO = 1100  # bytes of content to one of gzip, whose best is 1032
_MAX_OFFSET = 1 << 28  # bytes before the voxels: extensions are seldom above some KB


@dataclass(frozen=True, eq=False)
class NiftiFile:
    """A file whose header was read.

    Args:
        shape: of the array, in the file's order (x, y, z, ...).
        affine: 4x4, index -> RAS mm.
        kind: "NIfTI-1", "NIfTI-2", "Analyze 7.5" or "MGH".
        intent: NIfTI's intent code, its parameter 1 and its name; 0, 0 and "" for other kinds.
        description: NIfTI's descrip.
        extension: bytes between header and voxels, where tools keep notes of their own.
        placed: whether the file says where it lies in the world.
        doubts: what is odd about its place in the world, each half a sentence.
        voxels: nibabel's proxy of the array.
        most_bytes: that the file can hold.
        step: seconds from one volume to the next of a 4-D file; 0 where it does not say.
    """

    shape: tuple[int, ...]
    affine: Float64
    kind: str
    intent: tuple[int, float, str]
    description: str
    extension: bytes
    placed: bool
    doubts: tuple[str, ...]
    voxels: ArrayProxy
    most_bytes: int = 0
    step: float = 0.0

    def read(self) -> npt.NDArray[Any]:
        """The array in the file's order of axes, scaled by the header's slope and intercept.

        Raises:
            RegkitError: if the file is truncated or damaged; without its name.
        """
        needed = math.prod(self.shape) * self.voxels.dtype.itemsize
        if needed > self.most_bytes:  # before nibabel takes the memory for them
            raise FormatError(
                "its voxels cannot be read: the file is too short for them; it is truncated or damaged"
            )
        try:
            with np.errstate(all="ignore"):
                array = np.asanyarray(self.voxels)
        except Exception as error:  # of nibabel, numpy, isal or the system, as the damage will have it
            message = " ".join(str(error).split()) or type(error).__name__
            raise FormatError(f"its voxels cannot be read ({message}); it is truncated or damaged") from error
        return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))


@contextlib.contextmanager
def open_nifti(path: Path) -> Iterator[NiftiFile]:
    """Read the header of a file; its voxels can be read while the block runs.

    Raises:
        RegkitError: if it is damaged, or says nothing or two things of its spacing; without its name.
    """
    with ExitStack() as stack:
        try:
            header_path, voxel_path = _files(path)
            place = header_path
            stream = stack.enter_context(_opened(header_path))
            raw = stream.read(544)
            if path.name.lower().endswith(_MGH):
                image = _mgh(raw, stream)
            else:
                kind, header = _header(raw, path)
                single = kind != "Analyze 7.5" and bytes(header["magic"])[:2] == b"n+"
                if not single and voxel_path == header_path:
                    raise FormatError("is one half of a pair of files; name it .hdr, beside its .img")
                offset = _offset(header, single)
                extension = (raw + stream.read(max(0, offset - len(raw))))[len(header.binaryblock) : offset]
                if not single:
                    place = voxel_path
                    stream = stack.enter_context(_opened(voxel_path))
                image = _nifti(header, kind, extension if single else b"", stream, offset)
            inside = _MAX_GZIP_RATIO if isinstance(stream, igzip.IGzipFile) else 1
            image = replace(image, most_bytes=inside * place.stat().st_size)
        except RegkitError:
            raise
        except Exception as error:  # of nibabel, numpy, isal or the system, as the damage will have it
            raise FormatError(f"cannot be read: it is truncated or damaged ({reason(error)})") from error
        yield image


def _files(path: Path) -> tuple[Path, Path]:
    """The files that hold the header and the voxels."""
    name = path.name.lower()
    ending = next((ending for ending in _PAIR if name.endswith(ending)), None)
    if ending is None:
        return path, path
    other = "img" if ending.startswith(".hdr") else "hdr"
    stem = path.name[: -len(ending)]
    for candidate in (f"{stem}.{other}", f"{stem}.{other}.gz", f"{stem}.{other.upper()}"):
        partner = path.with_name(candidate)
        if partner.is_file():
            return (path, partner) if other == "img" else (partner, path)
    raise FormatError(f"is one of a pair of files, and '{stem}.{other}' is not beside it")


def _opened(path: Path) -> Any:
    """A stream of the content, whether compressed or not: names do not always tell."""
    stream = open(path, "rb")  # noqa: SIM115
    if stream.peek(2)[:2] != b"\x1f\x8b":
        return stream
    stream.close()
    return igzip.open(path, "rb")


def _header(raw: bytes, path: Path) -> tuple[str, Any]:
    """The kind of a header and the header."""
    sizes = {int.from_bytes(raw[:4], "little"): "<", int.from_bytes(raw[:4], "big"): ">"}
    if 348 in sizes and len(raw) >= 348:
        block, order = raw[:348], sizes[348]
        if block[344:348] in (b"n+1\0", b"ni1\0"):
            return "NIfTI-1", nibabel.Nifti1Header(block, order, check=False)
        if path.name.lower().endswith(_PAIR):
            # SPM's is the same header, with a slope in a field that others leave at 0.
            return "Analyze 7.5", nibabel.Spm99AnalyzeImage.header_class(block, order, check=False)
    if 540 in sizes and len(raw) >= 540 and raw[4:7] in (b"n+2", b"ni2"):
        return "NIfTI-2", nibabel.Nifti2Header(raw[:540], sizes[540], check=False)
    raise FormatError("is not an image: it does not begin with a header of NIfTI or Analyze")


def _offset(header: Any, single: bool) -> int:
    offset = float(header["vox_offset"])
    minimum = len(header.binaryblock) if single else 0
    if not minimum <= offset <= _MAX_OFFSET:
        raise FormatError(f"is damaged: by its header the voxels begin at byte {offset:g}")
    return int(offset)


def _nifti(header: Any, kind: str, extension: bytes, stream: Any, offset: int) -> NiftiFile:
    rank = int(header["dim"][0])
    shape = tuple(int(n) for n in header["dim"][1 : rank + 1])
    if not 1 <= rank <= 7 or min(shape) < 1:
        raise FormatError(f"is damaged: by its header it has {rank} axes of {shape} voxels")
    spacing = np.array([float(s) for s in header["pixdim"][1:4]])
    spacing[min(rank, 3) :] = 1.0
    if not np.isfinite(spacing).all() or (spacing == 0).any():
        raise FormatError(f"its voxel spacing is {tuple(map(float, spacing))} mm; correct the header")
    doubts = []
    if (spacing < 0).any():
        doubts.append("its pixdim is negative, which is ignored: axes run as its sform or qform says")
        spacing = np.abs(spacing)
    intent, description, unit, step = (0, 0.0, ""), "", 1.0, 0.0
    if kind == "Analyze 7.5":
        affine, placed = None, False
    else:
        affine, placed = _affine(header, spacing)
        intent = (int(header["intent_code"]), float(header["intent_p1"]), _text(header["intent_name"]))
        description = _text(header["descrip"])
        unit = _MM.get(int(header["xyzt_units"]) & 7, 1.0)
        step = float(header["pixdim"][4]) * _SECONDS.get(int(header["xyzt_units"]) & 56, 1.0)
    if affine is None:
        # As ITK places it, which takes the axes for left, posterior, superior.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*spacing, 1.0])
        doubts.append(
            "Analyze 7.5 does not say which side is left; it is taken for LPS about (0, 0, 0)"
            if kind == "Analyze 7.5"
            else "its qform and sform have the code 0 and do not say which side is left; "
            "it is taken for LPS about (0, 0, 0)"
        )
    affine = np.diag([unit, unit, unit, 1.0]) @ affine
    slope, inter = header.get_slope_inter()
    dtype = header.get_data_dtype()
    if not dtype.itemsize:
        raise FormatError("is damaged: its header has a type of voxels that is unknown")
    spec = (shape, dtype, offset, 1.0 if slope is None else slope, inter or 0.0)
    voxels = ArrayProxy(stream, spec, mmap=False)
    step = step if rank > 3 and math.isfinite(step) and step > 0 else 0.0
    return NiftiFile(
        shape, affine, kind, intent, description, extension, placed, tuple(doubts), voxels, step=step
    )


def _text(field: Any) -> str:
    return bytes(field).split(b"\0")[0].decode("latin-1").strip()


def _affine(header: Any, spacing: Float64) -> tuple[Float64 | None, bool]:
    """Index -> RAS, in the header's unit, as ITK 5.4 chooses between sform and qform; None without either.

    ITK takes the directions of one of them, and the spacing of pixdim. Of a sform that is sheared it wants
    nothing; nor does regkit, so that it goes through here to be refused.

    Raises:
        RegkitError: if the sform that counts has another spacing.
    """
    sform_code, qform_code = int(header["sform_code"]), int(header["qform_code"])
    if sform_code <= 0 and qform_code <= 0:
        return None, False
    sform = np.eye(4)
    for row, name in enumerate(("srow_x", "srow_y", "srow_z")):
        sform[row] = [float(value) for value in header[name]]
    if sform_code > 0 and not np.isfinite(sform).all():
        raise FormatError("its sform holds a value that is not finite; correct the header")
    qform = _qform(header, spacing)
    chosen = sform
    if (np.linalg.norm(sform[:3, :3], axis=0) == 0).any() and qform_code <= 0:
        raise FormatError("its sform is singular: a voxel has no extent along some axis")
    if qform_code > 0 and not _prefers_sform(sform, qform, sform_code):
        chosen = qform
    lengths = np.linalg.norm(chosen[:3, :3], axis=0)
    turn = chosen[:3, :3] / lengths
    straight = np.abs(turn @ turn.T - np.eye(3)).max() < 1e-3  # else the grid refuses it as sheared
    if chosen is sform and straight and not np.allclose(lengths, spacing, rtol=0.01):
        raise FormatError(
            f"its header says two things: spacing of {spacing.round(4).tolist()} in pixdim, "
            f"of {lengths.round(4).tolist()} in the sform; correct the header"
        )
    # The sform's own lengths where they are as good as pixdim's would move corners by rounding.
    chosen[:3, :3] *= spacing / lengths
    return chosen, True


def _qform(header: Any, spacing: Float64) -> Float64:
    """The affine of the quaternion, by the definition in nifti1.h."""
    b, c, d = (float(header[f"quatern_{k}"]) for k in "bcd")
    square = 1.0 - (b * b + c * c + d * d)
    a = math.sqrt(square) if square > 1e-7 else 0.0
    if not a:  # a turn by 180 degrees, rounded
        length = math.sqrt(b * b + c * c + d * d)
        b, c, d = b / length, c / length, d / length
    turn = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    affine = np.eye(4)
    # Rounded as ITK's NIfTI library keeps it, so that directions are ITK's to the last bit.
    columns = turn * spacing * [1.0, 1.0, -1.0 if header["pixdim"][0] < 0 else 1.0]
    affine[:3, :3] = columns.astype(np.float32)
    affine[:3, 3] = [float(header[f"qoffset_{k}"]) for k in "xyz"]
    return affine


def _prefers_sform(sform: Float64, qform: Float64, sform_code: int) -> bool:
    """Whether ITK 5.4 takes the sform where the qform has a code, too."""
    if not np.isfinite(sform).all():
        return False
    lengths = np.linalg.norm(sform[:3, :3], axis=0)
    if (lengths == 0).any():
        return False
    turn = sform[:3, :3] / lengths
    if np.abs(turn @ turn.T - np.eye(3)).max() > 1e-4:
        return False
    if sform_code == 1:
        return True
    # Where the two are alike, ITK takes the sform, which is rounded less.
    q_turn = qform[:3, :3] / np.linalg.norm(qform[:3, :3], axis=0)
    alike = np.abs(turn @ q_turn.T - np.eye(3)).max() < 1e-4
    apart = np.abs(sform[:, 3] - qform[:, 3]).max()
    return bool(sform_code > 0 and alike and apart < 1e-4)


_MGH_TYPES = {0: ">u1", 1: ">i4", 3: ">f4", 4: ">i2", 10: ">u2"}
_MGH_HEADER = struct.Struct(">7ih15f")
_MGH_VOXELS = 284  # the byte at which they begin


def _mgh(raw: bytes, stream: Any) -> NiftiFile:
    if len(raw) < _MGH_VOXELS:
        raise FormatError("is truncated or damaged: its header is not complete")
    fields = _MGH_HEADER.unpack(raw[: _MGH_HEADER.size])
    version, dims, code, placed, numbers = fields[0], fields[1:5], fields[5], fields[7], fields[8:]
    if version != 1 or code not in _MGH_TYPES or min(dims) < 1:
        raise FormatError("is not an image: it does not begin with a header of MGH, or is damaged")
    spacing, axes, centre = np.array(numbers[:3]), np.reshape(numbers[3:12], (3, 3)).T, numbers[12:]
    doubts = []
    if not placed:  # FreeSurfer's own default
        spacing, axes = np.ones(3), np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])
        centre = (0.0, 0.0, 0.0)
        doubts.append(
            "it does not say where it lies; it is taken for a coronal volume of 1 mm about (0, 0, 0)"
        )
    if not np.isfinite(spacing).all() or (spacing <= 0).any():
        raise FormatError(f"its voxel spacing is {tuple(map(float, spacing))} mm; correct the header")
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing
    affine[:3, 3] = np.array(centre) - affine[:3, :3] @ (np.array(dims[:3]) / 2)
    shape = tuple(dims[: 3 if dims[3] == 1 else 4])
    voxels = ArrayProxy(stream, (shape, np.dtype(_MGH_TYPES[code]), _MGH_VOXELS), mmap=False)
    return NiftiFile(shape, affine, "MGH", (0, 0.0, ""), "", b"", bool(placed), tuple(doubts), voxels)
