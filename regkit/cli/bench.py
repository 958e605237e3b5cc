"""``regkit bench``: data sets of pairs, several methods, one table."""

from __future__ import annotations

import math
import os
import shlex
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from regkit.cli.console import print_facts, print_table, progress, warn
from regkit.cli.options import LabelNames, Quiet, ThreadsPerRun
from regkit.core.errors import UsageError

app = typer.Typer(
    no_args_is_help=True,
    help="Benchmarks: Learn2Reg AbdomenMRCT and AbdomenCTCT, MM-WHS, folders of pairs, regkit and its peers "
    "side by side; few-shot segmentation.",
)

Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute, for methods that can use a GPU.")
]
Baseline = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", show_default=False, help="The method to compare with. Default: mind, or the first."
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the random numbers of a method.")]
Jobs = Annotated[int, typer.Option(min=1, help="Runs at a time. With more than one, the times mean little.")]


@app.command("run", no_args_is_help=True)
def run(
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            show_default=False,
            help="l2r-abdomen, l2r-abdomen-ct, mmwhs, open-pairs or phantom.",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Folder for the results."),
    ],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default=False, help="The data set as downloaded and unpacked."),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default="regkit",
            help="A method of 'regkit bench list', or NAME=COMMAND for any program, with {fixed} {moving} "
            "{warp} and others in the command. Repeatable.",
        ),
    ] = None,
    direction: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="mr2ct (the MR moves onto the CT) or ct2mr; given or exchanged. Default: as in the paper. "
            "Repeatable.",
        ),
    ] = None,
    pairs: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            show_default=False,
            help="Pairs, by name or by the name of a file of theirs, or a group such as val. Default: all. "
            "Repeatable.",
        ),
    ] = None,
    pairing: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            show_default=False,
            help="For mmwhs: which subjects to pair. Default: our pairing.",
        ),
    ] = None,
    start: Annotated[
        Literal["own", "linear"],
        typer.Option(
            help="own: each method finds its own start. linear: all begin from the linear start that regkit "
            "finds, whose time does not count."
        ),
    ] = "own",
    jobs: Jobs = 1,
    threads: ThreadsPerRun = None,
    device: Device = "auto",
    seed: Seed = 0,
    label_names: LabelNames = None,
    keep_warps: Annotated[
        bool, typer.Option("--keep-warps", help="Keep the warp of each run, in FOLDER/warps.")
    ] = False,
    baseline: Baseline = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue with the results in the folder. Nothing is run twice.")
    ] = False,
    retry: Annotated[bool, typer.Option("--retry", help="With --resume: repeat what failed.")] = False,
    quiet: Quiet = False,
) -> None:
    """Register the pairs of a data set by several methods, measure all the same way, and write the tables.

    FOLDER gets results.jsonl (a line for each run, written when it ends), results.csv, report.md and
    dice.png. A failed run gets a row. A method that is not installed is left out, with the reason.
    """
    from regkit.bench import result_rows, run_record
    from regkit.bench.dataset import Request
    from regkit.bench.dataset_files import is_made_up, labelled
    from regkit.bench.datasets import dataset as named
    from regkit.bench.methods import methods
    from regkit.bench.runner import run_cases
    from regkit.io.labelnames import read_label_names

    benchmark = named(dataset)
    chosen = methods(method or ["regkit"])
    if pairing and dataset != "mmwhs":
        raise typer.BadParameter("is for mmwhs alone", param_hint="--pairing")
    options = run_record.RunOptions(start, _threads(threads, jobs), device, seed, jobs)
    names = [name for group in pairs or [] for name in group.split(",")]
    planned = run_record.plan_results(output, dataset, options, chosen, _command(), is_made_up(data), resume)
    if baseline and baseline not in planned["methods"]:
        raise UsageError(f"'{baseline}' is none of the methods that are run, to compare with")
    for name, reason in planned["skipped"].items():
        warn(f"{name} is left out: {reason}")
    with progress(quiet) as report, run_record.scratch(output) as place, result_rows.locked(output):
        cases = benchmark.cases(Request(data, names, direction or [], place, pairing))
        cases = labelled(cases, read_label_names(label_names))
        run_record.begin(output, planned, cases)
        if retry:
            result_rows.drop_failed(output)
        warps = output / "warps" if keep_warps else None
        ran, failed = run_cases(output, cases, chosen, report, warps)
    _print_report(output, None, baseline, quiet)
    if failed:
        warn(f"{failed} of {ran} runs failed; '{output / 'report.md'}' says why")
    if failed and failed == ran:
        raise UsageError("no run succeeded")


