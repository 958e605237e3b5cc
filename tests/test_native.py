"""The compiled kernels against their twins in torch, which are run in float64; for every instruction set that
this machine has."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_cases import SHAPES, both, close, convex_steps, cost_pairs, feature_map, single
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Float64, Grid
from regkit.features.equalise import equalised
from regkit.features.featuremap import FeatureMap
from regkit.features.maps import mind_ssc
from regkit.features.weights import Channels, Reading
from regkit.ops import native
from regkit.ops.filters import blur, pool, smooth
from regkit.ops.folding import CORNERS, Corner, folded_points
from regkit.ops.jacobian import jacobian_determinant
from regkit.ops.resample import Source, resample
from regkit.ops.sampling import sample
from regkit.registration import _dense_field
from regkit.solver.coarse import (
    _between_cells,
    _coupled_convex_by_c,
    coupled_convex,
    inverse_consistent,
    match,
)
from regkit.solver.costvolume import (
    best_steps,
    displacements,
    known_costs,
    known_slab,
    of_the_way_back,
    short_costs,
    steps_of_values,
    with_neutral,
)
from regkit.solver.fine import Adam, _Lanes, comparison, dissimilarity, optimiser, penalty
from regkit.solver.linear import _kept_sums, _squared_errors
from regkit.synthesis.phantom import torso


@pytest.mark.skipif(not native.serves(), reason="the kernels were not compiled")
def test_the_processor_is_asked_what_the_system_says_that_it_has() -> None:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        pytest.skip("this system says nothing of the processor")
    if platform.machine() != "x86_64":
        assert native._instruction_set() == 0
        return
    flags = set(text.split("flags", 1)[1].split("\n", 1)[0].split())
    v3 = {"avx2", "fma", "bmi1", "bmi2"} <= flags
    v4 = v3 and {"avx512f", "avx512dq", "avx512cd", "avx512bw", "avx512vl"} <= flags
    assert native._instruction_set() == v3 + v4
    assert native.fast_bfloat16() == (v4 and "avx512_bf16" in flags)
    # GCC alone compiles those for 8 bits.
    assert not native.fast_eightbit() or (v4 and "avx512_vnni" in flags)


@pytest.fixture(params=["base", "v3", "v4"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One of the sets of kernels that this machine can run."""
    if not native.serves(torch.zeros(1)):
        pytest.skip("the kernels were not compiled")
    name: str = request.param
    number = ["base", "v3", "v4"].index(name)
    if number > native._instruction_set():
        pytest.skip(f"this machine has no {name}")
    monkeypatch.setattr(native, "_instruction_set", lambda: number)
    return name


@pytest.fixture(params=[1, 3])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@contextmanager
def _calls(*names: str) -> Iterator[None]:
    """See to it that these kernels do the work, and no others."""
    run, called = native.run, set()

    def recorded(kernel: str, /, **arguments: native.Argument) -> float:
        called.add(kernel)
        return run(kernel, **arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "run", recorded)
        yield
    assert called == set(names)


