"""The device, the threads and the seed that a computation runs with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import SimpleITK as sitk
import torch

from regkit.core.errors import RegkitError


@contextmanager
def reproducible(threads: int | None, seed: int) -> Iterator[None]:
    """Run with so many CPU threads, torch's generators at a seed, and gradients that can be taken.

    Whatever the caller's state is (no_grad, a seed of their own), it is the same afterwards.
    """
    with _threads(threads), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Run with so many CPU threads in torch and SimpleITK, and leave both as they were."""
    if threads is None:
        yield
        return
    if threads < 1:
        raise RegkitError(f"threads must be at least 1, got {threads}")
    before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[1])


def torch_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is a GPU if there is one."""
    if name not in ("auto", "cpu", "cuda"):
        raise RegkitError(f"no device named {name!r}; there is: auto, cpu, cuda")
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise RegkitError("torch finds no CUDA device here; use --device cpu or auto")
    return torch.device("cuda" if available and name != "cpu" else "cpu")
