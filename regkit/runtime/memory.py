"""Memory: predict what a registration needs, and keep it below a limit.

The bytes a voxel were measured on volumes of 0.9 to 33 million voxels of int16 (``benchmarks/memory.py``).
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import replace

from regkit.core.errors import MemoryLimitError
from regkit.core.settings import Settings

GB = 1e9
# Of both images while they are compared or read; of the larger one while features are made of it.
_KEPT, _READ, _BLURRED = 8, 11.5, 14
_PER_CHANNEL = 5
_PER_WORKING_VOXEL, _WHILE_FEATURES, _LEFT_BEHIND = 170, 60, 40
_FIELD, _LABELS = 38, 18
_AFTER = {"moved": 52, "h5": 62, "inverse": 21}
_HELD_INVERSE = 12
_FIXED_PART, _FIXED_PART_LATE = 75e6, 110e6
# Of a working grid that is made coarser for want of memory: a fourth of what the preset "fast" has.
_MIN_VOXELS = 250_000
_ROUNDING = 0.9


def registration_bytes(
    fixed: int,
    moving: int,
    working: int,
    *,
    labels: bool = False,
    outputs: Collection[str] = (),
    further: int = 0,
    channels: int = 0,
) -> float:
    """The most bytes at a time, beyond those of the program before it begins.

    Args:
        fixed, moving, working: voxels of the images, and of the working grid; 0 of one that a GPU holds.
        labels: whether label maps are moved and measured.
        outputs: what is made of the result: "moved", "inverse", "h5".
        further: voxels of further images and of label maps that guide; ``channels``: of their features.
    """
    images = _KEPT * (fixed + moving + further)
    per_voxel = _PER_WORKING_VOXEL + _PER_CHANNEL * channels
    warp = (_FIELD + (_LABELS if labels else 0)) * fixed
    # Labels and the inverse are held while the others are made.
    held = (_HELD_INVERSE * moving if "inverse" in outputs else 0) + (2 * fixed if labels else 0)
    late = [warp]
    for name in outputs:
        late.append(_AFTER[name] * (fixed + moving if name == "inverse" else fixed) + held)
    return max(
        _READ * (fixed + moving) + _FIXED_PART,
        images + per_voxel * working + _FIXED_PART,
        images + _BLURRED * max(fixed, moving) + _WHILE_FEATURES * working + _FIXED_PART,
        images + max(late) + _LEFT_BEHIND * working + _FIXED_PART_LATE,
    )


def fitting(
    settings: Settings,
    fixed: int,
    moving: int,
    working: int,
    base: float,
    cap: float | None,
    *,
    labels: bool = False,
    outputs: Collection[str] = (),
    further: int = 0,
    channels: int = 0,
) -> tuple[Settings, float]:
    """The settings, with a coarser working grid where that keeps a registration below a cap; and its peak.

    Args:
        base: bytes of the program before it began.
        cap: bytes that it may take in all; by default what the machine has left, within which nothing is
            made coarser.
        labels, outputs, further, channels: as for :func:`registration_bytes`.

    Returns:
        The settings and the bytes at the peak.

    Raises:
        RegkitError: if it takes more than the cap, or than the machine has.
    """

    def peak(voxels: int) -> float:
        return base + registration_bytes(
            fixed, moving, voxels, labels=labels, outputs=outputs, further=further, channels=channels
        )

    left = available_memory() + resident_memory()
    allowed = min(left, math.inf if cap is None else cap)
    needed = peak(working)
    if needed <= allowed:
        return settings, needed
    fewer = next((n for n in range(working, 0, -max(1, working // 200)) if peak(n) <= allowed), 0)
    if cap is not None and fewer >= _MIN_VOXELS:
        warnings.warn(
            f"the working grid has {fewer / 1e6:.2g} in place of {working / 1e6:.2g} million voxels, to stay "
            f"below {allowed / GB:.3g} GB: the warp will be less fine",
            stacklevel=3,
        )
        # Sides are rounded up to whole steps of the search.
        return replace(settings, max_voxels=int(_ROUNDING * fewer)), peak(fewer)
    minimum = peak(min(working, _MIN_VOXELS))
    there = f"{left / GB:.3g} GB are left" if allowed == left else f"it may take {allowed / GB:.3g} GB"
    hint = f"--memory {minimum / GB:.3g} does with a coarser grid; " if minimum < min(needed, left) else ""
    raise MemoryLimitError(
        f"this registration needs {needed / GB:.3g} GB of memory, and {there}: {hint}crop the images or "
        "resample them to larger voxels"
    )


_CAP: ContextVar[float] = ContextVar("bytes that the program may take", default=math.inf)


@contextlib.contextmanager
def capped(cap: float | None) -> Iterator[None]:
    """Within the block files are refused that would make the program larger than so many bytes."""
    token = _CAP.set(math.inf if cap is None else cap)
    try:
        yield
    finally:
        _CAP.reset(token)


def available_memory() -> float:
    """Bytes that are left; infinite where the system does not tell."""
    with contextlib.suppress(OSError, ValueError, StopIteration, IndexError), open("/proc/meminfo") as stream:
        return 1024.0 * next(int(line.split()[1]) for line in stream if line.startswith("MemAvailable"))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def resident_memory() -> float:
    """Bytes that this process holds; 0 where the system does not tell."""
    with (
        contextlib.suppress(OSError, ValueError, IndexError, AttributeError),
        open("/proc/self/statm") as stream,
    ):
        return float(int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return 0.0


def peak_mb() -> float:
    """The most memory that this process has held so far, MB; NaN where the system does not tell."""
    # The account of resources, which is the same elsewhere, counts from the peak of the parent process.
    with suppress(OSError, StopIteration, ValueError), open("/proc/self/status") as stream:
        return int(next(line for line in stream if line.startswith("VmHWM")).split()[1]) / 2**10
    return _accounted_mb("RUSAGE_SELF", float("nan"))


def peak_mb_of_children() -> float:
    """The most memory that one of the processes held that this one has started and that have ended, MB; 0
    where the system does not tell.
    """
    return _accounted_mb("RUSAGE_CHILDREN", 0.0)


def _accounted_mb(who: str, unknown: float) -> float:
    try:
        import resource
    except ImportError:  # Windows has no such account
        return unknown
    peak = resource.getrusage(getattr(resource, who)).ru_maxrss
    return float(peak / (2**20 if sys.platform == "darwin" else 2**10))


def check_fits_memory(voxels: int, what: str, bytes_per_voxel: int = 8) -> None:
    """Raise RegkitError if so many voxels need more memory than may be taken."""
    needed, available, cap = voxels * bytes_per_voxel, available_memory(), _CAP.get()
    taken = resident_memory()
    if needed > cap - taken and needed <= available:
        raise MemoryLimitError(
            f"{what} needs {needed / GB:.2g} GB of memory for its {voxels:,} voxels, beside "
            f"{taken / GB:.2g} GB of the program, which may take {cap / GB:.3g} GB in all; allow more, or "
            "crop it"
        )
    if needed > available:
        raise MemoryLimitError(
            f"{what} needs {needed / 2**30:,.1f} GiB of memory for its {voxels:,} voxels, but only "
            f"{available / 2**30:,.1f} GiB are available; crop it or resample it to larger voxels"
        )
