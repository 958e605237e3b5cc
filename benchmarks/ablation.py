"""Train the network in several ways for the same time each, and register the open pairs with what it became.

    python benchmarks/ablation.py [--minutes 20] [--jobs 2] [--variants NAME ...] [--runs FOLDER] [-o FILE]

A variant is the configuration of the bundled network with a few changes, from random weights, at a learning
rate that does not fall, on one thread of a CPU. So all have the same time, and who is quicker takes more
steps. The abdomen is registered at each quarter of the time, all pairs at the end: from the same linear
start, in one solver, with the network beside MIND and with MIND alone. Labels are for measuring alone. A
variant that stands in FILE with the same configuration and minutes is not trained again: it is listed with
the commit that it was made by. Data as for open_pairs.py, templates beside them.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from features import linear_starts
from open_pairs import ROOT, SHARED, apart, commit, pair_names, run, setting, write_rows

BASE = ROOT / "models" / "regkit-small.yaml"
TEMPLATES = SHARED / "data" / "templates" / "templates.npz"
ABDOMEN = "abdomen-mr-ct"
DIRECTIONS = ("as given", "exchanged")
_STEPS = 1_000_000  # more than there is time for: the learning rate stays as it is

# Ensembles of shapes in place of trunks: cubes, at offsets, each anatomy for a few pairs.
_SHAPES: dict[str, Any] = {
    "loss.structure": 0.0, "pairs.trunks": 0.0, "pairs.shapes": [], "pairs.size": 64, "pairs.bank": 1,
    "pairs.reuse": 8, "pairs.offset": 28, "pairs.turn": 20.0, "pairs.stretch": 0.25, "pairs.strays": 20,
    "cost.embedding": 0.5,
}  # fmt: skip
_FROM_TEMPLATES = {"procedural": 0.0, "templates": 1.0}
VARIANTS: dict[str, dict[str, Any]] = {
    # What is taught: the paper's contrast of labels, what was added to it, and what is shipped.
    "label contrast": {**_SHAPES, "loss.label": 1.0},
    "label and local contrast": {**_SHAPES, "loss.label": 0.5, "loss.local": 1.0},
    "local contrast": {**_SHAPES, "loss.local": 1.0},
    "boundaries": {**_SHAPES, "loss.affinity": 1.0, "loss.distance": 10.0},
    "names": {},
    "names and label contrast": {"loss.label": 0.1, "cost.embedding": 0.5},
    "names and local contrast": {"loss.local": 0.2, "cost.embedding": 0.5},
    # What is shown.
    "label contrast, templates": {**_SHAPES, **_FROM_TEMPLATES, "loss.label": 1.0},
    "local contrast, templates": {**_SHAPES, **_FROM_TEMPLATES, "loss.local": 1.0},
    "label contrast, trunks": {"loss.structure": 0.0, "loss.label": 1.0, "cost.embedding": 0.5},
    "names, trunks alone": {"pairs.trunks": 1.0},
    "names, cubes": {"pairs.shapes": [], "pairs.size": 64},
    # How the place in the volume is kept from being read off its borders.
    "local contrast, zero padding, no offset": {
        **_SHAPES, "loss.local": 1.0, "padding": "zeros", "pairs.offset": 0,
    },
    "local contrast, zero padding": {**_SHAPES, "loss.local": 1.0, "padding": "zeros"},
    "local contrast, no offset": {**_SHAPES, "loss.local": 1.0, "pairs.offset": 0},
    "names, zero padding": {"padding": "zeros"},
    # The body of the network.
    "names, full resolution": {"stride": 1},
    "names, width 24": {"width": 24},
}  # fmt: skip


def configuration(changes: dict[str, Any]) -> str:
    """The bundled network's, with changes."""
    lines = dict(re.findall(r"^([\w.]+): (.*)$", BASE.read_text(), re.MULTILINE))
    lines |= {"steps": str(_STEPS), "seed": "0"} | {key: json.dumps(value) for key, value in changes.items()}
    return "".join(f"{key}: {value}\n" for key, value in lines.items())


def trained(name: str, folder: Path, minutes: float) -> list[tuple[float, int, Path]]:
    """Minutes, steps and weights at about each quarter of the time, and at its end."""
    import torch

    from regkit.pretrain.config import load_config
    from regkit.pretrain.train import PretrainTrainer, distributed_context, export, train
    from regkit.synthesis.mixture import mixture

    torch.set_num_threads(1)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    file = folder / "config.yaml"
    file.write_text(configuration(VARIANTS[name]))
    config = load_config(file)
    checkpoints: list[tuple[float, int, Path]] = []

    def keep(trainer: PretrainTrainer) -> None:
        path = folder / f"{trainer.step:07d}.safetensors"
        export(trainer, path, name)
        checkpoints.append(((time.monotonic() - began) / 60, trainer.step, path))

    sources = mixture(config.procedural, config.templates, [TEMPLATES] if config.templates else [])
    with distributed_context("cpu") as context:
        began = time.monotonic()
        train(config, sources, folder, context=context, minutes=minutes, save_every=minutes / 4, on_save=keep)
    return checkpoints


