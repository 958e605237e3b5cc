"""DICOM files that tests make of their own: slices, frames, segments and contours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from regkit.core.geometry import Grid

STACK = Grid((16, 14, 12), (2.0, 2.5, 3.0), (-10.0, -20.0, 30.0))
STORAGE = "1.2.840.10008.5.1.4.1.1."
CT, SEG, DOSE = f"{STORAGE}2.1", f"{STORAGE}66.4", f"{STORAGE}481.2"


def write_series(
    folder: Path, array: np.ndarray, grid: Grid, uid: str = "1.2.826.1", slope: int = 1, **tags: str
) -> list[Path]:
    """One DICOM file per slice of an int16 array, in a shuffled order of names.

    Args:
        tags: more of them, such as number="3", modality="MR", description="T1".
    """
    folder.mkdir(exist_ok=True, parents=True)
    direction = np.reshape(grid.direction, (3, 3))
    named = {
        "number": "0020|0011",
        "modality": "0008|0060",
        "description": "0008|103e",
        "image_type": "0008|0008",
    }
    paths = []
    for k, plane in enumerate(array):
        image = sitk.GetImageFromArray(plane[None].astype(np.int16))
        image.SetSpacing(grid.spacing)
        values = {
            "0008|0060": "CT",
            "0020|000e": uid,
            "0020|000d": "1.2.826.0",
            "0008|0018": f"{uid}.{k + 1}",
            "0020|0013": str(k + 1),
            "0020|0032": "\\".join(f"{v:.6f}" for v in grid.blank().TransformIndexToPhysicalPoint((0, 0, k))),
            "0020|0037": "\\".join(f"{v:.9f}" for v in direction[:, :2].T.ravel()),
            "0028|1053": str(slope),
            "0028|1052": "0",
        }
        for tag, value in (values | {named[name]: text for name, text in tags.items()}).items():
            image.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        paths.append(folder / f"{uid}-{(k * 7) % 100:02d}.dcm")
        writer.SetFileName(str(paths[-1]))
        writer.Execute(image)
    return paths


def edit(paths: Sequence[Path], **values: Any) -> None:
    """Set elements of files."""
    pydicom = pytest.importorskip("pydicom")
    for path in paths:
        dataset = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(dataset, name, value)
        if "SOPClassUID" in values:
            dataset.file_meta.MediaStorageSOPClassUID = values["SOPClassUID"]
        dataset.save_as(path)


def item(**values: Any) -> Any:
    """A DICOM data set of these elements."""
    pydicom = pytest.importorskip("pydicom")
    dataset = pydicom.Dataset()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def write_file(path: Path, uid: str, **values: Any) -> Path:
    """A DICOM file of these elements."""
    pydicom = pytest.importorskip("pydicom")
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, uid
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.update(
        item(SOPClassUID=uid, SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", StudyInstanceUID="1.2.5")
    )
    dataset.update(item(**values))
    dataset.save_as(path)
    return path


def write_frames(path: Path, pixels: np.ndarray, uid: str = CT, **values: Any) -> Path:
    """A file of frames (n, y, x) with the elements given, of STACK's spacing within them."""
    bits = 1 if uid == SEG else 16
    content = np.packbits(pixels.ravel().astype(np.uint8), bitorder="little") if uid == SEG else pixels
    common: dict[str, Any] = {
        "Modality": "CT",
        "Rows": pixels.shape[1],
        "Columns": pixels.shape[2],
        "NumberOfFrames": len(pixels),
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(uid == CT),
        "PixelData": content.tobytes() + b"\0" * (len(content.tobytes()) % 2),
    }
    return write_file(path, uid, **(common | values))


def write_enhanced(
    path: Path, pixels: np.ndarray, places: np.ndarray, slopes: Sequence[float] | None = None
) -> Path:
    """An enhanced CT with a place (LPS mm) for each frame."""
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[2.5, 2.0], SliceThickness=3)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[float(v) for v in place])],
            PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=-slope)],
        )
        for place, slope in zip(places, slopes or [1] * len(pixels))
    ]
    return write_frames(
        path, pixels, SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames
    )


def write_segments(path: Path, masks: np.ndarray, kind: str = "BINARY") -> Path:
    """A segmentation on STACK of masks (segment, z, y, x), of which each has the frames where it is."""
    where = [(s, k) for s in range(len(masks)) for k in range(len(masks[s])) if masks[s, k].any()]
    frames = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[-10.0, -20.0, 30 + 3.0 * k])],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=s + 1)],
        )
        for s, k in where
    ]
    shared = item(
        PixelMeasuresSequence=[item(PixelSpacing=[2.5, 2.0], SpacingBetweenSlices=3.0)],
        PlaneOrientationSequence=[item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    return write_frames(
        path, np.array([masks[s, k] for s, k in where]), SEG, SegmentationType=kind,
        SharedFunctionalGroupsSequence=[shared], PerFrameFunctionalGroupsSequence=frames,
        SegmentSequence=[item(SegmentNumber=s + 1, SegmentLabel=f"organ {s + 1}") for s in range(len(masks))],
    )  # fmt: skip


def write_structures(path: Path, regions: dict[str, list[np.ndarray]]) -> Path:
    """A structure set of named regions, each of closed contours (n, 3), LPS mm."""
    numbered = list(enumerate(regions.items(), start=1))
    return write_file(
        path,
        f"{STORAGE}481.3",
        Modality="RTSTRUCT",
        StructureSetROISequence=[item(ROINumber=n, ROIName=name) for n, (name, _) in numbered],
        ROIContourSequence=[
            item(
                ReferencedROINumber=n,
                ROIDisplayColor=[255, 128, 0],
                ContourSequence=[
                    item(
                        ContourGeometricType="CLOSED_PLANAR",
                        NumberOfContourPoints=len(points),
                        ContourData=[f"{v:.6f}" for v in points.ravel()],
                    )
                    for points in contours
                ],
            )
            for n, (_, contours) in numbered
        ],
    )
