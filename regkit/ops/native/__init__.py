"""Compiled kernels for the hot loops on the CPU.

Each has a twin in torch, which says what it computes, serves every other device and type, and is what the
kernels are tested against.

The kernels are C without a dependency, compiled when regkit is installed. Where there was no compiler, regkit
is slower and says so once; with ``REGKIT_REQUIRE_KERNELS=1`` in the environment that is an error. What each
kernel takes stands in :mod:`regkit.ops.native.signatures`.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch

from regkit.core.errors import RegkitError
from regkit.ops.native.signatures import DIGEST, KERNELS, Argument, blocks

__all__ = [
    "Argument", "blocks", "empty", "empty_for", "fast_bfloat16", "fast_eightbit", "instructions", "run",
    "serves", "why_missing",
]  # fmt: skip

# By the number that instruction_set() of module.c returns.
_INSTRUCTIONS = ("those that every processor of its kind has", "AVX2 and FMA", "AVX-512")
_LINE = 64  # bytes of a cache line


def _open() -> ctypes.CDLL:
    """The library of kernels.

    Raises:
        OSError: if there is none, or one for another table of signatures.
    """
    spec = find_spec(f"{__name__}._kernels")
    if spec is None or spec.origin is None:
        raise OSError("they were not compiled when regkit was installed")
    library = ctypes.CDLL(spec.origin)
    # As after a pull into an editable install: other arguments would be written over who knows what.
    if not hasattr(library, "digest"):
        raise OSError("they were compiled for another version of regkit")
    library.digest.restype = ctypes.c_char_p
    if library.digest().decode() != DIGEST:
        raise OSError("they were compiled for another version of regkit")
    library.run.argtypes = [
        ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_int, ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_double),
    ]  # fmt: skip
    return library


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return _open()
    except OSError as error:
        if os.environ.get("REGKIT_REQUIRE_KERNELS") == "1":
            raise RegkitError(
                f"REGKIT_REQUIRE_KERNELS is set and there are no compiled kernels: {error}"
            ) from error
        warnings.warn(
            f"regkit runs without its compiled kernels and takes several times longer: {error}. Install it "
            "where there is a C compiler.",
            stacklevel=2,
        )
        return None


def why_missing() -> str | None:
    """Why there are no kernels, without a warning; None where there are."""
    try:
        _open()
    except OSError as error:
        return str(error)
    return None


@cache
def _instruction_set() -> int:
    """Which set of kernels is for this machine's instructions."""
    library = _library()
    assert library is not None
    return int(library.instruction_set())


def instructions() -> str:
    """The instructions of the processor that the kernels use. Only where there are kernels."""
    return _INSTRUCTIONS[_instruction_set()]


def serves(*tensors: torch.Tensor, dtype: torch.dtype = torch.float32) -> bool:
    """Whether the kernels can work on these: of the type, on the CPU, and the library is there."""
    return all(t.device.type == "cpu" and t.dtype == dtype for t in tensors) and _library() is not None


def fast_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 faster than float32."""
    library = _library()
    return library is not None and bool(library.fast_bfloat16())


def fast_eightbit() -> bool:
    """Whether this machine's processor has instructions for sums of products of 8 bits, and the kernels."""
    library = _library()
    return library is not None and bool(library.fast_eightbit())


def empty(*shape: int, dtype: type[np.generic] = np.float32) -> torch.Tensor:
    """Uninitialised. Unlike torch, numpy asks the system for huge pages, which for the largest arrays saves
    much of the time that they take to be had and read. These begin with a cache line, so that no cell of as
    many bytes lies in two.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    room = np.empty(size + _LINE, dtype=np.uint8)
    start = -room.ctypes.data % _LINE
    return torch.from_numpy(room[start : start + size].view(dtype).reshape(shape))


def empty_for(like: torch.Tensor, *shape: int) -> torch.Tensor:
    """Uninitialised, of a tensor's type and device: by :func:`empty` where that can be."""
    plain = like.is_cpu and like.dtype == torch.float32
    return empty(*shape) if plain else like.new_empty(shape)


def run(kernel: str, /, **arguments: Argument) -> float:
    """Call a kernel on as many threads as torch uses.

    Args:
        kernel: a name in the table of :mod:`regkit.ops.native.signatures`.
        arguments: by the names in the table; a tensor or array, an int, a float, or None for an array that
            may be left out.

    Returns:
        The sum of what the kernel returns for each range of its work, added in their order, so that the same
        number of threads gives the same sum.

    Raises:
        TypeError: if an argument is missing, unknown, or of another type.
        ValueError: if one is of another shape or order in memory, or overlaps another that is written.
        MemoryError: if there is no memory for the kernel's scratch.
    """
    library = _library()
    assert library is not None
    signature = KERNELS[kernel]
    count, packed = signature.checked(arguments)
    threads = max(1, min(torch.get_num_threads(), count))
    parts = 1 if threads == 1 else min(count, signature.ranges * threads)
    total = ctypes.c_double()
    status = library.run(
        _instruction_set(), signature.number, count, parts, threads, packed, ctypes.byref(total)
    )
    if status == 1:
        raise MemoryError(f"no memory for the kernel {kernel}")
    if status:
        raise RuntimeError(f"this machine's instructions have no kernel {kernel}")
    return total.value
