"""What holds for every grid, every warp and every file, on those that hypothesis draws.

The same ones in every run; ``pytest tests/test_properties.py --hypothesis-profile wide`` draws others, and
more.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from property_cases import affine_warp, bent_warps, grids, matrices

import regkit
from regkit.core.geometry import Grid, affine_transform, transform_points
from regkit.io.formats import from_learn2reg, read_linear, read_warp, to_learn2reg, write_linear, write_warp
from regkit.io.frames import Frames, load_frames
from regkit.io.images import Volume, load_image, load_labels, load_segmentation, load_volume
from regkit.io.meshes import open_mesh
from regkit.io.points import POINT_SUFFIXES, open_points, read_pairs, read_points, write_points
from regkit.io.segments import LayeredSegmentation, Segment
from regkit.ops.folding import folded_points, unfold
from regkit.result_files import save_segments, save_volume
from regkit.warp import Warp

places = arrays(np.float64, st.tuples(st.integers(1, 5), st.just(3)), elements=st.floats(-900, 900))


@contextmanager
def folder() -> Iterator[Path]:
    """One for each example; a fixture's would be the same for all."""
    with tempfile.TemporaryDirectory() as path:
        yield Path(path)


# What ITK parses it parses in a process of its own, one for each file.
few = settings(max_examples=settings.default.max_examples // 5)


def largest(values: Any) -> float:
    return float(np.abs(values).max(initial=0.0))


# --- grids


@given(grids(), places)
def test_the_way_to_the_world_is_that_of_itk_and_leads_back(grid: Grid, index: np.ndarray) -> None:
    world = transform_points(grid.index_to_world, index)
    image = grid.blank()
    expected = [image.TransformContinuousIndexToPhysicalPoint(one) for one in index.tolist()]
    np.testing.assert_allclose(world, expected, atol=1e-8)
    back = [image.TransformPhysicalPointToContinuousIndex(one) for one in world.tolist()]
    for found in (transform_points(grid.world_to_index, world), back):
        np.testing.assert_allclose(found, index, atol=1e-8)


@given(grids(), places)
def test_a_grid_survives_itk_and_nibabel(grid: Grid, index: np.ndarray) -> None:
    assert Grid.from_sitk(grid.blank()) == grid
    again = Grid.from_ras_affine(grid.size, grid.ras_affine)
    assert again.same_as(grid, 1e-9)
    world = transform_points(grid.index_to_world, index)
    in_ras = nib.affines.apply_affine(grid.ras_affine, index)
    np.testing.assert_allclose(in_ras * [-1, -1, 1], world, atol=1e-8)


@given(grids(), st.floats(0.3, 8), st.sampled_from([1, 2, 8]))
def test_a_working_grid_covers_the_field_of_view_upright(grid: Grid, spacing: float, multiple: int) -> None:
    work = grid.working(spacing, multiple)
    assert work.spacing == (spacing,) * 3
    assert all(n % multiple == 0 for n in work.size)
    corners = transform_points(work.world_to_index, transform_points(grid.index_to_world, grid.corners()))
    room = 1e-4  # of a voxel, which the size leaves out rather than have another slice
    assert (corners >= -0.5 - room).all()
    assert (corners <= np.array(work.size) - 0.5 + room).all()
    own, theirs = (np.reshape(one.direction, (3, 3)) for one in (work, grid))
    np.testing.assert_allclose(np.abs(own.T @ theirs).round(6).sum(0), 1, atol=1e-5)  # the same axes
    assert (np.diag(own) >= -1e-9).all()


@given(grids(), st.integers(1, 4))
def test_a_cell_lies_in_the_middle_of_its_voxels(grid: Grid, stride: int) -> None:
    fine = Grid(tuple(n * stride for n in grid.size), grid.spacing, grid.origin, grid.direction)
    middle = fine.world_points()
    for axis in range(3):
        shape = [*middle.shape[:axis], -1, stride, *middle.shape[axis + 1 :]]
        middle = middle.reshape(shape).mean(axis + 1)
    np.testing.assert_allclose(fine.pooled(stride).world_points(), middle, atol=1e-8)


@given(grids(), st.tuples(*[st.integers(-9, 9)] * 3), places)
def test_a_window_is_a_part_of_the_same_lattice(
    grid: Grid, start: tuple[int, int, int], index: np.ndarray
) -> None:
    there = grid.window(start, (2, 3, 4))
    np.testing.assert_allclose(
        transform_points(there.index_to_world, index),
        transform_points(grid.index_to_world, index + start),
        atol=1e-8,
    )


# --- warps


@given(grids(2), matrices(), grids())
def test_the_inverse_of_a_linear_warp_is_the_inverse_matrix(
    grid: Grid, matrix: np.ndarray, moving: Grid
) -> None:
    back = affine_warp(grid, matrix, moving).inverse()
    points = moving.world_points()
    exact = transform_points(np.linalg.inv(matrix), points)
    # Of 0.1 % of a voxel, and of what float32 holds of the displacements, which may be far from the grid.
    far = max(largest(points - grid.centre), largest(exact - grid.centre)) / min(grid.extent)
    held = 1e-6 * largest(back.field) + 1e-5 * far * largest(affine_warp(grid, matrix).field)
    np.testing.assert_allclose(points + back.field, exact, atol=2e-3 * min(grid.spacing) + held)
    assert back.grid == moving
    assert back.moving_grid == grid


@given(bent_warps())
def test_the_inverse_leads_back(warp: Warp) -> None:
    """From every voxel y to the x with T(x) = y, wherever that lies in the field."""
    back = warp.inverse(warp.grid)
    here = warp.grid.world_points()
    there = here + back.field
    index = transform_points(warp.grid.world_to_index, there)
    inside = np.all((index >= 0) & (index <= np.array(warp.grid.size) - 1), axis=-1)
    assume(inside.any())
    off = np.linalg.norm(warp.transform_points(there) - here, axis=-1)[inside]
    assert off.max() <= 2e-3 * min(warp.grid.spacing) + 1e-4


@given(bent_warps(), bent_warps(), matrices())
def test_composition_goes_on_as_itk_does(first: Warp, second: Warp, matrix: np.ndarray) -> None:
    """From where the first warp leads, which is brought into the second one's field: beyond it ITK stays."""
    shift = np.float32(second.grid.centre - first.grid.centre)
    first = Warp(first.field + shift, first.grid)
    reached = (first.grid.world_points() + first.field).reshape(-1, 3)
    inside = _well_inside(second.grid, reached)
    assume(inside.any())
    for then, transform, at in ((second, second.to_sitk(), inside), (matrix, affine_transform(matrix), ...)):
        expected = np.array([transform.TransformPoint(point) for point in reached.tolist()])
        found = (first.grid.world_points() + first.compose(then).field).reshape(-1, 3)
        atol = 1e-6 * (largest(expected) + largest(reached)) + 1e-3
        np.testing.assert_allclose(found[at], expected[at], atol=atol)


def _well_inside(grid: Grid, points: np.ndarray) -> np.ndarray:
    """Where both interpolate, and float32 does not decide."""
    index = transform_points(grid.world_to_index, points)
    return np.all((index > 1e-3) & (index < np.array(grid.size) - 1 - 1e-3), axis=-1)


@given(grids(2), matrices(), matrices(), matrices())
def test_chains_may_be_taken_together_as_one_likes(
    grid: Grid, one: np.ndarray, two: np.ndarray, three: np.ndarray
) -> None:
    """And are, for matrices, their product."""
    whole = regkit.chain([one, two, three], reference=grid)
    points = grid.world_points()
    exact = transform_points(three @ two @ one, points)
    atol = 1e-6 * (largest(exact) + largest(points) + largest(transform_points(two @ one, points))) + 1e-5
    assert whole.grid == grid
    np.testing.assert_allclose(points + whole.field, exact, atol=atol)
    first = affine_warp(grid, one)
    for parts in ([regkit.chain([first, two]), three], [first, three @ two]):
        np.testing.assert_allclose(regkit.chain(parts).field, whole.field, atol=2 * atol)


@given(bent_warps(), st.lists(st.floats(0.1, 9), min_size=2, max_size=4))
def test_an_average_lies_where_its_weights_say(warp: Warp, weights: list[float]) -> None:
    warps = [Warp(k * warp.field, warp.grid) for k in range(len(weights))]
    found = regkit.average(warps, weights)
    share = np.dot(weights, range(len(weights))) / np.sum(weights)
    np.testing.assert_allclose(found.field, share * warp.field, atol=1e-5 * largest(warp.field) + 1e-7)


@given(
    arrays(np.float32, st.tuples(st.just(3), *[st.integers(2, 6)] * 3), elements=st.floats(-8, 8, width=32)),
    st.integers(0, 20),
)
def test_whatever_is_unfolded_folds_nowhere(field: np.ndarray, rounds: int) -> None:
    """Also where the rounds of smoothing do not suffice, and the field is drawn towards the identity."""
    flat = unfold(torch.from_numpy(field), rounds)
    assert not folded_points(flat).any()
    if not folded_points(torch.from_numpy(field)).any():
        np.testing.assert_array_equal(flat, field)


# --- files: what is written is what is read

WARPS = [("w.nii", "itk"), ("w.nii.gz", "itk"), ("w.mha", "itk"), ("w.nrrd", "itk"), ("w.nii.gz", "dispvect"),
         ("w.h5", "h5"), ("w.npz", "l2r"), ("w.nii.gz", "l2r")]  # fmt: skip


@pytest.mark.parametrize(("name", "format"), WARPS)
@few
@given(bent_warps(steepest=2.0), grids(), st.floats(-50, 50))
def test_warps(name: str, format: str, warp: Warp, moving: Grid, shift: float) -> None:
    warp = Warp(warp.field + np.float32(shift), warp.grid, moving)
    with folder() as path:
        write_warp(warp, path / name, format)
        if format != "l2r":
            alone = read_warp(path / name)
            assert alone.grid.same_as(warp.grid, 1e-3)
            np.testing.assert_array_equal(alone.field, warp.field)
        found = read_warp(path / name, warp.grid, moving)
    assert (found.grid, found.moving_grid) == (warp.grid, moving)
    far = largest(warp.grid.world_points()) + largest(moving.world_points()) + largest(warp.field)
    np.testing.assert_allclose(found.field, warp.field, atol=1e-6 * far if format == "l2r" else 0)


@given(bent_warps(), grids())
def test_displacements_in_voxels_of_the_moving_image(warp: Warp, moving: Grid) -> None:
    """Learn2Reg's, by their definition, and back."""
    warp = Warp(warp.field, warp.grid, moving)
    displacement = to_learn2reg(warp)
    at = (*(n - 1 for n in warp.grid.size),)
    target = transform_points(warp.grid.index_to_world, at) + warp.field[-1, -1, -1]
    expected = moving.blank().TransformPhysicalPointToContinuousIndex(target.tolist())
    np.testing.assert_allclose(displacement[at] + at, expected, rtol=1e-5, atol=1e-4)
    far = largest(warp.grid.world_points()) + largest(moving.world_points())
    back = from_learn2reg(displacement, warp.grid, moving)
    np.testing.assert_allclose(back.field, warp.field, atol=1e-6 * far)


@pytest.mark.parametrize("suffix", [".tfm", ".txt", ".mat", ".h5"])
@few
@given(matrices())
def test_linear_transforms(suffix: str, matrix: np.ndarray) -> None:
    with folder() as path:
        write_linear(matrix, path / f"a{suffix}")
        np.testing.assert_allclose(read_linear(path / f"a{suffix}"), matrix, atol=1e-9)


@st.composite
def _images(draw: st.DrawFn, types: tuple[str, ...]) -> Volume:
    """Of any values that a type has; those of fractions are of any size."""
    grid = draw(grids(4, 6))
    dtype = np.dtype(draw(st.sampled_from(types)))
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    if dtype.kind == "f":
        return Volume((rng.normal(size=grid.shape) * 10.0 ** draw(st.integers(-20, 20))).astype(dtype), grid)
    limits = np.iinfo(dtype)
    return Volume(rng.integers(limits.min, limits.max, grid.shape, dtype, endpoint=True), grid)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@few
@given(_images(("u1", "i1", "i2", "u2", "i4", "f4", "f8")))
def test_images(suffix: str, volume: Volume) -> None:
    with folder() as path:
        save_volume(volume, path / f"a{suffix}")
        found = load_volume(path / f"a{suffix}", "image")
        again = sitk.ReadImage(str(path / f"a{suffix}"))
    np.testing.assert_array_equal(found.array, volume.array)
    assert found.grid.same_as(volume.grid, 1e-3)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(again), volume.array)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha"])
