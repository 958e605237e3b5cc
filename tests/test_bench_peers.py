"""The peers of the benchmark recover a known map, and any command is a method."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from regkit.bench.case import Case, Side
from regkit.bench.external import External
from regkit.bench.method import Inputs, Outcome
from regkit.bench.peers import PEERS, Pair
from regkit.errors import RegkitError
from regkit.formats import write_linear
from regkit.geometry import Grid, transform_points
from regkit.images import Volume, save_image
from regkit.warp import Warp

# itk and convexAdam use what their dependencies have deprecated, and save_image's readers are ours alone.
pytestmark = pytest.mark.filterwarnings("default")
CENTRE = np.array([30.0, -80.0, 210.0])


def grid(size: tuple[int, int, int], spacing: tuple[float, float, float], degrees: list[int]) -> Grid:
    direction = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    direction[:, 1] *= -1
    origin = CENTRE - direction * spacing @ ((np.array(size) - 1) / 2)
    return Grid(size, spacing, tuple(origin), tuple(direction.ravel()))


FIXED = grid((48, 40, 36), (2.1, 2.5, 2.9), [20, -35, 50])
MOVING = grid((40, 46, 44), (2.6, 2.2, 2.3), [-15, 30, 5])


def linear() -> np.ndarray:
    """10 degrees about an oblique axis through CENTRE, and some mm."""
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([4, 8, -4], degrees=True).as_matrix()
    matrix[:3, 3] = CENTRE - matrix[:3, :3] @ CENTRE + (9, -8, 10)
    return matrix


def tissue(points: np.ndarray) -> np.ndarray:
    """0 outside, 1 in the body, others in some organs; soft edges; LPS mm."""
    rng = np.random.default_rng(7)
    found = np.zeros(points.shape[:-1])
    shapes = [((0.0, 0.0, 0.0), (34.0, 28.0, 38.0), 1.0)]
    for _ in range(40):
        shapes.append((tuple(rng.uniform(-21, 21, 3)), tuple(rng.uniform(4, 9, 3)), rng.uniform(0.2, 3)))
    for centre, radii, value in shapes:
        distance = np.linalg.norm((points - CENTRE - centre) / radii, axis=-1)
        inside = 1 / (1 + np.exp((distance - 1) * 12))
        found += inside * (value - found)
    return found


@pytest.fixture(scope="module")
def known() -> Warp:
    """A bend of up to 3 mm along each axis, then :func:`linear`."""
    points = FIXED.world_points()
    bent = points + 3 * np.sin((points - CENTRE)[..., [1, 2, 0]] / 18 + (0.5, 1.5, -0.5))
    return Warp((transform_points(linear(), bent) - points).astype(np.float32), FIXED, MOVING)


@pytest.fixture(scope="module")
def case(known: Warp, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """Of two contrasts, whose relation is not monotonous."""
    folder = tmp_path_factory.mktemp("pair")
    arrays = {
        "fixed": (tissue(FIXED.world_points() + known.field), FIXED),
        "moving": (np.interp(tissue(MOVING.world_points()), (0, 0.2, 1, 3), (0, 2, 1, 0.3)), MOVING),
    }
    for name, (array, where) in arrays.items():
        save_image(where.to_sitk((1000 * array).astype(np.float32)), folder / f"{name}.nii.gz")
        save_image(where.to_sitk(np.ones(where.shape, np.uint8)), folder / f"{name}_mask.nii.gz")
    fixed, moving = (Side(folder / f"{name}.nii.gz") for name in arrays)
    return Case("blobs", "a2b", fixed, moving, {})


def inputs(case: Case, folder: Path, start: np.ndarray | None = None) -> Inputs:
    return Inputs(case, start, 1, "cpu", 1, folder)


def inside() -> np.ndarray:
    """Points of the fixed image in the body."""
    points = FIXED.world_points()[::3, ::3, ::3].reshape(-1, 3)
    away = (points - transform_points(np.linalg.inv(linear()), CENTRE)) / (30, 25, 34)
    return points[(away**2).sum(axis=1) < 1]


def error(warp: Warp, known: Warp) -> float:
    """Mean distance of where two warps take the points inside, mm."""
    points = inside()
    apart = warp.transform_points(points) - known.transform_points(points)
    return float(np.linalg.norm(apart, axis=1).mean())


def check(outcome: Outcome, known: Warp) -> float:
    assert outcome.warp.grid is not None and outcome.warp.grid.same_as(FIXED)
    assert outcome.warp.moving_grid is not None and outcome.warp.moving_grid.same_as(MOVING)
    assert list(outcome.seconds) == ["load", "register", "warp"]
    return error(outcome.warp, known)


def of_matrix(matrix: np.ndarray) -> Warp:
    points = FIXED.world_points()
    return Warp((transform_points(matrix, points) - points).astype(np.float32), FIXED, MOVING)


def installed(name: str) -> None:
    if reason := PEERS[name].missing():
        pytest.skip(reason)


@pytest.mark.parametrize("name", ["ants", "greedy", "elastix"])
def test_finds_a_map_from_the_headers(name: str, case: Case, known: Warp, tmp_path: Path) -> None:
    installed(name)
    before = error(of_matrix(np.eye(4)), known)
    after = check(PEERS[name].register(inputs(case, tmp_path)), known)
    print(name, before, after)
    assert before > 10 and after < 0.25 * before


@pytest.mark.parametrize("name", PEERS)
def test_goes_on_from_a_start(name: str, case: Case, known: Warp, tmp_path: Path) -> None:
    installed(name)
    before = error(of_matrix(linear()), known)
    masks = {} if name == "convexadam" else {"mask": case.fixed.image.with_name("fixed_mask.nii.gz")}
    case = replace(case, fixed=replace(case.fixed, **masks))
    after = check(PEERS[name].register(inputs(case, tmp_path, linear())), known)
    print(name, before, after)
    assert before > 2 and after < 0.8 * before
