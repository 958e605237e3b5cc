"""Time, work and peak memory of regkit and PyPI convexAdam on one pair, as whole processes in alternation.

    python -m venv peer && peer/bin/pip install -c constraints.txt torch nibabel SimpleITK convexAdam==0.2.0
    python benchmarks/against_convexadam.py --peer-python peer/bin/python [--runs 3] [--threads N] [-o FILE]

The pair is two phantom images of 192x160x192 voxels of 2 mm on one grid, near each other, since
convexAdam takes no other. Both programs read the NIfTI files and write a displacement field; convexAdam
runs with its defaults. regkit runs twice: as a user runs it (with the network, and the search for a linear
start, which convexAdam has not), and with ``--features mind --init none``: the same work. CPU seconds are
those of all cores; other programs on the machine change them less than the seconds on the clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import SimpleITK as sitk
from open_pairs import ROOT, setting, write_rows

from regkit.geometry import Grid
from regkit.phantom import torso

PEER_NAME = "convexAdam 0.2.0"
PEER = """
import sys
import nibabel, numpy
from convexAdam.convex_adam_MIND import convex_adam_pt
fixed, moving = (nibabel.load(path) for path in sys.argv[1:3])
field = convex_adam_pt(*(image.get_fdata(dtype=numpy.float32) for image in (fixed, moving)))
nibabel.save(nibabel.Nifti1Image(field.astype(numpy.float32), fixed.affine), sys.argv[3])
"""


def write_pair(folder: Path) -> tuple[Path, Path]:
    """Both phantom images on one 192x160x192 grid of 2 mm, the moving one shifted into the fixed frame."""
    phantom = torso(3, spacing=2.0)
    size = (192, 160, 192)
    origin = phantom.fixed.grid.centre - (np.asarray(size) - 1)
    grid = Grid(size, (2.0, 2.0, 2.0), tuple(origin))
    shift = sitk.TranslationTransform(3, tuple(phantom.moving.grid.centre - phantom.fixed.grid.centre))
    paths = folder / "fixed.nii.gz", folder / "moving.nii.gz"
    for path, volume, transform in zip(
        paths, (phantom.fixed, phantom.moving), (sitk.Transform(), shift), strict=True
    ):
        image, background = volume.to_sitk(), float(volume.array.min())
        seen = sitk.Resample(image, grid.blank(), transform, sitk.sitkLinear, background, sitk.sitkInt16)
        sitk.WriteImage(seen, str(path))
    return paths


def measure(command: list[str], threads: int | None) -> dict[str, float]:
    """Seconds on the clock, CPU seconds and peak MB of one process, by the operating system's account."""
    # Each library that counts threads reads one of these.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    environment = os.environ | ({} if threads is None else dict.fromkeys(names, str(threads)))
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        assert process.stderr is not None
        raise SystemExit(f"{command[:4]} failed:\n{process.stderr.read()[-2000:]}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": usage.ru_utime + usage.ru_stime,
        "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
    }


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def table(found: dict[str, list[dict[str, float]]]) -> str:
    """One row for each program; the ratios are to convexAdam's run just before."""
    lines = [
        "| program | seconds, median (range) | CPU seconds | peak MB | seconds / convexAdam's, run by run "
        "| CPU seconds / convexAdam's |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, runs in found.items():
        cells = [spread([run[measure] for run in runs]) for measure in ("seconds", "cpu_seconds")]
        cells.append(f"{max(run['peak_mb'] for run in runs):.0f}")
        for measure in ("seconds", "cpu_seconds"):
            pairs = zip(runs, found[PEER_NAME], strict=True)
            cells.append(", ".join(f"{run[measure] / peer[measure]:.2f}" for run, peer in pairs))
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", required=True, help="of an environment that holds convexAdam 0.2.0")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, help="of each program; by default each takes what it likes")
    parser.add_argument(
        "-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "against_convexadam"
    )
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fixed, moving = map(str, write_pair(folder))
        regkit = [sys.executable, "-m", "regkit", "register", fixed, moving, "--quiet", "--overwrite", "-o"]
        commands = {
            PEER_NAME: [
                arguments.peer_python,
                "-c",
                PEER,
                fixed,
                moving,
                str(folder / "peer.nii.gz"),
            ],
            "regkit": [*regkit, str(folder / "warp.nii.gz")],
            "regkit --features mind --init none": [
                *regkit,
                str(folder / "warp.nii.gz"),
                "--features",
                "mind",
                "--init",
                "none",
            ],
        }
        found: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
        for _ in range(arguments.runs):
            for name, command in commands.items():
                found[name].append(measure(command, arguments.threads))
                print(name, *(f"{value:.1f}" for value in found[name][-1].values()), flush=True)
    used = f"python benchmarks/against_convexadam.py --runs {arguments.runs}"
    if arguments.threads:
        used += f" --threads {arguments.threads}"
    write_rows(found, arguments.output, f"`{used}`, {setting()}\n\n{table(found)}")
    print(table(found))


if __name__ == "__main__":
    main()
