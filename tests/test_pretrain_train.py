"""Training runs: cut anywhere and gone on with exactly, on one process or two, and what comes out of them."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from regkit.core.errors import RegkitError
from regkit.features.weights import load_network, reading
from regkit.pretrain import train as training
from regkit.pretrain.config import Config, Loss
from regkit.pretrain.train import (
    DistributedContext,
    PretrainTrainer,
    distributed_context,
    export,
    learning_rate_share,
    train,
)
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.pairs import Pairs
from regkit.synthesis.shape_sources import Procedural
from regkit.training.checkpoint import checkpoints, load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")
CONFIG = Config(
    width=2,
    levels=1,
    stride=2,
    steps=24,
    batch=2,
    warmup=4,
    pairs=Pairs(16, 3, 4, 10.0, 0.1, 0.1, 1, Ensembles(24, (2, 4), (4.0, 8.0), 1, (2.0, 3.0))),
    loss=Loss(offsets=(2, 4), embedding=3, anchors=16, neighbourhood=4, negatives=6, label=0.1, local=0.2),
)
# Without clipping the size of a gradient shows in the moments.
PAIRED = replace(CONFIG, steps=6, clip=1e9)
HERE = DistributedContext(0, 1, torch.device("cpu"))


def _trainer(config: Config = CONFIG, where: DistributedContext = HERE) -> PretrainTrainer:
    return PretrainTrainer(config, [(Procedural(), 1.0)], where)


def _train(run: Path, config: Config = CONFIG, **options: object) -> PretrainTrainer:
    return train(config, [(Procedural(), 1.0)], run, context=HERE, **options)  # type: ignore[arg-type]


def _state(trainer: PretrainTrainer) -> dict[str, torch.Tensor]:
    """All that a run depends on."""
    found = {f"student.{n}": t for n, t in trainer.student.state_dict().items()}
    found |= {f"average.{n}": t for n, t in trainer.average.state_dict().items()}
    for number, values in trainer.optimiser.state_dict()["state"].items():
        found |= {f"optimiser.{number}.{n}": t for n, t in values.items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def _assert_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Has this process sent a signal in the middle of a step."""
    plain = PretrainTrainer.advance

    def stop_at(step: int, number: int = signal.SIGTERM) -> None:
        def advance(self: PretrainTrainer, batch: object) -> dict[str, torch.Tensor]:
            if self.step == step:
                os.kill(os.getpid(), number)
            return plain(self, batch)  # type: ignore[arg-type]

        monkeypatch.setattr(PretrainTrainer, "advance", advance)

    return stop_at


def _log(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        del row["seconds_per_step"]
    return rows


def test_a_run_that_is_cut_equals_one_that_is_not(tmp_path: Path, stop_at: Callable[..., None]) -> None:
    """Weights, averages, moments and log, bit for bit, after two signals in the middle of a step."""
    whole = _train(tmp_path / "whole")
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for step, number in ((12, signal.SIGTERM), (16, signal.SIGINT)):
        stop_at(step, number)
        assert _train(tmp_path / "cut").step == step + 1
        assert checkpoints(tmp_path / "cut")[-1].name == f"step-{step + 1:08d}"
        assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    cut = _train(tmp_path / "cut")
    assert whole.step == cut.step == CONFIG.steps
    assert len(_state(whole)) > 50
    _assert_equal(_state(whole), _state(cut))
    assert _log(tmp_path / "whole") == _log(tmp_path / "cut")
    assert [int(row["step"]) for row in _log(tmp_path / "cut")] == [10, 20]
    for one, other in zip(*(checkpoints(tmp_path / name)[-1:] for name in ("whole", "cut")), strict=True):
        _assert_equal(load_checkpoint(one)[0], load_checkpoint(other)[0])


def test_what_is_loaded_lies_in_memory_as_it_did(tmp_path: Path) -> None:
    """Or the optimiser's fused loops would not run any more, and rounding might differ."""
    trainer, again = _trainer(), _trainer()
    trainer.advance(trainer.batch(0))
    trainer.save(tmp_path)
    again.load(checkpoints(tmp_path)[-1])

    def strides(trainer: PretrainTrainer) -> list[dict[str, tuple[int, ...]]]:
        states = [trainer.optimiser.state[parameter] for parameter in trainer.student.parameters()]
        return [{name: tensor.stride() for name, tensor in state.items()} for state in states]

    assert strides(again) == strides(trainer)
    assert [p.stride() for p in again.student.parameters()] == [
        p.stride() for p in trainer.student.parameters()
    ]


def test_lines_of_the_log_beyond_the_checkpoint_are_written_anew(
    tmp_path: Path, stop_at: Callable[..., None]
) -> None:
    """Also where a crash cut the last line or left an empty one."""
    stop_at(14)
    _train(tmp_path)
    log = tmp_path / "log.csv"
    expected = _log(tmp_path)
    columns = log.read_text(encoding="utf-8").splitlines()[0].count(",")
    log.write_text(log.read_text(encoding="utf-8") + "\n20" + ",1" * columns + "\n30,0.5", encoding="utf-8")
    stop_at(15)
    _train(tmp_path)
    assert _log(tmp_path) == expected
    _train(tmp_path)
    assert [row["step"] for row in _log(tmp_path)] == ["10", "20"]
    assert list(_log(tmp_path)[0]) == [
        *("step", "affinity", "distance", "local", "label", "gradient", "learning_rate")
    ]


def test_a_log_of_an_earlier_run_in_the_folder_is_replaced(tmp_path: Path) -> None:
    for content in ("", "some,thing\n1,2\n", "step,other\n3,4\n50,4\n"):
        (tmp_path / "log.csv").write_text(content, encoding="utf-8")
        _train(tmp_path, minutes=0)
        assert not [row for row in _log(tmp_path) if int(row["step"]) > 1]
        for path in checkpoints(tmp_path):
            (path / "state.json").unlink()


def test_every_step_can_be_saved_and_two_are_kept(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=4)
    _train(tmp_path, config, save_every=0.0)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        *("config.json", "log.csv", "step-00000003", "step-00000004")
    ]
    assert json.loads((tmp_path / "config.json").read_text()) == json.loads(json.dumps(config.to_dict()))


