"""Read DICOM: find the series of a folder, choose one, and sort and check its slices.

Headers are read by pydicom, of the extra ``dicom``, and the voxels of classic slices by ITK's GDCM.
Files of many frames: :mod:`regkit.io.dicomframes`; structure sets: :mod:`regkit.io.contours`; the way out:
:mod:`regkit.io.dicomwrite`.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError, RegkitError, install, reason
from regkit.core.geometry import Float64


def _storage(*ends: str) -> tuple[str, ...]:
    """SOP classes of the standard."""
    return tuple(f"1.2.840.10008.5.1.4.1.1.{end}" for end in ends)


CT, MR, CAPTURE, PET = _storage("2", "4", "7", "128")
SEGMENTATION, LABEL_MAP, STRUCTURES, DOSE = _storage("66.4", "66.7", "481.3", "481.2")
_CLASSIC = (CT, MR, CAPTURE, PET)
_FRAMES = (
    *_storage("2.1", "2.2", "4.1", "4.4", "130", "128.1"),  # enhanced CT, MR, PET, and converted to these
    *_storage("7.2", "7.3", "13.1.1", "13.1.2", "13.1.3", "30"),  # captures, X-ray in 3-D, parametric maps
    DOSE,
)
_TAGS = (
    "SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality",
    "ImageType", "ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "Rows", "Columns",
    "NumberOfFrames",
)  # fmt: skip
_LOCK = RLock()


@dataclass(frozen=True)
class DicomSeries:
    """One series of a folder that holds several. It is accepted wherever an image is.

    Args:
        folder: searched with all its subfolders.
        series: the number of the series, or its UID.
    """

    folder: str | os.PathLike[str]
    series: str


@dataclass(frozen=True)
class Slice:
    """A DICOM file: its place is None where the header has none, as in files of many frames.

    Args:
        position: LPS mm of the first voxel.
        axes: of its rows and columns.
        lattice: pixel spacing, mm, and size.
    """

    path: Path
    storage: str
    position: tuple[float, ...] | None
    axes: tuple[float, ...] | None
    lattice: tuple[float, ...]
    frames: int
    is_scout: bool


@dataclass(frozen=True)
class Series:
    """A series of a folder.

    Args:
        storage: its SOP class.
        slices: its files, without scouts where there are other slices.
    """

    uid: str
    number: str
    description: str
    modality: str
    storage: str
    slices: tuple[Slice, ...]

    @property
    def count(self) -> int:
        """Slices, of all files."""
        return sum(one.frames for one in self.slices)

    @property
    def is_volume(self) -> bool:
        """Whether it can hold an image to register."""
        if self.storage in _FRAMES:
            return True
        placed = all(one.position for one in self.slices)
        return self.storage in _CLASSIC and self.count > 1 and placed and not self.slices[0].is_scout

    @property
    def is_labels(self) -> bool:
        """Whether it holds segments or regions."""
        return self.storage in (SEGMENTATION, LABEL_MAP, STRUCTURES)

    def __str__(self) -> str:
        title = f"'{self.description}', " if self.description else ""
        count = "regions" if self.storage == STRUCTURES else f"{self.count} slices"
        return f"{self.number or self.uid} ({title}{self.modality or 'no modality'}, {count})"


def is_dicom(path: Path) -> bool:
    """Whether a name is that of a file with DICOM's mark; a pipe, which can be read once, has none."""
    with contextlib.suppress(OSError, ValueError):
        if path.is_file():
            with path.open("rb") as file:
                return file.read(132)[128:] == b"DICM"
    return False


def pydicom() -> ModuleType:
    """The library.

    Raises:
        RegkitError: if it is not installed; without the file's name.
    """
    try:
        import pydicom as library
    except ImportError as error:
        raise FormatError(
            f"is DICOM, which pydicom reads: {install('dicom')}, or convert it to NIfTI"
        ) from error
    return library


@contextlib.contextmanager
def lenient() -> Iterator[ModuleType]:
    """pydicom, with headers that break some rule of the standard read and copied without a word."""
    library = pydicom()
    with _LOCK:
        settings = library.config.settings
        before = settings.reading_validation_mode, settings.writing_validation_mode
        settings.reading_validation_mode = settings.writing_validation_mode = library.config.IGNORE
        try:
            yield library
        finally:
            settings.reading_validation_mode, settings.writing_validation_mode = before


def read_header(path: Path) -> Any:
    """All of a file but its voxels.

    Raises:
        RegkitError: if it is damaged; without its name.
    """
    with lenient() as library:
        try:
            header = library.dcmread(path, stop_before_pixels=True)
            for _ in header.iterall():  # values are made of bytes when they are asked for, and may be damaged
                pass
            return header
        except Exception as error:  # of pydicom, as the damage will have it
            raise FormatError(f"cannot be read: its DICOM header is damaged ({reason(error)})") from error


