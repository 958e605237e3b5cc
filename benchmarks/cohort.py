"""Load of ``regkit batch`` over many small pairs: memory, files, processes, and what two workers are worth.

    python benchmarks/cohort.py --pairs 500 --alone 100 -o benchmarks/results/cohort.md

Pairs are of a few phantoms of coarse voxels, over and over. One worker does some of them first, then two do
all, each with one thread. All the while the memory and the open files of every process are looked at.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from regkit.demo import FILES, write_phantom
from regkit.io.atomic import atomic_path
from regkit.io.provenance import version
from regkit.synthesis.phantom import torso

_INTERVAL = 1.0  # seconds between two looks
_ENDING = 10.0  # seconds that the last processes have to end after the program
_SPACING = 12.0  # mm


@dataclass
class Load:
    """What was seen of one run.

    Args:
        seconds: since the start, of each pair that was done.
        samples: seconds, MB of all processes, open files of all, and how many there are.
        left: processes that outlived the run.
        temporary: files that it left half-written.
        failed: pairs.
        machine: load of the machine, the mean of one minute, before and after.
    """

    seconds: list[float] = field(default_factory=list)
    samples: list[tuple[float, float, int, int]] = field(default_factory=list)
    left: int = 0
    temporary: int = 0
    failed: int = 0
    machine: tuple[float, float] = (0.0, 0.0)

    @property
    def rate(self) -> float:
        """Pairs a minute, from the first that was done to the last: without the start of the processes."""
        return 60 * (len(self.seconds) - 1) / (self.seconds[-1] - self.seconds[0])

    def between(self, which: int, first: float, last: float) -> float:
        """The median of a kind of sample within shares of the time between the first pair and the last."""
        begin, end = self.seconds[0], self.seconds[-1]
        low, high = (begin + share * (end - begin) for share in (first, last))
        return statistics.median(sample[which] for sample in self.samples if low <= sample[0] <= high)


def measured(table: Path, out: Path, workers: int) -> Load:
    """Run a cohort and watch it."""
    load, before = Load(), os.getloadavg()[0]
    words = [sys.executable, "-m", "regkit", "batch", str(table), "-o", str(out), "--workers", str(workers)]
    words += ["--threads", "1", "--preset", "fast", "--features", "mind"]
    start = time.monotonic()
    with (
        tempfile.TemporaryFile("w+") as output,
        subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=output, text=True) as program,
    ):
        parent, processes = psutil.Process(program.pid), set[psutil.Process]()
        while program.poll() is None:
            try:
                family = [parent, *parent.children(recursive=True)]
                processes.update(family)
                memory = sum(one.memory_info().rss for one in family) / 2**20
                files = sum(one.num_fds() for one in family)
            except psutil.Error:  # one has just ended
                continue
            load.samples.append((time.monotonic() - start, memory, files, len(family)))
            time.sleep(_INTERVAL)
        output.seek(0)
        if program.returncode not in (0, 1) or not (out / "summary.csv").exists():
            raise SystemExit(output.read())
    done = sorted(out.glob("*/warp.nii.gz.json"), key=lambda path: path.stat().st_mtime_ns)
    offset = time.time() - (time.monotonic() - start)
    load.seconds = [path.stat().st_mtime - offset for path in done]
    with (out / "summary.csv").open(newline="") as stream:
        load.failed = sum(row["status"] != "ok" for row in csv.DictReader(stream))
    load.left = len(psutil.wait_procs(processes, timeout=_ENDING)[1])
    load.temporary = len(list(out.rglob(".regkit-*")))
    load.machine = before, os.getloadavg()[0]
    return load


def write_table(folder: Path, pairs: int, phantoms: int) -> Path:
    """A table of so many pairs, of the files of so many phantoms."""
    for seed in range(phantoms):
        place = folder / str(seed)
        if not place.is_dir():
            place.mkdir()
            write_phantom(torso(seed, _SPACING), {name: place / file for name, file in FILES.items()})
    lines = [f"p{k:04},{k % phantoms}/fixed.nii.gz,{k % phantoms}/moving.nii.gz" for k in range(pairs)]
    table = folder / f"pairs-{pairs}.csv"
    table.write_text("\n".join(["name,fixed,moving", *lines]) + "\n")
    return table


def report(loads: dict[int, Load], command: str) -> str:
    """The results as Markdown."""
    heads = ("workers", "pairs", "failed", "pairs a minute", "MB, first tenth", "MB, last tenth", "MB, most",
             "files open, first tenth", "last tenth", "processes left", "half-written",
             "load of the machine")  # fmt: skip
    rows = [
        (
            workers, len(load.seconds), load.failed, f"{load.rate:.1f}", f"{load.between(1, 0, 0.1):.0f}",
            f"{load.between(1, 0.9, 1):.0f}", f"{max(sample[1] for sample in load.samples):.0f}",
            f"{load.between(2, 0, 0.1):.0f}", f"{load.between(2, 0.9, 1):.0f}", load.left, load.temporary,
            " to ".join(f"{value:.1f}" for value in load.machine),
        )
        for workers, load in loads.items()
    ]  # fmt: skip
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in (heads, ["--:"] * len(heads), *rows)]
    ratio = loads[2].rate / loads[1].rate
    return "\n".join(
        [
            "# `regkit batch` over many pairs",
            "",
            f"`{command}`",
            "",
            f"{version()}, {platform.machine()}, {os.cpu_count()} cores. Pairs are of 12 mm voxels, with",
            "`--preset fast --features mind` and one thread a worker. Memory and files are of all processes.",
            "",
            *lines,
            "",
            f"Two workers do {ratio:.2f} times as many pairs in the same time as one.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=500, help="that two workers do")
    parser.add_argument("--alone", type=int, default=100, help="that one worker does")
    parser.add_argument("--phantoms", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    loads = {}
    with tempfile.TemporaryDirectory(prefix="regkit-cohort-") as place:
        for workers, pairs in ((1, arguments.alone), (2, arguments.pairs)):
            table = write_table(Path(place), pairs, arguments.phantoms)
            loads[workers] = measured(table, Path(place) / f"out{workers}", workers)
            print(workers, loads[workers].rate, loads[workers].machine, flush=True)
    counts = f"--pairs {arguments.pairs} --alone {arguments.alone} --phantoms {arguments.phantoms}"
    text = report(loads, f"python benchmarks/cohort.py {counts}")
    with atomic_path(arguments.output) as temporary:
        temporary.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
