"""One pair of a cohort, from its files to its row: the same for a process here and a worker of a cluster."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from regkit.cohort.pairs import OUTPUTS, Pair
from regkit.cohort.result_rows import BEGUN, FAILED, OK, Row, is_complete, read_row, thumbnail_path, write_row
from regkit.core.errors import RegkitError, is_out_of_memory
from regkit.core.jsontext import without_nan
from regkit.core.version import __version__
from regkit.io.atomic import atomic_path, clean, make_folder, together
from regkit.io.foreign import split_convention
from regkit.io.provenance import record_of, record_path, sha256, version

if TYPE_CHECKING:
    pass

_ONE_AT_A_TIME = Lock()  # threads and seeds are those of the whole process


@dataclass(frozen=True)
class PairJob:
    """A pair and how it is registered; it goes to other processes and machines.

    Args:
        pair: of absolute files.
        folder: of the cohort, absolute, and there already.
        outputs: kinds of results to write, of :data:`regkit.cohort.pairs.OUTPUTS`.
        settings: keywords of :func:`regkit.register`, without those of the pair.
        threads: as of :func:`regkit.register`; None for as many as the process has.
        memory: GB that the process may take.
        command: the line that was typed, for the record beside the results.
        regkit: the version that sends it.
    """

    pair: Pair
    folder: Path
    outputs: tuple[str, ...]
    settings: Mapping[str, Any]
    threads: int | None = None
    memory: float | None = None
    command: str | None = None
    regkit: str = __version__


def key_of(job: PairJob) -> str:
    """The hash of all that the results of a pair depend on: content of its files, settings, regkit's version.

    Raises:
        RegkitError: if a file cannot be read.
    """
    files = {role: sha256(path) for role, path in job.pair.files.items()}
    settings = job.pair.arguments(job.settings)
    for name in ("init", "weights"):
        if file := _file(settings.get(name)):
            settings[name] = [str(settings[name]).removesuffix(str(file)), sha256(file)]
    text = json.dumps([__version__, files, settings], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def register_pair(job: PairJob) -> Row:
    """Register a pair and write its results and its row, unless a row says that the same was done.

    Whatever fails is in the row. It may be called again, and by several at once: results are written whole,
    and the last one stays.

    Returns:
        The row; with "kept" where there was nothing to do.
    """
    with _ONE_AT_A_TIME:
        try:
            return _registered(job)
        except Exception as error:
            row = failed_row(job, _error_text(error))
            if not isinstance(error, RegkitError):
                row["traceback"] = traceback.format_exc()
        # The folder itself may be what is missing.
        with contextlib.suppress(RegkitError):
            write_row(job.folder, row)
        return row


def failed_row(job: PairJob, error: str) -> Row:
    """The row of a pair that could not be registered."""
    return _row(job, FAILED) | {"error": " ".join(error.split())}


def _row(job: PairJob, status: str) -> Row:
    files = {"fixed": str(job.pair.fixed), "moving": str(job.pair.moving)}
    return {"pair": job.pair.name, "status": status, **files, "made_by": version(), "host": platform.node()}


def _error_text(error: Exception) -> str:
    if isinstance(error, RegkitError):
        return str(error)
    if is_out_of_memory(error):
        return "out of memory: fewer workers leave more for each; --preset fast and smaller images need less"
    return f"{type(error).__name__}: {error}"


def _registered(job: PairJob) -> Row:
    if job.regkit != __version__:
        raise RegkitError(
            f"regkit {job.regkit} sent this pair to a worker that has regkit {__version__}; install the same"
        )
    if not job.folder.is_dir():
        raise RegkitError(
            f"the folder '{job.folder}' is not there on {platform.node()}; all machines have to see it and "
            "the images under one name"
        )
    pair, folder = job.pair, job.folder
    places = {kind: folder / pair.place(kind) for kind in job.outputs}
    for parent in {place.parent for place in places.values()}:
        make_folder(parent)
        clean(parent)
    key = key_of(job)
    before = read_row(folder, pair.name)
    known = before["status"] == OK and before.get("key") == key and set(places) <= set(before["outputs"])
    if known and is_complete(folder, before):
        return before | {"kept": True}

    # What is there is of other inputs or settings: it must not pass for what this run makes.
    for kind in {*places, *before.get("outputs", {})} & OUTPUTS.keys():
        for stale in (folder / pair.place(kind), record_path(folder / pair.place(kind))):
            stale.unlink(missing_ok=True)
    write_row(folder, _row(job, BEGUN))
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default", UserWarning)
        return _written(job, places, key, warned)


def _written(
    job: PairJob, places: Mapping[str, Path], key: str, warned: list[warnings.WarningMessage]
) -> Row:
    """Register the pair of a job and write all that is to be written, its row last."""
    import torch

    from regkit.cohort.thumbnail import thumbnail
    from regkit.evaluate import LandmarkErrors
    from regkit.io.images import load_image
    from regkit.io.points import read_pairs
    from regkit.registration import register
    from regkit.result_files import write_results

    pair, arguments = job.pair, job.pair.arguments(job.settings)
    landmarks = None if pair.landmarks is None else read_pairs(pair.landmarks)
    fixed, moving = load_image(pair.fixed, "fixed image"), load_image(pair.moving, "moving image")
    result = register(
        fixed,
        moving,
        fixed_mask=pair.fixed_mask,
        moving_mask=pair.moving_mask,
        fixed_labels=pair.fixed_labels,
        moving_labels=pair.moving_labels,
        threads=job.threads or torch.get_num_threads(),  # for ITK as well, which else takes all cores
        memory=job.memory,
        outputs=[kind for kind in ("moved", "inverse") if kind in places],
        **arguments,
    )
    measures = without_nan(result.to_dict())
    row = _row(job, OK) | {
        "key": key,
        "outputs": {kind: pair.place(kind) for kind in places},
        "verdict": measures["verdict"],
        "metrics": measures["metrics"],
    }
    if landmarks is not None:
        row["landmarks"] = without_nan(LandmarkErrors.of(*landmarks, result.warp).to_dict())
    files = {**pair.files, "init": _file(arguments.get("init")), "weights": _file(arguments.get("weights"))}
    record = record_of(files, measures["settings"], job.command)
    begun = time.perf_counter()
    with together():
        write_results(
            result,
            places,
            fixed,
            pair.fixed_labels,
            pair.moving_labels,
            moving=moving,
            record=record,
        )
        with atomic_path(thumbnail_path(job.folder, pair.name)) as temporary:
            temporary.write_bytes(thumbnail(result, fixed))
        result = result.with_writing(time.perf_counter() - begun)
        row |= {"seconds": result.timings.to_dict(), "peak_mb": result.memory["peak"]}
        row["warnings"] = [" ".join(str(one.message).split()) for one in warned]
        write_row(job.folder, row)
    return row


def _file(value: object) -> Path | None:
    """The file that a setting names, if it names one."""
    if not isinstance(value, str | os.PathLike):
        return None
    path = split_convention(Path(value))[1]
    return path if os.path.isfile(path) else None
