"""The one exception that means "the user can mend this"."""

from __future__ import annotations


class RegkitError(ValueError):
    """Unusable input, with a message that says what is wrong and what to do.

    The command line prints the message alone and exits with 1; anything else that escapes is a bug
    of regkit and keeps its traceback.
    """