def find_series(place: Path) -> list[Series]:
    """The series of a file, or of a folder and all below it, by their numbers.

    Raises:
        RegkitError: if a DICOM file is damaged, or pydicom is missing; without the name of the place.
    """
    slices: dict[str, list[tuple[Slice, tuple[str, ...]]]] = {}
    with lenient() as library:
        for path in [place] if os.path.isfile(place) else _files(place):
            try:
                read = _slice(library, path)
            except Exception as error:  # numbers that are none, and what pydicom meets in damaged files
                name = "" if path == place else f"'{path.relative_to(place)}' "
                raise FormatError(
                    f"{name}cannot be read: its DICOM header is damaged ({reason(error)})"
                ) from error
            if read is None and path == place:
                raise FormatError("is no DICOM image: its header names no SOP class")
            if read:
                slices.setdefault(read[1][0], []).append(read)
    series = [_series(entries) for entries in slices.values()]
    return sorted(series, key=lambda one: (len(one.number), one.number, one.uid))


def chosen_series(candidates: Sequence[Series], requested: str | None, labels: bool, what: str) -> Series:
    """The series that is meant.

    Args:
        requested: its number or its UID.
        labels: whether segments or regions are looked for first.
        what: the role and name of the place, for messages.

    Raises:
        RegkitError: if none is meant or several are, and if it is of a kind that cannot be read.
    """
    if requested is not None:
        matching = [one for one in candidates if requested.strip() in (one.number, one.uid)]
        if len(matching) != 1:
            count = "no" if not matching else str(len(matching))
            raise FormatError(f"{what} holds {count} DICOM series '{requested}'; {_listed(candidates)}")
        return _readable(matching[0], what)
    for of_kind in ("is_labels", "is_volume") if labels else ("is_volume", "is_labels"):
        choice = [one for one in candidates if getattr(one, of_kind)]
        images = [one for one in choice if one.storage != DOSE]  # a dose comes beside its image
        choice = images or choice
        if len(choice) > 1:
            raise FormatError(f"{what} holds {len(choice)} DICOM series; {_listed(choice)}")
        if choice:
            return choice[0]
    if not candidates:
        raise FormatError(f"{what} is a folder without DICOM images; give a file or the folder of one series")
    return _readable(max(candidates, key=lambda one: one.storage in _CLASSIC), what)


def storage_name(series: Series) -> str:
    """What the standard calls its SOP class."""
    from pydicom.uid import UID

    return str(UID(series.storage).name)


def series_of(source: object) -> Series | None:
    """The series of images that a source of :func:`regkit.io.images.load_image` names, if it is DICOM."""
    requested = source.series if isinstance(source, DicomSeries) else None
    place = source.folder if isinstance(source, DicomSeries) else source
    if not isinstance(place, str | os.PathLike):
        return None
    path = Path(place)
    if not (os.path.isdir(path) or is_dicom(path)):
        return None
    return chosen_series(find_series(path), requested, False, f"'{path}'")


def stacked(series: Series, what: str) -> list[str]:
    """The files of a classic series, sorted along the normal of its slices.

    Raises:
        RegkitError: if they make no even stack.
    """
    slices = series.slices
    for one in slices:
        if not (one.position and one.axes):
            raise FormatError(
                f"{what}: the DICOM slice '{one.path.name}' says nothing of its position or orientation"
            )
    positions, axes, lattices = (
        np.array([getattr(one, name) for one in slices], dtype=np.float64)
        for name in ("position", "axes", "lattice")
    )
    if np.abs(axes - axes[0]).max() > 1e-3 or np.abs(lattices - lattices[0]).max() > 1e-4 * lattices[0].min():
        raise FormatError(f"{what}: the slices of its DICOM series differ in size, spacing or orientation")
    try:
        order, _ = slice_order(positions, axes[0])
    except RegkitError as error:
        raise type(error)(f"{what}: {error}") from error
    return [str(slices[k].path) for k in order]


def slice_order(positions: Float64, axes: Float64) -> tuple[npt.NDArray[np.int64], float]:
    """The order of slices along their normal and the step, mm, if each is within a fifth of it in its place.

    Raises:
        RegkitError: if they do not stack evenly; without the file's name.
    """
    normal = np.cross(axes[:3], axes[3:])
    order = np.argsort(positions @ normal, kind="stable")
    positions = positions[order]
    if len(order) < 2:
        return order, 1.0
    length = float((positions[-1] - positions[0]) @ normal)
    step = length / (len(order) - 1)
    even = positions[0] + np.linspace(0, length, len(order))[:, None] * normal
    apart = float(np.linalg.norm(positions - even, axis=1).max())
    if step == 0 or not apart <= 0.2 * step:
        raise FormatError(
            f"its {len(order)} DICOM slices do not stack evenly (up to {apart:.2f} mm off a step of "
            f"{step:.2f} mm): slices are missing, several volumes share the series or the gantry was tilted; "
            "select or resample the slices and convert them to NIfTI first"
        )
    return order, step


