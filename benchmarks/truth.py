"""Register images between which the right map is known exactly, and measure how far off the result is.

    python benchmarks/truth.py [--methods default mind] [--groups identity] [--cases TEXT] [--threads 1]
        [--again] [-o benchmarks/results/truth]

The cases are those of ``benchmarks/truth_cases.py``. The error of a voxel p of the fixed image is
``|T(p) - T*(p)|`` in mm, T the result and T* the truth, and is told in voxels: over the cube root of the
fixed voxel's volume. It counts in the body (:func:`truth_cases.body_of`), at least :data:`BORDER` voxels
inside both fields of view; what lies nearer to the end of one is told apart, "at the border".

Rows are kept: what the output has of a case and method for the same images and the same code (of a peer: the
same version) is not run again unless ``--again`` is given.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from open_pairs import ROOT, apart, commit, setting, write_rows
from truth_cases import GROUPS, Case, cases
from truth_report import cell, done, draw, report

import regkit
from regkit.bench import dataset as bench
from regkit.bench.method import Inputs
from regkit.bench.peers import Ants, Greedy
from regkit.core.geometry import Float64, transform_points
from regkit.warp import contains

BORDER = 4  # voxels
SAMPLES = 32  # places of a case whose stated doubt and error are kept for the plot


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found.

    Args:
        warp: on the fixed grid.
        linear: 4x4, or None where the method does not tell its linear stage.
        doubt: mm on the fixed grid, (z, y, x), or None.
        seconds: of the whole registration.
    """

    warp: regkit.Warp
    linear: Float64 | None
    doubt: npt.NDArray[Any] | None
    seconds: float


@dataclass(frozen=True)
class Method:
    """A method by what stands in its rows for its code, and how it is run: (case, threads) -> Found."""

    version: Callable[[], str]
    run: Callable[[Case, int], Found]


def ours(**options: Any) -> Method:
    def run(case: Case, threads: int) -> Found:
        result = regkit.register(
            case.fixed, case.moving, init=case.init, threads=case.threads or threads, **options
        )
        doubt = getattr(result, "uncertainty", None)
        return Found(
            result.warp, result.linear, None if doubt is None else doubt.array, result.timings["total"]
        )

    return Method(lru_cache(commit), run)


def peer(package: Ants | Greedy, **settings: Any) -> Method:
    """One of :mod:`regkit.bench.peers`, with other settings of its class.

    Where the headers are right it deforms alone, as regkit is asked to; elsewhere its own linear stages come
    first.
    """

    def run(case: Case, threads: int) -> Found:
        return apart(
            run_peer, type(package), settings, case.fixed, case.moving, case.init, case.threads or threads
        )

    return Method(package.version, run)


def run_peer(
    kind: type[Ants | Greedy],
    settings: dict[str, Any],
    fixed: regkit.Volume,
    moving: regkit.Volume,
    init: str,
    threads: int,
) -> Found:
    """Register files of the two images, as the benchmark of peers does; in a process that may crash."""
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = str(threads)  # ANTs takes no argument for it
    package = kind()
    for name, value in settings.items():
        setattr(package, name, value)
    with TemporaryDirectory() as folder:
        files = {}
        for role, volume in (("fixed", fixed), ("moving", moving)):
            files[role] = bench.Side(Path(folder) / f"{role}.nrrd")
            sitk.WriteImage(volume.to_sitk(), str(files[role].image))
        pair = bench.Case("truth", "as given", files["fixed"], files["moving"], {})
        start = np.eye(4) if init == "none" else None
        outcome = package.register(Inputs(pair, start, threads, "cpu", 0, Path(folder)))
    return Found(outcome.warp, start, None, sum(outcome.seconds.values()))


METHODS: dict[str, Method] = {
    "default": ours(),
    "mind": ours(features="mind"),
    "accurate": ours(preset="accurate"),
    "ants-mi": peer(Ants()),
    "ants-cc": peer(Ants(), metric="CC", sampling=4),  # the radius of antspyx' own SyNCC
    "greedy-nmi": peer(Greedy()),
    "greedy-wncc": peer(Greedy(), metric="WNCC 2x2x2"),
}


def measure(case: Case, result: Found, reference: Found | None = None) -> dict[str, Any]:
    """Errors in voxels, inside and at the border, and the shares of the fixed voxels that are imaged.

    Args:
        reference: what the method found for the case's reference, if it has one. Then the truth of the linear
            stage is the reference's linear stage, and that of the whole its warp.

    Returns:
        ``voxel_mm``; ``body`` and ``border``, each of ``after`` and, where it is known, ``linear``:
        mean, p95 and max, or None where no voxel counts; ``imaged``: the share of all fixed voxels that
        lie in the moving field of view by ``truth``, ``linear`` and ``after``; ``doubt``, or None.
    """
    grid, moving = case.fixed.grid, case.moving.grid
    points = grid.world_points()
    maps = {"truth": case.truth(points), "after": points + result.warp.field}
    truths = {"after": maps["truth"], "linear": maps["truth"]}
    if result.linear is not None:
        maps["linear"] = transform_points(result.linear, points)
    if reference is not None:
        truths["after"] = maps["truth"] = case.truth(reference.warp.transform_points(points))
        if reference.linear is not None:
            truths["linear"] = case.truth(transform_points(reference.linear, points))
    voxel = float(np.prod(grid.spacing) ** (1 / 3))
    deep = inside(grid, points, BORDER) & inside(moving, maps["truth"], BORDER)
    visible = inside(moving, maps["truth"], 0)
    regions = {"body": case.body & deep, "border": case.body & visible & ~deep}
    errors = {stage: distance(maps[stage], truths[stage]) / voxel for stage in truths if stage in maps}
    row: dict[str, Any] = {"voxel_mm": voxel}
    for region, mask in regions.items():
        row[region] = {"voxels": int(mask.sum())}
        row[region] |= {stage: summary(error[mask]) for stage, error in errors.items()}
    row["imaged"] = {stage: float(contains(moving, mapped).mean()) for stage, mapped in maps.items()}
    row["doubt"] = None
    if result.doubt is not None and reference is None and regions["body"].any():
        mask = regions["body"]
        row["doubt"] = doubt_against_error(result.doubt[mask] / voxel, errors["after"][mask])
    return row


