"""Jobs on the workers of a Dask cluster, which may be many machines: https://distributed.dask.org"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from regkit.core.errors import RegkitError, install, reason

if TYPE_CHECKING:
    from distributed import Client

J = TypeVar("J")
R = TypeVar("R")
_SECONDS = 30  # to find the scheduler


def on_cluster(
    work: Callable[[J], R], jobs: Sequence[J], client: Client, died: Callable[[J, str], R]
) -> Generator[R, None, None]:
    """Do jobs on a cluster, and give what came of each as soon as it is done.

    A job whose worker dies goes to another worker; one that takes several workers with it has failed.

    Args:
        work: a function that the workers can import, that does a job and may do it again.
        died: makes the result of a job that no worker survived, of the job and what is known.

    Raises:
        RegkitError: if the scheduler is lost.
    """
    from distributed import KilledWorker, as_completed

    futures: dict[Any, J] = {client.submit(work, job, pure=False): job for job in jobs}
    try:
        for future in as_completed(list(futures)):
            try:
                result = future.result()
            except KilledWorker as error:
                result = died(futures[future], f"every worker that it was given to died: {reason(error)}")
            except Exception as error:
                raise RegkitError(
                    f"the cluster failed ({type(error).__name__}: {reason(error)}); what was finished is "
                    "kept, run the same command again to resume"
                ) from error
            yield result
            future.release()
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            client.cancel([future for future in futures if not future.done()])


@contextlib.contextmanager
def connected(scheduler: str) -> Iterator[Client]:
    """A client of the scheduler at an address, such as ``tcp://host:8786``.

    Raises:
        RegkitError: if Dask is missing, or nothing answers there.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise RegkitError(f"a cluster needs Dask: {install('cluster')}") from error
    try:
        client = Client(scheduler, timeout=_SECONDS, name="regkit")
    except (OSError, ValueError, TimeoutError) as error:
        raise RegkitError(
            f"no scheduler answers at '{scheduler}' ({reason(error)}); start one with 'dask scheduler', and "
            "give its address"
        ) from error
    with client:
        yield client
