"""ITK's readers in a child process, so that a crash or a hang there is just an error here.

ITK 5.4 ends the process on some damaged headers (MetaImage, HDF5, MATLAB, transforms as text) and never
returns on others. The child costs 0.07 s a file. Its memory is bounded, by half a GiB for a header and by
what the voxels take after it, and so is its time: 8 s for a header, and for the voxels a second more for
every 10 MiB of them. What counts is the time that it works or sleeps. The time that it waits for a processor
or a disk, which a busy machine takes from good files, counts only up to twenty times as long.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np
import numpy.typing as npt

from regkit.core.errors import FormatError, reason

HEADER_SECONDS = 8.0
"""How long ITK may take to parse a header."""
_POLL = 0.1  # s
_STARVED = 20  # times as long for a process that waits for a processor or a disk
_BYTES_PER_SECOND = 10 << 20  # at least, of voxels
_MARGIN = 1 << 28  # memory of the reader beside its voxels
_TYPES = {
    f"{bits}-bit {sign} integer": np.dtype(f"{kind}{bits // 8}")
    for bits in (8, 16, 32, 64)
    for sign, kind in (("signed", "i"), ("unsigned", "u"))
} | {"32-bit float": np.dtype("f4"), "64-bit float": np.dtype("f8")}


class ParserError(FormatError):
    """ITK could not read a file: the message tells why, without the file's name."""


@dataclass(frozen=True)
class Header:
    """What ITK says of an image before its voxels are read.

    Args:
        size: voxels along every axis, x first.
        spacing: as the file has it; ITK lets an axis run backwards by a negative one.
        direction: row-major, as many rows as axes.
        pixel: ITK's name of the pixel type, such as "vector of 32-bit float".
        components: numbers per voxel.
        format: ITK's name of the reader, such as ``NrrdImageIO``.
    """

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]
    pixel: str
    components: int
    format: str = ""

    @property
    def dtype(self) -> npt.DTypeLike | None:
        """numpy's type of one component, or None where it has none of the kind."""
        return next((kind for name, kind in _TYPES.items() if self.pixel.endswith(name)), None)


class ImageFile:
    """An image of which ITK has read the header, in a process that waits to read the voxels."""

    def __init__(self, child: _Child, header: Header) -> None:
        self._child, self.header = child, header

    def read(self, most_bytes: int) -> tuple[Header, npt.NDArray[Any]]:
        """The voxels, (z, y, x) or with more axes before and components behind, and their final header.

        Args:
            most_bytes: memory that the voxels may take.

        Raises:
            ParserError: if they cannot be read.
        """
        self._child.seconds = HEADER_SECONDS + most_bytes / _BYTES_PER_SECOND
        final = _header(self._child.ask(str(2 * most_bytes + _MARGIN)))
        dtype = final.dtype
        if dtype is None:
            raise ParserError(f"has voxels of the type '{final.pixel}', which is not supported")
        shape = final.size[::-1] + ((final.components,) if final.components > 1 else ())
        if int(np.prod(shape)) * np.dtype(dtype).itemsize > most_bytes:
            raise ParserError("holds more voxels than its header says")
        return final, self._child.take(shape, dtype)


@contextlib.contextmanager
def open_image(files: Sequence[str | os.PathLike[str]]) -> Iterator[ImageFile]:
    """Let ITK read the header of a file, or of the first slice of a series.

    Raises:
        ParserError: if it cannot, or crashes or hangs on the way.
    """
    with _Child() as child:
        header = _header(child.ask(json.dumps({"do": "image", "files": [os.fspath(f) for f in files]})))
        yield ImageFile(child, header)


@dataclass(frozen=True, eq=False)
class TransformPart:
    """One transform of a file.

    Args:
        name: ITK's name of its class.
        dimension: 2 or 3.
        matrix: 4x4, LPS mm, for a linear one in 3-D, else None.
        fixed: its fixed parameters, as ITK defines them.
        values: of a displacement field, (z, y, x, 3), or the coefficients of a B-spline, as float64.
        order: of a B-spline.
    """

    name: str
    dimension: int
    matrix: npt.NDArray[np.float64] | None
    fixed: tuple[float, ...]
    values: npt.NDArray[np.float64] | None
    order: int


