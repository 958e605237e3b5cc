"""What every C kernel takes, in one table: its prototype in C, and the checks of a call from Python.

``python -m regkit.ops.native.header`` writes ``signatures.h``, which is committed, from it. The digest of the
table is compiled into the library, so that one that was compiled for another table is not called.

A kernel works on a range of what stands behind ``over``, and several threads have a range each. Below are its
arguments, in the order of the C function:

* ``in``, ``out`` and ``update`` are arrays that it reads, writes, or both: the type, then names with shapes.
  ``n...`` stands for any axes that hold n values. The axes lie in memory in their order, but for
  ``axis:step``, which gives the distance of neighbours along that axis, in values.
* ``size`` are sizes and steps that the shapes of the arrays give: the caller does not name them.
* ``int`` and ``real`` are numbers that the caller gives.
* ``where`` is what else must hold; ``least`` and ``largest`` are of the values of an array.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import CodeType
from typing import Any, NoReturn

import numpy as np
import torch

Argument = torch.Tensor | np.ndarray | int | float | None
BLOCK = 2048  # cells, or values, that kernels without an axis of their own count their ranges in
POINTS = 128  # places that are interpolated at once

# Raise it when a kernel gives other results for the same arguments: the table alone would not tell.
_REVISION = 1

_TABLE = """
adam over blocks(count)
    size count
    update float32 parameters[count...]
    in float32 gradient[count...]
    update float32 mean[count...] squares[count...]
    real beta1 beta2 step spread floor

best_steps over blocks(cells)
    in float32 costs[side ** 3, cells...]
    int side
    size cells
    out float32 gain[cells...] step[3, cells...]
    where side > 0 and side % 2 == 1

blur_across over outer * n
    in float32 image[outer, n, inner]
    out float32 blurred[outer, n, inner]
    size n inner
    in float32 taps[radius + 1]
    int radius
    where radius >= 0

blur_rows over z * y
    in float32 image[z, y, x]
    out float32 blurred[z, y, x]
    size x
    in float32 taps[radius + 1]
    int radius
    where radius >= 0

choose over z
    in uint16 costs[(2 * radius + 1) ** 3, z, y, x + 2 * radius]
    size z y x
    int radius back
    in float32 neutral[z, y, x]
    real theta
    in float32 field[3, z, y, x]
    out float32 chosen[3, z, y, x]
    where 1 <= radius <= 4 and x >= 16 and back in (0, 1)

