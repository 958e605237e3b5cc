"""How fast pairs are drawn, and what share of a training step that takes.

    python benchmarks/synthesis.py [--config FILE] [--templates FILE.npz] [--threads N] [-o FILE]
    python benchmarks/synthesis.py --device cuda --workers 15 --batch 1 4 8 [--reuse N]

Pairs of 64^3 and 128^3 voxels, and steps of the configuration: the seconds to draw a step's pairs, and to
train on them, one after the other. In a run the next pairs are drawn while the last ones train, by another
thread; with ``--workers`` processes draw their anatomies, and what a step of a run takes beyond the training
is measured too. Steps are of each number of pairs that ``--batch`` names, by default the configuration's.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from open_pairs import ROOT, setting, write_rows

from regkit.pretrain.batch_loader import batches
from regkit.pretrain.config import Config, load_config
from regkit.pretrain.train import DistributedContext, PretrainTrainer
from regkit.synthesis.label_maps import LabelMaps
from regkit.synthesis.mixture import anatomies as whole_maps
from regkit.synthesis.mixture import mixture
from regkit.synthesis.pairs import Pairs, Synthesiser
from regkit.synthesis.shape_sources import ShapeSource

DEFAULT = ROOT / "models" / "regkit-small.yaml"
SIDES = (64, 128)
STEPS_OF_A_RUN = 1000


def seconds(work: Callable[[int], object], times: int, device: torch.device) -> float:
    """Mean seconds of ``work``, after as many calls to warm up as a tenth."""
    for k in range(max(1, times // 10)):
        work(k)
    _wait(device)
    began = time.perf_counter()
    for k in range(times):
        work(k)
    _wait(device)
    return (time.perf_counter() - began) / times


def step_of_a_run(trainer: PretrainTrainer, workers: int) -> float:
    """Seconds of a step of a run whose anatomies processes draw, once the first ones are there."""
    settings = trainer.config.pairs
    first = 4 * settings.bank // trainer.config.batch + 20 * workers
    with batches(trainer, workers) as feed:
        for batch in islice(feed, first):
            trainer.advance(batch)
        _wait(trainer.context.device)
        began = time.perf_counter()
        for batch in islice(feed, STEPS_OF_A_RUN):
            trainer.advance(batch)
        _wait(trainer.context.device)
        return (time.perf_counter() - began) / STEPS_OF_A_RUN


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cubes(
    pairs: Pairs,
    side: int,
    sources: Sequence[tuple[ShapeSource, float]],
    maps: Sequence[LabelMaps],
    device: torch.device,
) -> list[dict[str, Any]]:
    """A row for a pair of cubes, the anatomies that they are cut from included."""
    settings = replace(
        pairs,
        size=side,
        shapes=(),
        ensembles=replace(pairs.ensembles, size=max(pairs.ensembles.size, side + pairs.offset)),
    )
    synthesiser = Synthesiser(settings, sources, 0, device, maps=maps)
    pair = seconds(lambda number: synthesiser.draw([number]), 3 * settings.reuse, device)
    return [{"what": f"a pair of {side}^3", "seconds": pair, "per_second": 1 / pair}]


def steps(
    config: Config,
    bank: int,
    sources: Sequence[tuple[ShapeSource, float]],
    maps: Sequence[LabelMaps],
    workers: int,
    device: torch.device,
) -> list[dict[str, Any]]:
    """Rows for a step of a configuration: its drawing, its training, and with workers both in a run."""
    trainer = PretrainTrainer(config, sources, DistributedContext(0, 1, device), maps=maps)
    of = f"the {config.batch} pairs of a step"
    batch = trainer.batch(0)
    step = seconds(lambda k: trainer.advance(batch), 40, device)
    rows: list[dict[str, Any]] = []
    if workers:
        # Of one anatomy, which is there; of as many steps as are drawn at once.
        draw = seconds(lambda k: trainer.batches(range(trainer.together)), 20, device) / trainer.together
        rows.append({"what": f"cutting and rendering {of}", "seconds": draw, "share": draw / step})
    else:
        draw = seconds(trainer.batch, 2 * config.pairs.reuse, device)
        rows.append({"what": f"drawing {of}", "seconds": draw, "share": draw / step})
    rows.append({"what": "training on them", "seconds": step, "per_second": 1 / step})
    if workers:
        whole = replace(config, pairs=replace(config.pairs, bank=bank))
        run = step_of_a_run(
            PretrainTrainer(whole, sources, DistributedContext(0, 1, device), maps=maps), workers
        )
        what = f"a step of a run, {workers} processes draw anatomies"
        rows.append({"what": what, "seconds": run, "per_second": 1 / run, "share": run / step - 1})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=DEFAULT)
    parser.add_argument("--templates", type=Path, action="append", default=[])
    parser.add_argument("--anatomies", type=Path, action="append", default=[])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--batch", type=int, nargs="+")
    parser.add_argument("--reuse", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "benchmarks" / "results" / "synthesis")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config_of_file = load_config(arguments.config)
    config_of_file = replace(
        config_of_file,
        pairs=replace(config_of_file.pairs, reuse=arguments.reuse or config_of_file.pairs.reuse),
    )
    # From the first pair on as many anatomies per pair as a bank draws in the long run.
    config = replace(config_of_file, pairs=replace(config_of_file.pairs, bank=1))
    if not arguments.templates:
        config = replace(config, procedural=1.0, templates=0.0)
    sources = mixture(config.procedural, config.templates, arguments.templates)
    maps = whole_maps(config.pairs.anatomies, arguments.anatomies)
    device = torch.device(arguments.device)
    parts: list[Callable[[], list[dict[str, Any]]]] = [
        partial(
            steps,
            replace(config, batch=batch),
            config_of_file.pairs.bank,
            sources,
            maps,
            arguments.workers,
            device,
        )
        for batch in arguments.batch or (config.batch,)
    ]
    parts += [partial(cubes, config.pairs, side, sources, maps, device) for side in SIDES]
    gpu = f", {torch.cuda.get_device_name()}" if arguments.device == "cuda" else ""
    command = "python benchmarks/synthesis.py"
    command += f" --config {arguments.config.name}" if arguments.config != DEFAULT else ""
    command += f" --device {arguments.device}"
    command += f" --workers {arguments.workers}" if arguments.workers else ""
    command += f" --threads {arguments.threads}" if arguments.threads else ""
    command += f" --batch {' '.join(map(str, arguments.batch))}" if arguments.batch else ""
    command += f" --reuse {arguments.reuse}" if arguments.reuse else ""
    command += "".join(f" --templates {path.name}" for path in arguments.templates)
    command += "".join(f" --anatomies {path.name}" for path in arguments.anatomies)
    rows: list[dict[str, Any]] = []
    for part in parts:
        rows += part()
        table = markdown(rows)
        # After each part: a lent machine may end before the last one.
        write_rows(rows, arguments.output, f"`{command}`, {setting()}{gpu}\n\n{table}")
    print(table)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| | seconds | per second | beside the training |", "|---|--:|--:|--:|"]
    for row in rows:
        rate = f"{row['per_second']:.1f}" if "per_second" in row else ""
        share = f"{100 * row['share']:.0f} %" if "share" in row else ""
        lines.append(f"| {row['what']} | {row['seconds']:.4f} | {rate} | {share} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
