"""Pairs of images between which the right map is known exactly: what ``benchmarks/truth.py`` registers.

The *identity* cases pair a real image with a copy of itself, in the same place of the world: on another
lattice, with noise, cropped, blurred, or in another contrast. Whatever a registration moves there it made up.
In the *known* ones the copy was bent, moved, turned or scaled by a map that is known, and nothing but the
images says which; or the pair is a phantom's. In the *nothing* ones a pair of real images is registered as it
is and again after a change that should not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from known_warps import known_map
from open_pairs import SHARED
from scipy import ndimage
from scipy.spatial.transform import Rotation

import regkit
from regkit.core.geometry import Float64, affine_transform, transform_points
from regkit.synthesis.phantom import torso

PointMap = Callable[[npt.ArrayLike], Float64]
Move = Callable[[regkit.Volume], tuple[regkit.Volume, PointMap]]
IDENTITY = tuple(map(tuple, np.eye(4)))
BOTH = ("", ", remapped")  # contrasts of the known maps

MAX_VOXELS = 3_200_000  # larger images are averaged over blocks first, so that a case takes seconds
BLUR_FWHM = 2.0  # voxels
NOISE = 0.05  # of the deviation
TURN_DEG = (5.0, -4.0, 6.0)  # of the lattice, about x, y and z
BENDS_PERCENT = (3, 6, 10)  # at the peak, of the cube root of the body's volume
SHIFTS_MM, SHIFT_DIRECTION = (10, 30, 100), (1.0, -0.6, 0.8)
ANGLES_DEG = (30, 60, 90, 120, 180)
SCALES = (0.7, 0.85, 1.2, 1.4)
TRUNKS = 3
ORIGIN_MM = 0.1

# Image and label map below shared/data/pairs. Choosing pairs alone: no confirming pair is looked at here.
IMAGES: dict[str, tuple[str, str | None]] = {
    "abdomen MR": ("abdomen-mr-ct/mr.nii.gz", "abdomen-mr-ct/mr_labels.nii.gz"),
    "abdomen CT": ("abdomen-mr-ct/ct.nii.gz", "abdomen-mr-ct/ct_labels.nii.gz"),
    "cord T2": ("cord-t1-t2/t2.nii.gz", "cord-t1-t2/t2_labels.nii.gz"),
    "lung CT": ("lung-ct-ct/baseline.mha", "lung-ct-ct/baseline_mask.mha"),
    "head-neck CT": ("headneck-ct-ct/fixed.nii.gz", "headneck-ct-ct/fixed_labels.nii.gz"),
    "brain T1": ("brain-t1-flair/t1.nii.gz", None),
    "mouse skull CT": ("mouseskull-ct-ct/fixed.nii.gz", None),
}

PAIRS = {
    "abdomen MR <- CT": ("abdomen-mr-ct/mr.nii.gz", "abdomen-mr-ct/ct.nii.gz"),
    "brain T1 <- CT": ("brain-ct-t1/t1.nii.gz", "brain-ct-t1/ct_stripped.nii.gz"),
    "cord T2 <- T1": ("cord-t1-t2/t2.nii.gz", "cord-t1-t2/t1.nii.gz"),
}
NOTHINGS = ("noise 1e-6", "noise 1e-3", "origin", "axes", "two threads")  # noise on the fixed image


@dataclass(frozen=True, eq=False)
class Case:
    """Two images and the map that takes a point of the fixed one to the moving one.

    Args:
        name: unique, "image, change".
        group: "identity", "known" or "nothing".
        kind: what was done to the moving image, for means over images.
        fixed, moving: as every method gets them.
        truth: fixed LPS mm (..., 3) to moving LPS mm. With a ``reference``: where the change takes a point
            of its moving image, so that the truth is ``truth(T(p))`` with T what the method finds for it.
        body: (z, y, x) bool, of the fixed image: where errors count.
        init: of :func:`regkit.register`; "none" where the headers are right.
        reference: the fixed and the moving image without the change.
        threads: of the run, if that is the change.
    """

    name: str
    group: str
    kind: str
    fixed: regkit.Volume = field(repr=False)
    moving: regkit.Volume = field(repr=False)
    truth: PointMap = field(repr=False)
    body: npt.NDArray[np.bool_] = field(repr=False)
    init: str = "none"
    reference: tuple[regkit.Volume, regkit.Volume] | None = field(default=None, repr=False)
    threads: int | None = None


def cases(groups: tuple[str, ...] = ("identity",), pattern: str = "") -> Iterator[Case]:
    """All cases of some groups whose name contains ``pattern``; none is made before it is asked for."""
    for group in groups:
        for name, make in MAKERS[group]().items():
            if pattern.lower() in name.lower():
                yield make()


def identity_makers() -> dict[str, Callable[[], Case]]:
    """The identity cases by name, each made when its function is called."""

    def make(image: str, kind: str) -> Case:
        volume, labels = real(image)
        return identity(f"{image}, {kind}", volume, kind, labels)

    return {
        f"{image}, {kind}": partial(make, image, kind)
        for image, (_, labels) in IMAGES.items()
        for kind in COPIES
        if labels is not None or kind != "structures"
    }


def identity(name: str, volume: regkit.Volume, kind: str, labels: regkit.Volume | None = None) -> Case:
    """An image and a copy of it, of one of the kinds of :data:`COPIES`, in the same place of the world."""
    moving = COPIES[kind](volume, labels)
    return Case(name, "identity", kind, volume, moving, _stay, body_of(volume))


def _stay(points: npt.ArrayLike) -> Float64:
    return np.asarray(points, dtype=np.float64)


@lru_cache(maxsize=1)
def real(name: str) -> tuple[regkit.Volume, regkit.Volume | None]:
    """One of :data:`IMAGES` and its labels, of at most :data:`MAX_VOXELS` voxels."""
    folder = SHARED / "data" / "pairs"
    image, labels = IMAGES[name]
    return read(folder / image), None if labels is None else read(folder / labels, labels=True)


def read(path: Path, labels: bool = False) -> regkit.Volume:
    """An image averaged over whole blocks of voxels until it is small; of labels, every n-th voxel."""
    volume = regkit.load_labels(path, "labels") if labels else regkit.load_image(path, "image")
    block = 1
    while volume.array.size / block**3 > MAX_VOXELS:
        block += 1
    if block == 1:
        return volume
    if labels:
        raise ValueError(f"{path}: labels of so large an image are not brought down")
    return block_average(volume, block)


def block_average(volume: regkit.Volume, block: int) -> regkit.Volume:
    """The means of whole blocks of ``block``^3 voxels; what is over at the far ends is left away."""
    whole = volume.grid.window((0, 0, 0), tuple(n // block * block for n in volume.grid.size))
    z, y, x = whole.shape
    blocks = volume.array[:z, :y, :x].reshape(z // block, block, y // block, block, x // block, block)
    return regkit.Volume(blocks.mean(axis=(1, 3, 5), dtype=np.float32), whole.pooled(block), volume.name)


def body_of(volume: regkit.Volume) -> npt.NDArray[np.bool_]:
    """Where there is something to see, (z, y, x).

    Smoothed by a voxel, above the middle between the first percentile and Otsu's threshold (which by itself
    cuts off dark muscle in MR); gaps of 4 voxels closed, holes filled in the slices along each axis, because
    a cropped field of view leaves lungs and skulls open in 3-D.
    """
    low, high = np.percentile(volume.array, (1, 99))
    smooth = ndimage.gaussian_filter(np.clip(volume.array, low, high), 1)
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.Execute(sitk.GetImageFromArray(smooth))
    body = smooth > low + 0.5 * (otsu.GetThreshold() - low)
    body = np.pad(body, 2, mode="edge")
    body = ndimage.binary_closing(body, iterations=2)[2:-2, 2:-2, 2:-2]
    for axis in range(3):
        body = np.stack([ndimage.binary_fill_holes(s) for s in np.moveaxis(body, axis, 0)], axis=axis)
    return body


def resampled(volume: regkit.Volume, grid: regkit.Grid, back: npt.ArrayLike = IDENTITY) -> regkit.Volume:
    """The image on another lattice, linearly by SimpleITK; its minimum beyond its end.

    Args:
        back: 4x4, from a point of the lattice to the point of the image that is seen there, LPS mm.
    """
    image = sitk.Resample(
        volume.to_sitk(), grid.blank(), affine_transform(back), sitk.sitkLinear,
        float(volume.array.min()), sitk.sitkFloat32,
    )  # fmt: skip
    return regkit.Volume(sitk.GetArrayFromImage(image), grid, volume.name)


def half_voxel(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """On a lattice of the same size, half a voxel off along each axis; its last voxels see nothing."""
    origin = transform_points(volume.grid.index_to_world, (0.5, 0.5, 0.5))
    return resampled(volume, replace(volume.grid, origin=tuple(origin)))


def half_voxel_inside(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """The same without those last voxels: blurred by interpolation, but with no edge that is not there."""
    grid = half_voxel(volume).grid
    return resampled(volume, grid.window((0, 0, 0), tuple(n - 1 for n in grid.size)))


def turned(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """On a lattice of the same size, turned about the middle; its corners see nothing."""
    grid = volume.grid
    turn = Rotation.from_euler("xyz", TURN_DEG, degrees=True).as_matrix()
    direction = turn @ np.reshape(grid.direction, (3, 3))
    origin = grid.centre + turn @ (np.asarray(grid.origin) - grid.centre)
    return resampled(volume, replace(grid, origin=tuple(origin), direction=tuple(direction.ravel())))


def noisy(volume: regkit.Volume, _: regkit.Volume | None = None, share: float = NOISE) -> regkit.Volume:
    """With Gaussian noise of a share of the image's deviation."""
    noise = np.random.default_rng(5).standard_normal(volume.array.shape, dtype=np.float32)
    return replace(volume, array=volume.array + np.float32(share * volume.array.std()) * noise)


