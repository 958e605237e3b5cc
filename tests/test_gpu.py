"""The kernels for a GPU against their twins in torch, which are run in float64: on a GPU, or by
Triton's interpreter on the CPU."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from kernel_cases import SHAPES, both, close, convex_steps, cost_pairs, feature_map, single

from regkit.core.settings import Settings
from regkit.features.featuremap import FeatureMap
from regkit.ops import gpu
from regkit.ops.filters import smooth
from regkit.ops.folding import CORNERS, Corner
from regkit.solver.coarse import _TIE_BREAK, COUPLING, match
from regkit.solver.costvolume import known_costs, known_slab
from regkit.solver.fine import Adam, comparison, optimiser, penalty, refine

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of the interpreter.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim:DeprecationWarning")


@pytest.fixture(autouse=True)
def served(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 goes to the kernels, wherever they run."""
    from regkit.ops.gpu import kernels

    monkeypatch.setattr(gpu, "_DEVICE", DEVICE)
    if DEVICE == "cpu":  # which takes long for each program, however much it does
        monkeypatch.setattr(kernels, "_BLOCK", 1024)
        monkeypatch.setattr(kernels, "_COLUMNS", 1024)
        monkeypatch.setattr(kernels, "_CELLS", 256)
        from triton.runtime.interpreter import interpreter_builder as interpreter

        # Half of its time goes into looking for overflows of indices, which a volume this small has not.
        monkeypatch.setattr(interpreter, "options", replace(interpreter.options, sanitize_overflow=False))


def _there(one: FeatureMap) -> FeatureMap:
    return FeatureMap(one.values.to(DEVICE), one.weight.to(DEVICE))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("passes", [1, 3])
def test_smoothing(shape: tuple[int, int, int], passes: int, rng: np.random.Generator) -> None:
    volume = torch.from_numpy(rng.normal(size=(2, *shape))).to(DEVICE)
    found, expected = both(lambda at: smooth(at, passes), volume)
    for one, other in zip(found, expected):
        close(one, other)


@pytest.mark.parametrize("shape", [SHAPES[0], (2, 2, 2), (4, 17, 6)])
@pytest.mark.parametrize("corner", CORNERS)
def test_penalty(shape: tuple[int, int, int], corner: Corner, rng: np.random.Generator) -> None:
    """Of a field rough enough that many cells are below the least determinant."""
    field = torch.from_numpy(rng.normal(0, 0.5, size=(3, *shape))).to(DEVICE)
    stiffness = torch.from_numpy(rng.uniform(0.1, 3, size=(1, *shape))).to(DEVICE)
    found, expected = both(lambda at: penalty(at, corner, stiffness.to(at.dtype)), field)
    for one, other in zip(found, expected):
        close(one, other)


@pytest.mark.parametrize("channels", [1, 14, 16, 26, 40, 64])
@pytest.mark.parametrize("corners", [[(0, 0, 0)], [(1, 0, 1)], [(1, 0, 1), (0, 1, 0)]])
def test_difference(channels: int, corners: list[Corner], rng: np.random.Generator) -> None:
    """On both sides of the moving map's ends; of 64 channels, which are too many for the kernel, by torch."""
    fixed, moving = (_there(feature_map(rng, channels, shape)) for shape in ((8, 6, 10), (9, 7, 5)))
    # Exact in float32, and off whole numbers, where the derivative has two values.
    where = torch.from_numpy(rng.integers(-2 * 64, 9 * 64, size=(3, 8, 6, 10)) / 64 + 1 / 128).to(DEVICE)
    where[:, 0, 0, 0] = 1e12

    def compared(at: torch.Tensor) -> torch.Tensor:
        one, other = (FeatureMap(m.values.to(at.dtype), m.weight.to(at.dtype)) for m in (fixed, moving))
        return comparison(one, other)(at, corners)

    z, y, x = (slice(side, None, 2) for side in corners[0])
    for at in (where, where[:, z, y, x]) if len(corners) == 1 else (where,):
        found, expected = both(compared, at)
        for one, other in zip(found, expected):
            close(one, other)


# The interpreter takes a second for what a GPU does in a moment: it gets the smaller ones.
RADII = [1, 2, 3, 4] if DEVICE == "cuda" else [1]


