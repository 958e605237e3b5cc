"""Weights to start from that know fewer structures, or others: what they know is kept, by name."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from regkit.core.errors import RegkitError
from regkit.features.unet import UNet
from regkit.features.weights import Channels, Reading, bundled_weights, load_network
from regkit.pretrain.config import Config, Loss
from regkit.pretrain.initial_weights import initial_network
from regkit.synthesis.ensemble import Ensembles
from regkit.synthesis.pairs import Pairs
from regkit.synthesis.structures import HEAD, NECK, STRUCTURES, TRUNK

CONFIG = Config(
    width=2,
    levels=1,
    pairs=Pairs(size=16, offset=4, ensembles=Ensembles(size=32)),
    loss=Loss(affinity=0.0, distance=0.0, local=0.0, label=0.0, structure=1.0),
)


def _weights(names: list[str], seed: int = 3) -> tuple[UNet, dict[str, str]]:
    """Of a network of the configuration that knows some structures."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = UNet(replace(CONFIG.architecture, out_channels=1 + len(names)))
    reading = Reading("equalised", (Channels("structure", 1 + len(names), "softmax"),))
    return network, {**reading.to_metadata(), "structures": json.dumps(names)}


def _last(network: UNet) -> torch.Tensor:
    return list(network.state_dict().values())[-1]


def test_known_structures_keep_their_rows_and_new_ones_begin_at_random() -> None:
    network, provenance = _weights(list(TRUNK.values()))
    grown, new = initial_network(network, provenance, CONFIG)
    assert new == list((HEAD | NECK).values())
    assert grown.architecture == CONFIG.architecture
    before, after = _last(network), _last(grown)
    assert torch.equal(after[: len(before)], before)
    rows = after[len(before) :]
    assert len(rows) == len(HEAD | NECK)
    assert rows.std() > 0.05
    assert len(rows.flatten(1).unique(dim=0)) == len(HEAD | NECK)
    for name, tensor in list(network.state_dict().items())[:-1]:
        assert torch.equal(grown.state_dict()[name], tensor), name
    again, _ = initial_network(network, provenance, CONFIG)
    assert torch.equal(_last(again), after)


def test_it_gives_of_known_structures_what_it_gave() -> None:
    network, provenance = _weights(list(TRUNK.values()))
    grown, _ = initial_network(network, provenance, CONFIG)
    image = torch.rand((1, 1, 8, 8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(grown(image)[:, : 1 + len(TRUNK)], network(image))


def test_rows_are_found_by_name() -> None:
    names = [STRUCTURES[number] for number in (31, 2, 45)]
    network, provenance = _weights(names)
    grown, new = initial_network(network, provenance, CONFIG)
    assert set(new) == set(STRUCTURES.values()) - set(names)
    before, after = _last(network), _last(grown)
    for row, number in enumerate((0, 31, 2, 45)):
        assert torch.equal(after[number], before[row])


def test_weights_that_know_all_are_taken_as_they_are() -> None:
    network, provenance = _weights(list(STRUCTURES.values()))
    same, new = initial_network(network, provenance, CONFIG)
    assert same is network
    assert new == []


def test_weights_from_before_names_were_written_know_the_trunk() -> None:
    network, provenance = _weights(list(TRUNK.values()))
    del provenance["structures"]
    assert initial_network(network, provenance, CONFIG)[1] == list((HEAD | NECK).values())


def test_the_bundled_weights_can_start_a_run_on_bodies() -> None:
    network, provenance = load_network(bundled_weights())
    config = Config(pairs=Pairs(trunks=1.0), loss=CONFIG.loss)
    grown, new = initial_network(network, provenance, config)
    assert grown.architecture.out_channels == 1 + len(STRUCTURES)
    assert len(new) == len(STRUCTURES) + 1 - network.architecture.out_channels


def test_what_a_run_cannot_start_from() -> None:
    network, provenance = _weights(list(TRUNK.values()))
    with pytest.raises(RegkitError, match="another architecture: width differ"):
        initial_network(network, provenance, Config(width=4, levels=1, pairs=CONFIG.pairs, loss=CONFIG.loss))
    with pytest.raises(RegkitError, match="another architecture: out_channels differ"):
        initial_network(network, provenance, Config(width=2, levels=1, pairs=CONFIG.pairs))
    with pytest.raises(RegkitError, match="have 31 channels of structures, and name 2"):
        initial_network(network, {**provenance, "structures": '["liver", "spleen"]'}, CONFIG)
    for names in ("{", "7", "[1]"):
        with pytest.raises(RegkitError, match="name no structures"):
            initial_network(network, {**provenance, "structures": names}, CONFIG)