@few
@given(_images(("u1", "u2", "i4")))
def test_labels(suffix: str, labels: Volume) -> None:
    labels = Volume(np.abs(labels.array // 2), labels.grid)
    with folder() as path:
        save_volume(labels, path / f"a{suffix}")
        found = load_labels(path / f"a{suffix}", "labels")
    np.testing.assert_array_equal(found.array, labels.array)


@given(
    grids(4, 6),
    st.integers(2, 4),
    st.sampled_from([0.0, 0.72, 2.0]),
    st.sampled_from(["u1", "i2", "f4"]),
    st.sampled_from([".nii", ".nii.gz"]),
    st.integers(0, 99),
)
def test_series(grid: Grid, count: int, step: float, dtype: str, suffix: str, seed: int) -> None:
    values = np.random.default_rng(seed).uniform(0, 200, (count, *grid.shape)).astype(dtype)
    with folder() as path:
        Frames(values, grid, step).save(path / f"a{suffix}")
        found = load_frames(path / f"a{suffix}", "series")
    np.testing.assert_array_equal(found.array, values)
    assert found.grid.same_as(grid, 1e-3)
    assert found.step == pytest.approx(step, rel=1e-6)


names = st.text(st.characters(codec="utf-8"), max_size=12)


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
@given(st.data())
def test_points(suffix: str, data: st.DataObject) -> None:
    """With names of any signs; those that end a line become a blank in a table."""
    points = data.draw(places)
    labels = data.draw(st.lists(names, min_size=len(points), max_size=len(points)))
    with folder() as path:
        write_points(path / f"a{suffix}", points, labels)
        np.testing.assert_allclose(read_points(path / f"a{suffix}"), points, atol=0.6e-4)
        file = open_points(path / f"a{suffix}")
        if any(labels):
            said = [label or f"F-{k}" for k, label in enumerate(labels, 1)]
            assert [one.split() for one in file.labels] == [one.split() for one in said]
        file.save(path / f"b{suffix}", points[::-1])
        np.testing.assert_allclose(read_points(path / f"b{suffix}"), points[::-1], atol=0.6e-4)


@given(places, places)
def test_pairs_of_points(fixed: np.ndarray, moving: np.ndarray) -> None:
    count = min(len(fixed), len(moving))
    rows = np.c_[fixed[:count], moving[:count]]
    with folder() as path:
        np.savetxt(path / "a.csv", rows, "%.6f", ",", header="fx,fy,fz,mx,my,mz", comments="")
        found = read_pairs(path / "a.csv")
    np.testing.assert_allclose(np.c_[found[0], found[1]], rows, atol=0.6e-6)


@pytest.mark.parametrize("suffix", [".vtk", ".vtu", ".stl", ".ply", ".obj"])
@given(
    arrays(np.float32, (4, 3), elements=st.floats(-500, 500, width=32), unique=True),
    st.sampled_from(["lps", "ras"]),
)
def test_meshes(suffix: str, corners: np.ndarray, space: str) -> None:
    """A tetrahedron, perhaps a flat one, is opened in its space, written with other corners, opened again."""
    meshio = pytest.importorskip("meshio", reason="meshes need meshio")
    triangles = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 1], [1, 3, 2]])
    with folder() as path:
        with np.errstate(invalid="ignore"):  # corners in a row
            meshio.Mesh(corners, [("triangle", triangles)]).write(path / f"a{suffix}")
        mesh = open_mesh(path / f"a{suffix}", space)
        sign = np.array([1, 1, 1] if space == "lps" else [-1, -1, 1])
        if suffix != ".stl":  # which has no corners of its own, but three for each triangle
            np.testing.assert_allclose(mesh.points * sign, corners, rtol=1e-6, atol=1e-4)
        moved = mesh.points + np.array([1.0, -2.0, 3.0])
        mesh.save(path / f"b{suffix}", moved)
        np.testing.assert_allclose(open_mesh(path / f"b{suffix}", space).points, moved, rtol=1e-6, atol=1e-4)


