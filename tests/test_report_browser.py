"""The pages of --report and --report-3d as Chromium shows them: no complaint, and what is pressed moves."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

import numpy as np
import pytest
from browser_cases import needs_browser, opened
from PIL import Image

import regkit
from regkit.registration_result import Registration
from regkit.synthesis.phantom import Phantom, torso
from regkit.viz.htmlslices import SLICES

pytestmark = needs_browser


@pytest.fixture(scope="module")
def registered() -> tuple[Phantom, Registration]:
    phantom = torso(0, 8.0)
    found = regkit.register(phantom.fixed, phantom.moving, features="mind", preset="fast", threads=1)
    return phantom, found


def shot(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)


def test_the_report_in_a_browser(registered: tuple[Phantom, Registration], tmp_path: Path) -> None:
    phantom, result = registered
    path = tmp_path / "report.html"
    regkit.write_report(result, path, phantom.fixed)
    with opened(path) as found:
        page = found.page
        assert page.title().startswith(result.verdict.level)
        assert page.locator("#verdict .verdict").inner_text() == result.verdict.level
        # Every picture is drawn, and none is a picture that the browser cannot read.
        sizes = page.eval_on_selector_all(
            ".plane img", "them => them.map(one => [one.complete, one.naturalWidth])"
        )
        assert len(sizes) == 30
        assert all(done and width > 50 for done, width in sizes)

        plane = page.locator(".plane[data-plane=axial]")
        view, slider, where = plane.locator(".flicker"), plane.locator("input"), plane.locator("output")
        before, place = shot(view.screenshot()), where.inner_text()
        slider.fill(str(SLICES - 2))
        assert where.inner_text() != place
        assert (shot(view.screenshot()) != before).mean() > 0.05
        slider.press("ArrowLeft")
        assert slider.input_value() == str(SLICES - 3)

        stage = shot(view.screenshot())
        page.get_by_label("before").check()
        assert (shot(view.screenshot()) != stage).mean() > 0.05
        page.get_by_label("after registration").check()
        assert (shot(view.screenshot()) == stage).mean() > 0.999

        # The flicker shows the fixed image and the moving one in turn, and stops.
        button = page.locator("#flicker")
        button.click()
        assert button.inner_text() == "stop the flicker"
        over = plane.locator(".flicker .over")
        for state in ("hidden", "visible", "hidden"):
            page.wait_for_function(
                "([one, wanted]) => getComputedStyle(one).visibility === wanted",
                arg=[over.element_handle(), state],
            )
        page.wait_for_function("one => document.body.classList.contains('flip')")
        fixed = shot(view.screenshot())
        button.click()
        assert button.inner_text() == "start the flicker"
        assert over.evaluate("one => getComputedStyle(one).visibility") == "visible"
        assert (shot(view.screenshot()) == stage).mean() > 0.999
        assert (fixed != stage).mean() > 0.05
        assert found.complaints == []
        assert found.from_elsewhere == []


@pytest.mark.skipif(importlib.util.find_spec("ipyniivue") is None, reason="needs the extra report3d")
def test_the_volumes_in_a_browser(registered: tuple[Phantom, Registration], tmp_path: Path) -> None:
    phantom, result = registered
    path = tmp_path / "volumes.html"
    regkit.write_report_3d(result, path, phantom.fixed)
    assert path.stat().st_size < 6_000_000
    with opened(path) as found:
        page = found.page
        page.wait_for_function("() => document.getElementById('state').textContent !== 'loading'")
        assert page.locator("#state").inner_text() == ""
        names = page.locator("#layer option").all_inner_texts()
        assert names == [
            "moving image, after", "moving image, before", "log-Jacobian (doublings of volume)", "doubt, mm"
        ]  # fmt: skip
        # NiiVue has the volumes where the patient lies, with the values that were meant.
        told = page.evaluate("() => view.volumes.map(one => [Array.from(one.hdr.dims), one.hdr.affine])")
        assert len(told) == 5
        for dims, affine in told:
            assert tuple(dims[1:4]) == phantom.fixed.grid.size
            np.testing.assert_allclose(affine, phantom.fixed.grid.ras_affine, atol=1e-2)
        view = page.locator("#view")
        page.wait_for_timeout(500)
        shown = shot(view.screenshot())
        assert (shown.max(axis=2) > 60).mean() > 0.05  # not black
        seen = [shown]
        for name in names[1:]:
            page.locator("#layer").select_option(label=name)
            page.wait_for_timeout(500)
            seen.append(shot(view.screenshot()))
            assert (seen[-1] != seen[-2]).mean() > 0.02, name
        coloured = np.ptp(seen[2], axis=2)  # the log-Jacobian is in colour, the images are grey
        assert (coloured > 40).mean() > 0.02
        page.locator("#layer").select_option(index=0)
        page.locator("#opacity").fill("0")
        page.wait_for_timeout(500)
        assert (shot(view.screenshot()) != shown).mean() > 0.02
        button = page.locator("#flicker")
        button.click()
        assert button.inner_text() == "stop the flicker"
        button.click()
        assert found.complaints == []
        assert found.from_elsewhere == []
