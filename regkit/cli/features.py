"""``regkit features``: what the network sees in images, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from regkit.cli.files import PICTURES, check_outputs
from regkit.cli.options import Overwrite, Quiet


def command(
    images: Annotated[
        list[Path],
        typer.Argument(
            metavar="IMAGE",
            show_default=False,
            help="Images of any modality: NIfTI, NRRD, MetaImage, or folders of one DICOM series each.",
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", show_default=False, help="The picture: .png.")],
    weights: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Network weights, .safetensors or .pth. Default: the bundled ones.",
        ),
    ] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Draw the network's features of images: their first principal components as red, green and blue.

    All images share the same components: places of the same colour have similar features.
    """
    check_outputs([(output, PICTURES)], (*images, weights), overwrite)

    from regkit.features.components import FINEST, principal_components
    from regkit.features.network import NetworkFeatures
    from regkit.features.weights import bundled_weights
    from regkit.io.images import load_image
    from regkit.viz.components_figure import components_figure

    network = NetworkFeatures(weights or bundled_weights(), apart=True)
    volumes = [load_image(path, "image") for path in images]
    known = network.reading.spacing
    components = principal_components(volumes, network, network.stride, known[0] if known else FINEST)
    components_figure(volumes, components, output)
    if not quiet:
        typer.echo(f"wrote {output}")
