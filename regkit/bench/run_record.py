"""``run.json``: what was run, how and on which data. Only the same code and data continue a run."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from regkit.bench.dataset import Case
from regkit.bench.method import Method
from regkit.bench.result_rows import RUN, read_run, write_run
from regkit.core.errors import RegkitError
from regkit.core.version import __version__
from regkit.io.atomic import make_folder
from regkit.io.provenance import commit

SCRATCH = "data"
_LIBRARIES = ("torch", "SimpleITK", "numpy", "scipy")


@dataclass(frozen=True)
class RunOptions:
    """What all runs of a results folder have in common.

    Args:
        start: "own", each method begins as it does by itself; "linear", all begin from the linear start that
            regkit finds, whose time does not count.
        threads: CPU threads of each run.
        device: for the methods that know a GPU.
        seed: for the methods that draw random numbers.
        jobs: runs at a time, which the seconds depend on.
    """

    start: str = "own"
    threads: int = 1
    device: str = "auto"
    seed: int = 0
    jobs: int = 1


def plan_results(
    folder: Path,
    dataset: str,
    options: RunOptions,
    chosen: Mapping[str, Method],
    command: str,
    made_up: bool,
    resume: bool,
) -> dict[str, Any]:
    """What ``run.json`` of a results folder is to say. Writes nothing.

    Args:
        chosen: the methods, by their words on the command line.
        command: the command line.
        made_up: whether the data are an imitation.

    Raises:
        RegkitError: if the folder holds something else, results that were not asked to be gone on with, or
            results of other code, methods or options; or if no method can be run.
    """
    skipped = {method.name: reason for method in chosen.values() if (reason := method.missing())}
    if len(skipped) == len(chosen):
        raise RegkitError("; ".join(f"{name}: {reason}" for name, reason in skipped.items()))
    run: dict[str, Any] = {
        "dataset": dataset,
        "made_up": made_up,
        "commands": [command],
        "versions": versions(),
        "machine": _machine(options.device),
        "options": asdict(options),
        "methods": {m.name: m.version() for m in chosen.values() if m.name not in skipped},
        "skipped": skipped,
        "notes": {method.name: method.note for method in chosen.values()},
        "files": {},
    }
    return _gone_on_with(folder, run, resume)


def plan_few_shot(
    folder: Path, layout: str, options: Mapping[str, Any], device: str, command: str, resume: bool
) -> dict[str, Any]:
    """What ``run.json`` of a few-shot benchmark is to say. Writes nothing.

    Args:
        options: what all rows must have in common.

    Raises:
        RegkitError: as :func:`plan_results`.
    """
    run: dict[str, Any] = {
        "dataset": f"few-shot {layout}",
        "made_up": False,
        "commands": [command],
        "versions": versions() | {"monai": importlib.metadata.version("monai")},
        "machine": _machine(device),
        "options": dict(options),
        "methods": {},
        "notes": {},
        "files": {},
    }
    return _gone_on_with(folder, run, resume)


def _machine(device: str) -> dict[str, Any]:
    return {"cpus": os.cpu_count(), "platform": platform.platform(), "gpu": _gpu(device)}


def _gone_on_with(folder: Path, run: dict[str, Any], resume: bool) -> dict[str, Any]:
    """A run, with what is in its folder already if that is asked for and of the same kind."""
    if (folder / RUN).exists():
        before = read_run(folder)
        if not resume:
            raise RegkitError(
                f"'{folder}' holds results already; add --resume to continue them, or give another folder"
            )
        _check_same(folder, before, run)
        run["commands"] = [*before["commands"], *run["commands"]]
        run["made_up"] = run["made_up"] or before["made_up"]
        for part in ("methods", "notes", "files"):
            run[part] = before[part] | run[part]
    elif folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {SCRATCH}):
        raise RegkitError(f"'{folder}' holds something other than benchmark results; give a new folder")
    return run


def _check_same(folder: Path, before: dict[str, Any], run: dict[str, Any]) -> None:
    differs = [] if before["dataset"] == run["dataset"] else [f"data set {before['dataset']}"]
    for part in ("versions", "machine", "options"):
        for what, value in run[part].items():
            if before[part].get(what) != value:
                differs.append(f"{what} {before[part].get(what)} instead of {value}")
    for name, version in run["methods"].items():
        if before["methods"].get(name, version) != version:
            differs.append(f"{name} was {before['methods'][name]}, not {version}")
    if differs:
        raise RegkitError(
            f"the results in '{folder}' cannot be continued, because this run differs: "
            f"{', '.join(differs)}; give another folder"
        )


def begin(folder: Path, run: dict[str, Any], cases: Iterable[Case]) -> None:
    """Write ``run.json``.

    Raises:
        RegkitError: if a case that was run before has other files now; nothing is changed then.
    """
    files = {f"{case.name} {case.direction}": fingerprint(case) for case in cases}
    for name, digest in files.items():
        if run["files"].get(name, digest) != digest:
            raise RegkitError(
                f"the files of pair {name} have changed since the results in '{folder}'; give another folder"
            )
    write_run(folder, run | {"files": run["files"] | files})


def fingerprint(case: Case) -> str:
    """Of all that a case is: the content of its files, and what is scored."""
    digest = hashlib.sha256(repr((sorted(case.labels.items()), case.exchanged)).encode())
    for path in (*vars(case.fixed).values(), *vars(case.moving).values(), case.landmarks):
        if path is None:
            digest.update(b"none")
        else:
            with path.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()[:16]


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """The place in a results folder for what a data set makes; nothing is left if nothing was made."""
    place = folder / SCRATCH
    make_folder(place)
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
        "commit": commit("regkit", "models"),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _LIBRARIES},
    }
