"""Pairs of images that a registration should get right, and pairs that nobody could: for ``verdict.py``.

Every image is averaged over blocks until it has at most :data:`MAX_VOXELS` voxels, so that a pair takes
seconds. Images are of one of two halves, and so are all pairs made of them: thresholds are chosen on
the half "chosen" and their errors counted on the half "confirmed", on other images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import torch
from known_warps import known_map
from open_pairs import SHARED
from scipy import ndimage
from scipy.spatial.transform import Rotation
from truth_cases import body_of, noisy, remapped

import regkit
from regkit.core.geometry import Float64, transform_points
from regkit.synthesis.appearance import random_palette, render
from regkit.synthesis.noise import Rng
from regkit.synthesis.phantom import torso
from regkit.warp import resample_labels

MAX_VOXELS = 300_000
PAIRS = SHARED / "data" / "pairs"
HALVES = ("chosen", "confirmed")

# Name -> half, regions of the body that it shows, file below shared/data/pairs.
FILES: dict[str, tuple[str, frozenset[str], str]] = {
    name: (half, frozenset(regions.split()), file)
    for name, half, regions, file in (
        ("abdomen MR", "chosen", "trunk", "abdomen-mr-ct/mr.nii.gz"),
        ("abdomen CT", "chosen", "trunk", "abdomen-mr-ct/ct.nii.gz"),
        ("MNI T1", "chosen", "head", "brain-ct-t1/t1.nii.gz"),
        ("brain CT", "chosen", "head", "brain-ct-t1/ct_stripped.nii.gz"),
        ("cord T1", "chosen", "head neck", "cord-t1-t2/t1.nii.gz"),
        ("cord T2", "chosen", "head neck", "cord-t1-t2/t2.nii.gz"),
        ("cord T2*", "chosen", "head neck", "cord-t2-t2s/t2s.nii.gz"),
        ("head-neck CT 1", "chosen", "head neck", "headneck-ct-ct/fixed.nii.gz"),
        ("head-neck CT 2", "chosen", "head neck", "headneck-ct-ct/moving.nii.gz"),
        ("stroke T1", "chosen", "head", "brain-t1-flair/t1.nii.gz"),
        ("stroke FLAIR", "chosen", "head", "brain-t1-flair/flair.nii.gz"),
        ("lung CT 1", "confirmed", "trunk", "lung-ct-ct/baseline.mha"),
        ("lung CT 2", "confirmed", "trunk", "lung-ct-ct/followup.mha"),
        ("mouse brain 1", "confirmed", "mouse", "mousebrain-mr-mr/fixed.nii.gz"),
        ("mouse brain 2", "confirmed", "mouse", "mousebrain-mr-mr/moving.nii.gz"),
        ("mouse skull 1", "confirmed", "mouse", "mouseskull-ct-ct/fixed.nii.gz"),
        ("mouse skull 2", "confirmed", "mouse", "mouseskull-ct-ct/moving.nii.gz"),
        ("mouse skull 3", "confirmed", "mouse", "mouseskull-ct-ct-rot47/moving.nii.gz"),
        ("prostate T2", "confirmed", "pelvis", "prostate-t2-adc/t2_dicom"),
        ("prostate ADC", "confirmed", "pelvis", "prostate-t2-adc/adc.nii.gz"),
        ("SPM T1", "confirmed", "head", "brain-t1-epi/fixed.nii"),
        ("SPM EPI", "confirmed", "head", "brain-t1-epi/moving.nii.gz"),
        ("SPM T2", "confirmed", "head", "brain-t2-spect/fixed.nii"),
        ("SPM SPECT", "confirmed", "head", "brain-t2-spect/moving.nii.gz"),
    )
}
# Fixed, moving, folder of their labels or landmarks.
REAL = (
    ("abdomen MR", "abdomen CT", "abdomen-mr-ct"),
    ("MNI T1", "brain CT", "brain-ct-t1"),
    ("cord T2", "cord T1", "cord-t1-t2"),
    ("cord T2*", "cord T2", "cord-t2-t2s"),
    ("head-neck CT 1", "head-neck CT 2", "headneck-ct-ct"),
    ("stroke T1", "stroke FLAIR", "brain-t1-flair"),
    ("lung CT 1", "lung CT 2", "lung-ct-ct"),
    ("mouse brain 1", "mouse brain 2", "mousebrain-mr-mr"),
    ("mouse skull 1", "mouse skull 2", "mouseskull-ct-ct"),
    ("mouse skull 1", "mouse skull 3", "mouseskull-ct-ct-rot47"),
    ("prostate T2", "prostate ADC", "prostate-t2-adc"),
    ("SPM T1", "SPM EPI", "brain-t1-epi"),
    ("SPM T2", "SPM SPECT", "brain-t2-spect"),
)
HEADS = {"chosen": range(1, 11), "confirmed": range(11, 21)}  # SynthSeg's label maps
TRUNKS = {"chosen": range(8), "confirmed": range(8, 16)}  # seeds of regkit's phantom
STARTS = 4  # of each real pair in each direction
BEND, BEND_SIGMA = 0.06, 0.2  # of the body's size
OFF_MM, OFF_SHARE = 60.0, 0.3  # how far a given start is off; of small images this share of the shortest side

Truth = Callable[[regkit.Registration], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Pair:
    """Two images, how they are registered, and what a good registration of them is.

    Args:
        half: "chosen" or "confirmed".
        kind: what is wrong with it, or what kind of right pair it is.
        right: whether a registration of it can be right.
        truth: measures of a result by labels, landmarks or the known map; ``error`` as a share of the
            fixed image's size, or ``dice``. None where nothing is known.
    """

    name: str
    half: str
    kind: str
    right: bool
    fixed: regkit.Volume = field(repr=False)
    moving: regkit.Volume = field(repr=False)
    init: Any = "auto"
    truth: Truth | None = field(default=None, repr=False)


def small(volume: regkit.Volume) -> regkit.Volume:
    """Averaged over blocks, first along the axis of the shortest voxel side, until there are few voxels."""
    block = np.ones(3, int)
    while volume.array.size / block.prod() > MAX_VOXELS:
        block[int(np.argmin(block * volume.grid.spacing))] += 1
    whole = volume.grid.window((0, 0, 0), tuple(np.array(volume.grid.size) // block * block))
    z, y, x = whole.shape
    bx, by, bz = block
    blocks = volume.array[:z, :y, :x].reshape(z // bz, bz, y // by, by, x // bx, bx)
    origin = transform_points(whole.index_to_world, (block - 1) / 2)
    spacing = tuple(block * whole.spacing)
    grid = regkit.Grid((x // bx, y // by, z // bz), spacing, tuple(origin), whole.direction)
    return regkit.Volume(blocks.mean(axis=(1, 3, 5), dtype=np.float32), grid, volume.name)


@lru_cache(maxsize=64)
def image(name: str) -> regkit.Volume:
    return small(regkit.load_image(PAIRS / FILES[name][2], name))


@lru_cache(maxsize=24)
def head_labels(number: int) -> tuple[np.ndarray, regkit.Grid]:
    """A head's label map at 3 mm, labels renumbered below 256, cropped to the head."""
    folder = SHARED / "data" / ("anatomies/heads" if number <= 16 else "validation-heads")
    volume = regkit.load_labels(folder / f"training_seg_{number:02d}.nii.gz", "labels")
    array = volume.array[1::3, 1::3, 1::3]
    # Of the ids beyond 255 the skull's becomes that of the left cortex, which then looks as it does.
    array = np.where(array > 255, array % 256, array).astype(np.uint8)
    bounds = [
        slice(max(s.start - 3, 0), s.stop + 3) for s in ndimage.find_objects((array > 0).astype(int))[0]
    ]
    grid = volume.grid.window((1, 1, 1), volume.grid.size)
    start = [3 * b.start for b in reversed(bounds)]
    array = array[tuple(bounds)]
    origin = transform_points(grid.index_to_world, start)
    spacing = tuple(3 * s for s in grid.spacing)
    return array, regkit.Grid(array.shape[::-1], spacing, tuple(origin), grid.direction)


