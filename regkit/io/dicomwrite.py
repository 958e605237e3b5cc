"""DICOM out: a derived series of an image, and a segmentation, by pydicom and highdicom (extra ``dicom``).

What is written belongs to the patient, the study and the frame of reference of the fixed image where that is
DICOM, and names the moving one, if it is, as its source.

Derived images: DICOM PS3.3 C.7.6.1.1.3 and C.7.6.1.1.4; contributing equipment: C.12.1.1.5.
"""

from __future__ import annotations

import datetime
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import RegkitError, install, reason
from regkit.core.geometry import Float64, Grid, transform_points
from regkit.core.intensity import is_ct
from regkit.io import dicom
from regkit.io.atomic import atomic_folder, atomic_path
from regkit.io.images import ImageLike, Volume
from regkit.io.outputs import FOLDER, check_output
from regkit.io.provenance import version
from regkit.io.segments import Code, LayeredSegmentation, Segment, codes_of, colour_of, named_segments
from regkit.runtime.memory import check_fits_memory

if TYPE_CHECKING:
    from regkit.io.dicom import Series

_PATIENT = (
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge",
    "PatientSize", "PatientWeight", "PatientIdentityRemoved", "DeidentificationMethod",
    "DeidentificationMethodCodeSequence", "StudyInstanceUID", "StudyDate", "StudyTime", "StudyID",
    "StudyDescription", "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_EMPTY = (
    "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID",
    "AccessionNumber", "ReferringPhysicianName",
)  # fmt: skip
_FRAME = ("FrameOfReferenceUID", "PositionReferenceIndicator", "PatientPosition")
# How the moving image was acquired: the elements of these groups but those that place it.
_ACQUISITION = (0x0018, 0x0054)
_CLASSES = {"CT": dicom.CT, "MR": dicom.MR, "PT": dicom.PET}
_MR_UNKNOWN = {
    "ScanningSequence": "RM", "SequenceVariant": "NONE", "ScanOptions": "", "MRAcquisitionType": "",
    "EchoTime": None, "EchoTrainLength": None,
}  # fmt: skip
_MAX_STORED = 32767
_SOURCES = 0x00082112  # the tag of SourceImageSequence
# Bytes of preamble, mark and FileMetaInformationGroupLength, whose last four count the bytes of the rest.
_META = 144


def save_series(
    volume: Volume, folder: Path, fixed: ImageLike | None = None, moving: ImageLike | None = None
) -> None:
    """Write an image as the slices of a new DICOM series: ``0001.dcm`` and so on in a folder of their own.

    Voxels are 16 bits with a slope. The series has the modality of the moving image if that is DICOM and CT,
    MR or PET; else it is CT if its values are, and secondary capture if not.

    Args:
        folder: it must not exist, or be empty; it appears whole or not at all.
        fixed, moving: what was registered; their headers are used where they are DICOM.

    Raises:
        RegkitError: if it cannot be written, or pydicom is missing.
    """
    try:
        library = dicom.pydicom()
    except RegkitError as error:
        raise type(error)(f"'{folder}' {error}") from error
    check_output(f"{folder}/", (FOLDER,))
    target, source = _headers(fixed), _headers(moving)
    whole = volume.array.dtype.kind in "biu" or bool((volume.array == np.rint(volume.array)).all())
    array = volume.array.astype(np.float64)
    with dicom.lenient():
        common = _common(library, volume, target, source)
        if whole or common.SOPClassUID == dicom.CT:
            array = np.rint(array)
        largest = float(np.abs(array).max())
        slope = 1.0
        if largest > _MAX_STORED or not (whole or common.SOPClassUID == dicom.CT):
            slope = float(library.valuerep.DSfloat(largest / _MAX_STORED or 1.0, auto_format=True))
        common.RescaleSlope = library.valuerep.DSfloat(slope, auto_format=True)
        pixels = np.clip(np.rint(array / slope), -_MAX_STORED - 1, _MAX_STORED).astype("<i2")
        sources = _sources(library, source)
        with atomic_folder(folder) as temporary:
            for number, k in enumerate(_order(volume.grid), start=1):
                one = _slice(library, common, volume.grid, k, number, target)
                one.PixelData = pixels[k].tobytes()
                _save(one, sources, temporary / f"{number:04d}.dcm")


