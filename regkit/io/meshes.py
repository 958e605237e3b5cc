"""Meshes and streamlines: their points move, all else stays. Read and written by meshio and nibabel.

======================= ========= ===================================================================
.vtk .vtu .stl .ply .obj meshio   LPS or RAS as the file says (3D Slicer: "SPACE=LPS"), or as one is told
.gii                    nibabel   GIFTI: RAS mm
.trk .tck               nibabel   TrackVis, MRtrix: RAS mm
======================= ========= ===================================================================

GIFTI: https://www.nitrc.org/projects/gifti. What 3D Slicer writes since 5.0 names its space in the header:
https://github.com/Slicer/Slicer/blob/main/Libs/MRML/Core/vtkMRMLModelStorageNode.cxx
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.streamlines.tractogram import Tractogram

from regkit.core.errors import RegkitError, install, reason
from regkit.core.geometry import Float64, Grid
from regkit.io.atomic import atomic_path
from regkit.io.outputs import check_output

_MESHIO = (".vtk", ".vtu", ".stl", ".ply", ".obj")
_STREAMLINES = (".trk", ".tck")
MESH_SUFFIXES = (*_MESHIO, ".gii", *_STREAMLINES)
"""Endings of the meshes and streamlines that are read and written."""
SPACES = ("lps", "ras")
_SIGN = {"lps": np.ones(3), "ras": np.array([-1.0, -1.0, 1.0])}
_HEADER = 4096  # bytes in which a file says what space it is of
_SLICER = re.compile(rb"SPACE=(LPS|RAS)")
_MOST_AXES = 6  # of an array of GIFTI, by its definition
_CENTRE = ("VolGeomC_R", "VolGeomC_A", "VolGeomC_S")  # of FreeSurfer's, off which its surfaces lie


class SpaceError(RegkitError):
    """A mesh does not say whether its coordinates are LPS or RAS."""


@dataclass(frozen=True, eq=False)
class MeshFile:
    """A file of points that belong together in some way.

    Args:
        points: (n, 3), LPS mm.
        suffix: of the file, one of :data:`MESH_SUFFIXES`.
        write: writes the file with other points, (n, 3), LPS mm, in place of its own.
    """

    points: Float64
    suffix: str
    write: Callable[[Float64, Path], None]

    def save(self, path: str | os.PathLike[str], points: npt.ArrayLike) -> None:
        """Write the file with other points, (n, 3), LPS mm, in its own format and space.

        Raises:
            RegkitError: if it cannot be written, or the ending is of another format.
        """
        path = check_output(path, (self.suffix,))
        array = np.asarray(points, dtype=np.float64).reshape(self.points.shape)
        with atomic_path(path) as temporary, _library_errors(path, "written"):
            self.write(array, temporary)


def open_mesh(path: str | os.PathLike[str], space: str | None = None, moving: Grid | None = None) -> MeshFile:
    """A mesh or streamlines, to move its points.

    Args:
        space: "lps" or "ras", of a mesh that does not say itself what its coordinates are.
        moving: the grid of the moving image, which a moved .trk then names as its own.

    Raises:
        RegkitError: if the file cannot be read, is damaged or holds no points, its space is not known, or a
            library is missing.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in MESH_SUFFIXES:
        raise RegkitError(f"'{path}': a mesh or streamlines end in {', '.join(MESH_SUFFIXES)}")
    if not os.path.isfile(path):
        raise RegkitError(f"'{path}' does not exist")
    if suffix in _MESHIO:
        mesh = _open_meshio(path, suffix, space)
    else:
        if space == "lps":
            raise RegkitError(
                f"'{path}': coordinates of {suffix} are RAS mm by definition; leave the space out"
            )
        mesh = _open_gifti(path) if suffix == ".gii" else _open_streamlines(path, suffix, moving)
    if not len(mesh.points):
        raise RegkitError(f"'{path}' holds no points")
    if not np.isfinite(mesh.points).all():
        raise RegkitError(f"'{path}' holds points that are infinite or not a number")
    return mesh


