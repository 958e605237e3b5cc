"""Every kernel against the reference of its operation, which is run in float64.

The cases are small and plain; what a kernel does at its edges is tested in test_native.py and test_gpu.py.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import is_dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import feature_map

import regkit
from regkit.core.geometry import Grid
from regkit.features.weights import Channels, Reading
from regkit.ops import gpu, native
from regkit.ops.dispatch import OPERATIONS, Backend, Operation, operation
from regkit.ops.resample import Source

# Those whose modules hold no operation and need what is not installed everywhere are left out.
for module in pkgutil.walk_packages(regkit.__path__, "regkit."):
    if module.name.split(".")[1] in ("ops", "features", "solver") and "kernels" not in module.name:
        importlib.import_module(module.name)
importlib.import_module("regkit.registration")

GRID, OTHER = Grid((18, 8, 6), (1.0, 2.0, 1.5)), Grid((9, 7, 8), (2.0, 2.0, 2.0), (-1.0, 0.0, 1.0))
Make = Callable[[np.random.Generator], tuple[Any, ...]]


def _normal(*shape: int, scale: float = 1.0) -> Callable[[np.random.Generator], torch.Tensor]:
    return lambda rng: torch.from_numpy(rng.normal(0, scale, size=shape))


def _maps(rng: np.random.Generator, margin: int = 0) -> tuple[Any, Any]:
    """Of the fixed and the moving image, with values whose costs 16 bits hold."""
    size = (6, 8, 18)
    return feature_map(rng, 3, size), feature_map(rng, 3, tuple(n + 2 * margin for n in size))


def _places(rng: np.random.Generator) -> torch.Tensor:
    return torch.from_numpy(rng.integers(-64, 64 * 7, size=(3, 6, 8, 18)) / 64 + 1 / 128)


def _points(rng: np.random.Generator) -> torch.Tensor:
    points = torch.from_numpy(rng.normal(0, 20, size=(7, 3000)))
    points[0] = 1
    return points


def _near_identity(rng: np.random.Generator) -> Any:
    matrix = np.eye(4)
    matrix[:3] += rng.normal(0, 0.05, size=(3, 4))
    return matrix


def _one_fold(rng: np.random.Generator) -> torch.Tensor:
    field = torch.from_numpy(rng.normal(0, 0.02, size=(3, 4, 5, 6)))
    field[0, 2, 2, 2] += 3
    return field


def _scores(rng: np.random.Generator) -> torch.Tensor:
    scores = torch.from_numpy(rng.normal(0, 2, size=(1, 5, 4, 5, 6)))
    return scores.to(torch.bfloat16).to(memory_format=torch.channels_last_3d)


_READING = Reading("window", (Channels("parts", 5, "softmax", 2.0, ((0, 3), (1,), (2, 4))),))

# By the name of the operation, its arguments in float64.
CASES: dict[str, Make] = {
    "regkit.features.equalise.equalised": lambda rng: (torch.from_numpy(rng.beta(2, 5, (6, 7, 8))),),
    "regkit.features.maps.mind_ssc": lambda rng: (torch.from_numpy(rng.random((6, 8, 18))), 1, 1, 2),
    "regkit.features.weights._read": lambda rng: (_READING, _scores(rng)),
    "regkit.ops.filters.convolve": lambda rng: (_normal(6, 8, 18)(rng), 1, _normal(3)(rng)),
    "regkit.ops.filters.pool": lambda rng: (*_values_and_weight(rng), 2),
    "regkit.ops.filters.smooth": lambda rng: (_normal(2, 6, 8, 18)(rng), 3),
    "regkit.ops.folding.folded_points": lambda rng: (_one_fold(rng),),
    "regkit.ops.jacobian._determinants": lambda rng: (
        rng.normal(0, 0.1, size=(6, 8, 18, 3)), GRID.index_to_world[:3, :3]
    ),
    "regkit.ops.resample.resample": lambda rng: (
        Source(torch.from_numpy(rng.random(OTHER.shape)), None, OTHER), _near_identity(rng), GRID
    ),
    "regkit.ops.sampling.sample": lambda rng: (_normal(2, 6, 7, 8)(rng), _places(rng)),
    "regkit.registration._dense_field": lambda rng: (
        _normal(3, *OTHER.shape)(rng), OTHER, _near_identity(rng), GRID
    ),
    "regkit.solver.coarse._there_and_back": lambda rng: (*_maps(rng, 1), 1),
    "regkit.solver.coarse.inverse_consistent": lambda rng: tuple(_normal(3, 4, 5, 6)(rng) for _ in range(2)),
    "regkit.features.featuremap._seen_at": lambda rng: (_maps(rng)[0], _places(rng)),
    "regkit.solver.costvolume.best_steps": lambda rng: (torch.from_numpy(rng.random((27, 4, 5, 6))), 1),
    "regkit.solver.costvolume.known_costs": lambda rng: (*_maps(rng, 1), 1),
    "regkit.solver.costvolume.known_slab": lambda rng: (*_maps(rng, 1), 1, 2, 5),
    "regkit.solver.fine._advance_through": lambda rng: (),
    "regkit.solver.fine._cells_of_lanes": lambda rng: (*_values_and_weight(rng), 2.0**-10),
    "regkit.solver.fine.comparison": _maps,
    "regkit.solver.fine.optimiser": lambda rng: (_normal(3, 4, 5, 6)(rng), [0.3, 0.2], 0.5),
    "regkit.solver.fine.penalty": lambda rng: (
        _normal(3, 4, 5, 18, scale=0.5)(rng), (1, 0, 1), torch.from_numpy(rng.uniform(0.1, 3, (1, 4, 5, 18)))
    ),
    "regkit.solver.linear._kept_sums": lambda rng: (
        _points(rng), torch.from_numpy(rng.random(3000)), 0.5
    ),
    "regkit.solver.linear._squared_errors": lambda rng: (_points(rng), _near_identity(rng)),
}  # fmt: skip
# What comes out is no array; it is asked once more.
ASKED: dict[str, Callable[[Any, np.random.Generator, torch.dtype], Any]] = {
    "regkit.solver.fine.comparison": lambda compare, rng, dtype: compare(
        _places(rng).to(dtype), [(0, 1, 0), (1, 0, 1)]
    ),
    "regkit.solver.fine.optimiser": lambda adam, rng, dtype: _after_a_step(adam, rng, dtype),
}
# Of one type whatever is passed; and those whose reference counts places in float32.
AS_THEY_ARE = {
    "regkit.features.weights._read",
    "regkit.solver.linear._kept_sums",
    "regkit.solver.linear._squared_errors",
}
SINGLE = {"regkit.ops.resample.resample", "regkit.registration._dense_field"}
# How far apart, in shares of the largest value. Where displacements cost the same either is chosen: there it
# is the share of the cells.
LOOSE = {
    "regkit.features.equalise.equalised": 1e-3,
    "regkit.ops.resample.resample": 1e-4,
    "regkit.solver.coarse._there_and_back": 0.2,
}


def _values_and_weight(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    one = feature_map(rng, 3, (6, 8, 18))
    return one.values, one.weight


def _after_a_step(adam: Any, rng: np.random.Generator, dtype: torch.dtype) -> torch.Tensor:
    adam.step(_normal(3, 4, 5, 6)(rng).to(dtype))
    found: torch.Tensor = adam.parameters
    return found


def _cast(value: Any, dtype: torch.dtype) -> Any:
    """Tensors, arrays, and what holds tensors, in a type; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, np.ndarray) and value.ndim > 2:
        return value.astype(np.float32 if dtype == torch.float32 else np.float64)
    if is_dataclass(value) and not isinstance(value, (Grid, Reading)):
        held = {k: v for k, v in vars(value).items() if isinstance(v, torch.Tensor)}
        return replace(value, **{k: _cast(v, dtype) for k, v in held.items()})
    return value


