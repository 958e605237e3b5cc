"""The batches of a run, drawn while earlier ones train; processes draw the anatomies beside a GPU.

A GPU cuts and renders pairs faster than it trains on them, many in a step, but a trunk takes a CPU seconds.
Whoever draws it, an anatomy is the same for its number.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch

from regkit.errors import RegkitError
from regkit.pretrain.step import Batch
from regkit.synthesis.anatomies import Anatomy
from regkit.synthesis.maps import LabelMaps
from regkit.synthesis.pairs import Pairs, Synthesiser, draw_anatomy
from regkit.synthesis.sources import Source

if TYPE_CHECKING:
    from regkit.pretrain.train import Trainer

_AHEAD = 2  # anatomies for each process, beyond those that take turns


@contextmanager
def batches(trainer: Trainer, workers: int = 0) -> Iterator[Iterator[Batch]]:
    """The batches of a trainer, from its next step to the last one, on its device.

    Args:
        workers: processes that draw their anatomies; with 0 the thread does that draws the batches.
    """
    with ThreadPoolExecutor(1) as thread:
        if workers:
            with _Workers(trainer, workers) as drawing:
                yield _in_turn(
                    thread, partial(trainer.batches, synthesiser=drawing.synthesiser), _groups(trainer)
                )
        else:
            yield _in_turn(thread, trainer.batches, _groups(trainer))


def _groups(trainer: Trainer) -> Iterator[range]:
    """The steps to come, those together that a GPU draws at once."""
    at_once = trainer.together if trainer.where.device.type == "cuda" else 1
    first, last = trainer.step, trainer.config.steps
    while first < last:
        end = min(first // at_once * at_once + at_once, last)
        yield range(first, end)
        first = end


def _in_turn(
    thread: ThreadPoolExecutor, draw: Callable[[range], list[Batch]], groups: Iterable[range]
) -> Iterator[Batch]:
    """Each batch, the following group drawn while those of one train."""
    drawn = None
    for group in groups:
        following = thread.submit(draw, group)
        if drawn:
            yield from drawn.result()
        drawn = following
    if drawn:
        yield from drawn.result()


class _Workers:
    """Processes that draw the anatomies of a run before they are asked for."""

    def __init__(self, trainer: Trainer, count: int) -> None:
        config, drawn_here = trainer.config, trainer.synthesiser
        self.bank, self.ahead = config.pairs.bank, config.pairs.bank + _AHEAD * count
        self.next = config.pairs.turns(trainer.pairs_of(trainer.step)[0][0])[0]
        self.drawn: dict[int, Future[bytes]] = {}
        self.pool = ProcessPoolExecutor(
            count,
            # Not a fork: this process has threads, and may have a GPU.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(config.pairs, drawn_here.sources, config.seed, drawn_here.maps),
        )
        self.synthesiser = Synthesiser(
            config.pairs, drawn_here.sources, config.seed, trainer.where.device, self.anatomy
        )

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)

    def anatomy(self, number: int) -> Anatomy:
        """The anatomy of a number; of those before it, only as many as take turns may be asked for later."""
        with _all_alive():
            for following in range(self.next, number + self.ahead + 1):
                self.drawn[following] = self.pool.submit(_drawn, following)
                self.next = following + 1
            for unasked in [other for other in self.drawn if other <= number - self.bank]:
                del self.drawn[unasked]
            anatomy: Anatomy = pickle.loads(self.drawn.pop(number).result())
            return anatomy


@contextmanager
def _all_alive() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise RegkitError(
            "a process that draws anatomies has ended, as for want of memory; take fewer with --workers"
        ) from error


# What a drawing process is made for.
_draw: Callable[[int], Anatomy]


def _begin(how: Pairs, sources: Sequence[tuple[Source, float]], seed: int, maps: Sequence[LabelMaps]) -> None:
    global _draw
    # A signal to all processes of a run is for the one that trains, which then ends these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _draw = partial(draw_anatomy, how, sources, seed, maps=maps)


def _leave_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)  # the main thread waits for work that nobody will send


def _drawn(number: int) -> bytes:
    """An anatomy, as bytes: tensors would travel in shared memory, of which there may be little."""
    return pickle.dumps(_draw(number))