@contextmanager
def _by_torch() -> Iterator[None]:
    """Without the library, for twins that are not run in float64."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_library", lambda: None)
        yield


@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 83), (3, 2, 22)])
@pytest.mark.parametrize("passes", [0, 1, 2, 3, 7])
def test_smoothing(
    kernels: str, threads: int, shape: tuple[int, int, int], passes: int, rng: np.random.Generator
) -> None:
    """Of rows that are several vectors long, that are shorter than one, and whose last one is not whole."""
    volume = torch.from_numpy(rng.normal(size=(2, *shape)))
    found, expected = both(lambda at: smooth(at, passes), volume)
    for one, other in zip(found, expected):
        close(one, other)


@pytest.mark.parametrize("count", [1, 7, 5000])
def test_sums_of_points(kernels: str, threads: int, count: int, rng: np.random.Generator) -> None:
    """What trimmed least squares asks of the points, of no points too."""
    both_sides = torch.from_numpy(rng.normal(0, 20, size=(7, count)))
    both_sides[0] = 1
    matrix = rng.normal(size=(4, 4))
    with _calls("squared_errors", "kept_sums"):
        error = _squared_errors(both_sides, matrix)
        most = float(error.median())
        sums = [_kept_sums(both_sides, error, limit) for limit in (most, np.inf, -1.0)]
    with _by_torch():
        expected = _squared_errors(both_sides, matrix)
        torch.testing.assert_close(error, expected, rtol=1e-12, atol=1e-9)
        for found, limit in zip(sums, (most, np.inf, -1.0)):
            np.testing.assert_allclose(found, _kept_sums(both_sides, error, limit), rtol=1e-12, atol=1e-8)
    assert sums[1][0, 0] == count and not sums[2].any()


@pytest.mark.parametrize("shape", [SHAPES[0], (2, 2, 2), (4, 17, 6)])
@pytest.mark.parametrize("corner", CORNERS)
def test_penalty(
    kernels: str, threads: int, shape: tuple[int, int, int], corner: Corner, rng: np.random.Generator
) -> None:
    """Of a field rough enough that many cells are below the least determinant."""
    field = torch.from_numpy(rng.normal(0, 0.5, size=(3, *shape)))
    stiffness = torch.from_numpy(rng.uniform(0.1, 3, size=(1, *shape)))
    found, expected = both(lambda at: penalty(at, corner, stiffness.to(at.dtype)), field)
    for one, other in zip(found, expected):
        close(one, other)


@pytest.mark.parametrize("channels", [1, 14, 16, 26, 40, 63, 64])
@pytest.mark.parametrize("corners", [[(0, 0, 0)], [(1, 0, 1)], [(1, 0, 1), (0, 1, 0)]])
def test_difference(
    kernels: str, threads: int, channels: int, corners: list[Corner], rng: np.random.Generator
) -> None:
    """On both sides of the moving map's ends; of 64 channels, which are too many for the kernel, by torch."""
    fixed, moving = feature_map(rng, channels, (8, 6, 10)), feature_map(rng, channels, (9, 7, 5))
    # Exact in float32, and off whole numbers, where the derivative has two values.
    where = torch.from_numpy(rng.integers(-2 * 64, 9 * 64, size=(3, 8, 6, 10)) / 64 + 1 / 128)

    def compared(at: torch.Tensor) -> torch.Tensor:
        one, other = (FeatureMap(m.values.to(at.dtype), m.weight.to(at.dtype)) for m in (fixed, moving))
        return comparison(one, other)(at, corners)

    found, expected = both(compared, where)
    for one, other in zip(found, expected):
        close(one, other)
    plain = []
    for corner in corners:
        z, y, x = (slice(side, None, 2) for side in corner)
        some = FeatureMap(fixed.values[:, z, y, x], fixed.weight[:, z, y, x])
        plain.append(dissimilarity(some, moving, where[:, z, y, x]))
    torch.testing.assert_close(expected[0], torch.stack(plain).mean())
    if len(corners) == 1:  # the places of these cells alone give the same
        found, expected = both(compared, where[:, z, y, x])
        for one, other in zip(found, expected):
            close(one, other)


def test_ranks(kernels: str, threads: int, rng: np.random.Generator) -> None:
    """Of one with much beyond the ends, one with knots at the least distance, one with nothing between."""
    images = torch.from_numpy(rng.beta(2, 9, (4, 11, 20, 33))).float()
    images[1, :6], images[1, 6:8] = 0, 1
    images[2] = 0.3 + 1e-4 * images[2]
    images[3] = images[3].round()
    with _calls("equalise"):
        found = equalised(images)
    expected = equalised(images.double())
    assert float((found - expected).abs()[:2].max()) < 1e-5
    # What lies a rounding off a knot is 1e-4 wide there.
    assert float((found - expected).abs().max()) < 2e-3
    assert torch.equal(found[3], images[3])


