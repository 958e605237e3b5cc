"""One training step: which losses there are, what they look at, and that they can be learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from regkit.features.equalise import equalised
from regkit.pretrain.config import Config, Loss
from regkit.pretrain.losses import balance, rows
from regkit.pretrain.step import Batch, Student, collate
from regkit.pretrain.targets import STRUCTURE_CHANNELS
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs, Synthesiser
from regkit.synthesis.shape_sources import Procedural

CONFIG = Config(
    width=4,
    levels=2,
    stride=2,
    batch=2,
    pairs=Pairs(16, 2, 4, 10.0, 0.1, 0.1, 1, Ensembles(24, (4, 6), (3.0, 8.0), 3, (1.5, 3.0))),
    loss=Loss(1.0, 2.0, 0.3, 0.2, 0.7, offsets=(2, 4), embedding=5, anchors=32, neighbourhood=4, negatives=8),
)
WEIGHTS = {"affinity": 1.0, "distance": 2.0, "local": 0.3, "label": 0.2, "structure": 0.7}


def _student(config: Config = CONFIG) -> Student:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Student(config)


@pytest.fixture
def batch() -> Batch:
    synthesiser = Synthesiser(CONFIG.pairs, [(Procedural(), 1.0)], 1, torch.device("cpu"))
    views = synthesiser.draw(range(2))
    # Structures in the second pair alone: ensembles of shapes have none.
    views.structures[2:] = views.labels[2:] % 7
    return collate(views, CONFIG.stride)


@pytest.mark.parametrize("stride", [1, 2, 4])
def test_a_cell_is_the_mean_of_its_voxels(rng: np.random.Generator, stride: int) -> None:
    """Partners of cells are in cells: two views that do not differ have partners that are themselves."""
    synthesiser = Synthesiser(CONFIG.pairs, [(Procedural(), 1.0)], 3, torch.device("cpu"))
    views = synthesiser.draw(range(2))
    axis = torch.arange(16.0)
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    seen = torch.from_numpy(rng.random((2, 16, 16, 16)) < 0.95)
    views.partner[0] = torch.stack([x, y, z]) + 2.0 * stride
    views.visible[:2] = seen
    found = collate(views, stride)
    cells = 16 // stride
    at = torch.arange(float(cells))
    expected = torch.stack(torch.meshgrid(at, at, at, indexing="ij")[::-1]) + 2
    torch.testing.assert_close(found.partner[0], expected)
    seen_by_network = [equalised(image) for image in views.images]
    assert torch.equal(found.images[:, 0], torch.stack(seen_by_network))
    assert torch.equal(found.labels, views.labels)
    blocks = seen.unflatten(3, (cells, stride)).unflatten(2, (cells, stride)).unflatten(1, (cells, stride))
    assert torch.equal(found.visible[:2], blocks.all(6).all(4).all(2))


def test_losses_are_finite_and_reach_every_parameter(batch: Batch) -> None:
    student = _student()
    losses = student.losses(batch, Rng.of(0))
    assert list(losses) == list(WEIGHTS)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())
    student.total(losses).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_the_total_is_the_weighted_sum(batch: Batch) -> None:
    student = _student()
    losses = student.losses(batch, Rng.of(0))
    expected = sum(WEIGHTS[name] * float(loss.detach()) for name, loss in losses.items())
    assert float(student.total(losses).detach()) == pytest.approx(expected, rel=1e-5)


def test_the_same_dice_give_the_same_losses(batch: Batch) -> None:
    one, again, other = (_student().losses(batch, Rng.of(0, k)) for k in (1, 1, 2))
    for name in WEIGHTS:
        assert torch.equal(one[name], again[name])
        assert torch.equal(one[name], other[name]) == (name in ("affinity", "distance", "structure"))


def test_one_batch_can_be_learnt_by_heart(batch: Batch) -> None:
    student = _student(replace(CONFIG, loss=replace(CONFIG.loss, label=1.0)))
    optimiser = torch.optim.AdamW(student.parameters(), lr=1e-2)
    history = []
    for step in range(40):
        losses = student.losses(batch, Rng.of(0, step))
        optimiser.zero_grad()
        student.total(losses).backward()
        optimiser.step()
        history.append({name: float(loss.detach()) for name, loss in losses.items()})
    for name in WEIGHTS:
        first, last = (np.mean([h[name] for h in part]) for part in (history[:5], history[-5:]))
        assert last < (0.98 if name == "label" else 0.95) * first, name


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_loss_without_weight_is_left_out_with_its_channels(batch: Batch, name: str) -> None:
    # Either contrast trains the embedding.
    channels = {"affinity": 12, "distance": 6, "local": 0, "label": 0, "structure": STRUCTURE_CHANNELS}
    config = replace(CONFIG, loss=replace(CONFIG.loss, **{name: 0.0}))
    student = _student(config)
    found = student.losses(batch, Rng.of(0))
    assert list(found) == [other for other in WEIGHTS if other != name]
    count = 23 + STRUCTURE_CHANNELS - channels[name]
    assert config.architecture.out_channels == count
    assert student.network(batch.images).shape[1] == count
    assert len(student.heads) == (0 if name == "label" else CONFIG.levels + 1)
    groups = [group for group in ("affinity", "distance", "embedding", "structure") if group != name]
    assert [channels.name for channels in config.reading.channels] == groups
    student.total(found).backward()
    assert all(p.grad is not None for p in student.parameters())


def test_what_is_learnt_from_trunks_is_of_a_size_and_from_shapes_of_none() -> None:
    trunks = replace(CONFIG, pairs=replace(CONFIG.pairs, trunks=0.5, spacing=(2.2, 4.0)))
    assert trunks.reading.spacing == pytest.approx((2.0, 4.4))
    assert replace(CONFIG, pairs=replace(CONFIG.pairs, trunks=0.0)).reading.spacing is None


def test_without_affinities_there_need_be_no_offsets(batch: Batch) -> None:
    config = replace(CONFIG, loss=replace(CONFIG.loss, affinity=0.0, offsets=()))
    assert list(_student(config).losses(batch, Rng.of(0))) == ["distance", "local", "label", "structure"]


def _without_view(batch: Batch, *unseen: int) -> Batch:
    seen = batch.visible.clone()
    seen[list(unseen)] = False
    return replace(batch, visible=seen)


def test_where_nothing_is_seen_there_is_no_loss(batch: Batch) -> None:
    """And the gradient is 0 and not missing, as processes that see something expect it."""
    student = _student()
    losses = student.losses(_without_view(batch, 0, 1, 2, 3), Rng.of(0))
    assert {name: float(loss.detach()) for name, loss in losses.items()} == dict.fromkeys(WEIGHTS, 0.0)
    student.total(losses).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


@pytest.mark.parametrize("name", ["local", "label"])
def test_a_pair_with_an_unseen_view_has_no_contrast(batch: Batch, name: str) -> None:
    config = replace(
        CONFIG, loss=replace(CONFIG.loss, **{n: 0.0 for n in WEIGHTS if n not in (name, "distance")})
    )
    student = _student(config)
    for unseen in (0, 1):
        losses = student.losses(_without_view(batch, unseen, 2), Rng.of(0))
        assert float(losses[name].detach()) == 0
        assert student.losses(_without_view(batch, unseen), Rng.of(0))[name] > 0


def test_labels_are_those_of_the_middle_of_each_cell(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    """A coarse cell has the label and the field of view of the voxel behind its centre."""
    asked = []

    def note(labels: torch.Tensor, usable: torch.Tensor) -> torch.Tensor:
        asked.append((labels, usable))
        return balance(labels, usable)

    monkeypatch.setattr("regkit.pretrain.step.balance", note)
    drawn = []

    def note_rows(features: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        drawn.append(features.shape)
        return rows(features, index)

    monkeypatch.setattr("regkit.pretrain.step.rows", note_rows)
    student = _student(replace(CONFIG, loss=replace(CONFIG.loss, local=0.0)))
    student.losses(batch, Rng.of(0))
    assert drawn == [(8, 4, 4, 4)] * 4 + [(4, 8, 8, 8)] * 4 + [(5, 8, 8, 8)] * 4
    for k, (labels, usable) in enumerate(asked):
        volume, side = k % 4, (4, 8, 8)[k // 4]
        step = 16 // side
        for cell in ((0, 0, 0), (1, 2, 3), (side - 1, 0, 2)):
            voxel = tuple(c * step + step // 2 for c in cell)
            flat = (cell[0] * side + cell[1]) * side + cell[2]
            assert labels[flat] == batch.labels[(volume, *voxel)]
            assert usable[flat] == batch.visible[(volume, *(v // 2 for v in voxel))]


def test_anchors_and_partners_of_the_local_contrast_belong_together(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With an output that says where a cell is in the first view, the two agree; negatives are elsewhere."""
    passed = []

    def note(
        anchors: torch.Tensor,
        partners: torch.Tensor,
        others: torch.Tensor,
        allowed: torch.Tensor,
        temperature: float,
    ) -> torch.Tensor:
        passed.append((anchors, partners, others, allowed))
        return anchors.sum()

    monkeypatch.setattr("regkit.pretrain.step.local_contrastive_loss", note)
    monkeypatch.setattr("regkit.pretrain.step.unit", lambda vectors, dim=1: vectors)
    axis = torch.arange(8.0)
    own = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1])
    embedding = torch.stack([own, batch.partner[0], own, batch.partner[1]])
    student = _student()
    student._local(embedding, torch.ones(2, 8, 8, 8), batch, Rng.of(0))
    assert len(passed) == 2
    for anchors, partners, others, allowed in passed:
        assert anchors.shape == partners.shape == (32, 3)
        # Rounded partners are inside; what is interpolated beyond the outer cells' centres is theirs.
        torch.testing.assert_close(partners, anchors.clamp(0, 7))
        assert ((anchors.round() >= 0) & (anchors.round() < 8)).all()
        away = (others - anchors.round()[:, None]).abs().amax(2)
        assert torch.equal(allowed, away >= 2)
        assert away.max() <= CONFIG.loss.neighbourhood
        assert allowed.any()
