"""The kinds of errors, and that an error said again about a file keeps its kind and its cause."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import regkit
from regkit.core.geometry import Grid
from regkit.io.formats import read_warp
from regkit.runtime.device import torch_device
from regkit.runtime.memory import check_fits_memory
from regkit.warp import Warp


def test_each_kind_is_an_error_that_users_can_mend() -> None:
    kinds = (regkit.InputError, regkit.FormatError, regkit.MemoryLimitError, regkit.UsageError)
    assert all(issubclass(kind, regkit.RegkitError) for kind in kinds)
    assert not any(issubclass(one, other) for one in kinds for other in kinds if one is not other)


def test_what_raises_which_kind(tmp_path: Path) -> None:
    with pytest.raises(regkit.InputError, match="spacing"):
        Grid((2, 2, 2), spacing=(1.0, 0.0, 1.0))
    with pytest.raises(regkit.MemoryLimitError, match="GiB"):
        check_fits_memory(10**15, "the image")
    with pytest.raises(regkit.UsageError, match="no device"):
        torch_device("abacus")
    with pytest.raises(regkit.UsageError, match="unknown"):
        Warp(np.zeros((2, 2, 2, 3), np.float32), Grid((2, 2, 2))).save(tmp_path / "warp.nii", "sketch")


def test_an_error_about_a_file_keeps_its_kind_and_its_cause(tmp_path: Path) -> None:
    path = tmp_path / "warp.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(regkit.FormatError, match=r"warp\.npz: cannot be read") as caught:
        read_warp(path, Grid((2, 2, 2)), Grid((2, 2, 2)))
    assert isinstance(caught.value.__cause__, regkit.FormatError)
