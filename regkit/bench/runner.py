"""Runs every method on every case, each in a process of its own, and keeps the rows.

A row is on the disk as soon as its run has ended, so that a killed benchmark goes on where it was.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

from regkit import __version__
from regkit.bench.case import Case
from regkit.bench.method import Method
from regkit.bench.rows import RUN, Key, Row, append_row, key, read_rows, read_run
from regkit.errors import RegkitError

SCRATCH = "data"
_ROOT = Path(__file__).resolve().parents[2]
_ERROR_LINES = 3  # of what a process that died said last


@dataclass(frozen=True)
class Options:
    """What all runs of a results folder have in common.

    Args:
        start: "own", each method begins as it does by itself; "linear", all begin from the linear start that
            regkit finds, whose time does not count.
        threads: CPU threads of each run.
        device: for the methods that know a GPU.
        seed: for the methods that draw random numbers.
    """

    start: str = "own"
    threads: int = 1
    device: str = "auto"
    seed: int = 0


@dataclass(frozen=True)
class Job:
    """One run: a case, and the method by its word on the command line; None finds the linear start."""

    case: Case
    method: str | None
    start: Path | None = None
    warp: Path | None = None
    warp_format: str | None = None
    measure: bool = True


def plan_results(
    folder: Path,
    dataset: str,
    options: Options,
    chosen: Mapping[str, Method],
    asked: Mapping[str, list[str]],
    command: str,
    resume: bool,
) -> tuple[dict[str, Any], set[Key]]:
    """What a results folder is to hold, and what it holds already. Writes nothing.

    Args:
        chosen: the methods, by their words on the command line.
        asked: what else was asked for, to be kept with the results.
        command: the command line.

    Returns:
        the content of ``run.json``, and the keys of the rows that are there.

    Raises:
        RegkitError: if the folder holds something else, results that were not asked to be gone on with, or
            results of other code or with other options; or if no method can be run.
    """
    run: dict[str, Any] = {
        "dataset": dataset,
        "command": command,
        "versions": versions(),
        "machine": {"cpus": os.cpu_count(), "platform": platform.platform(), "gpu": _gpu(options.device)},
        "options": {**asdict(options), **asked, "methods": [m.name for m in chosen.values()]},
        "skipped": {},
        "notes": {},
    }
    done: set[Key] = set()
    if (folder / RUN).exists():
        before = read_run(folder)
        if not resume:
            raise RegkitError(
                f"'{folder}' holds results already; add --resume to go on with them, or give another folder"
            )
        _check_same(folder, before, run)
        done = {key(row) for row in read_rows(folder)}
        for part in ("methods", *asked):
            earlier = before["options"].get(part, [])
            run["options"][part] = [*earlier, *(v for v in run["options"][part] if v not in earlier)]
        run["notes"], run["command"] = before["notes"], before["command"]
    elif folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {SCRATCH}):
        raise RegkitError(f"'{folder}' holds something else than results of a benchmark; give a new folder")
    for method in chosen.values():
        run["notes"][method.name] = method.note
        if reason := method.missing():
            run["skipped"][method.name] = reason
    if len(run["skipped"]) == len(chosen):
        raise RegkitError("; ".join(f"{name}: {reason}" for name, reason in run["skipped"].items()))
    return run, done


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """The place in a results folder for what a data set makes; nothing is left if nothing was made."""
    place = folder / SCRATCH
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegkitError(f"cannot make the folder '{place}': {error.strerror or error}") from error
    try:
        yield place
    finally:
        for empty in (place, folder):
            with suppress(OSError):
                empty.rmdir()


def _gpu(device: str) -> str | None:
    import torch

    return torch.cuda.get_device_name() if device != "cpu" and torch.cuda.is_available() else None


def versions() -> dict[str, Any]:
    """Of regkit, the commit of its checkout if it is one, and of what its numbers depend on."""
    return {
        "regkit": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "SimpleITK", "numpy", "scipy")},
    }


def _commit() -> str | None:
    """The commit of the checkout that this is, with a mark if its code differs; None for an installed one."""
    if not (_ROOT / ".git").exists():
        return None
    git = ["git", "-C", str(_ROOT)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "regkit", "models"])
    except OSError:  # without git
        return None
    return None if name.returncode else name.stdout.strip() + ("-dirty" if changed.returncode else "")


def _check_same(folder: Path, before: dict[str, Any], run: dict[str, Any]) -> None:
    differs = [] if before["dataset"] == run["dataset"] else [f"data set {before['dataset']}"]
    for what in ("regkit", "commit"):
        if before["versions"].get(what) != run["versions"][what]:
            differs.append(f"{what} {before['versions'].get(what)} instead of {run['versions'][what]}")
    for what in Options.__dataclass_fields__:
        if before["options"].get(what) != run["options"][what]:
            differs.append(f"{what} {before['options'].get(what)} instead of {run['options'][what]}")
    if differs:
        raise RegkitError(
            f"the results in '{folder}' cannot be gone on with, for they were made otherwise: "
            f"{', '.join(differs)}; give another folder"
        )


def run_cases(
    folder: Path,
    dataset: str,
    cases: Sequence[Case],
    chosen: Mapping[str, Method],
    options: Options,
    done: set[Key],
    jobs: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> int:
    """Run what is not done yet, and add a row for each.

    Args:
        folder: that has its ``run.json``.
        chosen: the methods, by their words on the command line; those that are missing are left out.
        jobs: runs at a time.
        progress: called with what is run and the share that is done.

    Returns:
        How many runs failed.
    """
    of_method = {
        word: {**versions(), "method": method.version()}
        for word, method in chosen.items()
        if not method.missing()
    }
    todo = [
        (case, word)
        for case in cases
        for word in of_method
        if (case.name, case.direction, chosen[word].name) not in done
    ]
    report = progress or (lambda stage, share: None)
    failed = finished = 0
    with processes(jobs) as (pool, start_process):
        starts = _Starts(folder / "starts", options, start_process)

        def one(case: Case, word: str) -> Row:
            try:
                start = starts.of(case) if options.start == "linear" else None
                found = start_process(Job(case, word, start), options)
            except RegkitError as error:
                found = {"status": "failed", "error": str(error)}
            return {
                "dataset": dataset,
                "case": case.name,
                "direction": case.direction,
                "method": chosen[word].name,
                "versions": of_method[word],
                **found,
            }

        report("starting", 0.0)
        waiting = {pool.submit(one, case, word) for case, word in todo}
        while waiting:
            ended, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                row = future.result()
                append_row(folder, row)
                finished += 1
                failed += row["status"] != "ok"
                report(f"{row['case']} {row['direction']} {row['method']}", finished / len(todo))
    return failed


class _Starts:
    """The linear starts of cases, as files: each found once, whichever method asks first."""

    def __init__(self, folder: Path, options: Options, start_process: Callable[[Job, Options], Row]) -> None:
        self.folder, self.options, self.start_process = folder, options, start_process
        self.lock, self.locks = Lock(), dict[Path, Lock]()
        self.failures: dict[Path, str] = {}

    def of(self, case: Case) -> Path:
        """Raises RegkitError if none is found."""
        path = self.folder / f"{case.name}_{case.direction}.tfm"
        with self.lock:
            mine = self.locks.setdefault(path, Lock())
        with mine:
            if not path.exists() and path not in self.failures:
                self.folder.mkdir(exist_ok=True)
                found = self.start_process(Job(case, None, path), self.options)
                if found["status"] != "ok":
                    self.failures[path] = found["error"]
        if path in self.failures:
            raise RegkitError(f"no linear start: {self.failures[path]}")
        return path


@contextmanager
def processes(jobs: int) -> Iterator[tuple[ThreadPoolExecutor, Callable[[Job, Options], Row]]]:
    """Threads that wait for processes, and what starts one and gives what came of it.

    Whatever ends the block early, such as Ctrl-C, ends the processes as well.
    """
    running, stopped = set[subprocess.Popen[bytes]](), Event()
    pool = ThreadPoolExecutor(jobs)

    def start_process(job: Job, options: Options) -> Row:
        return _run(job, options, running, stopped)

    try:
        yield pool, start_process
    except BaseException:
        stopped.set()
        for process in list(running):
            _kill(process)
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run(job: Job, options: Options, running: set[subprocess.Popen[bytes]], stopped: Event) -> Row:
    with tempfile.TemporaryDirectory(prefix="regkit-bench-") as place:
        scratch = Path(place) / "work"
        scratch.mkdir()
        result, errors = Path(place) / "result.json", Path(place) / "stderr"
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
        (Path(place) / "job.json").write_text(json.dumps(task), encoding="utf-8")
        with errors.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "regkit.bench.worker", str(Path(place) / "job.json")],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=_environment(options.threads),
                start_new_session=True,  # so that the commands that it runs can be ended with it
            )
            running.add(process)
            if stopped.is_set():  # while this one was being started
                _kill(process)
            code = process.wait()
            _kill(process)  # what it left running
            running.discard(process)
        if result.exists():
            found: Row = json.loads(result.read_text(encoding="utf-8"))
            return found
        return {"status": "failed", "error": _died(code, errors)}


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
    places = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | counts | {"PYTHONPATH": os.pathsep.join(places)}


def _died(code: int, errors: Path) -> str:
    text = ""
    with suppress(OSError):
        text = errors.read_text(encoding="utf-8", errors="replace")
    lines = text.strip().splitlines()
    said = " / ".join(line.strip() for line in lines[-_ERROR_LINES:])
    if code < 0:
        name = signal.Signals(-code).name
        hint = "; memory may have run out" if name == "SIGKILL" else ""
        return f"its process was ended by {name}{hint}{f': {said}' if said else ''}"
    return f"its process ended with code {code}: {said}"