def save_dicom_segmentation(segmentation: LayeredSegmentation, path: Path, fixed: ImageLike | None) -> None:
    """Write a DICOM segmentation (SEG, BINARY) that refers to the series of the fixed image.

    Segments are numbered from 1 on in the order of their labels, as DICOM wants it.

    Args:
        segmentation: on any grid in the space of the fixed image.
        fixed: DICOM.

    Raises:
        RegkitError: if ``fixed`` is no DICOM, or highdicom is missing.
    """
    check_segmentation(path, fixed)
    import highdicom
    from pydicom.sr.coding import Code as Concept

    target = _headers(fixed)
    assert target is not None
    series, headers = target[0], target[1]
    labels = sorted({int(v) for layer in segmentation.layers for v in np.unique(layer)} - {0})
    segments = named_segments(labels, {}, segmentation.segments)
    if not segments:
        raise RegkitError(f"cannot write '{path}': no voxel is labelled")
    grid = segmentation.grid
    order = _order(grid)
    pixels = _frames(segmentation, labels)[order]
    now = highdicom.AlgorithmIdentificationSequence(
        name="regkit", version=version(), family=Concept("123111", "DCM", "Deformable Models")
    )
    try:
        with dicom.lenient() as library, atomic_path(path) as temporary:
            frame = headers[0].get("FrameOfReferenceUID") or library.uid.generate_uid()
            for header in headers:  # what many files lack and highdicom copies
                header.FrameOfReferenceUID = frame
                if not header.get("SliceThickness"):
                    header.SliceThickness = library.valuerep.DSfloat(grid.spacing[2], auto_format=True)
            descriptions = [
                highdicom.seg.SegmentDescription(
                    number,
                    segment.name[:64],
                    *(Concept(*part) for part in codes_of(segment)),
                    "AUTOMATIC",
                    now,
                    display_color=highdicom.color.CIELabColor.from_rgb(*_bytes(segment)),
                )
                for number, segment in enumerate(segments, start=1)
            ]
            written = highdicom.seg.Segmentation(
                headers,
                pixels,
                "BINARY",
                descriptions,
                highdicom.UID(),
                _number(series) + 1000,
                highdicom.UID(),
                1,
                "regkit",
                "regkit",
                version(),
                "0",
                content_description="Labels moved onto the fixed image",
                pixel_measures=highdicom.PixelMeasuresSequence(
                    (grid.spacing[1], grid.spacing[0]), grid.spacing[2], grid.spacing[2]
                ),
                plane_orientation=highdicom.PlaneOrientationSequence(
                    "PATIENT", np.reshape(grid.direction, (3, 3))[:, :2].T.ravel()
                ),
                plane_positions=[
                    highdicom.PlanePositionSequence(
                        "PATIENT", transform_points(grid.index_to_world, (0.0, 0.0, float(k)))
                    )
                    for k in order
                ],
            )
            written.SeriesDescription = "Moved labels (regkit)"
            written.save_as(temporary)
    except RegkitError:
        raise
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # headers that lack what SEG needs
        raise RegkitError(
            f"cannot write '{path}': the DICOM of the fixed image does not do for a segmentation "
            f"({reason(error)}); write .seg.nrrd or .nii.gz"
        ) from error


def check_segmentation(path: Path, fixed: ImageLike | None) -> None:
    """Check before any work that a DICOM segmentation can be written.

    Raises:
        RegkitError: without a fixed image in DICOM, or highdicom.
    """
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise RegkitError(
            f"cannot write '{path}': DICOM segmentations need highdicom: {install('dicom')}, or write "
            ".seg.nrrd or .nii.gz"
        ) from error
    if fixed is None or dicom.series_of(fixed) is None:
        raise RegkitError(
            f"cannot write '{path}': a DICOM segmentation refers to the DICOM of the fixed image, which "
            "has to be given; write .seg.nrrd or .nii.gz"
        )


def _headers(source: ImageLike | None) -> tuple[Series, list[Any]] | None:
    """The series of a source and the headers of its slices in order, if it is DICOM."""
    series = None if source is None else dicom.series_of(source)
    if series is None:
        return None
    paths = dicom.stacked(series, "the image") if len(series.slices) > 1 else [series.slices[0].path]
    return series, [dicom.read_header(Path(path)) for path in paths]


