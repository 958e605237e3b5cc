"""Fields for the evaluation of the Learn2Reg challenge."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict
from pathlib import Path

from regkit.bench.dataset import Case
from regkit.bench.methods import methods
from regkit.bench.run_record import RunOptions, fingerprint, versions
from regkit.bench.runner import MethodJob, processes
from regkit.core.errors import RegkitError
from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path, make_folder


def submit(
    cases: Sequence[Case],
    folder: Path,
    word: str,
    options: RunOptions,
    format: str = "npz",
    resume: bool = False,
    progress: Callable[[str, float], None] | None = None,
) -> list[Path]:
    """Write ``disp_FFFF_MMMM`` for each case, as the official evaluation reads it: float32 (X, Y, Z, 3), in
    voxels, in nibabel's order of axes. FOLDER.json beside the folder says by what they were made.

    Args:
        cases: of the challenge's direction, the MR fixed; named by the number of their pair.
        folder: made if it is not there.
        word: the method, as on the command line.
        format: "npz" or "nii.gz".
        resume: leave the files that are there already as they are.
        progress: as of :func:`regkit.bench.runner.run_cases`.

    Returns:
        The files, one for each case.

    Raises:
        RegkitError: if the method cannot be run, a file is there already, or was made otherwise, or a
            registration fails; the files of the others stay.
    """
    (method,) = methods([word]).values()
    if reason := method.missing():
        raise RegkitError(f"{method.name}: {reason}")
    files = [folder / f"disp_{case.name}_{case.name}.{format}" for case in cases]
    there = [path for path in files if path.exists()]
    if there and not resume:
        raise RegkitError(f"'{there[0]}' exists already; add --resume to keep it, or give another folder")
    made_by = {"method": method.version(), "versions": versions(), "options": asdict(options)}
    record = folder.with_name(f"{folder.name}.json")
    inputs = {case.name: fingerprint(case) for case in cases}
    if there:
        inputs = _same(record, made_by, inputs)
    make_folder(folder)
    with atomic_path(record) as temporary:
        temporary.write_text(to_json({**made_by, "files": inputs}) + "\n", encoding="utf-8")
    report = progress or (lambda stage, share: None)
    todo = [(case, path) for case, path in zip(cases, files) if not path.exists()]
    with processes(options) as (pool, start_process):
        report("starting", 0.0)
        running = {
            pool.submit(start_process, MethodJob(case, word, None, path, "l2r", False)): case
            for case, path in todo
        }
        for finished, future in enumerate(as_completed(running), start=1):
            case, row = running[future], future.result()
            if row["status"] != "ok":
                raise RegkitError(f"pair {case.name}: {row['error']}")
            report(case.name, finished / len(todo))
    return files


def _same(record: Path, made_by: Mapping[str, object], inputs: dict[str, str]) -> dict[str, str]:
    """What all fields were made of, those that are there included.

    Raises:
        RegkitError: if those were made by something else, of other files, or it is not known.
    """
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
        files = before.pop("files")
    except (OSError, ValueError, AttributeError, KeyError) as error:
        raise RegkitError(
            f"'{record}' does not say how the existing fields were made; give another folder"
        ) from error
    if before != json.loads(json.dumps(made_by)):
        raise RegkitError(
            f"the existing fields were made with other settings, as '{record}' says; give another folder"
        )
    if any(files.get(name, digest) != digest for name, digest in inputs.items()):
        raise RegkitError("the existing fields were made from other images; give another folder")
    return {**files, **inputs}