def suv_factor(header: Any) -> float | None:
    """g/ml of body weight for one Bq/ml of a PET slice, or None where its header does not tell for sure.

    SUV = activity * weight / dose, the dose decayed to the time that the activity was corrected to, which is
    the start of the series. After the first case of QIBA's vendor-neutral pseudo-code, "SUV calculation for
    the happy path": https://qibawiki.rsna.org/index.php/Standardized_Uptake_Value_(SUV)
    """
    corrected = {str(name) for name in _several(header.get("CorrectedImage"))}
    doses = header.get("RadiopharmaceuticalInformationSequence")
    sure = header.get("Units") == "BQML" and header.get("DecayCorrection") == "START"
    if not (sure and {"ATTN", "DECY"} <= corrected and doses and len(doses) == 1):
        return None
    try:
        weight, dose = float(header.PatientWeight), float(doses[0].RadionuclideTotalDose)
        half_life = float(doses[0].RadionuclideHalfLife)
        start, acquired = _seconds(header.SeriesTime), _seconds(header.AcquisitionTime)
        injected = _seconds(doses[0].RadiopharmaceuticalStartTime)
    except (AttributeError, TypeError, ValueError):
        return None
    # A series that was made later has a time of its own, which is not that of the scan.
    if header.get("SeriesDate") != header.get("AcquisitionDate") or start > acquired:
        return None
    decay = start - injected
    if not (weight > 0 and dose > 0 and half_life > 0 and 0 <= decay < 10 * half_life):
        return None
    factor = 1000 * weight / (dose * 2 ** (-decay / half_life))
    return factor if np.isfinite(factor) else None


def _seconds(time: Any) -> float:
    """Since midnight, of DICOM's HHMMSS.FFFFFF."""
    text = str(time).strip()
    return 3600 * int(text[:2]) + 60 * int(text[2:4]) + float(text[4:])


def _several(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        yield from (path for name in sorted(names) if (path := Path(parent, name)).is_file())


def _slice(library: ModuleType, path: Path) -> tuple[Slice, tuple[str, ...]] | None:
    """A DICOM file and its series: UID, number, description and modality; None for other files."""
    try:
        with path.open("rb") as file:
            start = file.read(132)
    except OSError:
        return None
    # Old files begin without a mark, at once with their group 8.
    if start[128:] != b"DICM" and start[:2] != b"\x08\x00":
        return None
    try:
        header = library.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
    except Exception:
        if start[128:] == b"DICM":
            raise
        return None
    storage = str(header.get("SOPClassUID") or header.file_meta.get("MediaStorageSOPClassUID") or "")
    if not storage or storage == library.uid.MediaStorageDirectoryStorage:
        return None
    if not re.fullmatch(r"[0-9.]+", storage):
        raise ValueError("its SOP class is no UID")
    position, axes = (
        _numbers(header.get(name)) for name in ("ImagePositionPatient", "ImageOrientationPatient")
    )
    if (position and len(position) != 3) or (axes and len(axes) != 6):
        raise ValueError("a position or orientation has another number of values than three or six")
    spacing = _numbers(header.get("PixelSpacing")) or (1.0, 1.0)
    size = [header.get(name) or 0 for name in ("Rows", "Columns")]
    if len(spacing) != 2 or not all(isinstance(n, int) for n in size):
        raise ValueError("its size or pixel spacing is not of two numbers")
    lattice = (*spacing, *size)
    scout = "LOCALIZER" in [str(part).upper() for part in _several(header.get("ImageType"))]
    frames = int(header.get("NumberOfFrames") or 1)
    about = ("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "Modality")
    description = tuple(" ".join(str(header.get(name) or "").split())[:64] for name in about)
    return Slice(path, storage, position, axes, lattice, frames, scout), description


def _numbers(value: Any) -> tuple[float, ...] | None:
    if value is None or value == "":
        return None
    numbers = tuple(float(v) for v in (value if not isinstance(value, str | float) else [value]))
    if not np.isfinite(numbers).all():
        raise ValueError(f"{list(numbers)} are not all finite numbers")
    return numbers or None


def _series(entries: Sequence[tuple[Slice, tuple[str, ...]]]) -> Series:
    first, (uid, number, description, modality) = entries[0]
    slices = [one for one, _ in entries if one.storage == first.storage]
    slices = [one for one in slices if not one.is_scout] or slices
    return Series(uid, number, description, modality, first.storage, tuple(slices))


def _listed(candidates: Sequence[Series]) -> str:
    text = ", ".join(map(str, candidates[:20])) + (
        f" and {len(candidates) - 20} more" if len(candidates) > 20 else ""
    )
    return f"choose one by its number or UID (--fixed-series, --moving-series): {text}"


def _readable(series: Series, what: str) -> Series:
    """The series, unless it is of a kind that is not read."""
    if series.is_volume or series.is_labels:
        return series
    if series.storage in _CLASSIC:
        if series.slices[0].is_scout:
            raise FormatError(f"{what} holds scouts (localizers) alone; give the series of a volume")
        return series  # one slice, or slices without a place, which are refused where they are read
    name = storage_name(series)
    article = "an" if name[:1] in "AEIOU" else "a"
    raise FormatError(f"{what} is {article} '{name}', which regkit does not read")
