"""Writes ``signatures.h`` from the table of signatures: ``python -m regkit.ops.native.header``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from regkit.ops.native.signatures import BLOCK, DIGEST, KERNELS, POINTS, Array

PATH = Path(__file__).with_name("signatures.h")
_COLUMNS = 119


def header() -> str:
    """The text of ``signatures.h``."""
    c_types = {"size": "int64_t", "int": "int64_t", "real": "double"}
    prototypes, calls, entries = [], [], []
    for kernel in KERNELS.values():
        declared, passed = ["int64_t first", "int64_t last"], ["first", "last"]
        for k, parameter in enumerate(kernel.parameters):
            if isinstance(parameter, Array):
                declared.append(parameter.c)
                passed.append(f"a[{k}].p")
            else:
                declared.append(f"{c_types[parameter[0]]} {parameter[1]}")
                passed.append(f"a[{k}].{'d' if parameter[0] == 'real' else 'i'}")
        prototype = _wrapped(f"KERNEL({kernel.name})(", declared, ");")
        call = (
            f"static double call_{kernel.name}(int64_t first, int64_t last, const Slot *a) {{\n"
            + _wrapped(f"    return NAMED_KERNEL({kernel.name})(", passed, ");")
            + "\n}"
        )
        entry = f"    call_{kernel.name},"
        if kernel.needs:
            condition = f"#if defined({kernel.needs})"
            prototype, call = (f"{condition}\n{text}\n#endif" for text in (prototype, call))
            entry = f"{condition}\n{entry}\n#else\n    NULL,\n#endif"
        prototypes.append(prototype)
        calls.append(call)
        entries.append(entry)
    return "\n".join(
        [
            '/* By "python -m regkit.ops.native.header" from signatures.py: not to be edited. */',
            f'#define DIGEST "{DIGEST}"',
            f"#define KERNELS {len(KERNELS)}",
            "",
            "/* Cells or values, and places, that kernels without an axis of their own count in. */",
            f"#define BLOCK {BLOCK}",
            f"#define POINTS {POINTS}",
            "",
            "#if defined(KERNEL) /* in the file of an instruction set */",
            *prototypes,
            "",
            "/* Each with its arguments from slots of 8 bytes. */",
            *calls,
            "",
            "const Call NAMED(calls, SUFFIX)[KERNELS] = {",
            *entries,
            "};",
            "#endif",
            "",
        ]
    )


def _wrapped(start: str, words: Sequence[str], end: str) -> str:
    """In lines of at most so many columns."""
    lines, indent = [start], " " * len(start)
    for k, word in enumerate(words):
        word += "," if k + 1 < len(words) else end
        if len(lines[-1]) + len(word) + 1 > _COLUMNS:
            lines.append(indent + word)
        else:
            lines[-1] += word if lines[-1] == start else f" {word}"
    return "\n".join(lines)


if __name__ == "__main__":
    PATH.write_text(header(), encoding="utf-8")