def _arrays(found: Any) -> list[torch.Tensor]:
    if isinstance(found, np.ndarray):
        return [torch.from_numpy(found)]
    if isinstance(found, torch.Tensor):
        return [found.detach()]
    if is_dataclass(found):
        return [v for v in vars(found).values() if isinstance(v, torch.Tensor)]
    return [] if found is None else [one for part in found for one in _arrays(part)]


def _kernels() -> list[tuple[str, Backend]]:
    return [(name, backend) for name, one in OPERATIONS.items() for backend in one.kernels]


def test_every_operation_has_a_case_and_a_kernel() -> None:
    own = {name for name in OPERATIONS if name.startswith("regkit.")}
    assert own == CASES.keys()
    assert all(OPERATIONS[name].kernels for name in own)


@pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim:DeprecationWarning"
)  # Triton's interpreter
@pytest.mark.parametrize(("name", "backend"), _kernels())
def test_a_kernel_gives_what_its_reference_gives(
    name: str, backend: Backend, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Values, and gradients where the arguments may have them."""
    if backend == "c" and not native.serves():
        pytest.skip("the kernels were not compiled")
    device = "cpu"
    if backend == "triton":
        kernels = pytest.importorskip("regkit.ops.gpu.kernels", exc_type=ImportError)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        monkeypatch.setattr(gpu, "_DEVICE", device)
        if device == "cpu":
            for size, value in {"_BLOCK": 1024, "_COLUMNS": 1024, "_CELLS": 256}.items():
                monkeypatch.setattr(kernels, size, value)
        elif name not in ("regkit.ops.filters.smooth", "regkit.solver.fine.penalty"):
            pytest.skip("on a GPU test_gpu.py tests it")
    one = OPERATIONS[name]
    arguments = CASES[name](rng)
    if name.endswith("_advance_through"):
        _advances(one, backend)
        return
    exact = torch.float32 if name in SINGLE else torch.float64
    precise = arguments if name in AS_THEY_ARE else [_cast(v, exact) for v in arguments]
    plain = arguments if name in AS_THEY_ARE else [_cast(v, torch.float32) for v in arguments]
    plain = [v.to(device) if isinstance(v, torch.Tensor) else v for v in plain]
    assert one.kernels[backend].takes(*plain), "the case is not for the kernel"
    differentiable = name in ("regkit.ops.filters.smooth", "regkit.solver.fine.penalty")
    results = []
    for run, passed, dtype in (
        (one.kernels[backend].run, plain, torch.float32), (one.reference, precise, torch.float64)
    ):  # fmt: skip
        if differentiable:
            passed[0].requires_grad_()
        found = run(*passed)
        if name in ASKED:
            found = ASKED[name](found, np.random.default_rng(3), dtype)
        values = _arrays(found)
        if differentiable:
            weight = torch.linspace(-1, 2, found.numel(), dtype=found.dtype, device=found.device)
            values += torch.autograd.grad((found.flatten() * weight).sum(), passed[0])
        results.append([value.cpu().double() for value in values])
    assert results[0]
    for found, expected in zip(*results, strict=True):
        if name.endswith("_cells_of_lanes"):  # in C as few as there can be
            assert not expected[..., found.shape[-1] :].any()
            expected = expected[..., : found.shape[-1]]
        assert found.shape == expected.shape
        assert torch.equal(found.isnan(), expected.isnan())
        apart = (found - expected).nan_to_num().abs()
        largest = float(expected.nan_to_num().abs().max())
        if name.endswith("_there_and_back"):
            assert (
                float((apart > 1e-5).double().mean()) < LOOSE[name]
            )  # where two displacements cost the same
        else:
            assert float(apart.max()) <= LOOSE.get(name, 1e-5) * max(largest, 1e-30)


def _advances(one: Operation[..., Any], backend: Backend) -> None:
    """The same corners in the same order, and as many steps, whoever repeats them; by the reference here."""
    corners: list[tuple[int, int, int]] = []
    steps: list[int] = []
    order = [(0, 0, k) for k in range(8)] * 2 + [(0, 0, 0)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "repeat", lambda work, times, then: [(work(), then()) for _ in range(times)])
        one.kernels[backend].run(torch.zeros(1), corners.append, order, lambda: steps.append(1))
    assert corners == order
    assert len(steps) == len(order)


def test_the_first_kernel_that_takes_the_arguments_is_called() -> None:
    @operation
    def doubled(value: int, times: int = 1) -> str:
        """What it says."""
        return "reference"

    @doubled.kernel("triton", lambda value, times=1: value > 10)
    def _(value: int, times: int = 1) -> str:
        return "triton"

    @doubled.kernel("c", lambda value, times=1: value > 5 and times == 1)
    def _(value: int, times: int = 1) -> str:
        return "c"

    try:
        assert [doubled(11), doubled(6), doubled(6, times=2), doubled(1)] == [
            "triton",
            "c",
            "reference",
            "reference",
        ]
        assert doubled.reference(11) == "reference"
        assert (doubled.__name__, doubled.__doc__) == ("doubled", "What it says.")
        with pytest.raises(ValueError, match="doubled has a kernel in c already"):
            doubled.kernel("c", lambda value, times=1: True)
    finally:
        del OPERATIONS[f"{__name__}.doubled"]
