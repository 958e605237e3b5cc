"""``regkit batch``: many pairs registered, on one machine or many."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from regkit.cli.console import NOT_RIGHT, number, print_facts, print_json, warn
from regkit.cli.options import (
    WORKERS,
    AsJson,
    Assignments,
    ChosenPreset,
    Config,
    CtWindow,
    Device,
    Features,
    Init,
    MemoryOfAll,
    Quiet,
    Seed,
    Strict,
    ThreadsPerWorker,
    Weights,
    chosen_settings,
    start_file,
)

if TYPE_CHECKING:
    from distributed import Client

    from regkit.cohort.pairs import Pair
    from regkit.cohort.run import Cohort

_PAIRS = "Selection"


def command(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PAIRS",
            show_default=False,
            help="A table (.csv) with the columns fixed and moving and, if you like, name, fixed_mask, "
            "moving_mask, fixed_labels, moving_labels, landmarks, start and settings. Or a folder of fixed "
            "images, or a BIDS data set.",
        ),
    ],
    moving: Annotated[
        Path | None,
        typer.Argument(
            metavar="[MOVING]", show_default=False, help="A folder of moving images with the same names."
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Folder for all results."),
    ] = ...,  # type: ignore[assignment]
    bids_fixed: Annotated[
        str | None,
        typer.Option(
            metavar="ENTITIES",
            rich_help_panel=_PAIRS,
            help="The fixed images of a BIDS data set, such as suffix=T1w,session=1.",
        ),
    ] = None,
    bids_moving: Annotated[
        str | None,
        typer.Option(
            metavar="ENTITIES", rich_help_panel=_PAIRS, help="Its moving images, such as suffix=T2w."
        ),
    ] = None,
    part: Annotated[
        str,
        typer.Option(
            metavar="I/N",
            rich_help_panel=_PAIRS,
            help="Do only every Nth pair, from the Ith on. For job arrays.",
        ),
    ] = "1/1",
    write: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND",
            show_default=False,
            help="What to write for each pair beside its warp: moved, moved_labels, inverse, linear, "
            "uncertainty, figure, report. Repeatable.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            rich_help_panel=WORKERS,
            help="Pairs at a time, each in its own process. Default: as many as cores and memory allow.",
        ),
    ] = None,
    threads: ThreadsPerWorker = None,
    memory: MemoryOfAll = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            rich_help_panel=WORKERS,
            help="Run on a Dask cluster, such as tcp://host:8786. All its workers must see the files.",
        ),
    ] = None,
    init: Init = "auto",
    features: Features = "network+mind",
    weights: Weights = None,
    preset: ChosenPreset = None,
    config: Config = None,
    assignments: Assignments = None,
    ct_window: CtWindow = None,
    device: Device = "auto",
    seed: Seed = 0,
    strict: Strict = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Register many pairs: a warp of each, a table of all, and a page that shows outliers first.

    If it is stopped, the same command resumes it. A pair that fails gets a row in summary.csv, and the exit
    code is 1.
    """
    chosen = re.fullmatch(r"(\d+)/(\d+)", part)
    if not chosen:
        raise typer.BadParameter("must be such as 2/8", param_hint="--part")
    if scheduler and workers:
        raise typer.BadParameter("the cluster has its workers; leave out --workers", param_hint="--workers")
    start_file(init)
    base, changes, _ = chosen_settings(preset, config, assignments)
    pairs = _pairs(source, moving, bids_fixed, bids_moving)

    from regkit.cohort.run import batch
    from regkit.io.provenance import command_line
    from regkit.runtime.process import interrupted_by_sigterm

    with interrupted_by_sigterm(), _client(scheduler) as client:
        cohort = batch(
            pairs,
            output,
            outputs=["warp", *(write or [])],
            part=(int(chosen[1]), int(chosen[2])),
            workers=workers,
            threads=threads,
            memory=memory,
            client=client,
            on_row=None if quiet else _print_row,
            command=command_line(),
            init=init,
            features=features,
            weights=None if weights is None else str(weights),
            preset=base,
            settings=changes,
            ct_window=ct_window,
            device=device,
            seed=seed,
        )
    if as_json:
        print_json({"rows": cohort.rows, "summary": str(cohort.summary), "report": str(cohort.report)})
    elif not quiet:
        _print_cohort(cohort)
    if cohort.failed:
        raise typer.Exit(1)
    if strict and cohort.count("FAIL"):
        raise typer.Exit(NOT_RIGHT)


def _pairs(source: Path, moving: Path | None, bids_fixed: str | None, bids_moving: str | None) -> list[Pair]:
    """The pairs that the command line names."""
    from regkit.cohort.pairs import matched_folders, read_pairs_table
    from regkit.core.errors import RegkitError

    if bids_fixed or bids_moving:
        if not (bids_fixed and bids_moving) or moving is not None:
            raise typer.BadParameter(
                "a BIDS data set needs both --bids-fixed and --bids-moving, and no second folder",
                param_hint="--bids-fixed",
            )
        from regkit.cohort.bids import bids_pairs

        return bids_pairs(source, bids_fixed, bids_moving)
    if moving is not None:
        return matched_folders(source, moving)
    if source.is_dir():
        raise RegkitError(
            f"'{source}' is a folder; give a second one with the moving images, or, of a BIDS data set, "
            "--bids-fixed and --bids-moving"
        )
    pairs, unknown = read_pairs_table(source)
    if unknown:
        warn(f"columns of '{source}' that mean nothing here: {', '.join(unknown)}")
    return pairs


@contextmanager
def _client(scheduler: str | None) -> Iterator[Client | None]:
    if scheduler is None:
        yield None
        return
    from regkit.cohort.cluster import connected

    with connected(scheduler) as client:
        yield client


def _print_row(row: dict[str, Any], done: int, total: int) -> None:
    """One line of a pair that is done."""
    width = len(str(total))
    head = f"[{done:>{width}}/{total}] {row['pair']}"
    if row["status"] != "ok":
        typer.echo(f"{head}  failed: {row.get('error', '')}", err=True)
        return
    facts = [row["verdict"]["level"]]
    dice = row["metrics"].get("mean_dice")
    if dice:
        facts.append(f"Dice {number(dice['before'], 3)} -> {number(dice['after'], 3)}")
    if errors := row.get("landmarks"):
        before, after = errors["tre_before_mm"]["mean"], errors["tre_mm"]["mean"]
        facts.append(f"TRE {number(before, 1)} -> {number(after, 1)} mm")
    facts.append("done before" if row.get("kept") else f"{row['seconds']['total']:.1f} s")
    typer.echo(f"{head}  {', '.join(facts)}", err=True)


def _print_cohort(cohort: Cohort) -> None:
    counts = {level: cohort.count(level) for level in ("PASS", "WARN", "FAIL", "failed", "pending")}
    print_facts(
        [
            ("pairs", ", ".join(f"{count} {level}" for level, count in counts.items() if count)),
            ("summary", str(cohort.summary)),
            ("report", str(cohort.report)),
        ]
    )
