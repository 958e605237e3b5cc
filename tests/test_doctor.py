"""``regkit doctor``: what it finds on a sound installation, and on broken ones."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cli_cases import run

import regkit
from regkit import doctor, registration
from regkit.io.images import Volume
from regkit.ops import native

ROOT = Path(__file__).resolve().parents[1]


def test_a_sound_installation_passes_the_self_test() -> None:
    found = json.loads(run("doctor", "--json").stdout)
    assert found["healthy"] and found["problems"] == []
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["regkit"].startswith(regkit.__version__)
    assert found["threads"] == torch.get_num_threads()
    tested = found["self_test"]
    assert tested["before_mm"] > 30
    assert tested["error_mm"] < 5  # of voxels of 6 mm
    assert tested["folding_percent"] == 0
    assert tested["file_error_mm"] < 0.01
    assert tested["verdict"] == "PASS"


def test_without_the_self_test() -> None:
    result = run("doctor", "--no-test")
    facts = dict(re.findall(r"^(\S+) +(\S.*)$", result.stdout, re.MULTILINE))
    assert facts["SimpleITK"] == metadata.version("SimpleITK")
    assert facts["network"].endswith(".safetensors")
    assert "GiB" in facts["memory"]
    assert "self-test" not in facts
    assert result.stdout.splitlines()[-1].startswith("Nothing is missing that regkit needs")
    assert json.loads(run("doctor", "--no-test", "--json").stdout)["self_test"] is None


def _worse(**settings: Any) -> Callable[..., registration.Registration]:
    original = registration.register
    return lambda fixed, moving, **given: original(fixed, moving, **{**given, **settings})


def test_a_wrong_warp_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that is right but for the deformable stages."""
    monkeypatch.setattr(registration, "register", _worse(preset="linear"))
    result = run("doctor", code=1)
    assert re.search(r"^self-test +failed in", result.stdout, re.MULTILINE)
    *_, problem, conclusion = result.stdout.splitlines()
    assert re.fullmatch(
        r"problem: self-test: the warp is \d+\.\d mm off on average; at most 5 mm .*", problem
    )
    assert conclusion == "regkit does not work here."


def test_a_warp_of_noise_has_the_verdict_fail(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    original = registration.register

    def of_noise(fixed: Volume, moving: Volume, **given: Any) -> registration.Registration:
        noise = rng.normal(size=moving.grid.shape).astype(np.float32)
        return original(fixed, Volume(noise, moving.grid), **{**given, "preset": "linear", "init": "none"})

    monkeypatch.setattr(registration, "register", of_noise)
    assert "the verdict on the registration is FAIL" in doctor.self_test().problems


def test_a_file_that_holds_another_warp_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    save = regkit.Warp.save
    monkeypatch.setattr(
        regkit.Warp, "save", lambda warp, path: save(regkit.Warp(warp.field + 1, warp.grid), path)
    )
    (problem,) = doctor.self_test().problems
    assert problem == "SimpleITK applies the warp's file differently, up to 1.73 mm apart"


def test_a_registration_that_cannot_run_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel image is available\nfor this device")

    monkeypatch.setattr(registration, "register", broken)
    result = run("doctor", code=1)
    assert "problem: self-test: registration failed: RuntimeError: for this device" in result.stdout
    tested = json.loads(run("doctor", "--json", code=1).stdout)["self_test"]
    assert tested["error_mm"] is None and len(tested["problems"]) == 1


@pytest.mark.parametrize(
    ("compiler", "advice"), [("gcc 12", "install regkit again"), (None, "install a C compiler")]
)
def test_missing_kernels_are_a_warning(
    monkeypatch: pytest.MonkeyPatch, compiler: str | None, advice: str
) -> None:
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    monkeypatch.setattr(doctor, "_compiler", lambda: compiler)
    result = run("doctor", "--no-test")
    assert re.search(r"^kernels +missing: they were not compiled", result.stdout, re.MULTILINE)
    (warning,) = [line for line in result.stdout.splitlines() if line.startswith("warning: no compiled")]
    assert "several times longer" in warning and advice in warning


def test_kernels_of_another_version_are_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.why_missing():
        pytest.skip("the kernels were not compiled")
    assert native.instructions() in run("doctor", "--no-test").stdout
    monkeypatch.setattr(native, "DIGEST", "of another table")
    text = run("doctor", "--no-test").stdout
    assert re.search(r"^kernels +missing: they were compiled for another version", text, re.MULTILINE)
    assert "warning: no compiled kernels" in text


def test_a_gpu_without_triton_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = SimpleNamespace(name="Some GPU", total_memory=8 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: gpu)
    monkeypatch.setattr(doctor, "find_spec", lambda name: None)
    result = run("doctor", "--no-test")
    assert re.search(r"^device +cuda: Some GPU, 8.0 GiB$", result.stdout, re.MULTILINE)
    assert "pip install triton" in result.stdout


def _versions(monkeypatch: pytest.MonkeyPatch, **changed: str | None) -> None:
    """Let packages have other versions, or be missing."""
    real = metadata.version

    def version(name: str) -> str:
        if name not in changed:
            return real(name)
        if (own := changed[name]) is None:
            raise metadata.PackageNotFoundError(name)
        return own

    monkeypatch.setattr(metadata, "version", version)


def test_what_is_needed_and_missing_or_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, nibabel=None, scipy="1.2")
    result = run("doctor", code=1)
    assert re.search(r"^nibabel +missing$", result.stdout, re.MULTILINE)
    assert "problem: nibabel is missing: pip install 'nibabel>=" in result.stdout
    assert "problem: scipy 1.2 is not supported: pip install 'scipy>=" in result.stdout
    assert "self-test" not in result.stdout


def test_whatever_the_project_needs_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the pyproject.toml of this checkout, which the installed metadata may be older than."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    monkeypatch.setattr(metadata, "requires", lambda name: project["dependencies"])
    found = doctor.examine(test=False)
    assert found.problems == ()
    assert len(found.versions) >= len(project["dependencies"])


def test_a_torch_that_does_not_load_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        if name == "torch":
            raise OSError("libcudart.so.12: cannot open shared object file")

    monkeypatch.setattr(doctor, "import_module", broken)
    result = run("doctor", code=1)
    (problem,) = [line for line in result.stdout.splitlines() if line.startswith("problem: ")]
    assert problem.startswith(f"problem: torch {torch.__version__} cannot be imported (libcudart.so.12")
    assert "pip install --force-reinstall 'torch>=" in problem


def test_missing_extras_say_what_they_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    _versions(monkeypatch, pydicom=None, monai="0.1")
    found = doctor.examine(test=False)
    extras = {extra.name: extra for extra in found.extras}
    assert found.healthy
    assert extras["dicom"].packages["pydicom"] is None and not extras["dicom"].complete
    assert extras["segmentation"].too_old == ("monai",) and not extras["segmentation"].complete
    text = run("doctor", "--no-test").stdout
    assert re.search(r"^\[dicom\] +missing: pydicom$", text, re.MULTILINE)
    assert doctor.WITHOUT["dicom"] in text
    assert "(pip install --upgrade monai)" in text


def test_every_extra_has_its_cost() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(doctor.WITHOUT) == set(project["optional-dependencies"])


def test_the_citation_is_of_this_version() -> None:
    lines = (ROOT / "CITATION.cff").read_text(encoding="utf-8").splitlines()
    assert f"version: {regkit.__version__}" in lines
