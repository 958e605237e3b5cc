"""A dictionary transform of MONAI that brings one image of a case onto another.

>>> from regkit.integrations.monai import RegisterD
>>> to_fixed = RegisterD("mr", "ct", also={"ct_labels": "nearest"})  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform

from regkit.core.errors import RegkitError
from regkit.tensors import register_tensors


class RegisterD(MapTransform):  # type: ignore[misc]
    """Register ``data[moving]`` to ``data[fixed]`` and resample it, and what belongs to it, on its voxels.

    All are MetaTensors (1, I, J, K), or (C, I, J, K) among ``also``, whose ``affine`` is index -> RAS mm, as
    LoadImaged with EnsureChannelFirstd gives them.

    Args:
        fixed: the key of the image that stays.
        moving: the key of the image to bring onto it; its moved self takes its place.
        also: keys of what belongs to the moving image, such as its labels, each with "linear" or "nearest".
        displacement: a key to put the displacement under, (3, I, J, K), RAS mm, on the fixed voxels.
        verdict: a key to put the level of the verdict under: "PASS", "WARN" or "FAIL".
        allow_missing_keys: whether a key of ``also`` may be missing.
        options: further ones of :func:`regkit.register_tensors`, such as ``preset`` or ``device``.

    Raises:
        RegkitError: when called, if an image has no affine or cannot be registered.
    """

    def __init__(
        self,
        fixed: Hashable,
        moving: Hashable,
        *,
        also: Mapping[Hashable, str] | None = None,
        displacement: Hashable | None = None,
        verdict: Hashable | None = None,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        super().__init__([fixed, moving], allow_missing_keys=allow_missing_keys)
        self.fixed, self.moving, self.also = fixed, moving, dict(also or {})
        self.displacement, self.verdict, self.options = displacement, verdict, options

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The dictionary with what was moved in place of what was given."""
        output = dict(data)
        fixed, moving = (_tensor(output, key) for key in (self.fixed, self.moving))
        result = register_tensors(_plain(fixed), _plain(moving), fixed.affine, moving.affine, **self.options)
        for key, mode in {self.moving: "linear", **self.also}.items():
            if key not in output and self.allow_missing_keys:
                continue
            image = _tensor(output, key)
            moved = result.apply(_plain(image), image.affine, mode=mode)[0].to(image.device)
            output[key] = MetaTensor(moved, meta={**image.meta, "affine": fixed.affine})
        if self.displacement is not None:
            output[self.displacement] = MetaTensor(result.displacement[0], affine=fixed.affine)
        if self.verdict is not None:
            output[self.verdict] = result.results[0].verdict.level
        return output


def _tensor(data: Mapping[Hashable, Any], key: Hashable) -> Any:
    image = data.get(key)
    if not isinstance(image, MetaTensor) or image.ndim != 4:
        raise RegkitError(
            f"'{key}' must be a MetaTensor (C, I, J, K), as LoadImaged and EnsureChannelFirstd give it, got "
            f"{'nothing' if image is None else type(image).__name__}"
        )
    return image


def _plain(image: Any) -> torch.Tensor:
    """(1, C, I, J, K)."""
    tensor: torch.Tensor = image.as_tensor()
    return tensor[None]
