"""The 3-D page: what it embeds is where it was and as it was, and what is missing is told."""

from __future__ import annotations

import base64
import gzip
import json
import re
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from cli_cases import error_of, write_phantom

import regkit
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.synthesis.phantom import torso
from regkit.viz import htmlvolumes
from regkit.viz.htmlvolumes import _smaller

BUNDLE = (
    'var t$=class{};var w={a(){console.log("Creating new Niivue instance");let B=1,C=y(B);v=new t$(C)}};'
    "export{w as default};\n"
)


class Package:
    """An installed package that carries a bundle."""

    version = "2.4.9"

    def __init__(self, folder: Path, bundle: str) -> None:
        self.file = folder / "widget.js"
        self.file.write_text(bundle, encoding="utf-8")

    def locate_file(self, name: str) -> Path:
        assert name == "ipyniivue/static/widget.js"
        return self.file


def installed(monkeypatch: pytest.MonkeyPatch, folder: Path, bundle: str) -> None:
    monkeypatch.setattr(metadata, "distribution", lambda name: Package(folder, bundle))


def test_the_class_is_found_in_the_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path, BUNDLE)
    text, version = htmlvolumes.niivue()
    assert text.endswith("globalThis.Niivue=t$;\n") and "export" not in text
    assert version == "ipyniivue 2.4.9"
    for other in ("export{w as default};", BUNDLE.split("export")[0]):
        installed(monkeypatch, tmp_path, other)
        with pytest.raises(RegkitError, match=r"ipyniivue 2.4.9 is not one .* pip install"):
            htmlvolumes.niivue()


def test_without_the_package_nothing_is_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    files = write_phantom(tmp_path, 12.0)
    before = sorted(tmp_path.iterdir())
    said = error_of(
        "register",
        files.fixed,
        files.moving,
        "-o",
        tmp_path / "w.nii.gz",
        "--report-3d",
        tmp_path / "v.html",
        "-q",
    )
    assert 'pip install "regkit-imaging[report3d]"' in said
    assert sorted(tmp_path.iterdir()) == before


def test_the_volumes_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, tmp_path, BUNDLE)
    phantom = torso(0, 12.0)
    result = regkit.register(phantom.fixed, phantom.moving, features="mind", preset="fast", threads=1)
    regkit.write_report_3d(result, tmp_path / "page.html", phantom.fixed)
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    embedded = re.search(r'id="niivue">([^<]*)<', text)
    assert embedded is not None
    assert gzip.decompress(base64.b64decode(embedded[1])).decode().startswith("var t$=class{}")
    assert not re.search(r'(src|href)="', text) and "http" not in text.replace("http-equiv", "")
    found = re.search(r'id="layers">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    layers = {layer["name"].split(" (")[0]: layer for layer in json.loads(found[1])}
    assert list(layers) == [
        "fixed image",
        "moving image, after",
        "moving image, before",
        "log-Jacobian",
        "doubt, mm",
    ]
    images = {
        name: nib.Nifti1Image.from_bytes(gzip.decompress(base64.b64decode(layer["file"])))
        for name, layer in layers.items()
    }
    np.testing.assert_allclose(images["fixed image"].affine, phantom.fixed.grid.ras_affine, atol=1e-3)
    values = images["log-Jacobian"].get_fdata()
    high = layers["log-Jacobian"]["high"]
    true = np.clip(np.log2(result.warp.jacobian().array.T), -high, high)
    assert np.abs(values - true).max() < 2 * high / 127
    doubt = result.uncertainty
    assert doubt is not None
    limit = layers["doubt, mm"]["high"]
    assert np.abs(images["doubt, mm"].get_fdata() - np.clip(doubt.array.T, 0, limit)).max() < 2 * limit / 127


@pytest.mark.parametrize("most", [200, 3_000, 10**7])
def test_a_smaller_grid_covers_the_same_field_of_view(oblique_grid: Grid, most: int) -> None:
    grid = _smaller(oblique_grid, most)
    assert np.prod(grid.size) <= max(most, 1) or grid is oblique_grid
    sides, before = (np.asarray(one.size) * one.spacing for one in (grid, oblique_grid))
    np.testing.assert_allclose(sides, before)
    np.testing.assert_allclose(grid.centre, oblique_grid.centre, atol=1e-9)
    assert grid.direction == oblique_grid.direction
    ideal = (np.prod(oblique_grid.extent) / most) ** (1 / 3)
    assert max(grid.spacing) <= max(*oblique_grid.spacing, 2 * ideal)
