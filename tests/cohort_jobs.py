"""Jobs for the processes of tests, which import this module and nothing heavy."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

_AT_IMPORT = dict(os.environ)


def at_import(job: str) -> str | None:
    """What a variable of the environment was when this module was imported."""
    return _AT_IMPORT.get(job)


def square(job: int) -> int:
    return job * job


def square_or_die(job: int) -> int:
    """The square; of 3 the process is killed, and of 4 it ends by itself."""
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 4:
        os._exit(7)
    return job * job


def say_and_sleep(job: Path) -> Path:
    """Say by a file that the job was begun, and take long."""
    job.write_text(str(os.getpid()))
    time.sleep(60)
    return job


def first_at_once(job: Path | None) -> Path | None:
    """Nothing to do where there is no file; else as :func:`say_and_sleep`."""
    return job and say_and_sleep(job)
