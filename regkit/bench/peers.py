"""Registration packages from PyPI as methods of the benchmark; each is imported when it registers.

All get the same images: a CT is clipped to the window that regkit takes by default, because the histogram of
mutual information would otherwise be spent on air and metal; any other image is as it is in its file. Time
counts from the files on; importing the package does not count.
"""

from __future__ import annotations

import shlex
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from regkit.bench.method import Inputs, Method, MethodResult
from regkit.bench.peer import Peer, PeerImages, StageTimer
from regkit.core.errors import RegkitError, reason
from regkit.core.geometry import Float64, Grid, affine_transform
from regkit.io.formats import from_learn2reg, read_linear, write_linear
from regkit.io.images import Volume
from regkit.warp import Warp

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_CT = "a CT clipped to regkit's window"


class Ants(Peer):
    """ANTs by antspyx: SyN with mutual information, after a rigid and an affine stage or a given start."""

    name, module, distribution = "ants", "ants", "antspyx"
    note = (
        "SyN with mutual information, by default without iterations at full resolution; its own centres of "
        f"mass, rigid and affine stage, or the start; {_CT}"
    )
    iterations = (40, 20, 0)  # antspyx' default: at a quarter of the resolution, at half of it, at the full
    metric, sampling = "mattes", 32  # of SyN; sampling is the bins of a histogram, or for CC a radius
    step = 0.2  # of the gradient
    kinds = ("SyNRA", "SyNOnly")  # without a start, and with one

    def register(self, inputs: Inputs) -> MethodResult:
        import ants

        clock = StageTimer()
        pair = PeerImages.load(inputs.case)
        fixed, moving, fixed_mask, moving_mask = (
            None if volume is None else _to_ants(ants, volume)
            for volume in (pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask)
        )
        (kind, after_start), start = self.kinds, None
        if inputs.start is not None:
            kind, start = after_start, str(inputs.folder / "start.mat")
            write_linear(inputs.start, start)
        clock.end("load")
        # The seed alone: the deterministic mode refuses SyN with mutual information. One thread repeats.
        ants.config.set_ants_deterministic(False, inputs.seed)
        transforms = ants.registration(
            fixed,
            moving,
            kind,
            initial_transform=start,
            outprefix=str(inputs.folder / "ants_"),
            mask=fixed_mask,
            moving_mask=moving_mask,
            mask_all_stages=True,
            reg_iterations=self.iterations,
            grad_step=self.step,
            syn_metric=self.metric,
            syn_sampling=self.sampling,
        )
        clock.end("register")
        linear, warp = np.eye(4), None
        for path in transforms["fwdtransforms"]:  # in the order in which they act on a point
            if path.endswith(".mat"):
                linear = read_linear(path) @ linear
            else:
                warp = Warp.load(path, pair.fixed.grid)
        if warp is None:
            raise RegkitError("ANTs wrote no warp")
        warp = replace(warp.compose(linear), moving_grid=pair.moving.grid)
        clock.end("warp")
        settings = {"type_of_transform": kind, "ct_window": pair.window, **self._chosen()}
        return MethodResult(warp, clock.seconds, settings)

    def _chosen(self) -> dict[str, Any]:
        return {"iterations": self.iterations, "metric": self.metric, "gradient_step": self.step}


class AntsIntermodality(Ants):
    """The deformable stage of ANTs' own script for two modalities, antsIntermodalityIntrasubject.sh."""

    name = "ants-intermodality"
    note = (
        "SyN as in ANTs' script antsIntermodalityIntrasubject.sh (mutual information of 32 bins, 50x50x0, "
        f"step 0.1), after antspyx' rigid and affine stage or the start; {_CT}"
    )
    iterations, step = (50, 50, 0), 0.1


class AntsScript(Ants):
    """ANTs' script for all purposes, antsRegistrationSyN.sh, as antspyx has it."""

    name = "ants-cc"
    note = (
        "antsRegistrationSyN.sh as antspyx has it: rigid and affine with mutual information or the start, "
        f"then SyN with cross-correlation of radius 2 and 100x70x50x20; {_CT}"
    )
    kinds = ("antsRegistrationSyN[s]", "antsRegistrationSyN[so]")

    def _chosen(self) -> dict[str, Any]:
        return {}  # the name says it all