def painted_head(number: int, contrast: int) -> regkit.Volume:
    """A head in random contrasts of regkit's data engine."""
    array, grid = head_labels(number)
    rng = Rng.of(contrast, number, 3)
    values = render(torch.from_numpy(array)[None], [rng], [random_palette(rng)], partial=0).images[0]
    return regkit.Volume(values.numpy(), grid, f"head {number}, contrast {contrast}")


@lru_cache(maxsize=4)
def trunk(seed: int) -> Any:
    return torso(seed, 4.0)


def posed(volume: regkit.Volume, rigid: Float64) -> regkit.Volume:
    """The image with another place in the world: its points are where ``rigid`` takes them."""
    matrix = rigid @ volume.grid.index_to_world
    direction = matrix[:3, :3] / volume.grid.spacing
    grid = replace(volume.grid, origin=tuple(matrix[:3, 3]), direction=tuple(direction.ravel()))
    return replace(volume, grid=grid)


def random_pose(grid: regkit.Grid, seed: int) -> Float64:
    """A turn of up to 20 degrees about the image's middle and a shift of up to 30 % of its longest side."""
    random = np.random.default_rng(seed)
    axis = random.standard_normal(3)
    turn = Rotation.from_rotvec(axis / np.linalg.norm(axis) * np.radians(random.uniform(0, 20)))
    matrix = np.eye(4)
    matrix[:3, :3] = turn.as_matrix()
    shift = random.uniform(-0.3, 0.3, 3) * grid.extent.max()
    matrix[:3, 3] = grid.centre - turn.as_matrix() @ grid.centre + shift
    return matrix