def cropped(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """The first half of the field of view along its longest side."""
    grid = volume.grid
    axis = int(np.argmax(grid.extent))
    size = tuple(n // 2 if k == axis else n for k, n in enumerate(grid.size))
    x, y, z = size
    return regkit.Volume(volume.array[:z, :y, :x].copy(), grid.window((0, 0, 0), size), volume.name)


def blurred(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """By a Gaussian of :data:`BLUR_FWHM` voxels, full width at half maximum."""
    sigma = BLUR_FWHM / np.sqrt(8 * np.log(2))
    return replace(volume, array=ndimage.gaussian_filter(volume.array, sigma))


def unit(volume: regkit.Volume) -> npt.NDArray[np.float32]:
    """Intensities from 0 to 1 between the percentiles 0.5 and 99.5."""
    low, high = np.percentile(volume.array, (0.5, 99.5))
    return ((np.clip(volume.array, low, high) - low) / (high - low)).astype(np.float32)


def remapped(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    """A contrast that rises and falls again: up to a third of the range up, from there on down."""
    return replace(volume, array=500 * (1 + np.sin(1.5 * np.pi * unit(volume))))


def inverted(volume: regkit.Volume, _: regkit.Volume | None = None) -> regkit.Volume:
    return replace(volume, array=1000 * (1 - unit(volume)))


def structures(volume: regkit.Volume, labels: regkit.Volume | None, seed: int = 7) -> regkit.Volume:
    """Each label, and what has none, in a smooth random contrast of its own, under a smooth random shading.

    Within a structure the intensity u becomes mean + gain (u - its mean) with a gain of -1 to 1.
    """
    if labels is None:
        raise ValueError("a contrast per structure needs labels")
    random = np.random.default_rng(seed)
    old = unit(volume)
    new = remapped(volume).array / 1000
    for label in np.unique(labels.array[labels.array > 0]):
        inside = labels.array == label
        mean, gain = random.uniform(0.1, 0.9), random.uniform(-1, 1)
        new[inside] = mean + gain * (old[inside] - old[inside].mean())
    sides = np.asarray(volume.grid.spacing[::-1])
    shade = ndimage.gaussian_filter(
        random.standard_normal(old.shape), 0.15 * volume.grid.extent.min() / sides
    )
    return replace(volume, array=(1000 * new * (1 + 0.2 * shade / np.abs(shade).max())).astype(np.float32))


COPIES: dict[str, Callable[[regkit.Volume, regkit.Volume | None], regkit.Volume]] = {
    "half a voxel off": half_voxel,
    "half a voxel off, inside": half_voxel_inside,
    "lattice turned": turned,
    "noise": noisy,
    "cropped": cropped,
    "blurred": blurred,
    "remapped": remapped,
    "inverted": inverted,
    "structures": structures,
}


def known_makers() -> dict[str, Callable[[], Case]]:
    """The cases of known maps by name: of one modality and, as ", remapped", in another contrast."""
    makers: dict[str, Callable[[], Case]] = {}

    def add(image: str, kind: str, move: Move, detail: str = "", contrasts: tuple[str, ...] = BOTH) -> None:
        for contrast in contrasts:
            name = f"{image}, {kind}{detail}{contrast}"
            makers[name] = partial(known, name, kind + contrast, image, move, contrast != "")

    for image in ("brain T1", "abdomen CT", "head-neck CT"):
        for percent in BENDS_PERCENT:
            add(image, f"bent by {percent} %", partial(bent, percent=percent))
    for image in ("brain T1", "abdomen CT"):
        for mm in SHIFTS_MM:
            add(image, f"moved by {mm} mm", partial(posed, shift=mm))
    for image, contrasts in (("brain T1", BOTH), ("mouse skull CT", BOTH[:1])):
        for degrees in ANGLES_DEG:
            for axis, direction in zip("xyz", np.eye(3)):
                move = partial(posed, turn=degrees * direction)
                add(image, f"turned by {degrees} degrees", move, f" about {axis}", contrasts)
        for scale in SCALES:
            add(image, f"scaled by {scale:g}", partial(posed, scale=scale), contrasts=contrasts)
    for seed in range(TRUNKS):
        for exchanged in (False, True):
            kind = "painted CT <- MR" if exchanged else "painted MR <- CT"
            makers[f"trunk {seed}, {kind}"] = partial(trunk, f"trunk {seed}, {kind}", kind, seed, exchanged)
    return makers


def known(name: str, kind: str, image: str, move: Move, other_contrast: bool) -> Case:
    """One of :data:`IMAGES` and the same after a move, in another contrast if wanted."""
    fixed = small(image)
    moving, truth = move(fixed)
    moving = remapped(moving) if other_contrast else moving
    return Case(name, "known", kind, fixed, moving, truth, body_of(fixed), "auto")


def small(image: str) -> regkit.Volume:
    """One of :data:`IMAGES`, of at most half a million voxels if it is of more than 1.5 million."""
    volume = real(image)[0]
    return block_average(volume, 2) if volume.array.size > 1_500_000 else volume


def bent(volume: regkit.Volume, percent: float) -> tuple[regkit.Volume, PointMap]:
    """An image bent by a smooth random map of so many % of the body's size at its peak, and the map."""
    size = float((body_of(volume).sum() * np.prod(volume.grid.spacing)) ** (1 / 3))
    known = known_map(
        volume.grid, volume.grid, 11, bend_mm=percent / 100 * size, sigma_mm=0.2 * size,
        rotation_deg=0, shift_mm=0,
    )  # fmt: skip
    return known.inverse().apply(volume), known.transform_points


def posed(
    volume: regkit.Volume, turn: npt.ArrayLike = (0, 0, 0), shift: float = 0, scale: float = 1
) -> tuple[regkit.Volume, PointMap]:
    """An image in another pose, and the map from the first to the other.

    The other has voxels of the same size and directions, about the body where that now is, with more room on
    one side than on the other; no voxel of it lies on one of the first.

    Args:
        turn: rotation vector about the middle of the field of view, degrees.
        shift: mm, along :data:`SHIFT_DIRECTION`.
        scale: of lengths, about the middle.
    """
    grid = volume.grid
    matrix = np.eye(4)
    matrix[:3, :3] = scale * Rotation.from_rotvec(np.radians(turn)).as_matrix()
    along = np.asarray(SHIFT_DIRECTION) / np.linalg.norm(SHIFT_DIRECTION)
    matrix[:3, 3] = grid.centre + shift * along - matrix[:3, :3] @ grid.centre
    index = transform_points(
        grid.world_to_index @ matrix @ grid.index_to_world, np.argwhere(body_of(volume))[:, ::-1]
    )
    first, last = np.floor(index.min(axis=0)) - 6, np.ceil(index.max(axis=0)) + 20
    place = grid.window(tuple(first + (0.3, 0.4, 0.2)), tuple((last - first + 1).astype(int)))
    return resampled(volume, place, np.linalg.inv(matrix)), partial(transform_points, matrix)


def trunk(name: str, kind: str, seed: int, exchanged: bool) -> Case:
    """The MR and the CT of a painted trunk, or the CT and the MR."""
    phantom = torso(seed)
    fixed, moving, truth = phantom.fixed, phantom.moving, phantom.truth.__call__
    if exchanged:
        fixed, moving, truth = moving, fixed, phantom.truth.inverse
    return Case(name, "known", kind, fixed, moving, truth, body_of(fixed), "auto")


def nothing_makers() -> dict[str, Callable[[], Case]]:
    """The changes that should not matter, by name."""

    def make(pair: str, kind: str) -> Case:
        return nothing(f"{pair}, {kind}", *real_pair(pair), kind)

    return {f"{pair}, {kind}": partial(make, pair, kind) for pair in PAIRS for kind in NOTHINGS}


@lru_cache(maxsize=1)
def real_pair(name: str) -> tuple[regkit.Volume, regkit.Volume]:
    """One of :data:`PAIRS`, always as the same objects."""
    fixed, moving = (read(SHARED / "data" / "pairs" / path) for path in PAIRS[name])
    return fixed, moving


def nothing(name: str, fixed: regkit.Volume, moving: regkit.Volume, kind: str) -> Case:
    """A pair and the same after one of :data:`NOTHINGS`."""
    body, pair = body_of(fixed), (fixed, moving)
    truth: PointMap = _stay
    threads = None
    if kind.startswith("noise"):
        pair = noisy(fixed, share=float(kind.split()[1])), moving
    elif kind == "origin":
        shift = np.eye(4)
        shift[0, 3] = ORIGIN_MM
        truth = partial(transform_points, shift)
        origin = tuple(truth(moving.grid.origin))
        pair = fixed, replace(moving, grid=replace(moving.grid, origin=origin))
    elif kind == "axes":
        pair = stored(fixed, (2, 0, 1), (True, False, True)), stored(moving, (1, 0, 2), (False, True, False))
        body = stored(replace(fixed, array=body), (2, 0, 1), (True, False, True)).array > 0
    else:
        threads = 2
    return Case(name, "nothing", kind, *pair, truth, body, "auto", (fixed, moving), threads)


def stored(volume: regkit.Volume, order: tuple[int, ...], flip: tuple[bool, ...]) -> regkit.Volume:
    """The same image with its axes (x, y, z) in another order and some of them running backwards."""
    image = sitk.Flip(sitk.PermuteAxes(volume.to_sitk(), order), flip, False)
    return regkit.Volume(sitk.GetArrayFromImage(image), regkit.Grid.from_sitk(image), volume.name)


MAKERS: dict[str, Callable[[], dict[str, Callable[[], Case]]]] = {
    "identity": identity_makers,
    "known": known_makers,
    "nothing": nothing_makers,
}
GROUPS = tuple(MAKERS)
