"""Anatomies drawn by processes: batches are as without them, in order, and no process outlives the run."""

from __future__ import annotations

import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pretrain_train import CONFIG

from regkit.core.errors import RegkitError
from regkit.pretrain.batch_loader import batches, step_groups
from regkit.pretrain.run import spare_cores
from regkit.pretrain.train import DistributedContext, PretrainTrainer, train
from regkit.synthesis.shape_sources import Procedural, ShapeSource
from regkit.synthesis.shapes import Shape

pytestmark = pytest.mark.usefixtures("one_thread")
TURNS = replace(CONFIG, steps=12, pairs=replace(CONFIG.pairs, bank=3))
HERE = DistributedContext(0, 1, torch.device("cpu"))


class Failing(Procedural):
    """Gives no shapes."""

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        raise RegkitError("no shapes")


class Fatal(Procedural):
    """Ends the process that draws, as the system does when memory runs out."""

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        os._exit(9)


class Torn(Procedural):
    """Ends the process that draws halfway through what it sends."""

    def draw(self, random: np.random.Generator, device: torch.device) -> Shape:
        Connection.send_bytes = _send_half  # type: ignore[assignment]
        return super().draw(random, device)


def _send_half(self: Connection, message: bytes) -> None:
    os.write(self.fileno(), struct.pack("!i", len(message)) + message[: len(message) // 2])
    os._exit(9)


def _trainer(source: ShapeSource | None = None, where: DistributedContext = HERE) -> PretrainTrainer:
    return PretrainTrainer(TURNS, [(source or Procedural(), 1.0)], where)


@pytest.mark.parametrize("first", [0, 3])
def test_groups_begin_at_multiples_wherever_a_run_goes_on(first: int) -> None:
    """On a GPU; elsewhere a step is drawn by itself."""
    trainer = _trainer()
    trainer.step = first
    assert list(step_groups(trainer)) == [range(k, k + 1) for k in range(first, 12)]
    trainer.context = replace(HERE, device=torch.device("cuda"))
    assert trainer.together == 4
    assert list(step_groups(trainer)) == [range(first, 4), range(4, 8), range(8, 12)]


def test_batches_are_the_same_whoever_draws_the_anatomies() -> None:
    """All fields of all batches, in order, from a step in the middle on."""
    one, other = _trainer(), _trainer()
    one.step = other.step = 3
    with batches(one) as drawn, batches(other, 2) as received:
        pairs = list(zip(drawn, received, strict=True))
    assert len(pairs) == TURNS.steps - 3
    for expected, batch in pairs:
        for name, tensor in vars(expected).items():
            assert torch.equal(tensor, getattr(batch, name)), name
            assert tensor.dtype == getattr(batch, name).dtype


def test_a_run_goes_on_with_another_number_of_processes(tmp_path: Path) -> None:
    sources = [(Procedural(), 1.0)]
    whole = train(TURNS, sources, tmp_path / "whole", context=HERE)
    stopped = train(TURNS, sources, tmp_path / "cut", context=HERE, workers=2, minutes=1e-6)
    assert stopped.step == 1
    cut = train(TURNS, sources, tmp_path / "cut", context=HERE, workers=1)
    assert cut.step == whole.step == TURNS.steps
    for name, tensor in whole.student.state_dict().items():
        assert torch.equal(tensor, cut.student.state_dict()[name]), name


def test_a_process_of_several_draws_its_own_share() -> None:
    config = replace(TURNS, batch=4, steps=2)
    where = DistributedContext(1, 2, HERE.device)
    with batches(PretrainTrainer(config, [(Procedural(), 1.0)], where), 2) as received:
        batch = next(received)
    whole = PretrainTrainer(config, [(Procedural(), 1.0)], HERE).batch(0)
    assert torch.equal(batch.images, whole.images[4:])


def test_an_error_in_drawing_comes_out() -> None:
    with pytest.raises(RegkitError, match="no shapes"), batches(_trainer(Failing()), 2) as received:
        next(received)


@pytest.mark.parametrize(("source", "workers"), [(Fatal(), 1), (Torn(), 1), (Torn(), 2)])
def test_a_process_that_ends_is_an_error(source: ShapeSource, workers: int) -> None:
    message = "has ended, perhaps for lack of memory; take fewer with --workers"
    with pytest.raises(RegkitError, match=message), batches(_trainer(source), workers) as received:
        next(received)
    assert not multiprocessing.active_children()


def test_a_process_that_ended_before_more_is_asked_of_it_is_an_error() -> None:
    trainer = PretrainTrainer(replace(TURNS, steps=60), [(Procedural(), 1.0)], HERE)
    with batches(trainer, 1) as received:
        next(received)
        for process in multiprocessing.active_children():
            process.kill()
        with pytest.raises(RegkitError, match="a process that draws anatomies has ended"):
            for _ in received:
                pass


def test_how_many_processes_draw_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """None beside a CPU; beside a GPU the cores that are left, shared with the other processes here."""
    gpu = DistributedContext(0, 1, torch.device("cuda"))
    assert spare_cores(HERE) == 0
    for cores, processes, expected in ((16, "1", 14), (64, "1", 16), (64, "8", 6), (1, "1", 1)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid, n=cores: set(range(n)), raising=False)
        monkeypatch.setenv("LOCAL_WORLD_SIZE", processes)
        assert spare_cores(gpu) == expected


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc to see processes")
def test_processes_leave_with_a_run_that_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        "import multiprocessing, time\n"
        "from regkit.pretrain.batch_loader import batches, step_groups\n"
        "from test_pretrain_batch_loader import _trainer\n"
        "if __name__ == '__main__':\n"
        "    with batches(_trainer(), 2) as received:\n"
        "        next(received)\n"
        "        next(received)\n"
        "        print(*(p.pid for p in multiprocessing.active_children()), flush=True)\n"
        "        time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout is not None
        children = process.stdout.readline().split()
        process.send_signal(signal.SIGKILL)
    assert children
    until = time.monotonic() + 20
    while any(_running(pid) for pid in children):
        assert time.monotonic() < until, "a process that draws is still there"
        time.sleep(0.1)


def _running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
