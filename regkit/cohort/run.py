"""A whole cohort: what is to be done, by whom, and what came of it."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regkit.cohort.bids import describe_derivatives
from regkit.cohort.html_page import level_of
from regkit.cohort.pair_job import Job, failed_row, register_pair
from regkit.cohort.pairs import OUTPUTS, REPORT, SUMMARY, Pair, listed_pairs, read_table
from regkit.cohort.processes import in_processes
from regkit.cohort.result_rows import BEGUN, FAILED, STATE, Row, read_row, write_row
from regkit.cohort.summary import write_summary
from regkit.core.errors import RegkitError
from regkit.core.settings import Settings, changed_settings
from regkit.io.atomic import clean, make_folder
from regkit.io.provenance import version
from regkit.runtime.memory import GB, available_memory, registration_bytes

if TYPE_CHECKING:
    from distributed import Client

_PROCESS = 0.5e9  # bytes of a process before it begins with a pair
_SHARE = 0.8  # of the memory that is left
_LARGEST = 20  # pairs whose headers are looked at for their memory


@dataclass(frozen=True)
class Cohort:
    """What :func:`batch` found.

    Args:
        folder: of all results.
        rows: of all pairs, in their order (:mod:`regkit.cohort.result_rows`). Pairs that another part of the
            cohort does are rows as far as they are done.
    """

    folder: Path
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """Pairs that could not be registered."""
        return [row for row in self.rows if row["status"] == FAILED]

    def count(self, level: str) -> int:
        """How many pairs are "PASS", "WARN" or "FAIL", "failed" or "pending"."""
        return [level_of(row) for row in self.rows].count(level)

    @property
    def summary(self) -> Path:
        """The table of all pairs."""
        return self.folder / SUMMARY

    @property
    def report(self) -> Path:
        """The page that shows all pairs."""
        return self.folder / REPORT


def batch(
    pairs: str | os.PathLike[str] | Iterable[object],
    folder: str | os.PathLike[str],
    *,
    outputs: Sequence[str] = ("warp",),
    part: tuple[int, int] = (1, 1),
    workers: int | None = None,
    threads: int | None = None,
    memory: float | None = None,
    client: Client | None = None,
    on_row: Callable[[Row, int, int], None] | None = None,
    command: str | None = None,
    **settings: Any,
) -> Cohort:
    """Register many pairs, and write ``summary.csv`` and ``report.html`` of all of them.

    What was finished before with the same files and settings is left as it is, so that the same call goes on
    where a killed one was. A pair that fails is a row of the summary and ends nothing. In a script of your
    own, call it below ``if __name__ == "__main__":``, as other processes import the script.

    Args:
        pairs: a table (:func:`regkit.cohort.pairs.read_table`), or a list of (fixed, moving), of mappings
            with the table's columns as keys, or of :class:`regkit.cohort.pairs.Pair`.
        folder: of all results; it is made.
        outputs: what to write of each pair, of :data:`regkit.cohort.pairs.OUTPUTS`.
        part: (i, n) does every n-th pair from the i-th on, 1 the first, for arrays of jobs.
        workers: processes; by default as many as cores and memory allow. Not with ``client``.
        threads: of each process; by default an equal share of the cores, and on a cluster as many as the
            worker has.
        memory: GB (10^9 bytes) that all processes may take together; on a cluster, each.
        client: of a Dask cluster that does the work; its workers must see the files by the same names.
        on_row: called with each row of this part as it comes, how many there are so far, and of how many.
        command: the line that was typed, for the records beside the results.
        settings: for all pairs, as of :func:`regkit.register`: ``init``, ``features``, ``weights``,
            ``preset``, ``settings``, ``ct_window``, ``device``, ``seed``.

    Raises:
        RegkitError: if the pairs, the folder or the settings cannot be used; nothing is done then.
    """
    found = _listed(pairs)
    place = Path(folder).absolute()
    chosen = found[_index(part) :: part[1]]
    if not chosen:
        raise RegkitError(f"part {part[0]} of {part[1]} has no pairs: there are {len(found)}")
    if (workers is not None and workers < 1) or (threads is not None and threads < 1):
        raise RegkitError("workers and threads must be at least 1")
    _check_settings(settings)
    _check_outputs(outputs)
    _check_folder(found, place)
    make_folder(place / STATE)
    clean(place / STATE)
    if any(pair.places for pair in found):
        describe_derivatives(place, version())

    if client is None:
        workers, threads = _shared_out(chosen, settings, workers, threads, memory)
        memory = None if memory is None else memory / workers
    jobs = [
        Job(_absolute(p), place, _kinds(p, outputs, settings), settings, threads, memory, command)
        for p in chosen
    ]
    try:
        with closing(_rows(jobs, client, workers or 1, threads or 1)) as rows:
            for done, row in enumerate(rows, start=1):
                if on_row is not None:
                    on_row(row, done, len(jobs))
    except BaseException:
        _sweep(jobs)
        raise
    return Cohort(place, write_summary(place, [pair.name for pair in found]))


def _rows(
    jobs: Sequence[Job], client: Client | None, workers: int, threads: int
) -> Generator[Row, None, None]:
    if client is None:
        return in_processes(register_pair, jobs, workers, threads, _died)
    from regkit.cohort.cluster import on_cluster

    return on_cluster(register_pair, jobs, client, _died)


def _sweep(jobs: Sequence[Job]) -> None:
    """Finish or remove what processes that were stopped had begun to write."""
    for job in jobs:
        if read_row(job.folder, job.pair.name)["status"] == BEGUN:
            for folder in {(job.folder / job.pair.place(kind)).parent for kind in job.outputs}:
                clean(folder)
            clean(job.folder / STATE)


def _died(job: Job, error: str) -> Row:
    """The row of a pair whose process died, which could not write it."""
    row = failed_row(job, error)
    write_row(job.folder, row)
    return row


def _listed(pairs: str | os.PathLike[str] | Iterable[object]) -> list[Pair]:
    if isinstance(pairs, str | os.PathLike):
        return read_table(Path(pairs))[0]
    return listed_pairs(pairs)


def _index(part: tuple[int, int]) -> int:
    number, count = part
    if not 1 <= number <= count:
        raise RegkitError(f"there is no part {number}/{count}; they go from 1/{count} to {count}/{count}")
    return number - 1


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Check what is the same for all pairs before the first is begun."""
    from regkit.features.maps import feature_parts
    from regkit.registration import INITS
    from regkit.runtime.device import torch_device

    known = ("init", "features", "weights", "preset", "settings", "ct_window", "device", "seed")
    if unknown := [name for name in settings if name not in known]:
        raise RegkitError(f"no setting named '{unknown[0]}'; there is: {', '.join(known)}")
    changed_settings(settings.get("preset", "default"), settings.get("settings"))
    torch_device(settings.get("device", "auto"))
    feature_parts(*(settings[name] for name in ("features", "weights") if settings.get(name) is not None))
    init = settings.get("init", "auto")
    if init not in INITS and not os.path.isfile(init):
        raise RegkitError(f"the start '{init}' is none of {', '.join(INITS)}, and no file")


