"""Images seen from a working grid: values against SimpleITK, weights against geometry, blur and aliasing."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation
from warp_cases import FIXED, MOVING, affine_map, texture

from regkit.core.geometry import Grid, transform_points
from regkit.ops.resample import Source, resample


def _source(grid: Grid, mask: np.ndarray | None = None) -> Source:
    inside = None if mask is None else torch.from_numpy(mask.astype(np.float32))
    return Source(torch.from_numpy(texture(grid) / 2000 + 0.5), inside, grid)


def _index_in_source(matrix: np.ndarray) -> np.ndarray:
    """Where each voxel of FIXED lies in MOVING, (z, y, x, 3) of components (x, y, z)."""
    return transform_points(MOVING.world_to_index @ matrix, FIXED.world_points())


@pytest.fixture
def matrix() -> np.ndarray:
    return affine_map(12, (4, -6, 3))


def test_values_are_those_of_simpleitk_through_the_same_matrix(matrix: np.ndarray) -> None:
    source = _source(MOVING)
    found, weight = resample(source, matrix, FIXED)
    transform = sitk.AffineTransform(3)
    transform.SetMatrix(matrix[:3, :3].ravel().tolist())
    transform.SetTranslation(matrix[:3, 3].tolist())
    moving = MOVING.to_sitk(source.image.numpy())
    expected = sitk.GetArrayFromImage(sitk.Resample(moving, FIXED.blank(), transform, sitk.sitkLinear, -9.0))
    index = _index_in_source(matrix)
    well_inside = ((index > 0.01) & (index < np.array(MOVING.size) - 1.01)).all(-1)
    assert 0.2 < well_inside.mean() < 0.95
    np.testing.assert_allclose(found.numpy()[well_inside], expected[well_inside], atol=2e-5)
    # ITK writes its default where the image ends, half a voxel beyond the outer centres.
    clear = (np.abs(index + 0.5) > 1e-3).all(-1) & (np.abs(index - np.array(MOVING.size) + 0.5) > 1e-3).all(
        -1
    )
    assert ((weight.numpy() > 0) == (expected != -9.0))[clear].all()
    assert set(np.unique(weight.numpy())) == {0.0, 1.0}


def test_the_image_goes_on_by_its_border_values_where_it_ends() -> None:
    grid = Grid((4, 4, 4))
    source = Source(torch.arange(64.0).reshape(4, 4, 4), None, grid)
    image, weight = resample(source, np.eye(4), Grid((10, 10, 10), origin=(-3.0, -3.0, -3.0)))
    edges = np.clip(np.arange(10) - 3, 0, 3)
    np.testing.assert_allclose(image.numpy(), source.image.numpy()[np.ix_(edges, edges, edges)], atol=1e-4)
    assert weight.sum() == 64
    assert weight[3:7, 3:7, 3:7].all()


def test_a_mask_is_seen_by_its_nearest_voxel(matrix: np.ndarray, rng: np.random.Generator) -> None:
    mask = rng.random(MOVING.shape) > 0.4
    _, everywhere = resample(_source(MOVING), matrix, FIXED)
    _, found = resample(_source(MOVING, mask), matrix, FIXED)
    index = _index_in_source(matrix)
    nearest = np.clip(np.round(index).astype(int), 0, np.array(MOVING.size) - 1)
    expected = mask[nearest[..., 2], nearest[..., 1], nearest[..., 0]] * everywhere.numpy()
    clear = (np.abs(index - np.floor(index) - 0.5) > 1e-3).all(-1)
    assert (found.numpy() == expected)[clear].all()
    assert clear.mean() > 0.9


def test_a_grid_as_fine_as_the_image_leaves_it_as_it_is() -> None:
    source = _source(Grid((12, 10, 9), (2.0, 2.0, 3.0)))
    assert source.smoothed_for(2.0) is source
    assert source.smoothed_for(0.5) is source


def test_blur_is_that_of_the_grid_and_only_along_finer_axes() -> None:
    """A point becomes a Gaussian whose variance is that of the coarser voxel less that of the image's own."""
    grid = Grid((41, 41, 21), (1.0, 2.0, 4.0))
    point = torch.zeros(grid.shape)
    point[10, 20, 20] = 1
    mask = torch.ones(grid.shape)
    found = Source(point, mask, grid).smoothed_for(4.0)
    assert found.grid == grid and found.mask is mask
    for axis, (size, spacing) in enumerate(zip(grid.shape, (4.0, 2.0, 1.0), strict=True)):
        at = torch.arange(size) * spacing
        profile = found.image.sum(dim=[k for k in range(3) if k != axis])
        variance = float((profile * at**2).sum() - (profile * at).sum() ** 2)
        assert variance == pytest.approx(0.25 * (16 - spacing**2), rel=0.05, abs=1e-6)
    assert float(found.image.sum()) == pytest.approx(1, rel=1e-4)


