"""Runs every method on every case, each in a process of its own, and keeps the rows.

A row is on the disk as soon as its run has ended, so that a killed benchmark goes on where it was.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event

from regkit.bench.dataset import Case
from regkit.bench.method import Method
from regkit.bench.result_rows import Row, append_row, key, read_rows, read_run
from regkit.bench.run_record import RunOptions
from regkit.core.errors import RegkitError, last_lines
from regkit.io.atomic import make_folder
from regkit.io.provenance import ROOT
from regkit.runtime.process import interrupted_by_sigterm

_ERROR_LINES = 3  # of what a process that died said last


@dataclass(frozen=True)
class MethodJob:
    """One run: a case, and the method by its word on the command line; None finds the linear start."""

    case: Case
    method: str | None
    start: Path | None = None
    warp: Path | None = None
    warp_format: str | None = None
    measure: bool = True


def run_cases(
    folder: Path,
    cases: Sequence[Case],
    chosen: Mapping[str, Method],
    progress: Callable[[str, float], None] | None = None,
    warps: Path | None = None,
) -> tuple[int, int]:
    """Run what is not done yet, and add a row for each.

    Args:
        folder: that has its ``run.json``, which says how and with what.
        chosen: the methods, by their words on the command line; those that are missing are left out.
        progress: called with what is run and the share that is done.
        warps: a folder for the warp of each run, ``CASE_DIRECTION_METHOD.nii.gz``; none are kept without it.

    Returns:
        How many were run, and how many of them failed.
    """
    run = read_run(folder)
    options = RunOptions(**run["options"])
    done = {key(row) for row in read_rows(folder)}
    todo = [
        (case, word)
        for case in cases
        for word, method in chosen.items()
        if method.name not in run["skipped"] and (case.name, case.direction, method.name) not in done
    ]
    report = progress or (lambda stage, share: None)
    report("starting", 0.0)
    if warps is not None:
        make_folder(warps)
    failed = 0
    with processes(options) as (pool, start_process):
        starts: dict[tuple[str, str], Path | Row | None] = {}
        if options.start == "linear":
            needed = {(case.name, case.direction): case for case, _ in todo}
            find = partial(_linear_start, folder / "starts", start_process)
            starts = dict(zip(needed, pool.map(find, needed.values())))

        def one(case: Case, word: str) -> Row:
            start, name = starts.get((case.name, case.direction)), chosen[word].name
            warp_path = warps and warps / f"{case.name}_{case.direction}_{name}.nii.gz"
            outcome = (
                start if isinstance(start, dict) else start_process(MethodJob(case, word, start, warp_path))
            )
            return {
                "dataset": run["dataset"],
                "case": case.name,
                "direction": case.direction,
                "method": name,
                "versions": {**run["versions"], "method": run["methods"][name]},
                **outcome,
            }

        running = [pool.submit(one, case, word) for case, word in todo]
        for finished, future in enumerate(as_completed(running), start=1):
            row = future.result()
            append_row(folder, row)
            failed += row["status"] != "ok"
            report(f"{row['case']} {row['direction']} {row['method']}", finished / len(todo))
    return len(todo), failed


def _linear_start(folder: Path, start_process: Callable[[MethodJob], Row], case: Case) -> Path | Row:
    """The file of the linear start of a case, found unless it is there, or the row of a failure."""
    path = folder / f"{case.name}_{case.direction}.tfm"
    if path.exists():
        return path
    make_folder(folder)
    row = start_process(MethodJob(case, None, path))
    return path if row["status"] == "ok" else {**row, "error": f"no linear start: {row['error']}"}


@contextmanager
def processes(options: RunOptions) -> Iterator[tuple[ThreadPoolExecutor, Callable[[MethodJob], Row]]]:
    """Threads that wait for processes, and what starts one and gives what came of it.

    Whatever ends the block early, such as Ctrl-C or a SIGTERM, ends the processes as well.
    """
    running, stopped = set[subprocess.Popen[bytes]](), Event()
    pool = ThreadPoolExecutor(options.jobs)
    try:
        with interrupted_by_sigterm():
            yield pool, lambda job: _run(job, options, running, stopped)
    except BaseException:
        stopped.set()
        for process in list(running):
            _kill(process)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run(job: MethodJob, options: RunOptions, running: set[subprocess.Popen[bytes]], stopped: Event) -> Row:
    try:
        with tempfile.TemporaryDirectory(prefix="regkit-bench-") as place:
            return _run_in(Path(place), job, options, running, stopped)
    except OSError as error:
        raise RegkitError(
            f"a run cannot be made: {error}; the results so far are kept, add --resume to go on"
        ) from error


def _run_in(
    place: Path, job: MethodJob, options: RunOptions, running: set[subprocess.Popen[bytes]], stopped: Event
) -> Row:
    scratch, result, errors = place / "work", place / "result.json", place / "stderr"
    scratch.mkdir()
    task = {
        "case": job.case.to_dict(),
        "method": job.method,
        "start": None if job.start is None else str(job.start.absolute()),
        "warp": None if job.warp is None else str(job.warp.absolute()),
        "warp_format": job.warp_format,
        "measure": job.measure,
        "threads": options.threads,
        "device": options.device,
        "seed": options.seed,
        "folder": str(scratch),
        "result": str(result),
    }
    (place / "job.json").write_text(json.dumps(task), encoding="utf-8")
    # -P: what lies in the folder where the benchmark was started is not imported.
    command = [sys.executable, "-P", "-m", "regkit.bench.worker", str(place / "job.json")]
    with (
        errors.open("wb") as stream,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,  # by whose end the worker knows that this process has ended
            stdout=stream,
            stderr=stream,
            env=_environment(options.threads),
            start_new_session=True,  # so that the commands that it runs can be ended with it
        ) as process,
    ):
        running.add(process)
        if stopped.is_set():  # while this one was being started
            _kill(process)
        code = process.wait()
        _kill(process)  # what it left running
        running.discard(process)
    if result.exists():
        row: Row = json.loads(result.read_text(encoding="utf-8"))
        return row
    return {"status": "failed", "error": _died(code, errors.read_text(encoding="utf-8", errors="replace"))}


def _kill(process: subprocess.Popen[bytes]) -> None:
    """A process and what it has started."""
    if hasattr(os, "killpg"):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    else:  # Windows
        process.kill()


def _environment(threads: int) -> dict[str, str]:
    """With what tells the libraries of the methods how many threads to use, which they read when they start;
    and with this regkit first among the places that Python imports from.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    counts = dict.fromkeys((*names, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"), str(threads))
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | counts | {"PYTHONPATH": os.pathsep.join(places)}


def _died(code: int, output: str) -> str:
    output = last_lines(output, _ERROR_LINES)
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; memory may have run out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}{f': {output}' if output else ''}"
    return f"its process ended with code {code}: {output}"