def _check_outputs(outputs: Sequence[str]) -> None:
    for name in outputs:
        if name not in OUTPUTS:
            raise RegkitError(f"no output named '{name}'; there is: {', '.join(OUTPUTS)}")


def _check_folder(pairs: Sequence[Pair], folder: Path) -> None:
    """Check that nothing is lost: files that a cohort before did not write stay."""
    if folder.exists() and not folder.is_dir():
        raise RegkitError(f"'{folder}' is no folder; give another name")
    if not folder.parent.is_dir():
        raise RegkitError(
            f"cannot make the folder '{folder}': '{folder.parent}' is not there; create it first"
        )
    for pair in pairs:
        for role, path in pair.files.items():
            apart = {path.resolve(), folder.resolve()}
            if len(apart) == 1 or apart & {*path.resolve().parents, *folder.resolve().parents}:
                raise RegkitError(
                    f"the {role.replace('_', ' ')} '{path}' and the folder of results '{folder}' lie in each "
                    "other; give another folder"
                )
    if (folder / STATE).is_dir() or not folder.is_dir():
        return
    if next(folder.iterdir(), None) is not None:
        raise RegkitError(
            f"'{folder}' has files that are not of a cohort; give an empty folder, or one that does not exist"
        )


def _kinds(pair: Pair, outputs: Sequence[str], settings: Mapping[str, Any]) -> tuple[str, ...]:
    """What can be written of a pair, the warp first."""
    without = set() if pair.moving_labels else {"moved_labels"}
    without |= set() if _solver(pair, settings).deformable else {"uncertainty"}
    return tuple(name for name in OUTPUTS if name in ("warp", *outputs) and name not in without)


def _solver(pair: Pair, settings: Mapping[str, Any]) -> Settings:
    """The settings of the solver for a pair."""
    chosen = pair.arguments(settings)
    return changed_settings(chosen.get("preset", "default"), chosen["settings"])


def _absolute(pair: Pair) -> Pair:
    """The pair with names that hold in other processes and folders."""
    files: dict[str, Any] = {role: path.absolute() for role, path in pair.files.items()}
    return replace(pair, **files)


def _shared_out(
    pairs: Sequence[Pair],
    settings: Mapping[str, Any],
    workers: int | None,
    threads: int | None,
    memory: float | None,
) -> tuple[int, int]:
    """How many processes, and threads of each: on few pairs at a time many threads wait for each other, so
    that a core a process does most, as long as memory lasts.
    """
    from regkit.runtime.device import torch_device

    cores = usable_cores()
    if workers is None:
        workers = 1
        if torch_device(settings.get("device", "auto")).type == "cpu":  # a GPU is one pair's
            room = _SHARE * available_memory() if memory is None else memory * GB
            workers = max(1, min(cores, len(pairs), int(min(room / _need(pairs, settings), cores))))
    return workers, threads or max(1, cores // workers)


def usable_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _need(pairs: Sequence[Pair], settings: Mapping[str, Any]) -> float:
    """Bytes of a process that registers the largest pairs."""
    by_size = sorted(pairs, key=lambda pair: -_bytes(pair.fixed) - _bytes(pair.moving))
    return _PROCESS + max(_bytes_needed(pair, settings) for pair in by_size[:_LARGEST])


def _bytes_needed(pair: Pair, settings: Mapping[str, Any]) -> float:
    preset = _solver(pair, settings)
    fixed, moving = _voxels(pair.fixed), _voxels(pair.moving)
    # The working grid covers the fixed field of view, with voxels as large as those of the coarser image.
    working = min(preset.max_voxels, int(fixed / preset.spacing_share**3)) if preset.deformable else 0
    return registration_bytes(fixed, moving, working, labels=pair.moving_labels is not None)


def _voxels(path: Path) -> int:
    """Voxels of an image by its header, or by the bytes of its files where that says nothing."""
    from regkit.io import guard, nifti

    with suppress(RegkitError):
        if path.name.lower().endswith(nifti.SUFFIXES):
            with nifti.open_nifti(path) as found:
                return math.prod(found.shape)
        if path.is_file():
            with guard.open_image([path]) as image:
                return math.prod(image.header.size)
    return _bytes(path) // 2


def _bytes(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    with suppress(OSError):
        if path.is_dir():
            return sum(entry.stat().st_size for entry in os.scandir(path) if entry.is_file())
        return path.stat().st_size
    return 0
