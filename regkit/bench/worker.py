"""One run in a process of its own: ``python -m regkit.bench.worker JOB``.

So its peak memory and its threads are its own, and whatever a method does to its process (an abort of C++
code, running out of memory) costs one row. JOB is a JSON file that the runner wrote; what came of it is
written beside it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from threading import Thread
from typing import Any

from regkit.bench.dataset import Case
from regkit.bench.measure import measure
from regkit.bench.method import Inputs
from regkit.bench.methods import LINEAR, methods
from regkit.core.errors import RegkitError
from regkit.core.geometry import Float64
from regkit.core.jsontext import to_json
from regkit.io.atomic import atomic_path
from regkit.io.formats import read_linear, write_linear, write_warp
from regkit.runtime.memory import peak_mb, peak_mb_of_children


def main() -> None:
    """Do the job, and write ``result`` or what went wrong."""
    Thread(target=_end_with_runner, daemon=True).start()
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        row = _start(job) if job["method"] is None else _register(job)
    except Exception as error:
        if not isinstance(error, RegkitError):
            traceback.print_exc()  # for whoever looks for a bug in what the runner keeps of stderr
        name = "" if isinstance(error, RegkitError) else f"{type(error).__name__}: "
        row = {"status": "failed", "error": f"{name}{error}".strip()}
    with atomic_path(job["result"]) as temporary:
        temporary.write_text(to_json(row) + "\n", encoding="utf-8")


def _end_with_runner() -> None:
    """Should the runner be killed, this process and all that it has started end as well."""
    sys.stdin.buffer.read()
    if hasattr(os, "killpg"):
        os.killpg(os.getpgid(0), signal.SIGKILL)
    os._exit(1)


def _inputs(job: dict[str, Any], start: Float64 | None) -> Inputs:
    case, folder = Case.from_dict(job["case"]), Path(job["folder"])
    return Inputs(case, start, job["threads"], job["device"], job["seed"], folder)


def _start(job: dict[str, Any]) -> dict[str, Any]:
    """The linear start that all methods are given."""
    write_linear(LINEAR.run(_inputs(job, None)).linear, job["start"])
    return {"status": "ok"}


def _register(job: dict[str, Any]) -> dict[str, Any]:
    (method,) = methods([job["method"]]).values()
    inputs = _inputs(job, None if job["start"] is None else read_linear(job["start"]))
    outcome = method.register(inputs)
    row: dict[str, Any] = {
        "status": "ok",
        "seconds": outcome.seconds | {"total": sum(outcome.seconds.values())},
        "peak_mb": max(peak_mb(), peak_mb_of_children()),
        "settings": outcome.settings,
    }
    if job["warp"] is not None:
        write_warp(outcome.warp, job["warp"], job["warp_format"])
    if job["measure"]:
        row |= measure(inputs.case, outcome.warp)
    return row


if __name__ == "__main__":
    main()