def _open_meshio(path: Path, suffix: str, space: str | None) -> MeshFile:
    try:
        import meshio
    except ImportError as error:
        raise RegkitError(f"'{path}': {suffix} needs meshio: {install('meshes')}") from error
    with open(path, "rb") as stream:
        head = stream.read(_HEADER)
    match = _SLICER.search(head)
    if suffix == ".ply":  # meshio makes room for as many as are named, whatever there is
        size = path.stat().st_size
        for count in re.findall(rb"^element\s+\S+\s+(\S+)", head, re.MULTILINE):
            if not count.isdigit() or int(count[:20]) > size:
                raise RegkitError(
                    f"'{path}' is damaged: its header names {count.decode(errors='replace')} elements"
                )
    stated = match[1].decode().lower() if match else None
    if stated is None and space is None:
        raise SpaceError(
            f"'{path}' does not say whether its coordinates are LPS or RAS: give --space lps (ITK, DICOM) or "
            "--space ras (nibabel, FreeSurfer)"
        )
    if stated and space and stated != space:
        raise RegkitError(f"'{path}' says that it is {stated.upper()}; leave out --space {space}")
    # meshio looks whether an STL is binary by a product that may overflow.
    with _library_errors(path, "read"), np.errstate(over="ignore"):
        mesh = meshio.read(path)
    points = np.asarray(mesh.points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise RegkitError(f"'{path}' is not a mesh in three dimensions")
    sign = _SIGN[stated or space or "lps"]

    def write(moved: Float64, place: Path) -> None:
        mesh.points = (moved * sign).astype(
            mesh.points.dtype if mesh.points.dtype.kind == "f" else np.float64
        )
        # Normals are those of the old shape; readers make new ones.
        for table in (mesh.point_data, *([mesh.cell_data] if suffix == ".stl" else [])):
            for name in [
                n
                for n in table
                if n.lower() in ("normals", "facet_normals", "obj:vn", "vn", "nx", "ny", "nz")
            ]:
                del table[name]
        with np.errstate(invalid="ignore", divide="ignore"):  # a triangle without an area has no normal
            mesh.write(place)
        if stated:
            _say_space(place, suffix, stated)

    return MeshFile(points * sign, suffix, write)


def _say_space(place: Path, suffix: str, space: str) -> None:
    """Put what the file said of its space back where it stood, which meshio leaves out."""
    text = f"SPACE={space.upper()}".encode()
    content = place.read_bytes()
    if suffix == ".vtk":  # the second line is a title of up to 256 characters
        first, _, rest = content.split(b"\n", 2)
        content = b"\n".join([first, b"regkit; " + text, rest])
    elif suffix == ".stl" and not content.startswith(b"solid"):
        content = text.ljust(80) + content[80:]
    elif suffix == ".stl":
        content = b"solid " + text + b"\n" + content.split(b"\n", 1)[1]
    elif suffix == ".ply":
        first, rest = content.split(b"\n", 1)
        second, rest = rest.split(b"\n", 1)
        content = b"\n".join([first, second, b"comment " + text, rest])
    elif suffix == ".obj":
        content = b"# " + text + b"\n" + content
    else:
        return
    place.write_bytes(content)


def _open_gifti(path: Path) -> MeshFile:
    with _library_errors(path, "read"):
        # nibabel counts up to them, whatever they are.
        for axes in re.findall(rb"Dimensionality\s*=\s*[\"']([^\"']*)", path.read_bytes()):
            if not 0 < int(axes) <= _MOST_AXES:
                raise RegkitError(f"'{path}' is damaged: it tells of an array of {axes.decode()} axes")
        image: Any = nib.load(path)
        arrays = image.get_arrays_from_intent("NIFTI_INTENT_POINTSET")
        centre = [float(array.meta.get(name, 0)) for array in arrays for name in _CENTRE]
    if len(arrays) != 1:
        raise RegkitError(f"'{path}' is not a surface: it holds {len(arrays)} sets of points in place of one")
    array = arrays[0]
    system = array.coordsys
    if (
        system is not None
        and system.xform is not None
        and not np.allclose(system.xform, np.eye(4), atol=1e-4)
    ):
        raise RegkitError(
            f"'{path}': its points lie in a space of their own, from which a matrix in it leads on; write "
            "them in the scanner's first (FreeSurfer: mris_convert --to-scanner)"
        )
    if max(map(abs, centre)) > 1e-4:
        raise RegkitError(
            f"'{path}': its points are FreeSurfer's, about the middle of the volume; write them in the "
            "scanner's space first (mris_convert --to-scanner)"
        )

    def write(moved: Float64, place: Path) -> None:
        array.data = (moved * _SIGN["ras"]).astype(np.float32)
        nib.save(image, place)

    return MeshFile(np.asarray(array.data, dtype=np.float64) * _SIGN["ras"], ".gii", write)


def _open_streamlines(path: Path, suffix: str, moving: Grid | None) -> MeshFile:
    with _library_errors(path, "read"):
        file = nib.streamlines.load(path)
    tracts = file.tractogram
    flat = np.concatenate([np.asarray(line, np.float64) for line in tracts.streamlines] or [np.empty((0, 3))])
    ends = np.cumsum([len(line) for line in tracts.streamlines])[:-1]

    def write(moved: Float64, place: Path) -> None:
        lines = np.split((moved * _SIGN["ras"]).astype(np.float32), ends)
        again = Tractogram(
            lines, tracts.data_per_streamline, tracts.data_per_point, affine_to_rasmm=np.eye(4)
        )
        header = dict(file.header)
        if suffix == ".trk" and moving is not None:
            header |= {
                "voxel_to_rasmm": moving.ras_affine.astype(np.float32),
                "voxel_sizes": np.array(moving.spacing, np.float32),
                "dimensions": np.array(moving.size, np.int16),
                "voxel_order": "".join(nib.aff2axcodes(moving.ras_affine)),
            }
        nib.streamlines.save(type(file)(again, header=header), str(place))

    return MeshFile(flat * _SIGN["ras"], suffix, write)


@contextlib.contextmanager
def _library_errors(path: Path, what: str) -> Iterator[None]:
    """Whatever a library fails with is one line about the file; what it prints is kept off the terminal."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    except (RegkitError, MemoryError):
        raise
    except SystemExit as error:  # meshio ends the program where it cannot read
        raise RegkitError(
            f"'{path}' cannot be {what}: it is damaged, or of another kind than its name"
        ) from error
    except Exception as error:
        raise RegkitError(f"'{path}' cannot be {what} ({reason(error)}); it may be damaged") from error


def is_mesh(path: str | os.PathLike[str]) -> bool:
    """Whether a name is that of a mesh or of streamlines."""
    return Path(path).suffix.lower() in MESH_SUFFIXES
