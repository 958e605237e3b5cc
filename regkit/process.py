"""Settings of a process that runs nothing but regkit, to be made before torch is imported."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

# glibc's mallopt: https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3


def tune() -> None:
    """Let idle threads sleep and keep memory that was freed; what the environment says stays.

    OpenMP's threads spin for a while when they have done their part of one of torch's operations, and take
    the processor from those of our kernels. And glibc gives arrays back to the system at once, which then
    clears the same pages for the next one.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in ((_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**24)):
                mallopt(parameter, value)
