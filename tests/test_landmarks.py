"""Landmarks as soft constraints: where they lie, how far they are followed, and the start that they give."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, transform_points
from regkit.features.maps import mind_ssc
from regkit.ops.folding import corner_jacobian
from regkit.ops.resample import Source
from regkit.ops.sampling import index_grid, sample
from regkit.solver.landmarks import Landmarks
from regkit.solver.linear import align_landmarks

_SHAPE = (24, 20, 28)


def _one(at: tuple[float, ...], to: tuple[float, ...], weight: float = 1.0) -> Landmarks:
    return Landmarks(torch.tensor(at).view(3, 1), torch.tensor(to).view(3, 1), weight)


def _matrix(degrees: tuple[float, float, float], shift: tuple[float, float, float]) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


def test_displacements_lead_through_the_start_to_the_partners(
    oblique_grid: Grid, rng: np.random.Generator
) -> None:
    matrix = _matrix((5, -8, 30), (40, -3, 7)) @ np.diag([1.1, 0.9, 1.0, 1.0])
    fixed = transform_points(oblique_grid.index_to_world, rng.uniform(2, 9, (6, 3)))
    moving = rng.normal(size=(6, 3)) * 50
    marks = Landmarks.on(oblique_grid, matrix, fixed, moving, 1.0, torch.device("cpu"))
    ends = (marks.at + marks.displacement).double().numpy().T
    np.testing.assert_allclose(
        transform_points(matrix @ oblique_grid.index_to_world, ends), moving, atol=1e-3
    )


def test_on_coarser_cells_they_ask_for_the_same(oblique_grid: Grid) -> None:
    marks = _one((6.5, 7.25, 4.0), (2.0, -3.0, 1.0))
    cells, coarse = oblique_grid.pooled(2), marks.pooled(2)
    ends: list[list[np.ndarray]] = []
    for one, grid in ((marks, oblique_grid), (coarse, cells)):
        at, end = one.at.numpy().T, (one.at + one.displacement).numpy().T
        points = [transform_points(grid.index_to_world, p) for p in (at, end)]
        ends.append(points)
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-4)


@pytest.mark.parametrize("weight", [0.3, 1.0, 5.0])
def test_a_field_is_pulled_around_a_landmark_and_not_far_from_it(weight: float) -> None:
    marks = _one((6.0, 8.0, 10.0), (3.0, 0.0, -1.0), weight)
    field = torch.zeros(3, *_SHAPE)
    found = marks.pulled(field)
    share = 1 / (1 + 0.3 / weight)
    torch.testing.assert_close(found[:, 10, 8, 6], share * torch.tensor([3.0, 0.0, -1.0]))
    torch.testing.assert_close(
        found[0, 10, 8, 9], torch.tensor(3.0 * share * np.exp(-0.5 * (3 / 4.0) ** 2)).float()
    )
    assert float(found[:, :, :, -6:].abs().max()) < 1e-3
    torch.testing.assert_close(marks.kept(found, torch.zeros_like(found)), share * found)


def test_landmarks_that_contradict_their_neighbours_are_not_followed() -> None:
    at = torch.tensor([[10.0, 10.5], [8.0, 8.0], [10.0, 10.0]])
    apart = Landmarks(at, torch.tensor([[4.0, -4.0], [0.0, 0.0], [0.0, 0.0]]))
    found = apart.pulled(torch.zeros(3, *_SHAPE))
    assert float(found.abs().max()) < 1.2  # of the 4 cells that they ask for
    assert float(corner_jacobian(found, (0, 0, 0)).min()) > 0.3


def test_the_cost_is_the_weighted_square_of_what_is_missing_and_falls_where_the_field_follows(
    rng: np.random.Generator,
) -> None:
    marks = Landmarks(
        torch.tensor(rng.uniform(2, 17, (3, 5)), dtype=torch.float32),
        torch.tensor(rng.normal(size=(3, 5)), dtype=torch.float32),
        0.5,
    )
    field = torch.zeros(3, *_SHAPE, requires_grad=True)
    cost = marks.term(_SHAPE)(field)
    assert float(cost.detach()) == pytest.approx(50 * float(marks.displacement.square().sum()), rel=1e-5)
    (gradient,) = torch.autograd.grad(cost, field)
    assert float(marks.term(_SHAPE)(field.detach() - 1e-4 * gradient)) < float(cost.detach())
    wanted = sample_of(marks)
    assert float(marks.after(wanted).displacement.abs().max()) < 1e-4
    assert float(marks.term(_SHAPE)(wanted)) < 1e-6


def sample_of(marks: Landmarks) -> torch.Tensor:
    """A field that is linear, as landmarks are at their places; they are made to ask for it."""
    field = 0.1 * index_grid(_SHAPE) - 1
    wanted = sample(field, marks.at[:, :, None, None])[:, :, 0, 0]
    marks.displacement.copy_(wanted)
    return field


def test_the_cost_of_a_coarser_lattice() -> None:
    marks = _one((9.5, 8.5, 10.5), (1.0, 2.0, 3.0))
    coarse = torch.zeros(3, *(n // 2 for n in _SHAPE))
    coarse[:, 5, 4, 4] = torch.tensor([1.0, 2.0, 3.0])  # its cells are at 0.5, 2.5, ... of the finer ones
    whole = Landmarks(torch.tensor([[8.5], [8.5], [10.5]]), marks.displacement)
    assert float(whole.term(coarse.shape[1:], 2)(coarse)) < 1e-6
    assert float(marks.term(coarse.shape[1:], 2)(coarse)) == pytest.approx(100 * 14 / 4, rel=1e-5)


def _pair(rng: np.random.Generator, matrix: np.ndarray, small: bool) -> tuple[Source, Source]:
    """Blobs, and the same seen through a map; the moving image has the larger field of view unless small."""
    size = 40 if small else 56
    wide = gaussian_filter(rng.random((90, 90, 90)), 2.5)
    wide = (wide - wide.min()) / np.ptp(wide)
    world = Grid((90, 90, 90), (2.0,) * 3, (-90.0,) * 3)
    whole = torch.from_numpy(wide.astype(np.float32))
    sources = []
    for n, to_world in ((48, np.eye(4)), (size, np.linalg.inv(matrix))):
        middle = np.zeros(3) if n == 48 else matrix[:3, 3]
        grid = Grid((n, n, n), (2.0,) * 3, tuple(middle - n + 1.0))
        index = transform_points(world.world_to_index @ to_world, grid.world_points())
        image = sample(whole[None], torch.from_numpy(index.astype(np.float32)).movedim(-1, 0))[0]
        sources.append(Source(image, None, grid))
    return sources[0], sources[1]


@pytest.mark.parametrize("small", [False, True])
def test_landmarks_find_a_turn_that_no_search_is_needed_for(rng: np.random.Generator, small: bool) -> None:
    matrix = _matrix((70, -20, 100), (300, -200, 50))
    fixed, moving = _pair(rng, matrix, small)
    points = rng.uniform(-25, 25, (5, 3))
    targets = transform_points(matrix, points) + rng.normal(size=(5, 3)) * 2
    start = align_landmarks(fixed, moving, points, targets, 2.0, mind_ssc)
    assert start.origin == "landmarks"
    inside = rng.uniform(-30, 30, (50, 3))
    error = transform_points(start.matrix, inside) - transform_points(matrix, inside)
    assert np.linalg.norm(error, axis=1).mean() < 0.5  # mm, where the landmarks are 2 mm off


def test_one_landmark_gives_a_translation(rng: np.random.Generator) -> None:
    matrix = _matrix((4, 3, -6), (300, -200, 50))
    fixed, moving = _pair(rng, matrix, False)
    points = np.array([[5.0, -8.0, 11.0]])
    start = align_landmarks(fixed, moving, points, transform_points(matrix, points), 2.0, mind_ssc)
    error = transform_points(start.matrix, points * 2) - transform_points(matrix, points * 2)
    assert np.linalg.norm(error) < 1.0


def test_landmarks_of_another_frame_are_refused(rng: np.random.Generator) -> None:
    fixed, moving = _pair(rng, np.eye(4), False)
    points = rng.uniform(-25, 25, (5, 3))
    with pytest.raises(RegkitError, match="where the landmarks lie on each other"):
        align_landmarks(fixed, moving, points, points + 500, 2.0, mind_ssc)
