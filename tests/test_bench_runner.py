"""``regkit bench run``, ``report`` and ``submit``, with commands as methods: the harness is tested."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_cases import error_of, run, usage_error_of

from regkit.bench import learn2reg
from regkit.bench.imitation import imitate
from regkit.bench.result_rows import append_row, read_rows, read_run
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.formats import read_linear
from regkit.io.outputs import save_image

GRID = Grid((24, 20, 16), (2.0, 2.5, 3.0), (-20.0, 5.0, 8.0))
SHIFT = (4.0, -2.5, 3.0)  # mm, LPS, from the fixed image to the moving one: whole voxels

# Writes the field of a shift that is named on the command line, and a line in a log for each call.
SCRIPT = """
import sys
import numpy as np
import SimpleITK as sitk
fixed, _, warp, log, what = sys.argv[1:6]
open(log, "a").write(fixed + "\\n")
if what == "fail":
    sys.exit("no such luck | at all")
if what == "wait":
    import os, time
    open(log, "w").write(f"{os.getppid()} {os.getpid()}")
    time.sleep(60)
if what == "kill":
    import os, signal
    os.kill(os.getppid(), signal.SIGKILL)
image = sitk.ReadImage(fixed)
field = np.broadcast_to(np.float32(sys.argv[5:8]), (*image.GetSize()[::-1], 3))
made = sitk.GetImageFromArray(field, isVector=True)
made.CopyInformation(image)
sitk.WriteImage(made, warp)
"""


@pytest.fixture
def pairs(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of two pairs of volumes, the moving one shifted, with labels, and landmarks in one."""
    for name in ("first", "second"):
        folder = tmp_path / "pairs" / name
        folder.mkdir(parents=True)
        labels = np.zeros(GRID.shape, np.uint8)
        labels[5:11, 6:12, 7:16] = 1
        labels[8:11, 9:12, 9:16] = 2
        image = labels * 40 + rng.normal(0, 3, GRID.shape)
        origin = tuple(o + s for o, s in zip(GRID.origin, SHIFT))
        for side, grid in (("fixed", GRID), ("moving", Grid(GRID.size, GRID.spacing, origin))):
            save_image(grid.to_sitk(image.astype(np.float32)), folder / f"{side}.nii.gz")
            save_image(grid.to_sitk(labels), folder / f"{side}_labels.nii.gz")
        manifest: dict[str, Any] = {
            k: f"{k}.nii.gz" for k in ("fixed", "moving", "fixed_labels", "moving_labels")
        }
        manifest |= {"name": name, "labels": {"1": "shell", "2": "core"}, "landmarks": None}
        if name == "first":
            manifest["landmarks"] = "landmarks.csv"
            (folder / "landmarks.csv").write_text("fx,fy,fz,mx,my,mz\n0,20,25,4,17.5,28\n2,22,30,6,19.5,33\n")
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path / "pairs"


class Harness:
    """Commands as methods, and a log of their calls."""

    def __init__(self, folder: Path) -> None:
        self.script, self.log = folder / "method.py", folder / "log"
        self.script.write_text(SCRIPT)

    def word(self, name: str, *what: object) -> str:
        files = ["{fixed}", "{moving}", "{warp}", str(self.log)]
        return f"{name}={shlex.join([sys.executable, str(self.script), *files, *map(str, what)])}"

    def calls(self) -> int:
        return len(self.log.read_text().splitlines()) if self.log.exists() else 0


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    return Harness(tmp_path)


def _words(pairs: Path, results: Path, *methods: str) -> list[object]:
    found: list[object] = ["bench", "run", "open-pairs", "--data", pairs, "-o", results, "--threads", 1]
    for method in methods:
        found += ["--method", method]
    return found


