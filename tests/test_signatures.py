"""Calls of the C kernels: what does not fit the table of signatures is told before C is called."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch

from regkit.core.errors import RegkitError
from regkit.ops import native
from regkit.ops.native import header
from regkit.ops.native.signatures import KERNELS, Array, KernelSignature, blocks

# Numbers and sizes with which every condition of the table holds; those that a kernel needs otherwise.
_USUAL = {
    "x": 18, "y": 4, "z": 6, "radius": 1, "side": 3, "back": 0, "start": 1, "planes": 2, "channels": 3,
    "lanes": 16, "count": 5, "cells": 5, "outer": 2, "n": 3, "inner": 4, "stride": 2, "passes": 1,
    "margin": 3, "zeros": 1,
    "corner": 1, "other": 6, "last_knot": 4, "parts": 8, "groups": 2, "unit": 0.5, "volume": 2.0, "step": 0.1,
    "spread": 0.1, "wide": 8, "outputs": 16, "near_channels": 4, "below_channels": 4,
    "wide_z": 10, "wide_y": 9, "wide_x": 22, "places_z": 6, "places_y": 4, "places_x": 18,
    "moving_z": 3, "moving_y": 4, "moving_x": 5, "corner_z": 0, "corner_y": 1, "corner_x": 0,
}  # fmt: skip
_OWN: dict[str, dict[str, float]] = {
    "pool_eightbit": {"channels": 16},
    "to_eightbit": {"channels": 16},
    "softmax_sums": {"y_step": 18 * 3, "z_step": 4 * 18 * 3},
}
# Of two arrays that may be null, one must be.
_NULL = {"costs": "short_costs"}


def _values(kernel: KernelSignature) -> dict[str, Any]:
    others = dict.fromkeys(("cells_z", "cells_y", "cells_x", "to_y", "to_x"), 7)
    return others | _USUAL | _OWN.get(kernel.name, {})


def _array(array: Array, values: dict[str, Any]) -> torch.Tensor:
    shape = [int(axis.value(values)) for axis in array.axes]
    return torch.zeros(shape, dtype=array.types[0])


def _arguments(kernel: KernelSignature) -> dict[str, Any]:
    """What a kernel takes, as small as can be."""
    values = _values(kernel)
    found: dict[str, Any] = {array.name: _array(array, values) for array in kernel.arrays}
    for name, types in kernel.numbers.items():
        found[name] = float(values.get(name, 1)) if float in types else int(values[name])
    if kernel.name in _NULL:
        found[_NULL[kernel.name]] = None
    return found


def _expect(kernel: KernelSignature, arguments: dict[str, Any], error: type[Exception], *named: str) -> None:
    """The call is refused, by a message that names the kernel and the argument, and no C is called."""
    with pytest.raises(error) as caught:
        kernel.checked(arguments)
    message = str(caught.value)
    assert f"kernel {kernel.name}: " in message and "\n" not in message
    for name in named:
        assert name in message


each_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)


@each_kernel
def test_what_fits_is_taken(kernel: KernelSignature) -> None:
    """Tensors and arrays alike."""
    arguments = _arguments(kernel)
    count, packed = kernel.checked(arguments)
    assert count > 0
    assert len(packed) == 8 * len(kernel.parameters)
    as_arrays = {
        name: value.numpy() if isinstance(value, torch.Tensor) and value.dtype != torch.bfloat16 else value
        for name, value in arguments.items()
    }
    assert kernel.checked(as_arrays) == (count, packed)


@each_kernel
def test_names(kernel: KernelSignature) -> None:
    """Every argument missing, one too many, and arguments without a name."""
    arguments = _arguments(kernel)
    for name in arguments:
        _expect(kernel, {k: v for k, v in arguments.items() if k != name}, TypeError, name)
    _expect(kernel, arguments | {"colour": 1}, TypeError, "colour")
    with pytest.raises(TypeError, match="positional"):
        native.run(kernel.name, *arguments.values())  # type: ignore[call-arg]


@each_kernel
def test_types(kernel: KernelSignature) -> None:
    arguments = _arguments(kernel)
    for array in kernel.arrays:
        value = arguments[array.name]
        if value is None:
            continue
        for other in (torch.float16, torch.float32, torch.float64, torch.int32, torch.uint16):
            if other != value.dtype:
                _expect(kernel, arguments | {array.name: value.to(other)}, TypeError, array.name)
        _expect(kernel, arguments | {array.name: value.to("meta")}, TypeError, array.name)
        _expect(kernel, arguments | {array.name: 0}, TypeError, array.name)
        if not array.optional:
            _expect(kernel, arguments | {array.name: None}, TypeError, array.name)
    for name, types in kernel.numbers.items():
        for wrong in ("1", None, torch.ones(1), *(() if float in types else (1.0,))):
            _expect(kernel, arguments | {name: wrong}, TypeError, name)


@each_kernel
def test_shapes(kernel: KernelSignature) -> None:
    """One axis too many; one value too many along every axis that more than one argument speaks of."""
    arguments = _arguments(kernel)
    given = [array for array in kernel.arrays if arguments[array.name] is not None]
    words = [word for array in given for axis in array.axes for word in re.findall(r"\w+", axis.text)]
    refused = 0
    for array in given:
        value = arguments[array.name]
        if array.several is None:
            _expect(kernel, arguments | {array.name: value[None]}, ValueError, array.name)
            refused += 1
        for k, axis in enumerate(array.axes):
            if axis.name is not None and axis.name not in kernel.numbers and words.count(axis.name) == 1:
                continue  # any size will do
            more = list(value.shape)
            more[k] += 1
            _expect(kernel, arguments | {array.name: value.new_zeros(more)}, ValueError)
            refused += 1
    assert refused >= len(kernel.arrays) - 1


@each_kernel
def test_order_in_memory(kernel: KernelSignature) -> None:
    """As many values of the right shape, but not in the order of the axes; and arrays that are read-only."""
    arguments = _arguments(kernel)
    for array in kernel.arrays:
        value = arguments[array.name]
        if value is None:
            continue
        apart = value.new_zeros((*value.shape, 2))[..., 0]
        if value.numel() > 1:
            _expect(kernel, arguments | {array.name: apart}, ValueError, array.name)
        if array.written:
            fixed = value.numpy().copy()
            fixed.flags.writeable = False
            _expect(kernel, arguments | {array.name: fixed}, ValueError, array.name, "read-only")


@each_kernel
def test_what_is_written_shares_no_memory(kernel: KernelSignature) -> None:
    arguments = _arguments(kernel)
    whole = {a.name: arguments[a.name] for a in kernel.arrays if arguments[a.name] is not None}
    written = [a.name for a in kernel.arrays if a.written and a.name in whole]
    assert written or kernel.name in ("folds", "mind_scale")
    for name in written:
        for other, value in whole.items():
            if other == name:
                continue
            # One block of memory, of which both begin at the start.
            size = max(t.numel() * t.element_size() for t in (value, whole[name]))
            block = torch.zeros(size, dtype=torch.uint8)
            shared = {
                key: block[: whole[key].numel() * whole[key].element_size()]
                .view(whole[key].dtype)
                .view(whole[key].shape)
                for key in (name, other)
            }
            _expect(kernel, arguments | shared, ValueError, name, other, "overlap")


@each_kernel
def test_swapped_arrays(kernel: KernelSignature) -> None:
    """Any two that are not of one type and shape."""
    arguments = _arguments(kernel)
    arrays = [a for a in kernel.arrays if arguments[a.name] is not None]
    for k, one in enumerate(arrays):
        for other in arrays[:k]:
            if one.type == other.type and arguments[one.name].shape == arguments[other.name].shape:
                continue
            swapped = {one.name: arguments[other.name], other.name: arguments[one.name]}
            with pytest.raises((TypeError, ValueError), match=f"kernel {kernel.name}: "):
                kernel.checked(arguments | swapped)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("choose", {"radius": 5}),
        ("choose", {"back": 2}),
        ("costs", {"start": 5}),
        ("costs", {"whole": None}),
        ("costs", {"radius": 0}),
        ("difference", {"corner": 8}),
        ("equalise", {"part_of": torch.full((9,), 4, dtype=torch.int32)}),
        ("lanes", {"unit": 0.0}),
        ("mind_channels", {"stride": 3}),
        ("mind_channels", {"weight": None}),
        ("mind_channels", {"views": torch.full((12,), 10**6)}),
        ("mind_differences", {"steps": torch.full((6,), -(10**6))}),
        ("mind_scale", {"views": torch.full((12,), -1)}),
        ("penalty", {"corner_x": 2}),
        ("sample", {"zeros": 2}),
        ("softmax_sums", {"group": torch.tensor([0, 1, 2])}),
        ("smooth_planes", {"passes": 0}),
    ],
)
def test_conditions(name: str, wrong: dict[str, Any]) -> None:
    _expect(KERNELS[name], _arguments(KERNELS[name]) | wrong, ValueError, *wrong)


def test_what_a_message_says() -> None:
    arguments = _arguments(KERNELS["smooth_planes"]) | {"smoothed": torch.zeros(3, 6, 4, 19)}
    message = (
        "kernel smooth_planes: smoothed has shape (3, 6, 4, 19), which is not [channels, z, y, x] with "
        "channels = 3 of volume, x = 18 of volume, y = 4 of volume, z = 6 of volume"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        KERNELS["smooth_planes"].checked(arguments)


def test_the_header_is_that_of_the_table() -> None:
    assert header.PATH.read_text(encoding="utf-8") == header.header(), (
        "run python -m regkit.ops.native.header"
    )


def test_blocks() -> None:
    assert [blocks(n) for n in (0, 1, 2048, 2049)] == [0, 1, 1, 2]


# Kernels whose scratch grows with a row, on one of three million voxels.
_ROW = 3_000_000


@pytest.mark.parametrize(
    "name",
    ["blur_rows", "choose", "mind_differences", "mind_scale", "mind_channels", "neutral", "penalty", "pool",
     "smooth_planes"],
)  # fmt: skip
def test_rows_of_millions_of_voxels(name: str) -> None:
    """More than a thread's stack holds."""
    if not native.serves(torch.zeros(1)):
        pytest.skip("the kernels were not compiled")
    kernel = KERNELS[name]
    flat = 2 if name in ("mind_channels", "penalty") else 1  # what the kernel needs at least
    long = _values(kernel) | {"x": _ROW, "y": flat, "z": flat, "channels": 1}
    long |= {"wide_x": _ROW, "wide_y": flat, "wide_z": flat}
    arguments = _arguments(kernel) | {array.name: _array(array, long) for array in kernel.arrays}
    arguments |= {key: int(long[key]) for key in ("x", "y", "z") if key in kernel.numbers}
    assert np.isfinite(native.run(name, **arguments))


def test_where_kernels_are_required_their_lack_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "find_spec", lambda name: None)
    monkeypatch.setenv("REGKIT_REQUIRE_KERNELS", "1")
    native._library.cache_clear()
    try:
        with pytest.raises(
            RegkitError, match="REGKIT_REQUIRE_KERNELS is set and there are no compiled kernels"
        ):
            native.serves(torch.zeros(1))
    finally:
        native._library.cache_clear()
