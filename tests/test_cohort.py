"""``regkit batch`` from end to end: goes on where it was stopped, tells failures, and loses nothing."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from cli_cases import run
from cohort_cases import LINEAR, NAMES, leftovers, write_table

import regkit
from regkit.cohort.html_page import page_of
from regkit.cohort.pair_job import PairJob, key_of, register_pair
from regkit.cohort.pairs import Pair, read_pairs_table
from regkit.cohort.result_rows import read_row, row_path, write_row
from regkit.cohort.summary import measures, table_of
from regkit.core.errors import RegkitError
from regkit.io.atomic import atomic_path, together


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(tmp_path_factory.mktemp("images"))


def _job(table: Path, folder: Path, name: str = "ct", **changes: Any) -> PairJob:
    pair = next(pair for pair in read_pairs_table(table)[0] if pair.name == name)
    (folder / ".regkit").mkdir(exist_ok=True)
    settings = {"preset": "linear", "features": "mind", "seed": 0}
    return replace(PairJob(pair, folder, ("warp",), settings, threads=1), **changes)


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_pair_is_done_once_and_again_where_anything_changed(table: Path, tmp_path: Path) -> None:
    job = _job(table, tmp_path)
    row = register_pair(job)
    assert row["status"] == "ok"
    assert row["verdict"]["level"] in ("PASS", "WARN")
    assert "kept" not in row
    assert read_row(tmp_path, "ct") == row
    names = [".regkit/ct.jpg", ".regkit/ct.json", "ct/warp.nii.gz", "ct/warp.nii.gz.json"]
    assert _files(tmp_path) == names
    warp = tmp_path / "ct/warp.nii.gz"
    written = warp.stat().st_mtime_ns

    again = register_pair(job)
    assert again.pop("kept")
    assert again["key"] == row["key"]
    assert warp.stat().st_mtime_ns == written

    # Another output is wanted, which is not there.
    more = register_pair(replace(job, outputs=("warp", "linear")))
    assert "kept" not in more
    assert sorted([*names, "ct/linear.tfm"]) == _files(tmp_path)

    # Other settings; the output of before that is not asked for is none of theirs.
    changed = register_pair(replace(job, settings=job.settings | {"seed": 1}))
    assert "kept" not in changed
    assert changed["key"] != row["key"]
    assert _files(tmp_path) == names

    # A result that was removed.
    warp.unlink()
    assert "kept" not in register_pair(replace(job, settings=job.settings | {"seed": 1}))
    assert warp.exists()


def test_the_key_is_of_contents_not_of_names(table: Path, tmp_path: Path) -> None:
    job = _job(table, tmp_path)
    copy = tmp_path / "copy.nii.gz"
    copy.write_bytes(job.pair.fixed.read_bytes())
    assert key_of(job) == key_of(replace(job, pair=replace(job.pair, fixed=copy)))
    copy.write_bytes(table.with_name("fixed.nii.gz").read_bytes())
    assert key_of(job) != key_of(replace(job, pair=replace(job.pair, fixed=copy)))
    start = tmp_path / "start.tfm"
    start.write_text("one")
    from_file = replace(job, pair=replace(job.pair, start=str(start)))
    before = key_of(from_file)
    start.write_text("two")
    assert key_of(from_file) != before
    moved = tmp_path / "other.tfm"
    start.rename(moved)
    other = replace(job, pair=replace(job.pair, start=str(moved)))
    moved.write_text("one")
    assert key_of(other) == before


def test_what_fails_is_a_row_and_leaves_no_result_of_before(table: Path, tmp_path: Path) -> None:
    image = tmp_path / "image.nii.gz"
    image.write_bytes(table.with_name("moving.nii.gz").read_bytes())
    folder = tmp_path / "out"
    folder.mkdir()
    job = _job(table, folder)
    job = replace(job, pair=replace(job.pair, moving=image))
    assert register_pair(job)["status"] == "ok"
    image.write_bytes(b"no image")
    row = register_pair(job)
    assert row["status"] == "failed"
    assert "moving image" in row["error"]
    assert "traceback" not in row
    assert read_row(folder, "ct") == row
    assert [name for name in _files(folder) if name.startswith("ct/")] == []
    assert leftovers(folder) == []
    assert "is not there on" in register_pair(replace(job, folder=tmp_path / "gone"))["error"]
    assert "sent this pair to a worker" in register_pair(replace(job, regkit="0.0"))["error"]


def test_a_bug_is_a_row_with_its_traceback(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object, **settings: object) -> None:
        raise ZeroDivisionError("no")

    monkeypatch.setattr("regkit.registration.register", broken)
    row = register_pair(_job(table, tmp_path))
    assert row["error"] == "ZeroDivisionError: no"
    assert "in broken" in row["traceback"]
    assert read_row(tmp_path, "ct")["status"] == "failed"


def test_a_killed_worker_leaves_a_pair_that_is_begun_again(table: Path, tmp_path: Path) -> None:
    """As one that was killed while it wrote: some results have their names, and the row says "begun"."""
    job = _job(table, tmp_path)
    write_row(tmp_path, {"pair": "ct", "status": "begun"})
    (tmp_path / "ct").mkdir()
    (tmp_path / "ct/warp.nii.gz").write_bytes(b"half")
    (tmp_path / "ct" / f".regkit-{_host()}-999999999-0123456789ab.nii.gz").touch()
    assert register_pair(job)["status"] == "ok"
    assert leftovers(tmp_path) == []
    assert sitk.ReadImage(str(tmp_path / "ct/warp.nii.gz")).GetNumberOfComponentsPerPixel() == 3


def _host() -> str:
    from regkit.io import atomic

    return atomic._HOST


def test_files_of_blocks_within_each_other_appear_together(tmp_path: Path) -> None:
    with pytest.raises(RegkitError, match="no"), together():
        with together(), atomic_path(tmp_path / "one") as temporary:
            temporary.touch()
        assert not (tmp_path / "one").exists()
        raise RegkitError("no")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def cohort(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str], Path]:
    """A cohort of which one pair fails, what its run printed, and its table."""
    folder = tmp_path_factory.mktemp("cohort")
    broken = folder / "broken.csv"
    (folder / "broken.nii.gz").write_bytes(b"no image")
    rows = (
        table.read_text()
        .replace(",fixed", f",{table.parent}/fixed")
        .replace(",moving", f",{table.parent}/moving")
    )
    rows = rows.replace(",landmarks.csv", f",{table.parent}/landmarks.csv").splitlines()
    rows[0] = table.read_text().splitlines()[0]
    broken.write_text("\n".join([*rows, "bad,broken.nii.gz,broken.nii.gz,,,,"]))
    result = run("batch", broken, "-o", folder / "out", "--workers", 2, *LINEAR, "--write", "report", code=1)
    return folder / "out", [*result.stderr.splitlines(), *result.stdout.splitlines()], broken


def test_every_pair_is_told_in_a_line(cohort: tuple[Path, list[str], Path]) -> None:
    folder, lines, _ = cohort
    told = {match[1]: line for line in lines if (match := re.match(r"\[\d/4\] (\w+)  ", line))}
    assert set(told) == {*NAMES, "bad"}
    assert re.search(r"PASS, Dice 0.0\d+ -> 0.\d+, TRE \d+.\d -> \d+.\d mm, \d+.\d s$", told["mr"])
    assert "failed: " in told["bad"]
    assert lines[-3].startswith("pairs")
    assert "1 failed" in lines[-3]
    assert lines[-2].endswith(str(folder / "summary.csv"))
    assert leftovers(folder) == []


def test_the_summary_has_every_pair_and_measure(cohort: tuple[Path, list[str], Path]) -> None:
    folder, _, _ = cohort
    with (folder / "summary.csv").open(newline="") as stream:
        rows = {row["pair"]: row for row in csv.DictReader(stream)}
    assert list(rows) == [*NAMES, "bad"]
    record = json.loads((folder / "mr/warp.nii.gz.json").read_text())
    assert set(record["outputs"]) == {"warp", "report"}
    assert set(record["inputs"]) == {"fixed", "moving", "fixed_labels", "moving_labels", "landmarks"}
    mr = rows["mr"]
    assert float(mr["mean_dice"]) > float(mr["mean_dice_before"])
    assert float(mr["tre_mm"]) < float(mr["tre_before_mm"])
    assert float(mr["gate_overlap"]) > 50
    assert mr["warp"] == "mr/warp.nii.gz"
    assert rows["ct"]["mean_dice"] == ""
    assert rows["bad"]["status"] == "failed"
    assert rows["bad"]["verdict"] == ""
    assert "fixed image" in rows["bad"]["error"]


def test_the_landmarks_are_measured_as_evaluate_does(
    cohort: tuple[Path, list[str], Path], table: Path
) -> None:
    folder, _, _ = cohort
    result = run(
        "evaluate",
        "--warp",
        folder / "mr/warp.nii.gz",
        "--landmarks",
        table.with_name("landmarks.csv"),
        "--json",
    )
    theirs = json.loads(result.stdout)["landmarks"]
    ours = read_row(folder, "mr")["landmarks"]
    assert ours["tre_mm"]["mean"] == pytest.approx(theirs["tre_mm"]["mean"], abs=1e-3)


def test_the_report_shows_outliers_first(cohort: tuple[Path, list[str], Path]) -> None:
    folder, _, _ = cohort
    page = (folder / "report.html").read_text(encoding="utf-8")
    order = re.findall(r'<tr id="(\w+)">', page)
    assert order[0] == "bad"
    assert set(order) == {*NAMES, "bad"}
    assert page.count('src="data:image/jpeg;base64,') == len(NAMES)
    assert 'href="mr/warp.nii.gz"' in page
    assert 'href="mr/report.html"' in page
    assert "<script" not in page
    assert re.findall(r'(?:src|href)="(?!data:|\w+/[\w.]+")', page) == []
    assert "<title>4 pairs: " in page


def test_the_same_command_does_nothing_but_what_failed(cohort: tuple[Path, list[str], Path]) -> None:
    folder, _, table = cohort
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/warp.nii.gz")}
    words = ("batch", table, "-o", folder, "--workers", 1, *LINEAR, "--write", "report")
    result = run(*words, "--json", code=1)
    rows = {row["pair"]: row for row in json.loads(result.stdout)["rows"]}
    assert rows["bad"]["status"] == "failed"
    assert result.stderr.count("done before") == len(NAMES)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/warp.nii.gz")} == before


def test_parts_do_all_pairs_once(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("regkit.cohort.run.in_processes", lambda work, jobs, *_: (work(job) for job in jobs))
    out = tmp_path / "out"
    pairs, _ = read_pairs_table(table)
    seen: list[str] = []
    settings: dict[str, Any] = {"preset": "linear", "features": "mind"}
    first = regkit.batch(table, out, part=(1, 2), workers=1, on_row=_names_to(seen), **settings)
    assert seen == ["mr", "back"] or seen == ["back", "mr"]
    assert [row["status"] for row in first.rows] == ["ok", "pending", "ok"]
    assert first.count("pending") == 1
    second = regkit.batch(pairs, out, part=(2, 2), workers=1, on_row=_names_to(seen), **settings)
    assert sorted(seen) == sorted(NAMES)
    assert [row["status"] for row in second.rows] == ["ok"] * 3
    assert second.summary.read_text().count("\n") == 4


def _names_to(seen: list[str]) -> Any:
    return lambda row, done, total: seen.append(row["pair"])


def test_what_stopped_processes_had_begun_to_write_is_removed(table: Path, tmp_path: Path) -> None:
    """Ctrl-C kills the processes, perhaps while they write."""
    out = tmp_path / "out"
    half = f".regkit-{_host()}-999999999-0123456789ab.nii.gz"

    def stop(row: dict[str, Any], done: int, total: int) -> None:
        write_row(out, {"pair": "back", "status": "begun"})
        (out / "back").mkdir(exist_ok=True)
        (out / "back" / half).touch()
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("regkit.cohort.run.in_processes", lambda work, jobs, *_: (work(job) for job in jobs))
        with pytest.raises(KeyboardInterrupt):
            regkit.batch(table, out, workers=1, on_row=stop, preset="linear", features="mind")
    assert leftovers(out) == []


def test_a_sigterm_leaves_nothing_half_written(table: Path, tmp_path: Path) -> None:
    """As Slurm sends it when the time is up: exit code 130, and the next run goes on."""
    out = tmp_path / "out"
    words = [sys.executable, "-m", "regkit", "batch", str(table), "-o", str(out), "--workers", "1", *LINEAR]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as program:
        for _ in range(1200):
            if any(read_row(out, name)["status"] == "begun" for name in NAMES):
                break
            time.sleep(0.05)
        program.send_signal(signal.SIGTERM)
        said = program.communicate()[1]
    assert program.returncode == 130, said
    assert said.splitlines()[-1].startswith("error: interrupted")
    assert leftovers(out) == []
    for name in NAMES:
        there = (out / name / "warp.nii.gz").exists()
        assert there == (read_row(out, name)["status"] == "ok")


def test_a_cluster_whose_worker_is_killed_loses_nothing(table: Path, tmp_path: Path) -> None:
    """A scheduler and two worker processes, one of which is killed while both have a pair."""
    distributed = pytest.importorskip("distributed")
    pairs = [replace(pair, name=f"{pair.name}{k}") for k in range(2) for pair in read_pairs_table(table)[0]]
    settings: dict[str, Any] = {"preset": "linear", "features": "mind", "threads": 1}
    out, killed = tmp_path / "out", []
    lines: list[dict[str, Any]] = []
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, host="127.0.0.1"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        processes = list(client.run(os.getpid).values())

        def kill_one() -> None:
            for _ in range(2400):
                if sum(read_row(out, pair.name)["status"] == "begun" for pair in pairs) == 2:
                    os.kill(processes[0], signal.SIGKILL)
                    killed.append(processes[0])
                    return
                time.sleep(0.05)

        killer = Thread(target=kill_one)
        killer.start()
        cohort = regkit.batch(
            pairs, out, client=client, on_row=lambda row, done, total: lines.append(row), **settings
        )
        killer.join()
    assert killed
    assert sorted(row["pair"] for row in lines) == sorted(pair.name for pair in pairs)
    assert [row["status"] for row in cohort.rows] == ["ok"] * len(pairs)
    assert leftovers(out) == []
    here = tmp_path / "here"
    here.mkdir()
    for name in NAMES:
        alone = register_pair(_job(table, here, name))
        for k in range(2):
            row = read_row(out, f"{name}{k}")
            assert row["metrics"] == alone["metrics"]
            fields = [
                sitk.GetArrayFromImage(sitk.ReadImage(str(place / "warp.nii.gz")))
                for place in (out / f"{name}{k}", here / name)
            ]
            assert np.array_equal(*fields)
    with cohort.summary.open(newline="") as stream:
        assert [row["pair"] for row in csv.DictReader(stream)] == [pair.name for pair in pairs]


def test_no_scheduler_is_one_line(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("distributed")
    monkeypatch.setattr("regkit.cohort.cluster._SECONDS", 0.3)
    words = ("batch", table, "-o", tmp_path / "out", "--scheduler", "tcp://127.0.0.1:9")
    result = run(*words, code=1)
    assert "no scheduler answers at 'tcp://127.0.0.1:9'" in result.stderr
    assert not (tmp_path / "out").exists()
    run(*words, "--workers", 2, code=2)


def _made_up(name: str, doubt: float, level: str = "PASS", **more: Any) -> dict[str, Any]:
    gate = {"name": "doubt", "value": doubt, "unit": "cells", "warn": 1.25, "fail": None, "above": True}
    gates = [gate | {"level": level, "says": "What it means."}]
    metrics = {"folding_percent": 0.0, "sd_log_jacobian": 0.1, **more}
    return {
        "pair": name, "status": "ok", "verdict": {"level": level, "gates": gates}, "metrics": metrics,
        "seconds": {"total": 1.0}, "outputs": {"warp": f"{name}/warp.nii.gz"},
    }  # fmt: skip


def test_a_pair_that_passes_and_is_odd_in_its_cohort_comes_before_the_others(tmp_path: Path) -> None:
    rows = [_made_up(f"p{k}", 0.5 + 0.01 * k) for k in range(12)]
    rows[7] = _made_up("odd<b>", 1.2)
    rows[3] = _made_up("warned", 1.4, "WARN")
    rows.append({"pair": "later", "status": "pending"})
    page = page_of(tmp_path, rows, [measures(row) for row in rows])
    order = re.findall(r'<tr id="([^"]+)">', page)
    assert order[:3] == ["warned", "odd&lt;b&gt;", "p11"]
    assert order[-1] == "later"
    # 0.5 to 0.61 around a median of 0.56: by hand, in robust standard deviations.
    assert len(re.findall(r"deviations worse than the cohort", page)) == 2
    assert "1 pending" in page
    table = list(csv.DictReader(table_of(rows, [measures(row) for row in rows]).splitlines()))
    assert [row["gate_doubt"] for row in table][:4] == ["0.5", "0.51", "0.52", "1.4"]
    assert table[-1]["status"] == "pending"


def test_memory_limits_the_processes(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from regkit.cohort import run as cohort_run

    pairs, _ = read_pairs_table(table)
    monkeypatch.setattr(cohort_run, "usable_cores", lambda: 8)
    monkeypatch.setattr(cohort_run, "available_memory", lambda: 64e9)
    settings = {"device": "cpu"}
    assert cohort_run._shared_out(pairs, settings, None, None, None) == (3, 2)
    assert cohort_run._shared_out(pairs, settings, None, None, 1.3) == (2, 4)
    assert cohort_run._shared_out(pairs, settings, None, None, 0.1) == (1, 8)
    assert cohort_run._shared_out(pairs, settings, 5, None, 0.1) == (5, 1)
    assert cohort_run._shared_out(pairs, settings, 5, 3, 0.1) == (5, 3)
    large = tmp_path / "large.nii"
    sitk.WriteImage(sitk.Image((100, 100, 100), sitk.sitkUInt8), str(large))
    monkeypatch.setattr(cohort_run, "available_memory", lambda: 1.6e9)
    assert cohort_run._shared_out(pairs, settings, None, None, None) == (2, 4)
    assert cohort_run._shared_out([Pair("large", large, large)] * 8, settings, None, None, None) == (1, 8)


def test_a_row_that_is_none_is_as_if_it_were_not_there(tmp_path: Path) -> None:
    row_path(tmp_path, "x").parent.mkdir()
    for text in ("", "[]", '{"pair": "y"}'):
        row_path(tmp_path, "x").write_text(text)
        assert read_row(tmp_path, "x") == {"pair": "x", "status": "pending"}
