"""Register a cohort: check the pairs, share them out, and collect the rows."""

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
from regkit.cohort.pair_job import PairJob, failed_row, register_pair
from regkit.cohort.pairs import OUTPUTS, REPORT, SUMMARY, Pair, listed_pairs, read_pairs_table
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
_PAIRS_EXAMINED = 20  # pairs whose headers are looked at for their memory


@dataclass(frozen=True)
class Cohort:
    """The result of :func:`batch`.

    Args:
        folder: of all results.
        rows: one for each pair, in order (:mod:`regkit.cohort.result_rows`). Pairs of other parts of the
            cohort have the state that they are in.
    """

    folder: Path
    rows: list[Row]

    @property
    def failed(self) -> list[Row]:
        """The pairs that could not be registered."""
        return [row for row in self.rows if row["status"] == FAILED]

    def count(self, level: str) -> int:
        """The number of pairs that are "PASS", "WARN", "FAIL", "failed" or "pending"."""
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
    """Register many pairs, and write ``summary.csv`` and ``report.html`` about all of them.

    Pairs that were finished before with the same files and settings are skipped, so that the same call
    resumes a run that was killed. A pair that fails gets a row in the summary, and the others go on.
    Processes import the script that calls this: call it below ``if __name__ == "__main__":``.

    Args:
        pairs: a table (:func:`regkit.cohort.pairs.read_pairs_table`), or a list of (fixed, moving), of
            mappings with the table's columns as keys, or of :class:`regkit.cohort.pairs.Pair`.
        folder: for all results; made if missing.
        outputs: what to write for each pair, of :data:`regkit.cohort.pairs.OUTPUTS`.
        part: (i, n) does every n-th pair from the i-th on, counted from 1, for job arrays.
        workers: processes; by default as many as cores and memory allow. Not with ``client``.
        threads: of each process; by default an equal share of the cores, and on a cluster as many as the
            worker has.
        memory: GB (10^9 bytes) for all processes together, or on a cluster for each.
        client: of a Dask cluster that does the work. Its workers must see the files under the same names.
        on_row: called with each new row of this part, the number of rows so far, and the number of pairs.
        command: the command line, for the records beside the results.
        settings: for all pairs, as for :func:`regkit.register`: ``init``, ``features``, ``weights``,
            ``preset``, ``settings``, ``ct_window``, ``device``, ``seed``.

    Raises:
        RegkitError: if the pairs, the folder or the settings cannot be used. Nothing has been done then.
    """
    all_pairs = _listed(pairs)
    place = Path(folder).absolute()
    chosen = all_pairs[_index(part) :: part[1]]
    if not chosen:
        raise RegkitError(f"part {part[0]} of {part[1]} has no pairs: there are {len(all_pairs)}")
    if (workers is not None and workers < 1) or (threads is not None and threads < 1):
        raise RegkitError("workers and threads must be at least 1")
    _check_settings(settings)
    _check_outputs(outputs)
    _check_folder(all_pairs, place)
    make_folder(place / STATE)
    clean(place / STATE)
    if any(pair.places for pair in all_pairs):
        describe_derivatives(place, version())

    if client is None:
        workers, threads = _shared_out(chosen, settings, workers, threads, memory)
        memory = None if memory is None else memory / workers
    jobs = [
        PairJob(_absolute(p), place, _kinds(p, outputs, settings), settings, threads, memory, command)
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
    return Cohort(place, write_summary(place, [pair.name for pair in all_pairs]))


def _rows(
    jobs: Sequence[PairJob], client: Client | None, workers: int, threads: int
) -> Generator[Row, None, None]:
    if client is None:
        return in_processes(register_pair, jobs, workers, threads, _died)
    from regkit.cohort.cluster import on_cluster

    return on_cluster(register_pair, jobs, client, _died)


def _sweep(jobs: Sequence[PairJob]) -> None:
    """Finish or remove what processes that were stopped had begun to write."""
    for job in jobs:
        if read_row(job.folder, job.pair.name)["status"] == BEGUN:
            for folder in {(job.folder / job.pair.place(kind)).parent for kind in job.outputs}:
                clean(folder)
            clean(job.folder / STATE)


def _died(job: PairJob, error: str) -> Row:
    """The row of a pair whose process died, which could not write it."""
    row = failed_row(job, error)
    write_row(job.folder, row)
    return row


def _listed(pairs: str | os.PathLike[str] | Iterable[object]) -> list[Pair]:
    if isinstance(pairs, str | os.PathLike):
        return read_pairs_table(Path(pairs))[0]
    return listed_pairs(pairs)


def _index(part: tuple[int, int]) -> int:
    number, count = part
    if not 1 <= number <= count:
        raise RegkitError(f"there is no part {number}/{count}; they go from 1/{count} to {count}/{count}")
    return number - 1


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Check what is the same for all pairs before the first is begun."""
    from regkit.core.choices import STARTS
    from regkit.features.maps import feature_parts
    from regkit.runtime.device import torch_device

    known = ("init", "features", "weights", "preset", "settings", "ct_window", "device", "seed")
    if unknown := [name for name in settings if name not in known]:
        raise RegkitError(f"no setting named '{unknown[0]}'; available: {', '.join(known)}")
    changed_settings(settings.get("preset", "default"), settings.get("settings"))
    torch_device(settings.get("device", "auto"))
    feature_parts(*(settings[name] for name in ("features", "weights") if settings.get(name) is not None))
    init = settings.get("init", "auto")
    if init not in STARTS and not os.path.isfile(init):
        raise RegkitError(f"the start '{init}' is none of {', '.join(STARTS)}, and no file")


def _check_outputs(outputs: Sequence[str]) -> None:
    for name in outputs:
        if name not in OUTPUTS:
            raise RegkitError(f"no output named '{name}'; available: {', '.join(OUTPUTS)}")


def _check_folder(pairs: Sequence[Pair], folder: Path) -> None:
    """Check that nothing is lost: files that a cohort before did not write stay."""
    if folder.exists() and not folder.is_dir():
        raise RegkitError(f"'{folder}' is not a folder; give another name")
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
    return _PROCESS + max(_bytes_needed(pair, settings) for pair in by_size[:_PAIRS_EXAMINED])


def _bytes_needed(pair: Pair, settings: Mapping[str, Any]) -> float:
    preset = _solver(pair, settings)
    fixed, moving = _voxels(pair.fixed), _voxels(pair.moving)
    # The working grid covers the fixed field of view, with voxels as large as those of the coarser image.
    working = min(preset.max_voxels, int(fixed / min(preset.spacing_share) ** 3)) if preset.deformable else 0
    return registration_bytes(fixed, moving, working, labels=pair.moving_labels is not None)


def _voxels(path: Path) -> int:
    """Voxels of an image by its header, or by the bytes of its files where that says nothing."""
    from regkit.io import guard, nifti

    with suppress(RegkitError):
        if path.name.lower().endswith(nifti.SUFFIXES):
            with nifti.open_nifti(path) as header:
                return math.prod(header.shape)
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