@app.command("report", no_args_is_help=True)
def report(
    results: Annotated[
        Path, typer.Argument(metavar="FOLDER", show_default=False, help="The folder of 'regkit bench run'.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            show_default=False,
            help="Folder for the report. Default: FOLDER.",
        ),
    ] = None,
    baseline: Baseline = None,
    quiet: Quiet = False,
) -> None:
    """Make the tables and the box plot again, whether the run has finished or not."""
    _print_report(results, output, baseline, quiet)


@app.command("submit", no_args_is_help=True)
def submit(
    data: Annotated[
        Path,
        typer.Option(metavar="FOLDER", show_default=False, help="Learn2Reg AbdomenMRCT as downloaded."),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Folder for the fields."),
    ],
    split: Annotated[
        Literal["val", "test", "train"], typer.Option(help="Which pairs of the challenge.")
    ] = "val",
    method: Annotated[
        str, typer.Option(metavar="NAME", help="A method, as for 'regkit bench run'.")
    ] = "regkit",
    format: Annotated[
        Literal["npz", "nii.gz"], typer.Option(help="The file format. The evaluation takes both.")
    ] = "npz",
    jobs: Jobs = 1,
    threads: ThreadsPerRun = None,
    device: Device = "auto",
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep existing fields and make the missing ones.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Write the fields for the official evaluation of Learn2Reg AbdomenMRCT: disp_FFFF_MMMM.

    The direction is fixed: the CT moves onto the MR.
    """
    from regkit.bench.learn2reg import submission_cases
    from regkit.bench.run_record import RunOptions
    from regkit.bench.submission import submit as fields

    cases = submission_cases(data, split)
    options = RunOptions("own", _threads(threads, jobs), device, seed, jobs)
    with progress(quiet) as report:
        files = fields(cases, output, method, options, format, resume, report)
    if not quiet:
        for path in files:
            typer.echo(f"wrote {path}")


@app.command("imitate", no_args_is_help=True)
def imitate(
    dataset: Annotated[
        Literal["l2r-abdomen", "l2r-abdomen-ct", "mmwhs"],
        typer.Argument(metavar="DATASET", show_default=False),
    ],
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", show_default=False, help="A new folder.")],
    count: Annotated[
        int | None, typer.Option(min=1, show_default=False, help="Number of pairs or subjects. Default: all.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random numbers.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Write synthetic volumes in the layout of a data set's archive, to rehearse a benchmark.

    Measures on them say nothing about patients.
    """
    from regkit.bench.imitation import imitate as lay_out

    lay_out(dataset, folder, count, seed)
    if not quiet:
        typer.echo(f"wrote {folder}")


@app.command("few-shot", no_args_is_help=True)
def few_shot(
    layout: Annotated[
        str,
        typer.Argument(
            metavar="LAYOUT",
            show_default=False,
            help="msd-heart, promise12, amos-ct, feta; heads, cord, abdomen; or a .json file like theirs.",
        ),
    ],
    data: Annotated[
        Path, typer.Option(metavar="FOLDER", show_default=False, help="The data as downloaded and unpacked.")
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="FOLDER", show_default=False, help="Folder of the results."),
    ],
    arm: Annotated[
        list[str] | None,
        typer.Option(
            metavar="pretrained|random|propagate",
            show_default="all three",
            help="Which to run. Repeatable.",
        ),
    ] = None,
    shots: Annotated[
        list[int] | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Volumes to learn from. Default: those of the layout. Repeatable.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Random draws for each number of volumes.")] = 3,
    steps: Annotated[
        int | None,
        typer.Option(min=1, show_default=False, help="Optimiser steps. Default: those of the layout."),
    ] = None,
    minutes: Annotated[
        float,
        typer.Option(min=0.0, show_default=False, help="Time limit of one training. Default: all steps."),
    ] = math.inf,
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            show_default=False,
            help="Weights of the pretrained arm. Default: the bundled ones.",
        ),
    ] = None,
    threads: ThreadsPerRun = None,
    device: Device = "auto",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Continue with the results in the folder. Only what failed is repeated."
        ),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Compare segmentation from one to three volumes: pretrained, random and atlases on the same draws.

    FOLDER gets results.jsonl (a line for each training and its tests, written when it ends) and report.md.
    """
    from regkit.bench import result_rows, run_record
    from regkit.bench.fewshot import layout as layouts
    from regkit.bench.fewshot.report import summary, write_few_shot_report
    from regkit.bench.fewshot.run import ARMS, FewShotOptions, run_arms
    from regkit.segmentation.monai_parts import check_installed

    check_installed()
    if unknown := set(arm or ()) - set(ARMS):
        raise typer.BadParameter(f"'{min(unknown)}' is none of {', '.join(ARMS)}", param_hint="--arm")
    chosen = layouts.load_layout(layout)
    counts, threads = tuple(shots or chosen.shots), _threads(threads, 1)
    options = FewShotOptions(steps or chosen.steps, minutes, weights, device, threads)
    with progress(quiet) as report, run_record.scratch(output) as place, result_rows.locked(output):
        subjects = layouts.find_subjects(chosen, data, place)
        # Whatever is wrong with the data shows before the folder holds results to go on with.
        names = layouts.label_names(chosen, data)
        draws = layouts.draws(chosen, subjects, counts, seeds)
        common = options.in_common(chosen, subjects)
        result_rows.write_run(
            output, run_record.plan_few_shot(output, chosen.name, common, device, _command(), resume)
        )
        if resume:
            result_rows.drop_failed(output)
        on_progress = report or (lambda stage, done: None)
        ran, failed = run_arms(output, chosen, names, draws, arm or ARMS, options, on_progress)
    path = write_few_shot_report(output, chosen)
    if not quiet:
        print_table(*summary(result_rows.read_rows(output)))
        typer.echo(f"wrote {path}")
    if failed:
        warn(f"{failed} of {ran} runs failed; '{path}' says why")
    if failed and failed == ran:
        raise UsageError("no run succeeded")


@app.command("list")
def names() -> None:
    """List the data sets and the methods, and which of them can be run here."""
    from regkit.bench.datasets import DATASETS
    from regkit.bench.fewshot.layout import known, load_layout
    from regkit.bench.methods import METHODS

    typer.echo("Data sets: what they are, their directions, and where to get them")
    print_facts([(d.name, f"{d.title}; {', '.join(d.directions)}; {d.source}") for d in DATASETS.values()])
    typer.echo("\nMethods: what is installed here, and what they are given")
    print_facts([(m.name, f"{m.missing() or m.version()}; {m.note}") for m in METHODS.values()])
    typer.echo("\nLayouts of few-shot: what they are, and where to get them")
    print_facts([(layout.name, f"{layout.title}; {layout.source}") for layout in map(load_layout, known())])


def _print_report(results: Path, output: Path | None, baseline: str | None, quiet: bool) -> None:
    from regkit.bench.report import compact, report
    from regkit.bench.result_rows import read_rows

    path = report(results, output, baseline)
    if not quiet:
        print_table(*compact(read_rows(results), baseline))
        typer.echo(f"wrote {path}")


def _threads(threads: int | None, jobs: int) -> int:
    return threads or max(1, (os.cpu_count() or 1) // jobs)


def _command() -> str:
    """What was typed, to be kept with the results."""
    return shlex.join(["regkit", *sys.argv[1:]])
