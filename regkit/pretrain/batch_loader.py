"""The batches of a run, drawn while earlier ones train; processes draw the anatomies beside a GPU.

A GPU cuts and renders pairs faster than it trains on them, many in a step, but a trunk takes a CPU seconds.
Whoever draws it, an anatomy is the same for its number.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Protocol

import torch

from regkit.core.errors import RegkitError
from regkit.pretrain.config import Config
from regkit.pretrain.step import Batch
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.label_maps import LabelMaps
from regkit.synthesis.pairs import Pairs, Synthesiser, draw_anatomy
from regkit.synthesis.shape_sources import ShapeSource

_AHEAD = 2  # anatomies for each process, beyond those that take turns


class BatchSource(Protocol):
    """What is drawn for: :class:`regkit.pretrain.train.PretrainTrainer` says what each of these is."""

    config: Config
    synthesiser: Synthesiser
    step: int

    @property
    def device(self) -> torch.device: ...

    @property
    def together(self) -> int: ...

    def pairs_of(self, step: int) -> tuple[range, tuple[int, ...]]: ...

    def batches(self, steps: range, synthesiser: Synthesiser | None = None) -> list[Batch]: ...


@contextmanager
def batches(trainer: BatchSource, workers: int = 0) -> Iterator[Iterator[Batch]]:
    """The batches of a trainer, from its next step to the last one, on its device.

    Args:
        workers: processes that draw their anatomies; with 0 the thread does that draws the batches.
    """
    with ThreadPoolExecutor(1) as thread:
        if workers:
            with _AnatomyWorkers(trainer, workers) as drawing:
                yield _in_turn(
                    thread, partial(trainer.batches, synthesiser=drawing.synthesiser), step_groups(trainer)
                )
        else:
            yield _in_turn(thread, trainer.batches, step_groups(trainer))


def step_groups(trainer: BatchSource) -> Iterator[range]:
    """The steps to come, those together that a GPU draws at once."""
    at_once = trainer.together if trainer.device.type == "cuda" else 1
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


class _AnatomyWorkers:
    """Processes that draw the anatomies of a run before they are asked for."""

    def __init__(self, trainer: BatchSource, count: int) -> None:
        config, drawn_here = trainer.config, trainer.synthesiser
        self.bank, self.ahead = config.pairs.bank, config.pairs.bank + _AHEAD * count
        self.next = config.pairs.turns(trainer.pairs_of(trainer.step)[0][0])[0]
        self.drawn: dict[int, Future[bytes]] = {}
        drawing = (config.pairs, drawn_here.sources, config.seed, drawn_here.maps)
        self.processes = [_AnatomyProcess(*drawing) for _ in range(count)]
        self.idle: SimpleQueue[_AnatomyProcess] = SimpleQueue()
        for process in self.processes:
            self.idle.put(process)
        self.threads = ThreadPoolExecutor(count)  # each waits for the answer of one process
        self.synthesiser = Synthesiser(
            config.pairs, drawn_here.sources, config.seed, trainer.device, self.anatomy
        )

    def __enter__(self) -> _AnatomyWorkers:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.end()
        self.threads.shutdown(cancel_futures=True)
        for process in self.processes:
            process.pipe.close()

    def anatomy(self, number: int) -> Anatomy:
        """The anatomy of a number; of those before it, only as many as take turns may be asked for later."""
        for following in range(self.next, number + self.ahead + 1):
            self.drawn[following] = self.threads.submit(self._draw, following)
            self.next = following + 1
        for unasked in [other for other in self.drawn if other <= number - self.bank]:
            del self.drawn[unasked]
        answer = pickle.loads(self.drawn.pop(number).result())
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Anatomy)
        return answer

    def _draw(self, number: int) -> bytes:
        process = self.idle.get()
        try:
            return process.draw(number)
        finally:
            self.idle.put(process)


class _AnatomyProcess:
    """A process that draws one anatomy at a time.

    It has a pipe of its own, whose far end nobody else holds. When the process ends, even halfway through an
    answer, the pipe closes, and whoever waits for the answer is told. With ProcessPoolExecutor all share one
    pipe, and the wait for the rest of such an answer never ends.
    """

    def __init__(
        self,
        settings: Pairs,
        sources: Sequence[tuple[ShapeSource, float]],
        seed: int,
        maps: Sequence[LabelMaps],
    ) -> None:
        # Not a fork: this process has threads, and may have a GPU.
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, settings, sources, seed, maps))
        self.process.start()
        theirs.close()

    def draw(self, number: int) -> bytes:
        """The anatomy of a number, or the exception that drawing it raised, pickled.

        Raises:
            RegkitError: the process has ended.
        """
        try:
            self.pipe.send(number)
            return self.pipe.recv_bytes()
        except (EOFError, OSError) as error:
            raise RegkitError(
                "a process that draws anatomies has ended, perhaps for lack of memory; take fewer with "
                "--workers"
            ) from error

    def end(self) -> None:
        self.process.kill()  # it ignores gentler signals
        self.process.join()


def _serve(
    pipe: Connection,
    settings: Pairs,
    sources: Sequence[tuple[ShapeSource, float]],
    seed: int,
    maps: Sequence[LabelMaps],
) -> None:
    # A signal to all processes of a run is for the one that trains, which then ends these.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    with suppress(EOFError, OSError):  # the process that trains has ended
        while True:
            answer = _answer(settings, sources, seed, maps, pipe.recv())
            # Bytes, because tensors would travel in shared memory, of which there may be little.
            pipe.send_bytes(pickle.dumps(answer))


def _answer(
    settings: Pairs,
    sources: Sequence[tuple[ShapeSource, float]],
    seed: int,
    maps: Sequence[LabelMaps],
    number: int,
) -> Anatomy | Exception:
    try:
        return draw_anatomy(settings, sources, seed, number, maps=maps)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return error
