"""Pairs of images between which the right map is known exactly: what ``benchmarks/truth.py`` registers.

The *identity* cases pair a real image with a copy of itself, in the same place of the world: on another
lattice, with noise, cropped, blurred, or in another contrast. Whatever a registration moves there it made up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk
from open_pairs import SHARED
from scipy import ndimage
from scipy.spatial.transform import Rotation

import regkit
from regkit.geometry import Float64, transform_points

PointMap = Callable[[npt.ArrayLike], Float64]

MOST_VOXELS = 3_200_000  # larger images are averaged over blocks first, so that a case takes seconds
BLUR_FWHM = 2.0  # voxels
NOISE = 0.05  # of the deviation
TURN_DEG = (5.0, -4.0, 6.0)  # of the lattice, about x, y and z

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


@dataclass(frozen=True, eq=False)
class Case:
    """Two images and the map that takes a point of the fixed one to the moving one.

    Args:
        name: unique, "image, change".
        group: "identity", "known" or "nothing".
        kind: what was done to the moving image, for means over images.
        fixed, moving: as every method gets them.
        truth: fixed LPS mm (..., 3) to moving LPS mm.
        body: (z, y, x) bool, of the fixed image: where errors count.
        init: of :func:`regkit.register`; "none" where the headers are right.
    """

    name: str
    group: str
    kind: str
    fixed: regkit.Volume = field(repr=False)
    moving: regkit.Volume = field(repr=False)
    truth: PointMap = field(repr=False)
    body: npt.NDArray[np.bool_] = field(repr=False)
    init: str = "none"


def cases(groups: tuple[str, ...] = ("identity",), wanted: str = "") -> Iterator[Case]:
    """All cases of some groups whose name contains ``wanted``; none is made before it is asked for."""
    for group in groups:
        for name, make in MAKERS[group]().items():
            if wanted.lower() in name.lower():
                yield make()


def identity_makers() -> dict[str, Callable[[], Case]]:
    """The identity cases by name, each made when its function is called."""

    def maker(image: str, kind: str) -> Callable[[], Case]:
        def make() -> Case:
            volume, labels = real(image)
            return identity(f"{image}, {kind}", volume, kind, labels)

        return make

    return {
        f"{image}, {kind}": maker(image, kind)
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
    """One of :data:`IMAGES` and its labels, of at most :data:`MOST_VOXELS` voxels."""
    folder = SHARED / "data" / "pairs"
    image, labels = IMAGES[name]
    return read(folder / image), None if labels is None else read(folder / labels, labels=True)


def read(path: Path, labels: bool = False) -> regkit.Volume:
    """An image averaged over whole blocks of voxels until it is small; of labels, every n-th voxel."""
    volume = regkit.load_labels(path, "labels") if labels else regkit.load_image(path, "image")
    block = 1
    while volume.array.size / block**3 > MOST_VOXELS:
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


def resampled(volume: regkit.Volume, grid: regkit.Grid) -> regkit.Volume:
    """The image on another lattice of the same world, linearly by SimpleITK; its minimum beyond its end."""
    image = sitk.Resample(
        volume.to_sitk(), grid.blank(), sitk.Transform(3, sitk.sitkIdentity), sitk.sitkLinear,
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

MAKERS: dict[str, Callable[[], dict[str, Callable[[], Case]]]] = {"identity": identity_makers}
GROUPS = tuple(MAKERS)
