"""The picture of a registration: the right way up on any grid, to scale, complete or absent."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.io.images import Volume
from regkit.viz.figure import _FOLD, _PALETTE, registration_figure
from regkit.viz.planes import PLANES, Plane, cut, view, window

GRID = Grid((40, 32, 24), (2.0, 2.0, 3.0), (-40, -30, 100))


def ball(grid: Grid, centre: np.ndarray, radius: float, value: float = 1.0) -> np.ndarray:
    """``value`` within ``radius`` mm of a world point, else 0."""
    return value * (np.linalg.norm(grid.world_points() - centre, axis=-1) < radius)


def head(grid: Grid, seed: int = 0) -> Volume:
    """A bright ball with some noise, and a dark margin."""
    noise = np.random.default_rng(seed).normal(0, 3, grid.shape)
    return Volume((ball(grid, grid.centre, 28, 100) + noise).astype(np.float32), grid, "scan")


def pixels_of(path: Path, colour: tuple[float, ...], tolerance: float = 0.12) -> int:
    image = matplotlib.image.imread(path)[..., :3]
    return int((np.abs(image - np.asarray(colour)).max(axis=-1) < tolerance).sum())


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_left_front_and_head_are_where_a_radiologist_expects_them(oblique_grid: Grid, plane: Plane) -> None:
    grid = oblique_grid
    filled = Volume(np.full(grid.shape, 50.0) + np.random.default_rng(0).normal(size=grid.shape), grid)
    box, _ = view(filled, None)
    # A spot to the left, to the front and above the middle, by more than its own radius.
    spot = grid.centre + np.array([3.0, -3.0, 3.0])
    volume = Volume(ball(grid, spot, 2.4).astype(np.float32), grid)
    picture = np.nan_to_num(cut(volume, plane.grid(box, spot, 0.25)))
    rows, columns = np.nonzero(picture > 0.5)
    assert rows.size > 20
    down, right = (rows.mean() + 0.5) / picture.shape[0], (columns.mean() + 0.5) / picture.shape[1]
    assert down < 0.48  # the front in the axial plane, the head in the others
    assert right > 0.52 if plane.name != "sagittal" else right < 0.48  # the left; the front


@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.name)
def test_a_pixel_is_as_wide_as_high_and_as_long_as_it_says(oblique_grid: Grid, plane: Plane) -> None:
    # An image of one world coordinate is linear, so that interpolating it is exact.
    grid = oblique_grid
    box = np.stack([grid.centre - 2, grid.centre + 2])
    signs = {"axial": (1, 1), "coronal": (1, -1), "sagittal": (1, -1)}[plane.name]
    for axis in range(3):
        coordinate = Volume(grid.world_points()[..., axis], grid)
        picture = cut(coordinate, plane.grid(box, grid.centre, 0.5))
        assert picture.shape == (8, 8)
        to_the_right = signs[0] * 0.5 * (axis == plane.right)
        downwards = signs[1] * 0.5 * (axis == plane.down)
        np.testing.assert_allclose(np.diff(picture, axis=1), to_the_right, atol=1e-3)
        np.testing.assert_allclose(np.diff(picture, axis=0), downwards, atol=1e-3)


def test_the_view_keeps_what_is_seen_and_cuts_through_the_labels() -> None:
    labels = np.zeros(GRID.shape, np.uint8)
    labels[5:8, 20:26, 8:14] = 1
    labels[5:8, 20:26, 20:24] = 2
    labels[15:20, 4:8, 8:12] = 3
    labels[15:20, 22:26, 8:14] = 4
    box, middle = view(head(GRID), Volume(labels, GRID))
    index = transform_points(GRID.world_to_index, middle)
    assert 19.5 <= index[1] <= 26.5  # y: labels 1, 2 and 4
    assert 7.5 <= index[0] <= 14.5  # x: labels 1, 3 and 4
    assert (box[0] < GRID.centre - 28).all()
    assert (box[1] > GRID.centre + 28).all()
    assert (box[1] - box[0] <= GRID.extent).all()
    _, middle = view(head(GRID), None)
    np.testing.assert_allclose(middle, GRID.centre, atol=2)


def test_the_picture_is_written_whole(tmp_path: Path) -> None:
    labels = Volume(ball(GRID, GRID.centre, 15).astype(np.uint8), GRID)
    path = tmp_path / "picture.png"
    path.write_text("old")
    registration_figure(
        head(GRID), head(GRID, 1), head(GRID, 2), path, labels, labels, labels, title="a title"
    )
    image = matplotlib.image.imread(path)
    assert image.shape[1] > 1000
    assert 0.3 < image.shape[0] / image.shape[1] < 1.2
    assert path.stat().st_size < 1_500_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["picture.png"]
    assert image[..., :3].std() > 0.1


def test_the_volume_column_is_there_only_if_asked_for_and_shows_folds(tmp_path: Path) -> None:
    scan = head(GRID)
    determinant = np.ones(GRID.shape, np.float32)
    determinant[10:14, 12:20, 16:24] = -0.5
    without, with_, smooth = (tmp_path / f"{name}.png" for name in ("without", "with", "smooth"))
    registration_figure(scan, scan, scan, without)
    registration_figure(scan, scan, scan, with_, determinant=Volume(determinant, GRID))
    registration_figure(scan, scan, scan, smooth, determinant=Volume(np.ones(GRID.shape), GRID))
    narrow, wide = matplotlib.image.imread(without), matplotlib.image.imread(with_)
    assert wide.shape[1] / narrow.shape[1] == pytest.approx(5 / 4, abs=0.02)
    assert pixels_of(with_, _FOLD) > 500
    assert pixels_of(smooth, _FOLD) == pixels_of(without, _FOLD) == 0


def test_growth_and_shrinkage_have_their_colours(tmp_path: Path) -> None:
    scan = head(GRID)
    determinant = np.ones(GRID.shape)
    determinant[..., :20], determinant[..., 20:] = 0.5, 2.0  # x < middle: the patient's right shrinks
    path = tmp_path / "picture.png"
    registration_figure(scan, scan, scan, path, determinant=Volume(determinant, GRID))
    image = matplotlib.image.imread(path)[..., :3]
    column = image[: int(0.4 * image.shape[0]), int(0.81 * image.shape[1]) :]  # the axial plane
    blue = np.argwhere(column[..., 2] > column[..., 0] + 0.2)
    orange = np.argwhere(column[..., 0] > column[..., 2] + 0.2)
    assert len(blue) > 1000
    assert len(orange) > 1000
    assert np.median(blue[:, 1]) < np.median(orange[:, 1])


def test_lines_are_those_of_the_fixed_labels_and_areas_those_of_the_moving_ones(tmp_path: Path) -> None:
    scan = Volume(head(GRID).array * 0 + ball(GRID, GRID.centre, 28, 0.01) + 1, GRID, "flat")
    one, other = (ball(GRID, GRID.centre + np.array([dx, 0, 0]), 9) for dx in (-15, 15))
    labels = Volume((one + 2 * other).astype(np.uint8), GRID)
    plain, lines = tmp_path / "plain.png", tmp_path / "lines.png"
    registration_figure(scan, scan, scan, plain)
    registration_figure(scan, scan, scan, lines, fixed_labels=labels)
    for colour in _PALETTE[:2]:
        assert pixels_of(plain, to_rgb(colour)) == 0
        assert pixels_of(lines, to_rgb(colour)) > 300
    assert pixels_of(lines, to_rgb(_PALETTE[2])) == 0

    areas = tmp_path / "areas.png"
    registration_figure(scan, scan, scan, areas, labels, before_labels=labels)
    changed = np.abs(matplotlib.image.imread(areas) - matplotlib.image.imread(lines)).max(axis=(0, 2)) > 0.05
    columns = np.flatnonzero(changed) / len(changed)
    assert 0.25 < columns.min() < columns.max() < 0.52  # the second of four columns alone


def test_a_moving_image_out_of_sight_is_black(tmp_path: Path) -> None:
    scan = head(GRID)
    far = Volume(scan.array, Grid(GRID.size, GRID.spacing, (900, 900, 900)), "far")
    path = tmp_path / "picture.png"
    registration_figure(scan, far, scan, path)
    image = matplotlib.image.imread(path)
    rows, width = slice(int(0.2 * image.shape[0]), int(0.9 * image.shape[0])), image.shape[1]
    shown = [image[rows, int((k + 0.2) / 4 * width) : int((k + 0.8) / 4 * width), :3].max() for k in range(4)]
    assert shown[1] < 0.1
    assert min(shown[0], shown[2], shown[3]) > 0.8


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_flat_images_and_empty_labels_make_a_picture_too(tmp_path: Path, value: float) -> None:
    grid = Grid((5, 4, 4))
    flat = Volume(np.full(grid.shape, value, np.float32), grid, "flat")
    empty = Volume(np.zeros(grid.shape, np.uint8), grid)
    registration_figure(flat, flat, flat, tmp_path / "a.png", empty, empty, empty, flat)
    assert matplotlib.image.imread(tmp_path / "a.png").size


def test_ct_is_windowed_for_soft_tissue_unless_it_is_mostly_lung(rng: np.random.Generator) -> None:
    body = rng.normal(50, 20, (20, 20, 20))
    body[:, :8] = -1000  # air beside the patient
    body[:, 18:] = 700
    lung = body.copy()
    lung[:, 9:17] = -850
    assert window(body) == (-180, 280)
    assert window(lung)[0] < -900
    low, high = window(np.abs(body) / 7)  # an MR: percentiles
    assert 0 <= low < 5
    assert 90 < high < 150


def test_where_it_cannot_write_it_says_so_before_work(tmp_path: Path) -> None:
    scan = head(GRID)
    with pytest.raises(RegkitError, match=r"must end in \.png"):
        registration_figure(scan, scan, scan, tmp_path / "picture.jpg")
    with pytest.raises(RegkitError, match="not a folder"):
        registration_figure(scan, scan, scan, tmp_path / "none" / "picture.png")
    assert not list(tmp_path.iterdir())


def test_matplotlib_is_not_imported_before_it_is_needed() -> None:
    code = "import regkit.viz.figure, sys; sys.exit('matplotlib' in sys.modules)"
    root = Path(__file__).resolve().parents[1]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0