def _to_ants(ants: Any, volume: Volume) -> Any:
    grid = volume.grid
    direction = np.reshape(grid.direction, (3, 3))
    array = np.ascontiguousarray(volume.array.T, dtype=np.float32)
    return ants.from_numpy(array, list(grid.origin), list(grid.spacing), direction)


class Greedy(Peer):
    """Greedy by picsl_greedy, with normalised mutual information.

    Its matrices are RAS, its warps LPS.
    """

    name, module, distribution = "greedy", "picsl_greedy", "picsl_greedy"
    note = (
        "normalised mutual information; its own image centres, rigid and affine stage, or the start; a third "
        f"level where the fixed image has 64 voxels along every axis; {_CT}"
    )

    metric = "NMI"
    deformable: str | None = None  # the metric of the last stage, with what else it is given

    def register(self, inputs: Inputs) -> MethodResult:
        from picsl_greedy import Greedy3D

        clock = StageTimer()
        pair = PeerImages.load(inputs.case)
        arguments: dict[str, Any] = {"fixed": pair.fixed.to_sitk(), "moving": pair.moving.to_sitk()}
        images = f"-i fixed moving -threads {inputs.threads} -seed {inputs.seed} -V 0"
        for option, name, mask in (("-gm", "inside", pair.fixed_mask), ("-mm", "visible", pair.moving_mask)):
            if mask is not None:
                arguments[name] = sitk.Cast(mask.to_sitk(), sitk.sitkFloat32)
                images += f" {option} {name}"
        greedy = Greedy3D()
        clock.end("load")
        # With a third level the affine stage went astray where that had some 10 voxels along an axis.
        levels = "100x50x10" if min(pair.fixed.grid.size) >= 64 else "100x50"
        if inputs.start is None:
            commands = [
                f"{images} -m {self.metric} -a -dof 6 -ia-image-centers -n {levels} -o rigid",
                f"{images} -m {self.metric} -a -dof 12 -ia rigid -n {levels} -o linear",
            ]
            greedy.execute(commands[0], rigid=None, **arguments)
            greedy.execute(commands[1], linear=None)
            matrix, path = np.asarray(greedy["linear"]), "linear"
        else:
            commands, matrix = [], _TO_RAS @ inputs.start @ _TO_RAS
            path = shlex.quote(str(inputs.folder / "start.mat"))  # it takes no array for -it
            np.savetxt(inputs.folder / "start.mat", matrix)
        # -wp 0, because it would round the warp to tenths of voxels.
        metric = self.deformable or self.metric
        commands.append(f"{images} -m {metric} -it {path} -n {levels} -wp 0 -o warp")
        greedy.execute(commands[-1], warp=None, **arguments)
        clock.end("register")
        array = sitk.GetArrayFromImage(greedy["warp"])
        warp = replace(
            Warp(array, pair.fixed.grid).compose(_TO_RAS @ matrix @ _TO_RAS), moving_grid=pair.moving.grid
        )
        clock.end("warp")
        shown = [command.replace(str(inputs.folder), "{folder}") for command in commands]
        return MethodResult(warp, clock.seconds, {"commands": shown, "ct_window": pair.window})


class GreedyWncc(Greedy):
    """Greedy as its quick start has it; its reference advises against mutual information for this stage."""

    name = "greedy-wncc"
    note = (
        "weighted cross-correlation of radius 2 and stationary velocities (-m WNCC 2x2x2 -sv), as in its "
        "quick start; rigid and affine by normalised mutual information, as its reference advises for two "
        f"modalities, or the start; {_CT}"
    )
    deformable = "WNCC 2x2x2 -sv"


