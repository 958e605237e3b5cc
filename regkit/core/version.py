"""The version of regkit, from which its packages take theirs."""

__version__ = "0.1.0"
