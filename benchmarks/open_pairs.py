"""Register every open pair from its native files, both ways, and write what came of it.

    python benchmarks/open_pairs.py [--preset default] [--device cpu] [-o benchmarks/results/open_pairs]

The pairs lie in ``../shared/data/pairs`` from the project's root, or under the folder that the
environment variable REGKIT_SHARED names. Each run is a process of its own, so that peak memory is its
own, one after the other, so that seconds are too. Labels and landmarks are for measuring alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("REGKIT_SHARED", ROOT.parent / "shared"))
DIRECTIONS = ("as given", "exchanged")
STAGES = ("load", "linear", "features", "coarse", "fine", "warp", "total")


def pair_names() -> list[str]:
    return sorted(path.parent.name for path in (SHARED / "data" / "pairs").glob("*/manifest.json"))


def run(name: str, direction: str, options: dict[str, Any]) -> dict[str, Any]:
    """One registration and its measures; ``direction`` is "as given" or "exchanged".

    Dice of pairs with labels, TRE of those with landmarks.
    """
    import regkit

    folder = SHARED / "data" / "pairs" / name
    manifest = json.loads((folder / "manifest.json").read_text())
    fixed, moving = ("fixed", "moving") if direction == "as given" else ("moving", "fixed")
    files = folder / manifest[fixed], folder / manifest[moving]
    if manifest["fixed_labels"]:
        names = {int(label): name for label, name in json.loads((folder / "labels.json").read_text()).items()}
        maps = folder / manifest[f"{fixed}_labels"], folder / manifest[f"{moving}_labels"]
        result = regkit.register(
            *files, fixed_labels=maps[0], moving_labels=maps[1], label_names=names, **options
        )
        common = {"dice_in_common_field": dice_in_common_field(result, *maps, names)}
    else:
        result, common = regkit.register(*files, **options), {}
    row = {"pair": name, "direction": direction, **result.to_dict(), **common}
    if manifest["landmarks"]:
        points = dict(
            zip(("fixed", "moving"), regkit.read_pairs(folder / manifest["landmarks"]), strict=True)
        )
        homogeneous = points[fixed] @ result.linear[:3, :3].T + result.linear[:3, 3]
        row["tre_mm"] = {
            stage: float(regkit.target_registration_error(mapped, points[moving]).mean())
            for stage, mapped in (
                ("before", points[fixed]),
                ("linear", homogeneous),
                ("after", result.warp.transform_points(points[fixed])),
            )
        }
    return row


def apart(work: Callable[..., Any], *arguments: Any) -> Any:
    """``work`` in a process of its own, whose peak memory is its own: it counts from that of its parent."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(work, *arguments).result()


def dice_in_common_field(
    result: Any, fixed_labels: Path, moving_labels: Path, names: dict[int, str]
) -> dict[str, float]:
    """Mean Dice of the voxels that the moving image covers after the linear start.

    What it does not show cannot be brought over: a slab lacks most of a trunk's spleen.
    """
    from regkit.core.geometry import affine_transform, transform_points
    from regkit.evaluate import dice, summarise
    from regkit.io.images import load_labels
    from regkit.warp import contains, resample_labels

    fixed, moving = load_labels(fixed_labels, "fixed labels"), load_labels(moving_labels, "moving labels")
    covered = contains(moving.grid, transform_points(result.linear, fixed.grid.world_points()))
    stages = {
        "linear": resample_labels(moving, fixed.grid, affine_transform(result.linear)).array,
        "after": result.moved_labels.array,
    }
    return {
        stage: summarise(dice(fixed.array * covered, moved * covered, sorted(names), moving.array).values())
        for stage, moved in stages.items()
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| fixed <- moving | Dice before | linear | after | common field | TRE mm before | linear | after "
        "| folding % | SDlogJ | s load | linear | features | coarse | fine | warp | total | peak MB |",
        "|---|" + "--:|" * 17,
    ]
    for row in rows:
        metrics, seconds = row["metrics"], row["seconds"]
        dice = metrics.get("mean_dice")
        tre = [f"{mm:.2f}" for mm in row["tre_mm"].values()] if "tre_mm" in row else [""] * 3
        cells = [f"{row['pair']}, {row['direction']}"]
        if dice:
            cells += [f"{dice[stage]:.3f}" for stage in ("before", "linear", "after")]
            cells.append(f"{row['dice_in_common_field']['after']:.3f}")
        else:
            cells += [""] * 4
        cells += tre
        cells += [f"{metrics['folding_percent']:.4f}", f"{metrics['sd_log_jacobian']:.3f}"]
        cells += [f"{seconds.get(s, 0):.1f}" for s in STAGES]
        lines.append("| " + " | ".join([*cells, f"{row['memory_mb']['peak']:.0f}"]) + " |")
    return "\n".join(lines)


def commit() -> str:
    """The commit that is measured, with a mark if anything but earlier results differs from it."""
    from regkit.io import provenance

    return provenance.commit(".", ":(exclude)benchmarks/results") or "unknown"


def setting() -> str:
    """What was measured and where, for the head of a table."""
    cores = f"{os.cpu_count()} CPU cores"
    cpuinfo = Path("/proc/cpuinfo")  # where there is one
    models = (
        [line for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if cpuinfo.exists()
        else []
    )
    if models:
        cores += f" ({models[0].partition(': ')[2]})"
    return f"commit {commit()}, {cores}, Python {platform.python_version()}"


def write_rows(rows: Any, output: Path, head: str) -> None:
    """The measures as JSON beside the table as Markdown."""
    from regkit.core.jsontext import to_json
    from regkit.io.atomic import atomic_path

    output.parent.mkdir(parents=True, exist_ok=True)
    for suffix, text in ((".json", to_json(rows)), (".md", head)):
        with atomic_path(output.with_suffix(suffix)) as temporary:
            temporary.write_text(text + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", nargs="+", default=pair_names())
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "open_pairs")
    arguments = parser.parse_args()
    options = {"preset": arguments.preset, "threads": arguments.threads, "device": arguments.device}
    rows = []
    for name in arguments.pairs:
        for direction in DIRECTIONS:
            rows.append(apart(run, name, direction, options))
            print(table(rows[-1:]).splitlines()[-1], flush=True)
    command = f"python benchmarks/open_pairs.py --preset {arguments.preset}"
    if arguments.threads:
        command += f" --threads {arguments.threads}"
    if arguments.device != "cpu":
        command += f" --device {arguments.device}"
    write_rows(rows, arguments.output, f"`{command}`, {setting()}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
