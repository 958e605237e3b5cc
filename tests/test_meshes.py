"""Meshes and streamlines through a warp: which way they go, LPS and RAS, what stays, what is refused."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_cases import error_of, run, usage_error_of
from nibabel.gifti import GiftiDataArray, GiftiImage
from nibabel.streamlines import Tractogram
from warp_cases import FIXED, MOVING, smooth_warp

from regkit.core.errors import RegkitError
from regkit.core.geometry import transform_points
from regkit.io.meshes import MESH_SUFFIXES, open_mesh
from regkit.warp import Warp

meshio = pytest.importorskip("meshio", reason="meshes need meshio")
RAS = np.array([-1.0, -1.0, 1.0])
TRIANGLES = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
_MESHIO = (".vtk", ".vtu", ".stl", ".ply", ".obj")


def _points() -> np.ndarray:
    """The corners of a tetrahedron inside FIXED, LPS mm."""
    index = np.array([[8, 8, 6], [17, 9, 7], [12, 15, 6], [12, 11, 12.0]])
    return transform_points(FIXED.index_to_world, index)


def _write(path: Path, points: np.ndarray) -> None:
    """A file of the library that has its format, with coordinates as they are given."""
    if path.suffix == ".gii":
        image = GiftiImage()
        image.add_gifti_data_array(GiftiDataArray(points.astype(np.float32), "NIFTI_INTENT_POINTSET"))
        image.add_gifti_data_array(GiftiDataArray(TRIANGLES.astype(np.int32), "NIFTI_INTENT_TRIANGLE"))
        nib.save(image, path)
    elif path.suffix in (".trk", ".tck"):
        lines = [points[:3].astype(np.float32), points[1:].astype(np.float32)]
        extra = {"data_per_streamline": {"weight": np.array([[1.0], [2.0]])}} if path.suffix == ".trk" else {}
        tracts = Tractogram(lines, affine_to_rasmm=np.eye(4), **extra)
        header = {"voxel_to_rasmm": FIXED.ras_affine, "voxel_sizes": FIXED.spacing, "dimensions": FIXED.size}
        nib.streamlines.save(tracts, str(path), header=header if path.suffix == ".trk" else None)
    else:
        meshio.Mesh(points, [("triangle", TRIANGLES)]).write(path)


def _read(path: Path) -> np.ndarray:
    """The coordinates of a file, by its own library."""
    if path.suffix == ".gii":
        return np.asarray(nib.load(path).agg_data("pointset"))
    if path.suffix in (".trk", ".tck"):
        return np.concatenate(list(nib.streamlines.load(path).streamlines))
    with np.errstate(over="ignore"):
        return np.asarray(meshio.read(path).points)


def _itk(warp: Warp, points: np.ndarray) -> np.ndarray:
    """Points LPS mm through the warp as SimpleITK takes them."""
    transform = warp.to_sitk()
    return np.array([transform.TransformPoint(point) for point in points.tolist()])


@pytest.mark.parametrize("suffix", MESH_SUFFIXES)
def test_points_go_from_fixed_to_moving_as_simpleitk_takes_them(suffix: str, tmp_path: Path) -> None:
    """On oblique grids of which one axis runs backwards, in the space of the file, by the command line."""
    warp = smooth_warp()
    warp.save(tmp_path / "warp.nii.gz")
    source, moved = tmp_path / f"mesh{suffix}", tmp_path / f"moved{suffix}"
    sign = np.ones(3) if suffix in _MESHIO else RAS
    _write(source, _points() * sign)
    before = _read(source)
    space = ["--space", "lps"] if suffix in _MESHIO else []
    run("apply", tmp_path / "warp.nii.gz", "--points", source, "-o", moved, *space)
    np.testing.assert_allclose(_read(moved), _itk(warp, before * sign) * sign, atol=2e-3)
    assert np.abs(_read(moved) - before).max() > 2
    np.testing.assert_array_equal(_read(source), before)
    if suffix in _MESHIO:
        with np.errstate(over="ignore"):
            old, same = meshio.read(source), meshio.read(moved)
        assert [block.type for block in same.cells] == ["triangle"]
        corners = _read(moved)[same.cells[0].data]
        np.testing.assert_allclose(corners, _itk(warp, before)[old.cells[0].data], atol=2e-3)
    if suffix == ".gii":
        np.testing.assert_array_equal(nib.load(moved).agg_data("triangle"), TRIANGLES)
    if suffix == ".trk":
        lines = nib.streamlines.load(moved).tractogram
        assert [len(line) for line in lines.streamlines] == [3, 3]
        np.testing.assert_array_equal(lines.data_per_streamline["weight"], [[1], [2]])


@pytest.mark.parametrize("suffix", [".vtk", ".stl", ".ply", ".obj"])
@pytest.mark.parametrize("said", ["LPS", "RAS"])
def test_a_file_that_names_its_space_is_believed_and_keeps_it(suffix: str, said: str, tmp_path: Path) -> None:
    source, moved = tmp_path / f"mesh{suffix}", tmp_path / f"moved{suffix}"
    sign = RAS if said == "RAS" else np.ones(3)
    _write(source, _points() * sign)
    text = f"3D Slicer output. SPACE={said}".encode()
    content = source.read_bytes()
    if suffix == ".vtk":
        first, _, rest = content.split(b"\n", 2)
        content = b"\n".join([first, text, rest])
    elif suffix == ".stl":
        content = b"solid " + text + b"\n" + content.split(b"\n", 1)[1]
    elif suffix == ".ply":
        first, second, rest = content.split(b"\n", 2)
        content = b"\n".join([first, second, b"comment " + text, rest])
    else:
        content = b"# " + text + b"\n" + content
    source.write_bytes(content)
    file = open_mesh(source)
    np.testing.assert_allclose(np.unique(file.points, axis=0), np.unique(_points(), axis=0), atol=1e-3)
    file.save(moved, file.points + 1)
    assert f"SPACE={said}".encode() in moved.read_bytes()[:200]
    np.testing.assert_allclose(open_mesh(moved).points, file.points + 1, atol=1e-3)
    with pytest.raises(RegkitError, match="says that it is"):
        open_mesh(source, "ras" if said == "LPS" else "lps")


def test_moved_streamlines_name_the_moving_image(tmp_path: Path) -> None:
    _write(tmp_path / "tracts.trk", _points() * RAS)
    file = open_mesh(tmp_path / "tracts.trk", moving=MOVING)
    file.save(tmp_path / "moved.trk", file.points)
    header = nib.streamlines.load(tmp_path / "moved.trk").header
    np.testing.assert_allclose(header["voxel_to_rasmm"], MOVING.ras_affine, atol=1e-4)
    np.testing.assert_array_equal(header["dimensions"], MOVING.size)
    np.testing.assert_allclose(_read(tmp_path / "moved.trk"), _points()[[0, 1, 2, 1, 2, 3]] * RAS, atol=1e-3)


def test_what_is_no_mesh_is_refused(tmp_path: Path) -> None:
    smooth_warp().save(tmp_path / "warp.nii.gz")
    apply = ("apply", tmp_path / "warp.nii.gz", "--points")
    _write(tmp_path / "mesh.stl", _points())
    assert "LPS or RAS: give --space" in error_of(*apply, tmp_path / "mesh.stl", "-o", tmp_path / "out.stl")
    assert "must end in .stl" in error_of(
        *apply, tmp_path / "mesh.stl", "-o", tmp_path / "out.vtk", "--space", "lps"
    )
    for suffix in MESH_SUFFIXES:
        file = tmp_path / f"broken{suffix}"
        file.write_bytes(b"nonsense \x00\x01" * 20)
        space = "lps" if suffix in _MESHIO else None
        with pytest.raises(RegkitError, match=r"cannot be read|holds no points|is not a (surface|mesh)"):
            open_mesh(file, space)
    _write(tmp_path / "brain.gii", _points() * RAS)
    with pytest.raises(RegkitError, match="RAS mm by definition"):
        open_mesh(tmp_path / "brain.gii", "lps")
    image = nib.load(tmp_path / "brain.gii")
    image.darrays[0].meta["VolGeomC_R"] = "5.5"
    nib.save(image, tmp_path / "tkr.gii")
    with pytest.raises(RegkitError, match="to-scanner"):
        open_mesh(tmp_path / "tkr.gii")
    with pytest.raises(RegkitError, match="does not exist"):
        open_mesh(tmp_path / "none.vtk", "lps")
    said = usage_error_of(*apply, tmp_path / "points.csv", "-o", tmp_path / "out.csv", "--space", "lps")
    assert "is of a mesh in --points" in said
    assert not list(tmp_path.glob("out*"))