def _common(
    library: Any,
    volume: Volume,
    target: tuple[Series, list[Any]] | None,
    source: tuple[Series, list[Any]] | None,
) -> Any:
    """What all slices have in common."""
    item = library.Dataset
    one = item()
    patient = target or source
    if patient:
        _copy(patient[1][0], one, _PATIENT)
    for name in _EMPTY:
        if name not in one:
            setattr(one, name, "")
    if target:
        _copy(target[1][0], one, _FRAME)
    new = library.uid.generate_uid
    for name in ("StudyInstanceUID", "FrameOfReferenceUID"):
        if not one.get(name):
            setattr(one, name, new())
    one.PositionReferenceIndicator = one.get("PositionReferenceIndicator") or ""
    one.PatientPosition = one.get("PatientPosition") or ""

    header = source[1][0] if source else None
    modality = str(header.get("Modality", "")) if header else ""
    storage = _CLASSES.get(modality, dicom.CAPTURE)
    if storage == dicom.PET and source and source[0].storage != dicom.PET:
        storage = dicom.CAPTURE  # an enhanced one keeps what PET needs elsewhere
    if header is None and is_ct(volume.array):
        modality, storage = "CT", dicom.CT
    one.SOPClassUID, one.Modality = storage, modality or "OT"
    if source and source[0].storage == storage and storage != dicom.CAPTURE:
        for element in source[1][0]:
            if element.tag.group in _ACQUISITION and element.keyword not in (*_FRAME, "GantryDetectorTilt"):
                one[element.tag] = element
    if storage == dicom.MR:
        for name, value in _MR_UNKNOWN.items():
            if name not in one:
                setattr(one, name, value)
    elif storage == dicom.CT:
        one.KVP = one.get("KVP")
        one.AcquisitionNumber = None
        one.RescaleType = "HU"
    elif storage == dicom.PET and header is not None:
        one.NumberOfSlices = volume.grid.size[2]
        if dicom.suv_factor(header):
            one.Units, one.SUVType = "GML", "BW"
    else:
        one.ConversionType = "WSD"

    now = datetime.datetime.now()
    for name in ("SeriesDate", "ContentDate", "InstanceCreationDate"):
        setattr(one, name, now.strftime("%Y%m%d"))
    for name in ("SeriesTime", "ContentTime", "InstanceCreationTime"):
        setattr(one, name, now.strftime("%H%M%S"))
    if storage == dicom.PET and header is not None:  # times that its activity refers to
        _copy(
            header,
            one,
            ("SeriesDate", "SeriesTime", "AcquisitionDate", "AcquisitionTime", "FrameReferenceTime"),
        )
    one.ImageType = ["DERIVED", "SECONDARY", "AXIAL"] if storage == dicom.CT else ["DERIVED", "SECONDARY"]
    described = " ".join(str(header.get("SeriesDescription") or "").split()) if header else ""
    one.SeriesDescription = f"{described or 'image'} (moved by regkit)"[-64:]
    one.SeriesInstanceUID = new()
    one.SeriesNumber = (_number(target[0]) if target else 0) + 1000
    one.BurnedInAnnotation = "NO"
    one.Manufacturer = str(header.get("Manufacturer") or "") if header else "regkit"
    _derivation(library, one, target, source)

    grid = volume.grid
    direction = np.reshape(grid.direction, (3, 3))
    one.Rows, one.Columns = grid.size[1], grid.size[0]
    one.PixelSpacing = _decimals(library, (grid.spacing[1], grid.spacing[0]))
    one.ImageOrientationPatient = _decimals(library, direction[:, :2].T.ravel())
    (one.SliceThickness,) = _decimals(library, grid.spacing[2:])
    if storage != dicom.CT:
        (one.SpacingBetweenSlices,) = _decimals(library, grid.spacing[2:])
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    one.RescaleIntercept = 0
    if storage != dicom.CT:
        one.RescaleType = str(one.get("Units") or "US")
    # Middle and width of what most voxels have, for viewers.
    low, high = np.percentile(volume.array[::2, ::2, ::2], [1, 99])
    (one.WindowCenter,) = _decimals(library, [(low + high) / 2])
    (one.WindowWidth,) = _decimals(library, [max(high - low, 1.0)])
    return one


def _derivation(
    library: Any, one: Any, target: tuple[Series, list[Any]] | None, source: tuple[Series, list[Any]] | None
) -> None:
    """How the images came about, of what, and by what program."""
    one.DerivationDescription = f"Resampled onto the fixed image by the registration of {version()}"
    one.DerivationCodeSequence = [_code(library, ("113085", "DCM", "Spatial resampling"))]
    equipment = library.Dataset()
    equipment.PurposeOfReferenceCodeSequence = [_code(library, ("109103", "DCM", "Modifying Equipment"))]
    equipment.Manufacturer, equipment.ManufacturerModelName = "regkit", "regkit"
    equipment.SoftwareVersions = version()
    one.ContributingEquipmentSequence = [equipment]
    references = []
    for series in (source, target):
        if series:
            entry = library.Dataset()
            entry.SeriesInstanceUID = series[1][0].SeriesInstanceUID
            entry.ReferencedInstanceSequence = [_reference(library, header) for header in series[1][:1]]
            references.append(entry)
    if references:
        one.ReferencedSeriesSequence = references


