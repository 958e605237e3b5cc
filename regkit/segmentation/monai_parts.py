"""What segmentation takes from MONAI: augmentation, the Dice loss and sliding windows.

Not taken: its readers, orientations and resampling, since the working grid is regkit's, whose conversions
are tested against SimpleITK; its crops by classes, which ask for classes that a volume lacks; its shift of
the histogram, which keeps the order of intensities; its trainers, which need ignite.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from regkit.core.errors import RegkitError, install

BOTH, IMAGE = ("image", "labels"), ("image",)
_OVERLAP = 0.5  # of neighbouring windows
_AT_ONCE = 2  # windows: convolutions of a single small one are several times slower in torch on a CPU


def check_installed() -> None:
    """Raise RegkitError if MONAI is missing."""
    if find_spec("monai") is None:
        raise RegkitError(f"segmentation needs MONAI, which is not installed: {install('segmentation')}")


def augmentation(patch: tuple[int, int, int]) -> Any:
    """Random changes of a dictionary with ``image`` and ``labels``, (1, Z, Y, X), which become patches."""
    from monai.transforms import (
        Compose,
        RandAffined,
        RandBiasFieldd,
        RandGaussianNoised,
        RandGaussianSmoothd,
        RandGridDistortiond,
        RandSimulateLowResolutiond,
    )

    modes, border, blur = ("bilinear", "nearest"), "border", (0.25, 1.0)
    return Compose(
        [
            RandAffined(
                BOTH, prob=0.9, rotate_range=[math.radians(12)] * 3, shear_range=[0.08] * 6,
                scale_range=[0.15] * 3, spatial_size=patch, mode=modes, padding_mode=border,
            ),
            RandGridDistortiond(BOTH, prob=0.3, distort_limit=0.2, mode=modes, padding_mode=border),
            RandGaussianSmoothd(IMAGE, prob=0.2, sigma_x=blur, sigma_y=blur, sigma_z=blur),
            RandSimulateLowResolutiond(IMAGE, prob=0.2, zoom_range=(0.5, 1.0)),
            RandBiasFieldd(IMAGE, prob=0.3, coeff_range=(0.0, 0.2)),
            RandGaussianNoised(IMAGE, prob=0.3, std=0.08),
        ]
    )  # fmt: skip


def dice_loss() -> nn.Module:
    """One minus the soft Dice of each class but background over a batch, from scores and classes."""
    from monai.losses import DiceLoss

    loss: nn.Module = DiceLoss(include_background=False, to_onehot_y=True, softmax=True, batch=True)
    return loss


def sliding_windows(
    image: torch.Tensor,
    patch: tuple[int, int, int],
    scores: Callable[[torch.Tensor], torch.Tensor],
    device: torch.device,
    report: Callable[[float], None],
) -> torch.Tensor:
    """The scores of overlapping windows of an image, the middle of each counting most.

    Args:
        image: (Z, Y, X).
        scores: from patches (N, 1, Z, Y, X) on ``device`` to (N, C, Z, Y, X).
        report: called with the share of the windows that are done.

    Returns:
        (C, Z, Y, X) on the CPU.
    """
    from monai.inferers import sliding_window_inference

    count = math.prod(
        math.ceil(max(0, n - p) / int(p * (1 - _OVERLAP))) + 1 for n, p in zip(image.shape, patch)
    )
    done = 0

    def counted(window: torch.Tensor) -> torch.Tensor:
        nonlocal done
        output = scores(window)
        done += len(window)
        report(min(1.0, done / count))
        return output

    output: torch.Tensor = sliding_window_inference(
        image[None, None], patch, _AT_ONCE, counted, overlap=_OVERLAP, mode="gaussian",
        padding_mode="replicate", sw_device=device, device=torch.device("cpu"),
    )  # fmt: skip
    return output[0]
