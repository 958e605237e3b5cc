"""The HTML report: whole, small, self-contained, escaped, and the right way up on any grid."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import shutil
import subprocess
import tracemalloc
from dataclasses import replace
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import error_of, run, run_program, usage_error_of, write_phantom
from PIL import Image

import regkit
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid, slab_index, transform_points
from regkit.evaluate import LabelScore, LabelScores
from regkit.io.images import Volume
from regkit.io.provenance import record_of
from regkit.ops.jacobian import Smoothness
from regkit.ops.resample import Source
from regkit.registration_result import Registration
from regkit.solver.linear import LinearStart
from regkit.stages import Timings
from regkit.verdict import RULES, verdict_of
from regkit.viz.htmlreport import write_report
from regkit.viz.htmlslices import SLICES, edges_of, jacobian_at, lattice_of, round_step, values_at
from regkit.viz.planes import PLANES, cut
from regkit.warp import Warp

GRID = Grid((40, 32, 24), (2.0, 2.0, 3.0), (-40, -30, 100))
SECTIONS = {"verdict", "slices-shown", "measures", "cost", "inputs", "settings", "versions", "command"}
PANELS = {"flicker", "checkerboard", "edges", "warp-grid", "log-jacobian", "doubt"}
HOSTILE = "<script>alert(1)<!-- \"'&.nii.gz"
_LIMIT = 3_000_000


class Page(HTMLParser):
    """What a browser would find: the elements, what is loaded, the text of each section."""

    _EMPTY = frozenset({"meta", "img", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[tuple[str, str]] = []
        self.sections: dict[str, str] = {}
        self.scripts: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "an element is not closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag == "script":
            self.scripts.append("")
        if tag not in self._EMPTY:
            self.open.append((tag, found.get("id", "")))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for tag, name in self.open:
            if tag == "section" and name:
                self.sections[name] = self.sections.get(name, "") + data + " "
        if self.open and self.open[-1][0] == "script":
            self.scripts[-1] += data

    @property
    def slices(self) -> dict[str, list[dict[str, str]]]:
        def refuse(name: str) -> None:
            raise AssertionError(f"{name} is no JSON")

        found: dict[str, list[dict[str, str]]] = json.loads(self.scripts[0], parse_constant=refuse)
        return found

    def marks(self, plane: str) -> dict[str, str]:
        """Letters at the sides of the pictures of one plane, the same in all of its panels."""
        part = self.text.split(f'data-plane="{plane}"')[1].split("</section>")[0]
        found = re.findall(r'<span class="mark (\w+)">(\w)</span>', part)
        assert len(found) % len(set(found)) == 0
        assert len(set(found)) == 4
        return dict(found)


def pixels(uri: str) -> np.ndarray:
    """A data URI decoded: (rows, columns, 4) of 0 to 255."""
    image = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    return np.asarray(image.convert("RGBA")).astype(int)


def head(grid: Grid, name: str = "scan") -> Volume:
    away = np.linalg.norm(grid.world_points() - grid.centre, axis=-1)
    noise = np.random.default_rng(0).normal(0, 3, grid.shape)
    return Volume((100 * (away < 28) + noise).astype(np.float32), grid, name)


def result_of(warp: Warp, moving: Volume, doubt: Source | None = None, **more: Any) -> Registration:
    """A result with a given warp."""
    gates = {"copies": 0.93, "side": math.nan, "folding": 0.0}
    return Registration(
        warp=warp,
        start=LinearStart(more.pop("linear", np.eye(4)), math.nan, "header", "identity"),
        smoothness=Smoothness(0.0, math.nan),
        feature_difference={},
        evidence={},
        timings=Timings({"load": 1.0}),
        memory={"load": 100.0, "peak": 100.0},
        settings={"regkit": "1", "torch": "2", "simpleitk": "3", "python": "4", "fixed": "f", "moving": "m"}
        | {"start": {"similarity": math.nan, "runner_up": None}, "levels": [[1, 2]], "seed": 0},
        verdict=verdict_of(gates),
        moving=moving,
        doubt=doubt,
        **more,
    )


def still(grid: Grid) -> Warp:
    return Warp(np.zeros((*grid.shape, 3), np.float32), grid)


def page_of(result: Registration, fixed: Volume, folder: Path, **more: Any) -> Page:
    write_report(result, folder / "report.html", fixed, **more)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    """The report of a registration of the phantom by the command line, in a process of its own."""
    folder = tmp_path_factory.mktemp("report")
    files = write_phantom(folder)
    run_program(
        "register", files.fixed, files.moving, "-o", folder / "warp.nii.gz", "--report", folder / "r.html",
        "--fixed-labels", files.fixed_labels, "--moving-labels", files.moving_labels,
        "--label-names", files.names, "--threads", 1, "--quiet",
    )  # fmt: skip
    return folder, Page((folder / "r.html").read_text(encoding="utf-8"))


def test_the_report_holds_every_section(whole: tuple[Path, Page]) -> None:
    folder, page = whole
    assert (folder / "r.html").stat().st_size < _LIMIT
    assert set(page.sections) == SECTIONS
    verdict = page.sections["verdict"].split()
    assert verdict[0] == "PASS"
    assert {"copies", "inside", "overlap", "0.91", "labels"} <= set(verdict)
    assert " ".join(RULES["copies"].good.split()) in " ".join(verdict)
    classes = {name for _, found in page.elements for name in found.get("class", "").split()}
    assert classes >= PANELS
    assert [plane.name for plane in PLANES] == list(page.slices)
    assert all(len(pictures) == SLICES for pictures in page.slices.values())
    sliders = [f for tag, f in page.elements if tag == "input" and f["type"] == "range"]
    assert [f["max"] for f in sliders] == [str(SLICES - 1)] * 3
    assert "liver" in page.sections["measures"]
    assert "peak memory" in page.sections["cost"]
    assert regkit.__version__ in page.sections["versions"]
    assert "working_spacing_mm" in page.sections["settings"]
    assert "regkit register" in page.sections["command"]
    assert "--report" in page.sections["command"]
    for name in ("fixed", "moving", "fixed_labels"):
        digest = sha256((folder / f"{name}.nii.gz").read_bytes()).hexdigest()
        assert digest in page.sections["inputs"]
        assert digest in (folder / "warp.nii.gz.json").read_text()
        assert f"{name}.nii.gz" in page.sections["inputs"]


def test_nothing_is_loaded_from_elsewhere(whole: tuple[Path, Page]) -> None:
    _, page = whole
    loads = {"src", "href", "srcset", "data", "action", "poster"}
    assert not [found for _, found in page.elements if loads & set(found)]
    assert not any(tag in ("link", "iframe", "object", "embed", "base") for tag, _ in page.elements)
    assert "http" not in page.text.replace("http-equiv", "")
    assert not re.search(r"url\(|@import|fetch\(|XMLHttp|import\(", page.text)
    policy = next(f["content"] for _, f in page.elements if f.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    for pictures in page.slices.values():
        for layers in pictures:
            assert all(uri.startswith("data:image/") for name, uri in layers.items() if name != "where")


def test_every_layer_that_a_panel_asks_for_is_there_in_the_size_it_says(whole: tuple[Path, Page]) -> None:
    _, page = whole
    for plane, pictures in page.slices.items():
        part = page.text.split(f'data-plane="{plane}"')[1].split("</section>")[0]
        asked = re.findall(r'data-layer="(\w+)" width="(\d+)" height="(\d+)"', part)
        assert len(asked) == 10
        for layer, width, height in asked:
            for name in ("before", "after") if layer == "moving" else (layer,):
                assert pixels(pictures[0][name]).shape == (int(height), int(width), 4)


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not there to run the script")
def test_the_script_moves_slices_changes_the_stage_and_flickers(
    whole: tuple[Path, Page], tmp_path: Path
) -> None:
    """In a document of a few lines that stands for the browser's."""
    _, page = whole
    (tmp_path / "page.js").write_text(page.scripts[1])
    (tmp_path / "test.js").write_text(
        """
const events = () => ({on: {}, addEventListener(name, f) { this.on[name] = f; }});
const images = ["fixed", "moving"].map((layer) => ({dataset: {layer}}));
const slider = {...events(), value: "1"}, output = {}, button = events(), classes = new Set();
const choices = ["before", "after"].map((value) => ({...events(), value}));
const pictures = [0, 1].map((k) => ({fixed: "f" + k, before: "b" + k, after: "a" + k, where: "at " + k}));
const plane = {dataset: {plane: "axial"}, querySelectorAll: () => images,
  querySelector: (what) => what === "input" ? slider : output};
const document = {
  getElementById: (name) => name === "slices" ? {textContent: JSON.stringify({axial: pictures})} : button,
  querySelector: () => ({value: "after"}),
  querySelectorAll: (what) => what === ".plane" ? [plane] : choices,
  body: {classList: {toggle: (c) => classes.has(c) ? classes.delete(c) : classes.add(c),
    remove: (c) => classes.delete(c)}}};
let tick = null;
const setInterval = (f) => { tick = f; return 0; }, clearInterval = () => { tick = null; };
const said = [];
const look = () => said.push([images[0].src, images[1].src, output.textContent]);
const script = require("fs").readFileSync(process.argv[2], "utf8");
new Function("document", "setInterval", "clearInterval", script)(document, setInterval, clearInterval);
look();
slider.value = "0"; slider.on.input(); look();
choices[0].on.change(); look();
button.on.click(); tick(); said.push([...classes], button.textContent);
tick(); said.push([...classes]);
tick(); button.on.click(); said.push([...classes], button.textContent, tick);
console.log(JSON.stringify(said));
"""
    )
    words = ["node", str(tmp_path / "test.js"), str(tmp_path / "page.js")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [
        ["f1", "a1", "at 1"], ["f0", "a0", "at 0"], ["f0", "b0", "at 0"],
        ["flip"], "stop the flicker", [], [], "start the flicker", None,
    ]  # fmt: skip


def test_hostile_names_are_text(tmp_path: Path) -> None:
    file = tmp_path / HOSTILE
    file.write_bytes(b"x")
    fixed = head(GRID)
    scores = {stage: [LabelScore(1, HOSTILE, 0.1, 1.0)] for stage in ("before", "linear")}
    scores["after"] = [LabelScore(1, HOSTILE, math.nan, math.nan)]
    result = result_of(still(GRID), fixed, label_scores=LabelScores(scores))
    hostile = {"fixed": HOSTILE, "moving": HOSTILE, "init": HOSTILE + "\udcff", HOSTILE: HOSTILE}
    result.settings.update(hostile)
    page = page_of(result, fixed, tmp_path, record=record_of({HOSTILE: file}, {}, f"regkit '{HOSTILE}'"))
    assert HOSTILE not in page.text
    assert len(page.scripts) == 2
    assert "alert" not in "".join(page.scripts)
    for section in ("measures", "inputs", "settings", "command"):
        assert HOSTILE in page.sections[section]


def test_what_is_no_number_is_a_dash(tmp_path: Path) -> None:
    page = page_of(result_of(still(GRID), head(GRID)), head(GRID), tmp_path)
    words = re.sub(r"<script.*", "", page.text, flags=re.DOTALL)
    assert not re.search(r"\b(nan|NaN|inf|None)\b", re.sub(r"<style>.*?</style>", "", words, flags=re.DOTALL))
    assert page.sections["verdict"].split()[0] == "WARN"
    assert "no hash" in page.sections["inputs"]
    assert "from Python" in page.sections["command"]


def test_a_linear_start_has_no_doubt(tmp_path: Path) -> None:
    page = page_of(result_of(still(GRID), head(GRID)), head(GRID), tmp_path)
    assert "not measured" in page.sections["slices-shown"]
    assert not any("doubt" in layers for layers in page.slices["axial"])
    assert 'data-layer="doubt"' not in page.text


def test_the_marks_are_right_on_any_grid(oblique_grid: Grid, tmp_path: Path) -> None:
    """A bright spot to the left, front and head of the middle lies on the sides that L, A and S mark."""
    grid = oblique_grid
    spot = grid.centre + np.array([3.0, -3.0, 3.0])
    near = np.linalg.norm(grid.world_points() - spot, axis=-1) < 3.2
    noise = np.random.default_rng(0).uniform(0, 60, grid.shape)  # so that all of the field is seen
    fixed = Volume(np.where(near, 200, noise).astype(np.float32), grid)
    page = page_of(result_of(still(grid), fixed), fixed, tmp_path)
    letters = {"axial": set("RLAP"), "coronal": set("RLSI"), "sagittal": set("APSI")}
    for plane, pictures in page.slices.items():
        sides = {letter: side for side, letter in page.marks(plane).items()}
        assert set(sides) == letters[plane]
        for layer in ("fixed", "before", "after"):
            shown = [pixels(layers[layer])[..., 0] for layers in pictures]
            picture = max(shown, key=lambda p: (p > 180).sum())  # the slice that meets the spot
            rows, columns = np.nonzero(picture > 180)
            assert rows.size > 50
            down, right = rows.mean() / picture.shape[0], columns.mean() / picture.shape[1]
            for letter in set("LAS") & set(sides):
                place = {"left": right, "right": 1 - right, "top": down, "bottom": 1 - down}[sides[letter]]
                assert place < 0.48, (plane, layer, letter)


def test_millimetres_are_square(tmp_path: Path) -> None:
    """A ball on voxels of 1 x 2 x 6 mm is round in every plane."""
    grid = Grid((80, 40, 14), (1.0, 2.0, 6.0))
    away = np.linalg.norm(grid.world_points() - grid.centre, axis=-1)
    fixed = Volume(np.clip(100 - 3 * away, 0, None).astype(np.float32), grid)
    page = page_of(result_of(still(grid), fixed), fixed, tmp_path)
    for pictures in page.slices.values():
        rows, columns = np.nonzero(pixels(pictures[SLICES // 2]["fixed"])[..., 0] > 110)
        assert np.ptp(rows) == pytest.approx(np.ptp(columns), rel=0.06)


def test_after_is_the_moved_image_and_before_is_not(oblique_grid: Grid) -> None:
    grid = oblique_grid
    shift = np.array([2.0, 1.0, -1.5], np.float32)
    moving = Volume(grid.world_points() @ np.array([1.0, 10, 100]), grid)  # linear: interpolation is exact
    warp = Warp(np.broadcast_to(shift, (*grid.shape, 3)).copy(), grid)
    box = np.stack([grid.centre - 2, grid.centre + 2])
    plane = PLANES[0].grid(box, grid.centre, 0.5)
    points = transform_points(plane.index_to_world, slab_index(plane, 0, 1)[0])
    seen = values_at(moving.array, transform_points(grid.world_to_index, points))
    np.testing.assert_allclose(seen, points @ [1, 10, 100], rtol=1e-5)
    np.testing.assert_allclose(seen, cut(moving, plane), rtol=1e-5)
    index = transform_points(warp.grid.world_to_index, points + shift)
    np.testing.assert_allclose(values_at(moving.array, index), seen + shift @ [1, 10, 100], rtol=1e-5)


def test_values_end_where_the_image_does() -> None:
    array = np.arange(24.0).reshape(2, 3, 4)
    index = np.array([[0, 0, 0], [-0.5, 0, 0], [-0.51, 0, 0], [3.5, 2.5, 1.5], [3.6, 2, 1], [1.5, 0, 0]])
    np.testing.assert_allclose(values_at(array, index), [0, 0, np.nan, 23, np.nan, 1.5])


def test_the_jacobian_is_that_of_the_warp(oblique_grid: Grid, rng: np.random.Generator) -> None:
    warp = Warp(rng.normal(0, 0.4, (*oblique_grid.shape, 3)).astype(np.float32), oblique_grid)
    every = slab_index(oblique_grid, 0, oblique_grid.shape[0])
    found = jacobian_at(warp.field, warp.grid, every + rng.uniform(-0.4, 0.4, every.shape))
    np.testing.assert_allclose(found, warp.jacobian().array, rtol=1e-4, atol=1e-4)
    assert np.isnan(jacobian_at(warp.field, warp.grid, np.array([[-0.6, 0, 0]]))).all()


def test_the_lattice_is_straight_without_deformation_and_bends_with_it() -> None:
    down, right = np.mgrid[0:60, 0:80].astype(float)
    straight = lattice_of(right, down, 10)
    assert straight[:, 9].all()
    assert straight[5].sum() == 7  # 10, 20, ..., 70
    bent = lattice_of(right + 4 * np.sin(down / 8), down, 10)
    assert not bent[:, 9].all()
    assert not lattice_of(np.full((5, 5), np.nan), np.full((5, 5), np.nan), 10).any()
    assert [round_step(v) for v in (0.03, 0.7, 1, 6, 10)] == pytest.approx([0.05, 1, 1, 10, 10])


def test_edges_lie_on_the_outline() -> None:
    down, right = np.mgrid[0:60, 0:80].astype(float)
    away = np.hypot(down - 30, right - 40)
    edges = edges_of(np.where(away < 15, 0.9, 0.2).astype(np.float32))
    assert edges.sum() > 60
    assert np.abs(away[edges] - 15).max() < 2
    assert not edges_of(np.full((20, 20), 0.3, np.float32)).any()


def test_growth_and_doubt_have_their_colours(tmp_path: Path) -> None:
    fixed = Volume(head(GRID).array * 0 + 50 + head(GRID).array, GRID)
    field = np.zeros((*GRID.shape, 3), np.float32)
    x = GRID.world_points()[..., 0] - GRID.centre[0]
    field[..., 0] = np.where(x < 0, -0.3 * x, 0.3 * x)  # the right shrinks, the left grows
    cells = GRID.pooled(8)
    doubt = np.zeros(cells.shape, np.float32) + np.linspace(0.5, 9, cells.size[0], dtype=np.float32)
    source = Source(torch.from_numpy(doubt), None, cells)
    page = page_of(result_of(Warp(field, GRID), fixed, source), fixed, tmp_path)
    for layer in ("jacobian", "doubt"):
        picture = pixels(page.slices["axial"][SLICES // 2][layer])
        middle = picture.shape[1] // 2
        warm = picture[..., 0] - picture[..., 2]
        assert warm[:, : middle - 20].mean() < -20, layer
        assert warm[:, -20:].mean() > 20, layer


def test_noise_stays_below_the_limit(tmp_path: Path, rng: np.random.Generator) -> None:
    """What JPEG cannot make small is shown smaller."""
    grid = Grid((280, 280, 280))
    noise = Volume(rng.random(grid.shape, np.float32), grid)
    warp = Warp(np.zeros((*grid.shape, 3), np.float32), grid)
    doubt = Source(torch.from_numpy(rng.random((280, 280, 280), np.float32)), None, grid)
    page = page_of(result_of(warp, noise, doubt), noise, tmp_path)
    assert 1_000_000 < len(page.text) < _LIMIT


def test_memory_does_not_grow_with_the_volumes(tmp_path: Path) -> None:
    peaks = []
    for n in (64, 250):
        grid = Grid((n, n, n), (250 / n,) * 3)
        fixed = Volume(np.zeros(grid.shape, np.float32), grid)
        fixed.array[n // 4 : -n // 4, n // 4 : -n // 4, n // 4 : -n // 4] = 1
        result = result_of(still(grid), fixed)  # of the larger one 200 MB
        tracemalloc.start()
        write_report(result, tmp_path / f"{n}.html", fixed)
        peaks.append(tracemalloc.get_traced_memory()[1] / 2**20)
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 60, peaks
    assert peaks[1] < 120, peaks


def test_inputs_are_shown_as_the_record_has_them(tmp_path: Path) -> None:
    fixed, file = head(GRID), tmp_path / "moving.nii.gz"
    file.write_bytes(b"x")
    result = result_of(still(GRID), fixed)
    record = result.provenance(fixed=fixed, moving=file)
    record["inputs"]["moving_mask"] = {"file": "folder", "series": "1.2.3", "sha256": "abc"}
    inputs = page_of(result, fixed, tmp_path, record=record).sections["inputs"]
    known = ("Volume in memory", str(file), sha256(b"x").hexdigest())
    for words in (*known, "moving mask", "series 1.2.3", "abc"):
        assert words in inputs


def test_the_name_must_end_in_html_and_inputs_stay(tmp_path: Path) -> None:
    fixed = head(GRID)
    with pytest.raises(RegkitError, match=r"must end in \.html"):
        regkit.write_report(result_of(still(GRID), fixed), tmp_path / "report.htm", fixed)
    files = write_phantom(tmp_path, 12.0)
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "w.nii.gz")
    assert "must end in .html" in error_of(*words, "--report", tmp_path / "r.pdf")
    assert "--report" in usage_error_of(*words, "--report")


def test_it_appears_with_the_other_files_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = tmp_path / "in"
    inputs.mkdir()
    files, out = write_phantom(inputs), tmp_path / "out"
    out.mkdir()

    def fail(*_: object) -> None:
        raise RegkitError("the disk is full")

    words = ("register", files.fixed, files.moving, "-o", out / "w.nii.gz", "--report", out / "r.html", "-q")
    more = ("--preset", "linear", "--init", "none", "--threads", 1)
    with monkeypatch.context() as patch:
        patch.setattr("regkit.viz.htmlreport.render", fail)
        assert "the disk is full" in error_of(*words, *more)
    assert list(out.iterdir()) == []
    run(*words, *more)
    assert sorted(path.name for path in out.iterdir()) == ["r.html", "w.nii.gz", "w.nii.gz.json"]


def test_many_labels_stay_below_the_limit(tmp_path: Path) -> None:
    fixed = head(GRID)
    rows = [LabelScore(k, f"label number {k}", 0.3, 2.0) for k in range(1000)]
    scores = LabelScores(dict.fromkeys(("before", "linear", "after"), rows))
    result = result_of(still(GRID), fixed, label_scores=scores)
    page = page_of(replace(result), fixed, tmp_path)
    assert len(page.text) < _LIMIT
    assert page.sections["measures"].count("label number") == 1000