def by_map(fixed: regkit.Volume, known: Callable[[Float64], Float64]) -> Truth:
    """The mean error in the body, as a share of the cube root of its volume."""
    body = body_of(fixed)
    points = transform_points(fixed.grid.index_to_world, np.argwhere(body)[::23, ::-1])
    size = float((body.sum() * np.prod(fixed.grid.spacing)) ** (1 / 3))

    def measure(result: regkit.Registration) -> dict[str, float]:
        off = np.linalg.norm(result.warp.transform_points(points) - known(points), axis=1)
        return {"error": float(off.mean() / size), "error_mm": float(off.mean())}

    return measure


def by_labels(folder: str, exchanged: bool, rigid: Float64) -> Truth | None:
    """Dice of the labels or the error at the landmarks of a real pair."""
    manifest = json.loads((PAIRS / folder / "manifest.json").read_text())
    sides = ("moving", "fixed") if exchanged else ("fixed", "moving")
    back = np.linalg.inv(rigid)

    def measure(result: regkit.Registration) -> dict[str, float]:
        scores = {}
        if manifest["landmarks"]:
            pairs = dict(zip(("fixed", "moving"), regkit.read_pairs(PAIRS / folder / manifest["landmarks"])))
            mapped = transform_points(back, result.warp.transform_points(pairs[sides[0]]))
            scores["error_mm"] = float(np.linalg.norm(mapped - pairs[sides[1]], axis=1).mean())
            scores["error"] = scores["error_mm"] / float(np.prod(result.warp.grid.extent) ** (1 / 3))
        if manifest["fixed_labels"]:
            one, other = (
                regkit.load_labels(PAIRS / folder / manifest[f"{side}_labels"], "labels") for side in sides
            )
            scores["dice"] = mean_dice(one, posed(other, rigid), result)
        return scores

    return measure


def mean_dice(fixed: regkit.Volume, moving: regkit.Volume, result: regkit.Registration) -> float:
    """Of all labels that either map has, after the moving one went through the warp."""
    moved = resample_labels(moving, fixed.grid, result.warp.to_sitk())
    rng = []
    for label in np.union1d(fixed.array, moving.array)[1:]:
        a, b = fixed.array == label, moved.array == label
        rng.append(2 * (a & b).sum() / max(a.sum() + b.sum(), 1))
    return float(np.mean(rng))


def right_makers() -> Iterator[tuple[str, str, Callable[[], Pair]]]:
    """Name, kind and maker of every right pair."""
    for fixed, moving, folder in REAL:
        for exchanged in (False, True):
            for start in range(STARTS):
                one, other = (moving, fixed) if exchanged else (fixed, moving)
                name = f"{one} <- {other}, start {start}"
                yield name, "real", partial(real, name, one, other, folder, exchanged, start)
    for half, numbers in HEADS.items():
        for k, number in enumerate(numbers):
            other = numbers[(k + 1) % len(numbers)]
            name = f"head {number} <- head {other}"
            yield name, "painted heads", partial(heads, name, half, number, other)
    for half, seeds in TRUNKS.items():
        for seed in seeds:
            for exchanged in (False, True):
                name = f"trunk {seed}, {'CT <- MR' if exchanged else 'MR <- CT'}"
                yield name, "painted trunks", partial(trunks, name, half, seed, exchanged)
    for source in (*FILES, *(f"head {n}" for n in (1, 4, 12, 18))):
        for contrast in ("noise", "remapped"):
            name = f"{source}, bent, {contrast}"
            yield name, f"bent, {contrast}", partial(bent, name, source, contrast)


def real(name: str, fixed: str, moving: str, folder: str, exchanged: bool, start: int) -> Pair:
    rigid = random_pose(image(moving).grid, hash_of(name) + start - 1) if start else np.eye(4)
    return Pair(
        name, FILES[fixed][0], "real", True, image(fixed), posed(image(moving), rigid),
        truth=by_labels(folder, exchanged, rigid),
    )  # fmt: skip


