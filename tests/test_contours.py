"""DICOM structure sets: contours become the voxels whose centres they surround."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_cases import STACK, write_structures
from matplotlib.path import Path as Polygon
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.contours import fill
from regkit.io.images import LabelledVolume, load_labels, load_mask, load_segmentation


def box(low: tuple[float, float], high: tuple[float, float], k: float, grid: Grid = STACK) -> np.ndarray:
    """The corners of a rectangle in voxels of slice ``k``, LPS mm."""
    (x0, y0), (x1, y1) = low, high
    return transform_points(
        grid.index_to_world, np.array([[x0, y0, k], [x1, y0, k], [x1, y1, k], [x0, y1, k]], float)
    )


def test_polygons_are_filled_as_matplotlib_finds_points_inside(rng: np.random.Generator) -> None:
    y, x = np.mgrid[:40, :50]
    centres = np.stack([x, y], axis=-1).reshape(-1, 2)
    for corners in (3, 4, 7, 200):
        polygons = [rng.uniform(-10, 60, (corners, 2)) for _ in range(3)]
        wanted = np.zeros(40 * 50, bool)
        for polygon in polygons:  # an odd number of crossings, which contains_points does not count
            inside = np.zeros(40 * 50, bool)
            for triangle in range(1, corners - 1):
                inside ^= Polygon(polygon[[0, triangle, triangle + 1]]).contains_points(centres)
            wanted ^= inside
        assert (fill(polygons, (40, 50)).ravel() != wanted).sum() <= 2  # centres on an edge


@pytest.mark.parametrize("turned", [False, True])
def test_regions_are_filled_on_the_image(turned: bool, tmp_path: Path) -> None:
    grid = STACK
    if turned:
        turn = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
        grid = replace(STACK, direction=tuple((turn * [1, -1, -1]).ravel()))
    ring = [
        c
        for k in (3, 4, 5)
        for c in (box((2.5, 2.5), (9.5, 9.5), k, grid), box((4.5, 4.5), (6.5, 6.5), k, grid))
    ]
    inner = [box((4.5, 4.5), (6.5, 6.5), k, grid) for k in (3, 4, 5)]
    path = write_structures(tmp_path / "rt.dcm", {"wall": ring, "lumen": inner})
    volume = load_labels(path, "fixed labels", grid)
    wanted = np.zeros(STACK.shape, int)
    wanted[3:6, 3:10, 3:10] = 1
    wanted[3:6, 5:7, 5:7] = 2
    np.testing.assert_array_equal(volume.array, wanted)
    assert isinstance(volume, LabelledVolume)
    assert [(s.label, s.name, s.colour) for s in volume.segments] == [
        (1, "wall", (1.0, 128 / 255, 0.0)),
        (2, "lumen", (1.0, 128 / 255, 0.0)),
    ]
    assert load_mask(path, "fixed mask", grid).array.sum() == (wanted > 0).sum()


def test_contours_farther_apart_than_slices_fill_those_between(tmp_path: Path) -> None:
    body = [box((1.5, 1.5), (12.5, 12.5), k) for k in (2, 4, 6)]
    organ = [box((3.5, 3.5), (6.5, 6.5), k) for k in (4, 6)]
    path = write_structures(tmp_path / "rt.dcm", {"body": body, "organ": organ})
    with pytest.warns(UserWarning, match="overlap in .* the smallest of them"):
        array = load_labels(path, "labels", STACK).array
    assert np.flatnonzero((array == 1).any(axis=(1, 2))).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert np.flatnonzero((array == 2).any(axis=(1, 2))).tolist() == [3, 4, 5, 6, 7]
    found = load_segmentation(path, "labels", STACK)
    assert found is not None and len(found.layers) == 2
    assert (found.layers[0] == 1).sum() == 7 * 11 * 11


def test_without_an_image_contours_get_a_grid_of_their_own(tmp_path: Path) -> None:
    # A square of 20 mm, five planes of 3 mm: 20 * 20 * 15 mm of volume.
    square = np.array([[-10.0, -10, 0], [10, -10, 0], [10, 10, 0], [-10, 10, 0]])
    turn = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix()
    contours = [(square + [5, 7, 3.0 * k]) @ turn.T for k in range(5)]
    volume = load_labels(write_structures(tmp_path / "rt.dcm", {"cube": contours}), "moving labels")
    assert volume.array.sum() * np.prod(volume.grid.spacing) == pytest.approx(20 * 20 * 15, rel=0.06)
    where = transform_points(volume.grid.index_to_world, np.argwhere(volume.array)[:, ::-1].astype(float))
    np.testing.assert_allclose(where.mean(axis=0), turn @ [5, 7, 6], atol=0.6)


def test_structure_sets_that_cannot_be_filled_are_refused(tmp_path: Path) -> None:
    line = [np.array([[0.0, 0, 0], [1, 0, 0]])]
    with pytest.raises(RegkitError, match="without closed planar contours"):
        load_labels(write_structures(tmp_path / "a.dcm", {"line": line}), "labels")
    crossed = [box((1, 1), (5, 5), 3), box((1, 1), (5, 5), 3)[:, [0, 2, 1]]]
    with pytest.raises(RegkitError, match="contours are not parallel"):
        load_labels(write_structures(tmp_path / "b.dcm", {"crossed": crossed}), "labels")
    away = [box((100, 100), (110, 110), 3)]
    with pytest.raises(RegkitError, match="none of whose regions lies in the image"):
        load_labels(write_structures(tmp_path / "c.dcm", {"away": away}), "labels", STACK)
