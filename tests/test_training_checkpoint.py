"""Checkpoints: whole or not there, small enough to move, and refused when damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from regkit.core.errors import RegkitError
from regkit.training import checkpoint
from regkit.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint

STATE = {"step": 3, "config": {"width": 2, "offsets": [1, 2]}}


def _tensors(rng: np.random.Generator) -> dict[str, torch.Tensor]:
    odd = torch.from_numpy(rng.normal(size=(2, 3, 4, 5, 6))).float()
    return {
        "a.weight": odd.contiguous(memory_format=torch.channels_last_3d),
        "a.count": torch.tensor(7),
        "a.step": torch.tensor(2.5),
        "b": torch.from_numpy(rng.normal(size=5)).to(torch.bfloat16),
        "transposed": torch.from_numpy(rng.normal(size=(3, 4))).T,
    }


def _names(run: Path) -> list[str]:
    return sorted(path.name for path in run.iterdir())


def test_what_is_saved_is_loaded(tmp_path: Path, rng: np.random.Generator) -> None:
    tensors = _tensors(rng)
    path = save_checkpoint(tmp_path / "run" / "deeper", 3, tensors, STATE)
    found, state = load_checkpoint(path)
    assert state.items() >= STATE.items()
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert checkpoints(path.parent) == [path]


def test_the_last_two_are_kept_in_order_of_steps(tmp_path: Path) -> None:
    (tmp_path / "step-00000001").mkdir()  # not whole: no checkpoint
    for step in (8, 9, 10, 200, 1000):
        save_checkpoint(tmp_path, step, {"a": torch.ones(1) * step}, STATE)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000200", "step-00001000"]
    assert _names(tmp_path) == ["step-00000001", "step-00000200", "step-00001000"]
    assert checkpoints(tmp_path / "nowhere") == []


def test_a_step_can_be_saved_again(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        path = save_checkpoint(tmp_path, 5, {"a": torch.full((2,), value)}, STATE)
    assert load_checkpoint(path)[0]["a"].tolist() == [2.0, 2.0]
    assert _names(tmp_path) == ["step-00000005"]


def test_parts_are_small_and_hold_everything(tmp_path: Path) -> None:
    """No file over 16 MB, as long as no single tensor is."""
    tensors = {f"t{k}": torch.full((1_300_000 + 1000 * k,), float(k)) for k in range(7)}
    path = save_checkpoint(tmp_path, 1, tensors, STATE)
    parts = sorted(path.glob("part-*"))
    assert len(parts) == 4
    assert max(part.stat().st_size for part in parts) < 16_000_000
    found, _ = load_checkpoint(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_full_disk_leaves_the_earlier_checkpoint_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    before = save_checkpoint(tmp_path, 1, {"a": torch.ones(3)}, STATE)
    calls = []

    def full(tensors: dict[str, torch.Tensor], path: Path) -> None:
        calls.append(path)
        if len(calls) == fails_at:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save_file(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", full)
    monkeypatch.setattr(checkpoint, "_PART_BYTES", 10)
    with pytest.raises(RegkitError, match=r"step-00000002', earlier ones are kept: .*No space left"):
        save_checkpoint(tmp_path, 2, {"a": torch.ones(3), "b": torch.ones(3)}, STATE)
    assert len(calls) == fails_at
    assert _names(tmp_path) == ["step-00000001"]
    assert load_checkpoint(before)[0]["a"].tolist() == [1, 1, 1]


def test_a_kill_in_the_middle_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it leaves besides is no checkpoint, does not hinder the next one, and is gone after that."""
    before = save_checkpoint(tmp_path, 1, {"a": torch.ones(3)}, STATE)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, STATE)
    assert checkpoints(tmp_path) == [before]
    # The same process number is likely after a restart in a container.
    after = save_checkpoint(tmp_path, 2, {"a": torch.zeros(3)}, STATE)
    assert checkpoints(tmp_path) == [before, after]
    assert _names(tmp_path) == ["step-00000001", "step-00000002"]


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


DAMAGE: dict[str, Any] = {
    "no part": lambda path: (path / "part-00.safetensors").unlink(),
    "cut part": lambda path: _cut(path / "part-00.safetensors"),
    "empty part": lambda path: (path / "part-00.safetensors").write_bytes(b""),
    "no state": lambda path: (path / "state.json").unlink(),
    "cut state": lambda path: _cut(path / "state.json"),
    "other state": lambda path: (path / "state.json").write_text("[1]"),
    "no number of parts": lambda path: (path / "state.json").write_text('{"step": 3}'),
    "odd number of parts": lambda path: (path / "state.json").write_text('{"step": 3, "parts": "2"}'),
    "no text": lambda path: (path / "state.json").write_bytes(b"\xff\xfe\x00"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, rng: np.random.Generator, damage: str) -> None:
    path = save_checkpoint(tmp_path, 3, _tensors(rng), STATE)
    DAMAGE[damage](path)
    with pytest.raises(RegkitError, match=f"cannot read the checkpoint '{path}'"):
        load_checkpoint(path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(RegkitError, match="cannot write the checkpoint"):
        save_checkpoint(tmp_path / "run", 3, {"a": torch.ones(1)}, STATE)
