"""``python -m regkit.pretrain``: ``regkit pretrain`` without typer, also under ``torchrun``."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

from regkit.core.errors import RegkitError
from regkit.pretrain.run import pretrain


def main() -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m regkit.pretrain",
        description="Train the network on synthetic pairs, or resume a run, and export its weights.",
    )
    parser.add_argument("--config", type=Path, required=True, help="a configuration: models/NAME.yaml")
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder of the run")
    parser.add_argument(
        "--templates", type=Path, action="append", default=[], help="an .npz archive, or a folder; repeatable"
    )
    parser.add_argument(
        "--anatomies", type=Path, action="append", default=[], help="a folder of whole label maps; repeatable"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="stop after so long; default: never")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--threads", type=int, help="CPU threads; default: as torch does")
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that draw anatomies; beside a GPU cores but two, at most 16",
    )
    parser.add_argument(
        "--export", type=Path, metavar="FILE.safetensors", help="where to write the weights; default: the run"
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="weights that a new run begins with")
    parser.add_argument(
        "--validation", type=Path, metavar="FOLDER", help="label maps to score the network on"
    )
    arguments = parser.parse_args()
    if arguments.threads is not None and arguments.threads < 1:
        parser.error(f"--threads must be at least 1, got {arguments.threads}")
    if arguments.workers is not None and arguments.workers < 0:
        parser.error(f"--workers must be at least 0, got {arguments.workers}")
    try:
        outcome = pretrain(
            arguments.config,
            arguments.output,
            templates=arguments.templates,
            anatomies=arguments.anatomies,
            minutes=arguments.minutes,
            device=arguments.device,
            threads=arguments.threads,
            workers=arguments.workers,
            weights=arguments.export,
            start=arguments.start,
            validation=arguments.validation,
        )
    except RegkitError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was left half-written", file=sys.stderr)
        return 130
    for line in outcome.lines() if outcome else ():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