def heads(name: str, half: str, number: int, other: int) -> Pair:
    moving = painted_head(other, 2)
    rigid = random_pose(moving.grid, hash_of(name))
    one, other_one = (regkit.Volume(*head_labels(n)) for n in (number, other))

    def measure(result: regkit.Registration) -> dict[str, float]:
        return {"dice": mean_dice(one, posed(other_one, rigid), result)}

    return Pair(
        name, half, "painted heads", True, painted_head(number, 1), posed(moving, rigid), truth=measure
    )


def trunks(name: str, half: str, seed: int, exchanged: bool) -> Pair:
    phantom = trunk(seed)
    if exchanged:
        return Pair(name, half, "painted trunks", True, phantom.moving, phantom.fixed,
                    truth=by_map(phantom.moving, phantom.truth.inverse))  # fmt: skip
    return Pair(name, half, "painted trunks", True, phantom.fixed, phantom.moving,
                truth=by_map(phantom.fixed, phantom.truth))  # fmt: skip


def source_image(source: str) -> tuple[str, regkit.Volume]:
    """The half and the image of a name of FILES, or of a painted head."""
    if source in FILES:
        return FILES[source][0], image(source)
    number = int(source.split()[1])
    return "chosen" if number in HEADS["chosen"] else "confirmed", painted_head(number, 1)


def bent(name: str, source: str, contrast: str) -> Pair:
    half, volume = source_image(source)
    size = float((body_of(volume).sum() * np.prod(volume.grid.spacing)) ** (1 / 3))
    known = known_map(
        volume.grid, volume.grid, hash_of(name), bend_mm=BEND * size, sigma_mm=BEND_SIGMA * size,
        rotation_deg=10, shift_mm=0.1 * size,
    )  # fmt: skip
    moving = known.inverse().apply(volume)
    moving = noisy(moving) if contrast == "noise" else remapped(moving)
    return Pair(
        name, half, f"bent, {contrast}", True, volume, moving, truth=by_map(volume, known.transform_points)
    )


def hash_of(name: str) -> int:
    """A seed of a name, the same on every machine; names that differ in their last letter alone share it."""
    return int.from_bytes(name.encode()[-6:], "little") % 2**31 + 7 * len(name)


def wrong_makers() -> Iterator[tuple[str, str, Callable[[], Pair]]]:
    """Name, kind and maker of every wrong pair, but for those with a start that is off."""
    for half in HALVES:
        files = [name for name, (of, _, _) in FILES.items() if of == half]
        random = np.random.default_rng(HALVES.index(half))
        apart = [(a, b) for a in files for b in files if not FILES[a][1] & FILES[b][1]]
        for k in random.permutation(len(apart))[:14]:
            a, b = apart[k]
            name = f"{a} <- {b}"
            yield name, "other body part", partial(as_is, name, half, a, b)
        for k, seed in enumerate(TRUNKS[half]):
            a = files[int(random.integers(len(files)))]
            while "trunk" in FILES[a][1]:
                a = files[int(random.integers(len(files)))]
            one, other = (a, f"trunk {seed}") if k % 2 else (f"trunk {seed}", a)
            name = f"{one} <- {other}"
            yield name, "other body part", partial(as_is, name, half, one, other)
        pairs = [(f, m) for f, m, _ in REAL if FILES[f][0] == half]
        both = pairs + [(m, f) for f, m in pairs]
        heads_ = [(f"head {n}", f"head {n + 1}") for n in list(HEADS[half])[:9:2]]
        trunks_ = [(f"trunk {s} MR", f"trunk {s} CT") for s in list(TRUNKS[half])[::2]]
        for one, other in (*both, *heads_, *trunks_):
            for kind, change in CHANGES.items():
                if kind not in ("mirrored", "upside down") and (one, other) not in (*both, *trunks_[:2]):
                    continue
                name = f"{one} <- {other}, {kind}"
                yield name, kind, partial(changed, name, half, one, other, kind, change)


def any_image(source: str, contrast: int = 1) -> regkit.Volume:
    if source in FILES:
        return image(source)
    words = source.split()
    if words[0] == "head":
        return painted_head(int(words[1]), contrast)
    return trunk(int(words[1])).moving if words[-1] == "CT" else trunk(int(words[1])).fixed


def as_is(name: str, half: str, fixed: str, moving: str) -> Pair:
    return Pair(name, half, "other body part", False, any_image(fixed), any_image(moving))


Change = Callable[[regkit.Volume, regkit.Volume, int], tuple[regkit.Volume, regkit.Volume]]