def test_detail_finer_than_the_grid_does_not_turn_into_something_else() -> None:
    """Stripes of two voxels vanish on a grid eight times coarser instead of showing as slow waves."""
    grid = Grid((64, 64, 64), (1.0, 1.0, 1.0), tuple(np.array((3.0, 1.0, -7.0))))
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("z", 3, degrees=True).as_matrix()
    x = torch.arange(64) % 2
    source = Source(x.float().expand(64, 64, 64).contiguous(), None, grid)
    coarse = grid.working(7.5)
    raw, _ = resample(source, turn, coarse)
    found, weight = resample(source.smoothed_for(7.5), turn, coarse)
    inner = (slice(1, -1),) * 3
    assert weight[inner].all()
    assert raw[inner].std() > 0.1
    assert found[inner].std() < 0.01


def test_planes_that_resampling_left_empty_are_no_data(rng: np.random.Generator) -> None:
    """And a margin that ends gently is."""
    array = rng.random((6, 7, 8)).astype(np.float32)
    array[:2], array[..., -1] = -1000, -1000
    grid = Grid((8, 7, 6), (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    mask = torch.ones(6, 7, 8)
    found = Source(torch.from_numpy(array), mask, grid).without_filling(array)
    assert found.image.equal(torch.from_numpy(array[2:, :, :-1]))
    assert found.mask is not None
    assert found.mask.shape == found.image.shape
    assert found.grid == Grid((7, 7, 4), grid.spacing, (4.0, 5.0, 12.0))

    gentle = np.zeros((12, 12, 12), dtype=np.float32)
    gentle[3:9, 3:9, 3:9] = 1
    gentle[2, 6, 6] = gentle[9, 6, 6] = gentle[6, 2, 6] = gentle[6, 9, 6] = gentle[6, 6, 2] = gentle[
        6, 6, 9
    ] = 1
    for whole in (gentle, np.zeros_like(gentle), rng.random((4, 4, 4)).astype(np.float32)):
        source = Source(torch.from_numpy(whole), None, Grid(whole.shape[::-1]))
        assert source.without_filling(whole) is source


def _askew(
    shape: tuple[int, int, int], value: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Noise as a turned field of view holds it, one value around it; and where the noise is."""
    turn = Rotation.from_euler("xyz", [8, -6, 7], degrees=True).as_matrix()
    middle = (np.asarray(shape) - 1) / 2
    places = (np.moveaxis(np.indices(shape), 0, -1) - middle) @ turn
    inside = (np.abs(places) <= middle).all(-1)
    return np.where(inside, rng.normal(100, 10, shape), value).astype(np.float32), inside


@pytest.mark.parametrize("shape", [(40, 44, 48), (16, 90, 100)])
def test_the_corners_beside_a_turned_field_of_view_are_no_data(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    array, inside = _askew(shape, 0.0, rng)
    array[inside & (rng.random(shape) < 0.05)] = 0  # air has the value of the filling
    source = Source(torch.from_numpy(array), None, Grid(shape[::-1], (1.0, 1.0, 1.0)))
    found = source.without_filling(array)
    assert found.mask is not None
    counted = found.mask.numpy() > 0
    assert counted[~inside].mean() < 0.06  # no more than where a wedge is two voxels thin
    assert ndimage.binary_erosion(inside, np.ones((9, 9, 9)), border_value=1)[~counted].mean() < 0.01
    half = torch.zeros(shape)
    half[: shape[0] // 2] = 1
    both = Source(source.image, half, source.grid).without_filling(array).mask
    torch.testing.assert_close(both, half * found.mask)


def test_what_ends_by_itself_is_no_filling(rng: np.random.Generator) -> None:
    shape = (64, 60, 56)
    z, y, x = (np.arange(n) - (n - 1) / 2 for n in shape)
    radius = np.sqrt((z[:, None, None] / 28) ** 2 + (y[:, None] / 27) ** 2 + (x / 25) ** 2)
    round_view = np.broadcast_to(np.hypot(y[:, None] / 30, x / 28) < 1, shape)
    noise = rng.normal(100, 10, shape).astype(np.float32)
    for inside in (radius < 1, round_view, rng.random(shape) < 0.5, np.ones(shape, bool)):
        array = np.where(inside, noise, np.float32(0))
        source = Source(torch.from_numpy(array), None, Grid(shape[::-1], (1.0, 1.0, 1.0)))
        assert source.without_filling(array) is source