@st.composite
def _segmentations(draw: st.DrawFn, right_handed: bool = False) -> LayeredSegmentation:
    """Up to three segments, of which the last may overlap the others."""
    grid = draw(grids(4, 6, right_handed))
    first = draw(arrays(np.uint8, grid.shape, elements=st.integers(0, 2)))
    second = 3 * draw(arrays(np.uint8, grid.shape, elements=st.integers(0, 1)))
    first.flat[:2] = 1, 2
    second.flat[0] = 3
    text = st.text(st.characters(codec="ascii", min_codepoint=32, max_codepoint=126), min_size=1, max_size=9)
    colours = st.tuples(*[st.floats(0, 1)] * 3)
    segments = tuple(Segment(label, f"organ {draw(text)}".strip(), draw(colours)) for label in (1, 2, 3))
    return LayeredSegmentation([first, second], grid, segments)


@few
@given(_segmentations())
def test_segmentations_of_slicer(segmentation: LayeredSegmentation) -> None:
    with folder() as path:
        save_segments(segmentation, path / "a.seg.nrrd")
        found = load_segmentation(path / "a.seg.nrrd", "labels")
    assert found is not None
    assert found.grid.same_as(segmentation.grid, 1e-3)
    for label in (1, 2, 3):
        np.testing.assert_array_equal(_voxels(found, label), _voxels(segmentation, label))
    for one, other in zip(found.segments, segmentation.segments, strict=True):
        assert (one.label, one.name) == (other.label, other.name)
        np.testing.assert_allclose(one.colour, other.colour, atol=1e-5)


