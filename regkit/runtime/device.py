"""The device, the threads and the seed that a computation runs with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import SimpleITK as sitk
import torch

from regkit.core.errors import UsageError


@contextmanager
def reproducible(threads: int | None, seed: int) -> Iterator[None]:
    """Run with so many CPU threads, torch's generators at a seed, and gradients that can be taken.

    Whatever the caller's state is (no_grad, a seed of their own), it is the same afterwards.
    """
    with _threads(threads), torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def current(device: torch.device) -> AbstractContextManager[object]:
    """Run with a GPU as the current one: kernels of Triton's go to that, wherever their tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    """Run with so many CPU threads in torch and SimpleITK, and leave both as they were."""
    if threads is None:
        yield
        return
    if threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}")
    before = torch.get_num_threads(), sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    torch.set_num_threads(threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(before[1])


def torch_device(name: str | torch.device) -> torch.device:
    """A device, or that of a name: ``auto`` (a GPU if there is one), ``cpu``, ``cuda`` or ``cuda:1``."""
    available = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if available else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise UsageError(f"no device named {str(name)!r}; available: auto, cpu, cuda, cuda:1")
    if device.type == "cuda" and not available:
        raise UsageError("torch finds no CUDA device here; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"there is no device {device}: torch finds {torch.cuda.device_count()} here")
    return device
