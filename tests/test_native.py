"""The compiled kernels against their twins in torch, which are run in float64; for every instruction set that
this machine has."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from regkit import native
from regkit.costvolume import FeatureMap
from regkit.filters import smooth
from regkit.fine import comparison, dissimilarity, penalty
from regkit.folding import CORNERS, Corner

SHAPES = [(9, 8, 11), (1, 5, 40), (7, 1, 1)]


@pytest.fixture(params=["_base", "_v3", "_v4"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the sets of kernels that this machine can run."""
    if not native.serves(torch.zeros(1)):
        pytest.skip("the kernels were not compiled")
    own = ["_base", "_v3", "_v4"].index(native._suffix())
    if ["_base", "_v3", "_v4"].index(request.param) > own:
        pytest.skip(f"this machine has no {request.param}")
    monkeypatch.setattr(native, "_suffix", lambda: request.param)
    suffix: str = request.param
    return suffix


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def _close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """To roundings of float32, in terms of the largest value."""
    assert found.dtype == torch.float32
    largest = float(expected.detach().abs().max())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * max(largest, 1e-30))


def _both(function: object, at: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Value and gradient in float32, by the kernel, and in float64, by torch."""
    found = []
    for dtype in (torch.float32, torch.float64):
        leaf = at.to(dtype).requires_grad_()
        value = function(leaf)  # type: ignore[operator]
        weight = torch.linspace(-1, 2, value.numel(), dtype=dtype).view(value.shape)
        (gradient,) = torch.autograd.grad((value * weight).sum() if value.ndim else value, leaf)
        found.append((value, gradient))
    return found[0], found[1]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("passes", [1, 3])
def test_smoothing(
    kernels: str, threads: int, shape: tuple[int, int, int], passes: int, rng: np.random.Generator
) -> None:
    volume = torch.from_numpy(rng.normal(size=(2, *shape)))
    found, expected = _both(lambda at: smooth(at, passes), volume)
    for one, other in zip(found, expected):
        _close(one, other)


@pytest.mark.parametrize("shape", [SHAPES[0], (2, 2, 2), (4, 17, 6)])
@pytest.mark.parametrize("corner", CORNERS)
def test_penalty(
    kernels: str, threads: int, shape: tuple[int, int, int], corner: Corner, rng: np.random.Generator
) -> None:
    """Of a field rough enough that many cells are below the least determinant."""
    field = torch.from_numpy(rng.normal(0, 0.5, size=(3, *shape)))
    found, expected = _both(lambda at: penalty(at, corner, 1.3), field)
    for one, other in zip(found, expected):
        _close(one, other)


def _map(rng: np.random.Generator, channels: int, shape: tuple[int, ...]) -> FeatureMap:
    """With cells of no weight, of the full weight, and between; exact in the 16 bits of the kernel."""
    weight = rng.choice([0, 0.25, 0.5, 1, 1, 1], size=(1, *shape))
    values = rng.integers(-500, 2000, size=(channels, *shape)) / 1024
    return FeatureMap(torch.from_numpy(values), torch.from_numpy(weight))


@pytest.mark.parametrize("channels", [1, 14, 16, 26, 40, 63, 64])
@pytest.mark.parametrize("corners", [[(0, 0, 0)], [(1, 0, 1)], [(1, 0, 1), (0, 1, 0)]])
def test_difference(
    kernels: str, threads: int, channels: int, corners: list[Corner], rng: np.random.Generator
) -> None:
    """On both sides of the moving map's ends; of 64 channels, which are too many for the kernel, by torch."""
    fixed, moving = _map(rng, channels, (8, 6, 10)), _map(rng, channels, (9, 7, 5))
    # Exact in float32, and off whole numbers, where the derivative has two values.
    where = torch.from_numpy(rng.integers(-2 * 64, 9 * 64, size=(3, 8, 6, 10)) / 64 + 1 / 128)

    def compared(at: torch.Tensor) -> torch.Tensor:
        one, other = (FeatureMap(m.values.to(at.dtype), m.weight.to(at.dtype)) for m in (fixed, moving))
        return comparison(one, other)(at, corners)

    found, expected = _both(compared, where)
    for one, other in zip(found, expected):
        _close(one, other)
    plain = []
    for corner in corners:
        z, y, x = (slice(side, None, 2) for side in corner)
        some = FeatureMap(fixed.values[:, z, y, x], fixed.weight[:, z, y, x])
        plain.append(dissimilarity(some, moving, where[:, z, y, x]))
    torch.testing.assert_close(expected[0], torch.stack(plain).mean())
    if len(corners) == 1:  # the places of these cells alone give the same
        found, expected = _both(compared, where[:, z, y, x])
        for one, other in zip(found, expected):
            _close(one, other)


def test_without_the_library_torch_does_the_work_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    volume = torch.from_numpy(rng.normal(size=(2, 5, 6, 7))).float()
    expected = smooth(volume, 2)
    native._library.cache_clear()
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        found = smooth(volume, 2)
        smooth(volume, 2)
    (warning,) = seen
    assert "compiled kernels" in str(warning.message) and "C compiler" in str(warning.message)
    torch.testing.assert_close(found, expected)
    monkeypatch.undo()
    native._library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        native.serves(volume)
