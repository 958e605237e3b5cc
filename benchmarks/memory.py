"""The memory that a registration takes, as a whole process, against what it foretold.

    python benchmarks/memory.py --out benchmarks/results/memory.md

Images are smooth noise, int16 or float32, the fixed and the moving one of one size or not. Peaks are those
that the system counts for a process (ru_maxrss), files written.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import gaussian_filter, zoom

from regkit.core.geometry import Grid
from regkit.io.outputs import save_image
from regkit.io.provenance import commit

MB = 1e6


@dataclass(frozen=True)
class Case:
    """A run: sides of the images in voxels, mm of a voxel, and what is asked for."""

    fixed: int
    moving: int
    spacing: float
    options: tuple[str, ...] = ()
    dtype: str = "int16"


CASES = (
    Case(96, 96, 2.0),
    Case(184, 184, 2.2),
    Case(256, 256, 1.0),
    Case(256, 256, 1.0, ("--moved",)),
    Case(256, 256, 1.0, ("--moved", "--inverse", "--moved-labels", "--preset", "fast")),
    Case(256, 256, 1.0, ("--h5",)),
    Case(256, 256, 1.0, ("--init", "auto")),
    Case(256, 256, 1.0, ("--memory", "1.5")),
    Case(184, 184, 2.2, ("--memory", "1")),
    Case(320, 160, 1.0, ("--preset", "fast")),
    Case(160, 320, 1.0, ("--preset", "fast")),
    Case(256, 256, 1.0, ("--preset", "fast"), "float32"),
)


def write_image(path: Path, side: int, spacing: float, dtype: str) -> None:
    """Smooth noise over one field of view, whatever the size."""
    small = gaussian_filter(np.random.default_rng(0).normal(size=(48, 48, 48)), 2)
    array = zoom(200 * small / small.std(), side / 48, order=1)[:side, :side, :side]
    save_image(Grid((side,) * 3, (spacing,) * 3).to_sitk(array.astype(dtype)), path)


def measure(case: Case, folder: Path) -> dict[str, float]:
    """Peak and foretold MB of a run."""
    fixed, moving, labels = (folder / f"{name}.nii.gz" for name in ("fixed", "moving", "labels"))
    write_image(fixed, case.fixed, case.spacing, case.dtype)
    write_image(moving, case.moving, case.spacing * case.fixed / case.moving, case.dtype)
    words = ["--init", "none", "--threads", "1", "--json", "-q", "--overwrite"]
    warp = "warp.nii.gz"
    for option in case.options:
        if option == "--h5":
            warp = "warp.h5"
        elif option in ("--moved", "--inverse", "--moved-labels"):
            words += [option, str(folder / f"{option[2:]}.nii.gz")]
            if option == "--moved-labels":
                array = np.zeros((case.moving,) * 3, np.uint8)
                array[case.moving // 4 : case.moving // 2] = 1
                save_image(Grid((case.moving,) * 3, (case.spacing,) * 3).to_sitk(array), labels)
                words += ["--moving-labels", str(labels)]
        else:
            words.append(option)
    command = [sys.executable, "-m", "regkit", "register", str(fixed), str(moving), "-o", str(folder / warp)]
    with open(folder / "out.json", "wb") as out:
        child = subprocess.Popen([*command, *words], stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{case} failed with {child.returncode}")
    output = json.loads((folder / "out.json").read_text())
    working = output["settings"]["working_size"]
    return {
        "peak": usage.ru_maxrss * 1024 / MB,
        "foretold": output["memory_mb"]["foretold"] * 2**20 / MB,
        "working": float(np.prod(working)),
    }


def main() -> None:
    """Run all cases and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="a Markdown file")
    out = parser.parse_args().out
    lines = [
        "# Memory: foretold and taken",
        "",
        f"`python benchmarks/memory.py --out {out}`, "
        f"commit {commit('.', ':(exclude)benchmarks/results')}, one thread. "
        "Peaks are of the whole process with its libraries (some 340 MB), files written; MB are 10^6 "
        "bytes. What is foretold is said before anything of it is taken but the images themselves.",
        "",
        "| fixed | moving | type | options | working grid, 10^6 voxels | foretold, MB | peak, MB | ratio |",
        "|--:|--:|---|---|--:|--:|--:|--:|",
    ]
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            row = measure(case, Path(folder))
        cells = [f"{case.fixed}³", f"{case.moving}³", case.dtype, " ".join(case.options) or "-"]
        cells += [f"{row['working'] / 1e6:.2f}", f"{row['foretold']:.0f}", f"{row['peak']:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak'] / row['foretold']:.2f}"]) + " |")
        print(lines[-1], flush=True)
    out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
