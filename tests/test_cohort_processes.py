"""Jobs in processes: what dies costs one of them, and nothing outlives its end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from cohort_jobs import at_import, first_at_once, square, square_or_die

from regkit.cohort.processes import in_processes
from regkit.core.errors import RegkitError


def _died(job: object, reason: str) -> str:
    return f"{job}: {reason}"


def _is_alive(process: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(process, 0)
        return True
    return False


def _wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists() and path.read_text():
            return path.read_text()
        time.sleep(0.1)
    raise AssertionError(f"{path.name} was not written")


def _gone(process: int) -> bool:
    for _ in range(100):
        if not _is_alive(process):
            return True
        time.sleep(0.1)
    return False


def test_a_process_that_dies_costs_its_own_job() -> None:
    results = list(in_processes(square_or_die, range(7), 2, 1, _died))
    told = [result for result in results if isinstance(result, str)]
    assert sorted(result for result in results if isinstance(result, int)) == [0, 1, 4, 25, 36]
    assert sorted(told) == [
        "3: its process was ended by SIGKILL; memory may have run out",
        "4: its process ended with code 7",
    ]


def test_a_process_is_set_up_before_its_work_is_imported() -> None:
    """torch and its OpenMP read these once; with threads that spin, two workers take each other's cores."""
    names = ["OMP_WAIT_POLICY", "OMP_NUM_THREADS"]
    assert list(in_processes(at_import, names, 1, 3, _died)) == ["passive", "3"]


def test_fewer_jobs_than_processes() -> None:
    assert list(in_processes(square, [5], 2, 1, _died)) == [25]
    assert list(in_processes(square, [], 2, 1, _died)) == []


def test_whoever_stops_early_leaves_no_process(tmp_path: Path) -> None:
    running = in_processes(first_at_once, [None, tmp_path / "begun"], 2, 1, _died)
    assert next(running) is None
    process = int(_wait_for(tmp_path / "begun"))
    running.close()
    assert _gone(process)


def test_a_killed_program_leaves_no_process(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path\n"
        "from cohort_jobs import say_and_sleep\n"
        "from regkit.cohort.processes import in_processes\n"
        "if __name__ == '__main__':\n"
        f"    list(in_processes(say_and_sleep, [Path({str(tmp_path / 'begun')!r})], 1, 1, print))\n"
    )
    script = tmp_path / "script.py"
    script.write_text(code)
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": places}) as program:
        process = int(_wait_for(tmp_path / "begun"))
        program.kill()
    assert _gone(process)


def test_a_script_without_its_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from cohort_jobs import square\n"
        "from regkit.cohort.processes import in_processes\n"
        "list(in_processes(square, [1], 1, 1, print))\n"
    )
    places = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": places}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert f"{RegkitError.__name__}: a process for the pairs could not start" in done.stderr
    assert 'if __name__ == "__main__"' in done.stderr.replace("'__main__'", '"__main__"')


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system tells no affinity")
def test_cores_are_those_that_the_process_may_use() -> None:
    from regkit.cohort.run import usable_cores

    assert usable_cores() == len(os.sched_getaffinity(0))