convolve_eightbit over z * y if EIGHTBIT
    in uint8 near[z, y, x + 2, near_channels]
    size near_channels
    in int8 near_weights[27 * near_channels * outputs...]
    in float32 near_scale[outputs]
    in uint8 below[z // 2, y // 2, x // 2 + 2, below_channels] or null
    size below_channels
    in int8 below_weights[64 * below_channels * outputs...] or null
    in float32 below_scale[outputs] or null
    size z y x outputs
    out float32 convolved[z, y, x, outputs] statistics[z * y, 4, outputs]
    where given(below) == given(below_weights) == given(below_scale)
    where outputs % 16 == 0 and near_channels % 4 == 0 and below_channels % 4 == 0
    where not given(below) or z % 2 == y % 2 == x % 2 == 0

costs over planes, one range a thread
    in float32 fixed[channels, z, y, x] fixed_weight[1, z, y, x]
    in float32 moving[channels, z + 2 * radius, y + 2 * radius, x + 2 * radius]
    in float32 moving_weight[1, z + 2 * radius, y + 2 * radius, x + 2 * radius]
    size channels z y x
    int radius start
    size planes
    real scale
    out float32 whole[(2 * radius + 1) ** 3, planes, y, x] or null
    out uint16 short_costs[(2 * radius + 1) ** 3, planes, y, x + 2 * radius] or null
    where given(whole) != given(short_costs)
    where 1 <= radius <= 4 and 0 <= start <= z - planes

difference over z // 2
    in int16 moving[moving_z, moving_y, moving_x, lanes]
    real moving_unit
    size moving_z moving_y moving_x
    in int16 fixed[z, y, x, lanes]
    real fixed_unit
    in float32 weight[z, y, x]
    size z y x lanes
    in float32 places[3, places_z, places_y, places_x]
    size places_z places_y places_x
    int corner other
    real scale
    update float32 gradient[3, places_z, places_y, places_x]
    where lanes in (16, 32, 48, 64)
    where z % 2 == y % 2 == x % 2 == 0
    where 0 <= corner < 8 and 0 <= other < 8
    where (places_z, places_y, places_x) in ((z, y, x), (z // 2, y // 2, x // 2))
    where places_z == z or corner == other

displacement_field over planes
    in float32 displacement[3, cells_z, cells_y, cells_x]
    size cells_z cells_y cells_x
    in float64 cells[3, 4] part[3, 3] whole[3, 4]
    size y x
    out float32 field[planes, y, x, 3]
    where 0 < cells_z * cells_y * cells_x < 2 ** 31

equalise over blocks(count)
    in float32 values[count...]
    size count
    in float32 knots[last_knot + 1]
    int last_knot
    in int32 part_of[parts + 1]
    int parts
    real low high margin step
    out float32 ranks[count...]
    where least(part_of) >= 0 and largest(part_of) < last_knot

folds over z - 1
    in float32 field[3, z, y, x]
    size z y x
    where z > 1 and y > 1 and x > 1

halfway over z
    in float32 u[z, y, x, 4] v[z, y, x, 4]
    size z y x
    out float32 halved[z, y, x, 4]

jacobian over z
    in float32 field[z, y, x, 3]
    size z y x
    in float64 matrix[3, 3]
    real volume
    out float32 determinant[z, y, x]
    where volume != 0

lanes over blocks(cells)
    in float32 values[channels, cells...] weight[1, cells...] or null
    size channels cells
    real unit
    size lanes
    out int16 packed[cells..., lanes]
    where unit > 0 and channels < lanes

mind_channels over z // stride
    in float32 means[6, wide_z, wide_y, wide_x]
    in int64 views[12]
    size wide_y wide_x
    int z y x stride
    in float32 weight[1, z, y, x] or null
    real least_scale most_scale
    out float32 channels[12, z // stride, y // stride, x // stride]
    where stride in (1, 2) and z % stride == y % stride == x % stride == 0 and (stride == 1 or given(weight))
    where least(views) >= 0
    where largest(views) + ((z - 1) * wide_y + y - 1) * wide_x + x <= 6 * wide_z * wide_y * wide_x

mind_differences over z
    in float32 padded[z + 2 * margin, y + 2 * margin, x + 2 * margin]
    in int64 steps[6]
    int margin
    size z y x
    out float32 means[6, z, y, x]
    where margin > 1
    where -least(steps) <= (margin - 1) * ((y + 2 * margin + 1) * (x + 2 * margin) + 1)
    where largest(steps) <= (margin - 1) * ((y + 2 * margin + 1) * (x + 2 * margin) + 1)

mind_scale over z
    in float32 means[6, wide_z, wide_y, wide_x]
    in int64 views[12]
    size wide_y wide_x
    int z y x
    where least(views) >= 0
    where largest(views) + ((z - 1) * wide_y + y - 1) * wide_x + x <= 6 * wide_z * wide_y * wide_x

neutral over z
    in uint16 costs[(2 * radius + 1) ** 3, z, y, x + 2 * radius]
    size z y x
    int radius back
    out float32 neutral[z, y, x]
    where 1 <= radius <= 4 and back in (0, 1)

penalty over z
    in float32 field[3, z, y, x]
    size z y x
    in float32 stiffness[1, z, y, x]
    real barrier least_jacobian
    int corner_z corner_y corner_x
    out float32 gradient[3, z, y, x]
    where corner_z in (0, 1) and corner_y in (0, 1) and corner_x in (0, 1)

pool over channels * z
    in float32 volume[channels, z * stride, y * stride, x * stride]
    in float32 weight[1, z * stride, y * stride, x * stride]
    size z y x
    int stride
    out float32 means[channels, z, y, x]
    where stride > 0

pool_eightbit over (z // 2) * (y // 2) if EIGHTBIT
    in uint8 cells[z, y, wide, channels]
    size y wide channels
    out uint8 largest_cells[z // 2, y // 2, wide // 2 + 1, channels]
    where channels % 16 == 0 and z % 2 == y % 2 == wide % 2 == 0 and wide > 3

resample over planes
    in float32 image[z, y, x]
    size z y x
    in float64 matrix[3, 4]
    size to_y to_x
    out float32 resampled[planes, to_y, to_x] inside[planes, to_y, to_x]
    where 0 < z * y * x < 2 ** 31

sample over points(count)
    in float32 volume[channels, z, y, x]
    size channels z y x
    in float32 places[3, count...]
    size count
    int zeros
    out float32 sampled[channels, count...]
    where 0 < z * y * x < 2 ** 31 and zeros in (0, 1)

sample_known over points(count)
    in float32 volume[channels, z, y, x] weight[1, z, y, x]
    size channels z y x
    in float32 places[3, count...]
    size count
    real least_weight
    out float32 sampled[channels, count...] sampled_weight[1, count...]
    where 0 < z * y * x < 2 ** 31

kept_sums over blocks(count)
    in float64 points[7, count]
    size count
    in float64 error[count]
    real most
    out float64 sums[blocks(count), 7, 4]

smooth_columns over y
    update float32 volume[channels, z, y, x]
    size channels z y x
    int passes
    where passes > 0

smooth_planes over channels * z
    in float32 volume[channels, z, y, x]
    out float32 smoothed[channels, z, y, x]
    size y x
    int passes
    where passes > 0

softmax_sums over z * y
    in bfloat16 scores[z:z_step, y:y_step, x:channels, channels:1]
    size z_step y_step z y x channels
    in int64 group[channels]
    size groups
    real scale
    out float32 sums[groups, z, y, x]
    where channels <= 64 and groups <= 64 and least(group) >= 0 and largest(group) < groups

squared_errors over blocks(count)
    in float64 points[7, count]
    size count
    in float64 matrix[3, 4]
    out float64 error[count]

to_eightbit over z * y if EIGHTBIT
    in float32 values[z, y, x, channels] factor[channels] term[channels]
    size x channels
    out uint8 cells[z, y, x + 2, channels]
    where channels % 16 == 0 and x > 0
"""

_TYPES = {
    "float32": ("float", torch.float32, np.float32),
    "float64": ("double", torch.float64, np.float64),
    "bfloat16": ("uint16_t", torch.bfloat16, None),
    "int8": ("int8_t", torch.int8, np.int8),
    "uint8": ("uint8_t", torch.uint8, np.uint8),
    "int16": ("int16_t", torch.int16, np.int16),
    "uint16": ("uint16_t", torch.uint16, np.uint16),
    "int32": ("int32_t", torch.int32, np.int32),
    "int64": ("int64_t", torch.int64, np.int64),
}


def blocks(count: int) -> int:
    """How many blocks hold so many cells or values."""
    return -(-count // BLOCK)


def _points(count: int) -> int:
    return -(-count // POINTS)


# What the expressions of the table may call.
_FUNCTIONS = {
    "__builtins__": {},
    "blocks": blocks,
    "points": _points,
    "given": lambda array: array is not None,
    "least": lambda array: int(array.min()),
    "largest": lambda array: int(array.max()),
}


@dataclass(frozen=True)
class _Expression:
    """A size, a step or a condition. A name alone is that of what an array may tell."""

    text: str

    @cached_property
    def code(self) -> CodeType:
        return compile(self.text, f"<{self.text}>", "eval")

    @cached_property
    def name(self) -> str | None:
        return self.text if self.text.isidentifier() else None

    def value(self, values: Mapping[str, Any]) -> Any:
        return eval(self.code, _FUNCTIONS, values)  # of the table above alone


@dataclass(frozen=True)
class Array:
    """An array that a kernel takes.

    Args:
        type: a key of the types of the table.
        axes: the size of each axis, "..." behind that of the one, if any, that stands for several.
        steps: between neighbours along each axis; empty where all values lie in the order of the axes.
        written, optional: whether the kernel writes to it; whether it may be null.
    """

    name: str
    type: str
    axes: tuple[_Expression, ...]
    several: int | None
    steps: tuple[_Expression, ...]
    written: bool
    optional: bool

    @property
    def c(self) -> str:
        return f"{'' if self.written else 'const '}{_TYPES[self.type][0]} *{self.name}"

    @property
    def shape(self) -> str:
        """As the table writes it."""
        axes = [axis.text + "..." * (k == self.several) for k, axis in enumerate(self.axes)]
        return f"[{', '.join(axes)}]"

    @cached_property
    def types(self) -> tuple[torch.dtype, np.dtype[Any] | None, int]:
        _, of_torch, of_numpy = _TYPES[self.type]
        return of_torch, None if of_numpy is None else np.dtype(of_numpy), of_torch.itemsize

    def sizes(self, shape: Sequence[int]) -> Sequence[int] | None:
        """Of its axes, those together that one stands for; None if there are too few or too many."""
        if self.several is None:
            return shape if len(shape) == len(self.axes) else None
        if len(self.axes) == 1:
            return (math.prod(shape),)
        behind = len(self.axes) - self.several - 1
        if len(shape) < self.several + behind:
            return None
        end = len(shape) - behind
        return (*shape[: self.several], math.prod(shape[self.several : end]), *shape[end:])

    def measured(self, value: Any, kernel: str) -> tuple[Sequence[int], Sequence[int], int, int]:
        """The shape, the steps (empty where they need not be known), the address and the bytes of a value.

        Raises:
            TypeError: if it is no array of the type.
            ValueError: if its values lie otherwise in memory, or cannot be written.
        """
        of_torch, of_numpy, itemsize = self.types
        if isinstance(value, torch.Tensor):
            if value.dtype is not of_torch or not value.is_cpu:
                on = "" if value.is_cpu else f" on {value.device.type}"
                dtype = str(value.dtype).removeprefix("torch.")
                raise TypeError(
                    f"kernel {kernel}: {self.name} must be {self.type} on the CPU, not {dtype}{on}"
                )
            in_order, address = value.is_contiguous(), value.data_ptr()
            steps: Sequence[int] = value.stride() if self.steps else ()
            shape: Sequence[int] = value.shape
        elif isinstance(value, np.ndarray):
            if value.dtype != of_numpy:
                raise TypeError(f"kernel {kernel}: {self.name} must be {self.type}, not {value.dtype}")
            if self.written and not value.flags.writeable:
                raise ValueError(f"kernel {kernel}: {self.name} is read-only")
            in_order = value.flags.c_contiguous and value.flags.aligned
            address = value.__array_interface__["data"][0]
            steps, shape = [step // itemsize for step in value.strides] if self.steps else (), value.shape
        else:
            raise TypeError(f"kernel {kernel}: {self.name} must be an array, not {type(value).__name__}")
        if steps:
            span = 1 + sum((n - 1) * step for n, step in zip(shape, steps)) if math.prod(shape) else 0
            return shape, steps, address, span * itemsize
        if not in_order:
            raise ValueError(f"kernel {kernel}: {self.name} does not lie in memory in the order of its axes")
        return shape, steps, address, math.prod(shape) * itemsize


@dataclass(frozen=True)
class KernelSignature:
    """A kernel: a function ``double (int64_t first, int64_t last, ...)``.

    Args:
        number: its place in the table.
        over: how many ranges of one its work can be split in.
        ranges: that each thread has; more of them leave what a thread that is held up does not do to the
            others, fewer suit a kernel that does something more for each range.
        needs: what the C code must define for it to be there.
        parameters: of the C function, in order: arrays, and ("size", "int" or "real", name).
        conditions: what else must hold.
    """

    name: str
    number: int
    over: _Expression
    ranges: int
    needs: str | None
    parameters: tuple[Array | tuple[str, str], ...]
    conditions: tuple[_Expression, ...]

    @cached_property
    def arrays(self) -> tuple[Array, ...]:
        return tuple(p for p in self.parameters if isinstance(p, Array))

    @cached_property
    def numbers(self) -> dict[str, tuple[type, ...]]:
        """The numbers that the caller gives, and what they may be."""
        types: dict[str, tuple[type, ...]] = {
            "int": (int, np.integer), "real": (float, int, np.floating, np.integer)
        }  # fmt: skip
        return {p[1]: types[p[0]] for p in self.parameters if isinstance(p, tuple) and p[0] in types}

    @cached_property
    def arguments(self) -> frozenset[str]:
        """The names of what the caller gives."""
        return frozenset((*(array.name for array in self.arrays), *self.numbers))

    @cached_property
    def _sizes(self) -> frozenset[str]:
        """The names of what shapes tell."""
        stated = (e.name for array in self.arrays for e in (*array.axes, *array.steps))
        return frozenset(name for name in stated if name is not None) - self.numbers.keys()

    @cached_property
    def _order(self) -> tuple[str, ...]:
        return tuple(p.name if isinstance(p, Array) else p[1] for p in self.parameters)

    @cached_property
    def _packing(self) -> struct.Struct:
        kinds = {"size": "q", "int": "q", "real": "d"}
        return struct.Struct(
            "=" + "".join("Q" if isinstance(p, Array) else kinds[p[0]] for p in self.parameters)
        )

    def checked(self, arguments: Mapping[str, Argument]) -> tuple[int, bytes]:
        """How many ranges a call has, and its arguments, 8 bytes each.

        Raises:
            TypeError: if an argument is missing, unknown, or of another type.
            ValueError: if one is of another shape, or what must hold does not.
        """
        if arguments.keys() != self.arguments:
            self._raise_for_names(arguments)
        values: dict[str, Any] = dict(arguments)  # and later the sizes
        for name, types in self.numbers.items():
            if not isinstance(values[name], types):
                kind = "a number" if float in types else "an int"
                raise TypeError(
                    f"kernel {self.name}: {name} must be {kind}, not {type(values[name]).__name__}"
                )
        addresses, spans = {}, []
        tellers: dict[str, str] = {}  # of each size the array that told it
        later = []  # what is to be compared when all sizes are known
        for array in self.arrays:
            value = values[array.name]
            if value is None and array.optional:
                addresses[array.name] = 0
                continue
            shape, steps, address, length = array.measured(value, self.name)
            addresses[array.name] = address
            spans.append((address, address + length, array))
            sizes = array.sizes(shape)
            if sizes is None:
                self._raise_for_shape(array, shape, values, tellers)
            for axis, size in zip(array.axes, sizes):
                if axis.name is None:
                    later.append((array, axis, size, shape))
                elif values.setdefault(axis.name, size) != size:
                    self._raise_for_shape(array, shape, values, tellers)
                else:
                    tellers.setdefault(axis.name, array.name)
            for step, distance, size in zip(array.steps, steps, sizes):
                expected = step.value(values) if step.name is None else values.setdefault(step.name, distance)
                if expected != distance and size > 1:
                    raise ValueError(
                        f"kernel {self.name}: {array.name} does not lie in memory in the steps that it "
                        f"must: {tuple(steps)}"
                    )
        for name in self._sizes:
            values.setdefault(name, 0)  # of arrays that are not given
        for array, axis, size, shape in later:
            if axis.value(values) != size:
                self._raise_for_shape(array, shape, values, tellers)
        for first, last, array in spans:
            for start, end, other in spans if array.written else ():
                if start < last and first < end and other is not array:
                    raise ValueError(f"kernel {self.name}: {array.name} and {other.name} overlap in memory")
        for condition in self.conditions:
            if not condition.value(values):
                self._raise_for_condition(condition, values)
        values.update(addresses)
        return self.over.value(values), self._packing.pack(*[values[name] for name in self._order])

    def _raise_for_names(self, arguments: Mapping[str, Argument]) -> None:
        for name in self._order:
            if name in self.arguments and name not in arguments:
                raise TypeError(f"kernel {self.name}: the argument {name} is missing")
        unknown = ", ".join(sorted(arguments.keys() - self.arguments))
        raise TypeError(f"kernel {self.name}: there is no argument {unknown}")

    def _raise_for_shape(
        self, array: Array, shape: Sequence[int], values: Mapping[str, Any], tellers: Mapping[str, str]
    ) -> NoReturn:
        names = {name for axis in array.axes for name in re.findall(r"[a-z]\w*", axis.text)}
        known = [
            f"{name} = {values[name]}" + (f" of {tellers[name]}" if name in tellers else "")
            for name in sorted(names & values.keys())
        ]
        sizes_text = f" with {', '.join(known)}" if known else ""
        raise ValueError(
            f"kernel {self.name}: {array.name} has shape {tuple(shape)}, which is not {array.shape}"
            f"{sizes_text}"
        )

    def _raise_for_condition(self, condition: _Expression, values: Mapping[str, Any]) -> NoReturn:
        names = [name for name in re.findall(r"[a-z]\w*", condition.text) if name in values]
        known = [
            f"{name} = {values[name]}"
            for name in dict.fromkeys(names)
            if isinstance(values[name], (int, float))
        ]
        sizes_text = f" ({', '.join(known)})" if known else ""
        raise ValueError(f"kernel {self.name}: it must be that {condition.text}{sizes_text}")


def _parsed(table: str) -> dict[str, KernelSignature]:
    kernels: dict[str, KernelSignature] = {}
    for entry in table.strip().split("\n\n"):
        head, *lines = entry.splitlines()
        match = re.fullmatch(r"(\w+) over (.+?)(, one range a thread)?(?: if (\w+))?", head)
        assert match is not None, head
        name, over, single, needs = match.groups()
        parameters: list[Array | tuple[str, str]] = []
        conditions = []
        for line in lines:
            kind, rest = line.split(maxsplit=1)
            if kind == "where":
                conditions.append(_Expression(rest))
            elif kind in ("size", "int", "real"):
                parameters += [(kind, word) for word in rest.split()]
            else:
                type_, rest = rest.split(maxsplit=1)
                for word, axes, optional in re.findall(r"(\w+)\[([^\]]*)\]( or null)?", rest):
                    parameters.append(_array(word, type_, axes, kind in ("out", "update"), bool(optional)))
        ranges = 1 if single else _RANGES
        kernels[name] = KernelSignature(
            name, len(kernels), _Expression(over), ranges, needs, tuple(parameters), tuple(conditions)
        )
    return kernels


def _array(name: str, type_: str, axes: str, written: bool, optional: bool) -> Array:
    sizes, steps, several = [], [], None
    for k, axis in enumerate(axes.split(", ")):
        size, _, step = axis.partition(":")
        if size.endswith("..."):
            several, size = k, size.removesuffix("...")
        sizes.append(_Expression(size))
        steps += [_Expression(step)] if step else []
    return Array(name, type_, tuple(sizes), several, tuple(steps), written, optional)


_RANGES = 4  # of each thread
KERNELS = _parsed(_TABLE)
DIGEST = hashlib.sha256(f"{_REVISION} {BLOCK} {POINTS} {_TABLE}".encode()).hexdigest()[:16]