def test_all_methods_are_measured_alike_and_failures_are_rows(
    pairs: Path, harness: Harness, tmp_path: Path
) -> None:
    results = tmp_path / "results"
    words = _words(
        pairs,
        results,
        harness.word("exact", *(-x for x in SHIFT)),
        harness.word("broken", "fail"),
        harness.word("dead", "kill"),
    )
    done = run(*words, "--direction", "exchanged", "--pairs", "first", "--jobs", 2)
    assert "2 of 3 runs failed" in done.stderr
    rows = {row["method"]: row for row in read_rows(results)}
    assert len(rows) == 3
    exact = rows["exact"]
    assert exact["status"] == "ok"
    assert exact["mean_dice"]["after"] == 1.0 > exact["mean_dice"]["before"] > 0.2
    assert exact["mean_hd95_mm"]["after"] == 0.0 < exact["mean_hd95_mm"]["before"]
    assert [label["name"] for label in exact["labels"]] == ["shell", "core"]
    assert exact["tre_mm"] == {
        "before": pytest.approx(np.hypot.reduce(SHIFT)),
        "after": pytest.approx(0, abs=1e-6),
    }
    assert exact["folding_percent"] == 0
    assert 0 < exact["seconds"]["total"] < 60
    assert 20 < exact["peak_mb"] < 4000
    assert "no such luck" in rows["broken"]["error"]
    assert "SIGKILL" in rows["dead"]["error"]
    report = (results / "report.md").read_text()
    assert "no such luck \\| at all" in report
    assert (results / "dice.png").stat().st_size > 5000
    assert (results / "results.csv").read_text().count("\n") == 4
    assert not (results / "data").exists()


