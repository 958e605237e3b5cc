"""Damaged files against every reader: no traceback, crash, hang, or pickle that runs.

    python benchmarks/fuzz.py --cases 3000 -o benchmarks/results/fuzz.md

Each reader gets small real files of its format, which this script writes, with bytes changed, cut, repeated
and moved, and numbers in text replaced. It has to read the file or refuse it with one line (RegkitError),
within 10 s and in so much memory. Readers run in a child process, so that a crash or a hang is one case.

Where regkit starts a process for ITK to parse in, a process with ITK loaded is forked instead (``--fresh``
starts one, as regkit does): the same parsers under the same bounds, without the 0.07 s to load them.

Seconds are those of a machine with nothing else to do: without what the processes waited for a processor,
and at least what they had one.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import json
import os
import pickle
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from typing import Any

import numpy as np
from fuzz_fork import times

from regkit.io.provenance import commit

MAX_SECONDS = 10.0
MEMORY = 4 << 30
"""Bytes of address space that a reader may take beyond what the process has once its libraries are in."""
CANARY = "pickle-was-run"
_HOSTILE = "weights, hostile pickle"
Read = Callable[[Path], Any]


@dataclass(frozen=True)
class Reader:
    """A format and what reads it.

    Args:
        name: the seed's file name; a folder where it has no ending.
        seed: writes the file, or the files, of which the one named is damaged.
        read: raises RegkitError or nothing.
        text: whether numbers in it are written as text.
        process: whether reading starts a process.
    """

    name: str
    seed: Callable[[Path], object]
    read: Read
    text: bool = False
    process: bool = False


def readers() -> dict[str, Reader]:
    """Of every format that regkit reads from users."""
    import nibabel as nib
    import SimpleITK as sitk
    import torch

    from regkit.core.geometry import Grid
    from regkit.features.unet import Architecture, UNet
    from regkit.features.weights import load_network, save_weights
    from regkit.io.formats import read_linear, write_linear, write_warp
    from regkit.io.frames import load_frames
    from regkit.io.images import load_image, load_labels, load_segmentation
    from regkit.io.labelnames import read_label_names
    from regkit.io.meshes import open_mesh
    from regkit.io.outputs import save_slicer_segmentation
    from regkit.io.points import open_points, read_pairs, read_points, write_points
    from regkit.io.provenance import read_record
    from regkit.io.segments import LayeredSegmentation, Segment
    from regkit.warp import Warp

    grid = Grid((8, 9, 10), (1.0, 1.5, 2.0), (10.0, -20.0, 30.0))
    rng = np.random.default_rng(0)
    values = rng.integers(0, 1000, grid.shape).astype(np.int16)
    field = rng.normal(size=(*grid.shape, 3)).astype(np.float32)
    several = np.stack([values.T + k for k in range(4)], axis=-1)
    warp = Warp(field, grid, grid)
    affine = np.diag([-1.0, -1.5, 2.0, 1.0])
    matrix = np.array([[1, 0.1, 0, 3], [-0.1, 1, 0, 4], [0, 0, 1.1, 5], [0, 0, 0, 1]])

    def image(path: Path) -> Any:
        return load_image(path, "image")

    def labels(path: Path) -> Any:
        return load_labels(path, "labels")

    def field_file(path: Path) -> Any:
        return Warp.load(path, grid, grid)

    def linear(path: Path) -> Any:
        return read_linear(path, grid, grid)

    def plain(convention: str) -> Read:
        return lambda path: read_linear(f"{convention}:{path}", grid, grid)

    def nifti(kind: Any, array: np.ndarray = values.T) -> Callable[[Path], object]:
        return lambda path: nib.save(kind(array, affine), path)

    def itk(array: np.ndarray = values, packed: bool = False) -> Callable[[Path], object]:
        vector = array.ndim == 4
        return lambda path: sitk.WriteImage(grid.to_sitk(array, vector=vector), str(path), packed)

    def foreign(intent: int, name: str, p1: float = 0, four: bool = False) -> Callable[[Path], object]:
        def write(path: Path) -> None:
            array = field.transpose(2, 1, 0, 3)
            made = nib.Nifti1Image(array if four else array[:, :, :, None], affine)
            made.header["intent_code"], made.header["intent_name"] = intent, name.encode()
            made.header["intent_p1"] = p1
            nib.save(made, path)

        return write

    def transform(made: Any) -> Callable[[Path], object]:
        return lambda path: sitk.WriteTransform(made, str(path))

    def words(content: str) -> Callable[[Path], object]:
        return lambda path: path.write_text(content)

    def series(folder: Path) -> None:
        folder.mkdir()
        for k, plane in enumerate(values):
            slice_ = sitk.GetImageFromArray(plane[None])
            slice_.SetSpacing(grid.spacing)
            for tag, value in {
                "0008|0060": "CT", "0020|000e": "1.2.3", "0020|000d": "1.2", "0008|0018": f"1.2.3.{k}",
                "0020|0032": f"10\\-20\\{30 + 2 * k}", "0020|0037": "1\\0\\0\\0\\1\\0",
            }.items():  # fmt: skip
                slice_.SetMetaData(tag, value)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(folder / f"{k}.dcm"))
            writer.Execute(slice_)

    def network(path: Path) -> None:
        torch.manual_seed(0)
        made = UNet(Architecture(out_channels=4, width=4, levels=1, stride=1))
        provenance = {"data": "none", "channels": '[["features", 4, "unit", 1.0]]'}
        save_weights(path.with_suffix(".safetensors"), made, provenance)
        if path.suffix == ".pth":
            torch.save(made.state_dict(), path)

    def hostile(path: Path) -> None:
        network(path)
        path.write_bytes(pickle.dumps(_Run(path.parent / CANARY)))

    def moved(path: Path) -> Any:
        file = open_points(path)
        return file.text(file.points + 1)

    def segments(path: Path) -> Any:
        return load_segmentation(path, "labels"), labels(path)

    def slicer(path: Path) -> None:
        layers = [(values > 500).astype(np.uint8), (values % 2 * 2).astype(np.uint8)]
        two_segments = (Segment(1, "liver", (0.9, 0.5, 0.2)), Segment(2, "vessel"))
        save_slicer_segmentation(LayeredSegmentation(layers, grid, two_segments), path)

    def made_by(path: Path) -> Any:
        (path.with_suffix("")).write_text("")
        return read_record(path.with_suffix(""))

    record = {"made_by": "regkit 1", "outputs": {"warp": {"file": "a.nii", "sha256": "0"}}, "inputs": {}}
    composite = sitk.CompositeTransform([sitk.AffineTransform(3), warp.to_sitk()])
    markups = {"markups": [{"type": "Fiducial", "coordinateSystem": "LPS", "controlPoints": [
        {"id": "1", "label": "F-1", "position": [1.5, 2, 3], "positionStatus": "defined"}]}]}  # fmt: skip
    lta = "type      = 1\nnxforms   = 1\nmean = 0 0 0\nsigma = 1.0\n1 4 4\n" + "".join(
        " ".join(map(str, row)) + "\n" for row in matrix
    ) + "src volume info\nvalid = 1\nvolume = 8 9 10\nvoxelsize = 1 1.5 2\nxras = 1 0 0\n"  # fmt: skip
    elastix = (
        '(Transform "EulerTransform")\n(TransformParameters 0.1 0.2 0.3 4 5 6)\n'
        "(CenterOfRotationPoint 1 2 3)\n(FixedImageDimension 3)\n"
    )
    rows = "\n".join(" ".join(map(str, row)) for row in matrix)
    pair = "fx,fy,fz,mx,my,mz\n1,2,3,4,5,6\n7,8,9,10,11,12\n"
    by_name = {
        "NIfTI-1": Reader("a.nii", nifti(nib.Nifti1Image), image),
        "NIfTI-1, gzip": Reader("a.nii.gz", nifti(nib.Nifti1Image), image),
        "NIfTI-2": Reader("a.nii", nifti(nib.Nifti2Image), image),
        "NIfTI pair": Reader("a.hdr", nifti(nib.Nifti1Pair), image),
        "NIfTI pair, voxels": Reader("a.img", nifti(nib.Nifti1Pair), image),
        "Analyze": Reader("a.hdr", nifti(nib.Spm99AnalyzeImage), image),
        "MGH": Reader("a.mgh", nifti(nib.MGHImage), image),
        "MGZ": Reader("a.mgz", nifti(nib.MGHImage), image),
        "NIfTI series": Reader("a.nii", nifti(nib.Nifti1Image, several), lambda p: load_frames(p, "image")),
        "label map": Reader("a.nii", nifti(nib.Nifti1Image, (values // 200).T), labels),
        "NRRD": Reader("a.nrrd", itk(), image, True, True),
        "NRRD, gzip": Reader("a.nrrd", itk(packed=True), image, True, True),
        "NRRD, detached": Reader("a.nhdr", itk(), image, True, True),
        "MetaImage": Reader("a.mha", itk(), image, True, True),
        "MetaImage, zlib": Reader("a.mha", itk(packed=True), image, True, True),
        "MetaImage, detached": Reader("a.mhd", itk(), image, True, True),
        "TIFF": Reader("a.tif", itk(), image, process=True),
        "VTK": Reader("a.vtk", itk(), image, True, True),
        "GIPL": Reader("a.gipl", itk(), image, process=True),
        "MINC 2": Reader("a.mnc", itk(), image, process=True),
        "HDF5 image": Reader("a.hdf5", itk(), image, process=True),
        "DICOM series": Reader("d/3.dcm", lambda p: series(p.parent), lambda p: image(p.parent), False, True),
        "ITK field, NIfTI": Reader("w.nii.gz", lambda p: write_warp(warp, p), field_file),
        "ITK field, MetaImage": Reader("w.mha", itk(field), field_file, True, True),
        "ITK field, NRRD": Reader("w.nrrd", itk(field), field_file, True, True),
        "ITK composite, HDF5": Reader("w.h5", transform(composite), field_file, process=True),
        "ITK affine, HDF5": Reader("w.h5", lambda p: write_linear(matrix, p), linear, process=True),
        "ITK affine, text": Reader("w.tfm", lambda p: write_linear(matrix, p), linear, True, True),
        "ITK affine, MATLAB": Reader("w.mat", lambda p: write_linear(matrix, p), linear, process=True),
        "DISPVECT": Reader("w.nii", lambda p: write_warp(warp, p, "dispvect"), field_file),
        "Learn2Reg, npz": Reader("w.npz", lambda p: write_warp(warp, p, "l2r"), field_file),
        "Learn2Reg, NIfTI": Reader("w.nii", lambda p: write_warp(warp, p, "l2r"), field_file),
        "SPM": Reader("y.nii", foreign(1007, "Mapping"), field_file),
        "NiftyReg": Reader("n.nii", foreign(1007, "NREG_TRANS", 1), field_file),
        "FNIRT": Reader("f.nii.gz", foreign(2006, "", four=True), field_file),
        "FLIRT": Reader("m.mat", words(rows), plain("fsl"), True),
        "plain 4x4": Reader("m.txt", words(rows), plain("ras"), True),
        "FreeSurfer LTA": Reader("m.lta", words(lta), linear, True),
        "elastix": Reader("TransformParameters.0.txt", words(elastix), linear, True),
        "points, CSV": Reader("p.csv", lambda p: write_points(p, [[1, 2, 3], [4, 5, 6]]), read_points, True),
        "points, fcsv": Reader("p.fcsv", lambda p: write_points(p, [[1, 2, 3]]), read_points, True),
        "points, Slicer JSON": Reader("p.mrk.json", words(json.dumps(markups)), read_points, True),
        "points, CSV, moved": Reader("p.csv", words('name;x;y;z\n"a;b";1,5;2;3\n'), moved, True),
        "points, fcsv, moved": Reader("p.fcsv", lambda p: write_points(p, [[1, 2, 3]]), moved, True),
        "points, Slicer JSON, moved": Reader("p.mrk.json", words(json.dumps(markups)), moved, True),
        "segments of Slicer": Reader("a.seg.nrrd", slicer, segments, True, True),
        "record of a run": Reader("a.nii.json", words(json.dumps(record)), made_by, True),
        "landmark pairs": Reader("p.csv", words(pair), read_pairs, True),
        "label names": Reader("n.json", words('{"1": "liver", "2": "spleen"}'), read_label_names, True),
        "weights, safetensors": Reader("w.safetensors", network, load_network),
        "weights, pickle": Reader("w.pth", network, load_network),
        "weights, hostile pickle": Reader("w.pth", hostile, load_network),
    }  # fmt: skip
    by_name |= _meshes(
        read=lambda path: open_mesh(path, None if path.suffix in (".gii", ".trk", ".tck") else "ras")
    )
    try:
        import pydicom  # noqa: F401
    except ImportError:
        return by_name
    return by_name | {
        "DICOM frames": Reader("f.dcm", lambda p: _frames(p, values), image),
        "DICOM segments": Reader("s.dcm", lambda p: _frames(p, values > 500, segments=True), labels),
        "DICOM regions": Reader("r.dcm", _regions, lambda p: load_labels(p, "labels", grid)),
        "DICOM regions, no image": Reader("r.dcm", _regions, labels),
    }


def _meshes(read: Read) -> dict[str, Reader]:
    """Surfaces of one tetrahedron, and two streamlines."""
    import nibabel as nib
    from nibabel.gifti import GiftiDataArray, GiftiImage, GiftiMetaData
    from nibabel.streamlines import Tractogram

    points = np.array([[0.5, 1, 2], [10, 1, 3], [4, 9, 2], [3, 4, 8]], np.float32)
    triangles = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]], np.int32)

    def gifti(path: Path) -> None:
        image = GiftiImage()
        centre = GiftiMetaData({f"VolGeomC_{axis}": "0" for axis in "RAS"})
        image.add_gifti_data_array(GiftiDataArray(points, "NIFTI_INTENT_POINTSET", meta=centre))
        image.add_gifti_data_array(GiftiDataArray(triangles, "NIFTI_INTENT_TRIANGLE"))
        nib.save(image, path)

    def streamlines(path: Path) -> None:
        tracts = Tractogram([points[:3], points[1:]], affine_to_rasmm=np.eye(4))
        nib.streamlines.save(tracts, str(path))

    found = {
        "GIFTI": Reader("s.gii", gifti, read, True),
        "TrackVis": Reader("s.trk", streamlines, read),
        "MRtrix tracks": Reader("s.tck", streamlines, read),
    }
    try:
        import meshio
    except ImportError:
        return found

    def mesh(path: Path) -> None:
        meshio.Mesh(points, [("triangle", triangles)]).write(path)

    return found | {
        f"mesh, {suffix.upper()}": Reader(f"s.{suffix}", mesh, read, suffix in ("vtu", "obj"))
        for suffix in ("vtk", "vtu", "stl", "ply", "obj")
    }


class _Run:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def _frames(path: Path, pixels: np.ndarray, segments: bool = False) -> None:
    """An enhanced CT, or a segmentation, as one file."""
    import pydicom

    def item(**named: Any) -> Any:
        dataset = pydicom.Dataset()
        for name, value in named.items():
            setattr(dataset, name, value)
        return dataset

    uid = "1.2.840.10008.5.1.4.1.1." + ("66.4" if segments else "2.1")
    bits = 1 if segments else 16
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, uid
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.update(
        item(
            SOPClassUID=uid, SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", StudyInstanceUID="1.2.5",
            Modality="SEG" if segments else "CT", Rows=pixels.shape[1], Columns=pixels.shape[2],
            NumberOfFrames=len(pixels), SamplesPerPixel=1, PhotometricInterpretation="MONOCHROME2",
            BitsAllocated=bits, BitsStored=bits, HighBit=bits - 1, PixelRepresentation=0,
            SegmentationType="BINARY",
        )
    )  # fmt: skip
    content = np.packbits(pixels.ravel(), bitorder="little") if segments else pixels.astype("<u2")
    dataset.PixelData = content.tobytes() + b"\0" * (content.nbytes % 2)
    measures = item(PixelSpacing=[1.5, 1.0], SliceThickness=2, SpacingBetweenSlices=2)
    axes = item(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
    dataset.SharedFunctionalGroupsSequence = [
        item(PixelMeasuresSequence=[measures], PlaneOrientationSequence=[axes])
    ]
    dataset.PerFrameFunctionalGroupsSequence = [
        item(
            PlanePositionSequence=[item(ImagePositionPatient=[10.0, -20.0, 30 + 2.0 * k])],
            PixelValueTransformationSequence=[item(RescaleSlope=1.5, RescaleIntercept=-5)],
            SegmentIdentificationSequence=[item(ReferencedSegmentNumber=1)],
        )
        for k in range(len(pixels))
    ]
    dataset.save_as(path)


def _regions(path: Path) -> None:
    """A structure set of two regions in three planes."""
    import pydicom

    def item(**named: Any) -> Any:
        dataset = pydicom.Dataset()
        for name, value in named.items():
            setattr(dataset, name, value)
        return dataset

    uid = "1.2.840.10008.5.1.4.1.1.481.3"
    meta = pydicom.dataset.FileMetaDataset()
    meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = pydicom.uid.ExplicitVRLittleEndian, uid
    meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset = pydicom.dataset.FileDataset(None, {}, file_meta=meta, preamble=b"\0" * 128)
    box = np.array([[11.0, -18.5], [15.0, -18.5], [15.0, -10.0], [11.0, -10.0]])
    rois = [item(ROINumber=n, ROIName=f"organ {n}") for n in (1, 2)]
    contours = [
        item(
            ReferencedROINumber=n,
            ContourSequence=[
                item(
                    ContourGeometricType="CLOSED_PLANAR",
                    ContourData=[f"{v:g}" for x, y in box + n for v in (x, y, 34.0 + 2 * k)],
                )
                for k in range(3)
            ],
        )
        for n in (1, 2)
    ]
    dataset.update(
        item(
            SOPClassUID=uid, SOPInstanceUID="1.2.3", SeriesInstanceUID="1.2.4", Modality="RTSTRUCT",
            StructureSetROISequence=rois, ROIContourSequence=contours,
        )
    )  # fmt: skip
    dataset.save_as(path)


_NUMBERS = (
    b"-1", b"0", b"1e308", b"nan", b"inf", b"2147483648", b"4294967295", b"-0", b"0T0", b"1e-320", b"",
    b"99999999999999999999", b"3,5", b"x",
)  # fmt: skip
_INTEGERS = (0, 1, -1, 2**15 - 1, -(2**15), 2**31 - 1, -(2**31), 2**16, 70, 1000)


def damage(content: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """The content with one to four things wrong with it."""
    if content[:2] == b"\x1f\x8b" and rng.random() < 0.8:  # what is inside is read, too
        return gzip.compress(damage(gzip.decompress(content), rng, text), 1)
    data = bytearray(content)
    for _ in range(min(4, rng.geometric(0.6))):
        # Headers are where parsers go wrong.
        end = len(data) if rng.random() < 0.3 else min(len(data), 600)
        at = int(rng.integers(0, max(1, end)))
        kind = rng.integers(0, 8)
        if text and rng.random() < 0.5:
            matches = list(re.finditer(rb"[-+]?[0-9][0-9.eE+-]*", bytes(data[:4096])))
            if matches:
                hit = matches[rng.integers(len(matches))]
                data[hit.start() : hit.end()] = _NUMBERS[rng.integers(len(_NUMBERS))]
            continue
        if kind == 0:
            for k in rng.integers(0, max(1, end), rng.integers(1, 9)):
                if k < len(data):
                    data[k] = rng.integers(256)
        elif kind == 1:
            del data[at:]
        elif kind == 2:
            del data[at : at + int(rng.integers(1, 64))]
        elif kind == 3:
            data[at:at] = bytes(rng.integers(0, 256, rng.integers(1, 64), dtype=np.uint8))
        elif kind == 4:
            data[at : at + 16] = (b"\0" if rng.random() < 0.5 else b"\xff") * 16
        elif kind == 5:
            size = int(rng.choice([2, 4, 8]))
            at -= at % size
            number = _INTEGERS[rng.integers(len(_INTEGERS))] % 2 ** (8 * size)
            data[at : at + size] = number.to_bytes(size, "little" if rng.random() < 0.8 else "big")
        elif kind == 6:
            at -= at % 4
            number = np.float32([np.nan, np.inf, -np.inf, 1e30, -1, 0, 1e-40][rng.integers(7)])
            data[at : at + 4] = number.tobytes()
        else:
            other = int(rng.integers(0, max(1, end)))
            data[at : at + 32] = data[other : other + 32]
    return bytes(data)


class _Forked:
    """A process as :class:`subprocess.Popen` makes it, forked from one that has ITK loaded."""

    server: socket.socket | None = None
    worked = waited = 0.0
    """Seconds that all of them had a processor, and waited for one."""

    def __init__(self, command: list[str], **_: Any) -> None:
        if self.server is None:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            script = str(Path(__file__).with_name("fuzz_fork.py"))
            subprocess.Popen(
                [*command[:3], script, str(theirs.fileno()), *command[3:]],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                env={**os.environ, "MALLOC_ARENA_MAX": "1"}, pass_fds=[theirs.fileno()],
            )  # fmt: skip
            theirs.close()
            type(self).server = ours
        assert self.server
        question, answer = os.pipe(), os.pipe()
        socket.send_fds(self.server, [b"x"], [question[0], answer[1]])
        os.close(question[0])
        os.close(answer[1])
        self.stdin, self.stdout = os.fdopen(question[1], "wb"), os.fdopen(answer[0], "rb", buffering=1 << 16)
        self.pid = int(self.server.recv(32))
        self._code: int | None = None

    def kill(self) -> None:
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code, as of Popen: the next thing that the server says."""
        if self._code is None:
            assert self.server
            code, worked, waited = self.server.recv(96).split()
            self._code = int(code)
            _Forked.worked += float(worked)
            _Forked.waited += float(waited)
        return self._code


