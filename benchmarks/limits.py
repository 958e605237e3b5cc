"""What the work of a registration needs, counted by hand, and what this machine can do at most.

The bytes and operations are those that the algorithm itself needs: what an implementation does beyond it
lowers the share of the limit that it reaches. ``benchmarks/speed.py stages`` puts them beside the seconds.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any


@dataclass(frozen=True)
class Case:
    """What the work of a registration hangs on; both images are taken to cover the whole working grid."""

    voxels: int  # of each image
    size: Sequence[int]  # of the working grid, (x, y, z)
    channels: int  # of all features
    network: Any  # the extractor, None if it was left out
    levels: Sequence[Sequence[int]]  # of the coarse stage: stride in voxels, radius in cells
    iterations: Sequence[int]  # of the two levels of the fine stage
    on_gpu: bool

    def cells(self, stride: int) -> int:
        return math.prod(self.size) // stride**3


@dataclass(frozen=True)
class Need:
    """Bytes between memory and processor and operations (a product with its sum is two) of a ``kind``."""

    bytes: float
    operations: float
    kind: str = "float32"


FLOAT, SHORT = 4, 2  # bytes
TRILINEAR = 7 * 3  # operations: seven linear interpolations


def mind(case: Case) -> Need:
    """Six squared differences in box means, the least and the mean of twelve views, twelve exponentials.

    The image is read twice, since a mean over it comes first, and twelve means over 2^3 voxels are written.
    """
    voxel = 6 * (2 + 6 + 1) + 12 * 2 + 12 * (2 + 17 + 1)
    working = case.cells(1)
    return Need(2 * FLOAT * (2 * working + 12 * working / 8), 2 * working * voxel)


def network(case: Case) -> Need:
    """Torch's count of the operations; each convolution reads what goes in and writes what comes out."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    if case.network is None:
        return Need(0, 0)
    unet, moved = copy.deepcopy(case.network.network).to("meta"), 0
    kind = torch.float32 if case.on_gpu else torch.int8 if case.network.eightbit else case.network.type

    def count(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        nonlocal moved
        moved += inputs[0].numel() + output.numel()

    for module in unet.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.register_forward_hook(count)
    shape = [max(2, -(-n // unet.multiple)) * unet.multiple for n in reversed(case.size)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        unet(torch.empty(1, 1, *shape, device="meta", dtype=next(unet.parameters()).dtype))
    # cuDNN multiplies float32 in TF32 unless it is told not to.
    name = "tf32" if case.on_gpu else str(kind).removeprefix("torch.")
    return Need(2 * moved * kind.itemsize, 2 * counter.get_total_flops(), name)


def costs(case: Case) -> Need:
    """A product and a sum for each channel, displacement and cell, 18 more for the boxes; costs in 16 bits.

    In 16 bits, as on a CPU, two channels take two instructions: the rate is that of float32. The way back
    needs no costs of its own.
    """
    bytes_moved = operations = 0
    for stride, radius in case.levels:
        cells, cube = case.cells(stride), (2 * radius + 1) ** 3
        bytes_moved += cells * (SHORT * cube + 2 * FLOAT * (case.channels + 1))
        operations += cells * cube * (2 * case.channels + 18)
    return Need(bytes_moved, operations)


def choices(case: Case) -> Need:
    """Each round reads all costs and smooths three components, both ways; then 8 rounds of consistency."""
    from regkit.solver.coarse import COUPLING

    rounds, consistency = 1 + len(COUPLING), 8
    bytes_moved = operations = 0
    for stride, radius in case.levels:
        cells, cube = case.cells(stride), (2 * radius + 1) ** 3
        bytes_moved += 2 * cells * (rounds * (SHORT * cube + FLOAT * 3 * 4) + consistency * FLOAT * 3 * 3)
        operations += 2 * cells * (rounds * (8 * cube + 21) + consistency * 3 * (TRILINEAR + 3))
    return Need(bytes_moved, operations)


# Of the cells, those that a step of each level of the fine stage compares.
COMPARED = (1 / 8, 1 / 4)


def descent(case: Case) -> Need:
    """Each step reads the channels and a weight of both maps, in 16 bits; field and gradient go there and
    back once each, and Adam reads and writes three volumes of three components.

    A compared cell reads eight of the moving map, so that an eighth of them reads all of it.
    """
    cells, lanes = case.cells(2), case.channels + 1
    bytes_moved = operations = 0.0
    for steps, share, parameters in zip(case.iterations, COMPARED, (cells / 8, cells)):
        maps = lanes * cells * (share + min(1.0, 8 * share))
        bytes_moved += steps * (SHORT * maps + FLOAT * 3 * parameters * (4 + 6))
        # A channel's value and derivatives 33, its residual 10; diffusion and determinant 150, three box
        # means of three components, there and back, 126, Adam 36.
        operations += steps * (43 * lanes * share * cells + (150 + 126 + 36) * parameters)
    return Need(bytes_moved, operations)


def warp(case: Case) -> Need:
    """The field is written, read for the determinants, which are written and read twice."""
    return Need(FLOAT * case.voxels * (3 + 3 + 1 + 2), case.voxels * (3 * TRILINEAR + 18 + 45 + 20))


NEEDS: tuple[tuple[str, str, Callable[[Case], Need]], ...] = (
    ("features", "network", network),
    ("features", "MIND", mind),
    ("coarse", "costs", costs),
    ("coarse", "choices", choices),
    ("fine", "descent", descent),
    ("warp", "field and determinants", warp),
)


def needs(settings: dict[str, Any], voxels: int) -> list[dict[str, Any]]:
    """A row of NEEDS each, for the settings that a registration reports."""
    import torch

    from regkit.features.maps import feature_maps, feature_parts

    parts = [part for part in feature_parts(settings["features"])[1] if part.name in settings["compared"]]
    tiny, spacing = torch.zeros(64, 64, 64), settings["working_spacing_mm"]
    case = Case(
        voxels,
        settings["working_size"],
        sum(feature_maps(tiny, torch.ones_like(tiny)[None], spacing, parts, (2,))[1]),
        next((part.extract for part in parts if part.name == "network"), None),
        settings["levels"],
        settings["iterations"],
        settings["device"].startswith("cuda"),
    )
    return [{"stage": stage, "part": part, **vars(count(case))} for stage, part, count in NEEDS]


def ceilings(threads: int) -> dict[str, float]:
    """Bytes a second that a copy of 256 MB reads and writes, and operations a second of matrix products."""
    import torch

    from regkit.ops.native import empty

    torch.set_num_threads(threads)
    one, other = empty(2**26).fill_(1), empty(2**26).fill_(0)
    works: dict[str, tuple[float, Callable[[], Any]]]
    works = {"memory": (2 * one.nbytes, lambda: other.copy_(one))}
    for kind in ("float32", "bfloat16"):
        a = torch.ones(2048, 2048, dtype=getattr(torch, kind))
        works[kind] = (2 * 2048**3, partial(torch.matmul, a, a))
    a = torch.ones(2048, 2048, dtype=torch.int8)
    works["int8"] = (2 * 2048**3, partial(torch._int_mm, a, a))
    return _fastest(works, lambda: None)


def ceilings_of_gpu() -> dict[str, float]:
    """The same of a GPU, by copies of 1 GB and products of 8192^2 random numbers, in float32 and TF32."""
    import torch

    one = torch.ones(2**28, device="cuda")
    other, a = torch.zeros_like(one), torch.randn(8192, 8192, device="cuda")

    def product(in_tf32: bool) -> None:
        torch.backends.cuda.matmul.allow_tf32 = in_tf32
        torch.matmul(a, a)

    works: dict[str, tuple[float, Callable[[], Any]]]
    works = {"memory": (2 * one.nbytes, lambda: other.copy_(one))}
    works |= {k: (2 * 8192**3, partial(product, k == "tf32")) for k in ("float32", "tf32")}
    return _fastest(works, torch.cuda.synchronize)


def _fastest(works: dict[str, tuple[float, Callable[[], Any]]], wait: Callable[[], None]) -> dict[str, float]:
    rates = dict.fromkeys(works, 0.0)
    for name, (amount, work) in works.items():
        for _ in range(5):
            wait()
            start = time.perf_counter()
            work()
            wait()
            rates[name] = max(rates[name], amount / (time.perf_counter() - start))
    return rates


def at_ceiling(need: dict[str, Any], rates: dict[str, float]) -> tuple[float, str]:
    """Seconds at the ceiling that counts, and which that is."""
    kind = need["kind"]
    return max((need["bytes"] / rates["memory"], "memory"), (need["operations"] / rates[kind], kind))
