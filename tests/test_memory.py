"""Memory is told before it is taken, and kept below a cap by a coarser grid, or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_cases import run, write_phantom

import regkit
from regkit.core.errors import RegkitError
from regkit.core.settings import named_settings
from regkit.runtime import memory
from regkit.runtime.memory import GB, fitting, registration_bytes
from regkit.synthesis.phantom import torso

DEFAULT = named_settings("default")
LARGE = 16_777_216


def test_what_was_measured_is_foretold() -> None:
    # Voxels of both images, voxels of the working grid, what is asked for, and MB beyond the libraries, of
    # benchmarks/memory.py; a model that foretells less than nine tenths is no help.
    for voxels, working, asked, measured in (
        (96**3, 96**3, {}, 221),
        (184**3, 184**3, {}, 1225),
        (LARGE, 1_000_000, {}, 1061),
        (LARGE, 1_000_000, {"labels": True}, 1348),
        (LARGE, 1_000_000, {"outputs": ["moved"]}, 1295),
        (LARGE, 1_000_000, {"outputs": ["h5"]}, 1463),
        (LARGE, 1_000_000, {"outputs": ["inverse"]}, 1118),
        (32_768_000, 1_000_000, {}, 1925),
    ):
        foretold = registration_bytes(voxels, voxels, working, **asked) / 1e6
        assert 0.95 * measured < foretold < 1.25 * measured, (voxels, working, asked, foretold)


def test_a_cap_makes_the_working_grid_coarser() -> None:
    voxels = 8_000_000
    settings, needed = fitting(DEFAULT, voxels, voxels, 6_000_000, 0.3 * GB, None)
    assert settings == DEFAULT and needed == 0.3 * GB + registration_bytes(voxels, voxels, 6_000_000)
    with pytest.warns(
        UserWarning, match=r"in place of 6 million voxels, to stay below 1\.2 GB: .* less fine"
    ):
        settings, capped = fitting(DEFAULT, voxels, voxels, 6_000_000, 0.3 * GB, 1.2 * GB)
    assert 1_000_000 < settings.max_voxels < 6_000_000 and capped <= 1.2 * GB * 1.001
    with pytest.raises(RegkitError, match=r"needs 1\.5\d GB .* may take 0\.5 GB: --memory 0\.\d+ does"):
        fitting(DEFAULT, voxels, voxels, 6_000_000, 0.3 * GB, 0.5 * GB)


def test_without_a_cap_the_machine_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda: 0.4 * GB)
    monkeypatch.setattr(memory, "resident_memory", lambda: 0.3 * GB)
    with pytest.raises(RegkitError, match=r"needs 1\.5\d GB of memory, and 0\.7 GB are left"):
        fitting(DEFAULT, 8_000_000, 8_000_000, 6_000_000, 0.3 * GB, None)


def test_a_registration_foretells_its_memory_and_keeps_to_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    phantom = torso(0, 8.0)
    words = {"preset": "fast", "init": "none", "threads": 1, "features": "mind"}
    result = regkit.register(phantom.fixed, phantom.moving, **words)
    assert list(result.memory)[-2:] == ["foretold", "peak"] and result.memory["foretold"] > 50
    # As if nothing but the working grid took memory, 100 KB a voxel of it.
    monkeypatch.setattr(memory, "registration_bytes", lambda fixed, moving, working, **asked: 1e5 * working)
    for name, value in (
        ("_KEPT", 0),
        ("_FIXED_PART", 0),
        ("_PER_WORKING_VOXEL", 1e5),
        ("_MIN_VOXELS", 100),
    ):
        monkeypatch.setattr(memory, name, value)
    monkeypatch.setattr("regkit.registration.resident_memory", lambda: 0.0)
    with pytest.warns(UserWarning, match="to stay below 2 GB"):
        coarse = regkit.register(phantom.fixed, phantom.moving, memory=2.0, **words)
    assert np.prod(coarse.settings["working_size"]) < 1.2 * 20_000
    assert coarse.settings["working_spacing_mm"] > result.settings["working_spacing_mm"]


def test_files_are_refused_before_they_are_read_beyond_the_cap(tmp_path: Path) -> None:
    files = write_phantom(tmp_path)
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "-q")
    message = run(*words, "--memory", "0.1", code=1).stderr
    assert message.startswith("error: ") and "memory" in message and len(message.splitlines()) == 1
    assert not (tmp_path / "warp.nii.gz").exists()


def test_the_command_says_what_it_will_need(tmp_path: Path) -> None:
    files = write_phantom(tmp_path)
    words = ("register", files.fixed, files.moving, "-o", tmp_path / "warp.nii.gz", "--init", "none")
    shown = run(*words, "--preset", "linear", "--memory", "8")
    assert "needs about" in shown.stderr and "MB foretold" in shown.stdout
