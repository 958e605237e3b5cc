"""A transform of TorchIO that brings one image of a subject onto another.

>>> from regkit.integrations.torchio import Register
>>> to_fixed = Register("mr", "ct")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torchio

from regkit.core.errors import RegkitError
from regkit.tensors import register_tensors


class Register(torchio.transforms.SpatialTransform):  # type: ignore[misc]
    """Register ``subject[moving]`` to ``subject[fixed]`` and resample what is moving on its voxels.

    Label maps among ``also`` move by nearest neighbour, other images linearly.

    Args:
        fixed: the name of the image that stays.
        moving: the name of the image to bring onto it.
        also: names of what belongs to the moving image, such as its label map.
        options: further ones of :func:`regkit.register_tensors`, such as ``preset`` or ``device``.

    Raises:
        RegkitError: when applied, if an image is missing or cannot be registered.
    """

    def __init__(
        self, fixed: str, moving: str, *, also: Sequence[str] = (), options: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.fixed, self.moving, self.also, self.registration = fixed, moving, tuple(also), options or {}
        self.args_names = ["fixed", "moving", "also", "registration"]

    def apply_transform(self, subject: torchio.Subject) -> torchio.Subject:
        """The subject with the moving image, and what belongs to it, on the voxels of the fixed one."""
        names = (self.fixed, self.moving, *self.also)
        for name in names:
            if name not in subject or not isinstance(subject[name], torchio.Image):
                raise RegkitError(f"the subject has no image '{name}'; it has {', '.join(subject.keys())}")
        fixed, moving = (subject[name] for name in names[:2])
        # TorchIO makes every division by zero an error; regkit expects some.
        with np.errstate(all="warn"):
            result = register_tensors(
                fixed.data[None], moving.data[None], fixed.affine, moving.affine, **self.registration
            )
            for name in names[1:]:
                image = subject[name]
                mode = "nearest" if isinstance(image, torchio.LabelMap) else "linear"
                moved = result.apply(image.data[None], image.affine, mode=mode)[0]
                image.set_data(moved.to(torch.float32) if mode == "linear" else moved)
                image.affine = fixed.affine
        return subject