def variant(name: str, folder: Path, minutes: float, starts: dict[tuple[str, str], Any]) -> dict[str, Any]:
    """Train and measure one; what it gave lies in the folder then."""
    own = folder / f"{minutes:g}-minutes" / re.sub(r"\W+", "-", name)
    row: dict[str, Any] = {
        "variant": name,
        "configuration": configuration(VARIANTS[name]),
        "minutes": minutes,
        "commit": commit(),
        "curve": [],
    }
    weights = trained(name, own, minutes)
    for spent, step, file in weights:
        point: dict[str, Any] = {"step": step, "minutes": spent, "score": {}}
        last = file == weights[-1][2]
        for pair, direction in starts if last else [(ABDOMEN, d) for d in DIRECTIONS]:
            for features in ("network", "network+mind") if last and pair == ABDOMEN else ("network+mind",):
                start = starts[pair, direction]
                options = {"features": features, "weights": file, "threads": 1, "init": start}
                key = f"{pair}, {direction}, {features}"
                point["score"][key] = score(apart(run, pair, direction, options))
        row["curve"].append(point)
    return row


def known(file: Path, minutes: float) -> list[dict[str, Any]]:
    """Rows of an earlier run that a variant of now would have: of its configuration and time."""
    rows = json.loads(file.read_text())["variants"] if file.exists() else []
    now = {name: configuration(changes) for name, changes in VARIANTS.items()}
    return [
        row for row in rows if row["minutes"] == minutes and row["configuration"] == now.get(row["variant"])
    ]


def score(result: dict[str, Any]) -> float:
    """Mean Dice, or the error at landmarks in mm where there are some."""
    return float(result["tre_mm"]["after"] if "tre_mm" in result else result["metrics"]["mean_dice"]["after"])


def table(rows: list[dict[str, Any]], mind: dict[str, float]) -> str:
    """Each variant at the end, and MIND alone above them: :func:`score`."""
    columns = [f"{pair}, {direction}" for pair in pair_names() for direction in DIRECTIONS]
    alone = [column for column in columns if column.startswith(ABDOMEN)]
    head = ["variant", "commit", "steps", *(f"{column}, network" for column in alone), *columns]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "--:|" * (len(head) - 1)]
    cells = ["MIND alone", "", "", *("" for _ in alone), *(f"{mind[column]:.3f}" for column in columns)]
    lines.append("| " + " | ".join(cells) + " |")
    for row in rows:
        last = row["curve"][-1]
        keys = [f"{column}, network" for column in alone] + [f"{column}, network+mind" for column in columns]
        cells = [
            row["variant"],
            row["commit"],
            str(last["step"]),
            *(f"{last['score'][key]:.3f}" for key in keys),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(rows: list[dict[str, Any]], mind: dict[str, float], picture: Path) -> None:
    """Dice of the abdomen over the minutes of training, beside MIND, both ways."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure((11, 5), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    for ax, direction in zip(figure.subplots(1, 2), DIRECTIONS, strict=True):
        for k, row in enumerate(rows):
            points = row["curve"]
            ax.plot(
                [point["minutes"] for point in points],
                [point["score"][f"{ABDOMEN}, {direction}, network+mind"] for point in points],
                marker=".", linestyle=("-", "--", ":")[k // 7 % 3], color=f"C{k % 7}", label=row["variant"],
            )  # fmt: skip
        ax.axhline(mind[f"{ABDOMEN}, {direction}"], color="black", linewidth=0.8, label="MIND alone")
        ax.set_title(f"{ABDOMEN}, {direction}: network + MIND", size=10)
        ax.set_xlabel("minutes of training on one thread")
        ax.set_ylabel("mean Dice")
    handles, names = ax.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right center", fontsize=8)
    figure.savefig(picture)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=20.0, help="of training, for each variant")
    parser.add_argument("--jobs", type=int, default=1, help="variants that are trained at the same time")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS, metavar="NAME")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "ablation")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "ablation")
    arguments = parser.parse_args()
    starts = {(p, d): apart(linear_starts, p, d, 1)[0] for p in pair_names() for d in DIRECTIONS}
    alone = {"features": "mind", "weights": None, "threads": 1}
    mind = {
        f"{p}, {d}": score(apart(run, p, d, {**alone, "init": start})) for (p, d), start in starts.items()
    }
    rows = known(arguments.output.with_suffix(".json"), arguments.minutes)
    there = {row["variant"] for row in rows}
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(variant, name, arguments.runs, arguments.minutes, starts)
            for name in arguments.variants
            if name not in there
        ]
        for job in jobs:
            rows.append(job.result())
            print(table(rows[-1:], mind).splitlines()[-1], flush=True)
            command = f"python benchmarks/ablation.py --minutes {arguments.minutes:g} --jobs {arguments.jobs}"
            head = f"`{command}`, {setting()}. Mean Dice; of the lung TRE in mm."
            text = f"{head}\n\n{table(rows, mind)}"
            write_rows({"mind": mind, "variants": rows}, arguments.output, text)
    draw(rows, mind, arguments.output.with_suffix(".png"))


if __name__ == "__main__":
    main()
