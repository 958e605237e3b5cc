"""``regkit doctor``: what is installed, what is missing, and whether it works."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from regkit.cli.console import print_facts, print_json, progress
from regkit.cli.options import AsJson

if TYPE_CHECKING:
    from regkit.doctor import Device, Examination, Extra, Kernels, SelfTest


def command(
    test: Annotated[
        bool,
        typer.Option(
            " /--no-test", show_default=False, help="Skip the self-test, which takes about ten seconds."
        ),
    ] = True,
    as_json: AsJson = False,
) -> None:
    """List what is installed and what is missing, say what that costs, and test regkit in ten seconds.

    The self-test registers a small phantom and compares the warp with the known one. The exit code is 0 if
    regkit works, perhaps slowly or in part, and 1 if it does not; the last lines say why.
    """
    from regkit.doctor import examine
    from regkit.runtime.process import tune

    tune()
    with progress(as_json) as report:
        examination = examine(test, report)
    if as_json:
        print_json(examination.to_dict())
    else:
        _print(examination, test)
    if not examination.healthy:
        raise typer.Exit(1)


def _print(examination: Examination, test: bool) -> None:
    facts = [(name, version or "missing") for name, version in examination.versions.items()]
    facts.append(("", ""))
    facts.append(("compiler", examination.compiler or "none found; only an installation needs it"))
    if examination.kernels:
        facts.append(("kernels", _kernels(examination.kernels)))
    if examination.weights:
        facts.append(("network", examination.weights))
    if examination.device:
        facts.append(("device", _device(examination.device)))
    if examination.threads:
        facts.append(("threads", f"{examination.threads}, of {examination.processors} processors"))
    facts.append(("memory", _memory(examination)))
    facts.append(("", ""))
    for extra in examination.extras:
        facts += zip((f"[{extra.name}]", ""), _extra(extra))
    if examination.self_test:
        facts += [("", ""), ("self-test", _self_test(examination.self_test))]
    print_facts(facts)
    typer.echo()
    for warning in examination.warnings:
        typer.echo(f"warning: {warning}")
    for problem in examination.problems:
        typer.echo(f"problem: {problem}")
    typer.echo(_conclusion(examination, test))


def _kernels(kernels: Kernels) -> str:
    if kernels.missing:
        return f"missing: {kernels.missing}"
    network = f"the network in {kernels.fast_network}" if kernels.fast_network else "the network in float32"
    return f"compiled; {kernels.instructions}; {network}"


def _device(device: Device) -> str:
    if device.name == "cpu":
        return f"cpu: {device.says}"
    return f"{device.name}: {device.says}, {(device.memory or 0) / 2**30:.1f} GiB"


def _memory(examination: Examination) -> str:
    if examination.memory is None:
        return "unknown"
    total = f"{examination.memory / 2**30:.1f} GiB"
    return (
        total
        if examination.available is None
        else f"{total}, {examination.available / 2**30:.1f} GiB available"
    )


def _extra(extra: Extra) -> list[str]:
    """A line on what is there or missing, and one on what to do where something is."""
    there = [f"{name} {version}" for name, version in extra.packages.items() if version]
    if extra.complete:
        return [", ".join(there)]
    missing = [name for name, version in extra.packages.items() if version is None]
    lacks = [f"missing: {', '.join(missing)}"] if missing else []
    lacks += [f"too old: {', '.join(extra.too_old)}"] if extra.too_old else []
    packages = " ".join((*missing, *extra.too_old))
    return ["; ".join(lacks), f"{extra.without} (pip install --upgrade {packages})"]


def _self_test(test: SelfTest) -> str:
    if test.error_mm is None:
        return f"failed after {test.seconds:.1f} s"
    return (
        f"{'failed' if test.problems else 'passed'} in {test.seconds:.1f} s: organs {test.before_mm:.1f} mm "
        f"off before, {test.error_mm:.1f} mm after; {test.folding_percent:g} % folded; {test.verdict}"
    )


def _conclusion(examination: Examination, test: bool) -> str:
    if not examination.healthy:
        return "regkit does not work here."
    if not test:
        return "Nothing is missing that regkit needs. It was not tested."
    count = len(examination.warnings)
    return f"regkit works, with {count} warning{'s' * (count > 1)}." if count else "regkit works."
