"""Passes that are replayed against those that Python launches each time."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from regkit.pretrain import train as training
from regkit.pretrain.batch_loader import batches
from regkit.pretrain.config import Config, Loss
from regkit.pretrain.forward_backward import ForwardBackward, GraphForwardBackward, Work, forward_backward_for
from regkit.pretrain.step import Batch, Student
from regkit.pretrain.train import DistributedContext, PretrainTrainer
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.noise import Rng
from regkit.synthesis.pairs import Pairs
from regkit.synthesis.shape_sources import Procedural

pytestmark = pytest.mark.usefixtures("one_thread")
SHAPES = ((16, 16, 16), (8, 16, 24))
CONFIG = Config(
    width=4,
    levels=2,
    stride=2,
    steps=12,
    batch=2,
    warmup=4,
    pairs=Pairs(16, 3, 4, 10.0, 0.1, 0.1, 1, Ensembles(24, (2, 4), (4.0, 8.0), 1, (2.0, 3.0)), shapes=SHAPES),
    loss=Loss(local=0.0, label=0.0, structure=1.0, offsets=(2, 4)),
)
HERE = DistributedContext(0, 1, torch.device("cpu"))


class _Tape:
    """Records by doing, and counts."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def __call__(self, work: Work) -> Work:
        self.recorded += 1
        work()  # as a warm-up does: nothing may come of it

        def replay() -> dict[str, torch.Tensor]:
            self.replayed += 1
            return work()

        return replay


def _trainer(where: DistributedContext = HERE) -> PretrainTrainer:
    return PretrainTrainer(CONFIG, [(Procedural(), 1.0)], where)


def _batches() -> Iterator[Batch]:
    with batches(_trainer()) as feed:
        yield from feed


def test_replayed_steps_are_those_that_are_not() -> None:
    """Losses and parameters bit for bit, over batches of two shapes that take turns."""
    plain, replayed, tape = _trainer(), _trainer(), _Tape()
    replayed.passes = GraphForwardBackward(replayed.student, tape)
    gradients = [parameter.grad for parameter in replayed.student.parameters()]
    losses = []
    for batch in _batches():
        losses.append((plain.advance(batch), replayed.advance(batch)))
    assert {tuple(batch.images.shape[2:]) for batch in _batches()} == set(SHAPES)
    assert (tape.recorded, tape.replayed) == (2, CONFIG.steps)
    for one, other in losses:  # looked at when all is done: they are nobody else's
        assert one == other
        assert list(one) == ["affinity", "distance", "structure", "gradient"]
    for one, other in zip(plain.student.parameters(), replayed.student.parameters(), strict=True):
        assert torch.equal(one, other)
    for parameter, gradient in zip(replayed.student.parameters(), gradients, strict=True):
        assert parameter.grad is gradient


def test_a_batch_is_not_changed_or_held() -> None:
    trainer = _trainer()
    passes, batch = GraphForwardBackward(trainer.student, _Tape()), trainer.batch(0)
    before = batch.images.clone()
    first = passes(batch, Rng.of(0))["structure"]
    other = replace(batch, images=torch.zeros_like(batch.images))
    assert passes(other, Rng.of(0))["structure"] != first
    assert passes(batch, Rng.of(0))["structure"] == first
    assert torch.equal(batch.images, before)


def test_passes_have_no_history() -> None:
    trainer = _trainer()
    for passes in (
        ForwardBackward(trainer.student),
        GraphForwardBackward(trainer.student, lambda work: work),
    ):
        assert not any(value.requires_grad for value in passes(trainer.batch(0), Rng.of(0)).values())


@pytest.mark.parametrize("loss", ["local", "label"])
def test_what_draws_is_not_replayed(loss: str) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(CONFIG, loss=replace(CONFIG.loss, **{loss: 0.1}))
    assert type(forward_backward_for(Student(config).to(device))) is ForwardBackward


def test_nothing_is_replayed_on_a_cpu() -> None:
    assert type(forward_backward_for(Student(CONFIG))) is ForwardBackward


def test_a_trainer_takes_the_passes_of_its_student(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Student] = []

    def note(student: Student) -> ForwardBackward:
        made.append(student)
        return ForwardBackward(student)

    monkeypatch.setattr(training, "forward_backward_for", note)
    trainer = _trainer()
    assert made == [trainer.student]
    assert trainer.student.training


cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@cuda
def test_steps_of_a_graph_are_those_that_are_launched() -> None:
    """Recorded while another thread draws on the device; bfloat16 and the order of sums differ."""
    where = DistributedContext(0, 1, torch.device("cuda"))
    graphed, plain = _trainer(where), _trainer(where)
    assert type(graphed.passes) is GraphForwardBackward
    plain.passes = ForwardBackward(plain.student)
    with batches(graphed) as feed:
        for batch in feed:
            found, expected = graphed.advance(batch), plain.advance(batch)
            for name in expected:
                torch.testing.assert_close(found[name], expected[name], rtol=0.05, atol=0.01)
    _assert_close(graphed, plain)


def _assert_close(one: PretrainTrainer, other: PretrainTrainer) -> None:
    for found, expected in zip(one.student.parameters(), other.student.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.01)


@cuda
def test_losses_do_not_wait_for_the_device() -> None:
    trainer = _trainer(DistributedContext(0, 1, torch.device("cuda")))
    passes, batch = ForwardBackward(trainer.student), trainer.batch(0)
    passes(batch, Rng.of(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is a prototype, which says so
        torch.cuda.set_sync_debug_mode("error")
    try:
        passes(batch, Rng.of(0))
    finally:
        torch.cuda.set_sync_debug_mode("default")
