"""Registration packages from PyPI as methods of the benchmark; each is imported when it registers.

All get the same images: a CT is clipped to the window that regkit takes by default, because the histogram of
mutual information would otherwise be spent on air and metal; any other image is as it is in its file. Time
counts from the files on; importing the package does not count.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shlex
import time
import warnings
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import SimpleITK as sitk

from regkit.bench.case import Case
from regkit.bench.method import Inputs, Method, Outcome
from regkit.errors import RegkitError
from regkit.formats import from_learn2reg, read_linear, read_warp, write_linear
from regkit.geometry import Float64, Grid, affine_transform, slab_index, slabs, transform_points
from regkit.images import Volume, load_image, load_mask
from regkit.intensity import default_ct_window, is_ct
from regkit.warp import Warp

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CT = "a CT clipped to regkit's window"


@dataclass(frozen=True, eq=False)
class Pair:
    """The images and masks of a case, as every peer is given them.

    Args:
        window: HU, of those that are CT.
    """

    fixed: Volume
    moving: Volume
    fixed_mask: Volume | None
    moving_mask: Volume | None
    window: tuple[float, float] | None

    @classmethod
    def load(cls, case: Case) -> Pair:
        fixed = load_image(case.fixed.image, "fixed image")
        moving = load_image(case.moving.image, "moving image")
        ct = [is_ct(image.array) for image in (fixed, moving)]
        window = default_ct_window(ct) if any(ct) else None
        if window is not None:
            fixed, moving = (
                replace(image, array=image.array.clip(*window)) if clip else image
                for image, clip in zip((fixed, moving), ct)
            )
        masks = [
            None if side.mask is None else load_mask(side.mask, f"{role} mask", image.grid)
            for role, side, image in (("fixed", case.fixed, fixed), ("moving", case.moving, moving))
        ]
        return cls(fixed, moving, *masks, window)


@dataclass
class Clock:
    """Seconds by stage: each ends where the next begins."""

    seconds: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage], self.last = now - self.last, now


def then_linear(warp: Warp, matrix: Float64, moving: Grid) -> Warp:
    """The warp p -> matrix(warp(p)), exact even where the warp leaves its grid."""
    found = np.empty_like(warp.field)
    for first, last in slabs(warp.grid):
        points = transform_points(warp.grid.index_to_world, slab_index(warp.grid, first, last))
        found[first:last] = transform_points(matrix, points + warp.field[first:last]) - points
    return Warp(found, warp.grid, moving)


class _Package:
    """What the peers share: a module to import, of a distribution that pip installs."""

    name: str
    note: str
    module: str
    distribution: str

    def missing(self) -> str | None:
        if importlib.util.find_spec(self.module) is not None:
            try:
                self.version()
                return None
            except importlib.metadata.PackageNotFoundError:  # itk, without elastix
                pass
        return f'{self.distribution} is not installed: pip install "regkit[bench]"'

    def version(self) -> str:
        return f"{self.distribution} {importlib.metadata.version(self.distribution)}"


class Ants(_Package):
    """ANTs by antspyx: SyN with mutual information, after a rigid and an affine stage or a given start."""

    name, module, distribution = "ants", "ants", "antspyx"
    note = (
        f"SyN with mutual information; its own centres of mass, rigid and affine stage, or the start; {_CT}"
    )

    def register(self, inputs: Inputs) -> Outcome:
        import ants

        clock = Clock()
        pair = Pair.load(inputs.case)
        fixed, moving, fixed_mask, moving_mask = (
            None if volume is None else _to_ants(ants, volume)
            for volume in (pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
        )
        kind, start = "SyNRA", None
        if inputs.start is not None:
            kind, start = "SyNOnly", str(inputs.folder / "start.mat")
            write_linear(inputs.start, start)
        clock.end("load")
        # The seed alone: the deterministic mode refuses SyN with mutual information. One thread repeats.
        ants.config.set_ants_deterministic(False, inputs.seed)
        found = ants.registration(
            fixed,
            moving,
            kind,
            initial_transform=start,
            outprefix=str(inputs.folder / "ants_"),
            mask=fixed_mask,
            moving_mask=moving_mask,
            mask_all_stages=True,
        )
        clock.end("register")
        linear, warp = np.eye(4), None
        for path in reversed(found["fwdtransforms"]):  # the last acts last
            if path.endswith(".mat"):
                linear = read_linear(path) @ linear
            else:
                warp = read_warp(path, pair.fixed.grid)
        if warp is None:
            raise RegkitError("ANTs wrote no warp")
        warp = then_linear(warp, linear, pair.moving.grid)
        clock.end("warp")
        return Outcome(warp, clock.seconds, {"type_of_transform": kind, "ct_window": pair.window})


def _to_ants(ants: Any, volume: Volume) -> Any:
    grid = volume.grid
    direction = np.reshape(grid.direction, (3, 3))
    array = np.ascontiguousarray(volume.array.T, dtype=np.float32)
    return ants.from_numpy(array, list(grid.origin), list(grid.spacing), direction)


class Greedy(_Package):
    """Greedy by picsl_greedy, with normalised mutual information.

    Its matrices are RAS, its warps LPS.
    """

    name, module, distribution = "greedy", "picsl_greedy", "picsl_greedy"
    note = (
        f"normalised mutual information; its own image centres, rigid and affine stage, or the start; {_CT}"
    )

    def register(self, inputs: Inputs) -> Outcome:
        from picsl_greedy import Greedy3D

        clock = Clock()
        pair = Pair.load(inputs.case)
        given: dict[str, Any] = {"fixed": pair.fixed.to_sitk(), "moving": pair.moving.to_sitk()}
        images = f"-i fixed moving -m NMI -threads {inputs.threads} -seed {inputs.seed} -V 0"
        for option, name, mask in (("-gm", "inside", pair.fixed_mask), ("-mm", "visible", pair.moving_mask)):
            if mask is not None:
                given[name] = sitk.Cast(mask.to_sitk(), sitk.sitkFloat32)
                images += f" {option} {name}"
        greedy = Greedy3D()
        clock.end("load")
        # On volumes of few voxels a third level goes astray; 10 iterations on the last are Greedy's own advice.
        levels = "100x50x10" if min(pair.fixed.grid.size) >= 64 else "100x50"
        if inputs.start is None:
            commands = [
                f"{images} -a -dof 6 -ia-image-centers -n {levels} -o rigid",
                f"{images} -a -dof 12 -ia rigid -n {levels} -o linear",
            ]
            greedy.execute(commands[0], rigid=None, **given)
            greedy.execute(commands[1], linear=None)
            matrix, path = np.asarray(greedy["linear"]), "linear"
        else:
            commands, matrix = [], _TO_RAS @ inputs.start @ _TO_RAS
            path = shlex.quote(str(inputs.folder / "start.mat"))  # it takes no array for -it
            np.savetxt(inputs.folder / "start.mat", matrix)
        # -wp 0, because it would round the warp to tenths of voxels.
        commands.append(f"{images} -it {path} -n {levels} -wp 0 -o warp")
        greedy.execute(commands[-1], warp=None, **given)
        clock.end("register")
        array = sitk.GetArrayFromImage(greedy["warp"])
        warp = then_linear(Warp(array, pair.fixed.grid), _TO_RAS @ matrix @ _TO_RAS, pair.moving.grid)
        clock.end("warp")
        return Outcome(warp, clock.seconds, {"commands": commands, "ct_window": pair.window})


class ConvexAdam(_Package):
    """convexAdam on MIND, with its defaults, on the voxels of the fixed image."""

    name, module, distribution = "convexadam", "convexAdam", "convexAdam"
    note = (
        "MIND; has no linear stage: the moving image is resampled onto the fixed one through the start (by the "
        "headers where there is none); counts voxels, so anisotropic ones make its search and smoothness "
        f"anisotropic; no masks; {_CT}"
    )

    def register(self, inputs: Inputs) -> Outcome:
        import torch

        with warnings.catch_warnings():  # it silences the warnings of the whole process
            from convexAdam.convex_adam_MIND import convex_adam_pt

        clock = Clock()
        pair = Pair.load(inputs.case)
        start = np.eye(4) if inputs.start is None else inputs.start
        grid = pair.fixed.grid
        if min(grid.size) < 12:
            raise RegkitError(f"convexAdam needs 12 voxels along every axis; the fixed image has {grid.size}")
        seen = sitk.Resample(
            pair.moving.to_sitk(),
            grid.blank(),
            affine_transform(start),
            sitk.sitkLinear,
            float(pair.moving.array.min()),
            sitk.sitkFloat32,
        )
        images = [pair.fixed.array.T, sitk.GetArrayFromImage(seen).T]
        clock.end("load")
        gpu = inputs.device != "cpu" and torch.cuda.is_available()
        found = convex_adam_pt(
            *(np.ascontiguousarray(image) for image in images),
            dtype=torch.float16 if gpu else torch.float32,
            device=torch.device("cuda" if gpu else "cpu"),
        )
        clock.end("register")
        warp = then_linear(from_learn2reg(found, grid, grid), start, pair.moving.grid)
        clock.end("warp")
        return Outcome(warp, clock.seconds, {"device": "cuda" if gpu else "cpu", "ct_window": pair.window})


class Elastix(_Package):
    """elastix by itk-elastix: its default parameter maps."""

    name, module, distribution = "elastix", "itk", "itk-elastix"
    iterations = 256  # on each of four levels, as in its maps
    note = (
        "its default maps with mutual information; its own geometric centres, rigid and affine stage before the "
        f"B-spline of 10 mm, or the start; {_CT}"
    )

    def register(self, inputs: Inputs) -> Outcome:
        import itk

        itk.elastix_registration_method  # noqa: B018 - loads its parts, which takes seconds

        clock = Clock()
        pair = Pair.load(inputs.case)
        fixed, moving = (_to_itk(itk, volume) for volume in (pair.fixed, pair.moving))
        maps = itk.ParameterObject.New()
        stages = ["bspline"] if inputs.start is not None else ["rigid", "affine", "bspline"]
        for stage in stages:
            chosen = maps.GetDefaultParameterMap(stage)
            chosen["RandomSeed"] = [str(inputs.seed)]
            chosen["MaximumNumberOfIterations"] = [str(self.iterations)]
            chosen["WriteResultImage"] = ["false"]
            if stage == "rigid":
                chosen["AutomaticTransformInitialization"] = ["true"]
                chosen["AutomaticTransformInitializationMethod"] = ["GeometricalCenter"]
            maps.AddParameterMap(chosen)
        elastix = itk.ElastixRegistrationMethod.New(fixed, moving)
        elastix.SetParameterObject(maps)
        elastix.SetNumberOfThreads(inputs.threads)
        elastix.SetLogToConsole(False)
        if pair.fixed_mask is not None:
            elastix.SetFixedMask(_to_itk(itk, pair.fixed_mask))
        if pair.moving_mask is not None:
            elastix.SetMovingMask(_to_itk(itk, pair.moving_mask))
        if inputs.start is not None:
            initial = itk.ParameterObject.New()
            initial.AddParameterMap(_elastix_affine(inputs.start, pair.fixed.grid))
            elastix.SetInitialTransformParameterObject(initial)
        clock.end("load")
        elastix.UpdateLargestPossibleRegion()
        clock.end("register")
        image = itk.transformix_deformation_field(moving, elastix.GetTransformParameterObject())
        warp = Warp(itk.array_from_image(image), pair.fixed.grid, pair.moving.grid)
        clock.end("warp")
        return Outcome(warp, clock.seconds, {"maps": stages, "ct_window": pair.window})


def _to_itk(itk: Any, volume: Volume) -> Any:
    """An ITK image; a mask becomes one of uint8."""
    dtype = np.uint8 if volume.array.dtype == bool else np.float32
    image = itk.image_from_array(np.ascontiguousarray(volume.array, dtype=dtype))
    image.SetOrigin(volume.grid.origin)
    image.SetSpacing(volume.grid.spacing)
    image.SetDirection(itk.matrix_from_array(np.reshape(volume.grid.direction, (3, 3))))
    return image


def _elastix_affine(matrix: Float64, grid: Grid) -> dict[str, list[str]]:
    """A 4x4 matrix as elastix' own affine transform, whose file says on which grid it was found."""
    values: dict[str, Any] = {
        "Transform": ["AffineTransform"],
        "NumberOfParameters": [12],
        "TransformParameters": [*matrix[:3, :3].ravel(), *matrix[:3, 3]],
        "CenterOfRotationPoint": [0.0, 0.0, 0.0],
        "InitialTransformParameterFileName": ["NoInitialTransform"],
        "HowToCombineTransforms": ["Compose"],
        "FixedImageDimension": [3],
        "MovingImageDimension": [3],
        "FixedInternalImagePixelType": ["float"],
        "MovingInternalImagePixelType": ["float"],
        "Size": grid.size,
        "Index": [0, 0, 0],
        "Spacing": grid.spacing,
        "Origin": grid.origin,
        "Direction": np.reshape(grid.direction, (3, 3)).T.ravel(),  # elastix goes down the columns
        "UseDirectionCosines": ["true"],
    }
    return {
        k: [v if isinstance(v, str) else repr(v.item() if hasattr(v, "item") else v) for v in vs]
        for k, vs in values.items()
    }


PEERS: dict[str, Method] = {method.name: method for method in (Ants(), Greedy(), ConvexAdam(), Elastix())}
