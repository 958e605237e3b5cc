"""The hot loops on an NVIDIA GPU: kernels in Triton, which comes with torch for CUDA, and their graphs.

As with :mod:`regkit.ops.native`, each kernel has a twin in torch, which says what it computes, serves where
Triton is missing, and is what the kernels are tested against.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec

import torch

_DEVICE = "cuda"
_MAX_ELEMENTS = 2**31  # of a tensor, which the kernels count in 32 bits


@cache
def _usable() -> bool:
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "regkit runs without its kernels for the GPU and takes several times longer: Triton is not installed "
        "(pip install triton, or triton-windows)",
        stacklevel=3,
    )
    return False


def serves(*tensors: torch.Tensor) -> bool:
    """Whether the kernels can work on these: float32 on a GPU of NVIDIA's, and Triton is there."""
    return (
        all(t.device.type == _DEVICE and t.dtype == torch.float32 for t in tensors)
        and all(t.numel() < _MAX_ELEMENTS for t in tensors)
        and _usable()
    )


def repeat(work: Callable[[], None], times: int, on_round: Callable[[], None]) -> None:
    """Do ``work`` on a GPU over and over: once as it is, then as a graph that is captured and replayed.

    Between the rounds the host waits for nothing. What ``work`` changes in place goes on from round to round;
    where it must do another thing in each, it counts on the device.

    Args:
        work: launches the same kernels on the same tensors whenever it is called, and asks for no value.
        on_round: called when a round has been launched.
    """
    work()
    on_round()
    if times < 2:
        return
    # Not torch.cuda.graph(), which first collects garbage and gives back all memory that torch holds.
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        graph.capture_begin(capture_error_mode="thread_local")
        try:
            work()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    for _ in range(times - 1):
        graph.replay()
        on_round()