@pytest.mark.parametrize("merged", [(), ((0, 3), (2,), (1, 4, 5, 6))])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 3, 150)])
def test_probabilities(
    kernels: str, threads: int, merged: tuple[tuple[int, ...], ...], shape: tuple[int, int, int],
    rng: np.random.Generator,
) -> None:  # fmt: skip
    """Of a part of a volume, channels side by side; of scores that no exponential can be taken of."""
    whole = [n + 3 for n in shape]
    scores = torch.from_numpy(rng.normal(0, 4, size=(1, 7, *whole))).to(torch.bfloat16)
    scores[:, :, 0, 0, 0] += 300
    scores[0, :, 1, 1, 1] = torch.tensor([0, -200, 0, 100, -50, 90, 99])
    scores = scores.to(memory_format=torch.channels_last_3d)[:, :, : shape[0], : shape[1], : shape[2]]
    reading = Reading("window", (Channels("parts", 7, "softmax", 3.0, merged),))
    with _calls("softmax_sums"):
        found = reading.read(scores)
    assert found.is_contiguous()
    close(found, reading.read(scores.double()))
    with _calls():  # by torch, of a volume that lies otherwise in memory
        close(reading.read(scores.contiguous()), reading.read(scores.double()))


@pytest.mark.parametrize("channels", [1, 15, 16, 40])
@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 30, 70)])
def test_lanes(
    kernels: str, threads: int, channels: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    """As torch rounds them; of values that need several units, and beyond what 16 bits hold of them."""
    values = torch.from_numpy(rng.normal(0, 3, size=(channels, *shape)))
    weight = torch.from_numpy(rng.choice([0, 0.3, 1], size=(1, *shape)))
    values[0, 0, 0, 0] = values.abs().max() * 1.9  # 32767.5 and more of a unit
    for counted in (None, weight):
        with _calls("lanes"):
            found = _Lanes.of(values.float(), None if counted is None else counted.float())
        expected = _Lanes.of(values, counted)
        assert found.unit == expected.unit > 2.0**-14
        assert found.cells.shape[-1] % 16 == 0 and found.cells.shape[-1] <= expected.cells.shape[-1]
        apart = found.cells - expected.cells[..., : found.cells.shape[-1]]
        assert int(apart.abs().max()) <= 1  # a half may be rounded either way in float32
        assert float((apart != 0).double().mean()) < 1e-3
        assert not found.cells[..., channels + 1 :].any()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("sigma", [(0.7, 0, 2.4), (4.0, 0.3, 0), (0, 3.1, 6.0)])
def test_blur(
    kernels: str,
    threads: int,
    shape: tuple[int, int, int],
    sigma: tuple[float, float, float],
    rng: np.random.Generator,
) -> None:
    """By kernels that reach further than the image, too; of an image that lies otherwise in memory."""
    image = torch.from_numpy(rng.normal(size=shape[::-1])).permute(2, 1, 0)
    with _calls(*(["blur_rows"] if sigma[2] else []), "blur_across"):
        found = blur(image.float(), sigma)
    close(found, blur(image, sigma))


@pytest.mark.parametrize("stride", [2, 3, 4])
def test_pooling(kernels: str, threads: int, stride: int, rng: np.random.Generator) -> None:
    """Of values of any size where there is no data, and of cells without any."""
    for cells in ((3, 2, 5), (1, 1, 1), (2, 3, 19)):
        shape = tuple(stride * n for n in cells)
        one = feature_map(rng, 3, shape)
        one.weight[:, :stride, :stride, :stride] = 0
        if cells[-1] > 1:  # next to the one without any data, a cell with a little
            one.weight[:, :stride, :stride, stride : 2 * stride] = 0
            one.weight[:, 1, 0, stride + 1] = 0.25
        values = torch.where(one.weight > 0, one.values, 1e6)
        with _calls("pool"):
            found = pool(values.float(), one.weight.float(), stride)
        for ours, expected in zip(found, pool(values, one.weight, stride)):
            assert torch.equal(ours[:, 0, 0, 0], torch.zeros(len(ours)))
            close(ours, expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_self_similarity(
    kernels: str, threads: int, stride: int, dilation: int, rng: np.random.Generator
) -> None:
    """With and without weights, cells that have none, and a patch where the image does not change."""
    for shape in ((8, 6, 38), (4, 12, 2), (2, 2, 2)):
        image = torch.from_numpy(rng.integers(0, 256, size=shape) / 256)
        image[: shape[0] // 2, :, : shape[2] // 2] = 0.5
        weight = torch.from_numpy(rng.choice([0, 0.5, 1], size=(1, *shape)))
        weight[:, :2, :2, :2] = 0
        for counted in (None, weight):
            with _calls("mind_differences", "mind_scale", "mind_channels"):
                found = mind_ssc(
                    image.float(), 1, dilation, stride, None if counted is None else counted.float()
                )
            close(found, mind_ssc(image, 1, dilation, stride, counted))


def test_self_similarity_of_a_constant_image(kernels: str, threads: int) -> None:
    with _calls("mind_differences", "mind_scale", "mind_channels"):
        found = mind_ssc(torch.full((4, 4, 20), 0.3), stride=2)
    assert torch.equal(found, torch.ones(12, 2, 2, 10))


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
def test_costs(kernels: str, threads: int, radius: int) -> None:
    for fixed, moving, expected in cost_pairs(radius):
        with _calls("costs"):
            close(known_costs(single(fixed), single(moving), radius), expected)
        assert expected.isnan().any()
    assert not expected.isnan().all()


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
def test_costs_in_16_bits(kernels: str, threads: int, radius: int) -> None:
    """Of values in steps, to the nearest step, the largest for all beyond it; unknown ones, and the margins,
    apart.
    """
    most, unknown, saturated = 65534, 65535, False
    for fixed, moving, _ in cost_pairs(radius):
        largest = max(float(one.values.abs().max()) for one in (fixed, moving))
        steps = steps_of_values(largest, len(fixed.values))
        one, other = (
            FeatureMap((m.values.float() * steps).round().double() / steps, m.weight) for m in (fixed, moving)
        )
        expected = known_costs(one, other, radius)
        with _calls("costs"):
            found = short_costs(single(fixed), single(moving), radius, largest).to(torch.int32)
        end = found.shape[-1] - radius
        assert (found[..., :radius] == unknown).all() and (found[..., end:] == unknown).all()
        inner = found[..., radius:end]
        assert torch.equal(inner == unknown, expected.isnan())
        known = ~expected.isnan()
        exact = (expected[known] * 2**14).clamp(max=most)
        assert ((inner[known] - exact).abs() <= 0.5 + 1e-5 * exact).all()
        saturated |= bool((inner == most).any())
    assert saturated


@pytest.mark.parametrize("radius", [1, 2])
def test_slabs_of_costs(kernels: str, threads: int, radius: int) -> None:
    """By the kernel and by torch, at the ends and between, as parts of the whole."""
    for fixed, moving, costs in cost_pairs(radius):
        depth = costs.shape[1]
        for first, last in {(0, 1), (depth - 1, depth), (0, depth), (depth // 3, -(-2 * depth // 3))}:
            expected = costs[:, first:last]
            with _calls("costs"):
                close(known_slab(single(fixed), single(moving), radius, first, last), expected)
            found = known_slab(fixed, moving, radius, first, last)
            torch.testing.assert_close(found, expected, equal_nan=True)


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_best_steps(kernels: str, threads: int, radius: int, rng: np.random.Generator) -> None:
    """Of fewer cells than the kernel takes at once, and of more; of some no cost is known, or one or two."""
    for shape in ((3, 5, 7), (2, 3, 500), (1, 32, 64)):
        costs = torch.from_numpy(rng.random(((2 * radius + 1) ** 3, *shape)))
        costs[torch.from_numpy(rng.random(costs.shape) < 0.3)] = torch.nan
        costs[:, :, -1, 1:4] = torch.nan
        costs[2:, :, 0, 1:3] = torch.nan
        costs[:2, :, 0, 1:3] = torch.tensor([[1.5, 2.5], [1.0, torch.nan]]).view(2, 1, 2)
        costs[:, :, 0, 4] = 0.25  # the same for all
        with _calls("best_steps"):
            gain, step = best_steps(costs.float(), radius)
        expected = best_steps(costs, radius)
        close(gain, expected[0])
        assert torch.equal(gain[:, -1, 1:4], torch.zeros(shape[0], 3))
        assert float(gain[:, 0, 4].abs().max()) < 1e-6
        sure = expected[0] > 1e-6  # which displacement it is does not matter elsewhere
        close(step[:, sure], expected[1][:, sure], 1e-4)
        assert float(step.abs().max()) <= radius and (step != step.round()).any()


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
@pytest.mark.parametrize("back", [False, True])
def test_coupled_convex(kernels: str, threads: int, radius: int, back: bool) -> None:
    """One other choice of one cell in any round would be a ninth of a cell at the least."""
    for short, _, *fields in convex_steps(radius):
        with _calls("neutral", "choose", "smooth_planes", "smooth_columns"):
            found = _coupled_convex_by_c(short, radius, back)
        close(found, fields[back])
        assert fields[back].abs().max() > 0.5 * radius


@pytest.mark.parametrize("radius", [1, 2, 3, 4])
@pytest.mark.parametrize("back", [0, 1])
def test_choices_one_by_one(kernels: str, threads: int, radius: int, back: int) -> None:
    """Around fields that are not smooth. Of two that come to the same but for roundings, either may be."""
    for short, known, *_ in convex_steps(radius):
        costs = with_neutral(of_the_way_back(known, radius) if back else known.clone())
        shape = costs.shape[1:]
        neutral, chosen = torch.empty(shape), torch.empty((3, *shape))
        whole = displacements(radius).double()[:, :, None, None, None]
        for theta in (1e-6, 0.03, 1.0):
            field = torch.from_numpy(np.random.default_rng(7).normal(0, radius, size=(3, *shape))).float()
            with _calls("neutral", "choose"):
                how = {"costs": short, "radius": radius, "back": back, "neutral": neutral}
                native.run("neutral", **how)
                native.run("choose", **how, theta=theta, field=field, chosen=chosen)
            total = costs + theta * (whole * whole - 2 * whole * field).sum(1)
            side = 2 * radius + 1
            x, y, z = (chosen.round() + radius).long()
            number = (z * side + y) * side + x
            found = total.gather(0, number[None])[0]
            largest = float(costs.max() + theta * whole.square().sum(1).max())
            assert (found - total.amin(0)).max() <= 1e-6 * largest
            between = _between_cells(costs, number, field, theta, radius)
            # Fractions of flat parabolas are made of differences that roundings change.
            assert ((chosen - chosen.round() - between).abs() < 1e-3).float().mean() > 0.99


@pytest.mark.parametrize("back", [0, 1])
def test_of_equal_costs_the_first_is_chosen(kernels: str, threads: int, back: int) -> None:
    shape, radius = (2, 3, 21), 2
    costs = torch.from_numpy(np.full((125, 2, 3, 25), 2**14, dtype=np.uint16))
    neutral, field, chosen = torch.ones(shape), torch.zeros((3, *shape)), torch.empty((3, *shape))
    native.run(
        "choose",
        costs=costs,
        radius=radius,
        back=back,
        neutral=neutral,
        theta=0.0,
        field=field,
        chosen=chosen,
    )
    assert torch.equal(chosen, torch.full((3, *shape), -2.0))


@pytest.mark.parametrize("shape", [(2, 5, 17), (5, 2, 17)])
def test_the_way_back_across_fewer_cells_than_the_range(
    kernels: str, threads: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    steps = rng.integers(0, 2**14, size=(343, *shape))
    short = np.pad(steps, ((0, 0),) * 3 + ((3, 3),), constant_values=65535).astype(np.uint16)
    costs = of_the_way_back(torch.from_numpy(steps / 2**14), 3)
    found = _coupled_convex_by_c(torch.from_numpy(short), 3, True)
    close(found, coupled_convex(with_neutral(costs), 3))


@cache
def _textures(radius: int, x: int) -> tuple[FeatureMap, FeatureMap, torch.Tensor]:
    """A texture, the same bent, and how torch matches them."""
    random = np.random.default_rng(radius)
    shape = (7, 9, x)
    wide = tuple(n + 2 * radius for n in shape)
    texture = torch.from_numpy(gaussian_filter(random.normal(size=(6, *wide)), (0, 1, 1, 1)))
    texture = 0.95 * (2 * texture / texture.std()).tanh()  # its costs are within 16 bits
    inner = (slice(None), *(slice(radius, radius + n) for n in shape))
    shift = gaussian_filter(random.normal(size=(3, *shape)), (0, 3, 3, 3))
    shift = torch.from_numpy(shift / np.abs(shift).max() * 0.8 * radius)
    grid = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) + radius for n in shape], indexing="ij")
    fixed = sample(texture, torch.stack(grid[::-1]) + shift)
    weight = torch.ones(1, *wide, dtype=torch.float64)
    weight[:, : radius + 2, :, : radius + 2] = 0
    one, other = FeatureMap(fixed, weight[inner].clone()), FeatureMap(texture, weight)
    return one, other, match(one, other, radius)


@pytest.mark.parametrize("radius", [2, 4])
@pytest.mark.parametrize("x", [16, 25])
def test_matching(kernels: str, threads: int, radius: int, x: int) -> None:
    """Costs are rounded to 16 bits, and where two nearly tie the other may be chosen: few cells are."""
    fixed, moving, expected = _textures(radius, x)
    with _calls("costs", "neutral", "choose", "smooth_planes", "smooth_columns", "halfway"):
        found = match(single(fixed), single(moving), radius)
    assert found.dtype == torch.float32
    assert (found - expected).abs().mean() < 0.005
    assert expected.abs().max() > 0.25 * radius


@pytest.mark.parametrize(("x", "scale"), [(12, 1.0), (16, 3.0)])
def test_matching_without_16_bits(kernels: str, threads: int, x: int, scale: float) -> None:
    """Rows that are too short for a vector, or values whose costs are too large: torch makes the fields."""
    one, other, _ = _textures(2, x)
    fixed, moving = (FeatureMap(m.values * scale, m.weight) for m in (one, other))
    with _calls("costs", "smooth_planes", "smooth_columns", "halfway"):
        found = match(single(fixed), single(moving), 2)
    close(found, match(fixed, moving, 2))


@pytest.mark.parametrize("shape", [(5, 6, 7), (1, 9, 2), (4, 1, 1)])
def test_inverse_consistency(
    kernels: str, threads: int, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    """Of fields that lead beyond the ends."""
    fields = [torch.from_numpy(rng.normal(0, 2, size=(3, *shape))) for _ in range(2)]
    with _calls("halfway"):
        found = inverse_consistent(*map(torch.Tensor.float, fields), 3)
    for one, expected in zip(found, inverse_consistent(*fields, 3)):
        close(one, expected)


def _places(rng: np.random.Generator, shape: tuple[int, ...], size: tuple[int, ...]) -> torch.Tensor:
    """Index coordinates, exact in float32, some of them whole, up to three cells beyond the ends."""
    ends = np.array(shape[::-1]).reshape(3, 1, 1, 1) + 2
    return torch.from_numpy(np.floor(rng.uniform(-3 * 32, ends * 32, size=(3, *size))) / 32)


@pytest.mark.parametrize("shape", [(9, 8, 11), (2, 5, 40)])
@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_sampling(
    kernels: str, threads: int, shape: tuple[int, int, int], outside: str, rng: np.random.Generator
) -> None:
    """At more places than the kernel takes at once, and fewer; a volume that lies otherwise is torch's."""
    volume = torch.from_numpy(rng.normal(size=(3, *shape)))
    turned = volume.float().movedim(0, -1).contiguous().movedim(-1, 0)
    for size in ((5, 7, 29), (1, 1, 3)):
        where = _places(rng, shape, size)
        expected = sample(volume, where, outside=outside)
        with _calls("sample"):
            close(sample(volume.float(), where.float(), outside=outside), expected)
        with _calls():
            close(sample(turned, where.float(), outside=outside), expected)


def test_sampling_along_an_axis_of_one_voxel(kernels: str, threads: int, rng: np.random.Generator) -> None:
    """The border is the same everywhere, and zeros are as if they were voxels of the volume."""
    for shape in ((1, 5, 40), (7, 1, 1)):
        volume = torch.from_numpy(rng.normal(size=(2, *shape)))
        where = _places(rng, shape, (4, 5, 6))
        close(sample(volume.float(), where.float()), sample(volume, where))
        wide = torch.nn.functional.pad(volume, (1,) * 6)
        close(sample(volume.float(), where.float(), outside="zeros"), sample(wide, where + 1))


@pytest.mark.parametrize("outside", ["border", "zeros"])
def test_places_that_are_no_numbers_or_far_away(
    kernels: str, threads: int, outside: str, rng: np.random.Generator
) -> None:
    """Are sampled where the volume ends, those that are no numbers at its first voxels."""
    volume = torch.from_numpy(rng.normal(size=(2, 4, 5, 6))).float()
    where = torch.full((3, 1, 1, 5), 2.0)
    where[0, 0, 0] = torch.tensor([torch.nan, -torch.inf, torch.inf, -1e30, 1e30])
    found = sample(volume, where, outside=outside)[:, 0, 0]
    low, high = (volume[:, 2, 2, x] if outside == "border" else torch.zeros(2) for x in (0, -1))
    assert torch.equal(found, torch.stack([low, low, high, low, high], dim=1))


@pytest.mark.parametrize("channels", [1, 14])
def test_sampling_what_is_known(kernels: str, threads: int, channels: int, rng: np.random.Generator) -> None:
    """Beside cells without data, whose values are far off, and beyond the ends."""
    one = feature_map(rng, channels, (9, 8, 11))
    one.weight[:, 2:6, :, 3:7] = 0
    one = FeatureMap(torch.where(one.weight > 0, one.values, 1e3), one.weight)
    for size in ((5, 7, 29), (1, 1, 3)):
        where = _places(rng, (9, 8, 11), size)
        with _calls("sample_known"):
            found = single(one).at(where.float())
        expected = one.at(where)
        close(found.weight, expected.weight)
        close(found.values, expected.values)
        assert expected.values.abs().max() < 3


# A grid of rows longer than the kernels take at once.
LONG = Grid((150, 6, 5), (0.4, 3.0, 2.0), (-31.0, 12.0, 100.0))


def _linear(grid: Grid, other: Grid) -> Float64:
    """A map that is nothing simple, from the centre of a grid to that of another."""
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("xyz", (11, -8, 23), degrees=True).as_matrix() * [1.06, 0.93, 1.0]
    turn[:3, 3] = other.centre - turn[:3, :3] @ grid.centre + (0.7, -1.9, 0.4)
    return turn


def test_resampling(kernels: str, threads: int, oblique_grid: Grid, rng: np.random.Generator) -> None:
    """A mask of ones says nothing, and is taken by torch alone."""
    for grid, other in ((LONG, oblique_grid), (oblique_grid, LONG)):
        image = torch.from_numpy(rng.random(other.shape)).float()
        matrix = _linear(grid, other)
        with _calls("resample"):
            found = resample(Source(image, None, other), matrix, grid)
        with _by_torch():
            expected = resample(Source(image, None, other), matrix, grid)
        close(found[0], expected[0], 1e-4)  # torch takes coordinates in float32
        assert torch.equal(found[1], expected[1])
        assert 0 < found[1].mean() < 1
        with _calls("sample"):
            masked = resample(Source(image, torch.ones(other.shape), other), matrix, grid)
        close(found[0], masked[0], 1e-4)
        assert torch.equal(found[1], masked[1])


def test_displacement_fields(
    kernels: str, threads: int, oblique_grid: Grid, rng: np.random.Generator
) -> None:
    for grid, other in ((LONG, oblique_grid), (oblique_grid, LONG), (oblique_grid, oblique_grid.pooled(2))):
        displacement = torch.from_numpy(rng.normal(0, 2, size=(3, *other.shape))).float()
        matrix = _linear(grid, other)
        with _calls("displacement_field"):
            found = _dense_field(displacement, other, matrix, grid)
        with _by_torch():
            expected = _dense_field(displacement, other, matrix, grid)
        close(torch.from_numpy(found), torch.from_numpy(expected))


def test_jacobians(kernels: str, threads: int, oblique_grid: Grid, rng: np.random.Generator) -> None:
    """Of fields rough enough to fold; a single slice says nothing about change across it."""
    flat = [Grid(size, oblique_grid.spacing) for size in ((1, 5, 6), (7, 1, 40), (5, 8, 1), (2, 2, 2))]
    for grid in (oblique_grid, LONG, *flat):
        field = rng.normal(0, 0.5, size=(*grid.shape, 3)).astype(np.float32)
        with _calls("jacobian"):
            found = jacobian_determinant(field, grid)
        with _calls():  # of numbers in float64, not by the kernel
            expected = jacobian_determinant(field.astype(np.float64), grid)
        close(torch.from_numpy(found), torch.from_numpy(expected), 1e-6)
        assert (expected <= 0).any() or grid.size[0] < 14


@pytest.mark.parametrize("shape", [(2, 2, 2), (4, 17, 6), (5, 6, 40)])
def test_folds(kernels: str, threads: int, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    """At any corner of any cell, and none in a smooth field."""
    field = torch.from_numpy(rng.normal(0, 0.02, size=(3, *shape)))
    with _calls("folds"):
        assert not folded_points(field.float()).any()
    for corner in CORNERS:
        z, y, x = (int(rng.integers(n - 1)) + c for n, c in zip(shape, corner))
        folded = field.clone()
        folded[:, z, y, x] += torch.tensor([1.6 * (1 - 2 * c) for c in corner[::-1]])
        with _calls("folds"):
            found = folded_points(folded.float())
        assert found.any()
        assert torch.equal(found.double(), folded_points(folded))


@pytest.mark.parametrize("shape", [(3, 5, 6, 7), (3, 13, 22, 31)])
def test_adam(kernels: str, threads: int, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """As torch's own, over several steps; of gradients that lie otherwise in memory."""
    start = torch.from_numpy(rng.normal(size=shape))
    theirs = start.clone().requires_grad_()
    adam = torch.optim.Adam([theirs], betas=Adam.BETAS, eps=0.5)
    parameters = start.float()
    rates = [0.3 / (k + 1) for k in range(12)]
    ours, twin = optimiser(parameters, rates, 0.5), optimiser(start.clone(), rates, 0.5)
    for rate in rates:
        gradient = torch.from_numpy(rng.normal(0, 10.0 ** rng.integers(-4, 3), size=shape[::-1]).T)
        theirs.grad, adam.param_groups[0]["lr"] = gradient, rate
        adam.step()
        with _calls("adam"):
            ours.step(gradient.float())
        twin.step(gradient)
        close(parameters, theirs.detach())
        torch.testing.assert_close(twin.parameters, theirs.detach())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_threads_give_the_same_warp(threads: int) -> None:
    """To the last bit: sums are added in one order, whichever thread is first."""
    phantom = torso(0, 10.0)  # of which the coarse stage makes rows of 16 cells
    once, again = (
        regkit.register(phantom.fixed, phantom.moving, features="mind", threads=threads) for _ in range(2)
    )
    assert np.abs(once.warp.field).max() > 10
    np.testing.assert_array_equal(once.warp.field, again.warp.field)
    np.testing.assert_array_equal(once.linear, again.linear)
    assert once.metrics == again.metrics


def test_without_the_library_torch_does_the_work_and_one_warning_says_so(
    monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    volume = torch.from_numpy(rng.normal(size=(2, 5, 6, 7))).float()
    expected = smooth(volume, 2)
    native._library.cache_clear()
    monkeypatch.delenv("REGKIT_REQUIRE_KERNELS", raising=False)
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


def test_kernels_of_another_version_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    if not native.serves(torch.zeros(1)):
        pytest.skip("the kernels were not compiled")
    monkeypatch.setattr(native, "DIGEST", "of another table")
    monkeypatch.delenv("REGKIT_REQUIRE_KERNELS", raising=False)
    native._library.cache_clear()
    with pytest.warns(UserWarning, match="another version"):
        assert not native.serves(torch.zeros(1))
    monkeypatch.undo()
    native._library.cache_clear()
    assert native.serves(torch.zeros(1))
