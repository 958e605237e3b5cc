"""The losses against plain loops in float64, and how anchors are drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

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
    unit,
)
from regkit.pretrain.targets import Targets
from regkit.synthesis.noise import Rng


def _unit(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    vectors = rng.normal(size=shape)
    return torch.from_numpy(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def _naive_label_contrast(
    vectors: np.ndarray, labels: list[int], cells: list[int], temperature: float
) -> float:
    losses = []
    for i in range(len(labels)):
        others = [a for a in range(len(labels)) if cells[a] != cells[i]]
        total = sum(math.exp(vectors[i] @ vectors[a] / temperature) for a in others)
        terms = [
            -math.log(math.exp(vectors[i] @ vectors[p] / temperature) / total)
            for p in others
            if labels[p] == labels[i]
        ]
        if terms:
            losses.append(sum(terms) / len(terms))
    return sum(losses) / len(losses) if losses else 0.0


def test_structure_loss_is_its_definition(rng: np.random.Generator) -> None:
    """Cross entropy, and one minus the Dice of those structures alone that are there."""
    logits = torch.from_numpy(rng.normal(size=(2, 4, 3, 2, 3)))
    structures = torch.from_numpy(rng.choice([0, 1, 3], (2, 3, 2, 3))).to(torch.uint8)
    seen = torch.from_numpy(rng.random((2, 3, 2, 3)) < 0.7)
    entropy, hits, sizes, counts = [], np.zeros(4), np.zeros(4), np.zeros(4)
    for place in np.argwhere(seen.numpy()):
        n, z, y, x = place
        values = np.exp(logits[n, :, z, y, x].numpy())
        share, truth = values / values.sum(), int(structures[n, z, y, x])
        entropy.append(-math.log(share[truth]))
        hits[truth] += share[truth]
        sizes += share
        counts[truth] += 1
    rng = [(2 * hits[k] + 1) / (sizes[k] + counts[k] + 1) for k in range(4) if counts[k]]
    found = structure_loss(logits, structures, seen)
    assert float(found) == pytest.approx(np.mean(entropy) + 1 - np.mean(rng), rel=1e-10)
    certain = torch.nn.functional.one_hot(structures.long(), 4).movedim(-1, 1) * 60.0
    assert float(structure_loss(certain, structures, seen)) == pytest.approx(0, abs=1e-6)


def _structure_loss_of_chosen(
    logits: torch.Tensor, structures: torch.Tensor, seen: torch.Tensor
) -> torch.Tensor:
    """The same over the cells that are seen, taken out of the others."""
    logits, truth = logits.movedim(1, -1)[seen], structures[seen].long()
    shares, present = logits.softmax(1), torch.bincount(truth, minlength=logits.shape[1])
    hits = torch.zeros_like(shares[0]).index_add(0, truth, shares.gather(1, truth[:, None])[:, 0])
    rng = (2 * hits + 1) / (shares.sum(0) + present + 1)
    return torch.nn.functional.cross_entropy(logits, truth) + 1 - rng[present > 0].mean()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_structure_loss_of_masked_cells_is_that_of_chosen_ones(
    rng: np.random.Generator, dtype: torch.dtype, tolerance: float
) -> None:
    logits = torch.from_numpy(rng.normal(0, 5, (3, 7, 6, 5, 4))).requires_grad_()
    structures = torch.from_numpy(rng.choice([0, 1, 3, 6], (3, 6, 5, 4))).to(torch.uint8)
    seen = torch.from_numpy(rng.random((3, 6, 5, 4)) < 0.6)
    seen[1] = False
    expected = _structure_loss_of_chosen(logits, structures, seen)
    found = structure_loss(logits.to(dtype), structures, seen)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=0)
    slopes = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=0, atol=tolerance)
    assert not slopes[0].movedim(1, -1)[~seen].any()


def test_structure_loss_of_nothing_seen_is_none() -> None:
    logits = torch.ones((1, 3, 2, 2, 2), requires_grad=True)
    loss = structure_loss(logits, torch.zeros((1, 2, 2, 2)), torch.zeros((1, 2, 2, 2), dtype=torch.bool))
    loss.backward()
    assert float(loss.detach()) == 0
    assert not logits.grad.any()


@pytest.mark.parametrize(
    "labels", [[0, 1, 0, 1, 1, 0, 2, 2], [4, 4, 4, 1, 9, 7], [3] * 5, [0, 1, 2, 3], [5, 5]]
)
@pytest.mark.parametrize("temperature", [0.07, 0.33])
def test_label_contrast_is_its_definition(
    rng: np.random.Generator, labels: list[int], temperature: float
) -> None:
    vectors = _unit(rng, len(labels), 6)
    cells = [k if k < 4 else k - 2 for k in range(len(labels))]  # the fifth and sixth are copies
    found = label_contrastive_loss(vectors, torch.tensor(labels), torch.tensor(cells), temperature)
    expected = _naive_label_contrast(vectors.numpy(), labels, cells, temperature)
    assert float(found) == pytest.approx(expected, rel=1e-10, abs=1e-12)


def test_label_contrast_has_a_finite_gradient_also_where_it_says_nothing(rng: np.random.Generator) -> None:
    for labels in ([0, 1, 2, 3], [0, 0, 1, 2], [7, 7, 7, 7]):
        vectors = _unit(rng, 4, 5).float().requires_grad_()
        label_contrastive_loss(vectors, torch.tensor(labels), torch.arange(4), 0.1).backward()
        assert vectors.grad is not None
        assert vectors.grad.isfinite().all()
        assert vectors.grad.any() == (len(set(labels)) < 4)


def _naive_local_contrast(
    anchors: np.ndarray, partners: np.ndarray, others: np.ndarray, allowed: np.ndarray, temperature: float
) -> float:
    losses = []
    for i in range(len(anchors)):
        own = math.exp(anchors[i] @ partners[i] / temperature)
        total = own
        for k in range(others.shape[1]):
            if allowed[i, k]:
                total += math.exp(anchors[i] @ others[i, k] / temperature)
        losses.append(-math.log(own / total))
    return sum(losses) / len(losses)


def test_local_contrast_is_its_definition(rng: np.random.Generator) -> None:
    anchors, partners, others = _unit(rng, 5, 4), _unit(rng, 5, 4), _unit(rng, 5, 7, 4)
    allowed = rng.random((5, 7)) < 0.6
    allowed[2] = False  # nothing to be contrasted with: no loss
    found = local_contrastive_loss(anchors, partners, others, torch.from_numpy(allowed), 0.1)
    expected = _naive_local_contrast(*(t.numpy() for t in (anchors, partners, others)), allowed, 0.1)
    assert float(found) == pytest.approx(expected, rel=1e-10)


def test_local_contrast_has_a_finite_gradient_without_negatives(rng: np.random.Generator) -> None:
    anchors = _unit(rng, 3, 4).requires_grad_()
    nothing = torch.zeros(3, 6, dtype=torch.bool)
    local_contrastive_loss(anchors, _unit(rng, 3, 4), _unit(rng, 3, 6, 4), nothing, 0.1).backward()
    assert anchors.grad is not None
    assert not anchors.grad.any()


def _targets(rng: np.random.Generator) -> Targets:
    affinity = torch.from_numpy(rng.choice([0.0, 0.5, 1.0, np.nan], (2, 6, 3, 4, 5)))
    return Targets(affinity, torch.from_numpy(rng.normal(size=(2, 6, 3, 4, 5))))


def test_affinity_loss_is_its_definition(rng: np.random.Generator) -> None:
    targets, logits = _targets(rng), rng.normal(size=(2, 6, 3, 4, 5))
    seen = rng.random((2, 3, 4, 5)) < 0.7
    losses = []
    for n, c, z, y, x in np.ndindex(logits.shape):
        t, p = float(targets.affinity[n, c, z, y, x]), 1 / (1 + math.exp(-logits[n, c, z, y, x]))
        if seen[n, z, y, x] and not math.isnan(t):
            losses.append(-t * math.log(p) - (1 - t) * math.log(1 - p))
    found = affinity_loss(torch.from_numpy(logits), targets, torch.from_numpy(seen))
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-6)


def test_distance_loss_is_its_definition(rng: np.random.Generator) -> None:
    targets, found = _targets(rng), torch.from_numpy(rng.normal(size=(2, 6, 3, 4, 5)))
    seen = torch.from_numpy(rng.random((2, 3, 4, 5)) < 0.7)
    errors = (found - targets.distance).square().movedim(1, -1)[seen]
    torch.testing.assert_close(distance_loss(found, targets, seen), errors.mean())


def test_what_is_not_seen_or_known_leaves_no_gradient(rng: np.random.Generator) -> None:
    targets = _targets(rng)
    seen = torch.from_numpy(rng.random((2, 3, 4, 5)) < 0.5)
    output = torch.from_numpy(rng.normal(size=(2, 6, 3, 4, 5))).requires_grad_()
    (gradient,) = torch.autograd.grad(affinity_loss(output, targets, seen), output)
    used = seen[:, None] & ~targets.affinity.isnan()
    assert torch.equal(gradient != 0, used)
    (gradient,) = torch.autograd.grad(distance_loss(output, targets, seen), output)
    assert torch.equal(gradient != 0, seen[:, None].expand_as(gradient))
    for loss in (affinity_loss, distance_loss):
        found = loss(output, targets, torch.zeros_like(seen))
        assert float(found.detach()) == 0
        assert not torch.autograd.grad(found, output)[0].any()


def test_unit_vectors_have_length_1_and_a_finite_gradient(rng: np.random.Generator) -> None:
    vectors = torch.from_numpy(rng.normal(size=(4, 5, 3))).requires_grad_()
    for dim in range(3):
        torch.testing.assert_close(
            unit(vectors, dim).norm(dim=dim),
            torch.ones(()).double().expand([n for d, n in enumerate(vectors.shape) if d != dim]),
        )
    nothing = torch.zeros(2, 3, requires_grad=True)
    unit(nothing).sum().backward()
    assert nothing.grad is not None
    assert nothing.grad.isfinite().all()


def test_a_projection_gives_unit_vectors(seeded: None) -> None:
    found = Projection(4, 8)(torch.randn(10, 4))
    torch.testing.assert_close(found.norm(dim=1), torch.ones(10))


def test_cells_are_drawn_by_weight() -> None:
    weights = torch.tensor([0.0, 3.0, 0.0, 1.0, 0.0, 0.0])
    drawn = draw(weights, 4000, Rng.of(2))
    counts = torch.bincount(drawn, minlength=6)
    assert counts[[0, 2, 4, 5]].sum() == 0
    assert float(counts[1]) / 4000 == pytest.approx(0.75, abs=0.03)
    assert torch.equal(drawn, draw(weights, 4000, Rng.of(2)))
    assert not torch.equal(drawn, draw(weights, 4000, Rng.of(3)))


def test_a_cell_without_weight_is_not_drawn_at_either_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for the least and the greatest of the numbers that a generator gives."""
    weights = torch.tensor([0.0, 0.0, 1.0, 0.0, 2.0, 0.0])
    for number, expected in ((0.0, 2), (1 / 3 - 1e-12, 2), (1 / 3 + 1e-12, 4), (1 - 2**-53, 4)):
        given = torch.tensor([number], dtype=torch.float64)
        monkeypatch.setattr(torch, "rand", lambda *_, given=given, **__: given)
        assert draw(weights, 1, Rng.of(0)).tolist() == [expected]


