"""Errors that users can fix, and how errors of other libraries are reported."""

from __future__ import annotations

import re

DISTRIBUTION = "regkit-imaging"
"""What pip calls regkit. On PyPI, ``regkit`` is a library for the Windows registry."""

_NO_MEMORY = ("can't allocate memory", "failed to allocate memory", "bad_alloc", "out of memory")


class RegkitError(ValueError):
    """Input that cannot be used. The message says what is wrong and what to do.

    The command line prints only the message and exits with 1. Any other exception that escapes is a bug of
    regkit and keeps its traceback.
    """


class InputError(RegkitError):
    """An image, label map or other input cannot be used as it is."""


class FormatError(RegkitError):
    """A file is damaged, or of a format that regkit does not read."""


class MemoryLimitError(RegkitError):
    """More memory is needed than is available or allowed."""


class UsageError(RegkitError):
    """An option or argument is unknown, or contradicts another one."""


def install(extra: str) -> str:
    """The command that installs the packages of an extra of pyproject.toml."""
    return f'pip install "{DISTRIBUTION}[{extra}]"'


def last_lines(output: str, count: int) -> str:
    """What a program said last before it failed, in one line."""
    return " / ".join(line.strip() for line in output.strip().splitlines()[-count:])


def reason(error: Exception) -> str:
    """The last line of some library's exception, without the names and addresses that ITK puts before it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return re.sub(r"^(ITK ERROR: )?(\w+ ?\(0x[0-9a-f]+\): )?(ERROR: )?", "", lines[-1])


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of the machine or the GPU ran out, as Python, torch or ITK say it.

    The last two raise plain RuntimeErrors; only the text tells.
    """
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY)
