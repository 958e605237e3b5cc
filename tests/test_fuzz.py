"""A short slice of ``benchmarks/fuzz.py``: damaged files of every format, read or refused in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FUZZ = Path(__file__).parents[1] / "benchmarks" / "fuzz.py"


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    table = tmp_path / "fuzz.md"
    command = [
        sys.executable,
        str(FUZZ),
        "--cases",
        "15",
        "--itk-cases",
        "1",
        "--seed",
        "7",
        "-o",
        str(table),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Faults: 0." in table.read_text()


def test_a_fault_is_found() -> None:
    """By a reader that goes wrong after the seed, so that a clean table means something."""
    code = (
        "import sys, runpy\n"
        f"sys.path.insert(0, {str(FUZZ.parent)!r})\n"
        "import regkit.io.points\n"
        "read, seen = regkit.io.points.read_points, []\n"
        "def broken(path):\n"
        "    seen.append(path)\n"
        "    return {}['a bug'] if len(seen) > 1 else read(path)\n"
        "regkit.io.points.read_points = broken\n"
        "sys.argv = ['fuzz.py', '--work', '[0, [[\"points, fcsv\", 0, 1]]]']\n"
        f"runpy.run_path({str(FUZZ)!r}, run_name='__main__')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"how": "traceback", "detail": "KeyError: \'a bug\'"' in done.stdout
