"""``regkit segment``: a model of ``regkit finetune`` on a volume of any grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.console import print_json, print_table, progress
from regkit.cli.files import IMAGES, check_outputs, recorded
from regkit.cli.options import AsJson, Device, ImageToSegment, LabelMapOfImage, Overwrite, Quiet, Threads


def command(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", show_default=False, help="The folder that regkit finetune wrote, or its weights."
        ),
    ],
    image: ImageToSegment,
    output: LabelMapOfImage,
    confidence: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="An image: the probability of the label of each voxel."),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    threads: Threads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Segment IMAGE with a fine-tuned model. The label map has the voxels of IMAGE."""
    outputs = {"labels": output, "confidence": confidence}
    check_outputs([(path, IMAGES) for path in outputs.values()], (image, model), overwrite, recorded=output)
    from regkit.runtime.process import prepare_to_compute

    prepare_to_compute()
    from regkit.io.outputs import save_image
    from regkit.segmentation.inference import segment

    with progress(quiet) as report:
        result = segment(model, image, device=device, threads=threads, progress=report)
    written = {name: str(path) for name, path in outputs.items() if path}
    made_of = {"image": image, "model": model}
    with recorded(
        written,
        made_of,
    ):
        for name, path in written.items():
            save_image(getattr(result, name).to_sitk(), path)
    if as_json:
        print_json({"image": str(image), "labels": result.volumes(), "outputs": written})
    elif not quiet:
        rows = [
            (row["name"], str(row["label"]), str(row["voxels"]), f"{row['ml']:.1f}")
            for row in result.volumes()
        ]
        print_table(("label", "number", "voxels", "ml"), rows)
        for path in written.values():
            typer.echo(f"wrote {path}")
