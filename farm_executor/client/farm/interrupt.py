"""Defer Ctrl-C, or all signal handlers, until the current critical section ends.

Python raises KeyboardInterrupt in the main thread at whatever instruction that thread has reached. If it is in the
middle of changing shared state, there is no telling afterwards how far the change got. `HeldBack` makes the
interrupt wait, at the price of two system calls; `AllHeldBack` makes every signal handler wait, where the price
does not matter. This module knows nothing of the critical sections themselves.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["AllHeldBack", "HeldBack", "let_go"]

# The functions beneath `signal.signal` and `getsignal`, which wrap handlers in enums and take ten times as long.
_set_handler: Callable[[int, Any], Any] = getattr(importlib.import_module("_signal"), "signal", signal.signal)
_get_handler: Callable[[int], Any] = getattr(importlib.import_module("_signal"), "getsignal", signal.getsignal)
_INTERRUPT = int(signal.SIGINT)
# Kept, as each call asks for it; it is another in a child that another thread has forked.
_main = threading.main_thread().ident

_held: list[HeldBack | AllHeldBack] = []  # contexts that are active in the main thread, outermost first


def let_go() -> None:
    """In a forked child: restore handlers that the parent's main thread had replaced.

    The child's main thread may be another one, which never leaves those contexts.
    """
    global _main
    _main = threading.main_thread().ident
    # Innermost first: each restores what it found, so the outermost, which found the original, must come last.
    for held in reversed(_held):
        held._restore()
    _held.clear()


class HeldBack:
    """A context in which an interrupt waits for the end of the context, or for `passing`.

    Only the main thread is ever interrupted; in other threads this has no effect. It holds back the installed
    handler of SIGINT, whichever that is, and no other signal.

    Attributes:
        passing: Whether an interrupt may come now: set it around code that may be left at any instruction.
    """

    __slots__ = ("_came", "_original", "passing")

    _original: Any
    _came: tuple[FrameType | None] | None
    passing: bool

    def __enter__(self) -> HeldBack:
        self._original = self._came = None
        self.passing = False
        if threading.get_ident() == _main:
            try:
                original = _set_handler(_INTERRUPT, self._on_signal)
            except ValueError:  # a subinterpreter, which is never interrupted
                return self
            if callable(original):
                self._original = original
                _held.append(self)
            else:  # no Python handler is called for it, or it was not set from Python
                _set_handler(_INTERRUPT, signal.SIG_DFL if original is None else original)
        return self

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.passing and self._original is not None:
            # Unset first: the handler most likely raises, and then nobody else does it. A second Ctrl-C must not
            # come through in the middle of the cleanup.
            self.passing = False
            self._original(signum, frame)
        else:
            self._came = (frame,)

    def _restore(self) -> None:
        _set_handler(_INTERRUPT, self._original)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        original = self._original
        if original is not None:
            _held.remove(self)
            _set_handler(_INTERRUPT, original)
            # Only after restoring, so that an exception of the handler cannot leave ours installed.
            if self._came is not None:
                original(_INTERRUPT, *self._came)


class AllHeldBack:
    """A context in which every signal handler written in Python waits for the end of the context.

    For code that may take long and must not be entered twice by one thread, such as code that holds a lock that
    handlers want, too. Only the main thread ever runs handlers; in other threads this has no effect.
    """

    __slots__ = ("_came", "_originals")

    def __init__(self) -> None:
        self._originals: dict[int, Any] = {}
        self._came: dict[int, FrameType | None] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        _held.append(self)
        for signum in map(int, signal.valid_signals()):
            if callable(_get_handler(signum)):
                try:
                    self._originals[signum] = _set_handler(signum, self._on_signal)
                except ValueError:  # a subinterpreter, which runs no handlers
                    break

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        self._came[signum] = frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self in _held:
            _held.remove(self)
            self._restore()
            _call_all(self._originals, self._came)

    def _restore(self) -> None:
        for signum, original in self._originals.items():
            _set_handler(signum, original)


def _call_all(handlers: dict[int, Any], came: dict[int, FrameType | None]) -> None:
    """Call the handler of each signal that came, whatever the others raise."""
    if came:
        signum = next(iter(came))
        try:
            handlers[signum](signum, came.pop(signum))
        finally:
            _call_all(handlers, came)
