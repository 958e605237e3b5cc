"""Fields for the evaluation of the Learn2Reg challenge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from pathlib import Path

from regkit.bench.case import Case
from regkit.bench.runner import Job, Options, processes
from regkit.errors import RegkitError

FORMATS = ("npz", "nii.gz")


def submit(
    cases: Sequence[Case],
    folder: Path,
    word: str,
    options: Options,
    format: str = "npz",
    resume: bool = False,
    jobs: int = 1,
    progress: Callable[[str, float], None] | None = None,
) -> list[Path]:
    """Write ``disp_FFFF_MMMM`` for each case, as the official evaluation reads it: float32 (X, Y, Z, 3), in
    voxels, in nibabel's order of axes.

    Args:
        cases: of the challenge's direction, the MR fixed; named by the number of their pair.
        folder: made if it is not there.
        word: the method, as on the command line.
        resume: leave the files that are there already as they are.
        jobs, progress: as of :func:`regkit.bench.runner.run_cases`.

    Returns:
        The files, one for each case.

    Raises:
        RegkitError: if a file is there already, or a registration fails; the files of the others stay.
    """
    files = [folder / f"disp_{case.name}_{case.name}.{format}" for case in cases]
    there = [path for path in files if path.exists()]
    if there and not resume:
        raise RegkitError(f"'{there[0]}' exists already; add --resume to keep it, or give another folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RegkitError(f"cannot make the folder '{folder}': {error.strerror or error}") from error
    report = progress or (lambda stage, share: None)
    todo = [(case, path) for case, path in zip(cases, files) if not path.exists()]
    with processes(jobs) as (pool, start_process):
        report("starting", 0.0)
        waiting = {
            pool.submit(start_process, Job(case, word, None, path, "l2r", False), options): case
            for case, path in todo
        }
        while waiting:
            ended, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in ended:
                case, found = waiting.pop(future), future.result()
                if found["status"] != "ok":
                    raise RegkitError(f"pair {case.name}: {found['error']}")
                report(case.name, 1 - len(waiting) / len(todo))
    return files
