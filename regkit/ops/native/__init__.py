"""Compiled kernels for the hot loops on the CPU.

Each has a twin in torch, which says what it computes, serves every other device and type, and is what the
kernels are tested against.

The kernels are C without a dependency, compiled when regkit is installed. Where there was no compiler, regkit
is slower and says so once.
"""

from __future__ import annotations

import ctypes
import math
import os
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch

Argument = torch.Tensor | np.ndarray | int | float | None
BLOCK = 2048  # of kernels.h
_VERSION = 14  # of the kernels; see module.c
_INSTRUCTIONS = {"_v4": "AVX-512", "_v3": "AVX2 and FMA"}  # by the suffix of module.c
_LINE = 64  # bytes of a cache line
_PARTS_PER_THREAD = 4
_MOST_THREADS = 8  # Python hands the parts out, which takes longer than 16 save (measured)
_pool: ThreadPoolExecutor | None = None


def _open() -> ctypes.CDLL:
    """The library of kernels.

    Raises:
        OSError: if there is none, or one of another version.
    """
    found = find_spec("regkit.ops.native._kernels")
    if found is None or found.origin is None:
        raise OSError("they were not compiled when regkit was installed")
    library = ctypes.CDLL(found.origin)
    # As after a pull into an editable install: other arguments would be written over who knows what.
    if not hasattr(library, "version") or library.version() != _VERSION:
        raise OSError("they were compiled for another version of regkit")
    return library


@cache
def _library() -> ctypes.CDLL | None:
    try:
        return _open()
    except OSError as error:
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
def _suffix() -> str:
    """What the names of the kernels for this machine's instructions end with."""
    library = _library()
    assert library is not None
    library.suffix.restype = ctypes.c_char_p
    own: bytes = library.suffix()
    return own.decode()


def instructions() -> str:
    """The instructions of the processor that the kernels use. Only where there are kernels."""
    return _INSTRUCTIONS.get(_suffix(), "those that every processor of its kind has")


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


def blocks(count: int) -> int:
    """How many blocks hold so many cells or values, for the kernels that count in them."""
    return -(-count // BLOCK)


def run(kernel: str, count: int, *arguments: Argument, parts_per_thread: int = _PARTS_PER_THREAD) -> float:
    """Call a kernel for ranges that make up ``count``, on as many threads as torch uses, up to eight.

    Args:
        kernel: name of a function ``double (int64_t first, int64_t last, ...)``.
        parts_per_thread: more of them leave what a thread that is held up does not do to the others; fewer
            suit a kernel that does something more for each range.
        arguments: what follows. A tensor or array, which lies in memory in the order of its axes, is passed
            as the address of its data, an int as ``int64_t``, a float as ``double``, None as a null pointer.

    Returns:
        The sum of what the calls return, always added in the same order.
    """
    library = _library()
    assert library is not None
    function = library[kernel + _suffix()]
    function.restype = ctypes.c_double
    passed = [_passed(value) for value in arguments]
    threads = max(1, min(torch.get_num_threads(), _MOST_THREADS, count))
    parts = 1 if threads == 1 else min(count, parts_per_thread * threads)
    found = [0.0] * parts
    left: Iterator[int] = iter(range(parts))  # next() of it is atomic

    def work() -> None:
        while (k := next(left, None)) is not None:
            first, last = count * k // parts, count * (k + 1) // parts
            found[k] = float(function(ctypes.c_int64(first), ctypes.c_int64(last), *passed))

    others = [_threads().submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        # Interrupted or not: nobody writes to the arguments once they are the caller's again.
        left = iter(())
        for other in others:
            other.result()
    return sum(found)


def _passed(value: Argument) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_double:
    if isinstance(value, torch.Tensor):
        return ctypes.c_void_p(value.data_ptr())
    if isinstance(value, np.ndarray):
        return ctypes.c_void_p(value.ctypes.data)
    if value is None:
        return ctypes.c_void_p(None)
    return ctypes.c_int64(int(value)) if isinstance(value, (int, np.integer)) else ctypes.c_double(value)


def _threads() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max(1, (os.cpu_count() or 1) - 1), "regkit")
    return _pool


def _forget_pool() -> None:
    global _pool
    _pool = None


# A forked process has none of its parent's threads.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
