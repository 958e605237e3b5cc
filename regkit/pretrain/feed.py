"""The batches of a run, drawn while earlier ones train: in a thread, or in processes on a CPU.

A GPU trains on a pair in less time than any one thread takes to draw it. Whoever draws it, a pair is the same
for its number, and batches come in the order of their steps.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from regkit.errors import RegkitError
from regkit.pretrain.step import Batch, stacked, with_equalised_images
from regkit.synthesis.pairs import Pairs, Synthesiser
from regkit.synthesis.sources import Source

if TYPE_CHECKING:
    from regkit.pretrain.train import Trainer

_AHEAD = 64  # pairs for each process: they last while it draws a new trunk, which takes seconds
_MOST_BYTES = 4 << 30  # of pairs that wait
_BYTES_A_VOXEL = 12  # of a pair

Arrays = dict[str, np.ndarray]


@contextmanager
def batches(trainer: Trainer, workers: int = 0) -> Iterator[Iterator[Batch]]:
    """The batches of a trainer, from its next step to the last one, on its device.

    Args:
        workers: processes that draw them, on a CPU; with 0 a thread does, on the trainer's device.
    """
    steps = range(trainer.step, trainer.config.steps)
    if workers:
        with _Workers(trainer, workers) as pool:
            yield _in_turn(pool.submit, steps, pool.ahead)
    else:
        with ThreadPoolExecutor(1) as thread:
            yield _in_turn(lambda step: thread.submit(trainer.batch, step).result, steps, 1)


def _in_turn(
    submit: Callable[[int], Callable[[], Batch]], steps: Sequence[int], ahead: int
) -> Iterator[Batch]:
    pending: deque[Callable[[], Batch]] = deque()
    for step in steps:
        pending.append(submit(step))
        if len(pending) > ahead:
            yield pending.popleft()()
    while pending:
        yield pending.popleft()()


class _Workers:
    """Processes that draw pairs. All pairs of an anatomy are drawn by one of them, which alone holds it."""

    def __init__(self, trainer: Trainer, count: int) -> None:
        self.trainer = trainer
        config = trainer.config
        shapes = config.pairs.shapes or ((config.pairs.size,) * 3,)
        bytes_each = _BYTES_A_VOXEL * max(int(np.prod(shape)) for shape in shapes)
        pairs = min(_AHEAD * count, _MOST_BYTES // bytes_each)
        self.ahead = max(1, pairs // (config.batch // trainer.where.world))
        self.pools = [
            ProcessPoolExecutor(
                1,
                # Not a fork: this process has threads, and may have a GPU.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(config.pairs, trainer.synthesiser.sources, config.seed),
            )
            for _ in range(count)
        ]

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        for pool in self.pools:  # all are told before any is waited for
            pool.shutdown(wait=False, cancel_futures=True)
        for pool in self.pools:
            pool.shutdown()

    def submit(self, step: int) -> Callable[[], Batch]:
        numbers, shape = self.trainer.pairs_of(step)
        drawn: list[Future[Arrays]] = []
        with _all_alive():
            for number in numbers:
                pool = self.pools[self.trainer.synthesiser.anatomy_of(number) % len(self.pools)]
                drawn.append(pool.submit(_drawn, number, shape, self.trainer.config.stride))
        return lambda: self._joined(drawn)

    def _joined(self, drawn: list[Future[Arrays]]) -> Batch:
        with _all_alive():
            parts = [future.result() for future in drawn]
        device = self.trainer.where.device
        batch = Batch(
            **{
                name: torch.cat([torch.from_numpy(part[name]) for part in parts]).to(device)
                for name in parts[0]
            }
        )
        return with_equalised_images(batch)


@contextmanager
def _all_alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RegkitError(
            "a process that draws pairs has ended, as for want of memory; take fewer with --workers"
        ) from error


# What a drawing process is made for.
_synthesiser: Synthesiser


def _begin(how: Pairs, sources: Sequence[tuple[Source, float]], seed: int) -> None:
    global _synthesiser
    # A signal to all processes of a run is for the one that trains, which then ends these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _synthesiser = Synthesiser(how, sources, seed, torch.device("cpu"))


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the main thread waits for work that nobody will send


def _drawn(number: int, shape: tuple[int, ...], stride: int) -> Arrays:
    """A batch of one pair, as arrays: tensors would need shared memory, of which there may be little."""
    batch = stacked([_synthesiser.pair(number, shape)], stride)
    return {name: tensor.numpy() for name, tensor in vars(batch).items()}