class ConvexAdam(Peer):
    """convexAdam on MIND, with its defaults, on the voxels of the fixed image."""

    name, module, distribution = "convexadam", "convexAdam", "convexAdam"
    note = (
        "MIND; no linear stage of its own: the moving image is resampled onto the fixed one by the start (or "
        "the headers), and its mask with it; it counts voxels, so anisotropic ones make its search and "
        f"smoothness anisotropic; {_CT}"
    )

    def register(self, inputs: Inputs) -> MethodResult:
        import torch

        with warnings.catch_warnings():  # it silences the warnings of the whole process
            from convexAdam.convex_adam_MIND import convex_adam_pt

        clock = StageTimer()
        pair = PeerImages.load(inputs.case)
        start = np.eye(4) if inputs.start is None else inputs.start
        grid = pair.fixed.grid
        if min(grid.size) < 12:
            raise RegkitError(f"convexAdam needs 12 voxels along every axis; the fixed image has {grid.size}")
        resampled = _resampled(pair.moving, grid, start, sitk.sitkLinear, float(pair.moving.array.min()))
        images = [pair.fixed.array.T, resampled.T]
        masks: dict[str, Any] = {}
        if resampled.min() == resampled.max():
            raise RegkitError(
                "convexAdam has no linear stage, and the images do not overlap: give it a start"
            )
        if pair.fixed_mask or pair.moving_mask:
            # It takes both or none, as files, and with them only even numbers of voxels.
            inside = [np.ones(grid.shape, np.float32)] * 2
            if pair.fixed_mask:
                inside[0] = pair.fixed_mask.array.astype(np.float32)
            if pair.moving_mask:
                inside[1] = _resampled(pair.moving_mask, grid, start, sitk.sitkNearestNeighbor, 0)
            odd = [(0, n % 2) for n in grid.size]
            images = [np.pad(image, odd, mode="edge") for image in images]
            masks = {"use_mask": True}
            for role, mask in zip(("fixed", "moving"), inside):
                path = inputs.folder / f"{role}_mask.nii.gz"
                sitk.WriteImage(sitk.GetImageFromArray(np.pad(mask.T, odd).T), str(path))
                masks[f"path_{role}_mask"] = path
        clock.end("load")
        gpu = inputs.device != "cpu" and torch.cuda.is_available()
        displacement = convex_adam_pt(
            *(np.ascontiguousarray(image) for image in images),
            dtype=torch.float16 if gpu else torch.float32,
            device=torch.device("cuda" if gpu else "cpu"),
            **masks,
        )
        clock.end("register")
        x, y, z = grid.size
        warp = replace(
            Warp.of(from_learn2reg(displacement[:x, :y, :z], grid, grid)).compose(start),
            moving_grid=pair.moving.grid,
        )
        clock.end("warp")
        return MethodResult(
            warp, clock.seconds, {"device": "cuda" if gpu else "cpu", "ct_window": pair.window}
        )


def _resampled(
    volume: Volume, grid: Grid, start: Float64, interpolator: int, border: float
) -> npt.NDArray[np.float32]:
    """What a moving image shows on a fixed grid after the start, (z, y, x)."""
    image = sitk.Resample(
        volume.to_sitk(), grid.blank(), affine_transform(start), interpolator, border, sitk.sitkFloat32
    )
    return sitk.GetArrayFromImage(image)