def test_a_run_that_is_done_stays_as_it_is(tmp_path: Path) -> None:
    config = replace(CONFIG, steps=3)
    done = _train(tmp_path, config)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("step-*/*")}
    again = _train(tmp_path, config)
    _assert_equal(_state(done), _state(again))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.glob("step-*/*")} == before


def test_time_that_is_up_ends_a_run_with_a_checkpoint(tmp_path: Path) -> None:
    assert _train(tmp_path, minutes=0).step == 1
    assert _train(tmp_path, minutes=0).step == 2
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000001", "step-00000002"]


def test_losses_are_reported_every_ten_steps(tmp_path: Path) -> None:
    seen: list[tuple[int, list[str]]] = []
    _train(tmp_path, report=lambda step, losses, done: seen.append((step, sorted(losses))))
    assert seen == [(s, ["affinity", "distance", "gradient", "label", "local"]) for s in (10, 20)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 3}, r"of another configuration: width differ"),
        ({"steps": 99, "loss": replace(CONFIG.loss, offsets=(2, 5))}, "loss.offsets, steps differ"),
    ],
)
def test_another_configuration_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    _train(tmp_path, minutes=0)
    before = (tmp_path / "config.json").read_text()
    with pytest.raises(RegkitError, match=message):
        _train(tmp_path, replace(CONFIG, **change))  # type: ignore[arg-type]
    assert (tmp_path / "config.json").read_text() == before


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    _train(tmp_path, minutes=0)
    path = checkpoints(tmp_path)[-1]
    state = json.loads((path / "state.json").read_text())
    for change in ({"config": None}, {"step": "three"}, {"step": None}, {"parts": 0}):
        changed = {k: v for k, v in {**state, **change}.items() if v is not None}
        (path / "state.json").write_text(json.dumps(changed))
        with pytest.raises(RegkitError, match=path.name):
            _train(tmp_path)
    (path / "state.json").write_text(json.dumps(state))
    part = path / "part-00.safetensors"
    part.write_bytes(part.read_bytes()[: part.stat().st_size // 2])
    with pytest.raises(RegkitError, match=r"cannot read the checkpoint.*delete it to go on"):
        _train(tmp_path)


def test_a_full_disk_ends_a_run_with_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _train(tmp_path, minutes=0)
    with monkeypatch.context() as patch:

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        patch.setattr("regkit.training.checkpoint.save_file", full)
        with pytest.raises(RegkitError, match=r"earlier ones are kept.*No space left"):
            _train(tmp_path)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000001"]
    assert not list(tmp_path.glob(".step*"))
    whole = _train(tmp_path / "whole")
    _assert_equal(_state(_train(tmp_path)), _state(whole))


def test_a_run_that_breaks_down_keeps_a_checkpoint_from_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not finite is not saved, though it would only be logged five steps later."""
    plain = PretrainTrainer.advance

    def advance(self: PretrainTrainer, batch: object) -> dict[str, torch.Tensor]:
        losses = plain(self, batch)  # type: ignore[arg-type]
        return losses | {"local": losses["local"] * (math.nan if self.step > 4 else 1)}

    monkeypatch.setattr(PretrainTrainer, "advance", advance)
    with pytest.raises(RegkitError, match=r"losses of step 5 are not finite.*local nan"):
        _train(tmp_path, save_every=0.0)
    assert checkpoints(tmp_path)[-1].name == "step-00000004"
    with pytest.raises(RegkitError, match=r"losses of step 10 are not finite"):
        _train(tmp_path / "seldom")


@pytest.mark.parametrize("name", ["run", "run/log.csv"])
def test_a_folder_that_cannot_be_used(tmp_path: Path, name: str) -> None:
    if name == "run":
        (tmp_path / "run").write_text("a file")
    else:
        (tmp_path / name).mkdir(parents=True)
    with pytest.raises(RegkitError, match=f"cannot .*'{tmp_path / name}'"):
        _train(tmp_path / "run")


def test_an_error_in_making_pairs_comes_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: PretrainTrainer, steps: range) -> None:
        raise RegkitError("no shapes")

    monkeypatch.setattr(PretrainTrainer, "batches", broken)
    with pytest.raises(RegkitError, match="no shapes"):
        _train(tmp_path)


def test_the_learning_rate_rises_and_falls() -> None:
    config = replace(CONFIG, steps=1000, warmup=100)
    rates = [learning_rate_share(step, config) for step in range(1000)]
    assert rates[0] == pytest.approx(0.01, rel=1e-3)
    assert rates[49] == pytest.approx(0.5 * 0.5 * (1 + math.cos(math.pi * 0.049)))
    assert rates.index(max(rates)) == 99
    assert rates[500] == pytest.approx(0.5)
    assert all(a > b for a, b in pairwise(rates[99:]))
    assert 0 < rates[-1] < 1e-4
    assert learning_rate_share(0, replace(config, warmup=0)) == 1


def test_the_rate_of_a_step_is_that_of_the_schedule() -> None:
    trainer = _trainer()
    for step in range(5):
        trainer.advance(trainer.batch(step))
        expected = CONFIG.learning_rate * learning_rate_share(step, CONFIG)
        assert trainer.optimiser.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_average_forgets_its_start_and_follows() -> None:
    trainer = _trainer(replace(CONFIG, learning_rate=1e-9, steps=1000))
    with torch.no_grad():
        for parameter in trainer.average.parameters():
            parameter.fill_(5.0)
    for step in range(30):
        trainer.advance(trainer.batch(step % 2))
    for (name, kept), new in zip(
        trainer.average.state_dict().items(), trainer.student.network.state_dict().values(), strict=True
    ):
        if "running" not in name:
            torch.testing.assert_close(kept, new, atol=1e-3, rtol=0)
    assert not any(parameter.requires_grad for parameter in trainer.average.parameters())


def test_trainers_of_one_seed_are_alike_and_leave_the_global_generator_alone(seeded: None) -> None:
    before = torch.random.get_rng_state()
    one, again, other = _trainer(), _trainer(), _trainer(replace(CONFIG, seed=1))
    assert torch.equal(torch.random.get_rng_state(), before)
    _assert_equal(_state(one), _state(again))
    assert not torch.equal(one.student.network.model[0].weight, other.student.network.model[0].weight)
    assert torch.equal(one.batch(3).images, again.batch(3).images)
    assert not torch.equal(one.batch(3).images, one.batch(4).images)
    assert not torch.equal(one.batch(3).images, other.batch(3).images)


def test_processes_share_the_pairs_of_a_step() -> None:
    config = replace(CONFIG, batch=4)
    whole = _trainer(config).batch(2)
    halves = [_trainer(config, DistributedContext(rank, 2, HERE.device)).batch(2) for rank in range(2)]
    for name in ("images", "labels", "visible", "partner"):
        assert torch.equal(getattr(whole, name), torch.cat([getattr(half, name) for half in halves]))


def test_steps_that_are_drawn_at_once_get_their_own_pairs() -> None:
    """Of volumes whose shapes take turns, each for as many steps as have eight pairs."""
    config = replace(CONFIG, pairs=replace(CONFIG.pairs, shapes=((8, 16, 24), (16, 16, 8), (24, 8, 16))))
    trainer = _trainer(config)
    shapes = [trainer.pairs_of(step)[1] for step in range(64)]
    assert all(len(set(shapes[k : k + 4])) == 1 for k in range(0, 64, 4))
    assert len(set(shapes)) == 3
    for step, batch in zip(range(5, 8), trainer.batches(range(5, 8)), strict=True):
        for name, expected in vars(trainer.batch(step)).items():
            torch.testing.assert_close(getattr(batch, name), expected, atol=1e-4, rtol=0)


def test_pairs_that_do_not_divide_among_the_processes() -> None:
    with pytest.raises(RegkitError, match="a batch of 2 pairs does not divide among 3 processes"):
        _trainer(where=DistributedContext(0, 3, HERE.device))


def test_devices_that_there_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with distributed_context() as where:
        assert where == HERE
    with (
        pytest.raises(RegkitError, match="no device named 'tpu'; available: auto, cpu, cuda"),
        distributed_context("tpu"),
    ):
        pass
    with pytest.raises(RegkitError, match="no CUDA device"), distributed_context("cuda"):
        pass


def test_an_exported_file_says_what_it_is(tmp_path: Path) -> None:
    trainer = _trainer()
    trainer.advance(trainer.batch(0))
    export(trainer, tmp_path / "w.safetensors", "tiny")
    network, provenance = load_network(tmp_path / "w.safetensors")
    assert network.architecture == CONFIG.architecture
    _assert_equal(dict(network.state_dict()), dict(trainer.average.state_dict()))
    assert provenance["name"] == "tiny"
    assert provenance["step"] == "1"
    assert json.loads(provenance["config"]) == json.loads(json.dumps(CONFIG.to_dict()))
    read = reading(provenance, network.architecture.out_channels)
    assert read == CONFIG.reading
    assert [(g.name, g.count) for g in read.channels] == [("affinity", 12), ("distance", 6), ("embedding", 3)]


_SCRIPT = """
import os, signal, sys
from pathlib import Path
import torch
sys.path.insert(0, {tests!r})
import test_pretrain_train as here

torch.set_num_threads(1)
run = Path(sys.argv[1])
with here.distributed_context("cpu") as where:
    assert (where.rank, where.world) == (int(os.environ["RANK"]), 2)
    states = []
    for stop in (3, None):
        plain = here.PretrainTrainer.advance
        def advance(self, batch):
            if where.rank == 1 and self.step == stop:
                os.kill(os.getpid(), signal.SIGTERM)
            return plain(self, batch)
        here.PretrainTrainer.advance = advance
        trainer = here.train(
            here.PAIRED, [(here.Procedural(), 1.0)], run, context=where, save_every=1e9
        )
        here.PretrainTrainer.advance = plain
        states.append((trainer.step, here._state(trainer)))
        torch.distributed.barrier()
    torch.save(states, run / f"rank-{{where.rank}}.pt")
"""


def _in_two_processes(script: Path, run: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(2):
        environment = {
            **os.environ,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
        }
        processes.append(
            subprocess.Popen(
                [sys.executable, str(script), str(run)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=100)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, output in zip(processes, outputs):
        assert process.returncode == 0, output


def test_two_processes_train_one_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal to one stops both after the same step; parameters are equal and those of the mean gradient."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(tests=str(Path(__file__).parent)), encoding="utf-8")
    run = tmp_path / "run"
    _in_two_processes(script, run)
    first, second = (torch.load(run / f"rank-{rank}.pt", weights_only=True) for rank in range(2))
    assert [step for step, _ in first] == [step for step, _ in second] == [4, 6]
    assert [path.name for path in checkpoints(run)] == ["step-00000004", "step-00000006"]
    for (_, one), (_, other) in zip(first, second):
        # Each process has running statistics of its own pairs; they play no part in training.
        for name in one:
            if "running" not in name:
                assert one[name].isfinite().all(), name
                assert torch.equal(one[name], other[name]), name

    # The same in one process: both shares, and the mean of their gradients.
    trainers = [_trainer(PAIRED, DistributedContext(rank, 2, HERE.device)) for rank in range(2)]
    waiting: list[list[torch.Tensor]] = []

    def keep(gradients: list[torch.Tensor], where: DistributedContext) -> None:
        waiting.append([gradient.clone() for gradient in gradients])

    def mean(gradients: list[torch.Tensor], where: DistributedContext) -> None:
        for gradient, other in zip(gradients, waiting.pop(), strict=True):
            gradient.add_(other).div_(2)

    for step in range(6):
        trainers[1].student.load_state_dict(trainers[0].student.state_dict())
        for trainer, average in ((trainers[1], keep), (trainers[0], mean)):
            monkeypatch.setattr(training, "_average_over_processes", average)
            trainer.advance(trainer.batch(step))
    expected = _state(trainers[0])
    for name, tensor in first[1][1].items():
        if "running" not in name:
            torch.testing.assert_close(tensor, expected[name], rtol=1e-4, atol=1e-6)
