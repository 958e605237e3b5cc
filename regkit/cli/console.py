"""What the command line prints, and how it fails: one line for a user's mistake, a traceback for a bug."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from typer.core import TyperGroup

from regkit.core.errors import RegkitError, is_out_of_memory
from regkit.core.jsontext import to_json

Report = Callable[[str, float], None]
"""Called with the name of a stage and the share of the whole that is done, 0 to 1."""

NOT_RIGHT = 3
"""Exit code of ``--strict`` where the work was done and its result is not right."""

# What writing to stdout fails with: a full disk or device, a reader that has gone, one that was never there.
_NO_OUTPUT = (errno.ENOSPC, errno.EPIPE, errno.EBADF, errno.EIO)
_LOG = logging.getLogger("regkit.cli")
_LOG.addHandler(logging.NullHandler())
_SHOWN = {"shown": True}  # on stderr already
_SILENCE = 30  # seconds
_PIPE_WIDTH = 120  # columns of a table where there is no terminal to tell


class Commands(TyperGroup):
    """The commands, with every failure that a user can mend turned into one line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; what is no user's mistake passes through."""
        with _libraries_kept_quiet(), warnings.catch_warnings():
            warnings.simplefilter("default", UserWarning)
            warnings.filterwarnings("ignore", module="pydicom")  # of headers that break some rule
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except RegkitError as error:
                _fail(str(error), 1)
            except OSError as error:
                if not has_no_output(error):
                    raise
                _fail(f"could not write the output: {error.strerror}", 1)
            except KeyboardInterrupt:
                _fail("interrupted; nothing was left half-written", 130)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                _fail("out of memory: try --preset fast, a smaller image, or --device cpu", 1)


def has_no_output(error: OSError) -> bool:
    """Whether it is stdout that could not be written to, and no file."""
    return error.errno in _NO_OUTPUT and error.filename is None


@contextlib.contextmanager
def _libraries_kept_quiet() -> Iterator[None]:
    """Keep off stderr what C libraries print there, such as ITK's readers: the error says what matters.

    What Python prints still goes where it went. After a bug, what was kept back is shown as well.
    """
    try:
        real = os.dup(2)
    except OSError:  # started without a stderr
        yield
        return
    ours = sys.stderr
    encoding = getattr(ours, "encoding", None) or "utf-8"
    with (
        open(real, "w", buffering=1, encoding=encoding, errors="backslashreplace") as stream,
        tempfile.TemporaryFile() as captured,
    ):
        if _descriptor(ours) == 2:
            ours.flush()
            sys.stderr = stream
        os.dup2(captured.fileno(), 2)
        try:
            yield
        except (typer.Exit, RegkitError):
            raise
        except BaseException:
            captured.seek(0)
            stream.write(captured.read().decode(errors="replace"))
            raise
        finally:
            stream.flush()
            os.dup2(real, 2)
            sys.stderr = ours


def _descriptor(stream: TextIO) -> int | None:
    """The number of the file behind a stream; None where there is none, as in tests."""
    try:
        return stream.fileno()
    except (AttributeError, OSError, ValueError):
        return None


def _fail(message: str, code: int) -> None:
    # A message may quote an exception of several lines of some library's.
    typer.echo(f"error: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def warn(message: object) -> None:
    """One line on stderr, and in the log."""
    line = " ".join(str(message).split())
    typer.echo(f"warning: {line}", err=True)
    _LOG.warning("%s", line, extra=_SHOWN)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    warn(message)


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Report | None]:
    """A bar on stderr where that is a terminal; else a line now and then, unless ``quiet``."""
    if quiet:
        yield None
        return
    if not _is_terminal():
        yield _now_and_then()
        return
    columns = (TextColumn("{task.description:<24}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("reading", total=1.0)
        yield lambda stage, done: bar.update(task, description=stage, completed=done)


def _now_and_then() -> Report:
    """Says on stderr how far the work is, every half a minute, so that no log is silent for long."""
    last = time.monotonic()

    def report(stage: str, done: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _SILENCE:
            last = time.monotonic()
            typer.echo(f"{stage}: {done:.0%} done", err=True)

    return report


@contextlib.contextmanager
def logged(quiet: bool, verbose: bool = False, file: Path | None = None) -> Iterator[None]:
    """What regkit logs, as lines on stderr and in a file.

    Args:
        quiet: nothing on stderr; ``verbose``: what each stage found and took as well.
        file: gets all of it with the time, warnings and the error that ends the block, if one does; appended.

    Raises:
        RegkitError: if the file cannot be written.
    """
    log = logging.getLogger("regkit")
    before, handlers = log.level, list[logging.Handler]()
    if not quiet:
        handlers.append(_Lines(logging.DEBUG if verbose else logging.INFO))
    if file is not None:
        try:
            handlers.append(logging.FileHandler(file, encoding="utf-8"))
        except OSError as error:
            raise RegkitError(f"cannot write the log '{file}': {error.strerror}") from error
        handlers[-1].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for handler in handlers:
        log.addHandler(handler)
    if handlers:
        log.setLevel(min(handler.level or logging.DEBUG for handler in handlers))
    try:
        yield
    except BaseException as error:
        _LOG.error("%s", " ".join(str(error).split()) or type(error).__name__, extra=_SHOWN)
        raise
    finally:
        for handler in handlers:
            log.removeHandler(handler)
            handler.close()
        log.setLevel(before)


class _Lines(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "shown"):
            typer.echo(record.getMessage(), err=True)


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def print_json(value: Any) -> None:
    """One JSON object on stdout."""
    typer.echo(to_json(value))


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], mean: Sequence[str] = ()) -> None:
    """A table on stdout: the first column text, the others numbers; ``mean`` goes below a line."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for k, heading in enumerate(headings):
        table.add_column(heading, justify="right" if k else "left", no_wrap=bool(k))
    for row in rows:
        table.add_row(*row)
    if mean:
        table.add_row(*mean, style="bold")
    console = Console(highlight=False)
    console.width = console.width if console.is_terminal else _PIPE_WIDTH
    console.print(table)


def print_facts(facts: Sequence[tuple[str, str]]) -> None:
    """Lines of a name and what there is to say, aligned."""
    wide = max(len(name) for name, _ in facts)
    for name, text in facts:
        typer.echo(f"{name:<{wide}}  {text}".rstrip())


def number(value: float | None, digits: int) -> str:
    """A number for a table; a dash where nothing was measured."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"