@pytest.mark.parametrize("radius", RADII)
def test_costs(radius: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All displacements at once, and few at a time; whole maps, and slabs of them."""
    from regkit.ops.gpu import kernels

    pairs = cost_pairs(radius)
    for fixed, moving, expected in pairs if DEVICE == "cuda" else [pairs[1], pairs[3]]:
        one, other = (_there(single(m)) for m in (fixed, moving))
        with monkeypatch.context() as patched:
            patched.setattr(kernels, "_SCRATCH", 2000)
            close(known_costs(one, other, radius).cpu(), expected)
        depth = expected.shape[1]
        for first, last in {(0, depth), (depth // 3, -(-2 * depth // 3))}:
            close(known_slab(one, other, radius, first, last).cpu(), expected[:, first:last])


@pytest.mark.parametrize("radius", RADII)
@pytest.mark.parametrize("back", [False, True])
def test_coupled_convex(radius: int, back: bool) -> None:
    """Cells whose costs there are none of, and costs that differ so little that roundings choose, differ."""
    from regkit.ops.gpu import kernels

    for _, costs, forward, backward in convex_steps(radius)[:1]:
        there = costs.float().to(DEVICE)
        found = kernels.coupled_convex(there, radius, back, (_TIE_BREAK, *COUPLING)).cpu()
        expected = backward if back else forward
        apart = (found - expected).abs().amax(0)
        assert float((apart > 1e-5).float().mean()) < 0.01
        assert float(expected.abs().max()) > 0.5 * radius


def test_match(rng: np.random.Generator) -> None:
    """The same as by torch, of maps that are shifted against each other."""
    values = smooth(torch.from_numpy(rng.normal(size=(6, 12, 12, 12))))
    wide = FeatureMap(values, torch.ones_like(values[:1]))
    fixed = FeatureMap(*(t[:, 2:10, 3:11, 3:11].contiguous() for t in (wide.values, wide.weight)))
    moving = FeatureMap(*(t[:, 1:11, 1:11, 1:11].contiguous() for t in (wide.values, wide.weight)))
    found = match(_there(single(fixed)), _there(single(moving)), 1).cpu()
    expected = match(fixed, moving, 1)
    assert float((found - expected).abs().max()) < 1e-3
    inner = found[:, 3:-3, 3:-3, 3:-3].mean((1, 2, 3))
    torch.testing.assert_close(inner, torch.tensor([1.0, 1.0, 0.0]), atol=0.1, rtol=0)


@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (3, 13, 22, 31)])
def test_adam(shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """As torch's own, over several steps; of gradients that lie otherwise in memory."""
    start = torch.from_numpy(rng.normal(size=shape)).to(DEVICE)
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], betas=Adam.BETAS, eps=0.5)
    parameters, rates = start.float(), [0.3 / (k + 1) for k in range(12)]
    ours = optimiser(parameters, rates, 0.5)
    for rate in rates:
        gradient = torch.from_numpy(rng.normal(0, 10.0 ** rng.integers(-4, 3), size=shape[::-1]).T)
        theirs.grad, adam.param_groups[0]["lr"] = gradient.to(DEVICE), rate
        adam.step()
        ours.step(gradient.float().to(DEVICE))
        close(parameters, theirs.detach())


def test_the_fine_stage(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole rounds of eight steps, repeated, and what is left of them: as by torch in float64."""
    if DEVICE == "cpu":
        monkeypatch.setattr(gpu, "repeat", _repeat)
    values = smooth(torch.from_numpy(rng.normal(size=(5, 12, 12, 12))), 2)
    wide = FeatureMap(values, torch.ones_like(values[:1]))
    fixed = FeatureMap(*(t[:, 2:10, 2:10, 3:11].contiguous() for t in (wide.values, wide.weight)))
    offset, start = torch.tensor([2.0, 2.0, 2.0]), torch.zeros(3, 8, 8, 8)
    # Repeated by the GPU alone: elsewhere by a loop of this file.
    settings, steps = Settings("", iterations=(9, 17) if DEVICE == "cuda" else (1, 9)), []
    found = refine(
        _there(single(fixed)), _there(single(wide)), offset.to(DEVICE), start.to(DEVICE), settings,
        lambda: steps.append(1),
    ).cpu()  # fmt: skip
    expected = refine(fixed, wide, offset.double(), start.double(), settings)
    assert len(steps) == sum(settings.iterations)
    assert float(expected.abs().max()) > 0.3
    assert float((found - expected).abs().max()) < 0.02


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_nothing_waits_for_the_gpu_within_the_fine_stage(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither in the round that is launched nor in those that are replayed."""
    repeat, rounds = gpu.repeat, []

    def watched(work: object, times: int, on_round: object) -> None:
        rounds.append(times)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is a prototype, which says so
            torch.cuda.set_sync_debug_mode("error")
        try:
            repeat(work, times, on_round)  # type: ignore[arg-type]
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(gpu, "repeat", watched)
    values = torch.from_numpy(rng.normal(size=(5, 12, 12, 12)))
    one = _there(single(FeatureMap(values, torch.ones_like(values[:1]))))
    start = torch.zeros(3, 12, 12, 12, device=DEVICE)
    refine(one, one, torch.zeros(3, device=DEVICE), start, Settings(""))
    assert rounds == [3, 5]


def _repeat(work: object, times: int, on_round: object) -> None:
    for _ in range(times):
        work()  # type: ignore[operator]
        on_round()  # type: ignore[operator]


def test_without_triton_torch_does_the_work_and_one_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "find_spec", lambda name: None)
    gpu._usable.cache_clear()
    try:
        with pytest.warns(UserWarning, match="Triton is not installed"):
            assert not gpu.serves(torch.zeros(1, device=DEVICE))
        assert not gpu.serves(torch.zeros(1, device=DEVICE))
    finally:
        gpu._usable.cache_clear()


def test_what_the_kernels_cannot_take_is_left_to_torch() -> None:
    assert gpu.serves(torch.zeros(1, device=DEVICE))
    assert not gpu.serves(torch.zeros(1, device=DEVICE, dtype=torch.float64))
    assert not gpu.serves(torch.zeros(1, device=DEVICE), torch.zeros(1, device="meta"))
