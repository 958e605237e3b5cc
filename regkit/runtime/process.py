"""Settings of a process that runs nothing but regkit, to be made before torch is imported."""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any, NoReturn

# glibc's mallopt: https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEW_OBJECTS = 1_000_000  # several times those of all imports
# A third of torch's import: what its compiler has to know of every operation.
_COMPILER = "torch._meta_registrations"


def tune() -> None:
    """Let idle threads sleep and keep memory that was freed; what the environment says stays.

    OpenMP's threads spin for a while when they have done their part of one of torch's operations, and take
    the processor from those of our kernels. glibc gives arrays back to the system at once, which then clears
    the same pages for the next one. And while torch is imported, Python looks time and again through all
    that is there already for garbage.
    """
    gc.set_threshold(_NEW_OBJECTS)
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if sys.platform == "linux" and not any(name.startswith("MALLOC_") for name in os.environ):
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**24)):
                mallopt(parameter, value)


def import_torch() -> None:
    """Import torch; where there is no GPU without what only its compiler needs, a third of the time.

    Not before training: an optimiser imports the compiler, whose parts import each other in circles that only
    end if they are begun here.
    """
    sys.modules.setdefault(_COMPILER, _Later(_COMPILER))
    if import_module("torch.cuda").is_available():
        _ready(_COMPILER)


def prepare_to_compute() -> None:
    """:func:`tune` and :func:`import_torch`: how a command begins that computes and does not train."""
    tune()
    import_torch()


def _ready(name: str) -> ModuleType:
    """A module, in place of what stands for it."""
    if isinstance(sys.modules[name], _Later):
        del sys.modules[name]
    return import_module(name)


class _Later(ModuleType):
    """Stands for a module until something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python asks of every module
            raise AttributeError(name)
        return getattr(_ready(self.__name__), name)


@contextlib.contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """In the block a SIGTERM, as schedulers of jobs send it, does what Ctrl-C does."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGTERM)
    with contextlib.suppress(ValueError):  # in another thread than the main one
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            signal.signal(signal.SIGTERM, before)


def leave(code: int) -> NoReturn:
    """End the process at once: taking down what torch has loaded piece by piece takes Python 0.4 s."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None and not stream.closed:
            try:
                stream.flush()
            except OSError:
                code = code or 120  # as Python ends where its last output cannot be written
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).fflush(None)  # what libraries of C have printed
    os._exit(code)