def test_a_seldom_label_is_drawn_as_often_as_a_common_one(rng: np.random.Generator) -> None:
    labels = torch.from_numpy(rng.choice([0, 3, 9, 255], 5000, p=[0.9, 0.05, 0.04, 0.01]))
    usable = torch.from_numpy(rng.random(5000) < 0.5)
    weights = balance(labels, usable)
    assert not weights[~usable].any()
    for label in (0, 3, 9, 255):
        assert float(weights[labels == label].sum()) == pytest.approx(1, rel=1e-4)
    drawn = labels[draw(weights, 4000, Rng.of(1))]
    for label in (0, 3, 9, 255):
        assert float((drawn == label).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert not balance(labels, torch.zeros_like(usable)).any()


def test_rows_are_the_vectors_of_cells(rng: np.random.Generator) -> None:
    features = torch.from_numpy(rng.random((3, 4, 5, 6))).requires_grad_()
    index = torch.tensor([0, 119, 7, 7, 63])
    places = np.unravel_index(index.numpy(), (4, 5, 6))
    found = rows(features, index)
    assert torch.equal(found, features[(slice(None), *map(torch.from_numpy, places))].T)
    (gradient,) = torch.autograd.grad(found.sum(), features)
    assert torch.equal(gradient.flatten(1)[0], torch.bincount(index, minlength=120).double())


def _naive_interpolated(features: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Trilinear, volumes continued by their border values."""
    out = np.zeros((where.shape[1], features.shape[0]))
    size = np.array(features.shape[1:])
    for m, (x, y, z) in enumerate(where.T):
        low = np.floor([z, y, x]).astype(int)
        share = np.array([z, y, x]) - low
        for corner in np.ndindex(2, 2, 2):
            weight = np.prod(np.where(corner, share, 1 - share))
            at = np.clip(low + corner, 0, size - 1)
            out[m] += weight * features[(slice(None), *at)]
    return out


def test_interpolation_is_trilinear(rng: np.random.Generator) -> None:
    features = rng.random((3, 4, 5, 6))
    where = rng.uniform(-1, [[6], [5], [4]], (3, 60))
    where[:, :3] = [[0, 5, 2], [0, 4, 1], [0, 3, 3]]
    found = interpolated(torch.from_numpy(features), torch.from_numpy(where))
    np.testing.assert_allclose(found.numpy(), _naive_interpolated(features, where), atol=1e-12)
    corner = interpolated(torch.from_numpy(features), torch.from_numpy(where[:, 1:2]))
    np.testing.assert_allclose(corner[0].numpy(), features[:, 3, 4, 5])