def read_transform(path: Path) -> list[TransformPart]:
    """The transforms of an ITK file, in ITK's order: the last one acts on a point first.

    Raises:
        ParserError: if ITK cannot read it, or crashes or hangs on the way.
    """
    # Text takes more than 2 bytes a number of 8, deflate in HDF5 rarely less than 1; ITK copies some times.
    size = path.stat().st_size
    with _Child() as child:
        child.seconds = HEADER_SECONDS + size / _BYTES_PER_SECOND
        request = {"do": "transform", "files": [os.fspath(path)], "bytes": 40 * size}
        answer = child.ask(json.dumps(request))
        child.send("go")
        parts = []
        for facts in answer["parts"]:
            matrix = values = None
            fixed = tuple(map(float, facts["fixed"]))
            if facts.get("points"):
                origin, *ends = np.asarray(facts["points"], dtype=np.float64)
                matrix = np.eye(4)
                matrix[:3, 3] = origin
                matrix[:3, :3] = ((np.array(ends) - origin) / 1000.0).T
            if facts["bytes"]:
                shape: tuple[int, ...] = (facts["bytes"] // 8,)
                if facts["name"] == "DisplacementFieldTransform":
                    shape = (*(int(n) for n in fixed[2::-1]), 3)
                values = child.take(shape, "f8")
            order = int(facts.get("order", 0))
            parts.append(TransformPart(facts["name"], int(facts["dimension"]), matrix, fixed, values, order))
        return parts


def _header(facts: dict[str, Any]) -> Header:
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in facts.items()}
    return Header(**fields)


class _Child:
    """A process that answers one request, and is ended when it takes too long."""

    def __init__(self) -> None:
        self.seconds = HEADER_SECONDS
        self._late = False
        spec = importlib.util.find_spec("SimpleITK")
        folder = str(Path(str(spec and spec.origin)).parents[1])
        script = Path(__file__).with_name("itkchild.py")
        # Neither the user's site-packages nor the environment's have a say: -I; -S saves their time, too.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(script), folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"MALLOC_ARENA_MAX": "1"},
        )

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with contextlib.suppress(OSError):
                    stream.close()
        self._process.wait()

    def send(self, line: str) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(line.encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise self._gone() from error

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to a line."""
        assert self._process.stdout
        with self._watched():
            self.send(line)
            reply = self._process.stdout.readline()
        if not reply.endswith(b"\n"):
            raise self._gone()
        answer: dict[str, Any] = json.loads(reply)
        if "error" in answer:
            raise ParserError(f"cannot be read ({reason(Exception(answer['error']))})")
        return answer

    def take(self, shape: Sequence[int], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
        """The raw array that follows an answer."""
        assert self._process.stdout
        array = np.empty(shape, dtype)
        left = memoryview(array.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        with self._watched():
            while len(left):
                got = self._process.stdout.readinto(left)  # type: ignore[attr-defined]
                if not got:
                    raise self._gone()
                left = left[got:]
        return array

    @contextlib.contextmanager
    def _watched(self) -> Iterator[None]:
        done = Event()
        watch = Thread(target=self._end_when_late, args=(done,), daemon=True)
        watch.start()
        try:
            yield
        finally:
            done.set()

    def _end_when_late(self, done: Event) -> None:
        """End the child when its time is over, counted in polls: a machine that sleeps makes none."""
        spent, polls, last = 0.0, 0, _state(self._process.pid)
        while not done.wait(_POLL):
            now = _state(self._process.pid)
            slept = 0.0 if now and now.wants_processor else _POLL
            worked = now.seconds_worked - last.seconds_worked if now and last else 0.0
            spent, polls, last = spent + max(slept, worked), polls + 1, now
            if spent >= self.seconds or polls * _POLL >= _STARVED * self.seconds:
                self._late = True
                self._process.kill()
                return

    def _gone(self) -> ParserError:
        """Why there is no answer."""
        code = self._process.wait()
        if self._late:
            return ParserError(f"is damaged: its reader had no end after {self.seconds:.0f} s")
        return ParserError(f"is damaged: its reader crashed (exit code {code})")


@dataclass(frozen=True)
class _State:
    """What a process does.

    Args:
        seconds_worked: how long it has had a processor.
        wants_processor: whether it runs, would if it got a processor, or waits for a disk.
    """

    seconds_worked: float
    wants_processor: bool


def _state(pid: int) -> _State | None:
    """That of a process, by what Linux tells after its name; None elsewhere, and where there is none."""
    try:
        state, *numbers = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return _State((int(numbers[10]) + int(numbers[11])) / os.sysconf("SC_CLK_TCK"), state in ("R", "D"))
