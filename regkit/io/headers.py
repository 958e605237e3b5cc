"""What ITK ignores in headers of NRRD and MetaImage, and what formats do not record.

NRRD: https://teem.sourceforge.net/nrrd/format.html
MetaImage: https://itk.org/Wiki/ITK/MetaIO/Documentation
MATLAB 4: https://www.mathworks.com/help/pdf_doc/matlab/matfile_format.pdf, level 4
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from regkit.core.errors import FormatError

_MAX_BYTES = 1 << 20  # of a header: one of a segmentation with many segments has some 100 KB
_IN_MM = {
    "m": 1000.0, "meter": 1000.0, "meters": 1000.0, "cm": 10.0, "mm": 1.0, "millimeter": 1.0,
    "millimeters": 1.0, "um": 0.001, "µm": 0.001, "micron": 0.001, "microns": 0.001, "micrometer": 0.001,
    "micrometers": 0.001, "nm": 1e-6,
}  # fmt: skip
# ITK's readers of formats that were not made for volumes, and of those that know no patient.
_FLAT = ("BMPImageIO", "JPEGImageIO", "JPEG2000ImageIO", "LSMImageIO", "PNGImageIO", "TIFFImageIO")
_NO_PATIENT = ("BioRadImageIO", "GiplImageIO", "MRCImageIO", "StimulateImageIO", "VTKImageIO")


@dataclass(frozen=True)
class Quirks:
    """What has to be known of an image beside what ITK's reader says.

    Args:
        scale: mm in the unit of the file's spacing and origin.
        doubts: what is odd about its place in the world, each half a sentence.
        fields: of a NRRD or MetaImage header, names in lower case.
    """

    scale: float
    doubts: tuple[str, ...]
    fields: dict[str, str]


def quirks(path: Path, format: str) -> Quirks:
    """What a file leaves out or says in its own way.

    Args:
        format: ITK's name of its reader, such as ``NrrdImageIO``.

    Raises:
        RegkitError: if its unit of length is unknown; without its name.
    """
    fields: dict[str, str] = {}
    doubts: list[str] = []
    scale = 1.0
    if format == "NrrdImageIO":
        fields = nrrd_fields(path)
        scale = _unit(fields)
        if not {"spacings", "space directions"} & fields.keys():
            doubts.append("its header has no spacing; 1 mm is taken")
        elif not _is_of_patient(fields.get("space", "")):
            doubts.append("its header has no anatomical space; its axes are taken for LPS")
    elif format == "MetaImageIO":
        fields = _meta_fields(path)
        if not {"elementspacing", "elementsize"} & fields.keys():
            doubts.append("its header has no ElementSpacing; 1 mm is taken")
    elif format in _FLAT:
        doubts.append(
            "its format tells neither the step between slices nor their place; 1 mm and LPS are taken"
        )
    elif format in _NO_PATIENT:
        doubts.append("its format does not say which side is left; its axes are taken for LPS")
    return Quirks(scale, tuple(doubts), fields)


def nrrd_fields(path: Path, lower: bool = True) -> dict[str, str]:
    """Fields and key/value pairs of a NRRD header, or none if it is not one.

    Args:
        lower: whether to give their names in lower case.
    """
    with path.open("rb") as file:
        head = file.read(_MAX_BYTES)
    if not head.startswith(b"NRRD"):
        return {}
    lines = head.replace(b"\r\n", b"\n").split(b"\n\n")[0].decode("utf-8", "replace").splitlines()
    fields = {}
    for line in lines:
        if ":" in line and not line.startswith("#"):
            name, value = line.split(":", 1)
            name = name.strip()
            fields[name.lower() if lower else name] = value.lstrip("= ").strip()
    return fields


def check_matlab(path: Path) -> None:
    """Refuse a MATLAB file of transforms that its matrices do not fill: ITK makes up what is missing.

    Raises:
        RegkitError: without its name.
    """
    size, at = path.stat().st_size, 0
    with path.open("rb") as file:
        while at < size:
            head = file.read(20)
            if len(head) < 20:
                raise FormatError("is damaged or cut short")
            kind, *shape = struct.unpack("<5i", head)
            if not 0 <= kind < 5000:  # thousands: the order of bytes, which are little-endian by far the most
                kind, *shape = struct.unpack(">5i", head)
            rows, columns, imaginary, name = shape
            precision = {0: 8, 1: 4}.get(kind // 10 % 10)  # doubles and floats, as ITK writes them
            if not 0 <= kind < 5000 or precision is None or min(shape) < 0 or imaginary > 1:
                raise FormatError("is no MATLAB file of ITK transforms, or damaged")
            at += 20 + name + rows * columns * precision * (1 + imaginary)
            if at > size:
                raise FormatError("is damaged or cut short")
            file.seek(at)


def _meta_fields(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        head = file.read(_MAX_BYTES)
    fields = {}
    for line in head.split(b"\n"):
        name, sign, value = line.partition(b"=")
        if not sign:
            break
        fields[name.strip().lower().decode("latin-1")] = value.strip().decode("latin-1")
        if name.strip().lower() == b"elementdatafile":  # what follows is voxels
            break
    return fields


def _is_of_patient(space: str) -> bool:
    """Whether a NRRD space tells the patient's sides."""
    return (
        "left" in space.lower() or "right-ant" in space.lower() or space.upper()[:3] in ("RAS", "LAS", "LPS")
    )


def _unit(fields: dict[str, str]) -> float:
    """mm in the unit of a NRRD's spacing."""
    text = fields.get("space units") or fields.get("units", "")
    units = {word.strip().lower() for word in text.replace('" "', '"|"').replace('"', "").split("|")}
    units -= {"", "???", "none"}
    if not units:
        return 1.0
    scales = {_IN_MM.get(unit) for unit in units}
    if None in scales or len(scales) > 1:
        raise FormatError(f"its header gives lengths in {', '.join(sorted(units))}, not in one known unit")
    (scale,) = scales
    return float(scale or 1.0)
