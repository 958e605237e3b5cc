"""Jacobian determinants of a displacement lattice at the corners of its cells, and the removal of folds."""

from __future__ import annotations

from itertools import product

import torch
import torch.nn.functional as F

from regkit.ops import native
from regkit.ops.dispatch import operation
from regkit.ops.filters import smooth

Corner = tuple[int, int, int]
CORNERS: tuple[Corner, ...] = tuple(product((0, 1), repeat=3))  # type: ignore[arg-type]


def corner_jacobian(field: torch.Tensor, corner: Corner) -> torch.Tensor:
    """Jacobian determinant of ``x + field(x)`` at one corner of every cell of the lattice.

    The derivatives of a trilinear field at a corner are the differences along the three edges that
    meet there.

    Args:
        field: (3, Z, Y, X) in cells, components (x, y, z).
        corner: which corner (z, y, x), 0 the lower and 1 the upper one.

    Returns:
        (Z - 1, Y - 1, X - 1).
    """
    columns = []
    for axis in (3, 2, 1):
        difference = field.diff(dim=axis)
        for other in {1, 2, 3} - {axis}:
            difference = difference.narrow(other, corner[other - 1], difference.shape[other] - 1)
        columns.append(difference)
    (xx, yx, zx), (xy, yy, zy), (xz, yz, zz) = columns
    xx, yy, zz = xx + 1, yy + 1, zz + 1
    return xx * (yy * zz - yz * zy) - xy * (yx * zz - yz * zx) + xz * (yx * zy - yy * zx)


@operation
def folded_points(field: torch.Tensor) -> torch.Tensor:
    """1 at every lattice point where some adjoining cell has no positive determinant, (Z, Y, X) float."""
    folded = torch.zeros_like(field[0])
    for corner in CORNERS:
        bad = corner_jacobian(field, corner) <= 0
        if bad.any():
            at = tuple(slice(c, c + n) for c, n in zip(corner, bad.shape))
            folded[at] = torch.maximum(folded[at], bad.to(folded.dtype))
    return folded


@folded_points.kernel("c", lambda field: min(field.shape[1:]) > 1 and native.serves(field))
def _folded_points_by_c(field: torch.Tensor) -> torch.Tensor:
    """Most fields have no folds, and the kernel sees that."""
    if native.run("folds", field=field.contiguous()):
        return folded_points.reference(field)
    return torch.zeros_like(field[0])


def unfold(field: torch.Tensor, rounds: int = 200) -> torch.Tensor:
    """The field smoothed around its folds, and only there, until it has none.

    Args:
        field: (3, Z, Y, X) in cells of any lattice, components (x, y, z).

    Returns:
        The field with positive determinants at all corners of all cells.
    """
    folded = folded_points(field)
    if folded.any():
        field = field.clone()
    for round_ in range(rounds):
        if not folded.any():
            return field
        # Folds that resist are smoothed over an ever wider surrounding.
        reach = 1 + round_ // 10
        # What changes lies within reach + 1 of a fold, and depends on three points more.
        box = _box_around(folded, reach + 5)
        here = (slice(None), *box)
        part, near = field[here], F.max_pool3d(folded[box][None], 2 * reach + 1, 1, reach)
        field[here] += smooth(near) * (smooth(part, 3) - part)
        folded = torch.zeros_like(folded)
        folded[box] = folded_points(field[here])
    # Out of rounds: shrinking towards the identity always ends.
    while folded_points(field).any():
        field = 0.9 * field
    return field


def _box_around(marked: torch.Tensor, margin: int) -> tuple[slice, slice, slice]:
    """The slices of a volume (Z, Y, X) that hold all that is not 0, and a margin within its ends."""
    ranges = []
    for axis, n in enumerate(marked.shape):
        others = tuple(other for other in range(3) if other != axis)
        at = marked.amax(others).nonzero()[:, 0]
        ranges.append(slice(max(int(at[0]) - margin, 0), min(int(at[-1]) + margin + 1, n)))
    return ranges[0], ranges[1], ranges[2]