class Elastix(Peer):
    """elastix by itk-elastix: its default parameter maps."""

    name, module, distribution = "elastix", "itk", "itk-elastix"
    iterations = 256  # on each of four levels, as in its maps
    note = (
        "its default maps with mutual information; its own geometric centres, rigid and affine stage, or the "
        "start, before the B-spline of 10 mm; one thread, whatever is asked for, since it crashed with two; "
        f"{_CT}"
    )

    def register(self, inputs: Inputs) -> MethodResult:
        import itk

        itk.elastix_registration_method  # noqa: B018 - loads what takes seconds

        clock = StageTimer()
        pair = PeerImages.load(inputs.case)
        fixed, moving = (_to_itk(itk, volume) for volume in (pair.fixed, pair.moving))
        maps = itk.ParameterObject.New()
        stages = ["bspline"] if inputs.start is not None else ["rigid", "affine", "bspline"]
        for stage in stages:
            chosen = maps.GetDefaultParameterMap(stage)
            chosen["RandomSeed"] = [str(inputs.seed)]
            chosen["MaximumNumberOfIterations"] = [str(self.iterations)]
            chosen["WriteResultImage"] = ["false"]
            # By default a mask is eroded at each coarse level, a small one to nothing, and a quarter of the
            # samples have to lie in the moving one.
            chosen["ErodeMask"] = ["false"]
            if pair.moving_mask is not None:
                chosen["RequiredRatioOfValidSamples"] = ["0.01"]
            if stage == "rigid":
                chosen["AutomaticTransformInitialization"] = ["true"]
                chosen["AutomaticTransformInitializationMethod"] = ["GeometricalCenter"]
            maps.AddParameterMap(chosen)
        elastix = itk.ElastixRegistrationMethod.New(fixed, moving)
        elastix.SetParameterObject(maps)
        # With two, 0.25.4 ended in a segmentation fault.
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
        itk.MultiThreaderBase.SetGlobalMaximumNumberOfThreads(1)
        elastix.SetNumberOfThreads(1)
        elastix.SetLogToConsole(False)
        elastix.SetOutputDirectory(str(inputs.folder))
        elastix.SetLogFileName("elastix.log")
        elastix.SetLogToFile(True)
        if pair.fixed_mask is not None:
            elastix.SetFixedMask(_to_itk(itk, pair.fixed_mask))
        if pair.moving_mask is not None:
            elastix.SetMovingMask(_to_itk(itk, pair.moving_mask))
        if inputs.start is not None:
            initial = itk.ParameterObject.New()
            initial.AddParameterMap(_elastix_affine(inputs.start, pair.fixed.grid))
            elastix.SetInitialTransformParameterObject(initial)
        clock.end("load")
        try:
            elastix.UpdateLargestPossibleRegion()
        except RuntimeError as error:
            log = (inputs.folder / "elastix.log").read_text(encoding="utf-8", errors="replace")
            messages = [line for line in log.splitlines() if line.startswith("Description:")]
            raise RegkitError(
                f"elastix failed: {reason(RuntimeError(messages[0][13:]) if messages else error)}"
            ) from error
        clock.end("register")
        image = itk.transformix_deformation_field(
            moving,
            elastix.GetTransformParameterObject(),
            output_directory=str(inputs.folder),  # or it would write into the folder that it runs in
        )
        warp = Warp(itk.array_from_image(image), pair.fixed.grid, pair.moving.grid)
        clock.end("warp")
        settings = {"maps": stages, "iterations": self.iterations, "ct_window": pair.window}
        return MethodResult(warp, clock.seconds, settings)


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
    numbers = {
        "NumberOfParameters": [12],
        "TransformParameters": [*matrix[:3, :3].ravel().tolist(), *matrix[:3, 3].tolist()],
        "CenterOfRotationPoint": [0.0, 0.0, 0.0],
        "FixedImageDimension": [3],
        "MovingImageDimension": [3],
        "Size": grid.size,
        "Index": [0, 0, 0],
        "Spacing": grid.spacing,
        "Origin": grid.origin,
        "Direction": np.reshape(grid.direction, (3, 3)).T.ravel().tolist(),  # it goes down the columns
    }
    words = {
        "Transform": "AffineTransform",
        "InitialTransformParameterFileName": "NoInitialTransform",
        "HowToCombineTransforms": "Compose",
        "FixedInternalImagePixelType": "float",
        "MovingInternalImagePixelType": "float",
        "UseDirectionCosines": "true",
    }
    return {k: [v] for k, v in words.items()} | {k: [repr(v) for v in vs] for k, vs in numbers.items()}


_ALL: tuple[Method, ...] = (
    Ants(),
    AntsIntermodality(),
    AntsScript(),
    Greedy(),
    GreedyWncc(),
    ConvexAdam(),
    Elastix(),
)
PEERS: dict[str, Method] = {method.name: method for method in _ALL}