def work(seed: int, jobs: list[tuple[str, int, int]], fresh: bool = False) -> None:
    """In a child: read the cases of readers and say of each how it went, a line of JSON.

    Args:
        jobs: a reader's name and its first and last + 1 case.
        fresh: start a process for each file that ITK parses, as regkit does.
    """
    import torch

    from regkit.io import guard

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    out = os.fdopen(os.dup(1), "w")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    every = readers()
    if not fresh:
        guard.subprocess = SimpleNamespace(Popen=_Forked, PIPE=-1, DEVNULL=-3)  # type: ignore[assignment]
    with open("/proc/self/statm") as stream:
        limit = int(stream.read().split()[0]) * resource.getpagesize() + MEMORY

    def say(**facts: Any) -> None:
        print(json.dumps(facts), file=out, flush=True)

    for name, first, last in jobs:
        reader = every[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / reader.name
            reader.seed(path)
            whole = path.read_bytes()
            if not name.endswith("pickle"):  # the published network, whose 23 MB pickles are, is not at hand
                reader.read(path)  # a seed that is refused would test nothing
            resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
            for case in range(first, last):
                rng = np.random.default_rng([seed, case, *name.encode()])
                as_it_is = case == 0 and name == _HOSTILE
                path.write_bytes(whole if as_it_is else damage(whole, rng, reader.text))
                say(name=name, start=case)
                outcome = _one(reader, path, Path(folder))
                say(name=name, case=case, **outcome)


def _one(reader: Reader, path: Path, folder: Path) -> dict[str, Any]:
    """How reading a file went."""
    from regkit.core.errors import RegkitError

    start, detail = _clocks(), ""
    try:
        reader.read(path)
        outcome = "read"
    except RegkitError as error:
        outcome = "refused" if "\n" not in str(error) else "more than one line"
        detail = "" if outcome == "refused" else str(error)[:200]
    except BaseException as error:
        outcome, detail = "traceback", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    seconds = max(end - begin for end, begin in zip(_clocks(), start))
    if (folder / CANARY).exists():
        outcome, detail = "pickle run", ""
    if seconds > MAX_SECONDS:
        outcome = "hang"
    return {"how": outcome, "detail": detail, "seconds": seconds}


def _clocks() -> tuple[float, float]:
    """Seconds without those that this process and the forked ones waited, and seconds that they worked."""
    worked, waited = times("thread-self")
    return time.monotonic() - waited - _Forked.waited, worked + _Forked.worked


class Tally:
    """What came of the cases of one reader."""

    def __init__(self, cases: int) -> None:
        self.cases, self.done, self.started = cases, 0, False
        self.counts: Counter[str] = Counter()
        self.faults: list[str] = []
        self.seconds: list[float] = []

    def add(self, name: str, outcome: str, detail: str = "", seconds: float = 0.0) -> None:
        """Count a case."""
        self.counts[outcome] += 1
        self.seconds.append(seconds)
        if outcome not in ("read", "refused"):
            self.faults.append(f"{name}, case {self.done}: {outcome} {detail}".strip())
        self.done += 1
        self.started = False

    def row(self, name: str) -> str:
        """A line of the table."""
        times = sorted(self.seconds)
        cells = [name, self.cases, *(self.counts[column] for column in _COLUMNS)]
        cells += [f"{1000 * times[len(times) // 2]:.1f}", f"{times[-1]:.2f}"]
        return "| " + " | ".join(map(str, cells)) + " |"


def fuzz(
    seed: int, cases: dict[str, int], report: Callable[[str], None], fresh: bool = False
) -> dict[str, Tally]:
    """All cases of the readers; the child is started again where one kills it or does not end."""
    tallies = {name: Tally(count) for name, count in cases.items()}
    while jobs := [(name, t.done, t.cases) for name, t in tallies.items() if t.done < t.cases]:
        command = [sys.executable, __file__, "--work", json.dumps([seed, jobs, fresh])]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout
            late = False

            def end(process: Any = child) -> None:
                nonlocal late
                late = True
                process.kill()

            tally, name = None, ""
            timer = Timer(900, end)  # so long may a busy machine take to load the libraries
            timer.start()
            for line in child.stdout:
                timer.cancel()
                outcome = json.loads(line)
                name = outcome["name"]
                tally = tallies[name]
                if "start" in outcome:
                    tally.started = True
                else:
                    tally.add(name, outcome["how"], outcome["detail"], outcome["seconds"])
                    if tally.done == tally.cases:
                        report(tally.row(name))
                timer = Timer(20 * MAX_SECONDS, end)
                timer.start()
            timer.cancel()
        if tally is not None and tally.started:
            tally.add(name, "hang" if late else "crash", f"exit code {child.returncode}")
            if tally.done == tally.cases:
                report(tally.row(name))
        elif child.returncode:
            raise SystemExit(f"the seed after '{name}' is not read (exit code {child.returncode})")
    return tallies


_COLUMNS = ("read", "refused", "traceback", "more than one line", "crash", "hang", "pickle run")


def main() -> None:
    """Fuzz and write the table; exit code 1 if anything but reading and refusing happened."""
    if sys.argv[1:2] == ["--work"]:
        work(*json.loads(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=3000, help="damaged files per reader")
    parser.add_argument("--itk-cases", type=int, help="of readers that start a process per file; as --cases")
    parser.add_argument("--fresh", action="store_true", help="start a process for each file that ITK parses")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", help="only this one; may be given several times")
    parser.add_argument("-o", "--output", type=Path, help="a .md file for the table")
    options = parser.parse_args()
    every = readers()
    slow = options.cases if options.itk_cases is None else options.itk_cases
    names = options.reader or list(every)
    cases = {name: slow if every[name].process else options.cases for name in names}
    head = ["reader", "cases", *_COLUMNS, "median, ms", "slowest, s"]
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]

    def report(line: str) -> None:
        lines.append(line)
        print(line, flush=True)

    print("\n".join(lines), flush=True)
    tallies = fuzz(options.seed, cases, report, options.fresh)
    faults = [fault for tally in tallies.values() for fault in tally.faults]
    print(f"{sum(cases.values()):,} cases, {len(faults)} faults", *faults, sep="\n")
    if options.output:
        options.output.write_text(_page(options, slow, lines, faults, sum(cases.values())))
    raise SystemExit(1 if faults else 0)


def _page(options: Any, slow: int, lines: list[str], faults: list[str], total: int) -> str:
    command = f"python benchmarks/fuzz.py --cases {options.cases} --itk-cases {slow} --seed {options.seed}"
    text = (
        f"# Damaged files against every reader\n\n`{command}`, commit {commit()}, one thread: {total:,} "
        "cases. A case is one file with one to four things wrong with it; it has to be read or refused with "
        f"one line, within {MAX_SECONDS:.0f} s and {MEMORY >> 30} GiB of memory beyond the libraries'. "
        f"Faults: {len(faults)}.\n\n"
    )
    text += "\n".join(lines) + "\n"
    return text + ("\n## Faults\n\n" + "\n".join(f"- {fault}" for fault in faults) + "\n" if faults else "")


if __name__ == "__main__":
    main()
