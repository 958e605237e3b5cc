"""Which code does an operation: its reference in torch, or a kernel in C or Triton that takes its place.

    @operation
    def smooth(volume, passes=1): ...            # says what it computes, on any device, for any type

    @smooth.kernel("c", lambda volume, passes=1: native.serves(volume))
    def _smooth_by_c(volume, passes=1): ...      # the same function, where the condition holds

Who calls ``smooth`` need not know. ``tests/test_dispatch.py`` holds every kernel of :data:`OPERATIONS`
against its reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import update_wrapper
from typing import Any, Generic, Literal, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Backend = Literal["c", "triton"]


@dataclass(frozen=True)
class Kernel(Generic[P, R]):
    """What does an operation instead of its reference.

    Args:
        takes: whether it is for these arguments, on this machine.
        run: takes what the operation takes.
    """

    backend: Backend
    takes: Callable[..., bool]
    run: Callable[P, R]


class Operation(Generic[P, R]):
    """A function that is done by the first of its kernels that takes the arguments, else by the reference."""

    def __init__(self, reference: Callable[P, R]) -> None:
        self.reference = reference
        self.kernels: dict[Backend, Kernel[P, R]] = {}
        update_wrapper(self, reference)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        for kernel in self.kernels.values():
            if kernel.takes(*args, **kwargs):
                return kernel.run(*args, **kwargs)
        return self.reference(*args, **kwargs)

    def kernel(
        self, backend: Backend, takes: Callable[..., bool]
    ) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Register a function as a kernel of this operation.

        Raises:
            ValueError: if the operation has one of this backend.
        """
        if backend in self.kernels:
            raise ValueError(f"{self.__name__} has a kernel in {backend} already")

        def register(run: Callable[P, R]) -> Callable[P, R]:
            self.kernels[backend] = Kernel(backend, takes, run)
            return run

        return register

    __name__: str


OPERATIONS: dict[str, Operation[..., Any]] = {}
"""By their module and name, of the modules that are imported."""


def operation(reference: Callable[P, R]) -> Operation[P, R]:
    """Make a function the reference of an operation."""
    made = Operation(reference)
    OPERATIONS[f"{reference.__module__}.{reference.__name__}"] = made
    return made
