"""Checkpoints of a training run: folders of safetensors that are complete or not there at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from regkit.core.errors import RegkitError

_PART_BYTES = 15_000_000  # small enough for what moves files of at most 16 MB
_STATE = "state.json"
_KEPT = 2


def save_checkpoint(run: Path, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> Path:
    """Write ``run/step-N`` and delete all but the last two such folders.

    The folder is written under another name and renamed when it is whole: a full disk, a crash or a kill
    leaves the checkpoints that were there.

    Raises:
        RegkitError: if it cannot be written.
    """
    final, temporary = run / f"step-{step:08d}", run / f".step-{step:08d}.{os.getpid()}"
    for left in run.glob(".step-*"):  # by a process that was killed as it wrote
        shutil.rmtree(left, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        parts = _parts(tensors)
        for number, part in enumerate(parts):
            save_file(part, temporary / f"part-{number:02d}.safetensors")
        written = json.dumps({**state, "parts": len(parts)}, indent=1)
        (temporary / _STATE).write_text(written, encoding="utf-8")
        for file in temporary.iterdir():
            with file.open("rb+") as stream:
                os.fsync(stream.fileno())
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise RegkitError(f"cannot write the checkpoint '{final}', earlier ones are kept: {error}") from error
    for old in checkpoints(run)[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def checkpoints(run: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    return sorted(path for path in run.glob("step-*") if (path / _STATE).is_file())


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What :func:`save_checkpoint` was given.

    Raises:
        RegkitError: if a file is missing or damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    try:
        state = json.loads((path / _STATE).read_text(encoding="utf-8"))
        for number in range(state["parts"]):
            with safe_open(path / f"part-{number:02d}.safetensors", framework="pt") as part:
                tensors |= {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118, it is no dict
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise RegkitError(
            f"cannot read the checkpoint '{path}': {error}; delete it to go on from the one before"
        ) from error
    return tensors, state


def grouped(**groups: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of several kinds as :func:`save_checkpoint` takes them: under "KIND.NAME"."""
    return {f"{kind}.{name}": tensor for kind, group in groups.items() for name, tensor in group.items()}


def ungrouped(tensors: Mapping[str, torch.Tensor], *kinds: str) -> list[dict[str, torch.Tensor]]:
    """The tensors of each kind by their names, as they were given to :func:`grouped`."""
    groups: dict[str, dict[str, torch.Tensor]] = {kind: {} for kind in kinds}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        groups[kind][rest] = tensor
    return list(groups.values())


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """What an optimiser remembers of each parameter, under "NUMBER.NAME"."""
    state = optimiser.state_dict()["state"]
    return {f"{number}.{name}": t for number, values in state.items() for name, t in values.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Give an optimiser what :func:`optimiser_tensors` found in one of the same parameters."""
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        number, _, rest = name.partition(".")
        moments.setdefault(int(number), {})[rest] = tensor
    optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    for parameter, values in optimiser.state.items():
        for name, moment in values.items():
            if moment.shape == parameter.shape:  # in the memory format that it had
                values[name] = torch.empty_like(parameter).copy_(moment)


def check_same_run(
    path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any], apart: tuple[str, ...] = ()
) -> None:
    """Check that a checkpoint is of a run of the same configuration.

    Args:
        apart: how the names of settings begin that may differ.

    Raises:
        RegkitError: naming what differs.
    """
    then, now = _flat(theirs), _flat(ours)
    differs = sorted(
        k for k in now.keys() | then.keys() if then.get(k) != now.get(k) and not k.startswith(apart)
    )
    if differs:
        raise RegkitError(
            f"'{path}' is of another configuration: {', '.join(differs)} differ; "
            "give the run's own, or another output folder"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings under dotted names."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return out


def _parts(tensors: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """The tensors in order, cut into parts of at most ``_PART_BYTES`` (a larger one alone)."""
    parts: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if parts[-1] and size + tensor.nbytes > _PART_BYTES:
            parts.append({})
            size = 0
        parts[-1][name] = tensor
        size += tensor.nbytes
    return parts
