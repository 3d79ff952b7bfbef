"""Where the output of tasks on servers goes: this program's own, or a callable.

This module owns how a line is marked with its source, and what happens when it cannot be written. It must not know
how lines arrive, nor which thread writes them.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from typing import Any, Literal, TextIO

from farm_executor._record import NamedTuple
from farm_executor.core.text import one_line

__all__ = ["Output", "OutputLine", "Source", "is_own_terminal"]

MAX_PREFIX = 200  # characters
NAMES: dict[int, Literal["stdout", "stderr"]] = {1: "stdout", 2: "stderr"}


class OutputLine(NamedTuple):
    """A line that a task, or a process that it has started, has written.

    Attributes:
        text: The line, without its newline. Bytes that are not UTF-8 are replaced.
        stream: "stdout" or "stderr".
        server: The address of the server, as the client was given it.
        slot: The worker's place there.
        pid: The worker's process id there.
    """

    text: str
    stream: Literal["stdout", "stderr"]
    server: str
    slot: int
    pid: int


class Source(NamedTuple):
    """A worker.

    Attributes:
        prefix: What each of its lines begins with in this program's output.
    """

    server: str
    slot: int
    pid: int
    prefix: str

    @classmethod
    def of(cls, server: str, slot: int, pid: int, *, own: bool) -> Source:
        """Return the source for a worker; with ``own``, of this program's own farm, which needs no mark."""
        shown = server.partition("?")[0]  # how a server is started does not tell it from others
        return cls(server, slot, pid, "" if own else f"({one_line(shown, MAX_PREFIX)}/{slot}) ")


class Output:
    """The way out; see the module.

    Args:
        take: Called with each line; None to write to this program's standard output and standard error, as they
            are at that moment.

    Thread safety: none.
    """

    def __init__(self, take: Callable[[OutputLine], object] | None) -> None:
        self._take = take
        self._unflushed: list[TextIO] = []

    def write(self, source: Source, stream: int, lines: list[str]) -> None:
        """Write lines.

        Raises:
            BaseException: The callable has raised, or the stream cannot be written to. A line is lost then.
        """
        if self._take is not None:
            self._call(self._take, source, stream, lines)
            return
        # Looked up each time: notebooks, test runners and `redirect_stdout` exchange them.
        out = sys.stdout if stream == 1 else sys.stderr
        if out is None or not lines:
            return
        # One write for all: other threads of the program write to this stream, too.
        text = "".join([f"{source.prefix}{line}\n" for line in lines])
        # A program in another locale must not lose the line, nor all that follow.
        try:
            out.write(text)
        except UnicodeEncodeError:
            encoding: Any = getattr(out, "encoding", None) or "ascii"
            out.write(text.encode(encoding, "backslashreplace").decode(encoding))
        if out not in self._unflushed:
            self._unflushed.append(out)

    def _call(self, take: Callable[[OutputLine], object], source: Source, stream: int, lines: list[str]) -> None:
        problem = None
        for line in lines:
            try:
                take(OutputLine(line, NAMES[stream], source.server, source.slot, source.pid))
            except BaseException as error:  # the user's code: the lines that follow are told all the same
                problem = error
        if problem is not None:
            raise problem

    def flush(self) -> None:
        """Have the streams pass on what has been written."""
        while self._unflushed:
            with contextlib.suppress(Exception):  # closed, or replaced by something else
                self._unflushed.pop().flush()


def is_own_terminal() -> bool:
    """Return whether this program's output goes where its children's goes, to descriptors 1 and 2.

    It does not in a notebook, under a test runner that captures it, nor where it is redirected within Python.
    """
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        if stream is None:
            continue  # nobody reads it, so there is nothing to be forwarded
        try:
            if stream.fileno() != descriptor:
                return False
        except Exception:  # not a file
            return False
    return True
