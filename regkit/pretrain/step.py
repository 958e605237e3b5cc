"""One training step: a batch of pairs through the network, and the sum of the losses."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from regkit.features.equalise import equalised
from regkit.features.unet import UNet, in_bfloat16
from regkit.features.weights import unit
from regkit.pretrain.config import Config
from regkit.pretrain.losses import (
    Projection,
    affinity_loss,
    balance,
    distance_loss,
    draw,
    interpolated,
    label_contrastive_loss,
    local_contrastive_loss,
    rows,
    structure_loss,
)
from regkit.pretrain.targets import targets_of
from regkit.synthesis.noise import Rng, onto
from regkit.synthesis.pairs import Views

_NEAREST = 2  # cells: closer to the partner than this, a place is no negative


@dataclass(frozen=True)
class Batch:
    """Pairs, first views and second views alternating.

    Args:
        images: (2B, 1, Z, Y, X), equalised as they are for the network when it registers.
        labels: (2B, Z, Y, X) uint8.
        visible: (2B, z, y, x) bool, the cells that lie wholly in the field of view.
        partner: (B, 3, z, y, x): where each cell of the second view lies in the first, in cells.
        structures: (2B, z, y, x) uint8, of the cells.
    """

    images: torch.Tensor
    labels: torch.Tensor
    visible: torch.Tensor
    partner: torch.Tensor
    structures: torch.Tensor

    def split(self, count: int) -> list[Batch]:
        """So many batches of equal size, which share its memory."""
        parts = (getattr(self, field.name).chunk(count) for field in fields(Batch))
        return [Batch(*part) for part in zip(*parts)]

    def partners(self, pair: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Where the M cells of a pair's second view lie in the first, (3, M) in cells; the numbers (M,) of
        the nearest cells there; and (M,) whether both are seen.
        """
        coordinates = self.partner[pair].flatten(1)
        shape = _extent(self.partner[pair])
        whole = coordinates.round().long()
        at = _flat_index(whole, shape)
        inside = ((whole >= 0) & (whole < shape)).all(0)
        first, second = self.visible[2 * pair].flatten(), self.visible[2 * pair + 1].flatten()
        return coordinates, at, inside & second & first[at]


