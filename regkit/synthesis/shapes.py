"""Procedural shapes: functions of coordinates, with random parameters.

A shape takes coordinates (3, Z, Y, X), components (x, y, z), in its own cube [-1, 1]^3, and says how far
inside each point is: positive inside, negative outside, about 1 from the surface to the middle of a bulky
shape.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Shape = Callable[[torch.Tensor], torch.Tensor]


def draw_procedural(random: np.random.Generator) -> Shape:
    """A shape of a random kind; the coordinates it is given are expected to be bent already."""
    kinds = (ellipsoid, shell, _crescent, _tube, _tube, _sheet, _lobes, _box)
    return kinds[random.integers(len(kinds))](random)


def _norm(x: torch.Tensor, centre: np.ndarray, radii: np.ndarray, power: float = 2.0) -> torch.Tensor:
    total = torch.zeros_like(x[0])
    for component, c, r in zip(x, centre.tolist(), radii.tolist()):
        part = (component - c).mul_(1 / r)
        total += part.square_() if power == 2.0 else part.abs_().pow_(power)
    return total.sqrt_() if power == 2.0 else total.pow_(1 / power)


def ellipsoid(random: np.random.Generator) -> Shape:
    """A ball between an octahedron's roundness and a cube's."""
    power = 2.0 if random.random() < 0.5 else float(random.uniform(1.4, 4))
    return lambda x: 1 - _norm(x, np.zeros(3), np.ones(3), power)


def shell(random: np.random.Generator) -> Shape:
    """The wall of a hollow organ."""
    wall = float(random.uniform(0.08, 0.35))
    return lambda x: wall / 2 - (_norm(x, np.zeros(3), np.ones(3)) - (1 - wall / 2)).abs_()


def _crescent(random: np.random.Generator) -> Shape:
    """A ball that another has bitten into, like a kidney or a spleen."""
    centre = random.standard_normal(3)
    centre *= random.uniform(0.7, 1.1) / np.linalg.norm(centre)
    radius = np.full(3, random.uniform(0.45, 0.85))
    return lambda x: torch.minimum(
        1 - _norm(x, np.zeros(3), np.ones(3)), _norm(x, centre, radius).sub_(1).mul_(radius[0])
    )


def _tube(random: np.random.Generator) -> Shape:
    """A vessel, a bone or a bowel loop: a winding curve with a radius that changes along it."""
    along = np.linspace(-0.9, 0.9, 20)
    waves = random.integers(1, 4, size=2) * np.pi / 2
    phases = random.uniform(0, 2 * np.pi, size=2)
    sway = random.uniform(0, 0.55, size=2)[:, None] * np.sin(waves[:, None] * along + phases[:, None])
    radius = random.uniform(0.08, 0.3) * (1 + 0.4 * np.sin(random.uniform(0, 4) * along + phases[0]))
    knots = np.stack([sway[0], sway[1], along, radius], axis=1).tolist()

    def level(x: torch.Tensor) -> torch.Tensor:
        best = torch.full_like(x[0], -4.0)
        for a, b, c, r in knots:
            distance = (x[0] - a).square_().add_((x[1] - b).square_()).add_((x[2] - c).square_()).sqrt_()
            torch.maximum(best, distance.neg_().add_(r), out=best)
        return best

    return level


def _sheet(random: np.random.Generator) -> Shape:
    """A curved plate: a fascia, a flat muscle, a scapula."""
    thickness = float(random.uniform(0.06, 0.25))
    bend, twist = random.uniform(-0.6, 0.6, size=2).tolist()
    return lambda x: torch.minimum(
        thickness / 2 - (x[2] - bend * x[0].square() - twist * x[0] * x[1]).abs_(),
        1 - (x[0].square() + x[1].square()).sqrt_(),
    )


def _lobes(random: np.random.Generator) -> Shape:
    """Several balls grown together."""
    balls = [(random.uniform(-0.5, 0.5, 3), np.full(3, random.uniform(0.25, 0.5))) for _ in range(5)]

    def level(x: torch.Tensor) -> torch.Tensor:
        best = torch.full_like(x[0], -4.0)
        for centre, radius in balls:
            torch.maximum(best, 1 - _norm(x, centre, radius), out=best)
        return best

    return level


def _box(random: np.random.Generator) -> Shape:
    """A block with edges, like a vertebral body or a couch."""
    rounding = float(random.uniform(5, 12))
    return lambda x: 1 - _norm(x, np.zeros(3), np.ones(3), rounding)