def _voxels(segmentation: LayeredSegmentation, label: int) -> np.ndarray:
    return np.any([layer == label for layer in segmentation.layers], axis=0)


@few
@given(_segmentations(right_handed=True))
def test_segmentations_of_dicom(segmentation: LayeredSegmentation) -> None:
    """A file's voxels end where its labels do."""
    pytest.importorskip("highdicom", reason="DICOM needs highdicom")
    with folder() as path:
        image = Volume(segmentation.layers[0].astype(np.int16), segmentation.grid)
        save_volume(image, f"{path / 'fixed'}/")
        save_segments(segmentation, path / "a.dcm", path / "fixed")
        found = load_segmentation(path / "a.dcm", "labels")
    assert found is not None
    for label in (1, 2, 3):
        places = [
            one.grid.world_points()[_voxels(one, label)].round(2) + 0.0 for one in (found, segmentation)
        ]
        assert {tuple(point) for point in places[0]} == {tuple(point) for point in places[1]}
    assert [one.name for one in found.segments] == [one.name for one in segmentation.segments]


@few
@given(_images(("i2",)))
def test_series_of_dicom(volume: Volume) -> None:
    """Written against the order of its slices where the axes are left-handed, which DICOM's are not."""
    pytest.importorskip("pydicom", reason="DICOM needs pydicom")
    with folder() as path:
        save_volume(volume, f"{path / 'out'}/")
        found = load_image(path / "out", "image")
    points = volume.grid.world_points()
    index = np.rint(transform_points(found.grid.world_to_index, points)).astype(int)
    np.testing.assert_allclose(transform_points(found.grid.index_to_world, index), points, atol=1e-2)
    values = found.array[index[..., 2], index[..., 1], index[..., 0]]
    np.testing.assert_array_equal(values, volume.array)
