"""The kernels themselves. A thread works on one cell; what neighbours share, the caches hold.

Numbers that vary from image to image are not specialised for, since every other combination would be compiled
anew.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_BLOCK = 256
_SCRATCH = 2**25  # values: displacements whose differences are held at once
_COLUMNS = 128  # cells of a program of the coarse stage, each with all its costs
_CELLS = 32  # and of the data term, each with all its channels


@triton.jit(do_not_specialize=["channels", "here_step", "there_step", "low", "first", "planes", "y", "x"])
def _differences(
    fixed, fixed_weight, moving, moving_weight, difference, weight, channels, here_step, there_step, low,
    first, planes, y, x, side: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """w |F(x) - M(x + d)|^2 and w = w_F(x) w_M(x + d) for ``planes`` planes from ``low`` on."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    cells = planes * y * x
    inside = at < cells
    k = first + tl.program_id(1)
    j = at // x
    i, p, j = at % x, j // y + low, j % y
    here = (p * y + j) * x + i
    there = ((p + k // (side * side)) * (y + side - 1) + j + k // side % side) * (x + side - 1) + i + k % side
    w = tl.load(fixed_weight + here, inside, 0.0) * tl.load(moving_weight + there, inside, 0.0)
    total = tl.zeros((block,), tl.float32)
    for _ in range(channels):
        d = tl.load(fixed + here, inside, 0.0) - tl.load(moving + there, inside, 0.0)
        total += d * d
        fixed += here_step
        moving += there_step
    out = tl.program_id(1) * cells + at
    tl.store(difference + out, total * w, inside)
    tl.store(weight + out, w, inside)


@triton.jit(do_not_specialize=["skip", "held", "planes", "y", "x"])
def _box_means(difference, weight, costs, scale, least, skip, held, planes, y, x, block: tl.constexpr):
    """The mean of a box of 3^3, of planes ``skip`` to ``skip + planes`` of ``held`` ones."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    cells = planes * y * x
    inside = at < cells
    j = at // x
    i, p, j = at % x, j // y + skip, j % y
    here = tl.program_id(1) * (held * y * x) + (p * y + j) * x + i
    total = tl.zeros((block,), tl.float32)
    count = tl.zeros((block,), tl.float32)
    for dz in tl.static_range(-1, 2):
        for dy in tl.static_range(-1, 2):
            for dx in tl.static_range(-1, 2):
                known = inside & (p + dz >= 0) & (p + dz < held) & (j + dy >= 0) & (j + dy < y)
                known = known & (i + dx >= 0) & (i + dx < x)
                there = here + (dz * y + dy) * x + dx
                total += tl.load(difference + there, known, 0.0)
                count += tl.load(weight + there, known, 0.0)
    known = count > least
    cost = tl.where(known, total * scale / tl.where(known, count, 1.0), float("nan"))
    tl.store(costs + tl.program_id(1).to(tl.int64) * cells + at, cost, inside)


def costs(
    fixed: torch.Tensor,
    fixed_weight: torch.Tensor,
    moving: torch.Tensor,
    moving_weight: torch.Tensor,
    radius: int,
    planes: tuple[int, int],
) -> torch.Tensor:
    """Planes [first, last) of z of :func:`regkit.solver.costvolume.known_costs` with boxes of 3^3 cells.

    Args:
        fixed, fixed_weight: (C, Z, Y, X) and (1, Z, Y, X).
        moving, moving_weight: the same with ``radius`` cells more on every side.

    Returns:
        ((2 radius + 1)^3, last - first, Y, X).
    """
    maps = [t.contiguous() for t in (fixed, fixed_weight, moving, moving_weight)]
    channels, z, y, x = fixed.shape
    (first, last), side = planes, 2 * radius + 1
    low, high = max(first - 1, 0), min(last + 1, z)
    out = fixed.new_empty((side**3, last - first, y, x))
    many = max(1, min(side**3, _SCRATCH // ((high - low) * y * x)))
    difference, weight = fixed.new_empty((2, many, high - low, y, x))
    for k in range(0, side**3, many):
        count = min(many, side**3 - k)
        _differences[triton.cdiv(difference[0].numel(), _BLOCK), count](
            *maps, difference, weight, channels, fixed[0].numel(), moving[0].numel(), low, k, high - low, y,
            x, side=side, block=_BLOCK,
        )  # fmt: skip
        _box_means[triton.cdiv(out[0].numel(), _BLOCK), count](
            difference, weight, out[k:], 1 / channels, 0.25 * 27, first - low, high - low, last - first, y,
            x, block=_BLOCK,
        )  # fmt: skip
    return out


@triton.jit
def _cost(costs, inside, cells, i, j, p, dz, dy, dx, z, y, x, back: tl.constexpr):
    """What a displacement costs, NaN where that is not known; ``costs`` points to those of the same
    displacement or, on the way back, of the opposite one, which are those of the cell that it leads to."""
    at = (p * y + j) * x + i
    if back:
        inside = inside & (i + dx >= 0) & (i + dx < x) & (j + dy >= 0) & (j + dy < y)
        inside = inside & (p + dz >= 0) & (p + dz < z)
        at += (dz * y + dy) * x + dx
    return tl.load(costs + at, inside, float("nan"))


@triton.jit(do_not_specialize=["z", "y", "x"])
def _neutral(costs, neutral, z, y, x, radius: tl.constexpr, back: tl.constexpr, block: tl.constexpr):
    """The mean of the costs that are known, 0 if none is."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    cells = z * y * x
    inside = at < cells
    j = at // x
    i, p, j = at % x, j // y, j % y
    total = tl.zeros((block,), tl.float32)
    count = tl.zeros((block,), tl.float32)
    for dz in range(-radius, radius + 1):
        for dy in range(-radius, radius + 1):
            for dx in tl.static_range(-radius, radius + 1):
                cost = _cost(costs, inside, cells, i, j, p, dz, dy, dx, z, y, x, back)
                known = cost == cost
                total += tl.where(known, cost, 0.0)
                count += tl.where(known, 1.0, 0.0)
                costs += -cells if back else cells
    tl.store(neutral + at, total / tl.maximum(count, 1.0), inside)


@triton.jit(do_not_specialize=["z", "y", "x"])
def _choose(
    costs, neutral, field, chosen, theta, z, y, x, radius: tl.constexpr, back: tl.constexpr,
    block: tl.constexpr,
):  # fmt: skip
    """argmin_d cost(d, x) + theta |d - u(x)|^2, between cells by a parabola along each axis."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    cells = z * y * x
    inside = at < cells
    j = at // x
    i, p, j = at % x, j // y, j % y
    ux, uy = tl.load(field + at, inside, 0.0), tl.load(field + cells + at, inside, 0.0)
    uz = tl.load(field + 2 * cells + at, inside, 0.0)
    unknown = tl.load(neutral + at, inside, 0.0)
    best = tl.full((block,), float("inf"), tl.float32)
    cx = tl.zeros((block,), tl.float32)
    cy = tl.zeros((block,), tl.float32)
    cz = tl.zeros((block,), tl.float32)
    first = costs
    for dz in range(-radius, radius + 1):
        for dy in range(-radius, radius + 1):
            across = (dz * dz + dy * dy) - 2 * (uz * dz + uy * dy)
            for dx in tl.static_range(-radius, radius + 1):
                cost = _cost(costs, inside, cells, i, j, p, dz, dy, dx, z, y, x, back)
                total = tl.where(cost == cost, cost, unknown) + theta * (across + dx * dx - 2 * dx * ux)
                better = total < best
                best = tl.where(better, total, best)
                cx = tl.where(better, dx * 1.0, cx)
                cy = tl.where(better, dy * 1.0, cy)
                cz = tl.where(better, dz * 1.0, cz)
                costs += -cells if back else cells
    side: tl.constexpr = 2 * radius + 1
    apart = -cells if back else cells
    first += ((cz + radius) * side * side + (cy + radius) * side + cx + radius).to(tl.int64) * apart
    dx, dy, dz = cx.to(tl.int32), cy.to(tl.int32), cz.to(tl.int32)
    cost = _cost(first, inside, cells, i, j, p, dz, dy, dx, z, y, x, back)
    here = tl.where(cost == cost, cost, unknown)
    for axis in tl.static_range(3):
        mx, my, mz = (1 if axis == 0 else 0), (1 if axis == 1 else 0), (1 if axis == 2 else 0)
        step = apart * (side**axis)
        c = cx if axis == 0 else (cy if axis == 1 else cz)
        u = ux if axis == 0 else (uy if axis == 1 else uz)
        off_border = inside & (c > -radius) & (c < radius)
        cost = _cost(first - step, off_border, cells, i, j, p, dz - mz, dy - my, dx - mx, z, y, x, back)
        below = tl.where(cost == cost, cost, unknown)
        cost = _cost(first + step, off_border, cells, i, j, p, dz + mz, dy + my, dx + mx, z, y, x, back)
        above = tl.where(cost == cost, cost, unknown)
        bend = tl.maximum(below + above - 2 * here + 2 * theta, 1e-9)
        fraction = 0.5 * (below - above + 4 * theta * (u - c)) / bend
        fraction = tl.where(off_border, tl.minimum(tl.maximum(fraction, -0.5), 0.5), 0.0)
        tl.store(chosen + axis * cells + at, c + fraction, inside)


def coupled_convex(costs: torch.Tensor, radius: int, back: bool, coupling: tuple[float, ...]) -> torch.Tensor:
    """:func:`regkit.solver.coarse.coupled_convex` of known costs (D, Z, Y, X), or of the way back."""
    shape = costs.shape[1:]
    neutral, chosen, field = (costs.new_zeros((*n, *shape)) for n in ((), (3,), (3,)))
    first = costs[-1] if back else costs
    grid, how = (triton.cdiv(neutral.numel(), _COLUMNS),), {"radius": radius, "back": back, "block": _COLUMNS}
    _neutral[grid](first, neutral, *shape, **how)
    for theta in coupling:
        _choose[grid](first, neutral, field, chosen, theta, *shape, **how)
        field = smooth(chosen, 1)
    return field


@triton.jit(do_not_specialize=["count", "z", "y", "x"])
def _smooth(volume, out, count, z, y, x, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    i, j = at % x, at // x
    p = j // y
    plane = p // z * z  # the first one of the channel
    j, p = j % y, p % z
    total = tl.zeros((block,), tl.float32)
    for dz in tl.static_range(-1, 2):
        pz = plane + tl.minimum(tl.maximum(p + dz, 0), z - 1)
        for dy in tl.static_range(-1, 2):
            row = (pz * y + tl.minimum(tl.maximum(j + dy, 0), y - 1)) * x
            for dx in tl.static_range(-1, 2):
                total += tl.load(volume + row + tl.minimum(tl.maximum(i + dx, 0), x - 1), inside, 0.0)
    tl.store(out + at, total / 27, inside)


def smooth(volume: torch.Tensor, passes: int) -> torch.Tensor:
    """:func:`regkit.ops.filters.smooth`, (C, Z, Y, X)."""
    for _ in range(passes):
        volume, out = volume.contiguous(), torch.empty_like(volume, memory_format=torch.contiguous_format)
        _smooth[(triton.cdiv(out.numel(), _BLOCK),)](volume, out, out.numel(), *out.shape[1:], block=_BLOCK)
        volume = out
    return volume


@triton.jit
def _corner(moving, lane, lanes: tl.constexpr, px, py, pz, z, y, x, known):
    """All lanes of a cell of the moving map (cells, lanes), 0 beyond its ends."""
    known = known & (px >= 0) & (px < x) & (py >= 0) & (py < y) & (pz >= 0) & (pz < z)
    cell = (pz * y + py) * x + px
    return tl.load(moving + cell[:, None] * lanes + lane[None, :], known[:, None], 0).to(tl.float32)


@triton.jit(
    do_not_specialize=[
        "z", "y", "x", "mz", "my", "mx", "whole", "cz", "cy", "cx", "oz", "oy", "ox",
    ]
)  # fmt: skip
def _difference(
    fixed, weight, moving, where, gradient, losses, fixed_unit, moving_unit, scale, z, y, x, mz,
    my, mx, whole, cz, cy, cx, oz, oy, ox, lanes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One of the eight cells in each 2^3 of the fixed map (z, y, x): of corner c, or the opposite one, o."""
    at = tl.program_id(0) * block + tl.arange(0, block)
    nz, ny, nx = z // 2, y // 2, x // 2
    inside = at < nz * ny * nx
    other = tl.program_id(1)
    j = at // nx
    i = 2 * (at % nx) + cx + other * (ox - cx)
    p = 2 * (j // ny) + cz + other * (oz - cz)
    cell = (p * y + 2 * (j % ny) + cy + other * (oy - cy)) * x + i
    place = tl.where(whole != 0, cell, at)
    component = tl.where(whole != 0, z * y * x, nz * ny * nx)
    px = tl.load(where + place, inside, 0.0)
    py = tl.load(where + component + place, inside, 0.0)
    pz = tl.load(where + 2 * component + place, inside, 0.0)
    factor = scale * tl.load(weight + cell, inside, 0.0)
    # Beyond the map there is nothing, and a number as large as that may not fit an integer.
    inside = inside & (factor > 0) & (px > -1) & (px < mx) & (py > -1) & (py < my) & (pz > -1) & (pz < mz)
    fx, fy, fz = tl.floor(px), tl.floor(py), tl.floor(pz)
    tx, ty, tz = (px - fx)[:, None], (py - fy)[:, None], (pz - fz)[:, None]
    ix = tl.where(inside, fx, 0.0).to(tl.int32)
    iy = tl.where(inside, fy, 0.0).to(tl.int32)
    iz = tl.where(inside, fz, 0.0).to(tl.int32)
    lane = tl.arange(0, lanes)
    v0 = _corner(moving, lane, lanes, ix, iy, iz, mz, my, mx, inside)
    v1 = _corner(moving, lane, lanes, ix + 1, iy, iz, mz, my, mx, inside)
    slope00 = v1 - v0
    edge00 = v0 + tx * slope00
    v0 = _corner(moving, lane, lanes, ix, iy + 1, iz, mz, my, mx, inside)
    v1 = _corner(moving, lane, lanes, ix + 1, iy + 1, iz, mz, my, mx, inside)
    slope01 = v1 - v0
    edge01 = v0 + tx * slope01
    v0 = _corner(moving, lane, lanes, ix, iy, iz + 1, mz, my, mx, inside)
    v1 = _corner(moving, lane, lanes, ix + 1, iy, iz + 1, mz, my, mx, inside)
    slope10 = v1 - v0
    edge10 = v0 + tx * slope10
    v0 = _corner(moving, lane, lanes, ix, iy + 1, iz + 1, mz, my, mx, inside)
    v1 = _corner(moving, lane, lanes, ix + 1, iy + 1, iz + 1, mz, my, mx, inside)
    slope11 = v1 - v0
    edge11 = v0 + tx * slope11
    low, high = edge00 + ty * (edge01 - edge00), edge10 + ty * (edge11 - edge10)
    along_z = high - low
    value = low + tz * along_z
    along_y = (edge01 - edge00) * (1 - tz) + (edge11 - edge10) * tz
    along_x = (slope00 + ty * (slope01 - slope00)) * (1 - tz) + (slope10 + ty * (slope11 - slope10)) * tz
    first = lane[None, :] == 0  # the weight
    w = tl.sum(tl.where(first, value, 0.0), 1)
    known = inside & (w * moving_unit > 1e-6)
    seen = value / tl.where(known, w, 1.0)[:, None]
    own = tl.load(fixed + cell[:, None] * lanes + lane[None, :], known[:, None], 0).to(tl.float32)
    residual = seen - own * fixed_unit
    loss = tl.where(known, 0.5 * factor * moving_unit * w * tl.sum(residual * residual, 1), 0.0)
    # The weight stays a constant as a factor, but v / w moves with it.
    part = tl.sum(residual * seen, 1)
    gx = tl.sum(residual * along_x, 1) - part * tl.sum(tl.where(first, along_x, 0.0), 1)
    gy = tl.sum(residual * along_y, 1) - part * tl.sum(tl.where(first, along_y, 0.0), 1)
    gz = tl.sum(residual * along_z, 1) - part * tl.sum(tl.where(first, along_z, 0.0), 1)
    slope = factor * moving_unit
    tl.store(gradient + place, slope * gx, known)
    tl.store(gradient + component + place, slope * gy, known)
    tl.store(gradient + 2 * component + place, slope * gz, known)
    tl.store(losses + other * tl.num_programs(0) + tl.program_id(0), tl.sum(loss))


def difference(
    where: torch.Tensor,
    corners: Any,
    fixed: torch.Tensor,
    fixed_unit: float,
    weight: torch.Tensor,
    moving: torch.Tensor,
    moving_unit: float,
    channels: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`regkit.solver.fine.dissimilarity` of one or two of the cells in each 2^3, and its gradient.

    Args:
        where: (3, Z, Y, X) of all cells of the fixed map, or (3, Z / 2, Y / 2, X / 2) of those of one corner.
        corners: one or two (z, y, x).
        fixed, moving: (Z, Y, X, lanes) int16, in units of their own: 1, or the weight of the moving map; the
            channels, of the moving map times its weight; then zeros.
        weight: (Z, Y, X) of the fixed map.

    Returns:
        () and the shape of ``where``.
    """
    where, gradient = where.contiguous(), torch.zeros_like(where, memory_format=torch.contiguous_format)
    z, y, x = weight.shape
    count = (z // 2) * (y // 2) * (x // 2)
    losses = where.new_empty((len(corners), triton.cdiv(count, _CELLS)))
    _difference[losses.shape[1], len(corners)](
        fixed, weight, moving, where, gradient, losses, fixed_unit, moving_unit,
        2 / (count * channels * len(corners)), z, y, x, *moving.shape[:3],
        int(where.shape[1:] == weight.shape), *corners[0], *corners[-1], lanes=moving.shape[3], block=_CELLS,
    )  # fmt: skip
    return losses.sum(), gradient


@triton.jit
def _shares(field, component, p, j, i, known, sz, sy, sx, z, y, x, least):
    """How far the determinant at a corner (p, j, i) falls short, and its derivatives to the edges there.

    The edges lead to the neighbours on the sides s, +1 or -1 along each axis.

    Returns:
        The shortfall, 0 where there is no such cell; the cofactors of the derivatives along x, y and z, each
        with components (x, y, z).
    """
    known = known & (p >= 0) & (p < z) & (j >= 0) & (j < y) & (i >= 0) & (i < x)
    known = known & (p + sz >= 0) & (p + sz < z) & (j + sy >= 0) & (j + sy < y) & (i + sx >= 0) & (i + sx < x)
    at = (p * y + j) * x + i
    ax, ay, az = at + sx, at + sy * x, at + sz * (y * x)
    x0 = tl.load(field + at, known, 0.0)
    xx = sx * (tl.load(field + ax, known, 0.0) - x0) + 1
    xy = sy * (tl.load(field + ay, known, 0.0) - x0)
    xz = sz * (tl.load(field + az, known, 0.0) - x0)
    field += component
    y0 = tl.load(field + at, known, 0.0)
    yx = sx * (tl.load(field + ax, known, 0.0) - y0)
    yy = sy * (tl.load(field + ay, known, 0.0) - y0) + 1
    yz = sz * (tl.load(field + az, known, 0.0) - y0)
    field += component
    z0 = tl.load(field + at, known, 0.0)
    zx = sx * (tl.load(field + ax, known, 0.0) - z0)
    zy = sy * (tl.load(field + ay, known, 0.0) - z0)
    zz = sz * (tl.load(field + az, known, 0.0) - z0) + 1
    ax_x, ax_y, ax_z = yy * zz - yz * zy, xz * zy - xy * zz, xy * yz - xz * yy
    ay_x, ay_y, ay_z = yz * zx - yx * zz, xx * zz - xz * zx, xz * yx - xx * yz
    az_x, az_y, az_z = yx * zy - yy * zx, xy * zx - xx * zy, xx * yy - xy * yx
    short = tl.where(known, tl.maximum(least - (xx * ax_x + yx * ax_y + zx * ax_z), 0.0), 0.0)
    return short, ax_x, ax_y, ax_z, ay_x, ay_y, ay_z, az_x, az_y, az_z


@triton.jit
def _stiffnesses(stiffness, at, p, j, i, inside, z, y, x):
    """Twice those of the differences to the neighbours that follow and to those before, 0 beyond the ends."""
    here = tl.load(stiffness + at, inside, 0.0)
    ax = here + tl.load(stiffness + at + 1, inside & (i + 1 < x), 0.0)
    ay = here + tl.load(stiffness + at + x, inside & (j + 1 < y), 0.0)
    az = here + tl.load(stiffness + at + y * x, inside & (p + 1 < z), 0.0)
    bx = here + tl.load(stiffness + at - 1, inside & (i > 0), 0.0)
    by = here + tl.load(stiffness + at - x, inside & (j > 0), 0.0)
    bz = here + tl.load(stiffness + at - y * x, inside & (p > 0), 0.0)
    ax, ay, az = tl.where(i + 1 < x, ax, 0.0), tl.where(j + 1 < y, ay, 0.0), tl.where(p + 1 < z, az, 0.0)
    return ax, ay, az, tl.where(i > 0, bx, 0.0), tl.where(j > 0, by, 0.0), tl.where(p > 0, bz, 0.0)


@triton.jit
def _diffusion(field, at, p, j, i, inside, ax, ay, az, bx, by, bz, z, y, x):
    """Of one component: the weighted squared differences to the neighbours that follow, and the derivative
    of all. Weights ahead (a) and behind (b) are 0 where there is no neighbour."""
    here = tl.load(field + at, inside, 0.0)
    dx = tl.load(field + at + 1, inside & (i + 1 < x), 0.0) - here
    dy = tl.load(field + at + x, inside & (j + 1 < y), 0.0) - here
    dz = tl.load(field + at + y * x, inside & (p + 1 < z), 0.0) - here
    ex = here - tl.load(field + at - 1, inside & (i > 0), 0.0)
    ey = here - tl.load(field + at - x, inside & (j > 0), 0.0)
    ez = here - tl.load(field + at - y * x, inside & (p > 0), 0.0)
    value = ax * dx * dx + ay * dy * dy + az * dz * dz
    return value, 2 * (bx * ex - ax * dx + by * ey - ay * dy + bz * ez - az * dz)


@triton.jit(do_not_specialize=["z", "y", "x", "sz", "sy", "sx"])
def _penalty(
    field, stiffness, gradient, losses, fz, fy, fx, barrier, least, z, y, x, sz, sy, sx, block: tl.constexpr
):
    at = tl.program_id(0) * block + tl.arange(0, block)
    component = z * y * x
    inside = at < component
    j = at // x
    i, p, j = at % x, j // y, j % y
    ax, ay, az, bx, by, bz = _stiffnesses(stiffness, at, p, j, i, inside, z, y, x)
    ax, ay, az, bx, by, bz = fx * ax, fy * ay, fz * az, fx * bx, fy * by, fz * bz
    loss_x, gx = _diffusion(field, at, p, j, i, inside, ax, ay, az, bx, by, bz, z, y, x)
    loss_y, gy = _diffusion(field + component, at, p, j, i, inside, ax, ay, az, bx, by, bz, z, y, x)
    loss_z, gz = _diffusion(field + 2 * component, at, p, j, i, inside, ax, ay, az, bx, by, bz, z, y, x)
    # A point takes part in the cell at whose corner it is, and in the three to whose corner an edge leads.
    short, xx, xy, xz, yx, yy, yz, zx, zy, zz = _shares(
        field, component, p, j, i, inside, sz, sy, sx, z, y, x, least
    )
    loss = loss_x + loss_y + loss_z + barrier * short * short
    slope = -2 * barrier * short
    gx -= slope * (sx * xx + sy * yx + sz * zx)
    gy -= slope * (sx * xy + sy * yy + sz * zy)
    gz -= slope * (sx * xz + sy * yz + sz * zz)
    short, xx, xy, xz, yx, yy, yz, zx, zy, zz = _shares(
        field, component, p, j, i - sx, inside, sz, sy, sx, z, y, x, least
    )
    slope = -2 * barrier * short * sx
    gx += slope * xx
    gy += slope * xy
    gz += slope * xz
    short, xx, xy, xz, yx, yy, yz, zx, zy, zz = _shares(
        field, component, p, j - sy, i, inside, sz, sy, sx, z, y, x, least
    )
    slope = -2 * barrier * short * sy
    gx += slope * yx
    gy += slope * yy
    gz += slope * yz
    short, xx, xy, xz, yx, yy, yz, zx, zy, zz = _shares(
        field, component, p - sz, j, i, inside, sz, sy, sx, z, y, x, least
    )
    slope = -2 * barrier * short * sz
    gx += slope * zx
    gy += slope * zy
    gz += slope * zz
    tl.store(gradient + at, gx, inside)
    tl.store(gradient + component + at, gy, inside)
    tl.store(gradient + 2 * component + at, gz, inside)
    tl.store(losses + tl.program_id(0), tl.sum(tl.where(inside, loss, 0.0)))


def penalty(
    field: torch.Tensor, corner: tuple[int, int, int], stiffness: torch.Tensor, barrier: float, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`regkit.solver.fine.penalty` of a field (3, Z, Y, X) and its gradient, () and (3, Z, Y, X)."""
    field = field.contiguous()
    gradient = torch.empty_like(field)
    shape, points = field.shape[1:], field[0].numel()
    # Half, as the kernel adds up the two ends of a difference.
    factors = [0.5 * n / (3 * points * (n - 1)) if n > 1 else 0.0 for n in shape]
    cells = max(1, (shape[0] - 1) * (shape[1] - 1) * (shape[2] - 1))
    losses = field.new_empty(triton.cdiv(points, _BLOCK))
    _penalty[(len(losses),)](
        field, stiffness.contiguous(), gradient, losses, *factors, barrier / cells, least, *shape,
        *(1 - 2 * side for side in corner), block=_BLOCK,
    )  # fmt: skip
    return losses.sum(), gradient


@triton.jit(do_not_specialize=["count"])
def _adam(parameters, gradient, mean, squares, rates, step, count, beta1, beta2, floor, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    inside = at < count
    k = tl.load(step)
    length, spread = tl.load(rates + 2 * k), tl.load(rates + 2 * k + 1)
    g = tl.load(gradient + at, inside, 0.0)
    m = tl.load(mean + at, inside, 0.0)
    m += (1 - beta1) * (g - m)
    s = beta2 * tl.load(squares + at, inside, 0.0) + (1 - beta2) * g * g
    value = tl.load(parameters + at, inside, 0.0) - length * m / (tl.sqrt(s) / spread + floor)
    tl.store(mean + at, m, inside)
    tl.store(squares + at, s, inside)
    tl.store(parameters + at, value, inside)


def adam(
    parameters: torch.Tensor,
    gradient: torch.Tensor,
    mean: torch.Tensor,
    squares: torch.Tensor,
    rates: torch.Tensor,
    step: torch.Tensor,
    betas: tuple[float, float],
    floor: float,
) -> None:
    """One step of Adam, in place.

    Args:
        rates: (steps, 2), the length of each step and the root of its bias correction.
        step: (), the number of this one, int64.
    """
    count = parameters.numel()
    _adam[(triton.cdiv(count, _BLOCK),)](
        parameters, gradient.contiguous(), mean, squares, rates, step, count, *betas, floor, block=_BLOCK
    )