def collate(views: Views, stride: int) -> Batch:
    """A batch as the network takes it."""
    return Batch(
        equalised(views.images)[:, None],
        views.labels,
        F.avg_pool3d(views.visible[:, None].float(), stride)[:, 0] > 0.99,
        (F.avg_pool3d(views.partner, stride) - (stride - 1) / 2) / stride,
        views.structures[(slice(None), *(slice(stride // 2, None, stride),) * 3)],
    )


class Student(nn.Module):
    """The network and the projection heads of its decoder levels.

    Args:
        config: of the run.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.network = UNet(config.architecture)
        widths = [config.width * 2**k for k in reversed(range(config.levels))] + [config.loss.embedding]
        self.heads = nn.ModuleList(Projection(width) for width in widths if config.loss.label)

    def losses(self, batch: Batch, rng: Rng) -> dict[str, torch.Tensor]:
        """Every loss that has a weight, by name."""
        loss = self.config.loss
        with in_bfloat16(batch.images.device):
            output, levels = self.network.forward_levels(batch.images)
        groups = self.config.reading.channels
        values = output.float().split([group.count for group in groups], dim=1)
        parts = {group.name: part for group, part in zip(groups, values)}
        losses = {}
        if loss.affinity or loss.distance or loss.local:
            targets = targets_of(batch.labels, loss.offsets if loss.affinity else (), self.config.stride)
        if loss.affinity:
            losses["affinity"] = affinity_loss(parts["affinity"], targets, batch.visible)
        if loss.distance:
            losses["distance"] = distance_loss(parts["distance"], targets, batch.visible)
        if loss.local:
            nearness = 0.1 + targets.distance[1::2, 1]
            losses["local"] = self._local(parts["embedding"], nearness, batch, rng)
        if loss.label:
            losses["label"] = self._label([*levels[1:], parts["embedding"]], batch, rng)
        if loss.structure:
            losses["structure"] = structure_loss(parts["structure"], batch.structures, batch.visible)
        return losses

    def total(self, losses: dict[str, torch.Tensor]) -> torch.Tensor:
        """The weighted sum."""
        terms = [getattr(self.config.loss, name) * value for name, value in losses.items()]
        return torch.stack(terms).sum()

    def _local(self, embedding: torch.Tensor, nearness: torch.Tensor, batch: Batch, rng: Rng) -> torch.Tensor:
        """Local contrast; anchors are cells of the second views, more of them near boundaries."""
        loss = self.config.loss
        vectors = unit(embedding)
        values = []
        for k in range(len(batch.partner)):
            first, second = vectors[2 * k], vectors[2 * k + 1]
            shape = _extent(first)
            flat, _, usable = batch.partners(k)
            if not usable.any():
                continue
            anchors = draw(usable * nearness[k].flatten(), loss.anchors, rng)
            centre = flat[:, anchors, None].round().long()
            reach = torch.randint(
                -loss.neighbourhood,
                loss.neighbourhood + 1,
                (3, len(anchors), loss.negatives),
                generator=rng.voxels,
                device=first.device,
            )
            place = torch.minimum((centre + reach).clamp_min(0), shape[..., None] - 1)
            allowed = (place - centre).abs().amax(0) >= _NEAREST
            others = rows(first, _flat_index(place, shape[..., None]).flatten()).view(*allowed.shape, -1)
            values.append(
                local_contrastive_loss(
                    rows(second, anchors),
                    unit(interpolated(first, flat[:, anchors])),
                    others,
                    allowed,
                    loss.local_temperature,
                )
            )
        return torch.stack(values).mean() if values else embedding.sum() * 0

    def _label(self, levels: list[torch.Tensor], batch: Batch, rng: Rng) -> torch.Tensor:
        """Label contrast of each pair, at each decoder level and in the embedding."""
        loss = self.config.loss
        values = []
        for head, features in zip(self.heads, levels):
            step = batch.labels.shape[-1] // features.shape[-1]
            middle = (slice(None), *(slice(step // 2, None, step),) * 3)
            labels = batch.labels[middle].flatten(1).long()
            cells = step // self.config.stride
            middle = (slice(None), *(slice(cells // 2, None, cells),) * 3)
            visible = batch.visible[middle].flatten(1)
            chosen = [draw(balance(a, b), loss.anchors // 2, rng) for a, b in zip(labels, visible)]
            vectors = torch.cat([rows(f, index) for f, index in zip(features.float(), chosen)])
            vectors = head(vectors).unflatten(0, (-1, loss.anchors // 2 * 2))
            drawn = torch.stack([a[index] for a, index in zip(labels, chosen)]).view(len(vectors), -1)
            # A cell of the second view is another than that of the same number in the first.
            numbers = torch.stack([index + labels.shape[1] * (k % 2) for k, index in enumerate(chosen)])
            numbers = numbers.view(len(vectors), -1)
            both_visible = visible.any(1).view(-1, 2).all(1)
            for vector, label, cell, usable in zip(vectors, drawn, numbers, both_visible):
                values.append(usable * label_contrastive_loss(vector, label, cell, loss.label_temperature))
        return torch.stack(values).mean()


def _extent(volume: torch.Tensor) -> torch.Tensor:
    """Cells of a volume (C, Z, Y, X) along x, y and z, (3, 1)."""
    return onto(volume.device, volume.shape[:0:-1], np.int64)[:, None]


def _flat_index(voxels: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Flat index of whole index coordinates (3, ...), (x, y, z), clamped into a volume."""
    x, y, z = torch.minimum(voxels.clamp_min(0), shape - 1)
    return (z * shape[1] + y) * shape[0] + x
