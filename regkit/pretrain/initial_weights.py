"""Initial weights of a run, which may know fewer structures than its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import torch

from regkit.core.errors import RegkitError
from regkit.features.unet import UNet
from regkit.features.weights import Channels, reading
from regkit.pretrain.config import Config
from regkit.pretrain.train import check_same
from regkit.synthesis.structures import STRUCTURES, TRUNK


def initial_network(network: UNet, provenance: Mapping[str, str], config: Config) -> tuple[UNet, list[str]]:
    """A network as a configuration has it, with the weights of one that may know fewer structures.

    The last convolution has a row for each channel of the output: rows of structures that both know are
    copied, whatever their numbers, and those of new structures begin at random, by the configuration's seed.

    Args:
        network, provenance: as :func:`regkit.features.weights.load_network` gives them.

    Returns:
        The network, and the names of the structures that it did not know.

    Raises:
        RegkitError: if they are of another architecture otherwise.
    """
    ours, theirs = config.architecture, network.architecture
    here, there = config.reading.channels, reading(provenance, theirs.out_channels).channels
    check_same(replace(theirs, out_channels=ours.out_channels), ours)
    if [_kind(group) for group in here] != [_kind(group) for group in there]:
        check_same(theirs, ours)
        raise RegkitError(
            "the weights to start from give other channels: "
            f"{_listed(there)} instead of the configuration's {_listed(here)}"
        )
    known = known_structures(provenance)
    new = [name for name in STRUCTURES.values() if name not in known]
    if here[-1].name != "structure" or known == list(STRUCTURES.values()):
        return network, []
    if there[-1].count != 1 + len(known):
        raise RegkitError(
            f"the weights to start from have {there[-1].count} channels of structures, and name {len(known)}"
        )
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        grown = UNet(ours)
    state, before = grown.state_dict(), network.state_dict()
    last = list(state)[-1]
    # The channels before the structures, and "nothing of the kind".
    rows = {k: k for k in range(ours.out_channels - here[-1].count + 1)}
    first = len(rows)
    for k, name in enumerate(STRUCTURES.values()):
        if name in known:
            rows[first + k] = first + known.index(name)
    for name, tensor in before.items():
        if name == last:
            state[last][list(rows)] = tensor[list(rows.values())]
        else:
            state[name] = tensor
    grown.load_state_dict(state)
    return grown, new


def _kind(group: Channels) -> tuple[object, ...]:
    return group.name, group.activation, group.name == "structure" or group.count


def _listed(groups: tuple[Channels, ...]) -> str:
    return ", ".join(f"{group.count} of {group.name}" for group in groups)


def known_structures(provenance: Mapping[str, str]) -> list[str]:
    """The structures that weights know, in order; older ones, which do not say it, know the trunk's.

    Raises:
        RegkitError: if what they say is no list of names.
    """
    try:
        names = json.loads(provenance.get("structures", json.dumps(list(TRUNK.values()))))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("no list of names")
    except ValueError as error:
        raise RegkitError(f"the weights to start from name no structures: {error}") from error
    return names