def changed(name: str, half: str, fixed: str, moving: str, kind: str, change: Change) -> Pair:
    one, other = change(any_image(fixed), any_image(moving, 2), hash_of(name))
    return Pair(name, half, kind, False, one, other)


def flipped(volume: regkit.Volume, world_axis: int) -> regkit.Volume:
    """The voxels the other way round along the axis nearest to x, y or z, under the header as it was."""
    axis = int(np.argmax(np.abs(np.reshape(volume.grid.direction, (3, 3))[world_axis])))
    return replace(volume, array=np.ascontiguousarray(np.flip(volume.array, 2 - axis)))


def part(volume: regkit.Volume, first: float, last: float, axis: int | None = None) -> regkit.Volume:
    """From one share to another of an image along an axis, by default the one nearest to head-feet."""
    if axis is None:
        axis = int(np.argmax(np.abs(np.reshape(volume.grid.direction, (3, 3))[2])))
    n = volume.grid.size[axis]
    low, high = int(first * n), max(int(last * n), int(first * n) + 5)
    if high > n:
        low, high = n - 5, n
    size = tuple(high - low if k == axis else m for k, m in enumerate(volume.grid.size))
    start = tuple(low if k == axis else 0 for k in range(3))
    cut = [slice(None)] * 3
    cut[2 - axis] = slice(low, high)
    return regkit.Volume(
        np.ascontiguousarray(volume.array[tuple(cut)]), volume.grid.window(start, size), volume.name
    )


def heads_up(volume: regkit.Volume) -> bool:
    """Whether the index along the axis nearest to head-feet grows towards the head."""
    row = np.reshape(volume.grid.direction, (3, 3))[2]
    return bool(row[np.argmax(np.abs(row))] > 0)


def end(volume: regkit.Volume, top: bool, share: float) -> regkit.Volume:
    """The upper or the lower end of an image."""
    return part(volume, 1 - share, 1) if top == heads_up(volume) else part(volume, 0, share)


def noise_instead(
    fixed: regkit.Volume, moving: regkit.Volume, seed: int
) -> tuple[regkit.Volume, regkit.Volume]:
    random = np.random.default_rng(seed)
    sigma = random.choice([0, 1, 3])
    values = ndimage.gaussian_filter(random.standard_normal(moving.array.shape), sigma)
    if seed % 2:  # within the outline of the image
        values = (values - values.min()) * body_of(moving)
    return fixed, replace(moving, array=(1000 * values).astype(np.float32))


def scrambled(fixed: regkit.Volume, moving: regkit.Volume, seed: int) -> tuple[regkit.Volume, regkit.Volume]:
    random = np.random.default_rng(seed)
    order = random.permutation(moving.array.shape[0])
    return fixed, replace(moving, array=np.ascontiguousarray(moving.array[order]))


def other_units(
    fixed: regkit.Volume, moving: regkit.Volume, seed: int
) -> tuple[regkit.Volume, regkit.Volume]:
    factor = 10.0 if seed % 2 else 0.1
    grid = moving.grid
    spacing = tuple(factor * s for s in grid.spacing)
    return fixed, replace(moving, grid=replace(grid, spacing=spacing))


CHANGES: dict[str, Change] = {
    "mirrored": lambda f, m, s: (f, flipped(m, 0)),
    "upside down": lambda f, m, s: (f, flipped(m, 2)),
    "noise": noise_instead,
    "other region": lambda f, m, s: (end(f, s % 2 == 0, 0.35), end(m, s % 2 == 1, 0.35)),
    "no common anatomy": lambda f, m, s: (end(f, s % 2 == 0, 0.45), end(f, s % 2 == 1, 0.45)),
    "wrong units": other_units,
    "scrambled slices": scrambled,
    "30 % of the field of view": lambda f, m, s: (f, part(m, *((0.0, 0.3) if s % 2 else (0.7, 1.0)))),
}


def off(name: str, reference: Pair, linear: Float64, mapped: Callable[[Float64], Float64]) -> Pair:
    """A right pair with a start that is given and far off, and how far the result is from the right one's."""
    random = np.random.default_rng(hash_of(name))
    shift = random.standard_normal(3)
    shortest = float(min(reference.fixed.grid.extent.min(), reference.moving.grid.extent.min()))
    far = min(OFF_MM, 0.7 * shortest) if shortest > 30 else OFF_SHARE * shortest
    matrix = linear.copy()
    matrix[:3, 3] += far * shift / np.linalg.norm(shift)
    return Pair(
        name, reference.half, "start 60 mm off", False, reference.fixed, reference.moving, matrix,
        by_map(reference.fixed, mapped),
    )  # fmt: skip