def _sources(library: Any, source: tuple[Series, list[Any]] | None) -> bytes:
    """The element that names the moving slices as the sources of an image, encoded."""
    if source is None:
        return b""
    purpose = _code(library, ("121322", "DCM", "Source image for image processing operation"))
    one = library.Dataset()
    one.SourceImageSequence = [_reference(library, header, purpose) for header in source[1]]
    return _encoded(one)


def _encoded(dataset: Any) -> bytes:
    """In explicit little endian."""
    from pydicom.filebase import DicomBytesIO
    from pydicom.filewriter import write_dataset

    buffer = DicomBytesIO()
    buffer.is_little_endian, buffer.is_implicit_VR = True, False
    write_dataset(buffer, dataset)
    return bytes(buffer.getvalue())


def _save(one: Any, sources: bytes, path: Path) -> None:
    """Write a slice, with its sources put in their place: to encode them for each anew takes minutes."""
    buffer = io.BytesIO()
    one.save_as(buffer, enforce_file_format=True)
    content = buffer.getbuffer()
    meta = int.from_bytes(content[_META - 4 : _META], "little")
    start = _META + meta + len(_encoded(one[:_SOURCES]))
    with open(path, "wb") as file:
        file.write(content[:start])
        file.write(sources)
        file.write(content[start:])


def _slice(
    library: Any, common: Any, grid: Grid, k: int, number: int, target: tuple[Series, list[Any]] | None
) -> Any:
    """The header of slice ``k`` of the grid, as the series' slice ``number``."""
    one = library.Dataset()
    one.update(common)
    one.SOPInstanceUID = library.uid.generate_uid()
    one.InstanceNumber = number
    one.ImagePositionPatient = _decimals(library, transform_points(grid.index_to_world, (0.0, 0.0, float(k))))
    if one.SOPClassUID == dicom.PET:
        one.ImageIndex = number
    if target and len(target[1]) == grid.size[2]:
        entry = library.Dataset()
        entry.SeriesInstanceUID = target[1][0].SeriesInstanceUID
        entry.ReferencedInstanceSequence = [_reference(library, target[1][k])]
        one.ReferencedSeriesSequence = [*common.ReferencedSeriesSequence[:-1], entry]
    one.file_meta = library.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = library.uid.ExplicitVRLittleEndian
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID
    return one


def _order(grid: Grid) -> list[int]:
    """Slices along DICOM's normal, which a left-handed grid runs against."""
    order = list(range(grid.size[2]))
    return order if np.linalg.det(np.reshape(grid.direction, (3, 3))) > 0 else order[::-1]


def _frames(segmentation: LayeredSegmentation, labels: Sequence[int]) -> npt.NDArray[Any]:
    """Segments by their numbers (z, y, x), or as masks (z, y, x, segment) where they overlap."""
    largest = max(int(layer.max()) for layer in segmentation.layers)
    if len(segmentation.layers) == 1 and largest < 1 << 20:
        numbers = np.zeros(largest + 1, np.uint8 if len(labels) < 256 else np.uint16)
        numbers[labels] = np.arange(1, len(labels) + 1)
        labels_present: npt.NDArray[Any] = numbers[segmentation.layers[0]]
        return labels_present
    voxels = int(np.prod(segmentation.grid.shape))
    check_fits_memory(voxels, "the DICOM segmentation", 2 * len(labels))
    masks = np.zeros((*segmentation.grid.shape, len(labels)), np.uint8)
    for layer in segmentation.layers:
        for number, label in enumerate(labels):
            masks[..., number] |= layer == label
    return masks


def _bytes(segment: Segment) -> tuple[int, int, int]:
    red, green, blue = (
        round(255 * min(max(v, 0.0), 1.0)) for v in segment.colour or colour_of(segment.label)
    )
    return red, green, blue


def _copy(header: Any, one: Any, names: Sequence[str]) -> None:
    for name in names:
        if name in header:
            one[name] = header[name]


def _code(library: Any, code: Code) -> Any:
    item = library.Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code
    return item


def _reference(library: Any, header: Any, purpose: Any = None) -> Any:
    item = library.Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = header.SOPClassUID, header.SOPInstanceUID
    if purpose is not None:
        item.PurposeOfReferenceCodeSequence = [purpose]
    return item


def _decimals(library: Any, values: Sequence[float] | Float64) -> list[Any]:
    """Numbers as the 16 characters that DICOM has for one."""
    return [library.valuerep.DSfloat(float(v), auto_format=True) for v in values]


def _number(series: Series) -> int:
    return int(series.number) if series.number.isdecimal() and len(series.number) < 7 else 0
