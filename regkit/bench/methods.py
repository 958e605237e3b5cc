"""The methods by name: regkit's own, the peers that are installed, and commands given as a template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from regkit.bench.external import External
from regkit.bench.method import Inputs, Method, MethodResult
from regkit.bench.peers import PEERS
from regkit.core.choices import DEFAULT_FEATURES, FeatureSet, PresetName
from regkit.core.errors import RegkitError
from regkit.core.version import __version__

if TYPE_CHECKING:
    from regkit.registration_result import Registration


@dataclass(frozen=True)
class Regkit:
    """regkit with some settings.

    Args:
        name: as on the command line.
        note: see :class:`regkit.bench.method.Method`.
        preset, features: as of :func:`regkit.register`.
    """

    name: str
    note: str
    preset: PresetName = "default"
    features: FeatureSet | None = None

    def missing(self) -> str | None:
        return None

    def version(self) -> str:
        return f"regkit {__version__}"

    def run(self, inputs: Inputs) -> Registration:
        """All that regkit finds, its linear start included."""
        from regkit.registration import register

        case = inputs.case
        return register(
            case.fixed.image,
            case.moving.image,
            fixed_mask=case.fixed.mask,
            moving_mask=case.moving.mask,
            init="auto" if inputs.start is None else inputs.start,
            features=self.features or DEFAULT_FEATURES,
            preset=self.preset,
            device=inputs.device,
            threads=inputs.threads,
            seed=inputs.seed,
        )

    def register(self, inputs: Inputs) -> MethodResult:
        result = self.run(inputs)
        seconds = dict(result.timings.stages)
        settings: dict[str, Any] = {
            k: v for k, v in result.settings.items() if k not in ("fixed", "moving", "init")
        }
        return MethodResult(result.warp, seconds, settings)


LINEAR = Regkit("linear", "regkit's rigid and affine stages alone", preset="linear")
_OWN: tuple[Method, ...] = (
    Regkit("regkit", "as it comes: searches for its start, MIND and the bundled network"),
    Regkit("regkit-fast", "--preset fast", preset="fast"),
    Regkit("regkit-accurate", "--preset accurate", preset="accurate"),
    Regkit("mind", "regkit's solver on MIND-SSC alone", features="mind"),
    Regkit("network", "regkit's solver on the bundled network alone", features="network"),
    LINEAR,
    Regkit("rigid", "regkit's rigid stage alone", preset="rigid"),
)
METHODS: dict[str, Method] = {method.name: method for method in (*_OWN, *PEERS.values())}


def methods(words: Sequence[str]) -> dict[str, Method]:
    """The methods of some words, in their order: names, and NAME=COMMAND for any other.

    Raises:
        RegkitError: if a name is unknown, given twice, or a command is malformed.
    """
    by_word: dict[str, Method] = {}
    for word in words:
        if "=" not in word and word not in METHODS:
            raise RegkitError(
                f"no method named '{word}'; available: {', '.join(METHODS)}, and NAME=COMMAND for any other"
            )
        method: Method = External.parse(word) if "=" in word else METHODS[word]
        if method.name in [other.name for other in by_word.values()] or method.name in METHODS.keys() - {
            word
        }:
            raise RegkitError(f"two methods are named '{method.name}'; give one of them another name")
        by_word[word] = method
    return by_word