def test_a_killed_run_goes_on_and_nothing_is_run_twice(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = [*_words(pairs, results, harness.word("exact", *SHIFT)), "--direction", "given"]
    run(*words)
    assert harness.calls() == 2
    before = (results / "results.jsonl").read_bytes()
    assert "add --resume" in error_of(*words)
    assert "seed 0 instead of 1" in error_of(*words, "--resume", "--seed", 1)
    assert (results / "results.jsonl").read_bytes() == before
    first, second = before.splitlines(keepends=True)
    (results / "results.jsonl").write_bytes(first + second[:50])  # killed while it wrote
    run(*words, "--resume")
    assert harness.calls() == 3
    assert [row["case"] for row in read_rows(results)] == ["first", "second"]
    other = _words(pairs, results, harness.word("other", 0, 0, 0))
    run(*other, "--resume", "--direction", "given", "--pairs", "second")
    assert harness.calls() == 4
    assert list(read_run(results)["methods"]) == ["exact", "other"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_the_benchmark(
    pairs: Path, harness: Harness, tmp_path: Path, number: signal.Signals
) -> None:
    words = [*_words(pairs, tmp_path / "results", harness.word("slow", "wait")), "--direction", "given"]
    command = [sys.executable, "-m", "regkit", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as process:
        for _ in range(600):
            if harness.log.exists() and harness.log.read_text():
                break
            time.sleep(0.1)
        started = [int(pid) for pid in harness.log.read_text().split()]  # the worker and its command
        assert "another benchmark" in error_of(*words, "--resume")
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    if number is not signal.SIGKILL:
        assert process.returncode == 130
        assert b"interrupted" in said
    time.sleep(1)
    assert len(started) == 2
    places = [Path(f"/proc/{pid}/cmdline") for pid in started]
    assert not any(place.exists() and place.read_bytes() for place in places)
    assert read_rows(tmp_path / "results") == []
    assert read_run(tmp_path / "results")["methods"].keys() == {"slow"}


def test_nothing_of_another_kind_is_gone_on_with(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    """Another command or other images under one name, other options: refused, and nothing lost."""
    results = tmp_path / "results"
    words = _words(pairs, results, harness.word("mine", *SHIFT))
    run(*words, "--pairs", "first", "--direction", "given")
    before = (results / "run.json").read_bytes()
    assert "mine was" in error_of(*_words(pairs, results, harness.word("mine", 0, 0, 0)), "--resume")
    assert "jobs 1 instead of 2" in error_of(*words, "--resume", "--jobs", 2)
    (pairs / "first" / "landmarks.csv").write_text("fx,fy,fz,mx,my,mz\n0,20,25,4,17.5,29\n")
    assert "pair first given have changed" in error_of(*words, "--resume")
    assert (results / "run.json").read_bytes() == before
    run(*words, "--resume", "--pairs", "second", "--direction", "given")
    assert len(read_run(results)["commands"]) == 2
    assert len(read_rows(results)) == 2


def test_failures_are_run_again_if_one_says_so(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = [*_words(pairs, results, harness.word("moody", *SHIFT)), "--direction", "given"]
    script = harness.script.read_text()
    harness.script.write_text("raise SystemExit('not today')")
    done = run(*words, "--pairs", "first", code=1)
    assert "no run succeeded" in done.stderr
    harness.script.write_text(script)
    run(*words, "--resume")
    assert [row["status"] for row in read_rows(results)] == ["failed", "ok"]
    run(*words, "--resume", "--retry")
    assert [(row["case"], row["status"]) for row in read_rows(results)] == [("second", "ok"), ("first", "ok")]


def test_where_a_benchmark_is_started_is_not_imported_from(
    pairs: Path, harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "random.py").write_text("raise RuntimeError")
    monkeypatch.chdir(tmp_path / "here")
    words = _words(pairs, Path("results"), harness.word("mine", *SHIFT))
    run(*words, "--pairs", "first", "--direction", "given")
    assert read_rows(Path("results"))[0]["status"] == "ok"


def test_results_of_other_code_are_left_alone(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    results = tmp_path / "results"
    words = _words(pairs, results, harness.word("exact", *SHIFT))
    run(*words, "--pairs", "first", "--direction", "given")
    content = json.loads((results / "run.json").read_text())
    for change, message in (
        ({"schema": 0}, "another version"),
        ({"versions": {**content["versions"], "regkit": "0.0.1"}}, "regkit 0.0.1 instead of"),
        ({"machine": {**content["machine"], "cpus": 1000}}, "cpus 1000 instead of"),
        ({"dataset": "mmwhs"}, "data set mmwhs"),
    ):
        (results / "run.json").write_text(json.dumps({**content, **change}))
        assert message in error_of(*words, "--resume")
    (results / "run.json").write_text("{")
    assert "cannot be read" in error_of(*words, "--resume")
    (results / "run.json").write_text(json.dumps(content))
    (results / "results.jsonl").write_text("nonsense\n")
    assert "line 1" in error_of(*words, "--resume")
    assert "line 1" in error_of("bench", "report", results)


def test_all_begin_from_one_linear_start(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    """It is found once for each case; the command is given its file."""
    results = tmp_path / "results"
    copy = tmp_path / "copy.py"
    copy.write_text(
        "import sys, SimpleITK as sitk\n"
        "fixed, _, start, warp = sys.argv[1:]\n"
        "image = sitk.ReadImage(fixed)\n"
        "field = sitk.TransformToDisplacementField(sitk.ReadTransform(start), sitk.sitkVectorFloat32,"
        " image.GetSize(), image.GetOrigin(), image.GetSpacing(), image.GetDirection())\n"
        "sitk.WriteImage(field, warp)\n"
    )
    word = shlex.join([sys.executable, str(copy), "{fixed}", "{moving}", "{start}", "{warp}"])
    words = _words(pairs, results, f"start={word}", f"again={word}")
    run(*words, "--start", "linear", "--pairs", "first", "--direction", "given")
    (start,) = (results / "starts").iterdir()
    first, second = read_rows(results)
    assert first["mean_dice"] == second["mean_dice"]
    assert first["mean_dice"]["after"] > first["mean_dice"]["before"]
    np.testing.assert_allclose(read_linear(start)[:3, 3], SHIFT, atol=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--method", "nonsense"), "no method named 'nonsense'"),
        (("--method", "mind", "--method", "mind"), "two methods are named 'mind'"),
        (("--direction", "up"), "up"),
        (("--pairs", "third"), "third"),
        (("--data", "nowhere"), "nowhere"),
        (("--method", "a=program --in {fixed}"), "{moving}"),
    ],
)
def test_bad_input_leaves_nothing(pairs: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    results = tmp_path / "results"
    data = () if "--data" in words else ("--data", pairs)
    assert message in error_of("bench", "run", "open-pairs", *data, "-o", results, *words)
    assert not results.exists()


def test_a_folder_with_other_things_is_left_alone(pairs: Path, harness: Harness, tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "thesis.tex").write_text("dear")
    assert "something other than" in error_of(
        *_words(pairs, tmp_path / "results", harness.word("exact", *SHIFT))
    )
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["thesis.tex"]
    assert "no results" in error_of("bench", "report", tmp_path / "results")
    assert "DATASET" in usage_error_of("bench", "run", "-o", tmp_path / "other")
    assert "no data set named" in error_of("bench", "run", "brains", "-o", tmp_path / "other")


def test_what_there_is_is_listed() -> None:
    text = run("bench", "list").stdout
    for name in ("l2r-abdomen", "mmwhs", "open-pairs", "phantom", "regkit-fast", "ants", "convexadam"):
        assert f"\n{name} " in text
    assert "is for mmwhs alone" in usage_error_of("bench", "run", "phantom", "-o", "x", "--pairing", "y")
    assert "none of the methods" in error_of("bench", "run", "phantom", "-o", "x", "--baseline", "ants")


def test_an_archive_is_rehearsed(harness: Harness, tmp_path: Path) -> None:
    """From the command line: an MR and a CT of a heart laid out, and registered."""
    data, pairing = tmp_path / "hearts", tmp_path / "pairing.json"
    run("bench", "imitate", "mmwhs", data, "--count", 1)
    assert "not empty" in error_of("bench", "imitate", "mmwhs", data)
    pairing.write_text('{"seed": 0, "held_out": 0, "pairs": null, "spacing_mm": 6.0}')
    words = ["bench", "run", "mmwhs", "--data", data, "-o", tmp_path / "results", "--pairing", pairing]
    words += ["--pairs", "mr1001-ct1001", "--method", harness.word("nothing", 0, 0, 0), "--threads", 1]
    run(*words)
    (row,) = read_rows(tmp_path / "results")
    assert len(row["labels"]) == 7
    assert row["mean_dice"]["after"] == row["mean_dice"]["before"]
    assert (tmp_path / "results" / "data").is_dir()
    assert "made up" in (tmp_path / "results" / "report.md").read_text()


def test_rows_are_kept_when_one_cannot_be_written(tmp_path: Path) -> None:
    row = {"case": "a", "direction": "given", "method": "mind"}
    append_row(tmp_path, row)
    append_row(tmp_path, {**row, "case": "b", "sd_log_jacobian": float("nan")})
    assert [found["case"] for found in read_rows(tmp_path)] == ["a", "b"]
    assert read_rows(tmp_path)[1]["sd_log_jacobian"] is None
    with pytest.raises(RegkitError, match="could not write"):
        append_row(tmp_path / "nowhere", row)


def test_fields_for_the_challenge(harness: Harness, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In voxels, along nibabel's axes; both formats; nothing replaced."""
    shape = (24, 20, 24)
    monkeypatch.setattr(learn2reg, "SHAPE", shape)
    imitate("l2r-abdomen", tmp_path / "data", 8, 0, shape)
    words = ["bench", "submit", "--data", tmp_path / "data", "-o", tmp_path / "fields", "--threads", 1]
    words += ["--method", harness.word("shift", 6, -4, 2)]
    run(*words)
    names = sorted(path.name for path in (tmp_path / "fields").iterdir())
    assert names == ["disp_0006_0006.npz", "disp_0007_0007.npz", "disp_0008_0008.npz"]
    with np.load(tmp_path / "fields" / names[0]) as archive:
        (field,) = archive.values()
    assert field.shape == (*shape, 3)
    assert field.dtype == np.float32
    assert (field == field[0, 0, 0]).all()
    assert "exists already" in error_of(*words)
    (tmp_path / "fields" / names[1]).unlink()
    run(*words, "--resume")
    assert harness.calls() == 4
    (tmp_path / "fields" / names[1]).unlink()
    other = [*words[:-1], harness.word("other", 0, 0, 0)]
    assert "made with other settings" in error_of(*other, "--resume")
    (tmp_path / "fields.json").unlink()
    assert "does not say" in error_of(*words, "--resume")
    assert "no such luck" in error_of(*words[:5], tmp_path / "more", "--method", harness.word("bad", "fail"))
    assert not any((tmp_path / "more").iterdir())
