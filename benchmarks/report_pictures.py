"""Pictures of the pages of ``--report`` and ``--report-3d`` for the docs, taken in Chromium.

    pip install playwright "regkit-imaging[report3d]"
    python benchmarks/report_pictures.py -o docs/figures

The pair is the phantom of ``regkit demo``. Chromium or Chrome has to be on the PATH.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from PIL import Image

import regkit
from regkit.synthesis.phantom import torso

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from browser_cases import opened

_COLOURS = 128  # of a PNG, which keeps it small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--spacing", type=float, default=3.0, help="mm, of the phantom")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    phantom = torso(0, arguments.spacing)
    result = regkit.register(
        phantom.fixed,
        phantom.moving,
        fixed_labels=phantom.fixed_labels,
        moving_labels=phantom.moving_labels,
        label_names=phantom.names,
    )
    with tempfile.TemporaryDirectory() as place:
        flat, solid = Path(place) / "report.html", Path(place) / "volumes.html"
        regkit.write_report(result, flat, phantom.fixed)
        regkit.write_report_3d(result, solid, phantom.fixed)
        print(f"report {flat.stat().st_size / 1e6:.1f} MB, volumes {solid.stat().st_size / 1e6:.1f} MB")
        with opened(flat) as found:
            found.page.screenshot(path=arguments.output / "report-verdict.png")
            axial = found.page.locator(".plane[data-plane=axial]")
            axial.screenshot(path=arguments.output / "report-axial.png")
        with opened(solid) as found:
            found.page.wait_for_function("() => document.getElementById('state').textContent === ''")
            found.page.wait_for_timeout(1000)
            found.page.screenshot(path=arguments.output / "report-3d.png")
            said = [*found.complaints, *found.from_elsewhere]
    if said:
        raise SystemExit(f"the page complains: {said}")
    for name in ("report-verdict", "report-axial", "report-3d"):
        path = arguments.output / f"{name}.png"
        Image.open(path).convert("P", palette=Image.Palette.ADAPTIVE, colors=_COLOURS).save(
            path, optimize=True
        )
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
