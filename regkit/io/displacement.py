"""A displacement field that knows its grid: what the files of warps hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from regkit.core.errors import RegkitError
from regkit.core.geometry import Grid
from regkit.runtime.memory import check_fits_memory


@dataclass(frozen=True, eq=False)
class DisplacementField:
    """Displacements p -> T(p) - p on the fixed image's grid.

    Args:
        field: (z, y, x, 3) float32, LPS mm, components (x, y, z).
        grid: the fixed image's grid, on which the field lies.
        moving_grid: the grid of the moving image the warp was made for, or None where it is not known:
            no file format holds it.

    Raises:
        RegkitError: if the field does not fit the grid or is not finite.
    """

    field: npt.NDArray[np.float32]
    grid: Grid
    moving_grid: Grid | None = None

    def __post_init__(self) -> None:
        # Writeable, because torch.from_numpy shares the memory and warns otherwise.
        field = np.require(self.field, dtype=np.float32, requirements=["C", "W"])
        if field.shape != (*self.grid.shape, 3):
            raise RegkitError(
                f"a displacement field of shape {field.shape} does not fit a grid of shape {self.grid.shape}"
            )
        if not (np.isfinite(field.min()) and np.isfinite(field.max())):
            raise RegkitError("the displacement field has values that are infinite or not a number")
        object.__setattr__(self, "field", field)

    @classmethod
    def from_transform(cls, transform: sitk.Transform, grid: Grid, moving_grid: Grid | None = None) -> Self:
        """Any 3-D ITK transform (fixed point -> moving point), sampled at the voxels of ``grid``."""
        if transform.GetDimension() != 3:
            raise RegkitError(f"a warp is 3-D, but the transform is {transform.GetDimension()}-D")
        image = sitk.TransformToDisplacementField(
            transform, sitk.sitkVectorFloat32, grid.size, grid.origin, grid.spacing, grid.direction
        )
        return cls(sitk.GetArrayFromImage(image), grid, moving_grid)

    def to_sitk(self) -> sitk.DisplacementFieldTransform:
        """The same transform in ITK (float64 inside). Beyond the grid ITK moves no point at all."""
        # A copy of the field in each precision.
        check_fits_memory(self.field[..., 0].size, "the warp as a transform of ITK", 12 + 24)
        image = self.grid.to_sitk(self.field, vector=True)
        return sitk.DisplacementFieldTransform(sitk.Cast(image, sitk.sitkVectorFloat64))
