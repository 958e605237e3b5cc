"""Jobs in processes of this machine, each of which does one job after another.

The pool of concurrent.futures loses all that runs when one of its processes dies, and cannot tell which job
killed it. Here each process has a pipe of its own, whose end says who died.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from multiprocessing.connection import Connection, wait
from threading import Thread
from typing import Any, TypeVar

from regkit.core.errors import RegkitError
from regkit.runtime.process import leave, tune

J = TypeVar("J")
R = TypeVar("R")
_READY = "ready"
# What libraries read once, when they are imported, to know how many threads to start.
_THREADS = (
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS",
)
_SECONDS = 5.0  # that a process has to end when it is told to


def in_processes(
    work: Callable[[J], R],
    jobs: Sequence[J],
    workers: int,
    threads: int,
    died: Callable[[J, str], R],
) -> Generator[R, None, None]:
    """Do jobs in processes, and give what came of each as soon as it is done.

    Whatever ends the iteration early, such as Ctrl-C, ends the processes at once.

    Args:
        work: a function of a module, that does a job.
        threads: of each process.
        died: makes the result of a job whose process died, of the job and what is known.

    Raises:
        RegkitError: if a process cannot start.
    """
    todo = deque(jobs)
    running: dict[Connection, _WorkerProcess] = {}
    try:
        while todo or running:
            while todo and len(running) < workers:
                process = _WorkerProcess(work, threads)
                running[process.pipe] = process
            for pipe in wait(list(running)):
                assert isinstance(pipe, Connection)
                process = running[pipe]
                try:
                    message = pipe.recv()
                except (EOFError, OSError) as error:  # it died
                    del running[pipe]
                    reason = process.ended()
                    if not process.started:
                        raise RegkitError(
                            f"a process for the pairs could not start ({reason}); in a script of your own, "
                            "call regkit.batch below: if __name__ == '__main__':"
                        ) from error
                    yield died(process.job, reason)
                    continue
                finished, process.started = process.started, True
                if todo:
                    process.give(todo.popleft())
                else:
                    del running[pipe]
                    process.ended()
                if finished:
                    yield message
    finally:
        for process in running.values():
            process.kill()


class _WorkerProcess:
    """A process that waits for jobs, and the end of its pipe."""

    def __init__(self, work: Callable[[Any], Any], threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy locks of threads that it has not
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, threads), daemon=True)
        self.process.start()
        theirs.close()  # so that the pipe ends with the process
        self.started = False
        self.job: Any = None
        # Not as an argument: it would be imported, and torch with it, before the process is set up for it.
        self._send(work)

    def give(self, job: Any) -> None:
        self.job = job
        self._send(job)

    def _send(self, what: Any) -> None:
        with contextlib.suppress(OSError):  # it died meanwhile, which the pipe will say
            self.pipe.send(what)

    def ended(self) -> str:
        """Wait for the end of the process, and tell what it was."""
        self.pipe.close()
        self.process.join(_SECONDS)
        code = self.process.exitcode
        self.kill()
        if code is None or code >= 0:
            return f"its process ended with code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}{'; memory may have run out' if name == 'SIGKILL' else ''}"

    def kill(self) -> None:
        self.pipe.close()
        self.process.kill()
        self.process.join()
        self.process.close()


def _serve(pipe: Connection, threads: int) -> None:
    """Do jobs until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the process that started this one
    Thread(target=_end_with_parent, daemon=True).start()
    for name in _THREADS:
        os.environ[name] = str(threads)
    tune()
    try:
        work = pipe.recv()
        pipe.send(_READY)
        while True:
            pipe.send(work(pipe.recv()))
    except (EOFError, OSError):
        leave(0)


def _end_with_parent() -> None:
    """Should the process that started this one be killed, this one ends as well, whatever it does."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
