"""Registration of torch tensors with affines, in batches, and their warps as tensors on the same device.

A tensor has axes (batch, channel, i, j, k), and its affine, 4x4, takes the index (i, j, k), the last three
axes in their order, to RAS mm: as nibabel, MONAI and TorchIO have it. Displacements are RAS mm as well. The
arrays of regkit are (z, y, x) and LPS (:mod:`regkit.core.geometry`); what comes and goes is converted here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any

import numpy as np
import torch

from regkit.core.choices import DEFAULT_FEATURES, FeatureSet, PresetName
from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.io.images import Volume
from regkit.ops.sampling import index_grid, map_index, sample
from regkit.registration import register
from regkit.registration_result import Registration
from regkit.stages import Progress
from regkit.start import Init
from regkit.warp import Warp

_MODES = {"linear": "bilinear", "nearest": "nearest"}


@dataclass(frozen=True, eq=False)
class TensorRegistration:
    """The result of :func:`register_tensors`.

    Args:
        displacement: (B, 3, I, J, K) float32, RAS mm, on the voxels and the device of the fixed tensor: the
            vector from a fixed voxel to its place in the moving image.
        fixed_affine, moving_affine: (B, 4, 4) float64, index -> RAS mm.
        results: the whole result for each pair, on the CPU.
    """

    displacement: torch.Tensor
    fixed_affine: torch.Tensor
    moving_affine: torch.Tensor
    results: tuple[Registration, ...]

    def apply(
        self,
        moving: torch.Tensor,
        affine: torch.Tensor | np.ndarray | None = None,
        *,
        mode: str = "linear",
        default: float | None = None,
    ) -> torch.Tensor:
        """Resample images of the moving side on the voxels of the fixed side; differentiable in their values.

        Args:
            moving: (B, C, I, J, K), on any grid in the world of the moving image.
            affine: of ``moving``, (4, 4) or (B, 4, 4); by default that of the moving image.
            mode: "linear", or "nearest" for labels, which keep their type.
            default: value outside the image; by default 0 for "nearest", else the minimum of each image.

        Returns:
            (B, C, I', J', K') on the device of the displacement.

        Raises:
            RegkitError: if the shape, the affine or the mode cannot be used.
        """
        if mode not in _MODES:
            raise RegkitError(f"mode '{mode}' is unknown: use linear or nearest")
        count = len(self.displacement)
        images = _batch(moving, "moving").to(self.displacement.device)
        if len(images) != count:
            raise RegkitError(f"there are {count} warps and {len(images)} images")
        places = self.moving_affine if affine is None else _affines(affine, count, "the affine")
        kind = images.dtype
        values = images if images.is_floating_point() else images.to(torch.float64)
        warped = []
        for image, warp, own, place in zip(values, self.displacement, self.fixed_affine, places):
            here = index_grid(tuple(warp.shape[1:]), warp.device).flip(0).double()  # components (i, j, k)
            world = map_index(own.numpy(), here) + warp
            index = map_index(np.linalg.inv(place.numpy()), world).to(image.dtype)
            sampled = sample(image, index.flip(0), mode=_MODES[mode])
            size = torch.tensor(image.shape[1:], device=index.device).view(3, 1, 1, 1)
            inside = ((index >= -0.5) & (index <= size - 0.5)).all(dim=0)
            value = default if default is not None else 0.0 if mode == "nearest" else image.min()
            warped.append(
                torch.where(
                    inside, sampled, torch.as_tensor(value, dtype=sampled.dtype, device=sampled.device)
                )
            )
        moved = torch.stack(warped)
        return (
            moved.to(kind)
            if mode == "nearest"
            else moved.to(torch.float32 if kind != torch.float64 else kind)
        )

    def transform_points(self, points: torch.Tensor, item: int = 0) -> torch.Tensor:
        """Map points of a fixed image, RAS mm (..., 3), to the moving image, for one pair of the batch."""
        flip = points.new_tensor([-1.0, -1.0, 1.0])
        moved = self.results[item].warp.transform_points((points * flip).detach().cpu().numpy())
        return torch.from_numpy(moved).to(points) * flip


def register_tensors(
    fixed: torch.Tensor,
    moving: torch.Tensor,
    fixed_affine: torch.Tensor | np.ndarray,
    moving_affine: torch.Tensor | np.ndarray,
    *,
    fixed_mask: torch.Tensor | None = None,
    moving_mask: torch.Tensor | None = None,
    init: Init | Sequence[Init] = "auto",
    features: FeatureSet = DEFAULT_FEATURES,
    weights: str | PathLike[str] | None = None,
    preset: PresetName = "default",
    ct_window: tuple[float, float] | None = None,
    device: str | torch.device | None = None,
    threads: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> TensorRegistration:
    """Register a batch of tensors, pair by pair, without files or ITK objects.

    Args:
        fixed, moving: (B, 1, I, J, K) each; (I, J, K) of the two may differ.
        fixed_affine, moving_affine: (4, 4) or (B, 4, 4), index (i, j, k) -> RAS mm.
        fixed_mask, moving_mask: shaped like their images; voxels above 0.5 count.
        init: one for all pairs, or a list with one for each; as for :func:`regkit.register`, matrices in LPS
            mm.
        features, weights, preset, ct_window, threads, seed, progress: as for :func:`regkit.register`.
        device: where to compute; by default where ``fixed`` is.

    Raises:
        RegkitError: if a shape, an affine or an option cannot be used.
    """
    images = {"fixed": _batch(fixed, "fixed"), "moving": _batch(moving, "moving")}
    count = len(images["fixed"])
    for name, batch in images.items():
        if batch.shape[1] != 1:
            raise RegkitError(f"the {name} tensor has {batch.shape[1]} channels; give one: tensor[:, :1]")
        if len(batch) != count:
            raise RegkitError(f"there are {count} fixed and {len(batch)} moving images")
    affines = {
        "fixed": _affines(fixed_affine, count, "the fixed affine"),
        "moving": _affines(moving_affine, count, "the moving affine"),
    }
    masks = {"fixed": fixed_mask, "moving": moving_mask}
    for name, mask in masks.items():
        if mask is not None and _batch(mask, f"{name} mask").shape != images[name].shape:
            raise RegkitError(
                f"the {name} mask of shape {tuple(mask.shape)} does not fit its image of shape "
                f"{tuple(images[name].shape)}"
            )
    if isinstance(init, list | tuple) and len(init) != count:
        raise RegkitError(f"init is a list of {len(init)} for {count} pairs")
    starts: list[Any] = list(init) if isinstance(init, list | tuple) else [init] * count
    compute_device = fixed.device if device is None else device
    results = []
    for k in range(count):
        sides: dict[str, Any] = {}
        for name, batch in images.items():
            sides[name] = volume_of(batch[k], affines[name][k], f"{name} image {k}")
            if (mask := masks[name]) is not None:
                sides[f"{name}_mask"] = volume_of(mask[k], affines[name][k], f"{name} mask {k}")
        report = None if progress is None else partial(_report, progress, k, count)
        results.append(
            register(
                **sides, init=starts[k], features=features, weights=weights, preset=preset,
                ct_window=ct_window, device=compute_device, threads=threads, seed=seed, progress=report,
            )
        )  # fmt: skip
    displacement = torch.stack([displacement_of(result.warp) for result in results]).to(fixed.device)
    return TensorRegistration(displacement, affines["fixed"], affines["moving"], tuple(results))


def volume_of(tensor: torch.Tensor, affine: torch.Tensor | np.ndarray, name: str = "image") -> Volume:
    """A tensor (I, J, K) or (1, I, J, K) with its affine, index -> RAS mm, as a volume.

    Raises:
        RegkitError: if it is not of such a shape, or the affine is none of a regular grid.
    """
    if tensor.ndim == 4 and len(tensor) == 1:
        tensor = tensor[0]
    if tensor.ndim != 3:
        raise RegkitError(
            f"{name}: a tensor of shape {tuple(tensor.shape)} is not a volume; give (I, J, K) or (1, I, J, K)"
        )
    grid = Grid.from_ras_affine(tuple(tensor.shape), _affines(affine, 1, f"the affine of {name}")[0].numpy())
    return Volume(tensor.permute(2, 1, 0).contiguous(), grid, name)  # type: ignore[arg-type]


def displacement_of(warp: Warp) -> torch.Tensor:
    """The field of a warp as (3, I, J, K) float32, RAS mm, axes as of :func:`volume_of`."""
    field = torch.from_numpy(warp.field).permute(3, 2, 1, 0)
    return field * torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1, 1)


def warp_of(
    displacement: torch.Tensor, affine: torch.Tensor | np.ndarray, moving: Grid | None = None
) -> Warp:
    """The warp of a displacement (3, I, J, K), RAS mm; the inverse of :func:`displacement_of`.

    Args:
        affine: 4x4, index -> RAS mm.
        moving: the grid of the moving image, if it is known.
    """
    if displacement.ndim != 4 or len(displacement) != 3:
        raise RegkitError(f"a displacement has the shape (3, I, J, K), got {tuple(displacement.shape)}")
    affine = _affines(affine, 1, "the affine")[0]
    grid = Grid.from_ras_affine(tuple(displacement.shape[1:]), affine.numpy())
    lps = displacement.detach().cpu().float() * torch.tensor([-1.0, -1.0, 1.0]).view(3, 1, 1, 1)
    return Warp(lps.permute(3, 2, 1, 0).contiguous().numpy(), grid, moving)


def _batch(tensor: torch.Tensor, name: str) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):
        raise RegkitError(f"the {name} image must be a tensor, got a {type(tensor).__name__}")
    if tensor.ndim != 5 or not len(tensor):
        raise RegkitError(
            f"the {name} tensor must have axes (batch, channel, i, j, k), got shape {tuple(tensor.shape)}"
        )
    return tensor.as_subclass(torch.Tensor)


def _affines(affine: torch.Tensor | np.ndarray, count: int, name: str) -> torch.Tensor:
    """(B, 4, 4), float64, on the CPU."""
    matrices = torch.as_tensor(
        np.asarray(affine.cpu() if isinstance(affine, torch.Tensor) else affine)
    ).double()
    if matrices.shape == (4, 4):
        matrices = matrices.expand(count, 4, 4)
    if matrices.shape != (count, 4, 4) or not torch.isfinite(matrices).all():
        raise RegkitError(
            f"{name} must be finite, of shape (4, 4) or ({count}, 4, 4), got {tuple(matrices.shape)}"
        )
    return matrices


def _report(progress: Progress, number: int, count: int, stage: str, done: float) -> None:
    progress(stage if count == 1 else f"pair {number + 1} of {count}: {stage}", (number + done) / count)