def inside(grid: regkit.Grid, points: Float64, voxels: int) -> npt.NDArray[np.bool_]:
    """Which points (..., 3) lie at least so many voxels within the outer voxel centres of a grid."""
    index = transform_points(grid.world_to_index, points)
    return np.all((index >= voxels - 1e-6) & (index <= np.asarray(grid.size) - 1 - voxels + 1e-6), axis=-1)


def distance(mapped: Float64, truth: Float64) -> Float64:
    return np.asarray(np.linalg.norm(mapped - truth, axis=-1))


def summary(error: Float64) -> dict[str, float] | None:
    if not error.size:
        return None
    return {
        "mean": float(error.mean()), "p95": float(np.percentile(error, 95)), "max": float(error.max())
    }  # fmt: skip


def doubt_against_error(doubt: npt.NDArray[Any], error: Float64) -> dict[str, Any]:
    """How many places say under 1 voxel, how many of those are, and a sample of both numbers."""
    sure = doubt < 1
    some = np.random.default_rng(0).integers(0, error.size, SAMPLES)
    return {
        "sure": float(sure.mean()),
        "right_where_sure": float((error[sure] < 1).mean()) if sure.any() else None,
        "sample": [[float(f"{doubt[k]:.3g}"), float(f"{error[k]:.3g}")] for k in some],
    }


@lru_cache(maxsize=1)
def digest(case: Case) -> str:
    """Of the images and how they are registered."""
    content = hashlib.sha1(repr((case.fixed.grid, case.moving.grid, case.init, case.threads)).encode())
    for volume in (case.fixed, case.moving):
        content.update(volume.array.tobytes())
    content.update(np.packbits(case.body).tobytes())
    return content.hexdigest()[:12]


def run(case: Case, name: str, threads: int) -> dict[str, Any]:
    """The row of one case and method; what went wrong stands in ``error``."""
    row = {
        "group": case.group, "case": case.name, "kind": case.kind, "method": name,
        "version": METHODS[name].version(), "images": digest(case), "threads": threads, "error": None,
    }  # fmt: skip
    start = time.perf_counter()
    try:
        result, reference = METHODS[name].run(case, threads), None
        if case.reference is not None:
            reference = run_reference(name, *case.reference, case.init, threads)
    except Exception as error:  # of a peer anything may come: a row, not the end
        return row | {"error": f"{type(error).__name__}: {error}", "seconds": time.perf_counter() - start}
    return row | measure(case, result, reference) | {"seconds": result.seconds}


@lru_cache(maxsize=8)
def run_reference(name: str, fixed: regkit.Volume, moving: regkit.Volume, init: str, threads: int) -> Found:
    """What a method finds for a pair that several cases change; once for all methods of a run."""
    pair = Case("reference", "nothing", "", fixed, moving, np.asarray, np.ones(fixed.array.shape, bool), init)
    return METHODS[name].run(pair, threads)


def same(row: dict[str, Any], case: Case, name: str, threads: int) -> bool:
    """Whether a row is what running the case again would give."""
    version = METHODS[name].version()
    return (
        row["images"] == digest(case)
        and row["version"] == version
        and row["threads"] == threads
        and not version.endswith("-dirty")
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--methods", nargs="+", default=["default", "mind"], choices=METHODS)
    parser.add_argument("--groups", nargs="+", default=GROUPS, choices=GROUPS)
    parser.add_argument("--cases", default="", metavar="TEXT", help="only those with TEXT in their name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--again", action="store_true", help="run what the output already has as well")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "truth")
    arguments = parser.parse_args()
    table = arguments.output.with_suffix(".json")
    rows = {(r["case"], r["method"]): r for r in json.loads(table.read_text())} if table.exists() else {}
    for case in cases(arguments.groups, arguments.cases):
        for name in arguments.methods:
            old = rows.get((case.name, name))
            if old is not None and not arguments.again and same(old, case, name, arguments.threads):
                continue
            row = rows[case.name, name] = run(case, name, arguments.threads)
            print(f"{case.name}, {name}: {row['error'] or cell(row)}, {row['seconds']:.1f} s", flush=True)
            write(list(rows.values()), arguments.output)
    if rows:
        write(list(rows.values()), arguments.output)
        draw(done(list(rows.values())), arguments.output.with_suffix(".png"))


def write(rows: list[dict[str, Any]], output: Path) -> None:
    """All rows that there are, in the order of the groups and methods."""
    order = [*GROUPS, *METHODS]
    rows = sorted(rows, key=lambda row: (order.index(row["group"]), order.index(row["method"])))
    threads = ", ".join(map(str, sorted({row["threads"] for row in rows})))
    command = f"python benchmarks/truth.py --methods {' '.join(dict.fromkeys(r['method'] for r in rows))}"
    head = f"`{command} --threads {threads}`, {setting()}; behind each method the code that its rows are of."
    write_rows(rows, output, f"{head}\n\n{report(rows)}")


if __name__ == "__main__":
    main()
