"""What regkit takes: by stage, beside the limits of the machine; beside its peers; by size of the images.

    python benchmarks/speed.py stages [--runs 3] [--threads N] [--shape Z Y X] [-o FILE]
    python -m venv peer
    peer/bin/pip install -c constraints.txt torch nibabel SimpleITK convexAdam==0.2.0 antspyx
    python benchmarks/speed.py peers --peer-python peer/bin/python [as above]
    python benchmarks/speed.py sizes [--sizes 64 96 128 192 256 384] [--runs 3] [--threads N] [-o FILE]
    python benchmarks/speed.py tricks [as stages]
    python benchmarks/speed.py gpu [--runs 10] [--shape Z Y X] [-o FILE]

All but the last are whole processes, one at a time: NIfTI files in, a NIfTI warp out. The files are two
phantom images of 192x160x192 voxels of 2 mm on one grid, near each other, since convexAdam takes no other.

stages: the seconds of each stage, and those that its work would take at the ceilings of this machine, which
are measured between the runs with as many threads; the work is counted in benchmarks/limits.py. Not counted
are loading and writing (gzip, the disk), resampling, and the linear start, whose rounds hang on the images.

peers: in turn. convexAdam and antspyx do not search for a start, nor does the third regkit, on MIND as
convexAdam is. antspyx also writes the inverse warp, and warps both images.

sizes: cubes of one field of view. Beyond the preset's max_voxels, which no option sets, the working grid is
coarser than the images and the cost levels off, so the exponents are given for the sizes up to there too.
CPU seconds are those of all cores; other programs on the machine change them less than those on the clock.

tricks: of regkit.runtime.process, each left out in turn beside all of them: of the start of a process, of a
whole registration where it works on that, and of ten files that ITK parses.

gpu: a process registers the pair on the GPU once, in which kernels are compiled or read from Triton's cache,
and then again and again; what the GPU works on in each stage is from one more run under torch's profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from limits import at_ceiling, ceilings, ceilings_of_gpu, needs
from open_pairs import ROOT, apart, setting, write_rows

# The system counts the peak of a process from what its parent held when it started it. So this one stays
# small: what needs torch or images is done apart.

SHAPE, SPACING = (192, 160, 192), 2.0
SIZES, FIELD_OF_VIEW = (64, 96, 128, 192, 256, 384), 384.0
STAGES = ("start", "load", "linear", "features", "coarse", "fine", "warp", "write")
# All that a registration imports and reads before its first stage.
START = (
    "from regkit.runtime.process import import_torch, leave, tune; tune(); import_torch(); "
    "import regkit.cli, regkit.registration as r, regkit.result_files; r.feature_parts(); leave(0)"
)
PARSED = 10
PARSE = (
    "import sys; from regkit.io.images import load_image\n"
    f"for _ in range({PARSED}): load_image(sys.argv[1], 'image')"
)
OWN = ((), ("--preset", "fast"), ("--features", "mind", "--init", "none"))
PEERS = {  # the package, what to import and what to run
    "convexAdam": (
        "import sys, nibabel, numpy; from convexAdam.convex_adam_MIND import convex_adam_pt",
        """
fixed, moving = (nibabel.load(path) for path in sys.argv[1:3])
field = convex_adam_pt(*(image.get_fdata(dtype=numpy.float32) for image in (fixed, moving)))
nibabel.save(nibabel.Nifti1Image(field.astype(numpy.float32), fixed.affine), sys.argv[3] + "Warp.nii.gz")
""",
    ),
    "antspyx": (
        "import sys, ants",
        """
fixed, moving = (ants.image_read(path) for path in sys.argv[1:3])
ants.registration(fixed, moving, type_of_transform="SyNOnly", syn_metric="mattes", outprefix=sys.argv[3])
""",
    ),
}


def write_pair(folder: Path, shape: Sequence[int], spacing: float) -> None:
    """Both phantom images on one grid, shape (z, y, x), the moving one shifted into the fixed frame."""
    import numpy as np
    import SimpleITK as sitk

    from regkit.core.geometry import Grid
    from regkit.synthesis.phantom import torso

    phantom = torso(3, spacing=2.0)
    z, y, x = shape
    size = (x, y, z)
    origin = phantom.fixed.grid.centre - 0.5 * spacing * (np.asarray(size) - 1)
    grid = Grid(size, (spacing,) * 3, tuple(origin))
    shift = sitk.TranslationTransform(3, tuple(phantom.moving.grid.centre - phantom.fixed.grid.centre))
    sides = (("fixed", phantom.fixed, sitk.Transform()), ("moving", phantom.moving, shift))
    for name, volume, transform in sides:
        image, background = volume.to_sitk(), float(volume.array.min())
        resampled = sitk.Resample(image, grid.blank(), transform, sitk.sitkLinear, background, sitk.sitkInt16)
        sitk.WriteImage(resampled, str(folder / f"{name}.nii.gz"))


def measure(command: Sequence[str], threads: int | None, **variables: str) -> tuple[dict[str, float], str]:
    """Seconds on the clock, CPU seconds and peak MB of a process by the system's account, and its output."""
    # Each library that counts threads reads one of these.
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    counts = {} if threads is None else dict.fromkeys(names, str(threads))
    environment = os.environ | counts | variables
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        start = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=errors)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        errors.seek(0)
        if status:
            raise SystemExit(f"{' '.join(command[:4])} failed:\n{errors.read()[-2000:]}")
        return {
            "seconds": seconds,
            "cpu_seconds": usage.ru_utime + usage.ru_stime,
            "peak_mb": usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10),
        }, output.read()


