"""What a process that runs nothing but regkit sets up, and how it ends."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

from regkit.runtime import process

ROOT = Path(__file__).resolve().parents[1]


def _python(
    code: str, environment: dict[str, str] | None = None, stdout: int | IO[str] = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run code in a process of its own, whose environment says no more of these settings than is given."""
    said = ("MALLOC_", "OMP_", "PYTHONUNBUFFERED")
    others = {name: value for name, value in os.environ.items() if not name.startswith(said)}
    return subprocess.run(
        [sys.executable, "-c", f"from regkit.runtime.process import import_torch, leave, tune\n{code}"],
        env=others | {"PYTHONPATH": str(ROOT)} | (environment or {}),
        stdout=stdout,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


@pytest.mark.parametrize(
    ("environment", "expected"), [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")]
)
def test_idle_threads_sleep_unless_the_environment_says_otherwise(
    environment: dict[str, str], expected: str
) -> None:
    """Before torch is there, which reads it once."""
    code = "import os, sys\ntune()\nprint(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    found = _python(code, environment)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.split() == [expected, "False"]


@pytest.fixture(autouse=True)
def threshold(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What Python is told to wait for before it looks for garbage; this process goes on as it does."""
    told: list[int] = []
    monkeypatch.setattr(gc, "set_threshold", told.append)
    return told


def test_no_garbage_is_looked_for_while_torch_is_imported(
    threshold: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"MALLOC_ARENA_MAX": "2"})
    process.tune()
    found = _python("import gc\ntune()\nimport torch\nprint(gc.get_stats()[2]['collections'])")
    assert (len(threshold), found.stdout.strip()) == (1, "0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU torch is imported whole")
def test_what_only_the_compiler_of_torch_needs_waits_until_it_is_asked_for() -> None:
    found = _python(
        "import_torch()\n"
        "import sys, torch\n"
        "print('torch._prims' in sys.modules)\n"
        "from torch._meta_registrations import meta_index_Tensor\n"
        "print('torch._prims' in sys.modules, meta_index_Tensor.__module__)\n"
        "import_torch()\n"
        "print(hasattr(sys.modules['torch._meta_registrations'], '__file__'))"
    )
    assert found.stdout.split() == ["False", "True", "torch._meta_registrations", "True"], found.stderr


def test_torch_is_whole_where_there_is_a_gpu() -> None:
    """What the libraries of a GPU ask for cannot be tried without one. Here it is the compiler itself."""
    found = _python(
        "from types import SimpleNamespace\n"
        "from regkit.runtime import process\n"
        "there, real = SimpleNamespace(is_available=lambda: True), process.import_module\n"
        "process.import_module = lambda name: real(name) and there if name == 'torch.cuda' else real(name)\n"
        "import_torch()\n"
        "import torch\n"
        "torch.optim.AdamW([torch.zeros(1, requires_grad=True)])"
    )
    assert (found.returncode, found.stderr) == (0, "")


def test_a_command_checks_its_outputs_before_torch_is_imported() -> None:
    """Which else would not find what is set up for it."""
    found = _python("import regkit.cli, regkit.io.outputs, sys\nprint('torch' in sys.modules)")
    assert found.stdout.strip() == "False", found.stderr


@pytest.mark.parametrize("environment", [{}, {"MALLOC_ARENA_MAX": "2"}])
def test_freed_memory_is_kept_unless_the_environment_says_otherwise(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By glibc's numbers for M_MMAP_MAX, M_TRIM_THRESHOLD and M_TOP_PAD."""
    called: dict[int, int] = {}
    monkeypatch.setattr(os, "environ", dict(environment))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=called.__setitem__))
    process.tune()
    assert called == ({} if environment else {-4: 0, -1: 2**30, -2: 2**24})


def test_a_system_without_these_settings_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one with another C library is."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    process.tune()
    assert os.environ == {"OMP_WAIT_POLICY": "passive"}


def test_without_the_tricks_a_process_starts_and_ends_as_any_other() -> None:
    found = _python(
        "import gc, os, sys\n"
        "class Late:\n"
        "    def __del__(self): print('taken down')\n"
        "kept, before = Late(), gc.get_threshold()\n"
        "tune()\n"
        "import_torch()\n"
        "print(gc.get_threshold() == before, 'OMP_WAIT_POLICY' in os.environ)\n"
        "print(hasattr(sys.modules['torch._meta_registrations'], '__file__'))\n"
        "leave(3)",
        {process.SWITCH: "none"},
    )
    assert (found.returncode, found.stderr) == (3, "")
    assert found.stdout.split("\n") == ["True False", "True", "taken down", ""]


def test_each_trick_can_be_left_out(monkeypatch: pytest.MonkeyPatch, threshold: list[int]) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    called: list[int] = []
    monkeypatch.setattr(
        ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=lambda number, value: called.append(number))
    )
    for left_out, expected in {
        "garbage": (0, True, 3), "threads": (1, False, 3), "memory": (1, True, 0), "exit": (1, True, 3)
    }.items():  # fmt: skip
        used = ",".join(trick for trick in process.TRICKS if trick != left_out)
        monkeypatch.setattr(os, "environ", {process.SWITCH: used})
        threshold.clear()
        called.clear()
        process.tune()
        assert (len(threshold), "OMP_WAIT_POLICY" in os.environ, len(called)) == expected


@pytest.mark.parametrize("code", [0, 3])
def test_leaving_does_what_was_to_be_done_at_the_end_and_says_what_was_said(code: int) -> None:
    """What is taken down piece by piece elsewhere is not."""
    found = _python(
        "import atexit, sys\n"
        "class Late:\n"
        "    def __del__(self): print('taken down')\n"
        "kept = Late()\n"
        "atexit.register(print, 'first registered')\n"
        "atexit.register(print, 'at the end', file=sys.stderr)\n"
        "print('said', end=' ')\n"
        f"leave({code})"
    )
    assert found.returncode == code
    assert found.stdout == "said first registered\n"
    assert found.stderr == "at the end\n"


@pytest.mark.skipif(sys.platform == "win32", reason="the C library has no name that is the same elsewhere")
def test_leaving_writes_what_libraries_of_c_have_printed() -> None:
    found = _python("import ctypes\nctypes.CDLL(None).printf(b'by C')\nleave(0)")
    assert (found.returncode, found.stdout) == (0, "by C")


def test_a_closed_output_is_no_failure() -> None:
    assert _python("import sys\nsys.stdout.close()\nleave(0)").returncode == 0


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no file that is always full")
@pytest.mark.parametrize(("code", "expected"), [(0, 120), (3, 3)])
def test_output_that_cannot_be_written_is_a_failure(code: int, expected: int) -> None:
    """With the code that Python itself ends with, unless there was a failure before."""
    with open("/dev/full", "w") as full:
        found = _python(f"print('lost')\nleave({code})", stdout=full)
    assert found.returncode == expected
