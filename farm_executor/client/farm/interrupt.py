"""Ctrl-C comes between two deeds, not within one.

Python raises KeyboardInterrupt in the main thread at whatever instruction that has reached. Where this is in the
middle of changing what other threads share, nobody can tell afterwards what has been done. `HeldBack` makes it
wait, at the price of two system calls; `AllHeldBack` makes every signal handler wait, where the price does not
matter. This module knows nothing of what is done meanwhile.
"""

from __future__ import annotations

import importlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any

__all__ = ["AllHeldBack", "HeldBack", "let_go"]

# What `signal.signal` calls; to wrap handlers into enums, as that does, would cost ten times as much.
_set_handler: Callable[[int, Any], Any] = getattr(importlib.import_module("_signal"), "signal", signal.signal)
_get_handler: Callable[[int], Any] = getattr(importlib.import_module("_signal"), "getsignal", signal.getsignal)
_INTERRUPT = int(signal.SIGINT)

_held: list[HeldBack | AllHeldBack] = []  # the main thread's, the outermost first


def let_go() -> None:
    """In a forked child: the main thread may have been held back, and the child's main thread is another one."""
    for held in reversed(_held):
        held._restore()
    _held.clear()


class HeldBack:
    """While this context lasts, an interrupt waits for its end, or for `passing`.

    Only the main thread is ever interrupted; in the others this has no effect. It holds back what the handler of
    SIGINT that is installed would do, whichever that is, and other signals not at all.

    Attributes:
        passing: Whether an interrupt may come now: set it around what may be left at any moment.
    """

    __slots__ = ("_came", "_original", "passing")

    def __init__(self) -> None:
        self._original: Any = None
        self._came: tuple[FrameType | None] | None = None
        self.passing = False

    def __enter__(self) -> HeldBack:
        if threading.current_thread() is threading.main_thread():
            try:
                original = _set_handler(_INTERRUPT, self._on_signal)
            except ValueError:  # another interpreter than the main one: it is never interrupted
                return self
            if callable(original):
                self._original = original
                _held.append(self)
            else:  # nobody is told of it in Python, or it was not set from there
                _set_handler(_INTERRUPT, signal.SIG_DFL if original is None else original)
        return self

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.passing and self._original is not None:
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
            self._restore()
            if self._came is not None:
                original(_INTERRUPT, *self._came)


class AllHeldBack:
    """While this context lasts, every handler of a signal that is written in Python waits for its end.

    For what may take its time and must not be entered twice by one thread, such as holding a lock that handlers
    want, too. Only the main thread ever runs handlers; in the others this has no effect.
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
                except ValueError:  # another interpreter than the main one, which runs no handlers
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
    """Call the handlers of what came, each of them, whatever another raises."""
    if came:
        signum = next(iter(came))
        try:
            handlers[signum](signum, came.pop(signum))
        finally:
            _call_all(handlers, came)
