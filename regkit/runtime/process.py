"""Settings of a process that runs only regkit, made before torch is imported.

``REGKIT_TRICKS`` in the environment says which are used: ``all`` (the default), ``none``, or names with
commas between. Results do not depend on it. ``python benchmarks/speed.py tricks`` measures what each saves.
In brackets are the CPU seconds that it saved of the start of a process, which takes 1.3 with all of them and
2.6 with none (medians of three, in turn, AMD EPYC, commit c7cdb0c).

* ``garbage``: while torch is imported, Python does not look for garbage, of which there is none (0.2).
* ``torch``: it is imported without what only its compiler needs, where there is no GPU (0.3).
* ``exit``: the process ends without taking down piece by piece what torch has loaded (0.5).
* ``threads``: OpenMP's idle threads sleep. Else they spin after each of torch's operations and take the
  processor from those of our kernels.
* ``memory``: glibc keeps memory that was freed. Else it gives arrays back to the system, which clears the
  same pages for the next one. This and the sleeping threads took a registration from 8.1 to 7.0 s
  (docs/lab/speed.md).
* ``parser``: the process in which ITK parses a file imports it without what needs numpy, and ends at once.

They have to be made before torch is imported.
"""

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

SWITCH = "REGKIT_TRICKS"
TRICKS = ("garbage", "threads", "memory", "torch", "exit", "parser")

# glibc's mallopt: https://sourceware.org/glibc/manual/latest/html_node/Malloc-Tunable-Parameters.html
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_NEW_OBJECTS = 1_000_000  # several times those of all imports
# A third of torch's import: what its compiler has to know of every operation.
_COMPILER = "torch._meta_registrations"


def uses(trick: str) -> bool:
    """Whether a trick of :data:`TRICKS` is switched on."""
    chosen = os.environ.get(SWITCH, "all")
    return chosen == "all" or trick in chosen.split(",")


def tune() -> None:
    """The tricks ``garbage``, ``threads`` and ``memory``; what the environment says of them stays."""
    if uses("garbage"):
        gc.set_threshold(_NEW_OBJECTS)
    if uses("threads"):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    own = any(name.startswith("MALLOC_") for name in os.environ)
    if uses("memory") and sys.platform == "linux" and not own:
        with contextlib.suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            for parameter, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**30), (_TOP_PAD, 2**24)):
                mallopt(parameter, value)


def import_torch() -> None:
    """Import torch, by the trick ``torch``.

    Not before training: an optimiser imports the compiler, whose parts import each other in circles that only
    end if they are begun here.
    """
    if not uses("torch"):
        import_module("torch")
        return
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
    """End the process, by the trick ``exit``."""
    if not uses("exit"):
        sys.exit(code)
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