def regkit(folder: Path, *options: str) -> list[str]:
    pair = (str(folder / f"{name}.nii.gz") for name in ("fixed", "moving"))
    output = ("-o", str(folder / "Warp.nii.gz"), "--overwrite", "--quiet", "--json")
    return [sys.executable, "-m", "regkit", "register", *pair, *output, *options]


def empty(threads: int | None) -> dict[str, float]:
    """A process that imports what a registration does, reads the weights of the network, and ends."""
    return measure([sys.executable, "-c", START], threads)[0]


def spread(values: Iterable[float], digits: int = 1) -> str:
    listed = list(values)
    return f"{statistics.median(listed):.{digits}f} ({min(listed):.{digits}f} to {max(listed):.{digits}f})"


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def stages(arguments: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    apart(write_pair, folder, arguments.shape, SPACING)
    runs: list[dict[str, Any]] = []
    rates: dict[str, float] = {}
    for _ in range(arguments.runs):
        start = empty(arguments.threads)["seconds"]
        whole, output = measure(regkit(folder), arguments.threads)
        result = json.loads(output)
        settings, seconds = result["settings"], {"start": start, **result["seconds"]}
        seconds["write"] = whole["seconds"] - start - seconds.pop("total")
        runs.append({**whole, "stages": seconds})
        print(*(f"{stage} {value:.2f}" for stage, value in seconds.items()), flush=True)
        for name, rate in apart(ceilings, settings["threads"]).items():
            rates[name] = max(rate, rates.get(name, 0))
    counted = apart(needs, settings, math.prod(arguments.shape))
    rows = []
    for stage in STAGES:
        median = statistics.median(run["stages"][stage] for run in runs)
        own = [(need, *at_ceiling(need, rates)) for need in counted if need["stage"] == stage]
        limit = sum(seconds_min for _, seconds_min, _ in own)
        share = [f"{limit:.2f}", f"{100 * limit / median:.0f} %"] if own else ["", ""]
        rows.append([stage, f"{median:.2f}", "", "", "", *share])
        for need, seconds_min, which in own:
            work = [f"{need['bytes'] / 1e9:.2f}", f"{need['operations'] / 1e9:.1f} {need['kind']}", which]
            rows.append([f"- {need['part']}", "", *work, f"{seconds_min:.2f}", ""])
    rows.append(["whole process", spread((run["seconds"] for run in runs), 2), *[""] * 5])
    columns = ["stage", "seconds, median", "needs GB", "10^9 operations", "its ceiling", "seconds there"]
    reached = ", ".join(
        f"{kind} matrices {rates[kind] / 1e9:.0f}" for kind in ("float32", "bfloat16", "int8")
    )
    text = f"""{markdown([*columns, "share of the limit reached"], rows)}

Ceilings, threads {settings["threads"]}: copying {rates["memory"] / 1e9:.1f} GB/s (read and written),
products of {reached} * 10^9 operations/s. *start* is a process that imports and reads what a registration
does before its first stage, and ends; *write* is what remains, with the end of the process."""
    return {"runs": runs, "ceilings": rates, "needs": counted, "settings": settings}, text


def peer_version(python: str, package: str, imports: str) -> str | None:
    """Of a package that can be imported, which also brings it into memory before it is timed."""
    program = f"{imports}\nfrom importlib.metadata import version\nprint(version({package!r}))"
    process = subprocess.run([python, "-c", program], capture_output=True, text=True)
    return None if process.returncode else process.stdout.split()[-1]


def peers(arguments: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    apart(write_pair, folder, arguments.shape, SPACING)
    commands = {" ".join(("regkit", *options)): regkit(folder, *options) for options in OWN}
    missing = []
    files = [*(str(folder / f"{name}.nii.gz") for name in ("fixed", "moving")), f"{folder}/"]
    for name, (imports, program) in PEERS.items():
        version = arguments.peer_python and peer_version(arguments.peer_python, name, imports)
        if version:
            commands[f"{name} {version}"] = [arguments.peer_python, "-c", imports + program, *files]
        else:
            missing.append(f"{name} is skipped: it is not in the environment of --peer-python.")
            print(missing[-1], flush=True)
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in commands}
    for _ in range(arguments.runs):
        for name, command in commands.items():
            seconds[name].append(measure(command, arguments.threads)[0])
            print(name, *(f"{value:.1f}" for value in seconds[name][-1].values()), flush=True)
            warps = list(folder.glob("*Warp.nii.gz"))
            if not warps:
                raise SystemExit(f"{name} wrote no warp")
            for path in warps:
                path.unlink()
    references = [next(iter(commands)), list(commands)[len(OWN) - 1]]
    columns = ["program", "seconds, median (range)", "CPU seconds", "peak MB"]
    columns += [f"seconds / {name}'s, run by run" for name in references]
    rows = []
    for name, runs in seconds.items():
        cells = [spread(run[what] for run in runs) for what in ("seconds", "cpu_seconds")]
        cells.append(f"{max(run['peak_mb'] for run in runs):.0f}")
        for reference in references:
            ratios = (run["seconds"] / other["seconds"] for run, other in zip(runs, seconds[reference]))
            cells.append("" if name == reference else spread(ratios, 2))
        rows.append([name, *cells])
    return {"runs": seconds, "missing": missing}, "\n\n".join([markdown(columns, rows), *missing])


def tricks(arguments: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    from regkit.runtime.process import SWITCH, TRICKS

    apart(write_pair, folder, arguments.shape, SPACING)
    apart(write_parsed, folder)
    start, parse = [sys.executable, "-c", START], [sys.executable, "-c", PARSE, str(folder / "small.nrrd")]
    work = {
        "start of a process": (start, ("garbage", "torch", "exit")),
        "registration": (regkit(folder), ("threads", "memory")),
        f"{PARSED} files that ITK parses": (parse, ("parser",)),
    }
    rows, found = [], {}
    for name, (command, own) in work.items():
        chosen = {"all used": TRICKS} | {f"without {trick}": set(TRICKS) - {trick} for trick in own}
        chosen["none used"] = ()
        runs: dict[str, list[dict[str, float]]] = {which: [] for which in chosen}
        for _ in range(arguments.runs):
            for which, used in chosen.items():
                said = {SWITCH: ",".join(used) or "none"}
                runs[which].append(measure(command, arguments.threads, **said)[0])
                print(name, which, *(f"{value:.2f}" for value in runs[which][-1].values()), flush=True)
        found[name] = runs
        for which, ones in runs.items():
            cells = []
            for what in ("seconds", "cpu_seconds"):
                cells.append(spread((one[what] for one in ones), 2))
                more = (one[what] - other[what] for one, other in zip(ones, runs["all used"]))
                cells.append("" if which == "all used" else spread(more, 2))
            rows.append([f"{name}, {which}", *cells])
    columns = ("what", "seconds, median (range)", "more than with all, run by run", "CPU seconds", "more")
    return found, markdown(columns, rows)


def write_parsed(folder: Path) -> None:
    import SimpleITK as sitk

    image = sitk.ReadImage(str(folder / "fixed.nii.gz"))
    sitk.WriteImage(image[:32, :32, :32], str(folder / "small.nrrd"))


def gpu(arguments: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    apart(write_pair, folder, arguments.shape, SPACING)
    warm = apart(warm_runs, folder, arguments.runs)
    runs, rates, settings = warm["runs"], warm["ceilings"], warm["settings"]
    counted = apart(needs, settings, math.prod(arguments.shape))
    rows = []
    for stage in STAGES[1:-1]:
        median = 1e3 * statistics.median(run["stages"][stage] for run in runs)
        own = [(need, *at_ceiling(need, rates)) for need in counted if need["stage"] == stage]
        own = own if stage != "warp" else []  # which is made on the CPU
        limit = 1e3 * sum(seconds_min for _, seconds_min, _ in own)
        busy = warm["busy"].get(stage, 0.0)
        share = [f"{limit:.2f}", f"{100 * limit / busy:.0f} %"] if own else ["", ""]
        rows.append([stage, f"{median:.0f}", f"{busy:.1f}", *share])
    columns = ["stage", "ms, median", "of them the GPU works", "at its ceiling", "share of the limit reached"]
    totals = [
        [name, spread((run[what] for run in runs), 3), f"{warm['first'][what]:.1f}"]
        for what, name in (
            ("seconds", "files in, warp in memory"),
            ("plain", "and written as .nii"),
            ("gzip", "or as .nii.gz"),
        )
    ]
    text = f"""{markdown(("seconds", "warm, median (range)", "the first in its process"), totals)}

GPU memory at its peak: {max(run["gpu_mb"] for run in runs):.0f} MB. By stage:

{markdown(columns, rows)}

Ceilings: copying {rates["memory"] / 1e9:.0f} GB/s (read and written), products of float32 matrices
{rates["float32"] / 1e12:.0f}, in TF32 {rates["tf32"] / 1e12:.0f} * 10^12 operations/s. {warm["gpu"]}."""
    return {**warm, "needs": counted}, text


def warm_runs(folder: Path, count: int) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    import regkit as package

    pair = [folder / f"{name}.nii.gz" for name in ("fixed", "moving")]

    def run() -> dict[str, Any]:
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        result = package.register(*pair, device="cuda")
        seconds, took = time.perf_counter() - start, {}
        for what, suffix in (("plain", ".nii"), ("gzip", ".nii.gz")):
            start = time.perf_counter()
            result.warp.save(folder / f"Warp{suffix}")
            took[what] = seconds + time.perf_counter() - start
        memory = torch.cuda.max_memory_reserved() / 2**20
        return {"seconds": seconds, **took, "gpu_mb": memory, "stages": dict(result.timings)}

    first, runs = run(), [run() for _ in range(count)]
    stage: list[Any] = [None]

    def note(name: str, done: float) -> None:
        if stage[0] is None or stage[0].name != name:
            if stage[0] is not None:
                stage[0].__exit__(None, None, None)
            stage[0] = record_function(name)
            stage[0].__enter__()

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiled:
        result = package.register(*pair, device="cuda", progress=note)
        stage[0].__exit__(None, None, None)
    on_gpu = torch.autograd.DeviceType.CUDA
    events = profiled.events()
    spans = {e.name: e.time_range for e in events if e.name in STAGES and e.device_type != on_gpu}
    busy = dict.fromkeys(spans, 0.0)
    for event in events:
        for name, span in spans.items():
            own = event.device_type == on_gpu and event.name not in STAGES
            if own and span.start <= event.time_range.start < span.end:
                busy[name] += (event.time_range.end - event.time_range.start) / 1e3
    return {
        "first": first,
        "runs": runs,
        "busy": busy,
        "settings": result.settings,
        "ceilings": ceilings_of_gpu(),
        "gpu": torch.cuda.get_device_name(),
    }


def exponent(rows: Sequence[dict[str, Any]], what: str, base: float) -> float:
    """a of what is measured above ``base`` ~ voxels^a, by least squares of the logarithms."""
    above = [row[what] - base for row in rows]
    if len(rows) < 2 or min(above) <= 0:
        return math.nan
    voxels = [math.log(row["side"] ** 3) for row in rows]
    return statistics.linear_regression(voxels, [math.log(value) for value in above]).slope


def medians(runs: Sequence[dict[str, float]]) -> dict[str, float]:
    return {what: statistics.median(run[what] for run in runs) for what in runs[0]}


def sizes(arguments: argparse.Namespace, folder: Path) -> tuple[Any, str]:
    base = medians([empty(arguments.threads) for _ in range(arguments.runs)])
    rows: list[dict[str, Any]] = []
    for side in arguments.sizes:
        apart(write_pair, folder, (side,) * 3, FIELD_OF_VIEW / side)
        runs = []
        for _ in range(arguments.runs):
            run, output = measure(regkit(folder), arguments.threads)
            runs.append(run)
            print(side, *(f"{value:.1f}" for value in run.values()), flush=True)
        settings = json.loads(output)["settings"]
        coarsened = settings["working_spacing_mm"] > 1.001 * FIELD_OF_VIEW / side
        fitted = {"runs": runs, "coarsened": coarsened, "settings": settings}
        rows.append({"side": side, **medians(runs), **fitted})
    fits = {
        "seconds": ("seconds", 0.0),
        "seconds above those of an empty process": ("seconds", base["seconds"]),
        "peak MB above that of an empty process": ("peak_mb", base["peak_mb"]),
    }
    full_grid = [row for row in rows if not row["coarsened"]]
    exponents = {name: (exponent(rows, *fit), exponent(full_grid, *fit)) for name, fit in fits.items()}
    cells = [["an empty process", "", "", *(f"{value:.1f}" for value in base.values())]]
    for row in rows:
        spacing, working = FIELD_OF_VIEW / row["side"], row["settings"]["working_spacing_mm"]
        seconds = spread(run["seconds"] for run in row["runs"])
        numbers = (f"{row['side'] ** 3 / 1e6:.2f}", f"{working:.2f}", seconds, f"{row['cpu_seconds']:.1f}")
        cells.append([f"{row['side']}^3 of {spacing:.2f} mm", *numbers, f"{row['peak_mb']:.0f}"])
    columns = ("voxels", "10^6", "working grid, mm", "seconds, median (range)", "CPU seconds", "peak MB")
    powers = [[name, *(f"{a:.2f}" for a in fitted)] for name, fitted in exponents.items()]
    text = f"""{markdown(columns, cells)}

The exponent a of voxels^a, by least squares of the logarithms:

{markdown(("", "all sizes", "those whose working grid is not coarsened"), powers)}

An empty process imports what a registration does, reads the weights of the network, and ends."""
    draw(rows, base, arguments.output.with_suffix(".png"))
    return {"empty": base, "sizes": rows, "exponents": exponents}, text


def draw(rows: Sequence[dict[str, Any]], base: dict[str, float], picture: Path) -> None:
    """Seconds and peak MB against voxels, a dot for each run, hollow where the working grid is coarsened."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from regkit.io.atomic import atomic_path
    from regkit.viz.colours import DIM, INK, PALE

    figure = Figure((8, 3.2), dpi=120, facecolor=INK, layout="constrained")
    FigureCanvasAgg(figure)
    voxels = [row["side"] ** 3 for row in rows]
    panels = (("seconds", "seconds", "#7ad7f0"), ("peak_mb", "peak MB", "#ffb454"))
    for ax, (what, title, colour) in zip(figure.subplots(1, 2), panels):
        ax.plot(voxels, [row[what] for row in rows], color=colour, linewidth=1.4, zorder=2)
        for count, row in zip(voxels, rows):
            values, face = [run[what] for run in row["runs"]], INK if row["coarsened"] else colour
            ax.scatter([count] * len(values), values, s=18, facecolor=face, edgecolor=colour, zorder=3)
        ax.axhline(base[what], color=DIM, linewidth=0.8, linestyle="--")
        ax.text(voxels[0], base[what], "an empty process", color=DIM, size=7, va="bottom")
        ax.set(facecolor=INK, xscale="log", yscale="log")
        low, high = ax.get_ylim()
        heights = [k * 10**n for n in range(6) for k in (1, 2, 3, 5, 7) if low <= k * 10**n <= high]
        ax.set_xticks(voxels, [f"{row['side']}³" for row in rows])
        ax.set_yticks(heights, map(str, heights))
        ax.minorticks_off()
        ax.set_title(title, color=PALE, size=10)
        ax.set_xlabel("voxels; hollow: working grid coarser than the images", color=DIM, size=8)
        ax.tick_params(colors=DIM, labelsize=8)
        ax.spines[:].set_visible(False)
        ax.grid(color=DIM, alpha=0.2, linewidth=0.5)
    picture.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(picture) as temporary:
        figure.savefig(temporary, facecolor=INK)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for work in (stages, peers, sizes, tricks, gpu):
        name = work.__name__
        one = commands.add_parser(name)
        one.set_defaults(work=work)
        one.add_argument("--runs", type=int, default=10 if work is gpu else 3)
        if work is not gpu:
            one.add_argument(
                "--threads", type=int, help="of each program; by default each takes what it likes"
            )
        output = ROOT / "benchmarks" / "results" / f"speed_{name}"
        one.add_argument("-o", "--output", type=Path, default=output)
        if work is sizes:
            one.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="voxels a side")
        else:
            one.add_argument("--shape", type=int, nargs=3, default=list(SHAPE), metavar=("Z", "Y", "X"))
        if work is peers:
            one.add_argument("--peer-python", help="of an environment that holds convexAdam and antspyx")
    arguments = parser.parse_args()
    empty(None)  # what all processes read from the disk is in memory from here on
    with tempfile.TemporaryDirectory() as name:
        result, text = arguments.work(arguments, Path(name))
    used = f"python benchmarks/speed.py {arguments.command} --runs {arguments.runs}"
    for option in ("threads", "shape", "sizes"):
        value = getattr(arguments, option, None)
        if value and value not in (list(SHAPE), list(SIZES)):
            used += f" --{option} " + (" ".join(map(str, value)) if isinstance(value, list) else str(value))
    write_rows(result, arguments.output, f"`{used}`, {setting()}\n\n{text}")
    print(text)


if __name__ == "__main__":
    main()
