"""The losses of pretraining. Each is a mean over what it looks at, in float32."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from regkit.features.weights import unit
from regkit.pretrain.targets import Targets
from regkit.synthesis.noise import Rng


def affinity_loss(logits: torch.Tensor, targets: Targets, visible: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of the affinities, where cells (N, Z, Y, X) are seen and offsets stay inside."""
    known = visible[:, None] & ~targets.affinity.isnan()
    losses = F.binary_cross_entropy_with_logits(logits, targets.affinity.nan_to_num(0.5), reduction="none")
    return (losses * known).sum() / known.sum().clamp_min(1)


def distance_loss(predicted: torch.Tensor, targets: Targets, visible: torch.Tensor) -> torch.Tensor:
    """Mean squared error of the distance channels over cells that are seen."""
    losses = (predicted - targets.distance).square().mean(1)
    return (losses * visible).sum() / visible.sum().clamp_min(1)


def structure_loss(logits: torch.Tensor, structures: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Cross entropy plus one minus the mean soft Dice of the structures that are there, over seen cells.

    Args:
        logits: (N, C, Z, Y, X).
        structures: (N, Z, Y, X) uint8, numbers below C.
        visible: (N, Z, Y, X) bool.
    """
    numbers = torch.arange(logits.shape[1], device=logits.device).view(-1, 1, 1, 1)
    # By masks, as a GPU would have to be waited for to know how many cells are seen.
    looked_at = visible[:, None]
    truth = looked_at & (structures[:, None] == numbers)
    logarithms = logits.log_softmax(1)
    probabilities = logarithms.exp()
    cells = (0, 2, 3, 4)
    sizes, hits = truth.sum(cells), (probabilities * truth).sum(cells)
    rng = (2 * hits + 1) / ((probabilities * looked_at).sum(cells) + sizes + 1)
    present = sizes > 0
    entropy = -(logarithms * truth).sum() / sizes.sum().clamp_min(1)
    return entropy + ((1 - rng) * present).sum() / present.sum().clamp_min(1)


def label_contrastive_loss(
    vectors: torch.Tensor, labels: torch.Tensor, cells: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Supervised multi-positive InfoNCE (Khosla et al., 2020; Dey et al., 2025).

    Mean over the anchors i of ``-1/|P(i)| sum_p log(exp(z_i.z_p / T) / sum_{a != i} exp(z_i.z_a / T))``, p in
    P(i), the other vectors of the same label. Anchors without a partner are left out. A cell that was drawn
    twice is no partner of itself, and not contrasted with itself.

    Args:
        vectors: (M, C) of unit length.
        labels: (M,).
        cells: (M,) numbers of the cells that the vectors are of.
    """
    similarity = vectors @ vectors.T / temperature
    itself = cells[:, None] == cells
    # Not minus infinity: where nothing is left, the gradient would be none.
    log_total = similarity.masked_fill(itself, -1e4).logsumexp(1)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    mean = (similarity * positive).sum(1) / count.clamp_min(1)
    losses = torch.where(count > 0, log_total - mean, 0.0)
    return losses.sum() / (count > 0).sum().clamp_min(1)


def local_contrastive_loss(
    anchors: torch.Tensor,
    partners: torch.Tensor,
    others: torch.Tensor,
    allowed: torch.Tensor,
    temperature: float,
) -> torch.Tensor:
    """InfoNCE of each anchor's partner against places around that partner.

    Args:
        anchors, partners: (M, C) of unit length.
        others: (M, K, C) of unit length.
        allowed: (M, K), which of them count.
    """
    positive = (anchors * partners).sum(1, keepdim=True)
    negative = torch.einsum("mc,mkc->mk", anchors, others).masked_fill(~allowed, -torch.inf)
    logits = torch.cat([positive, negative], 1) / temperature
    return (logits.logsumexp(1) - logits[:, 0]).mean()


class Projection(nn.Module):
    """The head through which one decoder level is contrasted; dropped after training."""

    def __init__(self, channels: int, width: int = 128) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, width, bias=False),
            nn.BatchNorm1d(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, width, bias=False),
        )

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(M, C) to unit vectors (M, width)."""
        return unit(self.layers(features))


def draw(weights: torch.Tensor, count: int, rng: Rng) -> torch.Tensor:
    """Flat indices of ``count`` cells, each drawn with a probability proportional to its weight (M,)."""
    total = weights.double().cumsum(0)
    at = torch.rand(count, generator=rng.voxels, device=weights.device, dtype=torch.float64) * total[-1]
    # The first sum above the number: that of a cell with a weight, if there is one.
    at = torch.minimum(at, torch.nextafter(total[-1], total.new_zeros(())))
    return torch.searchsorted(total, at, right=True).clamp_max(len(weights) - 1)


def balance(labels: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
    """Weights (M,) under which each label (M,) is drawn as often as any other; 0 where not usable."""
    # Not a bincount, which a GPU is waited for with.
    frequency = torch.zeros(256, device=labels.device).index_add_(0, labels, usable.float())
    return usable / frequency.clamp_min(1)[labels]


def rows(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Vectors (M, C) of features (C, Z, Y, X) at flat cell indices (M,).

    Through ``index_select``: the backward pass of fancy indexing is several times slower.
    """
    return features.flatten(1).index_select(1, index).T


def interpolated(features: torch.Tensor, coordinates: torch.Tensor) -> torch.Tensor:
    """Vectors (M, C) of features (C, Z, Y, X) at index coordinates (3, M), (x, y, z), trilinear."""
    shape = features.shape[1:]
    low = coordinates.floor()
    share = coordinates - low
    total = torch.zeros(())
    for corner in np.ndindex(2, 2, 2):
        steps = [(low[c].long() + corner[c]).clamp(0, shape[2 - c] - 1) for c in range(3)]
        weight = torch.ones_like(share[0])
        for c in range(3):
            weight = weight * (share[c] if corner[c] else 1 - share[c])
        index = (steps[2] * shape[1] + steps[1]) * shape[2] + steps[0]
        total = total + rows(features, index) * weight[:, None]
    return total
