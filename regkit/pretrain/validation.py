"""Validation during training: retrieval of structures, independent of the losses.

Two views are rendered from one label map that training never saw, cut at different places, and one of them
bent. Places in the second, as many of each structure, are looked up in the first by their features, among all
that are within reach of a registration: how often is the most similar one of the same structure?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from regkit.core.errors import RegkitError
from regkit.pretrain.losses import balance, draw, rows
from regkit.pretrain.step import collate
from regkit.synthesis.anatomy import Anatomy
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, cut_and_render

_SIDE = 128  # voxels of a label map along each side
_PAIRS = Pairs(size=96, offset=24, strays=0, ensembles=Ensembles(size=_SIDE))
_PLACES = 500
_REACH = 24  # voxels, along each axis
_VIEWS = 3  # pairs of views of each label map


class Validation:
    """Fixed pairs of views of label maps: every call of :meth:`score` looks at the same ones.

    Args:
        maps: label maps (Z, Y, X) uint8 of 128 voxels along each side.
        stride: voxels per cell of the features that are to be scored.
        device: where the views are made and looked at.
        seed: of the views.
    """

    def __init__(
        self, maps: Sequence[torch.Tensor], stride: int, device: torch.device | str = "cpu", seed: int = 0
    ) -> None:
        self.device = torch.device(device)
        self.batches = [
            collate(
                cut_and_render([Anatomy(labels.to(self.device))], _PAIRS, [self._dice(seed, number, view)]),
                stride,
            )
            for number, labels in enumerate(maps)
            for view in range(_VIEWS)
        ]
        self.stride, self.seed = stride, seed

    @torch.no_grad()
    def score(self, features: Callable[[torch.Tensor], torch.Tensor]) -> float:
        """Share of the places whose nearest neighbour in the other view is of the same structure.

        Args:
            features: from equalised images (2, 1, Z, Y, X) to channels (2, C, Z / stride, ...), compared by
                their squared difference.
        """
        rng = self._dice(self.seed, len(self.batches))
        shares = []
        for batch in self.batches:
            first, second = features(batch.images)
            middle = (slice(None), *(slice(self.stride // 2, None, self.stride),) * 3)
            labels = batch.labels[middle].flatten(1).long()
            visible = batch.visible[0].flatten()
            partner, at, usable = batch.partners(0)
            usable &= labels[0][at] == labels[1]
            here = draw(balance(labels[1], usable), _PLACES, rng)
            along = [
                (at[:, None] - torch.arange(n, device=self.device)).abs() <= _REACH / self.stride
                for at, n in zip(partner.flip(0)[:, here], first.shape[1:])
            ]
            near = along[0][:, :, None, None] & along[1][:, None, :, None] & along[2][:, None, None]
            apart = torch.cdist(rows(second, here), first.flatten(1).T)
            apart.masked_fill_(~(near.flatten(1) & visible), torch.inf)
            shares.append((labels[0][apart.argmin(1)] == labels[1][here]).float().mean())
        return float(torch.stack(shares).mean())

    def _dice(self, *numbers: int) -> Rng:
        return Rng.of(*numbers, device=self.device)


def load_validation_maps(folder: Path) -> list[torch.Tensor]:
    """Label maps of a folder as :class:`Validation` takes them.

    Raises:
        RegkitError: if there is none, or one cannot be read.
    """
    files = sorted(folder.glob("*.nii*")) if folder.is_dir() else []
    if not files:
        raise RegkitError(f"no label map to validate on in '{folder}': expected NAME.nii.gz files")
    from regkit.io.images import load_labels  # needs SimpleITK, which a bare training machine may lack

    return [_reduced(load_labels(file, "validation labels").array) for file in files]


def _reduced(labels: np.ndarray) -> torch.Tensor:
    """(128, 128, 128) uint8, the middle of a map whose longest side fits, its labels numbered anew."""
    ids, numbered = np.unique(labels, return_inverse=True)
    if len(ids) > 256:
        raise RegkitError(f"a label map to validate on has {len(ids)} labels, and may have 256")
    volume = torch.from_numpy(numbered.reshape(labels.shape).astype(np.float32))
    step = max(labels.shape) / _SIDE
    at = [
        (((torch.arange(_SIDE) + 0.5 - _SIDE / 2) * step + n / 2).floor().long().clamp(0, n - 1))
        for n in labels.shape
    ]
    return volume[at[0]][:, at[1]][:, :, at[2]].to(torch.uint8)
