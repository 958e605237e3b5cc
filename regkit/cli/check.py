"""``regkit check``: whether a warp goes from one image to another, and if not, what it is."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.console import NOT_RIGHT, number, print_facts, print_json, print_table
from regkit.cli.options import AsJson, Strict

_SHOWN = 5  # readings in the table


def command(
    warp: Annotated[
        Path,
        typer.Argument(
            metavar="WARP",
            show_default=False,
            help="A warp or linear transform (docs/formats.md). Write fsl:FILE, ras:FILE or lps:FILE for a "
            "plain matrix.",
        ),
    ],
    fixed: Annotated[
        Path, typer.Argument(metavar="FIXED", show_default=False, help="The image that the warp lies on.")
    ],
    moving: Annotated[
        Path,
        typer.Argument(
            metavar="MOVING", show_default=False, help="The image that the warp should bring there."
        ),
    ],
    strict: Strict = False,
    as_json: AsJson = False,
) -> None:
    """Check whether WARP brings MOVING onto FIXED, and if not, why: inverted, in RAS, in voxels, ...

    Every way to read the file is tried at low resolution. The one under which the images agree best is named.
    """
    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.check import check_warp

    check = check_warp(warp, fixed, moving)
    if as_json:
        print_json({"warp": str(warp), "fixed": str(fixed), "moving": str(moving), **check.to_dict()})
    else:
        rows = [
            [reading.name, number(reading.agreement, 3), number(100 * reading.covered, 0)]
            for reading in check.readings[:_SHOWN]
        ]
        stated = check.stated
        if stated is not None and stated not in check.readings[:_SHOWN]:
            rows.append([stated.name, number(stated.agreement, 3), number(100 * stated.covered, 0)])
        rows.append(["no warp", number(check.header, 3), ""])
        print_table(["reading", "agreement", "overlap, %"], rows)
        typer.echo()
        facts = [("as read", "no" if stated is None else stated.name)]
        if check.folding_percent is not None:
            facts.append(("folding", f"{check.folding_percent:.2f} % of the voxels"))
        print_facts([*facts, ("right", "yes" if check.right else "no")])
        for sentence in check.answer:
            typer.echo(sentence)
    if strict and not check.right:
        raise typer.Exit(NOT_RIGHT)
