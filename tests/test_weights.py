"""Weights in files: what comes back, and what is refused."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from regkit.core.errors import RegkitError
from regkit.features import weights
from regkit.features.unet import Architecture, UNet
from regkit.features.weights import bundled_weights, load_network, save_weights
from regkit.io.provenance import sha256

SMALL = Architecture(out_channels=5, width=4, levels=2, stride=2, padding="replicate")


def _same(one: nn.Module, other: nn.Module) -> bool:
    entries, others = one.state_dict(), other.state_dict()
    return list(entries) == list(others) and all(torch.equal(entries[name], others[name]) for name in entries)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.safetensors"
    save_weights(path, UNet(SMALL), {"data": "none"})
    return path


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    """A state dict with the entries of the published network."""
    return UNet().state_dict()


def test_a_network_comes_back(tmp_path: Path) -> None:
    network = UNet(SMALL).to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    path = tmp_path / "net.safetensors"
    save_weights(path, network, {"data": "phantoms", "steps": "10"})
    found, provenance = load_network(path)
    assert found.architecture == SMALL
    assert not found.training
    assert _same(found, network)
    assert provenance == {"data": "phantoms", "steps": "10"}
    save_weights(path, found, provenance | {"steps": "20"})  # replaces the file
    assert load_network(path)[1]["steps"] == "20"
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]
    assert len(sha256(path)) == 64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_single(tmp_path: Path, dtype: torch.dtype) -> None:
    network = UNet(SMALL)
    path = tmp_path / "half.safetensors"
    save_weights(path, network.to(dtype), {})
    found, _ = load_network(path)
    assert {entry.dtype for entry in found.state_dict().values()} == {torch.float32, torch.int64}
    assert _same(found, network.float())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda entries: entries,
        lambda entries: {"state_dict": entries, "epoch": 3},
        lambda entries: {"model": {f"module.{name}": entry for name, entry in entries.items()}},
        lambda entries: {"network": {f"_orig_mod.{name}": entry for name, entry in entries.items()}},
        lambda entries: {
            "model_state_dict": {f"module._orig_mod.{name}": entry for name, entry in entries.items()}
        },
    ],
    ids=["bare", "state_dict", "model", "network", "model_state_dict"],
)
def test_published_checkpoints(
    tmp_path: Path, published: dict[str, torch.Tensor], wrap: Callable[[Any], Any]
) -> None:
    path = tmp_path / "anatomix.pth"
    torch.save(wrap(published), path)
    found, provenance = load_network(path)
    assert found.architecture == Architecture()
    assert all(torch.equal(entry, published[name]) for name, entry in found.state_dict().items())
    assert provenance == {}


class _Command:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_with_code_is_refused_and_not_run(
    tmp_path: Path, published: dict[str, torch.Tensor], write: Callable[[Any, Path], Any]
) -> None:
    path, trace = tmp_path / "trap.pth", tmp_path / "run"
    write({"state_dict": published, "hook": _Command(trace)}, path)
    with pytest.raises(RegkitError, match=r"refused to read weights .*trap\.pth.* could run code"):
        load_network(path)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(
    tmp_path: Path, file: Path, published: dict[str, torch.Tensor], suffix: str, share: float
) -> None:
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".pth":
        torch.save(published, whole)
    else:
        whole = file
    data = whole.read_bytes()
    part = tmp_path / f"part{suffix}"
    part.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RegkitError, match=r"part\S+'.* damaged"):
        load_network(part)


def test_files_of_other_kinds(tmp_path: Path, file: Path) -> None:
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("These are not weights, but a few words about them.")
        with pytest.raises(RegkitError, match=name):
            load_network(tmp_path / name)
    with pytest.raises(RegkitError, match="no such file"):
        load_network(tmp_path / "nowhere.safetensors")
    with pytest.raises(RegkitError, match=r"must end in \.safetensors or \.pth"):
        load_network(file.rename(tmp_path / "small.onnx"))
    torch.save([1, 2, 3], tmp_path / "list.pth")
    with pytest.raises(RegkitError, match="no state dict"):
        load_network(tmp_path / "list.pth")
    save_file({"model.0.weight": torch.zeros(2)}, tmp_path / "theirs.safetensors")
    with pytest.raises(RegkitError, match="not of the format"):
        load_network(tmp_path / "theirs.safetensors")


@pytest.mark.parametrize("text", ["{", "[]", '{"depth": 3}', '{"width": -1}', None])
def test_an_architecture_that_cannot_be_used(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "odd.safetensors"
    metadata = {"format": "regkit-unet/1"} | ({} if text is None else {"architecture": text})
    save_file({"model.0.weight": torch.zeros(2)}, path, metadata)
    with pytest.raises(RegkitError, match=r"odd\.safetensors': its architecture is unusable"):
        load_network(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entries: entries.pop("model.13.weight"), "'model.13.weight' is missing"),
        (
            lambda entries: entries.update({"model.66.weight": torch.zeros(3)}),
            "'model.66.weight' is not part",
        ),
        (
            lambda entries: entries.update({"model.3.weight": torch.zeros(20, 20, 3, 3, 3)}),
            r"'model.3.weight' has the shape \(20, 20, 3, 3, 3\) and not \(16, 16, 3, 3, 3\)",
        ),
        (lambda entries: entries.update({"model.4.bias": "text"}), "'model.4.bias' is missing"),
    ],
)
def test_another_architecture_is_told_by_its_first_entry(
    tmp_path: Path, published: dict[str, torch.Tensor], change: Callable[[Any], Any], message: str
) -> None:
    entries: dict[str, Any] = dict(published)
    change(entries)
    path = tmp_path / "other.pth"
    torch.save(entries, path)
    with pytest.raises(RegkitError, match=f"other.pth': another architecture, {message}"):
        load_network(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(
    tmp_path: Path, published: dict[str, torch.Tensor], value: float
) -> None:
    network = UNet(SMALL)
    network.state_dict()["model.3.weight"][0, 0, 0, 0, 0] = value
    path = tmp_path / "net.safetensors"
    with pytest.raises(RegkitError, match=r"'model\.3\.weight' holds NaN"):
        save_weights(path, network, {})
    assert not path.exists()
    torch.save(published | {"model.1.running_var": torch.full((16,), value)}, tmp_path / "net.pth")
    with pytest.raises(RegkitError, match=r"net.pth': 'model\.1\.running_var' holds NaN"):
        load_network(tmp_path / "net.pth")


def test_what_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    network = UNet(SMALL)
    with pytest.raises(RegkitError, match=r"must end in \.safetensors"):
        save_weights(tmp_path / "net.pth", network, {})
    with pytest.raises(RegkitError, match=r"could not write .*No such file or directory"):
        save_weights(tmp_path / "nowhere" / "net.safetensors", network, {})
    with pytest.raises(
        RegkitError, match=r"net\.safetensors': input must be window or equalised, got 'dark'"
    ):
        save_weights(tmp_path / "net.safetensors", network, {"input": "dark"})
    for channels in (
        "[",
        "5",
        '[["all", 2, "none", 1.0]]',
        '[["all", 1, "relu", 1.0]]',
        "[[1, 2, 3, 4, 5]]",
        '[["all", 5, "none", 1.0, [[0, 1], [2, 3]]]]',
        '[["all", 5, "none", 1.0, [[0, 1], [2, 3, 4, 4]]]]',
        '[["all", 5, "none", 1.0, 5]]',
    ):
        with pytest.raises(RegkitError, match="'channels' does not fit"):
            save_weights(tmp_path / "net.safetensors", network, {"channels": channels})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    before = file.read_bytes()
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RegkitError, match="No space left"):
        save_weights(file, network, {})
    assert file.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [file.name]


def test_the_weights_that_come_with_regkit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "_MODELS", (tmp_path / "nowhere", tmp_path / "models"))
    with pytest.raises(RegkitError, match="missing from this installation"):
        bundled_weights()
    (tmp_path / "models").mkdir()
    for name in ("regkit-2.safetensors", "regkit-1.safetensors", "regkit-3.txt"):
        (tmp_path / "models" / name).touch()
    assert bundled_weights().name == "regkit-2.safetensors"
