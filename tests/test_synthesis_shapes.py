"""Procedural shapes: each of them is a solid within its cube."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from regkit.synthesis import shapes

KINDS = ("ellipsoid", "shell", "_crescent", "_tube", "_sheet", "_lobes", "_box")


def _cube(half: float, side: int) -> torch.Tensor:
    axis = torch.linspace(-half, half, side)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    return torch.stack([x, y, z])


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_lies_inside_its_cube_and_leaves_the_corners_free(kind: str) -> None:
    points = _cube(1.0, 33)
    far = _cube(2.1, 31)
    outside = far.abs().amax(0) > 1.4  # a shape may stick out of its cube as far as bending reaches
    for seed in range(25):
        level = getattr(shapes, kind)(np.random.default_rng(seed))
        found = level(points)
        assert found.shape == points.shape[1:]
        assert found.isfinite().all()
        assert 0 < found.max() <= 1 + 1e-5
        assert (found[::32, ::32, ::32] < 0).all()
        assert (level(far)[outside] < 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_shape_leaves_its_coordinates_alone_and_is_a_function(kind: str) -> None:
    points = _cube(1.0, 9)
    level = getattr(shapes, kind)(np.random.default_rng(3))
    found = level(points)
    assert torch.equal(points, _cube(1.0, 9))
    assert torch.equal(level(points), found)
    # Where a point lies in the array does not matter.
    torch.testing.assert_close(level(points.flip(3)), found.flip(2))
    again = getattr(shapes, kind)(np.random.default_rng(3))
    assert torch.equal(again(points), found)


def test_every_kind_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    for kind in KINDS:
        monkeypatch.setattr(shapes, kind, lambda random, kind=kind: drawn.append(kind))
    for seed in range(200):
        shapes.draw_procedural(np.random.default_rng(seed))
    assert set(drawn) == set(KINDS)
    assert len(drawn) == 200


def test_a_ball_is_a_ball() -> None:
    """Of radius 1 for any exponent: 1 in the middle, 0 where an axis meets the surface."""
    axes = torch.eye(3).T.reshape(3, 1, 1, 3)
    for seed in range(10):
        level = shapes.ellipsoid(np.random.default_rng(seed))
        assert float(level(torch.zeros(3, 1, 1, 1))) == 1
        torch.testing.assert_close(level(axes), torch.zeros(1, 1, 3), atol=1e-6, rtol=0)


def test_a_shell_is_hollow() -> None:
    for seed in range(10):
        level = shapes.shell(np.random.default_rng(seed))
        assert float(level(torch.zeros(3, 1, 1, 1))) < 0
        assert float(level(torch.full((3, 1, 1, 1), 0.99 / 3**0.5))) > 0
